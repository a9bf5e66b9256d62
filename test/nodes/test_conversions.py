# SPDX-License-Identifier: Apache-2.0
"""Dataclasses to messages and back: nothing lost but float64 precision, and fast."""

from __future__ import annotations

import time

import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image

from oc_perception import msg as messages
from oc_perception.nodes import conversions as c
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

STAMP_NS = 1_700_000_000_123_456_789


def through_the_wire(message):
    return deserialize_message(serialize_message(message), type(message))


def output(tracks: int = 10, points: int = 20) -> TrackOutput:
    random = np.random.default_rng(0)

    def track(number: int) -> Track:
        root = random.normal(size=(4, 4))
        return Track(
            id=number + 1,
            state=TrackState(number % 4),
            box=random.uniform(0, 640, 4),
            velocity=random.normal(0, 50, 2),
            covariance=root @ root.T,
            existence_probability=0.75,
            age=number,
            hits=number // 2,
            last_seen_ns=STAMP_NS - number,
            slot_label=number,
            embedding=random.normal(size=16).astype(np.float32),
        )

    def trajectory(number: int) -> Trajectory:
        mode = TrajectoryMode(
            probability=1.0,
            times_s=0.1 * np.arange(1, points + 1),
            boxes=random.uniform(0, 640, (points, 4)),
            covariances=random.uniform(1, 9, (points, 3)),
        )
        return Trajectory(number + 1, TrackState.COASTING, (mode,))

    return TrackOutput(
        stamp_ns=STAMP_NS,
        source_stamp_ns=STAMP_NS - 5,
        session=bytes(range(16)),
        sensor_state=SensorState.BLACK,
        tracks=tuple(track(n) for n in range(tracks)),
        trajectories=tuple(trajectory(n) for n in range(tracks)),
    )


def assert_same(left, right) -> None:
    for name in left.__dataclass_fields__:
        a, b = getattr(left, name), getattr(right, name)
        if isinstance(a, tuple):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                assert_same(x, y)
        elif isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-6)
        else:
            assert a == b, name


def test_tracks_and_trajectories_come_back_as_they_went() -> None:
    sent = output()
    tracks = through_the_wire(c.to_track_array(sent, "camera"))
    trajectories = through_the_wire(c.to_trajectory_array(sent, "camera"))
    assert tracks.header.frame_id == trajectories.header.frame_id == "camera"
    assert_same(sent, c.from_track_messages(tracks, trajectories))


@pytest.mark.parametrize("known", [True, False], ids=["3-D", "2-D"])
def test_a_segmentation_comes_back_as_it_went(known) -> None:
    sent = Segmentation(
        stamp_ns=STAMP_NS,
        sensor_state=SensorState.OK,
        model="grid",
        frame_seq=7,
        label_image=np.random.default_rng(0).integers(0, 5, (48, 64), np.uint8),
        detections=(
            Detection(
                label=3,
                box=np.array([20.5, 30.25, 11.0, 7.0]),
                area_px=60,
                score=0.5,
                embedding=np.arange(4, dtype=np.float32),
                point_m=np.array([0.5, -0.25, 2.0]) if known else None,
            ),
        ),
    )
    message = c.to_segmentation_message(sent, c.to_header(STAMP_NS, "camera"))
    received = through_the_wire(message)
    roi = received.slots[0].roi
    assert (roi.x_offset, roi.y_offset, roi.width, roi.height) == (16, 27, 11, 7)
    back = c.from_segmentation_message(received)
    for name in ("label", "box", "area_px", "score", "embedding", "is_background", "point_m"):
        expected, actual = getattr(sent.detections[0], name), getattr(back.detections[0], name)
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(back.label_image, sent.label_image)
    assert (back.stamp_ns, back.sensor_state, back.model, back.frame_seq) == (
        STAMP_NS,
        SensorState.OK,
        "grid",
        7,
    )


def test_no_observation_has_no_label_image() -> None:
    blind = Segmentation(STAMP_NS, SensorState.STALE, "grid", 7)
    message = c.to_segmentation_message(blind, c.to_header(STAMP_NS, "camera"))
    assert c.from_segmentation_message(through_the_wire(message)) == blind


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: setattr(m, "sensor_state", 99),
        lambda m: setattr(m.label_image, "encoding", "rgb8"),
        lambda m: setattr(m.label_image, "width", 63),
        lambda m: setattr(m.slots[0], "centroid_x", float("nan")),
    ],
    ids=["state", "encoding", "size", "nan"],
)
def test_a_segmentation_that_cannot_be_is_refused(spoil) -> None:
    labels = np.zeros((48, 64), np.uint8)
    detections = (Detection(label=0, box=np.array([1.0, 2.0, 3.0, 4.0]), area_px=5),)
    sent = Segmentation(STAMP_NS, SensorState.OK, "grid", 1, labels, detections)
    message = c.to_segmentation_message(sent, c.to_header(STAMP_NS, "camera"))
    c.from_segmentation_message(message)
    spoil(message)
    with pytest.raises(ValueError):
        c.from_segmentation_message(message)


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 3)], ids=["mono8", "rgb8"])
def test_an_image_comes_back_as_it_went(shape) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    message = through_the_wire(c.to_image_message(image, c.to_header(STAMP_NS, "camera")))
    expected = image if len(shape) == 3 else np.repeat(image[..., None], 3, 2)
    np.testing.assert_array_equal(c.to_frame(message), expected)
    part = c.to_image_message(image[::2, ::2], c.to_header(STAMP_NS, "camera"))
    np.testing.assert_array_equal(c.to_frame(part), expected[::2, ::2])


@pytest.mark.parametrize("nanoseconds", [-1, 2**31 * 10**9])
def test_a_time_that_does_not_fit_is_refused(nanoseconds) -> None:
    with pytest.raises(ValueError):
        c.to_time(nanoseconds)


def test_conversions_take_little_of_a_frame_period() -> None:
    """The best of many, because the machine may be busy; limits are generous."""
    sent = output()
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    header = c.to_header(STAMP_NS, "camera")

    def best_ms(function, *arguments) -> float:
        times = []
        for _ in range(50):
            began_s = time.perf_counter()
            function(*arguments)
            times.append(time.perf_counter() - began_s)
        return min(times) * 1e3

    assert best_ms(c.to_track_array, sent, "camera") < 1.0
    assert best_ms(c.to_trajectory_array, sent, "camera") < 3.0
    assert best_ms(c.to_image_message, picture, header) < 2.0
    assert best_ms(c.to_frame, Image(**_fields(c.to_image_message(picture, header)))) < 0.5


def _fields(message: Image) -> dict:
    return {name: getattr(message, name) for name in message.get_fields_and_field_types()}


def test_enumerations_equal_the_constants_of_the_messages() -> None:
    for state in SensorState:
        assert getattr(messages.ObjectSegmentation, state.name) == state
        assert getattr(messages.TrackArray, state.name) == state
    for state in TrackState:
        assert getattr(messages.Track, state.name) == state
