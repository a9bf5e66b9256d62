# SPDX-License-Identifier: Apache-2.0
"""tracking_node with `tracker: mohart`: images beside segmentations, in whatever order."""

from __future__ import annotations

import time

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from feeds import WAIT_S, Feed, answers_of
from followers import stamp, untrained
from lifecycle_msgs.msg import State
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage

from oc_perception import msg as messages
from oc_perception.nodes import frames
from oc_perception.nodes.conversions import to_header
from oc_perception.nodes.tracking_node import TrackingNode
from oc_perception.types import SensorState

FAILURE = TransitionCallbackReturn.FAILURE


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("weights") / "untrained")


@pytest.fixture
def feed(graph, added, weights, request):
    numbers = iter(range(10))

    def make(**parameters) -> Feed:
        name = f"{request.node.name.split('[')[0]}_{next(numbers)}"
        return Feed(graph, added, name, tracker="mohart", tracker_weights=weights, **parameters)

    return make


def expected(weights: str, numbers, shown) -> list[messages.TrackArray]:
    return answers_of(numbers, shown, tracker="mohart", tracker_weights=weights)


def same(left: list[messages.TrackArray], right: list[messages.TrackArray]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.header.stamp == b.header.stamp and len(a.tracks) == len(b.tracks) > 0
        assert a.tracks == b.tracks


def test_segmentations_are_tracked_with_the_image_of_their_stamp(feed, weights) -> None:
    node = feed()
    node.both(*range(8))
    for k in range(8, 11):  # the segmentation overtakes its image
        node.segmentation(k)
        soon_s = time.monotonic() + 0.03
        node.graph.until(lambda soon_s=soon_s: time.monotonic() > soon_s, "time passes")
        assert len(node.answers()) == k
        node.image(k)
        node.answered(k + 1)
    same(node.answers(), expected(weights, range(11), range(11)))
    assert node.graph.counts(node.node)["without_image"] == 0


def test_a_segmentation_whose_image_never_comes_is_tracked_by_association_alone(
    feed, weights
) -> None:
    node = feed()
    node.both(*range(6))
    began_s = time.monotonic()
    node.segmentation(6)
    node.answered(7)
    assert time.monotonic() - began_s >= WAIT_S
    node.both(7, 8)
    same(node.answers(), expected(weights, range(9), {0, 1, 2, 3, 4, 5, 7, 8}))
    node.graph.status_of(node.node, "came without its image", DiagnosticStatus.WARN)
    assert node.graph.counts(node.node)["without_image"] == 1


def test_many_images_that_never_come_cost_one_wait(feed) -> None:
    """Segmentations wait side by side, so that a camera without images does not pile them up."""
    node = feed()
    began_s = time.monotonic()
    for k in range(8):
        node.segmentation(k)
    node.answered(8)
    assert time.monotonic() - began_s < 4 * WAIT_S


def test_every_way_in_which_a_blackout_arrives_gives_the_same_tracks(feed) -> None:
    answers = []
    for how in ("missing", SensorState.BLACK, SensorState.FROZEN):
        node = feed()
        node.both(*range(8))
        if how == "missing":  # the watchdog predicts, under stamps of its own
            node.graph.until(lambda n=node: len(n.answers([SensorState.STALE])) >= 3, "coasting")
        else:  # under whatever stamps
            for k in range(8, 14):
                node.segmentation(k + 0.3 * (-1) ** k, how)
            node.graph.until(lambda n=node, h=how: len(n.answers([h])) >= 6, "coasting")
            assert node.graph.counts(node.node)["without_image"] == 0
        node.both(*range(14, 17))
        answers.append(node.answers())
    for other in answers[1:]:
        same(answers[0], other)


def test_only_the_newest_images_are_kept(feed) -> None:
    node = feed()
    count = frames._KEPT + 10
    for k in range(count):
        node.image(k)
        node.graph.until(lambda k=k: node.kept(k), "the image comes")
    assert list(node.node._frames._images) == [stamp(k) for k in range(count)][-frames._KEPT :]


def test_a_clock_that_jumps_back_starts_a_clean_session(feed, weights) -> None:
    node = feed()
    node.both(*range(100, 105), *range(5))
    sessions = [bytes(t.session.uuid) for t in node.answers()]
    assert len(set(sessions[:5])) == len(set(sessions[5:])) == 1 and sessions[0] != sessions[-1]
    same(node.answers()[5:], expected(weights, range(5), range(5)))


def test_missing_weights_are_explained_and_the_node_stays(graph, added, tmp_path) -> None:
    absent = str(tmp_path / "absent")
    place = ("-r", "__ns:=/weightless_mohart")
    node = added(TrackingNode, place, tracker="mohart", tracker_weights=absent)
    assert node.trigger_configure() == FAILURE
    graph.status_of(node, "No checkpoint", DiagnosticStatus.ERROR)
    (result,) = node.set_parameters([Parameter("tracker", value="filter")])
    assert result.successful
    graph.until(
        lambda: node._state_machine.current_state[0] == State.PRIMARY_STATE_ACTIVE, "active"
    )
    assert node._frames is None and not graph.peer.get_subscriptions_info_by_topic(
        "/weightless_mohart/image"
    )


def test_what_is_loaded_waits_for_the_next_configure_and_the_rest_does_not(feed) -> None:
    node = feed(image_transport="raw").node
    changes = {"tracker": "filter", "max_coast_s": 1.5}
    results = node.set_parameters([Parameter(k, value=v) for k, v in changes.items()])
    assert all(result.successful for result in results)
    config = node._tracker.config
    assert (config.tracker, config.max_coast_s) == ("mohart", 1.5)


def test_compressed_images_serve_too(graph, added, weights) -> None:
    place = ("-r", "__ns:=/pressed")
    node = added(
        TrackingNode,
        place,
        tracker="mohart",
        tracker_weights=weights,
        image_transport="compressed",
    )
    node.start()
    publisher = graph.peer.create_publisher(CompressedImage, "/pressed/image/compressed", 10)
    graph.until(publisher.get_subscription_count, "tracking_node subscribes")
    broken = CompressedImage(format="png", data=b"x", header=to_header(stamp(1), ""))
    publisher.publish(broken)
    graph.until(lambda: stamp(1) in node._frames._images, "the image comes")
    assert node._frames.find(stamp(1), time.monotonic()) is None
    assert graph.counts(node)["malformed"] == 1
