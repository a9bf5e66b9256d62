# SPDX-License-Identifier: Apache-2.0
"""Video models for the tracker that discovers: one whose right answer is known, one untrained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from oc_perception.models.air import VideoOutput
from oc_perception.models.registry import create_model, save_checkpoint
from oc_perception.models.windows import REACH, boxes_of

_REACH_WIDTHS = 0.12  # how far from where it is expected an object is recognised


class Watched(NamedTuple):
    """As a SqairState; `velocity` `(1, K, N, 2)` in widths per step is all that is remembered."""

    where: torch.Tensor
    presence: torch.Tensor
    ids: torch.Tensor
    velocity: torch.Tensor
    next_id: torch.Tensor
    log_weights: torch.Tensor
    is_first: bool


class Watcher:
    """SQAIR, were it perfect: what is bright is an object, which goes straight on while blind.

    `jitter` is the standard deviation of boxes in frames, in widths, of which half is added to the
    velocity while blind. Particles number the objects in different orders. `blind_spots` maps a
    particle to frames in which it sees nothing; `log_weights` `(frame, particle)` replaces the
    weights, which say nothing otherwise. With `late` it discovers in later frames, too; otherwise
    what a particle does not explain weighs against it.
    """

    name, frame_size = "watcher", (48, 64)

    def __init__(self, jitter=0.0, slots=4, blind_spots=None, log_weights=None, late=True):
        self.jitter, self.num_slots = jitter, slots
        self.blind_spots, self.log_weights = blind_spots or {}, log_weights
        self.late, self.seen = late, 0
        self.rows: list[tuple[int, bool]] = []  # of each step: particles, and whether in a frame

    def initial_state(self, batch_size, particles=1):
        nothing = torch.zeros(1, particles, self.num_slots)
        flat = nothing[..., 0]
        return Watched(
            nothing[..., None].repeat(1, 1, 1, 4), nothing.bool(), nothing.long(),
            nothing[..., None].repeat(1, 1, 1, 2), flat.long() + 1,
            flat - math.log(particles), True,
        )  # fmt: skip

    def step(self, state, frame, generator=None):
        self.rows.append((state.presence.shape[1], frame is not None))
        boxes = boxes_of(state.where, self.frame_size)
        boxes[..., :2] += state.velocity
        boxes[..., :2] += 0.5 * self._noise(boxes[..., :2], generator)
        if frame is None:
            return self._answer(state._replace(where=self._where(boxes)), None)
        blobs = self._blobs(frame[0].amax(0).numpy())
        noise = self._noise(state.velocity, generator)[0].numpy()
        expected, before = boxes[0].numpy(), boxes_of(state.where, self.frame_size)[0].numpy()
        parts = [], [], [], []
        unexplained = []
        for particle in range(len(expected)):
            unseen = self.seen in self.blind_spots.get(particle, ())
            rows, left = [], [] if unseen else list(range(len(blobs)))
            for slot in np.flatnonzero(state.presence[0, particle]):
                gaps = [np.hypot(*(expected[particle, slot, :2] - blobs[b][:2])) for b in left]
                if gaps and min(gaps) < _REACH_WIDTHS:
                    box = blobs[left.pop(int(np.argmin(gaps)))]
                    moved = box[:2] - before[particle, slot, :2]
                    rows.append((box, moved, int(state.ids[0, particle, slot]), False))
            new = left[:: -1 if particle % 2 else 1] if self.late or state.is_first else []
            unexplained.append(-50.0 * (len(left) - len(new)))
            first = int(state.next_id[0, particle])
            rows += [(blobs[b], np.zeros(2), first + i, True) for i, b in enumerate(new)]
            rows = rows[: self.num_slots]
            rows += [(np.full(4, 0.5), np.zeros(2), 0, False)] * (self.num_slots - len(rows))
            for part, values in zip(parts, zip(*rows, strict=True), strict=True):
                part.append(values)
        boxes, velocity, ids, discovered = (torch.tensor(np.array(part)) for part in parts)
        boxes[..., :2] += torch.from_numpy(noise)
        increment = torch.tensor(unexplained)[None]
        weights = state.log_weights + increment
        if self.log_weights is not None:
            weights = weights + torch.tensor(self.log_weights(self.seen, weights.shape[1]))
        self.seen += 1
        following = Watched(
            self._where(boxes.float())[None], ids[None] > 0, ids[None], velocity.float()[None],
            state.next_id + len(blobs), weights.log_softmax(1), False,
        )  # fmt: skip
        return self._answer(following, discovered[None], increment)

    def resample(self, state, generator, threshold=0.5):
        weights = state.log_weights[0].exp()
        count = len(weights)
        if 1 / weights.square().sum() >= threshold * count:
            return state
        points = (torch.arange(count) + torch.rand(1, generator=generator)) / count
        chosen = torch.searchsorted(weights.cumsum(0), points).clamp(max=count - 1)
        kept = Watched(*(x[:, chosen] for x in state[:-1]), state.is_first)
        return kept._replace(log_weights=torch.full((1, count), -math.log(count)))

    def _answer(self, state, discovered, increment=None):
        nothing = torch.zeros_like(state.presence)
        return state, VideoOutput(
            boxes_of(state.where, self.frame_size),
            state.presence,
            0.99 * state.presence.float(),
            state.ids,
            nothing if discovered is None else discovered,
            state.log_weights,
            state.log_weights * 0 if increment is None else increment,
        )

    def _noise(self, like, generator):
        if generator is None or not self.jitter:
            return torch.zeros_like(like)
        return self.jitter * torch.randn(like.shape, generator=generator)

    def _where(self, boxes):
        aspect = torch.tensor([1.0, self.frame_size[0] / self.frame_size[1]])
        centre = (2 * boxes[..., :2] / aspect - 1).clamp(-0.99 * REACH, 0.99 * REACH)
        share = (boxes[..., 2:] / aspect).clamp(0.02, 0.98)
        return torch.cat([share.logit(), REACH * (centre / REACH).atanh()], -1)

    @staticmethod
    def _blobs(picture):
        """Boxes in widths, from left to right; of parts of at least 4 pixels."""
        width = picture.shape[1]
        bright = (picture > 0.5).astype(np.uint8)
        _, _, statistics, centres = cv2.connectedComponentsWithStats(bright)
        boxes = [
            np.array([*(centre + 0.5), *row[2:4]]) / width
            for row, centre in zip(statistics[1:], centres[1:], strict=True)
            if row[cv2.CC_STAT_AREA] >= 4
        ]
        return sorted(boxes, key=tuple)


def untrained(directory: Path, name: str = "sqair", **changes: object) -> str:
    """The checkpoint of a small SQAIR, or AIR, with random weights, to which much is an object."""
    torch.manual_seed(0)
    config = {
        "frame_size": (48, 64),
        "num_slots": 3,
        "glimpse_size": 8,
        "hidden_size": 16,
        "what_size": 4,
        "object_size": 0.2,
    }
    model = create_model(name, **config | changes)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.discovery.presence_head[-1].bias.data.fill_(2.0)
    save_checkpoint(model, directory)
    return str(directory)
