# SPDX-License-Identifier: Apache-2.0
"""Bags: read back by rosbags alone, equal bytes for equal input, clear errors for damage."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from oc_perception.bags.camera import BagTopics
from oc_perception.bags.definitions import SEGMENTATION, TRACKS, TRAJECTORIES, typestore
from oc_perception.bags.frames import BagError
from oc_perception.bags.messages import (
    camera_info_message,
    compressed_message,
    image_message,
    segmentation_from_message,
    segmentation_message,
    track_messages,
    track_output_from_messages,
)
from oc_perception.bags.reader import Bag
from oc_perception.bags.writer import BagWriter
from oc_perception.images import MalformedImage
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

START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 40_000_000
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 12, 16, 3), dtype=np.uint8)
STORAGES = [("mcap", False), ("mcap", True), ("sqlite3", False)]


def stamp(index: int) -> int:
    return START_NS + index * PERIOD_NS


def write_images(path: Path, storage: str = "mcap", compress: bool = False) -> Path:
    with BagWriter(path, storage, compress) as bag:
        for index, frame in enumerate(FRAMES):
            bag.write("/camera/image", stamp(index), image_message(stamp(index), frame))
    return path


def digest(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def segmentation() -> Segmentation:
    labels = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16) % 3
    detections = (
        Detection(
            0, np.array([7.5, 5.25, 16, 12]), 64, 0.5, is_background=True, roi=(0, 0, 16, 12)
        ),
        Detection(
            1,
            np.array([3.5, 4.25, 3, 2]),
            6,
            1.0,
            np.array([0.5, -2], np.float32),
            roi=(2, 4, 3, 2),
        ),
        Detection(
            2, np.array([9, 8, 1, 1]), 1, 0.25, point_m=np.array([0.5, 0.25, 2]), roi=(9, 8, 1, 1)
        ),
    )
    return Segmentation(stamp(0), SensorState.OK, "grid", 7, labels, detections)


def track_output() -> TrackOutput:
    # float32 holds these numbers, so that the way there and back must be exact
    half = np.arange(16.0).reshape(4, 4)
    covariance = half @ half.T
    track = Track(
        id=3,
        state=TrackState.COASTING,
        box=np.array([1.5, 2.5, 3, 4]),
        velocity=np.array([-0.5, 8]),
        covariance=covariance,
        existence_probability=0.75,
        age=9,
        hits=4,
        last_seen_ns=stamp(0),
        embedding=np.array([0.25], np.float32),
    )
    mode = TrajectoryMode(
        1.0,
        np.array([0.1, 1.2]),
        np.array([[1, 2, 3, 4], [5, 6, 7, 8.0]]),
        np.array([[1, 0, 2], [3, 0.5, 4.0]]),
    )
    return TrackOutput(
        stamp_ns=stamp(1),
        source_stamp_ns=stamp(0),
        session=bytes(range(16)),
        sensor_state=SensorState.BLACK,
        tracks=(track,),
        trajectories=(Trajectory(3, TrackState.COASTING, (mode,)),),
    )


def assert_same(a, b) -> None:
    """Deep equality of dataclasses that hold arrays."""
    if isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif hasattr(a, "__dataclass_fields__"):
        for name in a.__dataclass_fields__:
            assert_same(getattr(a, name), getattr(b, name))
    else:
        assert a == b


@pytest.mark.parametrize(("storage", "compress"), STORAGES)
def test_rosbags_alone_reads_what_was_written(tmp_path, storage, compress):
    write_images(tmp_path / "bag", storage, compress)
    with AnyReader([tmp_path / "bag"]) as reader:  # types from the bag itself
        messages = [
            (time, reader.deserialize(data, connection.msgtype))
            for connection, time, data in reader.messages()
        ]
    assert [time for time, _ in messages] == [stamp(i) for i in range(len(FRAMES))]
    for (_, message), frame in zip(messages, FRAMES, strict=True):
        assert (message.encoding, message.height, message.width, message.step) == (
            "rgb8",
            12,
            16,
            48,
        )
        np.testing.assert_array_equal(message.data.reshape(12, 16, 3), frame)


@pytest.mark.parametrize(("storage", "compress"), STORAGES)
def test_frames_come_back_in_order_from_directory_and_from_lone_file(tmp_path, storage, compress):
    bag_path = write_images(tmp_path / "bag", storage, compress)
    (file,) = (p for p in bag_path.iterdir() if p.suffix in (".mcap", ".db3"))
    for path in (bag_path, file):
        with Bag(path) as bag:
            topics = bag.select()
            assert topics == BagTopics("/camera/image")
            assert bag.count(topics.image) == len(FRAMES)
            assert bag.period_ns(topics.image) == PERIOD_NS
            frames = list(bag.frames(topics))
        assert [f.stamp_ns for f in frames] == [stamp(i) for i in range(len(FRAMES))]
        np.testing.assert_array_equal([f.image for f in frames], FRAMES)


@pytest.mark.parametrize(("storage", "compress"), STORAGES)
def test_equal_input_gives_equal_bytes(tmp_path, storage, compress):
    digests = {digest(write_images(tmp_path / n / "bag", storage, compress)) for n in "abc"}
    assert len(digests) == 1


def test_our_messages_survive_the_way_through_a_bag(tmp_path):
    blind = Segmentation(stamp(1), SensorState.STALE, "grid", 7)
    tracks, trajectories = track_messages(track_output())
    with BagWriter(tmp_path / "bag") as bag:
        bag.write("/segmentation", stamp(0), segmentation_message(segmentation()))
        bag.write("/segmentation", stamp(1), segmentation_message(blind))
        bag.write("/tracks", stamp(1), tracks)
        bag.write("/trajectories", stamp(1), trajectories)
    with Bag(tmp_path / "bag") as bag:
        assert bag.topics == {
            "/segmentation": SEGMENTATION,
            "/tracks": TRACKS,
            "/trajectories": TRAJECTORIES,
        }
        seen, unseen = (m for _, _, m in bag.messages(["/segmentation"]))
        assert_same(segmentation(), segmentation_from_message(seen))
        assert_same(blind, segmentation_from_message(unseen))
        found = [m for _, _, m in bag.messages(["/tracks", "/trajectories"])]
    assert_same(track_output(), track_output_from_messages(*found))


def test_companions_of_the_same_stamp_are_found_before_and_after_the_image(tmp_path):
    matrix = np.array([[100.0, 0, 8], [0, 100, 6], [0, 0, 1]])
    with BagWriter(tmp_path / "bag") as bag:
        for index, frame in enumerate(FRAMES):
            depth = np.full((12, 16), index, np.float32)
            messages = [
                ("/camera/image", image_message(stamp(index), frame)),
                ("/camera/depth", image_message(stamp(index), depth)),
            ]
            if index % 2:
                messages.reverse()
            for topic, message in messages:
                bag.write(topic, stamp(index), message)
            # camera_info and ground truth arrive two frames late
            info = camera_info_message(stamp(index), matrix, 12, 16)
            bag.write("/camera/camera_info", stamp(index + 2), info)
            if index != 3:
                truth = Segmentation(stamp(index), SensorState.OK, "truth", index)
                message = segmentation_message(truth)
                bag.write("/camera/ground_truth/segmentation", stamp(index + 2), message)
    with Bag(tmp_path / "bag") as bag:
        topics = bag.select()
        assert topics == BagTopics(
            "/camera/image",
            "/camera/depth",
            "/camera/camera_info",
            "/camera/ground_truth/segmentation",
        )
        frames = list(bag.frames(topics))
    assert [None if f.truth is None else f.truth.frame_seq for f in frames] == [0, 1, 2, None, 4]
    np.testing.assert_array_equal([f.image for f in frames], FRAMES)
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.camera_matrix, matrix)
        np.testing.assert_array_equal(frame.depth_m, np.full((12, 16), index or np.nan))


def test_a_damaged_picture_is_an_error_in_its_place_not_the_end(tmp_path):
    jpeg = cv2.imencode(".jpg", FRAMES[0])[1].tobytes()
    with BagWriter(tmp_path / "bag") as bag:
        for index, data in enumerate((jpeg, jpeg[:-20], jpeg)):
            message = compressed_message(stamp(index), "jpeg", data)
            bag.write("/image/compressed", stamp(index), message)
    with Bag(tmp_path / "bag") as bag:
        images = [frame.image for frame in bag.frames(bag.select())]
    assert isinstance(images[1], MalformedImage)
    np.testing.assert_array_equal(images[0], images[2])


def test_the_choice_among_image_topics_is_the_users(tmp_path):
    jpeg = cv2.imencode(".jpg", FRAMES[0])[1].tobytes()
    with BagWriter(tmp_path / "bag") as bag:
        for topic in ("/left/image", "/right/image"):
            bag.write(topic, START_NS, image_message(START_NS, FRAMES[0]))
        bag.write("/left/image/compressed", START_NS, compressed_message(START_NS, "jpeg", jpeg))
    with Bag(tmp_path / "bag") as bag:
        with pytest.raises(BagError, match=r"/left/image, .*/right/image\. Choose one"):
            bag.select()
        with pytest.raises(BagError, match=r"no image topic '/top/image'. Image topics: /left"):
            bag.select("/top/image")
        assert bag.select("/right/image").image == "/right/image"


def test_raw_images_win_over_their_compressed_copy(tmp_path):
    jpeg = cv2.imencode(".jpg", FRAMES[0])[1].tobytes()
    with BagWriter(tmp_path / "bag") as bag:
        bag.write("/image/compressed", START_NS, compressed_message(START_NS, "jpeg", jpeg))
        bag.write("/image", START_NS, image_message(START_NS, FRAMES[0]))
    with Bag(tmp_path / "bag") as bag:
        assert bag.select().image == "/image"


def test_a_bag_without_a_sequence_says_so(tmp_path):
    with BagWriter(tmp_path / "empty") as bag:
        bag.write("/tracks", START_NS, track_messages(track_output())[0])
    with (
        Bag(tmp_path / "empty") as bag,
        pytest.raises(BagError, match="none; its topics: /tracks"),
    ):
        bag.select()
    with BagWriter(tmp_path / "single") as bag:
        bag.write("/image", START_NS, image_message(START_NS, FRAMES[0]))
    with Bag(tmp_path / "single") as bag, pytest.raises(BagError, match="a sequence is needed"):
        bag.period_ns("/image")


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("keep", [0, 5, 400])
def test_files_of_which_nothing_is_left_are_refused_with_a_cure(tmp_path, storage, keep):
    bag_path = write_images(tmp_path / "bag", storage)
    (file,) = (p for p in bag_path.iterdir() if p.suffix in (".mcap", ".db3"))
    file.write_bytes(file.read_bytes()[:keep])
    for path in (bag_path, file):
        with pytest.raises(BagError, match="Record or copy it again"), Bag(path):
            pass


def test_what_is_no_bag_is_refused_with_a_cure(tmp_path):
    with pytest.raises(BagError, match="no bag at"):
        Bag(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BagError, match=r"Give a rosbag2 directory"), Bag(tmp_path / "notes.txt"):
        pass
    bag_path = write_images(tmp_path / "bag")
    (bag_path / "bag.mcap").unlink()
    with pytest.raises(BagError, match=r"holds no \.mcap, \.db3 or \.bag"), Bag(bag_path):
        pass


def test_an_interrupted_bag_leaves_nothing_and_an_old_one_untouched(tmp_path):
    path = tmp_path / "bag"
    for before in (None, digest(write_images(tmp_path / "other" / "bag"))):
        if before:
            write_images(path)
        with pytest.raises(KeyboardInterrupt), BagWriter(path, overwrite=True) as bag:
            bag.write("/image", START_NS, image_message(START_NS, FRAMES[0]))
            raise KeyboardInterrupt
        assert [p.name for p in tmp_path.iterdir() if "bag" in p.name] == (
            ["bag"] if before else []
        )
    assert digest(path) == before


def test_only_bags_are_overwritten(tmp_path):
    write_images(tmp_path / "bag")
    with pytest.raises(FileExistsError, match="exists already"):
        BagWriter(tmp_path / "bag")
    (tmp_path / "home").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        BagWriter(tmp_path / "home", overwrite=True)


def test_a_topic_holds_one_type(tmp_path):
    with BagWriter(tmp_path / "bag") as bag:
        bag.write("/topic", START_NS, image_message(START_NS, FRAMES[0]))
        with pytest.raises(ValueError, match="/topic holds sensor_msgs"):
            bag.write("/topic", START_NS, track_messages(track_output())[0])


def test_reading_pixels_does_not_copy_them(tmp_path):
    message = image_message(START_NS, FRAMES[0])
    data = typestore().serialize_cdr(message, message.__msgtype__)
    again = typestore().deserialize_cdr(data, message.__msgtype__)
    assert np.shares_memory(again.data, np.frombuffer(data, np.uint8))
