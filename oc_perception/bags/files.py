# SPDX-License-Identifier: Apache-2.0
"""The files of a recording: told by their first bytes, in the order of recording.

A damaged or missing file of a split recording is left out, and noted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

import yaml

from oc_perception.bags import mcap, ros1
from oc_perception.bags.archive import natural
from oc_perception.bags.chunks import Channel, Message, Skipped, StorageError
from oc_perception.bags.compression import decompress_file
from oc_perception.bags.sqlite import SQLITE_MAGIC, SqliteFile

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SUFFIXES = (".mcap", ".db3", ".bag", ".bag.active", ".zstd", ".zst")
CURE = "Record or copy it again, or repair it (`mcap recover`, `ros2 bag reindex`)."


class RecordedFile(Protocol):
    """Messages of one file, in order of time."""

    path: Path
    channels: dict[int, Channel]

    def span(self) -> tuple[int, int]: ...
    def count(self, topic: str) -> int: ...
    def count_before(self, topic: str, time_ns: int) -> int: ...
    def messages(
        self, topics: Collection[str], start_ns: int, stop_ns: int
    ) -> Iterator[Message]: ...


def open_files(path: Path, skipped: Skipped) -> list[RecordedFile]:
    """All files of a recording that can be read. Raises StorageError where there is none."""
    paths = _listed(path, skipped) if path.is_dir() else [path]
    unpacked = _Unpacked(skipped)
    files, reasons = [], []
    for file in paths:
        try:
            files.append(_opened(file, unpacked, skipped))
        except (StorageError, OSError) as error:
            reasons.append(f"{error}")
            if len(paths) > 1:
                skipped.note(f"{file.name} is left out: {error}. {CURE}")
    if not files:
        raise StorageError("; ".join(dict.fromkeys(reasons)))
    return files


def looks_recorded(path: Path) -> bool:
    """Whether a path is a bag by its first bytes, or a directory that holds some."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or any(
            file.name.endswith(_SUFFIXES) for file in path.iterdir()
        )
    with path.open("rb") as file:
        head = file.read(16)
    return path.name.endswith(_SUFFIXES) or head.startswith((mcap.MAGIC, ros1.MAGIC, SQLITE_MAGIC))


def _listed(directory: Path, skipped: Skipped) -> list[Path]:
    """The files of a bag directory in the order of its metadata.yaml, or of their names."""
    present = {
        file.name: file
        for file in sorted(directory.iterdir(), key=lambda file: natural(file.name))
        if file.name.endswith(_SUFFIXES) and file.is_file()
    }
    metadata = directory / "metadata.yaml"
    try:
        about = yaml.safe_load(metadata.read_text(encoding="utf-8"))
        names = [Path(p).name for p in about["rosbag2_bagfile_information"]["relative_file_paths"]]
        # Some recorders name a file as it was before its compression.
        names = [n if n in present or f"{n}.zstd" not in present else f"{n}.zstd" for n in names]
    except FileNotFoundError:
        names = list(present)
        if not all(name.endswith((".bag", ".bag.active")) for name in names):
            skipped.note(
                f"{directory.name} has no metadata.yaml: its {len(names)} file(s) are used as "
                "they are (`ros2 bag reindex` writes one)."
            )
    except (OSError, yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError) as error:
        names = list(present)
        skipped.note(
            f"{metadata} cannot be read ({type(error).__name__}): the {len(names)} file(s) beside "
            "it are used as they are (`ros2 bag reindex` writes a new one)."
        )
    if missing := [name for name in names if name not in present]:
        skipped.note(f"{', '.join(missing)} of {directory.name} is missing: copy it again.")
    found = [present[name] for name in names if name in present]
    if not found:
        raise StorageError("it holds no .mcap, .db3 or .bag file")
    return found


def _opened(path: Path, unpacked: _Unpacked, skipped: Skipped) -> RecordedFile:
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(_ZSTD_MAGIC):
        return _PackedFile(path, unpacked, skipped)
    if head.startswith(mcap.MAGIC):
        return mcap.McapFile(path, skipped)
    if head.startswith(SQLITE_MAGIC):
        return SqliteFile(path, skipped)
    if head.startswith(ros1.MAGIC):
        return ros1.Ros1File(path, skipped)
    if head.startswith(b"#ROSBAG V1"):
        raise StorageError("it is a bag of ROS before 2010: convert it with `rosbag fix`")
    if not head.strip(b"\0"):
        raise StorageError("it is empty")
    raise StorageError("it is neither an mcap file, nor an sqlite3 or ROS 1 bag")


class _Unpacked:
    """Room on disk for one unpacked file at a time, in the directory of TMPDIR."""

    def __init__(self, skipped: Skipped) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="oc_perception_bag_")
        self._skipped, self._current = skipped, None

    def path(self, packed: Path) -> Path:
        """Where the contents of a packed file are; those of the one before are removed."""
        target = Path(self._directory.name, packed.stem)
        if self._current != packed:
            for old in Path(self._directory.name).iterdir():
                old.unlink()
            self._current = packed
            if reason := decompress_file(packed, target):
                self._skipped.note(f"{packed.name} is cut off ({reason}): its start is used.")
        return target


class _PackedFile:
    """A file that was compressed as a whole; it is unpacked whenever it is read."""

    def __init__(self, path: Path, unpacked: _Unpacked, skipped: Skipped) -> None:
        self.path, self._unpacked = path, unpacked
        self._file = _opened(unpacked.path(path), unpacked, skipped)
        self.channels = self._file.channels

    def span(self) -> tuple[int, int]:
        return self._file.span()

    def count(self, topic: str) -> int:
        return self._file.count(topic)

    def count_before(self, topic: str, time_ns: int) -> int:
        self._unpacked.path(self.path)
        return self._file.count_before(topic, time_ns)

    def messages(self, topics: Collection[str], start_ns: int, stop_ns: int) -> Iterator[Message]:
        self._unpacked.path(self.path)
        yield from self._file.messages(topics, start_ns, stop_ns)
