# SPDX-License-Identifier: Apache-2.0
"""Tracks and detections as columns, one array per property."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from oc_perception.tracking.motion import Belief
from oc_perception.types import Detection


@dataclass(frozen=True)
class TrackTable:
    """All tracks as columns, `N` rows in order of birth; arrays are never written in place."""

    ids: np.ndarray  # (N,) int64
    means: np.ndarray  # (N, 4) px, px/s
    covariances: np.ndarray  # (N, 4, 4)
    sizes: np.ndarray  # (N, 2) px, smoothed
    existence: np.ndarray  # (N,)
    confirmed: np.ndarray  # (N,) bool
    ages: np.ndarray  # (N,) int64
    hits: np.ndarray  # (N,) int64
    last_seen_ns: np.ndarray  # (N,) int64
    labels: np.ndarray  # (N,) int64, UNLABELLED where not matched in the last observation
    appearances: np.ndarray  # (N, D) means
    appearance_counts: np.ndarray  # (N,)
    memories: np.ndarray  # (N, S) what the motion model wrote down, 0 at birth

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: np.ndarray | slice) -> TrackTable:
        return TrackTable(*(column[rows] for column in vars(self).values()))

    def joined(self, other: TrackTable) -> TrackTable:
        """This table with the rows of `other` below."""
        if not len(other):
            return self
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return TrackTable(*(np.concatenate(pair) for pair in pairs))

    def split(self, chosen: np.ndarray) -> tuple[TrackTable, TrackTable]:
        """The rows that are not `chosen` `(N,)` bool, and those that are."""
        if not chosen.any():
            return self, self[:0]
        return self[~chosen], self[chosen]

    @classmethod
    def empty(cls) -> TrackTable:
        """No tracks."""
        whole = np.zeros(0, np.int64)
        real = np.zeros(0)
        return cls(
            ids=whole,
            means=np.zeros((0, 4)),
            covariances=np.zeros((0, 4, 4)),
            sizes=np.zeros((0, 2)),
            existence=real,
            confirmed=np.zeros(0, bool),
            ages=whole,
            hits=whole,
            last_seen_ns=whole,
            labels=whole,
            appearances=np.zeros((0, 0)),
            appearance_counts=real,
            memories=np.zeros((0, 0)),
        )

    @property
    def boxes(self) -> np.ndarray:
        """`(N, 4)` px: cx, cy, w, h."""
        return np.concatenate([self.means[:, :2], self.sizes], 1)

    @property
    def belief(self) -> Belief:
        """What a motion model sees of the tracks: these arrays themselves."""
        embeddings = self.appearances[:, :-2]  # without the log size
        return Belief(self.means, self.covariances, self.sizes, embeddings, self.memories)

    def with_columns(self, **columns: np.ndarray) -> TrackTable:
        """This table with other columns; a quicker `replace`."""
        return TrackTable(**(vars(self) | columns))

    def moved(self, belief: Belief, **columns: np.ndarray) -> TrackTable:
        """These tracks where `belief` has them, and with other columns."""
        return self.with_columns(
            means=belief.means,
            covariances=belief.covariances,
            sizes=belief.sizes,
            memories=belief.memories,
            **columns,
        )

    def with_rows(self, rows: np.ndarray, **columns: np.ndarray) -> TrackTable:
        """This table with new values in `rows` of some columns."""
        changed = {}
        for name, values in columns.items():
            changed[name] = getattr(self, name).copy()
            changed[name][rows] = values
        return self.with_columns(**changed)

    def rescaled(self, old: tuple[int, int], new: tuple[int, int]) -> TrackTable:
        """In the pixels of an image of size `new` `(height, width)` instead of `old`."""
        scale = np.array(new[::-1]) / np.array(old[::-1])
        scale4 = np.concatenate([scale, scale])
        return self.with_columns(
            # pixel centres are integers, so the left edge of the image is at -0.5
            means=self.means * scale4 + np.r_[(scale - 1) / 2, 0, 0],
            covariances=self.covariances * np.outer(scale4, scale4),
            sizes=self.sizes * scale,
        )


@dataclass(frozen=True)
class Observations:
    """Detections as columns, `M` rows in the order of the segmentation."""

    positions: np.ndarray  # (M, 2)
    sizes: np.ndarray  # (M, 2)
    labels: np.ndarray  # (M,)
    scores: np.ndarray  # (M,)
    appearances: np.ndarray  # (M, D), embedding then log size

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, detections: tuple[Detection, ...]) -> Observations:
        """Raises ValueError for boxes and embeddings that are not finite or differ in length."""
        if not detections:
            return cls(
                np.zeros((0, 2)),
                np.zeros((0, 2)),
                np.zeros(0, np.int64),
                np.zeros(0),
                np.zeros((0, 0)),
            )
        if len({np.shape(d.embedding) for d in detections}) > 1:
            raise ValueError("Detections of one segmentation must have embeddings of one length.")
        boxes = np.array([d.box for d in detections], np.float64)
        embeddings = np.array([d.embedding for d in detections], np.float64)
        if boxes.shape != (len(detections), 4) or not np.isfinite(boxes).all():
            raise ValueError("A detection's box must be four finite numbers (cx, cy, w, h) in px.")
        if not np.isfinite(embeddings).all():
            raise ValueError("A detection's embedding must be finite.")
        sizes = np.maximum(boxes[:, 2:], 1.0)  # nothing visible is smaller than a pixel
        return cls(
            positions=boxes[:, :2],
            sizes=sizes,
            labels=np.array([d.label for d in detections], np.int64),
            scores=np.array([d.score for d in detections], np.float64),
            appearances=np.concatenate([embeddings, np.log(sizes)], 1),
        )


class Sightings(NamedTuple):
    """Where tracks `rows` `(M,)` were seen: `positions` `(M, 2)` with error covariances `noises`
    `(M, 2, 2)`, and `sizes` `(M, 2)`; px.
    """

    rows: np.ndarray
    positions: np.ndarray
    sizes: np.ndarray
    noises: np.ndarray
