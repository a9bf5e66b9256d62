# SPDX-License-Identifier: Apache-2.0
"""Small grey pictures that move over a black canvas: what `mini_shapes` and `digits` share.

The canvas is a square of one image width. Where glyphs meet, the brighter pixel is seen, so that
none lies in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from oc_perception.types import Motion
from oc_perception.worlds.disc_physics import FRAME_S
from oc_perception.worlds.scenes import World

_LAYOUTS = 64  # random placements tried at a time for each sequence


@dataclass(frozen=True)
class GlyphMotion(Motion):
    """A motion with what no detector sees, `hidden`: tensors `(B, T, N, ...)`, among them `label`,
    the class of each glyph.
    """

    hidden: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, index: object) -> GlyphMotion:
        values = {f.name: getattr(self, f.name) for f in fields(Motion)}
        tensors = {n: v[index] if isinstance(v, Tensor) else v for n, v in values.items()}
        return GlyphMotion(**tensors, hidden={n: v[index] for n, v in self.hidden.items()})


def observed(
    corners: Tensor, steps: Tensor, sizes: Tensor, present: Tensor, hidden: Mapping[str, Tensor]
) -> GlyphMotion:
    """The motion of glyphs with upper left `corners` `(B, T, N, 2)` that move by `steps` per frame
    (widths); `sizes`, `present` and `hidden` `(B, N, ...)` do not change. Visible is what has at
    least half of its box on the canvas.
    """
    frames = corners.shape[1]

    def always(value: Tensor) -> Tensor:
        return value.unsqueeze(1).expand(-1, frames, *value.shape[1:])

    sizes, present = always(sizes), always(present)
    inside = (corners + sizes).clamp(max=1) - corners.clamp(min=0)
    share = (inside.clamp(min=0) / sizes).prod(-1)
    return GlyphMotion(
        positions=corners + sizes / 2,
        velocities=steps / FRAME_S,
        sizes=sizes,
        features=corners.new_zeros(*present.shape, 0),
        present=present,
        visible=present & (share >= 0.5),
        dt_s=FRAME_S,
        hidden={name: always(value) for name, value in hidden.items()},
    )


def first_corners(world: World, sizes: Tensor, present: Tensor) -> Tensor:
    """Upper left corners `(B, N, 2)` of glyphs of `sizes` `(B, N, 2)`, drawn uniformly from all
    places where they lie wholly on the canvas and those `present` do not overlap.
    """
    batch, count = present.shape
    pairs = (present.unsqueeze(2) & present.unsqueeze(1)).tril(-1)
    corners = sizes.new_zeros(batch, count, 2)
    missing = torch.ones(batch, dtype=torch.bool, device=sizes.device)
    while missing.any():
        layouts = world._uniform(0, 1, batch, _LAYOUTS, count, 2) * (1 - sizes.unsqueeze(1))
        ends = layouts + sizes.unsqueeze(1)
        meet = layouts.unsqueeze(3) < ends.unsqueeze(2)
        meet = (meet & meet.transpose(2, 3)).all(-1) & pairs.unsqueeze(1)
        apart = ~meet.flatten(2).any(2)
        first = apart.int().argmax(1)
        drawn = layouts[torch.arange(batch, device=sizes.device), first]
        corners = torch.where(missing[:, None, None], drawn, corners)
        missing = missing & ~apart.any(1)
    return corners


def folded(path: Tensor, steps: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """A path and its steps between two mirrors at `low` and `high`: a triangle wave of the one
    that runs through them.
    """
    crossed = (path - low) / (high - low) % 2
    return low + (high - low) * (1 - (crossed - 1).abs()), torch.where(crossed > 1, -steps, steps)


def paint(
    motion: GlyphMotion, glyphs: Tensor, cell: float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Images `(B, T, 3, H, W)` in [0, 1] and labels `(B, T, H, W)` int64 of `motion`, whose
    objects look like `glyphs` `(B, N, G, G)` in [0, 1], each from the upper left corner of its box
    on; a cell of theirs is `cell` image widths wide.

    A pixel takes the mean of what it covers; one at least half as bright as can be belongs to the
    brightest object, n + 1, and all others have the label 0.
    """
    start = (motion.positions - motion.sizes / 2) * width
    across = _shares(start[..., :1], cell * width, glyphs.shape[-1], width)
    down = _shares(start[..., 1:], cell * width, glyphs.shape[-1], height)
    glyphs = glyphs.unsqueeze(1) * motion.present[..., None, None]
    pictures = down @ glyphs @ across.transpose(-1, -2)  # (B, T, N, H, W)
    grey, brightest = pictures.clamp_(0, 1).max(2)
    labels = torch.where(grey >= 0.5, brightest + 1, 0)
    return grey.unsqueeze(2).repeat(1, 1, 3, 1, 1), labels


def _shares(start: Tensor, cell: float, cells: int, pixels: int) -> Tensor:
    """How much of each pixel each cell of a glyph covers along one axis, `(..., pixels, cells)`,
    for a glyph from `start` `(..., 1)` px on with cells of `cell` px.
    """
    edges = start + cell * torch.arange(cells + 1, device=start.device)
    pixel = torch.arange(pixels, device=start.device).unsqueeze(-1)
    below = (edges.unsqueeze(-2) - pixel).clamp_(0, 1)  # of a pixel, what lies before each edge
    return below[..., 1:] - below[..., :-1]
