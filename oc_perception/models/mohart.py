# SPDX-License-Identifier: Apache-2.0
"""MOHART: one recurrent tracker per object, all alike, that tell one another what they see (Fuchs
et al. 2019, *End-to-end Recurrent Multi-Object Tracking and Trajectory Prediction with Relational
Reasoning*). With `relations: none` it is the HART of that paper, many at once.

Each tracker expects a box, looks at a window around it (`glimpse.py`), finds where in it the
object is and what it looks like, hears of the others (`relations.py`), remembers, and reads from
memory the box `horizon` frames ahead and the one to expect in the next frame. A frame that is
missing is a black one: nothing is found, memory carries the box on.

Where the paper only adds a code of the window to the glimpse's features, here these also have to
tell where in the window the object is and what it looks like (auxiliary losses), and this enters
the code. For relations multiply looks with distances: they are not learned from features that
tell neither well.

Boxes and windows `(B, M, 4)` are centre x, y, width, height in image widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from oc_perception.configuration import from_mapping
from oc_perception.models.boxes import area, corrected, intersection, mismatch
from oc_perception.models.clips import (
    draw_blackouts,
    score_blackouts,
    score_boxes,
    test_layout,
    true_boxes,
)
from oc_perception.models.eyes import Eyes
from oc_perception.models.glimpse import glimpse
from oc_perception.models.registry import register_model
from oc_perception.models.relations import RELATIONS, Core, Memory, code
from oc_perception.types import Clip

_MAX_ROOM = 0.5  # a window is at most this much larger than its box
_MARGIN = 0.25  # how far outside of the view objects are followed, in image widths
_LOSSES = ("tracking", "window", "presence", "auxiliary")
_TAUGHT_NOISE = (0.25, 0.25, 0.05, 0.05)  # in box sizes
_LOG_WEIGHT = 2.5  # at most, so that no loss is switched off, nor takes over once it is solved


@dataclass(frozen=True)
class MohartConfig:
    """Sizes of the paper (appendix 2.A).

    `horizon` is how many frames ahead the box is predicted. `memory_feedback`: objects also tell
    what they remember, which relations need while blind. `num_features` numbers of an object's
    look are learned from the world's. `max_objects` only limits `relations: mlp`. In training,
    `blackout_rate` of the sequences have blackouts, and first boxes are off by `box_jitter` of
    their size. In the first share `taught` of training, windows are laid around true boxes in all
    frames: trackers that cannot see yet lose their objects, and learn nothing then.
    """

    frame_size: tuple[int, int] = (64, 64)
    num_frames: int = 15
    horizon: int = 1
    relations: str = "self_attention"
    memory_feedback: bool = False
    glimpse_size: tuple[int, int] = (32, 32)
    channels: tuple[int, ...] = (32, 32, 64)
    kernel_size: int = 5
    size: int = 128
    heads: int = 4
    max_objects: int = 5
    num_features: int = 1
    blackout_rate: float = 0.0
    box_jitter: float = 0.05
    taught: float = 0.3

    def __post_init__(self) -> None:
        if self.relations not in RELATIONS:
            raise ValueError(f"relations must be one of {', '.join(RELATIONS)}")
        if not 0 <= self.horizon < self.num_frames - 2:
            raise ValueError("horizon must be at least 0 and below num_frames - 2")
        if self.size % self.heads:
            raise ValueError("size must be a multiple of heads")


class MohartState(NamedTuple):
    """`expected`: the boxes to come, inside of `windows`; `boxes`: where objects were found last;
    `present` `(B, M)` bool: which of the M rows are in use; `kept` `(B, M, K)`, what
    `inert_mohart` keeps besides, zeros in new rows.
    """

    expected: Tensor
    windows: Tensor
    boxes: Tensor
    memory: Memory
    present: Tensor
    kept: Tensor | None = None


class Trace(NamedTuple):
    """What steps found and read, `(B, T, M, ...)`: `found` relative to `expected`, seen in
    `windows`; `boxes` so found; `predicted` for `horizon` frames later; `following` expected next.
    """

    expected: Tensor
    windows: Tensor
    found: Tensor
    boxes: Tensor
    predicted: Tensor
    following: Tensor
    following_windows: Tensor
    presence: Tensor
    velocity: Tensor


class Mohart(nn.Module):
    """Tracks any number of objects at once; all are treated alike."""

    task: ClassVar[str] = "tracking"
    kept_size: ClassVar[int] = 0

    def __init__(self, config: MohartConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size, self.num_frames = config.frame_size, config.num_frames
        self.eyes = Eyes(
            config.glimpse_size,
            config.channels,
            config.kernel_size,
            config.size,
            4 + config.num_features,
        )
        self.core = Core(
            6 + config.num_features,
            config.size,
            config.relations,
            config.heads,
            config.max_objects,
            config.memory_feedback,
        )
        self.log_weights = nn.Parameter(torch.zeros(len(_LOSSES)))

    def initial_state(self, boxes: Tensor, present: Tensor) -> MohartState:
        """Before the first frame: `boxes` `(B, M, 4)` are where objects will be seen there, rows
        that are not `present` `(B, M)` are free.
        """
        boxes = torch.where(present[..., None], boxes, 0.5)
        memory = self.core.initial_memory(*present.shape)
        return MohartState(boxes, _widened(boxes, 1 + _MAX_ROOM), boxes, memory, present)

    def start(self, state: MohartState, boxes: Tensor, rows: Tensor) -> MohartState:
        """`state` in which the `rows` `(B, M)` begin anew, as objects that will be seen at
        `boxes` in the next frame.
        """
        fresh = self.initial_state(boxes, rows)

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(rows[..., None], new, old)

        places = (chosen(*pair) for pair in zip(fresh[:3], state[:3], strict=True))
        memory = Memory(*(chosen(*pair) for pair in zip(fresh.memory, state.memory, strict=True)))
        kept = None if state.kept is None else chosen(fresh.kept, state.kept)
        return MohartState(*places, memory, fresh.present | state.present, kept)

    def step(self, state: MohartState, frame: Tensor | None) -> tuple[MohartState, Tensor, Tensor]:
        """What `frame` `(B, 3, H, W)`, in [0, 1], tells: boxes `(B, M, 4)` for `horizon` frames
        later and the probabilities `(B, M)` that the objects are present then. No frame is a black
        one.
        """
        state, trace = self._step(state, frame)
        return state, trace.predicted[:, 0], trace.presence[:, 0].sigmoid()

    def _step(self, state: MohartState, frame: Tensor | None) -> tuple[MohartState, Trace]:
        """`Trace` of this one step."""
        glimpses = self._glimpses(frame, state.windows)
        features, found = self._look(glimpses)
        trace, memory = self._read(
            *(x.unsqueeze(1) for x in (state.expected, state.windows, features, found)),
            state.boxes,
            state.present.unsqueeze(1),
            state.memory,
        )
        boxes, following = trace.boxes[:, 0], trace.following[:, 0]
        windows = trace.following_windows[:, 0]
        return MohartState(following, windows, boxes, memory, state.present), trace

    def _glimpses(self, frames: Tensor | None, windows: Tensor) -> Tensor:
        """`(B, M, 3, h, w)`, black without frames."""
        size = self.config.glimpse_size
        if frames is None:
            return windows.new_zeros(*windows.shape[:2], 3, *size)
        return glimpse(frames, windows, size)

    def _look(self, glimpses: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, M, D)` and what they say `(B, M, 4 + F)`."""
        features, found = self.eyes(glimpses.flatten(0, 1))
        return features.unflatten(0, glimpses.shape[:2]), found.unflatten(0, glimpses.shape[:2])

    def _read(
        self,
        expected: Tensor,
        windows: Tensor,
        features: Tensor,
        found: Tensor,
        last: Tensor,
        present: Tensor,
        memory: Memory,
    ) -> tuple[Trace, Memory]:
        """From what was found in frames `(B, T, M, ...)`, after `last` boxes `(B, M, 4)`."""
        with torch.autocast(features.device.type, enabled=False):
            boxes = self._bounded(corrected(expected, found[..., :4]))
            before = torch.cat([last.unsqueeze(1), boxes[:, :-1]], 1)
            inputs = code(boxes, boxes[..., :2] - before[..., :2])
            inputs = torch.cat([inputs, found[..., 4:]], -1)
            read, memory = self.core(inputs, features, present, memory)
            following = self._bounded(corrected(boxes, read.step))
            trace = Trace(
                expected,
                windows,
                found,
                boxes,
                corrected(boxes, read.box),
                following,
                _widened(following, 1 + _MAX_ROOM * (read.room + 2).sigmoid()),
                read.presence,
                read.velocity,
            )
        return trace, memory

    def _bounded(self, boxes: Tensor) -> Tensor:
        """Boxes near the view, so that a tracker that has lost its object does not run away."""
        height, width = self.frame_size
        far = boxes.new_tensor([1 + _MARGIN, height / width + _MARGIN])
        centres = boxes[..., :2].clamp(min=-_MARGIN).minimum(far)
        return torch.cat([centres, boxes[..., 2:].clamp(0.01, 1)], -1)

    def _follow(self, images: Tensor, boxes: Tensor, present: Tensor) -> Trace:
        """Through `images` `(B, T, 3, H, W)` from the boxes in the first. Gradients pass through
        time in memory only: where to look is told in every frame, and long chains of windows that
        depend on windows diverge.
        """
        state, traces = self.initial_state(boxes, present), []
        for frame in images.unbind(1):
            state, trace = self._step(state, frame)
            traces.append(trace)
            expected, windows, boxes = (x.detach() for x in state[:3])
            state = state._replace(expected=expected, windows=windows, boxes=boxes)
        return Trace(*(torch.cat(parts, 1) for parts in zip(*traces, strict=True)))

    def _follow_taught(self, images: Tensor, expected: Tensor, present: Tensor) -> Trace:
        """The same with `expected` boxes `(B, T, M, 4)` given for all frames, at once."""
        batch, times = images.shape[:2]
        windows = _widened(expected, 1 + _MAX_ROOM)
        looked = self._look(self._glimpses(images.flatten(0, 1), windows.flatten(0, 1)))
        features, found = (x.unflatten(0, (batch, times)) for x in looked)
        memory = self.core.initial_memory(*present.shape)
        present = present.unsqueeze(1).expand(-1, times, -1)
        return self._read(expected, windows, features, found, expected[:, 0], present, memory)[0]

    def loss(
        self, clip: Clip, generator: torch.Generator, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Sum over losses L of `weight L - log weight` with learned weights: the paper's sign of
        the second term would switch all losses off. Objects that are not there in the first frame
        are left out.
        """
        motion, config = clip.motion, self.config
        boxes = true_boxes(motion)
        device = boxes.device
        black = draw_blackouts(*boxes.shape[:2], config.blackout_rate, generator, device)
        noise = torch.randn(boxes.shape, generator=generator, device=device)
        if progress < config.taught:
            black, nearby = torch.zeros_like(black), noise * noise.new_tensor(_TAUGHT_NOISE)
            trace = self._follow_taught(
                clip.images, corrected(boxes, nearby), motion.present[:, 0]
            )
        else:
            images = clip.images * ~black[..., None, None, None]
            first = corrected(boxes[:, 0], config.box_jitter * noise[:, 0])
            trace = self._follow(images, first, motion.present[:, 0])
        losses = self._losses(trace, clip, boxes, black)
        log_weights = _LOG_WEIGHT * self.log_weights.tanh()
        total = sum(w.exp() * x - w for w, x in zip(log_weights, losses, strict=True))
        weights = {f"weight_{n}": w.exp() for n, w in zip(_LOSSES, log_weights, strict=True)}
        return {"loss": total, **dict(zip(_LOSSES, losses, strict=True)), **weights}

    def _losses(
        self, trace: Trace, clip: Clip, boxes: Tensor, black: Tensor
    ) -> tuple[Tensor, ...]:
        motion, ahead = clip.motion, self.config.horizon
        there = motion.present & motion.present[:, :1]
        last = boxes.shape[1] - ahead
        later = motion.present[:, 1 + ahead :]
        tracking = _mean(
            mismatch(trace.predicted[:, 1:last], boxes[:, 1 + ahead :]), there[:, 1:last] & later
        )
        presence = functional.binary_cross_entropy_with_logits(
            trace.presence[:, 1:last], later.float(), reduction="none"
        )
        presence = _mean(presence, motion.present[:, :1].expand_as(presence))
        windows, following = trace.following_windows[:, :-1], boxes[:, 1:]
        covered = intersection(windows, following) / area(following)
        height, width = clip.images.shape[-2:]
        share = area(windows) * (width / height)
        window = -covered.clamp(0.01, 1).log() - (1 - share.clamp(max=0.9)).log()
        window = window + mismatch(trace.following[:, :-1], following)
        window = _mean(window[:, 1:], there[:, 2:])
        return tracking, window, presence, self._auxiliary(trace, motion, boxes, black)

    def _auxiliary(self, trace: Trace, motion: Any, boxes: Tensor, black: Tensor) -> Tensor:
        """How far what was found differs from the truth, where there was something to see in the
        window; nothing must be found in black frames.
        """
        expected = trace.expected.detach()
        offset = (boxes[..., :2] - expected[..., :2]) / expected[..., 2:]
        scale = (boxes[..., 2:] / expected[..., 2:]).log()
        blind = black[..., None]
        covered = intersection(trace.windows, boxes) > 0.25 * area(boxes)
        seen = motion.visible & covered & ~blind
        truth = torch.cat([offset, scale], -1) * seen[..., None]
        error = functional.smooth_l1_loss(trace.found[..., :4], truth, reduction="none", beta=0.1)
        look = (trace.found[..., 4:] - motion.features[..., : self.config.num_features]).square()
        speed = motion.velocities * motion.dt_s / boxes[..., 2:] - trace.velocity
        moving = motion.present & motion.present[:, :1]
        return (
            _mean(error.sum(-1), (seen | blind) & moving)
            + 0.3 * _mean(look.sum(-1), seen & moving)
            + 0.3 * _mean(speed.abs().sum(-1)[:, 1:], moving[:, 1:])
        )

    def score(self, clip: Clip, generator: torch.Generator) -> dict[str, float]:
        """IoU at the horizon, beside simple methods; where it was trained with blackouts, through
        blackouts.
        """
        motion, ahead = clip.motion, self.config.horizon
        boxes = true_boxes(motion)
        there = motion.present & motion.present[:, :1]
        predicted = self._follow(clip.images, boxes[:, 0], there[:, 0]).predicted
        scores = score_boxes(predicted, boxes, there, ahead)
        if self.config.blackout_rate:
            black = test_layout(boxes.shape[1], boxes.device)
            images = clip.images * ~black[:, None, None, None]
            predicted = self._follow(images, boxes[:, 0], there[:, 0]).predicted
            scores |= score_blackouts(predicted, boxes, there, black, ahead)
        return scores


def _widened(boxes: Tensor, factor: Tensor | float) -> Tensor:
    """Boxes with sides longer by `factor` `(B, M)`, at least a hundredth of the image's width."""
    if isinstance(factor, Tensor):
        factor = factor.unsqueeze(-1)
    return torch.cat([boxes[..., :2], (boxes[..., 2:] * factor).clamp(0.01, 2)], -1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)


@register_model
def mohart(**config: object) -> Mohart:
    """MOHART: self-attention between trackers unless told otherwise."""
    return Mohart(from_mapping(MohartConfig, config))


@register_model
def hart(**config: object) -> Mohart:
    """The same trackers, which hear nothing of one another."""
    return Mohart(from_mapping(MohartConfig, {"relations": "none", **config}))
