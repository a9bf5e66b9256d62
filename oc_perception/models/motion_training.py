# SPDX-License-Identifier: Apache-2.0
"""What a motion model learns from and is scored by: true motion, seen through noisy detections."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from oc_perception.models.beliefs import MotionState
from oc_perception.types import Motion

_SEEN, _LONGEST = 20, 20  # frames before and in the blackout that scores are about
_NOISE = 0.02  # of the detections then, in box widths


class MotionNetwork(Protocol):
    """What is needed of a model, see `relational.py`."""

    def initial_state(self, *seen: Tensor) -> MotionState: ...

    def step(
        self, state: MotionState, detections: Tensor | None, dt_s: float, *seen: Tensor
    ) -> tuple[MotionState, MotionState]: ...

    def tick(self, state: MotionState, dt_s: float) -> tuple[MotionState, Tensor]: ...


def follow(
    model: MotionNetwork,
    motion: Motion,
    blind: range,
    generator: torch.Generator,
    noise: tuple[float, float],
    miss: tuple[float, float],
) -> Iterator[tuple[int, MotionState, Tensor]]:
    """Run a model over `motion`, without detections in the frames `blind`.

    `noise` of detections, in box widths, and rate of misses are drawn per sequence from these
    ranges. Yields frame, prediction before its detections, and whose prediction counts `(B, N)`:
    of objects that have been seen before and are still present.
    """
    batch, frames, _ = motion.present.shape
    device = motion.positions.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, 1, generator=generator, device=device)

    deviation = uniform(*noise)[..., None] * motion.sizes.mean(-1)  # (B, T, N)
    error = torch.randn(motion.positions.shape, generator=generator, device=device)
    detections = motion.positions + deviation[..., None] * error
    draws = torch.rand(motion.visible.shape, generator=generator, device=device)
    seen = motion.visible & (draws >= uniform(*miss)[..., None])
    variance = deviation**2

    state = None
    for frame in range(frames):
        new = (
            detections[:, frame],
            motion.sizes[:, frame],
            motion.features[:, frame],
            seen[:, frame],
            variance[:, frame],
        )
        if state is None:
            state = model.initial_state(*new)
            continue
        is_blind = frame in blind
        state = replace(state, active=state.active & motion.present[:, frame])
        state, predicted = model.step(
            state,
            None if is_blind else detections[:, frame],
            motion.dt_s,
            torch.diag_embed(variance[:, frame, :, None].expand(-1, -1, 2)),
            seen[:, frame],
        )
        yield frame, predicted, predicted.active
        if not is_blind:
            state = state.with_births(model.initial_state(*new))


@torch.no_grad()
def score(model: MotionNetwork, motion: Motion, generator: torch.Generator) -> dict[str, float]:
    """After 20 frames in sight with a noise of 0.02 box widths: error in box widths after 10 and
    20 blind frames, coverage of the 90 % ellipse and ANEES over all of them.
    """
    blind = range(_SEEN, min(_SEEN + _LONGEST, motion.positions.shape[1]))
    errors, distances = {}, []
    for frame, predicted, mask in follow(
        model, motion, blind, generator, (_NOISE, _NOISE), (0.0, 0.0)
    ):
        if frame not in blind:
            continue
        distances.append(predicted.squared_distances(motion.positions[:, frame])[mask])
        error = (motion.positions[:, frame] - predicted.means[..., :2]).norm(dim=-1)
        errors[frame - _SEEN + 1] = (error / motion.sizes[:, frame].mean(-1))[mask].mean().item()
    distances = torch.cat(distances)
    return {
        **{f"fde_{n}": errors[n] for n in (10, 20) if n in errors},
        "coverage_90": (distances <= -2 * math.log(0.1)).float().mean().item(),
        "anees": distances.mean().item() / 2,
    }


def dynamics_error(
    model: MotionNetwork, motion: Motion, tick_s: float, generator: torch.Generator
) -> Tensor:
    """How far one tick from noisy true states misses the next true state: the root of the squared
    error of position and way per tick, over what must be expected of a start that is off by the
    noise it was given. It grows like the error, not its square, lest the rare collisions that
    nothing could foretell outweigh everything.
    """
    before, after = motion[:, :-1], motion[:, 1:]
    size = before.sizes.mean(-1).flatten(0, 1)

    def noise(low: float, high: float) -> Tensor:
        draw = torch.rand(len(size), 1, generator=generator, device=size.device)
        return 10 ** (low + (high - low) * draw) * size

    deviation = torch.stack([noise(-3, -1), noise(-3.5, -1.5)], -1).repeat_interleave(2, -1)
    draw = torch.randn(deviation.shape, generator=generator, device=size.device)
    to_ways = deviation.new_tensor([1.0, 1.0, tick_s, tick_s])
    truth, target = (
        torch.cat([part.positions, part.velocities], -1).flatten(0, 1) for part in (before, after)
    )
    state = replace(
        model.initial_state(
            truth[..., :2],
            before.sizes.flatten(0, 1),
            before.features.flatten(0, 1),
            before.present.flatten(0, 1),
            size,
        ),
        means=truth + draw * deviation / to_ways,
        covariances=torch.diag_embed((deviation / to_ways) ** 2),
    )
    state, _ = model.tick(state, motion.dt_s)
    error = (state.means - target) * to_ways
    floor = (3e-3 * size[..., None]) ** 2
    # a wrong velocity is a wrong position too
    expected = deviation**2 + deviation.roll(2, -1) ** 2 * to_ways.new_tensor([1, 1, 0, 0])
    ratio = (error**2 / (expected + floor)).mean(-1)
    counted = (before.present & after.present).flatten(0, 1)
    return (1 + ratio[counted]).sqrt().mean() - 1
