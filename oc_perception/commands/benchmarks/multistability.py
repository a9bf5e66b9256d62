# SPDX-License-Identifier: Apache-2.0
"""How many groupings of an ambiguous picture inference finds: rectangles that can be cut into
three tetrominoes in 23 ways, inferred many times with fresh noise (needs a model with hypotheses:
IODINE).
"""

from __future__ import annotations

import argparse

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.evaluation.multistability import examine_multistability
from oc_perception.evaluation.provenance import provenance
from oc_perception.models.registry import load_model
from oc_perception.worlds.registry import create_world

_QUICK_RUNS = 4
_SHARED = ("block_px", "bevel")  # how pieces look in training, and should look here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark multistability`."""
    parser.add_argument("model", help="shipped checkpoint or run directory")
    parser.add_argument("--runs", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--iterations", type=int, help="default: as trained")
    parser.add_argument("--seed", type=int, default=3_000_017)
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK_RUNS} runs of one scene")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")
    parser.add_argument("--device", default="cpu")


def run(arguments: argparse.Namespace) -> int:
    """Infer, count and report."""
    runs, scenes = (_QUICK_RUNS, 1) if arguments.quick else (arguments.runs, arguments.scenes)
    iterations = arguments.iterations
    if min(runs, scenes, 1 if iterations is None else iterations) < 1:
        raise UserError("--runs, --scenes and --iterations must be at least 1.")
    model = load_model(arguments.model, arguments.device)
    if not hasattr(model, "refine"):
        raise UserError(f"{arguments.model} finds one decomposition only: take an IODINE model.")
    if iterations is not None:
        model.num_iterations = iterations
    trained = scoring.trained_by(arguments.model).get("world_config", {})
    config = {key: trained[key] for key in _SHARED if key in trained}
    world = create_world("ambiguous_tetrominoes", config, scenes, arguments.seed, arguments.device)
    found = examine_multistability(model, world.sample(*model.frame_size), runs, arguments.seed)
    report = {"model": arguments.model, **found, **provenance(arguments.device)}
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        for name, value in found.items():
            print(f"{name:>16}  {value:.4g}")
    return 0
