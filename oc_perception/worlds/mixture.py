# SPDX-License-Identifier: Apache-2.0
"""A mixture of Gaussians on a line, in which posteriors are known: z in 0..C-1 with probability
proportional to z + 5, x | z ~ N(10 z, 5^2) (Le et al. 2019, section 5.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianMixture:
    """Points `x` of any shape and their components `z` of the same shape. Priors are
    log-probabilities `(..., C)`, which `true_log_prior` gives for the data.
    """

    components: int = 20
    spacing: float = 10.0
    std: float = 5.0

    def true_log_prior(self) -> Tensor:
        """`(C,)`: that of the data."""
        return (torch.arange(self.components) + 5.0).log().log_softmax(0)

    def sample(
        self, log_prior: Tensor, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Components and points, both `(..., count)`, of mixtures with `log_prior` `(..., C)`."""
        z = sample_categorical(log_prior, count, generator)
        noise = torch.randn(z.shape, generator=generator)
        return z, self.spacing * z + self.std * noise

    def log_likelihood(self, x: Tensor, position: Tensor) -> Tensor:
        """log p(x | z), of components or of points between them."""
        squares = ((x - self.spacing * position) / self.std).square()
        return -squares / 2 - math.log(self.std * math.sqrt(2 * math.pi))

    def posterior(self, x: Tensor, log_prior: Tensor) -> Tensor:
        """`(..., C)`: p(z | x) of `x` `(...)`; `log_prior` broadcasts to that shape."""
        positions = torch.arange(self.components, dtype=x.dtype)
        return (log_prior + self.log_likelihood(x.unsqueeze(-1), positions)).softmax(-1)


def sample_categorical(
    log_probabilities: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Indices `(..., count)` drawn from `log_probabilities` `(..., C)`, without gradients."""
    cumulative = log_probabilities.detach().exp().cumsum(-1)
    uniform = torch.rand(*cumulative.shape[:-1], count, generator=generator)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True)
    return drawn.clamp(max=cumulative.shape[-1] - 1)
