# SPDX-License-Identifier: Apache-2.0
"""Birth and loss: which tracks begin with an observation, and how their existence is doubted."""

from __future__ import annotations

import numpy as np
from scipy.special import erfc

from oc_perception.tracking.boxes import iou, shared_area
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
    if config.max_birth_overlap < 1 and len(tracks):
        found = np.concatenate([seen.positions, seen.sizes], 1)
        unused &= iou(found[:, None], tracks.boxes).max(1) <= config.max_birth_overlap
    new = np.flatnonzero(unused)
    count = len(new)
    if not count:
        return tracks[:0]
    in_widths = np.array([config.measurement_std_widths, config.initial_speed_widths_per_s])
    in_sizes = np.array([config.measurement_std_sizes, config.initial_speed_sizes_per_s])
    variances = (in_widths * image_width) ** 2 + in_sizes**2 * seen.sizes[new].prod(-1)[:, None]
    return TrackTable(
        ids=first_id + np.arange(count),
        means=np.concatenate([seen.positions[new], np.zeros((count, 2))], 1),
        covariances=np.repeat(variances, 2, axis=1)[:, None] * np.eye(4),
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
    outside = (_beyond(config, tracks, image_size) > 0).any(1)
    # Clutter comes and goes from frame to frame: for a tentative track each miss stands for
    # itself.
    weight = np.where(outside | ~tracks.confirmed, 1.0, min(1.0, dt_s / config.miss_correlation_s))
    detected = config.detection_probability
    if config.occlusion and len(tracks):
        detected = detected * (1 - config.occlusion * _covered(tracks))
    likelihood = (1 - detected) ** weight
    alive = tracks.existence * likelihood
    existence = alive / (alive + 1 - tracks.existence)
    unseen = np.ones(len(tracks), bool)
    unseen[matched] = False
    return tracks.with_columns(existence=np.where(unseen, existence, tracks.existence))


def _covered(tracks: TrackTable) -> np.ndarray:
    """Largest share `(N,)` of each box that the box of one confirmed track in front covers: of
    things that stand on one floor, the one that reaches further down in the picture.
    """
    boxes = tracks.boxes
    low_end = boxes[:, 1] + boxes[:, 3] / 2
    in_front = (low_end[:, None] < low_end) & tracks.confirmed
    shares = shared_area(boxes[:, None], boxes) / tracks.sizes.prod(-1)[:, None]
    return np.where(in_front, shares, 0.0).max(1)


def stayed(
    config: TrackerConfig, before: TrackTable, after: TrackTable, image_size: tuple[int, int]
) -> np.ndarray:
    """Probability `(N,)` that objects did not leave the view unseen on the way from `before` to
    `after`, two beliefs about the same rows.

    A belief is out of the view as far as its mean lies beyond the border, in standard deviations:
    a wide belief about an object inside says that little is known, not that it has left. Over
    several steps outwards the product is that of one long step.
    """
    if not _beyond(config, after, image_size).any():
        return np.ones(len(after))
    now, then = (_inside(config, tracks, image_size) for tracks in (after, before))
    return np.minimum(1.0, now / np.maximum(then, 1e-12))


def _inside(config: TrackerConfig, tracks: TrackTable, image_size: tuple[int, int]) -> np.ndarray:
    """Probability `(N,)` that objects have not left the view on their way to where they are."""
    variances = tracks.covariances[:, [0, 1], [0, 1]]
    reached = erfc(_beyond(config, tracks, image_size) / np.sqrt(2 * variances)).prod(1)
    return 1 - config.exit_probability * (1 - reached)


def _beyond(config: TrackerConfig, tracks: TrackTable, image_size: tuple[int, int]) -> np.ndarray:
    """How far `(N, 2)` px means lie outside the view and its margin, 0 inside."""
    margin = config.view_margin_widths * image_size[1]
    last = np.array(image_size[::-1]) - 1
    position = tracks.means[:, :2]
    return np.maximum(np.maximum(-position, position - last) - margin, 0.0)


def expired(config: TrackerConfig, tracks: TrackTable, stamp_ns: int) -> np.ndarray:
    """Which rows `(N,)` exist too little, went unseen too long, or are nowhere, at `stamp_ns`."""
    coast_s = (stamp_ns - tracks.last_seen_ns) * 1e-9
    nowhere = ~np.isfinite(tracks.means).all(1)
    return (tracks.existence < config.min_existence) | (coast_s > config.max_coast_s) | nowhere
