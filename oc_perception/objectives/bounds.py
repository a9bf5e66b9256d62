# SPDX-License-Identifier: Apache-2.0
"""Variational bounds from importance weights: ELBO, IWAE, MIWAE, CIWAE, PIWAE; DReG.

All take `log_weights` `(B, M, K)`: log p(x, z) - log q(z | x) of B data points, with M independent
groups of K particles z ~ q each, and give `Losses`: negative bounds in nats, means over the data
points. Of one loss each (VAE, IWAE, MIWAE, CIWAE), `losses.theta.backward()` will do; of two,
`backward(losses, theta, phi)`.

More particles K make the bound tighter and the gradient of the generative network better, while
that of the inference network loses its signal as 1/sqrt(K) (Rainforth et al. 2018, "Tighter
Variational Bounds are Not Necessarily Better", Theorem 1); more groups M are better for both.
MIWAE, CIWAE and PIWAE (ibid., section 5) trade one for the other at the same cost M K. Where
M = 1, MIWAE and PIWAE are IWAE; where K = 1, MIWAE is the VAE.

For gradients of phi, latents must be reparameterised. Keep log q a function of phi both through
the sample and through the parameters of q; only `dreg` wants the latter detached.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter


class Losses(NamedTuple):
    """Scalars to be minimised: `theta`, whose gradient the generative parameters take, and `phi`,
    for those of inference; one and the same tensor where one loss serves both.
    """

    theta: Tensor
    phi: Tensor


def backward(losses: Losses, theta: Iterable[Parameter], phi: Iterable[Parameter]) -> None:
    """Add to `.grad` of each set of parameters the gradient of its own loss, and of no other.

    Parameters that are frozen or not in the graph are left alone. The graph is freed. Raises
    ValueError where a parameter is in both sets.
    """
    theta, phi = list(theta), list(phi)
    if {id(parameter) for parameter in theta} & {id(parameter) for parameter in phi}:
        raise ValueError(
            "A parameter is in theta and in phi: give it to the network whose loss trains it."
        )
    theta, phi = ([p for p in group if p.requires_grad] for group in (theta, phi))
    if losses.theta is losses.phi:
        passes = [(losses.theta, theta + phi)]
    else:
        passes = [(losses.theta, theta), (losses.phi, phi)]
    passes = [(loss, group) for loss, group in passes if group]
    for index, (loss, group) in enumerate(passes):
        loss.backward(inputs=group, retain_graph=index < len(passes) - 1)


def elbo(log_weights: Tensor) -> Losses:
    """The bound of the VAE, one particle at a time: the mean over M and K."""
    return _one(_checked(log_weights).mean())


def iwae(log_weights: Tensor) -> Losses:
    """One bound from all M K particles (Burda et al. 2016)."""
    return _one(log_mean_exp(_checked(log_weights).flatten(1)).mean())


def miwae(log_weights: Tensor) -> Losses:
    """Mean over M of bounds of K particles each (Rainforth et al. 2018, section 5)."""
    return _one(log_mean_exp(_checked(log_weights)).mean())


def ciwae(log_weights: Tensor, beta: float) -> Losses:
    """`beta` of the ELBO and 1 - `beta` of IWAE, of the same weights (ibid.).

    Raises ValueError unless 0 <= `beta` <= 1.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is the share of the ELBO, from 0 to 1, not {beta}.")
    return _one(-beta * elbo(log_weights).theta - (1 - beta) * iwae(log_weights).theta)


def piwae(log_weights: Tensor) -> Losses:
    """For theta IWAE of all M K particles, for phi MIWAE of the same weights (ibid.)."""
    return Losses(iwae(log_weights).theta, miwae(log_weights).phi)


def dreg(log_weights: Tensor) -> Losses:
    """IWAE of all M K particles, its gradient for phi doubly reparameterised (Tucker et al. 2019):
    unbiased, with a signal-to-noise ratio that does not fall as K grows.

    `log_weights` must hold log q(z | x) with the parameters of q detached, so that phi acts
    through the reparameterised z alone; only continuous latents have such a gradient.
    """
    flat = _checked(log_weights).flatten(1)
    theta = iwae(log_weights).theta
    squares = flat.detach().softmax(1).square()
    surrogate = -(squares * flat).sum(1).mean()
    return Losses(theta, surrogate - surrogate.detach() + theta.detach())


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Log of the mean weight over the last dimension: the bound of K particles, `(..., K)` to
    `(...)`.
    """
    return log_weights.logsumexp(-1) - math.log(log_weights.shape[-1])


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over the last dimension, `(..., K)` to `(...)`: from 1 to K."""
    return (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp()


@torch.no_grad()
def log_evidence(chunks: Iterable[Tensor]) -> Tensor:
    """The IWAE bound `(B,)` of all particles in `chunks`, each of log-weights `(B, M, K)` or
    `(B, K)`, held one at a time and accumulated in double precision, without gradients.

    Raises ValueError where there is none.
    """
    total, count = None, 0
    for chunk in chunks:
        flat = chunk.double().flatten(1)
        part = flat.logsumexp(1)
        total = part if total is None else torch.logaddexp(total, part)
        count += flat.shape[1]
    if total is None:
        raise ValueError("There are no log-weights to average: give at least one chunk.")
    return total - math.log(count)


def _one(bound: Tensor) -> Losses:
    loss = -bound
    return Losses(loss, loss)


def _checked(log_weights: Tensor) -> Tensor:
    if log_weights.ndim != 3 or not log_weights.numel():
        raise ValueError(
            "Log-weights must be (data points, groups M, particles K), none of them 0, not"
            f" {tuple(log_weights.shape)}: unsqueeze(1) adds the one group of a plain IWAE."
        )
    return log_weights
