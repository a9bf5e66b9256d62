# SPDX-License-Identifier: Apache-2.0
"""Read TFRecord files of `tf.train.Example` without TensorFlow.

A record is framed as: length (8 bytes, little-endian), masked CRC-32C of those 8 bytes, the data,
masked CRC-32C of the data. An Example is a protocol buffer that maps names to a list of byte
strings, of floats or of integers. Nothing in a file is trusted: every sum is checked, and no
length is believed beyond what the file holds.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from oc_perception.configuration import ConfigurationError

_MAX_RECORD = 1 << 26  # bytes; a published scene has at most 3.2 MB
_POLYNOMIAL = 0x82F63B78  # Castagnoli, lowest bit first
_SHORT = 256  # bytes, up to which a plain loop is the fastest way to their sum
_COLUMNS_EXPONENT = 10
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


@cache
def _byte_table() -> tuple[int, ...]:
    """The CRC register after one byte, by the lowest byte of the register before it."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


@cache
def _advance(exponent: int) -> tuple[np.ndarray, np.ndarray]:
    """The register after `4 * 2**exponent` zero bytes, by its low and by its high 16 bits."""
    low = np.arange(1 << 16, dtype=np.uint32)
    halves = (low, low << np.uint32(16))
    if exponent == 0:
        table = np.array(_byte_table(), np.uint32)
        for _ in range(4):
            halves = tuple(half >> np.uint32(8) ^ table[half & np.uint32(255)] for half in halves)
        return halves
    shorter = _advance(exponent - 1)
    return tuple(_apply(shorter, half) for half in shorter)


def _apply(tables: tuple[np.ndarray, np.ndarray], register: np.ndarray) -> np.ndarray:
    low, high = tables
    return low.take(register & np.uint32(0xFFFF)) ^ high.take(register >> np.uint32(16))


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data` (RFC 3720, App. B.4).

    Long data is laid out in rows of words, whose columns go through the register side by side.
    That is exact because the register is linear over GF(2): what a word adds to the sum depends
    only on how many bytes come after it.
    """
    if len(data) < _SHORT:
        table, register = _byte_table(), 0xFFFFFFFF
        for byte in data:
            register = register >> 8 ^ table[(register ^ byte) & 255]
        return register ^ 0xFFFFFFFF
    row = 4 << _COLUMNS_EXPONENT
    padded = np.zeros(-(-len(data) // row) * row, np.uint8)  # zeros in front change nothing
    start = len(padded) - len(data)
    padded[start:] = np.frombuffer(data, np.uint8)
    padded[start : start + 4] ^= 255  # the same as to start from a register of ones
    sums = np.zeros(row // 4, np.uint32)
    for words in padded.view("<u4").reshape(-1, row // 4):
        sums = _apply(_advance(_COLUMNS_EXPONENT), sums) ^ words
    for exponent in range(_COLUMNS_EXPONENT):  # neighbours, until one sum is left
        sums = _apply(_advance(exponent), sums[0::2]) ^ sums[1::2]
    return int(_apply(_advance(0), sums)[0]) ^ 0xFFFFFFFF


def _masked(data: bytes) -> int:
    """TFRecord stores sums rotated by 15 bits, plus a constant."""
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: Path, first: int = 0) -> Iterator[tuple[int, bytes]]:
    """Number and data of the records of a file, plain or gzip-compressed, from number `first` on.

    A compressed file cannot be entered in the middle: records before `first` are decompressed and
    passed over, the sums of their data unchecked. Raises ConfigurationError for a file that cannot
    be opened, is no TFRecord, is damaged or ends early.
    """
    number = 0
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            with gzip.open(plain) if compressed else plain as stream:
                while header := stream.read(12):
                    if len(header) < 12:
                        raise EOFError
                    length, checksum = struct.unpack("<QI", header)
                    if _masked(header[:8]) != checksum or length > _MAX_RECORD:
                        raise ConfigurationError(
                            f"{path} is not a TFRecord file, plain or gzip-compressed."
                            if number == 0
                            else f"{path}: record {number} is damaged. Download the file again."
                        )
                    record = stream.read(length + 4)
                    if len(record) < length + 4:
                        raise EOFError
                    if number >= first:
                        data = record[:-4]
                        if _masked(data) != struct.unpack("<I", record[-4:])[0]:
                            raise ConfigurationError(
                                f"{path}: the checksum of record {number} is wrong. Download the"
                                " file again."
                            )
                        yield number, data
                    number += 1
    except EOFError as error:
        raise ConfigurationError(
            f"{path} ends in the middle of record {number}. Download the file again, or set first"
            f" and count to read the {number} scenes before it."
        ) from error
    except (OSError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise ConfigurationError(f"Cannot read {path}: {error}") from error


def parse_example(record: bytes) -> dict[str, np.ndarray]:
    """The features of a serialized Example as arrays `(n,)`: uint8 (its strings, joined), float32
    or int64.

    Raises ConfigurationError for anything but a well-formed Example.
    """
    found = {}
    for features in _messages(memoryview(record), 1):
        for entry in _messages(features, 1):
            name = b"".join(_messages(entry, 1))
            feature = next(_messages(entry, 2), memoryview(b""))
            try:
                found[str(name, "utf-8")] = _values(feature)
            except UnicodeDecodeError:
                raise ConfigurationError("The name of a feature is not UTF-8.") from None
    return found


def _values(feature: memoryview) -> np.ndarray:
    """The list of a Feature, packed or not."""
    parts: list[np.ndarray] = [np.zeros(0, np.uint8)]
    for kind, wire, value in _fields(feature):
        if wire != _DELIMITED:
            continue
        if kind == 1:
            parts = [_joined(value)]
        elif kind == 2:
            chunks = [bytes(v) for k, w, v in _fields(value) if k == 1 and w != _VARINT]
            if any(len(chunk) % 4 for chunk in chunks):
                raise ConfigurationError("A list of floats is cut off.")
            parts = [np.frombuffer(b"".join(chunks), "<f4")]
        elif kind == 3:
            integers: list[int] = []
            for _, item_wire, item in _fields(value):
                if item_wire == _VARINT:
                    integers.append(item)
                elif item_wire == _DELIMITED:
                    at = 0
                    while at < len(item):
                        number, at = _varint(item, at)
                        integers.append(number)
            parts = [np.array(integers, np.uint64).view(np.int64)]
    return parts[0]


def _joined(values: memoryview) -> np.ndarray:
    """All strings of a BytesList in a row, as bytes.

    The published sets store every pixel as a string of its own: tag, length 1, value.
    """
    if len(values) % 3 == 0:
        triples = np.frombuffer(values, np.uint8).reshape(-1, 3)
        if (triples[:, 0] == 0x0A).all() and (triples[:, 1] == 1).all():
            return triples[:, 2]
    return np.frombuffer(b"".join(_messages(values, 1)), np.uint8)


def _messages(data: memoryview, number: int) -> Iterator[memoryview]:
    return (v for n, wire, v in _fields(data) if n == number and wire == _DELIMITED)


def _fields(data: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
    """Number, wire type and content of each field of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, wire, value
            continue
        if wire == _DELIMITED:
            length, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ConfigurationError(f"Unknown wire type {wire}: not a serialized Example.")
        if length > len(data) - at:
            raise ConfigurationError("A field is longer than its message.")
        yield tag >> 3, wire, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A base-128 number of at most 64 bits at `at`, and where the next field begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                break
            return value, at
    raise ConfigurationError("A number is cut off or longer than 64 bits.")
