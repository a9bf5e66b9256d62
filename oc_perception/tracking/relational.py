# SPDX-License-Identifier: Apache-2.0
"""The learned motion model behind the tracker: px and NumPy outside, widths and torch inside.

Predictions start at the belief they are asked about and go on in full ticks, with one shorter tick
at the end. The full ticks of the last belief are kept, so that a blackout costs one or two ticks
per frame, however long it lasts, and asking more often changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from oc_perception.models.beliefs import MotionState
from oc_perception.models.registry import load_model
from oc_perception.tracking.motion import Belief

if TYPE_CHECKING:
    from oc_perception.tracking.config import TrackerConfig

_SAME_S = 1e-7
"""Times that differ by less are one: stamps are whole nanoseconds, ticks are not."""


class RelationalMotion:
    """`models.relational` as a MotionModel; the weights are `config.motion_weights`.

    Raises ModelError where they are missing, damaged, or of another kind of model.
    """

    def __init__(self, config: TrackerConfig) -> None:
        # In double precision, like the rest of tracking; the networks are small.
        self._model = load_model(config.motion_weights, task="motion").double()
        self.memory_size = self._model.config.memory + 1  # and the time since the last observation
        self._told = config.motion_features
        self._origin: tuple[Belief, tuple[int, int]] | None = None
        self._ticks: list[MotionState] = []

    @torch.inference_mode()
    def predict(self, belief: Belief, image_size: tuple[int, int], dt_s: float) -> Belief:
        """See MotionModel."""
        state = self._after(belief, image_size, np.array([dt_s]))
        return _belief(belief, state, image_size)

    @torch.inference_mode()
    def forecast(
        self, belief: Belief, image_size: tuple[int, int], times_s: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See MotionModel."""
        if not len(times_s):
            return np.zeros((len(belief.means), 0, 4)), np.zeros((len(belief.means), 0, 4, 4))
        state = self._after(belief, image_size, times_s)
        means, covariances = _to_pixels(state, image_size)
        return means.swapaxes(0, 1), covariances.swapaxes(0, 1)

    @torch.inference_mode()
    def update(
        self,
        belief: Belief,
        image_size: tuple[int, int],
        rows: np.ndarray,
        positions: np.ndarray,
        noises: np.ndarray,
    ) -> Belief:
        """See MotionModel."""
        count, width = len(belief.means), image_size[1]
        if not count:
            return belief
        detections, spreads = np.zeros((count, 2)), np.tile(np.eye(2), (count, 1, 1))
        seen = np.zeros(count, bool)
        detections[rows], spreads[rows], seen[rows] = (
            (positions + 0.5) / width,
            noises / width**2,
            True,
        )
        state = self._model.update(
            self._state(belief, image_size),
            *(torch.from_numpy(array)[None] for array in (detections, spreads, seen)),
        )
        return _belief(belief, state, image_size)

    def _after(
        self, belief: Belief, image_size: tuple[int, int], times_s: np.ndarray
    ) -> MotionState:
        """One scene for each of `times_s` `(K,)`."""
        if self._origin is None or not _same(self._origin, (belief, image_size)):
            self._origin = (belief, image_size)
            self._ticks = [self._state(belief, image_size)]
        tick_s = self._model.config.tick_s
        whole = np.floor(times_s / tick_s + _SAME_S / tick_s).astype(int)
        while len(self._ticks) <= whole.max(initial=0):
            self._ticks.append(self._model.tick(self._ticks[-1], tick_s)[0])
        state = _stacked([self._ticks[k] for k in whole])
        rest = times_s - whole * tick_s
        short = rest > _SAME_S
        if not short.any():
            return state
        moved, _ = self._model.tick(state, torch.from_numpy(np.where(short, rest, tick_s)))
        return _chosen(torch.from_numpy(short), moved, state)

    def _state(self, belief: Belief, image_size: tuple[int, int]) -> MotionState:
        height, width = image_size
        features = np.zeros((len(belief.means), self._model.config.num_features))
        given = belief.features[:, : min(features.shape[1], self._told)]
        features[:, : given.shape[1]] = given
        means = belief.means.copy()
        means[:, :2] += 0.5  # the left edge of the image is at -0.5 px

        def scene(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, np.float64))[None]

        return MotionState(
            means=scene(means / width),
            covariances=scene(belief.covariances / width**2),
            memories=scene(belief.memories[:, :-1]),
            ages_s=scene(belief.memories[:, -1]),
            sizes=scene(belief.sizes / width),
            features=scene(features),
            active=torch.ones(1, len(means), dtype=torch.bool),
            aspect=height / width,
        )


def _same(one: tuple[Belief, tuple[int, int]], other: tuple[Belief, tuple[int, int]]) -> bool:
    """Whether both are made of the same arrays, for the same image."""
    pairs = zip(vars(one[0]).values(), vars(other[0]).values(), strict=True)
    return one[1] == other[1] and all(a is b for a, b in pairs)


def _stacked(states: list[MotionState]) -> MotionState:
    """Scenes one below the other."""
    names = ("means", "covariances", "memories", "ages_s", "sizes", "features", "active")
    return replace(
        states[0], **{name: torch.cat([getattr(s, name) for s in states]) for name in names}
    )


def _chosen(which: Tensor, one: MotionState, other: MotionState) -> MotionState:
    """Of `one` the scenes where `which` `(K,)`, else of `other`; only what a tick changes."""
    return replace(
        other,
        means=torch.where(which[:, None, None], one.means, other.means),
        covariances=torch.where(which[:, None, None, None], one.covariances, other.covariances),
        ages_s=torch.where(which[:, None], one.ages_s, other.ages_s),
    )


def _to_pixels(state: MotionState, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Means `(K, N, 4)` and covariances `(K, N, 4, 4)`."""
    width = image_size[1]
    means = state.means.numpy() * width
    means[..., :2] -= 0.5
    return means, state.covariances.numpy() * width**2


def _belief(belief: Belief, state: MotionState, image_size: tuple[int, int]) -> Belief:
    """`belief`, moved to a state of one scene."""
    means, covariances = _to_pixels(state, image_size)
    memories = torch.cat([state.memories, state.ages_s[..., None]], -1).numpy()
    return replace(belief, means=means[0], covariances=covariances[0], memories=memories[0])
