# SPDX-License-Identifier: Apache-2.0
"""One picture of the three studies of variational bounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oc_perception.evaluation.plots import PANEL_STYLE, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY, _BLUE = "0.45", "#0072B2"
_GRADIENTS = {  # colours of Okabe & Ito (2008)
    "theta": (_BLUE, "o", "θ (generative)"),
    "phi": ("#D55E00", "s", "φ (inference)"),
    "ciwae": ("#009E73", "^", "φ, CIWAE 0.5"),
    "dreg": ("#CC79A7", "D", "φ, DReG"),
}
_METHODS = {
    "IWAE": "#D55E00",
    "PIWAE": _BLUE,
    "MIWAE": "#56B4E9",
    "CIWAE 0.05": "#F0E442",
    "CIWAE 0.5": "#009E73",
    "VAE": "#000000",
    "DReG": "#CC79A7",
}


def draw_bounds(report: dict[str, Any], path: Path) -> None:
    """Draw the report of `oc-perception benchmark bounds`, of all its parts.

    Raises MissingMatplotlib where Matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(PANEL_STYLE):
        figure = Figure(figsize=(13, 11), dpi=90, layout="constrained")
        axes = figure.subplots(3, 3)
        study, config = report["signal"]["near"], report["toy"]["config"]
        _signal(axes[0, 0], study["particles"], "k", _GRADIENTS)
        axes[0, 0].set(
            title="Toy: gradient signal, more particles", xlabel="K (M = 1)", ylabel="SNR"
        )
        axes[0, 0].set_ylim(top=200)
        axes[0, 0].legend(loc="upper left", ncols=2, handlelength=1.4)
        _signal(axes[0, 1], study["groups"], "m", ("theta", "phi"))
        axes[0, 1].set(xlabel="M (K = 1)", ylabel="SNR")
        axes[0, 1].set_title("Toy: gradient signal, more groups")
        axes[0, 1].legend()
        _direction(axes[0, 2], study)
        _misses(axes[1, 0], study)
        for axis, name in zip(axes[1, 1:], ("matrix", "mean"), strict=True):
            _distances(axis, report["toy"]["runs"], name)
        axes[1, 1].set_title(f"Toy trained with {config['total']} weights: matrix (φ)")
        axes[1, 2].set_title(f"Toy trained with {config['total']} weights: mean (θ)")
        axes[1, 1].legend(ncols=2)
        runs = report["deep"]["runs"]
        _scores(axes[2, 0], runs)
        _effective(axes[2, 1], runs)
        _training(axes[2, 2], runs)
        figure.savefig(path)


def _signal(axis: Axes, rows: Sequence[dict[str, Any]], over: str, names: Sequence[str]) -> None:
    counts = [row[over] for row in rows]
    for name in names:
        colour, marker, label = _GRADIENTS[name]
        ratios = [row["snr"][name] for row in rows]
        axis.plot(counts, ratios, color=colour, marker=marker, ms=5, label=label)
    start = rows[0]["snr"]["phi"]
    power = -0.5 if over == "k" else 0.5
    law = [start * (count / counts[0]) ** power for count in counts]
    label = f"{'1/' if power < 0 else ''}sqrt({over.upper()})"
    axis.plot(counts, law, color=_GREY, ls=":", label=label)
    axis.set(xscale="log", yscale="log")


def _direction(axis: Axes, study: dict[str, Any]) -> None:
    for over, rows, line in (("k", study["particles"], "-"), ("m", study["groups"], "--")):
        for name in ("theta", "phi"):
            colour, marker, _ = _GRADIENTS[name]
            ratios = [row["dsnr"][name] for row in rows]
            axis.plot(
                [row[over] for row in rows], ratios, color=colour, marker=marker, ms=5, ls=line
            )
    axis.plot([], [], color="0.2", label="more particles")
    axis.plot([], [], color="0.2", ls="--", label="more groups")
    axis.axhline(study["random"], color=_GREY, ls=":", label="no signal")
    axis.set(xscale="log", yscale="log", xlabel="K or M", ylabel="DSNR")
    axis.set_title("Toy: signal of the direction")
    axis.legend(loc="upper left")


def _misses(axis: Axes, study: dict[str, Any]) -> None:
    for over, rows, colour in (
        ("K", study["particles"], "#0072B2"),
        ("M", study["groups"], "0.3"),
    ):
        counts = [row[over.lower()] for row in rows]
        axis.plot(counts, [row["rmse"] for row in rows], color=colour, marker="o", ms=5,
                  label=f"error, more {'particles' if over == 'K' else 'groups'}")  # fmt: skip
        axis.plot(counts, [row["bias"] for row in rows], color=colour, ls=":", label="its bias")
    axis.set(xscale="log", yscale="log", xlabel="K or M", ylabel="RMSE")
    axis.set_title("Toy: gradient for θ against that of log p(x)")
    axis.legend()


def _shown(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Colours of the methods that were run."""
    names = {run["method"] for run in runs}
    return {name: colour for name, colour in _METHODS.items() if name in names}


def _distances(axis: Axes, runs: Sequence[dict[str, Any]], name: str) -> None:
    for method, colour in _shown(runs).items():
        curves = [run for run in runs if run["method"] == method]
        values = [statistics.median(v) for v in zip(*(c[name] for c in curves), strict=True)]
        axis.plot(curves[0]["step"], values, color=colour, label=method, lw=1.6)
    axis.set(yscale="log", xlabel="step", ylabel="distance from the optimum")


def _scores(axis: Axes, runs: Sequence[dict[str, Any]]) -> None:
    for method, colour in _shown(runs).items():
        chosen = [run for run in runs if run["method"] == method]
        x, y = ([run[key] for run in chosen] for key in ("minus_kl", "log_evidence"))
        axis.scatter(x, y, color=colour, edgecolor="0.3", lw=0.5, s=40, label=method)
    axis.set(xlabel="-KL(Q || P): posterior, nats", ylabel="log p(x): model, nats")
    axis.set_title("digits64, test pictures (upper right is best)")
    axis.legend()


def _effective(axis: Axes, runs: Sequence[dict[str, Any]]) -> None:
    """Quantiles over pictures, means over seeds."""
    methods = _shown(runs)
    for place, (method, colour) in enumerate(methods.items()):
        quantiles = [
            statistics.mean(values)
            for values in zip(
                *(run["ess_quantiles"] for run in runs if run["method"] == method), strict=True
            )
        ]
        lowest, low, middle, high, highest = quantiles
        axis.plot([place, place], [lowest, highest], color="0.3", lw=1)
        axis.bar(place, high - low, 0.55, low, color=colour, edgecolor="0.3", lw=0.5)
        axis.plot([place - 0.27, place + 0.27], [middle, middle], color="white", lw=1.8)
    axis.set_xticks(range(len(methods)), methods, rotation=30, ha="right")
    axis.set(ylabel="ESS per sample", title="digits64: effective samples of test pictures")


def _training(axis: Axes, runs: Sequence[dict[str, Any]]) -> None:
    for method, colour in _shown(runs).items():
        curves = [run for run in runs if run["method"] == method]
        values = [statistics.mean(v) for v in zip(*(c["signal"] for c in curves), strict=True)]
        axis.plot(curves[0]["step"], values, color=colour, marker="o", ms=3, label=method)
    axis.set(yscale="log", xlabel="step", ylabel="SNR")
    axis.set_title("digits64: gradient signal of the encoder")
