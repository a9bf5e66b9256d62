# SPDX-License-Identifier: Apache-2.0
"""Reweighted wake-sleep (Bornschein and Bengio 2015; Le et al. 2019): generative parameters climb
the importance-weighted bound, inference parameters descend KL(p(z | x) || q(z | x)).

`log_p` `(B, M, K)` is log p(x, z) and `log_q` `(B, M, K)` is log q(z | x) of ALL latents, discrete
and continuous, of B data points with M independent groups of K particles each. Samples are
detached: nothing flows through them, so neither relaxation nor control variate is needed. Each
loss is for its own parameters only (`bounds.backward`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oc_perception.objectives.bounds import Losses, log_mean_exp


def wake_theta(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Minus the bound log mean_k p(x, z_k) / q(z_k | x), with gradient through `log_p` only."""
    return -log_mean_exp(log_p - log_q.detach()).mean()


def wake_phi(log_p: Tensor, log_q: Tensor, log_proposal: Tensor | None = None) -> Tensor:
    """Cross entropy of q to the posterior, by self-normalised importance weights; particles drawn
    from `log_proposal` `(B, M, K)`, by default from q. Its bias vanishes as 1 / K.

    Raises ValueError for one particle in a group, whose weight would be one whatever it explains.
    """
    if log_p.shape[-1] < 2:
        raise ValueError("Wake-phi needs at least two particles in each group.")
    proposal = log_q if log_proposal is None else log_proposal
    weights = (log_p - proposal).detach().softmax(-1)
    return -(weights * log_q).sum(-1).mean()


def wake_wake(log_p: Tensor, log_q: Tensor) -> Losses:
    """Both losses from one set of particles. Raises ValueError for one particle in a group."""
    return Losses(wake_theta(log_p, log_q), wake_phi(log_p, log_q))


def sleep(log_q: Tensor) -> Tensor:
    """Cross entropy of q to the latents of dreams: `log_q`, of any shape, is log q(z | x) of pairs
    (z, x) that the model itself made.
    """
    return -log_q.mean()


def wake_sleep(log_p: Tensor, log_q: Tensor, dream_log_q: Tensor) -> Losses:
    """The bound for theta, dreams for phi: exact as far as dreams look like data."""
    return Losses(wake_theta(log_p, log_q), sleep(dream_log_q))


def defensive(log_q: Tensor, log_cover: Tensor | float, delta: float = 0.2) -> Tensor:
    """Log-probability under the mixture (1 - delta) q + delta cover, of one and the same sample
    under both. Raises ValueError unless 0 < `delta` < 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is the share of the covering distribution, not {delta}.")
    log_cover = torch.as_tensor(log_cover, dtype=log_q.dtype, device=log_q.device)
    return torch.logaddexp(log_q + math.log1p(-delta), log_cover + math.log(delta))


def delta_wake_wake(
    log_p: Tensor,
    log_q: Tensor,
    defensive_log_p: Tensor,
    defensive_log_q: Tensor,
    log_proposal: Tensor,
) -> Losses:
    """Wake-wake whose phi takes particles of its own, drawn from a mixture of q and a distribution
    that covers every branch, so that q finds branches that it does not sample.

    `defensive_log_p`, `defensive_log_q` and `log_proposal`, the density of the mixture
    (`defensive`), are of those particles; `log_p` and `log_q` of particles of q, for theta.
    """
    phi = wake_phi(defensive_log_p, defensive_log_q, log_proposal)
    return Losses(wake_theta(log_p, log_q), phi)
