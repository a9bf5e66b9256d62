# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that score a model on a world."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oc_perception.cli import UserError
from oc_perception.configuration import override, read_yaml
from oc_perception.evaluation.refinement import is_iterative
from oc_perception.models.registry import checkpoint_directory, load_model, task_of
from oc_perception.worlds.registry import WORLDS

_DEFAULT_WORLD = "tabletop"


def add_arguments(parser: argparse.ArgumentParser, seed: int) -> None:
    """Declare them; `seed` is the default of the scenes."""
    parser.add_argument(
        "--world",
        choices=sorted(WORLDS),
        help="(default: what the model was trained on, with those settings, else"
        f" {_DEFAULT_WORLD}; another world has its default settings)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="world setting, for example num_objects=[3,6]")  # fmt: skip
    parser.add_argument("--seed", type=int, default=seed, help="of the scenes, not of training")
    parser.add_argument("--scenes", type=int, default=320)
    parser.add_argument("--slots", type=int, help="number of slots (default: as trained)")
    parser.add_argument(
        "--iterations", type=int, help="iterations of an iterative model (default: as trained)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def prepare(
    name: str, arguments: argparse.Namespace, task: str | None = "discovery"
) -> tuple[nn.Module, str, dict[str, Any]]:
    """The model called `name`, of `task` or None for any, as the options want it; the world's name
    and its settings.

    Raises UserError for an option that the model does not know.
    """
    if arguments.scenes < 1:
        raise UserError(f"--scenes must be at least 1, not {arguments.scenes}.")
    model = load_model(name, arguments.device, task)
    if arguments.slots is not None:
        fixed = task_of(model) not in ("discovery", "video") or not list(model.parameters())
        if arguments.slots < 1 or fixed:
            raise UserError(f"{name} cannot run with --slots {arguments.slots}.")
        model.num_slots = arguments.slots
    if arguments.iterations is not None:
        if not is_iterative(model):
            raise UserError(f"{name} does not iterate: leave out --iterations.")
        if arguments.iterations < 1:
            raise UserError(f"--iterations must be at least 1, not {arguments.iterations}.")
        model.num_iterations = arguments.iterations
    recipe = trained_by(name)
    world = arguments.world or recipe.get("world", _DEFAULT_WORLD)
    known = recipe.get("world_config", {}) if world == recipe.get("world") else {}
    return model, world, override(known, arguments.settings)


def trained_by(name: str) -> dict[str, Any]:
    """The recipe of a run directory or shipped checkpoint as plain mapping, empty if unknown."""
    directory = checkpoint_directory(name)
    if (directory / "recipe.yaml").is_file():
        return read_yaml(directory / "recipe.yaml")
    return metrics(name).get("recipe", {})


def metrics(name: str) -> dict[str, Any]:
    """What training wrote into `metrics.json`, empty where there is none."""
    path = checkpoint_directory(name) / "metrics.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def settings(
    model: nn.Module, world: str, world_config: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """What was scored on what, for the report."""
    return {
        "model": model.architecture,
        "world": world,
        "world_config": world_config,
        **({"slots": model.num_slots} if task_of(model) == "discovery" else {}),
        **({"iterations": model.num_iterations} if is_iterative(model) else {}),
        "scenes": arguments.scenes,
        "seed": arguments.seed,
    }


def write_json(report: dict[str, Any], file: str) -> None:
    """To a file, or to standard output where `file` is `-`."""
    text = json.dumps(report, indent=2) + "\n"
    if file == "-":
        print(text, end="")
    else:
        Path(file).write_text(text)
