# SPDX-License-Identifier: Apache-2.0
"""The two ends of the blackout benchmark's scale: classical filters with the best noise there is
for them, and the physics oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from oc_perception.evaluation.blackout_scores import SequenceTruth
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.motion import Belief, create_motion_model
from oc_perception.types import Segmentation, SensorState, Track, TrackOutput, TrackState
from oc_perception.worlds.discs import DiscMotion, Discs

FIT_FRAMES = 20
"""Noisy frames that the oracle's knowledge comes from."""
_ORACLE_GATE_DIAMETERS = 2.0
_DIFFUSIONS = np.geomspace(0.003, 3.0, 16)  # widths/s gained in one second


# The oracle


def line_fit_covariance(frames: int, noise_std: float, dt_s: float) -> np.ndarray:
    """Covariance `(2, 2)` of position and velocity at the end of a straight line fitted to
    `frames` >= 2 positions, `dt_s` apart, each with an error of `noise_std`.
    """
    m = frames
    position = 2 * (2 * m - 1) / (m * (m + 1))
    crossed = 6 / (m * (m + 1) * dt_s)
    velocity = 12 / (m * (m * m - 1) * dt_s**2)
    return noise_std**2 * np.array([[position, crossed], [crossed, velocity]])


def oracle_forecasts(
    world: Discs,
    motion: DiscMotion,
    seen: np.ndarray,
    noise_std_widths: float,
    generator: torch.Generator,
) -> list[dict[int, np.ndarray]]:
    """For each sequence, by the last frame before each blackout of `seen` `(B, T)`: where the
    objects will be in the frames after it, up to the first that is seen, `(K, N, 2)` widths.

    The laws are known and the start is not: it is the truth plus one draw from what the frames
    seen among the last `FIT_FRAMES` leave uncertain. A law carries that uncertainty through
    collisions and forces as it carries the state, so that of a straight line is taken.
    """
    forecasts: list[dict[int, np.ndarray]] = [{} for _ in range(len(seen))]
    for frame in np.flatnonzero((seen[:, :-1] & ~seen[:, 1:]).any(0)).tolist():
        rows = np.flatnonzero(seen[:, frame] & ~seen[:, frame + 1])
        blind = np.cumprod(~seen[rows, frame + 1 :], 1).sum(1)
        window = motion[torch.from_numpy(rows)]
        counts = seen[rows, max(0, frame + 1 - FIT_FRAMES) : frame + 1].sum(1)
        roots = np.stack(
            [
                _root(line_fit_covariance(max(2, int(count)), noise_std_widths, motion.dt_s))
                for count in counts
            ]
        )
        shape = (*window.positions[:, frame].shape, 2)
        draws = torch.randn(shape, generator=generator, dtype=torch.float64)
        errors = torch.einsum("bij,bndj->bndi", torch.from_numpy(roots), draws)
        start = window.positions[:, frame].double() + errors[..., 0]
        velocity = window.velocities[:, frame].double() + errors[..., 1]
        places = world.continue_from(start, velocity, window, frame, int(blind.max()) + 1)
        for row, place in zip(rows.tolist(), places.numpy(), strict=True):
            forecasts[row][frame] = place
    return forecasts


def _root(covariance: np.ndarray) -> np.ndarray:
    """Lower triangular root, also of 0."""
    return np.linalg.cholesky(covariance) if covariance.any() else covariance


@dataclass(frozen=True)
class OracleState:
    """`ids` `(N,)` the track of each object (0: none); `frame` the last one that was seen."""

    session: bytes
    ids: np.ndarray
    next_id: int = 1
    frame: int = -1
    blind: bool = False


class Oracle:
    """Knows the laws, and in frames that are seen also who is who; the protocol of `Tracker`.

    After a blackout it must tell by position: detections go to the predictions by the least sum
    of distances within a gate. It reports no covariance.
    """

    def __init__(self, truth: SequenceTruth, forecasts_px: dict[int, np.ndarray]) -> None:
        self._truth = truth
        self._forecasts = forecasts_px
        self._gate_px = _ORACLE_GATE_DIAMETERS * truth.diameter_px
        self._frames = {int(stamp): k for k, stamp in enumerate(truth.stamps_ns)}

    def initial_state(
        self, session: bytes, image_size: tuple[int, int] | None = None
    ) -> OracleState:
        """No tracks yet."""
        return OracleState(session, np.zeros(self._truth.positions.shape[1], np.int64))

    def step(
        self, state: OracleState, segmentation: Segmentation | None, stamp_ns: int
    ) -> tuple[OracleState, TrackOutput]:
        """Advance; a detection's label is 1 + the number of its object, or more for clutter."""
        frame = self._frames[stamp_ns]
        if segmentation is None or segmentation.sensor_state != SensorState.OK:
            places = self._forecasts[state.frame][frame - state.frame - 1]
            state = replace(state, blind=True)
            return state, self._output(state, frame, places, np.zeros(len(places), bool))
        count = len(state.ids)
        places = self._truth.positions[frame].copy()
        seen = np.zeros(count, bool)
        for detection in segmentation.objects:
            if detection.label <= count:
                seen[detection.label - 1] = True
                places[detection.label - 1] = detection.box[:2]
        ids = np.where(self._truth.present[frame], state.ids, 0)
        if state.blind:
            predicted = self._forecasts[state.frame][frame - state.frame - 1]
            ids = self._recognized(state.ids, predicted, places, seen, ids)
        new = seen & (ids == 0)
        ids[new] = state.next_id + np.arange(new.sum())
        state = OracleState(state.session, ids, state.next_id + int(new.sum()), frame)
        return state, self._output(state, frame, places, seen)

    def _recognized(
        self,
        old: np.ndarray,
        predicted: np.ndarray,
        places: np.ndarray,
        seen: np.ndarray,
        ids: np.ndarray,
    ) -> np.ndarray:
        """The ids of objects `seen` `(N,)` at `places`, from tracks `old` last `predicted`."""
        tracks, objects = np.flatnonzero(old), np.flatnonzero(seen)
        distance = np.linalg.norm(predicted[tracks, None] - places[None, objects], axis=-1)
        close = np.maximum(self._gate_px - distance, 0.0)
        rows, columns = linear_sum_assignment(close, maximize=True)
        matched = close[rows, columns] > 0
        taken = old[tracks[rows[matched]]]
        ids = np.where(seen | np.isin(ids, taken), 0, ids)
        ids[objects[columns[matched]]] = taken
        return ids

    def _output(
        self, state: OracleState, frame: int, places: np.ndarray, seen: np.ndarray
    ) -> TrackOutput:
        stamps = self._truth.stamps_ns
        tracks = tuple(
            Track(
                id=int(state.ids[i]),
                state=TrackState.CONFIRMED if seen[i] else TrackState.COASTING,
                box=np.concatenate([places[i], self._truth.sizes[state.frame, i]]),
                velocity=np.zeros(2),
                covariance=np.full((4, 4), np.nan),
                existence_probability=1.0,
                age=frame + 1,
                hits=frame + 1,
                last_seen_ns=int(stamps[state.frame]),
            )
            for i in np.flatnonzero(state.ids)
        )
        sensor_state = SensorState.STALE if state.blind else SensorState.OK
        return TrackOutput(
            int(stamps[frame]), int(stamps[state.frame]), state.session, sensor_state, tracks, ()
        )


# The classical filters


def tune_diffusion(
    config: TrackerConfig,
    truths: Sequence[SequenceTruth],
    objective: str,
    ages: int,
    generator: np.random.Generator,
) -> float:
    """The `velocity_diffusion_widths` with which the motion model of `config` predicts best.

    `truths` are validation sequences: `FIT_FRAMES` frames seen with the error of
    `measurement_std_widths`, then `ages` predicted. `objective`: "ade" mean error, or "nll" mean
    negative log density, over all of these.
    """
    frames = FIT_FRAMES + ages
    lasting = [truth.present[:frames].all(0) for truth in truths]
    # Classical filters take each object by itself, so all sequences are one.
    paths, sizes = (
        np.concatenate(
            [getattr(t, name)[:frames, items] for t, items in zip(truths, lasting, strict=True)], 1
        )
        for name in ("positions", "sizes")
    )
    std = config.measurement_std_widths * truths[0].image_size[1]
    seen = paths + std * generator.standard_normal(paths.shape)
    times_s = (truths[0].stamps_ns[:frames] - truths[0].stamps_ns[0]) * 1e-9
    scores = []
    for diffusion in _DIFFUSIONS:
        tried = replace(config, velocity_diffusion_widths=float(diffusion))
        means, covariances = _predict(tried, seen, sizes, times_s, truths[0].image_size)
        offset = paths[FIT_FRAMES:].swapaxes(0, 1) - means
        distance = (offset * np.linalg.solve(covariances, offset[..., None])[..., 0]).sum(-1)
        density = distance + np.linalg.slogdet(covariances)[1]
        scores.append({"ade": np.linalg.norm(offset, axis=-1), "nll": density}[objective].mean())
    return float(_DIFFUSIONS[int(np.argmin(scores))])


def _predict(
    config: TrackerConfig,
    seen: np.ndarray,
    sizes: np.ndarray,
    times_s: np.ndarray,
    image_size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Positions `(N, K, 2)` px predicted from the first frames of `seen` `(T, N, 2)` for the K
    others, and their covariances.
    """
    model, width, count = create_motion_model(config), image_size[1], seen.shape[1]
    stds = [config.measurement_std_widths * width, config.initial_speed_widths_per_s * width]
    belief = Belief(
        means=np.concatenate([seen[0], np.zeros((count, 2))], 1),
        covariances=np.tile(np.diag(np.repeat(stds, 2) ** 2), (count, 1, 1)),
        sizes=sizes[0],
        features=np.zeros((count, 0)),
        memories=np.zeros((count, model.memory_size)),
    )
    rows, noises = np.arange(count), np.tile(stds[0] ** 2 * np.eye(2), (count, 1, 1))
    for frame in range(1, FIT_FRAMES):
        elapsed_s = float(times_s[frame] - times_s[frame - 1])
        belief = model.predict(belief, image_size, elapsed_s)
        belief = model.update(belief, image_size, rows, seen[frame], noises)
    ahead = times_s[FIT_FRAMES:] - times_s[FIT_FRAMES - 1]
    means, covariances = model.forecast(belief, image_size, ahead)
    return means[..., :2], covariances[..., :2, :2]
