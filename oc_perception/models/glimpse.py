# SPDX-License-Identifier: Apache-2.0
"""Glimpses: what a small grid of Gaussian receptive fields sees in a window of an image (Kosiorek
et al. 2017, *Hierarchical Attentive Recurrent Tracking*, section 3.2), differentiable in the
window.

A window is `(x, y, width, height)`: its centre and its size, in image widths. A centre leaves no
doubt which corner is meant, and the width of the Gaussians is tied to their distance, because a
free one could alias.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SIGMA_STRIDES, _MIN_SIGMA_PX = 0.5, 0.45
_SIGMAS = 3.0  # where a receptive field ends
_FAINT = 1e-4  # a receptive field with less than this inside of the image fades to zero
_CROP_PAYS = 3  # times smaller crops than the image are worth to be copied out of it
_SMALL_PX = 96  # on a GPU a crop costs a wait for its size, more than such an image does


def glimpse(images: Tensor, windows: Tensor, size: tuple[int, int]) -> Tensor:
    """What `windows` `(B, M, 4)` show of `images` `(B, C, H, W)`: `(B, M, C, *size)`.

    A large image is first cropped around each window, so that the cost does not grow with it.
    Nothing is seen outside of the image: glimpses fade to zero there.
    """
    (batch, channels, height, width), objects = images.shape, windows.shape[1]
    x, y, span_x, span_y = (windows.float().flatten(0, 1) * width).unbind(1)
    stride_x, stride_y = span_x / size[1], span_y / size[0]
    columns, rows = width, height
    if not images.is_cuda or max(height, width) > _SMALL_PX:
        strides = torch.stack([stride_x, stride_y]).detach().nan_to_num(0, 0, 0)
        reach = 2 * _SIGMAS * _sigma(strides) + strides * strides.new_tensor(size[::-1])[:, None]
        columns, rows = (int(pixels) + 2 for pixels in reach.amax(1).tolist())
        if rows * columns * _CROP_PAYS > height * width:
            columns, rows = width, height
    first_x, bank_x = _bank(x, stride_x, size[1], columns, width)
    first_y, bank_y = _bank(y, stride_y, size[0], rows, height)
    if (rows, columns) == (height, width):
        bank_y = bank_y.view(batch, 1, objects * size[0], height).to(images.dtype)
        seen = (bank_y @ images).unflatten(2, (objects, size[0])).transpose(1, 2)
    else:
        image = torch.arange(batch, device=images.device).repeat_interleave(objects)
        row = first_y[:, None] + torch.arange(rows, device=images.device)
        column = first_x[:, None] + torch.arange(columns, device=images.device)
        row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
        crops = images[image[:, None, None], :, row[:, :, None], column[:, None]]  # channels last
        seen = (bank_y.to(crops.dtype) @ crops.flatten(2)).unflatten(2, (columns, channels))
        seen = seen.permute(0, 3, 1, 2)
    seen = seen.reshape(batch * objects, channels * size[0], columns)
    return (seen @ bank_x.to(seen.dtype).transpose(1, 2)).view(batch, objects, channels, *size)


def _sigma(stride: Tensor) -> Tensor:
    return (_SIGMA_STRIDES * stride).clamp(min=_MIN_SIGMA_PX)


def _bank(
    centre: Tensor, stride: Tensor, size: int, pixels: int, side: int
) -> tuple[Tensor, Tensor]:
    """Along one axis of `side` px: the first of `pixels` that matter to windows around `centre`
    `(N,)` px, and `(N, size, pixels)` what they weigh in each receptive field.
    """
    fields = torch.arange(size, device=centre.device) - (size - 1) / 2
    means = centre[:, None] - 0.5 + fields * stride[:, None]  # centres of pixels are integers
    if pixels == side:
        first = torch.zeros_like(centre, dtype=torch.long)
    else:
        first = (centre.detach().nan_to_num(0, 0, 0) - pixels / 2).round().long()
    pixel = first[:, None] + torch.arange(pixels, device=centre.device)
    distance = (pixel[:, None] - means[:, :, None]) / _sigma(stride)[:, None, None]
    # Not below exp(-40): subnormal numbers are slow.
    weights = (-0.5 * distance.square()).clamp(min=-40).exp()
    weights = weights * ((pixel >= 0) & (pixel < side))[:, None]
    return first, weights / (weights.sum(2, keepdim=True) + _FAINT)
