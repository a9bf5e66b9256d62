# SPDX-License-Identifier: Apache-2.0
import time

import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image

from oc_perception.bags.messages import camera_info_message, image_message
from oc_perception.bags.reader import Bag
from oc_perception.bags.writer import BagWriter
from oc_perception.nodes.bag_player_node import BagPlayerNode
from oc_perception.nodes.conversions import to_nanoseconds

START_NS, STEP_NS, COUNT = 1_700_000_000_000_000_000, 50_000_000, 10
TYPES = {"/camera/image": Image, "/camera/camera_info": CameraInfo}


@pytest.fixture(params=["mcap", "sqlite3"])
def bag(request, tmp_path):
    generator = np.random.default_rng(3)
    with BagWriter(tmp_path / "bag", storage=request.param) as writer:
        for number in range(COUNT):
            stamp_ns = START_NS + number * STEP_NS
            image = generator.integers(0, 256, (24, 32, 3), np.uint8)
            writer.write("/camera/image", stamp_ns, image_message(stamp_ns, image))
            info = camera_info_message(stamp_ns, np.eye(3), 24, 32)
            writer.write("/camera/camera_info", stamp_ns, info)
    return writer.path


class Stage:
    """A player, and a listener that takes messages as bytes."""

    def __init__(self, bag, listen_to=TYPES, **parameters):
        self.context = Context()
        rclpy.init(context=self.context)
        self.listener = Node("listener", context=self.context)
        self.received, self.clock = [], []
        for topic, kind in listen_to.items():
            self.listener.create_subscription(
                kind,
                topic,
                lambda data, topic=topic: self.received.append((topic, data)),
                100,
                raw=True,
            )
        self.listener.create_subscription(
            Clock, "/clock", lambda message: self.clock.append(to_nanoseconds(message.clock)), 1000
        )
        settings = {"bag": str(bag), "wait_for_subscribers_s": 20.0, **parameters}
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.listener)
        self.node = None
        overrides = [Parameter(name, value=value) for name, value in settings.items()]
        try:
            self.node = BagPlayerNode(context=self.context, parameter_overrides=overrides)
        except ValueError:
            self.close()
            raise
        self.executor.add_node(self.node)
        self.node.start()

    def spin_until(self, condition, deadline_s=30.0):
        end_s = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end_s, "deadline passed"
            self.executor.spin_once(timeout_sec=0.05)

    def play(self):
        self.spin_until(self.node.ended.is_set)
        self.spin_until(lambda: len(self.received) >= self.node.messages_published)

    def close(self):
        self.executor.shutdown()
        for node in filter(None, (self.node, self.listener)):
            node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def play(ros_domain):
    stages = []

    def make(*arguments, **parameters):
        stages.append(Stage(*arguments, **parameters))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


def recorded(bag):
    with Bag(bag) as reader:
        return [(topic, bytes(data)) for topic, _, _, data in reader.raw(TYPES)]


def of(topic, messages):
    return [data for name, data in messages if name == topic]


def test_every_message_arrives_as_it_was_recorded_with_its_time_on_the_clock(play, bag):
    stage = play(bag)
    began_s = time.monotonic()
    stage.play()
    for topic in TYPES:
        assert of(topic, stage.received) == of(topic, recorded(bag))
    assert stage.clock == sorted(stage.clock)
    assert stage.clock[0] >= START_NS and stage.clock[-1] == START_NS + (COUNT - 1) * STEP_NS
    assert len(stage.clock) > 2 * COUNT  # between the messages, too
    assert time.monotonic() - began_s >= (COUNT - 1) * STEP_NS * 1e-9


def test_rate_offset_choice_and_new_names(play, bag):
    stage = play(
        bag,
        {"/front/image": Image},
        rate=10.0,
        start_offset_s=0.2,
        topics="/camera/image",
        remap="/camera/image:=/front/image",
        publish_clock=False,
    )
    stage.play()
    assert of("/front/image", stage.received) == of("/camera/image", recorded(bag))[4:]
    assert not stage.clock


def test_a_loop_begins_again_until_stopped(play, bag):
    stage = play(bag, {"/camera/image": Image}, rate=20.0, loop=True)
    expected = of("/camera/image", recorded(bag))
    stage.spin_until(lambda: len(stage.received) >= 2 * COUNT + 3)
    assert of("/camera/image", stage.received)[: 2 * COUNT] == expected * 2
    assert not stage.node.ended.is_set()


def test_a_start_behind_the_end_is_an_error_even_in_a_loop(play, bag):
    stage = play(bag, start_offset_s=60.0, loop=True)
    stage.spin_until(stage.node.ended.is_set)
    assert stage.node.failed and stage.node.messages_published == 0


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (
            {"topics": "/camera/imag"},
            "has no topic '/camera/imag'. Its topics: /camera/camera_info",
        ),
        ({"remap": "/camera/image=/x"}, "recorded:=published"),
        ({"bag": ""}, "set it to a rosbag2"),
        ({"bag": "/no/such/bag"}, "no bag at /no/such/bag"),
        ({"rate": 0.0}, "rate"),
    ],
)
def test_what_cannot_be_played_is_refused_with_the_reason(play, bag, parameters, reason):
    with pytest.raises(ValueError, match=reason):
        play(**{"bag": bag, **parameters})
