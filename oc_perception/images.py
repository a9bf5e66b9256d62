# SPDX-License-Identifier: Apache-2.0
"""Pixels out of the fields of `sensor_msgs/Image` and `sensor_msgs/CompressedImage`, without ROS.

Live nodes and bag replay both read frames through these functions, so they see the same pixels.
What cannot be an image is refused here, at the door, with a MalformedImage that says what is wrong
and what to change.

`data` is anything contiguous with the buffer protocol: `array.array('B')` (rclpy),
`numpy.ndarray` (rosbags), `bytes`. Results are views of it wherever the layout allows, so a reused
buffer must outlive them unchanged.
"""

from __future__ import annotations

import array
import sys
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np

Bytes: TypeAlias = "bytes | bytearray | memoryview | array.array | np.ndarray"


class MalformedImage(ValueError):
    """A message that holds no usable image; the text names the cause and the cure."""


class _Encoding(NamedTuple):
    channels: int
    dtype: type[np.generic]
    conversion: int | None  # OpenCV code to RGB, None where the bytes are RGB already


# 8UC3 leaves the order of channels open; BGR is what OpenCV publishers put there and RViz shows.
_COLOR = {
    "rgb8": _Encoding(3, np.uint8, None),
    "bgr8": _Encoding(3, np.uint8, cv2.COLOR_BGR2RGB),
    "8UC3": _Encoding(3, np.uint8, cv2.COLOR_BGR2RGB),
    "rgba8": _Encoding(4, np.uint8, cv2.COLOR_RGBA2RGB),
    "bgra8": _Encoding(4, np.uint8, cv2.COLOR_BGRA2RGB),
    "mono8": _Encoding(1, np.uint8, cv2.COLOR_GRAY2RGB),
    "8UC1": _Encoding(1, np.uint8, cv2.COLOR_GRAY2RGB),
    "mono16": _Encoding(1, np.uint16, cv2.COLOR_GRAY2RGB),
    # OpenCV's two-letter pattern names start at the second row and column; these, of four, do not.
    "bayer_rggb8": _Encoding(1, np.uint8, cv2.COLOR_BayerRGGB2RGB),
    "bayer_bggr8": _Encoding(1, np.uint8, cv2.COLOR_BayerBGGR2RGB),
    "bayer_gbrg8": _Encoding(1, np.uint8, cv2.COLOR_BayerGBRG2RGB),
    "bayer_grbg8": _Encoding(1, np.uint8, cv2.COLOR_BayerGRBG2RGB),
}
_DEPTH = {
    "16UC1": _Encoding(1, np.uint16, None),
    "mono16": _Encoding(1, np.uint16, None),
    "32FC1": _Encoding(1, np.float32, None),
}

COLOR_ENCODINGS = tuple(_COLOR)
DEPTH_ENCODINGS = tuple(_DEPTH)


def decode_image(
    height: int, width: int, encoding: str, is_bigendian: bool, step: int, data: Bytes
) -> np.ndarray:
    """`(height, width, 3)` uint8 RGB from the fields of a `sensor_msgs/Image`.

    rgb8 is a view of `data`, padded rows included; 16-bit grey keeps its high byte. Raises
    MalformedImage.
    """
    layout = _layout(_COLOR, encoding, "image")
    pixels = _pixels(height, width, layout, encoding, is_bigendian, step, data)
    if layout.conversion is None:
        return pixels
    if encoding.startswith("bayer_") and min(height, width) < 3:
        raise MalformedImage(
            f"A {width}x{height} {encoding} image is too small to demosaic: "
            "publish at least 3x3 pixels."
        )
    if layout.dtype is np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return cv2.cvtColor(pixels, layout.conversion)


def decode_depth(
    height: int, width: int, encoding: str, is_bigendian: bool, step: int, data: Bytes
) -> np.ndarray:
    """`(height, width)` float32 metres from a depth `sensor_msgs/Image` (REP 118).

    16UC1 holds millimetres, 32FC1 metres; pixels without a measurement (0, negative, NaN, inf)
    become NaN. Raises MalformedImage.
    """
    layout = _layout(_DEPTH, encoding, "depth image")
    pixels = _pixels(height, width, layout, encoding, is_bigendian, step, data)
    depth = pixels.astype(np.float32)
    if layout.dtype is np.uint16:
        depth *= np.float32(1e-3)
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def decode_compressed(format: str, data: Bytes) -> np.ndarray:
    """`(H, W, 3)` uint8 RGB from a `sensor_msgs/CompressedImage` that holds a JPEG or a PNG.

    The kind is told by the bytes; `format` only has to agree that it is a picture. An EXIF
    orientation is ignored, because camera_info describes the pixels as they are stored. Raises
    MalformedImage, also for a truncated file, which decoders would fill up with grey.
    """
    encoded = _flat(data)
    if "compressedDepth" in format:
        raise MalformedImage(
            f"Format {format!r} is a depth image: use its raw topic, or a colour image."
        )
    _check_complete(format, encoded)
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise MalformedImage(
            f"The {format!r} data ({encoded.size} bytes) cannot be decoded: {error.err}. "
            "Check the publisher."
        ) from error
    if image is None:
        raise MalformedImage(
            f"The {format!r} data ({encoded.size} bytes) is damaged and cannot be decoded. "
            "Check the publisher."
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _layout(known: dict[str, _Encoding], encoding: str, what: str) -> _Encoding:
    if encoding not in known:
        raise MalformedImage(
            f"Unknown {what} encoding {encoding!r}: publish one of {', '.join(known)}."
        )
    return known[encoding]


def _flat(data: Bytes) -> np.ndarray:
    """The bytes of `data` as a flat uint8 array, without a copy."""
    return np.frombuffer(data, np.uint8) if len(data) else np.zeros(0, np.uint8)


def _pixels(
    height: int,
    width: int,
    layout: _Encoding,
    encoding: str,
    is_bigendian: bool,
    step: int,
    data: Bytes,
) -> np.ndarray:
    """`(height, width[, channels])` view of `data`; wider than 8 bit, a native-endian copy."""
    if height <= 0 or width <= 0:
        raise MalformedImage(
            f"The image is empty ({width}x{height}): the driver must fill in width and height."
        )
    itemsize = np.dtype(layout.dtype).itemsize
    row_bytes = width * layout.channels * itemsize
    if step < row_bytes:
        raise MalformedImage(
            f"Step {step} is too small: a row of {width} {encoding} pixels takes {row_bytes} "
            "bytes. Set step to the distance between rows in bytes."
        )
    flat = _flat(data)
    if flat.size != step * height:
        relation = "too short" if flat.size < step * height else "too long"
        raise MalformedImage(
            f"Data is {relation}: {flat.size} bytes where step x height = {step} x {height} = "
            f"{step * height}. Fill data, step and height from the same image."
        )
    rows = flat.reshape(height, step)[:, :row_bytes]
    if itemsize > 1:
        # A padded row may start at an odd address, which a wider view does not allow.
        rows = np.ascontiguousarray(rows).view(layout.dtype)
        if bool(is_bigendian) != (sys.byteorder == "big"):
            rows = rows.byteswap()
    return rows if layout.channels == 1 else rows.reshape(height, width, layout.channels)


# Some cameras pad their buffers. The end mark FF D9 cannot occur within the data of a picture.
_TAIL_BYTES = 4096


def _check_complete(format: str, encoded: np.ndarray) -> None:
    """Raises MalformedImage unless `encoded` starts and ends like a JPEG or PNG file."""
    if encoded.size == 0:
        raise MalformedImage(f"The {format!r} data is empty. Check the publisher.")
    head = encoded[:8].tobytes()
    tail = encoded[-_TAIL_BYTES:].tobytes()
    if head.startswith(b"\xff\xd8\xff"):
        complete = b"\xff\xd9" in tail
    elif head == b"\x89PNG\r\n\x1a\n":
        complete = b"IEND" in tail
    else:
        raise MalformedImage(
            f"The {format!r} data is neither JPEG nor PNG (starts with {head.hex(' ')}). "
            "Publish CompressedImage with format 'jpeg' or 'png'."
        )
    if not complete:
        raise MalformedImage(
            f"The {format!r} data ({encoded.size} bytes) ends early: the picture is truncated. "
            "Check the publisher and the link to it."
        )
