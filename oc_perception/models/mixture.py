# SPDX-License-Identifier: Apache-2.0
"""Generative models and inference networks of `worlds/mixture.py`, R of them side by side as one
batched computation (Le et al. 2019, section 5.2, in the sizes of its published code).

p_theta(z) = softmax(theta / 2), and q_phi(z | x) is the softmax of a 1-16-16-C tanh network of the
raw x, which at first tells neighbours badly apart.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from oc_perception.worlds.mixture import GaussianMixture


class Networks(nn.Module):
    """R networks of equal tanh layers, side by side: `(R, N, sizes[0])` to `(R, N, sizes[-1])`."""

    def __init__(self, count: int, sizes: tuple[int, ...], generator: torch.Generator) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            reach = 1 / math.sqrt(inputs)
            draw = torch.rand(count, inputs + 1, outputs, generator=generator)
            weight, bias = (reach * (2 * draw - 1)).split([inputs, 1], 1)
            self.weights.append(nn.Parameter(weight.contiguous()))
            self.biases.append(nn.Parameter(bias.contiguous()))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, without a nonlinearity after the last layer."""
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = x if index == last else x.tanh()
        return x


class MixtureModels(nn.Module):
    """R generative models and inference networks; `control` is the control variate of RELAX.

    `start` of the priors: `far` (falling as exp(-z)) or `near` (uniform).
    """

    def __init__(self, count: int, start: str, generator: torch.Generator) -> None:
        super().__init__()
        self.world = GaussianMixture()
        components = self.world.components
        falling = 2.0 * torch.arange(components - 1, -1, -1)
        theta = {"far": falling, "near": torch.ones(components)}[start]
        self.theta = nn.Parameter(theta.repeat(count, 1))
        self.network = Networks(count, (1, 16, 16, components), generator)
        self.control = Networks(count, (1 + components, 16, 16, 1), generator)

    def log_prior(self) -> Tensor:
        """`(R, C)`: log p_theta(z)."""
        return (self.theta / 2).log_softmax(-1)

    def log_posterior(self, x: Tensor) -> Tensor:
        """`(R, N, C)`: log q_phi(z | x) of `x` `(R, N)`."""
        return self.network(x.unsqueeze(-1)).log_softmax(-1)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """`(R, B, K)`: log p_theta(z, x) of `x` `(R, B)` and `z` `(R, B, K)`."""
        prior = self.log_prior().gather(-1, z.flatten(1)).view(z.shape)
        return prior + self.world.log_likelihood(x.unsqueeze(-1), z)
