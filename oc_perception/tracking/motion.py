# SPDX-License-Identifier: Apache-2.0
"""How objects move: what a motion model is, the classical ones, and how to choose one by name.

All lengths are px and all velocities px/s of an image of `image_size` `(height, width)`; pixel
centres are integers, so the image reaches from -0.5 to width - 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from oc_perception.tracking import kalman

if TYPE_CHECKING:
    from oc_perception.tracking.config import TrackerConfig


@dataclass(frozen=True)
class Belief:
    """What is believed of N objects at one time; arrays are never written in place, so a model may
    remember what it computed from one by the identity of `means`.
    """

    means: np.ndarray  # (N, 4) cx, cy, vx, vy
    covariances: np.ndarray  # (N, 4, 4)
    sizes: np.ndarray  # (N, 2) px, width and height of the box
    features: np.ndarray  # (N, A) mean embedding
    memories: np.ndarray  # (N, memory_size) what the model itself wrote down, 0 at birth


class MotionModel(Protocol):
    """Moves all objects at once, so that they may act on one another. All methods are pure."""

    memory_size: int
    """Length of an object's memory."""

    def predict(self, belief: Belief, image_size: tuple[int, int], dt_s: float) -> Belief:
        """The belief `dt_s` >= 0 seconds later."""

    def forecast(
        self, belief: Belief, image_size: tuple[int, int], times_s: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means `(N, K, 4)` and covariances `(N, K, 4, 4)` after `times_s` `(K,)` seconds, as
        `predict` would give them one by one.
        """

    def update(
        self,
        belief: Belief,
        image_size: tuple[int, int],
        rows: np.ndarray,
        positions: np.ndarray,
        noises: np.ndarray,
    ) -> Belief:
        """The belief after an observation: objects `rows` `(M,)` were seen at `positions` `(M, 2)`
        with error covariances `noises` `(M, 2, 2)`, all others were missed.
        """


class Kalman:
    """Each object by itself, with the damped velocity of kalman.py."""

    memory_size = 0

    def __init__(self, config: TrackerConfig) -> None:
        self._config = config

    def predict(self, belief: Belief, image_size: tuple[int, int], dt_s: float) -> Belief:
        """See MotionModel."""
        motion = self._config.kalman(image_size[1], belief.sizes)
        means, covariances = motion.predict(belief.means, belief.covariances, dt_s)
        return replace(belief, means=means, covariances=covariances)

    def forecast(
        self, belief: Belief, image_size: tuple[int, int], times_s: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See MotionModel."""
        motion = self._config.kalman(image_size[1], belief.sizes[:, None])
        return motion.predict(belief.means[:, None], belief.covariances[:, None], times_s)

    def update(
        self,
        belief: Belief,
        image_size: tuple[int, int],
        rows: np.ndarray,
        positions: np.ndarray,
        noises: np.ndarray,
    ) -> Belief:
        """See MotionModel."""
        return _with_rows(
            belief,
            rows,
            *kalman.update(belief.means[rows], belief.covariances[rows], positions, noises),
        )


class KalmanWalls(Kalman):
    """The Kalman filter in a closed box: the mean is reflected where the object would touch the
    border of the image, with its velocity. An axis on which the object fills the image is free.
    """

    def predict(self, belief: Belief, image_size: tuple[int, int], dt_s: float) -> Belief:
        """See MotionModel."""
        free = super().predict(belief, image_size, dt_s)
        means, covariances = _reflected(free.means, free.covariances, belief.sizes, image_size)
        return replace(free, means=means, covariances=covariances)

    def forecast(
        self, belief: Belief, image_size: tuple[int, int], times_s: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See MotionModel."""
        means, covariances = super().forecast(belief, image_size, times_s)
        return _reflected(means, covariances, belief.sizes[:, None], image_size)


class Hold(Kalman):
    """Objects stay where they are. Their velocity is 0 in the mean and new in every prediction,
    with the standard deviation of a new object's.
    """

    def predict(self, belief: Belief, image_size: tuple[int, int], dt_s: float) -> Belief:
        """See MotionModel."""
        means, covariances = self.forecast(belief, image_size, np.array([dt_s]))
        return replace(belief, means=means[:, 0], covariances=covariances[:, 0])

    def forecast(
        self, belief: Belief, image_size: tuple[int, int], times_s: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See MotionModel."""
        variance = (self._config.initial_speed_widths_per_s * image_size[1]) ** 2
        shape = (len(belief.means), len(times_s), 4)
        means, covariances = np.zeros(shape), np.zeros((*shape, 4))
        means[..., :2] = belief.means[:, None, :2]
        covariances[..., :2, :2] = belief.covariances[:, None, :2, :2]
        covariances[..., [0, 1], [0, 1]] += (variance * times_s**2)[:, None]
        covariances[..., [0, 1], [2, 3]] = (variance * times_s)[:, None]
        covariances[..., [2, 3], [0, 1]] = (variance * times_s)[:, None]
        covariances[..., [2, 3], [2, 3]] = variance
        return means, covariances


class ConstantVelocity(Kalman):
    """The straight line through the last two sightings of each object, without a filter.

    An object's memory is the time since its last sighting, s.
    """

    memory_size = 1

    def __init__(self, config: TrackerConfig) -> None:
        super().__init__(replace(config, velocity_decay_per_s=0.0))

    def predict(self, belief: Belief, image_size: tuple[int, int], dt_s: float) -> Belief:
        """See MotionModel."""
        predicted = super().predict(belief, image_size, dt_s)
        return replace(predicted, memories=belief.memories + dt_s)

    def update(
        self,
        belief: Belief,
        image_size: tuple[int, int],
        rows: np.ndarray,
        positions: np.ndarray,
        noises: np.ndarray,
    ) -> Belief:
        """See MotionModel."""
        elapsed = belief.memories[rows]  # (M, 1); the velocity was constant in it
        previous = belief.means[rows, :2] - elapsed * belief.means[rows, 2:]
        means = np.concatenate([positions, (positions - previous) / elapsed], 1)
        covariances = np.empty((len(rows), 4, 4))
        covariances[:, :2, :2] = noises
        covariances[:, :2, 2:] = covariances[:, 2:, :2] = noises / elapsed[..., None]
        covariances[:, 2:, 2:] = 2 * noises / elapsed[..., None] ** 2
        memories = belief.memories.copy()
        memories[rows] = 0.0
        return replace(_with_rows(belief, rows, means, covariances), memories=memories)


_CLASSICAL = {
    "kalman": Kalman,
    "kalman_walls": KalmanWalls,
    "constant_velocity": ConstantVelocity,
    "hold": Hold,
}


def create_motion_model(config: TrackerConfig) -> MotionModel:
    """The model that `config.motion_model` names; a learned one reads `config.motion_weights`.

    Raises ValueError where the weights are missing or damaged, or torch is not installed.
    """
    if config.motion_model in _CLASSICAL:
        return _CLASSICAL[config.motion_model](config)
    try:
        from oc_perception.tracking.relational import RelationalMotion  # needs torch
    except ImportError as error:
        raise ValueError(
            f"motion_model {config.motion_model!r} cannot be used ({error}): install torch, or "
            "choose motion_model kalman."
        ) from error
    return RelationalMotion(config)


def _with_rows(
    belief: Belief, rows: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> Belief:
    """`belief` with new moments in `rows`."""
    all_means, all_covariances = belief.means.copy(), belief.covariances.copy()
    all_means[rows], all_covariances[rows] = means, covariances
    return replace(belief, means=all_means, covariances=all_covariances)


def _reflected(
    means: np.ndarray, covariances: np.ndarray, sizes: np.ndarray, image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Moments `(..., 4)` and `(..., 4, 4)` folded into the box that the centre of an object of
    `sizes` `(..., 2)` can reach.
    """
    reach = np.array(image_size[::-1]) - sizes
    closed = reach > 0
    span = np.where(closed, reach, 1.0)
    low = (sizes - 1) / 2
    phase = (means[..., :2] - low) % (2 * span)
    turned = closed & (phase > span)
    inside = low + np.where(turned, 2 * span - phase, phase)
    sign = np.where(turned, -1.0, 1.0)
    signs = np.concatenate([sign, sign], -1)
    folded = np.concatenate([np.where(closed, inside, means[..., :2]), sign * means[..., 2:]], -1)
    return folded, covariances * signs[..., None] * signs[..., None, :]
