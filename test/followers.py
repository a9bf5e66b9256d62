# SPDX-License-Identifier: Apache-2.0
"""Networks and pictures for trackers that look: one whose right answer is known, one untrained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from oc_perception.models.mohart import MohartState
from oc_perception.models.registry import create_model, save_checkpoint
from oc_perception.models.relations import Memory
from oc_perception.types import Detection, Segmentation, SensorState

PERIOD_NS = 33_333_333
START_NS = 5_000_000_000
SIZE = (96, 128)  # px
SIDE = 16.0  # px, of all discs


class Follower:
    """Follows white discs on black as MOHART would, were it perfect; straight on while blind."""

    frame_size, kept_size = (48, 64), 0
    config = SimpleNamespace(horizon=0, relations="none", size=2)

    def __init__(self) -> None:
        self.rows: list[tuple[int, int]] = []  # of each step: all, and those present

    def start(self, state, boxes, rows):
        def chosen(new, old):
            return torch.where(rows[..., None], new, old)

        places = (chosen(boxes, old) for old in state[:3])
        memory = Memory(*(chosen(torch.zeros_like(old), old) for old in state.memory))
        return MohartState(*places, memory, rows | state.present)

    def step(self, state, frame):
        self.rows.append((state.present.numel(), int(state.present.sum())))
        boxes, moved = state.expected.clone(), state.memory.hidden
        if frame is not None:
            centres = self.centres(frame[0].mean(0), boxes[0])
            found = ~centres.isnan()[None]
            boxes[..., :2] = torch.where(found, centres, boxes[..., :2])
            moved = torch.where(found, boxes[..., :2] - state.boxes[..., :2], moved)
        expected = torch.cat([boxes[..., :2] + moved, boxes[..., 2:]], -1)
        state = MohartState(expected, expected, boxes, Memory(moved, moved), state.present)
        return state, boxes, state.present.float()

    @staticmethod
    def centres(brightness, boxes):
        """Of what is white in windows twice as large as `boxes` `(M, 4)`; NaN: nothing."""
        height, width = brightness.shape
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        place = (torch.stack([x, y], -1) + 0.5) / width
        inside = ((place - boxes[:, None, None, :2]).abs() < boxes[:, None, None, 2:]).all(-1)
        weights = inside * brightness
        weight = weights.sum((1, 2))[:, None]
        return (weights[..., None] * place).sum((1, 2)) / weight


def untrained(directory: Path, name: str = "mohart", **changes: object) -> str:
    """The checkpoint of a small MOHART, or one of its kin, with random weights, in which objects
    hear one another.
    """
    torch.manual_seed(0)
    config = {
        "frame_size": (48, 64),
        "horizon": 0,
        "memory_feedback": True,
        "glimpse_size": (8, 8),
        "channels": (8, 8, 8),
        "kernel_size": 3,
        "size": 16,
    }
    model = create_model(name, **config | changes)
    for parameter in model.core.parameters():  # its read-outs start at almost nothing
        torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(model, directory)
    return str(directory)


def picture(centres) -> np.ndarray:
    """White discs around `centres` `(N, 2)` px, on a ground that is not quite black."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    frame = np.zeros((*SIZE, 3), np.uint8)
    for cx, cy in np.reshape(centres, (-1, 2)):
        frame[np.hypot(x - cx, y - cy) <= SIDE / 2] = 255
    return frame


def seen(centres, stamp_ns: int = 0, labels=None) -> Segmentation:
    """What discovery says of objects around `centres` `(N, 2)` px."""
    centres = np.reshape(np.asarray(centres, np.float32), (-1, 2))
    detections = tuple(
        Detection(i if labels is None else labels[i], np.array([*centre, SIDE, SIDE]), 200)
        for i, centre in enumerate(centres)
    )
    image = np.zeros(SIZE, np.uint8)
    return Segmentation(stamp_ns, SensorState.OK, "test", 0, image, detections)


def unseen(state: SensorState, stamp_ns: int = 0) -> Segmentation:
    return Segmentation(stamp_ns, state, "test", 0)


def stamp(frame: float) -> int:
    return START_NS + round(frame * PERIOD_NS)
