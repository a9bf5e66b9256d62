# SPDX-License-Identifier: Apache-2.0
"""The image that a segmentation was made of."""

from __future__ import annotations

import threading
import time

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from oc_perception.images import MalformedImage
from oc_perception.nodes.conversions import to_frame, to_nanoseconds
from oc_perception.nodes.diagnostics import Diagnostics

_KEPT = 32  # a second of a camera: as long as segmentations may wait for the worker


class FrameInput:
    """Keeps the newest images; finds them by stamp, and waits a while for one that is due."""

    def __init__(self, diagnostics: Diagnostics, wait_s: float) -> None:
        self._diagnostics = diagnostics
        self._wait_s = wait_s
        self._images: dict[int, Image | CompressedImage] = {}
        self._changed = threading.Condition()
        diagnostics.count("without_image", 0)

    def receive(self, message: Image | CompressedImage) -> None:
        """Keep an image (from its subscription's callback)."""
        with self._changed:
            self._images[to_nanoseconds(message.header.stamp)] = message
            while len(self._images) > _KEPT:
                del self._images[next(iter(self._images))]
            self._changed.notify()

    def find(self, stamp_ns: int, arrival_s: float) -> np.ndarray | None:
        """The image `(H, W, 3)` of that stamp, or None if it has not come some time after
        `arrival_s` (steady time), when its segmentation came; on the worker's thread.
        """
        with self._changed:
            remaining_s = arrival_s + self._wait_s - time.monotonic()
            self._changed.wait_for(lambda: stamp_ns in self._images, max(0.0, remaining_s))
            message = self._images.get(stamp_ns)
        if message is None:
            self._diagnostics.event(
                "without_image",
                "A segmentation came without its image, and its tracks follow what was discovered "
                "only: remap image to the images that discovery sees, or raise image_wait_s.",
            )
            return None
        try:
            return to_frame(message)
        except MalformedImage as error:
            self._diagnostics.event("malformed", str(error))
            return None
