# SPDX-License-Identifier: Apache-2.0
"""Handwriting without a data set: digits of pen strokes, each with its own slant, size, width of
the pen and unsteady hand.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SIDE_PX = 28

_HEIGHT_PX, _WIDTH_PX = 20.0, 13.0  # of the ink's middle line, at a scale of 1
_SCALE, _SLANT = (0.8, 1.1), math.radians(20)
_PEN_PX = (2.0, 3.5)
_JITTER = 0.04  # of the height, at every control point
_BENDS = 4  # straight pieces between two points of a curve
_AT_ONCE = 8  # digits, so that their distances stay in a cache

# Control points `x y` with x right and y down, both from 0 to 1. Strokes are drawn as curves
# through their points, or straight from point to point where they begin with a minus.
_STROKES = (
    ("0.5 0, 0.12 0.2, 0.02 0.5, 0.15 0.82, 0.5 1, 0.85 0.82, 0.98 0.5, 0.88 0.2, 0.5 0",),
    ("-0.25 0.22, 0.55 0, 0.55 1",),
    ("0.05 0.25, 0.3 0.03, 0.75 0.05, 0.9 0.3, 0.6 0.6, 0.03 0.97", "-0.03 0.97, 1 0.97"),
    ("0.08 0.12, 0.45 0, 0.85 0.18, 0.75 0.4, 0.4 0.48, 0.85 0.6, 0.92 0.83, 0.5 1, 0.05 0.88",),
    ("-0.65 0, 0 0.65, 1 0.65", "-0.72 0.3, 0.72 1"),
    ("-0.9 0, 0.2 0, 0.13 0.45", "0.13 0.45, 0.5 0.36, 0.9 0.55, 0.88 0.83, 0.5 1, 0.05 0.9"),
    ("0.75 0, 0.3 0.25, 0.05 0.65, 0.3 0.98, 0.8 0.93, 0.92 0.65, 0.6 0.48, 0.12 0.66",),
    ("-0 0, 1 0, 0.35 1",),
    ("0.85 0.12, 0.5 0, 0.15 0.15, 0.3 0.4, 0.75 0.6, 0.85 0.85, 0.5 1, 0.12 0.85, 0.22 0.6,"
     "0.68 0.4, 0.85 0.12",),
    ("0.88 0.3, 0.6 0.02, 0.15 0.12, 0.1 0.42, 0.5 0.52, 0.88 0.3, 0.85 0.65, 0.6 1",),
)  # fmt: skip


def draw_digits(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures `(M, 28, 28)` uint8 of the digits `labels` `(M,)`, ink bright, drawn with
    `generator` on its device.
    """
    controls, starts, ends = (part.to(labels.device) for part in _pens())
    parts = [_draw(part, controls, starts, ends, generator) for part in labels.split(_AT_ONCE)]
    return torch.cat(parts) if parts else labels.new_zeros(0, SIDE_PX, SIDE_PX, dtype=torch.uint8)


def _draw(
    labels: Tensor, controls: Tensor, starts: Tensor, ends: Tensor, generator: torch.Generator
) -> Tensor:
    count, device = len(labels), labels.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator, device=device)

    scale, slant, pen = uniform(*_SCALE), uniform(-_SLANT, _SLANT), uniform(*_PEN_PX)
    jitter = torch.randn(count, *controls.shape[1:], generator=generator, device=device)
    points = (controls[labels] + jitter * (_JITTER * _HEIGHT_PX)) * scale.unsqueeze(-1)
    x = points[..., 0] - slant.tan() * points[..., 1]
    points = torch.stack([x, points[..., 1]], -1) + SIDE_PX / 2
    first, last = starts[labels] @ points, ends[labels] @ points  # (M, S, 2)
    return (_ink(first, last, pen.unsqueeze(-1)) * 255).round().byte()


def _ink(first: Tensor, last: Tensor, pen: Tensor) -> Tensor:
    """How much of each pixel `(M, 28, 28)` a round `pen` of this width covers that was led along
    the pieces from `first` to `last` `(M, S, 2)`.
    """
    pixel = torch.arange(SIDE_PX, device=first.device) + 0.5
    place = torch.stack(torch.meshgrid(pixel, pixel, indexing="xy"), -1).view(-1, 2)
    way = last - first
    length = way.square().sum(-1).clamp(min=1e-9)
    # Distances to a piece from products of its ends and the pixels alone: no (M, S, P, 2).
    offset = (first * way).sum(-1, keepdim=True)
    along = ((way @ place.T - offset) / length.unsqueeze(-1)).clamp_(0, 1)
    x = place[:, 0] - first[..., :1] - along * way[..., :1]
    y = place[:, 1] - first[..., 1:] - along * way[..., 1:]
    distance = x.square_().add_(y.square_()).amin(1).sqrt_()
    return (pen.squeeze(-1) / 2 + 0.5 - distance).clamp(0, 1).unflatten(1, (SIDE_PX, SIDE_PX))


def _pens() -> tuple[Tensor, Tensor, Tensor]:
    """Control points `(10, C, 2)` in px around the digit's middle, and the weights `(10, S, C)`
    with which they make the starts and the ends of straight pieces.
    """
    digits = [_pieces(strokes) for strokes in _STROKES]
    most_points = max(len(points) for points, _, _ in digits)
    most_pieces = max(len(starts) for _, starts, _ in digits)
    controls = np.zeros((10, most_points, 2), np.float32)
    starts = np.zeros((10, most_pieces, most_points), np.float32)
    ends = np.zeros_like(starts)
    for digit, (points, first, last) in enumerate(digits):
        controls[digit, : len(points)] = (points - 0.5) * (_WIDTH_PX, _HEIGHT_PX)
        rows = np.minimum(np.arange(most_pieces), len(first) - 1)  # the last one again
        starts[digit, :, : len(points)] = first[rows]
        ends[digit, :, : len(points)] = last[rows]
    return tuple(torch.from_numpy(part) for part in (controls, starts, ends))


def _pieces(strokes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Control points `(C, 2)` of one digit, and weights `(S, C)` of its pieces' ends."""
    texts = [stroke.removeprefix("-").split(",") for stroke in strokes]
    points = [np.array([point.split() for point in text], np.float64) for text in texts]
    names, number = np.unique(np.concatenate(points), axis=0, return_inverse=True)
    number = np.split(number.ravel(), np.cumsum([len(part) for part in points])[:-1])
    starts, ends = [], []
    for stroke, rows in zip(strokes, number, strict=True):
        own = np.eye(len(names))[rows]
        path = own if stroke.startswith("-") else _curve(own)
        starts.append(path[:-1])
        ends.append(path[1:])
    return names, np.concatenate(starts), np.concatenate(ends)


def _curve(weights: np.ndarray) -> np.ndarray:
    """Weights of points on the curve of Catmull and Rom (1974) through points with `weights`."""
    padded = np.concatenate([2 * weights[:1] - weights[1:2], weights,
                             2 * weights[-1:] - weights[-2:-1]])  # fmt: skip
    before, start, end, after = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    time = (np.arange(_BENDS) / _BENDS)[:, None, None]
    path = start + time / 2 * (
        end - before
        + time * (2 * before - 5 * start + 4 * end - after)
        + time**2 * (3 * start - before - 3 * end + after)
    )  # fmt: skip
    return np.concatenate([path.transpose(1, 0, 2).reshape(-1, weights.shape[1]), weights[-1:]])
