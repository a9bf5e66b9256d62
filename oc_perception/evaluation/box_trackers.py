# SPDX-License-Identifier: Apache-2.0
"""Trackers of public practice, as baselines: SORT-like and ByteTrack-like.

Both predict boxes by a Kalman filter of constant velocity *per call*, and accept a detection by
the overlap of its box with the predicted one. Both ways in which they meet a blind frame in
practice are here: called with an empty list, and not called at all.

Sources: Bewley et al., *Simple Online and Realtime Tracking*, ICIP 2016, §3. Zhang et al.,
*ByteTrack*, ECCV 2022, §3 and Algorithm 1 (its noises, in box heights, are those of Wojke et al.,
*Simple Online and Realtime Tracking with a Deep Association Metric*, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from oc_perception.evaluation.mot_sequence import iou
from oc_perception.tracking.association import assign
from oc_perception.types import (
    Detection,
    Segmentation,
    SensorState,
    Track,
    TrackOutput,
    TrackState,
)

_POSITION_STD, _VELOCITY_STD = 1 / 20, 1 / 160  # of a box's height, per step
_STEP = np.array([[1.0, 1.0], [0.0, 1.0]])


@dataclass(frozen=True)
class BoxTrackerConfig:
    """Association and life cycle.

    Detections that score less than `low_score` are not looked at. Those of a score of at least
    `high_score` are matched first, at an overlap of at least `min_iou`, and give birth to tracks,
    if they score `birth_score`, too; the rest may then extend a track that was matched in the step
    before, at `second_min_iou`. A track is confirmed by `confirm_hits` matches, and removed
    when it is missed more than `max_lost_steps` times in a row (before it is confirmed: once).
    `called_when_blind`: a blind frame is an empty list of detections; otherwise no call.
    """

    min_iou: float
    confirm_hits: int
    max_lost_steps: int
    high_score: float = 0.0
    second_min_iou: float = 0.5
    birth_score: float = 0.0
    low_score: float = 0.0
    called_when_blind: bool = True


SORT = BoxTrackerConfig(min_iou=0.3, confirm_hits=3, max_lost_steps=1)
BYTETRACK = BoxTrackerConfig(min_iou=0.2, confirm_hits=2, max_lost_steps=30, high_score=0.6)


@dataclass(frozen=True)
class _Boxes:
    """Tracks as columns: a filter of value and change per step for each of cx, cy, w, h."""

    ids: np.ndarray  # (N,)
    means: np.ndarray  # (N, 4, 2) px, px/step
    covariances: np.ndarray  # (N, 4, 2, 2)
    hits: np.ndarray  # (N,)
    ages: np.ndarray  # (N,)
    lost_steps: np.ndarray  # (N,)
    confirmed: np.ndarray  # (N,) bool
    last_seen_ns: np.ndarray  # (N,)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: np.ndarray) -> _Boxes:
        return _Boxes(*(getattr(self, f.name)[rows] for f in fields(self)))

    def joined(self, other: _Boxes) -> _Boxes:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return _Boxes(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class BoxTrackerState:
    """Tracks after the last call, and what was reported then."""

    session: bytes
    tracks: _Boxes
    next_id: int = 1
    reported: tuple[Track, ...] = ()
    anchor_ns: int = 0


class BoxTracker:
    """The protocol of `tracking.tracker.Tracker`; one step is `period_s` long to it, however long
    it was.
    """

    def __init__(self, config: BoxTrackerConfig, period_s: float) -> None:
        self.config = config
        self.period_s = period_s

    def initial_state(
        self, session: bytes, image_size: tuple[int, int] | None = None
    ) -> BoxTrackerState:
        """No tracks; the image size does not matter."""
        return BoxTrackerState(session, _born(np.zeros((0, 4)), 1, False, 0))

    def step(
        self, state: BoxTrackerState, segmentation: Segmentation | None, stamp_ns: int
    ) -> tuple[BoxTrackerState, TrackOutput]:
        """Advance by one call; a blind frame is one only with `called_when_blind`."""
        blind = segmentation is None or segmentation.sensor_state != SensorState.OK
        sensor_state = segmentation.sensor_state if segmentation else SensorState.STALE
        if not blind or self.config.called_when_blind:
            detections = () if blind else segmentation.objects
            state = self._advance(state, detections, stamp_ns)
        if not blind:
            state = replace(state, anchor_ns=stamp_ns)
        return state, TrackOutput(
            stamp_ns, state.anchor_ns, state.session, sensor_state, state.reported, ()
        )

    def _advance(
        self, state: BoxTrackerState, detections: tuple[Detection, ...], stamp_ns: int
    ) -> BoxTrackerState:
        config = self.config
        detections = [d for d in detections if d.score >= config.low_score]
        boxes = np.array([d.box for d in detections], np.float64).reshape(-1, 4)
        scores = np.array([d.score for d in detections])
        high = scores >= config.high_score
        tracks = _predicted(state.tracks)
        overlaps = iou(tracks.means[:, None, :, 0], boxes[None])
        rows, columns = _pairs(overlaps, config.min_iou, np.ones(len(tracks), bool), high)
        free = tracks.lost_steps == 0
        free[rows] = False
        more_rows, more_columns = _pairs(overlaps, config.second_min_iou, free, ~high)
        rows, columns = np.r_[rows, more_rows], np.r_[columns, more_columns]

        means, covariances = tracks.means.copy(), tracks.covariances.copy()
        means[rows], covariances[rows] = _updated(means[rows], covariances[rows], boxes[columns])
        seen = np.isin(np.arange(len(tracks)), rows)
        hits = tracks.hits + seen
        tracks = replace(
            tracks,
            means=means,
            covariances=covariances,
            hits=hits,
            ages=tracks.ages + 1,
            lost_steps=np.where(seen, 0, tracks.lost_steps + 1),
            confirmed=tracks.confirmed | (hits >= config.confirm_hits),
            last_seen_ns=np.where(seen, stamp_ns, tracks.last_seen_ns),
        )
        limit = np.where(tracks.confirmed, config.max_lost_steps, 0)
        tracks = tracks[tracks.lost_steps <= limit]
        new = high & (scores >= config.birth_score)
        new[columns] = False
        newborn = _born(boxes[new], state.next_id, config.confirm_hits <= 1, stamp_ns)
        tracks = tracks.joined(newborn)
        reported = self._described(tracks)
        return replace(
            state, tracks=tracks, next_id=state.next_id + len(newborn), reported=reported
        )

    def _described(self, tracks: _Boxes) -> tuple[Track, ...]:
        """Confirmed tracks, those that are lost for now as coasting."""
        result = []
        for i in np.flatnonzero(tracks.confirmed):
            covariance = np.zeros((4, 4))
            scale = np.array([1.0, 1 / self.period_s])
            for axis in (0, 1):
                block = tracks.covariances[i, axis] * np.outer(scale, scale)
                covariance[np.ix_([axis, axis + 2], [axis, axis + 2])] = block
            seen = tracks.lost_steps[i] == 0
            result.append(
                Track(
                    id=int(tracks.ids[i]),
                    state=TrackState.CONFIRMED if seen else TrackState.COASTING,
                    box=tracks.means[i, :, 0],
                    velocity=tracks.means[i, :2, 1] / self.period_s,
                    covariance=covariance,
                    existence_probability=1.0,
                    age=int(tracks.ages[i]),
                    hits=int(tracks.hits[i]),
                    last_seen_ns=int(tracks.last_seen_ns[i]),
                )
            )
        return tuple(result)


def _pairs(
    overlaps: np.ndarray, least: float, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The assignment of greatest overlap among chosen `rows` (N,) and `columns` (M,), bool."""
    allowed = (overlaps >= least) & rows[:, None] & columns[None]
    return assign(np.where(allowed, overlaps, -np.inf))


def _born(boxes: np.ndarray, first_id: int, confirmed: bool, stamp_ns: int) -> _Boxes:
    count = len(boxes)
    stds = np.array([2 * _POSITION_STD, 10 * _VELOCITY_STD]) * boxes[:, 3, None]
    means = np.stack([boxes, np.zeros_like(boxes)], -1)
    covariances = np.broadcast_to((stds**2)[:, None, :, None] * np.eye(2), (count, 4, 2, 2))
    ones = np.ones(count, np.int64)
    return _Boxes(
        ids=first_id + np.arange(count),
        means=means,
        covariances=covariances.copy(),
        hits=ones,
        ages=ones,
        lost_steps=0 * ones,
        confirmed=np.full(count, confirmed),
        last_seen_ns=stamp_ns * ones,
    )


def _predicted(tracks: _Boxes) -> _Boxes:
    means = tracks.means.copy()
    means[tracks.lost_steps > 0, 2:, 1] = 0.0  # an unseen box neither grows nor shrinks
    height = np.maximum(means[:, 3, 0], 1.0)
    stds = np.array([_POSITION_STD, _VELOCITY_STD]) * height[:, None]  # (N, 2)
    noise = (stds**2)[:, None, :, None] * np.eye(2)
    covariances = _STEP @ tracks.covariances @ _STEP.T + noise
    return replace(tracks, means=means @ _STEP.T, covariances=covariances)


def _updated(
    means: np.ndarray, covariances: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Condition `means` `(N, 4, 2)` on the measured first component, `boxes` `(N, 4)`."""
    noise = (_POSITION_STD * boxes[:, 3:]) ** 2
    gain = covariances[..., 0] / (covariances[..., 0, 0] + noise)[..., None]  # (N, 4, 2)
    innovation = boxes - means[..., 0]
    corrected = covariances - gain[..., None] * covariances[..., 0, None, :]
    return means + gain * innovation[..., None], corrected
