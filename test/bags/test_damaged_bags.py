# SPDX-License-Identifier: Apache-2.0
"""Damaged recordings: what is whole is used and the rest told in a line; nothing at all is one
error with a cure.
"""

import sqlite3

import numpy as np
import pytest
from bag_makers import (
    PERIOD_NS,
    START_NS,
    TOPIC,
    Raw,
    images,
    mcap_file,
    pictures,
    ros1_bag,
    rosbag2,
    split,
    stamp,
)
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from oc_perception.bags.definitions import IMAGE, make, typestore
from oc_perception.bags.messages import compressed_message, image_message, time_message
from oc_perception.bags.reader import Bag
from oc_perception.bags.sequence import BagError, open_sequence
from oc_perception.images import MalformedImage

FRAMES = pictures(40, 100, 120)
"""So large that a megabyte, the chunk of rosbags, holds 30."""


def the_file(bag):
    return next(file for file in bag.iterdir() if file.name != "metadata.yaml")


def write(path, form):
    if form == "ros1":
        return ros1_bag(path.with_suffix(".bag"), images(FRAMES))
    return the_file(rosbag2(path, images(FRAMES), *form.split()))


def read(path, **choices):
    """Numbers and pictures of all frames, and the warnings."""
    with open_sequence(path, **choices) as sequence:
        frames = list(sequence.frames())
        return [f.index for f in frames], [f.image for f in frames], sequence.warnings


@pytest.mark.parametrize("form", ["mcap", "mcap storage", "sqlite3", "ros1"])
def test_a_recording_that_is_cut_off_is_used_up_to_there(tmp_path, form):
    whole = write(tmp_path / "whole", form).read_bytes()
    cut = tmp_path / f"cut.{'bag' if form == 'ros1' else 'x'}"
    counts = []
    for part in np.linspace(0, 1, 23)[:-1]:
        cut.write_bytes(whole[: int(len(whole) * part)])
        try:
            indices, found, warnings = read(cut)
        except BagError as error:
            assert "cut.x" in str(error) or "cut.bag" in str(error)
            counts.append(0)
            continue
        assert indices == list(range(len(found)))
        np.testing.assert_array_equal(found, FRAMES[: len(found)])
        assert len(warnings) == 1
        assert "cut." in warnings[0]
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[0] == 0
    # A chunk packed with zstd that is cut off may be lost, of others no whole message is.
    least = 28 if form == "mcap storage" else 35
    assert counts[-1] >= least


@pytest.mark.parametrize("form", ["mcap", "mcap storage", "sqlite3", "ros1"])
def test_any_damage_costs_frames_never_a_crash(tmp_path, form):
    generator = np.random.default_rng(0)
    whole = np.frombuffer(write(tmp_path / "whole", form).read_bytes(), np.uint8)
    path = tmp_path / "damaged.bag"
    readable = 0
    for _ in range(30):
        data = whole.copy()
        start = generator.integers(len(data) - 300)
        kind = generator.integers(3)
        if kind == 0:
            data[start : start + 300] = generator.integers(0, 256, 300)
        elif kind == 1:
            data[start : start + 300] = 0
        else:
            data = np.delete(data, slice(start, start + 300))
        path.write_bytes(data.tobytes())
        try:
            indices, _, _ = read(path)
        except BagError:
            continue
        readable += len(indices) > 0
        assert indices == sorted(set(indices))
    assert readable >= 20


@pytest.mark.parametrize("form", ["mcap", "mcap without index", "sqlite3", "ros1"])
def test_damage_to_the_structure_is_told_or_refused(tmp_path, form):
    """In a file that is hardly more than structure."""
    generator = np.random.default_rng(0)
    messages = images(pictures(8, 2, 2))
    if form == "ros1":
        path = ros1_bag(tmp_path / "whole.bag", messages)
    elif form == "mcap without index":
        cdr = [(t, ns, bytes(typestore().serialize_cdr(m, IMAGE))) for t, ns, m in messages]
        path = mcap_file(tmp_path / "whole.mcap", cdr, per_chunk=3, summary=False)
    else:
        path = the_file(rosbag2(tmp_path / "whole", messages, form))
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    damaged = tmp_path / "damaged.bag"
    for _ in range(150):
        data = whole.copy()
        places = generator.integers(0, len(data), generator.integers(1, 12))
        data[places] = generator.choice([0, 1, 255, 128, 6, 5], len(places))
        damaged.write_bytes(data.tobytes())
        try:
            indices, _, _ = read(damaged)
            assert indices == sorted(set(indices))
        except BagError as error:
            assert "damaged.bag" in str(error) or TOPIC in str(error)


def test_a_damaged_chunk_costs_its_own_frames_alone(tmp_path):
    messages = [(t, ns, bytes(typestore().serialize_cdr(m, IMAGE))) for t, ns, m in images(FRAMES)]
    path = mcap_file(tmp_path / "a.mcap", messages, per_chunk=10)
    data = bytearray(path.read_bytes())
    data[data.find(FRAMES[15].tobytes())] ^= 1
    path.write_bytes(data)
    indices, found, warnings = read(path)
    expected = [*range(10), *range(20, 40)]  # the others keep their number
    assert indices == expected
    np.testing.assert_array_equal(found, FRAMES[expected])
    assert warnings == ["1 chunk(s) of a.mcap left out; the first: its checksum is wrong"]
    with open_sequence(path) as sequence:
        assert [f.index for f in sequence.frames(0.5, 1.0)] == list(range(20, 25))


def test_a_page_that_cannot_be_read_costs_its_own_frames_alone(tmp_path):
    path = write(tmp_path / "bag", "sqlite3")
    data = bytearray(path.read_bytes())
    place = data.find(FRAMES[20, 50].tobytes()) // 4096 * 4096
    data[place : place + 4] = b"\xff" * 4  # where the rest of the picture is
    path.write_bytes(data)
    indices, found, warnings = read(path)
    assert indices == [i for i in range(40) if i != 20]
    np.testing.assert_array_equal(found, np.delete(FRAMES, 20, axis=0))
    assert len(warnings) == 1
    assert warnings[0].startswith("1 message(s) in bag.db3 left out; the first:")


def test_the_journal_of_a_recorder_that_was_killed_counts(tmp_path):
    path = write(tmp_path / "bag", "sqlite3")
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(
        "INSERT INTO messages SELECT NULL, topic_id, timestamp + 1, data FROM messages"
    )
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in path.parent.glob("bag.db3*"):
        (copy / file.name).write_bytes(file.read_bytes())
    assert (copy / "bag.db3-wal").stat().st_size > 1_000_000
    database.close()
    with Bag(copy) as bag:
        assert bag.count(TOPIC) == 80


@pytest.mark.parametrize("metadata", [None, b"\xff\xfe", b"", b"a: [", b"rosbag2: 1"])
def test_files_without_metadata_are_read_in_natural_order(tmp_path, metadata):
    parts = [images(FRAMES[i : i + 1], first=i) for i in range(11)]
    bag = split(tmp_path / "bag", parts)
    (bag / "metadata.yaml").unlink()
    if metadata is not None:
        (bag / "metadata.yaml").write_bytes(metadata)
    indices, found, warnings = read(bag)
    assert indices == list(range(11))
    np.testing.assert_array_equal(found, FRAMES[:11])
    assert len(warnings) == 1
    assert "ros2 bag reindex" in warnings[0]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_one_damaged_file_of_a_split_bag_is_left_out(tmp_path, storage):
    parts = [images(FRAMES[i : i + 5], first=i) for i in (0, 5, 10)]
    bag = split(tmp_path / "bag", parts, storage=storage)
    middle = next(bag.glob("bag_1.*"))
    middle.write_bytes(b"\x00" * 100)
    indices, found, warnings = read(bag)
    assert indices == list(range(10))
    np.testing.assert_array_equal(found, [*FRAMES[:5], *FRAMES[10:15]])
    assert warnings[0].startswith(f"{middle.name} is left out: it is empty.")
    middle.unlink()
    indices, _, warnings = read(bag)
    assert indices == list(range(10))
    assert warnings == [f"{middle.name} of bag is missing: copy it again."]
    for file in bag.glob("bag_*"):
        file.write_bytes(b"")
    with pytest.raises(BagError, match=r"Cannot open .*bag: it is empty\. Record or copy"):
        open_sequence(bag)


def test_a_message_that_cannot_be_read_is_left_out_and_counted(tmp_path):
    messages = images(FRAMES[:6])
    good = messages[0][2]
    for index, raw in ((2, b"\x00\x01\x00\x00\x07"), (4, b"")):
        messages[index] = (TOPIC, stamp(index), Raw(IMAGE, raw))
    indices, found, warnings = read(rosbag2(tmp_path / "bag", messages))
    assert indices == [0, 1, 3, 5]  # what was recorded keeps its number
    np.testing.assert_array_equal(found, FRAMES[[0, 1, 3, 5]])
    assert len(warnings) == 1
    assert warnings[0].startswith(f"2 message(s) on {TOPIC} left out; the first: it is no {IMAGE}")
    nothing = [(TOPIC, t, Raw(IMAGE, b"\x00")) for _, t, _ in messages]
    path = rosbag2(tmp_path / "nothing", nothing)
    with pytest.raises(BagError, match=r"no message that can be read|no two different stamps"):
        open_sequence(path)
    assert good.height == 100


def test_pictures_that_cannot_be_decoded_are_errors_in_their_place(tmp_path):
    empty = image_message(stamp(1), np.zeros((0, 0, 3), np.uint8))
    unknown = image_message(stamp(2), FRAMES[2])
    unknown.encoding = "plaid8"
    messages = images(FRAMES[:4])
    messages[1], messages[2] = (TOPIC, stamp(1), empty), (TOPIC, stamp(2), unknown)
    _, found, warnings = read(rosbag2(tmp_path / "bag", messages))
    assert [isinstance(image, MalformedImage) for image in found] == [False, True, True, False]
    assert warnings == [
        f"2 image(s) on {TOPIC} left out; the first: The image is empty (0x0): the driver must "
        "fill in width and height."
    ]
    jpegs = [(TOPIC, t, compressed_message(t, "jpeg", b"\xff\xd8\xff")) for _, t, _ in messages]
    _, found, _ = read(rosbag2(tmp_path / "jpegs", jpegs))
    assert all(isinstance(image, MalformedImage) for image in found)


def store_with(**definitions):
    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in definitions.items():
        store.register(get_types_from_msg(text, f"robot_msgs/msg/{name}"))
    return store


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_unknown_types_on_other_topics_do_not_matter(tmp_path, storage):
    store = store_with(Wheels="float64[4] speed\nuint8 state")
    wheels = store.types["robot_msgs/msg/Wheels"](speed=np.arange(4.0), state=3)
    messages = [*images(FRAMES[:3]), ("/wheels", stamp(0), wheels)]
    bag_path = rosbag2(tmp_path / "bag", messages, storage, store=store)
    indices, _, warnings = read(bag_path)
    assert (indices, warnings) == ([0, 1, 2], [])
    with Bag(bag_path) as bag:  # its description is in the bag
        ((_, _, message),) = bag.messages(["/wheels"])
        np.testing.assert_array_equal(message.speed, np.arange(4.0))


def test_a_type_that_nobody_describes_is_left_out(tmp_path):
    store = store_with(Wheels="float64[4] speed")
    wheels = store.types["robot_msgs/msg/Wheels"](speed=np.arange(4.0))
    messages = [*images(FRAMES[:3]), ("/wheels", stamp(0), wheels)]
    path = the_file(rosbag2(tmp_path / "bag", messages, "sqlite3", store=store))
    with sqlite3.connect(path) as database:  # as recorded before Iron
        database.execute("DROP TABLE message_definitions")
    with Bag(path) as bag:
        assert list(bag.messages(["/wheels"])) == []
        assert "'robot_msgs/msg/Wheels' is unknown, and not described" in bag.warnings[0]
        assert len(list(bag.messages([TOPIC]))) == 3


def test_a_type_name_that_is_code_is_never_run(tmp_path):
    path = the_file(rosbag2(tmp_path / "bag", images(FRAMES[:3]), "sqlite3"))
    hostile = "x/msg/A:\n    import os; os.abort()\nclass B"
    with sqlite3.connect(path) as database:
        database.execute("UPDATE topics SET type = ?", (hostile,))
        database.execute("UPDATE message_definitions SET topic_type = ?", (hostile,))
    with Bag(path) as bag:
        assert list(bag.messages([TOPIC])) == []
    with pytest.raises(BagError, match="needs exactly one image topic"):
        open_sequence(path)


def test_a_topic_that_is_absent_or_has_no_image_is_named(tmp_path):
    time = ("/time", START_NS, make("builtin_interfaces/msg/Time", sec=1, nanosec=2))
    path = rosbag2(tmp_path / "bag", [*images(FRAMES[:3]), time])
    with pytest.raises(BagError, match=rf"no image topic '/eye'. Image topics: {TOPIC}"):
        open_sequence(path, topic="/eye")
    with pytest.raises(BagError, match="no image topic '/time'"):
        open_sequence(path, topic="/time")
    only = rosbag2(tmp_path / "only", [("/time", START_NS, time_message(START_NS))])
    with pytest.raises(BagError, match="has none; its topics: /time"):
        open_sequence(only)


def test_a_topic_that_nobody_published_on_is_no_choice(tmp_path):
    path = the_file(rosbag2(tmp_path / "bag", images(FRAMES[:3]), "sqlite3"))
    with sqlite3.connect(path) as database:
        columns = "type, serialization_format, offered_qos_profiles, type_description_hash"
        database.execute(
            f"INSERT INTO topics (name, {columns}) SELECT '/a/image', {columns} FROM topics"
        )
    with open_sequence(path) as sequence:
        assert (sequence.topic, len(list(sequence.frames()))) == (TOPIC, 3)
    with pytest.raises(BagError, match=r"/a/image in .* has no message"):
        open_sequence(path, topic="/a/image")


def test_what_is_no_recording_is_refused_with_a_cure(tmp_path):
    for name, content in (("a.mcap", b"hello"), ("a.bag", b""), ("a.db3", b"x" * 5000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BagError, match="Record or copy it again"):
            open_sequence(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BagError, match="neither a folder, a tar nor a video"):
        open_sequence(tmp_path / "notes.txt")
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V1.2\n")
    with pytest.raises(BagError, match="rosbag fix"):
        open_sequence(tmp_path / "old.bag")
    with pytest.raises(BagError, match="check the path"):
        open_sequence(tmp_path / "absent")
    rosbag2(tmp_path / "empty", [])
    with pytest.raises(BagError, match="holds no message"):
        open_sequence(tmp_path / "empty")


def test_equal_stamps_are_no_sequence(tmp_path):
    messages = [(TOPIC, START_NS + i * PERIOD_NS, images(FRAMES[:1])[0][2]) for i in range(3)]
    with pytest.raises(BagError, match="no two different stamps"):
        open_sequence(rosbag2(tmp_path / "bag", messages))
