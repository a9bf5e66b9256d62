# SPDX-License-Identifier: Apache-2.0
"""Figures of an evaluation, drawn by Matplotlib (extra `figures`) without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from oc_perception.evaluation.curves import Curve
from oc_perception.evaluation.figures import coloured_segments
from oc_perception.evaluation.latents import Hypotheses, Traversal
from oc_perception.evaluation.segmentation import fg_ari

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREEN, _PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe & Ito (2008)
_SCORES = {
    "fg_ari": ("FG-ARI", _BLUE, "o"),
    "ari": ("ARI", _ORANGE, "s"),
    "miou": ("mIoU", _GREEN, "^"),
    "mse": ("MSE", _PINK, "D"),
    "negative_elbo": ("negative ELBO", _PINK, "D"),
}
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
DPI = 120
PANEL_STYLE = _STYLE | {"axes.titlesize": 10.5, "grid.color": "0.92", "legend.fontsize": 8.5}
"""Matplotlib settings of figures of many panels."""


class MissingMatplotlib(ValueError):
    """Matplotlib is not installed; the message names the cure."""


def require_matplotlib() -> None:
    """Raise MissingMatplotlib where figures cannot be drawn, before time is spent on them."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingMatplotlib(
            f"Figures need Matplotlib ({error}): pip install oc_perception[figures]"
        ) from error


def plot_refinement(curve: Curve, title: str, path: Path) -> None:
    """Scores, MSE and, where known, the negative ELBO against iterations: median and quartiles."""
    panels = {"score": ["fg_ari", "ari"], "MSE (intensities in [0, 1])": ["mse"]}
    if "negative_elbo" in curve.scores:
        panels["negative ELBO (nats per image)"] = ["negative_elbo"]
    size = (3.9 * len(panels), 3.5)
    figure, axes = new_figure(1, len(panels), size, f"{title}: {_statistic(curve)}")
    for axis, (label, scores) in zip(axes, panels.items(), strict=True):
        _lines(axis, curve, scores, f"T = {curve.trained_at}, the default")
        axis.set(xlabel="refinement iterations", ylabel=label)
    axes[0].set_ylim(top=1.02)
    axes[1].set_ylim(bottom=0)
    figure.savefig(path, dpi=DPI)


def plot_slots(curve: Curve, title: str, path: Path) -> None:
    """FG-ARI, ARI and mIoU against the number of slots: median and quartiles."""
    figure, (axis,) = new_figure(1, 1, (6, 3.8), f"{title}: {_statistic(curve)}")
    _lines(axis, curve, ["fg_ari", "ari", "miou"], f"K = {curve.trained_at}, the default")
    axis.set(xlabel="slots K", ylabel="score")
    axis.set_ylim(top=1.02)
    figure.savefig(path, dpi=DPI)


def plot_traversal(traversal: Traversal, title: str, path: Path) -> None:
    """One row per latent, one column per value; the value nearest to the inferred one framed."""
    rows, columns = traversal.images.shape[:2]
    height, width = traversal.frame.shape[1:]
    given = {
        "input": traversal.frame,
        "decoded": traversal.reconstruction,
        "mask of\nthe slot": traversal.mask.expand(3, -1, -1),
    }
    shown = max(rows, len(given))
    size = (0.85 * (columns + 3), 0.85 * shown * height / width + 0.9)
    figure, axes = new_figure(shown, columns + 1, size, title)
    for axis in axes:
        axis.set_axis_off()
    for row, (name, picture) in enumerate(given.items()):
        _picture(axes[row * (columns + 1)], picture)
        _row_label(axes[row * (columns + 1)], name)
    for row in range(rows):
        cells = axes[row * (columns + 1) + 1 : (row + 1) * (columns + 1)]
        for column, axis in enumerate(cells):
            _picture(axis, traversal.images[row, column])
            if row == 0:
                offset = _number(traversal.offsets[column], 1, "+") + " σ"
                axis.set_title("mean" if 2 * column == columns - 1 else offset, fontsize=8)
        _row_label(cells[0], f"z{traversal.latents[row]}\nσ {traversal.spreads[row]:.2f}")
        cells[traversal.nearest[row]].spines[:].set(visible=True, color=_ORANGE, linewidth=2)
    figure.supxlabel(
        "value of one latent of one slot, in standard deviations from its mean over slots"
        " (framed: nearest to the inferred value)",
        fontsize=8,
    )
    figure.savefig(path, dpi=DPI)


def plot_hypotheses(
    frames: Tensor, labels: Tensor, found: Hypotheses, title: str, path: Path
) -> None:
    """One row per frame: input, truth, then the hypotheses from the most to the least likely."""
    rows, columns = found.labels.shape[:2]
    height, width = frames.shape[2:]
    side = 1.15
    size = (side * (columns + 2), side * rows * (height / width + 0.32) + 0.5)
    figure, axes = new_figure(rows, columns + 2, size, f"{title}: likeliest hypothesis first")
    for row in range(rows):
        first, second, *cells = axes[row * (columns + 2) : (row + 1) * (columns + 2)]
        _picture(first, frames[row])
        first.set_title("input", fontsize=8)
        for column, axis in enumerate(cells):
            predicted = found.labels[row, column]
            truth, segments = coloured_segments(labels[row], predicted)
            _picture(axis, segments)
            behind = found.elbo[row, 0] - found.elbo[row, column]
            score = fg_ari(labels[row : row + 1], predicted[None]).item()
            best = f"ELBO {_number(found.elbo[row, 0], 0)}"
            rank = _number(-behind, 1) + " nats" if column else best
            axis.set_title(f"{rank}\nFG-ARI {_number(score, 2)}", fontsize=8)
        _picture(second, truth)
        second.set_title("truth", fontsize=8)
    figure.savefig(path, dpi=DPI)


def new_figure(
    rows: int, columns: int, size: tuple[float, float], title: str
) -> tuple[Figure, list[Axes]]:
    """A figure of `size` inches and its axes, row by row."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(size, layout="constrained")
        figure.suptitle(title, fontsize=11)
        return figure, figure.subplots(rows, columns, squeeze=False).ravel().tolist()


def _statistic(curve: Curve) -> str:
    scenes = next(iter(curve.scores.values())).shape[1]
    return f"median and middle half of {scenes} scenes"


def _lines(axis: Axes, curve: Curve, scores: Sequence[str], trained: str) -> None:
    """Median and quartiles of each score, and the value of training."""
    for score in scores:
        name, colour, marker = _SCORES[score]
        low, median, high = curve.quartiles(score).numpy()
        axis.fill_between(curve.x, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.plot(curve.x, median, color=colour, marker=marker, markersize=4, label=name)
    axis.axvline(curve.trained_at, color="0.4", linestyle="--", linewidth=1, label=trained)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8)


def _picture(axis: Axes, image: Tensor | np.ndarray) -> None:
    """Show `(3, H, W)` in [0, 1] or `(H, W, 3)` uint8, without ticks."""
    if isinstance(image, Tensor):
        image = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    axis.set_axis_on()
    axis.imshow(image, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def _row_label(axis: Axes, text: str) -> None:
    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)


def _number(value: Tensor | float, digits: int, sign: str = "-") -> str:
    """With a minus sign, not a hyphen; `sign` "+" shows a plus too."""
    return f"{float(value):{sign}.{digits}f}".replace("-", "−")
