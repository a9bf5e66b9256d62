# SPDX-License-Identifier: Apache-2.0
"""AIR: an image is a number of objects, found one by one (Eslami et al. 2016, *Attend, Infer,
Repeat*; in the form of Kosiorek et al. 2018, *Sequential Attend, Infer, Repeat*, section 2).

A scene holds n objects, each with an appearance `what` and a place `where`; a decoder draws each
as a glimpse, which is painted into its window; windows add up, and pixels are normal around them
with a deviation of 0.3. A recurrent network infers the objects: it places a window, looks at what
is in it, tells what it is and whether it is there, and stops at the first that is not.

Rows R are B images times K particles. Slots that are absent take part in every computation and
count for nothing, so that shapes never change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from oc_perception.configuration import from_mapping
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
from oc_perception.models.windows import boxes_of, brightest, where_of
from oc_perception.objectives.bounds import Losses
from oc_perception.objectives.score_function import vimco, vimco_released
from oc_perception.objectives.wake_sleep import (
    defensive,
    delta_wake_wake,
    wake_sleep,
    wake_wake,
)

_MIN_STD = 0.01
_LIKELY = 1.0  # logit of the presence of a first object

_COVER = 0.2  # of delta-wake-wake's particles, whose presences are tosses of a coin

OBJECTIVES = ("vimco", "vimco_released", "wake_wake", "delta_wake_wake", "wake_sleep")


@dataclass(frozen=True)
class AirConfig:
    """Sizes of the paper's multi-layer perceptrons (appendix B) unless told otherwise.

    With `convolutional` eyes and painter, 128 is the `hidden_size` of the paper.
    `object_size` is the share of the image's width that objects are expected to take, `particles`
    the number K of importance samples in training, `objective` one of `OBJECTIVES`. In the first
    share `limited` of training, fewer and fewer images are explained with at most a random number
    of objects (nested dropout, Rippel et al. 2014): else every object is drawn by all slots
    together, each a part of its brightness, and no gradient leads out of that.

    `seek` is an addition to the paper, for objects much smaller than the image: windows get a
    gradient only from what they overlap, and would stay where they begin. Each begins where most
    is left of the image once the objects found before it are taken away, and sees only that; no
    gradient passes through what is left.
    """

    frame_size: tuple[int, int] = (50, 50)
    num_frames: int = 10
    num_slots: int = 3
    glimpse_size: int = 20
    hidden_size: int = 256
    what_size: int = 50
    object_size: float = 0.4
    sigma: float = 0.3
    convolutional: bool = False
    particles: int = 5
    objective: str = "vimco"
    limited: float = 0.6
    seek: bool = False

    def __post_init__(self) -> None:
        if min(self.num_slots, self.num_frames, self.glimpse_size, self.what_size) < 1:
            raise ValueError("num_slots, num_frames, glimpse_size and what_size must be positive")
        if self.particles < 2:
            raise ValueError("particles must be at least 2: the objectives compare them")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}")
        if not (0 < self.object_size < 1 and self.sigma > 0):
            raise ValueError("object_size must be between 0 and 1, and sigma above 0")
        if self.convolutional and self.glimpse_size % 4:
            raise ValueError("glimpse_size must be a multiple of 4 if convolutional")
        if not 0 <= self.limited <= 1:
            raise ValueError("limited must be between 0 and 1")


class VideoState(NamedTuple):
    """What AIR knows of earlier frames: none of it but the ids `(B, K)` that come next."""

    next_id: Tensor


class Air(nn.Module):
    """Every frame is a scene of its own."""

    task: ClassVar[str] = "video"

    def __init__(self, config: AirConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size, self.num_frames = config.frame_size, config.num_frames
        self.num_slots = config.num_slots
        self.picture = Picture(
            config.frame_size,
            config.glimpse_size,
            config.hidden_size,
            config.what_size,
            config.sigma,
            config.convolutional,
        )
        self.discovery = Discovery(config, context_size=0)

    def initial_state(self, batch_size: int, particles: int = 1) -> VideoState:
        """Before the first frame."""
        device = self.picture.log_scale.device
        return VideoState(torch.ones(batch_size, particles, dtype=torch.long, device=device))

    def step(
        self, state: VideoState, frame: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[VideoState, VideoOutput]:
        """What `frame` `(B, 3, H, W)` shows; nothing is known without one. Without `generator`
        the most probable is taken instead of a sample.
        """
        batch, particles = state.next_id.shape
        shape = (batch, particles, self.num_slots)
        if frame is None:
            nobody = state.next_id.new_zeros(shape)
            nowhere = self.picture.log_scale.new_zeros(*shape, 4)
            flat = nowhere.new_full(shape[:2], -math.log(particles))
            absent = nobody.bool()
            output = VideoOutput(nowhere, absent, nowhere[..., 0], nobody, absent, flat, flat * 0)
            return state, output
        found, terms, log_likelihood = self._infer(
            frame.amax(1), particles, self._noise(batch * particles, generator)
        )
        increment = (log_likelihood + terms.log_p - terms.log_q).view(shape[:2])
        presence = found.presence.view(shape)
        ids, next_id = numbered(presence, state.next_id)
        output = VideoOutput(
            boxes_of(found.where, self.frame_size).view(*shape, 4),
            presence,
            found.probability.view(shape),
            ids,
            presence,
            increment.log_softmax(1),
            increment,
        )
        return VideoState(next_id), output

    def follow(
        self, images: Tensor, particles: int = 1, generator: torch.Generator | None = None
    ) -> VideoOutput:
        """Outputs `(B, T, ...)` of all frames of `images` `(B, T, 3, H, W)`."""
        return follow(self, images, particles, generator)

    def bound(
        self, images: Tensor, generator: torch.Generator, particles: int
    ) -> dict[str, Tensor]:
        """`log_evidence`, `elbo`, `kl` and `log_likelihood` `(B,)` in nats per sequence `(B, T, 3,
        H, W)`; frames have importance weights of their own.
        """
        batch, frames = images.shape[:2]
        scenes = images.flatten(0, 1).amax(1)
        noise = self._noise(len(scenes) * particles, generator)
        _, terms, log_likelihood = self._infer(scenes, particles, noise)
        parts = bounds(log_likelihood.view(-1, particles), terms)
        return {name: value.view(batch, frames).sum(1) for name, value in parts.items()}

    def loss(
        self, clip: object, generator: torch.Generator, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """The objective over the frames of `clip`, each for itself, in nats per frame."""
        config, count = self.config, self.config.particles
        images = clip.images.flatten(0, 1).amax(1)
        rows = len(images) * count
        limits = random_limits(config, len(images), progress, generator)
        noise = self._noise(rows, generator)
        pathwise = config.objective.startswith("vimco")
        found, terms, log_likelihood = self._infer(images, count, noise, pathwise, limits)
        grouped = [x.view(-1, 1, count) for x in (log_likelihood + terms.log_p, terms.log_q)]
        if config.objective == "wake_sleep":
            dreams, dreamt = self._dream(rows, generator)
            noise = self._noise(rows, generator)
            seen = self._infer(dreams, 1, noise, False, given=dreamt)[1]
            both = wake_sleep(*grouped, seen.log_q)
        elif config.objective == "delta_wake_wake":
            cover = torch.rand(rows, generator=generator, device=images.device) < _COVER
            noise = self._noise(rows, generator)
            others = self._covered(images, noise, limits, cover)
            both = delta_wake_wake(*grouped, *(x.view(-1, 1, count) for x in others))
        elif config.objective == "wake_wake":
            both = wake_wake(*grouped)
        else:
            both = score_losses(config.objective, *grouped, terms.log_q_presence)
        parts = bounds(log_likelihood.view(-1, count), terms)
        means = {name: value.detach().mean() for name, value in parts.items()}
        return {"loss": one_loss(both), **means, "count": found.presence.float().sum(1).mean()}

    def _covered(
        self, images: Tensor, noise: Noise, limits: Tensor, cover: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-densities `(R,)` under model, posterior and proposal of particles drawn from the
        proposal: the posterior, but for presences, in `cover` rows `(R,)` tosses of a coin.
        """
        count = self.config.particles
        found, terms, log_likelihood = self._infer(images, count, noise, False, limits, cover)
        tosses = (1 + found.presence.sum(1)).minimum(limits.repeat_interleave(count))
        proposal = defensive(terms.log_q_presence, -math.log(2) * tosses, _COVER)
        proposal = proposal + terms.log_q - terms.log_q_presence
        return log_likelihood + terms.log_p, terms.log_q, proposal

    def _noise(self, rows: int, generator: torch.Generator | None) -> Noise:
        return draw_noise(rows, self.num_slots, self.config.what_size, generator)

    def _dream(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Found]:
        """Images `(R, H, W)` with the noise of the model, and the objects that it made them of."""
        with torch.no_grad():
            found = self.discovery.dream(rows, self.num_slots, generator)
            images = self.picture.draw(found)
            noise = torch.randn(images.shape, generator=generator, device=images.device)
        return images + self.picture.sigma * noise, found

    def _infer(
        self,
        images: Tensor,
        particles: int,
        noise: Noise,
        pathwise: bool = True,
        limits: Tensor | None = None,
        cover: Tensor | None = None,
        given: Found | None = None,
    ) -> tuple[Found, Terms, Tensor]:
        """At most `limits` `(B,)` objects of `images` `(B, H, W)`, densities, and the
        log-likelihood `(R,)`.
        """
        code = self.picture.encode(images).repeat_interleave(particles, 0)
        if limits is None:
            limits = code.new_full((len(images),), self.num_slots)
        capacity = limits.repeat_interleave(particles)
        found, terms = self.discovery(
            self.picture, images, code, code[:, :0], code[:, :0], capacity, self.num_slots,
            None, noise, pathwise, cover, given,
        )  # fmt: skip
        return found, terms, self.picture.log_likelihood(images, found)


class Discovery(nn.Module):
    """The recurrent network that finds objects, and what is expected of new objects.

    Both also know of objects that are there already, by codes of `context_size` and
    `prior_context_size`.
    """

    def __init__(
        self, config: AirConfig, context_size: int = 0, prior_context_size: int = 0
    ) -> None:
        super().__init__()
        hidden, what = config.hidden_size, config.what_size
        self.what_size = what
        self.spot_radius = config.object_size / 3 if config.seek else None
        self.first = nn.Parameter(torch.zeros(hidden + what + 4))
        self.context = nn.Linear(hidden + context_size, hidden)
        self.recurrence = nn.Linear(hidden + what + 4, hidden)
        self.where_head = perceptron(hidden, hidden, 8, gain=0.1)
        self.what_head = perceptron(hidden, hidden, 2 * what)
        self.presence_head = perceptron(hidden + what, hidden // 2, 1, gain=0.1)
        expected = torch.tensor(where_of(config.object_size))
        self.register_buffer("expected", expected, persistent=False)
        self.where_prior = perceptron(4 + prior_context_size, hidden // 4, 8, gain=0.0)
        self.count_prior = CountPrior()

    def describe(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(R, A)` of the `what` of a glimpse."""
        mean, raw = self.what_head(code).chunk(2, -1)
        return mean, functional.softplus(raw) + _MIN_STD

    def forward(
        self,
        picture: Picture,
        images: Tensor,
        code: Tensor,
        context: Tensor,
        prior_context: Tensor,
        capacity: Tensor,
        slots: int,
        known: Tensor | None,
        noise: Noise,
        pathwise: bool = True,
        cover: Tensor | None = None,
        given: Found | None = None,
        drawn: Tensor | None = None,
    ) -> tuple[Found, Terms]:
        """At most `capacity` `(R,)` and `slots` objects of images `(B, H, W)` with codes `(R, D)`
        of the `picture`.

        `context` `(R, C)` and `prior_context` tell of the `known` `(R,)` objects that are there
        already; None in the first frame. Presences of `cover` rows `(R,)` are drawn as tosses of
        a coin. Densities are those of what is `given` instead of drawn. Discovery that seeks
        takes what is `drawn` `(R, H, W)` already away first.
        """
        base = self.context(torch.cat([code, context], 1))
        previous = self.first.expand(len(code), -1)
        going = torch.ones_like(capacity, dtype=torch.bool)
        before = self.expected.expand(len(code), 4)
        left, begin = images, self.expected
        if self.spot_radius:
            left = images.repeat_interleave(len(code) // len(images), 0)
            left = left if drawn is None else left - drawn.detach()
        objects, total = [], None
        for index in range(slots):
            if self.spot_radius:
                spot = brightest(left, self.spot_radius)
                begin = torch.cat([self.expected[:2].expand_as(spot), spot], 1)
            one = noise.of(index)
            hidden = (base + self.recurrence(previous)).tanh()
            mean, raw = self.where_head(hidden).chunk(2, -1)
            mean, std = mean + begin, functional.softplus(raw - 3) + _MIN_STD
            where = draw(mean, std, one.where, pathwise)
            told = None if given is None else given.presence[:, index]
            if given is not None:  # what is absent is inferred, as when nothing is given
                where = torch.where(told[:, None], given.where[:, index], where)
            log_q = log_normal(where, mean, std)
            mean, std = self.describe(picture.look(left, where))
            what = draw(mean, std, one.what, pathwise)
            if given is not None:
                what = torch.where(told[:, None], given.what[:, index], what)
            log_q = log_q + log_normal(what, mean, std)
            logit = self.presence_head(torch.cat([hidden, what], 1))[:, 0] + _LIKELY
            possible = going & (capacity > index)
            going, log_q_presence = draw_presence(logit, possible, one.presence, cover, told)
            log_p = log_normal(where, *self._place(before, prior_context))
            log_p = log_p + log_normal(what, torch.zeros_like(what), torch.ones_like(what))
            terms = Terms(
                torch.where(going, log_p, 0),
                torch.where(going, log_q, 0) + log_q_presence,
                log_q_presence,
            )
            total = terms if total is None else total + terms
            objects.append(Found(what, where, going, torch.where(possible, logit.sigmoid(), 0)))
            if self.spot_radius:
                alone = Found(*(part.unsqueeze(1) for part in objects[-1]))
                left = left - picture.draw(alone).detach()
            previous, before = torch.cat([hidden, what, where], 1), where
        found = Found(*(torch.stack(parts, 1) for parts in zip(*objects, strict=True)))
        count = self.count_prior(found.presence.sum(1), capacity, slots, known)
        return found, total._replace(log_p=total.log_p + count)

    def dream(self, rows: int, slots: int, generator: torch.Generator) -> Found:
        """Objects `(R, N, ...)` of the prior, without a context. They begin with those next to the
        upper left corner: inference has an order, and could not learn a random one.
        """
        device = self.expected.device
        numbers = torch.arange(slots + 1, device=device)
        capacity = numbers.new_full((slots + 1,), slots)
        chances = self.count_prior(numbers, capacity, slots, None).exp()
        count = torch.multinomial(chances, rows, True, generator=generator)
        what, noise, _ = draw_noise(rows, slots, self.what_size, generator)
        before, places = self.expected.expand(rows, 4), []
        for index in range(slots):
            before = draw(*self._place(before, before[:, :0]), noise[:, index])
            places.append(before)
        where = torch.stack(places, 1)
        presence = numbers[:-1] < count[:, None]
        distance = where[..., 2:].tanh().add(1).norm(dim=-1)
        order = torch.where(presence, distance, math.inf).argsort(dim=1)[..., None]
        what = what.gather(1, order.expand_as(what))
        return Found(what, where.gather(1, order.expand_as(where)), presence, presence.float())

    def _place(self, before: Tensor, prior_context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(R, 4)` expected of the `where` after `before`."""
        mean, raw = self.where_prior(torch.cat([before, prior_context], 1)).chunk(2, -1)
        return mean + self.expected, raw.exp()


class CountPrior(nn.Module):
    """How many new objects to expect: geometric, with more weight on none in later frames."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(-0.7))
        self.later = perceptron(1, 10, 2, gain=0.0)
        self.none_later = nn.Parameter(torch.tensor(10.0))

    def forward(self, count: Tensor, capacity: Tensor, slots: int, known: Tensor | None) -> Tensor:
        """Log-probability `(R,)` of `count` of at most `capacity` new objects beside `known`."""
        numbers = torch.arange(slots + 1, device=count.device)
        logits = (self.slope * numbers).expand(len(count), -1)
        if known is not None:
            slope, none = self.later(known[:, None].float()).split(1, 1)
            logits = logits + slope * numbers + (none + self.none_later) * (numbers == 0)
        logits = logits.masked_fill(numbers > capacity[:, None], -math.inf)
        return logits.log_softmax(1).gather(1, count[:, None])[:, 0]


def random_limits(
    config: AirConfig, batch: int, progress: float, generator: torch.Generator
) -> Tensor:
    """How many objects each of `batch` images or sequences may have, `(B,)` int64."""
    device = generator.device
    limits = 1 + torch.randint(config.num_slots, (batch,), generator=generator, device=device)
    share = 1 - progress / config.limited if config.limited else 0.0
    limited = torch.rand(batch, generator=generator, device=device) < share
    return torch.where(limited, limits, config.num_slots)


def score_losses(objective: str, log_p: Tensor, log_q: Tensor, log_q_presence: Tensor) -> Losses:
    """Of reparameterised particles `(B, 1, K)`; presences `(R,)` are not."""
    estimator = vimco if objective == "vimco" else vimco_released
    return estimator(log_p - log_q, log_q_presence.view_as(log_q))


def one_loss(losses: Losses) -> Tensor:
    """The sum, where it gives all parameters the gradients that are theirs: what is detached in
    wake-sleep keeps the two apart.
    """
    return losses.theta if losses.theta is losses.phi else losses.theta + losses.phi


@register_model
def air(**config: object) -> Air:
    """AIR with the sizes of its paper unless told otherwise."""
    return Air(from_mapping(AirConfig, config))
