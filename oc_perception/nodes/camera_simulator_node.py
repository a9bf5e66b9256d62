# SPDX-License-Identifier: Apache-2.0
"""camera_simulator_node: a camera over the tabletop world, with blackouts and ground truth.

Publishes `~/image`, `~/camera_info`, `~/depth` (on request) at a fixed rate with stamps exactly on
schedule, and for every period, blind or not, `~/ground_truth/segmentation` and
`~/ground_truth/tracks`, whose `sensor_state` says what the camera did.
"""

from __future__ import annotations

import dataclasses
import queue
import sys
import threading
import time
from typing import Any

import cv2
import numpy as np
import torch
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from oc_perception import msg as messages
from oc_perception.nodes import qos
from oc_perception.nodes.conversions import (
    to_header,
    to_image_message,
    to_segmentation_message,
    to_track_array,
)
from oc_perception.nodes.parameter_tables import CAMERA_SIMULATOR
from oc_perception.nodes.source import SourceNode, run
from oc_perception.types import Detection, Segmentation, SensorState, TrackOutput
from oc_perception.worlds.camera import CameraConfig, SimulatedCamera, View

_SESSION = bytes(16)  # identities of the world are unique for the life of the node
_HOPELESS_S = 1.0  # a schedule that is further behind is given up
_POLL_S = 0.1


class CameraSimulatorNode(SourceNode):
    """One thread draws ahead, one publishes on schedule."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("camera_simulator_node", CAMERA_SIMULATOR, **kwargs)
        names = [field.name for field in dataclasses.fields(CameraConfig)]
        self.camera = SimulatedCamera(CameraConfig(**{name: self.values[name] for name in names}))
        self._image = self._output(Image, "~/image")
        self._camera_info = self._output(CameraInfo, "~/camera_info")
        self._depth = self._output(Image, "~/depth") if self.values["publish_depth"] else None
        self._true_labels = self._output(
            messages.ObjectSegmentation, "~/ground_truth/segmentation"
        )
        self._true_tracks = self._output(messages.TrackArray, "~/ground_truth/tracks")
        self._info = self._make_camera_info()
        self.ticks = self.frames_published = 0
        self._seen_ns = 0
        self._drawing_error: Exception | None = None

    def produce(self) -> None:
        """Draw ahead, wait for listeners, then publish frame by frame."""
        rate_hz = self.values["rate_hz"]
        total = round(self.values["duration_s"] * rate_hz) or sys.maxsize
        room = min(total, max(2, round(self.values["render_ahead_s"] * rate_hz)))
        views: queue.Queue[View] = queue.Queue(room)
        self.summarize("drawing")
        artist = threading.Thread(target=self._draw, args=(views, total), daemon=True)
        artist.start()
        while not (views.full() or self._drawing_error):
            if not self.sleep_until(time.monotonic() + 0.02):
                break
        self.summarize("ready")
        self.wait_for_subscribers([self._image])
        self._publish_all(views, total)
        artist.join()
        if not self.stopped:
            self.summarize("finished", **self._numbers())

    def _draw(self, views: queue.Queue[View], total: int) -> None:
        try:
            self._draw_all(views, total)
        except Exception as error:  # the publishing thread waits for views, and must hear of it
            self._drawing_error = error

    def _draw_all(self, views: queue.Queue[View], total: int) -> None:
        torch.set_num_threads(1)  # more threads would take the cores of the nodes under test
        for _ in range(total):
            view = self.camera.draw(self.values["publish_depth"])
            while not self.stopped:
                try:
                    views.put(view, timeout=_POLL_S)
                    break
                except queue.Full:
                    continue
            if self.stopped:
                return

    def _publish_all(self, views: queue.Queue[View], total: int) -> None:
        period_s = 1 / self.values["rate_hz"]
        self.hold()
        self.summarize("running")
        start_s, start_ns = time.monotonic(), self.get_clock().now().nanoseconds
        first = 0  # number of the frame that was due at `start_s`
        for number in range(total):
            view = None
            while view is None and not self.stopped:
                try:
                    view = views.get(timeout=_POLL_S)
                except queue.Empty:
                    if self._drawing_error is not None:
                        raise self._drawing_error from None
            held_s = self.hold()
            due_s = start_s + (number - first) * period_s
            if held_s > period_s or time.monotonic() - due_s > _HOPELESS_S:
                # After a pause, or when drawing cannot keep up, the schedule begins anew.
                start_s, start_ns = time.monotonic(), self.get_clock().now().nanoseconds
                first, due_s = number, start_s
                self.diagnostics.count("schedule_restarts")
            stamp_ns = start_ns + round((number - first) * period_s * 1e9)
            header = to_header(stamp_ns, self.values["frame_id"])
            image = self.camera.expose(view)
            message = None if image is None else to_image_message(image, header)
            if not self.sleep_until(due_s):
                return
            lateness_s = time.monotonic() - due_s
            self._publish(view, stamp_ns, header, message)
            self.diagnostics.published(lateness_s)

    def _publish(self, view: View, stamp_ns: int, header: Header, image: Image | None) -> None:
        if image is not None:
            self._image.publish(image)
            self._info.header = header
            self._camera_info.publish(self._info)
            if self._depth is not None:
                self._depth.publish(self._depth_message(view, header))
            self.frames_published += 1
        self.ticks += 1
        if view.state == SensorState.OK:
            self._seen_ns = stamp_ns
        # The camera counts from its first frame; a message's times are those of the ROS clock.
        tracks = tuple(dataclasses.replace(t, last_seen_ns=stamp_ns) for t in view.tracks)
        truth = TrackOutput(stamp_ns, self._seen_ns, _SESSION, view.state, tracks, ())
        self._true_tracks.publish(to_track_array(truth, header.frame_id))
        if self._true_labels.get_subscription_count():
            self._true_labels.publish(to_segmentation_message(self._segmentation(view), header))
        for name, number in self._numbers().items():
            self.diagnostics.value(name, number)

    def _numbers(self) -> dict[str, int]:
        return {"ticks": self.ticks, "frames_published": self.frames_published}

    def _segmentation(self, view: View) -> Segmentation:
        labels = self.camera.enlarge(view.labels)
        areas = np.bincount(labels.reshape(-1), minlength=256)
        return Segmentation(
            stamp_ns=0,
            sensor_state=view.state,
            model="ground_truth",
            frame_seq=view.number,
            label_image=labels,
            detections=tuple(
                Detection(
                    track.slot_label,
                    track.box,
                    int(areas[track.slot_label]),
                    roi=tuple(cv2.boundingRect((labels == track.slot_label).view(np.uint8))),
                )
                for track in view.tracks
            ),
        )

    def _depth_message(self, view: View, header: Header) -> Image:
        depth = self.camera.enlarge(view.depth)
        width = depth.shape[1]
        message = to_image_message(depth.view(np.uint8), header)
        message.encoding, message.width = "32FC1", width
        return message

    def _make_camera_info(self) -> CameraInfo:
        matrix = self.camera.matrix
        return CameraInfo(
            width=self.values["width"],
            height=self.values["height"],
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=matrix.reshape(9),
            r=np.eye(3).reshape(9),
            p=np.hstack([matrix, np.zeros((3, 1))]).reshape(12),
        )

    def _output(self, message_type: type, topic: str) -> Any:
        return self.create_publisher(
            message_type, topic, qos.result(), qos_overriding_options=qos.overridable()
        )


def main() -> int:
    """Run the node until it is told to stop."""
    return run(CameraSimulatorNode, until_ended=False)


if __name__ == "__main__":
    sys.exit(main())
