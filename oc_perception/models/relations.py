# SPDX-License-Identifier: Apache-2.0
"""How trackers of several objects hear of one another, and what they remember: the part of MOHART
behind its eyes.

Relations (Fuchs et al. 2019, *End-to-end Recurrent Multi-Object Tracking and Trajectory Prediction
with Relational Reasoning*, section 4.2 and the variants it compares) map features `(..., M, D)` of
M objects to what each object hears, `(..., M, D)`. Absent objects, marked in `present` `(..., M)`,
neither send nor receive.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

_LARGEST_STEP = 2.0  # box sizes per frame
RELATIONS = ("none", "max_pool", "mlp", "self_attention")


class SelfAttention(nn.Module):
    """Multi-head self-attention (equations 4.1 to 4.3), with scaled scores."""

    def __init__(self, inputs: int, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(inputs, 3 * size)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        projected = self.project(features).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = projected.unbind(-3)  # (..., M, heads, D / heads)
        scores = torch.einsum("... i h d, ... j h d -> ... h i j", queries, keys)
        scores = scores / math.sqrt(queries.shape[-1])
        # A large finite number, because rows of -inf would be NaN where nobody is present.
        weights = scores.masked_fill(~present[..., None, None, :], -1e9).softmax(-1)
        return torch.einsum("... h i j, ... j h d -> ... i h d", weights, values).flatten(-2)


class MaxPool(nn.Module):
    """Everyone hears the maximum of what all have to say."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(inputs, size), nn.ELU(), nn.Linear(size, size))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        said = self.embed(features).masked_fill(~present[..., None], -1e9)
        return said.amax(-2, keepdim=True).expand_as(said)


class Exchange(nn.Module):
    """One MLP of all features in a row. It depends on the order of the objects, and there may not
    be more than `max_objects`.
    """

    def __init__(self, inputs: int, size: int, max_objects: int) -> None:
        super().__init__()
        self.max_objects, self.size = max_objects, size
        self.mlp = nn.Sequential(
            nn.Linear(max_objects * inputs, 2 * size),
            nn.ELU(),
            nn.Linear(2 * size, max_objects * size),
        )

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        objects = features.shape[-2]
        if objects > self.max_objects:
            raise ValueError(
                f"relations: mlp was built for {self.max_objects} objects, not {objects}: raise"
                " max_objects and train anew, or choose self_attention."
            )
        padding = (0, 0, 0, self.max_objects - objects)
        row = nn.functional.pad(features * present[..., None], padding).flatten(-2)
        return self.mlp(row).unflatten(-1, (self.max_objects, self.size))[..., :objects, :]


def create_relation(
    name: str, inputs: int, size: int, heads: int, max_objects: int
) -> nn.Module | None:
    """One of `RELATIONS`; None for "none". Raises ValueError for another name."""
    if name == "none":
        return None
    if name == "max_pool":
        return MaxPool(inputs, size)
    if name == "mlp":
        return Exchange(inputs, size, max_objects)
    if name == "self_attention":
        return SelfAttention(inputs, size, heads)
    raise ValueError(f"relations must be one of {', '.join(RELATIONS)}, not {name!r}")


class Memory(NamedTuple):
    """Of an LSTM for each object: `hidden` and `cell` `(B, M, D)`."""

    hidden: Tensor
    cell: Tensor


class Readout(NamedTuple):
    """`step`, `box` `(B, T, M, 4)`: how the box changes until the next frame, and until the
    one that is to be predicted; `room` `(B, T, M)` logit of what a window adds to its box;
    `presence` `(B, T, M)` logit; `velocity` `(B, T, M, 2)` in box sizes per frame; `gains` of a
    filter, if any.
    """

    step: Tensor
    box: Tensor
    room: Tensor
    presence: Tensor
    velocity: Tensor
    gains: Tensor


class Core(nn.Module):
    """Features, relation, memory, read-outs; the same weights for each object.

    `feedback`: objects also tell what they remember, without which they would have nothing to say
    while there are no images.
    """

    def __init__(
        self,
        inputs: int,
        size: int,
        relations: str,
        heads: int = 4,
        max_objects: int = 5,
        feedback: bool = False,
        gains: int = 0,
    ) -> None:
        super().__init__()
        self.size, self.feedback = size, feedback
        self.code = nn.Linear(inputs, size)
        self.features = nn.Sequential(nn.ELU(), nn.Linear(size, size), nn.ELU())
        told = 2 * size if feedback else size
        self.relation = create_relation(relations, told, size, heads, max_objects)
        self.lstm = nn.LSTMCell(size if self.relation is None else 2 * size, size)
        self.read = nn.Sequential(nn.Linear(size, size), nn.ELU(), nn.Linear(size, 12 + gains))
        self.shortcut = nn.Linear(inputs, 12 + gains, bias=False)
        for last in (self.read[2], self.shortcut):
            nn.init.uniform_(last.weight, -1e-3, 1e-3)
        nn.init.zeros_(self.read[2].bias)
        self.gain = nn.Parameter(torch.full((4,), 0.5))

    def initial_memory(self, batch: int, objects: int) -> Memory:
        """Nothing remembered."""
        zeros = self.code.weight.new_zeros(batch, objects, self.size)
        return Memory(zeros, zeros)

    def forward(
        self, inputs: Tensor, seen: Tensor | None, present: Tensor, memory: Memory
    ) -> tuple[Readout, Memory]:
        """From `inputs` `(B, T, M, P)` and what was `seen` `(B, T, M, D)`, added to their code;
        `present` `(B, T, M)`.
        """
        shape, code = memory.hidden.shape, self.code(inputs)
        features = self.features(code if seen is None else code + seen)
        if self.relation is not None and not self.feedback:
            features = self._with_heard(features, features, present)
        outputs = []
        for now, there in zip(features.unbind(1), present.unbind(1), strict=True):
            if self.relation is not None and self.feedback:
                now = self._with_heard(now, torch.cat([now, memory.hidden], -1), there)
            state = self.lstm(now.flatten(0, 1), tuple(part.flatten(0, 1) for part in memory))
            memory = Memory(*(part.view(shape) for part in state))
            outputs.append(memory.hidden)
        outputs = torch.stack(outputs, 1)
        read = self.read(outputs) + self.shortcut(inputs)
        step, box, room, presence, velocity, gains = read.tensor_split((4, 8, 9, 10, 12), -1)
        step = _LARGEST_STEP * self.gain.tanh() * step.tanh()
        readout = Readout(step, box, room.squeeze(-1), presence.squeeze(-1), velocity, gains)
        return readout, memory

    def _with_heard(self, features: Tensor, told: Tensor, present: Tensor) -> Tensor:
        heard = self.relation(told, present) * present[..., None]
        return torch.cat([features, heard], -1)


def code(boxes: Tensor, moved: Tensor) -> Tensor:
    """`(..., 6)`: where boxes are, how large, and how far they `moved` in the last frame, in box
    sizes.
    """
    centres, sizes = boxes.split(2, -1)
    return torch.cat([4 * centres - 2, moved / sizes, sizes.log() + 2], -1)
