# SPDX-License-Identifier: Apache-2.0
import json
import time

import numpy as np
import pytest
import rclpy
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from oc_perception import msg as messages
from oc_perception.nodes.camera_simulator_node import CameraSimulatorNode
from oc_perception.nodes.conversions import to_depth, to_frame, to_nanoseconds
from oc_perception.nodes.parameter_tables import CAMERA_SIMULATOR
from oc_perception.nodes.parameters import defaults
from oc_perception.types import SensorState
from oc_perception.worlds.camera import CameraConfig

NAME = "camera_simulator_node"
SMALL = {"width": 160, "height": 120, "num_objects": 3, "wait_for_subscribers_s": 20.0}


class Stage:
    """A simulator and a listener to all its topics in one executor."""

    def __init__(self, **parameters):
        self.context = Context()
        rclpy.init(context=self.context)
        self.listener = Node("listener", context=self.context)
        self.received = {
            name: [] for name in ("image", "camera_info", "depth", "labels", "tracks")
        }
        self.summaries = []
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for key, kind, topic, profile in (
            ("labels", messages.ObjectSegmentation, "ground_truth/segmentation", 100),
            ("tracks", messages.TrackArray, "ground_truth/tracks", 100),
            ("camera_info", CameraInfo, "camera_info", 100),
            ("depth", Image, "depth", 100),
            ("image", Image, "image", 100),
        ):
            self.listener.create_subscription(
                kind, f"/{NAME}/{topic}", self.received[key].append, profile
            )
        self.listener.create_subscription(
            String,
            f"/{NAME}/summary",
            lambda m: self.summaries.append(json.loads(m.data)),
            latched,
        )
        overrides = [
            Parameter(name, value=value) for name, value in {**SMALL, **parameters}.items()
        ]
        self.node = CameraSimulatorNode(context=self.context, parameter_overrides=overrides)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.listener)
        self.executor.add_node(self.node)

    def spin_until(self, condition, deadline_s=30.0):
        end_s = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end_s, "deadline passed"
            self.executor.spin_once(timeout_sec=0.05)

    def state(self):
        return self.summaries[-1]["state"] if self.summaries else None

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.listener.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def stage(ros_domain):
    stages = []

    def make(**parameters):
        stages.append(Stage(**parameters))
        return stages[-1]

    yield make
    for each in stages:
        each.close()


def stamps(received):
    return [to_nanoseconds(message.header.stamp) for message in received]


def test_frames_truth_and_blackouts_arrive_on_an_exact_schedule(stage):
    schedule = "0.2:2:missing, 0.4:2:black, 0.6:2:frozen"
    scene = stage(blackouts=schedule, duration_s=1.0, rate_hz=20.0, publish_depth=True)
    scene.node.start()
    scene.spin_until(lambda: scene.state() == "finished")
    got = scene.received
    scene.spin_until(lambda: len(got["tracks"]) == len(got["labels"]) == 20)
    scene.spin_until(
        lambda: len(got["image"]) == len(got["depth"]) == len(got["camera_info"]) == 18
    )
    assert scene.summaries[-1] == {"state": "finished", "ticks": 20, "frames_published": 18}

    ticks = stamps(got["tracks"])
    assert set(np.diff(ticks)) == {50_000_000}
    states = dict(zip(ticks, (message.sensor_state for message in got["tracks"]), strict=True))
    blind = [state for state in states.values() if state != SensorState.OK]
    assert blind == [SensorState.STALE] * 2 + [SensorState.BLACK] * 2 + [SensorState.FROZEN] * 2
    shown = [stamp for stamp in ticks if states[stamp] != SensorState.STALE]
    for name in ("image", "camera_info", "depth"):
        assert stamps(got[name]) == shown
    assert stamps(got["labels"]) == ticks

    previous = None
    for message in got["image"]:
        frame, state = to_frame(message), states[to_nanoseconds(message.header.stamp)]
        assert frame.shape == (120, 160, 3) and message.header.frame_id == "camera"
        assert (not frame.any()) == (state == SensorState.BLACK)
        assert np.array_equal(frame, previous) == (
            state == SensorState.FROZEN or (state == SensorState.BLACK and not previous.any())
        )
        previous = frame
    depth = to_depth(got["depth"][0])
    assert depth.shape == (120, 160) and 0.1 < np.nanmin(depth) <= np.nanmax(depth) < 10
    np.testing.assert_array_equal(got["camera_info"][0].k, scene.node.camera.matrix.reshape(9))
    for labels, tracks in zip(got["labels"], got["tracks"], strict=True):
        image = np.frombuffer(labels.label_image.data, np.uint8)
        assert set(np.unique(image)) - {0} == {track.slot_label for track in tracks.tracks}
        assert all(track.last_seen == tracks.header.stamp for track in tracks.tracks)


def test_it_holds_until_running_is_set(stage):
    scene = stage(running=False, duration_s=0.3)
    scene.node.start()
    scene.spin_until(lambda: scene.state() == "ready")
    client = scene.listener.create_client(SetParameters, f"/{NAME}/set_parameters")
    scene.spin_until(client.service_is_ready)
    assert not scene.received["image"]
    go = Parameter("running", value=True).to_parameter_msg()
    answer = client.call_async(SetParameters.Request(parameters=[go]))
    scene.spin_until(lambda: scene.state() == "finished")
    assert answer.result().results[0].successful
    scene.spin_until(lambda: len(scene.received["image"]) == 9)


def test_a_world_that_cannot_be_drawn_ends_the_run_with_the_reason(stage, monkeypatch):
    scene = stage(duration_s=1.0)
    monkeypatch.setattr(scene.node.camera, "draw", lambda with_depth: 1 / 0)
    scene.node.start()
    scene.spin_until(lambda: scene.state() == "failed")
    assert scene.node.failed and "division by zero" in scene.summaries[-1]["error"]


def test_a_setting_that_cannot_be_is_refused_with_the_reason(stage):
    for parameters, reason in (
        ({"blackouts": "1:2:dim"}, "missing, black, frozen"),
        ({"rate_hz": 0.0}, "rate_hz"),
        ({"widht": 3}, "Did you mean 'width'"),
    ):
        with pytest.raises(ValueError, match=reason):
            stage(**parameters)


def test_defaults_are_those_of_the_simulated_camera():
    table = defaults(CAMERA_SIMULATOR)
    for name, value in vars(CameraConfig()).items():
        assert table[name] == value
