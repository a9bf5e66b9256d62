# SPDX-License-Identifier: Apache-2.0
"""The rows of a track table in the shared vocabulary (types.py)."""

from __future__ import annotations

import numpy as np

from oc_perception.tracking.table import TrackTable
from oc_perception.types import Track, TrackState, Trajectory, TrajectoryMode


def track_states(tracks: TrackTable, seen: np.ndarray) -> np.ndarray:
    """The TrackState `(N,)` of tracks that are not lost, some of which are `seen` `(N,)` now."""
    return np.where(
        tracks.confirmed,
        np.where(seen, TrackState.CONFIRMED, TrackState.COASTING),
        TrackState.TENTATIVE,
    )


def describe(tracks: TrackTable, states: np.ndarray) -> tuple[Track, ...]:
    """One Track per row, in the given `states` `(N,)`."""
    boxes = tracks.boxes
    embeddings = tracks.appearances[:, :-2].astype(np.float32)  # without the log size
    columns = (
        tracks.ids.tolist(),
        states.tolist(),
        tracks.existence.tolist(),
        tracks.ages.tolist(),
        tracks.hits.tolist(),
        tracks.last_seen_ns.tolist(),
        tracks.labels.tolist(),
    )
    return tuple(
        Track(
            id=track_id,
            state=TrackState(state),
            box=boxes[i],
            velocity=tracks.means[i, 2:],
            covariance=tracks.covariances[i],
            existence_probability=existence,
            age=age,
            hits=hits,
            last_seen_ns=last_seen_ns,
            slot_label=label,
            embedding=embeddings[i],
        )
        for i, (track_id, state, existence, age, hits, last_seen_ns, label) in enumerate(
            zip(*columns, strict=True)
        )
    )


def trajectories(
    tracks: TrackTable,
    states: np.ndarray,
    times_s: np.ndarray,
    means: np.ndarray,
    covariances: np.ndarray,
) -> tuple[Trajectory, ...]:
    """One per row; `means` `(N, K, 4)` and `covariances` `(N, K, 4, 4)` after `times_s` `(K,)`."""
    sizes = np.broadcast_to(tracks.sizes[:, None], (*means.shape[:2], 2))
    boxes = np.concatenate([means[..., :2], sizes], -1)
    spreads = covariances[..., [0, 0, 1], [0, 1, 1]]
    return tuple(
        Trajectory(
            track_id=int(tracks.ids[i]),
            track_state=TrackState(states[i]),
            modes=(TrajectoryMode(1.0, times_s, boxes[i], spreads[i]),),
        )
        for i in range(len(tracks))
    )
