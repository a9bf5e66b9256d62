# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model sees."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from oc_perception.evaluation.segmentation import contingency
from oc_perception.types import Decomposition

_BACKGROUND = (70, 70, 70)
_PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (245, 245, 245),
    (136, 34, 85), (153, 153, 51), (136, 204, 238), (51, 34, 136),
)  # fmt: skip
"""Okabe & Ito (2008) without black, continued by white and colours of Tol's muted scheme."""

_PAGE = 215  # grey, so that white slots show where they end
_GAP_PX = 4
_COLUMN_PX = 104  # wide enough for the longest heading
_HEADING_PX = 20
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4


def decomposition_grid(
    frames: Tensor, decomposition: Decomposition, path: Path, labels: Tensor | None = None
) -> None:
    """One row per frame `(B, 3, H, W)`: input, reconstruction, then each slot on white; a PNG at
    2x.

    With true `labels` `(B, H, W)`, also the true and the predicted segments, in equal colours
    where they match, with headings, and enlarged to a readable size. Raises OSError when it
    cannot be written.
    """
    masks = decomposition.masks.unsqueeze(2)
    slots = masks * decomposition.means + (1 - masks)
    panels = torch.cat([frames.unsqueeze(1), decomposition.composite.unsqueeze(1), slots], 1)
    images = (panels.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    if labels is None:
        canvas = np.concatenate([np.concatenate(list(row), 1) for row in images], 0)
        _write(canvas.repeat(2, 0).repeat(2, 1), path)
        return
    predicted = decomposition.log_masks.argmax(1)
    segments = [coloured_segments(*pair) for pair in zip(labels, predicted, strict=True)]
    images = np.concatenate([images[:, :1], np.stack(segments), images[:, 1:]], 1)
    names = ["input", "truth", "predicted", "reconstruction"]
    names += [f"slot {slot}" for slot in range(slots.shape[1])]
    _write(_table(images, names), path)


def coloured_segments(true: Tensor, predicted: Tensor) -> np.ndarray:
    """True and predicted labels `(H, W)` of one image in colours, `(2, H, W, 3)` uint8.

    A predicted segment has the colour of the true one it is paired with (Hungarian, by IoU), and
    a colour of its own where there is none. The background, label 0, is dark grey.
    """
    true, predicted = true.cpu(), predicted.cpu()
    present = true.unique().tolist()
    counts = contingency(true[None], predicted[None], max(present) + 1, int(predicted.max()) + 1)[
        0
    ].double()
    union = counts.sum(1, keepdim=True) + counts.sum(0) - counts
    overlap = (counts / union.clamp(min=1))[present].numpy()
    partner = dict(zip(*reversed(linear_sum_assignment(overlap, maximize=True)), strict=True))

    objects = [label for label in present if label]
    colours = {0: _BACKGROUND, **{label: _colour(i) for i, label in enumerate(objects)}}
    pictures = np.zeros((2, *true.shape, 3), np.uint8)
    for label in present:
        pictures[0][(true == label).numpy()] = colours[label]
    spare = len(objects)
    for segment in predicted.unique().tolist():
        if segment in partner and overlap[partner[segment], segment] > 0:
            colour = colours[present[partner[segment]]]
        else:
            colour, spare = _colour(spare), spare + 1
        pictures[1][(predicted == segment).numpy()] = colour
    return pictures


def _colour(index: int) -> tuple[int, int, int]:
    return _PALETTE[index % len(_PALETTE)]


def _table(images: np.ndarray, names: list[str]) -> np.ndarray:
    """Images `(rows, columns, H, W, 3)` enlarged, with gaps, under headings."""
    scale = max(2, -(-_COLUMN_PX // images.shape[3]))
    images = images.repeat(scale, 2).repeat(scale, 3)
    rows, columns, height, width, _ = images.shape
    top, across, down = _HEADING_PX + _GAP_PX, width + _GAP_PX, height + _GAP_PX
    canvas = np.full((top + rows * down, _GAP_PX + columns * across, 3), _PAGE, np.uint8)
    for column, name in enumerate(names):
        left = _GAP_PX + column * across
        text_width = cv2.getTextSize(name, _FONT, _FONT_SCALE, 1)[0][0]
        place = (left + (width - text_width) // 2, _HEADING_PX - 5)
        cv2.putText(canvas, name, place, _FONT, _FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
        for row in range(rows):
            y = top + row * down
            canvas[y : y + height, left : left + width] = images[row, column]
    return canvas


def _write(image: np.ndarray, path: Path) -> None:
    if not cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1])):
        raise OSError(f"Cannot write {path}")
