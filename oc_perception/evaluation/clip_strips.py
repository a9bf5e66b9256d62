# SPDX-License-Identifier: Apache-2.0
"""Film strips of clips: where trackers of boxes believe people to be, and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from oc_perception.evaluation.box_clips import Followed, given
from oc_perception.evaluation.draw import color
from oc_perception.models.clips import test_layout, true_boxes
from oc_perception.worlds.recorded_tracks import RecordedMotion, RecordedTracks

_COLUMNS, _WIDTH = 5, 240  # px
_TRUTH = (255, 255, 255)
_DIMMED = 0.35
_QUALITY = 85


def draw_strips(
    world: RecordedTracks,
    clips: Mapping[str, RecordedMotion],
    found: Mapping[str, Mapping[str, Followed]],
    method: str,
    size: tuple[int, int],
    path: Path,
) -> None:
    """A row per recording: its middle clip from the first frame to the last, of which some were
    black to `method` (drawn dark); its boxes in colour over the true ones in white.
    """
    rows = []
    for name, motion in clips.items():
        clip = len(motion.present) // 2
        values = (getattr(motion, field.name) for field in fields(motion))
        one = RecordedMotion(*(v[clip : clip + 1] if isinstance(v, Tensor) else v for v in values))
        images = world.draw(one, *size)[0][0].permute(0, 2, 3, 1).mul(255).byte().numpy()
        black = test_layout(len(images), one.present.device).tolist()
        columns = np.linspace(0, len(images) - 1, _COLUMNS).round().astype(int)
        if not any(black[column] for column in columns) and any(black):
            last = max(index for index, dark in enumerate(black) if dark)
            columns[np.abs(columns - last).argmin()] = last
        true = true_boxes(one)[0]
        boxes = found[name][method].blacked[clip]
        there = one.present[0] & given(one)
        scale = _WIDTH / size[1]
        pictures = []
        for column in columns:
            picture = cv2.resize(images[column], (_WIDTH, round(size[0] * scale)),
                                 interpolation=cv2.INTER_AREA)  # fmt: skip
            if black[column]:
                picture = (picture * _DIMMED).astype(np.uint8)
            for row in there[column].nonzero()[:, 0].tolist():
                _rectangle(picture, true[column, row].numpy() * _WIDTH, _TRUTH)
                _rectangle(picture, boxes[column, row].numpy() * _WIDTH, color(row))
            label = f"{column + 1}" + (" (black)" if black[column] else "")
            cv2.putText(picture, label, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _TRUTH, 1,
                        cv2.LINE_AA)  # fmt: skip
            pictures.append(picture)
        rows.append(np.hstack(pictures))
    sheet = cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), sheet, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]):
        raise OSError(f"Cannot write {path}: check the folder, and that it ends in .jpg or .png.")


def _rectangle(picture: np.ndarray, box: np.ndarray, colour: tuple[int, int, int]) -> None:
    low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
    corners = (tuple(np.round(corner).astype(int).tolist()) for corner in (low, high))
    cv2.rectangle(picture, *corners, colour, 1, cv2.LINE_AA)
