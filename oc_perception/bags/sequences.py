# SPDX-License-Identifier: Apache-2.0
"""Image sequences that are not bags: folders or tars of pictures, MOTChallenge, video files."""

from __future__ import annotations

import configparser
import posixpath
import re
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import cv2
import numpy as np

from oc_perception.images import decode_compressed

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_JPEG_QUALITY = 95


class SequenceError(ValueError):
    """A source that is no image sequence; the message names the cause and the cure."""


@dataclass(frozen=True)
class Picture:
    """One frame of a sequence, `time_s` after the first: a JPEG or PNG file, or RGB of a video."""

    time_s: float
    source: bytes | np.ndarray

    def encoded(self) -> tuple[str, bytes]:
        """`(format, file)`: the source's own bytes where it is a file; a video frame as JPEG."""
        if isinstance(self.source, np.ndarray):
            quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
            bgr = cv2.cvtColor(self.source, cv2.COLOR_RGB2BGR)
            return "jpeg", cv2.imencode(".jpg", bgr, quality)[1].tobytes()
        return ("png" if self.source.startswith(b"\x89PNG") else "jpeg"), self.source

    def rgb(self) -> np.ndarray:
        """`(H, W, 3)` uint8. Raises MalformedImage."""
        if isinstance(self.source, np.ndarray):
            return self.source
        return decode_compressed(self.encoded()[0], self.source)


class _Files(Protocol):
    """Read access to the files of a folder or tar, by relative path with slashes."""

    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        return [p.relative_to(self._path).as_posix() for p in self._path.rglob("*") if p.is_file()]

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()


class _Tar:
    """Members are read in place; nothing is extracted, so a hostile path does no harm."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._members = {posixpath.normpath(m.name): m for m in tar.getmembers() if m.isfile()}

    def names(self) -> list[str]:
        return list(self._members)

    def read(self, name: str) -> bytes:
        file = self._tar.extractfile(self._members[name])
        assert file is not None  # only regular files are listed
        return file.read()


class ImageSequence:
    """A context manager and iterable of Pictures; `len` is how many are expected.

    `fps` gives the times of plain pictures, and overrides what MOTChallenge's seqinfo.ini or a
    video say. `folder` chooses among several folders of pictures inside the source. Raises
    SequenceError.
    """

    def __init__(
        self, source: str | Path, fps: float | None = None, folder: str | None = None
    ) -> None:
        self.source = Path(source)
        self._fps, self._folder = fps, folder
        self._stack = ExitStack()
        if fps is not None and not 0 < fps < 1e6:
            raise SequenceError(f"{fps} is not a frame rate: give frames per second above 0.")
        if not self.source.exists():
            raise SequenceError(f"There is no {self.source}: check the path.")

    def __enter__(self) -> ImageSequence:
        self._video: cv2.VideoCapture | None = None
        if self.source.is_dir():
            self._open_pictures(_Folder(self.source))
        elif self.source.name.lower().endswith(_TARS):
            try:
                tar = self._stack.enter_context(tarfile.open(self.source))
                self._open_pictures(_Tar(tar))
            except (tarfile.TarError, EOFError, OSError) as error:
                raise SequenceError(
                    f"Cannot read {self.source}: {error}. Copy it again."
                ) from error
        else:
            self._open_video()
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

    def __iter__(self) -> Iterator[Picture]:
        return self._read_pictures() if self._video is None else self._read_video()

    def _open_pictures(self, files: _Files) -> None:
        names = [n for n in files.names() if not posixpath.basename(n).startswith(".")]
        folders: dict[str, list[str]] = {}
        for name in names:
            if name.lower().endswith(_PICTURES):
                folders.setdefault(posixpath.dirname(name), []).append(name)
        information = [n for n in names if posixpath.basename(n) == "seqinfo.ini"]
        if self._folder is None and len(information) == 1:
            folder = self._read_seqinfo(files, information[0])
            numbered = True
        else:
            folder = self._choose(folders)
            numbered = False
        if self._fps is None:
            raise SequenceError(
                f"Pictures in {self.source} carry no times: give their rate with --fps."
            )
        if not folders.get(folder):
            raise SequenceError(f"{self.source} has no pictures in {folder or 'its top folder'}.")
        ordered = sorted(folders[folder], key=_natural)
        # MOTChallenge numbers its frames, so that a missing file is a gap in time.
        numbers = [_number(name) for name in ordered] if numbered else list(range(len(ordered)))
        self._times_s = [(number - numbers[0]) / self._fps for number in numbers]
        self._ordered, self._files, self._length = ordered, files, len(ordered)

    def _read_seqinfo(self, files: _Files, name: str) -> str:
        """The folder of the pictures; their rate goes to `_fps` unless one was given."""
        parser = configparser.ConfigParser()
        try:
            parser.read_string(files.read(name).decode())
            section = parser["Sequence"]
            fps = float(section["frameRate"])
            folder = section.get("imDir", "img1")
        except (configparser.Error, KeyError, ValueError) as error:
            raise SequenceError(
                f"{name} in {self.source} is not MOTChallenge's ({error!r}): it needs a section "
                "[Sequence] with frameRate and imDir."
            ) from error
        if self._fps is None:
            if not 0 < fps < 1e6:
                raise SequenceError(f"{name} in {self.source} has frameRate={fps}: give --fps.")
            self._fps = fps
        return posixpath.normpath(posixpath.join(posixpath.dirname(name), folder))

    def _choose(self, folders: dict[str, list[str]]) -> str:
        if self._folder is not None:
            folder = posixpath.normpath(self._folder)
            return "" if folder == "." else folder
        if len(folders) != 1:
            listing = ", ".join(sorted(f or "." for f in folders)) or "none"
            raise SequenceError(
                f"{self.source} needs one folder of pictures ({', '.join(_PICTURES)}), and has "
                f"{listing}." + (" Choose one with --folder." if folders else "")
            )
        return next(iter(folders))

    def _read_pictures(self) -> Iterator[Picture]:
        for time_s, name in zip(self._times_s, self._ordered, strict=True):
            try:
                source = self._files.read(name)
            except (tarfile.TarError, EOFError, OSError) as error:
                raise SequenceError(f"Cannot read {name} in {self.source}: {error}.") from error
            if not source.startswith((b"\xff\xd8\xff", b"\x89PNG")):
                source = self._as_png(name, source)
            yield Picture(time_s, source)

    def _as_png(self, name: str, data: bytes) -> bytes:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if image is None:
            raise SequenceError(f"{name} in {self.source} is not a picture: remove or replace it.")
        return cv2.imencode(".png", image)[1].tobytes()

    def _open_video(self) -> None:
        self._video = cv2.VideoCapture(str(self.source))
        self._stack.callback(self._video.release)
        if not self._video.isOpened():
            raise SequenceError(
                f"{self.source} is neither a folder, a tar nor a video that OpenCV can read. "
                "Convert the video, for instance with `ffmpeg -i IN OUT.mp4`."
            )
        self._length = max(0, int(self._video.get(cv2.CAP_PROP_FRAME_COUNT)))

    def _read_video(self) -> Iterator[Picture]:
        index, first_ms, previous_s = 0, 0.0, -1.0
        while True:
            found, image = self._video.read()
            if not found:
                break
            if self._fps is not None:
                time_s = index / self._fps
            else:
                stamp_ms = self._video.get(cv2.CAP_PROP_POS_MSEC)
                first_ms = stamp_ms if index == 0 else first_ms
                time_s = (stamp_ms - first_ms) / 1000
                if time_s <= previous_s:
                    raise SequenceError(
                        f"{self.source} has no usable time for frame {index + 1}: give --fps."
                    )
            yield Picture(time_s, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            index, previous_s = index + 1, time_s
        if index == 0:
            raise SequenceError(f"{self.source} holds no frame that OpenCV can decode.")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: digits by value, so that frame 10 follows frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _number(name: str) -> int:
    stem = posixpath.splitext(posixpath.basename(name))[0]
    digits = re.findall(r"\d+", stem)
    if not digits:
        raise SequenceError(f"{name} carries no frame number, as MOTChallenge wants.")
    return int(digits[-1])
