# SPDX-License-Identifier: Apache-2.0
"""Train a model by recipe; Ctrl-C saves, the same command resumes.

The run directory is a checkpoint at any time: give it to `oc-perception evaluate`, or to the
discovery node as its `model`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from oc_perception.configuration import to_mapping
from oc_perception.evaluation.discovery import evaluate_discovery
from oc_perception.models.registry import save_checkpoint
from oc_perception.training.recipe import load_recipe, recipe_names
from oc_perception.training.trainer import train

TEST_SEED = 2_000_003
TEST_SCENES = 320


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception train`."""
    parser.add_argument(
        "--recipe", required=True, help=f"name ({', '.join(recipe_names())}) or YAML path"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--output", type=Path, help="run directory (default: runs/RECIPE)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with this run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stop-at-step", type=int, help="save and end early at this step")


def run(arguments: argparse.Namespace) -> int:
    """Train, then write `metrics.json` from 320 fresh scenes."""
    recipe = load_recipe(arguments.recipe, arguments.settings)
    directory = arguments.resume or arguments.output or Path("runs") / Path(arguments.recipe).stem
    model = train(recipe, directory, arguments.device, _print, arguments.stop_at_step)
    save_checkpoint(model, directory)
    if (directory / "state.pt").is_file():
        print(f"stopped early; the same command resumes {directory}")
        return 0
    metrics = evaluate_discovery(
        model.eval(),
        recipe.world,
        recipe.world_config,
        TEST_SCENES,
        TEST_SEED,
        arguments.device,
    )
    record = {**metrics, "world": recipe.world, "recipe": to_mapping(recipe)}
    (directory / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(metrics))
    return 0


def _print(line: str) -> None:
    print(line, flush=True)
