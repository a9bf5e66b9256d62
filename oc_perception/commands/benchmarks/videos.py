# SPDX-License-Identifier: Apache-2.0
"""What models that discover and track reach over their training seeds, on the same fresh sequences:
counts, identities, forecasts and bounds, beside what is asked of them; AIR, which sees each frame
by itself, is what others are compared with.

`oc-perception benchmark videos runs/air_s{0,1,2} runs/sqair_s{0,1,2} --json docs/results/sqair.json`
"""  # noqa: E501 (a command)

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.evaluation.plots import require_matplotlib
from oc_perception.evaluation.provenance import provenance
from oc_perception.evaluation.seeds import summarize_seeds, training_seeds
from oc_perception.evaluation.video import examine_video
from oc_perception.evaluation.videos_figure import draw_crossing, draw_scores
from oc_perception.evaluation.videos_rows import LONG_RUNS, Group, Row, shown, tables

_SEED = 3_000_017  # neither the sequences watched in training nor those of metrics.json
_FRAMES = (10, *LONG_RUNS)
_PARTICLES = 1000
_EVIDENCE_SCENES = 32  # evidence takes far longer than all else, and little varies between seeds
_ALONE = "air"  # each frame by itself: it follows nothing
_QUICK_SCENES, _QUICK_PARTICLES = 8, 8
_EFFORT = ("steps", "elapsed_s", "cpu_s", "threads", "machine", "torch", "commit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark videos`."""
    default = "(default: %(default)s)"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory or checkpoint name")
    scoring.add_arguments(parser, _SEED)
    parser.add_argument(
        "--frames", type=int, nargs="+", default=_FRAMES, metavar="T",
        help=f"lengths of sequences; all but counting and identities is of the first {default}",
    )  # fmt: skip
    parser.add_argument(
        "--particles", type=int, default=_PARTICLES,
        help=f"importance samples for the evidence, of {_EVIDENCE_SCENES} sequences {default}; all"
        " else is with as many as in training",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw the scores there")
    parser.add_argument(
        "--strip", type=Path, metavar="PNG",
        help="draw there how the last of the runs follows two objects that cross",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help=f"{_QUICK_SCENES} scenes, to see that it works"
    )


def run(arguments: argparse.Namespace) -> int:
    """Score every run and report."""
    if arguments.quick:
        arguments.scenes = _QUICK_SCENES
        arguments.particles = min(arguments.particles, _QUICK_PARTICLES)
    if min(arguments.particles, *arguments.frames) < 1:
        raise UserError("--particles and --frames must be at least 1.")
    if arguments.figure:
        require_matplotlib()
    recipes = [
        [_Candidate(name, seed, *scoring.prepare(name, arguments, "video")) for name, seed in runs]
        for runs in _seeds_of_recipes(arguments.runs)
    ]
    model, world, config = _common(list(chain(*recipes)))
    if arguments.strip and model.architecture == _ALONE:
        raise UserError("--strip needs a run of a model that follows objects, as sqair does.")
    groups = _told_apart([_examined(recipe, arguments) for recipe in recipes])
    rows = list(tables(groups, world, arguments.frames))
    report = {
        "world": world,
        "world_config": config,
        "scenes": arguments.scenes,
        "seed": arguments.seed,
        "frames": list(arguments.frames),
        "evidence": {
            "scenes": min(arguments.scenes, _EVIDENCE_SCENES),
            "particles": arguments.particles,
        },
        "recipes": [_as_dict(group, table) for group, table in rows],
        **provenance(arguments.device),
    }
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        print("\n\n".join(shown(*pair) for pair in rows))
        scenes, particles = report["evidence"].values()
        print(
            f"\n{arguments.scenes} sequences; evidence of the first {scenes} with {particles}"
            " particles"
        )
    if arguments.figure:
        learned = model.config.num_frames
        draw_scores(groups, world, arguments.frames, learned, arguments.figure)
    if arguments.strip:
        draw_crossing(model, world, config, arguments.seed, arguments.strip, arguments.device)
    return 0


class _Candidate(NamedTuple):
    name: str
    seed: int
    model: nn.Module
    world: str
    config: dict[str, Any]


def _seeds_of_recipes(names: Sequence[str]) -> list[list[tuple[str, int]]]:
    """Runs called `names` and their training seeds, a list for each of their recipes.

    Raises UserError for runs that are not complete.
    """
    recipes: list[tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]] = []
    for name in names:
        recipe = scoring.trained_by(name)
        if not recipe:
            raise UserError(f"{name} has no recipe.yaml: give directories written by train.")
        if not scoring.metrics(name):
            raise UserError(f"{name} has no metrics.json: finish its training first.")
        training = {k: v for k, v in recipe.get("training", {}).items() if k != "seed"}
        without_seed = {**recipe, "training": training}
        runs = next((runs for known, runs in recipes if known == without_seed), None)
        if runs is None:
            recipes.append((without_seed, runs := []))
        runs.append((name, recipe))
    grouped = []
    for _, runs in recipes:
        own_names, own_recipes = zip(*runs, strict=True)
        seeds = training_seeds(own_recipes, own_names)
        grouped.append(list(zip(own_names, seeds, strict=True)))
    return grouped


def _common(candidates: Sequence[_Candidate]) -> tuple[nn.Module, str, dict[str, Any]]:
    """The last model that follows objects, if there is one, and the world of all.

    Raises UserError where they are not of one world.
    """
    first = candidates[0]
    for other in candidates:
        if (other.world, other.config) != (first.world, first.config):
            raise UserError(
                f"{first.name} was trained on {first.world} {first.config}, {other.name} on"
                f" {other.world} {other.config}: choose one by --world and --set."
            )
    following = [one.model for one in candidates if one.model.architecture != _ALONE]
    return (following or [first.model])[-1], first.world, first.config


def _examined(recipe: Sequence[_Candidate], arguments: argparse.Namespace) -> Group:
    """`scores` by number of frames, and `evidence` with many particles on the first sequences."""
    place = (arguments.seed, arguments.device)
    runs = []
    for name, seed, model, world, config in recipe:
        scores = {}
        for frames in arguments.frames:
            model.num_frames = frames
            scores[str(frames)] = examine_video(model, world, config, arguments.scenes, *place)
        model.num_frames = arguments.frames[0]
        scenes = min(arguments.scenes, _EVIDENCE_SCENES)
        many = examine_video(model, world, config, scenes, *place, arguments.particles)
        evidence = {name: many[name] for name in ("log_evidence", "log_evidence_gap", "elbo")}
        evidence["encoder_kl"] = many["log_evidence"] - many["elbo"]
        runs.append({"run": name, "seed": seed, "scores": scores, "evidence": evidence})
    architecture = recipe[0].model.architecture
    return Group(architecture.upper(), architecture, runs)


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """With the name of their first run where several recipes are for one model."""
    labels = [group.label for group in groups]
    return [
        group._replace(label=f"{group.label} {Path(group.runs[0]['run']).name}")
        if labels.count(group.label) > 1
        else group
        for group in groups
    ]


def _as_dict(group: Group, rows: list[Row]) -> dict[str, Any]:
    """What is known of a recipe: its runs and their training, statistics and rows."""
    runs = []
    for run in group.runs:
        metrics = scoring.metrics(run["run"])
        effort = {key: metrics[key] for key in _EFFORT if key in metrics}
        runs.append({**run, "training": effort})
    summary = {
        frames: summarize_seeds(
            [{"seed": run["seed"], **run["scores"][frames]} for run in runs], "counting_accuracy"
        )
        for frames in runs[0]["scores"]
    }
    return {
        "label": group.label,
        "model": group.architecture,
        "recipe": scoring.trained_by(runs[0]["run"]),
        "runs": runs,
        "summary": summary,
        "rows": [row.as_dict() for row in rows],
    }
