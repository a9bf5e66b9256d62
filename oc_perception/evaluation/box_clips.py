# SPDX-License-Identifier: Apache-2.0
"""How well boxes given in the first frame are followed through the held-out end of recordings
(Fuchs et al. 2019, *End-to-end Recurrent Multi-Object Tracking and Trajectory Prediction with
Relational Reasoning*, section 4.4), and with frames blacked out.

Every stretch of up to `longest` frames is a clip; in each the five largest objects of its first
frame are followed, of those in sight there: nobody can look for what was hidden when it was given,
more than half behind another box that reaches lower down. IoU is averaged over all later frames in
which an object is present, over clips, and then over recordings, so that the longest one does not
drown the others.

Baselines need no learning: a box that stays, and one that goes on as in the first two true boxes,
one more than trackers are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from oc_perception.models.boxes import iou
from oc_perception.models.clips import test_layout, true_boxes
from oc_perception.worlds.recorded_tracks import RecordedMotion, RecordedTracks

LONGEST = 30  # frames of a clip
SMALLEST = 4  # below, a clip says nothing
_BATCH = 8
_OFFSETS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Followed:
    """Boxes `(B, T, M, 4)` of one method in one recording, with all frames and with `black` ones;
    the first are the given ones.
    """

    seen: Tensor
    blacked: Tensor


def cut_clips(
    world: RecordedTracks, recording: int, stride: int = 1, longest: int = LONGEST
) -> RecordedMotion:
    """All stretches of `longest` frames, every `stride`-th, of one recording of a world without
    augmentation; of as many frames as there are in a shorter one.
    """
    count = len(world.recordings[recording].boxes)
    frames = min(longest, (count - 1) // stride + 1)
    starts = torch.arange(count - (frames - 1) * stride)
    chosen = starts[:, None] + stride * torch.arange(frames)
    return world.motion(torch.full_like(starts, recording), chosen)


def given(motion: RecordedMotion) -> Tensor:
    """Whose boxes `(B, M)` are given in the first frame."""
    return motion.visible[:, 0]


def baselines(boxes: Tensor) -> dict[str, Followed]:
    """`frozen` and `linear` of true boxes `(B, T, M, 4)`."""
    time = torch.arange(boxes.shape[1], device=boxes.device)[:, None, None]
    centres = boxes[:, :1, :, :2] + time * boxes[:, :2, :, :2].diff(dim=1)
    frozen = boxes[:, :1].expand_as(boxes)
    linear = torch.cat([centres, frozen[..., 2:]], -1)
    return {"frozen": Followed(frozen, frozen), "linear": Followed(linear, linear)}


@torch.inference_mode()
def follow(
    model: nn.Module,
    world: RecordedTracks,
    motion: RecordedMotion,
    size: tuple[int, int],
    advance: Callable[[], None] = lambda: None,
) -> Followed:
    """What `model` says of clips drawn at `size` `(height, width)` px from their first boxes.

    `advance` is called after each batch of 8 clips.
    """
    boxes, there = true_boxes(motion), given(motion)
    black = test_layout(boxes.shape[1], boxes.device)
    parts: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(boxes), _BATCH):
        rows = slice(start, start + _BATCH)
        values = (getattr(motion, field.name) for field in fields(motion))
        part = RecordedMotion(*(v[rows] if isinstance(v, Tensor) else v for v in values))
        images = world.draw(part, *size)[0]
        parts.append(
            tuple(
                _run(model, images * ~dark[:, None, None, None], boxes[rows, 0], there[rows])
                for dark in (torch.zeros_like(black), black)
            )
        )
        advance()
    return Followed(*(torch.cat(kind) for kind in zip(*parts, strict=True)))


def _run(model: nn.Module, images: Tensor, first: Tensor, there: Tensor) -> Tensor:
    state, boxes = model.initial_state(first, there), []
    for image in images.unbind(1):
        state, found, _ = model.step(state, image)
        boxes.append(found)
    return torch.stack(boxes, 1)


def score(motion: RecordedMotion, followed: Mapping[str, Followed]) -> dict[str, dict[str, Any]]:
    """Of each method: `iou`; `iou_blackout`, over all frames of clips with black ones, and of
    these alone, by the number of frames since the last image (`iou_blind`); and `iou_back`, in the
    first image after. None where no clip has such frames.
    """
    boxes = true_boxes(motion)
    times = boxes.shape[1]
    frame, black = torch.arange(times), test_layout(times, boxes.device)
    blind = frame - torch.where(black, 0, frame).cummax(0).values
    back = torch.zeros_like(black)
    back[1:] = black[:-1] & ~black[1:]
    later = motion.present & given(motion)[:, None] & (frame > 0)[:, None]

    def mean(overlap: Tensor, frames: Tensor) -> float | None:
        counted = later & frames[:, None]
        return float(overlap[counted].double().mean()) if counted.any() else None

    scores = {}
    for name, method in followed.items():
        seen, blacked = iou(method.seen, boxes), iou(method.blacked, boxes)
        scores[name] = {
            "iou": mean(seen, frame > 0),
            "iou_blackout": mean(blacked, frame > 0) if black.any() else None,
            "iou_black_frames": mean(blacked, black),
            "iou_blind": {str(n): mean(blacked, blind == n) for n in _OFFSETS},
            "iou_back": mean(blacked, back),
        }
    return scores


def average(scores: list[Any]) -> Any:
    """The mean of equal structures of numbers, leaf by leaf, without those that are None."""
    if isinstance(scores[0], dict):
        return {key: average([s[key] for s in scores]) for key in scores[0]}
    known = [s for s in scores if s is not None]
    return sum(known) / len(known) if known else None
