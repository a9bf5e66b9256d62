# SPDX-License-Identifier: Apache-2.0
"""Boxes with identities, frame by frame, and how much truth and tracks overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import linear_sum_assignment

from oc_perception.tracking.boxes import EMPTY, iou

__all__ = ["EPSILON", "MotSequence", "Overlaps", "iou"]

EPSILON = EMPTY
"""What rounding may take from an overlap; boxes of a smaller area are empty."""


@dataclass(frozen=True)
class MotSequence:
    """What was there and what a tracker said, frame by frame; each list has `T` arrays.

    `truth_ids` `(N,)` and `track_ids` `(M,)` are whole numbers, none twice in a frame;
    `truth_boxes` `(N, 4)` and `track_boxes` `(M, 4)` are `(cx, cy, w, h)` in any unit of length
    in which an area of `EPSILON` is nothing. N and M differ from frame to frame and may be 0.
    """

    truth_ids: Sequence[np.ndarray]
    truth_boxes: Sequence[np.ndarray]
    track_ids: Sequence[np.ndarray]
    track_boxes: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"The lists of a sequence must have one array per frame: {lengths}.")

    def select(self, frames: np.ndarray) -> MotSequence:
        """The sequence of these frames alone: `(T,)` bool, or frame numbers from 0.

        Scored without the blind frames, a sequence tells what a blackout leaves behind; scored
        with them, also how well it was bridged.
        """
        frames = np.arange(len(self.truth_ids))[frames]
        return MotSequence(
            *([getattr(self, field.name)[frame] for frame in frames] for field in fields(self))
        )


class Overlaps:
    """A sequence in arrays: `iou` `(T, N, M)` of every object with every track of a frame.

    Shorter frames are filled up at their end: `truths` `(T, N)` and `tracks` `(T, M)` are the ids,
    renumbered from 0, and -1 where there is none. `truth_frames` and `track_frames` `(ids,)` tell
    in how many frames each is present.
    """

    def __init__(self, sequence: MotSequence) -> None:
        self.truths, truth_boxes = _pad(sequence.truth_ids, sequence.truth_boxes, "truth")
        self.tracks, track_boxes = _pad(sequence.track_ids, sequence.track_boxes, "track")
        self.iou = iou(truth_boxes[:, :, None], track_boxes[:, None])
        self.truth_frames = np.bincount(self.truths[self.truths >= 0])
        self.track_frames = np.bincount(self.tracks[self.tracks >= 0])

    def by_ids(self, weights: np.ndarray) -> np.ndarray:
        """`(T, N, M)` weights, summed over frames for each object and each track."""
        frame, truth, track = weights.nonzero()
        shape = len(self.truth_frames), len(self.track_frames)
        pair = self.truths[frame, truth] * shape[1] + self.tracks[frame, track]
        return np.bincount(pair, weights[frame, truth, track], shape[0] * shape[1]).reshape(shape)

    def pair(
        self, candidates: np.ndarray, worth: Callable[[int, np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """In each frame one to one pairs out of `candidates` `(T, N, M)` bool, worth most in sum.

        `worth(frame, chosen)` `(N, M)` is asked only where candidates compete, in the order of
        frames; `chosen` `(T, N, M)` holds the pairs of the frames before. Returns frame, row and
        column of the pairs.
        """
        contested = (candidates.sum(1) > 1).any(1) | (candidates.sum(2) > 1).any(1)
        chosen = candidates & ~contested[:, None, None]
        for frame in np.flatnonzero(contested):
            rows, columns = (self.truths[frame] >= 0).sum(), (self.tracks[frame] >= 0).sum()
            values = worth(frame, chosen)[:rows, :columns]
            pairs = linear_sum_assignment(values, maximize=True)
            chosen[frame][pairs] = candidates[frame][pairs]
        return chosen.nonzero()


def _pad(
    ids: Sequence[np.ndarray], boxes: Sequence[np.ndarray], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Ids `(T, N)` renumbered from 0, -1 where there is none, and boxes `(T, N, 4)`, 0 there."""
    counts = np.array([len(frame) for frame in ids], np.int64)
    if [len(frame) for frame in boxes] != counts.tolist():
        raise ValueError(f"Every frame needs as many {name} boxes as {name} ids.")
    frame = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    flat = [np.asarray(frame, np.int64) for frame in ids]
    names, number = np.unique(np.concatenate([np.zeros(0, np.int64), *flat]), return_inverse=True)
    order = np.lexsort((number, frame))
    twice = np.diff(number[order] + frame[order] * len(names)) == 0
    if twice.any():
        where = order[:-1][twice][0]
        raise ValueError(f"{name} id {names[number[where]]} is twice in frame {frame[where]}.")
    flat = np.concatenate([np.zeros((0, 4)), *(np.reshape(b, (-1, 4)) for b in boxes)])
    if not (np.isfinite(flat).all() and (flat[:, 2:] >= 0).all()):
        raise ValueError(f"A {name} box is not finite, or its size is negative.")
    padded_ids = np.full((len(counts), counts.max(initial=0)), -1)
    padded_boxes = np.zeros((*padded_ids.shape, 4))
    padded_ids[frame, place] = number
    padded_boxes[frame, place] = flat
    return padded_ids, padded_boxes
