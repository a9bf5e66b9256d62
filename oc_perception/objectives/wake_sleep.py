# SPDX-License-Identifier: Apache-2.0
"""Reweighted wake-sleep (Bornschein and Bengio 2015; Le et al. 2019): generative parameters climb
the importance-weighted bound, inference parameters descend KL(p(z | x) || q(z | x)).

`log_p` `(B, M, K)` is log p(x, z) and `log_q` `(B, M, K)` is log q(z | x) of ALL latents, discrete
and continuous, of B data points with M independent groups of K particles each. Samples are
detached: nothing flows through them, so neither relaxation nor control variate is needed. Each
loss is for its own parameters only (`bounds.backward`).
"""

from __future__ import annotations

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
