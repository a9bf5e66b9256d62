# SPDX-License-Identifier: Apache-2.0
"""A picture of forecasts: one window of each set, from above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from oc_perception.evaluation.plots import require_matplotlib
from oc_perception.evaluation.trajectories import SEEN, Method, scored

_COLOURS = ("#D55E00", "#0072B2")  # Okabe & Ito (2008)
_TRUTH = "#009E73"
_SHOWN = 8  # persons in the window that is drawn, as near as there is one
_COLUMNS = 3
_CHI_90 = -2 * np.log(0.1)


def draw_forecasts(
    sets: Mapping[str, tuple[Sequence[np.ndarray], Mapping[str, Method]]], path: Path
) -> None:
    """Draw, for each set of windows `(20, A, 2)`, the one with about eight persons in which they
    turn most, what the methods forecast, and where these tell it the 90 % ellipse of the end.

    Raises UserError where Matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse

    rows = -(-len(sets) // _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 4 * rows), dpi=80, layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axis, (name, (crowds, methods)) in zip(axes, sets.items(), strict=False):
        crowd = _telling(crowds)
        people = crowd[:, : scored(crowd)]
        axis.plot(*people[:SEEN].transpose(2, 0, 1), color="0.4", lw=2)
        axis.plot(*people[SEEN - 1 :].transpose(2, 0, 1), color=_TRUTH, lw=2)
        for colour, method in zip(_COLOURS, methods.values(), strict=False):
            forecast = method([crowd])[0]
            means = np.concatenate([people[SEEN - 1 : SEEN], forecast.means])
            axis.plot(*means.transpose(2, 0, 1), color=colour, lw=1.2, ls="--")
            if forecast.covariances is None:
                continue
            for mean, covariance in zip(means[-1], forecast.covariances[-1], strict=True):
                values, vectors = np.linalg.eigh(covariance)
                across, along = 2 * np.sqrt(_CHI_90 * values)
                angle = np.degrees(np.arctan2(*vectors[::-1, 1]))
                axis.add_patch(Ellipse(mean, along, across, angle=angle, color=colour, alpha=0.1))
        axis.plot(*people[SEEN - 1].T, "o", color="0.2", ms=4)
        axis.set(title=name, aspect="equal", xlabel="m")
    for axis in axes[len(sets) :]:
        axis.axis("off")
    lines = [("0.4", "seen"), (_TRUTH, "truth"), *zip(_COLOURS, methods, strict=False)]
    for colour, label in lines:
        axes[0].plot([], [], color=colour, label=label.replace("_", " "))
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _telling(crowds: Sequence[np.ndarray]) -> np.ndarray:
    """Of the windows whose number of scored persons is nearest to eight, that in which the last
    displacement tells least of the way.
    """
    least = min(abs(scored(crowd) - _SHOWN) for crowd in crowds)
    nearest = [crowd for crowd in crowds if abs(scored(crowd) - _SHOWN) == least]

    def surprise(crowd: np.ndarray) -> float:
        people = crowd[:, : scored(crowd)]
        ahead = people[SEEN - 1] + 12 * (people[SEEN - 1] - people[SEEN - 2])
        return float(np.linalg.norm(ahead - people[-1], axis=-1).mean())

    return max(nearest, key=surprise)
