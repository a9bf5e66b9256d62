# SPDX-License-Identifier: Apache-2.0
"""Files that hold messages in chunks (mcap, ROS 1), merged by time with one chunk in memory.

The index takes a few dozen bytes per chunk, so that a recording of 100 GB costs a few MB. Damaged
chunks are left out and noted.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np

Message: TypeAlias = "tuple[int, int, bytes | memoryview | None]"
"""Channel number, time of recording in ns, serialised message: None for one that is damaged, so
that those behind it keep their number."""


class StorageError(ValueError):
    """A file, or a part of one, that cannot be read; the message says why."""


@dataclass(frozen=True)
class Channel:
    """A topic in a file. `definition` is the text of its message type as it was recorded, in the
    language `schema` (`ros2msg`, `ros2idl`, `ros1msg`), or empty; `ros1` tells the serialisation.
    """

    topic: str
    message_type: str
    definition: str = ""
    schema: str = ""
    ros1: bool = False


class Skipped:
    """What was left out of a recording and why; reading it twice does not count it twice."""

    def __init__(self) -> None:
        self._whole: dict[str, None] = {}
        self._parts: dict[str, tuple[str, set[Hashable]]] = {}

    def note(self, text: str) -> None:
        """A sentence."""
        self._whole[text] = None

    def add(self, what: str, where: Hashable, why: str) -> None:
        """One more of many (`what`, in the plural), told by `where` it is."""
        self._parts.setdefault(what, (why, set()))[1].add(where)

    def lines(self) -> list[str]:
        """One line per kind."""
        parts = (
            f"{len(places)} {what} left out; the first: {why}"
            for what, (why, places) in self._parts.items()
        )
        return [*self._whole, *parts]


class Chunk(NamedTuple):
    """Times of the first and last message in ns, and the place of the chunk in the file."""

    start_ns: int
    end_ns: int
    offset: int
    length: int


class ChunkIndex:
    """All chunks of a file and how many messages each has per channel."""

    def __init__(self) -> None:
        self._chunks = tuple(array("q") for _ in Chunk._fields)
        self._counts = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self._chunks[0])

    def __getitem__(self, number: int) -> Chunk:
        return Chunk(*(column[number] for column in self._chunks))

    def add(self, chunk: Chunk, counts: Mapping[int, int]) -> None:
        """Append a chunk with the number of messages per channel. Raises StorageError for numbers
        that no file has.
        """
        if not all(0 <= value < 2**63 for value in chunk):
            raise StorageError("its times or its place are impossible")
        for channel, count in counts.items():
            for column, value in zip(self._counts, (len(self), channel, count), strict=True):
                column.append(value)
        for column, value in zip(self._chunks, chunk, strict=True):
            column.append(value)

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()

    def channels(self) -> set[int]:
        """The channels that have messages."""
        return set(self._counts[1])

    def counts(self, channels: Collection[int]) -> np.ndarray:
        """Messages of these channels per chunk, `(N,)`."""
        chunk, channel, count = (np.array(column) for column in self._counts)
        chosen = np.isin(channel, list(channels))
        return np.bincount(chunk[chosen], count[chosen], len(self)).astype(np.int64)

    def counts_in(self, number: int) -> Counter[int]:
        """Messages in a chunk by channel."""
        chunk, channels, counts = self._counts
        places = np.searchsorted(np.frombuffer(chunk, np.int64), [number, number + 1])
        return Counter({channels[i]: counts[i] for i in range(*places.tolist())})

    def times(self) -> tuple[np.ndarray, np.ndarray]:
        """First and last time of each chunk in ns, each `(N,)`."""
        return np.array(self._chunks[0], np.int64), np.array(self._chunks[1], np.int64)


class ChunkedFile(ABC):
    """Messages of one file in order of time. Subclasses fill `channels` and `index`."""

    def __init__(self, path: Path, skipped: Skipped) -> None:
        self.path, self._skipped = path, skipped
        self.channels: dict[int, Channel] = {}
        self.index = ChunkIndex()

    @abstractmethod
    def chunk(self, file: BinaryIO, chunk: Chunk) -> Iterable[Message]:
        """The messages of a chunk. Raises StorageError."""

    def numbers(self, topics: Collection[str]) -> set[int]:
        """The channels of these topics."""
        return {number for number, c in self.channels.items() if c.topic in topics}

    def span(self) -> tuple[int, int]:
        """Times of the first and the last message in ns; the last before the first without any."""
        starts, ends = self.index.times()
        return int(starts.min(initial=2**63 - 1)), int(ends.max(initial=-1))

    def count(self, topic: str) -> int:
        """How many messages a topic has."""
        return int(self.index.counts(self.numbers([topic])).sum())

    def count_before(self, topic: str, time_ns: int) -> int:
        """How many messages of a topic were recorded before a time."""
        channels = self.numbers([topic])
        starts, ends = self.index.times()
        whole = int(self.index.counts(channels)[ends < time_ns].sum())
        partly = np.flatnonzero((starts < time_ns) & (ends >= time_ns))
        with self.path.open("rb") as file:
            return whole + sum(
                number in channels and recorded_ns < time_ns
                for k in partly
                for number, recorded_ns, _ in self._read(file, int(k))
            )

    def messages(self, topics: Collection[str], start_ns: int, stop_ns: int) -> Iterator[Message]:
        """Messages recorded `start_ns <= t < stop_ns`, those of one time in the order of the file.
        Chunks without any are not read.
        """
        channels = self.numbers(topics)
        starts, ends = self.index.times()
        chosen = (self.index.counts(channels) > 0) & (ends >= start_ns) & (starts < stop_ns)
        order = np.argsort(starts, kind="stable")
        waiting: list[_Waiting] = []
        with self.path.open("rb") as file:
            for k in order[chosen[order]]:
                while waiting and waiting[0][0] < starts[k]:
                    yield _taken(waiting)
                for place, (channel, recorded_ns, data) in enumerate(self._read(file, int(k))):
                    if channel in channels and start_ns <= recorded_ns < stop_ns:
                        heapq.heappush(waiting, (recorded_ns, int(k), place, channel, data))
        while waiting:
            yield _taken(waiting)

    def _read(self, file: BinaryIO, number: int) -> Iterator[Message]:
        """The messages of a chunk; those behind where it is damaged have no data."""
        chunk, seen = self.index[number], Counter[int]()
        try:
            for message in self.chunk(file, chunk):
                seen[message[0]] += 1
                yield message
        except (StorageError, OSError) as error:
            self._skipped.add(f"chunk(s) of {self.path.name}", number, f"{error}")
            lost = self.index.counts_in(number) - seen
            yield from ((channel, chunk.end_ns, None) for channel in lost.elements())


_Waiting: TypeAlias = "tuple[int, int, int, int, bytes | memoryview | None]"
"""Time, number of the chunk, place in it, channel, data."""


def _taken(waiting: list[_Waiting]) -> Message:
    recorded_ns, _, _, channel, data = heapq.heappop(waiting)
    return channel, recorded_ns, data
