# SPDX-License-Identifier: Apache-2.0
"""Small recordings in every form, written by rosbags or byte by byte, never by what is tested."""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import yaml
from PIL import Image
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from oc_perception.bags.definitions import IMAGE, typestore
from oc_perception.bags.messages import image_message

START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 40_000_000
TOPIC = "/camera/image"

Recorded = tuple[str, int, Any]
"""Topic, time of recording in ns, message as rosbags represents it."""


def stamp(index: int) -> int:
    return START_NS + index * PERIOD_NS


def pictures(count: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


FRAMES = pictures(12)
"""What folders, sequences and tars hold."""


def images(frames: np.ndarray, topic: str = TOPIC, first: int = 0) -> list[Recorded]:
    return [
        (topic, stamp(index), image_message(stamp(index), frame))
        for index, frame in enumerate(frames, first)
    ]


def rosbag2(
    path: Path,
    messages: Iterable[Recorded],
    storage: str = "mcap",
    compression: str = "",
    store: Any = None,
) -> Path:
    """A bag directory; `compression` is "", "storage", "file" or "message"."""
    store = store or typestore()
    writer = Writer(path, version=8, storage_plugin=StoragePlugin[storage.upper()])
    if compression:
        writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    connections: dict[str, Any] = {}
    with writer:
        for topic, recorded_ns, message in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            data = message.raw if isinstance(message, Raw) else store.serialize_cdr(message, kind)
            writer.write(connections[topic], recorded_ns, data)
    return path


class Raw:
    """A message of a type with any bytes in it."""

    def __init__(self, kind: str, raw: bytes) -> None:
        self.__msgtype__, self.raw = kind, raw


def split(path: Path, parts: Iterable[Iterable[Recorded]], **choices: Any) -> Path:
    """One bag directory of several files."""
    path.mkdir()
    about: dict[str, Any] = {}
    for number, part in enumerate(parts):
        bag = rosbag2(path / f"{path.name}_{number}", part, **choices)
        (file,) = (f for f in bag.iterdir() if f.name != "metadata.yaml")
        file.rename(path / file.name)
        information = yaml.safe_load((bag / "metadata.yaml").read_text())
        (bag / "metadata.yaml").unlink()
        bag.rmdir()
        inner = information["rosbag2_bagfile_information"]
        about = about or information
        total = about["rosbag2_bagfile_information"]
        if inner is not total:
            total["relative_file_paths"] += inner["relative_file_paths"]
    (path / "metadata.yaml").write_text(yaml.safe_dump(about))
    return path


def ros1_bag(path: Path, messages: Iterable[Recorded], compression: str = "") -> Path:
    """A ROS 1 bag of camera messages, whose chunks rosbags ends after each megabyte."""
    store = get_typestore(Stores.ROS1_NOETIC)
    writer = Ros1Writer(path)
    if compression:
        writer.set_compression(Ros1Writer.CompressionFormat[compression.upper()])
    connections: dict[str, Any] = {}
    with writer:
        for number, (topic, recorded_ns, message) in enumerate(messages):
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            cdr = typestore().serialize_cdr(message, kind)
            header = struct.pack("<I", number)  # ROS 1 counts messages in their headers
            data = bytes(typestore().cdr_to_ros1(cdr, kind))
            writer.write(connections[topic], recorded_ns, header + data[4:])
    return path


def folder(path: Path) -> Path:
    """Numbered pictures, FRAMES without the sixth."""
    path.mkdir(parents=True)
    for index, frame in enumerate(FRAMES):
        if index != 5:
            Image.fromarray(frame).save(path / f"{index + 1}.png")
    return path


def motchallenge(path: Path) -> Path:
    """The same at 25 Hz as a sequence of MOTChallenge, whose truth ends with frame 9."""
    folder(path / "img1")
    (path / "seqinfo.ini").write_text("[Sequence]\nimDir=img1\nframeRate=25\n")
    (path / "gt").mkdir()
    (path / "gt" / "gt.txt").write_text(
        "7,3,1,1,4,6,1,1,1\n1,2,3,3,5,5,0,1,1\n7,8,2,2,4,4,1,3,1\n9,8,2,2,4,4,1,1,1\n"
    )
    return path


def tar(path: Path) -> Path:
    """That sequence in a tar."""
    source = motchallenge(path.parent / "source" / "SEQ")
    with tarfile.open(path, "w") as archive:
        archive.add(source, "SEQ")
    return path


def mcap_file(
    path: Path,
    messages: Iterable[tuple[str, int, bytes]],
    per_chunk: int | None = 2,
    compression: str = "",
    message_index: bool = True,
    summary: bool = True,
) -> Path:
    """An mcap of images by topic, time and CDR, after the specification; `per_chunk` messages in a
    chunk, None for none at all.
    """
    out = bytearray(b"\x89MCAP0\r\n" + _record(1, _string("ros2") + _string("test")))
    topics: dict[str, int] = {}
    chunks: list[bytes] = []
    definitions: list[bytes] = []
    text, _ = typestore().generate_msgdef(IMAGE, ros_version=2)

    def define(topic: str) -> bytes:
        number = topics.setdefault(topic, len(topics) + 1)
        schema = struct.pack("<H", number) + _string(IMAGE) + _string("ros2msg") + _string(text)
        channel = struct.pack("<HH", number, number) + _string(topic) + _string("cdr")
        records = _record(3, schema) + _record(4, channel + struct.pack("<I", 0))
        definitions.append(records)
        return records

    messages = list(messages)
    step = per_chunk or max(1, len(messages))
    for start in range(0, len(messages), step):
        part, content, index = messages[start : start + step], b"", {}
        for topic, time_ns, data in part:
            content += b"" if topic in topics else define(topic)
            index.setdefault(topics[topic], []).append((time_ns, len(content)))
            content += _record(5, struct.pack("<HIQQ", topics[topic], 0, time_ns, 0) + data)
        if per_chunk is None:
            out += content
            continue
        packed = lz4.frame.compress(content) if compression == "lz4" else content
        times = [time_ns for _, time_ns, _ in part]
        head = struct.pack("<QQQI", min(times), max(times), len(content), zlib.crc32(content))
        offset = len(out)
        out += _record(6, head + _string(compression) + struct.pack("<Q", len(packed)) + packed)
        length, places = len(out) - offset, {}
        for number, entries in index.items() if message_index else ():
            places[number] = len(out)
            table = b"".join(struct.pack("<QQ", *entry) for entry in entries)
            out += _record(7, struct.pack("<HI", number, len(table)) + table)
        table = b"".join(struct.pack("<HQ", *place) for place in places.items())
        chunks.append(
            struct.pack("<QQQQI", min(times), max(times), offset, length, len(table))
            + table
            + struct.pack("<Q", len(out) - offset - length)
            + _string(compression)
            + struct.pack("<QQ", len(packed), len(content))
        )
    out += _record(15, struct.pack("<I", 0))
    start = len(out)
    if summary:
        out += b"".join(definitions) + b"".join(_record(8, chunk) for chunk in chunks)
    out += _record(2, struct.pack("<QQI", start if summary else 0, 0, 0)) + b"\x89MCAP0\r\n"
    path.write_bytes(bytes(out))
    return path


def _record(opcode: int, content: bytes) -> bytes:
    return struct.pack("<BQ", opcode, len(content)) + content


def _string(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode()
