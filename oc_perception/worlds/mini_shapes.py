# SPDX-License-Identifier: Apache-2.0
"""`mini_shapes`: white shapes of 12 px drift over a black canvas of 32 px, as a small stand-in for
moving digits on which models of videos can be trained on a CPU.

They keep their velocity and bounce when 40 % of their width or height has left the canvas, so that
they are never quite out of sight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from oc_perception.worlds.glyphs import GlyphMotion, first_corners, folded, observed, paint
from oc_perception.worlds.scenes import Scenes, World

SHAPES = ("square", "disc", "triangle", "cross", "ring")

_CANVAS_PX, _GLYPH_PX = 32, 12
_SIZE = _GLYPH_PX / _CANVAS_PX
_EXIT = 0.4  # of the glyph
_MOST = 4  # that fit on the canvas
_CELLS, _FINE = 24, 8  # of a glyph's template, and points per cell that it is averaged from


@dataclass(frozen=True)
class MiniShapesConfig:
    """`num_objects`: all numbers in this range are as likely. `speed_px`: of 32 px to the width,
    the highest velocity along each axis per frame; all below are as likely.
    """

    num_objects: tuple[int, int] = (0, 2)
    speed_px: float = 2.5

    def __post_init__(self) -> None:
        low, high = self.num_objects
        if not 0 <= low <= high or high < 1:
            raise ValueError(f"num_objects must be 0 <= low <= high, not {self.num_objects}")
        if high > _MOST:
            raise ValueError(f"at most {_MOST} shapes find room, not {high}")
        if not 0 <= self.speed_px <= _GLYPH_PX:
            raise ValueError(f"speed_px must be 0 to {_GLYPH_PX}, not {self.speed_px}")


class MiniShapes(World):
    """Batches of independent sequences; all randomness from one seeded generator. `hidden` has the
    `label` `(B, T, N)` of each object, an index into `SHAPES`.
    """

    Config = MiniShapesConfig

    def _prepare(self) -> None:
        self._templates = templates().to(self.device)

    def sample_motion(self, num_frames: int) -> GlyphMotion:
        """Fresh sequences. In the first frame all shapes lie apart and wholly on the canvas."""
        (low, high), batch = self.config.num_objects, self.batch_size
        count = low + self._integers(high + 1 - low, batch, 1)
        present = torch.arange(high, device=self.device) < count
        sizes = torch.full((batch, high, 2), _SIZE, device=self.device)
        corners = first_corners(self, sizes, present)
        label = self._integers(len(SHAPES), batch, high)
        most = self.config.speed_px / _CANVAS_PX
        steps = self._uniform(-most, most, batch, high, 2)
        time = torch.arange(num_frames, device=self.device).view(-1, 1, 1)
        corners, steps = corners.unsqueeze(1), steps.unsqueeze(1)
        walls = (-_EXIT * _SIZE, 1 - (1 - _EXIT) * _SIZE)
        corners, steps = folded(corners + time * steps, steps, *walls)
        return observed(corners, steps, sizes, present, {"label": label})

    def draw(self, motion: GlyphMotion, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Images `(B, T, 3, H, W)` in [0, 1] and label maps `(B, T, H, W)` int64 of `motion`; of a
        canvas as high as it is wide.
        """
        glyphs = self._templates[motion.hidden["label"][:, 0]]
        return paint(motion, glyphs, _SIZE / _CELLS, height, width)

    def sample(self, height: int, width: int) -> Scenes:
        """First frames of fresh sequences. Factors: `position`, `velocity`, `shape`."""
        motion = self.sample_motion(1)
        images, labels = self.draw(motion, height, width)
        factors = {
            "position": motion.positions[:, 0],
            "velocity": motion.velocities[:, 0],
            "shape": motion.hidden["label"][:, 0],
        }
        return Scenes(images[:, 0], labels[:, 0], motion.present[:, 0], factors)


def templates() -> Tensor:
    """Pictures of the `SHAPES` `(5, 24, 24)` in [0, 1], each as large as its box."""
    points = (torch.arange(_CELLS * _FINE) + 0.5) / (_CELLS * _FINE) * 2 - 1
    y, x = points[:, None], points[None, :]
    radius = (x * x + y * y).sqrt()
    inside = torch.stack(
        [
            torch.ones_like(radius).bool(),
            radius <= 1,
            2 * x.abs() <= 1 + y,
            torch.minimum(x.abs(), y.abs()) <= 1 / 3,
            (radius <= 1) & (radius >= 0.55),
        ]
    )
    cells = inside.float().unflatten(1, (_CELLS, _FINE)).unflatten(3, (_CELLS, _FINE))
    return cells.mean((2, 4))
