# SPDX-License-Identifier: Apache-2.0
"""Figures of the blackout benchmark, drawn by Matplotlib (extra `figures`) without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oc_perception.evaluation.blackout import BlackoutConfig, draw_chunk
from oc_perception.evaluation.blackout_cameras import Cameras
from oc_perception.evaluation.blackout_run import AnyTracker, create_tracker, run
from oc_perception.evaluation.blackout_scores import SequenceTruth
from oc_perception.evaluation.draw import color
from oc_perception.evaluation.plots import DPI, new_figure
from oc_perception.tracking.config import TrackerConfig
from oc_perception.types import TrackOutput, TrackState

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = {
    "hold": ("hold", "0.65", ":"),
    "constant_velocity": ("constant velocity", "0.65", "--"),
    "kalman": ("Kalman (ADE)", "#56B4E9", "-"),
    "kalman_nll": ("Kalman (NLL)", "#56B4E9", "--"),
    "kalman_walls": ("Kalman + walls (ADE)", "#0072B2", "-"),
    "kalman_walls_nll": ("Kalman + walls (NLL)", "#0072B2", "--"),
    "sort": ("SORT-like", "#E69F00", "-"),
    "sort_uncalled": ("SORT-like, not called", "#E69F00", ":"),
    "bytetrack": ("ByteTrack-like", "#D55E00", "-"),
    "bytetrack_uncalled": ("ByteTrack-like, not called", "#D55E00", ":"),
    "nonrelational": ("learned, no relations", "#CC79A7", "--"),
    "relational": ("relational", "#CC79A7", "-"),
    "sqair": ("SQAIR", "#7F5A3C", "-"),
    "oracle": ("physics oracle", "#009E73", "-"),
}
_TILES = 6
_CHI_SQUARE_90 = 4.605170185988092  # 2 degrees of freedom


def draw(
    config: BlackoutConfig,
    configs: Mapping[str, TrackerConfig],
    trackers: Mapping[str, Any],
    tracker: str,
    directory: Path,
) -> None:
    """`error.png`, `reliability.png`, `identity.png` of the report's `trackers`, and, of the
    first sequence as `tracker` sees it, `film.png`.
    """
    title = f"{config.regime}, {config.objects} objects, level {config.level}"
    plot_error(trackers, title, directory / "error.png")
    plot_reliability(trackers, config.columns, title, directory / "reliability.png")
    plot_identity(trackers, [str(n) for n in config.lengths], title, directory / "identity.png")
    plot_film(config, configs, tracker, directory / "film.png")


def plot_error(trackers: Mapping[str, Any], title: str, path: Path) -> None:
    """Mean error against blind frames, with intervals."""
    figure, (axis,) = new_figure(1, 1, (7.2, 4.4), f"Prediction error while blind: {title}")
    for name, scores in trackers.items():
        label, colour, dash = _STYLES[name]
        ages = np.array([int(age) for age in scores["error_by_age"]])
        mean = _array(scores["error_by_age"].values())
        bounds = np.array([_array(pair) for pair in scores["error_by_age_interval"].values()])
        known = np.isfinite(mean)
        axis.plot(ages[known], mean[known], color=colour, linestyle=dash, label=label)
        axis.fill_between(ages[known], *bounds[known].T, color=colour, alpha=0.15, linewidth=0)
    axis.set(xlabel="blind frames", ylabel="mean error (diameters)", yscale="log")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=DPI)


def plot_reliability(
    trackers: Mapping[str, Any], columns: Sequence[str], title: str, path: Path
) -> None:
    """Share of truths inside ellipses against their nominal content, for up to four lengths."""
    shown = [c for c in columns if c in ("5", "10", "20", "40")] or list(columns)[-1:]
    size = (3.0 * len(shown) + 2.2, 3.4)
    figure, axes = new_figure(1, len(shown), size, f"Reliability while blind: {title}")
    for axis, column in zip(axes, shown, strict=True):
        axis.plot([0, 1], [0, 1], color="0.4", linewidth=1)
        axis.fill_between([0, 1], [-0.04, 0.96], [0.04, 1.04], color="0.9", linewidth=0)
        for name, scores in trackers.items():
            curve = scores["reliability"][column]
            label, colour, dash = _STYLES[name]
            observed = _array(curve.values())
            if np.isfinite(observed).all():
                nominal = [float(p) for p in curve]
                axis.plot(nominal, observed, color=colour, linestyle=dash, label=label)
        axis.set(title=f"up to {column} frames", xlabel="nominal", xlim=(0, 1), ylim=(0, 1))
    axes[0].set_ylabel("observed coverage")
    axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=DPI)


def plot_identity(
    trackers: Mapping[str, Any], columns: Sequence[str], title: str, path: Path
) -> None:
    """Share of identities recovered against the length of the blackout, with intervals."""
    figure, (axis,) = new_figure(1, 1, (7.2, 4.0), f"Identities kept: {title}")
    places = np.arange(len(columns))
    for name, scores in trackers.items():
        label, colour, dash = _STYLES[name]
        share = _array(scores["id_recovered"][c] for c in columns)
        bounds = np.array([_array(scores["id_recovered_interval"][c]) for c in columns])
        axis.plot(places, share, color=colour, linestyle=dash, marker=".", label=label)
        axis.fill_between(places, *bounds.T, color=colour, alpha=0.12, linewidth=0)
    axis.set(xlabel="blind frames", ylabel="share recovered", ylim=(-0.02, 1.02))
    axis.set_xticks(places, columns)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=DPI)


def plot_film(
    config: BlackoutConfig, configs: Mapping[str, TrackerConfig], tracker: str, path: Path
) -> None:
    """Frames of one blackout: true discs and paths, predicted places with 90 % ellipses."""
    chunk = draw_chunk(config, 0)
    truth, recording = chunk.truths[0], chunk.states()[0]
    engine: AnyTracker
    if tracker == "oracle":
        engine = chunk.oracle(0)
    else:
        engine = create_tracker(tracker, configs, chunk.motion.dt_s)
        if config.level != "s":
            recording = Cameras(chunk).recording(0)
    *_, (_, outputs) = run(engine, recording, truth)
    blind = np.flatnonzero(~chunk.seen[0])
    if not len(blind):
        blind = np.array([len(chunk.seen[0]) - 1])
    first = int(blind[0])
    last = int(blind[-1]) if config.schedule == "blackout" else first + 2 * _TILES
    inside = np.linspace(first, min(last, 29 + first), _TILES - 2).round().astype(int)
    frames = [first - 1, *inside.tolist(), min(last + 5, len(outputs) - 1)]
    names = _STYLES[tracker][0]
    figure, axes = new_figure(
        1, len(frames), (2.1 * len(frames), 2.7), f"{config.regime}, {names}: one blackout"
    )
    for axis, frame in zip(axes, frames, strict=True):
        seen = frame >= len(chunk.seen[0]) or bool(chunk.seen[0][frame])
        _draw_frame(axis, truth, outputs[frame], frame, first, seen)
        age = frame - first + 1
        axis.set_title("last seen" if frame < first else "seen again" if seen else f"blind {age}")
    figure.savefig(path, dpi=DPI)


def _draw_frame(
    axis: Axes, truth: SequenceTruth, output: TrackOutput, frame: int, first: int, seen: bool
) -> None:
    from matplotlib.patches import Ellipse

    height, width = truth.image_size
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal")
    axis.set(xticks=[], yticks=[], facecolor="white" if seen else "0.9")
    axis.grid(False)
    axis.spines[:].set_visible(True)
    for item in np.flatnonzero(truth.present[frame]):
        path = truth.positions[max(0, first - 1) : frame + 1, item]
        axis.plot(*path.T, color="0.45", linewidth=0.8)
        axis.add_patch(
            Ellipse(truth.positions[frame, item], *truth.sizes[frame, item], color="0.72", lw=0)
        )
    for track in output.tracks:
        if track.state not in (TrackState.CONFIRMED, TrackState.COASTING):
            continue
        colour = np.array(color(track.id)) / 255
        axis.plot(*track.box[:2], "+", color=colour, markersize=7, markeredgewidth=1.8)
        covariance = track.covariance[:2, :2]
        if np.isfinite(covariance).all():
            values, vectors = np.linalg.eigh(covariance)
            axes_px = 2 * np.sqrt(_CHI_SQUARE_90 * np.maximum(values, 0))
            angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
            axis.add_patch(
                Ellipse(track.box[:2], *axes_px, angle=angle, fill=False, ec=colour, lw=1.4)
            )


def _array(values: Any) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)
