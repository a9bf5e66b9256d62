# SPDX-License-Identifier: Apache-2.0
"""Markers lie where objects are, and pictures are drawn only for those who look."""

from __future__ import annotations

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from oc_perception import msg as messages
from oc_perception.nodes import qos
from oc_perception.nodes.discovery_node import DiscoveryNode
from oc_perception.nodes.markers import Scene, to_markers
from oc_perception.nodes.tracking_node import TrackingNode
from oc_perception.nodes.visualization_node import VisualizationNode
from oc_perception.types import (
    Detection,
    Segmentation,
    SensorState,
    Track,
    TrackOutput,
    TrackState,
    Trajectory,
    TrajectoryMode,
)

SUCCESS = TransitionCallbackReturn.SUCCESS
MATRIX = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])


def tracked(
    state: TrackState, covariance: np.ndarray | None = None, label: int = 2
) -> TrackOutput:
    covariance = np.diag([16.0, 4.0, 1.0, 1.0]) if covariance is None else covariance
    box = np.array([370.0, 340.0, 40.0, 20.0])
    track = Track(7, state, box, np.zeros(2), covariance, 0.9, 5, 5, 1, label)
    path = np.array([[380.0, 340, 40, 20], [390.0, 340, 40, 20]])
    mode = TrajectoryMode(1.0, np.array([0.1, 0.2]), path, np.ones((2, 3)))
    future = Trajectory(7, state, (mode,))
    return TrackOutput(1, 1, bytes(16), SensorState.OK, (track,), (future,))


def by_namespace(array: MarkerArray) -> dict[str, Marker]:
    return {marker.ns: marker for marker in array.markers}


def seen(distance_m: float) -> Segmentation:
    detection = Detection(2, np.zeros(4), 9, point_m=np.array([0.2, 0.4, distance_m]))
    labels = np.zeros((480, 640), np.uint8)
    return Segmentation(1, SensorState.OK, "grid", 1, labels, (detection,))


def test_with_depth_markers_lie_on_the_ray_through_the_pixel_also_while_coasting() -> None:
    scene = Scene(0.002, MATRIX)
    scene.learn(tracked(TrackState.CONFIRMED), seen(2.0))
    for state in (TrackState.CONFIRMED, TrackState.COASTING):
        coasting = tracked(state, label=255)
        scene.learn(coasting, None)
        slab = by_namespace(to_markers(coasting, scene, Header(), 2.0, 1.0))["objects"]
        position = slab.pose.position
        assert (position.x, position.y, position.z) == pytest.approx((0.2, 0.4, 2.0))
        assert slab.scale.x == pytest.approx(40 * 2.0 / 500)


def test_without_depth_markers_lie_on_a_plane_around_the_centre_of_the_image() -> None:
    scene = Scene(0.002)
    scene.learn(tracked(TrackState.CONFIRMED), seen(2.0))
    markers = by_namespace(to_markers(tracked(TrackState.CONFIRMED), scene, Header(), 2.0, 1.0))
    position = markers["objects"].pose.position
    expected = ((370 - 319.5) * 0.002, (340 - 239.5) * 0.002, 0)
    assert (position.x, position.y, position.z) == pytest.approx(expected)
    steps = np.diff([point.x for point in markers["paths"].points])
    np.testing.assert_allclose(steps, 0.02)


def test_the_ellipse_has_the_covariance_of_the_position() -> None:
    covariance = np.diag([16.0, 4.0, 1.0, 1.0])
    covariance[0, 1] = covariance[1, 0] = 5.0
    shown = tracked(TrackState.CONFIRMED, covariance)
    marker = by_namespace(to_markers(shown, Scene(1.0), Header(), 2.0, 1.0))["covariances"]
    points = np.array([[point.x, point.y] for point in marker.points]) - [370, 340]
    distances = np.einsum("n i, i j, n j -> n", points, np.linalg.inv(covariance[:2, :2]), points)
    np.testing.assert_allclose(distances, 4.0)


def test_ghosts_are_fainter_and_lost_tracks_are_not_shown() -> None:
    def alpha(state: TrackState) -> float:
        return by_namespace(to_markers(tracked(state), Scene(1.0), Header(), 2, 1))[
            "objects"
        ].color.a

    assert alpha(TrackState.COASTING) < alpha(TrackState.CONFIRMED)
    assert not to_markers(tracked(TrackState.LOST), Scene(1.0), Header(), 2, 1).markers


def test_pictures_and_markers_are_published_only_while_somebody_listens(graph, added) -> None:
    place = ("-r", "__ns:=/view")
    discovery = added(DiscoveryNode, place, model="grid")
    tracking = added(TrackingNode, (*place, "-r", "segmentation:=discovery_node/segmentation"))
    remappings = []
    for source in (
        "discovery_node/segmentation",
        "tracking_node/tracks",
        "tracking_node/trajectories",
    ):
        remappings += ["-r", f"{source.rpartition('/')[2]}:={source}"]
    view = added(VisualizationNode, (*place, *remappings), max_image_rate_hz=1000.0)
    for node in (discovery, tracking, view):
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_activate() == SUCCESS
    camera = graph.peer.create_publisher(Image, "/view/image", 10)
    tracks = graph.listen(messages.TrackArray, "/view/tracking_node/tracks")
    graph.until(lambda: camera.get_subscription_count() >= 2, "image is subscribed twice")

    def one_frame() -> Image:
        image = graph.image(picture=graph.picture(96, 128))
        camera.publish(image)
        graph.until(lambda: tracks and tracks[-1].header == image.header, "tracks")
        return image

    for _ in range(5):
        one_frame()
    assert view._last_frame is None  # nothing was drawn for nobody

    pictures: list[Image] = []
    markers: list[MarkerArray] = []
    graph.peer.create_subscription(
        Image, "/view/visualization_node/image", pictures.append, qos.image()
    )
    graph.peer.create_subscription(
        MarkerArray, "/view/visualization_node/markers", markers.append, qos.result()
    )
    graph.until(view._image.get_subscription_count, "a listener")
    graph.until(view._markers.get_subscription_count, "a listener")

    def drawn() -> bool:
        one_frame()
        return bool(pictures and markers)

    graph.until(drawn, "picture and markers")
    assert (pictures[0].width, pictures[0].height, pictures[0].encoding) == (128, 96, "rgb8")
    assert {m.ns for m in markers[-1].markers} == {"objects", "ids", "covariances", "paths"}
    assert {m.header.frame_id for m in markers[-1].markers} == {"camera"}
