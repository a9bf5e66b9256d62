# SPDX-License-Identifier: Apache-2.0
"""The trackers of the blackout benchmark, and running them over its sequences."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from oc_perception.evaluation.baselines import FIT_FRAMES, Oracle, tune_diffusion
from oc_perception.evaluation.blackout import CHUNK, BlackoutConfig, Recording, draw_chunk
from oc_perception.evaluation.blackout_cameras import Cameras
from oc_perception.evaluation.blackout_scores import (
    AFTER_FRAMES,
    Scores,
    SequenceTruth,
    score_run,
)
from oc_perception.evaluation.box_trackers import BYTETRACK, SORT, BoxTracker
from oc_perception.tracking import tracker as product
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import TrackOutput
from oc_perception.worlds.disc_physics import FRAME_S

TRACKERS = {
    "hold": "objects stay where they were last seen",
    "constant_velocity": "straight on from the last two sightings",
    "kalman": "Kalman filter, tuned to the least error",
    "kalman_nll": "Kalman filter, tuned to the greatest density",
    "kalman_walls": "Kalman filter that reflects at the border, tuned to the least error",
    "kalman_walls_nll": "the same, tuned to the greatest density",
    "sort": "SORT-like, called with an empty list while blind",
    "sort_uncalled": "SORT-like, not called while blind",
    "bytetrack": "ByteTrack-like, called with an empty list while blind",
    "bytetrack_uncalled": "ByteTrack-like, not called while blind",
    "nonrelational": "learned motion of each object by itself",
    "relational": "learned motion of all objects together",
    "sqair": "discovery and tracking in one, by pictures alone; levels p, b",
    "oracle": "the exact laws of motion from a noisy start",
}
LEARNED = ("relational", "nonrelational", "sqair")
_CLASSICAL = ("hold", "constant_velocity", "kalman", "kalman_nll", "kalman_walls",
              "kalman_walls_nll")  # fmt: skip
_SESSION = bytes(16)
_VALIDATION_SEED, _VALIDATION_SEQUENCES = 9_000_001, 64
_TUNED_AGES = 20
_BACKGROUND_FRAMES = 10  # half of what is seen before the blackout
_WINDOW_SHARE = 0.7  # of a disc in the world that SQAIR learned from
_EXITS = {"R4": 1.0, "R5": 0.25}
"""How likely an object leaves that reaches the border of the view; elsewhere there are walls."""

AnyTracker = Tracker | BoxTracker | Oracle
Runs = Iterator[tuple[int, list[TrackOutput]]]
"""The frame where a tail starts, and the outputs of all frames up to the end of the tail."""


def tracker_configs(config: BlackoutConfig, names: Sequence[str]) -> dict[str, TrackerConfig]:
    """The settings behind each of `names` that is the product's tracker.

    Classical filters are tuned on sequences of a seed of their own, over 20 blind frames:
    `constant_velocity` and those with `_nll` to the greatest density of the truth, others to the
    least mean error.
    """
    base = _beliefs(config)
    world = config.world(_VALIDATION_SEQUENCES, _VALIDATION_SEED)
    truths = config.truths(world.sample_motion(FIT_FRAMES + _TUNED_AGES))
    result = {}
    for name in names:
        if name == "relational":
            weights = config.relational_weights
            result[name] = replace(base, motion_model="relational", motion_weights=weights)
        elif name == "nonrelational":
            weights = config.nonrelational_weights
            result[name] = replace(base, motion_model="relational", motion_weights=weights)
        elif name == "sqair":
            result[name] = replace(
                base,
                tracker="sqair",
                tracker_weights=config.sqair_weights,
                frame_period_s=FRAME_S,
                slots=config.objects + 1,
                window_share=_WINDOW_SHARE,
                background_frames=_BACKGROUND_FRAMES,
            )
        elif name in _CLASSICAL:
            tuned = replace(base, motion_model=name.removesuffix("_nll"))
            if name != "hold":  # which knows no diffusion
                rng = np.random.default_rng(_VALIDATION_SEED)
                by_density = name == "constant_velocity" or name.endswith("_nll")
                objective = "nll" if by_density else "ade"
                diffusion = tune_diffusion(tuned, truths, objective, _TUNED_AGES, rng)
                tuned = replace(tuned, velocity_diffusion_widths=diffusion)
            result[name] = tuned
    return result


def _beliefs(config: BlackoutConfig) -> TrackerConfig:
    """What every tracker of ours knows of the sensor; no trajectories, which nobody scores."""
    speed_per_axis = config.speed_widths_per_s / np.sqrt(2)
    settings = {
        "measurement_std_widths": max(config.noise_widths, 1e-6),
        "velocity_decay_per_s": 0.0,
        "collision_rate_per_s": 0.0,
        "initial_speed_widths_per_s": max(speed_per_axis, 1e-3),
        "horizon_s": 0.0,
        "exit_probability": _EXITS.get(config.regime, 0.0),
    }
    if config.level == "s":
        settings |= {
            "systematic_std_widths": 0.0,
            "detection_probability": min(0.99, 1 - config.miss),
            "clutter_per_frame": max(0.01, config.clutter),
            "motion_features": 1,  # the charge
        }
    return TrackerConfig(**settings)


def create_tracker(
    name: str, configs: Mapping[str, TrackerConfig], period_s: float
) -> Tracker | BoxTracker:
    """A tracker of TRACKERS but the oracle, with the settings of `tracker_configs`."""
    if name in configs:
        return product.create_tracker(configs[name])
    family, _, way = name.partition("_")
    config = {"sort": SORT, "bytetrack": BYTETRACK}[family]
    return BoxTracker(replace(config, called_when_blind=way != "uncalled"), period_s)


def run(tracker: AnyTracker, recording: Recording, truth: SequenceTruth) -> Runs:
    """Run a sequence, each tail from the state at its start; without tails, the trunk alone."""
    state = tracker.initial_state(_SESSION, truth.image_size)
    stamps = truth.stamps_ns.tolist()
    looks = getattr(tracker, "needs_frame", False)
    pictures = [(frame,) for frame in recording.frames] if looks else [()] * len(stamps)
    outputs: list[TrackOutput] = []
    for frame in range(len(recording.trunk) + 1):
        if frame in recording.tails:
            branch, tail = state, []
            for number, segmentation in enumerate(recording.tails[frame], frame):
                branch, output = tracker.step(
                    branch, segmentation, stamps[number], *pictures[number]
                )
                tail.append(output)
            yield frame, outputs + tail
        if frame < len(recording.trunk):
            segmentation, picture = recording.trunk[frame], pictures[frame]
            state, output = tracker.step(state, segmentation, stamps[frame], *picture)
            outputs.append(output)
    if not recording.tails:
        yield len(outputs), outputs


def score_runs(
    config: BlackoutConfig, truth: SequenceTruth, seen: np.ndarray, runs: Runs
) -> Scores:
    """All columns of one sequence from the runs of one tracker."""
    if config.schedule != "blackout":
        _, outputs = next(runs)
        return score_run(truth, outputs, seen, config.lengths, several=True)
    parts: dict[int, Scores] = {}
    for start, outputs in runs:
        frames = slice(0, start + AFTER_FRAMES)
        seen_here = np.r_[seen[:start], np.ones(AFTER_FRAMES, bool)]
        length = start - FIT_FRAMES
        parts[length] = score_run(truth[frames], outputs, seen_here, (length,))
    longest = parts[config.lengths[-1]]
    joined = {name: np.concatenate([parts[n][name] for n in config.lengths]) for name in longest}
    return {**joined, "error_by_age": longest["error_by_age"]}


def measure_chunk(
    config: BlackoutConfig,
    configs: Mapping[str, TrackerConfig],
    names: Sequence[str],
    number: int,
) -> dict[str, list[Scores]]:
    """Scores of each tracker in `names` for each sequence of chunk `number`."""
    chunk = draw_chunk(config, number)
    states = chunk.states()
    cameras = None if config.level == "s" else Cameras(chunk)
    truths = chunk.truths if cameras is None else cameras.truths

    def runs(name: str, row: int) -> Runs:
        if name == "oracle":  # which needs to be told nothing but when it is blind
            return run(chunk.oracle(row), states[row], truths[row])
        tracker = create_tracker(name, configs, chunk.motion.dt_s)
        if config.level == "b":
            return cameras.replay(tracker, row)
        return run(tracker, cameras.recording(row) if cameras else states[row], truths[row])

    return {
        name: [
            score_runs(config, truth, seen, runs(name, row))
            for row, (truth, seen) in enumerate(zip(truths, chunk.seen, strict=True))
        ]
        for name in names
    }


def measure(
    config: BlackoutConfig,
    configs: Mapping[str, TrackerConfig],
    names: Sequence[str],
    workers: int = 1,
    on_chunk: Callable[[], None] = lambda: None,
) -> dict[str, list[Scores]]:
    """Scores of all sequences, in their order, by `workers` processes of one thread each.

    `on_chunk` is called after each chunk. An exception, Ctrl-C too, ends the workers.
    """
    numbers = range(-(-config.sequences // CHUNK))
    result: dict[str, list[Scores]] = {name: [] for name in names}

    def collect(chunks: Iterator[dict[str, list[Scores]]]) -> None:
        for chunk in chunks:
            for name, scores in chunk.items():
                result[name] += scores
            on_chunk()

    if min(workers, len(numbers)) == 1:
        collect(measure_chunk(config, configs, names, number) for number in numbers)
        return result
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    work = partial(measure_chunk, config, dict(configs), tuple(names))
    with context.Pool(min(workers, len(numbers)), _begin_work) as pool:
        collect(pool.imap(work, numbers))
    return result


def _begin_work() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    torch.set_num_threads(1)
