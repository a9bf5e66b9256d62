# SPDX-License-Identifier: Apache-2.0
"""Frames in time, whatever they were recorded with: bags, folders and tars of pictures, videos."""

from __future__ import annotations

import hashlib
import math
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from oc_perception.bags.frames import BagError, Frame, TrueBoxes
from oc_perception.bags.reader import Bag
from oc_perception.bags.sequences import ImageSequence
from oc_perception.evaluation.mot_files import parse_mot, read_mot
from oc_perception.images import MalformedImage

__all__ = ["BagError", "Frame", "Sequence", "TrueBoxes", "open_sequence"]

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Sequence(Protocol):
    """Frames of one camera. A context manager; `frames` may be called again and again.

    `name` is of the recording; `num_frames` as announced; `period_ns` the median distance of the
    first stamps; `warnings` say what was skipped and why, and grow while frames are read.
    """

    name: str
    topic: str
    num_frames: int
    period_ns: int
    warnings: list[str]

    def frames(self, start_s: float = 0.0, stop_s: float = math.inf) -> Iterator[Frame]:
        """The frames recorded `start_s <= t < stop_s` after the first; gaps stay gaps."""

    def identity(self) -> str:
        """Equal for the same recording, wherever it lies."""

    def __enter__(self) -> Sequence: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def open_sequence(
    path: str | Path,
    topic: str | None = None,
    truth: str | Path | None = None,
    fps: float | None = None,
) -> Sequence:
    """A recording as a Sequence. Raises BagError where nothing can be read."""
    path = Path(path)
    boxes = _boxes(path, truth)
    if path.suffix in (".mcap", ".db3") or list(path.glob("*.mcap")) or list(path.glob("*.db3")):
        return _BagSequence(path, topic, boxes)
    return _PictureSequence(path, fps, boxes)


_Boxes = Callable[[int], TrueBoxes | None]


def _boxes(path: Path, truth: str | Path | None) -> _Boxes:
    table = None
    if truth is not None:
        table = read_mot(truth)
    elif path.name.endswith(_TARS):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith("gt/gt.txt") and (file := tar.extractfile(member)):
                    table = parse_mot(file.read().decode().splitlines(), member.name)
    elif (path / "gt" / "gt.txt").is_file():
        table = read_mot(path / "gt" / "gt.txt")
    if table is None:
        return lambda index: None
    table = table.select(~table.ignored)
    ids, boxes = table.by_frame(int(table.frames.max(initial=-1)) + 1)
    nothing = TrueBoxes(np.zeros(0, np.int64), np.zeros((0, 4)))
    return lambda k: TrueBoxes(ids[k], boxes[k]) if k < len(ids) else nothing


class _BagSequence:
    def __init__(self, path: Path, topic: str | None, boxes: _Boxes) -> None:
        self._stack = ExitStack()
        self._bag = self._stack.enter_context(Bag(path))
        self._topics = self._bag.select(topic)
        self._boxes = boxes
        self.name, self.topic = path.stem, self._topics.image
        self.num_frames = self._bag.count(self.topic)
        self.period_ns = self._bag.period_ns(self.topic)
        self.warnings: list[str] = []

    def __enter__(self) -> _BagSequence:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def frames(self, start_s: float = 0.0, stop_s: float = math.inf) -> Iterator[Frame]:
        first = None
        for frame in self._bag.frames(self._topics):
            first = frame.stamp_ns if first is None else first
            if start_s <= (frame.stamp_ns - first) * 1e-9 < stop_s:
                yield replace(frame, boxes=self._boxes(frame.index))

    def identity(self) -> str:
        text = f"{self.topic} {self.num_frames} {self._bag.first_stamp_ns(self.topic)}"
        return hashlib.sha256(text.encode()).hexdigest()


class _PictureSequence:
    def __init__(self, path: Path, fps: float | None, boxes: _Boxes) -> None:
        self._stack = ExitStack()
        self._pictures = self._stack.enter_context(ImageSequence(path, fps))
        self._boxes = boxes
        self.name, self.topic = path.name.partition(".")[0], "/camera/image"
        self.num_frames = len(self._pictures)
        first = [p.time_s for _, p in zip(range(60), self._pictures, strict=False)]
        self.period_ns = round(np.median(np.diff(first)) * 1e9)
        self.warnings: list[str] = []

    def __enter__(self) -> _PictureSequence:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def frames(self, start_s: float = 0.0, stop_s: float = math.inf) -> Iterator[Frame]:
        for index, picture in enumerate(self._pictures):
            if start_s <= picture.time_s < stop_s:
                try:
                    image = picture.rgb()
                except MalformedImage as error:
                    image = error
                stamp_ns = 1_000_000_000 + round(picture.time_s * 1e9)
                yield Frame(index, stamp_ns, image, boxes=self._boxes(index))

    def identity(self) -> str:
        return hashlib.sha256(f"{self.name} {self.num_frames}".encode()).hexdigest()
