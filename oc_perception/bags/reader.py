# SPDX-License-Identifier: Apache-2.0
"""Reading bags (mcap, sqlite3, ROS 1), one frame at a time, in the order of recording."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from oc_perception.bags import camera
from oc_perception.bags.camera import BagTopics
from oc_perception.bags.chunks import Channel, Skipped, StorageError
from oc_perception.bags.decoding import decoder, plain
from oc_perception.bags.files import CURE, RecordedFile, open_files
from oc_perception.bags.frames import BagError, Frame
from oc_perception.bags.messages import stamp_ns

_PERIOD_SAMPLE_FRAMES = 60
_IDENTITY_SAMPLES = 64
FOREVER_NS = 2**63 - 1


class Bag:
    """A context manager over a rosbag2 directory, a lone .mcap or .db3 file, or a ROS 1 bag.

    What is damaged is left out and told by `warnings`. Raises BagError for what is no bag, and for
    a bag without any message that can be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise BagError(f"There is no bag at {self.path}: check the path.")

    def __enter__(self) -> Bag:
        self.skipped = Skipped()
        try:
            self._files: list[RecordedFile] = open_files(self.path, self.skipped)
        except (StorageError, OSError) as error:
            raise BagError(f"Cannot open {self.path}: {error}. {self._cure()}") from error
        channels = {c for file in self._files for c in file.channels.values()}
        self._topics = dict(sorted((c.topic, c.message_type) for c in channels))
        if not any(self.count(topic) for topic in self._topics):
            reasons = " ".join(self.warnings)
            raise BagError(f"{self.path} holds no message. {reasons} {self._cure()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files = []

    @property
    def warnings(self) -> list[str]:
        """What was left out so far and why, one line per kind."""
        return self.skipped.lines()

    @property
    def topics(self) -> dict[str, str]:
        """Message type of each topic, by name."""
        return dict(self._topics)

    def count(self, topic: str) -> int:
        """How many messages a topic has."""
        return sum(file.count(topic) for file in self._files)

    def count_before(self, topic: str, recorded_ns: int) -> int:
        """How many messages of a topic were recorded before a time."""
        return sum(file.count_before(topic, recorded_ns) for file in self._files)

    def messages(
        self, topics: Iterable[str], start_ns: int = 0, stop_ns: int = FOREVER_NS
    ) -> Iterator[tuple[str, int, Any]]:
        """`(topic, time of recording in ns, message)` of some topics, in order of recording.

        Only those recorded `start_ns <= t < stop_ns` are read. Messages that cannot be read are
        left out.
        """
        for channel, recorded_ns, data in self.recorded(topics, start_ns, stop_ns):
            message = self.decoded(channel, recorded_ns, data)
            if message is not None:
                yield channel.topic, recorded_ns, message

    def raw(self, topics: Iterable[str]) -> Iterator[tuple[str, int, str, bytes | memoryview]]:
        """`(topic, time of recording in ns, message type, CDR bytes)`, in recorded order."""
        for channel, recorded_ns, data in self.recorded(topics, 0, FOREVER_NS):
            if data is None:
                continue
            try:
                cdr = decoder(channel).cdr(data)
            except StorageError as error:
                self._leave_out(channel, recorded_ns, error)
            else:
                yield channel.topic, recorded_ns, channel.message_type, cdr

    def identity(self, topics: Iterable[str]) -> str:
        """Equal for the same messages on some topics in whatever files: a hash of their number,
        their times, and what some of them hold, spread over the time of the recording.
        """
        digest = hashlib.sha256()
        for topic in topics:
            digest.update(f"{topic} {self.count(topic)} ".encode())
            spans = [file.span() for file in self._files if file.count(topic)]
            first_ns = min((start for start, _ in spans), default=0)
            last_ns = max((end for _, end in spans), default=-1)
            step_ns = (last_ns - first_ns) // _IDENTITY_SAMPLES + 1
            for start_ns in range(first_ns, last_ns + 1, step_ns):
                for _, recorded_ns, data in self.recorded([topic], start_ns, start_ns + step_ns):
                    digest.update(f"{recorded_ns} ".encode())
                    digest.update(plain(data) if data else b"")
                    break
        return digest.hexdigest()

    def first_recorded_ns(self, topic: str) -> int:
        """When the first message of a topic was recorded. Raises BagError where there is none."""
        for _, recorded_ns, _ in self.recorded([topic], 0, FOREVER_NS):
            return recorded_ns
        raise BagError(f"{topic} in {self.path} has no message: record it again.")

    def select(self, image_topic: str | None = None) -> BagTopics:
        """The topics of one camera, see `camera.select`. Raises BagError."""
        return camera.select(self, image_topic)

    def first_stamp_ns(self, topic: str) -> int:
        """Header stamp of the first message of a topic that can be read. Raises BagError where
        there is none.
        """
        for _, _, message in self.messages([topic]):
            return stamp_ns(message.header.stamp)
        reasons = " ".join(self.warnings)
        raise BagError(
            f"{topic} in {self.path} has no message that can be read. {reasons} Record it again."
        )

    def period_ns(self, image_topic: str) -> int:
        """The camera's period: the median distance of the first stamps.

        Raises BagError where there are no two different ones.
        """
        stamps = []
        for _, _, message in self.messages([image_topic]):
            stamps.append(stamp_ns(message.header.stamp))
            if len(stamps) > _PERIOD_SAMPLE_FRAMES:
                break
        intervals = np.diff(np.array(stamps, np.int64))
        intervals = intervals[intervals > 0]
        if not intervals.size:
            raise BagError(
                f"{image_topic} in {self.path} has {len(stamps)} message(s) and no two different "
                "stamps: a sequence is needed."
            )
        return int(np.median(intervals))

    def frames(
        self, topics: BagTopics, start_ns: int = 0, stop_ns: int = FOREVER_NS, margin_ns: int = 0
    ) -> Iterator[Frame]:
        """The frames of one camera, see `camera.frames`."""
        return camera.frames(self, topics, start_ns, stop_ns, margin_ns)

    def recorded(
        self, topics: Iterable[str], start_ns: int, stop_ns: int
    ) -> Iterator[tuple[Channel, int, bytes | memoryview | None]]:
        """Messages as they are recorded; None for one that its file has lost and noted."""
        chosen = frozenset(topics)
        for file in self._files:
            first_ns, last_ns = file.span()
            if first_ns >= stop_ns or last_ns < start_ns:
                continue
            for number, recorded_ns, data in file.messages(chosen, start_ns, stop_ns):
                yield file.channels[number], recorded_ns, data

    def decoded(self, channel: Channel, recorded_ns: int, data: bytes | memoryview | None) -> Any:
        """The message, or None for one that cannot be read."""
        if data is None:
            return None
        try:
            return decoder(channel).message(data)
        except StorageError as error:
            self._leave_out(channel, recorded_ns, error)
            return None

    def _leave_out(self, channel: Channel, recorded_ns: int, error: StorageError) -> None:
        self.skipped.add(f"message(s) on {channel.topic}", recorded_ns, f"{error}")

    def _cure(self) -> str:
        if self.path.is_dir() or self.path.name.endswith((".mcap", ".db3", ".bag", ".zstd")):
            return CURE
        return "Give a rosbag2 directory, a .mcap or .db3 file, or a ROS 1 bag."
