# SPDX-License-Identifier: Apache-2.0
"""Image sequences that are not bags: folders or tars of pictures, MOTChallenge, video files."""

from __future__ import annotations

import configparser
import math
import posixpath
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from oc_perception.bags.archive import PICTURES, Archive, SequenceError, is_tar
from oc_perception.images import MalformedImage, decode_compressed, decode_depth

_JPEG_QUALITY = 95
_FILES = (b"\xff\xd8\xff", b"\x89PNG")
_TRUTHS = re.compile(r"(mask|annotation|segmentation|label|ground_?truth)s?$", re.IGNORECASE)


@dataclass(frozen=True)
class Picture:
    """One frame of a sequence, `time_s` after the first: a picture file, or RGB of a video.

    `index` counts from 0; `number` too, but with MOTChallenge's frame numbers, where a missing
    file is a gap.
    """

    time_s: float
    source: bytes | np.ndarray
    index: int = 0
    number: int = 0
    name: str = ""
    depth: bytes = b""

    def encoded(self) -> tuple[str, bytes]:
        """`(format, file)`: a JPEG's or PNG's own bytes; other files as PNG, a video frame as
        JPEG. Raises SequenceError.
        """
        if isinstance(self.source, np.ndarray):
            quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
            bgr = cv2.cvtColor(self.source, cv2.COLOR_RGB2BGR)
            return "jpeg", cv2.imencode(".jpg", bgr, quality)[1].tobytes()
        if self.source.startswith(_FILES):
            return ("png" if self.source.startswith(b"\x89PNG") else "jpeg"), self.source
        try:
            bgr = cv2.cvtColor(self.rgb(), cv2.COLOR_RGB2BGR)
        except MalformedImage as error:
            raise SequenceError(f"{error}") from error
        return "png", cv2.imencode(".png", bgr)[1].tobytes()

    def rgb(self) -> np.ndarray:
        """`(H, W, 3)` uint8. Raises MalformedImage."""
        if isinstance(self.source, np.ndarray):
            return self.source
        if self.source.startswith(_FILES):
            return decode_compressed(self.name, self.source)
        data = np.frombuffer(self.source, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        if image is None:
            raise MalformedImage(f"{self.name} is not a picture: remove or replace it.")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def depth_m(self) -> np.ndarray | None:
        """`(H, W)` float32 metres of the depth picture (16 bit, mm) beside this one; NaN where
        nothing was measured. Raises MalformedImage.
        """
        if not self.depth:
            return None
        image = cv2.imdecode(np.frombuffer(self.depth, np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 2 or image.dtype != np.uint16:
            raise MalformedImage(f"The depth beside {self.name} is no 16-bit picture of mm.")
        return decode_depth(*image.shape, "16UC1", False, 2 * image.shape[1], image.reshape(-1))


class ImageSequence:
    """A context manager and iterable of Pictures; `len` is how many are expected.

    `fps` gives the times of plain pictures, and overrides what MOTChallenge's seqinfo.ini or a
    video say. `folder` chooses among several folders of pictures inside the source; one that is
    named as ground truth (masks, annotations) is none of the choices. A picture `x-depth.png`
    beside `x-color.png` (or `rgb`) belongs to it. Raises SequenceError.
    """

    def __init__(
        self, source: str | Path, fps: float | None = None, folder: str | None = None
    ) -> None:
        self.source = Path(source)
        self.fps, self.folder = fps, folder
        self.archive: Archive | None = None
        self._stack = ExitStack()
        if fps is not None and not 0 < fps < 1e6:
            raise SequenceError(f"{fps} is not a frame rate: give frames per second above 0.")
        if not self.source.exists():
            raise SequenceError(f"There is no {self.source}: check the path.")

    def __enter__(self) -> ImageSequence:
        try:
            if self.source.is_dir() or is_tar(self.source):
                self.archive = self._stack.enter_context(Archive(self.source))
                self._open_pictures(self.archive)
            else:
                self._length, self.fps = self._open_video()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __len__(self) -> int:
        return self._length

    @property
    def last_number(self) -> int:
        """The `number` of the last picture."""
        return self._length - 1 if self.archive is None else self.numbers[-1]

    @property
    def files(self) -> list[str]:
        """The names of all pictures of a folder or tar, those of depth behind the others."""
        return [*self.names, *sorted(self._depths)]

    @property
    def warning(self) -> str:
        """What is missing of a damaged tar, or nothing."""
        return "" if self.archive is None else self.archive.warning

    def __iter__(self) -> Iterator[Picture]:
        return self.pictures()

    def pictures(self, start_s: float = -math.inf, stop_s: float = math.inf) -> Iterator[Picture]:
        """The pictures of `start_s <= time_s < stop_s`; other files are not read, other frames of
        a video not converted.
        """
        if self.archive is None:
            yield from self._read_video(start_s, stop_s)
            return
        for index, (name, number) in enumerate(zip(self.names, self.numbers, strict=True)):
            time_s = (number - self.numbers[0]) / self.fps
            if not start_s <= time_s < stop_s:
                continue
            depth = _depth_name(name)
            try:
                source = self.archive.read(name)
                depth_source = self.archive.read(depth) if depth in self._depths else b""
            except OSError as error:
                raise SequenceError(f"Cannot read {name} in {self.source}: {error}.") from error
            yield Picture(time_s, source, index, number, name, depth_source)

    def _open_pictures(self, archive: Archive) -> None:
        folders = archive.folders()
        information = [n for n in archive.names if posixpath.basename(n) == "seqinfo.ini"]
        numbered = self.folder is None and len(information) == 1
        if numbered:
            self.folder = self._read_seqinfo(archive, information[0])
        else:
            self.folder = self._choose(folders)
        if self.fps is None:
            raise SequenceError(
                f"Pictures in {self.source} carry no times: give their rate with --fps."
            )
        if not folders.get(self.folder):
            raise SequenceError(
                f"{self.source} has no pictures in {self.folder or 'its top folder'}."
            )
        found = folders[self.folder]
        self._depths = {_depth_name(name) for name in found} & set(found)
        self.names = [name for name in found if name not in self._depths]
        # MOTChallenge numbers its frames from 1, so that a missing file is a gap in time.
        self.numbers = (
            [_number(name) - 1 for name in self.names] if numbered else [*range(len(self.names))]
        )
        self._length = len(self.names)

    def _read_seqinfo(self, archive: Archive, name: str) -> str:
        """The folder of the pictures; their rate goes to `fps` unless one was given."""
        parser = configparser.ConfigParser()
        try:
            parser.read_string(archive.read(name).decode())
            section = parser["Sequence"]
            fps = float(section["frameRate"])
            folder = section.get("imDir", "img1")
        except (configparser.Error, KeyError, ValueError) as error:
            raise SequenceError(
                f"{name} in {self.source} is not MOTChallenge's ({error!r}): it needs a section "
                "[Sequence] with frameRate and imDir."
            ) from error
        if self.fps is None:
            if not 0 < fps < 1e6:
                raise SequenceError(f"{name} in {self.source} has frameRate={fps}: give --fps.")
            self.fps = fps
        return posixpath.normpath(posixpath.join(posixpath.dirname(name), folder))

    def _choose(self, folders: dict[str, list[str]]) -> str:
        if self.folder is not None:
            folder = posixpath.normpath(self.folder)
            return "" if folder == "." else folder
        choices = [folder for folder in folders if not is_truth(folder)] or list(folders)
        if len(choices) != 1:
            listing = ", ".join(sorted(f or "." for f in folders)) or "none"
            raise SequenceError(
                f"{self.source} needs one folder of pictures ({', '.join(PICTURES)}), and has "
                f"{listing}." + (" Choose one with --folder." if folders else "")
            )
        return choices[0]

    def _open_video(self) -> tuple[int, float | None]:
        """How many frames the video announces, and its rate unless one was given."""
        video = self._capture()
        length = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
        rate = video.get(cv2.CAP_PROP_FPS)
        self._given_fps = self.fps
        video.release()
        return length, self.fps or (rate if 0 < rate < 1e6 else None)

    def _capture(self) -> cv2.VideoCapture:
        video = cv2.VideoCapture(str(self.source))
        if not video.isOpened():
            raise SequenceError(
                f"{self.source} is neither a folder, a tar nor a video that OpenCV can read. "
                "Convert the video, for instance with `ffmpeg -i IN OUT.mp4`."
            )
        return video

    def _read_video(self, start_s: float, stop_s: float) -> Iterator[Picture]:
        index, first_ms, previous_s = 0, 0.0, -1.0
        video = self._capture()
        try:
            while video.grab():
                if self._given_fps is not None:
                    time_s = index / self._given_fps
                else:
                    stamp_ms = video.get(cv2.CAP_PROP_POS_MSEC)
                    first_ms = stamp_ms if index == 0 else first_ms
                    time_s = (stamp_ms - first_ms) / 1000
                    if time_s <= previous_s:
                        raise SequenceError(
                            f"{self.source} has no usable time for frame {index + 1}: give --fps."
                        )
                if time_s >= stop_s:
                    return
                if time_s >= start_s:
                    found, image = video.retrieve()
                    if found:
                        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                        yield Picture(time_s, rgb, index, index)
                index, previous_s = index + 1, time_s
        finally:
            video.release()
        if index == 0:
            raise SequenceError(f"{self.source} holds no frame that OpenCV can decode.")


def _depth_name(name: str) -> str:
    """What the depth of a colour picture would be called; empty if it is not named as one."""
    folder, base = posixpath.split(name)
    depth = re.sub(r"(?<![a-z])(colou?r|rgb)(?![a-z])", "depth", base, flags=re.IGNORECASE)
    return "" if depth == base else posixpath.join(folder, depth)


def is_truth(folder: str) -> bool:
    """Whether a folder is named as ground truth."""
    return bool(_TRUTHS.search(posixpath.basename(folder)))


def _number(name: str) -> int:
    stem = posixpath.splitext(posixpath.basename(name))[0]
    digits = re.findall(r"\d+", stem)
    if not digits:
        raise SequenceError(f"{name} carries no frame number, as MOTChallenge wants.")
    return int(digits[-1])
