# SPDX-License-Identifier: Apache-2.0
"""Windows of an image, read and painted: the spatial transformer (Jaderberg et al. 2015) without
rotation, which is two small matrix products, one along each axis.

`where` `(R, 4)` places a window: logits of its width and height as shares of the image's, then its
centre, of which 0 is the middle of the image and 1 the right or lower edge, bent so that nothing
is further out than `REACH`. Rows R are `B` images times as many windows of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

REACH = 1.5
"""How far from the middle the centre of a window can be, in half images."""
_MIN_SHARE = 0.02  # of the image: what is painted into nothing has no gradient
_MIN_MASS = 1e-6  # of a spot: where there is none, it is in the middle


def where_of(share: float) -> list[float]:
    """The `where` of a window of this share of the image's width and height in its middle."""
    logit = math.log(share / (1 - share))
    return [logit, logit, 0.0, 0.0]


def boxes_of(where: Tensor, frame_size: tuple[int, int]) -> Tensor:
    """Boxes `(..., 4)`: centre x, y, width, height in image widths."""
    share, centre = _placed(where)
    aspect = where.new_tensor([1.0, frame_size[0] / frame_size[1]])
    return torch.cat([(1 + centre) / 2 * aspect, share * aspect], -1)


def brightest(images: Tensor, radius: float) -> Tensor:
    """Centres `(R, 2)`, as in `where`, of the brightest spots of `images` `(R, H, W)`: of about
    this radius, as a share of the image's width.
    """
    bright = images.clamp(min=0)
    height, width = bright.shape[1:]
    down, across = (_bell(size, radius * width, images.device) for size in (height, width))
    peak = (down @ bright @ across).flatten(1).argmax(1)
    shares = down[peak // width].unsqueeze(2) * bright * across[peak % width].unsqueeze(1)
    shares = shares / shares.sum((1, 2), keepdim=True).clamp(min=_MIN_MASS)
    x, y = (
        shares.sum(axis) @ (2 * (torch.arange(size, device=images.device) + 0.5) / size - 1)
        for axis, size in ((1, width), (2, height))
    )
    return REACH * (torch.stack([x, y], 1) / REACH).atanh()


def read(images: Tensor, where: Tensor, size: int) -> Tensor:
    """What windows `(R, 4)` show of `images` `(B, H, W)`, black outside: `(R, size, size)`."""
    batch, height, width = images.shape
    share, centre = _placed(where)
    cells = (torch.arange(size, device=where.device) + 0.5) / size - 0.5
    inside = (1 + centre).unsqueeze(-1) / 2 + share.unsqueeze(-1) * cells  # (R, 2, size)
    across = _hat(inside[:, 0] * width - 0.5, width)
    down = _hat(inside[:, 1] * height - 0.5, height)
    rows = (down.reshape(batch, -1, height) @ images).view(len(where), size, width)
    return rows @ across.transpose(1, 2)


def paint(glimpses: Tensor, where: Tensor, frame_size: tuple[int, int]) -> Tensor:
    """The sum over N of `glimpses` `(R, N, size, size)` painted into windows `(R, N, 4)`:
    `(R, H, W)`.
    """
    height, width = frame_size
    size = glimpses.shape[-1]
    share, centre = _placed(where)
    across = _hat(_cells(width, share[..., 0], centre[..., 0], size), size)  # (R, N, W, size)
    down = _hat(_cells(height, share[..., 1], centre[..., 1], size), size)
    rows = glimpses @ across.transpose(2, 3)  # (R, N, size, W)
    return down.transpose(1, 2).flatten(2) @ rows.flatten(1, 2)


def _placed(where: Tensor) -> tuple[Tensor, Tensor]:
    """Shares and centres `(..., 2)` of windows."""
    share, centre = where.split(2, -1)
    return share.sigmoid().clamp(min=_MIN_SHARE), REACH * (centre / REACH).tanh()


def _cells(pixels: int, share: Tensor, centre: Tensor, size: int) -> Tensor:
    """Where each of `pixels` lies among the cells of windows `(R, N)`: `(R, N, pixels)`."""
    position = (torch.arange(pixels, device=share.device) + 0.5) / pixels
    offset = position - (1 + centre).unsqueeze(-1) / 2
    return (offset / share.unsqueeze(-1) + 0.5) * size - 0.5


def _bell(size: int, deviation: float, device: torch.device) -> Tensor:
    """`(size, size)`: what pixels weigh around each, in pixels."""
    index = torch.arange(size, device=device)
    return (-0.5 * ((index[:, None] - index) / deviation).square()).exp()


def _hat(position: Tensor, count: int) -> Tensor:
    """`(..., count)`: what each of `count` neighbours weighs in linear interpolation."""
    distance = position.unsqueeze(-1) - torch.arange(count, device=position.device)
    return (1 - distance.abs()).clamp(min=0)
