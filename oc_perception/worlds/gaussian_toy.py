# SPDX-License-Identifier: Apache-2.0
"""A Gaussian model of which everything is known: optimum, evidence, gradients (Rainforth et al.
2018, "Tighter Variational Bounds are Not Necessarily Better", section 4).

z ~ N(mean, I), x | z ~ N(z, I), q(z | x) = N(matrix x + bias, variance I); `mean` is generative,
theta, `matrix` and `bias` infer, phi.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Parameters(NamedTuple):
    """`mean` `(D,)`, `matrix` `(D, D)`, `bias` `(D,)`."""

    mean: Tensor
    matrix: Tensor
    bias: Tensor


class GaussianToy:
    """Data `(N, D)` drawn from the model with a standard normal true `mean`, on the device of
    `generator`; proposals of `variance`.
    """

    def __init__(
        self,
        generator: torch.Generator,
        points: int = 1024,
        dimensions: int = 20,
        variance: float = 2 / 3,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if points < 1 or dimensions < 1 or not variance > 0:
            raise ValueError(
                "points, dimensions and variance must be positive,"
                f" not {points}, {dimensions} and {variance}."
            )
        device = generator.device
        noise = torch.randn(
            2 * points + 1, dimensions, generator=generator, device=device, dtype=dtype
        )
        self.data = noise[0] + noise[1 : points + 1] + noise[points + 1 :]
        self.variance = variance

    def optimum(self) -> Parameters:
        """The maximum of the likelihood, and the posterior means, of every number of particles."""
        mean = self.data.mean(0)
        return Parameters(mean, torch.eye(len(mean)).to(mean) / 2, mean / 2)

    def near_optimum(self, offset_std: float, generator: torch.Generator) -> Parameters:
        """The optimum with a normal offset of each entry."""
        return Parameters(
            *(
                value
                + offset_std
                * torch.randn(
                    value.shape, generator=generator, device=value.device, dtype=value.dtype
                )
                for value in self.optimum()
            )
        )

    def log_evidence(self, mean: Tensor) -> Tensor:
        """log p(x) `(N,)`, exact."""
        squares = (self.data - mean).square().sum(1)
        return -squares / 4 - len(mean) / 2 * math.log(4 * math.pi)

    def log_weights(self, parameters: Parameters, noise: Tensor, detach: bool = False) -> Tensor:
        """log p(x, z) - log q(z | x) `(N, M, K)` at the z of standard normal `noise`
        `(N, M, K, D)`, differentiable; with the parameters of q detached in its density where
        `detach`, as `bounds.dreg` wants it.
        """
        x = self.data[:, None, None]
        center = (self.data @ parameters.matrix.T + parameters.bias)[:, None, None]
        z = center + math.sqrt(self.variance) * noise
        from_center = z - (center.detach() if detach else center)
        squares = (
            (z - parameters.mean).square()
            + (x - z).square()
            - from_center.square() / self.variance
        )
        constant = math.log(self.variance) - math.log(2 * math.pi)
        return (noise.shape[-1] * constant - squares.sum(-1)) / 2
