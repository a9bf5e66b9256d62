# SPDX-License-Identifier: Apache-2.0
"""`digits`: handwritten digits that move over a black canvas, 0, 1 or 2 in a sequence, as in the
experiments on moving multi-MNIST of SQAIR (Kosiorek et al. 2018, section 4.1 and appendix D).

`source: mnist` takes them from `mnist/mnist_train.npz` in the directory that `OC_DATA` names (with
`images` `(M, 28, 28)` and `labels` `(M,)`, uint8); `strokes` draws them (`stroke_digits`); `auto`
takes MNIST where it is there. `Digits.source` tells which it was.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.glyphs import GlyphMotion, first_corners, folded, observed, paint
from oc_perception.worlds.scenes import Scenes, World
from oc_perception.worlds.stroke_digits import SIDE_PX, draw_digits

SOURCES = ("auto", "mnist", "strokes")
SPLITS = ("train", "validation", "all")

_CANVAS_PX = 50
_ACCELERATION_NOISE_PX = 0.01
_MOST = 2  # of up to 28 px that fit on the canvas
_STROKE_DIGITS, _STROKE_SEED = 6000, 271


@dataclass(frozen=True)
class DigitsConfig:
    """`num_objects`: all numbers in this range are as likely. Of 50 px to the width, velocities
    (px per frame) and accelerations (px per frame^2) along each axis begin anywhere up to
    `speed_px` and `acceleration_px`, and stay there.

    `split`: the last `validation` share of the digits is kept from training.
    """

    source: str = "auto"
    num_objects: tuple[int, int] = (0, 2)
    speed_px: float = 10.0
    acceleration_px: float = 3.0
    split: str = "train"
    validation: float = 1 / 6

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, not {self.source!r}")
        low, high = self.num_objects
        if not 0 <= low <= high or high < 1:
            raise ValueError(f"num_objects must be 0 <= low <= high, not {self.num_objects}")
        if high > _MOST:
            raise ValueError(f"at most {_MOST} digits find room, not {high}")
        if min(self.speed_px, self.acceleration_px) < 0 or self.speed_px > _CANVAS_PX:
            raise ValueError(
                f"speed_px must be 0 to {_CANVAS_PX} and acceleration_px at least 0, not"
                f" {self.speed_px} and {self.acceleration_px}"
            )
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {self.split!r}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must lie between 0 and 1, not {self.validation}")


class Digits(World):
    """Batches of independent sequences; all randomness from one seeded generator.

    A digit may leave the canvas to the right and below, always comes back, and counts as present
    all the time. `hidden` has the `label` `(B, T, N)` of each, 0 to 9, and which `glyph` it is.
    """

    Config = DigitsConfig

    def _prepare(self) -> None:
        path = mnist_path()
        self.source = self.config.source
        if self.source == "auto":
            self.source = "mnist" if path.is_file() else "strokes"
        digits = _mnist(path) if self.source == "mnist" else _strokes()
        kept = round(len(digits[0]) * self.config.validation)
        part = {"train": slice(-kept), "validation": slice(-kept, None), "all": slice(None)}
        self._glyphs, self._sizes, self._labels = (
            tensor[part[self.config.split]].to(self.device) for tensor in digits
        )
        if not len(self._glyphs):
            raise ConfigurationError(f"digits: no digit is left with split {self.config.split!r}")

    def sample_motion(self, num_frames: int) -> GlyphMotion:
        """Fresh sequences. In the first frame all digits lie apart and wholly on the canvas.

        Positions are whole pixels of 50 to the width; velocities are those before rounding.
        """
        (low, high), batch = self.config.num_objects, self.batch_size
        count = low + self._integers(high + 1 - low, batch, 1)
        present = torch.arange(high, device=self.device) < count
        glyph = self._integers(len(self._glyphs), batch, high)
        sizes = self._sizes[glyph].float() / _CANVAS_PX
        start = first_corners(self, sizes, present) * _CANVAS_PX
        steps = self._steps(batch, high, num_frames)
        path = torch.cat([start.unsqueeze(1), steps[:, :-1]], 1).cumsum(1)
        path, steps = folded(path, steps, 0, _CANVAS_PX)
        looks = {"label": self._labels[glyph].long(), "glyph": glyph}
        return observed(path.round() / _CANVAS_PX, steps / _CANVAS_PX, sizes, present, looks)

    def draw(self, motion: GlyphMotion, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Images `(B, T, 3, H, W)` in [0, 1] and label maps `(B, T, H, W)` int64 of `motion`; of a
        canvas as high as it is wide.
        """
        glyphs = self._glyphs[motion.hidden["glyph"][:, 0]] / 255
        return paint(motion, glyphs, 1 / _CANVAS_PX, height, width)

    def sample(self, height: int, width: int) -> Scenes:
        """First frames of fresh sequences. Factors: `position`, `velocity`, `digit`."""
        motion = self.sample_motion(1)
        images, labels = self.draw(motion, height, width)
        factors = {
            "position": motion.positions[:, 0],
            "velocity": motion.velocities[:, 0],
            "digit": motion.hidden["label"][:, 0],
        }
        return Scenes(images[:, 0], labels[:, 0], motion.present[:, 0], factors)

    def _steps(self, batch: int, count: int, frames: int) -> Tensor:
        """Where digits that meet no wall go from each frame on, `(B, T, N, 2)`, in px."""
        fastest, strongest = self.config.speed_px, self.config.acceleration_px
        velocity = self._uniform(-fastest, fastest, batch, count, 2)
        acceleration = self._uniform(-strongest, strongest, batch, count, 2)
        steps = [velocity]
        for _ in range(frames - 1):
            velocity = (velocity + acceleration).clamp(-fastest, fastest)
            noise = torch.randn(
                batch, count, 2, generator=self.generator, device=self.device
            ).mul_(_ACCELERATION_NOISE_PX)
            acceleration = (acceleration + noise).clamp(-strongest, strongest)
            steps.append(velocity)
        return torch.stack(steps, 1)


def mnist_path() -> Path:
    """Where the digits of MNIST are looked for."""
    sets = Path(os.environ.get("OC_DATA") or Path("..", "shared", "data"))
    return sets / "mnist" / "mnist_train.npz"


@lru_cache(maxsize=2)
def _mnist(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Cropped digits, their sizes and classes, as `_cropped` has them.

    Raises ConfigurationError where the file is missing or is not what it should be.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigurationError(
            f"Cannot read the digits {path} ({error}): set OC_DATA to the directory of data sets,"
            " or choose source: strokes, which draws digits itself."
        ) from error
    if (
        images.dtype != np.uint8
        or images.shape[1:] != (SIDE_PX, SIDE_PX)
        or labels.shape != images.shape[:1]
    ):
        raise ConfigurationError(
            f"{path} must hold images (M, {SIDE_PX}, {SIDE_PX}) and labels (M,) of uint8, not"
            f" {images.shape} of {images.dtype} and {labels.shape}."
        )
    return _cropped(torch.from_numpy(images), torch.from_numpy(labels))


@lru_cache(maxsize=1)
def _strokes() -> tuple[Tensor, Tensor, Tensor]:
    """The same ones each time, so that what is kept from training stays so."""
    labels = torch.arange(_STROKE_DIGITS) % 10
    return _cropped(draw_digits(labels, torch.Generator().manual_seed(_STROKE_SEED)), labels)


def _cropped(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures `(M, G, G)` uint8 with the ink moved to the upper left corner, its width and height
    `(M, 2)`, and classes `(M,)`; G is the largest of the sizes, empty pictures are left out.
    """
    ink = images > 0
    some = ink.flatten(1).any(1)
    images, ink, labels = images[some], ink[some], labels[some]
    corners, sizes = [], []
    for line in (ink.any(1), ink.any(2)):  # which columns, which rows
        first = line.int().argmax(1)
        corners.append(first)
        sizes.append(line.shape[1] - line.flip(1).int().argmax(1) - first)
    (left, top), size = corners, torch.stack(sizes, -1)
    reach = torch.arange(int(size.max()))
    rows = (top[:, None] + reach).clamp(max=SIDE_PX - 1)[:, :, None]
    columns = (left[:, None] + reach).clamp(max=SIDE_PX - 1)[:, None, :]
    inside = (reach < size[:, 1:])[:, :, None] & (reach < size[:, :1])[:, None, :]
    return images[torch.arange(len(images))[:, None, None], rows, columns] * inside, size, labels
