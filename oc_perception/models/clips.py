# SPDX-License-Identifier: Apache-2.0
"""Blackouts in clips, and how well boxes `(B, T, M, 4)` follow objects through them."""

from __future__ import annotations

import torch
from torch import Tensor

from oc_perception.models.boxes import iou
from oc_perception.types import Motion

_FIRST_VISIBLE, _LONGEST, _MOST_GAP = 3, 5, 6
_LONG_TEST = ((6, 9), (13, 18), (23, 26))  # black frames of a clip of 30, from and until
_SHORT_TEST = ((6, 11),)
_REACQUIRED = 0.5  # IoU


def true_boxes(motion: Motion) -> Tensor:
    """`(B, T, M, 4)`; something harmless where nobody is present."""
    boxes = torch.cat([motion.positions, motion.sizes], -1)
    return torch.where(motion.present.unsqueeze(-1), boxes, 0.5)


def draw_blackouts(
    batch: int, frames: int, rate: float, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Which frames `(B, T)` are black: in `rate` of the clips up to three segments of 1 to 5
    frames, after 3 visible ones, with at least 2 visible between.
    """

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator, device=device)

    lengths, gaps = whole(1, _LONGEST, batch, 3), whole(2, _MOST_GAP, batch, 3)
    gaps[:, 0] = whole(_FIRST_VISIBLE, max(_FIRST_VISIBLE, frames // 2), batch)
    ends = (lengths + gaps).cumsum(1)
    frame = torch.arange(frames, device=device)[:, None, None]
    black = ((frame >= ends - lengths) & (frame < ends)).any(2).T
    drawn = torch.rand(batch, 1, generator=generator, device=device) < rate
    return black & drawn


def test_layout(frames: int, device: torch.device) -> Tensor:
    """Which frames `(T,)` are black in tests; the same for every clip of this length."""
    frame = torch.arange(frames, device=device)
    black = torch.zeros_like(frame, dtype=torch.bool)
    for start, end in _LONG_TEST if frames >= _LONG_TEST[-1][1] else _SHORT_TEST:
        black |= (frame >= start) & (frame < end)
    return black


def score_boxes(
    predicted: Tensor, boxes: Tensor, present: Tensor, horizon: int
) -> dict[str, float]:
    """Mean IoU from the second frame on of boxes `predicted` `(B, T, M, 4)` for `horizon` frames
    later. Beside it what needs no learning, from true boxes: one that stays (`iou_frozen`; where
    nothing is to be predicted, where it was in the first frame), one that moves on as in the last
    frame (`iou_linear`).
    """
    centres, sizes = boxes.split(2, -1)
    moved = torch.diff(centres, dim=1, prepend=centres[:, :1])
    methods = {"iou": predicted, "iou_frozen": boxes if horizon else boxes[:, :1].expand_as(boxes)}
    if horizon:
        methods["iou_linear"] = torch.cat([centres + horizon * moved, sizes], -1)
    last = boxes.shape[1] - horizon
    scored = present[:, 1 + horizon :] & present[:, 1:last]
    targets = boxes[:, 1 + horizon :]
    return {
        name: _mean(iou(method[:, 1:last], targets), scored) for name, method in methods.items()
    }


def score_blackouts(
    predicted: Tensor, boxes: Tensor, present: Tensor, black: Tensor, horizon: int
) -> dict[str, float]:
    """IoU by number of frames since the last image, `black` `(T,)`: of boxes `predicted`
    `(B, T, M, 4)`, and of what goes on from the last ones before, at constant velocity or not at
    all; then after sight returns.
    """
    frames = boxes.shape[1] - horizon
    frame, black = torch.arange(frames, device=boxes.device), black[:frames]
    seen = torch.where(black, 0, frame).cummax(0).values
    blind, before = frame - seen, (seen - 1).clamp(min=0)
    moved = (predicted[:, seen] - predicted[:, before]) * blind[:, None, None]
    methods = {
        "iou": predicted[:, :frames],
        "iou_velocity": predicted[:, seen] + moved,
        "iou_frozen": predicted[:, seen],
    }
    scored = present[:, horizon:] & present[:, :frames]
    overlaps = {name: iou(box, boxes[:, horizon:]) for name, box in methods.items()}
    scores = {
        f"{name}_blind_{offset}": _mean(overlap[:, blind == offset], scored[:, blind == offset])
        for offset in range(1, _LONGEST + 1)
        for name, overlap in overlaps.items()
    }
    back = torch.zeros_like(black)
    back[1:] = black[:-1] & ~black[1:]
    first = back.nonzero().squeeze(1)
    second = (first + 1).clamp(max=frames - 1)
    there = scored[:, first] & scored[:, second]
    after = torch.stack([overlaps["iou"][:, first], overlaps["iou"][:, second]])
    return {
        **scores,
        "iou_visible": _mean(overlaps["iou"][:, ~black][:, 1:], scored[:, ~black][:, 1:]),
        "iou_back_1": _mean(after[0], there),
        "iou_back_2": _mean(after[1], there),
        "reacquired": _mean((after.amax(0) > _REACQUIRED).float(), there),
    }


def _mean(values: Tensor, mask: Tensor) -> float:
    """NaN where nothing counts."""
    return float((values * mask).sum() / mask.sum())
