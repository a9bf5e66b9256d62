# SPDX-License-Identifier: Apache-2.0
"""Reading bags (mcap, sqlite3, ROS 1), one frame at a time, in the order of recording."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from oc_perception.bags.chunks import Channel, Skipped, StorageError
from oc_perception.bags.decoding import decoder, plain
from oc_perception.bags.definitions import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    SEGMENTATION,
    TRACKS,
)
from oc_perception.bags.files import CURE, RecordedFile, open_files
from oc_perception.bags.frames import BagError, Frame, TrueBoxes
from oc_perception.bags.messages import (
    depth_from_message,
    rgb_from_message,
    segmentation_from_message,
    stamp_ns,
    track_output_from_messages,
)
from oc_perception.images import MalformedImage

COMPANION_LOOKAHEAD_FRAMES = 8
"""How many frames later a depth image or ground truth of the same stamp may have been recorded."""
_PERIOD_SAMPLE_FRAMES = 60
_IDENTITY_SAMPLES = 8
FOREVER_NS = 2**63 - 1


@dataclass(frozen=True)
class BagTopics:
    """The topics that belong to one camera; None where the bag has none."""

    image: str
    depth: str | None = None
    camera_info: str | None = None
    truth: str | None = None
    true_tracks: str | None = None


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
        self._skipped = Skipped()
        try:
            self._files: list[RecordedFile] = open_files(self.path, self._skipped)
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
        return self._skipped.lines()

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
        for channel, recorded_ns, data in self._recorded(topics, start_ns, stop_ns):
            message = self._decoded(channel, recorded_ns, data)
            if message is not None:
                yield channel.topic, recorded_ns, message

    def raw(self, topics: Iterable[str]) -> Iterator[tuple[str, int, str, bytes | memoryview]]:
        """`(topic, time of recording in ns, message type, CDR bytes)`, in recorded order."""
        for channel, recorded_ns, data in self._recorded(topics, 0, FOREVER_NS):
            if data is None:
                continue
            try:
                cdr = decoder(channel).cdr(data)
            except StorageError as error:
                self._leave_out(channel, recorded_ns, error)
            else:
                yield channel.topic, recorded_ns, channel.message_type, cdr

    def identity(self, topic: str) -> str:
        """Equal for the same messages on a topic in whatever files: a hash of their number, the
        times of the first and last message in the bag, and some messages between.
        """
        spans = [file.span() for file in self._files if file.count(topic)]
        first_ns, last_ns = min(start for start, _ in spans), max(end for _, end in spans)
        digest = hashlib.sha256(f"{topic} {self.count(topic)}".encode())
        step_ns = (last_ns - first_ns) // _IDENTITY_SAMPLES + 1
        for start_ns in range(first_ns, last_ns + 1, step_ns):
            for _, recorded_ns, data in self._recorded([topic], start_ns, start_ns + step_ns):
                digest.update(f"{recorded_ns}".encode())
                digest.update(plain(data) if data else b"")
                break
        return digest.hexdigest()

    def first_recorded_ns(self, topic: str) -> int:
        """When the first message of a topic was recorded. Raises BagError where there is none."""
        for _, recorded_ns, _ in self._recorded([topic], 0, FOREVER_NS):
            return recorded_ns
        raise BagError(f"{topic} in {self.path} has no message: record it again.")

    def select(self, image_topic: str | None = None) -> BagTopics:
        """The topics of the camera: the named image topic, or the only one in the bag.

        The camera_info beside it, the only depth topic, the only ground-truth segmentation and the
        only ground-truth tracks go with it. Raises BagError that lists the image topics when the
        choice is open.
        """
        topics = self.topics
        pictures = [t for t, kind in topics.items() if kind in (IMAGE, COMPRESSED_IMAGE)]
        depth = [t for t in pictures if self._is_depth(t, topics[t])]
        color = [t for t in pictures if t not in depth]
        if image_topic is None:
            # A raw topic and its compressed copy are one camera; raw needs no decoding.
            copies = {f"{topic}/compressed" for topic in color}
            choices = [topic for topic in color if topic not in copies]
            if len(choices) != 1:
                listing = ", ".join(color) or f"none; its topics: {', '.join(topics) or 'none'}"
                raise BagError(
                    f"{self.path} needs exactly one image topic, and has {listing}."
                    + (" Choose one with --topic." if color else "")
                )
            image_topic = choices[0]
        elif image_topic not in color:
            raise BagError(
                f"{self.path} has no image topic {image_topic!r}. Image topics: "
                f"{', '.join(color) or 'none'}."
            )
        camera = image_topic.removesuffix("/compressed").rpartition("/")[0]
        camera_info = f"{camera}/camera_info"
        truth, true_tracks = (
            [t for t, kind in topics.items() if kind == wanted and "ground_truth" in t]
            for wanted in (SEGMENTATION, TRACKS)
        )
        return BagTopics(
            image=image_topic,
            depth=depth[0] if len(depth) == 1 else None,
            camera_info=camera_info if topics.get(camera_info) == CAMERA_INFO else None,
            truth=truth[0] if len(truth) == 1 else None,
            true_tracks=true_tracks[0] if len(true_tracks) == 1 else None,
        )

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
        """The frames of a camera with companions of the same stamp, in the order of recording.

        Only images recorded `start_ns <= t < stop_ns` are decoded; companions are looked for up to
        `margin_ns` around. Holds COMPANION_LOOKAHEAD_FRAMES frames at most. The camera matrix is
        the newest recorded.
        """
        companions: dict[str, OrderedDict[int, Any]] = {
            t: OrderedDict() for t in (topics.depth, topics.truth, topics.true_tracks) if t
        }
        pending: deque[_Pending] = deque()
        camera_matrix, index = None, 0
        if topics.camera_info:
            first = next(self.messages([topics.camera_info]), None)
            camera_matrix = None if first is None else first[2].k.reshape(3, 3)
        if start_ns > 0:
            index = self.count_before(topics.image, start_ns)

        def complete(frame: _Pending) -> bool:
            return all(frame.stamp_ns in found for found in companions.values())

        wanted = [topics.image, *companions, *([topics.camera_info] if topics.camera_info else [])]
        for channel, recorded_ns, data in self._recorded(
            wanted, max(0, start_ns - margin_ns), min(FOREVER_NS, stop_ns + margin_ns)
        ):
            is_image = channel.topic == topics.image
            if is_image and not start_ns <= recorded_ns < stop_ns:
                continue
            index += is_image
            message = self._decoded(channel, recorded_ns, data)
            if message is None:
                continue
            if is_image:
                time_ns = stamp_ns(message.header.stamp)
                pending.append(_Pending(index - 1, time_ns, message, camera_matrix))
            elif channel.topic == topics.camera_info:
                camera_matrix = message.k.reshape(3, 3)
            else:
                found = companions[channel.topic]
                found[stamp_ns(message.header.stamp)] = message
                if len(found) > 2 * COMPANION_LOOKAHEAD_FRAMES:
                    found.popitem(last=False)
            while pending and (complete(pending[0]) or len(pending) > COMPANION_LOOKAHEAD_FRAMES):
                yield self._frame(pending.popleft(), topics, companions)
        while pending:
            yield self._frame(pending.popleft(), topics, companions)

    def _frame(
        self,
        pending: _Pending,
        topics: BagTopics,
        companions: dict[str, OrderedDict[int, Any]],
    ) -> Frame:
        def companion(topic: str | None, read: Callable[[Any], Any]) -> Any:
            message = companions[topic].get(pending.stamp_ns) if topic else None
            try:
                return None if message is None else read(message)
            # Values that no message of ours has, or a malformed image.
            except (ValueError, TypeError) as error:
                self._skipped.add(f"message(s) on {topic}", pending.stamp_ns, f"{error}")
                return None

        try:
            image: np.ndarray | MalformedImage = rgb_from_message(pending.message)
        except MalformedImage as error:
            image = error
        return Frame(
            index=pending.index,
            stamp_ns=pending.stamp_ns,
            image=image,
            depth_m=companion(topics.depth, depth_from_message),
            camera_matrix=pending.camera_matrix,
            truth=companion(topics.truth, segmentation_from_message),
            boxes=companion(topics.true_tracks, _true_boxes),
        )

    def _recorded(
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

    def _decoded(self, channel: Channel, recorded_ns: int, data: bytes | memoryview | None) -> Any:
        """The message, or None for one that cannot be read."""
        if data is None:
            return None
        try:
            return decoder(channel).message(data)
        except StorageError as error:
            self._leave_out(channel, recorded_ns, error)
            return None

    def _leave_out(self, channel: Channel, recorded_ns: int, error: StorageError) -> None:
        self._skipped.add(f"message(s) on {channel.topic}", recorded_ns, f"{error}")

    def _is_depth(self, topic: str, message_type: str) -> bool:
        first = next(self.messages([topic]), None)
        if first is None:
            return False
        if message_type == COMPRESSED_IMAGE:
            return "compressedDepth" in first[2].format
        return first[2].encoding in ("16UC1", "32FC1")

    def _cure(self) -> str:
        if self.path.is_dir() or self.path.name.endswith((".mcap", ".db3", ".bag", ".zstd")):
            return CURE
        return "Give a rosbag2 directory, a .mcap or .db3 file, or a ROS 1 bag."


@dataclass
class _Pending:
    """An image that waits for its companions."""

    index: int
    stamp_ns: int
    message: Any = field(repr=False)
    camera_matrix: np.ndarray | None


def _true_boxes(message: Any) -> TrueBoxes:
    tracks = track_output_from_messages(message).tracks
    return TrueBoxes(
        np.array([track.id for track in tracks], np.int64),
        np.array([track.box for track in tracks], float).reshape(-1, 4),
    )
