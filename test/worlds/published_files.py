# SPDX-License-Identifier: Apache-2.0
"""Small files in the published layouts, written by an encoder
that shares nothing with the reader."""

import gzip
import struct

import numpy as np

from oc_perception.worlds.registry import create_world


def long_division(register):
    for _ in range(8):
        register = register >> 1 ^ 0x82F63B78 * (register & 1)
    return register


TABLE = [long_division(byte) for byte in range(256)]


def slow_crc32c(data):
    register = 0xFFFFFFFF
    for byte in data:
        register = register >> 8 ^ TABLE[(register ^ byte) & 255]
    return register ^ 0xFFFFFFFF


def frame(data):
    def masked(part):
        value = slow_crc32c(part)
        return struct.pack("<I", ((value >> 15) + (value << 17) + 0xA282EAD8) % 2**32)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(value):
    low, rest = value % 128, value // 128
    return bytes([low + 128]) + varint(rest) if rest else bytes([low])


def field(number, content):
    return varint(number * 8 + 2) + varint(len(content)) + content


def floats(values):
    return field(2, field(1, np.asarray(values, "<f4").tobytes()))


def strings(values):
    """One string for each byte, as in the published sets."""
    return field(1, b"".join(b"\x0a\x01%c" % int(value) for value in np.ravel(values)))


def string(values):
    """All bytes in one string."""
    return field(1, field(1, np.asarray(values, np.uint8).tobytes()))


def example(**features):
    entries = (field(1, field(1, k.encode()) + field(2, v)) for k, v in features.items())
    return field(1, b"".join(entries))


def write(path, records, compress=True):
    data = b"".join(map(frame, records))
    path.write_bytes(gzip.compress(data) if compress else data)
    return path


def picture(size, num_entities, number, channels=3):
    """A random image, and the entity of each pixel: vertical stripes, entity 0 leftmost."""
    height, width = size
    draw = np.random.default_rng(number)
    image = draw.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return image, np.tile(np.arange(width) * num_entities // width, (height, 1))


def one_hot(entities, num_entities):
    """`(E, H, W, 1)`, 0 or 255."""
    return (entities == np.arange(num_entities)[:, None, None])[..., None].astype(np.uint8) * 255


def tetrominoes(number, num_entities=4):
    image, entities = picture((35, 35), num_entities, number)
    return example(
        image=strings(image),
        mask=strings(one_hot(entities, num_entities)),
        shape=floats(np.arange(num_entities) + number),
        color=floats([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1]][:num_entities]),
        x=floats(np.zeros(num_entities)),
        visibility=floats(np.ones(num_entities)),
    )


def world(path, batch_size=1, seed=0, **config):
    return create_world("published", {"path": str(path), **config}, batch_size, seed)


def in_order(path, batch_size, **config):
    return world(path, batch_size, shuffle=False, **config)
