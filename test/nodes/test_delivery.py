# SPDX-License-Identifier: Apache-2.0
"""However segmentations arrive at tracking_node, the tracks are those of their stamps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from oc_perception import msg as messages
from oc_perception.nodes import qos
from oc_perception.nodes.conversions import (
    to_header,
    to_nanoseconds,
    to_segmentation_message,
)
from oc_perception.nodes.tracking_node import TrackingNode
from oc_perception.types import Detection, Segmentation, SensorState

PERIOD_NS = 50_000_000
START_NS = 1_000_000_000_000
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def stamp(frame: float) -> int:
    return START_NS + round(frame * PERIOD_NS)


def seen(frame: int) -> Segmentation:
    """Four objects in motion, with noise that belongs to the frame."""
    rng = np.random.default_rng(frame)
    centres = np.array([[50, 50], [200, 60], [60, 200], [210, 190]]) + frame * np.array([1.0, 0.5])
    detections = tuple(
        Detection(
            label=i,
            box=np.array([*(centre + rng.normal(0, 1, 2)).astype(np.float32), 30, 30]),
            area_px=700,
            embedding=(np.eye(4)[i] + rng.normal(0, 0.1, 4)).astype(np.float32),
        )
        for i, centre in enumerate(centres)
    )
    image = np.zeros((256, 256), np.uint8)
    return Segmentation(stamp(frame), SensorState.OK, "test", frame, image, detections)


def unseen(frame: float, state: SensorState) -> Segmentation:
    return Segmentation(stamp(frame), state, "test", 0)


class Feed:
    """A tracking node, and what it says to segmentations that are sent to it one by one."""

    def __init__(self, graph, added, name: str, **parameters) -> None:
        self.graph = graph
        self.node = added(TrackingNode, ("-r", f"__ns:=/{name}"), **parameters)
        assert self.node.trigger_configure() == SUCCESS
        assert self.node.trigger_activate() == SUCCESS
        topic = f"/{name}/segmentation"
        self.publisher = graph.peer.create_publisher(
            messages.ObjectSegmentation, topic, qos.result()
        )
        self.tracks = graph.listen(messages.TrackArray, f"/{name}/tracking_node/tracks")
        graph.until(self.publisher.get_subscription_count, "tracking_node subscribes")

    def send(self, segmentations: list[Segmentation]) -> None:
        """Publish, each once the one before is answered or refused."""
        for segmentation in segmentations:
            before = self.dealt_with()
            header = to_header(segmentation.stamp_ns, "camera")
            self.publisher.publish(to_segmentation_message(segmentation, header, True))
            self.graph.until(lambda before=before: self.dealt_with() > before, "an answer")

    def dealt_with(self) -> int:
        """Answers to segmentations, and refusals; predictions of the watchdog aside."""
        counters = self.node.diagnostics._counters
        refused = sum(counters[name] for name in ("late", "duplicate", "malformed"))
        return len(self.tracks) - self.predictions() + refused

    def predictions(self) -> int:
        """Answers to silence."""
        return sum(t.sensor_state == messages.TrackArray.STALE for t in self.tracks)

    def observed(self) -> list[messages.TrackArray]:
        """Answers to observations."""
        return [t for t in self.tracks if t.sensor_state == messages.TrackArray.OK]


def same(left: messages.TrackArray, right: messages.TrackArray) -> None:
    assert left.header.stamp == right.header.stamp
    assert left.tracks == right.tracks
    assert len(left.tracks) == 4


@pytest.fixture
def feed(graph, added):
    numbers = iter(range(100))

    def make(**parameters) -> Feed:
        return Feed(graph, added, f"feed_{next(numbers)}", **parameters)

    return make


def test_every_way_in_which_a_blackout_arrives_gives_the_same_tracks(feed) -> None:
    before, after = list(map(seen, range(10))), list(map(seen, range(18, 22)))
    jitter = np.random.default_rng(0).uniform(-0.4, 0.4, 8)
    answers = []
    for how in ("missing", SensorState.BLACK, SensorState.FROZEN):
        node = feed()
        node.send(before)
        if how == "missing":  # the watchdog predicts, under stamps of its own
            node.graph.until(lambda node=node: node.predictions() >= 4, "coasting")
        else:
            node.send([unseen(10 + k + jitter[k], how) for k in range(8)])
        node.send(after)
        answers.append(node.observed())
    assert [len(answer) for answer in answers] == [14, 14, 14]
    for other in answers[1:]:
        for left, right in zip(answers[0], other, strict=True):
            same(left, right)


def test_out_of_order_within_the_window_is_as_in_order(feed) -> None:
    frames = list(map(seen, range(16)))
    straight, crooked = feed(), feed()
    straight.send(frames)
    order = [0, 1, 2, 4, 3, 5, 8, 7, 6, 9, 12, 13, 11, 10, 14, 15]  # 150 ms late at most
    crooked.send([frames[k] for k in order])
    same(straight.observed()[-1], crooked.observed()[-1])
    newest = [max(order[: n + 1]) for n in range(16)]
    assert [to_nanoseconds(t.header.stamp) for t in crooked.observed()] == list(map(stamp, newest))
    counts = crooked.graph.counts(crooked.node)
    assert (counts["reordered"], counts["late"], counts["duplicate"]) == (5, 0, 0)


def test_duplicates_and_the_long_overdue_are_counted_and_change_nothing(feed) -> None:
    frames = list(map(seen, range(16)))
    straight, disturbed = feed(), feed()
    straight.send([f for f in frames if f is not frames[3]])
    disturbed.send(
        [*frames[:3], *frames[4:10], frames[9], frames[7], frames[3], frames[3], *frames[10:]]
    )
    same(straight.observed()[-1], disturbed.observed()[-1])
    counts = disturbed.graph.counts(disturbed.node)
    assert (counts["duplicate"], counts["late"], counts["reordered"]) == (2, 2, 0)


def test_a_window_of_zero_takes_nothing_late(feed) -> None:
    node = feed(reorder_window_s=0.0)
    node.send([seen(0), seen(2), seen(1)])
    assert node.graph.counts(node.node)["late"] == 1


def test_a_clock_that_jumps_back_starts_a_clean_session(feed) -> None:
    node, fresh = feed(), feed()
    back = [dataclasses.replace(seen(k), stamp_ns=stamp(k - 100)) for k in range(6)]
    node.send([*map(seen, range(10)), *back])
    fresh.send(back)
    sessions = [bytes(t.session.uuid) for t in node.observed()]
    assert len(set(sessions)) == 2 and len(set(sessions[10:])) == 1
    for left, right in zip(node.observed()[10:], fresh.observed(), strict=True):
        same(left, right)
        assert min(track.id for track in left.tracks) == 1


def test_a_motion_model_without_weights_is_explained_and_the_node_stays(
    graph, added, tmp_path
) -> None:
    node = added(
        TrackingNode,
        ("-r", "__ns:=/weightless"),
        motion_model="relational",
        motion_weights=str(tmp_path / "nothing"),
    )
    assert node.trigger_configure() == FAILURE
    assert node._state_machine.current_state[0] == State.PRIMARY_STATE_UNCONFIGURED
    graph.status_of(node, "No checkpoint", DiagnosticStatus.ERROR)
    (result,) = node.set_parameters([Parameter("motion_model", value="kalman")])
    assert result.successful
    graph.until(
        lambda: node._state_machine.current_state[0] == State.PRIMARY_STATE_ACTIVE, "active"
    )


def test_the_choice_of_the_motion_model_waits_for_the_next_configure(graph, added) -> None:
    node = added(TrackingNode, ("-r", "__ns:=/waiting"))
    node.start()
    (result,) = node.set_parameters([Parameter("motion_model", value="relational")])
    assert result.successful
    (result,) = node.set_parameters([Parameter("velocity_decay_per_s", value=0.7)])
    assert result.successful
    config = node._tracker.config
    assert (config.motion_model, config.velocity_decay_per_s) == ("kalman", 0.7)
    (result,) = node.set_parameters([Parameter("motion_model", value="magic")])
    assert not result.successful and "choose kalman, relational" in result.reason
