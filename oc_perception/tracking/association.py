# SPDX-License-Identifier: Apache-2.0
"""Which detection belongs to which track: likelihood ratios, a covariance gate and one optimal
assignment.

Every pair is scored by the log odds of "this detection is that track" against "the track was
missed and the detection is something new". Position enters by its predicted covariance, so the
gate is as wide as the ignorance of the track: narrow in view, wide after a blackout. Appearance
enters as the density under the track over the density under the population of everything in sight.
A dimension that tells objects apart (colour) therefore counts, and one that wanders as much within
a track as between tracks (position in the picture) cancels, without being told which is which. In
view, position outweighs a change of look; after a blackout it cannot, and a track does not take a
detection that clearly looks different.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from oc_perception.tracking.kalman import inverse_2x2


@dataclass(frozen=True)
class AppearanceModel:
    """Gaussian within-track variance of each appearance dimension, pooled over tracks and learned
    online.

    `squares` `(D,)` sum of squared deviations, `count` their (possibly discounted) number, prior
    included.
    """

    squares: np.ndarray
    count: float

    @classmethod
    def prior(cls, dimensions: int, variance: float, count: float) -> AppearanceModel:
        """`count` pseudo-observations of `variance` in each of `dimensions`."""
        return cls(np.full(dimensions, variance * count), count)

    @property
    def variance(self) -> np.ndarray:
        """`(D,)` within-track variance; never 0, so a constant dimension does no harm."""
        return np.maximum(self.squares / self.count, 1e-12)

    def log_ratio(self, means: np.ndarray, counts: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """`(N, M)` log density of `observed` `(M, D)` under tracks over that under the population.

        `means` `(N, D)` with `counts` `(N,)` observations each; a track without any scores 0.
        """
        known = counts > 0
        within = self.variance * (1 + 1 / np.maximum(counts, 1))[:, None]  # (N, D)
        # The population: whatever is in sight or remembered, and a few pseudo-objects, so that one
        # lonely object does not make itself the measure of all things.
        members = np.concatenate([means[known], observed])
        centre = members.mean(0)
        spread = 2 * 10 * self.variance + ((members - centre) ** 2).sum(0)
        population = np.maximum(spread / (2 + len(members)), self.variance)  # (D,)
        deviation = (observed[None] - means[:, None]) ** 2 / within[:, None]
        under_track = (deviation + np.log(within)[:, None]).sum(-1)
        under_population = ((observed - centre) ** 2 / population + np.log(population)).sum(-1)
        return np.where(known[:, None], (under_population[None] - under_track) / 2, 0.0)

    def learn(
        self,
        means: np.ndarray,
        counts: np.ndarray,
        observed: np.ndarray,
        track_memory: int,
        model_memory: int,
    ) -> tuple[AppearanceModel, np.ndarray, np.ndarray]:
        """Welford's update with matched rows; returns the model and the tracks' new means and
        counts.

        Deviations are taken from the mean over the last `track_memory` observations, long enough
        for slow wandering to show as variance. The pool forgets beyond `model_memory`
        observations.
        """
        deviation = observed - means
        shrink = counts / (counts + 1)  # a first observation says nothing about variance
        squares = self.squares + (deviation**2 * shrink[:, None]).sum(0)
        count = self.count + float((counts > 0).sum())
        forget = min(1.0, model_memory / count)
        new_counts = np.minimum(counts + 1, track_memory)
        model = replace(self, squares=squares * forget, count=count * forget)
        return model, means + deviation / new_counts[:, None], new_counts


def position_log_likelihood(
    means: np.ndarray, covariances: np.ndarray, positions: np.ndarray, noises: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log density `(N, M)` per px^2 of `positions` `(M, 2)` under tracks, and squared Mahalanobis
    distance `(N, M)`.

    `means` `(N, 4)`, `covariances` `(N, 4, 4)`, `noises` `(N, M, 2, 2)` measurement covariance of
    each pair.
    """
    innovation = positions[None] - means[:, None, :2]
    covariance = covariances[:, None, :2, :2] + noises
    distance = np.einsum(
        "nmi,nmij,nmj->nm", innovation, inverse_2x2(covariance), innovation, optimize=False
    )
    determinant = covariance[..., 0, 0] * covariance[..., 1, 1] - covariance[..., 0, 1] ** 2
    return -0.5 * (distance + np.log(determinant)) - math.log(2 * math.pi), distance


def chi_square_gate(probability: float) -> float:
    """Squared Mahalanobis radius that holds `probability` of a 2-D Gaussian."""
    return -2 * math.log1p(-probability)


def assign(log_odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the partial assignment with the greatest sum of `log_odds` `(N, M)`.

    Only pairs with positive odds are matched; -inf forbids a pair. Leaving a row or column alone
    scores 0.
    """
    gains = np.maximum(log_odds, 0.0)
    rows, columns = linear_sum_assignment(gains, maximize=True)
    matched = gains[rows, columns] > 0
    return rows[matched], columns[matched]
