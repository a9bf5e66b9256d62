# SPDX-License-Identifier: Apache-2.0
"""The TFRecord framing and the Example inside, against the standards and any damage."""

import contextlib
import struct

import numpy as np
import pytest
from published_files import example, field, floats, slow_crc32c, strings, varint

from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.tfrecord import crc32c, parse_example


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # RFC 3720, B.4, whose bytes are in the order of transmission
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (
            bytes.fromhex(
                "01c00000000000000000000000000000140000000000040000000014"
                "0000001828000000000000000200000000000000"
            ),
            0xD9963A56,
        ),
        (b"123456789", 0xE3069283),
    ],
)
def test_checksum_is_that_of_the_standard(data, expected):
    assert crc32c(data) == slow_crc32c(data) == expected


@pytest.mark.parametrize("length", [0, 1, 3, 255, 256, 257, 4095, 4096, 4097, 20_001])
def test_checksum_of_long_data_equals_the_bitwise_one(length):
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == slow_crc32c(data)


def test_example_takes_packed_and_single_values_and_skips_what_it_does_not_know():
    record = example(
        packed=floats([1.5, -2]),
        single=field(2, b"\x0d" + struct.pack("<f", 3.25)),
        integers=field(3, field(1, varint(300) + b"\xff" * 9 + b"\x01")),
        integer=field(3, b"\x08" + varint(7)),
        text=field(1, field(1, b"two strings") + field(1, b", joined")),
        newer=field(9, b"?") + b"\x08\x01" + b"\x11" + bytes(8) + floats([4]),
        empty=b"",
    )
    found = {name: values.tolist() for name, values in parse_example(record).items()}
    text = bytes(found.pop("text"))
    assert text == b"two strings, joined"
    assert found == {
        "packed": [1.5, -2],
        "single": [3.25],
        "integers": [300, -1],
        "integer": [7],
        "newer": [4],
        "empty": [],
    }


@pytest.mark.parametrize("seed", range(3))
def test_any_bytes_are_parsed_or_refused(seed):
    """Nothing but ConfigurationError, whatever a damaged record holds."""
    draw = np.random.default_rng(seed)
    good = example(image=strings(range(50)), x=floats(range(5)), n=field(3, field(1, b"\x05")))
    for _ in range(500):
        damaged = bytearray(good)
        for at in draw.integers(0, len(good), draw.integers(1, 4)):
            damaged[at] = draw.integers(256)
        with contextlib.suppress(ConfigurationError):
            parse_example(bytes(damaged[: draw.integers(len(good) + 1)]))
