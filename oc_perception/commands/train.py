# SPDX-License-Identifier: Apache-2.0
"""Train a model by recipe; Ctrl-C saves, the same command resumes.

The run directory is a checkpoint at any time: give it to `oc-perception evaluate`, or to the
discovery node as its `model`. Recipes called *_bag learn from your recordings: `--recipe monet_bag
--bag PATH... --topic TOPIC`. On several GPUs: `torchrun --nproc-per-node N -m oc_perception.cli
train --set training.shards=N ...`; one process with as many shards learns the same.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from oc_perception.bags.sequence import open_sequence
from oc_perception.cli import UserError
from oc_perception.memory import keep_freed_memory
from oc_perception.training.parallel import is_first_process
from oc_perception.training.recipe import Recipe, load_recipe, recipe_names
from oc_perception.training.trainer import train
from oc_perception.worlds.registry import WORLDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception train`."""
    parser.add_argument(
        "--recipe", required=True, help=f"name ({', '.join(recipe_names())}) or YAML path"
    )
    parser.add_argument(
        "--bag",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="recordings to learn from, for recipes called *_bag: rosbags, pictures, videos",
    )
    parser.add_argument("--topic", help="of the images in --bag, if there are several")
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
    recipe = _with_recordings(load_recipe(arguments.recipe, settings), arguments)
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


def _with_recordings(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """The recipe for the recordings of `--bag`, with pictures of their aspect unless `--set` says
    how large they are.
    """
    if not arguments.bag:
        if arguments.topic:
            raise UserError("--topic is of the recordings of --bag: give their paths too.")
        return recipe
    world = WORLDS.get(recipe.world)
    if world is None or "bags" not in {field.name for field in fields(world.Config)}:
        raise UserError(
            f"Recipe {arguments.recipe} learns from the world {recipe.world}, not from recordings:"
            " choose a recipe called *_bag, or leave out --bag."
        )
    found = {"bags": arguments.bag, "topic": arguments.topic}
    recipe = replace(recipe, world_config={**recipe.world_config, **found})
    if recipe.world != "recordings" or any("frame_size" in text for text in arguments.settings):
        return recipe
    sizes = recipe.model_config.get("frame_size")
    fitted = {"frame_size": _fitting(sizes, *_recorded_size(recipe))} if sizes else {}
    return replace(recipe, model_config={**recipe.model_config, **fitted})


def _recorded_size(recipe: Recipe) -> tuple[int, int]:
    """Height and width, in px, of what the recipe's world cuts out of its first recording."""
    config = recipe.world_config
    if config.get("crop"):
        _, _, width, height = config["crop"]
        return height, width
    with open_sequence(config["bags"][0], config["topic"], fps=config.get("fps")) as sequence:
        for frame in sequence.frames():
            if isinstance(frame.image, np.ndarray):
                return frame.image.shape[:2]
    raise UserError(f"{config['bags'][0]}: none of its images can be decoded.")


def _fitting(size: list[int], height: int, width: int) -> list[int]:
    """A frame size of about the area of `size` and the aspect of `height x width`, with sides that
    are multiples of the largest power of two in both sides of `size`.
    """
    unit = math.gcd(*size, 1 << 10)
    steps = range(unit, 4 * max(size) + 1, unit)
    area, aspect = math.prod(size), height / width
    candidates = ((high, wide) for high in steps for wide in steps)
    best = min(
        candidates,
        key=lambda s: (
            abs(math.log(s[0] / s[1] / aspect)) + 0.5 * abs(math.log(s[0] * s[1] / area))
        ),
    )
    return list(best)


def _print(line: str) -> None:
    print(line, flush=True)
