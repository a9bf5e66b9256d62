# SPDX-License-Identifier: Apache-2.0
"""Film strips of what a model of videos sees in them: a box per object in the colour of its
identity, and below what the model draws itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from oc_perception.evaluation.draw import color, write_png
from oc_perception.models.objects import Found

_COLUMNS = 12
_TILE_PX, _GAP_PX, _MARGIN_PX, _HEADING_PX = 96, 4, 52, 20
_PAGE, _DIMMED = 215, 0.4
_LINE = (213, 94, 0)
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4


@torch.inference_mode()
def draw_strips(model: nn.Module, images: Tensor, path: Path, seen: int | None = None) -> None:
    """A PNG with a strip for each sequence of `images` `(B, T, 3, H, W)`: up to 12 frames, evenly
    spaced, as most probable to `model`.

    Of the frames from `seen` on the model sees nothing; they are dimmed. What it draws is shown
    for models whose state holds appearances. Raises OSError where it cannot be written.
    """
    frames = images.shape[1]
    seen = frames if seen is None else seen
    watched = _watch(model, images, seen)
    rows = ("input", "model") if watched.drawn[0] is not None else ("input",)
    page = _Page(frames, len(images), rows, images.shape[3:])
    for column, frame in enumerate(page.frames):
        page.heading(column, f"{frame + 1}" + (" unseen" if frame >= seen else ""))
        for sequence in range(len(images)):
            tile = page.enlarged(images[sequence, frame].amax(0))
            if frame >= seen:
                tile = (tile * _DIMMED).astype(np.uint8)
            page.outline(tile, watched, sequence, frame)
            page.place(tile, sequence, 0, column)
            if watched.drawn[frame] is not None:
                page.place(page.enlarged(watched.drawn[frame][sequence]), sequence, 1, column)
    write_png(path, page.canvas)


@torch.inference_mode()
def draw_film(model: nn.Module, images: Tensor, path: Path, seen: int) -> None:
    """A PNG of one sequence `(T, 3, H, W)`: what is to be seen, what `model` draws of it, each
    object in a box of its own, and what it draws if it sees the first `seen` frames only, which a
    line parts from the others.

    Raises OSError where it cannot be written.
    """
    frames = len(images)
    page = _Page(frames, 1, ("input", "model", f"{seen} seen"), images.shape[2:])
    whole, first = (_watch(model, images[None], count) for count in (frames, seen))
    for column, frame in enumerate(page.frames):
        page.heading(column, f"{frame + 1}")
        page.place(page.enlarged(images[frame].amax(0)), 0, 0, column)
        for row, watched in enumerate((whole, first), 1):
            tile = page.enlarged(watched.drawn[frame][0])
            page.outline(tile, watched, 0, frame)
            page.place(tile, 0, row, column)
        if frame == seen:
            page.part(0, 2, column)
    write_png(path, page.canvas)


class _Watched(NamedTuple):
    """By frame: boxes `(B, M, 4)`, ids `(B, M)`, and what is drawn `(B, H, W)` or None."""

    boxes: list[Tensor]
    ids: list[Tensor]
    drawn: list[Tensor | None]


def _watch(model: nn.Module, images: Tensor, seen: int) -> _Watched:
    """What is most probable to `model`, which sees `seen` frames of `images` `(B, T, 3, H, W)`."""
    state, watched = model.initial_state(len(images)), _Watched([], [], [])
    for frame, picture in enumerate(images.unbind(1)):
        state, output = model.step(state, picture if frame < seen else None)
        watched.boxes.append(output.boxes[:, 0])
        watched.ids.append(output.ids[:, 0])
        watched.drawn.append(_reconstruction(model, state))
    return watched


def _reconstruction(model: nn.Module, state: object) -> Tensor | None:
    """The picture `(B, H, W)` of the objects of the first particle, where the state holds them."""
    if not hasattr(state, "what"):
        return None
    what, where, presence = (part[:, 0] for part in (state.what, state.where, state.presence))
    return model.picture.draw(Found(what, where, presence, presence.float()))


class _Page:
    """Tiles of `frames`, evenly spaced, in columns; of sequences, each with named `rows`."""

    def __init__(
        self, frames: int, sequences: int, rows: tuple[str, ...], size: torch.Size
    ) -> None:
        columns = min(frames, _COLUMNS)
        self.frames = np.linspace(0, frames - 1, columns).round().astype(int)
        self.scale = max(1, round(_TILE_PX / size[1]))
        self.height, self.width = (side * self.scale for side in size)
        self.strip = len(rows) * (self.height + _GAP_PX) + 2 * _GAP_PX
        shape = (_HEADING_PX + sequences * self.strip,
                 _MARGIN_PX + columns * (self.width + _GAP_PX))  # fmt: skip
        self.canvas = np.full((*shape, 3), _PAGE, np.uint8)
        for sequence in range(sequences):
            for row, name in enumerate(rows):
                self._write(name, 4, self._top(sequence, row) + self.height // 2)

    def heading(self, column: int, text: str) -> None:
        self._write(text, self._left(column), _HEADING_PX - 6)

    def enlarged(self, picture: Tensor) -> np.ndarray:
        """`(H, W)` in grey as a tile `(h, w, 3)` uint8."""
        grey = (picture.clamp(0, 1) * 255).round().byte().cpu().numpy()
        return np.repeat(grey.repeat(self.scale, 0).repeat(self.scale, 1)[..., None], 3, 2)

    def outline(self, tile: np.ndarray, watched: _Watched, sequence: int, frame: int) -> None:
        """Boxes of what has an identity, in its colour."""
        boxes, ids = (parts[frame][sequence] for parts in watched[:2])
        for box, identity in zip(boxes.cpu().numpy(), ids.tolist(), strict=True):
            if identity:
                corners = (box[:2] + side * box[2:] / 2 for side in (-1, 1))
                low, high = (np.round(c * self.width).astype(int).tolist() for c in corners)
                cv2.rectangle(tile, low, high, color(identity), 2, cv2.LINE_AA)

    def place(self, tile: np.ndarray, sequence: int, row: int, column: int) -> None:
        top, left = self._top(sequence, row), self._left(column)
        self.canvas[top : top + self.height, left : left + self.width] = tile

    def part(self, sequence: int, row: int, column: int) -> None:
        """A line before a tile."""
        top, left = self._top(sequence, row), self._left(column)
        self.canvas[top : top + self.height, left - _GAP_PX : left] = _LINE

    def _top(self, sequence: int, row: int) -> int:
        return _HEADING_PX + sequence * self.strip + row * (self.height + _GAP_PX)

    def _left(self, column: int) -> int:
        return _MARGIN_PX + column * (self.width + _GAP_PX)

    def _write(self, text: str, x: int, y: int) -> None:
        cv2.putText(self.canvas, text, (x, y), _FONT, _FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
