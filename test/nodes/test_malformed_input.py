# SPDX-License-Identifier: Apache-2.0
"""Whatever comes in: no crash, a counter, a cure in the diagnostics, right again at once."""

from __future__ import annotations

import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from oc_perception import msg as messages
from oc_perception.nodes import qos
from oc_perception.nodes.conversions import to_header, to_nanoseconds
from oc_perception.nodes.discovery_node import DiscoveryNode
from oc_perception.nodes.tracking_node import TrackingNode

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
OK, CORRUPT = messages.ObjectSegmentation.OK, messages.ObjectSegmentation.CORRUPT


class Chain:
    """discovery_node and tracking_node on the model without weights, with a camera in front."""

    def __init__(self, graph, namespace: str, message_type: type, **parameters) -> None:
        self.graph = graph
        self.name = f"{namespace}/discovery_node"
        place = ("-r", f"__ns:=/{namespace}")
        self.discovery = graph.make(DiscoveryNode, place, model="grid", **parameters)
        self.tracking = graph.make(
            TrackingNode, (*place, "-r", "segmentation:=discovery_node/segmentation")
        )
        for node in (self.discovery, self.tracking):
            assert node.trigger_configure() == SUCCESS
            assert node.trigger_activate() == SUCCESS
        compressed = message_type is CompressedImage
        topic = f"/{namespace}/image" + ("/compressed" if compressed else "")
        self.camera = graph.peer.create_publisher(message_type, topic, 10)
        self.depth = graph.peer.create_publisher(Image, f"/{namespace}/depth", 10)
        self.info = graph.peer.create_publisher(CameraInfo, f"/{namespace}/camera_info", 10)
        self.segmentations = graph.listen(
            messages.ObjectSegmentation, f"/{self.name}/segmentation"
        )
        self.tracks = graph.listen(messages.TrackArray, f"/{namespace}/tracking_node/tracks")
        graph.until(lambda: self.camera.get_subscription_count(), "discovery_node subscribes")

    def valid(self) -> Image | CompressedImage:
        if self.camera.msg_type is Image:
            return self.graph.image()
        _, data = cv2.imencode(".jpg", self.graph.picture())
        return compressed(self.graph, data.tobytes())

    def send(self, message: Image | CompressedImage) -> int:
        self.camera.publish(message)
        return to_nanoseconds(message.header.stamp)

    def answer(self, stamp_ns: int) -> messages.ObjectSegmentation:
        def found():
            for message in self.segmentations:
                if to_nanoseconds(message.header.stamp) == stamp_ns and message.sensor_state != 1:
                    return message
            return None

        return self.graph.until(found, "segmentation of the image")

    def must_work(self) -> None:
        """One valid image is answered with objects, and its tracks follow."""
        stamp_ns = self.send(self.valid())
        answer = self.answer(stamp_ns)
        assert answer.sensor_state == OK
        assert sum(not slot.is_background for slot in answer.slots) > 0
        self.graph.until(
            lambda: any(to_nanoseconds(t.header.stamp) == stamp_ns for t in self.tracks),
            "tracks of the image",
        )


def compressed(graph, data: bytes) -> CompressedImage:
    return CompressedImage(
        header=to_header(graph.advance(), "camera"), format="jpeg", data=array.array("B", data)
    )


@pytest.fixture(scope="module")
def raw(graph) -> Iterator[Chain]:
    chain = Chain(graph, "raw", Image, use_depth=True)
    graph.until(lambda: chain.depth.get_subscription_count(), "depth is subscribed")
    graph.until(lambda: chain.info.get_subscription_count(), "camera_info is subscribed")
    yield chain


@pytest.fixture(scope="module")
def jpeg(graph) -> Iterator[Chain]:
    yield Chain(graph, "jpeg", CompressedImage, image_transport="compressed")


# ---- what is sent: each returns the stamp of an image that must be answered as CORRUPT, or None


def changed(**fields) -> Callable[[Chain], int]:
    def send(chain: Chain) -> int:
        message = chain.valid()
        for name, value in fields.items():
            setattr(message, name, value(message) if callable(value) else value)
        return chain.send(message)

    return send


def different_size(chain: Chain) -> None:
    chain.answer(chain.send(chain.graph.image(picture=chain.graph.picture(60, 80))))


def different_encoding(chain: Chain) -> None:
    chain.answer(chain.send(chain.graph.image(picture=chain.graph.picture()[..., 0])))


def zero_stamp(chain: Chain) -> None:
    chain.send(chain.graph.image(stamp_ns=0))


def backward_stamp(chain: Chain) -> None:
    chain.answer(chain.send(chain.graph.image(stamp_ns=chain.graph.stamp_ns - 1_000_000)))


def late_stamp(chain: Chain) -> None:
    chain.send(chain.graph.image(stamp_ns=chain.graph.stamp_ns - 300_000_000))


def duplicate_stamp(chain: Chain) -> None:
    chain.send(chain.graph.image(stamp_ns=chain.graph.stamp_ns))


def future_stamp(chain: Chain) -> None:
    chain.send(chain.graph.image(stamp_ns=chain.graph.stamp_ns + 3 * 3600 * 10**9))


def gap_of_ten_seconds(chain: Chain) -> None:
    chain.graph.advance(10 * 10**9)
    chain.answer(chain.send(chain.valid()))


def clock_reset(chain: Chain) -> None:
    before = bytes(chain.tracks[-1].session.uuid)
    chain.graph.advance(-100 * 10**9)
    chain.answer(chain.send(chain.valid()))
    chain.graph.until(lambda: bytes(chain.tracks[-1].session.uuid) != before, "a new session")


def burst_of_hundred(chain: Chain) -> None:
    before = chain.graph.counts(chain.discovery)
    burst = [chain.valid() for _ in range(100)]
    for message in burst:
        chain.send(message)
    last_ns = to_nanoseconds(burst[-1].header.stamp)
    chain.answer(last_ns)
    answered = {
        to_nanoseconds(s.header.stamp) for s in chain.segmentations if s.sensor_state == OK
    }
    processed = sum(to_nanoseconds(message.header.stamp) in answered for message in burst)
    after = chain.graph.counts(chain.discovery)
    skipped = sum(after[name] - before[name] for name in ("dropped", "lost"))
    assert processed + skipped == 100


def depth_image(chain: Chain, value: float) -> Image:
    data = array.array("B", np.full((48, 64), value, np.float32).tobytes())
    header = to_header(chain.graph.stamp_ns, "camera")
    return Image(header=header, height=48, width=64, encoding="32FC1", step=256, data=data)


def camera_info(chain: Chain, width: int) -> CameraInfo:
    k = [50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
    return CameraInfo(height=48, width=width, k=k)


def with_depth(chain: Chain, distance_m: float, width: int) -> messages.ObjectSegmentation:
    """Publish depth and camera_info, and images until one is answered together with them."""
    depth_input = chain.discovery._depth
    message = chain.valid()
    chain.depth.publish(depth_image(chain, distance_m))
    chain.info.publish(camera_info(chain, width))
    stamp_ns = to_nanoseconds(message.header.stamp)
    chain.graph.until(
        lambda: (
            depth_input._info
            and depth_input._info.width == width
            and any(stamp == stamp_ns for stamp, _ in depth_input._images)
        ),
        "depth arrives",
    )
    return chain.answer(chain.send(message))


def nan_depth(chain: Chain) -> None:
    assert not np.isfinite(with_depth(chain, np.nan, 64).slots[0].position).any()
    position = with_depth(chain, 2.0, 64).slots[0].position
    assert position[2] == pytest.approx(2.0)


def wrong_camera_info(chain: Chain) -> None:
    assert not np.isfinite(with_depth(chain, 2.0, 32).slots[0].position).any()
    assert np.isfinite(with_depth(chain, 2.0, 64).slots[0].position).all()


def truncated_jpeg(chain: Chain) -> int:
    message = chain.valid()
    message.data = message.data[: len(message.data) // 2]
    return chain.send(message)


class Case(NamedTuple):
    send: Callable[[Chain], int | None]
    counter: str
    text: str
    chain: str = "raw"


CASES = {
    "step too small": Case(changed(step=10), "malformed", "Step 10 is too small"),
    "short data": Case(changed(data=lambda m: m.data[:-1]), "malformed", "too short"),
    "long data": Case(changed(data=lambda m: m.data * 2), "malformed", "too long"),
    "unknown encoding": Case(changed(encoding="xyz5"), "malformed", "encoding 'xyz5'"),
    "0x0": Case(changed(height=0, width=0), "malformed", "empty (0x0)"),
    "dimensions that overflow": Case(
        changed(height=2**31, width=2**31, step=2**32 - 1), "malformed", "too small"
    ),
    "no data": Case(changed(data=array.array("B")), "malformed", "too short"),
    "NaN depth": Case(nan_depth, "malformed_depth", "no valid distance"),
    "wrong camera_info": Case(wrong_camera_info, "malformed_depth", "camera_info is for 32x48"),
    "resolution changes": Case(different_size, "format_changes", "from 64x48 rgb8 to 80x60 rgb8"),
    "encoding changes": Case(
        different_encoding, "format_changes", "from 64x48 rgb8 to 64x48 mono8"
    ),
    "zero stamp": Case(zero_stamp, "zero_stamp", "set header.stamp"),
    "backward stamp": Case(backward_stamp, "reordered", "came after a newer one"),
    "late stamp": Case(late_stamp, "late", "older than the one before"),
    "duplicate stamp": Case(duplicate_stamp, "duplicate", "with the stamp of the one before"),
    "future stamp": Case(future_stamp, "future_stamp", "synchronise the clocks"),
    "gap of 10 s": Case(gap_of_ten_seconds, "gaps", "10.0 s without an image"),
    "burst of 100": Case(burst_of_hundred, "lost", "get lost before"),
    "clock reset": Case(clock_reset, "clock_resets", "new session"),
    "empty jpeg": Case(changed(data=array.array("B")), "malformed", "empty", "jpeg"),
    "truncated jpeg": Case(truncated_jpeg, "malformed", "truncated", "jpeg"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_input_is_counted_explained_and_survived(request, graph, case: Case) -> None:
    chain: Chain = request.getfixturevalue(case.chain)
    chain.must_work()
    before = graph.counts(chain.discovery).get(case.counter, 0)
    stamp_ns = case.send(chain)
    if stamp_ns is not None:
        answer = chain.answer(stamp_ns)
        assert answer.sensor_state == CORRUPT
        assert not answer.slots
    status = graph.status_of(chain.discovery, case.text, DiagnosticStatus.WARN)
    values = {item.key: item.value for item in status.values}
    assert int(values[case.counter]) > before
    chain.must_work()


def missing_weights(directory: Path) -> None:
    """Nothing there."""


def corrupt_weights(directory: Path) -> None:
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump({"model": "monet", "config": {}}))
    (directory / "weights.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")


@pytest.mark.parametrize(
    ("prepare", "text"),
    [(missing_weights, "No checkpoint"), (corrupt_weights, "missing or damaged")],
    ids=["missing weights", "corrupt weights"],
)
def test_bad_weights_leave_the_node_alive_until_the_parameter_is_corrected(
    graph, added, tmp_path, prepare, text
) -> None:
    directory = tmp_path / "checkpoint"
    prepare(directory)
    node = added(DiscoveryNode, ("-r", "__ns:=/weights"), model=str(directory))
    assert node.trigger_configure() == FAILURE
    assert node._state_machine.current_state[0] == State.PRIMARY_STATE_UNCONFIGURED
    graph.status_of(node, text, DiagnosticStatus.ERROR)

    (result,) = node.set_parameters([Parameter("model", value="grid")])
    assert result.successful
    # autostart: the corrected parameter starts the node without further help
    graph.until(
        lambda: node._state_machine.current_state[0] == State.PRIMARY_STATE_ACTIVE, "active"
    )
    camera = graph.peer.create_publisher(Image, "/weights/image", qos.image())
    answers = graph.listen(messages.ObjectSegmentation, "/weights/discovery_node/segmentation")
    graph.until(lambda: camera.get_subscription_count(), "subscribed")

    def answered() -> bool:
        camera.publish(graph.image())
        return any(answer.slots for answer in answers)

    graph.until(answered, "segmentation")


def test_an_unknown_parameter_is_an_error_that_names_the_nearest(graph, added) -> None:
    node = added(DiscoveryNode, ("-r", "__ns:=/unknown"), model="grid", modle="grid")
    graph.status_of(node, "Did you mean 'model'?", DiagnosticStatus.ERROR)


def test_a_parameter_of_the_wrong_type_keeps_the_node_from_starting(graph, added) -> None:
    node = added(DiscoveryNode, ("-r", "__ns:=/typed"), model="grid", stale_limit_s="long")
    assert node.trigger_configure() == FAILURE
    graph.status_of(node, "must be a number", DiagnosticStatus.ERROR)
    (result,) = node.set_parameters([Parameter("stale_limit_s", value=2.0)])
    assert result.successful
    assert node.trigger_configure() == SUCCESS
