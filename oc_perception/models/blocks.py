# SPDX-License-Identifier: Apache-2.0
"""Parts that several models share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def coordinate_grid(height: int, width: int) -> Tensor:
    """`(2, H, W)`: x (left to right) and y (top to bottom), linear in [-1, 1]."""
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"))


def broadcast_convolution(convolution: nn.Conv2d, z: Tensor, grid: Tensor) -> Tensor:
    """What `convolution` makes of `z` `(N, D)` tiled over the plane and stacked on `grid`
    `(C, H, W)`: `(N, D + C, H, W)` to `(N, O, H', W')`, channels last in memory.

    The first layer of a spatial broadcast decoder (Watters et al. 2019), without the tiling: a
    constant plane meets each weight either inside or outside the picture, so that the products
    with `z` are needed once per weight, not per pixel. Stride 1, zero padding.
    """
    (kernel_y, kernel_x), (pad_y, pad_x) = convolution.kernel_size, convolution.padding
    weight_z, weight_grid = convolution.weight.split((z.shape[1], grid.shape[0]), 1)
    place = F.conv2d(grid.unsqueeze(0), weight_grid, convolution.bias, padding=(pad_y, pad_x))
    out, height, width = place.shape[1:]
    place = place.permute(0, 2, 3, 1).reshape(1, height * width, out)
    taps = torch.einsum("o d y x, n d -> n y x o", weight_z, z.to(weight_z.dtype))
    if pad_y or pad_x:
        rows = _inside(height, kernel_y, pad_y, grid.shape[1], z.device)
        columns = _inside(width, kernel_x, pad_x, grid.shape[2], z.device)
        inside = torch.einsum("h y, w x -> h w y x", rows, columns)
        inside = inside.reshape(1, height * width, kernel_y * kernel_x)
        result = torch.baddbmm(
            place.to(taps.dtype).expand(len(z), -1, -1),
            inside.to(taps.dtype).expand(len(z), -1, -1),
            taps.reshape(len(z), -1, out),
        )
    else:
        result = place + taps.sum((1, 2)).unsqueeze(1)
    return result.view(len(z), height, width, out).permute(0, 3, 1, 2)


def doubling_weights(convolution: nn.Conv2d, skip_channels: int) -> tuple[Tensor, Tensor]:
    """What `doubled_convolution` needs of a `convolution` (kernel 3, stride 1, padding 1, no
    bias) whose last inputs are `skip_channels`.

    Where neighbours are copies of one pixel, weights add up: 4 products instead of 9.
    """
    channels = convolution.in_channels - skip_channels
    weight, weight_skip = convolution.weight.split((channels, skip_channels), 1)
    summed = F.avg_pool2d(weight.transpose(0, 1).flip(2, 3), 2, 1, 1, divisor_override=1)
    layout = torch.channels_last
    return summed.contiguous(memory_format=layout), weight_skip.contiguous(memory_format=layout)


def doubled_convolution(weights: tuple[Tensor, Tensor], x: Tensor, skip: Tensor) -> Tensor:
    """What the convolution of `doubling_weights` makes of `x` `(B, C, H, W)`, doubled by nearest
    neighbours and stacked on `skip` `(B, D, 2 H, 2 W)`: `(B, O, 2 H, 2 W)`, as a transposed
    convolution of the small picture.
    """
    weight, weight_skip = weights
    doubled = F.conv_transpose2d(x, weight, stride=2, padding=1)
    return doubled.add_(F.conv2d(skip, weight_skip, padding=1))


def _inside(size: int, kernel: int, padding: int, source: int, device: torch.device) -> Tensor:
    """`(size, kernel)`: 1 where the weight meets the picture, 0 where it meets the padding."""
    position = torch.arange(size, device=device)[:, None] + torch.arange(kernel, device=device)
    return ((position >= padding) & (position < source + padding)).float()
