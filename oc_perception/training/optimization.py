# SPDX-License-Identifier: Apache-2.0
"""How weights follow their gradients, and an average follows the weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from oc_perception.training.recipe import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then half a cosine from the peak to the final value."""
    peak, final = config.learning_rate, config.final_learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return final + 0.5 * (1 + math.cos(math.pi * share)) * (peak - final)


def create_optimizer(config: TrainingConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Of the kind that the recipe names."""
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(model.parameters(), config.learning_rate)
    # Fused: five times as fast as one weight after the other, on CPUs too.
    return torch.optim.Adam(model.parameters(), config.learning_rate, config.betas, fused=True)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the weights of `average` towards those of `model` after update number `step`, and copy
    its buffers. The first updates count more, for the initial weights are worth nothing.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_([*average.parameters()], [*model.parameters()], 1 - decay)
    for copy, value in zip(average.buffers(), model.buffers(), strict=True):
        copy.copy_(value)
