# SPDX-License-Identifier: Apache-2.0
"""Forecasts of how persons walk, on sets that were left out of training: 8 positions seen, 12
predicted, beside constant velocity, a linear fit and a Kalman filter.

`oc-perception benchmark trajectories --json docs/results/trajectories.json`
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.configuration import ConfigurationError
from oc_perception.evaluation import trajectories
from oc_perception.evaluation.provenance import provenance
from oc_perception.evaluation.trajectory_figure import draw_forecasts
from oc_perception.models.pedestrians import Pedestrians
from oc_perception.models.registry import load_model
from oc_perception.worlds.trajectory_files import data_directory

_SET = "{set}"
_MODELS = (f"relational_pedestrians_{_SET}",)
_BASELINES = ("constant_velocity", "linear_fit", "kalman")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark trajectories`."""
    default = "(default: %(default)s)"
    parser.add_argument(
        "--data", default="eth_ucy", help=f"folder, or its name in the data sets {default}"
    )
    parser.add_argument(
        "--models",
        nargs="*",
        default=_MODELS,
        metavar="NAME",
        help=f"checkpoints or run directories, with {_SET} where the name of the set is that they"
        f" have not learned from {default}",
    )
    parser.add_argument("--sets", nargs="*", metavar="SET", help="only these (default: all)")
    parser.add_argument(
        "--least", type=int, default=2, help=f"persons in a window that is scored {default}"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw some forecasts there")


def run(arguments: argparse.Namespace) -> int:
    """Forecast, score and report."""
    folder = data_directory(arguments.data)
    if arguments.least < 1:
        raise UserError(f"--least must be at least 1, not {arguments.least}.")
    for template in arguments.models:
        if _SET not in template:
            raise UserError(f"{template} must have {_SET} in it: each set has a model of its own.")
    crowds = trajectories.windows_by_set(folder, arguments.least)
    for name in arguments.sets or ():
        if name not in crowds:
            raise UserError(f"{folder} has no set {name}, but {', '.join(crowds)}.")
    crowds = {
        name: windows
        for name, windows in crowds.items()
        if windows and (not arguments.sets or name in arguments.sets)
    }
    if not crowds:
        raise UserError(f"No window of {folder} has {arguments.least} persons in all its frames.")
    scores: dict[str, dict[str, dict[str, float]]] = {}
    filters = {}
    drawn = {}
    for name, windows in crowds.items():
        known = trajectories.left_out(name)
        kalman, filters[name] = trajectories.chosen_kalman_filter(folder, known)
        methods = dict(
            zip(
                _BASELINES,
                (trajectories.constant_velocity, trajectories.linear_fit, kalman),
                strict=True,
            )
        )
        for template in arguments.models:
            model = load_model(template.replace(_SET, known), task="motion")
            methods[_row(template)] = trajectories.learned(_of_pedestrians(model, template))
        for label, method in methods.items():
            scores.setdefault(label, {})[name] = trajectories.evaluate(method, windows)
        drawn[name] = methods
    report = {
        "data": folder.name,
        "least": arguments.least,
        "persons": {n: sum(map(trajectories.scored, w)) for n, w in crowds.items()},
        "scores": {label: _with_averages(by_set) for label, by_set in scores.items()},
        "kalman": filters,
        **provenance(),
    }
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        _print(report)
    if arguments.figure:
        shown = [_BASELINES[0], *map(_row, arguments.models[:1])]
        chosen = {
            name: (crowds[name], {label: drawn[name][label] for label in shown}) for name in crowds
        }
        draw_forecasts(chosen, arguments.figure)
    return 0


def _of_pedestrians(model: Any, name: str) -> Pedestrians:
    if not isinstance(model, Pedestrians):
        raise ConfigurationError(
            f"{name} is no model of pedestrians: train relational_pedestrians."
        )
    if (model.config.seen_frames, model.config.num_frames) != (
        trajectories.SEEN,
        trajectories.FRAMES,
    ):
        raise ConfigurationError(f"{name} was not trained to see 8 of 20 frames.")
    return model


def _row(template: str) -> str:
    return Path(template).name.replace(_SET, "").strip("_")


def _with_averages(by_set: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """And `average`, over the sets as the files have them; `average_0.4s` has the resampled one in
    place of its original.
    """
    plain = [name for name in by_set if name != trajectories.RESAMPLED]
    result = dict(by_set)
    if plain:
        result["average"] = trajectories.average(by_set, plain)
    if trajectories.RESAMPLED in by_set and len(plain) > 1:
        replaced = trajectories.left_out(trajectories.RESAMPLED)
        names = [trajectories.RESAMPLED, *(name for name in plain if name != replaced)]
        result["average_0.4s"] = trajectories.average(by_set, names)
    return result


def _print(report: dict[str, Any]) -> None:
    rows = report["scores"]
    columns = list(next(iter(rows.values())))
    width = max(map(len, rows)) + 2
    print(f"{'ADE/FDE, m':<{width}}" + "".join(f"{name:>14}" for name in columns))
    for label, by_set in rows.items():
        cells = (f"{by_set[name]['ade']:.3f}/{by_set[name]['fde']:.3f}" for name in columns)
        print(f"{label:<{width}}" + "".join(f"{cell:>14}" for cell in cells))
    print("in the 90 % ellipse after 12 steps")
    for label, by_set in rows.items():
        if "coverage_90" in by_set[columns[0]]:
            cells = (f"{by_set[name]['coverage_90']:.3f}" for name in columns)
            print(f"{label:<{width}}" + "".join(f"{cell:>14}" for cell in cells))
