# SPDX-License-Identifier: Apache-2.0
"""A bag played through the live nodes gives the tracks of the offline replay."""

import time

import numpy as np
import pytest

from oc_perception import deployment
from oc_perception.bags.messages import image_message
from oc_perception.bags.sequence import open_sequence
from oc_perception.bags.writer import BagWriter
from oc_perception.cli import main
from oc_perception.commands.up import command
from oc_perception.evaluation.replay_steps import steps
from oc_perception.models.registry import load_model
from oc_perception.pipeline import Discovery, Perception
from oc_perception.processes import Processes, isolated_environment
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import SensorState
from oc_perception.worlds.camera import CameraConfig, SimulatedCamera

TRACKS = "/tracking_node/tracks"
RATE = 0.5  # no frame may be skipped for want of time, or all later tracks differ rightly
DEADLINE_S = 120.0


def recorded_table(tmp_path):
    """Three seconds of the simulated camera, blind for ten frames."""
    config = CameraConfig(width=320, height=240, render_scale=0.5, blackouts="1.5:10:missing")
    camera = SimulatedCamera(config)
    with BagWriter(tmp_path / "table") as bag:
        for number in range(90):
            view = camera.draw()
            image = camera.expose(view)
            if image is not None:
                stamp_ns = 10**9 + round(number * 1e9 / config.rate_hz)
                bag.write("/camera/image", stamp_ns, image_message(stamp_ns, image))
    return bag.path


def live_tracks(path, settings, logs):
    """The answers of the node chain to the observations in a bag, by stamp."""
    import rclpy
    from rclpy.context import Context
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.parameter import Parameter
    from rclpy.parameter_client import AsyncParameterClient
    from rclpy.qos import QoSProfile

    from oc_perception.msg import TrackArray

    files = deployment.parameter_files("replay")
    nodes = deployment.nodes("replay", {"bag": str(path), "rate": str(RATE)})
    commands = {
        node.executable: command(node, files, settings.get(node.executable, []))
        for node in nodes
        if node.executable != "visualization_node"
    }
    context = Context()
    rclpy.init(args=[], context=context)
    listener = rclpy.create_node("listener", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(listener)
    received = []
    listener.create_subscription(TrackArray, TRACKS, received.append, QoSProfile(depth=1000))
    end_s = time.monotonic() + DEADLINE_S
    with Processes(commands, logs, isolated_environment()) as processes:

        def spin_while(condition):
            while condition():
                assert time.monotonic() < end_s, "the bag is not played to its end"
                executor.spin_once(timeout_sec=0.1)

        player = AsyncParameterClient(listener, "bag_player_node")
        spin_while(lambda: not player.services_are_ready())
        spin_while(lambda: not listener.count_publishers(TRACKS))
        spin_while(lambda: not listener.count_subscribers("/discovery_node/segmentation"))
        settled_s = time.monotonic() + 1.0  # matched here; the nodes need a moment
        spin_while(lambda: time.monotonic() < settled_s)
        player.set_parameters([Parameter("running", value=True)])
        spin_while(lambda: processes.alive("bag_player_node"))
        answered_s = time.monotonic() + 2.0
        spin_while(lambda: time.monotonic() < answered_s)
    executor.shutdown()
    listener.destroy_node()
    rclpy.shutdown(context=context)
    return {
        message.header.stamp.sec * 10**9 + message.header.stamp.nanosec: message
        for message in received
        if message.sensor_state == SensorState.OK
    }


def replayed_tracks(path, model):
    perception = Perception(Discovery(load_model(model)), Tracker())
    with open_sequence(path) as sequence:
        return {
            step.stamp_ns: step.output.tracks
            for step in steps(sequence, perception)
            if step.output.tracks.sensor_state == SensorState.OK
        }


def same(live, offline):
    if [(t.id, t.state) for t in live.tracks] != [(t.id, t.state) for t in offline.tracks]:
        return False
    return all(
        np.array_equal(a.box, b.box.astype(np.float32))
        and np.array_equal(a.velocity, b.velocity.astype(np.float32))
        for a, b in zip(live.tracks, offline.tracks, strict=True)
    )


def compare(path, model, logs, transport="raw"):
    settings = {
        "discovery_node": [f"model:={model}", f"image_transport:={transport}"],
        "bag_player_node": ["running:=false"],
    }
    live = live_tracks(path, settings, logs)
    offline = replayed_tracks(path, model)
    both = sorted(live.keys() & offline.keys())
    agreeing = sum(same(live[stamp], offline[stamp]) for stamp in both)
    print(f"{agreeing} of {len(both)} frames agree, {len(offline)} recorded")
    return len(offline), len(both), agreeing


def test_the_simulated_table_gives_equal_tracks_live_and_offline(ros_domain, tmp_path):
    recorded, both, agreeing = compare(recorded_table(tmp_path), "monet_demo", tmp_path / "logs")
    assert recorded == 80
    assert both >= 0.9 * recorded
    assert agreeing >= 0.99 * both


def test_a_real_recording_gives_equal_tracks_live_and_offline(
    ros_domain, data_directory, tmp_path
):
    source = data_directory / "mot_sequences" / "TUD-Stadtmitte.tar"
    if not source.is_file():
        pytest.skip(f"{source} is absent")
    assert main(["import-frames", str(source), str(tmp_path / "bag")]) == 0
    recorded, both, agreeing = compare(
        tmp_path / "bag", "monet_demo", tmp_path / "logs", "compressed"
    )
    assert recorded == 179
    assert both >= 0.9 * recorded
    assert agreeing >= 0.99 * both
