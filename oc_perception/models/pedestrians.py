# SPDX-License-Identifier: Apache-2.0
"""Relational motion model of persons: a Kalman filter whose motion is learned, for objects that
walk where they want, and mind one another without touching.

The sibling of `relational.py` for where there are neither contacts nor borders, and a sense of
ahead. Each object has a Gaussian belief over position and velocity, and a memory. In a tick it
goes on straight, but for an acceleration and a variance (along its heading and across it) that a
network answers from its speed, its doubt, its memory and what it heard from the others: for each
pair a network looks at where the other is and how it moves, as seen in the object's heading, where
and when they will be closest if both go on, and at both memories; it answers with a message and a
gate, which fades at `reach`. Attention is the gate's share of 1 and all gates: it may add up to
nearly nothing, and never to more than 1, however dense the crowd. The observation update is
Kalman's; innovations feed the memory, which tells how far to trust positions that are noisy in
one recording and smooth in another. All is equivariant to the order of objects, and
to rotation, but for an object at rest, whose heading is anywhere.

Means learn from the distance to the truth while blind, which is what forecasts are scored by;
variances from the likelihood. `relations=False` leaves messages out; all else is the same.

Related: Becker et al., *Recurrent Kalman Networks*, 2019; Zhang et al., *SR-LSTM*, 2019 (messages
between the states of pedestrians, gated); Schöller et al., *What the Constant Velocity Model Can
Teach Us About Pedestrian Motion Prediction*, 2020 (what scene and history must not be learned).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from oc_perception.configuration import from_mapping
from oc_perception.models.beliefs import MotionFilter, MotionState, corrected
from oc_perception.models.registry import register_model
from oc_perception.models.relational import answering_network
from oc_perception.types import Motion

_TINY = 1e-6
_SMALL = 0.1  # a common acceleration, in sizes per tick
_LARGEST_PULL = 10.0
_PAIR = 10  # numbers that tell of a pair
_FAR = 6.0  # sizes beyond which distances are alike
_CHI_90 = -2 * math.log(0.1)  # squared distance in the 90 % ellipse


@dataclass(frozen=True)
class PedestriansConfig:
    """Lengths are in sizes of an object, which are one unit for all (1 m in `trajectories`).

    `message` numbers are heard from others that are nearer than `reach`; encounters are foreseen
    for `horizon` ticks of `tick_s`. An object starts at rest, give or take `initial_speed` sizes
    per tick. Positions are off by `noise`, until the memory tells better.

    Training: `num_frames` frames of which `seen_frames` are seen, with noise of up to
    `added_noise`, other in each sequence and none in half of them; `likelihood_weight` is that of
    the negative log likelihood beside the distance.
    """

    relations: bool = True
    num_features: int = 0
    hidden: int = 48
    memory: int = 24
    message: int = 16
    reach: float = 6.0
    horizon: float = 8.0
    tick_s: float = 0.4
    initial_speed: float = 0.5
    noise: float = 0.005
    num_frames: int = 20
    seen_frames: int = 8
    added_noise: float = 0.05
    likelihood_weight: float = 0.06

    def __post_init__(self) -> None:
        if min(self.hidden, self.memory, self.message) < 1 or self.num_features < 0:
            raise ValueError(
                "hidden, memory and message must be at least 1, num_features at least 0"
            )
        lengths = (self.reach, self.horizon, self.tick_s, self.initial_speed, self.noise)
        if min(lengths) <= 0 or min(self.added_noise, self.likelihood_weight) < 0:
            raise ValueError(
                "reach, horizon, tick_s, initial_speed and noise must be positive, added_noise and"
                " likelihood_weight at least 0"
            )
        if not 3 <= self.seen_frames < self.num_frames:
            raise ValueError("seen_frames must be at least 3 and below num_frames")


class Pedestrians(MotionFilter):
    """Predicts, and corrects by positions; see the module."""

    task: ClassVar[str] = "motion"

    def __init__(self, config: PedestriansConfig) -> None:
        super().__init__(config)
        hidden, character = config.hidden, config.memory + config.num_features
        if config.relations:
            self.pair = nn.Linear(_PAIR, hidden)
            self.listener = nn.Linear(character, hidden, bias=False)
            self.speaker = nn.Linear(character, hidden, bias=False)
            self.say = nn.Sequential(
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, 1 + config.message),
            )
        heard = config.message if config.relations else 0
        self.alone = answering_network(5 + character + heard, hidden, 4)
        self.remember = nn.GRUCell(7, config.memory)
        self.doubt = nn.Linear(config.memory, 1)
        nn.init.zeros_(self.doubt.weight)
        nn.init.zeros_(self.doubt.bias)

    @property
    def num_frames(self) -> int:
        """Frames of a training sequence."""
        return self.config.num_frames

    # ---- time

    def speed_variance(self, sizes: Tensor) -> Tensor:
        """See MotionFilter."""
        return (self.config.initial_speed / self.config.tick_s * sizes.mean(-1)) ** 2

    def tick(self, state: MotionState, dt_s: float | Tensor) -> tuple[MotionState, Tensor]:
        """See MotionFilter."""
        tick_s = self.config.tick_s
        positions, velocities = state.means.split(2, -1)
        dt = torch.as_tensor(dt_s, dtype=positions.dtype, device=positions.device).view(-1, 1, 1)
        size = state.sizes.mean(-1, keepdim=True)
        unit, share = size / tick_s, dt / tick_s
        heading = _heading(velocities)
        spread = state.covariances.diagonal(dim1=-2, dim2=-1).unflatten(-1, (2, 2)).mean(-1)
        doubt = spread / torch.cat([size, unit], -1) ** 2 + _TINY**2
        speed = velocities.norm(dim=-1, keepdim=True) / unit
        known = [speed, (speed + 0.05).log(), doubt.log() / 8, state.ages_s[..., None] / 4]
        known += [state.memories, state.features]
        count = size.shape[1]
        attention = size.new_zeros(len(size), count, count)
        if self.config.relations:
            heard, attention = self._listen(state, heading, size)
            known.append(heard)
        answer = self.alone(torch.cat(known, -1))
        pull = answer[..., None, :2].clamp(-_LARGEST_PULL, _LARGEST_PULL) @ heading
        pull = pull[..., 0, :] * (_SMALL * unit * share)
        deviation = _deviation(answer[..., 2:]) * unit
        wander = heading.mT @ (deviation[..., None] ** 2 * heading) * share[..., None]
        time = dt[..., None]
        noise = torch.cat(
            [
                torch.cat([wander * time**2 / 3, wander * time / 2], -1),
                torch.cat([wander * time / 2, wander], -1),
            ],
            -2,
        )
        transition = self._identity + self._flight * time
        moved = positions + velocities * dt + pull * (dt / 2)
        state = replace(
            state,
            means=torch.cat([moved, velocities + pull], -1),
            covariances=transition @ state.covariances @ transition.mT + noise,
            ages_s=state.ages_s + dt[..., 0],
        )
        return state, attention

    def update(
        self, state: MotionState, detections: Tensor, noises: Tensor, seen: Tensor
    ) -> MotionState:
        """Condition on `detections` `(B, N, 2)` of covariance `noises` `(B, N, 2, 2)` where `seen`
        `(B, N)`; how many times `noises` are believed to be larger, the memory tells.
        """
        noises = noises * (4 * self.doubt(state.memories)).clamp(-2, 7).exp()[..., None]
        heading = _heading(state.means[..., 2:])
        speed = state.means[..., 2:].norm(dim=-1, keepdim=True)
        state, innovation, expected = corrected(state, detections, noises, seen)
        size = state.sizes.mean(-1, keepdim=True)
        doubt = expected.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) + _TINY**2
        seen_ahead = (heading @ innovation[..., None])[..., 0]
        heard = [
            (seen_ahead / doubt.sqrt()).clamp(-5, 5),
            (10 * seen_ahead / size).clamp(-5, 5),
            (doubt / size**2).log() / 8,
            speed * (self.config.tick_s / size),
            5 * (innovation.norm(dim=-1, keepdim=True) / size).clamp(max=2),
        ]
        heard = torch.cat(heard, -1).flatten(0, 1)
        memories = self.remember(heard, state.memories.flatten(0, 1)).view_as(state.memories)
        return replace(state, memories=torch.where(seen[..., None], memories, state.memories))

    def _listen(self, state: MotionState, heading: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """What each object hears from all others `(B, N, M)`, and its attention `(B, N, N)`."""
        config = self.config
        positions, velocities = state.means.split(2, -1)
        unit = size[:, :, None]
        offset = (positions[:, None] - positions[:, :, None]) / unit
        slip = (velocities[:, None] - velocities[:, :, None]) * (config.tick_s / unit)
        distance = _length(offset)
        when = -(offset * slip).sum(-1, keepdim=True) / ((slip**2).sum(-1, keepdim=True) + 1e-4)
        when = when.clamp(0, config.horizon)
        closest = offset + slip * when
        clearance = _length(closest)
        turned = torch.stack([offset / (1 + distance), slip, closest / (1 + clearance)], -1)
        turned = heading[:, :, None] @ turned  # as the listener sees it
        speed = velocities.norm(dim=-1)[:, None, :, None] * (config.tick_s / unit)
        told = [
            turned[..., 0],
            distance.clamp(max=_FAR) / 2,
            turned[..., 1].clamp(-3, 3),
            when / config.horizon,
            clearance.clamp(max=_FAR) / 2,
            turned[..., 2],
            speed,
        ]
        character = torch.cat([state.memories, state.features], -1)
        listener, speaker = self.listener(character), self.speaker(character)
        said = self.say(self.pair(torch.cat(told, -1)) + listener[:, :, None] + speaker[:, None])
        alone = torch.eye(size.shape[1], dtype=torch.bool, device=size.device)
        counts = state.active[:, :, None] & state.active[:, None] & ~alone
        near = (2 - 2 * distance[..., 0] / config.reach).clamp(0, 1)
        gate = said[..., 0].sigmoid() * near * counts
        attention = gate / (1 + gate.sum(-1, keepdim=True))
        return torch.einsum("bij,bijm->bim", attention, said[..., 1:].tanh()), attention

    # ---- learning

    def follow(self, motion: Motion, positions: Tensor) -> Iterator[tuple[int, MotionState]]:
        """Frame and prediction, from the second frame on, of `motion` seen at `positions`
        `(B, T, N, 2)` in the first `seen_frames`; whoever was seen is there until the end.
        """
        variance = (self.config.noise * motion.sizes.mean(-1)) ** 2  # (B, T, N)
        noises = torch.diag_embed(variance[..., None].expand(-1, -1, -1, 2))
        state = None
        for frame in range(positions.shape[1]):
            new = (positions[:, frame], motion.sizes[:, frame], motion.features[:, frame])
            new = (*new, motion.visible[:, frame], variance[:, frame])
            if state is None:
                state = self.initial_state(*new)
                continue
            if frame >= self.config.seen_frames:
                state, predicted = self.step(state, None, motion.dt_s)
                yield frame, predicted
                continue
            seen = motion.visible[:, frame]
            state, predicted = self.step(
                state, positions[:, frame], motion.dt_s, noises[:, frame], seen
            )
            yield frame, predicted
            state = state.with_births(self.initial_state(*new))

    def loss(
        self, motion: Motion, generator: torch.Generator, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Distance to the truth while blind, in sizes, and negative log likelihood of what is
        seen, and of the truth while blind; there it does not teach the means.
        """
        config, device = self.config, motion.positions.device
        level = torch.rand(len(motion.positions), generator=generator, device=device)
        level = config.added_noise * (2 * level - 1).clamp(min=0)
        error = torch.randn(motion.positions.shape, generator=generator, device=device)
        positions = motion.positions + level[:, None, None, None] * motion.sizes * error
        seen, blind, distance = [], [], []
        for frame, predicted in self.follow(motion, positions):
            counted = predicted.active & motion.present[:, frame]
            if frame < config.seen_frames:
                if frame > 1:
                    likelihood = predicted.negative_log_likelihood(positions[:, frame])
                    seen.append(likelihood[counted])
                continue
            truth = motion.positions[:, frame]
            fixed = replace(predicted, means=predicted.means.detach())
            blind.append(fixed.negative_log_likelihood(truth)[counted])
            miss = _length(predicted.means[..., :2] - truth)[..., 0]
            distance.append((miss / motion.sizes[:, frame].mean(-1))[counted])
        seen, blind, distance = (torch.cat(part).mean() for part in (seen, blind, distance))
        loss = distance + config.likelihood_weight * (seen + blind)
        return {"loss": loss, "distance": distance, "nll": blind, "nll_seen": seen}

    def score(self, motion: Motion, generator: torch.Generator) -> dict[str, float]:
        """Of those who are there in all frames: mean and last distance while blind, in sizes, and
        the share of last truths in the 90 % ellipse.
        """
        whole = motion.present.all(1)
        blind = [
            (predicted, motion.positions[:, frame])
            for frame, predicted in self.follow(motion, motion.positions)
            if frame >= self.config.seen_frames
        ]
        size = motion.sizes[:, 0].mean(-1)
        miss = torch.stack([(p.means[..., :2] - truth).norm(dim=-1) / size for p, truth in blind])
        last, truth = blind[-1]
        return {
            "ade": miss.mean(0)[whole].mean().item(),
            "fde": miss[-1][whole].mean().item(),
            "coverage_90": (last.squared_distances(truth) <= _CHI_90)[whole].float().mean().item(),
        }


def _heading(velocities: Tensor) -> Tensor:
    """Rotations `(..., 2, 2)` into the heading of `velocities` `(..., 2)`; its rows are the
    directions along and across. A constant: its gradient is without bound where one stands still.
    """
    velocities = velocities.detach()
    speed = velocities.norm(dim=-1, keepdim=True)
    rest = velocities.new_tensor([1.0, 0.0])
    along = torch.where(speed > _TINY, velocities / speed.clamp(min=_TINY), rest)
    return torch.stack([along, torch.stack([-along[..., 1], along[..., 0]], -1)], -2)


def _length(vectors: Tensor) -> Tensor:
    """`(..., 1)`, with a gradient at 0."""
    return ((vectors**2).sum(-1, keepdim=True) + _TINY**2).sqrt()


def _deviation(answer: Tensor) -> Tensor:
    """Standard deviation in sizes per tick: small at first, never above 1."""
    return (2 * answer - 4).clamp(max=0).exp()


@register_model
def pedestrians(**config: object) -> Pedestrians:
    """With attention between persons."""
    return Pedestrians(from_mapping(PedestriansConfig, config))
