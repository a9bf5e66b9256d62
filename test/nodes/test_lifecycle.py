# SPDX-License-Identifier: Apache-2.0
"""Life cycle, parameters at run time and diagnostics of the nodes."""

from __future__ import annotations

import math
import time

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from oc_perception import msg as messages
from oc_perception.nodes.discovery_node import DiscoveryNode
from oc_perception.nodes.tracking_node import TrackingNode
from oc_perception.nodes.visualization_node import VisualizationNode

SUCCESS = TransitionCallbackReturn.SUCCESS
NODES = [(DiscoveryNode, {"model": "grid"}), (TrackingNode, {}), (VisualizationNode, {})]


@pytest.mark.parametrize(
    ("factory", "parameters"), NODES, ids=["discovery", "tracking", "visualization"]
)
def test_every_transition_works_twice_and_activation_is_fast(added, factory, parameters) -> None:
    node = added(factory, ("-r", "__ns:=/twice"), **parameters)
    for _ in range(2):
        assert node.trigger_configure() == SUCCESS
        began_s = time.perf_counter()
        assert node.trigger_activate() == SUCCESS
        assert time.perf_counter() - began_s < 0.1
        assert node.trigger_deactivate() == SUCCESS
        assert node.trigger_activate() == SUCCESS
        assert node.trigger_deactivate() == SUCCESS
        assert node.trigger_cleanup() == SUCCESS
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == SUCCESS
    assert node.trigger_shutdown() == SUCCESS
    assert node._state_machine.current_state[0] == State.PRIMARY_STATE_FINALIZED


def test_autostart_activates_and_the_lifecycle_services_answer(graph, added) -> None:
    node = added(TrackingNode, ("-r", "__ns:=/auto"))
    node.start()
    client = graph.peer.create_client(GetState, "/auto/tracking_node/get_state")
    graph.until(client.service_is_ready, "service")
    future = client.call_async(GetState.Request())
    graph.until(future.done, "answer")
    assert future.result().current_state.id == State.PRIMARY_STATE_ACTIVE


def test_without_autostart_a_node_waits_to_be_configured(added) -> None:
    node = added(TrackingNode, ("-r", "__ns:=/manual"), autostart=False)
    node.start()
    assert node._state_machine.current_state[0] == State.PRIMARY_STATE_UNCONFIGURED


def test_an_inactive_node_publishes_nothing_and_an_active_one_stamps_as_the_input(
    graph, added
) -> None:
    node = added(DiscoveryNode, ("-r", "__ns:=/inactive"), model="grid")
    assert node.trigger_configure() == SUCCESS
    camera = graph.peer.create_publisher(Image, "/inactive/image", 10)
    answers = graph.listen(messages.ObjectSegmentation, "/inactive/discovery_node/segmentation")
    pictures = graph.listen(Image, "/inactive/discovery_node/label_image")
    graph.until(camera.get_subscription_count, "subscribed")
    camera.publish(graph.image())
    graph.until(lambda: graph.status_of(node, ""), "time for an answer that must not come")
    assert not answers
    assert node.trigger_activate() == SUCCESS
    image = graph.image()
    camera.publish(image)

    def to_this_image(messages):  # the first image may have come late, after the activation
        return [message for message in messages if message.header == image.header]

    graph.until(lambda: to_this_image(answers) and to_this_image(pictures), "answer")
    answer, picture = to_this_image(answers)[0], to_this_image(pictures)[0]
    assert picture.data == answer.label_image.data
    assert (picture.width, picture.height) == (image.width, image.height)


def set_atomically(graph, node: str, **values):
    client = graph.peer.create_client(SetParametersAtomically, f"{node}/set_parameters_atomically")
    graph.until(client.service_is_ready, "service")
    request = SetParametersAtomically.Request(
        parameters=[
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
    )
    future = client.call_async(request)
    graph.until(future.done, "answer")
    return future.result().result


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"horizon_s": math.nan}, "horizon_s must be a finite number"),
        ({"horizon_s": -1.0}, "horizon_s = -1.0 is not allowed: choose 0 to 60"),
        ({"confirm_hits": 0}, "choose 1 to 1000"),
        ({"confirm_hits": "three"}, "confirm_hits must be an integer"),
        ({"min_existence": 0.8}, "min_existence must be below birth_existence"),
        ({"autostart": False}, "read-only"),
        ({"horizont_s": 1.0}, "Did you mean 'horizon_s'?"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_change_of_parameters_is_all_or_nothing(graph, added, bad, reason) -> None:
    node = added(TrackingNode, ("-r", "__ns:=/atomic"))
    before = node.values
    result = set_atomically(graph, "/atomic/tracking_node", max_coast_s=1.5, **bad)
    assert not result.successful
    assert reason in result.reason
    assert node.values == before
    assert node.get_parameter("max_coast_s").value == before["max_coast_s"]


def test_a_change_of_parameters_applies_while_active(graph, added) -> None:
    node = added(TrackingNode, ("-r", "__ns:=/change"))
    node.start()
    assert set_atomically(
        graph, "/change/tracking_node", horizon_s=0.4, max_coast_s=1.5
    ).successful
    assert node.value("max_coast_s") == 1.5
    assert node._tracker.config.horizon_s == 0.4


def test_diagnostics_name_a_publisher_that_is_missing(graph, added) -> None:
    node = added(DiscoveryNode, ("-r", "__ns:=/alone"), model="grid")
    node.start()
    status = graph.status_of(node, "Nobody publishes on /alone/image", DiagnosticStatus.WARN)
    values = {item.key: item.value for item in status.values}
    assert values["model"] == "grid"
    assert values["life_cycle_state"] == "active"
    assert float(values["memory_mb"]) > 10


def test_lost_messages_name_the_profile_that_is_not_set(graph, added, monkeypatch) -> None:
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    node = added(DiscoveryNode, ("-r", "__ns:=/lossy"), model="grid")
    node.start()
    camera = graph.peer.create_publisher(Image, "/lossy/image", 10)
    graph.until(camera.get_subscription_count, "subscribed")
    answers = graph.listen(messages.ObjectSegmentation, "/lossy/discovery_node/segmentation")

    def first() -> bool:
        camera.publish(graph.image())
        return bool(answers)

    graph.until(first, "first image")
    for _ in range(50):  # more than the queue of the subscription holds
        camera.publish(graph.image())
    graph.status_of(node, "FASTDDS_DEFAULT_PROFILES_FILE is not set", DiagnosticStatus.WARN)
    assert graph.counts(node)["lost"] > 0


def test_where_messages_do_not_name_their_publisher_none_counts_as_lost(graph, added):
    node = added(TrackingNode)
    assert node._lost_before("segmentation", {"publication_sequence_number": 1}) == 0
    assert node._lost_before("segmentation", {"publication_sequence_number": 9}) == 0
    numbered = [
        {"publication_sequence_number": number, "publisher_gid": {"data": [1, 2]}}
        for number in (1, 2, 5)
    ]
    assert [node._lost_before("segmentation", info) for info in numbered] == [0, 0, 2]
