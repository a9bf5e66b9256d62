# SPDX-License-Identifier: Apache-2.0
"""`recordings`: pictures out of recordings, to discover objects in without labels.

Frames come from the cache of `bags/cache.py`, so that memory does not grow with a recording. Where
a recording holds ground-truth masks, pictures kept from training come with labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from oc_perception.bags.cache import CachedFrames, cached_frames
from oc_perception.bags.sequence import open_sequence
from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.scenes import Scenes, World

SPLITS = ("train", "validation", "all")
_HELD_OUT = 512  # frames, evenly spaced, that validation looks at
_MASK_PATIENCE = 30  # frames without a mask, after which none is expected
_STEP_S = 0.2  # between the three frames of a moment


@dataclass(frozen=True)
class RecordingsConfig:
    """Recordings `bags`, whatever `open_sequence` reads, and their image `topic`.

    `split` by time: the last `validation` share of each recording is kept from training, and what
    lies less than `gap_s` before it belongs to neither. `crop` `(left, top, width, height)` px is
    cut out first. In training, `brightness` changes the gain of a picture by up to this share and
    its offset by half as much, and `flips` mirrors half of the pictures. `fps` is of pictures
    without times, `truth` where masks or boxes lie, if not in the recording.
    """

    bags: tuple[str, ...] = ()
    topic: str | None = None
    truth: tuple[str, ...] = ()
    fps: float | None = None
    crop: tuple[int, int, int, int] | None = None
    brightness: float = 0.0
    flips: bool = False
    split: str = "train"
    validation: float = 0.2
    gap_s: float = 0.5

    def __post_init__(self) -> None:
        if not self.bags:
            raise ValueError("bags must name at least one recording (train: --bag PATH)")
        if self.truth and len(self.truth) != len(self.bags):
            raise ValueError("truth must name as many files as there are bags, or none")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {self.split!r}")
        if not 0 < self.validation < 1 or self.gap_s < 0:
            raise ValueError("validation must lie between 0 and 1, and gap_s be at least 0")
        if not 0 <= self.brightness < 1:
            raise ValueError("brightness must be at least 0 and below 1")


class _Part(NamedTuple):
    """Which frames of a recording belong to the split: numbers `(M,)`, times `(M,)` in s."""

    images: np.ndarray
    numbers: np.ndarray
    times_s: np.ndarray
    labels: dict[int, np.ndarray] | None


class Recordings(World):
    """Batches of pictures: in training drawn with replacement, else each once before any again."""

    Config = RecordingsConfig

    def _prepare(self) -> None:
        self._parts: list[_Part] = []
        self._size: tuple[int, int] | None = None

    def sample(self, height: int, width: int) -> Scenes:
        """A batch at `height x width`; `labels` is None where masks are unknown.

        Raises ConfigurationError when a recording is too short to be split, and BagError for what
        cannot be read.
        """
        self._open((height, width))
        chosen = self._choose()
        images = self._images(chosen)
        labels = self._labels(chosen)
        if self.config.split == "train":
            images = self._varied(images)
        present = torch.zeros(self.batch_size, 0, dtype=torch.bool, device=self.device)
        if labels is not None:
            objects = torch.arange(1, int(labels.max()) + 1, device=self.device)
            present = (labels.flatten(1).unsqueeze(1) == objects[:, None]).any(2)
        return Scenes(images, labels, present)

    def moments(self, count: int, height: int, width: int) -> Tensor:
        """Up to `count` evenly spaced moments `(N, 3, 3, H, W)`: the frames 0.2 s before, at and
        0.2 s after each, as recorded.
        """
        self._open((height, width))
        total = sum(len(part.numbers) for part in self._parts)
        chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
        triplets, start = [], 0
        for part in self._parts:
            end = start + len(part.numbers)
            own = chosen[(chosen >= start) & (chosen < end)] - start
            moved = part.times_s[own, None] + np.array([-_STEP_S, 0.0, _STEP_S]) - 1e-6
            triplets.append(start + np.searchsorted(part.times_s, moved).clip(max=end - start - 1))
            start = end
        return self._images(np.concatenate(triplets))

    def _open(self, size: tuple[int, int]) -> None:
        if self._size == size:
            return
        config = self.config
        truths = config.truth or (None,) * len(config.bags)
        self._parts = [
            self._part(
                cached_frames(bag, size, config.topic, config.crop, truth, config.fps), bag, truth
            )
            for bag, truth in zip(config.bags, truths, strict=True)
        ]
        self._starts = np.cumsum([0, *(len(part.numbers) for part in self._parts)])
        if config.split != "train":  # which draws from the generator only what it shows
            total = int(self._starts[-1])
            self._order = torch.randperm(total, generator=self.generator, device=self.device).cpu()
        self._position, self._size = 0, size

    def _part(self, frames: CachedFrames, bag: str, truth: str | None) -> _Part:
        config = self.config
        times_s = (frames.stamps_ns - frames.stamps_ns[0]) * 1e-9
        begin_s = (1 - config.validation) * times_s[-1]
        member = {
            "train": times_s < begin_s - config.gap_s,
            "validation": times_s >= begin_s,
            "all": times_s >= 0,
        }[config.split]
        numbers = np.flatnonzero(member)
        if not len(numbers):
            raise ConfigurationError(
                f"{bag}: none of its {len(times_s)} frames in {times_s[-1]:.1f} s is for"
                f" {config.split}. Record for longer, or lower world_config.validation and gap_s."
            )
        labels = None
        if config.split == "validation":
            every = np.linspace(0, len(numbers) - 1, min(_HELD_OUT, len(numbers)))
            numbers = numbers[np.unique(every.round().astype(np.int64))]
            wanted = dict(zip(frames.indices[numbers].tolist(), numbers.tolist(), strict=True))
            labels = self._read_masks(bag, truth, begin_s, wanted, frames.images.shape[1:3])
        return _Part(frames.images, numbers, times_s[numbers], labels)

    def _read_masks(
        self,
        bag: str,
        truth: str | None,
        start_s: float,
        wanted: dict[int, int],
        size: tuple[int, int],
    ) -> dict[int, np.ndarray] | None:
        """Label images at `size` by number, of the frames `wanted` by index; None unless each of
        them has one.
        """
        labels: dict[int, np.ndarray] = {}
        with open_sequence(bag, self.config.topic, truth, self.config.fps) as sequence:
            for seen, frame in enumerate(sequence.frames(start_s - 1e-6)):
                if frame.truth is None or frame.truth.label_image is None:
                    if seen >= _MASK_PATIENCE and not labels:
                        return None
                    continue
                if frame.index in wanted:
                    image = frame.truth.label_image
                    if self.config.crop:
                        left, top, width, height = self.config.crop
                        image = image[top : top + height, left : left + width]
                    labels[wanted[frame.index]] = cv2.resize(
                        image, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT
                    )
        return labels if len(labels) == len(wanted) else None

    def _choose(self) -> np.ndarray:
        """Which frames come next, `(B,)` among all of the split."""
        total, size = int(self._starts[-1]), (self.batch_size,)
        if self.config.split == "train":
            drawn = torch.randint(total, size, generator=self.generator, device=self.device)
            return drawn.cpu().numpy()
        places = (self._position + torch.arange(self.batch_size)) % total
        self._position += self.batch_size
        return self._order[places].numpy()

    def _images(self, chosen: np.ndarray) -> Tensor:
        """`(..., 3, H, W)` in [0, 1] on the device, of frames `chosen` `(...)` in the split."""
        flat = chosen.ravel()
        result = np.empty((len(flat), *self._size, 3), np.uint8)
        for start, part in zip(self._starts, self._parts, strict=False):
            own = (flat >= start) & (flat < start + len(part.numbers))
            result[own] = part.images[part.numbers[flat[own] - start]]
        images = torch.from_numpy(result).to(self.device).permute(0, 3, 1, 2).float() / 255
        return images.view(*chosen.shape, 3, *self._size)

    def _labels(self, chosen: np.ndarray) -> Tensor | None:
        """`(B, H, W)` int64; None unless all recordings have masks."""
        if any(part.labels is None for part in self._parts):
            return None
        every = [part.labels[n] for part in self._parts for n in part.numbers]
        labels = np.stack([every[n] for n in chosen]).astype(np.int64)
        return torch.from_numpy(labels).to(self.device)

    def _varied(self, images: Tensor) -> Tensor:
        config, shape = self.config, (self.batch_size, 1, 1, 1)
        if config.brightness:
            gain = self._uniform(1 - config.brightness, 1 + config.brightness, *shape)
            offset = self._uniform(-config.brightness / 2, config.brightness / 2, *shape)
            images = (gain * images + offset).clamp(0, 1)
        if config.flips:
            mirrored = self._uniform(0, 1, *shape) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        return images
