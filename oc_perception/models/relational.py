# SPDX-License-Identifier: Apache-2.0
"""Relational motion model: a Kalman filter whose motion is learned, and in which objects attend to
one another.

Each object has a Gaussian belief over position and velocity, and a memory of what its motion told
so far. In a tick between two frames an object flies straight, but for what it receives from the
others and from the borders of the view: for each pair an edge network looks at the geometry of the
encounter (where and when they come closest, how fast, how uncertain that is), at looks and
memories, and answers with a gate (the attention weight), a velocity jump along and across the line
of centres at the time of contact, an acceleration, and the variance that all this adds. Gates are
sigmoids, not a softmax over objects, because forces add up and do not compete. Whether things
bounce, pass, repel or avoid each other is learned; sizes and geometry are given. The observation
update is Kalman's, so that what comes from the motion and from the sensor is weighed by one
measure; innovations feed the memory. All is equivariant to the order of objects, and pairs are
treated alike under rotation and reflection.

`relations=False` leaves the edges between objects out; everything else is the same.

Related: Battaglia et al., *Interaction Networks*, 2016 (edges and sums); Becker et al., *Recurrent
Kalman Networks*, 2019 (learned transition, Gaussian update); Fuchs et al., *End-to-end Recurrent
Multi-Object Tracking and Trajectory Prediction with Relational Reasoning*, 2019 (attention between
trackers carries them through blackouts).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from oc_perception.configuration import from_mapping
from oc_perception.models.beliefs import MotionFilter, MotionState, corrected
from oc_perception.models.encounters import (
    GEOMETRY,
    Encounter,
    meeting,
    meeting_with_border,
)
from oc_perception.models.motion_training import dynamics_error, follow, score
from oc_perception.models.registry import register_model
from oc_perception.types import Motion

_TINY = 1e-6
_ANSWERS = 7  # gate, two jumps, two accelerations, two log standard deviations
_SMALL = 0.1  # a common acceleration, in sizes per tick
_LARGEST_JUMP, _LARGEST_PULL = 2.5, 10.0  # answers beyond which no motion has gone


@dataclass(frozen=True)
class RelationalConfig:
    """`num_features` numbers of an object's look that motion may depend on. Motion is integrated
    in ticks of at most `tick_s`. An object starts at rest, give or take `initial_speed` image
    widths per second.

    Training: `num_frames` frames, every first to `strides`-th of the world's for variable time
    steps; a blackout of random length begins after some of the `visible_frames`. Noise of
    detections, in box widths, and rate of misses are drawn per sequence. `dynamics_weight` is that
    of the loss of single ticks from true states; 0 where true velocities are not known. This loss
    alone is learned in the first `dynamics_share` of training, later on `dynamics_frames` frames.
    """

    relations: bool = True
    num_features: int = 1
    hidden: int = 64
    memory: int = 16
    tick_s: float = 1 / 30
    initial_speed: float = 0.5
    num_frames: int = 48
    strides: int = 1
    visible_frames: tuple[int, int] = (8, 20)
    noise: tuple[float, float] = (0.01, 0.1)
    miss: tuple[float, float] = (0.0, 0.1)
    dynamics_weight: float = 1.0
    dynamics_share: float = 0.25
    dynamics_frames: int = 12

    def __post_init__(self) -> None:
        if min(self.hidden, self.memory) < 1 or self.num_features < 0:
            raise ValueError("hidden and memory must be at least 1, num_features at least 0")
        if self.strides < 1:
            raise ValueError("strides must be at least 1")
        if self.tick_s <= 0 or self.initial_speed <= 0:
            raise ValueError("tick_s and initial_speed must be positive")
        if not 1 < self.visible_frames[0] <= self.visible_frames[1] < self.num_frames:
            raise ValueError("visible_frames must be a range above 1 and below num_frames")


class _EdgeNetwork(nn.Module):
    """From the geometry of encounters `(B, N, M, G)` and what the object, and the partner where
    there is one, are like `(B, N, C)`, to answers `(B, N, M, 7)`.

    The first layer is a sum, so that what belongs to an object is computed once and not per pair.
    """

    def __init__(self, geometry: int, character: int, hidden: int, with_partner: bool = True):
        super().__init__()
        self.geometry = nn.Linear(geometry, hidden)
        self.own = nn.Linear(character, hidden, bias=False)
        self.partner = nn.Linear(character, hidden, bias=False) if with_partner else None
        self.rest = nn.Sequential(
            nn.ReLU(), *answering_network(hidden, hidden, _ANSWERS, layers=1)
        )

    def forward(self, geometry: Tensor, character: Tensor) -> Tensor:
        first = self.geometry(geometry) + self.own(character)[:, :, None]
        if self.partner is not None:
            first = first + self.partner(character)[:, None]
        return self.rest(first)


class Relational(MotionFilter):
    """Predicts, and corrects by detections; see the module."""

    task: ClassVar[str] = "motion"

    def __init__(self, config: RelationalConfig) -> None:
        super().__init__(config)
        hidden, memory, look = config.hidden, config.memory, config.num_features
        self.pairs = None
        if config.relations:
            self.pairs = _EdgeNetwork(GEOMETRY + look, look + memory, hidden)
        self.borders = _EdgeNetwork(GEOMETRY, look + memory, hidden, with_partner=False)
        self.border_insets = nn.Parameter(torch.zeros(4))
        self.alone = answering_network(8 + look + memory, hidden, 6)
        self.remember = nn.GRUCell(5, memory)
        normals = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
        self.register_buffer("_normals", normals, persistent=False)

    @property
    def num_frames(self) -> int:
        """Frames that a training sequence is cut from."""
        return self.config.num_frames * self.config.strides

    # ---- time

    def speed_variance(self, sizes: Tensor) -> Tensor:
        """See MotionFilter."""
        return torch.full_like(sizes[..., 0], self.config.initial_speed**2)

    def tick(self, state: MotionState, dt_s: float | Tensor) -> tuple[MotionState, Tensor]:
        """See MotionFilter."""
        means, tick_s = state.means, self.config.tick_s
        dt = torch.as_tensor(dt_s, dtype=means.dtype, device=means.device).view(-1, 1, 1)
        size = state.sizes.mean(-1)  # (B, N)
        spread = state.covariances.diagonal(dim1=-2, dim2=-1).unflatten(-1, (2, 2)).mean(-1)
        doubt = torch.stack([spread[..., 0], spread[..., 1] * tick_s**2], -1) + _TINY**2

        met, answer, reach, relative, counts = self._meet_borders(state, dt, size, doubt)
        if self.pairs is not None and size.shape[1] > 1:
            others, *rest = self._meet_others(state, dt, size, doubt)
            met = met.joined(others)
            answer, reach, relative, counts = (
                torch.cat(pair, 2)
                for pair in zip((answer, reach, relative, counts), rest, strict=True)
            )
        gate = answer[..., 0].sigmoid() * counts
        (jump, late, pull), noise = self._effect(met, answer, gate, reach, relative, dt)

        size, share = size[..., None], dt / tick_s
        edge = torch.stack([means[..., 0] - 0.5, means[..., 1] - state.aspect / 2], -1)
        own = self.alone(
            torch.cat(
                [
                    2 * edge,
                    means[..., 2:] * tick_s / size,
                    size.log(),
                    (doubt / size**2).log() / 8,
                    state.ages_s[..., None],
                    state.features,
                    state.memories,
                ],
                -1,
            )
        )
        unit = size / tick_s
        given, push = own[..., :4].clamp(-_LARGEST_PULL, _LARGEST_PULL).chunk(2, -1)
        pull = pull + given * (_SMALL * unit * share)
        push = push * (_SMALL * size * share)
        wander = _deviation(own[..., 4:]) * torch.cat([size, unit], -1)
        diagonal = (wander**2 * share).repeat_interleave(2, -1)
        transition = self._identity + self._flight * dt[..., None]
        covariances = transition @ state.covariances @ transition.mT + noise
        positions = means[..., :2] + means[..., 2:] * dt + late + pull * (dt / 2) + push
        # Nothing crosses the view within a tick. Where a scene is unlike all that was learned,
        # errors could otherwise feed each other without end.
        velocities = (means[..., 2:] + jump + pull).clamp(-1 / tick_s, 1 / tick_s)
        state = replace(
            state,
            means=torch.cat([positions, velocities], -1),
            covariances=covariances + self._identity * diagonal[..., None],
            ages_s=state.ages_s + dt[..., 0],
        )
        attention = gate[..., 4:] if gate.shape[2] > 4 else gate.new_zeros(*gate.shape[:2], 1)
        return state, attention

    def update(
        self, state: MotionState, detections: Tensor, noises: Tensor, seen: Tensor
    ) -> MotionState:
        """See MotionFilter."""
        mask = seen[..., None]
        state, innovation, expected = corrected(state, detections, noises, seen)
        doubt = expected.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) + _TINY**2
        surprise = (innovation / doubt.sqrt()).clamp(-5, 5)
        others = torch.zeros_like(surprise)
        if self.pairs is not None:
            count = (mask.sum(1, keepdim=True) - 1).clamp(min=1)
            others = (surprise.sum(1, keepdim=True) - surprise) / count
        scale = state.sizes.mean(-1, keepdim=True) ** 2
        heard = torch.cat([surprise, others, (doubt / scale).log() / 8], -1)
        memories = self.remember(heard.flatten(0, 1), state.memories.flatten(0, 1))
        memories = torch.where(mask, memories.view_as(state.memories), state.memories)
        return replace(state, memories=memories)

    # ---- encounters

    def _meet_others(
        self, state: MotionState, dt: Tensor, size: Tensor, doubt: Tensor
    ) -> tuple[Encounter, Tensor, Tensor, Tensor, Tensor]:
        """The encounters of each object with all, `(B, N, N)`, what the network answers, contact
        distances, doubt relative to them, and which encounters count.
        """
        positions, velocities = state.means.split(2, -1)
        reach = (size[:, :, None] + size[:, None]) / 2
        offset = (positions[:, None] - positions[:, :, None]) / reach[..., None]
        slip = (velocities[:, None] - velocities[:, :, None]) * (dt / reach)[..., None]
        relative = (doubt[:, :, None] + doubt[:, None]) / reach[..., None] ** 2
        met = meeting(offset, slip)
        look = state.features
        geometry = met.described(relative, size[:, :, None] / reach)
        geometry = torch.cat([geometry, look[:, :, None] * look[:, None]], -1)
        alone = torch.eye(size.shape[1], dtype=torch.bool, device=size.device)
        counts = state.active[:, :, None] & state.active[:, None] & ~alone
        return met, self.pairs(geometry, _character(state)), reach, relative, counts

    def _meet_borders(
        self, state: MotionState, dt: Tensor, size: Tensor, doubt: Tensor
    ) -> tuple[Encounter, Tensor, Tensor, Tensor, Tensor]:
        """The same for the left, right, upper and lower border of the view, `(B, N, 4)`."""
        positions, velocities = state.means.split(2, -1)
        limit = positions.new_tensor([0.0, 1.0, 0.0, state.aspect]) - self.border_insets
        half = state.sizes @ self._normals.abs().T / 2
        reach = size[..., None].expand(-1, -1, 4)
        distance = (limit - positions @ self._normals.T - half) / reach + 1  # touches at 1
        met = meeting_with_border(distance, -velocities * (dt / size[..., None]), self._normals)
        relative = (doubt / size[..., None] ** 2)[:, :, None].expand(-1, -1, 4, -1)
        geometry = met.described(relative, torch.ones_like(reach))
        answer = self.borders(geometry, _character(state))
        return met, answer, reach, relative, state.active[..., None].expand(-1, -1, 4)

    def _effect(
        self,
        met: Encounter,
        answer: Tensor,
        gate: Tensor,
        reach: Tensor,
        doubt: Tensor,
        dt: Tensor,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Summed over partners: jump of velocity, way that it makes in the rest of the tick, gain
        of velocity by acceleration, each `(B, N, 2)`; and added covariance `(B, N, 4, 4)`.
        """
        tick_s = self.config.tick_s
        # A contact changes velocities only where there may be one, given the doubt.
        clearance = (met.gaps[..., 1] - 1) / (doubt.sum(-1).sqrt() + 0.01)
        touch = gate * torch.where(met.hit, 1.0, torch.sigmoid(-2 * clearance))
        rest = ((1 - met.when) * dt)[..., None]
        jump = (
            answer[..., 1:3].clamp(-_LARGEST_JUMP, _LARGEST_JUMP)
            * met.speeds
            * (touch * reach / dt)[..., None]
        )
        pull = (
            answer[..., 3:5].clamp(-_LARGEST_PULL, _LARGEST_PULL)
            * (gate * reach * (_SMALL / tick_s**2) * dt)[..., None]
        )
        total = (met.axes @ torch.stack([jump, jump * rest, pull], -1)).sum(2)
        deviation = _deviation(answer[..., 5:7]) * (touch * reach / tick_s)[..., None]
        kick = met.axes * deviation[..., None, :]
        kick = torch.cat([kick * rest[..., None], kick], -2).transpose(2, 3).flatten(3)
        return total.unbind(-1), kick @ kick.mT * (dt / tick_s)[..., None]

    # ---- learning

    def loss(
        self, motion: Motion, generator: torch.Generator, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Negative log-likelihood of true positions under the predictions of a tracker that goes
        blind, in nats per object and frame, lengths in box widths; and how far single ticks from
        noisy true states miss the next true state.
        """
        config = self.config
        stride = _draw_integer(1, config.strides, generator)
        motion = replace(motion[:, ::stride][:, : config.num_frames], dt_s=motion.dt_s * stride)
        if config.dynamics_weight and progress < config.dynamics_share:
            dynamics = dynamics_error(self, motion, config.tick_s, generator)
            return {"loss": dynamics, "dynamics": dynamics}
        first = _draw_integer(*config.visible_frames, generator)
        length = _draw_integer(1, config.num_frames - first, generator)
        blind = range(first, first + length)
        nll = [
            predicted.negative_log_likelihood(motion.positions[:, frame])[mask]
            for frame, predicted, mask in follow(
                self, motion, blind, generator, config.noise, config.miss
            )
            if frame > 1
        ]
        nll = torch.cat(nll).mean()
        if not config.dynamics_weight:
            return {"loss": nll, "nll": nll}
        start = _draw_integer(0, max(0, config.num_frames - config.dynamics_frames), generator)
        part = motion[:, start : start + config.dynamics_frames]
        dynamics = dynamics_error(self, part, config.tick_s, generator)
        loss = nll + config.dynamics_weight * dynamics
        return {"loss": loss, "nll": nll, "dynamics": dynamics}

    def score(self, motion: Motion, generator: torch.Generator) -> dict[str, float]:
        """See `motion_training.score`."""
        return score(self, motion, generator)


def answering_network(inputs: int, hidden: int, outputs: int, layers: int = 2) -> nn.Sequential:
    """Hidden layers and a last one; answers are small at first."""
    sizes = [inputs] + layers * [hidden]
    hidden_layers = [
        module
        for size, following in itertools.pairwise(sizes)
        for module in (nn.Linear(size, following), nn.ReLU())
    ]
    last = nn.Linear(hidden, outputs)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*hidden_layers, last)


def _deviation(answer: Tensor) -> Tensor:
    """Standard deviation in sizes per tick: small at first, never above 1. The factor lets
    learning reach other orders of magnitude soon.
    """
    return (4 * answer - 6).clamp(max=0).exp()


def _character(state: MotionState) -> Tensor:
    """`(B, N, F + D)`: look and memory."""
    return torch.cat([state.features, state.memories], -1)


def _draw_integer(low: int, high: int, generator: torch.Generator) -> int:
    """From `low` to `high`, both included."""
    device = generator.device
    return int(torch.randint(low, high + 1, (), generator=generator, device=device))


@register_model
def relational(**config: object) -> Relational:
    """With attention between objects."""
    return Relational(from_mapping(RelationalConfig, config))
