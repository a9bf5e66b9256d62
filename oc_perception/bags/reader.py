# SPDX-License-Identifier: Apache-2.0
"""Reading rosbag2 (mcap, sqlite3), one frame at a time, in the order of recording."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rosbags.rosbag2 import Reader
from rosbags.serde import SerdeError

from oc_perception.bags.definitions import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    SEGMENTATION,
    typestore,
)
from oc_perception.bags.frames import BagError, Frame
from oc_perception.bags.messages import (
    rgb_from_message,
    segmentation_from_message,
    stamp_ns,
)
from oc_perception.images import MalformedImage, decode_depth

COMPANION_LOOKAHEAD_FRAMES = 8
"""How many frames later a depth image or ground truth of the same stamp may have been recorded."""
_PERIOD_SAMPLE_FRAMES = 60


@dataclass(frozen=True)
class BagTopics:
    """The topics that belong to one camera; None where the bag has none."""

    image: str
    depth: str | None = None
    camera_info: str | None = None
    truth: str | None = None


class Bag:
    """A context manager over a rosbag2 directory, or a lone .mcap or .db3 file.

    Raises BagError for what cannot be opened: not a bag, truncated, without metadata.yaml.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise BagError(f"There is no bag at {self.path}: check the path.")

    def __enter__(self) -> Bag:
        try:
            self._reader = Reader(self.path)
            self._reader.open()
        # rosbags tells damage by many exceptions (its own, struct.error, TypeError, EOFError ...).
        except Exception as error:
            raise BagError(f"Cannot open {self.path}: {error} {self._cure()}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reader.close()

    @property
    def topics(self) -> dict[str, str]:
        """Message type of each topic, by name."""
        return {
            c.topic: c.msgtype for c in sorted(self._reader.connections, key=lambda c: c.topic)
        }

    def count(self, topic: str) -> int:
        """How many messages a topic has."""
        return sum(c.msgcount for c in self._reader.connections if c.topic == topic)

    def messages(self, topics: Iterable[str]) -> Iterator[tuple[str, int, Any]]:
        """`(topic, time of recording in ns, message)` of some topics, in order of recording."""
        for topic, recorded_ns, message_type, data in self.raw(topics):
            yield topic, recorded_ns, self._deserialize(topic, message_type, data)

    def raw(self, topics: Iterable[str]) -> Iterator[tuple[str, int, str, bytes]]:
        """`(topic, time of recording in ns, message type, CDR bytes)`, in recorded order."""
        chosen = set(topics)
        connections = [c for c in self._reader.connections if c.topic in chosen]
        if not connections:
            return
        messages = self._reader.messages(connections)
        while True:
            try:
                connection, recorded_ns, data = next(messages)
            except StopIteration:
                return
            except Exception as error:  # see __enter__
                raise BagError(f"{self.path} is damaged: {error} {self._cure()}") from error
            yield connection.topic, recorded_ns, connection.msgtype, data

    def select(self, image_topic: str | None = None) -> BagTopics:
        """The topics of the camera: the named image topic, or the only one in the bag.

        The camera_info beside it, the only depth topic and the only ground-truth segmentation go
        with it. Raises BagError that lists the image topics when the choice is open.
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
        truth = [
            topic
            for topic, kind in topics.items()
            if kind == SEGMENTATION and "ground_truth" in topic
        ]
        return BagTopics(
            image=image_topic,
            depth=depth[0] if len(depth) == 1 else None,
            camera_info=camera_info if topics.get(camera_info) == CAMERA_INFO else None,
            truth=truth[0] if len(truth) == 1 else None,
        )

    def first_stamp_ns(self, topic: str) -> int:
        """Header stamp of the first message of a topic. Raises BagError where there is none."""
        for _, _, message_type, data in self.raw([topic]):
            return self._stamp(topic, message_type, data)
        raise BagError(f"{topic} in {self.path} has no message: record it again.")

    def period_ns(self, image_topic: str) -> int:
        """The camera's period: the median distance of the first stamps.

        Raises BagError where there are no two different ones.
        """
        stamps = []
        for _, _, message_type, data in self.raw([image_topic]):
            stamps.append(self._stamp(image_topic, message_type, data))
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

    def frames(self, topics: BagTopics) -> Iterator[Frame]:
        """The frames of a camera with companions of the same stamp, in the order of recording.

        Holds COMPANION_LOOKAHEAD_FRAMES frames at most. The camera matrix is the newest recorded.
        """
        wanted = [t for t in (topics.depth, topics.truth) if t]
        companions: dict[str, OrderedDict[int, Any]] = {t: OrderedDict() for t in wanted}
        pending: deque[_Pending] = deque()
        camera_matrix, number = None, 0
        if topics.camera_info:
            first = next(self.messages([topics.camera_info]), None)
            camera_matrix = None if first is None else first[2].k.reshape(3, 3)

        def release(frame: _Pending) -> Frame:
            depth = companions[topics.depth].get(frame.stamp_ns) if topics.depth else None
            truth = companions[topics.truth].get(frame.stamp_ns) if topics.truth else None
            return Frame(
                index=frame.index,
                stamp_ns=frame.stamp_ns,
                image=_decoded(rgb_from_message, frame.message),
                depth_m=None if depth is None else _valid_depth(depth),
                camera_matrix=frame.camera_matrix,
                truth=None if truth is None else segmentation_from_message(truth),
            )

        def complete(frame: _Pending) -> bool:
            return all(frame.stamp_ns in companions[topic] for topic in wanted)

        extra = [topics.camera_info] if topics.camera_info else []
        for topic, _, message in self.messages([topics.image, *wanted, *extra]):
            if topic == topics.image:
                pending.append(
                    _Pending(number, stamp_ns(message.header.stamp), message, camera_matrix)
                )
                number += 1
            elif topic == topics.camera_info:
                camera_matrix = message.k.reshape(3, 3)
            else:
                companions[topic][stamp_ns(message.header.stamp)] = message
                if len(companions[topic]) > 2 * COMPANION_LOOKAHEAD_FRAMES:
                    companions[topic].popitem(last=False)
            while pending and (complete(pending[0]) or len(pending) > COMPANION_LOOKAHEAD_FRAMES):
                yield release(pending.popleft())
        while pending:
            yield release(pending.popleft())

    def _deserialize(self, topic: str, message_type: str, data: bytes) -> Any:
        try:
            return typestore().deserialize_cdr(data, message_type)
        # Damaged lengths surface as whatever the generated decoder runs into.
        except (SerdeError, ValueError, AssertionError, IndexError, KeyError, TypeError) as error:
            raise BagError(
                f"A message on {topic} in {self.path} cannot be read as {message_type}: "
                f"{error or type(error).__name__}. Was it recorded with another version?"
            ) from error

    def _stamp(self, topic: str, message_type: str, data: bytes) -> int:
        return stamp_ns(self._deserialize(topic, message_type, data).header.stamp)

    def _is_depth(self, topic: str, message_type: str) -> bool:
        first = next(self.messages([topic]), None)
        if first is None:
            return False
        if message_type == COMPRESSED_IMAGE:
            return "compressedDepth" in first[2].format
        return first[2].encoding in ("16UC1", "32FC1")

    def _cure(self) -> str:
        if self.path.is_dir() and not (self.path / "metadata.yaml").is_file():
            return "Write the missing metadata.yaml with `ros2 bag reindex`."
        if self.path.is_dir() or self.path.suffix in (".mcap", ".db3"):
            return "Record or copy it again, or repair it (`mcap recover`, `ros2 bag reindex`)."
        return "Give a rosbag2 directory, or a .mcap or .db3 file."


@dataclass
class _Pending:
    """An image that waits for its companions."""

    index: int
    stamp_ns: int
    message: Any = field(repr=False)
    camera_matrix: np.ndarray | None


def _decoded(decode: Any, message: Any) -> np.ndarray | MalformedImage:
    try:
        return decode(message)
    except MalformedImage as error:
        return error


def _valid_depth(message: Any) -> np.ndarray | None:
    """Depth in metres, or None where it cannot be decoded: the frame is then used without."""
    try:
        return decode_depth(
            message.height,
            message.width,
            message.encoding,
            message.is_bigendian,
            message.step,
            message.data,
        )
    except MalformedImage:
        return None
