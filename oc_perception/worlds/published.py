# SPDX-License-Identifier: Apache-2.0
"""`published`: scenes from the files of the published data sets, for those who have them.

Scenes are read once, in the order of the file, and then held as bytes on the device of the world.
`scene_files.py` says which files are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.scene_files import read_scenes
from oc_perception.worlds.scenes import Scenes, World


@dataclass(frozen=True)
class PublishedConfig:
    """Which file, and which of its scenes.

    `split` is the group of an HDF5 file that has several. `first` and `count` are positions in the
    file (or split), before `num_objects` (without the background) selects. `crop` is top, left,
    height, width in px; `[29, 64, 192, 192]` for CLEVR (Greff et al. 2019, App. B.1).
    `background_entities` only if it is not as published. With `shuffle`, scenes are drawn with
    replacement; without, in their order, each once before any comes again. Scenes may take
    `memory_gb` GiB.
    """

    path: str
    split: str | None = None
    first: int = 0
    count: int | None = None
    num_objects: tuple[int, int] | None = None
    crop: tuple[int, int, int, int] | None = None
    background_entities: int | None = None
    shuffle: bool = True
    memory_gb: float = 8.0

    def __post_init__(self) -> None:
        if self.first < 0 or (self.count is not None and self.count < 1):
            raise ValueError("first must be at least 0, and count at least 1")
        if self.num_objects is not None and not 0 <= self.num_objects[0] <= self.num_objects[1]:
            raise ValueError(f"num_objects must be 0 <= low <= high, not {self.num_objects}")
        if self.crop is not None and (min(self.crop[:2]) < 0 or min(self.crop[2:]) < 1):
            raise ValueError(f"crop must be top, left, height, width in px, not {self.crop}")
        if self.background_entities is not None and self.background_entities < 1:
            raise ValueError("background_entities must be at least 1")
        if not self.memory_gb > 0:
            raise ValueError("memory_gb must be positive")


class _Stored(NamedTuple):
    """All chosen scenes: `images` `(M, H, W, C)` and `labels` `(M, H, W)` uint8, `present`
    `(M, N)`.
    """

    images: Tensor
    labels: Tensor
    present: Tensor
    factors: dict[str, Tensor]


class Published(World):
    """Batches of scenes from a file; only the generator decides which."""

    Config = PublishedConfig

    def _prepare(self) -> None:
        """Read the file, unless it has just been read.

        Raises ConfigurationError when it is missing, damaged, of an unknown layout, too large for
        `memory_gb`, or has no such scene.
        """
        config = self.config
        path = Path(config.path).expanduser()
        if not path.is_file():
            raise ConfigurationError(
                f"There is no data set {path}: set path to a TFRecord or HDF5 file."
            )
        status = path.stat()
        self._scenes = _load(config, path, status.st_mtime_ns, status.st_size, str(self.device))

    def sample(self, height: int, width: int) -> Scenes:
        """A batch, resized to `height x width`: images with antialiasing, labels to the nearest.

        An object is present when it can be seen in the (cropped) image of the file. Factors:
        `position` (centre of its visible part) and, where the file has them, `shape`, `colour`,
        `material` and `size` as numbered in the file, `rgb` in [0, 1], `angle` (rad), and `size`
        (the scale of Multi-dSprites).
        """
        scenes = self._scenes
        index = self._choose(len(scenes.images))
        images = scenes.images[index].permute(0, 3, 1, 2).float() / 255
        labels = scenes.labels[index].long()
        if (height, width) != labels.shape[1:]:
            images = functional.interpolate(
                images, (height, width), mode="bilinear", antialias=True
            ).clamp(0, 1)
            rows, columns = (
                ((torch.arange(new, device=self.device) + 0.5) * (old / new)).long()
                for new, old in zip((height, width), labels.shape[1:], strict=True)
            )
            labels = labels[:, rows[:, None], columns]
        return Scenes(
            images.expand(-1, 3, -1, -1),
            labels,
            scenes.present[index],
            {name: values[index] for name, values in scenes.factors.items()},
        )

    def _choose(self, total: int) -> Tensor:
        """Which scenes come next, `(B,)`. In order, the seed of the generator is the position, so
        that a restored generator goes on where it was.
        """
        if self.config.shuffle:
            size = (self.batch_size,)
            return torch.randint(total, size, generator=self.generator, device=self.device)
        position = self.generator.initial_seed()
        self.generator.manual_seed(position + self.batch_size)
        return (torch.arange(self.batch_size, device=self.device) + position % total) % total


@lru_cache(maxsize=2)  # training makes a world of the same scenes at every evaluation
def _load(config: PublishedConfig, path: Path, _modified: int, _size: int, device: str) -> _Stored:
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    factors: list[dict[str, np.ndarray]] = []
    read = num_bytes = 0
    for scene in read_scenes(path, config.split, config.first, config.count):
        read += 1
        background = config.background_entities or scene.background
        label = np.where(scene.entities < background, 0, scene.entities - (background - 1))
        if config.num_objects is not None:
            low, high = config.num_objects
            if not low <= np.count_nonzero(np.bincount(label.ravel())[1:]) <= high:
                continue
        window = _window(config, scene.image.shape, path)
        images.append(scene.image[window].copy())
        labels.append(label[window].astype(np.uint8))
        factors.append({name: values[background:] for name, values in scene.factors.items()})
        if _shapes(images[-1], factors[-1]) != _shapes(images[0], factors[0]):
            raise ConfigurationError(
                f"{path}: scene {config.first + read - 1} differs from those before it in its size"
                " or features. Read the scenes of one kind by first and count."
            )
        each = images[-1].nbytes + labels[-1].nbytes
        num_bytes += each
        if config.count is not None and config.num_objects is None:
            num_bytes = config.count * each  # as many as they will be
        if num_bytes > config.memory_gb * 2**30:
            raise ConfigurationError(
                f"{path}: the chosen scenes, {each / 1000:.1f} kB each, take more than memory_gb ="
                f" {config.memory_gb:g} GiB. Set count or crop, or raise memory_gb."
            )
    if not read:
        raise ConfigurationError(
            f"{path} holds no scene from number {config.first} on: lower first."
        )
    if config.count is not None and read < config.count:
        raise ConfigurationError(
            f"{path} ends after {config.first + read} scenes: lower first or count."
        )
    if not images:
        raise ConfigurationError(
            f"{path}: none of the {read} scenes has num_objects = {list(config.num_objects)}."
            " Widen it, or choose others by first and count."
        )
    stored = _stack(images, labels, factors)
    return _Stored(
        *(tensor.to(device) for tensor in stored[:3]),
        {name: values.to(device) for name, values in stored.factors.items()},
    )


def _shapes(image: np.ndarray, factors: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {"image": image.shape, **{name: values.shape for name, values in factors.items()}}


def _window(config: PublishedConfig, shape: tuple[int, ...], path: Path) -> tuple[slice, slice]:
    """Where `crop` lies in an image of this shape."""
    if config.crop is None:
        return slice(None), slice(None)
    top, left, height, width = config.crop
    if top + height > shape[0] or left + width > shape[1]:
        raise ConfigurationError(
            f"crop {list(config.crop)} reaches beyond the images of {path}, which have"
            f" {shape[0]}x{shape[1]} px."
        )
    return slice(top, top + height), slice(left, left + width)


def _stack(
    images: list[np.ndarray], labels: list[np.ndarray], factors: list[dict[str, np.ndarray]]
) -> _Stored:
    """Scenes as tensors. The lists are emptied on the way, so that they are not held twice."""
    columns = {name: np.stack([row[name] for row in factors]) for name in factors[0]}
    num_objects = max(
        1, max(int(label.max()) for label in labels), *(v.shape[1] for v in columns.values())
    )
    total, (height, width) = len(labels), labels[0].shape
    present = torch.zeros(total, num_objects, dtype=torch.bool)
    position = torch.zeros(total, num_objects, 2)
    across = np.tile((np.arange(width) + 0.5) / width, height)
    down = np.repeat((np.arange(height) + 0.5) / height, width)
    for n, label in enumerate(labels):
        area, x, y = (
            np.bincount(label.ravel(), weights, num_objects + 1)[1:]
            for weights in (None, across, down)
        )
        present[n] = torch.from_numpy(area > 0)
        position[n] = torch.from_numpy(np.stack([x, y], -1) / np.maximum(area, 1)[:, None])
    converted = dict(_factor(name, values, num_objects) for name, values in columns.items())
    return _Stored(
        _emptied(images), _emptied(labels), present, {"position": position, **converted}
    )


def _emptied(pictures: list[np.ndarray]) -> Tensor:
    stacked = np.empty((len(pictures), *pictures[0].shape), np.uint8)
    for n in range(len(pictures)):
        stacked[n], pictures[n] = pictures[n], stacked[:0]
    return torch.from_numpy(stacked)


def _factor(name: str, values: np.ndarray, num_objects: int) -> tuple[str, Tensor]:
    """A factor `(M, E, D)` of a file under the name and in the unit that all worlds use."""
    padding = [(0, 0), (0, num_objects - values.shape[1]), (0, 0)]
    tensor = torch.from_numpy(np.pad(np.nan_to_num(values.astype(np.float32)), padding))
    if name == "color" and values.shape[2] == 3:
        return "rgb", tensor / 255 if tensor.max() > 1 else tensor
    if name == "orientation":
        return "angle", tensor
    if name == "rotation":
        return "angle", tensor.deg2rad()
    if name == "scale":
        return "size", tensor
    return {"color": "colour"}.get(name, name), tensor[..., 0].long()
