# SPDX-License-Identifier: Apache-2.0
"""MOHART without eyes: relation, memory and read-outs of `mohart.py` behind true states instead
of glimpses.

It trains in minutes, and tells whether a relation is wrong or vision is: what it gains over
`relations: none` is what the objects' pasts and looks can tell about each other's motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from oc_perception.configuration import from_mapping
from oc_perception.models.boxes import corrected, mismatch
from oc_perception.models.clips import score_boxes, true_boxes
from oc_perception.models.registry import register_model
from oc_perception.models.relations import RELATIONS, Core, code
from oc_perception.types import Motion


@dataclass(frozen=True)
class MohartStatesConfig:
    """Each object's input is its position, its size, `num_features` numbers of its look, and its
    last displacement or, with `true_velocity`, its velocity. The box is predicted `horizon` frames
    ahead.
    """

    relations: str = "self_attention"
    num_features: int = 1
    true_velocity: bool = True
    horizon: int = 1
    num_frames: int = 15
    size: int = 128
    heads: int = 4
    max_objects: int = 5

    def __post_init__(self) -> None:
        if self.relations not in RELATIONS:
            raise ValueError(f"relations must be one of {', '.join(RELATIONS)}")
        if not 1 <= self.horizon < self.num_frames - 2:
            raise ValueError("horizon must be at least 1 and below num_frames - 2")


class MohartStates(nn.Module):
    """Predicts boxes `(B, T, M, 4)` `horizon` frames ahead of `Motion`s."""

    task: ClassVar[str] = "motion"

    def __init__(self, config: MohartStatesConfig) -> None:
        super().__init__()
        self.config, self.num_frames = config, config.num_frames
        self.core = Core(
            6 + config.num_features,
            config.size,
            config.relations,
            config.heads,
            config.max_objects,
        )

    def forward(self, motion: Motion) -> tuple[Tensor, Tensor]:
        """Boxes `(B, T, M, 4)` and presence logits `(B, T, M)` at `t + horizon`, for every t."""
        boxes = true_boxes(motion)
        moved = motion.velocities * motion.dt_s
        if not self.config.true_velocity:
            moved = torch.diff(boxes[..., :2], dim=1, prepend=boxes[:, :1, :, :2])
        inputs = torch.cat([code(boxes, moved), motion.features], -1)
        memory = self.core.initial_memory(boxes.shape[0], boxes.shape[2])
        readout, _ = self.core(inputs, None, motion.present, memory)
        return corrected(boxes, readout.box), readout.presence

    def loss(
        self, motion: Motion, generator: torch.Generator, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Mismatch of boxes from the second frame on, and cross-entropy of presence."""
        boxes, logits = self(motion)
        ahead = self.config.horizon
        targets = true_boxes(motion)[:, 1 + ahead :]
        boxes, logits = boxes[:, 1:-ahead], logits[:, 1:-ahead]
        there = motion.present[:, 1 + ahead :]
        scored = (there & motion.present[:, 1:-ahead]).float()
        tracking = (mismatch(boxes, targets) * scored).sum() / scored.sum().clamp(min=1)
        presence = nn.functional.binary_cross_entropy_with_logits(logits, there.float())
        return {"loss": tracking + presence, "tracking": tracking, "presence": presence}

    def score(self, motion: Motion, generator: torch.Generator) -> dict[str, float]:
        """Mean IoU `horizon` frames ahead, from the second frame on: of the predicted box, of a
        box that stays, and of one that moves on as in the last frame.
        """
        boxes = true_boxes(motion)
        return score_boxes(self(motion)[0], boxes, motion.present, self.config.horizon)


@register_model
def mohart_states(**config: object) -> MohartStates:
    """The ablation of MOHART behind its eyes."""
    return MohartStates(from_mapping(MohartStatesConfig, config))
