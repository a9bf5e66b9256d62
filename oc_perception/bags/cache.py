# SPDX-License-Identifier: Apache-2.0
"""Frames of a recording, decoded and resized once, then read from disk in any order.

A cache is one directory per recording, topic, size, crop and truth. It is built beside its place
and moved there when it is whole, so that what is found is never half; a lock lets one process
build while others wait for it. Remove the directory to free its space: it is built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from oc_perception.bags.frames import BagError, Frame, TrueBoxes
from oc_perception.bags.sequence import Sequence, open_sequence
from oc_perception.images import MalformedImage
from oc_perception.progress import Progress

_FORMAT = 1  # raise it when equal input gives other files
_SILENT_S = 2.0
_SPARE_BYTES = 64 << 20

Region = tuple[int, int, int, int]


@dataclass(frozen=True)
class CachedFrames:
    """The N frames of a recording that can be decoded.

    `images` `(N, H, W, 3)` uint8 RGB is a read-only memory map; `indices` `(N,)` number them among
    all recorded images, `stamps_ns` `(N,)`; `boxes` per frame, in px of these images, None where
    nothing is known; `warnings` say what was left out.
    """

    name: str
    topic: str
    period_ns: int
    images: np.ndarray
    indices: np.ndarray
    stamps_ns: np.ndarray
    boxes: list[TrueBoxes | None]
    warnings: list[str]


def cache_directory() -> Path:
    """`$OC_CACHE`, else `~/.cache/oc_perception`."""
    return Path(os.environ.get("OC_CACHE") or Path.home() / ".cache" / "oc_perception")


def cached_frames(
    path: str | Path,
    size: tuple[int, int],
    topic: str | None = None,
    crop: Region | None = None,
    truth: str | Path | None = None,
    fps: float | None = None,
    directory: str | Path | None = None,
) -> CachedFrames:
    """The frames of a recording at `size` `(H, W)` px, decoded in a stream if they never were.

    `crop` `(left, top, width, height)` px is cut out first; `topic`, `truth` and `fps` are those
    of `open_sequence`, `directory` is where caches lie (default: `cache_directory()`). Raises
    BagError for what cannot be read, and OSError where the disk is full or cannot be written.
    """
    directory = cache_directory() if directory is None else Path(directory)
    with open_sequence(path, topic, truth, fps) as sequence:
        recording = f"{sequence.identity()} {sequence.truth_identity()}"
        choice = f"{_FORMAT} {recording} {tuple(size)} {crop and tuple(crop)}"
        place = directory / f"frames_{hashlib.sha256(choice.encode()).hexdigest()[:32]}"
        if not place.is_dir():
            directory.mkdir(parents=True, exist_ok=True)
            with _lock(place.with_suffix(".lock")):
                if not place.is_dir():  # else another process was faster
                    _build(sequence, place, size, crop)
        return _load(place, size, sequence.name)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; the system gives it back when a process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(sequence: Sequence, place: Path, size: tuple[int, int], crop: Region | None) -> None:
    """Decode everything into `place`, whole or not at all."""
    needed = sequence.num_frames * size[0] * size[1] * 3 + _SPARE_BYTES
    free = shutil.disk_usage(place.parent).free
    if free < needed:
        raise OSError(
            f"The frames of {sequence.name} need {needed / 1e9:.1f} GB in {place.parent}, where "
            f"{free / 1e9:.1f} GB are free: set OC_CACHE to a larger disk, or choose a smaller "
            "size."
        )
    workshop = place.with_suffix(".unfinished")
    shutil.rmtree(workshop, ignore_errors=True)  # left behind by a killed process
    workshop.mkdir()
    try:
        _decode(sequence, workshop, size, crop)
        workshop.rename(place)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _decode(sequence: Sequence, place: Path, size: tuple[int, int], crop: Region | None) -> None:
    indices, stamps_ns, boxes = [], [], []
    progress, begin_s = (
        Progress(f"frames of {sequence.name}", sequence.num_frames),
        time.monotonic(),
    )
    with (place / "images.raw").open("wb") as file:
        for frame in sequence.frames():
            progress.advance()
            if isinstance(frame.image, MalformedImage):
                continue
            image, true_boxes = fitted(frame, size, crop)
            file.write(image.data)
            indices.append(frame.index)
            stamps_ns.append(frame.stamp_ns)
            boxes.append(true_boxes)
    if time.monotonic() - begin_s > _SILENT_S:
        progress.finish()
    if not indices:
        raise BagError(
            f"No image on {sequence.topic} in {sequence.name} can be decoded. "
            + " ".join(sequence.warnings)
        )
    known = [b for b in boxes if b is not None]
    np.savez(
        place / "frames.npz",
        indices=np.array(indices, np.int64),
        stamps_ns=np.array(stamps_ns, np.int64),
        counts=np.array([-1 if b is None else len(b.ids) for b in boxes], np.int64),
        ids=np.concatenate([np.zeros(0, np.int64), *(b.ids for b in known)]),
        boxes=np.concatenate([np.zeros((0, 4)), *(b.boxes for b in known)]),
    )
    about = {
        "topic": sequence.topic,
        "period_ns": sequence.period_ns,
        "warnings": sequence.warnings,
    }
    (place / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def fitted(
    frame: Frame, size: tuple[int, int], crop: Region | None = None
) -> tuple[np.ndarray, TrueBoxes | None]:
    """Image `(H, W, 3)` of `size`, and the boxes in its px without those out of view.

    Raises BagError for a crop that is not inside of the image.
    """
    image = frame.image
    height, width = image.shape[:2]
    left, top, crop_width, crop_height = crop or (0, 0, width, height)
    if (
        min(left, top) < 0
        or min(crop_width, crop_height) < 1
        or (left + crop_width > width or top + crop_height > height)
    ):
        raise BagError(
            f"The crop {crop} (left, top, width, height) leaves the images of {width}x{height} px."
        )
    image = image[top : top + crop_height, left : left + crop_width]
    if image.shape[:2] != tuple(size):
        smaller = size[0] * size[1] < crop_width * crop_height
        # INTER_AREA averages all pixels, so that fine patterns do not flicker.
        image = cv2.resize(
            image, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        )
    return np.ascontiguousarray(image), _moved(
        frame.boxes, (left, top, crop_width, crop_height), size
    )


def _moved(boxes: TrueBoxes | None, crop: Region, size: tuple[int, int]) -> TrueBoxes | None:
    if boxes is None:
        return None
    scale = np.array([size[1] / crop[2], size[0] / crop[3]])
    # Pixel centres are at integers: the crop begins half a pixel before its first one.
    centres = (boxes.boxes[:, :2] + 0.5 - crop[:2]) * scale - 0.5
    sizes = boxes.boxes[:, 2:] * scale
    limits = np.array([size[1], size[0]]) - 0.5
    seen = ((centres + sizes / 2 > -0.5) & (centres - sizes / 2 < limits)).all(axis=1)
    return TrueBoxes(boxes.ids[seen], np.hstack([centres, sizes])[seen])


def _load(place: Path, size: tuple[int, int], name: str) -> CachedFrames:
    about = json.loads((place / "about.json").read_text(encoding="utf-8"))
    with np.load(place / "frames.npz", allow_pickle=False) as file:
        table = dict(file)
    shape = (len(table["indices"]), *size, 3)
    cuts = np.cumsum(np.maximum(table["counts"], 0))[:-1]
    boxes = [
        None if count < 0 else TrueBoxes(*pair)
        for count, *pair in zip(
            table["counts"],
            np.split(table["ids"], cuts),
            np.split(table["boxes"], cuts),
            strict=True,
        )
    ]
    return CachedFrames(
        name=name,
        topic=about["topic"],
        period_ns=about["period_ns"],
        images=np.memmap(place / "images.raw", np.uint8, "r", shape=shape),
        indices=table["indices"],
        stamps_ns=table["stamps_ns"],
        boxes=boxes,
        warnings=about["warnings"],
    )
