# SPDX-License-Identifier: Apache-2.0
"""The shared vocabulary: what discovery, tracking, nodes and replay hand to one another.

Images on this level are NumPy arrays as a camera delivers them, `(H, W, 3)` uint8 RGB; inside
models they are `(B, C, H, W)` float in [0, 1]. Positions are pixels of the source image (x right,
y down, pixel centres at integers), times are nanoseconds, velocities pixels per second.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

UNLABELLED = 255
"""Pixel value of a label image where no slot was assigned."""


class SensorState(enum.IntEnum):
    """Whether the newest frame is an observation. Values equal ObjectSegmentation.msg."""

    OK = 0
    STALE = 1  # no frame arrived in time
    BLACK = 2
    FROZEN = 3
    CORRUPT = 4


class TrackState(enum.IntEnum):
    """Life cycle of a track. Values equal Track.msg."""

    TENTATIVE = 0
    CONFIRMED = 1
    COASTING = 2  # confirmed, but not observed in the newest step
    LOST = 3  # reported once, then removed


@dataclass(frozen=True)
class Decomposition:
    """What a discovery model returns for a batch of frames.

    `log_masks` `(B, K, H, W)`, logsumexp over K is 0; `means` `(B, K, 3, H, W)` appearance of
    each slot, near [0, 1], or None where only masks were asked for;
    `embeddings` `(B, K, D)` slot latent means; `background_slot` the slot that holds the
    background, where the model has a fixed one, else None.
    """

    log_masks: torch.Tensor
    means: torch.Tensor | None
    embeddings: torch.Tensor
    background_slot: int | None = None

    @property
    def masks(self) -> torch.Tensor:
        """Soft masks `(B, K, H, W)`, sum to 1 over K."""
        return self.log_masks.exp()

    @property
    def composite(self) -> torch.Tensor:
        """Reconstruction `(B, 3, H, W)`: the mask-weighted mean of the slots."""
        return (self.masks.unsqueeze(2) * self.means).sum(1)


@dataclass(frozen=True)
class Detection:
    """One object in one frame.

    `box` is `(cx, cy, w, h)` in px with `(cx, cy)` the centroid of its visible pixels; `roi`
    `(left, top, width, height)` the tight rectangle around them in whole px (None: centred on the
    centroid); `embedding` `(D,)` float32; `point_m` the 3-D centroid in the camera frame where
    depth is known.
    """

    label: int
    box: np.ndarray
    area_px: int
    score: float = 1.0
    embedding: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    is_background: bool = False
    point_m: np.ndarray | None = None
    roi: tuple[int, int, int, int] | None = None

    @property
    def region(self) -> tuple[int, int, int, int]:
        """`roi`, or the rectangle of `box`; never negative."""
        if self.roi is not None:
            return self.roi
        cx, cy, width, height = (float(value) for value in self.box)
        left, top = round(cx - (width - 1) / 2), round(cy - (height - 1) / 2)
        return max(0, left), max(0, top), max(0, round(width)), max(0, round(height))


@dataclass(frozen=True)
class Segmentation:
    """Discovery's answer for one time. `label_image` is `(H, W)` uint8, or None when there was no
    observation.
    """

    stamp_ns: int
    sensor_state: SensorState
    model: str
    frame_seq: int
    label_image: np.ndarray | None = None
    detections: tuple[Detection, ...] = ()

    @property
    def objects(self) -> tuple[Detection, ...]:
        """Detections without the background."""
        return tuple(d for d in self.detections if not d.is_background)


@dataclass(frozen=True)
class Track:
    """An identity through time, valid at the stamp of the TrackOutput that holds it.

    `box` `(cx, cy, w, h)` px, `velocity` `(vx, vy)` px/s, `covariance` `(4, 4)` over (cx, cy, vx,
    vy). `age` counts observed steps since birth (not blind ones, whose number is the watchdog's
    business), `hits` those with a matched detection. `slot_label` is the label of the matched
    detection, UNLABELLED while coasting.
    """

    id: int
    state: TrackState
    box: np.ndarray
    velocity: np.ndarray
    covariance: np.ndarray
    existence_probability: float
    age: int
    hits: int
    last_seen_ns: int
    slot_label: int = UNLABELLED
    embedding: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class TrajectoryMode:
    """One possible future: `boxes` `(S, 4)` px, `covariances` `(S, 3)` as (xx, xy, yy) px^2 at
    `times_s` `(S,)`.
    """

    probability: float
    times_s: np.ndarray
    boxes: np.ndarray
    covariances: np.ndarray


@dataclass(frozen=True)
class Trajectory:
    """Predicted future of one track; mode probabilities sum to 1."""

    track_id: int
    track_state: TrackState
    modes: tuple[TrajectoryMode, ...]


@dataclass(frozen=True)
class TrackOutput:
    """What tracking says at `stamp_ns`. `source_stamp_ns` is the last image used (0: none yet).

    `session` is a UUID (16 bytes), new at each start and after each clock reset, so that ids
    never alias.
    """

    stamp_ns: int
    source_stamp_ns: int
    session: bytes
    sensor_state: SensorState
    tracks: tuple[Track, ...]
    trajectories: tuple[Trajectory, ...]


@dataclass(frozen=True)
class Motion:
    """How objects really move: B sequences of T frames with up to N objects, `dt_s` seconds apart.

    Lengths are image widths (x right, y down; the view is `[0, 1]` wide), velocities widths per
    second. `positions`, `velocities` `(B, T, N, 2)`; `sizes` `(B, T, N, 2)` width and height of
    the box; `features` `(B, T, N, F)` what a detector sees of an object's look, F may be 0;
    `present` `(B, T, N)` bool: in the world; `visible` `(B, T, N)` bool: present, in view and at
    most half hidden. Undefined but finite where not present.
    """

    positions: torch.Tensor
    velocities: torch.Tensor
    sizes: torch.Tensor
    features: torch.Tensor
    present: torch.Tensor
    visible: torch.Tensor
    dt_s: float

    def __getitem__(self, index: object) -> Motion:
        """The same index into all tensors: `motion[:, 5:]` are the frames from the sixth on."""
        tensors = (getattr(self, field.name)[index] for field in fields(self)[:-1])
        return Motion(*tensors, self.dt_s)


@dataclass(frozen=True)
class Clip:
    """A drawn motion: `images` `(B, T, 3, H, W)` in [0, 1]."""

    images: torch.Tensor
    motion: Motion

    def __getitem__(self, index: object) -> Clip:
        """The same index into images and motion."""
        return Clip(self.images[index], self.motion[index])
