# SPDX-License-Identifier: Apache-2.0
"""Birth and loss: which tracks begin with an observation, and how their existence is doubted."""

from __future__ import annotations

import numpy as np

from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.table import Observations, TrackTable


def born(
    config: TrackerConfig,
    seen: Observations,
    matched: np.ndarray,
    tracks: TrackTable,
    first_id: int,
    image_width: float,
    stamp_ns: int,
) -> TrackTable:
    """Tracks, at rest in the mean, of the detections that are not in `matched` (their numbers); to
    be joined to `tracks`.
    """
    unused = seen.scores >= config.min_birth_score
    unused[matched] = False
    new = np.flatnonzero(unused)
    count = len(new)
    if not count:
        return tracks[:0]
    stds = np.repeat([config.measurement_std_widths, config.initial_speed_widths_per_s], 2)
    return TrackTable(
        ids=first_id + np.arange(count),
        means=np.concatenate([seen.positions[new], np.zeros((count, 2))], 1),
        covariances=np.tile(np.diag((stds * image_width) ** 2), (count, 1, 1)),
        sizes=seen.sizes[new],
        existence=np.full(count, config.birth_existence),
        confirmed=np.full(count, config.confirm_hits <= 1),
        ages=np.ones(count, np.int64),
        hits=np.ones(count, np.int64),
        last_seen_ns=np.full(count, stamp_ns),
        labels=seen.labels[new],
        appearances=seen.appearances[new],
        appearance_counts=np.ones(count),
        memories=np.zeros((count, tracks.memories.shape[1])),
    )


def missed(
    config: TrackerConfig,
    tracks: TrackTable,
    matched: np.ndarray,
    image_size: tuple[int, int],
    dt_s: float,
) -> TrackTable:
    """The tracks, with less existence for those that are not in `matched` (row numbers).

    `dt_s` is the time since the last observation.
    """
    height, width = image_size
    margin = config.view_margin_widths * width
    limit = np.array([width, height]) - 1 + margin
    position = tracks.means[:, :2]
    outside = ((position < -margin) | (position > limit)).any(1)
    # Clutter comes and goes from frame to frame: for a tentative track each miss stands for
    # itself.
    weight = np.where(outside | ~tracks.confirmed, 1.0, min(1.0, dt_s / config.miss_correlation_s))
    likelihood = (1 - config.detection_probability) ** weight
    alive = tracks.existence * likelihood
    existence = alive / (alive + 1 - tracks.existence)
    unseen = np.ones(len(tracks), bool)
    unseen[matched] = False
    return tracks.with_columns(existence=np.where(unseen, existence, tracks.existence))


def expired(config: TrackerConfig, tracks: TrackTable, stamp_ns: int) -> np.ndarray:
    """Which rows `(N,)` exist too little, or went unseen too long, at `stamp_ns`."""
    coast_s = (stamp_ns - tracks.last_seen_ns) * 1e-9
    return (tracks.existence < config.min_existence) | (coast_s > config.max_coast_s)
