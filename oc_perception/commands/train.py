# SPDX-License-Identifier: Apache-2.0
"""Train a model by recipe; Ctrl-C saves, the same command resumes.

The run directory is a checkpoint at any time: give it to `oc-perception evaluate`, or to the
discovery node as its `model`. On several GPUs: `torchrun --nproc-per-node N -m oc_perception.cli
train --set training.shards=N ...`; one process with as many shards learns the same.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from oc_perception.memory import keep_freed_memory
from oc_perception.training.parallel import is_first_process
from oc_perception.training.recipe import load_recipe, recipe_names
from oc_perception.training.trainer import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception train`."""
    parser.add_argument(
        "--recipe", required=True, help=f"name ({', '.join(recipe_names())}) or YAML path"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--seed", type=int, help="short for --set training.seed=SEED")
    parser.add_argument(
        "--output", type=Path, help="run directory (default: runs/RECIPE, or runs/RECIPE_sSEED)"
    )
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with this run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stop-at-step", type=int, help="save and end early at this step")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="save and end early after this time",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, then write `metrics.json` from 320 fresh scenes or sequences."""
    name, settings = Path(arguments.recipe).stem, list(arguments.settings)
    if arguments.seed is not None:
        name, settings = (
            f"{name}_s{arguments.seed}",
            [*settings, f"training.seed={arguments.seed}"],
        )
    keep_freed_memory()
    recipe = load_recipe(arguments.recipe, settings)
    directory = arguments.resume or arguments.output or Path("runs") / name
    train(
        recipe,
        directory,
        arguments.device,
        _print,
        arguments.stop_at_step,
        arguments.time_limit,
    )
    if is_first_process() and not (directory / "metrics.json").is_file():
        print(f"stopped early; the same command resumes {directory}")
    return 0


def _print(line: str) -> None:
    print(line, flush=True)
