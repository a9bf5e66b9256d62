# SPDX-License-Identifier: Apache-2.0
"""Frames in time, whatever they come from: bags, folders and tars of pictures, videos."""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from oc_perception.bags.archive import fingerprint, is_tar
from oc_perception.bags.camera import COMPANION_LOOKAHEAD_FRAMES
from oc_perception.bags.chunks import Skipped
from oc_perception.bags.files import looks_recorded
from oc_perception.bags.frames import BagError, Frame, TrueBoxes
from oc_perception.bags.pictures import ImageSequence, Picture
from oc_perception.bags.reader import FOREVER_NS, Bag
from oc_perception.bags.truth import BoxTruth, MaskTruth, open_truth, truth_inside
from oc_perception.images import MalformedImage
from oc_perception.types import Segmentation, SensorState

__all__ = ["BagError", "Frame", "Sequence", "TrueBoxes", "open_sequence", "recording_name"]

_PICTURE_TOPIC = "/camera/image"
_PICTURES_START_NS = 1_000_000_000  # 0 means "unset" in ROS
_LONE_FRAME_PERIOD_NS = 1_000_000_000
_ENDINGS = {
    *(".mcap", ".db3", ".bag", ".active", ".zstd", ".zst"),
    *(".tar", ".gz", ".tgz", ".bz2", ".xz"),
    *(".mp4", ".avi", ".mkv", ".mov", ".webm", ".mpg", ".m4v"),
}


class Sequence(ABC):
    """Frames of one camera. A context manager; `frames` may be called again and again.

    `name` is of the recording, for directories and tables; `num_frames` as announced; `period_ns`
    the median distance of the first stamps, 1 s where there is one frame alone.
    """

    name: str
    topic: str
    num_frames: int
    period_ns: int

    def __init__(self, path: Path, truth: Path | None) -> None:
        self._stack = ExitStack()
        self._skipped = Skipped()
        self.name = recording_name(path)
        self._truth: BoxTruth | MaskTruth | None = None
        if truth is not None:
            self._truth = open_truth(truth, self._stack)

    def __enter__(self) -> Sequence:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @abstractmethod
    def frames(self, start_s: float = 0.0, stop_s: float = math.inf) -> Iterator[Frame]:
        """The frames recorded `start_s <= t < stop_s` after the first, in recorded order.

        One at a time; others are not decoded. Gaps stay gaps. An image that cannot be decoded is a
        Frame with the error in its place; a message that cannot be read is left out.
        """

    @abstractmethod
    def identity(self) -> str:
        """Equal for the same recording wherever it lies, with the same topic and rate, whatever
        truth there is.
        """

    def truth_identity(self) -> str:
        """Equal for the same truth wherever it lies; empty where there is none."""
        return "" if self._truth is None else self._truth.identity()

    @property
    def warnings(self) -> list[str]:
        """What was left out so far and why, one line per kind; grows while frames are read."""
        return self._skipped.lines()

    def _with_truth(self, frame: Frame, number: int, picture: str = "") -> Frame:
        """The frame with the truth of frame `number`, and the error of its image noted."""
        if isinstance(frame.image, MalformedImage):
            self._skipped.add(f"image(s) on {self.topic}", frame.index, f"{frame.image}")
        if isinstance(self._truth, BoxTruth):
            return replace(frame, boxes=self._truth.boxes(number))
        if isinstance(self._truth, MaskTruth):
            try:
                labels = self._truth.labels(number, picture)
            except BagError as error:
                self._skipped.add("mask(s)", number, f"{error}")
                return frame
            if labels is not None:
                return replace(frame, truth=self._segmentation(frame, labels))
        return frame

    def _segmentation(self, frame: Frame, labels: np.ndarray) -> Segmentation:
        if isinstance(frame.image, np.ndarray) and labels.shape != frame.image.shape[:2]:
            height, width = frame.image.shape[:2]
            self._skipped.note(
                f"The masks are of {labels.shape[1]}x{labels.shape[0]} px, the images of "
                f"{width}x{height}: the masks are resized."
            )
            labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        return Segmentation(frame.stamp_ns, SensorState.OK, "ground_truth", frame.index, labels)

    def _compare_lengths(self, last_number: int) -> None:
        """Note a truth that ends before the recording, or goes on behind it."""
        if self._truth is None:
            return
        told, frames = self._truth.num_frames, last_number + 1
        if told < frames:
            self._skipped.note(f"The ground truth ends with frame {told} of {frames}.")
        elif told > frames:
            self._skipped.note(
                f"The ground truth goes on to frame {told}, and the recording ends with frame "
                f"{frames}."
            )


def open_sequence(
    path: str | Path,
    topic: str | None = None,
    truth: str | Path | None = None,
    fps: float | None = None,
) -> Sequence:
    """A recording as a Sequence, open; use it in a `with`.

    `path` is a rosbag2 directory, a lone .mcap or .db3 file, a ROS 1 .bag, a folder or tar of
    pictures (MOTChallenge's too), or a video. `topic` names the images of a bag that has several.
    `truth` is MOTChallenge's gt.txt (its frame k is the k-th image), or a folder or tar of such a
    text or of PNG masks; without it, what lies in the recording is used. `fps` is the rate of
    pictures. Raises BagError where nothing can be read.
    """
    path, truth = Path(path), None if truth is None else Path(truth)
    if not path.exists():
        raise BagError(f"There is no recording at {path}: check the path.")
    with ExitStack() as on_error:
        sequence: Sequence
        if not is_tar(path) and looks_recorded(path):
            sequence = on_error.enter_context(_BagSequence(path, truth))
            sequence.open(topic)
        else:
            sequence = on_error.enter_context(_PictureSequence(path, truth))
            sequence.open(fps)
        on_error.pop_all()
    return sequence


class _BagSequence(Sequence):
    """The images of one topic of a bag."""

    def __init__(self, path: Path, truth: Path | None) -> None:
        super().__init__(path, truth)
        self._bag = Bag(path)

    def open(self, topic: str | None) -> None:
        """Choose the topics. Raises BagError."""
        bag = self._stack.enter_context(self._bag)
        self._topics = bag.select(topic)
        self.topic = self._topics.image
        self.num_frames = bag.count(self.topic)
        self._first_ns = bag.first_recorded_ns(self.topic)
        if self.num_frames > 1:
            self.period_ns = bag.period_ns(self.topic)
        else:
            bag.first_stamp_ns(self.topic)  # fails where it cannot be read
            self.period_ns = _LONE_FRAME_PERIOD_NS
        self._compare_lengths(self.num_frames - 1)

    def frames(self, start_s: float = 0.0, stop_s: float = math.inf) -> Iterator[Frame]:
        start_ns = self._first_ns + round(start_s * 1e9) if start_s > 0 else 0
        stop_ns = self._first_ns + round(stop_s * 1e9) if math.isfinite(stop_s) else FOREVER_NS
        margin_ns = COMPANION_LOOKAHEAD_FRAMES * self.period_ns
        for frame in self._bag.frames(self._topics, start_ns, stop_ns, margin_ns):
            yield self._with_truth(frame, frame.index)

    @property
    def warnings(self) -> list[str]:
        return [*self._bag.warnings, *self._skipped.lines()]

    def identity(self) -> str:
        topics = self._topics
        chosen = (topics.image, topics.depth, topics.camera_info)
        return self._bag.identity([topic for topic in chosen if topic])

    def truth_identity(self) -> str:
        own = [topic for topic in (self._topics.truth, self._topics.true_tracks) if topic]
        return super().truth_identity() + (self._bag.identity(own) if own else "")


class _PictureSequence(Sequence):
    """Pictures of a folder or tar, or the frames of a video."""

    def __init__(self, path: Path, truth: Path | None) -> None:
        super().__init__(path, truth)
        self._path = path

    def open(self, fps: float | None) -> None:
        """Find the pictures. Raises SequenceError."""
        pictures = self._stack.enter_context(ImageSequence(self._path, fps))
        self._pictures, self.topic = pictures, _PICTURE_TOPIC
        self.num_frames = len(pictures)
        self.period_ns = round(1e9 / pictures.fps) if pictures.fps else self._measured_period_ns()
        if pictures.warning:
            self._skipped.note(pictures.warning)
        if self._truth is None and pictures.archive is not None:
            self._truth = truth_inside(pictures.archive, pictures.folder)
        self._compare_lengths(pictures.last_number)

    def frames(self, start_s: float = 0.0, stop_s: float = math.inf) -> Iterator[Frame]:
        count = 0
        for picture in self._pictures.pictures(start_s, stop_s):
            try:
                image: np.ndarray | MalformedImage = picture.rgb()
            except MalformedImage as error:
                image = error
            stamp_ns = _PICTURES_START_NS + round(picture.time_s * 1e9)
            frame = Frame(picture.index, stamp_ns, image, self._depth(picture))
            yield self._with_truth(frame, picture.number, picture.name)
            count = picture.index + 1
        if stop_s == math.inf and count < self.num_frames:
            self._skipped.note(
                f"Only {count} of the {self.num_frames} frames that {self._path.name} announces "
                "can be decoded."
            )

    def identity(self) -> str:
        if self._path.is_dir():
            files = self._pictures.files
            names, content = " ".join(files), fingerprint([self._path / name for name in files])
        else:
            names, content = "", fingerprint([self._path])
        about = f"{self._pictures.fps} {names} {content}"
        return hashlib.sha256(about.encode()).hexdigest()

    def _depth(self, picture: Picture) -> np.ndarray | None:
        try:
            return picture.depth_m()
        except MalformedImage as error:
            self._skipped.add("depth picture(s)", picture.index, f"{error}")
            return None

    def _measured_period_ns(self) -> int:
        times_s = [p.time_s for _, p in zip(range(2), self._pictures, strict=False)]
        return round((times_s[1] - times_s[0]) * 1e9) if times_s[1:] else _LONE_FRAME_PERIOD_NS


def recording_name(path: Path) -> str:
    """What a recording is called, for directories and tables: the last part of its path as it was
    given, of files without their endings.
    """
    path = Path(os.path.abspath(path))
    while not path.is_dir() and path.suffix.lower() in _ENDINGS:
        path = path.with_suffix("")
    # A name that is no text would stop whoever prints it, and crash OpenCV.
    return os.fsencode(path.name).decode(errors="replace") or "recording"
