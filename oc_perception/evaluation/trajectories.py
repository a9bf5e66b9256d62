# SPDX-License-Identifier: Apache-2.0
"""Forecasts of how persons walk: 8 positions seen, 12 predicted, one set left out at a time.

Protocol of Gupta et al., *Social GAN*, 2018: a window starts at each frame of a test file; those
persons are scored who are there in all of its 20 frames, if there are two of them at least; ADE
and FDE are means over persons, and the average is over sets. One forecast is scored, not the best
of several. What is told to a model is the first 8 frames alone: also of persons who are not
scored, and without hints at who will leave.

The frames of `biwi_eth` are 15 per second, unlike those of the other files, so that its positions
are 0.67 s apart and its persons seem to run. Work such as SR-LSTM takes them 6 frames = 0.4 s
apart: `RESAMPLED` is that, by straight lines between the positions of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from oc_perception.evaluation.forecast import (
    coverage,
    displacement_errors,
    gaussian_nll,
    squared_mahalanobis,
)
from oc_perception.models.pedestrians import Pedestrians
from oc_perception.tracking import kalman
from oc_perception.worlds.trajectories import in_view, padded
from oc_perception.worlds.trajectory_files import PERIOD_S, read, recordings, sets_to_leave_out

SEEN, FRAMES = 8, 20
RESAMPLED, _RESAMPLED_SET, _RESAMPLED_STEP = "eth_0.4s", "eth", 6
_LEAST = 2  # persons in a window
_MOST_PAIRS = 30_000  # in one batch
_SPEED = 1.5  # m/s, one standard deviation of the Kalman filter's start
_DIFFUSIONS, _NOISES = (0.01, 0.03, 0.1, 0.3), (0.001, 0.003, 0.01, 0.03)  # m2/s3, m
_SAMPLE = 11  # every so many windows are enough to choose from


@dataclass(frozen=True)
class Forecast:
    """For the scored persons of one window: `means` `(12, N, 2)` metres, and `covariances`
    `(12, N, 2, 2)` where the method knows them.
    """

    means: np.ndarray
    covariances: np.ndarray | None = None


Method = Callable[[Sequence[np.ndarray]], list[Forecast]]
"""From windows `(20, A, 2)`, of which it may look at the first 8 frames, to forecasts."""


def scored(crowd: np.ndarray) -> int:
    """How many persons of a window `(20, A, 2)` are there all the time; they come first."""
    return int((~np.isnan(crowd[..., 0])).all(0).sum())


def windows_by_set(folder: Path, least: int = _LEAST) -> dict[str, list[np.ndarray]]:
    """The windows of each set, with at least `least` scored persons."""
    files = sets_to_leave_out(folder)
    found = {name: [read(path) for path in paths] for name, paths in files.items()}
    if (folder / "all_data").is_dir():
        found[RESAMPLED] = [r.resampled(_RESAMPLED_STEP) for r in found[_RESAMPLED_SET]]
    return {
        name: [crowd for r in parts for crowd in r.crowds(FRAMES, SEEN) if scored(crowd) >= least]
        for name, parts in found.items()
    }


def left_out(name: str) -> str:
    """The set that a model must not have learned from to be scored on `name`."""
    return _RESAMPLED_SET if name == RESAMPLED else name


# ---- methods


def constant_velocity(crowds: Sequence[np.ndarray]) -> list[Forecast]:
    """Goes on by the last displacement."""
    steps = np.arange(1, FRAMES - SEEN + 1)[:, None, None]
    return [Forecast(c[SEEN - 1] + steps * (c[SEEN - 1] - c[SEEN - 2])) for c in _known(crowds)]


def linear_fit(crowds: Sequence[np.ndarray]) -> list[Forecast]:
    """Least-squares line through all that was seen."""
    design = np.stack([np.ones(FRAMES), np.arange(FRAMES)], -1)
    fit = design[SEEN:] @ np.linalg.pinv(design[:SEEN])  # (12, 8)
    return [Forecast(np.einsum("pt,tnc->pnc", fit, c)) for c in _known(crowds)]


def kalman_filter(diffusion: float, noise: float) -> Method:
    """Constant velocity with white-noise acceleration of `diffusion` m2/s3, positions off by
    `noise` m.
    """

    def method(crowds: Sequence[np.ndarray]) -> list[Forecast]:
        crowds = _known(crowds)
        together = np.concatenate(crowds, 1)
        model = kalman.MotionModel(diffusion)
        measured = noise**2 * np.eye(2)
        mean = np.concatenate([together[0], np.zeros_like(together[0])], -1)
        start = np.diag([noise**2, noise**2, _SPEED**2, _SPEED**2])
        covariance = np.tile(start, (len(mean), 1, 1))
        for position in together[1:]:
            mean, covariance = model.predict(mean, covariance, PERIOD_S)
            mean, covariance = kalman.update(mean, covariance, position, measured)
        times = PERIOD_S * np.arange(1, FRAMES - SEEN + 1)[:, None]
        means, covariances = model.predict(mean, covariance, times)
        cuts = np.cumsum([c.shape[1] for c in crowds])[:-1]
        parts = (np.split(array, cuts, axis=1) for array in (means, covariances))
        return [Forecast(m[..., :2], c[..., :2, :2]) for m, c in zip(*parts, strict=True)]

    return method


def chosen_kalman_filter(folder: Path, leave_out: str) -> tuple[Method, dict[str, float]]:
    """The one of a grid to which the truth is likeliest where models may learn, and its
    parameters.
    """
    crowds = [
        crowd[:, : scored(crowd)]
        for recording in recordings(folder, leave_out, "train")
        for crowd in recording.crowds(FRAMES, SEEN)
    ][::_SAMPLE]
    tried = [
        {"diffusion": diffusion, "noise": noise} for diffusion in _DIFFUSIONS for noise in _NOISES
    ]
    errors = [evaluate(kalman_filter(**one), crowds)["nll"] for one in tried]
    best = tried[int(np.argmin(errors))]
    return kalman_filter(**best), best


def learned(model: Pedestrians, view_m: float = 20.0, size_m: float = 1.0) -> Method:
    """What `model` says, in single precision; lengths as in the world it was trained in."""
    model = model.eval()

    @torch.inference_mode()
    def method(crowds: Sequence[np.ndarray]) -> list[Forecast]:
        order = sorted(range(len(crowds)), key=lambda index: crowds[index].shape[1])
        found: dict[int, Forecast] = {}
        while order:
            largest = crowds[order[-1]].shape[1]
            count = max(1, _MOST_PAIRS // largest**2)
            batch, order = order[-count:], order[:-count]
            positions = torch.from_numpy(padded([crowds[index] for index in batch]))
            positions[:, SEEN:] = torch.nan  # no look ahead
            motion = in_view(positions, view_m, size_m, SEEN)
            states = [
                state for frame, state in model.follow(motion, motion.positions) if frame >= SEEN
            ]
            means = torch.stack([state.means[..., :2] for state in states], 1)
            spread = torch.stack([state.covariances[..., :2, :2] for state in states], 1)
            middles = np.stack([crowds[index][SEEN - 1, 0] for index in batch])
            means = (means.numpy() - 0.5) * view_m + middles[:, None, None]
            spread = spread.numpy() * view_m**2
            for row, index in enumerate(batch):
                who = slice(scored(crowds[index]))
                found[index] = Forecast(means[row, :, who], spread[row, :, who])
        return [found[index] for index in range(len(crowds))]

    return method


# ---- scores


def evaluate(method: Method, crowds: Sequence[np.ndarray]) -> dict[str, float]:
    """`ade`, `fde` in metres, means over persons; where a method knows covariances, `nll` over all
    steps in nats and metres, and `coverage_90` of the last one.
    """
    forecasts = method(crowds)
    truth = np.concatenate([c[SEEN:, : scored(c)] for c in crowds], 1).swapaxes(0, 1)
    means = np.concatenate([f.means for f in forecasts], 1).swapaxes(0, 1)
    ade, fde = displacement_errors(means, truth)
    scores = {"ade": float(ade.mean()), "fde": float(fde.mean())}
    if forecasts[0].covariances is not None:
        spread = np.concatenate([f.covariances for f in forecasts], 1).swapaxes(0, 1)
        squared = squared_mahalanobis(means[:, -1], spread[:, -1], truth[:, -1])
        scores["nll"] = float(gaussian_nll(means, spread, truth).mean())
        scores["coverage_90"] = coverage(squared)
    return scores


def average(scores: dict[str, dict[str, float]], names: Sequence[str]) -> dict[str, float]:
    """Means over the sets `names`, of the scores that all of them have."""
    keys = scores[names[0]]
    return {key: float(np.mean([scores[name][key] for name in names])) for key in keys}


def _known(crowds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The seen frames `(8, N, 2)` of scored persons."""
    return [crowd[:SEEN, : scored(crowd)] for crowd in crowds]
