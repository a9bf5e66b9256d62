# SPDX-License-Identifier: Apache-2.0
"""Boxes `(..., 4)`: centre x and y, width and height, all in image widths."""

from __future__ import annotations

import torch
from torch import Tensor


def area(boxes: Tensor) -> Tensor:
    """`(...)`, in squared image widths."""
    return boxes[..., 2] * boxes[..., 3]


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """The area `(...)` that two boxes share."""
    half_first, half_second = first[..., 2:] / 2, second[..., 2:] / 2
    high = torch.minimum(first[..., :2] + half_first, second[..., :2] + half_second)
    low = torch.maximum(first[..., :2] - half_first, second[..., :2] - half_second)
    return (high - low).clamp(min=0).prod(-1)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union `(...)`."""
    shared = intersection(first, second)
    return shared / (area(first) + area(second) - shared).clamp(min=1e-12)


def mismatch(boxes: Tensor, targets: Tensor) -> Tensor:
    """-log IoU `(...)`, and a little of the distance of the centres in box sizes, which still
    pulls where boxes are disjoint.
    """
    distance = (boxes[..., :2] - targets[..., :2]).abs().div(targets[..., 2:]).sum(-1)
    return 0.3 * distance - iou(boxes, targets).clamp(min=0.01).log()


def change(boxes: Tensor, targets: Tensor) -> Tensor:
    """From `boxes` to `targets` `(..., 4)`: of centres in box sizes, and of the sizes' logs."""
    offset = (targets[..., :2] - boxes[..., :2]) / boxes[..., 2:]
    return torch.cat([offset, (targets[..., 2:] / boxes[..., 2:]).log()], -1)


def corrected(boxes: Tensor, change: Tensor) -> Tensor:
    """`boxes` moved by `change` `(..., 4)`: of centres in box sizes, and of the sizes' logs. Sizes
    change by a factor of e at most, with a gradient everywhere: behind a hard limit it is lost.
    """
    sizes = boxes[..., 2:]
    centres = boxes[..., :2] + change[..., :2] * sizes
    return torch.cat([centres, sizes * change[..., 2:].tanh().exp()], -1)
