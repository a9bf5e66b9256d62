# SPDX-License-Identifier: Apache-2.0
"""MOTChallenge text: ground truth, public detections and results (Leal-Taixé et al. 2015; Milan et
al. 2016).

One box per line: `frame,id,left,top,width,height`, then perhaps `confidence`, then perhaps `class`
and `visibility`. A line of ten columns has a position in the world instead of these two. Frames
and pixels count from 1, and `left,top` is the first pixel inside the box. In memory both count
from 0, and boxes are `(cx, cy, w, h)` with pixel centres at integers, as everywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np

from oc_perception.evaluation.mot_sequence import MotSequence

COLUMNS = "frame,id,left,top,width,height[,confidence[,class[,visibility]]]"


class MotFileError(ValueError):
    """A line is not MOTChallenge's."""


@dataclass(frozen=True)
class MotTable:
    """R boxes in the order of the file: `frames` `(R,)` from 0, `ids` `(R,)`, -1 for detections,
    `boxes` `(R, 4)` px, `confidences` `(R,)`, `classes` `(R,)`, -1 where not said, and
    `visibilities` `(R,)`, the part of the object that is not hidden, 1 where not said.
    """

    frames: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    confidences: np.ndarray
    classes: np.ndarray
    visibilities: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def ignored(self) -> np.ndarray:
        """Which rows of a ground truth are not to be counted, `(R,)` bool: confidence is a flag
        there, and 0 for them.
        """
        return self.confidences == 0

    def select(self, rows: np.ndarray) -> MotTable:
        """The table of these rows alone: `(R,)` bool, or row numbers."""
        return MotTable(*(getattr(self, field.name)[rows] for field in fields(self)))

    def by_frame(self, num_frames: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Ids and boxes of the first `num_frames` frames, one array each per frame."""
        order = np.argsort(self.frames, kind="stable")
        cuts = np.searchsorted(self.frames[order], np.arange(num_frames + 1))
        parts = [order[start:end] for start, end in pairwise(cuts)]
        return [self.ids[part] for part in parts], [self.boxes[part] for part in parts]


def mot_sequence(truth: MotTable, tracks: MotTable, num_frames: int | None = None) -> MotSequence:
    """Ground truth without its ignored rows, and results, frame by frame, to be scored.

    `num_frames` cuts both; by default the sequence ends with the last row of either.
    """
    if num_frames is None:
        num_frames = max(int(t.frames.max(initial=-1)) + 1 for t in (truth, tracks))
    return MotSequence(
        *truth.select(~truth.ignored).by_frame(num_frames), *tracks.by_frame(num_frames)
    )


def read_mot(path: str | Path) -> MotTable:
    """A gt.txt, det.txt or result file. Raises MotFileError, which names file and line, and
    OSError.
    """
    with Path(path).open(encoding="utf-8-sig", errors="replace") as lines:
        return parse_mot(lines, path)


def parse_mot(lines: Iterable[str], name: str | Path) -> MotTable:
    """The table of such a file's lines. Empty lines are skipped, columns after the tenth too.

    Raises MotFileError, which names the line of `name`.
    """
    rows = []
    for number, line in enumerate(lines, 1):
        if text := line.strip().rstrip(","):
            try:
                rows.append(_parse(text))
            except ValueError as error:
                raise MotFileError(
                    f"{name}, line {number}: {error}. Columns are {COLUMNS}."
                ) from None
    values = np.array(rows, float).reshape(-1, 9)
    whole = values[:, [0, 1, 7]].astype(np.int64)
    size = values[:, 4:6]
    boxes = np.hstack([values[:, 2:4] - 1 + (size - 1) / 2, size])
    return MotTable(whole[:, 0] - 1, whole[:, 1], boxes, values[:, 6], whole[:, 2], values[:, 8])


def write_mot(path: str | Path, table: MotTable) -> None:
    """Write a table to a millionth of a pixel: with class and visibility if any row has a class,
    else the ten columns of a result. Raises OSError.
    """
    size = table.boxes[:, 2:]
    corners = table.boxes[:, :2] - (size - 1) / 2 + 1
    numbers = [table.frames + 1, table.ids, *corners.T, *size.T, table.confidences]
    if (table.classes >= 0).any():
        numbers += [table.classes, table.visibilities]
    else:
        numbers += [np.full(len(table), -1)] * 3
    rows = np.round(np.column_stack(numbers).astype(float), 6) + 0.0  # no -0
    text = "".join(",".join(f"{value:.12g}" for value in row) + "\n" for row in rows)
    Path(path).write_text(text, encoding="utf-8")


def _parse(text: str) -> list[float]:
    """Nine numbers of a line. Raises ValueError, which says what is wrong."""
    columns = text.split(",")
    if len(columns) < 6:
        raise ValueError(f"{len(columns)} columns, at least 6 are needed")
    try:
        values = [float(column) for column in columns[:10]]
    except ValueError:
        raise ValueError(f"{text[:80]!r} is not all numbers") from None
    if not all(map(math.isfinite, values)):
        raise ValueError("a number is not finite")
    if len(values) == 10:  # a position in the world, or three times -1
        values[7:] = []
    values += [1.0, -1.0, 1.0][len(values) - 6 :]
    frame, identity, _, _, width, height, _, label, _ = values
    if frame < 1 or any(x % 1 or abs(x) >= 2**31 for x in (frame, identity, label)):
        raise ValueError("frame, id and class must be whole 32-bit numbers, frames from 1")
    if width < 0 or height < 0:
        raise ValueError(f"the box has a negative size, {width:g} x {height:g}")
    return values
