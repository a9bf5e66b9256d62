# SPDX-License-Identifier: Apache-2.0
"""How well tracks keep identities: HOTA, CLEAR and the identity scores of a set of sequences.

- `Hota`: higher order tracking accuracy, the geometric mean of detection and association accuracy,
  for each of 19 thresholds of overlap (Luiten et al. 2021, IJCV 129, section 4);
- `Clear`: MOTA, MOTP, identity switches, fragmentations (Bernardin & Stiefelhagen 2008; Li et al.
  2009 for fragmentations and the mostly tracked and lost);
- `Identity`: IDF1, IDP, IDR of the best one to one pairing of whole tracks (Ristani et al. 2016).

Where the papers leave a choice, the numbers are those of `trackeval` 1.3. A score keeps the sums
that it is made of: `a + b` is the score of both sequences, which is how a benchmark combines them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import linear_sum_assignment

from oc_perception.evaluation.mot_sequence import EPSILON, MotSequence, Overlaps, iou

__all__ = ["ALPHAS", "Clear", "Hota", "Identity", "MotScores", "MotSequence", "iou", "score"]

ALPHAS = np.arange(0.05, 0.99, 0.05)
"""Overlaps that a match needs in HOTA, `(19,)`."""
THRESHOLD = 0.5
"""Overlap that a match needs in CLEAR and Identity."""
_CONTINUES = 1000.0
"""Worth of a pair that was one in the frame before: more than all overlaps of a frame."""


class _Sums:
    """Scores whose fields add up over sequences."""

    def __add__(self, other):
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Hota(_Sums):
    """Sums over boxes, `(19,)` each, one number for each of `ALPHAS`.

    `association` adds up how well the two tracks of each match agree elsewhere (the Jaccard index
    of their boxes), `overlap` the IoU of matches. The properties are `(19,)` too; their means are
    the scores.
    """

    matches: np.ndarray
    misses: np.ndarray
    false_positives: np.ndarray
    association: np.ndarray
    overlap: np.ndarray

    @property
    def det_a(self) -> np.ndarray:
        """Detection accuracy; 0 where nothing was to be found."""
        everything = self.matches + self.misses + self.false_positives
        return self.matches / np.maximum(1, everything)

    @property
    def ass_a(self) -> np.ndarray:
        """Association accuracy; 0 where nothing matches."""
        return self.association / np.maximum(1, self.matches)

    @property
    def loc_a(self) -> np.ndarray:
        """Mean IoU of matches; 1 where nothing matches."""
        return np.where(self.matches > 0, self.overlap / np.maximum(1, self.matches), 1.0)

    @property
    def hota(self) -> np.ndarray:
        return np.sqrt(self.det_a * self.ass_a)


@dataclass(frozen=True)
class Clear(_Sums):
    """Counts of boxes, of changes, and of objects by the share of their frames that match.

    A match is a switch if the object's last one, however long ago, was with another track. It ends
    a fragmentation if the object had one before, but not in the last frame that held any object
    and any track. Mostly tracked is over 80 % of the frames, mostly lost under 20 %. `overlap`
    adds up the IoU of matches.
    """

    matches: int
    misses: int
    false_positives: int
    id_switches: int
    fragmentations: int
    mostly_tracked: int
    partly_tracked: int
    mostly_lost: int
    overlap: float

    @property
    def mota(self) -> float:
        """Accuracy: at most 1, without a lower bound, and 0 where there is no truth at all."""
        boxes = self.matches + self.misses
        right = self.matches - self.false_positives - self.id_switches
        return float(right / boxes) if boxes else 0.0

    @property
    def motp(self) -> float:
        """Precision as the mean IoU of matches; 0 where nothing matches."""
        return float(self.overlap / max(1, self.matches))


@dataclass(frozen=True)
class Identity(_Sums):
    """Counts of boxes under the one to one pairing of whole tracks that matches most of them."""

    matches: int
    misses: int
    false_positives: int

    @property
    def idf1(self) -> float:
        boxes = self.matches + (self.misses + self.false_positives) / 2
        return float(self.matches / max(1, boxes))

    @property
    def idp(self) -> float:
        return float(self.matches / max(1, self.matches + self.false_positives))

    @property
    def idr(self) -> float:
        return float(self.matches / max(1, self.matches + self.misses))


@dataclass(frozen=True)
class MotScores(_Sums):
    hota: Hota
    clear: Clear
    identity: Identity

    def summary(self) -> dict[str, float]:
        """One number per score; those of HOTA are means over its thresholds."""
        names = ("hota", "det_a", "ass_a", "loc_a")
        result = {name: float(getattr(self.hota, name).mean()) for name in names}
        result |= {name: getattr(self.clear, name) for name in ("mota", "motp")}
        counts = [f.name for f in fields(Clear) if f.name not in ("matches", "overlap")]
        result |= {name: int(getattr(self.clear, name)) for name in counts}
        return result | {name: getattr(self.identity, name) for name in ("idf1", "idp", "idr")}


def score(sequence: MotSequence) -> MotScores:
    """All scores of one sequence; those of several are their sum.

    Raises ValueError for an id that is twice in a frame, and for boxes that are not finite, of
    negative size, or not as many as ids.
    """
    overlaps = Overlaps(sequence)
    return MotScores(_hota(overlaps), _clear(overlaps), _identity(overlaps))


def _hota(overlaps: Overlaps) -> Hota:
    truths, tracks, similarity = overlaps.truths, overlaps.tracks, overlaps.iou
    rivals = similarity.sum(1, keepdims=True) + similarity.sum(2, keepdims=True) - similarity
    share = np.divide(similarity, rivals, out=np.zeros_like(rivals), where=rivals > EPSILON)
    # How well two tracks go together in the whole sequence decides who is paired in each frame.
    together = overlaps.by_ids(share)
    frames = overlaps.truth_frames[:, None] + overlaps.track_frames
    alignment = together / (frames - together)

    def worth(frame: int, _: np.ndarray) -> np.ndarray:
        return alignment[truths[frame][:, None], tracks[frame]] * similarity[frame]

    pairs = overlaps.pair(similarity > 0, worth)
    overlap = similarity[pairs]
    matched = overlap >= ALPHAS[:, None] - EPSILON  # (19, pairs)
    # Frames in which the same two match, (19, kinds): few of all combinations ever meet.
    frame, row, column = pairs
    kinds, kind = np.unique(
        np.ravel_multi_index((truths[frame, row], tracks[frame, column]), frames.shape),
        return_inverse=True,
    )
    level, match = matched.nonzero()
    counts = np.bincount(level * len(kinds) + kind[match], minlength=len(ALPHAS) * len(kinds))
    counts = counts.reshape(len(ALPHAS), -1)
    matches = matched.sum(1)
    return Hota(
        matches=matches,
        misses=overlaps.truth_frames.sum() - matches,
        false_positives=overlaps.track_frames.sum() - matches,
        association=(counts**2 / (frames.ravel()[kinds] - counts)).sum(1),
        overlap=matched @ overlap,
    )


def _clear(overlaps: Overlaps) -> Clear:
    truths, tracks, similarity = overlaps.truths, overlaps.tracks, overlaps.iou
    candidates = similarity >= THRESHOLD - EPSILON
    # A frame without objects or without tracks does not count as the one before another.
    counts = (truths >= 0).any(1) & (tracks >= 0).any(1)
    counted, rank = np.flatnonzero(counts), np.cumsum(counts) - 1

    def worth(frame: int, chosen: np.ndarray) -> np.ndarray:
        """Pairs of the frame before first, then overlap."""
        partner = np.full(len(overlaps.truth_frames) + 1, -2)  # the last one stands for id -1
        if rank[frame]:
            before = counted[rank[frame] - 1]
            row, column = chosen[before].nonzero()
            partner[truths[before, row]] = tracks[before, column]
        continues = partner[truths[frame]][:, None] == tracks[frame]
        return np.where(candidates[frame], similarity[frame] + _CONTINUES * continues, 0.0)

    frame, row, column = pairs = overlaps.pair(candidates, worth)
    truth, track = truths[frame, row], tracks[frame, column]
    tracked = np.bincount(truth, minlength=len(overlaps.truth_frames)) / overlaps.truth_frames
    mostly, at_least_partly = (tracked > 0.8).sum(), (tracked >= 0.2).sum()
    order = np.lexsort((frame, truth))
    truth, track = truth[order], track[order]
    again, gaps = truth[1:] == truth[:-1], np.diff(rank[frame[order]])
    return Clear(
        matches=len(frame),
        misses=overlaps.truth_frames.sum() - len(frame),
        false_positives=overlaps.track_frames.sum() - len(frame),
        id_switches=(again & (track[1:] != track[:-1])).sum(),
        fragmentations=(again & (gaps > 1)).sum(),
        mostly_tracked=mostly,
        partly_tracked=at_least_partly - mostly,
        mostly_lost=len(tracked) - at_least_partly,
        overlap=similarity[pairs].sum(),
    )


def _identity(overlaps: Overlaps) -> Identity:
    together = overlaps.by_ids(overlaps.iou >= THRESHOLD)
    matches = together[linear_sum_assignment(together, maximize=True)].sum()
    return Identity(
        matches=matches,
        misses=overlaps.truth_frames.sum() - matches,
        false_positives=overlaps.track_frames.sum() - matches,
    )
