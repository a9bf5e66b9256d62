# SPDX-License-Identifier: Apache-2.0
"""`sprites`: flat squares, ellipses and hearts that occlude one another, a replica of
Multi-dSprites (Greff et al. 2019, App. B.2).

Geometry is that of dSprites at 64x64 px and scales with the picture. `background: grey` is
"coloured on grayscale", `coloured` the variant of MONet (sprites and background uniform in RGB),
`binary` white on black.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from oc_perception.worlds.scenes import Scenes, World

SQUARE, ELLIPSE, HEART = range(3)
BACKGROUNDS = ("grey", "coloured", "binary")

_NATIVE_PX = 64
_CENTRES_PX = (15.5, 47.5)
_SQUARE_HALF_SIDE_PX = 9.6
_ELLIPSE_AXES_PX = (13.0, 7.0)
_HEART_SCALE_PX = math.sqrt(226 / 3.6612)  # (a^2 + b^2 - 1)^3 = a^2 b^3 encloses an area of 3.6612
_HEART_MIDDLE = 0.118  # of its vertical extent, from -1 to 1.236


@dataclass(frozen=True)
class SpritesConfig:
    """Sprites of which fewer than `min_visible_px` (at 64x64 px) can be seen are left out."""

    num_objects: tuple[int, int] = (2, 5)
    background: str = "grey"
    scale: tuple[float, float] = (0.5, 1.0)
    min_visible_px: int = 20

    def __post_init__(self) -> None:
        low, high = self.num_objects
        if not 0 <= low <= high or high < 1:
            raise ValueError(f"num_objects must be 0 <= low <= high, not {self.num_objects}")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background must be one of {BACKGROUNDS}, not {self.background!r}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be 0 < low <= high, not {self.scale}")


class Sprites(World):
    """Batches of pictures, drawn anew each time; all randomness from one seeded generator."""

    Config = SpritesConfig

    def sample(self, height: int, width: int) -> Scenes:
        """Factors: `shape`, `size` (dSprites' scale), `position`, `angle` (rad), `rgb`."""
        (low, high), batch = self.config.num_objects, self.batch_size
        shape = self._integers(3, batch, high)
        size = self._uniform(*self.config.scale, batch, high)
        position = self._uniform(*_CENTRES_PX, batch, high, 2) / _NATIVE_PX
        angle = self._uniform(0, 2 * math.pi, batch, high)
        count = low + self._integers(high + 1 - low, batch, 1)
        present = torch.arange(high, device=self.device) < count
        rgb, background = self._colours(high)

        covered = _inside(shape, size, position, angle, height, width)
        labels = _front_most(covered & present[..., None, None])
        smallest = self.config.min_visible_px * height * width / _NATIVE_PX**2
        seen = torch.nn.functional.one_hot(labels.flatten(1), high + 1).sum(1)[:, 1:]
        present = present & (seen >= smallest)
        labels = _front_most(covered & present[..., None, None])

        palette = torch.cat([background.unsqueeze(1), rgb], 1)  # (B, 1 + N, 3)
        index = labels.flatten(1).unsqueeze(-1).expand(-1, -1, 3)
        images = palette.gather(1, index).transpose(1, 2).reshape(-1, 3, height, width)
        factors = {
            "shape": shape,
            "size": size.unsqueeze(-1),
            "position": position,
            "angle": angle.unsqueeze(-1),
            "rgb": rgb,
        }
        return Scenes(images, labels, present, factors)

    def _colours(self, count: int) -> tuple[Tensor, Tensor]:
        """Colours of the sprites `(B, N, 3)` and of the background `(B, 3)`, in steps of 1/255."""
        batch = self.batch_size
        if self.config.background == "binary":
            rgb = torch.ones(batch, count, 3, device=self.device)
            return rgb, torch.zeros_like(rgb[:, 0])
        if self.config.background == "grey":
            hue = self._uniform(0, 6, batch, count, 1)
            phase = torch.tensor([0.0, 4.0, 2.0], device=self.device)
            rgb = (((hue + phase) % 6 - 3).abs() - 1).clamp(0, 1)
            background = self._uniform(0, 1, batch, 1).expand(-1, 3)
        else:
            rgb = self._uniform(0, 1, batch, count, 3)
            background = self._uniform(0, 1, batch, 3)
        return (rgb * 255).round() / 255, (background * 255).round() / 255


def _inside(
    shape: Tensor, size: Tensor, position: Tensor, angle: Tensor, height: int, width: int
) -> Tensor:
    """Which pixels each sprite covers, seen or not: `(B, N, H, W)` bool."""
    rows = (torch.arange(height, device=shape.device) + 0.5) / height
    columns = (torch.arange(width, device=shape.device) + 0.5) / width
    x = (columns - position[..., 0, None]).unsqueeze(2)  # (B, N, 1, W)
    y = (rows - position[..., 1, None]).unsqueeze(3)  # (B, N, H, 1)
    scale = (_NATIVE_PX / size)[..., None, None]
    cosine, sine = angle.cos()[..., None, None] * scale, angle.sin()[..., None, None] * scale
    u, v = cosine * x + sine * y, cosine * y - sine * x  # px of a sprite of scale 1
    square = torch.maximum(u.abs(), v.abs()) <= _SQUARE_HALF_SIDE_PX
    ellipse = (u / _ELLIPSE_AXES_PX[0]) ** 2 + (v / _ELLIPSE_AXES_PX[1]) ** 2 <= 1
    a, b = u / _HEART_SCALE_PX, _HEART_MIDDLE - v / _HEART_SCALE_PX
    heart = (a**2 + b**2 - 1) ** 3 <= a**2 * b**3
    kind = shape[..., None, None]
    return torch.where(kind == SQUARE, square, torch.where(kind == ELLIPSE, ellipse, heart))


def _front_most(covered: Tensor) -> Tensor:
    """Label maps `(B, H, W)` from `(B, N, H, W)`: later sprites lie in front, 0 is background."""
    number = torch.arange(1, covered.shape[1] + 1, device=covered.device).view(1, -1, 1, 1)
    return (covered * number).amax(1)
