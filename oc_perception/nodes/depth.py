# SPDX-License-Identifier: Apache-2.0
"""The depth image and camera matrix that belong to a colour image."""

from __future__ import annotations

from collections import deque

import numpy as np
from sensor_msgs.msg import CameraInfo, Image

from oc_perception.images import MalformedImage
from oc_perception.nodes.conversions import to_depth, to_nanoseconds
from oc_perception.nodes.diagnostics import Diagnostics
from oc_perception.nodes.timing import NANOSECONDS


class DepthInput:
    """Keeps the newest depth images and the camera matrix; matches them by stamp."""

    def __init__(self, diagnostics: Diagnostics, tolerance_s: float) -> None:
        self._diagnostics = diagnostics
        self._tolerance_ns = round(tolerance_s * NANOSECONDS)
        self._images: deque[tuple[int, Image]] = deque(maxlen=5)
        self._info: CameraInfo | None = None

    def receive_depth(self, message: Image) -> None:
        """Keep a depth image."""
        self._images.append((to_nanoseconds(message.header.stamp), message))

    def receive_info(self, message: CameraInfo) -> None:
        """Keep the camera matrix, if it is one."""
        matrix = np.array(message.k).reshape(3, 3)
        if np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0:
            self._info = message
            return
        self._info = None
        self._refuse("camera_info has no usable matrix k: calibrate the camera (fx, fy > 0).")

    def nearest(
        self, stamp_ns: int, size: tuple[int, int]
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Depth `(H, W)` m and camera matrix `(3, 3)` for an image of that size, or two None."""
        info = self._info
        if info is None or not self._images:
            return None, None
        depth_ns, message = min(self._images.copy(), key=lambda item: abs(item[0] - stamp_ns))
        if abs(depth_ns - stamp_ns) > self._tolerance_ns:
            return None, None
        if (info.height, info.width) != size:
            self._refuse(
                f"camera_info is for {info.width}x{info.height}, the image has "
                f"{size[1]}x{size[0]}: publish the camera_info of this image."
            )
            return None, None
        try:
            depth = to_depth(message)
        except MalformedImage as error:
            self._refuse(str(error))
            return None, None
        if depth.shape != size:
            self._refuse(
                f"The depth image has {depth.shape[1]}x{depth.shape[0]} pixels, the image "
                f"{size[1]}x{size[0]}: register depth to colour."
            )
            return None, None
        if np.isnan(depth).all():
            self._refuse("The depth image holds no valid distance: check range and exposure.")
            return None, None
        return depth, np.array(info.k).reshape(3, 3)

    def _refuse(self, message: str) -> None:
        self._diagnostics.event("malformed_depth", message)
