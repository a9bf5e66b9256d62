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

from oc_perception.training.recipe import load_recipe, recipe_names
from oc_perception.training.trainer import train


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
    train(recipe, directory, arguments.device, _print, arguments.stop_at_step)
    metrics = directory / "metrics.json"
    if metrics.is_file():
        scores = json.loads(metrics.read_text())
        print("\n".join(f"{name:>8}  {scores[name]:.4g}" for name in ("fg_ari", "miou", "mse")))
    else:
        print(f"stopped early; the same command resumes {directory}")
    return 0


def _print(line: str) -> None:
    print(line, flush=True)
