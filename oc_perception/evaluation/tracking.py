# SPDX-License-Identifier: Apache-2.0
"""How well tracks follow the truth, above all through blackouts: identity, calibration, error.

Truth and tracks meet by stamp; a track output between two truths (a node that coasts on its own
clock) is compared with the truth interpolated to its stamp. An object and a track are the same
thing in a frame where the Hungarian assignment pairs them within a gate. In a blackout nothing is
paired anew: an object stays with the track it had in the last frame that was seen, so that a
prediction far off counts as far off, and not as somebody else's.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import chi2

from oc_perception.types import Track, TrackOutput, TrackState

GATE_PX = 40.0
"""Default greatest distance of a matched pair: 5 % of a VGA image's diagonal."""


@dataclass(frozen=True)
class Truth:
    """Where objects are at `stamp_ns`: `ids` `(N,)`, `positions` `(N, 2)` px, `visible` `(N,)`."""

    stamp_ns: int
    ids: np.ndarray
    positions: np.ndarray
    visible: np.ndarray

    @classmethod
    def from_tracks(cls, output: TrackOutput) -> Truth:
        """Ground truth that travelled as tracks: confirmed means visible, coasting means
        hidden."""
        tracks = output.tracks
        return cls(
            output.stamp_ns,
            np.array([t.id for t in tracks], np.int64),
            np.array([t.box[:2] for t in tracks], np.float64).reshape(-1, 2),
            np.array([t.state == TrackState.CONFIRMED for t in tracks], bool),
        )

    def visible_positions(self) -> dict[int, np.ndarray]:
        """Position `(2,)` px of each visible object by id."""
        return {
            int(i): p
            for i, p, seen in zip(self.ids, self.positions, self.visible, strict=True)
            if seen
        }


@dataclass(frozen=True)
class Blackout:
    """Blind frames: `start_ns` is the stamp of the first, `end_ns` of the first seeing one
    after."""

    start_ns: int
    end_ns: int
    frames: int
    mode: str

    def __contains__(self, stamp_ns: int) -> bool:
        return self.start_ns <= stamp_ns < self.end_ns


@dataclass(frozen=True)
class Recovery:
    """What became of the objects that were visible before a blackout and after it.

    `recovered` kept their track id, `swapped` have the id of another track that lived before,
    `new` an id born since, `lost` none. `untracked` objects were visible but had no id to keep.
    """

    recovered: int = 0
    swapped: int = 0
    new: int = 0
    lost: int = 0
    untracked: int = 0

    @property
    def tracked(self) -> int:
        """Objects that had an id to keep."""
        return self.recovered + self.swapped + self.new + self.lost

    @property
    def share(self) -> float:
        """Recovered / tracked; NaN where nothing was tracked."""
        return self.recovered / self.tracked if self.tracked else float("nan")

    def __add__(self, other: Recovery) -> Recovery:
        return Recovery(
            self.recovered + other.recovered,
            self.swapped + other.swapped,
            self.new + other.new,
            self.lost + other.lost,
            self.untracked + other.untracked,
        )


@dataclass(frozen=True)
class Agreement:
    """`errors` `(M,)` px between truth and track centre; `distances` `(M,)` squared
    Mahalanobis."""

    errors: np.ndarray
    distances: np.ndarray

    def coverage(self, probability: float = 0.9) -> float:
        """Share of truths inside the track's `probability` ellipse (chi2, 2 degrees of
        freedom)."""
        if not self.distances.size:
            return float("nan")
        return float(np.mean(self.distances <= chi2.ppf(probability, 2)))

    def error_px(self) -> float:
        """Mean distance between truth and track centre; NaN where nothing was compared."""
        return float(self.errors.mean()) if self.errors.size else float("nan")


def truth_at(truths: Sequence[Truth], stamp_ns: int) -> dict[int, np.ndarray]:
    """Visible positions at a stamp; between two truths interpolated, outside them empty.

    `truths` are in the order of their stamps. An object counts between two truths when both see
    it.
    """
    index = bisect.bisect_left(truths, stamp_ns, key=lambda t: t.stamp_ns)
    if index == len(truths):
        return {}
    later = truths[index]
    if later.stamp_ns == stamp_ns:
        return later.visible_positions()
    if index == 0:
        return {}
    earlier = truths[index - 1]
    share = (stamp_ns - earlier.stamp_ns) / (later.stamp_ns - earlier.stamp_ns)
    before, after = earlier.visible_positions(), later.visible_positions()
    return {i: (1 - share) * before[i] + share * after[i] for i in before.keys() & after.keys()}


def match(
    positions: Mapping[int, np.ndarray], output: TrackOutput, gate_px: float = GATE_PX
) -> dict[int, int]:
    """Object id -> id of its confirmed or coasting track: least distance in sum, none over
    gate."""
    objects, tracks = sorted(positions), _reported(output)
    if not objects or not tracks:
        return {}
    offsets = np.array([positions[i] for i in objects])[:, None] - np.array(
        [t.box[:2] for t in tracks]
    )
    distance = np.linalg.norm(offsets, axis=2)
    # A pair over the gate costs more than all pairs inside it: as many pairs as possible.
    cost = np.where(distance <= gate_px, distance, gate_px * (1 + min(distance.shape)))
    return {
        objects[row]: tracks[column].id
        for row, column in zip(*linear_sum_assignment(cost), strict=True)
        if distance[row, column] <= gate_px
    }


def identity_recovery(
    truths: Sequence[Truth],
    outputs: Sequence[TrackOutput],
    blackout: Blackout,
    settle_frames: int = 5,
    gate_px: float = GATE_PX,
) -> Recovery:
    """Whether objects keep their track id over one blackout.

    Compared are the last output before it and the first one that is `settle_frames` truths past
    its end. `truths` and `outputs` are in the order of their stamps; a blackout without either
    neighbour gives an empty Recovery. A new session gives new ids.
    """
    past_end = [t.stamp_ns for t in truths if t.stamp_ns >= blackout.end_ns]
    before = [o for o in outputs if o.stamp_ns < blackout.start_ns]
    if len(past_end) < settle_frames or not before:
        return Recovery()
    settled_ns = past_end[settle_frames - 1]
    after = next((o for o in outputs if o.stamp_ns >= settled_ns), None)
    if after is None:
        return Recovery()
    before = before[-1]
    visible_before = truth_at(truths, before.stamp_ns)
    visible_after = truth_at(truths, after.stamp_ns)
    old = match(visible_before, before, gate_px)
    current = match(visible_after, after, gate_px)
    same_session = before.session == after.session
    ids_before = {track.id for track in before.tracks} if same_session else set()
    result = Recovery()
    for i in visible_before.keys() & visible_after.keys():
        if i not in old:
            result += Recovery(untracked=1)
        elif i not in current:
            result += Recovery(lost=1)
        elif same_session and current[i] == old[i]:
            result += Recovery(recovered=1)
        elif current[i] in ids_before:
            result += Recovery(swapped=1)
        else:
            result += Recovery(new=1)
    return result


def agreement(
    truths: Sequence[Truth],
    outputs: Iterable[TrackOutput],
    blackouts: Sequence[Blackout] = (),
    gate_px: float = GATE_PX,
) -> tuple[Agreement, Agreement]:
    """Centres of truth and tracks compared: over all frames, and over the blind frames alone.

    `truths` and `outputs` are in the order of their stamps.
    """
    pairs: dict[int, int] = {}
    errors, distances, blind = [], [], []
    for output in outputs:
        positions = truth_at(truths, output.stamp_ns)
        is_blind = any(output.stamp_ns in blackout for blackout in blackouts)
        if not is_blind:
            pairs = match(positions, output, gate_px)
        tracks = {track.id: track for track in _reported(output)}
        for object_id, track_id in pairs.items():
            if object_id not in positions or track_id not in tracks:
                continue
            offset = positions[object_id] - tracks[track_id].box[:2]
            covariance = np.asarray(tracks[track_id].covariance, np.float64)[:2, :2]
            errors.append(np.linalg.norm(offset))
            distances.append(offset @ np.linalg.solve(covariance, offset))
            blind.append(is_blind)
    errors, distances, blind = np.array(errors), np.array(distances), np.array(blind, bool)
    return Agreement(errors, distances), Agreement(errors[blind], distances[blind])


def ghosts(
    truths: Sequence[Truth], outputs: Sequence[TrackOutput], gate_px: float = GATE_PX
) -> np.ndarray:
    """How many confirmed or coasting tracks of each output follow nothing that is there: `(T,)`.

    An object that is hidden is there, and has one track at most: a second one on it is a ghost.
    `truths` are in the order of their stamps; NaN for an output outside them, or without them.
    """
    present = [replace(truth, visible=np.ones(len(truth.ids), bool)) for truth in truths]
    counts = np.full(len(outputs), np.nan)
    for i, output in enumerate(outputs):
        if truths and truths[0].stamp_ns <= output.stamp_ns <= truths[-1].stamp_ns:
            positions = truth_at(present, output.stamp_ns)
            counts[i] = len(_reported(output)) - len(match(positions, output, gate_px))
    return counts


def _reported(output: TrackOutput) -> list[Track]:
    return [t for t in output.tracks if t.state in (TrackState.CONFIRMED, TrackState.COASTING)]
