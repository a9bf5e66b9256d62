# SPDX-License-Identifier: Apache-2.0
"""`trajectories`: how persons walked, from text files of their positions.

One image width is `view_m` metres, the middle of the view is where the person who was drawn is
when the future begins. Sizes are `size_m` metres for everybody: a unit of length, not a shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from oc_perception.configuration import ConfigurationError
from oc_perception.types import Motion
from oc_perception.worlds.scenes import World
from oc_perception.worlds.trajectory_files import PERIOD_S, data_directory, recordings

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TrajectoriesConfig:
    """`data` is a folder, or the name of one in `OC_DATA`; see `trajectory_files` for the sets of
    which `leave_out` is the one not learned from.

    A person who is there in all frames is drawn, and with them those who are nearest in the last
    of the `seen` frames, `max_objects` in all. With `augment` what is learned from is turned,
    mirrored, run backwards, and made larger or smaller by up to exp(`scale`).
    """

    data: str = "eth_ucy"
    leave_out: str = "eth"
    split: str = "train"
    seen: int = 8
    max_objects: int = 8
    augment: bool = True
    scale: float = 0.4
    view_m: float = 20.0
    size_m: float = 1.0

    def __post_init__(self) -> None:
        if self.split not in _SPLITS:
            raise ValueError(f"split must be one of {', '.join(_SPLITS)}, not {self.split!r}")
        if self.seen < 2 or self.max_objects < 1:
            raise ValueError("seen must be at least 2, max_objects at least 1")
        if min(self.view_m, self.size_m) <= 0 or self.scale < 0:
            raise ValueError("view_m and size_m must be positive, scale at least 0")


class Trajectories(World):
    """Batches of windows, each as often; all randomness from one seeded generator."""

    Config = TrajectoriesConfig

    def _prepare(self) -> None:
        config = self.config
        self._recordings = recordings(data_directory(config.data), config.leave_out, config.split)
        self._windows: dict[int, tuple[Tensor, Tensor]] = {}

    def sample_motion(self, num_frames: int) -> Motion:
        """Windows of `num_frames` frames."""
        positions, centres = self._window(num_frames)
        row = self._integers(len(positions), self.batch_size)
        chosen, middle = positions[row], centres[row]
        centre = torch.multinomial(middle.float(), 1, generator=self.generator)  # (B, 1)
        now = chosen[:, self.config.seen - 1]  # (B, A, 2)
        index = torch.arange(len(now), device=self.device)
        distance = (now - now[index, centre[:, 0]][:, None]).norm(dim=-1).nan_to_num(math.inf)
        count = min(self.config.max_objects, distance.shape[1])
        nearest = distance.topk(count, largest=False).indices  # the person drawn is the first
        chosen = chosen.gather(2, nearest[:, None, :, None].expand(-1, num_frames, -1, 2))
        if self.config.augment and self.config.split == "train":
            chosen = self._augmented(chosen)
        return in_view(chosen, self.config.view_m, self.config.size_m, self.config.seen)

    def _window(self, length: int) -> tuple[Tensor, Tensor]:
        """All windows `(W, length, A, 2)`, and who is there all the time `(W, A)`."""
        if length not in self._windows:
            if length <= self.config.seen:
                raise ConfigurationError(f"{length} frames are too few to see {self.config.seen}.")
            crowds = [c for r in self._recordings for c in r.crowds(length, self.config.seen)]
            if not crowds:
                raise ConfigurationError(
                    f"{self.config.data}: nobody is there for {length} frames."
                )
            positions = torch.from_numpy(padded(crowds)).float().to(self.device)
            self._windows[length] = positions, ~positions[..., 0].isnan().any(1)
        return self._windows[length]

    def _augmented(self, positions: Tensor) -> Tensor:
        count = len(positions)
        angle = self._uniform(0, 2 * math.pi, count)
        scale = self._uniform(-self.config.scale, self.config.scale, count).exp()
        mirror, backwards = (self._uniform(-1, 1, count).sign() for _ in range(2))
        cos, sin = scale * angle.cos(), scale * angle.sin()
        turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        turn[..., 0] *= mirror[:, None]
        turned = torch.einsum("bij,btnj->btni", turn, positions)
        return torch.where(backwards[:, None, None, None] > 0, turned, turned.flip(1))


def padded(crowds: list[np.ndarray]) -> np.ndarray:
    """Windows `(T, N, 2)` of different N as one `(W, T, A, 2)`, NaN where nobody is."""
    most = max(crowd.shape[1] for crowd in crowds)
    result = np.full((len(crowds), crowds[0].shape[0], most, 2), np.nan, np.float32)
    for window, crowd in zip(result, crowds, strict=True):
        # Near the origin, where 32 bits tell millimetres from one another.
        window[:, : crowd.shape[1]] = crowd - crowd[0, 0]
    return result


def in_view(positions: Tensor, view_m: float, size_m: float, seen: int) -> Motion:
    """A motion in widths of a view of `view_m` from positions `(B, T, N, 2)` in metres, NaN where
    absent; the first object of each window is in the middle in the last of the `seen` frames.
    """
    present = ~positions[..., 0].isnan()
    positions = (positions - positions[:, seen - 1 : seen, :1]) / view_m + 0.5
    positions = positions.nan_to_num(0.5)
    velocities = torch.diff(positions, dim=1, prepend=positions[:, :1]) / PERIOD_S
    return Motion(
        positions=positions,
        velocities=velocities,
        sizes=torch.full_like(positions, size_m / view_m),
        features=positions[..., :0],
        present=present,
        visible=present,
        dt_s=PERIOD_S,
    )
