# SPDX-License-Identifier: Apache-2.0
"""What motion models of torch believe of objects: Gaussians over position and velocity."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class MotionState:
    """Belief about N objects in B scenes, lengths in image widths.

    `means` `(B, N, 4)` position and velocity (1/s); `covariances` `(B, N, 4, 4)`; `memories` `(B,
    N, D)`; `ages_s` `(B, N)` since the last observation; `sizes` `(B, N, 2)`; `features` `(B, N,
    F)`; `active` `(B, N)` bool; `aspect` height of the view over its width.
    """

    means: Tensor
    covariances: Tensor
    memories: Tensor
    ages_s: Tensor
    sizes: Tensor
    features: Tensor
    active: Tensor
    aspect: float = 1.0

    def with_births(self, new: MotionState) -> MotionState:
        """With those objects of `new` begun that are active there and were not here."""
        born = new.active & ~self.active

        def chosen(old: Tensor, fresh: Tensor) -> Tensor:
            return torch.where(born.view(*born.shape, *[1] * (old.ndim - 2)), fresh, old)

        return replace(
            self,
            means=chosen(self.means, new.means),
            covariances=chosen(self.covariances, new.covariances),
            memories=chosen(self.memories, new.memories),
            ages_s=chosen(self.ages_s, new.ages_s),
            sizes=new.sizes,
            features=new.features,
            active=self.active | born,
        )

    def squared_distances(self, positions: Tensor) -> Tensor:
        """Squared Mahalanobis distances `(B, N)` of `positions` `(B, N, 2)`."""
        offset = positions - self.means[..., :2]
        weight = inverse(self.covariances[..., :2, :2])
        return (offset[..., None, :] @ weight @ offset[..., None])[..., 0, 0]

    def negative_log_likelihood(self, positions: Tensor) -> Tensor:
        """`(B, N)` of `positions` `(B, N, 2)`, in nats, with lengths in box widths."""
        covariance = self.covariances[..., :2, :2] / self.sizes.mean(-1)[..., None, None] ** 2
        a, b, d = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
        volume = (a * d - b * b).log()
        return 0.5 * (self.squared_distances(positions) + volume) + math.log(2 * math.pi)


def corrected(
    state: MotionState, detections: Tensor, noises: Tensor, seen: Tensor
) -> tuple[MotionState, Tensor, Tensor]:
    """`state` conditioned on `detections` `(B, N, 2)` of covariance `noises` `(B, N, 2, 2)` where
    `seen` `(B, N)`, in Joseph form; the innovation `(B, N, 2)`, 0 where not seen, and the
    covariance that was expected of it `(B, N, 2, 2)`.
    """
    means, covariances, mask = state.means, state.covariances, seen[..., None]
    innovation = torch.where(mask, detections - means[..., :2], 0.0)
    expected = covariances[..., :2, :2] + noises
    gain = torch.where(mask[..., None], covariances[..., :2] @ inverse(expected), 0.0)
    identity = torch.eye(4, dtype=means.dtype, device=means.device)
    keep = identity - functional.pad(gain, (0, 2))
    joseph = keep @ covariances @ keep.mT + gain @ noises @ gain.mT
    state = replace(
        state,
        means=means + (gain @ innovation[..., None])[..., 0],
        covariances=(joseph + joseph.mT) / 2,
        ages_s=torch.where(seen, 0.0, state.ages_s),
    )
    return state, innovation, expected


def inverse(matrix: Tensor) -> Tensor:
    """Of positive definite `(..., 2, 2)`."""
    a, b, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 1]
    adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-b, a], -1)], -2)
    return adjugate / (a * d - b * b)[..., None, None]
