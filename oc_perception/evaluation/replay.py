# SPDX-License-Identifier: Apache-2.0
"""Perception over a recording, offline: the same `step` as on the robot, equal bytes in every
run.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from oc_perception.bags.sequence import Frame, Sequence, open_sequence
from oc_perception.bags.writer import BagWriter
from oc_perception.evaluation.provenance import machine
from oc_perception.evaluation.replay_files import Film, mot_lines, whole_file, write_messages
from oc_perception.evaluation.replay_runs import Runs
from oc_perception.evaluation.replay_scores import (
    DiscoveryScores,
    Series,
    Summary,
    TrackingScores,
)
from oc_perception.evaluation.replay_store import (
    SCHEMA,
    ReplayJob,
    finished,
    job_key,
    write_json,
)
from oc_perception.evaluation.replay_strips import WorstCases
from oc_perception.evaluation.replay_timing import Stopwatch
from oc_perception.evaluation.self_test import SelfTest
from oc_perception.images import MalformedImage
from oc_perception.models.registry import load_model
from oc_perception.pipeline import Discovery, Perception, PerceptionOutput, PerceptionState
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.reordering import ReorderingTracker
from oc_perception.tracking.stamps import StampError, check_stamp
from oc_perception.tracking.tracker import create_tracker
from oc_perception.types import SensorState

WATCHDOG_PERIODS = 1.5
"""A frame is missing when the gap is this many periods long, as in the live watchdog."""


@dataclass(frozen=True)
class Step:
    """One step of a replay: what was recorded (None where a frame was missing), the answer, and
    what perception remembers after it.
    """

    stamp_ns: int
    frame: Frame | None
    output: PerceptionOutput
    state: PerceptionState


@dataclass
class ReplayCounts:
    """What became of the frames of a recording."""

    frames: int = 0
    malformed: int = 0
    late: int = 0
    missing: int = 0
    first_error: str = ""

    def refuse(self, error: StampError) -> None:
        """A frame whose stamp cannot be used."""
        self.late += 1
        self.first_error = self.first_error or str(error)


def session_of(sequence: Sequence) -> bytes:
    """A UUID (16 bytes) that is the same for the same recording, wherever it lies."""
    return uuid.uuid5(uuid.NAMESPACE_OID, sequence.identity()).bytes


def steps(
    sequence: Sequence,
    perception: Perception,
    counts: ReplayCounts | None = None,
    on_frame: Callable[[], None] = lambda: None,
    watch: Stopwatch | None = None,
) -> Iterator[Step]:
    """Perception's answer to every frame of a recording, and to every frame that is missing in it.

    In a gap of more than WATCHDOG_PERIODS perception steps without a frame, at the camera's rate,
    while there is a track to predict. An image that cannot be decoded is a step without a frame,
    marked CORRUPT; one with a duplicate or zero stamp, or late by more than the window of
    perception, is left out. `counts` is filled on the way, `on_frame` called per recorded image,
    `watch` told how long everything takes.
    """
    counts = ReplayCounts() if counts is None else counts
    watch = watch or Stopwatch()
    period_ns = sequence.period_ns
    reset_s = perception.tracker.config.clock_reset_threshold_s
    window_s = perception.discovery.reorder_window_s
    perception = Perception(
        watch.timed(perception.discovery, "discovery"),
        watch.timed(perception.tracker, "tracking"),
    )
    state = perception.initial_state(session_of(sequence))
    last_ns, tracks_left = 0, False
    for frame in watch.each("read", sequence.frames(-math.inf)):  # clocks jump
        counts.frames += 1
        on_frame()
        try:
            reset = check_stamp(last_ns, frame.stamp_ns, reset_s, window_s)
        except StampError as error:
            counts.refuse(error)
            continue
        missing_ns = last_ns + period_ns
        while tracks_left and frame.stamp_ns - missing_ns > (WATCHDOG_PERIODS - 1) * period_ns:
            state, output = perception.step(state, None, missing_ns)
            counts.missing += 1
            tracks_left = bool(output.tracks.tracks)
            yield Step(missing_ns, None, output, state)
            missing_ns += period_ns
        if isinstance(frame.image, MalformedImage):
            counts.malformed += 1
            counts.first_error = counts.first_error or str(frame.image)
        try:
            state, output = _step(perception, state, frame)
        except StampError as error:  # a repetition within the window
            counts.refuse(error)
            continue
        last_ns = frame.stamp_ns if reset else max(last_ns, frame.stamp_ns)
        tracks_left = bool(output.tracks.tracks)
        yield Step(frame.stamp_ns, frame, output, state)


def _step(
    perception: Perception, state: PerceptionState, frame: Frame
) -> tuple[PerceptionState, PerceptionOutput]:
    """Perception's step; for an image that cannot be decoded a blind one that says why, as
    discovery_node and tracking_node take it.
    """
    if not isinstance(frame.image, MalformedImage):
        return perception.step(
            state, frame.image, frame.stamp_ns, frame.depth_m, frame.camera_matrix
        )
    discovery, segmentation = perception.discovery.step(state.discovery, None, frame.stamp_ns)
    segmentation = replace(segmentation, sensor_state=SensorState.CORRUPT)
    tracker, tracks = perception.tracker.step(state.tracker, segmentation, frame.stamp_ns)
    return PerceptionState(discovery, tracker), PerceptionOutput(segmentation, tracks)


def create_perception(job: ReplayJob) -> Perception:
    """The perception of a job. Raises ModelError, or ValueError for the tracker's weights."""
    torch.set_num_threads(job.threads)
    return _perception(job.model, job.tracker, job.device)


@lru_cache(maxsize=1)  # a worker has many bags for one model
def _perception(model: str, config: TrackerConfig, device: str) -> Perception:
    discovery = Discovery(
        load_model(model, device),
        device=device,
        clock_reset_threshold_s=config.clock_reset_threshold_s,
        reorder_window_s=config.reorder_window_s,
    )
    return Perception(discovery, ReorderingTracker(create_tracker(config)))


def run_job(
    job: ReplayJob,
    on_start: Callable[[int], None] = lambda total: None,
    on_frame: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the files of one recording into `job.output`; returns its metrics.

    Where these very files are there already nothing is done. Otherwise they are written anew:
    results/ (mcap), tracks.txt (MOTChallenge), annotated.mp4, contact_sheet.png, strips/,
    timing.json, and in the end metrics.json, whose presence says that the rest is whole. All but
    timing.json depend on the job and the recording, not on time or place. `on_start` is told how
    many images there are, `on_frame` is called after each. Raises BagError, ModelError, and
    OSError where `job.output` cannot be written.
    """
    with open_sequence(job.bag, job.topic, job.truth, job.fps) as sequence:
        key = job_key(job, sequence.identity())
        metrics = finished(job, key)
        if metrics is None:
            metrics = _replay(job, key, sequence, on_start, on_frame)
    return metrics


def _replay(
    job: ReplayJob,
    key: str,
    sequence: Sequence,
    on_start: Callable[[int], None],
    on_frame: Callable[[], None],
) -> dict[str, Any]:
    watch = Stopwatch()
    perception = create_perception(job)
    rate_hz = 1e9 / sequence.period_ns
    runs = Runs(perception, 1 / rate_hz, job.baselines)
    test = SelfTest(perception, runs, sequence.num_frames, rate_hz) if job.self_test else None
    counts, summary, series = ReplayCounts(), Summary(), Series()
    discovery, tracking, worst = DiscoveryScores(), TrackingScores(), WorstCases()
    job.output.mkdir(parents=True, exist_ok=True)
    (job.output / "metrics.json").unlink(missing_ok=True)
    on_start(sequence.num_frames)
    elapsed_ns = newest_ns = 0
    with ExitStack() as stack:
        results = stack.enter_context(
            BagWriter(job.output / "results", compress=True, overwrite=True)
        )
        tracks_file = stack.enter_context(whole_file(job.output / "tracks.txt"))
        film = stack.enter_context(Film(job.output, rate_hz)) if job.video else None
        for number, step in enumerate(steps(sequence, perception, counts, on_frame, watch)):
            output, frame = step.output, step.frame
            with watch.stage("write"):
                if film:
                    film.add(step)
                write_messages(results, step)
                tracks_file.writelines(mot_lines(number + 1, output.tracks))
            with watch.stage("self_test"):
                runs.add(step)
                if test:
                    test.add(number, step)
                    worst.add_blackouts(number, step, test, runs)
            summary.add(output.segmentation, output.tracks)
            series.add(step.stamp_ns, output.segmentation, output.tracks)
            if frame is not None:
                found = discovery.add(frame.truth, output.segmentation)
                if found is not None:
                    worst.add_segmentation(number, step, found)
                if frame.boxes is not None and runs.in_order:
                    tracking.add(frame.boxes.ids, frame.boxes.boxes, runs.outputs)
                    worst.add_tracking(number, step, frame.boxes, output.tracks)
            elapsed_ns += max(0, step.stamp_ns - (newest_ns or step.stamp_ns))
            newest_ns = step.stamp_ns if runs.restarted else max(newest_ns, step.stamp_ns)
    metrics = {
        "schema": SCHEMA,
        "job_key": key,
        "bag": sequence.name,
        "topic": sequence.topic,
        "model": perception.discovery.model.name,
        "tracker": runs.own,
        "rate_hz": round(rate_hz, 3),
        "duration_s": round(elapsed_ns * 1e-9, 4),
        "frames": counts.frames,
        "frames_malformed": counts.malformed,
        "frames_late": counts.late,
        "frames_missing": counts.missing,
        "warnings": sequence.warnings,
        "first_error": counts.first_error,
        **summary.metrics(),
        **discovery.metrics(),
        **tracking.metrics(),
        **(test.metrics() if test else {}),
        "worst": worst.write(job.output),
        **series.metrics(),
    }
    bag_s = metrics["steps"] / rate_hz
    write_json(job.output / "timing.json", watch.report(bag_s, machine(job.device)))
    write_json(job.output / "metrics.json", metrics)
    return metrics
