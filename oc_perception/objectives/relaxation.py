# SPDX-License-Identifier: Apache-2.0
"""Continuous relaxations of categorical latents: RELAX and REBAR, which take them as control
variates of an unbiased gradient, and Concrete, which takes them as the model.

A sample is the largest of logits with Gumbel noise, z = argmax g. `log_probabilities`
`(..., C)` are normalised. Other shapes are those of `score_function`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from oc_perception.objectives.bounds import Losses, log_mean_exp

_SMALLEST = 1e-6  # of uniform draws, whose logarithms are taken


def gumbels(log_probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """`(..., C)`: g, whose largest entry is the sample."""
    return log_probabilities + _noise(log_probabilities, generator)


def conditional_gumbels(
    log_probabilities: Tensor, z: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """`(..., C)`: g with fresh noise, given that its largest entry is `z` `(...)` (Tucker et al.
    2017, App. C). Differentiable by the probabilities, `z` held fixed.
    """
    noise = _noise(log_probabilities, generator)
    largest = noise.gather(-1, z.unsqueeze(-1))
    others = -torch.logaddexp(-log_probabilities - noise, -largest)
    return others.scatter(-1, z.unsqueeze(-1), largest)


def relax(
    log_weights: Tensor, log_q: Tensor, control: Tensor, conditional_control: Tensor
) -> Losses:
    """REINFORCE of the bound with a control variate c (Grathwohl et al. 2018, eq. 7): c of the
    Gumbels in `control`, of the conditional Gumbels in `conditional_control`, both `(B, M)`.

    Unbiased whatever c is. c itself learns from `relax_gradients`.
    """
    log_evidence = log_mean_exp(log_weights)
    signal = (log_evidence - conditional_control).detach()
    correction = control - conditional_control
    loss = -(log_evidence + signal * log_q.sum(-1) + correction).mean()
    return Losses(loss, loss)


def relax_gradients(
    log_weights: Tensor,
    log_q: Tensor,
    control: Tensor,
    conditional_control: Tensor,
    phi: Iterable[Parameter],
) -> tuple[Tensor, ...]:
    """Gradients of `relax` by `phi`, themselves functions of the parameters of c: their mean
    square, minimised, is the variance of the estimate up to a constant (ibid., eq. 9).
    """
    log_evidence = log_mean_exp(log_weights)
    signal = log_evidence.detach() - conditional_control
    outputs = [log_q.sum(-1), log_evidence + control - conditional_control]
    upstream = [-signal / signal.numel(), torch.full_like(signal, -1 / signal.numel())]
    return torch.autograd.grad(outputs, tuple(phi), upstream, create_graph=True)


def rebar_control(
    gumbels: Tensor,
    relaxed_log_weights: Callable[[Tensor], Tensor],
    log_temperature: Tensor | float,
    scale: Tensor | float,
) -> Tensor:
    """`(B, M)`: the control variate of REBAR (Tucker et al. 2017), a multiple of the bound at
    relaxed latents.

    `relaxed_log_weights` gives log-weights `(B, M, K)` of points of the simplex `(B, M, K, C)`;
    `log_temperature` and `scale` are learned with `relax_gradients`.
    """
    temperature = torch.as_tensor(log_temperature, dtype=gumbels.dtype).exp()
    return scale * log_mean_exp(relaxed_log_weights((gumbels / temperature).softmax(-1)))


def log_concrete(
    log_probabilities: Tensor, temperature: float, generator: torch.Generator | None = None
) -> Tensor:
    """`(..., C)`: logarithm of a relaxed one-hot sample (Maddison et al. 2017), which has a
    gradient by the probabilities.
    """
    return (gumbels(log_probabilities, generator) / temperature).log_softmax(-1)


def log_concrete_density(log_y: Tensor, log_probabilities: Tensor, temperature: float) -> Tensor:
    """`(...)`: log-density of `log_y` `(..., C)`, in logarithmic coordinates (ibid., App. C.3)."""
    categories = log_y.shape[-1]
    exponents = log_probabilities - temperature * log_y
    constant = math.lgamma(categories) + (categories - 1) * math.log(temperature)
    return constant + exponents.sum(-1) - categories * exponents.logsumexp(-1)


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard Gumbel noise of that shape."""
    uniform = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return -(-uniform.clamp(_SMALLEST, 1 - _SMALLEST).log()).log()
