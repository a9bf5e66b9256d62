# SPDX-License-Identifier: Apache-2.0
"""Discovers objects in camera images: `image` in, `~/segmentation` and `~/label_image` out.

While no image comes, segmentations with sensor_state STALE go out at the camera's rate, so that
tracking knows that it is blind; images that are black, frozen or malformed are answered under
their own stamp.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from oc_perception import msg as messages
from oc_perception.images import MalformedImage
from oc_perception.models.registry import load_model
from oc_perception.nodes import qos
from oc_perception.nodes.conversions import (
    to_frame,
    to_header,
    to_image_message,
    to_nanoseconds,
    to_segmentation_message,
)
from oc_perception.nodes.depth import DepthInput
from oc_perception.nodes.node import PerceptionNode, run
from oc_perception.nodes.parameter_tables import DISCOVERY, sensor_config
from oc_perception.nodes.timing import NANOSECONDS, StampGate, StampVerdict, Watchdog
from oc_perception.pipeline import Discovery
from oc_perception.types import Segmentation, SensorState

GAP_S = 1.0
CHECK = "check the camera driver and its link"


class Arrival(NamedTuple):
    """A message whose stamp was accepted, and when (steady time) it came."""

    message: Image | CompressedImage
    stamp_ns: int
    time_s: float


class DiscoveryNode(PerceptionNode):
    """Runs `Discovery.step` on the newest image, and on those that come soon after a newer one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("discovery_node", DISCOVERY, **kwargs)
        self._model = None

    # ---- life cycle

    def configure(self) -> None:
        """Load the weights. Raises ModelError when they are missing or damaged."""
        if self.value("threads"):
            torch.set_num_threads(self.value("threads"))
        device = self.value("device")
        self._model = load_model(self.value("model"), device)
        self._device = device
        self._take_time_limits()
        # The first step of a network is slow: take it now, not on the first image.
        height, width = self._model.frame_size
        warm_up = self._make_discovery()
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        warm_up.step(warm_up.initial_state(), noise, 1)
        self._segmentation = self.output(messages.ObjectSegmentation, "~/segmentation")
        self._label_image = self.output(Image, "~/label_image")
        if self.value("image_transport") == "compressed":
            self.input(CompressedImage, "image/compressed", self._receive, qos.image())
        else:
            self.input(Image, "image", self._receive, qos.image())
        self._depth = DepthInput(self.diagnostics, self.value("depth_tolerance_s"))
        if self.value("use_depth"):
            self.input(Image, "depth", self._depth.receive_depth, qos.image())
            self.input(CameraInfo, "camera_info", self._depth.receive_info, qos.image())
        self.diagnostics.value("model", self.value("model"))
        self.diagnostics.value("device", device)

    def activate(self) -> None:
        """Forget the past."""
        self._take_time_limits()
        self._discovery = self._make_discovery()
        self._state = self._discovery.initial_state()
        self._gate = StampGate(
            self._clock_reset_threshold_s,
            self.value("future_tolerance_s"),
            self._reorder_window_s,
        )
        self._watchdog = Watchdog(self.value("watchdog_periods"), self._clock_reset_threshold_s)
        self._frame_id = ""
        self._format: tuple[int, int, str] | None = None

    def release(self) -> None:
        """Let go of the weights."""
        self._model = None

    def parameters_changed(self) -> None:
        """Sensor thresholds apply at once; what `configure` loads waits for the next one."""
        if self._worker is not None:
            self._discovery = self._make_discovery()

    def _take_time_limits(self) -> None:
        """Gate and discovery must agree on them, so they stay until the next activation."""
        self._clock_reset_threshold_s = self.value("clock_reset_threshold_s")
        self._reorder_window_s = self.value("reorder_window_s")

    def _make_discovery(self) -> Discovery:
        return Discovery(
            self._model,
            sensor_config(self.values),
            self._device,
            min_area_fraction=self.value("min_area_fraction"),
            clock_reset_threshold_s=self._clock_reset_threshold_s,
            reorder_window_s=self._reorder_window_s,
        )

    def check_values(self, values: dict[str, Any]) -> None:
        """Raises ValueError."""
        sensor_config(values)

    # ---- the executor's thread

    def _receive(self, message: Image | CompressedImage) -> None:
        self.diagnostics.arrived()
        stamp_ns = to_nanoseconds(message.header.stamp)
        verdict = self._gate.judge(stamp_ns, self.get_clock().now().nanoseconds)
        if verdict is not StampVerdict.OK:
            self.diagnostics.event(verdict.value, _STAMP_TROUBLE[verdict])
        if verdict.usable:
            arrival = Arrival(message, stamp_ns, time.monotonic())
            self.submit(arrival, late=verdict is StampVerdict.REORDERED)

    # ---- the worker's thread

    def deadline(self) -> float | None:
        """When the next image counts as missing."""
        return self._watchdog.deadline_s

    def overdue(self) -> None:
        """Say that the sensor is silent."""
        if self._watchdog.silence_s > self.value("stale_limit_s"):
            self._watchdog.rest()
            return
        stamp_ns = self._watchdog.expire()
        self._state, segmentation = self._discovery.step(self._state, None, stamp_ns)
        self._publish(segmentation)

    def process(self, arrival: Arrival) -> None:
        """Discover objects in one image."""
        gap_s = self._watchdog.observe(arrival.stamp_ns, arrival.time_s)
        if gap_s > GAP_S:
            self.diagnostics.event("gaps", f"There were {gap_s:.1f} s without an image: {CHECK}.")
        self._frame_id = arrival.message.header.frame_id
        try:
            frame = to_frame(arrival.message)
        except MalformedImage as error:
            self.diagnostics.event("malformed", str(error))
            self._state, segmentation = self._discovery.step(self._state, None, arrival.stamp_ns)
            segmentation = dataclasses.replace(segmentation, sensor_state=SensorState.CORRUPT)
        else:
            self._notice_format(frame.shape, arrival.message)
            depth, camera_matrix = self._depth.nearest(arrival.stamp_ns, frame.shape[:2])
            self._state, segmentation = self._discovery.step(
                self._state, frame, arrival.stamp_ns, depth, camera_matrix
            )
        self._publish(segmentation)
        latency_s = (self.get_clock().now().nanoseconds - arrival.stamp_ns) / NANOSECONDS
        self.diagnostics.published(latency_s)

    def _notice_format(self, shape: tuple[int, ...], message: Image | CompressedImage) -> None:
        compressed = isinstance(message, CompressedImage)
        new = (shape[1], shape[0], message.format if compressed else message.encoding)
        if self._format not in (None, new):
            old_text, new_text = ("{}x{} {}".format(*f) for f in (self._format, new))
            self.diagnostics.event(
                "format_changes",
                f"Images changed from {old_text} to {new_text}: check for two publishers.",
            )
        self._format = new

    def _publish(self, segmentation: Segmentation) -> None:
        header = to_header(segmentation.stamp_ns, self._frame_id)
        message = to_segmentation_message(segmentation, header, self.value("publish_embeddings"))
        self._segmentation.publish(message)
        if segmentation.label_image is not None and self._label_image.get_subscription_count():
            self._label_image.publish(to_image_message(segmentation.label_image, header))
        self.diagnostics.sensor(segmentation.sensor_state)


_STAMP_TROUBLE = {
    StampVerdict.ZERO: "An image without a stamp was refused: set header.stamp in the driver.",
    StampVerdict.DUPLICATE: (
        "An image with the stamp of the one before was refused: check for two publishers."
    ),
    StampVerdict.REORDERED: (
        "An image came after a newer one, and was put in its place: check the driver and its link."
    ),
    StampVerdict.LATE: (
        "An image older than the one before was refused: check for two publishers, or raise "
        "reorder_window_s."
    ),
    StampVerdict.FUTURE: (
        "An image stamped in the future was refused: synchronise the clocks of the machines, set "
        "use_sim_time for a recording, or raise future_tolerance_s."
    ),
    StampVerdict.RESET: "The stamps jumped back (clock reset): tracking starts a new session.",
}


def main() -> int:
    """Entry point."""
    return run(DiscoveryNode)


if __name__ == "__main__":
    sys.exit(main())
