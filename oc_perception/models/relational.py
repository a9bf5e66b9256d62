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
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from oc_perception.configuration import from_mapping
from oc_perception.models.encounters import (
    GEOMETRY,
    Encounter,
    meeting,
    meeting_with_border,
)
from oc_perception.models.registry import register_model
from oc_perception.worlds.motion import Motion

_TINY = 1e-6
_ANSWERS = 7  # gate, two jumps, two accelerations, two log standard deviations
_SMALL = 0.1  # a common acceleration, in sizes per tick


@dataclass(frozen=True)
class RelationalConfig:
    """`num_features` numbers of an object's look that motion may depend on. Motion is integrated
    in ticks of at most `tick_s`. An object starts at rest, give or take `initial_speed` image
    widths per second.

    Training: `num_frames` frames, the first of them before a blackout of random length, and every
    first to `strides`-th frame of a world, for variable time steps; noise of
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


@dataclass(frozen=True)
class MotionState:
    """Belief about N objects in B scenes, lengths in image widths.

    `means` `(B, N, 4)` position and velocity (1/s); `covariances` `(B, N, 4, 4)`; `memories` `(B,
    N, D)`; `ages_s` `(B, N)` since the last observation; `sizes` `(B, N, 2)`; `features` `(B, N,
    F)`; `active` `(B, N)` bool; `aspect` height of the view over its width.
    """

    means: Tensor
    covariances: Tensor
    memories: Tensor
    ages_s: Tensor
    sizes: Tensor
    features: Tensor
    active: Tensor
    aspect: float = 1.0


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
        self.rest = nn.Sequential(nn.ReLU(), *_network(hidden, hidden, _ANSWERS, layers=1))

    def forward(self, geometry: Tensor, character: Tensor) -> Tensor:
        first = self.geometry(geometry) + self.own(character)[:, :, None]
        if self.partner is not None:
            first = first + self.partner(character)[:, None]
        return self.rest(first)


class Relational(nn.Module):
    """Predicts, and corrects by detections; see the module."""

    task: ClassVar[str] = "motion"

    def __init__(self, config: RelationalConfig) -> None:
        super().__init__()
        self.config = config
        hidden, memory, look = config.hidden, config.memory, config.num_features
        self.pairs = None
        if config.relations:
            self.pairs = _EdgeNetwork(GEOMETRY + look, look + memory, hidden)
        self.borders = _EdgeNetwork(GEOMETRY, look + memory, hidden, with_partner=False)
        self.border_insets = nn.Parameter(torch.zeros(4))
        self.alone = _network(8 + look + memory, hidden, 6)
        self.remember = nn.GRUCell(5, memory)
        normals = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
        self.register_buffer("_normals", normals, persistent=False)
        self.register_buffer("_identity", torch.eye(4), persistent=False)
        flight = torch.diag(torch.ones(2), 2)  # position gains velocity
        self.register_buffer("_flight", flight, persistent=False)

    @property
    def num_frames(self) -> int:
        """Frames that a training sequence is cut from."""
        return self.config.num_frames * self.config.strides

    # ---- time

    def initial_state(
        self,
        positions: Tensor,
        sizes: Tensor,
        features: Tensor,
        active: Tensor,
        variance: Tensor,
        aspect: float = 1.0,
    ) -> MotionState:
        """Objects first seen at `positions` `(B, N, 2)`, measured with `variance` `(B, N)`."""
        speed = torch.full_like(variance, self.config.initial_speed**2)
        return MotionState(
            means=torch.cat([positions, torch.zeros_like(positions)], -1),
            covariances=torch.diag_embed(torch.stack([variance, variance, speed, speed], -1)),
            memories=positions.new_zeros(*variance.shape, self.config.memory),
            ages_s=torch.zeros_like(variance),
            sizes=sizes,
            features=features,
            active=active,
            aspect=aspect,
        )

    def step(
        self,
        state: MotionState,
        detections: Tensor | None,
        dt_s: float,
        noises: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> tuple[MotionState, MotionState]:
        """The state after `dt_s`, and the prediction before `detections` `(B, N, 2)` of covariance
        `noises` `(B, N, 2, 2)` corrected it; None: blind. `seen` `(B, N)`: which were detected.
        """
        predicted = self.predict(state, dt_s)
        if detections is None:
            return predicted, predicted
        seen = state.active if seen is None else seen & state.active
        return self.update(predicted, detections, noises, seen), predicted

    def predict(self, state: MotionState, dt_s: float) -> MotionState:
        """The belief after `dt_s`, in equal ticks."""
        ticks = max(1, math.ceil(dt_s / self.config.tick_s - 1e-6))
        for _ in range(ticks):
            state, _ = self.tick(state, dt_s / ticks)
        return state

    def tick(self, state: MotionState, dt_s: float | Tensor) -> tuple[MotionState, Tensor]:
        """One tick of `dt_s` (a number, or `(B,)`), and the attention `(B, N, N)` that objects
        (second axis) pay to others (third).
        """
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
        pull = pull + own[..., :2] * (_SMALL * unit * share)
        push = own[..., 2:4] * (_SMALL * size * share)
        wander = _deviation(own[..., 4:]) * torch.cat([size, unit], -1)
        diagonal = (wander**2 * share).repeat_interleave(2, -1)
        transition = self._identity + self._flight * dt[..., None]
        covariances = transition @ state.covariances @ transition.mT + noise
        positions = means[..., :2] + means[..., 2:] * dt + late + pull * (dt / 2) + push
        state = replace(
            state,
            means=torch.cat([positions, means[..., 2:] + jump + pull], -1),
            covariances=covariances + self._identity * diagonal[..., None],
            ages_s=state.ages_s + dt[..., 0],
        )
        attention = gate[..., 4:] if gate.shape[2] > 4 else gate.new_zeros(*gate.shape[:2], 1)
        return state, attention

    def update(
        self, state: MotionState, detections: Tensor, noises: Tensor, seen: Tensor
    ) -> MotionState:
        """Condition on `detections` `(B, N, 2)` of covariance `noises` `(B, N, 2, 2)` where `seen`
        `(B, N)`.
        """
        means, covariances, mask = state.means, state.covariances, seen[..., None]
        innovation = torch.where(mask, detections - means[..., :2], 0.0)
        expected = covariances[..., :2, :2] + noises
        gain = torch.where(mask[..., None], covariances[..., :2] @ _inverse(expected), 0.0)
        keep = self._identity - functional.pad(gain, (0, 2))
        joseph = keep @ covariances @ keep.mT + gain @ noises @ gain.mT

        doubt = expected.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) + _TINY**2
        surprise = (innovation / doubt.sqrt()).clamp(-5, 5)
        others = torch.zeros_like(surprise)
        if self.pairs is not None:
            count = (mask.sum(1, keepdim=True) - 1).clamp(min=1)
            others = (surprise.sum(1, keepdim=True) - surprise) / count
        scale = state.sizes.mean(-1, keepdim=True) ** 2
        heard = torch.cat([surprise, others, (doubt / scale).log() / 8], -1)
        memories = self.remember(heard.flatten(0, 1), state.memories.flatten(0, 1))
        return replace(
            state,
            means=means + (gain @ innovation[..., None])[..., 0],
            covariances=(joseph + joseph.mT) / 2,
            memories=torch.where(mask, memories.view_as(state.memories), state.memories),
            ages_s=torch.where(seen, 0.0, state.ages_s),
        )

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
        jump = answer[..., 1:3] * met.speeds * (touch * reach / dt)[..., None]
        pull = answer[..., 3:5] * (gate * reach * (_SMALL / tick_s**2) * dt)[..., None]
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
            dynamics = self._dynamics(motion, generator)
            return {"loss": dynamics, "dynamics": dynamics}
        first = _draw_integer(*config.visible_frames, generator)
        length = _draw_integer(1, config.num_frames - first, generator)
        blind = range(first, first + length)
        nll = [
            _negative_log_likelihood(predicted, motion.positions[:, frame])[mask]
            for frame, predicted, mask in self._follow(motion, blind, generator)
            if frame > 1
        ]
        nll = torch.cat(nll).mean()
        if not config.dynamics_weight:
            return {"loss": nll, "nll": nll}
        start = _draw_integer(0, max(0, config.num_frames - config.dynamics_frames), generator)
        dynamics = self._dynamics(motion[:, start : start + config.dynamics_frames], generator)
        loss = nll + config.dynamics_weight * dynamics
        return {"loss": loss, "nll": nll, "dynamics": dynamics}

    @torch.no_grad()
    def score(self, motion: Motion, generator: torch.Generator) -> dict[str, float]:
        """After 20 visible frames with detection noise of 0.02 box widths: error in box widths
        after 10 and 20 blind frames, coverage of the 90 % ellipse and ANEES over the first 20.
        """
        seen, longest = 20, min(20, motion.positions.shape[1] - 20)
        plain = replace(self.config, noise=(0.02, 0.02), miss=(0.0, 0.0))
        errors, distances = {}, []
        for frame, predicted, mask in self._follow(
            motion, range(seen, seen + longest), generator, plain
        ):
            if frame < seen or frame >= seen + longest:
                continue
            offset = motion.positions[:, frame] - predicted.means[..., :2]
            inverse = _inverse(predicted.covariances[..., :2, :2])
            distance = (offset[..., None, :] @ inverse @ offset[..., None])[..., 0, 0]
            distances.append(distance[mask])
            error = offset.norm(dim=-1) / motion.sizes[:, frame].mean(-1)
            errors[frame - seen + 1] = error[mask].mean().item()
        distances = torch.cat(distances)
        return {
            **{f"fde_{n}": errors[n] for n in (10, 20) if n in errors},
            "coverage_90": (distances <= -2 * math.log(0.1)).float().mean().item(),
            "anees": distances.mean().item() / 2,
        }

    def _follow(
        self,
        motion: Motion,
        blind: range,
        generator: torch.Generator,
        config: RelationalConfig | None = None,
    ) -> Iterator[tuple[int, MotionState, Tensor]]:
        """Frame, prediction before its detections, and whose prediction counts `(B, N)`: of
        objects that have been seen before and are still present.
        """
        config = config or self.config
        batch, frames, _ = motion.present.shape
        device = motion.positions.device

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(batch, 1, generator=generator, device=device)

        deviation = uniform(*config.noise)[..., None] * motion.sizes.mean(-1)  # (B, T, N)
        noise = torch.randn(motion.positions.shape, generator=generator, device=device)
        detections = motion.positions + deviation[..., None] * noise
        draws = torch.rand(motion.visible.shape, generator=generator, device=device)
        seen = motion.visible & (draws >= uniform(*config.miss)[..., None])
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
                state = self.initial_state(*new)
                continue
            is_blind = frame in blind
            known = state.active
            state, predicted = self.step(
                replace(state, active=known & motion.present[:, frame]),
                None if is_blind else detections[:, frame],
                motion.dt_s,
                torch.diag_embed(variance[:, frame, :, None].expand(-1, -1, 2)),
                seen[:, frame],
            )
            yield frame, predicted, known & motion.present[:, frame]
            if not is_blind:
                state = _with_births(state, self.initial_state(*new), known)

    def _dynamics(self, motion: Motion, generator: torch.Generator) -> Tensor:
        """Mean squared error of position and way per tick after one tick, over what must be
        expected of a start that is off by the noise it was given.
        """
        before, after = motion[:, :-1], motion[:, 1:]
        size = before.sizes.mean(-1).flatten(0, 1)
        tick_s = self.config.tick_s

        def noise(low: float, high: float) -> Tensor:
            draw = torch.rand(len(size), 1, generator=generator, device=size.device)
            return 10 ** (low + (high - low) * draw) * size

        deviation = torch.stack([noise(-3, -1), noise(-3.5, -1.5)], -1).repeat_interleave(2, -1)
        draw = torch.randn(deviation.shape, generator=generator, device=size.device)
        to_ways = deviation.new_tensor([1.0, 1.0, tick_s, tick_s])
        truth, target = (
            torch.cat([part.positions, part.velocities], -1).flatten(0, 1)
            for part in (before, after)
        )
        state = replace(
            self.initial_state(
                truth[..., :2],
                before.sizes.flatten(0, 1),
                before.features.flatten(0, 1),
                before.present.flatten(0, 1),
                size,
            ),
            means=truth + draw * deviation / to_ways,
            covariances=torch.diag_embed((deviation / to_ways) ** 2),
        )
        state, _ = self.tick(state, motion.dt_s)
        error = (state.means - target) * to_ways
        floor = (3e-3 * size[..., None]) ** 2
        # a wrong velocity is a wrong position too
        expected = deviation**2 + deviation.roll(2, -1) ** 2 * to_ways.new_tensor([1, 1, 0, 0])
        ratio = (error**2 / (expected + floor)).mean(-1)
        counted = (before.present & after.present).flatten(0, 1)
        return (1 + ratio[counted]).sqrt().mean() - 1


def _network(inputs: int, hidden: int, outputs: int, layers: int = 2) -> nn.Sequential:
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


def _inverse(matrix: Tensor) -> Tensor:
    """Of positive definite `(..., 2, 2)`."""
    a, b, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 1]
    adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-b, a], -1)], -2)
    return adjugate / (a * d - b * b)[..., None, None]


def _negative_log_likelihood(state: MotionState, positions: Tensor) -> Tensor:
    """`(B, N)` of `positions` `(B, N, 2)`, in nats; lengths in box widths."""
    size = state.sizes.mean(-1)
    covariance = state.covariances[..., :2, :2] / size[..., None, None] ** 2
    offset = (positions - state.means[..., :2]) / size[..., None]
    distance = (offset[..., None, :] @ _inverse(covariance) @ offset[..., None])[..., 0, 0]
    a, b, d = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    return 0.5 * (distance + (a * d - b * b).log()) + math.log(2 * math.pi)


def _with_births(state: MotionState, new: MotionState, known: Tensor) -> MotionState:
    """The state, with objects that were not `known` `(B, N)` and are active in `new` begun."""
    born = new.active & ~known

    def chosen(old: Tensor, fresh: Tensor) -> Tensor:
        return torch.where(born.view(*born.shape, *[1] * (old.ndim - 2)), fresh, old)

    return replace(
        state,
        means=chosen(state.means, new.means),
        covariances=chosen(state.covariances, new.covariances),
        memories=chosen(state.memories, new.memories),
        ages_s=chosen(state.ages_s, new.ages_s),
        sizes=new.sizes,
        features=new.features,
        active=known | born,
    )


def _draw_integer(low: int, high: int, generator: torch.Generator) -> int:
    """From `low` to `high`, both included."""
    device = generator.device
    return int(torch.randint(low, high + 1, (), generator=generator, device=device))


@register_model
def relational(**config: object) -> Relational:
    """With attention between objects."""
    return Relational(from_mapping(RelationalConfig, config))
