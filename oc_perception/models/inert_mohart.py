# SPDX-License-Identifier: Apache-2.0
"""MOHART for a handful of recordings: trackers that need not learn that bodies are inert, nor how
to find again what they have just seen.

As in `mohart.py` trackers with shared weights look at windows, hear of one another and remember
(Fuchs et al. 2019). Different are the two ends, where a few hundred frames teach too little:

- *Eyes* compare. A coarse picture of each object, kept from the first frame, is laid over every
  place of the glimpse; cosines say where it fits (as in Bertinetto et al. 2016,
  *Fully-convolutional Siamese networks for object tracking*, but on plain colours). They also see
  what has changed in the window since the last frame. What is learned are corrections, and how
  doubtful each finding is.
- *Motion* is a Kalman filter of constant velocity: a box goes on as it did, and what was found
  pulls at place, size and velocity, the more the less doubtful it is. How restless the object is,
  how much more or less than they say eyes are to be trusted, is read from memory, which has heard
  the others. Steps of its own, as MOHART's, drifted in clips longer than those it learned from.

First the eyes learn alone, on boxes that are off by random errors; then they stay as they are, and
memory learns from whole clips. Learned together each made up for the other's drift.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from oc_perception.configuration import from_mapping
from oc_perception.models.boxes import area, change, corrected, mismatch
from oc_perception.models.clips import draw_blackouts, true_boxes
from oc_perception.models.eyes import Eyes
from oc_perception.models.mohart import Mohart, MohartConfig, MohartState, Trace
from oc_perception.models.registry import register_model
from oc_perception.models.relations import Core, code
from oc_perception.types import Clip

_ROOM = 0.8  # around a box in its window, in roots of its area
_COARSE = 2  # glimpses are compared at a resolution lower by this
_PART = (0.7, 0.45)  # of a glimpse, its middle: about what the box of a person takes up in it
_SHARPNESS = 20.0  # of the choice between places, by their cosines
_FAINT = 1e-4
_TAUGHT_NOISE = (0.25, 0.12, 0.03, 0.03)  # of boxes that eyes learn from, in box sizes
_LEAST_DOUBT, _BLIND_DOUBT = -3.0, 4.0  # log scales, in box sizes
_FIRST_STD = (0.03, 0.3)  # of a given box and of its velocity, in box sizes, per frame
_RESTLESS = (
    0.01,
    0.01,
    0.005,
    0.005,
)  # per frame: of velocity and of size, one standard deviation
_UNKNOWN = 0.1  # of the frames that eyes learn from follow a black one
_PRESENCE = 0.1  # weight of this loss


@dataclass(frozen=True)
class InertMohartConfig(MohartConfig):
    """See MohartConfig; in the share `taught` of training eyes learn alone."""

    horizon: int = 0
    num_features: int = 0
    memory_feedback: bool = True
    taught: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon or self.num_features:
            raise ValueError("horizon and num_features must be 0 for inert trackers")


class MatchingEyes(nn.Module):
    """Glimpses `(N, 3, h, w)`, what was in the same windows `before`, zeros where that is unknown,
    and `looks` `(N, L)` of objects to features `(N, D)` and 8 numbers: where in the glimpse,
    relative to its middle and in its sizes, and how much larger the object is; then log scales of
    the errors that these may have.
    """

    def __init__(
        self, glimpse_size: tuple[int, int], widths: tuple[int, ...], kernel: int, size: int
    ) -> None:
        super().__init__()
        self._cells = tuple(side // _COARSE for side in glimpse_size)
        self._part = tuple(round(p * c) for p, c in zip(_PART, self._cells, strict=True))
        self._places = tuple(c - p + 1 for c, p in zip(self._cells, self._part, strict=True))
        self.eyes = Eyes(glimpse_size, widths, kernel, size, 8, colours=6)
        told = prod(self._places) + 2 + sum(self._cells) + 3
        self.tell = nn.Sequential(nn.Linear(told, size), nn.ELU())
        self.say = nn.Linear(size, 8)
        for last in (self.eyes.say, self.say):  # at first the best fit is believed
            nn.init.uniform_(last.weight, -1e-3, 1e-3)
            nn.init.zeros_(last.bias)
        with torch.no_grad():
            self.say.bias[4:] = -2.5

    @property
    def look_size(self) -> int:
        """Numbers that tell how an object looks."""
        return 3 * prod(self._part)

    def looks(self, glimpses: Tensor) -> Tensor:
        """`(N, L)`: the middle of glimpses, coarse and without its mean colour."""
        coarse = functional.avg_pool2d(glimpses.float(), _COARSE)
        top, left = ((places - 1) // 2 for places in self._places)
        part = coarse[:, :, top : top + self._part[0], left : left + self._part[1]]
        return (part - part.mean((2, 3), keepdim=True)).flatten(1)

    def forward(self, glimpses: Tensor, before: Tensor, looks: Tensor) -> tuple[Tensor, Tensor]:
        """Features and numbers."""
        cosines, peak = self._fit(glimpses, looks)
        change = (glimpses - before) * before.flatten(1).any(1)[:, None, None, None]
        features, said = self.eyes(torch.cat([glimpses, change], 1))
        told = self.tell(torch.cat([cosines, peak, self._stir(change)], 1)).float()
        with torch.autocast(glimpses.device.type, enabled=False):
            said = said + self.say(told)
            return features + told, torch.cat([said[:, :2] + peak, said[:, 2:]], 1)

    def _stir(self, change: Tensor) -> Tensor:
        """Where in the glimpses something has changed, by columns and rows, in the mean, and how
        much.
        """
        energy = functional.avg_pool2d(change.abs().mean(1, keepdim=True), _COARSE).squeeze(1)
        total = energy.sum((1, 2)) + _FAINT
        across, down = energy.sum(1) / total[:, None], energy.sum(2) / total[:, None]
        places = [_centre(part) for part in (across, down)]
        return torch.cat([across, down, torch.stack([*places, total.log() / 8], 1)], 1)

    def _fit(self, glimpses: Tensor, looks: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines `(N, places)` of looks with what is in each place of the glimpses; where they
        are best `(N, 2)`, from the middle, in sizes of the glimpse.
        """
        with torch.autocast(glimpses.device.type, enabled=False):
            coarse = functional.avg_pool2d(glimpses.float(), _COARSE)
            patches = functional.unfold(coarse, self._part)  # (N, L, places)
            colours = patches.unflatten(1, (3, -1))
            spread = (colours.square().sum(2) - colours.mean(2).square() * prod(self._part)).sum(1)
            norms = spread.clamp(min=0) * looks.square().sum(1, keepdim=True)
            cosines = (looks[:, None] @ patches)[:, 0] / (norms + _FAINT).sqrt()
            weights = (_SHARPNESS * cosines).softmax(1).unflatten(1, self._places)
            down, across = (_middle(weights.sum(axis)) for axis in (2, 1))
            peak = torch.stack([across / self._cells[1], down / self._cells[0]], 1)
        return cosines, peak


class InertMohart(Mohart):
    """See the module."""

    def __init__(self, config: InertMohartConfig) -> None:
        super().__init__(config)
        sizes = config.glimpse_size, config.channels, config.kernel_size, config.size
        self.eyes = MatchingEyes(*sizes)
        relations = config.relations, config.heads, config.max_objects, config.memory_feedback
        self.core = Core(6 + 8, config.size, *relations, gains=8)

    @property
    def kept_size(self) -> int:
        """Numbers that are kept of an object besides memory: its look, variances, and what was
        where it is expected.
        """
        return self.eyes.look_size + 8 + 3 * prod(self.config.glimpse_size)

    def initial_state(self, boxes: Tensor, present: Tensor) -> MohartState:
        """See Mohart."""
        state = super().initial_state(boxes, present)
        kept = state.boxes.new_zeros(*present.shape, self.kept_size)
        return state._replace(windows=_around(state.boxes), kept=kept)

    def _step(self, state: MohartState, frame: Tensor | None) -> tuple[MohartState, Trace]:
        expected, last = state.expected, state.boxes
        look_size = self.eyes.look_size
        looks, variances, before = state.kept.tensor_split((look_size, look_size + 8), -1)
        known = looks.any(2, keepdim=True)
        variances = torch.where(known, variances, _first_variances(variances))
        with torch.no_grad():
            glimpses = self._glimpses(frame, state.windows)
            lit = glimpses.flatten(2).any(2, keepdim=True)
            looks = torch.where(known, looks, self._looks(glimpses) * lit)
            before = before.view_as(glimpses)
            features, found = self._find(glimpses, before, looks, expected, state.windows)
            found = torch.where(lit, found, _nothing(found))
            # What was seen stays where it was, whatever was expected.
            seen = self._bounded(corrected(expected, found[..., :4]))
        inputs = torch.cat([code(seen, seen[..., :2] - last[..., :2]), found], -1)
        read, memory = self.core(
            inputs.unsqueeze(1), features.unsqueeze(1), state.present.unsqueeze(1), state.memory
        )
        restless, suspicion = read.gains[:, 0].split(4, -1)
        restless = (2 * restless.tanh()).exp() * expected.new_tensor(_RESTLESS)
        noise = (2 * found[..., 4:] + 2 * suspicion.tanh()).exp()
        gains, variances = _weighed(variances, noise, restless**2)
        news = change(expected, seen)
        boxes = self._bounded(corrected(expected, gains[..., :4] * news))
        pull = gains[..., 4:] * news[..., :2] * expected[..., 2:]
        onward = boxes[..., :2] + expected[..., :2] - last[..., :2] + pull
        onward = torch.cat([onward, boxes[..., 2:]], -1)
        following = self._bounded(onward)
        windows = _around(following.detach())
        kept = [looks, variances, self._glimpses(frame, windows).flatten(2)]
        state = MohartState(following, windows, boxes, memory, state.present, torch.cat(kept, -1))
        parts = (expected, state.windows, found, boxes, boxes, following, windows)
        trace = Trace(*(part.unsqueeze(1) for part in parts), read.presence, read.velocity)
        return state, trace

    def _looks(self, glimpses: Tensor) -> Tensor:
        return self.eyes.looks(glimpses.flatten(0, 1)).unflatten(0, glimpses.shape[:2])

    def _find(
        self, glimpses: Tensor, before: Tensor, looks: Tensor, expected: Tensor, windows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features `(B, M, D)`; changes of `expected` boxes and log scales of their errors
        `(B, M, 8)`.
        """
        seen = self.eyes(*(part.flatten(0, 1) for part in (glimpses, before, looks)))
        features, found = (x.unflatten(0, glimpses.shape[:2]) for x in seen)
        offset = found[..., :2] * (windows / expected)[..., 2:]
        doubt = found[..., 4:].clamp(min=_LEAST_DOUBT)
        return features, torch.cat([offset, found[..., 2:4], doubt], -1)

    def _follow(self, images: Tensor, boxes: Tensor, present: Tensor) -> Trace:
        """See Mohart; gradients pass through the filter."""
        state, traces = self.initial_state(boxes, present), []
        for frame in images.unbind(1):
            state, trace = self._step(state, frame)
            traces.append(trace)
        return Trace(*(torch.cat(parts, 1) for parts in zip(*traces, strict=True)))

    def loss(
        self, clip: Clip, generator: torch.Generator, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Of eyes alone, then of trackers: boxes, boxes expected next, presence. Objects that are
        not there in the first frame are left out.
        """
        motion, boxes = clip.motion, true_boxes(clip.motion)
        there = motion.present & motion.present[:, :1]
        noise = torch.randn(boxes.shape, generator=generator, device=boxes.device)
        if progress < self.config.taught:
            error = self._surprise(clip, boxes, noise, generator)
            return {"loss": error, "looking": error}
        black = draw_blackouts(
            *boxes.shape[:2], self.config.blackout_rate, generator, boxes.device
        )
        first = corrected(boxes[:, 0], self.config.box_jitter * noise[:, 0])
        images = clip.images * ~black[..., None, None, None]
        trace = self._follow(images, first, motion.present[:, 0])
        tracking = _mean(mismatch(trace.boxes, boxes)[:, 1:], there[:, 1:])
        following = _mean(mismatch(trace.following[:, :-1], boxes[:, 1:])[:, 1:], there[:, 2:])
        presence = functional.binary_cross_entropy_with_logits(
            trace.presence, motion.present.float(), reduction="none"
        )
        presence = _mean(presence, motion.present[:, :1].expand_as(presence))
        loss = tracking + following + _PRESENCE * presence
        return {
            "loss": loss, "tracking": tracking, "following": following, "presence": presence
        }  # fmt: skip

    def _surprise(
        self, clip: Clip, boxes: Tensor, noise: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Negative log-likelihood of where objects are, who are known from the first frame, near
        boxes that are off by `noise`: Laplace distributions around what eyes say.
        """
        first = corrected(boxes[:, 0], self.config.box_jitter * noise[:, 0])
        looks = self._looks(self._glimpses(clip.images[:, 0], _around(first)))
        truth = boxes[:, 1:]
        spread = 2 * torch.rand(truth.shape[:-1], generator=generator, device=boxes.device)
        wrong = spread.unsqueeze(-1) * noise[:, 1:] * noise.new_tensor(_TAUGHT_NOISE)
        expected = corrected(truth, wrong).flatten(0, 1)
        windows = _around(expected)
        glimpses = self._glimpses(clip.images[:, 1:].flatten(0, 1), windows)
        before = self._glimpses(clip.images[:, :-1].flatten(0, 1), windows)
        unknown = torch.rand(len(before), 1, 1, 1, 1, generator=generator, device=boxes.device)
        before = before * (unknown > _UNKNOWN)
        looks = looks.unsqueeze(1).expand(*truth.shape[:-1], -1).flatten(0, 1)
        found = self._find(glimpses, before, looks, expected, windows)[1]
        found = found.view(*truth.shape[:-1], 8)
        error = (change(expected.view_as(truth), truth) - found[..., :4]).abs()
        surprise = (error * (-found[..., 4:]).exp() + found[..., 4:]).sum(-1)
        return _mean(surprise, clip.motion.present[:, 1:] & clip.motion.visible[:, :1])


def _around(boxes: Tensor) -> Tensor:
    """Windows with the same margin on all sides of `boxes`, for the narrow ones sway the most."""
    margin = _ROOM * area(boxes).sqrt().unsqueeze(-1)
    return torch.cat([boxes[..., :2], (boxes[..., 2:] + margin).clamp(0.01, 2)], -1)


def _first_variances(like: Tensor) -> Tensor:
    """Of x, y, width, height; of the velocity of x, y; and covariances of x, y with theirs."""
    place, velocity = (deviation**2 for deviation in _FIRST_STD)
    return like.new_tensor([*4 * [place], *2 * [velocity], 0, 0]).expand_as(like)


def _nothing(found: Tensor) -> Tensor:
    """What is found in a black glimpse."""
    return torch.cat(
        [torch.zeros_like(found[..., :4]), torch.full_like(found[..., 4:], _BLIND_DOUBT)], -1
    )


def _weighed(variances: Tensor, noise: Tensor, restless: Tensor) -> tuple[Tensor, Tensor]:
    """A Kalman filter's gains `(..., 6)` of x, y, width, height and the velocity of x, y for what
    was found with variances `noise` `(..., 4)`; and `variances` `(..., 8)` in the next frame,
    objects being so `restless` `(..., 4)`.
    """
    place, velocity, both = variances.split((4, 2, 2), -1)
    gain = place / (place + noise)
    pull = both / (place + noise)[..., :2]
    place = (1 - gain) * place
    velocity, both = velocity - pull * both, (1 - gain[..., :2]) * both
    moving, size = restless.split(2, -1)
    onward = place[..., :2] + 2 * both + velocity + moving / 4
    variances = torch.cat(
        [onward, place[..., 2:] + size, velocity + moving, both + velocity + moving / 2], -1
    )
    return torch.cat([gain, pull], -1), variances


def _middle(weights: Tensor) -> Tensor:
    """Mean place `(N,)` under `weights` `(N, places)` that sum to 1, from that of a look."""
    places = weights.shape[1]
    return weights @ (torch.arange(places, device=weights.device) - (places - 1) // 2).float()


def _centre(weights: Tensor) -> Tensor:
    """Mean place `(N,)` under `weights` `(N, places)`, from -0.5 to 0.5."""
    places = weights.shape[1]
    middles = (torch.arange(places, device=weights.device) + 0.5) / places - 0.5
    return (weights * middles).sum(1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)


@register_model
def inert_mohart(**config: object) -> InertMohart:
    """MOHART for few recordings: self-attention between trackers unless told otherwise."""
    return InertMohart(from_mapping(InertMohartConfig, config))


@register_model
def inert_hart(**config: object) -> InertMohart:
    """The same trackers, which hear nothing of one another."""
    return InertMohart(from_mapping(InertMohartConfig, {"relations": "none", **config}))
