# SPDX-License-Identifier: Apache-2.0
"""Reading mcap files, whole or damaged (format: https://mcap.dev/spec).

Every record is an opcode, a length and its content. A file ends with an index of its chunks; where
that is missing, because the recording was cut off, the records are walked through from the start.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
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

MAGIC = b"\x89MCAP0\r\n"
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _MESSAGE_INDEX, _CHUNK_INDEX = range(2, 9)
_DATA_END = 0x0F
_RECORD = struct.Struct("<BQ")
_MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, time of recording, of publishing
_CHUNK_HEAD = struct.Struct("<QQQII")  # first and last time, size, checksum, length of a name
_INDEX_HEAD = struct.Struct("<QQQQI")  # first and last time, place, length, bytes of a table
_LEAST_BYTES = {_MESSAGE: _MESSAGE_HEAD.size, _CHUNK: 16, _MESSAGE_INDEX: 6}
_FOOTER_BYTES = _RECORD.size + 20 + len(MAGIC)
_RUN_BYTES = 1 << 20  # of messages outside of chunks that are taken together


class McapFile(ChunkedFile):
    """One mcap file. Raises StorageError for what is none."""

    def __init__(self, path: Path, skipped: Skipped) -> None:
        super().__init__(path, skipped)
        self._schemas: dict[int, tuple[str, str, str]] = {}
        self._size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise StorageError("it does not start as an mcap file does")
            if not self._read_summary(file):
                self._scan(file)

    def chunk(self, file: BinaryIO, chunk: Chunk) -> Iterator[Message]:
        """The messages of a chunk, or of a run of messages outside of chunks."""
        for opcode, content in self._records_of(file, chunk):
            if opcode == _MESSAGE and len(content) >= _MESSAGE_HEAD.size:
                channel, _, recorded_ns, _ = _MESSAGE_HEAD.unpack_from(content)
                yield channel, recorded_ns, content[_MESSAGE_HEAD.size :]

    def _records_of(self, file: BinaryIO, chunk: Chunk) -> Iterator[tuple[int, memoryview]]:
        file.seek(chunk.offset)
        data = memoryview(file.read(chunk.length))
        if len(data) < _RECORD.size:
            raise StorageError("the file is shorter than its index says")
        opcode, length = _RECORD.unpack_from(data)
        if opcode == _CHUNK:
            data = _unpacked(data[_RECORD.size :], whole=len(data) == _RECORD.size + length)
        elif opcode != _MESSAGE:
            raise StorageError("no chunk is where the index says")
        return _records(data)

    def _read_summary(self, file: BinaryIO) -> bool:
        """Fill the index from the end of the file; False where that does not tell everything."""
        end = self._size - _FOOTER_BYTES
        if end < len(MAGIC):
            return False
        file.seek(end)
        footer = file.read()
        opcode, length, start = struct.unpack_from("<BQQ", footer)
        if (opcode, length) != (_FOOTER, 20) or footer[-len(MAGIC) :] != MAGIC:
            return False
        if not len(MAGIC) < start < end:
            return False
        file.seek(start)
        try:
            for opcode, content in _records(memoryview(file.read(end - start))):
                self._define(opcode, content)
                if opcode == _CHUNK_INDEX:
                    self._add_indexed(content)
            complete = len(self.index) > 0 and self.index.channels() <= set(self.channels)
        except (struct.error, StorageError):
            complete = False
        if not complete:
            self.channels.clear()
            self._schemas.clear()
            self.index.clear()
        return complete

    def _add_indexed(self, content: memoryview) -> None:
        """A chunk from its entry in the index, with counts from the sizes of its message indices,
        which lie behind it one after the other.
        """
        first_ns, last_ns, offset, length, table = _INDEX_HEAD.unpack_from(content)
        pairs = struct.iter_unpack("<HQ", content[_INDEX_HEAD.size : _INDEX_HEAD.size + table])
        places = sorted((place, channel) for channel, place in pairs)
        (behind,) = struct.unpack_from("<Q", content, _INDEX_HEAD.size + table)
        ends = [*(place for place, _ in places[1:]), offset + length + behind]
        if not places or ends[-1] > self._size:
            raise StorageError("the index of chunks does not tell what is in the file")
        counts = {
            channel: max(0, (end - place - 15) // 16)
            for (place, channel), end in zip(places, ends, strict=True)
        }
        self.index.add(Chunk(first_ns, last_ns, offset, length), counts)

    def _define(self, opcode: int, content: memoryview) -> None:
        """Take in a schema or a channel. Raises struct.error for half of one."""
        if opcode == _SCHEMA:
            (number,) = struct.unpack_from("<H", content)
            name, rest = _text(content[2:])
            language, rest = _text(rest)
            self._schemas[number] = name, _text(rest)[0], language
        elif opcode == _CHANNEL:
            number, schema = struct.unpack_from("<HH", content)
            topic, rest = _text(content[4:])
            serialisation, _ = _text(rest)
            name, *described = self._schemas.get(schema, ("", "", ""))
            if "/msg/" not in name:  # as ROS 1 writes it
                name = name.replace("/", "/msg/")
            self.channels[number] = Channel(topic, name, *described, ros1=serialisation == "ros1")

    def _scan(self, file: BinaryIO) -> None:
        """Fill the index by walking through the file, as far as it is whole."""
        try:
            ended = self._walk(file)
        except struct.error:  # a record that is shorter than its kind
            ended = False
        if not ended:
            self._skipped.note(
                f"{self.path.name} ends early, as when a recording is cut off: it is used as far "
                "as it is whole (`mcap recover` writes a clean copy)."
            )

    def _walk(self, file: BinaryIO) -> bool:
        """Whether the walk came to the end of the data. Raises struct.error."""
        offset, ended = len(MAGIC), False
        pending: _Pending | None = None
        while not ended and offset + _RECORD.size <= self._size:
            file.seek(offset)
            opcode, length = _RECORD.unpack(file.read(_RECORD.size))
            end = offset + _RECORD.size + length
            head = file.read(min(length, _MESSAGE_HEAD.size))
            if len(head) < _LEAST_BYTES.get(opcode, 0) or (end > self._size and opcode != _CHUNK):
                break
            ended = opcode in (_DATA_END, _FOOTER)
            if opcode == _MESSAGE:
                channel, _, recorded_ns, _ = _MESSAGE_HEAD.unpack(head)
                if pending is None or not pending.grows(offset):
                    self._add_scanned(file, pending)
                    pending = _Pending(recorded_ns, recorded_ns, offset, offset, of_messages=True)
                pending.add(channel, recorded_ns, end)
            elif opcode == _CHUNK:
                self._add_scanned(file, pending)
                first_ns, last_ns = struct.unpack_from("<QQ", head)
                pending = _Pending(first_ns, last_ns, offset, min(end, self._size))
            elif opcode == _MESSAGE_INDEX and pending is not None:
                channel, table = struct.unpack_from("<HI", head)
                pending.counts[channel] += table // 16
            elif opcode in (_SCHEMA, _CHANNEL):
                rest = file.read(length - len(head))
                self._define(opcode, memoryview(head + rest))
            offset = end
        self._add_scanned(file, pending)
        return ended

    def _add_scanned(self, file: BinaryIO, pending: _Pending | None) -> None:
        """Append to the index. A chunk is read where its contents are not known from outside:
        definitions of channels, and counts where no message index follows it.
        """
        if pending is None:
            return
        chunk, counts = pending.chunk(), pending.counts
        try:
            if not counts or not set(counts) <= set(self.channels):
                counts = Counter()
                for opcode, content in self._records_of(file, chunk):
                    self._define(opcode, content)
                    if opcode == _MESSAGE:
                        counts[_MESSAGE_HEAD.unpack_from(content)[0]] += 1
            if counts:
                self.index.add(chunk, counts)
        except (StorageError, struct.error) as error:
            self._skipped.add(f"chunk(s) of {self.path.name}", chunk.offset, f"{error}")


@dataclass
class _Pending:
    """A chunk, or a run of messages outside of chunks, of which more may follow."""

    first_ns: int
    last_ns: int
    offset: int
    end: int
    of_messages: bool = False
    counts: Counter[int] = field(default_factory=Counter)

    def grows(self, offset: int) -> bool:
        """Whether a message at this place belongs to this run."""
        return self.of_messages and self.end == offset < self.offset + _RUN_BYTES

    def add(self, channel: int, recorded_ns: int, end: int) -> None:
        """One more message of the run."""
        self.counts[channel] += 1
        self.first_ns = min(self.first_ns, recorded_ns)
        self.last_ns = max(self.last_ns, recorded_ns)
        self.end = end

    def chunk(self) -> Chunk:
        return Chunk(self.first_ns, self.last_ns, self.offset, self.end - self.offset)


def _records(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Opcode and content of every whole record."""
    offset = 0
    while offset + _RECORD.size <= len(data):
        opcode, length = _RECORD.unpack_from(data, offset)
        start, offset = offset + _RECORD.size, offset + _RECORD.size + length
        if offset > len(data):
            return
        yield opcode, data[start:offset]


def _unpacked(content: memoryview, whole: bool) -> memoryview:
    """The records in the content of a chunk; of one that is cut off, what is there."""
    if len(content) < _CHUNK_HEAD.size:
        raise StorageError("it is cut off")
    _, _, size, checksum, name = _CHUNK_HEAD.unpack_from(content)
    packed = _CHUNK_HEAD.size + name + 8
    method = bytes(content[_CHUNK_HEAD.size : packed - 8]).decode(errors="replace")
    data = decompress(content[packed:], method)
    if whole and len(data) != size:
        raise StorageError(f"it holds {len(data)} bytes instead of {size}")
    if whole and checksum and zlib.crc32(data) != checksum:
        raise StorageError("its checksum is wrong")
    return memoryview(data)


def _text(data: memoryview) -> tuple[str, memoryview]:
    """A string with its length before it, and the rest."""
    (length,) = struct.unpack_from("<I", data)
    if 4 + length > len(data):
        raise struct.error("a string is longer than its record")
    return bytes(data[4 : 4 + length]).decode(errors="replace"), data[4 + length :]
