# SPDX-License-Identifier: Apache-2.0
"""A tracking node that looks, and what its tracker says when it is called directly."""

from __future__ import annotations

from typing import Any

import numpy as np
from followers import SIZE, picture, seen, stamp, unseen
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image

from oc_perception import msg as messages
from oc_perception.nodes import qos
from oc_perception.nodes.conversions import (
    to_header,
    to_image_message,
    to_segmentation_message,
    to_track_array,
)
from oc_perception.nodes.tracking_node import TrackingNode
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.tracker import create_tracker
from oc_perception.types import SensorState

SUCCESS = TransitionCallbackReturn.SUCCESS
WAIT_S = 0.3
HORIZON_S = 0.1


class Feed:
    """A tracking node that looks; images and segmentations are sent to it one by one."""

    def __init__(self, graph, added, name: str, **parameters: Any) -> None:
        self.graph = graph
        parameters = {"image_wait_s": WAIT_S, "horizon_s": HORIZON_S, **parameters}
        self.node = added(TrackingNode, ("-r", f"__ns:=/{name}"), **parameters)
        assert self.node.trigger_configure() == SUCCESS
        assert self.node.trigger_activate() == SUCCESS
        self.segmentations = graph.peer.create_publisher(
            messages.ObjectSegmentation, f"/{name}/segmentation", qos.result()
        )
        self.images = graph.peer.create_publisher(Image, f"/{name}/image", 10)
        self.tracks = graph.listen(messages.TrackArray, f"/{name}/tracking_node/tracks")
        for publisher in (self.segmentations, self.images):
            graph.until(publisher.get_subscription_count, "tracking_node subscribes")

    def image(self, frame: int) -> None:
        self.images.publish(to_image_message(picture(at(frame)), to_header(stamp(frame), "")))

    def segmentation(self, frame: float, state: SensorState = SensorState.OK) -> None:
        ok = state == SensorState.OK
        found = seen(at(frame), stamp(frame)) if ok else unseen(state, stamp(frame))
        header = to_header(found.stamp_ns, "")
        self.segmentations.publish(to_segmentation_message(found, header, True))

    def kept(self, frame: int) -> bool:
        return stamp(frame) in self.node._frames._images

    def answers(self, states=(SensorState.OK,)) -> list[messages.TrackArray]:
        return [t for t in self.tracks if t.sensor_state in states]

    def both(self, *numbers: int) -> None:
        """Frames with their segmentations, each once the one before is answered."""
        for frame in numbers:
            before = len(self.answers())
            self.image(frame)
            self.graph.until(lambda frame=frame: self.kept(frame), "the image comes")
            self.segmentation(frame)
            self.answered(before + 1)

    def answered(self, count: int) -> None:
        self.graph.until(lambda: len(self.answers()) >= count, "an answer")


def at(frame: float) -> np.ndarray:
    """Centres of two discs, px."""
    return np.array([[30.0, 30.0], [90.0, 60.0]]) + frame * np.array([0.8, 0.3])


def answers_of(numbers, shown, **settings: Any) -> list[messages.TrackArray]:
    """What the tracker with these settings says when it is called directly; `shown` are frames
    with an image.
    """
    tracker, answers = create_tracker(TrackerConfig(horizon_s=HORIZON_S, **settings)), []
    state = tracker.initial_state(bytes(16), SIZE)
    for k in numbers:
        frame = picture(at(k)) if k in shown else None
        state, output = tracker.step(state, seen(at(k), stamp(k)), stamp(k), frame)
        answers.append(to_track_array(output, ""))
    # In the precision of messages.
    return [deserialize_message(serialize_message(a), messages.TrackArray) for a in answers]
