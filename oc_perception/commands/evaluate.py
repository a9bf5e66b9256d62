# SPDX-License-Identifier: Apache-2.0
"""Score a model on fresh scenes of a procedural world: FG-ARI, ARI, AMI, mIoU with background,
MSE, how its slots are used, and the floors that need no model.

`--figures` draws decompositions (`decompositions.png`), scores against iterations and slots
(`refinement.png`, `slots.png`, numbers in `curves.json`), what the latents of a slot stand for
(`traversal.png`) and competing hypotheses (`hypotheses.png`), as far as the model can.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oc_perception.commands import scoring
from oc_perception.evaluation import plots
from oc_perception.evaluation.curves import refinement_curve, slot_curve
from oc_perception.evaluation.discovery import examine_discovery, fresh_scenes
from oc_perception.evaluation.figures import decomposition_grid
from oc_perception.evaluation.latents import hypotheses, traverse
from oc_perception.evaluation.refinement import is_iterative
from oc_perception.models.registry import ModelError

_SEED = 2_000_003
_GRID_SCENES = 8
_CURVE_SCENES = 128
_TRAVERSAL_SCENES = 32
_HYPOTHESIS_SCENES, _HYPOTHESES = 4, 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception evaluate`."""
    parser.add_argument("model", help="shipped checkpoint, run directory, or `grid`")
    scoring.add_arguments(parser, _SEED)
    parser.add_argument(
        "--json", metavar="FILE", help="write the scores here; - for standard output"
    )
    parser.add_argument(
        "--figures", type=Path, metavar="DIR", help="draw figures into this folder"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, draw and print."""
    if arguments.figures:
        plots.require_matplotlib()
        arguments.figures.mkdir(parents=True, exist_ok=True)
    model, world, config = scoring.prepare(arguments.model, arguments)
    wanted = (model, world, config)
    batches = fresh_scenes(*wanted, arguments.scenes, arguments.seed, arguments.device)
    scores = examine_discovery(model, batches)
    if arguments.figures:
        _draw(*wanted, arguments)
    if arguments.json:
        scoring.write_json({**scores, **scoring.settings(*wanted, arguments)}, arguments.json)
    if arguments.json != "-":
        for name, value in scores.items():
            print(f"{name:>24}  {value:.4g}")
    return 0


def _draw(
    model: nn.Module, world: str, config: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """All figures that the model has an answer to; says which ones are left out, and why."""
    directory, seed = arguments.figures, arguments.seed

    def scenes(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        wanted = min(count, arguments.scenes)
        return list(fresh_scenes(model, world, config, wanted, seed, arguments.device))

    title = f"{model.name} on {world}"
    images, labels = scenes(_GRID_SCENES)[0]
    with torch.inference_mode():
        _, decomposition = model.step(model.initial_state(len(images)), images)
        decomposition_grid(images, decomposition, directory / "decompositions.png", labels)

    curves = {}
    if is_iterative(model):
        curve = refinement_curve(model, scenes(_CURVE_SCENES))
        plots.plot_refinement(curve, title, directory / "refinement.png")
        curves["refinement"] = curve.summary()
    else:
        _leave_out("refinement.png", "the model does not iterate")
    try:
        if not list(model.parameters()):
            raise ModelError("the number of slots is fixed")
        curve = slot_curve(model, scenes(_CURVE_SCENES))
        plots.plot_slots(curve, title, directory / "slots.png")
        curves["slots"] = curve.summary()
    except ModelError as error:
        _leave_out("slots.png", str(error))
    if curves:
        (directory / "curves.json").write_text(json.dumps(curves, indent=2) + "\n")

    if hasattr(model, "decode"):
        traversal = traverse(model, *scenes(_TRAVERSAL_SCENES)[0])
        plots.plot_traversal(traversal, title, directory / "traversal.png")
    else:
        _leave_out("traversal.png", "the model has no decode(latents)")
    if hasattr(model, "refine"):
        images, labels = scenes(_HYPOTHESIS_SCENES)[0]
        found = hypotheses(model, images, _HYPOTHESES, seed)
        plots.plot_hypotheses(images, labels, found, title, directory / "hypotheses.png")
    else:
        _leave_out("hypotheses.png", "the model finds one decomposition only")


def _leave_out(figure: str, reason: str) -> None:
    print(f"{figure} left out: {reason}", file=sys.stderr)
