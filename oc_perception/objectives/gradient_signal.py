# SPDX-License-Identifier: Apache-2.0
"""How much of a stochastic gradient is signal: diagnostics for any model and objective.

Independent estimates of one gradient are `(R, D)`: R repeats of D parameters. After Rainforth et
al. (2018, "Tighter Variational Bounds are Not Necessarily Better", section 4). A low ratio is
always bad; a high one does not prove that the target is good. The effective sample size of
log-weights is in `bounds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def sample_gradients(
    loss: Callable[[], Tensor],
    parameters: Iterable[Tensor],
    repeats: int,
    generator: torch.Generator,
    entries: int = 20,
) -> Tensor:
    """Gradients `(repeats, D)` of `loss()`, which draws fresh noise at each call, by `entries`
    random weights of each of `parameters` (all, where it has fewer). `.grad` is left alone.

    `generator`, on the CPU, chooses the weights. Raises ValueError if `repeats` is below 2.
    """
    if repeats < 2:
        raise ValueError(f"A ratio of signal to noise needs at least 2 repeats, not {repeats}.")
    parameters = list(parameters)
    chosen = [
        torch.randperm(p.numel(), generator=generator)[:entries].to(p.device) for p in parameters
    ]
    estimates = []
    for _ in range(repeats):
        gradients = torch.autograd.grad(
            loss(), parameters, allow_unused=True, materialize_grads=True
        )
        parts = [g.flatten()[index] for g, index in zip(gradients, chosen, strict=True)]
        estimates.append(torch.cat(parts))
    return torch.stack(estimates)


def signal_to_noise(estimates: Tensor) -> Tensor:
    """|mean| / standard deviation of each parameter, `(D,)`: 0 where it has no gradient.

    Of pure noise this is about 0.8 / sqrt(R), see `rms_signal_to_noise`.
    """
    mean, std = estimates.mean(0).abs(), estimates.std(0)
    return torch.where(mean > 0, mean / std, 0.0)


def rms_signal_to_noise(estimates: Tensor) -> float:
    """Root mean square over the parameters of the ratio, without the part that noise has in the
    mean: 0 for pure noise, up to chance. Parameters without a gradient are left out.
    """
    mean, variance = estimates.mean(0), estimates.var(0)
    moving = variance > 0
    mean, variance = mean[moving], variance[moving]
    if not len(mean):
        return 0.0
    signal = (mean.square() - variance / len(estimates)).clamp(min=0)
    return (signal / variance).mean().sqrt().item()


def directional_signal_to_noise(estimates: Tensor, direction: Tensor | None = None) -> float:
    """Mean ratio of what points along `direction` `(D,)`, by default the mean estimate, to what is
    across. Compare `random_directional`: the ratio of vectors without any signal is not 0.
    """
    direction = estimates.mean(0) if direction is None else direction
    along = estimates @ (direction / direction.norm())
    across = (estimates.square().sum(1) - along.square()).clamp(min=0).sqrt()
    return (along.abs() / across).mean().item()


def random_directional(dimensions: int) -> float:
    """What `directional_signal_to_noise` is for standard normal vectors and a fixed direction, in
    expectation; `dimensions` must be at least 3.
    """
    half = (dimensions - 1) / 2
    return math.exp(math.lgamma(half - 0.5) - math.lgamma(half)) / math.sqrt(math.pi)


def slope(x: Iterable[float], y: Iterable[float]) -> float:
    """Of log `y` against log `x`, by least squares: the exponent of a power law."""
    x, y = (torch.tensor(list(values), dtype=torch.float64).log() for values in (x, y))
    x = x - x.mean()
    return (x @ y / x.square().sum()).item()
