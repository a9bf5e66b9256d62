# SPDX-License-Identifier: Apache-2.0
"""What a model of videos expects of the objects that it saw, once it sees no more.

After `SEEN` frames it goes on without any. Errors are mean distances of centres, in image widths,
H = 1, 3 and 5 frames later, of objects matched in the last frame seen, in view then, and still
known to the model:

| score | where the centre is |
|---|---|
| `forecast_ade_H` | where the model has it, by means and most probable presences |
| `forecast_sample_ade_H` | the same in samples, and of the objects known to them |
| `forecast_frozen_H`, `forecast_velocity_H` | where the model last saw it; on a straight line through where it saw it |
| `forecast_frozen_truth_H`, `forecast_velocity_truth_H` | the same of true centres, which no model knows |

`forecast_kept` is the share of matched objects still known after 5 frames,
`forecast_constant_count` that of samples in which the number of objects does not change.
"""  # noqa: E501 (a table)

from __future__ import annotations

import torch
from torch import Tensor, nn

from oc_perception.evaluation.video_tracks import Ratio, best_pairs, typical_side
from oc_perception.types import Motion

SEEN = 3
"""Frames that a forecast is made from, as for the moving digits of Kosiorek et al. (2018)."""
HORIZONS = (1, 3, 5)


def forecast(
    model: nn.Module, images: Tensor, motion: Motion, particles: int, noise: torch.Generator
) -> dict[str, Ratio]:
    """Scores of `model` on `images` `(B, T, 3, H, W)` of `motion`, of which it sees the first
    `SEEN` frames; T is at least `SEEN` and the last of `HORIZONS`.
    """
    motion = motion[:, : SEEN + max(HORIZONS)]
    expected, known, _ = _followed(model, images, motion, 1, None)
    samples, sampled, counts = _followed(model, images, motion, particles, noise)
    true, last = motion.positions.unsqueeze(2), SEEN - 1
    paths = {
        "ade": (expected, known),
        "sample_ade": (samples, sampled),
        "frozen": (expected[:, last:SEEN], known),
        "velocity": (_straight_on(expected, known), known),
        "frozen_truth": (true[:, last:SEEN], known),
        "velocity_truth": (_straight_on(true, torch.ones_like(known)), known),
    }
    some = counts[:, last] > 0
    constant = (counts[:, SEEN:] == counts[:, last:SEEN]).all(1) & some
    scores = {"forecast_constant_count": (constant.sum().double(), some.sum().double())}
    if known[:, last + 1 :].any():
        scores["forecast_kept"] = (known[:, -1].sum().double(), known[:, last].sum().double())
    for name, (path, there) in paths.items():
        distance = (path - true).norm(dim=-1).expand_as(there).double()
        for horizon in HORIZONS:
            frame = last + horizon
            scored = there[:, frame] & motion.visible[:, frame].unsqueeze(1)
            total = (distance[:, frame] * scored).sum()
            scores[f"forecast_{name}_{horizon}"] = (total, scored.sum().double())
    return scores


def _followed(
    model: nn.Module,
    images: Tensor,
    motion: Motion,
    particles: int,
    noise: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres `(B, T, K, N, 2)` that the model gives to true objects, whether it knows them
    `(B, T, K, N)`, and how many objects it knows in all `(B, T, K)`.

    A true object is the one of the model's that is nearest in the last frame seen and at most half
    a typical side away, in all frames where its identity is there.
    """
    state, steps = model.initial_state(len(images), particles), []
    for frame in range(motion.present.shape[1]):
        picture = images[:, frame] if frame < SEEN else None
        state, output = model.step(state, picture, noise)
        steps.append((output.boxes[..., :2], output.ids))
    centres, ids = (torch.stack(parts, 1) for parts in zip(*steps, strict=True))

    last = SEEN - 1
    place, identity = centres[:, last], ids[:, last]  # (B, K, M, ...)
    distance = (motion.positions[:, last, None, :, None] - place.unsqueeze(2)).norm(dim=-1)
    worth = 1 - distance / (typical_side(motion) / 2)
    visible = motion.visible[:, last, None, :, None]
    possible = (worth > 0) & visible & (identity > 0).unsqueeze(2)
    pairs = best_pairs(worth.flatten(0, 1), possible.flatten(0, 1)).view_as(possible)
    matched = (pairs * identity.unsqueeze(2)).sum(3)  # (B, K, N) ids, 0: none
    same = (ids.unsqueeze(3) == matched[:, None, :, :, None]) & (matched > 0)[:, None, ..., None]
    found = torch.where(same.unsqueeze(-1), centres.unsqueeze(3), 0.0).sum(4)
    return found, same.any(4), (ids > 0).sum(3)


def _straight_on(path: Tensor, there: Tensor) -> Tensor:
    """The line through the frames seen of `path` `(B, T, K, N, 2)`, where it is `there`
    `(B, T, K, N)`, by least squares; still where there is but one.
    """
    time = torch.arange(there.shape[1], device=path.device).view(1, -1, 1, 1, 1)
    weight = there[:, :SEEN, ..., None].to(path.dtype)
    count = weight.sum(1, keepdim=True).clamp(min=1)
    middle = (weight * time[:, :SEEN]).sum(1, keepdim=True) / count
    centre = (weight * path[:, :SEEN]).sum(1, keepdim=True) / count
    offset = weight * (time[:, :SEEN] - middle)
    spread = offset.square().sum(1, keepdim=True)
    slope = (offset * path[:, :SEEN]).sum(1, keepdim=True) / spread.clamp(min=1e-6)
    return centre + slope * (time - middle)
