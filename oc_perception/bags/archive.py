# SPDX-License-Identifier: Apache-2.0
"""Files of a folder or a tar, by relative path; a tar is read in place, nothing is extracted."""

from __future__ import annotations

import hashlib
import posixpath
import re
import tarfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from oc_perception.bags.frames import BagError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16


class SequenceError(BagError):
    """A source that is no image sequence; the message names the cause and the cure."""


class Archive:
    """A context manager over a folder or tar. `warning` tells what is missing of a damaged tar.

    Names are relative, with slashes, in natural order, without hidden files. Raises SequenceError.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.warning = path, ""
        self._stack = ExitStack()
        self._tar: tarfile.TarFile | None = None
        if path.is_dir():
            found = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()]
        else:
            self._members = self._open_tar()
            found = list(self._members)
        self.names = sorted(
            (n for n in found if not posixpath.basename(n).startswith(".")), key=natural
        )

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str) -> bytes:
        """The contents of a file; less than all of it where a tar is cut off. Raises OSError."""
        if self._tar is None:
            return (self.path / name).read_bytes()
        file = self._tar.extractfile(self._members[name])
        assert file is not None  # only regular files are listed
        try:
            return file.read()
        except (tarfile.TarError, EOFError) as error:
            raise OSError(f"{error}") from error

    def folders(self) -> dict[str, list[str]]:
        """The pictures in natural order, by the folder that they are in."""
        folders: dict[str, list[str]] = {}
        for name in self.names:
            if name.lower().endswith(PICTURES):
                folders.setdefault(posixpath.dirname(name), []).append(name)
        return folders

    def _open_tar(self) -> dict[str, tarfile.TarInfo]:
        members: dict[str, tarfile.TarInfo] = {}
        reason = "it holds no file"
        try:
            self._tar = tarfile.open(self.path)  # noqa: SIM115 (closed by the stack)
            self._stack.callback(self._tar.close)
            for member in self._tar:
                if member.isfile():
                    members[posixpath.normpath(member.name)] = member
        except (tarfile.TarError, EOFError, OSError) as error:
            reason = str(error).partition("\n")[0]
            self.warning = f"{self.path.name} is damaged ({reason}). Copy it again."
        if not members:
            self._stack.close()
            raise SequenceError(f"Cannot read {self.path}: {reason}. Copy it again.")
        return members


def is_tar(path: Path) -> bool:
    """Whether a path is named like a tar."""
    return path.name.lower().endswith(TARS)


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key: digits by value, so that frame 10 follows frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def fingerprint(paths: Iterable[Path]) -> str:
    """A hash over the files' sizes and samples of their contents: of some dozen files at most, and
    of some parts of a large one. Not of where they are.
    """
    paths = list(paths)
    digest = hashlib.blake2b(digest_size=16)
    every = max(1, len(paths) // _SAMPLES)
    for number, path in enumerate(paths):
        size = path.stat().st_size
        digest.update(f"{size} ".encode())
        if number % every == 0:
            with path.open("rb") as file:
                _sample(file, size, digest)
    return digest.hexdigest()


def _sample(file: BinaryIO, size: int, digest: hashlib.blake2b) -> None:
    step = max(_SAMPLE_BYTES, size // _SAMPLES)
    for offset in [*range(0, size, step), max(0, size - _SAMPLE_BYTES)]:
        file.seek(offset)
        digest.update(file.read(_SAMPLE_BYTES))
