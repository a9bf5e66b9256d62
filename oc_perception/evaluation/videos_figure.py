# SPDX-License-Identifier: Apache-2.0
"""Pictures of what models that discover and track reach: scores over time, and a film strip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from oc_perception.evaluation.plots import DPI, new_figure
from oc_perception.evaluation.video import sequences
from oc_perception.evaluation.video_forecast import HORIZONS, SEEN
from oc_perception.evaluation.video_strips import draw_film
from oc_perception.evaluation.videos_rows import Group

_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")  # Okabe & Ito (2008)
_BASELINES = {
    "frozen": ("where last seen", ":"),
    "velocity": ("constant velocity", "--"),
    "velocity_truth": ("constant velocity of true places", "-."),
}
_FILM_FRAMES, _FILM_SCENES = 12, 1600


def draw_scores(
    groups: Sequence[Group], world: str, frames: Sequence[int], learned: int, path: Path
) -> None:
    """Counting and discoveries by frame of the longest sequences, models having `learned` from
    shorter ones, and errors of forecasts: a thin line for each seed, a thick one for their mean.
    """
    longest = str(max(frames))
    names = " and ".join(group.label for group in groups)
    title = f"{names} on {world}: thin lines are training seeds, thick ones their mean"
    figure, axes = new_figure(1, 3, (12, 3.5), title)
    for axis, name, label in zip(
        axes,
        ("counting_by_frame", "discoveries_by_frame"),
        ("share of frames counted right", "new objects per frame"),
        strict=False,
    ):
        for group, colour in zip(groups, _COLOURS, strict=False):
            values = np.array([run["scores"][longest][name] for run in group.runs])
            _lines(axis, np.arange(1, values.shape[1] + 1), values, colour, group.label)
        axis.set(xscale="log", xlabel="frame", ylabel=label)
        axis.xaxis.set_major_formatter("{x:g}")
        if learned < max(frames):
            axis.axvline(learned, color="0.4", ls="--", lw=1, label="length in training")
    axes[0].set_ylim(top=1.005)
    axes[1].set_ylim(bottom=0)
    axes[1].legend(fontsize=8, frameon=False)
    _forecasts(axes[2], groups, str(frames[0]))
    figure.savefig(path, dpi=DPI)


def _forecasts(axis: Any, groups: Sequence[Group], frames: str) -> None:
    """Errors of groups that have any, and the baselines of the last of these, means over seeds."""
    seen: Mapping[str, Sequence[float]] = {}
    for group, colour in zip(groups, _COLOURS, strict=False):
        scores = [run["scores"][frames] for run in group.runs]
        if all(f"forecast_ade_{max(HORIZONS)}" in score for score in scores):
            values = np.array([_by_horizon(score, "ade") for score in scores])
            _lines(axis, HORIZONS, values, colour, f"{group.label}, by its prior")
            seen = {name: np.mean([_by_horizon(s, name) for s in scores], 0)
                    for name in _BASELINES}  # fmt: skip
    for name, values in seen.items():
        label, style = _BASELINES[name]
        axis.plot(HORIZONS, values, color="0.3", ls=style, lw=1.2, label=label)
    axis.set(xlabel=f"frames after the {SEEN} seen", ylabel="error of centres (image widths)")
    axis.set(xticks=HORIZONS, ylim=(0, 1.25 * axis.get_ylim()[1]))  # room for the legend
    if seen:
        axis.legend(fontsize=8, frameon=False)


def _by_horizon(scores: Mapping[str, float], name: str) -> list[float]:
    return [scores.get(f"forecast_{name}_{horizon}", np.nan) for horizon in HORIZONS]


def _lines(axis: Any, x: Sequence[int], values: np.ndarray, colour: str, label: str) -> None:
    """Of `values` `(S, T)` of S seeds."""
    axis.plot(x, values.T, color=colour, lw=0.6, alpha=0.6)
    axis.plot(x, values.mean(0), color=colour, lw=2, label=label)


def draw_crossing(
    model: nn.Module,
    world: str,
    world_config: Mapping[str, Any],
    seed: int,
    path: Path,
    device: str = "cpu",
) -> None:
    """A film strip of two objects that go straight on and cross, and of `model`, which sees them
    all along or in the first frames only; `model` is set to its length.

    Raises ValueError where the world of this seed has no such sequence.
    """
    model.num_frames = _FILM_FRAMES
    best, nearest = None, np.inf
    for images, motion in sequences(model, world, world_config, _FILM_SCENES, seed, device):
        if motion.present.shape[2] < 2:
            break
        pair = motion.present.all(1).sum(1) == 2
        apart = motion.positions[:, :, 0] - motion.positions[:, :, 1]  # (B, T, 2)
        distance = apart.norm(dim=-1)
        straight = (motion.velocities == motion.velocities[:, :1]).flatten(1).all(1)
        turned = (apart[:, 0] * apart[:, -1]).sum(1) < 0
        side = motion.sizes[:, 0, 0].mean(-1)
        begin_and_end = torch.stack([distance[:, :SEEN].amin(1), distance[:, -1]]).amin(0)
        in_view = motion.visible[:, :, :2].flatten(1).all(1)
        chosen = pair & straight & turned & in_view & (begin_and_end > side)
        worth = torch.where(chosen, distance.amin(1), np.inf)
        if worth.min() < nearest:
            nearest, best = worth.min().item(), images[worth.argmin()]
    if best is None:
        raise ValueError(f"No two objects of {world} cross with seed {seed}: choose another seed.")
    draw_film(model, best, path, SEEN)
