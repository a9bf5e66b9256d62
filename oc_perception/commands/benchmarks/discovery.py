# SPDX-License-Identifier: Apache-2.0
"""Scores of several training seeds of one recipe on the same fresh scenes: each, mean, standard
deviation and worst, with training effort, floors and the published value.

`oc-perception benchmark discovery runs/a_0 runs/a_1 runs/a_2 --json docs/results/a.json`
"""

from __future__ import annotations

import argparse
from typing import Any

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.evaluation.discovery import examine_discovery, fresh_scenes
from oc_perception.evaluation.provenance import provenance
from oc_perception.evaluation.seeds import PUBLISHED, summarize_seeds, training_seeds

_SEED = 3_000_017  # neither the scenes watched in training nor those of metrics.json
_QUICK_SCENES = 16
_EFFORT = ("steps", "elapsed_s", "cpu_s", "threads", "machine", "torch")
_SHOWN = ("fg_ari", "ari", "ami", "miou", "mse", "floor_fg_ari", "iteration_0_fg_ari")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark discovery`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory or checkpoint name")
    scoring.add_arguments(parser, _SEED)
    parser.add_argument("--target", type=float, help="FG-ARI that the mean should reach")
    parser.add_argument(
        "--quick", action="store_true", help=f"{_QUICK_SCENES} scenes, to see that it works"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")


def run(arguments: argparse.Namespace) -> int:
    """Score every run and report."""
    if arguments.quick:
        arguments.scenes = _QUICK_SCENES
    recipes = [scoring.trained_by(name) for name in arguments.runs]
    for name, recipe in zip(arguments.runs, recipes, strict=True):
        if not recipe:
            raise UserError(f"{name} has no recipe.yaml: give directories written by train.")
    seeds = training_seeds(recipes, arguments.runs)
    runs = []
    for name, seed in zip(arguments.runs, seeds, strict=True):
        metrics = scoring.metrics(name)
        if not metrics:
            raise UserError(f"{name} has no metrics.json: finish its training first.")
        model, world, config = scoring.prepare(name, arguments)
        batches = fresh_scenes(
            model, world, config, arguments.scenes, arguments.seed, arguments.device
        )
        effort = {key: metrics[key] for key in _EFFORT if key in metrics}
        scores = examine_discovery(model, batches)
        runs.append({"run": name, "seed": seed, **scores, "training": effort})
    report = {
        **scoring.settings(model, world, config, arguments),
        "runs": runs,
        **summarize_seeds(runs),
        "target": arguments.target,
        "published": _published(model.architecture, world),
        **provenance(arguments.device),
    }
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        print(_table(report))
    return 0


def _published(model: str, world: str) -> dict[str, float] | None:
    values = PUBLISHED.get((model, world))
    return dict(zip(("fg_ari", "std"), values, strict=True)) if values else None


def _table(report: dict[str, Any]) -> str:
    """The report for people: a row per score, a column per seed, mean and deviation."""
    runs, target, published = report["runs"], report["target"], report["published"]
    heading = [*(f"seed {run['seed']}" for run in runs), "mean", "std"]
    lines = [f"{'':>20}" + "".join(f"{name:>10}" for name in heading)]
    for name in _SHOWN:
        if name in report["mean"]:
            values = [*(run[name] for run in runs), report["mean"][name], report["std"][name]]
            cells = ("-" if value is None else f"{value:.4f}" for value in values)
            lines.append(f"{name:>20}" + "".join(f"{cell:>10}" for cell in cells))
    worst = report["worst"]
    lines.append(f"worst: seed {worst['seed']}, {worst['below_mean']:.4f} below the mean")
    if target is not None:
        reached = "reached" if report["mean"]["fg_ari"] >= target else "missed"
        lines.append(f"target {target:g}: {reached}")
    if published:
        lines.append(f"published {published['fg_ari']:g} ± {published['std']:g}")
    return "\n".join(lines)
