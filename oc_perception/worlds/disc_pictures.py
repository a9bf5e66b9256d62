# SPDX-License-Identifier: Apache-2.0
"""What there is to see of the `discs`: which are hidden, and their anti-aliased pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from oc_perception.types import Motion
from oc_perception.worlds.disc_physics import Regime, State

POSITIVE, NEGATIVE = (1.0, 0.0, 0.2), (0.0, 1.0, 0.2)
"""Colours of the charges."""

_HUES = 6
_BASE, _CONTRAST = (0.1, 0.2), 0.03  # of the background; each of the waves has this amplitude
_WAVES, _CYCLES = 6, 3.0
_BAR_COLOUR = 0.5
_FRAMES_AT_ONCE = 64  # what fits into a cache


@dataclass(frozen=True)
class DiscMotion(Motion):
    """A motion with what no detector sees, `hidden`: tensors `(B, T, ...)`.

    `goals` `(..., N, 2)` and `pace` `(..., N)` of R3, `camera` `(..., 2, 2)` its place and its
    velocity in widths/s, `bars` `(..., 2, 2)` left and right edges of the occluders;
    `rgb` `(..., N, 3)` and `texture` of the pictures.
    """

    hidden: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, index: object) -> DiscMotion:
        values = {f.name: getattr(self, f.name) for f in fields(Motion)}
        tensors = {n: v[index] if isinstance(v, Tensor) else v for n, v in values.items()}
        return DiscMotion(**tensors, hidden={n: v[index] for n, v in self.hidden.items()})


def hidden_share(track: State, bars: Tensor, through: bool) -> Tensor:
    """The share of each disc `(B, T, N)` behind `bars` `(B, T, M, 2)` (left and right edges) and,
    where discs pass `through` one another, behind the later one that hides most of it.
    """
    share = torch.zeros_like(track.radii)
    if bars.shape[2]:
        edges = bars.unsqueeze(2) - track.positions[..., :1, None]  # (B, T, N, M, 2)
        u = (edges / track.radii[..., None, None]).clamp(-1, 1)
        below = 0.5 + (u * (1 - u * u).sqrt() + u.asin()) / math.pi  # share left of each edge
        share = share + (below[..., 1] - below[..., 0]).sum(-1)
    if through:
        gaps = (track.positions.unsqueeze(3) - track.positions.unsqueeze(2)).norm(dim=-1)
        u = (gaps / (2 * track.radii.unsqueeze(-1))).clamp(max=1)
        lens = 2 / math.pi * (u.acos() - u * (1 - u * u).sqrt())  # of two equal discs
        front = torch.ones_like(lens).triu(1) * track.present.unsqueeze(2)
        share = share + (lens * front).amax(-1)
    return share


def random_looks(
    regime: Regime, uniform: Callable[..., Tensor], batch: int, rows: int, unique: bool
) -> dict[str, Tensor]:
    """`rgb` `(B, N, 3)` and the background's `texture` `(B, waves, 6)`: cycles per width in x and
    y, phase in turns, amplitude in red, green, blue. The first wave is the mean colour.

    Saturated colours, each another if `unique`; the one of positive charge for MOHART's discs,
    which move before black as long as the camera stands.
    """
    texture = torch.cat(
        [
            uniform(-_CYCLES, _CYCLES, batch, 1 + _WAVES, 2),
            uniform(0, 1, batch, 1 + _WAVES, 1),
            uniform(-_CONTRAST, _CONTRAST, batch, 1 + _WAVES, 3),
        ],
        -1,
    )
    texture[:, 0, :3] = texture.new_tensor([0.0, 0.0, 0.25])
    texture[:, 0, 3:] = uniform(*_BASE, batch, 3)
    if regime.mohart:
        rgb = texture.new_tensor(POSITIVE).expand(batch, rows, 3)
    else:
        hue = uniform(0, 1, batch, max(rows, _HUES))
        if unique:
            hue = hue.argsort(1) / hue.shape[1]
        hue = hue[:, :rows]
        phase = hue.unsqueeze(-1) * 6 + texture.new_tensor([0.0, 4.0, 2.0])
        rgb = ((phase % 6 - 3).abs() - 1).clamp(0, 1)
    if regime.mohart and not regime.camera_sd:
        texture[..., 3:] = 0
    return {"rgb": rgb, "texture": texture}


def paint(motion: DiscMotion, regime: Regime, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images `(B, T, 3, H, W)` in [0, 1] and labels `(B, T, H, W)` int64; object n has the label
    n + 1, later ones lie in front, occluders and the background have 0.
    """
    rgb = motion.hidden["rgb"]
    if regime.charged:
        colours = rgb.new_tensor([NEGATIVE, POSITIVE])
        rgb = colours[(motion.features[..., 0] > 0).long()]
    radii = motion.sizes[..., 0] / 2 * motion.present  # nothing is drawn of a radius of 0
    parts = (motion.positions, radii, rgb, motion.hidden["bars"], motion.hidden["texture"],
             motion.hidden["camera"][..., 0, :])  # fmt: skip
    batches = [part.flatten(0, 1).split(_FRAMES_AT_ONCE) for part in parts]
    painted = [_paint(*batch, height, width) for batch in zip(*batches, strict=True)]
    images, labels = (torch.cat(pictures) for pictures in zip(*painted, strict=True))
    shape = motion.present.shape[:2]
    return images.unflatten(0, shape), labels.unflatten(0, shape)


def _paint(
    positions: Tensor,
    radii: Tensor,
    rgb: Tensor,
    bars: Tensor,
    texture: Tensor,
    camera: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor]:
    """As `paint`, of single frames `(F, ...)`."""
    y = (torch.arange(height, device=rgb.device) + 0.5) / height
    x = (torch.arange(width, device=rgb.device) + 0.5) / width
    resolution = math.sqrt(height * width)
    across = (x - positions[..., :1]).square_().unsqueeze(2)
    down = (y - positions[..., 1:]).square_().unsqueeze(3)
    distance = (across + down).sqrt_()  # (F, N, H, W), from here on in place: this takes long
    reach = torch.where(radii > 0, radii * resolution + 0.5, 0)[..., None, None]
    cover = distance.mul_(-resolution).add_(reach).clamp_(0, 1)
    clear = (1 - cover.flip(1)).cumprod_(1).flip(1)  # through object n and all in front of it
    images = _background(texture, camera, x, y).mul_(clear[:, :1])
    number = torch.arange(1, cover.shape[1] + 1, device=rgb.device, dtype=torch.uint8)
    labels = ((cover >= 0.5) * number.view(-1, 1, 1)).amax(1).long()
    cover[:, :-1] *= clear[:, 1:]
    images += torch.einsum("fnhw,fnc->fchw", cover, rgb)

    inside = torch.minimum(x - bars[..., :1], bars[..., 1:] - x)  # (F, bars, W)
    hidden = (inside * width + 0.5).clamp(0, 1).sum(1)[:, None, None]
    images = images * (1 - hidden) + _BAR_COLOUR * hidden
    labels *= hidden[:, 0] < 0.5
    return images.clamp_(0, 1), labels


def _background(texture: Tensor, camera: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The waves that the camera at `(F, 2)` sees, `(F, 3, H, W)`: each is a sum of two products
    of a row and a column.
    """
    across = 2 * math.pi * texture[..., :1] * (x + camera[:, None, :1])
    down = 2 * math.pi * (texture[..., 1:2] * (y + camera[:, None, 1:]) + texture[..., 2:3])
    rows = torch.cat([down.sin(), down.cos()], 1)
    columns = torch.cat([across.cos(), across.sin()], 1)
    amplitude = texture[..., 3:].repeat(1, 2, 1)
    return torch.einsum("fkc,fkh,fkw->fchw", amplitude, rows, columns)
