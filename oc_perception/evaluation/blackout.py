# SPDX-License-Identifier: Apache-2.0
"""The blackout benchmark: `discs` are watched, the sensor goes blind, and comes back.

A tracker sees 20 frames, misses n, and sees 10 more; the frames before and in a blackout are the
same for every n, so they are run once, and continued from every end. All trackers meet the same
sequences, detections and schedules. A chunk of sequences is drawn from a seed of its own, so that
the numbers do not depend on how chunks are spread over processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from oc_perception.evaluation.baselines import FIT_FRAMES, Oracle, oracle_forecasts
from oc_perception.evaluation.blackout_scores import AFTER_FRAMES, SequenceTruth
from oc_perception.tracking.config import TrackerConfig
from oc_perception.types import Detection, Segmentation, SensorState
from oc_perception.worlds.disc_physics import FRAME_S, REGIMES
from oc_perception.worlds.discs import DiscMotion, Discs, DiscsConfig

LEVELS = ("s", "p", "b")
LENGTHS = (1, 2, 5, 10, 20, 40)
SCHEDULES = ("blackout", "bernoulli_0.2", "bernoulli_0.5", "periodic", "burst")
CHUNK = 4
"""Sequences drawn, simulated and scored together."""
START_NS = 1_000_000_000
"""Stamp of the first frame."""
_STATE_SIDE_PX, _PICTURE_SIDE_PX = 640, 64
_SCHEDULED_FRAMES = 60
_PIXEL_STD_WIDTHS = TrackerConfig.measurement_std_widths  # of centroids of masks 64 wide


@dataclass(frozen=True)
class BlackoutConfig:
    """What is measured. `speed` diameters per frame; `noise` standard deviation of a detection's
    position on each axis, diameters; `miss` probability that a visible object is not detected;
    `clutter` false detections per frame. These three are of level s.
    """

    level: str = "s"
    regime: str = "R1"
    objects: int = 5
    seed: int = 0
    sequences: int = 64
    speed: float = 0.2
    noise: float = 0.02
    miss: float = 0.0
    clutter: float = 0.0
    lengths: tuple[int, ...] = LENGTHS
    schedule: str = "blackout"
    model: str = "monet_discs_cpu"
    weights: str = ""
    sqair_weights: str = "sqair_discs_cpu"

    def __post_init__(self) -> None:
        for name, known in (("level", LEVELS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown: choose {', '.join(known)}."
                )
        for name in ("objects", "sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("speed", "noise", "clutter"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}.")
        if self.level != "s" and (self.miss or self.clutter):
            raise ValueError("miss and clutter are of level s: pictures have misses of their own.")
        if not 0 <= self.miss < 1:
            raise ValueError(f"miss is a probability below 1, not {self.miss}.")
        if (
            not self.lengths
            or min(self.lengths) < 1
            or list(self.lengths) != sorted(set(self.lengths))
        ):
            raise ValueError(f"lengths must be ascending numbers of frames, not {self.lengths}.")
        self.world(1, 0)  # which checks the rest

    @property
    def relational_weights(self) -> str:
        """Checkpoint of the relational motion model."""
        return self.weights or f"relational_{self.regime.lower()}"

    @property
    def nonrelational_weights(self) -> str:
        """Checkpoint of its twin that leaves relations out: the same name after `non`."""
        path = Path(self.relational_weights)
        return str(path.with_name(f"non{path.name}"))

    @property
    def filter(self) -> str:
        """The classical filter of skill 0; it reflects where there are walls that stand still."""
        laws = REGIMES[self.regime]
        return "kalman_walls" if laws.walls and not laws.camera_sd else "kalman"

    @property
    def image_size(self) -> tuple[int, int]:
        """`(height, width)` px."""
        side = _STATE_SIDE_PX if self.level == "s" else _PICTURE_SIDE_PX
        return side, side

    @property
    def noise_widths(self) -> float:
        """Standard deviation of measured positions, image widths."""
        if self.level != "s":
            return _PIXEL_STD_WIDTHS
        return self.noise * self.diameter_widths

    @property
    def diameter_widths(self) -> float:
        """The diameter of a disc (of the middle size), the unit of errors."""
        return sum(REGIMES[self.regime].radii)

    @property
    def speed_widths_per_s(self) -> float:
        """Speed of a disc at the start."""
        return self.speed * self.diameter_widths / FRAME_S

    @property
    def columns(self) -> list[str]:
        """What scores are given for: blind frames, and all together where they are many."""
        return [*map(str, self.lengths), *(["all"] if self.schedule != "blackout" else [])]

    def world(self, batch_size: int, seed: int) -> Discs:
        """The discs."""
        speeds = (self.speed, self.speed)
        config = DiscsConfig(self.regime, (self.objects, self.objects), speeds)
        return Discs(config, batch_size, seed)

    def truths(self, motion: DiscMotion) -> list[SequenceTruth]:
        """Each sequence of `motion` as the image shows it."""
        frames, size = motion.positions.shape[1], self.image_size
        stamps = START_NS + np.rint(np.arange(frames) * motion.dt_s * 1e9).astype(np.int64)
        positions = self.to_pixels(motion.positions.double().numpy())
        sizes = motion.sizes.double().numpy() * size[1]
        present, visible = motion.present.numpy(), motion.visible.numpy()
        diameter = self.diameter_widths * size[1]
        return [
            SequenceTruth(stamps, positions[b], sizes[b], present[b], visible[b], size, diameter)
            for b in range(len(positions))
        ]

    def to_pixels(self, positions: np.ndarray) -> np.ndarray:
        """Widths to px; pixel centres are integers."""
        return positions * self.image_size[1] - 0.5


@dataclass(frozen=True)
class Recording:
    """What a tracker is given in one sequence. `trunk` is one answer of discovery (None: no
    frame) per frame; `tails` what follows instead of its frame `start`, by that frame. Pictures of
    all frames, seen or not, are in `frames` `(T, H, W, 3)` uint8, if there are any.
    """

    trunk: list[Segmentation | None]
    tails: dict[int, list[Segmentation | None]] = field(default_factory=dict)
    frames: np.ndarray | None = None


@dataclass(frozen=True)
class Chunk:
    """`CHUNK` sequences or fewer: `motion` (B, T, ...), `seen` `(B, T)` frames of the trunk."""

    config: BlackoutConfig
    number: int
    world: Discs
    motion: DiscMotion
    seen: np.ndarray

    @cached_property
    def truths(self) -> list[SequenceTruth]:
        """One per sequence."""
        return self.config.truths(self.motion)

    @cached_property
    def _forecasts(self) -> list[dict[int, np.ndarray]]:
        generator = torch.Generator().manual_seed(_seed(self.config.seed, self.number, 3))
        noise = self.config.noise_widths
        return oracle_forecasts(self.world, self.motion, self.seen, noise, generator)

    def oracle(self, row: int) -> Oracle:
        """The physics oracle for one sequence."""
        forecasts = {
            f: self.config.to_pixels(places) for f, places in self._forecasts[row].items()
        }
        return Oracle(self.truths[row], forecasts)

    def states(self) -> list[Recording]:
        """Level S, one per sequence."""
        rng = np.random.default_rng(_seed(self.config.seed, self.number, 2))
        return [
            _branched(self.config, seen, _detections(self.config, truth, features, rng))
            for truth, features, seen in zip(
                self.truths, self.motion.features.numpy(), self.seen, strict=True
            )
        ]


def draw_chunk(config: BlackoutConfig, number: int) -> Chunk:
    """The sequences from `number * CHUNK` on."""
    count = min(CHUNK, config.sequences - number * CHUNK)
    world = config.world(count, _seed(config.seed, number, 0))
    rng = np.random.default_rng(_seed(config.seed, number, 1))
    seen = np.stack([schedule(config, rng) for _ in range(count)])
    # One blackout ends the trunk, but not the truth.
    more = AFTER_FRAMES if config.schedule == "blackout" else 0
    return Chunk(config, number, world, world.sample_motion(seen.shape[1] + more), seen)


def schedule(config: BlackoutConfig, rng: np.random.Generator) -> np.ndarray:
    """Which frames of the trunk are seen, `(T,)` bool.

    `blackout` is blind from frame 20 on for the longest of the lengths. The others are random or
    periodic for 60 frames, then seen for 10: `bernoulli_p` blind with probability p in each;
    `periodic` blind for 5 frames of every 10; `burst` the channel of Gilbert (1960) and Elliott,
    which goes blind with probability 0.1 per frame and recovers with 0.2.
    """
    before, after = np.ones(FIT_FRAMES, bool), np.ones(AFTER_FRAMES, bool)
    if config.schedule == "blackout":
        return np.r_[before, np.zeros(max(config.lengths), bool)]
    draws = rng.random(_SCHEDULED_FRAMES)
    if config.schedule == "periodic":
        middle = np.arange(_SCHEDULED_FRAMES) % 10 >= 5
    elif config.schedule == "burst":
        good, states = True, []
        for draw in draws:
            good = draw >= 0.1 if good else draw < 0.2
            states.append(good)
        middle = np.array(states)
    else:
        middle = draws >= float(config.schedule.partition("_")[2])
    return np.r_[before, middle, after]


def _seed(seed: int, number: int, purpose: int) -> int:
    return int(
        np.random.SeedSequence([seed, number, purpose]).generate_state(1, np.uint64)[0] >> 1
    )


def _detections(
    config: BlackoutConfig, truth: SequenceTruth, features: np.ndarray, rng: np.random.Generator
) -> list[Segmentation]:
    """What a detector says in every frame of a sequence, were it to see it."""
    frames, count = truth.visible.shape
    width = truth.image_size[1]
    noise = config.noise_widths * width * rng.standard_normal((frames, count, 2))
    detected = truth.visible & (rng.random((frames, count)) >= config.miss)
    boxes = np.concatenate([truth.positions + noise, truth.sizes], -1)
    clutter = rng.poisson(config.clutter, frames)
    result = []
    for frame in range(frames):
        items = np.flatnonzero(detected[frame])
        false = np.concatenate(
            [
                rng.uniform(-0.5, width - 0.5, (clutter[frame], 2)),
                np.full((clutter[frame], 2), truth.diameter_px),
            ],
            1,
        )
        looks = rng.integers(count, size=clutter[frame])  # like any of the objects
        rows = [*zip(items + 1, boxes[frame, items], features[frame, items], strict=True)]
        extra = np.full(clutter[frame], count + 1)
        rows += [*zip(extra, false, features[frame, looks], strict=True)]
        detections = tuple(
            Detection(
                label=int(label),
                box=box,
                area_px=round(float(box[2] * box[3])),
                embedding=look.astype(np.float32),
            )
            for label, box, look in rows
        )
        stamp = int(truth.stamps_ns[frame])
        result.append(Segmentation(stamp, SensorState.OK, "discs", frame + 1, None, detections))
    return result


def _branched(
    config: BlackoutConfig, seen: np.ndarray, segmentations: Sequence[Segmentation]
) -> Recording:
    """The trunk with None in blind frames, and the frames that follow each blackout."""
    trunk = [s if now else None for s, now in zip(segmentations, seen, strict=False)]
    if config.schedule != "blackout":
        return Recording(trunk)
    starts = [FIT_FRAMES + length for length in config.lengths]
    return Recording(trunk, {s: list(segmentations[s : s + AFTER_FRAMES]) for s in starts})
