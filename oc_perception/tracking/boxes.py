# SPDX-License-Identifier: Apache-2.0
"""Boxes `(..., 4)` as `(cx, cy, w, h)`, and how much of them is shared; functions broadcast."""

from __future__ import annotations

import numpy as np

EMPTY = np.finfo(float).eps
"""Boxes of a smaller area are empty."""


def corners(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high corner, `(..., 2)` each."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return centre - half, centre + half


def shared_area(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Area `(...)` of the intersection."""
    low, high = corners(first)
    other_low, other_high = corners(second)
    return (np.minimum(high, other_high) - np.maximum(low, other_low)).clip(0).prod(-1)


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union `(...)`, 0 where a box is empty."""
    areas = [np.subtract(*corners(boxes)[::-1]).prod(-1) for boxes in (first, second)]
    solid = (areas[0] > EMPTY) & (areas[1] > EMPTY)
    shared = shared_area(first, second)
    return np.where(solid, shared, 0.0) / np.where(solid, areas[0] + areas[1] - shared, 1.0)
