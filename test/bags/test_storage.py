# SPDX-License-Identifier: Apache-2.0
"""Files of recordings, whole: the same messages in the same order as rosbags reads them."""

import sqlite3
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from bag_makers import PERIOD_NS, START_NS, images, mcap_file, pictures, ros1_bag, rosbag2, stamp
from rosbags.rosbag1 import Reader as Ros1Reader
from rosbags.rosbag2 import Reader

from oc_perception.bags.chunks import Skipped
from oc_perception.bags.definitions import IMAGE, typestore
from oc_perception.bags.files import open_files

FOREVER_NS = 2**63 - 1
FORMS = ["mcap", "mcap storage", "sqlite3", "ros1", "ros1 bz2", "ros1 lz4"]


def two_cameras(large: bool = False) -> list:
    """Two topics in turn, of which some messages were recorded late; large ones fill chunks."""
    frames = np.zeros((10, 400, 400, 3), np.uint8) if large else pictures(10, 3, 4)
    frames[:, 0, 0] = np.arange(10)[:, None]
    recorded = [*images(frames, "/left"), *images(frames[::2], "/right", first=3)]
    order = np.random.default_rng(1).permutation(len(recorded))
    return [(topic, t, message) for topic, t, message in (recorded[i] for i in order)]


def write(path: Path, form: str, messages: list) -> Path:
    kind, _, compression = form.partition(" ")
    if kind == "ros1":
        return ros1_bag(path.with_suffix(".bag"), messages, compression)
    bag = rosbag2(path, messages, kind, compression)
    return next(file for file in bag.iterdir() if file.suffix in (".mcap", ".db3"))


def read(path: Path, topics: list[str], start_ns: int = 0, stop_ns: int = FOREVER_NS) -> list:
    (file,) = open_files(path, Skipped())
    return [
        (file.channels[number].topic, recorded_ns, bytes(data))
        for number, recorded_ns, data in file.messages(topics, start_ns, stop_ns)
    ]


def by_rosbags(path: Path) -> list:
    with (Ros1Reader if path.suffix == ".bag" else Reader)(path) as reader:
        return [(c.topic, t, bytes(data)) for c, t, data in reader.messages()]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_messages_are_those_that_rosbags_reads_in_order_of_time(tmp_path, form, large):
    path = write(tmp_path / "bag", form, two_cameras(large))
    expected = by_rosbags(path)
    assert len(expected) == 15
    found = read(path, ["/left", "/right"])
    assert found == sorted(expected, key=lambda m: m[1]) or form.startswith("ros1")
    assert sorted(found) == sorted(expected)
    assert [t for _, t, _ in found] == sorted(t for _, t, _ in expected)
    assert read(path, ["/right"]) == [m for m in found if m[0] == "/right"]
    assert read(path, ["/none"]) == []


@pytest.mark.parametrize("form", FORMS)
def test_any_range_of_time_can_be_read_and_counted(tmp_path, form):
    path = write(tmp_path / "bag", form, two_cameras(large=True))
    whole = read(path, ["/left", "/right"])
    (file,) = open_files(path, Skipped())
    assert file.count("/left") == 10
    assert file.span() == (START_NS, stamp(9))
    for start in range(-1, 11):
        start_ns, stop_ns = stamp(start), stamp(start) + 3 * PERIOD_NS
        expected = [m for m in whole if start_ns <= m[1] < stop_ns]
        assert read(path, ["/left", "/right"], start_ns, stop_ns) == expected
        before = sum(topic == "/left" and t < start_ns for topic, t, _ in whole)
        assert file.count_before("/left", start_ns) == before


@pytest.mark.parametrize("summary", [True, False])
@pytest.mark.parametrize(
    "form",
    [
        {"per_chunk": None},
        {"per_chunk": 1},
        {"per_chunk": 3},
        {"per_chunk": 3, "message_index": False},
        {"per_chunk": 3, "compression": "lz4"},
    ],
)
def test_every_layout_of_an_mcap_holds_the_same(tmp_path, form, summary):
    messages = [
        (topic, t, bytes(typestore().serialize_cdr(message, IMAGE)))
        for topic, t, message in two_cameras()
    ]
    path = mcap_file(tmp_path / "a.mcap", messages, **form, summary=summary)
    assert read(path, ["/left", "/right"]) == sorted(messages, key=lambda m: m[1])
    (file,) = open_files(path, Skipped())
    assert (file.count("/left"), file.count("/right")) == (10, 5)
    assert {c.message_type for c in file.channels.values()} == {IMAGE}


def test_chunks_outside_of_the_range_are_not_touched(tmp_path):
    messages = [
        (topic, t, bytes(typestore().serialize_cdr(message, IMAGE)))
        for topic, t, message in images(pictures(9))
    ]
    path = mcap_file(tmp_path / "a.mcap", messages, per_chunk=3)
    skipped = Skipped()
    (file,) = open_files(path, skipped)
    data = bytearray(path.read_bytes())
    place = data.find(messages[0][2])
    data[place] ^= 255  # whoever reads the first chunk finds its checksum wrong
    path.write_bytes(data)
    assert len(list(file.messages(["/camera/image"], stamp(3), stamp(9)))) == 6
    assert skipped.lines() == []
    whole = [data for _, _, data in file.messages(["/camera/image"], 0, FOREVER_NS)]
    assert [data is None for data in whole] == [True] * 3 + [False] * 6
    assert skipped.lines() == ["1 chunk(s) of a.mcap left out; the first: its checksum is wrong"]


def test_the_index_of_a_long_recording_is_small(tmp_path):
    """100 GB in chunks of the usual 768 KB are 140,000 of them."""
    from oc_perception.bags.chunks import Chunk, ChunkIndex

    index = ChunkIndex()
    for number in range(20_000):
        index.add(Chunk(number, number, number * 786_432, 786_432), {1: 1, 2: 20})
    columns = [*index._chunks, *index._counts]
    assert sum(column.itemsize * len(column) for column in columns) / 20_000 < 100


@pytest.mark.parametrize("journal", [True, False])
def test_databases_of_every_schema(tmp_path, journal):
    """Before Iron there were no descriptions of types, before Foxy no service profiles."""
    expected = two_cameras()
    for columns in ("", ", offered_qos_profiles TEXT NOT NULL DEFAULT ''"):
        path = tmp_path / f"{len(columns)}.db3"
        database = sqlite3.connect(path)
        if journal:
            database.execute("PRAGMA journal_mode = WAL")
        database.execute(
            "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, "
            f"serialization_format TEXT NOT NULL{columns})"
        )
        database.execute(
            "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, "
            "timestamp INTEGER NOT NULL, data BLOB NOT NULL)"
        )
        database.executemany(
            "INSERT INTO topics(id, name, type, serialization_format) VALUES (?, ?, ?, 'cdr')",
            [(1, "/left", IMAGE), (2, "/right", IMAGE)],
        )
        rows = [
            (1 + (topic == "/right"), t, bytes(typestore().serialize_cdr(m, IMAGE)))
            for topic, t, m in expected
        ]
        database.executemany(
            "INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)", rows
        )
        database.commit()
        found = read(path, ["/left", "/right"])  # while the recorder has it open
        assert [(1 + (topic == "/right"), t, data) for topic, t, data in found] == sorted(
            rows, key=lambda row: row[1]
        )
        database.close()


@pytest.mark.parametrize("form", ["mcap", "mcap storage", "sqlite3", "ros1"])
def test_memory_does_not_grow_with_the_length(tmp_path, form):
    """Ten times as many messages in ten times as many chunks."""
    peaks = []
    for count in (20, 200):
        frames = np.zeros((1, 300, 400, 3), np.uint8)
        messages = (images(frames, first=index)[0] for index in range(count))
        path = write(tmp_path / f"{count}", form, messages)
        tracemalloc.start()
        (file,) = open_files(path, Skipped())
        assert sum(1 for _ in file.messages(["/camera/image"], 0, FOREVER_NS)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 100_000
