# SPDX-License-Identifier: Apache-2.0
"""Particles of a video model as beliefs about objects: who is who in each of them, what all of
them say of one object, and what may become of it unseen.

S particles hold N slots each, `ids` `(S, N)` of objects with 0 where there is none. An id is that
of a track, or negative: a candidate that no track was made of.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from oc_perception.models.windows import boxes_of
from oc_perception.tracking.association import assign, position_log_likelihood
from oc_perception.tracking.foreground import View
from oc_perception.tracking.table import TrackTable

_APART_SIZES = 0.15
"""How far apart particles place an object when they discover it, standard deviation in sizes."""
_TO_4 = ((0, 0), (0, 2), (0, 2))
_SAME_STEPS = 1e-5
"""Numbers of steps that differ by less are one: stamps are whole nanoseconds, periods are not."""


def each(state: Any, change: Any) -> Any:
    """A model's state with `change` made to each of its tensors `(1, S, ...)`, of which weights
    are normalised again.
    """
    parts = (change(part) if isinstance(part, Tensor) else part for part in state)
    state = type(state)(*parts)
    return state._replace(log_weights=state.log_weights.log_softmax(1))


def together(first: Any, second: Any, log_weights: Tensor) -> Any:
    """The particles of two states, or outputs, of a model, with these weights `(1, S)`."""
    parts = (
        torch.cat(pair, 1) if isinstance(pair[0], Tensor) else pair[0]
        for pair in zip(first, second, strict=True)
    )
    return type(first)(*parts)._replace(log_weights=log_weights.log_softmax(1))


class Found(NamedTuple):
    """What S particles of `weights` `(S,)` have: `ids` and `probabilities` `(S, N)`."""

    ids: np.ndarray
    probabilities: np.ndarray
    weights: np.ndarray

    def share(self, objects: np.ndarray) -> np.ndarray:
        """How much weight `(M,)` has each of `objects` `(M,)`."""
        return self._sum(np.broadcast_to(self.weights[:, None], self.ids.shape), objects)

    def existence(self, objects: np.ndarray) -> np.ndarray:
        """How probable `(M,)` each of `objects` `(M,)` is."""
        return self._sum(self.weights[:, None] * self.probabilities, objects)

    def _sum(self, values: np.ndarray, objects: np.ndarray) -> np.ndarray:
        return (values[..., None] * (self.ids[..., None] == objects)).sum((0, 1))


def renamed(ids: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """`ids` with `new` `(M,)` for `old` `(M,)`."""
    same = ids[..., None] == old
    return np.where(same.any(-1), (same * new).sum(-1), ids)


def candidates(ids: np.ndarray, count: int) -> np.ndarray:
    """`count` negative ids that are not in `ids`."""
    return min(0, ids.min(initial=0)) - 1 - np.arange(count)


def identified(
    ids: np.ndarray,
    discovered: np.ndarray,
    boxes: np.ndarray,
    weights: np.ndarray,
    tracks: TrackTable,
    gate: float,
) -> np.ndarray:
    """`ids` `(S, N)` with those of what was `discovered` `(S, N)` bool in each particle.

    It is what is expected there, or what another particle has there, and not this one: the nearest
    within `gate` (squared Mahalanobis distance); else a new candidate. `boxes` are `(S, N, 4)` px.
    The particle of greatest weight comes first.
    """
    ids = ids.copy()
    for particle in np.argsort(-weights, kind="stable"):
        new = np.flatnonzero(discovered[particle])
        if not len(new):
            continue
        others, first = np.unique(ids, return_index=True)
        first = first[(others != 0) & ~np.isin(others, tracks.ids)]
        places, names = boxes.reshape(-1, 4)[first], np.r_[tracks.ids, ids.flat[first]]
        free = ~np.isin(names, ids[particle])
        _, distance = position_log_likelihood(
            np.r_[tracks.means, np.pad(places[:, :2], ((0, 0), (0, 2)))][free],
            np.r_[tracks.covariances, np.pad(_errors(places), _TO_4)][free],
            boxes[particle, new, :2],
            _errors(boxes[particle, new])[None],
        )
        rows, columns = assign(np.where(distance < gate, gate - distance, -np.inf))
        ids[particle, new[columns]] = names[free][rows]
        left = np.delete(new, columns)
        ids[particle, left] = candidates(ids, len(left))
    return ids


def _errors(boxes: np.ndarray) -> np.ndarray:
    """Covariances `(M, 2, 2)` of the places of `boxes` `(M, 4)`."""
    return (_APART_SIZES * boxes[:, 2:])[..., None] ** 2 * np.eye(2)


class Futures:
    """What becomes of particles without a frame, each in `samples` ways; steps of `period_s` are
    taken when they are asked for first.
    """

    def __init__(
        self,
        model: Any,
        state: Any,
        samples: int,
        view: View,
        period_s: float,
        generator: torch.Generator,
    ) -> None:
        self._model, self._view, self._generator = model, view, generator
        self._period_s = period_s
        self._states = [each(state, lambda part: part.repeat_interleave(samples, 1))]
        self._weights = self._states[0].log_weights[0].double().exp().numpy()

    @torch.inference_mode()
    def after(self, steps: int) -> Any:
        """The model's state."""
        while len(self._states) <= steps:
            state, _ = self._model.step(self._states[-1], None, self._generator)
            self._states.append(state)
        return self._states[steps]

    def moments(
        self, objects: np.ndarray, times_s: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each of `objects` `(M,)` after `times_s` `(T,)`, straight on between steps: the share
        of weight that has it `(T, M)`, and in this share means `(T, M, 4)` and covariances `(T, M,
        4, 4)` of place and velocity, and mean sizes `(T, M, 2)`; px and seconds, 0 without share.
        """
        steps = times_s / self._period_s
        whole = np.floor(steps + _SAME_STEPS).astype(int)
        self.after(int(whole.max(initial=-1)) + 1)
        ids = torch.cat([state.ids for state in self._states]).numpy()  # (steps, S, N)
        where = torch.cat([state.where for state in self._states])
        boxes = self._view.to_pixels(boxes_of(where, self._view.frame_size).double().numpy())
        same = ids[..., None] == objects  # (steps, S, N, M)
        has = same.any(2)
        boxes = np.einsum("tsnm,tsni->tsmi", same, boxes)
        now, later = boxes[whole], boxes[whole + 1]
        goes_on = (has[whole] & has[whole + 1])[..., None]
        velocity = np.where(goes_on, (later - now)[..., :2] / self._period_s, 0.0)
        ahead_s = np.maximum(steps - whole, 0.0)[:, None, None, None] * self._period_s
        motion = np.concatenate([now[..., :2] + ahead_s * velocity, velocity], -1)

        weights = self._weights[:, None] * has[whole]  # (T, S, M)
        share = weights.sum(1)
        weights = weights / np.maximum(share, np.finfo(float).tiny)[:, None]
        means = np.einsum("tsm,tsmi->tmi", weights, motion)
        apart = motion - means[:, None]
        covariances = np.einsum("tsm,tsmi,tsmj->tmij", weights, apart, apart)
        return share, means, covariances, np.einsum("tsm,tsmi->tmi", weights, now[..., 2:])
