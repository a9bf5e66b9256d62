# SPDX-License-Identifier: Apache-2.0
"""Gradients of importance-weighted bounds through discrete latents: REINFORCE and VIMCO.

`log_weights` is `(B, M, K)`: B data points, M independent groups of K particles each, every entry
log p(x, z) - log q(z | x), differentiable in the generative and the inference parameters (through
reparameterised continuous latents too). `log_q` `(B, M, K)` is the log-probability of the latents
that cannot be reparameterised, differentiable in the inference parameters. Per group the bound is
log mean_k w_k, and its gradient by the inference parameters has two terms,

    sum_k signal_k  grad log q(z_k | x)   +   grad log mean_k w_k,

of which the first is the score-function term: what differs between the estimators is its signal.
Losses are surrogates: their value is the score-function term minus the bound, what counts is
their gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oc_perception.objectives.bounds import Losses, log_mean_exp


def reinforce(log_weights: Tensor, log_q: Tensor, baseline: Tensor | float = 0.0) -> Losses:
    """The whole bound less a baseline as signal of every particle (Le et al. 2019, eq. 5).

    `baseline`, broadcast to `(B, M)`, must not depend on the particles; it is held fixed here.
    """
    log_evidence = log_mean_exp(log_weights)
    signal = (log_evidence - baseline).detach()
    return _surrogate(log_evidence, signal.unsqueeze(-1), log_q)


def vimco(log_weights: Tensor, log_q: Tensor) -> Losses:
    """The bound less what it would be without the particle (Mnih and Rezende 2016, eq. 9-12).

    Raises ValueError for fewer than two particles in a group.
    """
    log_evidence = log_mean_exp(log_weights)
    signal = log_evidence.detach().unsqueeze(-1) - leave_one_out(log_weights.detach())
    return _surrogate(log_evidence, signal, log_q)


def vimco_released(log_weights: Tensor, log_q: Tensor) -> Losses:
    """VIMCO with the particle's own log-weight in place of the bound, as public AIR and SQAIR
    code computes it: biased for the bound, and here to compare with.

    Raises ValueError for fewer than two particles in a group.
    """
    log_weights_fixed = log_weights.detach()
    signal = log_weights_fixed - leave_one_out(log_weights_fixed)
    return _surrogate(log_mean_exp(log_weights), signal, log_q)


def leave_one_out(log_weights: Tensor) -> Tensor:
    """`(..., K)`: log mean_k w_k with each particle in turn replaced by the geometric mean of the
    others, so entry k does not depend on w_k. Memory grows with K squared.

    Raises ValueError for fewer than two particles.
    """
    particles = log_weights.shape[-1]
    if particles < 2:
        raise ValueError("Leaving one particle out needs at least two in each group.")
    itself = torch.eye(particles, dtype=torch.bool, device=log_weights.device)
    rows = log_weights.unsqueeze(-2)
    others = torch.where(itself, 0.0, rows).sum(-1, keepdim=True) / (particles - 1)
    return torch.where(itself, others, rows).logsumexp(-1) - math.log(particles)


def _surrogate(log_evidence: Tensor, signal: Tensor, log_q: Tensor) -> Losses:
    loss = -(log_evidence + (signal * log_q).sum(-1)).mean()
    return Losses(loss, loss)
