# SPDX-License-Identifier: Apache-2.0
"""One frame of a recording, with everything that was recorded, or is known, about its time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oc_perception.images import MalformedImage
from oc_perception.types import Segmentation


class BagError(ValueError):
    """A bag, or a topic in it, that cannot be read; the message names the cause and the cure."""


@dataclass(frozen=True)
class TrueBoxes:
    """The boxes of the objects in one frame: `ids` `(N,)` int64, `boxes` `(N, 4)` float64, each
    `(cx, cy, w, h)` in px with pixel centres at integers.
    """

    ids: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Frame:
    """One recorded image and what was recorded with it.

    `index` counts the images of the topic in recorded order, from 0. `image` is `(H, W, 3)` uint8
    RGB, or the error of an image that cannot be decoded. `depth_m` `(H, W)` float32 is NaN where
    nothing was measured, `camera_matrix` `(3, 3)`; `truth` is the ground-truth segmentation, and
    `boxes` the true boxes, None where nothing is known about this frame.
    """

    index: int
    stamp_ns: int
    image: np.ndarray | MalformedImage
    depth_m: np.ndarray | None = None
    camera_matrix: np.ndarray | None = None
    truth: Segmentation | None = None
    boxes: TrueBoxes | None = None
