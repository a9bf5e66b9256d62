# SPDX-License-Identifier: Apache-2.0
"""SQAIR: objects of a video that are discovered once and then carried on (Kosiorek et al. 2018,
*Sequential Attend, Infer, Repeat: Generative Modelling of Moving Objects*).

In each frame, the objects of the last one are propagated: each goes on, changed, or disappears;
then what is new is discovered as AIR does (`air.py`). A prior that remembers each object's past
tells how it should go on; where no frame is seen, it is all there is. Places are relative: to
the last one, and it is told how that has changed, without which it learns no velocity.

Inference looks for each object where it is expected (a proposal), and only what it sees there
enters the relations: a recurrent network over the objects of a frame, so that none is explained
twice. The object is then placed, seen again, remembered (a recurrent network over time), and
described. Importance weights of K particles are products over time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from oc_perception.configuration import from_mapping
from oc_perception.models.air import (
    AirConfig,
    Discovery,
    one_loss,
    random_limits,
    score_losses,
)
from oc_perception.models.objects import (
    Found,
    Noise,
    Picture,
    Terms,
    VideoOutput,
    bounds,
    draw,
    draw_noise,
    draw_presence,
    follow,
    log_normal,
    numbered,
    perceptron,
)
from oc_perception.models.registry import register_model
from oc_perception.models.windows import boxes_of
from oc_perception.objectives.wake_sleep import wake_wake

_GOES_ON, _EXPECTED_TO_GO_ON = 5.0, 10.0  # logits of the presence of an object that was there
_MIN_STD = 0.01
_MAX_GATE = 0.9999
_PROPOSAL_STEP = 0.1


@dataclass(frozen=True)
class SqairConfig(AirConfig):
    """Training begins with `first_frames` frames: with one or two, every frame is discovered anew,
    which is not unlearned. From the share `curriculum` of training on there are more and more,
    up to `num_frames`.
    """

    first_frames: int = 3
    curriculum: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.first_frames <= self.num_frames:
            raise ValueError("first_frames must be at least 1 and at most num_frames")
        if not 0 <= self.curriculum <= 1:
            raise ValueError("curriculum must be between 0 and 1")
        if self.objective not in ("vimco", "vimco_released", "wake_wake"):
            raise ValueError("objective must be vimco, vimco_released or wake_wake in SQAIR")


class SqairState(NamedTuple):
    """Objects `(B, K, N, ...)` of the last frame, zeros in empty slots; `temporal` what inference
    remembers of each, `prior` what the prior does; `moved`, how `where` changed; `log_weights`
    `(B, K)` normalised; `is_first` whether there was no frame yet.
    """

    what: Tensor
    where: Tensor
    presence: Tensor
    ids: Tensor
    temporal: Tensor
    prior: Tensor
    moved: Tensor
    next_id: Tensor
    log_weights: Tensor
    is_first: bool


class Expected(NamedTuple):
    """What the prior expects of objects `(R, N, ...)`."""

    what: Tensor
    what_std: Tensor
    where: Tensor
    where_std: Tensor
    presence: Tensor


class Sqair(nn.Module):
    """Discovers, propagates and forgets; particles may be resampled in between."""

    task: ClassVar[str] = "video"

    def __init__(self, config: SqairConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size, self.num_frames = config.frame_size, config.num_frames
        self.num_slots = config.num_slots
        hidden, what = config.hidden_size, config.what_size
        self.picture = Picture(
            config.frame_size,
            config.glimpse_size,
            hidden,
            what,
            config.sigma,
            config.convolutional,
        )
        self.discovery = Discovery(config, context_size=hidden, prior_context_size=hidden)
        self.propagation = Propagation(config)
        self.prior = PropagationPrior(config)
        self.summary = perceptron(what + 4, hidden, hidden)  # of each object, for discovery
        self.prior_summary = perceptron(what + 4, hidden, hidden)  # the same for its prior

    def initial_state(self, batch_size: int, particles: int = 1) -> SqairState:
        """Before the first frame: nobody is there."""
        shape = (batch_size, particles, self.num_slots)
        empty = self.propagation.first.new_zeros(*shape)
        ids = torch.zeros_like(empty, dtype=torch.long)
        return SqairState(
            empty[..., None].expand(*shape, self.config.what_size),
            empty[..., None].expand(*shape, 4),
            ids.bool(),
            ids,
            self.propagation.first.expand(*shape, -1),
            self.prior.first.expand(*shape, -1),
            empty[..., None].expand(*shape, 4),
            ids[..., 0] + 1,
            empty[..., 0] - math.log(particles),
            True,
        )

    def step(
        self,
        state: SqairState,
        frame: Tensor | None,
        generator: torch.Generator | None = None,
    ) -> tuple[SqairState, VideoOutput]:
        """What becomes of the objects in `frame` `(B, 3, H, W)`, or without one, where the prior
        carries them on and nothing is discovered.

        Without `generator` the most probable is taken instead of a sample.
        """
        noise = self._noise(state.next_id.numel(), generator)
        if frame is None:
            return self._blind(state, noise)
        images = frame.amax(1)
        state, output, _, _ = self._see(state, images, self.picture.encode(images), noise)
        return state, output

    def _noise(self, rows: int, generator: torch.Generator | None) -> Noise:
        """For a frame: first of objects that are propagated, then of new ones."""
        return draw_noise(rows, 2 * self.num_slots, self.config.what_size, generator)

    def resample(
        self, state: SqairState, generator: torch.Generator, threshold: float = 0.5
    ) -> SqairState:
        """Systematic resampling where the effective number of particles is below this share:
        those of little weight give way to copies of the others.
        """
        weights = state.log_weights.exp()
        batch, particles = weights.shape
        poor = 1 / weights.square().sum(1) < threshold * particles
        offset = torch.rand(batch, 1, generator=generator, device=weights.device)
        points = (torch.arange(particles, device=weights.device) + offset) / particles
        chosen = torch.searchsorted(weights.cumsum(1), points).clamp(max=particles - 1)
        same = torch.arange(particles, device=weights.device).expand(batch, -1)
        chosen = torch.where(poor[:, None], chosen, same)
        row = torch.arange(batch, device=weights.device)[:, None]
        kept = (x[row, chosen] for x in state[:-2])
        flat = weights.new_full(weights.shape, -math.log(particles))
        log_weights = torch.where(poor[:, None], flat, state.log_weights)
        return SqairState(*kept, log_weights, state.is_first)

    def follow(
        self, images: Tensor, particles: int = 1, generator: torch.Generator | None = None
    ) -> VideoOutput:
        """Outputs `(B, T, ...)` of all frames of `images` `(B, T, 3, H, W)`."""
        return follow(self, images, particles, generator)

    def bound(
        self, images: Tensor, generator: torch.Generator, particles: int
    ) -> dict[str, Tensor]:
        """`log_evidence`, `elbo`, `kl` and `log_likelihood` `(B,)` in nats per sequence `(B, T, 3,
        H, W)`.
        """
        rows = len(images) * particles
        noise = [self._noise(rows, generator) for _ in range(images.shape[1])]
        _, terms, log_likelihood = self._run(images, particles, noise)
        return bounds(log_likelihood.view(-1, particles), terms)

    def loss(
        self, clip: object, generator: torch.Generator, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """The objective over the first frames of `clip`, in nats per frame; `count` objects per
        frame, `rediscovered` in later frames.
        """
        config = self.config
        longer = (progress - config.curriculum) / (1 - config.curriculum or 1)
        more = math.ceil(max(0.0, longer) * (config.num_frames - config.first_frames))
        images = clip.images[:, : config.first_frames + more]
        count, frames = config.particles, images.shape[1]
        limits = random_limits(config, len(images), progress, generator)
        pathwise = config.objective != "wake_wake"
        noise = [self._noise(len(images) * count, generator) for _ in range(frames)]
        output, terms, log_likelihood = self._run(images, count, noise, pathwise, limits)
        grouped = [x.view(-1, 1, count) for x in (log_likelihood + terms.log_p, terms.log_q)]
        if config.objective == "wake_wake":
            both = wake_wake(*grouped)
        else:
            both = score_losses(config.objective, *grouped, terms.log_q_presence)
        parts = bounds(log_likelihood.view(-1, count), terms)
        return {
            "loss": one_loss(both) / frames,
            **{name: value.detach().mean() / frames for name, value in parts.items()},
            "count": output.presence.float().sum(-1).mean(),
            "rediscovered": output.discovered[:, 1:].float().sum(-1).mean(),
        }

    def _run(
        self,
        images: Tensor,
        particles: int,
        noise: Sequence[Noise],
        pathwise: bool = True,
        limits: Tensor | None = None,
    ) -> tuple[VideoOutput, Terms, Tensor]:
        """Outputs `(B, T, ...)`, densities and log-likelihood `(R,)` of sequences with at most
        `limits` `(B,)` objects at a time, drawn with the `noise` of T frames.
        """
        bright = images.amax(2)
        codes = self.picture.encode(bright.flatten(0, 1)).unflatten(0, bright.shape[:2])
        state, outputs = self.initial_state(len(images), particles), []
        total, log_likelihood = None, 0.0
        for frame, code, drawn in zip(bright.unbind(1), codes.unbind(1), noise, strict=True):
            state, output, terms, likelihood = self._see(
                state, frame, code, drawn, pathwise, limits
            )
            outputs.append(output)
            total = terms if total is None else total + terms
            log_likelihood = log_likelihood + likelihood
        stacked = (torch.stack(parts, 1) for parts in zip(*outputs, strict=True))
        return VideoOutput(*stacked), total, log_likelihood

    def _see(
        self,
        state: SqairState,
        images: Tensor,
        code: Tensor,
        noise: Noise,
        pathwise: bool = True,
        limits: Tensor | None = None,
    ) -> tuple[SqairState, VideoOutput, Terms, Tensor]:
        """One frame: propagate, discover, and pack what is there into the first slots."""
        (batch, particles), slots = state.next_id.shape, self.num_slots
        shape = (batch, particles, slots)
        code = code.repeat_interleave(particles, 0)
        before = Found(*(x.flatten(0, 1) for x in state[:3]), state.presence.flatten(0, 1))
        temporal, memory = state.temporal.flatten(0, 1), state.prior.flatten(0, 1)
        moved = state.moved.flatten(0, 1)
        if state.is_first:
            kept, terms = before._replace(probability=before.what[..., 0]), None
        else:
            kept, temporal, log_q, log_q_presence = self.propagation(
                self.picture, self.discovery, images, before, moved, temporal, noise, pathwise
            )
            log_p = self.prior.log_density(kept, before, moved, memory)
            terms = Terms(log_p, log_q + log_q_presence, log_q_presence)
        known = kept.presence.sum(1)
        if limits is None:
            limits = known.new_full((batch,), slots)
        capacity = (limits.repeat_interleave(particles) - known).clamp(min=0)
        latents = torch.cat([kept.what, kept.where], 2)
        context, prior_context = (
            torch.where(kept.presence[..., None], summary(latents), 0).sum(1)
            for summary in (self.summary, self.prior_summary)
        )
        new, new_terms = self.discovery(
            self.picture, images, code, context, prior_context, capacity, slots,
            None if state.is_first else known, noise.of(slice(slots, None)), pathwise,
            drawn=self.picture.draw(kept) if self.config.seek else None,
        )  # fmt: skip
        terms = new_terms if terms is None else terms + new_terms

        ids = torch.where(kept.presence.view(shape), state.ids, 0)
        new_ids, next_id = numbered(new.presence.view(shape), state.next_id)
        all_ids = torch.cat([ids, new_ids], 2).flatten(0, 1)
        fresh = torch.cat([torch.zeros_like(kept.presence), new.presence], 1)
        presence = torch.cat([kept.presence, new.presence], 1)
        order = presence.byte().argsort(dim=1, descending=True, stable=True)[:, :slots]

        there = presence.gather(1, order)

        def packed(old: Tensor, newer: Tensor, empty: Tensor | float = 0.0) -> Tensor:
            both = torch.cat([old, newer], 1)
            both = both.gather(1, order[..., None].expand(-1, -1, both.shape[-1]))
            # What empty slots hold must not drift away, unseen, until it overflows.
            return torch.where(there[..., None], both, empty)

        found = Found(
            packed(kept.what, new.what),
            packed(kept.where, new.where),
            there,
            torch.cat([kept.probability, new.probability], 1).gather(1, order),
        )
        first, first_memory = self.propagation.first, self.prior.first
        temporal = packed(temporal, first.expand_as(temporal), first)
        memory = packed(memory, first_memory.expand_as(memory), first_memory)
        moved = packed(kept.where - before.where, torch.zeros_like(new.where))
        remembered = self.prior.remember(found, moved, memory)
        remembered = torch.where(there[..., None], remembered, first_memory)
        log_likelihood = self.picture.log_likelihood(images, found)
        increment = (log_likelihood + terms.log_p - terms.log_q).view(batch, particles).detach()
        following = SqairState(
            *(x.unflatten(0, shape[:2]) for x in found[:3]),
            all_ids.gather(1, order).view(shape),
            temporal.unflatten(0, shape[:2]),
            remembered.unflatten(0, shape[:2]),
            moved.unflatten(0, shape[:2]),
            next_id,
            (state.log_weights + increment).log_softmax(1),
            False,
        )
        output = self._output(following, found.probability, fresh.gather(1, order), increment)
        return following, output, terms, log_likelihood

    def _blind(self, state: SqairState, noise: Noise) -> tuple[SqairState, VideoOutput]:
        shape = state.presence.shape
        before = Found(*(x.flatten(0, 1) for x in state[:3]), state.presence.flatten(0, 1))
        memory, moved = state.prior.flatten(0, 1), state.moved.flatten(0, 1)
        expected = self.prior(before, moved, memory)
        noise = noise.of(slice(self.num_slots))
        presence, _ = draw_presence(expected.presence, before.presence, noise.presence)
        there = presence[..., None]
        where = draw(expected.where, expected.where_std, noise.where)
        found = Found(
            torch.where(there, draw(expected.what, expected.what_std, noise.what), 0),
            torch.where(there, where, 0),
            presence,
            torch.where(before.presence, expected.presence.sigmoid(), 0),
        )
        moved = torch.where(there, where - before.where, 0)
        memory = torch.where(there, self.prior.remember(found, moved, memory), self.prior.first)
        following = state._replace(
            what=found.what.view_as(state.what),
            where=found.where.view_as(state.where),
            presence=presence.view(shape),
            ids=torch.where(presence.view(shape), state.ids, 0),
            prior=memory.view_as(state.prior),
            moved=moved.view_as(state.moved),
        )
        nothing = torch.zeros_like(presence)
        increment = torch.zeros_like(state.log_weights)
        return following, self._output(following, found.probability, nothing, increment)

    def _output(
        self, state: SqairState, probability: Tensor, fresh: Tensor, increment: Tensor
    ) -> VideoOutput:
        shape = state.presence.shape
        return VideoOutput(
            boxes_of(state.where, self.frame_size),
            state.presence,
            probability.view(shape),
            state.ids,
            fresh.view(shape),
            state.log_weights,
            increment,
        )


class Propagation(nn.Module):
    """How inference carries objects on, one after the other (algorithm 2 of the paper)."""

    def __init__(self, config: SqairConfig) -> None:
        super().__init__()
        hidden, what = config.hidden_size, config.what_size
        self.first = nn.Parameter(torch.zeros(hidden))
        self.proposal = perceptron(hidden + 8, hidden, 4)
        self.mask = perceptron(hidden, hidden, config.glimpse_size**2, gain=0.1)
        self.known = nn.Linear(2 * hidden + what + 4, hidden)
        self.others = nn.Linear(hidden + what + 4, hidden)
        self.where_head = perceptron(hidden + 8, hidden, 8, gain=0.1)
        self.memory = nn.GRUCell(2 * hidden + 4, hidden)
        self.what_head = perceptron(hidden, hidden, 2 * what)
        self.gates = nn.Linear(hidden, 3 * what)
        self.presence_head = perceptron(2 * hidden + what + 4, hidden // 2, 1, gain=0.1)
        nn.init.ones_(self.gates.bias)

    def forward(
        self,
        picture: Picture,
        discovery: Discovery,
        images: Tensor,
        before: Found,
        moved: Tensor,
        temporal: Tensor,
        noise: Noise,
        pathwise: bool,
    ) -> tuple[Found, Tensor, Tensor, Tensor]:
        """Objects `(R, N, ...)` in images `(B, H, W)`, which `moved` `(R, N, 4)` the frame before;
        what is remembered of them `(R, N, D)`, log-density of what and where and log-probability
        of presences `(R,)`.
        """
        rows, slots = before.presence.shape
        step = _PROPOSAL_STEP * self.proposal(torch.cat([temporal, before.where, moved], 2))
        mask = (self.mask(temporal) + 1).sigmoid().flatten(0, 1)
        # Objects of an image follow one another in rows, as windows must.
        code = picture.look(images, (before.where + step).flatten(0, 1), mask)
        known = torch.cat([code.view(rows, slots, -1), before.what, before.where, temporal], 2)
        known = self.known(known).unbind(1)
        mask = mask.view(rows, slots, -1).unbind(1)
        parts = zip(*(x.unbind(1) for x in (*before[:3], moved, temporal)), strict=True)
        relation = temporal.new_zeros(rows, self.others.in_features)
        objects, memories, log_q, log_q_presence = [], [], 0.0, 0.0
        for index, (what, where, presence, motion, memory) in enumerate(parts):
            one = noise.of(index)
            hidden = (known[index] + self.others(relation)).tanh()
            mean, raw = self.where_head(torch.cat([hidden, where, motion], 1)).chunk(2, 1)
            mean, std = where + mean, functional.softplus(raw - 4) + _MIN_STD
            new_where = draw(mean, std, one.where, pathwise)
            density = log_normal(new_where, mean, std)
            code = picture.look(images, new_where, mask[index])
            new_memory = self.memory(torch.cat([code, new_where, hidden], 1), memory)
            mean, std = self._describe(what, discovery.describe(code), new_memory)
            new_what = draw(mean, std, one.what, pathwise)
            density = density + log_normal(new_what, mean, std)
            inputs = torch.cat([new_what, new_where, hidden, new_memory], 1)
            logit = self.presence_head(inputs)[:, 0] + _GOES_ON
            there, log_probability = draw_presence(logit, presence, one.presence)
            log_q = log_q + torch.where(there, density, 0)
            log_q_presence = log_q_presence + log_probability
            objects.append(
                Found(new_what, new_where, there, torch.where(presence, logit.sigmoid(), 0))
            )
            memories.append(new_memory)
            told = torch.cat([hidden, new_what, new_where], 1)
            relation = torch.where(there[:, None], told, relation)
        found = Found(*(torch.stack(x, 1) for x in zip(*objects, strict=True)))
        return found, torch.stack(memories, 1), log_q, log_q_presence

    def _describe(
        self, before: Tensor, seen: tuple[Tensor, Tensor], memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of `what`: gates mix what it was, what is `seen`, and what
        is remembered.
        """
        keep, ignore, forget = (_MAX_GATE * self.gates(memory).sigmoid()).chunk(3, 1)
        mean, raw = self.what_head(memory).chunk(2, 1)
        mean = keep * before + (1 - ignore) * seen[0] + (1 - forget) * mean
        std = (1 - ignore) * seen[1] + (1 - forget) * functional.softplus(raw)
        return mean, std + _MIN_STD


class PropagationPrior(nn.Module):
    """How objects are expected to go on, each by itself."""

    def __init__(self, config: SqairConfig) -> None:
        super().__init__()
        hidden, what = config.hidden_size, config.what_size
        self.what_size = what
        self.first = nn.Parameter(torch.zeros(hidden))
        self.memory = nn.GRUCell(what + 8, hidden)
        self.head = perceptron(hidden + what + 8, hidden, 2 * (what + 4) + 1, gain=0.1)

    def remember(self, found: Found, moved: Tensor, memory: Tensor) -> Tensor:
        """Memory `(R, N, D)` once objects are known to be as `found`, and to have `moved`."""
        inputs = torch.cat([found.what, found.where, moved], 2).flatten(0, 1)
        return self.memory(inputs, memory.flatten(0, 1)).view_as(memory)

    def forward(self, before: Found, moved: Tensor, memory: Tensor) -> Expected:
        """What follows on objects `(R, N, ...)` that `moved` `(R, N, 4)`."""
        sizes = (self.what_size, self.what_size, 4, 4, 1)
        inputs = torch.cat([memory, before.what, before.where, moved], 2)
        what, what_raw, where, where_raw, logit = self.head(inputs).split(sizes, 2)
        return Expected(
            before.what + what,
            functional.softplus(what_raw - 1) + _MIN_STD,
            before.where + where,
            functional.softplus(where_raw - 1) + _MIN_STD,
            logit[..., 0] + _EXPECTED_TO_GO_ON,
        )

    def log_density(self, found: Found, before: Found, moved: Tensor, memory: Tensor) -> Tensor:
        """`(R,)` of what became of objects `before`."""
        expected = self(before, moved, memory)
        density = log_normal(found.what, expected.what, expected.what_std)
        density = density + log_normal(found.where, expected.where, expected.where_std)
        signs = torch.where(found.presence, expected.presence, -expected.presence)
        going = torch.where(before.presence, functional.logsigmoid(signs), 0)
        return (going + torch.where(found.presence, density, 0)).sum(1)


@register_model
def sqair(**config: object) -> Sqair:
    """SQAIR with the sizes of its paper unless told otherwise."""
    return Sqair(from_mapping(SqairConfig, config))
