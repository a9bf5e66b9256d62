# SPDX-License-Identifier: Apache-2.0
"""HART (Kosiorek, Bewley and Posner 2017, *Hierarchical Attentive Recurrent Tracking*): tracks any
object, given its box in the first frame.

Attention is hierarchical. A window is looked at (`glimpse.py`); a dorsal stream, whose
convolutions are generated from what the object is expected to look like (a dynamic filter
network), tells which cells of the window are the object; a ventral stream of features is masked by
them and written into an LSTM. From it are read the box now, the window in the next frame and, as
its output itself, the expected appearance. Objects `(B, M)` are tracked each by itself; boxes and
windows `(B, M, 4)` are centre x, y, width, height in image widths. A missing frame is a black one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from oc_perception.configuration import from_mapping
from oc_perception.models.boxes import area, corrected, intersection, mismatch
from oc_perception.models.clips import score_boxes, true_boxes
from oc_perception.models.glimpse import glimpse
from oc_perception.models.registry import register_model
from oc_perception.types import Clip

_MAX_BIAS, _MAX_WINDOW = 0.25, 1.5  # in box sizes: learned at the start, ever
_LOG_WEIGHT = 2.5  # at most, so that no loss is switched off


@dataclass(frozen=True)
class HartConfig:
    """A small network, 10 frames; the paper's AlexNet takes a GPU.

    The ablations of the paper: without `appearance` there is no dorsal stream, without `mask_loss`
    it is not told which cells are the object.
    """

    frame_size: tuple[int, int] = (64, 64)
    num_frames: int = 10
    glimpse_size: tuple[int, int] = (32, 32)
    channels: tuple[int, ...] = (32, 32, 64)
    kernel_size: int = 5
    maps: int = 5
    size: int = 128
    appearance: bool = True
    mask_loss: bool = True
    dropout: float = 0.25
    zoneout: float = 0.05
    decay: float = 1e-4
    box_jitter: float = 0.05

    def __post_init__(self) -> None:
        if self.num_frames < 3 or min(self.glimpse_size) < 8:
            raise ValueError("num_frames must be at least 3, glimpse_size at least 8 x 8")
        if not (0 <= self.dropout < 1 and 0 <= self.zoneout < 1):
            raise ValueError("dropout and zoneout must be at least 0 and below 1")


class HartState(NamedTuple):
    """`windows`, last `boxes` `(B, M, 4)`; LSTM `hidden`, `cell` `(B M, D)`; `present` `(B, M)`;
    `started`: whether a frame was seen.
    """

    windows: Tensor
    boxes: Tensor
    hidden: Tensor
    cell: Tensor
    present: Tensor
    started: bool


class Dorsal(nn.Module):
    """Which cells of feature maps `(N, C, h, w)` look as expected by `appearance` `(N, D)`:
    logits `(N, h, w)`, and the sum of squares `(N,)` of the generated filters.
    """

    def __init__(self, inputs: int, maps: int, size: int) -> None:
        super().__init__()
        self.shapes = ((maps, inputs, 1), (maps, maps, 3))
        weights = [out * (into * kernel**2 + 1) for out, into, kernel in self.shapes]
        self.generators = nn.ModuleList(
            nn.Sequential(nn.Linear(size, size), nn.ELU(), nn.Linear(size, count))
            for count in weights
        )
        self.static = nn.ParameterList(torch.zeros(count) for count in weights)
        for (_, into, kernel), generator, static in zip(
            self.shapes, self.generators, self.static, strict=True
        ):
            nn.init.normal_(static, std=(into * kernel**2) ** -0.5)
            nn.init.normal_(generator[2].weight, std=0.1 * size**-0.5)
        self.decide = nn.Conv2d(maps, 1, 1)

    def forward(self, x: Tensor, appearance: Tensor) -> tuple[Tensor, Tensor]:
        squares = []
        for (out, into, kernel), generator, static in zip(
            self.shapes, self.generators, self.static, strict=True
        ):
            generated = generator(appearance)
            squares.append(generated.square().sum(1))
            weights, bias = (generated + static).split((out * into * kernel**2, out), 1)
            patches = functional.unfold(x, kernel, padding=kernel // 2)  # (N, C k k, h w)
            products = weights.unflatten(1, (out, -1)) @ patches + bias.unsqueeze(2)
            x = functional.elu(products).unflatten(2, x.shape[2:])
        return self.decide(x).squeeze(1), torch.stack(squares).sum(0)


class Trace(NamedTuple):
    """Of one step; `mask` `(B, M, h, w)` logits of cells, `squares` `(B, M)` of filters."""

    windows: Tensor
    boxes: Tensor
    mask: Tensor
    squares: Tensor


class Hart(nn.Module):
    """Any number of objects, none of which knows of another."""

    task: ClassVar[str] = "tracking"

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size, self.num_frames = config.frame_size, config.num_frames
        first, second, third = config.channels
        kernel, size = config.kernel_size, config.size
        self.features = nn.Sequential(
            nn.Conv2d(3, first, kernel, 2),
            nn.ELU(),
            nn.Conv2d(first, second, kernel, padding=kernel // 2),
            nn.ELU(),
            nn.Conv2d(second, third, kernel, 2, kernel // 2),
            nn.ELU(),
        )
        with torch.no_grad():
            self.cells = self.features(torch.zeros(1, 3, *config.glimpse_size)).shape[2:]
        count = self.cells.numel()
        self.ventral = nn.Conv2d(third, config.maps, 1)
        self.dorsal = Dorsal(third, config.maps, size) if config.appearance else None
        self.combine = nn.Linear(config.maps * count + 8, size)
        self.lstm = nn.LSTMCell(size, size)
        nn.init.orthogonal_(self.lstm.weight_hh)
        self.start = nn.ModuleList(nn.Linear(size, size) for _ in range(2))
        self.extent = nn.Linear(count, 10)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(size + 10, size), nn.ELU(), nn.Linear(size, 4))
            for _ in range(2)
        )
        for head in self.heads:
            nn.init.uniform_(head[2].weight, -1e-3, 1e-3)
            nn.init.zeros_(head[2].bias)
        self.gain = nn.Parameter(torch.full((4,), 0.1))
        self.bias = nn.Parameter(torch.zeros(2))
        self.log_weights = nn.Parameter(torch.zeros(3))

    def initial_state(self, boxes: Tensor, present: Tensor) -> HartState:
        """Before the first frame, in which objects have these `boxes`; rows that are not
        `present` `(B, M)` are free.
        """
        boxes = torch.where(present[..., None], boxes, 0.5)
        zeros = self.gain.new_zeros(present.numel(), self.config.size)
        return HartState(boxes, boxes, zeros, zeros, present, False)

    def step(self, state: HartState, frame: Tensor | None) -> tuple[HartState, Tensor, Tensor]:
        """What `frame` `(B, 3, H, W)`, in [0, 1], tells: boxes `(B, M, 4)` in it, and which are
        present, as given at the start. The boxes of the first frame are given, it only tells what
        they look like.
        """
        state, trace = self._step(state, frame, None)
        return state, trace.boxes, state.present.float()

    def _step(
        self, state: HartState, frame: Tensor | None, generator: torch.Generator | None
    ) -> tuple[HartState, Trace]:
        """With a `generator` features and memory are dropped at random."""
        shape, size = state.present.shape, self.config.glimpse_size
        if frame is None:
            glimpses = state.windows.new_zeros(*shape, 3, *size)
        else:
            glimpses = glimpse(frame, state.windows, size)
        glimpses = glimpses.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = self.features(glimpses).float()
        with torch.autocast(x.device.type, enabled=False):
            if generator:
                x = x * _kept(x, self.config.dropout, generator) / (1 - self.config.dropout)
            maps = functional.elu(self.ventral(x))
            mask, squares = x.new_full((len(x), *self.cells), 10.0), x.new_zeros(len(x))
            if self.dorsal is not None:
                mask, squares = self.dorsal(x, state.hidden)
            maps = maps * mask.sigmoid().unsqueeze(1)
            places = torch.cat([state.windows, state.boxes], -1).flatten(0, 1)
            written = functional.elu(self.combine(torch.cat([maps.flatten(1), places], 1)))
            new = self.lstm(written, (state.hidden, state.cell))
            trace = Trace(
                state.windows, state.boxes, mask.unflatten(0, shape), squares.view(shape)
            )
            if not state.started:
                hidden, cell = (start(part) for start, part in zip(self.start, new, strict=True))
                bias = _MAX_BIAS * self.bias.tanh()
                sides = state.boxes[..., 2:] * (1 + bias)
                windows = torch.cat([state.boxes[..., :2], sides], -1)
                return HartState(windows, state.boxes, hidden, cell, state.present, True), trace
            output = torch.cat([new[0], functional.elu(self.extent(mask.sigmoid().flatten(1)))], 1)
            step, change = (head(output).tanh().unflatten(0, shape) for head in self.heads)
            implied = state.windows[..., 2:] / (1 + _MAX_BIAS * self.bias.tanh())
            boxes = corrected(torch.cat([state.windows[..., :2], implied], -1), change)
            windows = corrected(state.windows, self.gain.tanh() * step)
            sides = torch.minimum(windows[..., 2:], _MAX_WINDOW * boxes[..., 2:]).clamp(min=0.01)
            windows = torch.cat([windows[..., :2], sides], -1)
            hidden, cell = (
                self._zoned_out(old, value, generator)
                for old, value in zip((state.hidden, state.cell), new, strict=True)
            )
        state = HartState(windows, boxes, hidden, cell, state.present, True)
        return state, trace._replace(boxes=boxes)

    def _zoned_out(self, old: Tensor, new: Tensor, generator: torch.Generator | None) -> Tensor:
        rate = self.config.zoneout
        kept = _kept(new, rate, generator) if generator else 1 - rate
        return old + kept * (new - old)

    def _follow(
        self, images: Tensor, boxes: Tensor, present: Tensor, generator: torch.Generator | None
    ) -> Trace:
        state, traces = self.initial_state(boxes, present), []
        for frame in images.unbind(1):
            state, trace = self._step(state, frame, generator)
            traces.append(trace)
        return Trace(*(torch.stack(parts, 1) for parts in zip(*traces, strict=True)))

    def loss(
        self, clip: Clip, generator: torch.Generator, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """`weight L - log weight` with learned weights, summed over tracking, window and mask,
        from the second frame on; and a little of the squares of weights and generated filters.
        """
        motion, config = clip.motion, self.config
        boxes = true_boxes(motion)
        noise = torch.randn(boxes[:, 0].shape, generator=generator, device=boxes.device)
        first = corrected(boxes[:, 0], config.box_jitter * noise)
        trace = self._follow(clip.images, first, motion.present[:, 0], generator)
        there = (motion.present & motion.present[:, :1])[:, 1:]
        windows, truth = trace.windows[:, 1:], boxes[:, 1:]
        covered = intersection(windows, truth) / area(truth)
        height, width = clip.images.shape[-2:]
        share = area(windows) * (width / height)
        losses = {
            "tracking": _mean(mismatch(trace.boxes[:, 1:], truth), there),
            "window": _mean(
                -covered.clamp(0.01, 1).log() - (1 - share.clamp(max=0.9)).log(), there
            ),
        }
        if config.appearance and config.mask_loss:
            inside = self._inside(windows, truth).to(windows.dtype)
            cells = there.sum().clamp(min=1) * self.cells.numel()
            shares = (inside * there[..., None, None]).sum() / cells
            weight = torch.where(inside > 0, 0.5 / shares, 0.5 / (1 - shares)).clamp(max=10)
            entropy = functional.binary_cross_entropy_with_logits(
                trace.mask[:, 1:], inside, weight, reduction="none"
            )
            losses["mask"] = _mean(entropy.mean((-1, -2)), there)
        logs = _LOG_WEIGHT * self.log_weights[: len(losses)].tanh()
        total = sum(w.exp() * x - w for w, x in zip(logs, losses.values(), strict=True))
        squares = sum(p.square().sum() for p in self.parameters() if p.dim() > 1)
        penalty = 0.5 * config.decay * (squares + trace.squares.mean())
        weights = {f"weight_{n}": w.exp() for n, w in zip(losses, logs, strict=True)}
        return {"loss": total + penalty, **losses, **weights}

    def _inside(self, windows: Tensor, boxes: Tensor) -> Tensor:
        """Which cells `(..., h, w)` of windows have their centres in boxes."""
        inside = []
        for axis, count in ((1, self.cells[0]), (0, self.cells[1])):
            cells = (torch.arange(count, device=boxes.device) + 0.5) / count - 0.5
            centres = windows[..., axis, None] + cells * windows[..., axis + 2, None]
            distance = (centres - boxes[..., axis, None]).abs()
            inside.append(distance <= boxes[..., axis + 2, None] / 2)
        return inside[0].unsqueeze(-1) & inside[1].unsqueeze(-2)

    def score(self, clip: Clip, generator: torch.Generator) -> dict[str, float]:
        """IoU, beside that of a box that stays; how well the mask covers the object's cells; the
        mean ratio of the sides of windows and boxes.
        """
        boxes = true_boxes(clip.motion)
        there = clip.motion.present & clip.motion.present[:, :1]
        trace = self._follow(clip.images, boxes[:, 0], there[:, 0], None)
        inside, said = self._inside(trace.windows, boxes), trace.mask > 0
        overlap = (inside & said).sum((-1, -2)) / (inside | said).sum((-1, -2)).clamp(min=1)
        ratio = (trace.windows[..., 2:] / boxes[..., 2:]).mean(-1)
        return {
            **score_boxes(trace.boxes, boxes, there, 0),
            "mask_iou": float(_mean(overlap[:, 1:], there[:, 1:])),
            "window_ratio": float(_mean(ratio[:, 1:], there[:, 1:])),
        }


def _kept(like: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """1 where a value is kept, 0 at `rate`."""
    return (torch.rand(like.shape, generator=generator, device=like.device) >= rate).to(like.dtype)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)


@register_model
def hart_full(**config: object) -> Hart:
    """HART with its dorsal and ventral streams."""
    return Hart(from_mapping(HartConfig, config))
