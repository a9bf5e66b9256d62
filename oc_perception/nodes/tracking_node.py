# SPDX-License-Identifier: Apache-2.0
"""Follows objects through time: `segmentation` in, `~/tracks` and `~/trajectories` out.

Without an observation (the segmentation says so, or nothing comes at all) tracks are predicted and
published at the camera's rate until all are lost. With `tracker: mohart` or `sqair` it also looks
at `image`.
"""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any, NamedTuple

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from oc_perception import msg as messages
from oc_perception.nodes import qos
from oc_perception.nodes.conversions import (
    from_segmentation_message,
    to_nanoseconds,
    to_track_array,
    to_trajectory_array,
)
from oc_perception.nodes.frames import FrameInput
from oc_perception.nodes.node import PerceptionNode, run
from oc_perception.nodes.parameter_tables import TRACKING, tracker_config
from oc_perception.nodes.timing import NANOSECONDS, Watchdog
from oc_perception.tracking.reordering import ReorderingTracker
from oc_perception.tracking.stamps import DuplicateStampError, StampError
from oc_perception.tracking.tracker import create_tracker
from oc_perception.types import Segmentation, SensorState, TrackOutput


class Arrival(NamedTuple):
    """A segmentation, and when (steady time) it came."""

    message: messages.ObjectSegmentation
    time_s: float


class TrackingNode(PerceptionNode):
    """Tracks the objects of every segmentation, in the order of their stamps."""

    capacity = 30  # a second of a camera: skipping an observation costs more than catching up

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("tracking_node", TRACKING, **kwargs)

    # ---- life cycle

    def configure(self) -> None:
        """Load what is learned; create publishers and subscriptions. Raises ValueError where
        weights are missing or damaged.
        """
        config = tracker_config(self.values)
        self._loaded = create_tracker(config)
        learned = self._loaded.needs_frame or config.motion_model == "relational"
        if learned and self.value("threads"):
            import torch  # which takes a while, and nothing else here needs

            torch.set_num_threads(self.value("threads"))
        self._tracks = self.output(messages.TrackArray, "~/tracks")
        self._trajectories = self.output(messages.PredictedTrajectoryArray, "~/trajectories")
        self.input(messages.ObjectSegmentation, "segmentation", self._receive, qos.result())
        self._frames: FrameInput | None = None
        if self._loaded.needs_frame:
            self._frames = FrameInput(self.diagnostics, self.value("image_wait_s"))
            if self.value("image_transport") == "compressed":
                compressed = "image/compressed"
                self.input(CompressedImage, compressed, self._frames.receive, qos.image())
            else:
                self.input(Image, "image", self._frames.receive, qos.image())

    def activate(self) -> None:
        """Start a new session."""
        self._tracker = self._make_tracker()
        self._state = self._tracker.initial_state(uuid.uuid4().bytes)
        self._watchdog = Watchdog(
            self.value("watchdog_periods"), self.value("clock_reset_threshold_s")
        )
        self._frame_id = ""
        self._output: TrackOutput | None = None

    def parameters_changed(self) -> None:
        """A new configuration takes over the tracks there are."""
        if self._worker is not None:
            self._tracker = self._make_tracker()

    def _make_tracker(self) -> ReorderingTracker:
        """The tracker of the parameters now, with what `configure` loaded."""
        return ReorderingTracker(self._loaded.with_config(tracker_config(self.values)))

    def check_values(self, values: dict[str, Any]) -> None:
        """Raises ValueError."""
        tracker_config(values)

    # ---- the executor's thread

    def _receive(self, message: messages.ObjectSegmentation) -> None:
        self.diagnostics.arrived()
        self.submit(Arrival(message, time.monotonic()))

    # ---- the worker's thread

    def deadline(self) -> float | None:
        """When the next segmentation counts as missing."""
        return self._watchdog.deadline_s

    def overdue(self) -> None:
        """Discovery is silent: go on predicting while there is something to predict."""
        if self._output is None or not self._output.tracks:
            self._watchdog.rest()
            return
        self._step(None, self._watchdog.expire())

    def process(self, arrival: Arrival) -> None:
        """Track one segmentation."""
        stamp_ns = to_nanoseconds(arrival.message.header.stamp)
        try:
            segmentation = from_segmentation_message(arrival.message)
        except ValueError as error:
            self.diagnostics.event("malformed", str(error))
            return
        self._watchdog.observe(stamp_ns, arrival.time_s)
        self._frame_id = arrival.message.header.frame_id
        observed = segmentation.sensor_state == SensorState.OK
        looks = observed and self._frames is not None
        frame = self._frames.find(stamp_ns, arrival.time_s) if looks else None
        self._step(segmentation, stamp_ns, frame)

    def _step(
        self, segmentation: Segmentation | None, stamp_ns: int, frame: np.ndarray | None = None
    ) -> None:
        try:
            self._state, self._output = self._tracker.step(
                self._state, segmentation, stamp_ns, frame
            )
        except DuplicateStampError as error:
            self.diagnostics.event("duplicate", str(error))
            return
        except StampError as error:
            self.diagnostics.event("late", str(error))
            return
        self._tracks.publish(to_track_array(self._output, self._frame_id))
        self._trajectories.publish(to_trajectory_array(self._output, self._frame_id))
        self.diagnostics.sensor(self._output.sensor_state)
        self.diagnostics.value("tracks", len(self._output.tracks))
        observed = segmentation is not None and segmentation.sensor_state == SensorState.OK
        if observed and stamp_ns < self._output.stamp_ns:
            self.diagnostics.count("reordered")
        latency_s = (self.get_clock().now().nanoseconds - stamp_ns) / NANOSECONDS
        self.diagnostics.published(latency_s if observed else None)


def main() -> int:
    """Entry point."""
    return run(TrackingNode)


if __name__ == "__main__":
    sys.exit(main())
