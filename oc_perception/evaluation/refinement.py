# SPDX-License-Identifier: Apache-2.0
"""What an iterative model believes after each of its iterations on one frame.

A model is iterative if it has `num_iterations`. It may have `refine(frames, num_iterations,
generator)`, which returns decomposition and ELBO of every iteration from 0 on (IODINE), or a state
with `slots`, which its `decode` turns into iteration 0 (Slot Attention).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from oc_perception.types import Decomposition


@dataclass(frozen=True)
class Refinement:
    """The `decomposition` after some iterations and, for probabilistic models, its `elbo` `(B,)`
    in nats.
    """

    decomposition: Decomposition
    elbo: Tensor | None = None


def is_iterative(model: nn.Module) -> bool:
    """Whether the number of iterations of `model` can be chosen."""
    return hasattr(model, "num_iterations")


def refinements(model: nn.Module, frames: Tensor, num_iterations: int) -> dict[int, Refinement]:
    """Results after 0, 1, ..., `num_iterations` iterations on `frames` `(B, 3, H, W)`; `model`
    stays as it was.

    Iteration 0 has not seen the frames; it is left out where the model cannot tell it. One pass
    where the model has `refine`; otherwise every number of iterations is run for itself.
    """
    if hasattr(model, "refine"):
        steps = model.refine(frames, num_iterations)
        return {
            count: Refinement(step.decomposition, step.elbo) for count, step in enumerate(steps)
        }
    state, results = model.initial_state(len(frames)), {}
    if hasattr(model, "decode") and hasattr(state, "slots"):
        log_masks, means = model.decode(state.slots)
        results[0] = Refinement(Decomposition(log_masks, means, state.slots))
    chosen = model.num_iterations
    try:
        for count in range(1, num_iterations + 1):
            model.num_iterations = count
            results[count] = Refinement(model.step(state, frames)[1])
    finally:
        model.num_iterations = chosen
    return results
