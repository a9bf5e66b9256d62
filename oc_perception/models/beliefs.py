# SPDX-License-Identifier: Apache-2.0
"""What motion models of torch believe of objects: Gaussians over position and velocity, and the
filter that carries them on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
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


class MotionFilter(nn.Module):
    """Beliefs through time, in ticks of at most `config.tick_s`. A model says how doubtful the
    speeds of new objects are, how objects move in a `tick`, and what they learn in an `update`;
    `config.memory` numbers are remembered of each.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("_identity", torch.eye(4), persistent=False)
        flight = torch.diag(torch.ones(2), 2)  # position gains velocity
        self.register_buffer("_flight", flight, persistent=False)

    def speed_variance(self, sizes: Tensor) -> Tensor:
        """`(B, N)` of objects of `sizes` `(B, N, 2)` that have just been seen first."""
        raise NotImplementedError

    def tick(self, state: MotionState, dt_s: float | Tensor) -> tuple[MotionState, Tensor]:
        """One tick of `dt_s` > 0 (a number, or `(B,)`), and the attention `(B, N, N)` that objects
        (second axis) pay to others (third).
        """
        raise NotImplementedError

    def update(
        self, state: MotionState, detections: Tensor, noises: Tensor, seen: Tensor
    ) -> MotionState:
        """Condition on `detections` `(B, N, 2)` of covariance `noises` `(B, N, 2, 2)` where `seen`
        `(B, N)`.
        """
        raise NotImplementedError

    def initial_state(
        self,
        positions: Tensor,
        sizes: Tensor,
        features: Tensor,
        active: Tensor,
        variance: Tensor,
        aspect: float = 1.0,
    ) -> MotionState:
        """Objects first seen at `positions` `(B, N, 2)`, measured with `variance` `(B, N)`."""
        speed = self.speed_variance(sizes)
        return MotionState(
            means=torch.cat([positions, torch.zeros_like(positions)], -1),
            covariances=torch.diag_embed(torch.stack([variance, variance, speed, speed], -1)),
            memories=positions.new_zeros(*variance.shape, self.config.memory),
            ages_s=torch.zeros_like(variance),
            sizes=sizes,
            features=features,
            active=active,
            aspect=aspect,
        )

    def step(
        self,
        state: MotionState,
        detections: Tensor | None,
        dt_s: float,
        noises: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> tuple[MotionState, MotionState]:
        """The state after `dt_s`, and the prediction before `detections` `(B, N, 2)` of covariance
        `noises` `(B, N, 2, 2)` corrected it; None: blind. `seen` `(B, N)`: which were detected.
        """
        predicted = self.predict(state, dt_s)
        if detections is None:
            return predicted, predicted
        seen = state.active if seen is None else seen & state.active
        return self.update(predicted, detections, noises, seen), predicted

    def predict(self, state: MotionState, dt_s: float) -> MotionState:
        """The belief after `dt_s` >= 0, in equal ticks."""
        ticks = math.ceil(dt_s / self.config.tick_s - 1e-6)
        for _ in range(ticks):
            state, _ = self.tick(state, dt_s / ticks)
        return state


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
