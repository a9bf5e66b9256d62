# SPDX-License-Identifier: Apache-2.0
"""Trajectories in text files, and who learns from which of them.

One row a position: frame, identity, x, y (metres), between white space. Two kinds of folders:

- `eth_ucy`: `all_data/*.txt` to test on, `train/*_train.txt` and `val/*_val.txt` to learn from;
  the five sets, each of which leaves one scene out, are those of Gupta et al., *Social GAN*, 2018;
- any other folder of `PLACE_NUMBER.txt`, such as the Stanford drone scenes of TrajNet: the sets
  are the places, and the last fifth of the frames of each file is kept for validation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oc_perception.configuration import ConfigurationError, nearest

PERIOD_S = 0.4
"""Between the positions of a person, in both collections."""
_ETH_UCY = {
    "eth": ("biwi_eth",),
    "hotel": ("biwi_hotel",),
    "univ": ("students001", "students003"),
    "zara1": ("crowds_zara01",),
    "zara2": ("crowds_zara02",),
}
_VALIDATION = 0.2


class TrajectoryError(ConfigurationError):
    """Trajectories that cannot be read; the message names the cause and the cure."""


@dataclass(frozen=True)
class Recording:
    """`positions` `(F, A, 2)` float64 metres of A persons in F frames, NaN where not seen;
    `frames` `(F,)` their numbers, ascending; `step` from one position of a person to the next.
    """

    positions: np.ndarray
    frames: np.ndarray
    step: int

    def windows(self, length: int) -> np.ndarray:
        """Rows `(F, length)` of `positions` for the window that starts at each frame, `step`
        frames apart; -1 where a frame has no row.
        """
        wanted = self.frames[:, None] + self.step * np.arange(length)
        rows = np.searchsorted(self.frames, wanted).clip(max=len(self.frames) - 1)
        return np.where(self.frames[rows] == wanted, rows, -1)

    def crowds(self, length: int, seen: int) -> Iterator[np.ndarray]:
        """Windows `(length, N, 2)` with somebody who is there all the time: first those persons,
        then the others who are there in the last of the `seen` frames; NaN where not.
        """
        known = np.append(self.positions, np.full_like(self.positions[:1], np.nan), 0)
        there = ~np.isnan(known[..., 0])
        rows = self.windows(length)
        whole = there[rows].all(1)  # (S, A)
        for window, all_the_time in zip(rows, whole, strict=True):
            if all_the_time.any():
                partly = there[window[seen - 1]] & ~all_the_time
                order = np.concatenate([np.flatnonzero(all_the_time), np.flatnonzero(partly)])
                yield known[np.ix_(window, order)]

    def part(self, start: float, stop: float) -> Recording:
        """The frames between two shares of all of them."""
        first, last = (round(share * len(self.frames)) for share in (start, stop))
        return Recording(self.positions[first:last], self.frames[first:last], self.step)

    def resampled(self, step: int) -> Recording:
        """With positions every `step` frames, by straight lines between those that are known."""
        first, last = self.frames[[0, -1]]
        frames = np.arange(first, last + 1, step)
        positions = np.full((len(frames), *self.positions.shape[1:]), np.nan)
        for person in range(positions.shape[1]):
            rows = np.flatnonzero(~np.isnan(self.positions[:, person, 0]))
            lines = [
                np.interp(
                    frames, self.frames[rows], self.positions[rows, person, axis], *2 * [np.nan]
                )
                for axis in (0, 1)
            ]
            positions[:, person] = np.stack(lines, -1)
        return Recording(positions, frames, step)


def read(path: Path) -> Recording:
    """The trajectories of one file.

    Raises TrajectoryError where it is missing, no such table, or a person is twice in a frame.
    """
    try:
        table = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise TrajectoryError(f"Cannot read trajectories from {path}: {error}") from error
    if table.shape[1:] != (4,) or not len(table) or not np.isfinite(table).all():
        raise TrajectoryError(f"{path} must have rows of four numbers: frame, identity, x, y.")
    frames, frame = np.unique(table[:, 0].astype(int), return_inverse=True)
    persons, person = np.unique(table[:, 1], return_inverse=True)
    if len(np.unique(frame * len(persons) + person)) < len(table):
        raise TrajectoryError(f"{path} has two positions of one identity in one frame.")
    positions = np.full((len(frames), len(persons), 2), np.nan)
    positions[frame, person] = table[:, 2:]
    order = np.lexsort((frames[frame], person))
    steps = np.diff(frames[frame][order])[np.diff(person[order]) == 0]
    return Recording(positions, frames, int(np.median(steps)) if len(steps) else 1)


def data_directory(folder: str | Path) -> Path:
    """`folder` where it exists, else that of this name among the data sets, which lie where the
    variable `OC_DATA` says.

    Raises TrajectoryError when there is none.
    """
    sets = Path(os.environ.get("OC_DATA") or Path("..", "shared", "data"))
    for path in (Path(folder), sets / folder):
        if path.is_dir():
            return path
    raise TrajectoryError(
        f"No folder {folder}, and none of this name in {sets}: give its path, or set OC_DATA to"
        " the directory of data sets."
    )


def sets_to_leave_out(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of each set to leave out, by its name."""
    if (folder / "all_data").is_dir():
        return {
            name: tuple(folder / "all_data" / f"{scene}.txt" for scene in scenes)
            for name, scenes in _ETH_UCY.items()
        }
    places: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*_*.txt")):
        places.setdefault(path.stem.rpartition("_")[0], []).append(path)
    if not places:
        raise TrajectoryError(f"{folder} has neither all_data/ nor files PLACE_NUMBER.txt.")
    return {name: tuple(paths) for name, paths in places.items()}


def recordings(folder: Path, leave_out: str, split: str) -> list[Recording]:
    """What is learned from (`train`), held out of that (`validation`), or left out (`test`).

    Raises TrajectoryError for a set that is not there.
    """
    sets = sets_to_leave_out(folder)
    if leave_out not in sets:
        raise TrajectoryError(
            f"{folder} has no set {leave_out!r} to leave out.{nearest(leave_out, sets)}"
        )
    if split == "test":
        return [read(path) for path in sets[leave_out]]
    if (folder / "all_data").is_dir():
        kind = {"train": "train", "validation": "val"}[split]
        left_out = {f"{path.stem}_{kind}" for path in sets[leave_out]}
        paths = sorted((folder / kind).glob(f"*_{kind}.txt"))
        return [read(path) for path in paths if path.stem not in left_out]
    shares = {"train": (0.0, 1 - _VALIDATION), "validation": (1 - _VALIDATION, 1.0)}[split]
    others = [path for name, paths in sets.items() if name != leave_out for path in paths]
    return [read(path).part(*shares) for path in others]
