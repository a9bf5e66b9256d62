# SPDX-License-Identifier: Apache-2.0
"""Image decoding against Pillow, NumPy and mosaics built by hand."""

import array
import io

import numpy as np
import pytest
from PIL import Image

from oc_perception.images import (
    COLOR_ENCODINGS,
    MalformedImage,
    decode_compressed,
    decode_depth,
    decode_image,
)

HEIGHT, WIDTH = 6, 8
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]
ALPHA = PIXELS[..., 1:2]


def encode(encoding: str, padding: int = 0, big: bool = False) -> tuple[int, bytes]:
    """`(step, data)` of PIXELS (or GREY) in an encoding, built with plain NumPy."""
    raw = {
        "rgb8": PIXELS,
        "bgr8": PIXELS[..., ::-1],
        "8UC3": PIXELS[..., ::-1],
        "rgba8": np.concatenate([PIXELS, ALPHA], -1),
        "bgra8": np.concatenate([PIXELS[..., ::-1], ALPHA], -1),
        "mono8": GREY,
        "8UC1": GREY,
        "mono16": (GREY.astype(">u2" if big else "<u2") << 8) + 77,
    }[encoding]
    if encoding == "mono16":
        raw = raw.astype(">u2" if big else "<u2")
    rows = [row.tobytes() + bytes(padding) for row in raw]
    return len(rows[0]), b"".join(rows)


@pytest.mark.parametrize("padding", [0, 1, 5])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    "encoding", [name for name in COLOR_ENCODINGS if not name.startswith("bayer")]
)
def test_every_encoding_step_and_endianness_gives_the_same_rgb(encoding, big, padding):
    step, data = encode(encoding, padding, big)
    expected = PIXELS if "3" in encoding or encoding[:3] in ("rgb", "bgr") else None
    if expected is None:
        expected = np.repeat(GREY[..., None], 3, -1)
    for buffer in (data, array.array("B", data), np.frombuffer(data, np.uint8), memoryview(data)):
        decoded = decode_image(HEIGHT, WIDTH, encoding, big, step, buffer)
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_mosaics_recover_a_uniform_color(pattern):
    color = {"r": 200, "g": 90, "b": 10}
    tile = np.array([color[c] for c in pattern], np.uint8).reshape(2, 2)
    mosaic = np.tile(tile, (HEIGHT // 2, WIDTH // 2))
    decoded = decode_image(HEIGHT, WIDTH, f"bayer_{pattern}8", False, WIDTH, mosaic.tobytes())
    np.testing.assert_array_equal(decoded, np.broadcast_to([200, 90, 10], (HEIGHT, WIDTH, 3)))


@pytest.mark.parametrize("padding", [0, 3])
def test_rgb8_is_not_copied(padding):
    step, data = encode("rgb8", padding)
    buffer = np.frombuffer(data, np.uint8)
    assert np.shares_memory(decode_image(HEIGHT, WIDTH, "rgb8", False, step, buffer), buffer)


def test_decoding_leaves_its_input_untouched():
    step, data = encode("mono16", 1, True)
    buffer = np.frombuffer(data, np.uint8).copy()
    decode_image(HEIGHT, WIDTH, "mono16", True, step, buffer)
    assert buffer.tobytes() == data


@pytest.mark.parametrize("big", [False, True])
def test_depth_is_metres_and_nan_where_nothing_was_measured(big):
    millimetres = np.array([[0, 1, 1500], [65535, 0, 250]])
    raw = millimetres.astype(">u2" if big else "<u2")
    data = b"".join(row.tobytes() + b"\0" for row in raw)
    expected = np.where(millimetres == 0, np.nan, millimetres / 1000)
    depth = decode_depth(2, 3, "16UC1", big, 7, data)
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, expected, rtol=1e-6)

    metres = np.array([[np.nan, np.inf, -np.inf], [-1.0, 0.0, 2.5]])
    depth = decode_depth(2, 3, "32FC1", big, 12, metres.astype(">f4" if big else "<f4").tobytes())
    np.testing.assert_array_equal(depth, [[np.nan] * 3, [np.nan, np.nan, 2.5]])


MALFORMED = {
    "unknown encoding": ((2, 2, "yuv99", False, 6, bytes(12)), "publish one of rgb8"),
    "no pixels": ((0, 0, "rgb8", False, 0, b""), "is empty"),
    "no width": ((2, 0, "rgb8", False, 0, b""), "is empty"),
    "small step": ((2, 2, "rgb8", False, 5, bytes(10)), "Step 5 is too small"),
    "zero step": ((2, 2, "rgb8", False, 0, b""), "Step 0 is too small"),
    "short data": ((2, 2, "rgb8", False, 6, bytes(11)), "too short"),
    "no data": ((2, 2, "rgb8", False, 6, b""), "too short"),
    "long data": ((2, 2, "rgb8", False, 6, bytes(13)), "too long"),
    "huge claim": ((2**32 - 1, 2**32 - 1, "rgba8", False, 2**32 - 1, b"x"), "too small"),
    "tiny bayer": ((2, 2, "bayer_rggb8", False, 2, bytes(4)), "at least 3x3"),
}


@pytest.mark.parametrize(("fields", "cause"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_images_are_refused_with_their_cause(fields, cause):
    with pytest.raises(MalformedImage, match=cause):
        decode_image(*fields)


def test_malformed_depth_is_refused_with_its_cause():
    with pytest.raises(MalformedImage, match="Unknown depth image encoding 'rgb8'"):
        decode_depth(2, 2, "rgb8", False, 6, bytes(12))
    with pytest.raises(MalformedImage, match="too short"):
        decode_depth(2, 2, "32FC1", False, 8, bytes(15))


def picture(kind: str, mode: str = "RGB") -> tuple[np.ndarray, bytes]:
    """Pillow's own reading of a picture, and the file."""
    image = Image.fromarray(np.kron(PIXELS, np.ones((4, 4, 1), np.uint8))).convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    return np.asarray(Image.open(file).convert("RGB")), file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_compressed_images_decode_as_pillow_does(kind, mode):
    expected, data = picture(kind, mode)
    for buffer in (data, array.array("B", data), np.frombuffer(data, np.uint8)):
        decoded = decode_compressed(f"rgb8; {kind} compressed bgr8", buffer)
        # JPEG decoders may round differently in the inverse transform and in chroma.
        tolerance = 0 if kind == "png" else 4
        assert np.abs(decoded.astype(int) - expected).max() <= tolerance


def test_zero_padding_after_a_picture_is_tolerated():
    expected, data = picture("png")
    np.testing.assert_array_equal(decode_compressed("png", data + bytes(16)), expected)


def test_exif_orientation_does_not_turn_the_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "jpeg", exif=exif)
    assert decode_compressed("jpeg", file.getvalue()).shape == PIXELS.shape


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_truncated_pictures_are_refused(kind):
    _, data = picture(kind)
    for length in (1, 10, len(data) // 2, len(data) - 1 if kind == "jpeg" else len(data) - 9):
        with pytest.raises(MalformedImage):
            decode_compressed(kind, data[:length])


@pytest.mark.parametrize(
    ("format", "data", "cause"),
    [
        ("jpeg", b"", "is empty"),
        ("jpeg", b"GIF89a and more", "neither JPEG nor PNG"),
        ("jpeg", b"\xff\xd8\xff\xff\xd9", "damaged|cannot be decoded"),
        ("16UC1; compressedDepth png", picture("png")[1], "depth image"),
    ],
)
def test_undecodable_data_is_refused_with_its_cause(format, data, cause):
    with pytest.raises(MalformedImage, match=cause):
        decode_compressed(format, data)
