# SPDX-License-Identifier: Apache-2.0
"""Batched Kalman filter of the image motion of objects; state `(cx, cy, vx, vy)` in px and px/s.

Velocity is an Ornstein-Uhlenbeck process: `dx = v dt`, `dv = -decay v dt + sqrt(diffusion) dW` on
each axis. With decay 0 it is the constant-velocity, white-noise-acceleration model. Both moments
are integrated in closed form, so two short predictions equal one long prediction: what a track
becomes depends on elapsed time only, not on how often it was asked while the camera was blind.

Source: Bar-Shalom, Li, Kirubarajan, *Estimation with Applications to Tracking and Navigation*,
2001, §6.2 (white-noise acceleration) and §5.3 (Joseph form).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Taylor coefficients of `_position_growth` around 0 (x = decay dt); below 0.5 the closed form
# cancels.
_SERIES_BELOW = 0.5
_SERIES = [(-1) ** (n + 1) * (2 ** (n - 1) - 2) / math.factorial(n) for n in range(3, 21)]


def _position_growth(x: np.ndarray) -> np.ndarray:
    """`(x - 2 (1 - e^-x) + (1 - e^-2x) / 2) / x^3`, accurate down to x = 0, where it is 1/3."""
    safe = np.maximum(x, _SERIES_BELOW)
    closed = (safe + 2 * np.expm1(-safe) - np.expm1(-2 * safe) / 2) / safe**3
    return np.where(x < _SERIES_BELOW, np.polynomial.polynomial.polyval(x, _SERIES), closed)


def _relaxation(x: np.ndarray) -> np.ndarray:
    """`(1 - e^-x) / x`, accurate down to x = 0, where it is 1."""
    safe = np.where(x > 0, x, 1.0)
    return np.where(x > 0, -np.expm1(-safe) / safe, 1.0)


@dataclass(frozen=True)
class MotionModel:
    """`diffusion_px2_per_s3` spectral density of the acceleration noise, `velocity_decay_per_s`
    damping, `wander_px2_per_s` growth of the variance of the place besides; the first and the
    last are one for all or `(...)`, one for each.
    """

    diffusion_px2_per_s3: float | np.ndarray
    velocity_decay_per_s: float = 0.0
    wander_px2_per_s: float | np.ndarray = 0.0

    def transition(self, dt_s: float | np.ndarray) -> np.ndarray:
        """F(dt) `(..., 4, 4)` for `dt_s` `(...)` seconds >= 0; F(a + b) = F(b) F(a)."""
        dt = _elapsed(dt_s)
        x = self.velocity_decay_per_s * dt
        return _both_axes(1.0, dt * _relaxation(x), 0.0, np.exp(-x))

    def process_noise(self, dt_s: float | np.ndarray) -> np.ndarray:
        """Q(dt) `(..., 4, 4)` for `dt_s` `(...)` seconds; Q(a + b) = F(b) Q(a) F(b)' + Q(b)."""
        dt = _elapsed(dt_s)
        x = self.velocity_decay_per_s * dt
        crossed = dt**2 * _relaxation(x) ** 2 / 2
        density = np.asarray(self.diffusion_px2_per_s3)
        return _both_axes(
            density * (dt**3 * _position_growth(x)) + self.wander_px2_per_s * dt,
            density * crossed,
            density * crossed,
            density * (dt * _relaxation(2 * x)),
        )

    def predict(
        self, mean: np.ndarray, covariance: np.ndarray, dt_s: float | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Moments after `dt_s`; `mean` `(..., 4)`, `covariance` `(..., 4, 4)`, all batch axes
        broadcast.
        """
        transition = self.transition(dt_s)
        predicted = transition @ covariance @ np.swapaxes(transition, -1, -2)
        return (
            (transition @ mean[..., None])[..., 0],
            _symmetric(predicted + self.process_noise(dt_s)),
        )


def update(
    mean: np.ndarray, covariance: np.ndarray, position: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Condition on measured positions, in Joseph form, so the covariance stays symmetric and
    positive.

    `mean` `(..., 4)`, `covariance` `(..., 4, 4)`, `position` `(..., 2)` px, `noise` `(..., 2, 2)`
    px^2.
    """
    gain = covariance[..., :2] @ inverse_2x2(covariance[..., :2, :2] + noise)
    keep = np.broadcast_to(np.eye(4), covariance.shape).copy()
    keep[..., :2] -= gain
    corrected = mean + (gain @ (position - mean[..., :2])[..., None])[..., 0]
    joseph = keep @ covariance @ np.swapaxes(keep, -1, -2) + gain @ noise @ np.swapaxes(
        gain, -1, -2
    )
    return corrected, _symmetric(joseph)


def inverse_2x2(matrix: np.ndarray) -> np.ndarray:
    """Inverse of positive definite `(..., 2, 2)` matrices."""
    a, b, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 1]
    inverse = np.empty_like(matrix)
    inverse[..., 0, 0], inverse[..., 1, 1] = d, a
    inverse[..., 0, 1] = inverse[..., 1, 0] = -b
    inverse /= (a * d - b * b)[..., None, None]
    return inverse


def _both_axes(
    xx: np.ndarray | float, xv: np.ndarray, vx: np.ndarray | float, vv: np.ndarray
) -> np.ndarray:
    """Matrices `(..., 4, 4)` over (cx, cy, vx, vy) that do the same on each axis, and do not mix
    them; the arguments are their entries for position and velocity.
    """
    result = np.zeros((*np.shape(xv), 4, 4))
    for axis in (0, 1):
        result[..., axis, axis] = xx
        result[..., axis, axis + 2] = xv
        result[..., axis + 2, axis] = vx
        result[..., axis + 2, axis + 2] = vv
    return result


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + np.swapaxes(matrix, -1, -2)) / 2


def _elapsed(dt_s: float | np.ndarray) -> np.ndarray:
    dt = np.asarray(dt_s, np.float64)
    if not (np.isfinite(dt).all() and (dt >= 0).all()):
        raise ValueError(f"Elapsed time must be finite and not negative, not {dt_s}.")
    return dt
