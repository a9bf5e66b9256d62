# SPDX-License-Identifier: Apache-2.0
"""What one tracker did in one sequence with blackouts, as sums that add up over sequences.

An object stays with the track that it had in the last frame that was seen. A track that ends while
it is blind leaves its object where it was last reported, outside of every ellipse; an object that
had no track at all has no error, and is counted as untracked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from oc_perception.evaluation import forecast, mot
from oc_perception.evaluation.mot_sequence import MotSequence
from oc_perception.evaluation.segmentation import fg_ari
from oc_perception.evaluation.tracking import Blackout, Truth, identity_recovery, match
from oc_perception.types import Track, TrackOutput, TrackState

PROBABILITIES = np.array([*np.arange(1, 20) * 0.05, 0.99])
"""Nominal contents of the ellipses whose coverage is counted."""
SETTLE_FRAMES = 5
"""Identities are compared in this frame after a blackout."""
AFTER_FRAMES = 10
"""Visible frames after a blackout."""
_GATE_DIAMETERS = 0.5
_OUTCOMES = ("recovered", "swapped", "new", "lost", "untracked")
ALL = "all"
"""The column of everything in a sequence with many blackouts."""

Scores = dict[str, np.ndarray]
"""Sums by name, their last axis a sum and its count; first axis: columns (blind frames)."""


@dataclass(frozen=True)
class SequenceTruth:
    """One sequence as an image of `image_size` `(height, width)` shows it: `stamps_ns` `(T,)`,
    `positions` and `sizes` `(T, N, 2)` px, `present` and `visible` `(T, N)` bool; `diameter_px`
    is the unit of errors. `labels` `(T, H, W)` int64 are those of pictures, 0 the background.
    """

    stamps_ns: np.ndarray
    positions: np.ndarray
    sizes: np.ndarray
    present: np.ndarray
    visible: np.ndarray
    image_size: tuple[int, int]
    diameter_px: float
    labels: np.ndarray | None = None

    def __getitem__(self, frames: slice) -> SequenceTruth:
        names = ("stamps_ns", "positions", "sizes", "present", "visible")
        parts = {name: getattr(self, name)[frames] for name in names}
        return replace(self, **parts, labels=None if self.labels is None else self.labels[frames])

    @property
    def gate_px(self) -> float:
        """The greatest distance at which a track is that of an object, in a frame that is seen."""
        return _GATE_DIAMETERS * self.diameter_px

    @property
    def in_view(self) -> np.ndarray:
        """`(T, N)`: present, with the centre inside the image, hidden by others or not."""
        inside = (self.positions >= -0.5) & (
            self.positions <= np.array(self.image_size[::-1]) - 0.5
        )
        return self.present & inside.all(-1)


@dataclass(frozen=True)
class Event:
    """One blackout of L frames in a sequence of N objects.

    `tracked` and `expected` `(N,)` bool: was visible in the last frame seen (and had a track).
    `(L, N)`: `errors` diameters and `ended` bool, for tracked objects that are still in the world
    (`counted`); `distances` squared Mahalanobis and `nll` nats per square diameter are NaN where
    there is no covariance.
    """

    start: int
    expected: np.ndarray
    tracked: np.ndarray
    counted: np.ndarray
    errors: np.ndarray
    ended: np.ndarray
    distances: np.ndarray
    nll: np.ndarray


def find_blackouts(seen: np.ndarray) -> list[tuple[int, int]]:
    """`(start, length)` of each run of frames that are not `seen` `(T,)`."""
    edges = np.flatnonzero(np.diff(np.r_[1, seen.astype(int), 1]))
    return [(int(start), int(end - start)) for start, end in edges.reshape(-1, 2)]


def follow(truth: SequenceTruth, outputs: Sequence[TrackOutput], start: int, length: int) -> Event:
    """Compare predictions and truth over the blackout of frames `start` to `start + length`."""
    count = truth.positions.shape[1]
    pairs = match(_positions(truth, start - 1, truth.visible), outputs[start - 1], truth.gate_px)
    means = np.full((length, count, 2), np.nan)
    covariances = np.full((length, count, 2, 2), np.nan)
    ended = np.zeros((length, count), bool)
    places = {track.id: track.box[:2] for track in outputs[start - 1].tracks}
    for age, output in enumerate(outputs[start : start + length]):
        tracks = {t.id: t for t in output.tracks if t.state != TrackState.LOST}
        for item, track_id in pairs.items():
            track = tracks.get(track_id)
            if track is None:
                ended[age, item] = True
            else:
                places[track_id] = track.box[:2]
                covariances[age, item] = track.covariance[:2, :2]
            means[age, item] = places[track_id]
    frames = slice(start, start + length)
    tracked = np.isin(np.arange(count), list(pairs))
    offsets = means - truth.positions[frames]
    claimed = np.where(np.isnan(covariances).any((-1, -2))[..., None], np.nan, means)
    compared = claimed, covariances, truth.positions[frames]
    return Event(
        start=start,
        expected=truth.visible[start - 1],
        tracked=tracked,
        counted=truth.present[frames] & tracked,
        errors=np.linalg.norm(offsets, axis=-1) / truth.diameter_px,
        ended=ended,
        distances=forecast.squared_mahalanobis(*compared),
        nll=forecast.gaussian_nll(*compared) - 2 * np.log(truth.diameter_px),
    )


def score_run(
    truth: SequenceTruth,
    outputs: Sequence[TrackOutput],
    seen: np.ndarray,
    lengths: Sequence[int],
    several: bool = False,
) -> Scores:
    """Score the `outputs` of every frame of `truth`, of which `seen` `(T,)` were.

    Columns are `lengths`, for which a blackout counts that is at least as long (its identities in
    the column of the greatest length that it reaches), and, where there may be `several`, one for
    everything together.
    """
    blackouts = find_blackouts(seen)
    columns = len(lengths) + several
    scores = _zeros(columns, max(lengths))
    for start, length in blackouts:
        event = follow(truth, outputs, start, length)
        reached = [i for i, n in enumerate(lengths) if n <= length]
        for column in reached:
            _add_forecast(scores, column, event, lengths[column])
        if several:
            _add_forecast(scores, -1, event, length)
        if reached:
            _add_aftermath(scores, reached[-1], truth, outputs, seen, start, length)
        ages = min(length, max(lengths))
        errors = np.where(event.counted, event.errors, 0.0)[:ages]
        scores["error_by_age"][:ages, 0] += errors.sum(1)
        scores["error_by_age"][:ages, 1] += event.counted[:ages].sum(1)
    if several and blackouts:
        start, end = blackouts[0][0], sum(blackouts[-1])
        _add_aftermath(scores, -1, truth, outputs, seen, start, end - start)
    _add_multi_object(scores, -1, truth, outputs, seen)
    if truth.labels is not None:
        _add_segmentation(scores, -1, truth.labels, outputs, seen)
    return scores


def _zeros(columns: int, ages: int) -> Scores:
    pairs = ("fde", "ade", "nll", "anees", "nll_last", "anees_last", "untracked", "ended",
             "ghosts", "reacquired_after", *(f"id_{name}" for name in _OUTCOMES))  # fmt: skip
    scores = {name: np.zeros((columns, 2)) for name in pairs}
    for name in ("coverage", "coverage_last"):
        scores[name] = np.zeros((columns, len(PROBABILITIES), 2))
    for name in ("visible", "blind"):
        scores[f"fg_ari_{name}"] = np.zeros((columns, 2))
    for name in ("visible", "through"):
        scores[f"hota_{name}"] = np.zeros((columns, 4, len(mot.ALPHAS)))
        scores[f"idf1_{name}"] = np.zeros((columns, 2))
    scores["error_by_age"] = np.zeros((ages, 2))
    return scores


def _add_forecast(scores: Scores, column: int, event: Event, ages: int) -> None:
    """What was predicted over the first `ages` blind frames."""

    def add(name: str, values: np.ndarray, where: np.ndarray) -> None:
        scores[name][column] += (values[where].sum(), where.sum())

    last = slice(ages - 1, ages)
    for frames, suffix in ((slice(ages), ""), (last, "_last")):
        counted = event.counted[frames]
        errors, distances = event.errors[frames], event.distances[frames]
        add("fde" if suffix else "ade", errors, counted)
        claimed = counted & np.isfinite(distances)
        add(f"anees{suffix}", distances / 2, claimed)
        add(f"nll{suffix}", event.nll[frames], claimed)
        inside = np.array([forecast.inside(distances[claimed], p).sum() for p in PROBABILITIES])
        total = claimed.sum() + (counted & event.ended[frames]).sum()
        scores[f"coverage{suffix}"][column, :, 0] += inside
        scores[f"coverage{suffix}"][column, :, 1] += total
    add("ended", event.ended[last], event.counted[last])
    scores["untracked"][column] += (
        (event.expected & ~event.tracked).sum(),
        event.expected.sum(),
    )


def _add_aftermath(
    scores: Scores,
    column: int,
    truth: SequenceTruth,
    outputs: Sequence[TrackOutput],
    seen: np.ndarray,
    start: int,
    length: int,
) -> None:
    """Identities, ghosts and how long it took to find the objects again."""
    end = start + length
    after = end + np.flatnonzero(seen[end:])
    if len(after) < SETTLE_FRAMES:
        return  # the sequence ends here
    frames = np.flatnonzero(seen)
    count = truth.positions.shape[1]
    truths = [
        Truth(int(truth.stamps_ns[k]), np.arange(count), truth.positions[k], truth.visible[k])
        for k in frames
    ]
    recovery = identity_recovery(
        truths,
        [outputs[k] for k in frames],
        Blackout(int(truth.stamps_ns[start]), int(truth.stamps_ns[end]), length, ""),
        SETTLE_FRAMES,
        truth.gate_px,
    )
    total = recovery.tracked + recovery.untracked
    for name in _OUTCOMES:
        scores[f"id_{name}"][column] += (getattr(recovery, name), total)

    settled = int(after[SETTLE_FRAMES - 1])
    reported = [t for t in outputs[settled].tracks if _is_reported(t)]
    real = match(_positions(truth, settled, truth.present), outputs[settled], truth.gate_px)
    scores["ghosts"][column] += (len(reported) - len(real), 1)

    waiting = set(np.flatnonzero(truth.visible[start - 1]).tolist())
    for waited, frame in enumerate(after[:AFTER_FRAMES]):
        seen_now = {t.id for t in outputs[frame].tracks if t.state == TrackState.CONFIRMED}
        pairs = match(_positions(truth, frame, truth.visible), outputs[frame], truth.gate_px)
        found = {item for item in waiting if pairs.get(item) in seen_now}
        scores["reacquired_after"][column] += (waited * len(found), len(found))
        waiting -= found
    # Who is still in view and never found again counts as found after the last frame looked at.
    missing = [item for item in waiting if truth.visible[after[:AFTER_FRAMES], item].any()]
    scores["reacquired_after"][column] += (AFTER_FRAMES * len(missing), len(missing))


def _add_multi_object(
    scores: Scores,
    column: int,
    truth: SequenceTruth,
    outputs: Sequence[TrackOutput],
    seen: np.ndarray,
) -> None:
    """HOTA and IDF1 with and without the blind frames; truth is whoever is in view, also behind
    others.
    """
    boxes = np.concatenate([truth.positions, truth.sizes], -1)
    tracks = [[t for t in output.tracks if _is_reported(t)] for output in outputs]
    sequence = MotSequence(
        [np.flatnonzero(now) for now in truth.in_view],
        [box[now] for box, now in zip(boxes, truth.in_view, strict=True)],
        [np.array([t.id for t in now], np.int64) for now in tracks],
        [np.array([t.box for t in now], np.float64).reshape(-1, 4) for now in tracks],
    )
    for name, part in (("through", sequence), ("visible", sequence.select(seen))):
        found = mot.score(part)
        hota, identity = found.hota, found.identity
        scores[f"hota_{name}"][column] += (
            hota.matches, hota.misses, hota.false_positives, hota.association,
        )  # fmt: skip
        boxes_count = identity.matches + (identity.misses + identity.false_positives) / 2
        scores[f"idf1_{name}"][column] += (identity.matches, boxes_count)


def _add_segmentation(
    scores: Scores,
    column: int,
    labels: np.ndarray,
    outputs: Sequence[TrackOutput],
    seen: np.ndarray,
) -> None:
    """FG-ARI of the discs that tracks claim, in frames that are seen and in blind ones."""
    rows, columns = np.indices(labels.shape[1:])
    claimed = np.zeros_like(labels)
    for frame, output in enumerate(outputs):
        for i, track in enumerate(filter(_is_reported, output.tracks), start=1):
            x, y, width, height = track.box
            inside = ((columns - x) / width) ** 2 + ((rows - y) / height) ** 2 <= 0.25
            claimed[frame][inside] = i
    found = fg_ari(torch.from_numpy(labels), torch.from_numpy(claimed)).numpy()
    after_birth = np.arange(len(seen)) >= np.argmin(seen) // 2  # tracks have been confirmed
    for name, frames in (("visible", seen & after_birth), ("blind", ~seen)):
        known = found[frames & ~np.isnan(found)]
        scores[f"fg_ari_{name}"][column] += (known.sum(), len(known))


def _positions(truth: SequenceTruth, frame: int, which: np.ndarray) -> dict[int, np.ndarray]:
    return {int(i): truth.positions[frame, i] for i in np.flatnonzero(which[frame])}


def _is_reported(track: Track) -> bool:
    return track.state in (TrackState.CONFIRMED, TrackState.COASTING)
