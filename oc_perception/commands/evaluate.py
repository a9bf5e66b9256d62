# SPDX-License-Identifier: Apache-2.0
"""Score a model on fresh scenes of a procedural world: FG-ARI, ARI, mIoU with background, MSE."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from oc_perception.cli import UserError
from oc_perception.configuration import override
from oc_perception.evaluation.discovery import evaluate_discovery
from oc_perception.evaluation.figures import decomposition_grid
from oc_perception.models.registry import load_model
from oc_perception.worlds.registry import WORLDS, create_world

_FIGURE_SCENES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception evaluate`."""
    parser.add_argument("model", help="shipped checkpoint, run directory, or `grid`")
    parser.add_argument("--world", default="tabletop", choices=sorted(WORLDS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="world setting, for example num_objects=[3,6]")  # fmt: skip
    parser.add_argument("--seed", type=int, default=2_000_003)
    parser.add_argument("--scenes", type=int, default=320)
    parser.add_argument("--slots", type=int, help="number of slots (default: as trained)")
    parser.add_argument(
        "--json", metavar="FILE", help="write the scores here; - for standard output"
    )
    parser.add_argument("--figure", type=Path, help="write a decomposition grid (PNG) here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print."""
    model = load_model(arguments.model, arguments.device)
    if arguments.slots is not None:
        if arguments.slots < 1 or not list(model.parameters()):
            raise UserError(f"{arguments.model} cannot run with --slots {arguments.slots}.")
        model.num_slots = arguments.slots
    config = override({}, arguments.settings)
    scores = evaluate_discovery(
        model, arguments.world, config, arguments.scenes, arguments.seed, arguments.device
    )
    if arguments.figure:
        with torch.inference_mode():
            world = create_world(
                arguments.world, config, _FIGURE_SCENES, arguments.seed, arguments.device
            )
            frames = world.sample(*model.frame_size).images
            _, decomposition = model.step(model.initial_state(_FIGURE_SCENES), frames)
            decomposition_grid(frames, decomposition, arguments.figure)
    text = json.dumps(scores)
    if arguments.json and arguments.json != "-":
        Path(arguments.json).write_text(text + "\n")
    elif arguments.json:
        print(text)
    else:
        for name, value in scores.items():
            print(f"{name:>8}  {value if isinstance(value, int) else format(value, '.4g')}")
    return 0
