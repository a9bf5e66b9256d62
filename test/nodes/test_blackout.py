# SPDX-License-Identifier: Apache-2.0
"""A blind camera: what the nodes say, at which rate, under which stamps; identities survive."""

from __future__ import annotations

import time

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from sensor_msgs.msg import Image

from oc_perception import msg as messages
from oc_perception.nodes.conversions import to_nanoseconds
from oc_perception.nodes.discovery_node import DiscoveryNode
from oc_perception.nodes.tracking_node import TrackingNode

PERIOD_NS = 50_000_000
OK, STALE, BLACK, FROZEN, CORRUPT = range(5)
SUCCESS = TransitionCallbackReturn.SUCCESS


class Camera:
    """Publishes at real time, 20 Hz, over nodes that are active."""

    def __init__(self, graph, namespace: str, added, **tracking) -> None:
        self.graph = graph
        place = ("-r", f"__ns:=/{namespace}")
        self.discovery = added(DiscoveryNode, place, model="grid")
        remapping = ("-r", "segmentation:=discovery_node/segmentation")
        self.tracking = added(TrackingNode, (*place, *remapping), **tracking)
        for node in (self.discovery, self.tracking):
            assert node.trigger_configure() == SUCCESS
            assert node.trigger_activate() == SUCCESS
        self.camera = graph.peer.create_publisher(Image, f"/{namespace}/image", 10)
        self.segmentations = graph.listen(
            messages.ObjectSegmentation, f"/{namespace}/discovery_node/segmentation"
        )
        self.tracks = graph.listen(messages.TrackArray, f"/{namespace}/tracking_node/tracks")
        self.trajectories = graph.listen(
            messages.PredictedTrajectoryArray, f"/{namespace}/tracking_node/trajectories"
        )
        graph.until(self.camera.get_subscription_count, "discovery_node subscribes")
        self.start_ns = time.time_ns()
        self.sent = 0

    def send(self, frames: int, picture: np.ndarray | None = None) -> list[int]:
        """Publish frames on schedule and wait until their tracks are out; returns their stamps."""
        stamps = []
        for _ in range(frames):
            due_ns = self.start_ns + self.sent * PERIOD_NS
            self.graph.until(lambda due_ns=due_ns: time.time_ns() >= due_ns, "time passes")
            self.camera.publish(self.graph.image(due_ns, picture))
            stamps.append(due_ns)
            self.sent += 1
        self.graph.until(lambda: stamps[-1] in self.stamps(self.tracks), "tracks")
        return stamps

    @staticmethod
    def stamps(received: list, state: int | None = None) -> list[int]:
        return [
            to_nanoseconds(message.header.stamp)
            for message in received
            if state is None or message.sensor_state == state
        ]

    def ids(self, stamp_ns: int) -> set[int]:
        (array,) = [t for t in self.tracks if to_nanoseconds(t.header.stamp) == stamp_ns]
        return {track.id for track in array.tracks if track.state != messages.Track.LOST}


@pytest.fixture
def camera(graph, added, request) -> Camera:
    return Camera(graph, request.node.name.split("[")[0], added)


def test_missing_frames_are_announced_at_the_rate_of_the_camera_and_tracks_coast(camera) -> None:
    last_ns = camera.send(12)[-1]
    before = camera.ids(last_ns)
    assert len(before) >= 3
    camera.graph.until(lambda: len(camera.stamps(camera.tracks, STALE)) >= 8, "coasting")
    announced = camera.stamps(camera.segmentations, STALE)
    offsets = (np.array(announced) - last_ns) / PERIOD_NS
    np.testing.assert_allclose(offsets, np.rint(offsets), atol=0.02)
    assert (np.diff(offsets) > 0.5).all()  # each missing frame once

    coasting = [t for t in camera.tracks if t.sensor_state == STALE]
    assert all(to_nanoseconds(t.source_stamp) == last_ns for t in coasting)
    assert {track.id for track in coasting[-1].tracks} == before
    assert all(track.state == messages.Track.COASTING for track in coasting[-1].tracks)
    variance = [t.tracks[0].covariance[0] for t in coasting]
    assert (np.diff(variance) > 0).all()
    camera.graph.until(
        lambda: camera.stamps(camera.trajectories) == camera.stamps(camera.tracks),
        "trajectories beside all tracks",
    )

    camera.sent = round((time.time_ns() - camera.start_ns) / PERIOD_NS) + 2
    back_ns = camera.send(1)[-1]
    assert camera.ids(back_ns) == before


@pytest.mark.parametrize("mode", ["black", "frozen", "flat"])
def test_unusable_frames_are_answered_under_their_own_stamp_and_identities_survive(
    graph, added, mode
) -> None:
    camera = Camera(graph, f"unusable_{mode}", added)
    picture = graph.picture()
    camera.send(8)
    before = camera.ids(camera.send(1, picture)[-1])
    shown, state = {
        "black": (np.zeros_like(picture), BLACK),
        "frozen": (picture, FROZEN),
        "flat": (np.full_like(picture, 200), CORRUPT),
    }[mode]
    blind = camera.send(5, shown)
    for received in (camera.segmentations, camera.tracks):
        assert set(blind) <= set(camera.stamps(received, state))
    graph.status_of(
        camera.discovery, {BLACK: "black", FROZEN: "repeats", CORRUPT: "cannot"}[state]
    )
    assert camera.ids(blind[-1]) == before
    assert camera.ids(camera.send(1)[-1]) == before


def test_tracking_coasts_when_discovery_dies_and_stops_when_all_tracks_are_lost(
    graph, added
) -> None:
    camera = Camera(graph, "dies", added, max_coast_s=0.6)
    last_ns = camera.send(12)[-1]
    before = camera.ids(last_ns)
    assert camera.discovery.trigger_deactivate() == SUCCESS

    graph.until(lambda: not camera.tracks[-1].tracks, "all tracks lost")
    coasting = [t for t in camera.tracks if t.sensor_state == STALE]
    assert {track.id for track in coasting[0].tracks} == before
    offsets = (np.array(camera.stamps(coasting)) - last_ns) / PERIOD_NS
    np.testing.assert_allclose(offsets, np.rint(offsets), atol=0.02)
    lost = {t.id for a in coasting for t in a.tracks if t.state == messages.Track.LOST}
    assert lost == before

    published = len(camera.tracks)
    silent_until_s = time.monotonic() + 6 * PERIOD_NS / 1e9
    graph.until(lambda: time.monotonic() > silent_until_s, "time passes")
    assert len(camera.tracks) == published
    graph.status_of(camera.tracking, "No frame arrived in time")


def test_a_late_frame_after_an_announced_gap_is_used(camera) -> None:
    last_ns = camera.send(8)[-1]
    camera.graph.until(lambda: camera.stamps(camera.tracks, STALE), "coasting")
    late_ns = last_ns + PERIOD_NS // 2
    camera.camera.publish(camera.graph.image(late_ns))
    camera.graph.until(lambda: late_ns in camera.stamps(camera.tracks, OK), "tracks")
    assert camera.graph.counts(camera.tracking)["late"] == 0
