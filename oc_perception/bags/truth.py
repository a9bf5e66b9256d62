# SPDX-License-Identifier: Apache-2.0
"""Ground truth that lies beside a recording: boxes as MOTChallenge text, or pictures of masks."""

from __future__ import annotations

import hashlib
import posixpath
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from oc_perception.bags.archive import Archive, is_tar
from oc_perception.bags.frames import BagError, TrueBoxes
from oc_perception.bags.pictures import is_truth
from oc_perception.evaluation.mot_files import MotFileError, MotTable, parse_mot, read_mot

_UNLABELLED = 255
_SAMPLES = 64
_NOBODY = TrueBoxes(np.zeros(0, np.int64), np.zeros((0, 4)))


class BoxTruth:
    """True boxes by frame number. Rows that are not to be counted are left out; nothing is known
    behind the last row.
    """

    def __init__(self, table: MotTable) -> None:
        table = table.select(~table.ignored)
        order = np.argsort(table.frames, kind="stable")
        self._frames, self._ids, self._boxes = (
            column[order] for column in (table.frames, table.ids, table.boxes)
        )
        self.num_frames = int(self._frames.max(initial=-1)) + 1

    def identity(self) -> str:
        """Equal for equal boxes."""
        columns = (self._frames, self._ids, self._boxes)
        return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()

    def boxes(self, number: int) -> TrueBoxes | None:
        """The boxes of the frame of this number, from 0."""
        if number >= self.num_frames:
            return None
        start, stop = np.searchsorted(self._frames, (number, number + 1))
        if start == stop:
            return _NOBODY
        return TrueBoxes(self._ids[start:stop], self._boxes[start:stop])


class MaskTruth:
    """True label images from pictures of masks: the k-th belongs to the k-th image, or to the
    picture of its name where names agree.
    """

    def __init__(self, archive: Archive, names: list[str]) -> None:
        self._archive, self._names = archive, names
        self._by_stem = {_stem(name): name for name in names}
        self.num_frames = len(names)

    def identity(self) -> str:
        """Equal for equal masks, of which some are looked at."""
        digest = hashlib.sha256(" ".join(self._names).encode())
        for name in self._names[:: max(1, len(self._names) // _SAMPLES)]:
            digest.update(self._archive.read(name))
        return digest.hexdigest()

    def labels(self, number: int, picture: str = "") -> np.ndarray | None:
        """`(H, W)` uint8 label image, 0 the background; None where there is no mask.

        Raises BagError for a mask that cannot be read.
        """
        name = self._by_stem.get(_stem(picture)) if picture else None
        if name is None:
            if number >= len(self._names):
                return None
            name = self._names[number]
        try:
            data = np.frombuffer(self._archive.read(name), np.uint8)
        except OSError as error:
            raise BagError(f"{name} cannot be read: {error}") from error
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        if image is None:
            raise BagError(f"{name} in {self._archive.path} is not a picture: replace it.")
        return label_image(image)


def label_image(mask: np.ndarray) -> np.ndarray:
    """Labels `(H, W)` uint8 of a mask `(H, W)` of numbers or `(H, W, 3 or 4)` of BGR colours.

    Colours become the numbers that they have in the palette of PASCAL VOC and DAVIS, where all are
    of it. 255 is a label only where it is the one colour beside the background.
    """
    if mask.ndim == 3:
        blue, green, red = np.moveaxis(mask[..., :3].astype(np.int64), -1, 0)
        if (blue == green).all() and (green == red).all():
            mask = mask[..., 0]
        else:
            mask = _from_palette(red << 16 | green << 8 | blue)
    values = np.unique(mask)
    if values.max() > _UNLABELLED:
        # More values than labels: numbered by size.
        return np.minimum(np.searchsorted(values, mask), _UNLABELLED).astype(np.uint8)
    if set(values.tolist()) <= {0, _UNLABELLED}:
        return (mask > 0).astype(np.uint8)
    return mask.astype(np.uint8)


def _from_palette(colors: np.ndarray) -> np.ndarray:
    """Numbers of colours 0xRRGGBB in the palette, or in their own order."""
    palette = _palette()
    place = np.minimum(np.searchsorted(palette[0], colors), len(palette[0]) - 1)
    if (palette[0][place] == colors).all():
        return palette[1][place]
    own = np.unique(np.append(colors, 0))
    return np.searchsorted(own, colors)


@cache
def _palette() -> tuple[np.ndarray, np.ndarray]:
    """Colours of PASCAL VOC in rising order, and their numbers: the bits of a number go to the
    three channels in turn, from the highest down.
    """
    numbers = np.arange(256)
    channels = [
        sum(((numbers >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8))
        for channel in range(3)
    ]
    colors = channels[0] << 16 | channels[1] << 8 | channels[2]
    order = np.argsort(colors)
    return colors[order], numbers[order]


def open_truth(path: Path, stack: ExitStack) -> BoxTruth | MaskTruth:
    """The truth at `path`; an archive is closed by `stack`. Raises BagError."""
    if not path.exists():
        raise BagError(f"There is no ground truth at {path}: check the path.")
    if not path.is_dir() and not is_tar(path):
        try:
            return BoxTruth(read_mot(path))
        except (MotFileError, OSError) as error:
            raise BagError(f"Cannot read the ground truth: {error}") from error
    archive = stack.enter_context(Archive(path))
    found = truth_inside(archive)
    if found is None:
        raise BagError(
            f"{path} holds no ground truth: it needs a gt/gt.txt of MOTChallenge, or one folder "
            "of PNG masks."
        )
    return found


def truth_inside(archive: Archive, pictures: str | None = None) -> BoxTruth | MaskTruth | None:
    """The ground truth in an archive whose pictures are in the folder `pictures` (None: only masks
    are in it), or None. Raises BagError.
    """
    tables = [n for n in archive.names if f"/{n}".endswith("/gt/gt.txt")]
    if pictures is not None:
        beside = posixpath.join(posixpath.dirname(pictures), "gt", "gt.txt")
        tables = [n for n in tables if n == beside]
    if len(tables) == 1:
        lines = archive.read(tables[0]).decode("utf-8-sig", errors="replace").splitlines()
        try:
            return BoxTruth(parse_mot(lines, f"{archive.path}: {tables[0]}"))
        except MotFileError as error:
            raise BagError(f"{error}") from error
    folders = {f: names for f, names in archive.folders().items() if f != pictures}
    named = {f: names for f, names in folders.items() if is_truth(f)}
    choices = named if pictures is not None or len(named) == 1 else folders
    return MaskTruth(archive, next(iter(choices.values()))) if len(choices) == 1 else None


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(name))[0]
