# SPDX-License-Identifier: Apache-2.0
"""Reading ROS 1 bags of version 2.0, indexed or not (format: http://wiki.ros.org/Bags/Format/2.0).

A record is a header of `name=value` fields, then data, both with their length before them. The
index at the end names the chunks; without it, as when a recording is cut off, they are walked
through.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from oc_perception.bags.chunks import (
    Channel,
    Chunk,
    ChunkedFile,
    Message,
    Skipped,
    StorageError,
)
from oc_perception.bags.compression import decompress

MAGIC = b"#ROSBAG V2.0\n"
_MESSAGE, _BAG, _INDEX, _CHUNK, _CHUNK_INFO, _CONNECTION = range(2, 8)
_LENGTH = struct.Struct("<I")
_TIME = struct.Struct("<II")
_NS_PER_S = 1_000_000_000

_Header = dict[bytes, bytes]


class Ros1File(ChunkedFile):
    """One .bag file. Raises StorageError for what is none, or encrypted."""

    def __init__(self, path: Path, skipped: Skipped) -> None:
        super().__init__(path, skipped)
        self._size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise StorageError("it does not start as a ROS 1 bag of version 2.0 does")
            try:
                header, length = _header(file)
                if header.get(b"encryptor"):
                    raise StorageError("it is encrypted: write a plain copy with `rosbag decrypt`")
                start = file.tell() + length
                (index,) = struct.unpack("<Q", header[b"index_pos"])
            except (struct.error, KeyError) as error:
                raise StorageError("its first record is damaged") from error
            if not (index and self._read_index(file, index, header)):
                self._scan(file, start)

    def chunk(self, file: BinaryIO, chunk: Chunk) -> Iterator[Message]:
        """The messages of a chunk."""
        try:
            for header, content in self._records_of(file, chunk):
                if header.get(b"op") == bytes([_MESSAGE]):
                    (channel,) = _LENGTH.unpack(header[b"conn"])
                    yield channel, _time_ns(header[b"time"]), content
        except (struct.error, KeyError) as error:
            raise StorageError("a message in it is damaged") from error

    def _records_of(self, file: BinaryIO, chunk: Chunk) -> Iterator[tuple[_Header, memoryview]]:
        file.seek(chunk.offset)
        try:
            header, length = _header(file)
        except struct.error as error:
            raise StorageError("no chunk is where the index says") from error
        if header.get(b"op") != bytes([_CHUNK]):
            raise StorageError("no chunk is where the index says")
        method = header.get(b"compression", b"").decode(errors="replace")
        return _records(memoryview(decompress(self._content(file, length), method)))

    def _content(self, file: BinaryIO, length: int) -> bytes:
        """The data of a record, as far as it is there."""
        return file.read(max(0, min(length, self._size - file.tell())))

    def _read_index(self, file: BinaryIO, place: int, about: _Header) -> bool:
        """Fill the index from the end of the file; False where it is not whole."""
        try:
            file.seek(place)
            for _ in range(_LENGTH.unpack(about[b"conn_count"])[0]):
                header, length = _header(file)
                self._define(header, memoryview(self._content(file, length)))
            for _ in range(_LENGTH.unpack(about[b"chunk_count"])[0]):
                header, length = _header(file)
                counts = dict(struct.iter_unpack("<II", self._content(file, length)))
                times = _time_ns(header[b"start_time"]), _time_ns(header[b"end_time"])
                (offset,) = struct.unpack("<Q", header[b"chunk_pos"])
                self.index.add(Chunk(*times, offset, 0), counts)
        except (struct.error, KeyError, StorageError):
            self.channels.clear()
            self.index.clear()
            return False
        return True

    def _define(self, header: _Header, content: memoryview) -> None:
        """Take in a connection; its data is a header, too."""
        (number,) = _LENGTH.unpack(header[b"conn"])
        about = _fields(bytes(content))
        package, _, name = about[b"type"].decode(errors="replace").partition("/")
        topic = header[b"topic"].decode(errors="replace")
        definition = about.get(b"message_definition", b"").decode(errors="replace")
        self.channels[number] = Channel(
            topic, f"{package}/msg/{name}", definition, "ros1msg", ros1=True
        )

    def _scan(self, file: BinaryIO, offset: int) -> None:
        """Fill the index by walking through the chunks, as far as they are there."""
        while offset < self._size:
            file.seek(offset)
            try:
                header, length = _header(file)
            except struct.error:
                break
            end = file.tell() + length
            if header.get(b"op") == bytes([_CHUNK]):
                self._add_scanned(file, offset, end)
            offset = end
        self._skipped.note(
            f"{self.path.name} has no index, as when a recording is cut off: it is used as far as "
            "it is whole (`rosbag reindex` repairs it)."
        )

    def _add_scanned(self, file: BinaryIO, offset: int, end: int) -> None:
        counts: Counter[int] = Counter()
        times = []
        chunk = Chunk(0, 0, offset, end - offset)
        try:
            for header, content in self._records_of(file, chunk):
                if header.get(b"op") == bytes([_CONNECTION]):
                    self._define(header, content)
                elif header.get(b"op") == bytes([_MESSAGE]):
                    counts[_LENGTH.unpack(header[b"conn"])[0]] += 1
                    times.append(_time_ns(header[b"time"]))
        except (StorageError, struct.error, KeyError) as error:
            self._skipped.add(f"chunk(s) of {self.path.name}", offset, f"{error}")
        if times:
            chunk = chunk._replace(start_ns=min(times), end_ns=max(times))
            self.index.add(chunk, counts)


def _header(file: BinaryIO) -> tuple[_Header, int]:
    """The header of the next record, and the length of its data. Raises struct.error."""
    (size,) = _LENGTH.unpack(file.read(4))
    header = _fields(file.read(size)) if size < 1 << 20 else {}
    return header, _LENGTH.unpack(file.read(4))[0]


def _records(data: memoryview) -> Iterator[tuple[_Header, memoryview]]:
    """Header and data of every whole record of a chunk."""
    offset = 0
    while offset + 8 <= len(data):
        (size,) = _LENGTH.unpack_from(data, offset)
        start = offset + 8 + size
        if start > len(data):
            return
        (length,) = _LENGTH.unpack_from(data, start - 4)
        if start + length > len(data):
            return
        yield _fields(bytes(data[offset + 4 : start - 4])), data[start : start + length]
        offset = start + length


def _fields(data: bytes) -> _Header:
    """The fields of a header. Raises struct.error for half of one."""
    fields, offset = {}, 0
    while offset < len(data):
        (length,) = _LENGTH.unpack_from(data, offset)
        name, _, value = data[offset + 4 : offset + 4 + length].partition(b"=")
        fields[name] = value
        offset += 4 + length
    return fields


def _time_ns(value: bytes) -> int:
    seconds, rest = _TIME.unpack(value)
    return seconds * _NS_PER_S + rest
