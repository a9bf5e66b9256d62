# SPDX-License-Identifier: Apache-2.0
"""Sequence: every source gives the same frames, any part of them, with what was recorded."""

import cv2
import numpy as np
import pytest
from bag_makers import (
    FRAMES,
    PERIOD_NS,
    TOPIC,
    folder,
    images,
    motchallenge,
    pictures,
    ros1_bag,
    rosbag2,
    split,
    stamp,
    tar,
)
from PIL import Image
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from oc_perception.bags import camera
from oc_perception.bags import pictures as picture_files
from oc_perception.bags.definitions import SEGMENTATION, typestore
from oc_perception.bags.messages import (
    camera_info_message,
    compressed_message,
    header_message,
    image_message,
    segmentation_message,
    track_messages,
)
from oc_perception.bags.reader import Bag
from oc_perception.bags.sequence import open_sequence
from oc_perception.resources import share_directory
from oc_perception.types import (
    Segmentation,
    SensorState,
    Track,
    TrackOutput,
    TrackState,
)

MATRIX = np.array([[100.0, 0, 8], [0, 100, 6], [0, 0, 1]])


def recorded_late() -> list:
    """Images with a gap behind the fifth, recorded 3 ms after their stamps; another topic."""
    other = [("/info", stamp(i), camera_info_message(stamp(i), MATRIX, 12, 16)) for i in range(12)]
    late = [(t, ns + 3_000_000, m) for i, (t, ns, m) in enumerate(images(FRAMES)) if i != 5]
    return sorted([*late, *other], key=lambda m: m[1])


def video(path):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 25, (16, 12))
    for frame in FRAMES:
        writer.write(frame[..., ::-1])
    writer.release()
    return path


SOURCES = {
    "mcap": lambda p: rosbag2(p / "it", recorded_late()),
    "mcap storage": lambda p: rosbag2(p / "it", recorded_late(), compression="storage"),
    "mcap message": lambda p: rosbag2(p / "it", recorded_late(), compression="message"),
    "mcap file": lambda p: rosbag2(p / "it", recorded_late(), compression="file"),
    "mcap split": lambda p: split(
        p / "it", [recorded_late()[i : i + 5] for i in (0, 5, 10, 15, 20)]
    ),
    "mcap split file": lambda p: split(
        p / "it", [recorded_late()[i : i + 12] for i in (0, 12)], compression="file"
    ),
    "mcap alone": lambda p: rosbag2(p / "bag" / "it", recorded_late()) / "it.mcap",
    "sqlite3": lambda p: rosbag2(p / "it", recorded_late(), "sqlite3"),
    "sqlite3 message": lambda p: rosbag2(p / "it", recorded_late(), "sqlite3", "message"),
    "sqlite3 file": lambda p: rosbag2(p / "it", recorded_late(), "sqlite3", "file"),
    "sqlite3 alone": lambda p: rosbag2(p / "bag" / "it", recorded_late(), "sqlite3") / "it.db3",
    "ros1": lambda p: ros1_bag(p / "it.bag", recorded_late()),
    "ros1 lz4": lambda p: ros1_bag(p / "it.bag", recorded_late(), "lz4"),
    "motchallenge": lambda p: motchallenge(p / "it"),
    "motchallenge tar": lambda p: tar(p / "it.tar"),
    "video": lambda p: video(p / "it.avi"),
}


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    """A recording of FRAMES at 25 Hz without the one of number 5 (a video has no gap)."""
    (tmp_path / "bag").mkdir()
    return request.param, SOURCES[request.param](tmp_path)


def test_every_source_gives_the_same_frames(source):
    kind, path = source
    present = [i for i in range(12) if i != 5 or kind == "video"]
    with open_sequence(path) as sequence:
        assert sequence.name == "it"
        assert sequence.topic == TOPIC
        assert sequence.num_frames == len(present)
        assert sequence.period_ns == PERIOD_NS
        for _ in range(2):
            frames = list(sequence.frames())
            assert [f.index for f in frames] == list(range(len(present)))
            np.testing.assert_array_equal([f.image for f in frames], FRAMES[present])
            stamps = np.array([f.stamp_ns for f in frames])
            np.testing.assert_allclose(
                stamps - stamps[0], np.array(present) * PERIOD_NS, atol=1000
            )
        # the truth of MOTChallenge is shorter than the pictures here
        assert len(sequence.warnings) == kind.startswith("motchallenge")


def test_a_range_of_time_is_a_part_of_the_whole(source, monkeypatch):
    """The same frames, and nothing else is decoded."""
    _, path = source
    decoded = []
    for module, name in ((camera, "rgb_from_message"), (picture_files.Picture, "rgb")):
        original = getattr(module, name)
        count = lambda *a, original=original: decoded.append(1) or original(*a)  # noqa: E731
        monkeypatch.setattr(module, name, count)
    with open_sequence(path) as sequence:
        whole = list(sequence.frames())
        times_s = np.array([f.stamp_ns - whole[0].stamp_ns for f in whole]) * 1e-9
        for start_s, stop_s in ((0.0, 0.1), (0.11, 0.3), (0.2, 0.21), (0.3, 9), (5, 6), (-1, 0.1)):
            decoded.clear()
            part = list(sequence.frames(start_s, stop_s))
            expected = [f for f, t in zip(whole, times_s, strict=True) if start_s <= t < stop_s]
            assert [f.index for f in part] == [f.index for f in expected]
            assert [f.stamp_ns for f in part] == [f.stamp_ns for f in expected]
            assert all((a.image == b.image).all() for a, b in zip(part, expected, strict=True))
            assert len(decoded) == len(part)


def test_identity_is_of_the_recording_not_of_its_place_or_form(source, tmp_path):
    kind, path = source
    with open_sequence(path) as sequence:
        identity = sequence.identity()
        assert identity == sequence.identity()
    moved = path.rename(tmp_path / f"moved{path.suffix}")
    with open_sequence(moved) as sequence:
        assert sequence.identity() == identity
    if kind.startswith(("mcap", "sqlite3")):
        with open_sequence(rosbag2(tmp_path / "other", recorded_late(), "sqlite3")) as sequence:
            assert sequence.identity() == identity
        with open_sequence(rosbag2(tmp_path / "fewer", recorded_late()[:-2])) as sequence:
            assert sequence.identity() != identity


def test_identities_tell_what_was_recorded_beside_the_images_from_its_truth(tmp_path):
    def identities(name, recorded):
        bag = rosbag2(tmp_path / name, sorted([*images(FRAMES), *recorded], key=lambda m: m[1]))
        with open_sequence(bag) as sequence:
            return sequence.identity(), sequence.truth_identity()

    def truth(label):
        labels = np.full((12, 16), label, np.uint8)
        told = Segmentation(stamp(3), SensorState.OK, "truth", 3, labels)
        return [("/ground_truth/segmentation", stamp(3), segmentation_message(told))]

    def depth(metres):
        image = image_message(stamp(3), np.full((12, 16), metres, np.float32))
        return [("/camera/depth", stamp(3), image)]

    plain = identities("plain", [])
    assert plain[1] == ""
    first, second = identities("first", truth(1)), identities("second", truth(2))
    assert first[0] == second[0] == plain[0], "the images are the same"
    assert len({plain[1], first[1], second[1]}) == 3, "the truth is another"
    near, far = identities("near", depth(1.0)), identities("far", depth(2.0))
    assert len({plain[0], near[0], far[0]}) == 3, "perception sees the depth"


def test_depth_pictures_belong_to_the_identity_of_a_folder(tmp_path):
    found = []
    for metres in (1000, 2000):
        directory = tmp_path / f"{metres}" / "it"
        directory.mkdir(parents=True)
        for index, frame in enumerate(FRAMES[:3]):
            Image.fromarray(frame).save(directory / f"{index}-color.png")
            depth = np.full((12, 16), metres, np.uint16)
            cv2.imwrite(str(directory / f"{index}-depth.png"), depth)
        with open_sequence(directory, fps=10) as sequence:
            found.append(sequence.identity())
    assert found[0] != found[1]


def test_one_image_among_many_changes_the_identity(tmp_path):
    found = set()
    for name, shade in (("a", 0), ("b", 255)):
        frames = FRAMES[np.arange(60) % 12].copy()
        frames[31] = shade
        with open_sequence(rosbag2(tmp_path / name, images(frames))) as sequence:
            found.add(sequence.identity())
    assert len(found) == 2


@pytest.mark.parametrize(
    ("depth_size", "info_size", "focal", "warning"),
    [
        ((12, 16), (12, 16), 100.0, None),
        ((6, 8), (12, 16), 100.0, "The depth is of 8x6 px"),
        ((12, 16), (12, 16), 0.0, "no usable matrix"),  # as drivers say "not calibrated"
        ((12, 16), (24, 32), 100.0, "camera_info is of 32x24 px"),
    ],
)
def test_depth_that_does_not_fit_is_left_out(tmp_path, depth_size, info_size, focal, warning):
    matrix = np.diag([focal, focal, 1.0])
    depth = image_message(stamp(0), np.ones(depth_size, np.float32))
    info = camera_info_message(stamp(0), matrix, *info_size)
    beside = [("/camera/depth", stamp(0), depth), ("/camera/camera_info", stamp(0), info)]
    with open_sequence(rosbag2(tmp_path / "bag", [*images(FRAMES[:2]), *beside])) as sequence:
        first, second = sequence.frames()
        assert (first.depth_m is None) == (first.camera_matrix is None) == (warning is not None)
        assert second.depth_m is None and isinstance(second.image, np.ndarray)
        assert len(sequence.warnings) == bool(warning)
        assert warning is None or warning in sequence.warnings[0]


def test_the_raw_and_the_compressed_topic_of_a_ros1_bag(tmp_path):
    jpeg = cv2.imencode(".png", FRAMES[0])[1].tobytes()
    packed = [
        (f"{TOPIC}/compressed", stamp(i), compressed_message(stamp(i), "png", jpeg))
        for i in range(3)
    ]
    path = ros1_bag(
        tmp_path / "it.bag", sorted([*images(FRAMES[:3]), *packed], key=lambda m: m[1])
    )
    with open_sequence(path) as sequence:
        assert sequence.topic == TOPIC
    with open_sequence(path, topic=f"{TOPIC}/compressed") as sequence:
        for frame in sequence.frames():
            np.testing.assert_array_equal(frame.image, FRAMES[0, ..., ::-1])


def test_a_directory_of_ros1_bags_is_one_recording(tmp_path):
    directory = tmp_path / "it"
    directory.mkdir()
    for number in range(3):
        part = images(FRAMES[4 * number : 4 * number + 4], first=4 * number)
        ros1_bag(directory / f"it_{number}.bag", part)
    with open_sequence(directory) as sequence:
        np.testing.assert_array_equal([f.image for f in sequence.frames()], FRAMES)
        assert [f.index for f in sequence.frames(0.2, 0.4)] == [5, 6, 7, 8, 9]
        assert sequence.warnings == []


def with_companions() -> list:
    """Depth, camera and truth recorded two frames after the image that they belong to."""
    messages = images(FRAMES)
    for index in range(12):
        time_ns, late_ns = stamp(index), stamp(index + 2)
        depth = image_message(time_ns, np.full((12, 16), index + 1, np.float32))
        labels = np.full((12, 16), index, np.uint8)
        truth = Segmentation(time_ns, SensorState.OK, "truth", index, labels)
        track = Track(
            id=7, state=TrackState.CONFIRMED, box=np.array([index, 2.0, 3, 4]),
            velocity=np.zeros(2), covariance=np.eye(4), existence_probability=1.0,
            age=1, hits=1, last_seen_ns=time_ns,
        )  # fmt: skip
        tracks = TrackOutput(time_ns, time_ns, bytes(16), SensorState.OK, (track,), ())
        info = camera_info_message(time_ns, MATRIX, 12, 16)
        messages += [
            ("/camera/depth", late_ns, depth),
            ("/camera/camera_info", late_ns, info),
            ("/ground_truth/segmentation", late_ns, segmentation_message(truth)),
            ("/ground_truth/tracks", late_ns, track_messages(tracks)[0]),
        ]
    return sorted(messages, key=lambda m: m[1])


def test_what_was_recorded_with_an_image_comes_with_it_in_any_range(tmp_path):
    with open_sequence(rosbag2(tmp_path / "it", with_companions())) as sequence:
        for start_s, numbers in ((0.0, range(12)), (0.2, range(5, 12))):
            frames = list(sequence.frames(start_s))
            assert [f.index for f in frames] == list(numbers)
            for number, frame in zip(numbers, frames, strict=True):
                np.testing.assert_array_equal(frame.depth_m, np.full((12, 16), number + 1))
                np.testing.assert_array_equal(frame.camera_matrix, MATRIX)
                np.testing.assert_array_equal(frame.truth.label_image, number)
                np.testing.assert_array_equal(frame.boxes.ids, [7])
                np.testing.assert_array_equal(frame.boxes.boxes, [[number, 2, 3, 4]])


@pytest.mark.parametrize(("kind", "encoded"), [("16UC1", 1500), ("32FC1", 650)])
def test_packed_depth_is_metres(tmp_path, kind, encoded):
    a, b = 1000.0, 0.0 if kind == "16UC1" else -350.0 / 3
    raw = np.array([[encoded, 0]], np.uint16)
    expected = 1.5 if kind == "16UC1" else a / (encoded - b)
    head = np.array([0, 0, 0], np.uint32)
    head[1:] = np.array([a, b], np.float32).view(np.uint32)
    data = head.tobytes() + cv2.imencode(".png", raw)[1].tobytes()
    topic = "/camera/depth/compressedDepth"
    messages = images(pictures(3, *raw.shape))
    for i in range(3):
        packed = compressed_message(stamp(i), f"{kind}; compressedDepth", data)
        messages.append((topic, stamp(i), packed))
    with open_sequence(rosbag2(tmp_path / "it", messages)) as sequence:
        for frame in sequence.frames():
            np.testing.assert_allclose(frame.depth_m, [[expected, np.nan]], rtol=1e-6)


def test_definitions_in_the_bag_win_over_ours(tmp_path):
    """A bag of an older msg/: slots in another order of fields, and no model or frame_seq."""
    slot = (
        "float32 score\nuint8 label\nsensor_msgs/RegionOfInterest roi\nfloat32 centroid_x\n"
        "float32 centroid_y\nuint32 area\n"
    )
    segmentation = (
        "std_msgs/Header header\nObjectSlot[] slots\nuint8 sensor_state\n"
        "sensor_msgs/Image label_image\n"
    )
    old = get_typestore(Stores.ROS2_HUMBLE)
    old.register(get_types_from_msg(slot, "oc_perception/msg/ObjectSlot"))
    old.register(get_types_from_msg(segmentation, SEGMENTATION))
    labels = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16) % 3
    messages = images(FRAMES[:3])
    for index in range(3):
        region = typestore().types["sensor_msgs/msg/RegionOfInterest"](1, 2, 3, 4, False)
        slots = [old.types["oc_perception/msg/ObjectSlot"](0.25, 2, region, 5.0, 6.0, 77)]
        message = old.types[SEGMENTATION](
            header_message(stamp(index)), slots, 0, image_message(stamp(index), labels)
        )
        messages.append(("/ground_truth/segmentation", stamp(index), message))
    with open_sequence(rosbag2(tmp_path / "it", messages, store=old)) as sequence:
        for frame in sequence.frames():
            np.testing.assert_array_equal(frame.truth.label_image, labels)
            (detection,) = frame.truth.detections
            assert (detection.label, detection.score, detection.area_px) == (2, 0.25, 77)
            assert (frame.truth.model, detection.roi) == ("", (1, 2, 4, 3))
        assert sequence.warnings == []
    assert (share_directory() / "msg" / "ObjectSlot.msg").is_file()


@pytest.mark.parametrize("name", ["FOXY", "HUMBLE", "IRON", "JAZZY", "KILTED"])
def test_bags_of_every_distribution(tmp_path, name):
    store = get_typestore(Stores[f"ROS2_{name}"])
    messages = images(FRAMES[:3])
    path = rosbag2(tmp_path / "it", messages, "sqlite3", store=store)
    with open_sequence(path) as sequence:
        np.testing.assert_array_equal([f.image for f in sequence.frames()], FRAMES[:3])


def test_pictures_with_depth_beside_them(tmp_path):
    for index, frame in enumerate(FRAMES[:3]):
        Image.fromarray(frame).save(tmp_path / f"{index}-color.png")
        depth = np.full((12, 16), 500 * index, np.uint16)
        cv2.imwrite(str(tmp_path / f"{index}-depth.png"), depth)
    with open_sequence(tmp_path, fps=1) as sequence:
        frames = list(sequence.frames())
        assert sequence.num_frames == 3
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image, FRAMES[index])
        np.testing.assert_allclose(frame.depth_m, np.full((12, 16), index / 2 or np.nan))


def test_a_damaged_picture_or_tar_costs_its_frames_alone(tmp_path):
    path = folder(tmp_path / "it")
    (path / "3.png").write_bytes((path / "3.png").read_bytes()[:-30])
    (path / "4.png").write_bytes(b"")
    with open_sequence(path, fps=25) as sequence:
        malformed = [f.index for f in sequence.frames() if not isinstance(f.image, np.ndarray)]
        assert malformed == [2, 3]
        assert sequence.warnings[0].startswith(f"2 image(s) on {TOPIC} left out; the first: ")
    whole = tar(tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    with open_sequence(tmp_path / "cut.tar", fps=25) as sequence:
        frames = list(sequence.frames())
        assert 3 <= len(frames) < 11
        assert sequence.warnings[0].startswith("cut.tar is damaged (")


def test_the_genuine_ros1_picture(data_directory):
    path = data_directory / "ros1_camera_bag" / "aruco_marker.bag"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with open_sequence(path) as sequence:
        (frame,) = sequence.frames()
        assert sequence.topic == "/raspicam_node/image/compressed"
        assert (frame.image.shape, frame.camera_matrix.shape) == ((720, 1280, 3), (3, 3))
        assert sequence.warnings == []


def test_the_shortest_recording_is_one_frame(tmp_path):
    with open_sequence(rosbag2(tmp_path / "it", images(FRAMES[:1]))) as sequence:
        assert len(list(sequence.frames())) == 1
        assert (sequence.num_frames, sequence.period_ns) == (1, 1_000_000_000)


def test_a_ros1_bag_can_be_played_as_ros2_messages(tmp_path):
    path = ros1_bag(tmp_path / "it.bag", recorded_late())
    expected = [
        (topic, recorded_ns, bytes(typestore().serialize_cdr(message, message.__msgtype__)))
        for topic, recorded_ns, message in recorded_late()
    ]
    with Bag(path) as bag:
        found = [(topic, t, bytes(data)) for topic, t, _, data in bag.raw([TOPIC, "/info"])]
    assert sorted(found) == sorted(expected)


def test_a_compressed_file_that_is_cut_off_is_used_up_to_there(tmp_path):
    large = pictures(40, 100, 120)
    (path,) = rosbag2(tmp_path / "it", images(large), compression="file").glob("*.zstd")
    path.write_bytes(path.read_bytes()[:-20_000])
    with open_sequence(path.parent) as sequence:
        frames = list(sequence.frames())
        assert sequence.warnings[0].startswith("it.mcap.zstd is cut off")
    assert 25 <= len(frames) < 40
    np.testing.assert_array_equal([f.image for f in frames], large[: len(frames)])
