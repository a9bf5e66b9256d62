# SPDX-License-Identifier: Apache-2.0
"""What perception believes: `~/image` (annotated), `~/markers`, each only for those who listen.

Where vision_msgs is installed, `~/detections` carries the tracks as vision_msgs/Detection2DArray.
"""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from visualization_msgs.msg import MarkerArray

from oc_perception import msg as messages
from oc_perception.evaluation.draw import annotate, dimmed
from oc_perception.images import MalformedImage
from oc_perception.nodes import qos
from oc_perception.nodes.conversions import (
    from_segmentation_message,
    from_track_messages,
    to_frame,
    to_image_message,
    to_nanoseconds,
)
from oc_perception.nodes.markers import Scene, to_markers
from oc_perception.nodes.node import PerceptionNode, run
from oc_perception.nodes.parameter_tables import VISUALIZATION
from oc_perception.types import Segmentation, SensorState, TrackOutput

try:
    from vision_msgs.msg import Detection2DArray
except ImportError:  # not on PyPI; part of an installed ROS
    Detection2DArray = None

_KEPT = 32  # messages of each kind that wait for their counterparts: a second of a slow model


class Arrival(NamedTuple):
    """What belongs together: all of one stamp."""

    tracks: messages.TrackArray
    trajectories: messages.PredictedTrajectoryArray
    segmentation: messages.ObjectSegmentation | None
    image: Image | CompressedImage | None


class VisualizationNode(PerceptionNode):
    """Draws the newest tracks on the image they belong to."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("visualization_node", VISUALIZATION, **kwargs)

    # ---- life cycle

    def configure(self) -> None:
        """Create publishers and subscriptions."""
        self._image = self.output(Image, "~/image")
        self._markers = self.output(MarkerArray, "~/markers")
        self._detections = Detection2DArray and self.output(Detection2DArray, "~/detections")
        self.input(messages.TrackArray, "tracks", self._receive, qos.result())
        self.input(messages.PredictedTrajectoryArray, "trajectories", self._receive, qos.result())
        self.input(messages.ObjectSegmentation, "segmentation", self._keep, qos.result())
        self.input(CameraInfo, "camera_info", self._receive_info, qos.image())
        if self.value("image_transport") == "compressed":
            self.input(CompressedImage, "image/compressed", self._keep_image, qos.image())
        else:
            self.input(Image, "image", self._keep_image, qos.image())

    def activate(self) -> None:
        """Forget the past."""
        self._kept: dict[type, dict[int, Any]] = {}
        self._scene = Scene(self.value("pixel_size_m"))
        self._last_frame: np.ndarray | None = None
        self._next_image_s = 0.0

    def parameters_changed(self) -> None:
        """A new size of the marker plane applies at once."""
        if self._worker is not None:
            self._scene.pixel_size_m = self.value("pixel_size_m")

    # ---- the executor's thread

    def _keep(self, message: Any) -> None:
        kept = self._kept.setdefault(type(message), {})
        kept[to_nanoseconds(message.header.stamp)] = message
        while len(kept) > _KEPT:
            del kept[next(iter(kept))]

    def _keep_image(self, message: Image | CompressedImage) -> None:
        if self._image.get_subscription_count():
            self._keep(message)

    def _receive_info(self, message: CameraInfo) -> None:
        matrix = np.array(message.k).reshape(3, 3)
        usable = np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0
        self._scene.camera_matrix = matrix if usable else None

    def _receive(self, message: messages.TrackArray | messages.PredictedTrajectoryArray) -> None:
        """Tracks and their trajectories come in any order; the second calls for drawing."""
        self.diagnostics.arrived()
        self._keep(message)
        stamp_ns = to_nanoseconds(message.header.stamp)
        tracks = self._find(messages.TrackArray, stamp_ns)
        trajectories = self._find(messages.PredictedTrajectoryArray, stamp_ns)
        if tracks is not None and trajectories is not None:
            image = self._find(Image, stamp_ns) or self._find(CompressedImage, stamp_ns)
            segmentation = self._find(messages.ObjectSegmentation, stamp_ns)
            self.submit(Arrival(tracks, trajectories, segmentation, image))

    def _find(self, kind: type, stamp_ns: int) -> Any:
        return self._kept.get(kind, {}).get(stamp_ns)

    # ---- the worker's thread

    def process(self, arrival: Arrival) -> None:
        """Draw one step for those who look."""
        tracks = from_track_messages(arrival.tracks, arrival.trajectories)
        message = arrival.segmentation
        segmentation = from_segmentation_message(message) if message is not None else None
        self._scene.learn(tracks, segmentation)
        header = arrival.tracks.header
        if self._markers.get_subscription_count():
            self._markers.publish(
                to_markers(
                    tracks,
                    self._scene,
                    header,
                    self.value("covariance_sigmas"),
                    self.value("marker_lifetime_s"),
                )
            )
        if self._detections and self._detections.get_subscription_count():
            self._detections.publish(_to_detections(arrival.tracks))
        if self._image.get_subscription_count():
            picture = self._draw(arrival.image, tracks, segmentation)
            if picture is not None:
                self._image.publish(to_image_message(picture, header))
        self.diagnostics.published()

    def _draw(
        self,
        image: Image | CompressedImage | None,
        tracks: TrackOutput,
        segmentation: Segmentation | None,
    ) -> np.ndarray | None:
        now_s = time.monotonic()
        if now_s < self._next_image_s:
            return None
        self._next_image_s = max(now_s, self._next_image_s + 1 / self.value("max_image_rate_hz"))
        frame = None
        if image is not None and tracks.sensor_state == SensorState.OK:
            try:
                frame = self._last_frame = to_frame(image)
            except MalformedImage as error:
                self.diagnostics.event("malformed", str(error))
        if frame is None:
            if self._last_frame is None:
                return None
            frame = dimmed(self._last_frame)
        labels = segmentation.label_image if segmentation and self.value("show_labels") else None
        return annotate(frame, tracks, labels)


def _to_detections(tracks: messages.TrackArray) -> Any:
    from vision_msgs.msg import Detection2D, ObjectHypothesisWithPose

    detections = []
    for track in tracks.tracks:
        if track.state == messages.Track.LOST:
            continue
        detection = Detection2D(header=tracks.header, id=str(track.id))
        cx, cy, width, height = (float(value) for value in track.box)
        detection.bbox.center.position.x, detection.bbox.center.position.y = cx, cy
        detection.bbox.size_x, detection.bbox.size_y = width, height
        hypothesis = ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = "object"
        hypothesis.hypothesis.score = track.existence_probability
        detection.results.append(hypothesis)
        detections.append(detection)
    return Detection2DArray(header=tracks.header, detections=detections)


def main() -> int:
    """Entry point."""
    return run(VisualizationNode)


if __name__ == "__main__":
    sys.exit(main())
