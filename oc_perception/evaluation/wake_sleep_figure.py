# SPDX-License-Identifier: Apache-2.0
"""One picture of the two studies of gradients through discrete latents."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from oc_perception.evaluation.plots import PANEL_STYLE, require_matplotlib
from oc_perception.evaluation.wake_sleep_mixture import SUPPORTED
from oc_perception.worlds.mixture import GaussianMixture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METHODS = {  # colours of Okabe & Ito (2008)
    "delta-ww": ("#0072B2", "o", "δ-wake-wake"),
    "ww": ("#56B4E9", "s", "wake-wake"),
    "ws": ("#009E73", "^", "wake-sleep"),
    "vimco": ("#D55E00", "D", "VIMCO"),
    "reinforce": ("#CC79A7", "v", "REINFORCE"),
    "relax": ("#E69F00", "P", "RELAX"),
    "concrete": ("0.55", "X", "Concrete"),
}


def draw_wake_sleep(report: dict[str, Any], path: Path) -> None:
    """Draw the report of `oc-perception benchmark wake-sleep`, of both its parts.

    Raises MissingMatplotlib where Matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    far = [row for row in report["mixture"]["rows"] if row["start"] == "far"]
    counts = sorted({row["particles"] for row in far})
    with matplotlib.rc_context(PANEL_STYLE):
        figure = Figure(figsize=(13, 7.4), dpi=90, layout="constrained")
        axes = figure.subplots(2, 3)
        for axis, count in zip(axes[0], (counts[0], counts[-1]), strict=False):
            _priors(axis, [row for row in far if row["particles"] == count])
            axis.set_title(f"Mixture: learned prior, K = {count}")
        for axis, name, label in (
            (axes[0, 2], "p_error", "distance of the prior to the truth"),
            (axes[1, 0], "q_error", "distance of q to the true posterior"),
            (axes[1, 1], "phi_gradient_std", "std of the gradient of φ"),
        ):
            _against_particles(axis, far, name, counts)
            axis.set(title=f"Mixture: {label}", xlabel="K", ylim=(0, None))
        axes[1, 1].set_yscale("log")
        axes[1, 1].autoscale(axis="y")
        _parsing(axes[1, 2], report["grammar"]["rows"])
        handles, labels = axes[0, 2].get_legend_handles_labels()
        truth = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            [*truth[0], *handles], [*truth[1], *labels], loc="outside lower center", ncols=9
        )
        figure.savefig(path)


def _priors(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """Learned probabilities of the components, medians, on bars of the true ones."""
    true = GaussianMixture().true_log_prior().exp().numpy()
    axis.bar(np.arange(len(true)), true, color="0.88", label="truth")
    for row in rows:
        colour, marker, _ = _METHODS[row["method"]]
        axis.plot(row["probability"], color=colour, marker=marker, ms=3.5, lw=1.3)
    axis.axhline(SUPPORTED, color="0.3", ls="--", lw=1, label="least probability in the support")
    axis.set(xlabel="component z", ylabel="p(z), median", xticks=range(0, len(true), 3))
    axis.set(yscale="log", ylim=(SUPPORTED / 10, 1))


def _against_particles(
    axis: Axes, rows: list[dict[str, Any]], name: str, counts: list[int]
) -> None:
    """Medians, and quartiles as bands."""
    for method, (colour, marker, label) in _METHODS.items():
        found = sorted((row["particles"], row[name]) for row in rows if row["method"] == method)
        if not found:
            continue
        x = [count for count, _ in found]
        low, middle, high = np.quantile([values for _, values in found], [0.25, 0.5, 0.75], axis=1)
        axis.plot(x, middle, color=colour, marker=marker, ms=5, label=label)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    axis.set_xscale("log")
    axis.set_xticks(counts, labels=map(str, counts), minor=False)
    axis.set_xticks([], minor=True)


def _parsing(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """How well true trees are guessed while training: each seed, and the median."""
    for method, (colour, marker, _) in _METHODS.items():
        curves = [row["curve"] for row in rows if row["method"] == method]
        if not curves:
            continue
        for curve in curves:
            axis.plot(curve["step"], curve["sleep_loss"], color=colour, lw=0.7, alpha=0.5)
        lines = [curve["sleep_loss"] for curve in curves]
        middle = [median(losses) for losses in zip(*lines, strict=True)]
        axis.plot(curves[0]["step"], middle, color=colour, marker=marker, ms=4, lw=1.6)
    particles = max(row["particles"] for row in rows)
    axis.set(
        title=f"Grammar, K = {particles}: −log q of true trees (nats)", xlabel="training step"
    )
