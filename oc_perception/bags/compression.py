# SPDX-License-Identifier: Apache-2.0
"""Decompression of chunks, messages and files. What is cut off yields as much as there is."""

from __future__ import annotations

import bz2
import shutil
import sys
from pathlib import Path

import lz4.frame

from oc_perception.bags.chunks import StorageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_DECOMPRESSORS = {
    "zstd": zstd.ZstdDecompressor,
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "bz2": bz2.BZ2Decompressor,
}


def decompress(data: bytes | memoryview, method: str) -> bytes | memoryview:
    """The contents; `method` is `zstd`, `lz4`, `bz2`, or empty or `none` for data as they are.

    Raises StorageError.
    """
    if method in ("", "none"):
        return data
    if method not in _DECOMPRESSORS:
        raise StorageError(f"compression {method!r} is unknown")
    try:
        return _DECOMPRESSORS[method]().decompress(data)
    except (zstd.ZstdError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise StorageError(f"{method} cannot decompress it ({error})") from error


def decompress_file(source: Path, target: Path) -> str:
    """Write the contents of a zstd file in a stream; returns what stopped it early, or nothing."""
    try:
        with zstd.open(source, "rb") as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (zstd.ZstdError, EOFError) as error:
        return f"{error}"
    return ""
