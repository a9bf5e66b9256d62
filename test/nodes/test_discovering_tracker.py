# SPDX-License-Identifier: Apache-2.0
"""tracking_node with `tracker: sqair`: tracks of what the images show, whatever was detected."""

from __future__ import annotations

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from feeds import Feed, answers_of
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from watchers import untrained

from oc_perception import msg as messages
from oc_perception.nodes.tracking_node import TrackingNode
from oc_perception.types import SensorState

FAILURE = TransitionCallbackReturn.FAILURE
SETTINGS = {"tracker": "sqair", "background": "black", "seed": 5}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return untrained(tmp_path_factory.mktemp("weights") / "untrained")


@pytest.fixture
def feed(graph, added, weights, request):
    numbers = iter(range(10))

    def make() -> Feed:
        name = f"{request.node.name}_{next(numbers)}"
        return Feed(graph, added, name, tracker_weights=weights, **SETTINGS)

    return make


def same(left: list[messages.TrackArray], right: list[messages.TrackArray]) -> None:
    assert any(answer.tracks for answer in right)
    for a, b in zip(left, right, strict=True):
        assert a.header.stamp == b.header.stamp and a.tracks == b.tracks


def test_the_node_gives_the_tracks_of_the_tracker_bit_for_bit(feed, weights) -> None:
    """Frame 5 comes late, 7 has no image, and the clock jumps back in the end."""
    node = feed()
    node.both(*range(5), 6, 5)
    node.segmentation(7)
    node.graph.until(lambda: node.answers([SensorState.STALE]), "an answer without an image")
    node.both(8, 9)
    forward = answers_of([*range(5), 6, 8, 9], range(10), tracker_weights=weights, **SETTINGS)
    with_five = answers_of([*range(7), 8, 9], range(10), tracker_weights=weights, **SETTINGS)
    same(node.answers(), [*forward[:6], with_five[6], *with_five[7:]])
    sessions = {bytes(answer.session.uuid) for answer in node.answers()}
    node.both(*(k - 100 for k in range(4)))
    fresh = answers_of(
        [k - 100 for k in range(4)], range(-100, 0), tracker_weights=weights, **SETTINGS
    )
    same(node.answers()[-4:], fresh)
    assert bytes(node.answers()[-1].session.uuid) not in sessions


def test_every_way_in_which_a_blackout_arrives_gives_the_same_tracks(feed) -> None:
    answers = []
    for how in ("missing", SensorState.BLACK):
        node = feed()
        node.both(*range(6))
        if how == "missing":  # the watchdog predicts, under stamps of its own
            node.graph.until(lambda n=node: len(n.answers([SensorState.STALE])) >= 3, "coasting")
        else:
            for k in range(6, 12):
                node.segmentation(k + 0.3 * (-1) ** k, how)
            node.graph.until(lambda n=node, h=how: len(n.answers([h])) >= 6, "coasting")
        node.both(*range(12, 15))
        answers.append(node.answers())
    same(*answers)


def test_weights_that_cannot_serve_are_explained_and_the_node_stays(graph, added) -> None:
    place = ("-r", "__ns:=/weightless_sqair")
    node = added(TrackingNode, place, tracker="sqair", tracker_weights="mohart_d3a_cpu")
    assert node.trigger_configure() == FAILURE
    graph.status_of(node, "not a video model", DiagnosticStatus.ERROR)
    (result,) = node.set_parameters([Parameter("background", value="blue")])
    assert not result.successful and "learned" in result.reason
