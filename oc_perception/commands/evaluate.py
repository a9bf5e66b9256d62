# SPDX-License-Identifier: Apache-2.0
"""Score a model on fresh scenes of a procedural world: FG-ARI, ARI, AMI, mIoU with background,
MSE, how its slots are used, and the floors that need no model; on recordings without labels, of
the part kept from training, what needs none. For motion and tracking models: what they score on
fresh sequences. For models of videos: counting, identities, forecasts and evidence
(`evaluation/video.py`).

`--figures` draws decompositions (`decompositions.png`), scores against iterations and slots
(`refinement.png`, `slots.png`, numbers in `curves.json`), what the latents of a slot stand for
(`traversal.png`) and competing hypotheses (`hypotheses.png`), as far as the model can; of models
of videos, what they see (`tracks.png`) and foresee (`forecast.png`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.evaluation import plots
from oc_perception.evaluation.curves import refinement_curve, slot_curve
from oc_perception.evaluation.discovery import examine_discovery, fresh_scenes
from oc_perception.evaluation.figures import decomposition_grid
from oc_perception.evaluation.latents import hypotheses, traverse
from oc_perception.evaluation.readout import evaluate_readout
from oc_perception.evaluation.refinement import is_iterative
from oc_perception.evaluation.video import examine_video, sequences
from oc_perception.evaluation.video_forecast import HORIZONS, SEEN
from oc_perception.evaluation.video_strips import draw_strips
from oc_perception.models.registry import ModelError, task_of
from oc_perception.training.tasks import TASKS
from oc_perception.worlds.registry import create_world, held_out

_SEED = 2_000_003
_GRID_SCENES = 8
_STRIPS = 5
_SHOWN = 10
_CURVE_SCENES = 128
_TRAVERSAL_SCENES = 32
_HYPOTHESIS_SCENES, _HYPOTHESES = 4, 6
_READOUT_TRAINING = 4  # scenes to fit the read-out, per scene to score it


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
    parser.add_argument(
        "--readout",
        action="store_true",
        help="what one linear layer tells of an object from its slot: accuracy, R^2",
    )
    parser.add_argument(
        "--frames", type=int, help="of a sequence, for models of videos (default: as trained)"
    )
    parser.add_argument(
        "--particles",
        type=int,
        help="importance samples with which models of videos estimate the evidence (default: as"
        " trained)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, draw and print."""
    wanted = scoring.prepare(arguments.model, arguments, task=None)
    scenes = (arguments.scenes, arguments.seed, arguments.device)
    model, task = wanted[0], task_of(wanted[0])
    _refuse_what_does_not_fit(task, arguments)
    settings: dict[str, Any] = {}
    if task == "discovery":
        scores = examine_discovery(model, fresh_scenes(*wanted, *scenes))
    elif task == "video":
        model.num_frames = arguments.frames or model.num_frames
        scores = examine_video(*wanted, *scenes, arguments.particles)
        settings = _video_settings(*wanted, arguments)
    else:
        scores = TASKS[task].evaluate(*wanted, *scenes)
    if arguments.readout and "fg_ari" not in scores:
        raise UserError(
            f"--readout needs to know the objects, and {wanted[1]} has no labels here."
        )
    readout = _readout(*wanted, arguments) if arguments.readout else {}
    if arguments.figures:
        (_draw if task == "discovery" else _draw_strips)(*wanted, arguments)
    if arguments.json:
        report = {**scores, **readout, **scoring.settings(*wanted, arguments), **settings}
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        flat = {f"{kind} {name}": value for kind, part in readout.items()
                for name, value in part.items()}  # fmt: skip
        for name, value in (scores | flat | settings).items():
            print(f"{name:>{32 if task == 'video' else 24}}  {_text(value)}")
    return 0


def _refuse_what_does_not_fit(task: str, arguments: argparse.Namespace) -> None:
    """Raises UserError for options that are not for models of this task, or have bad values."""
    name = arguments.model
    if arguments.figures and task == "discovery":
        plots.require_matplotlib()
    if arguments.figures and task not in ("discovery", "video"):
        raise UserError(
            f"--figures is for models of discovery and of videos: leave it out, {name} is a {task}"
            " model."
        )
    if arguments.readout and task != "discovery":
        raise UserError(
            f"--readout is for discovery models: leave it out, {name} is a {task} model."
        )
    for option in ("frames", "particles"):
        value = getattr(arguments, option)
        if value is not None and task != "video":
            raise UserError(
                f"--{option} is for models of videos: leave it out, {name} is a {task} model."
            )
        if value is not None and value < 1:
            raise UserError(f"--{option} must be at least 1, not {value}.")


def _text(value: float | list[float] | str | None) -> str:
    """As it is printed: of many numbers the first ones."""
    if isinstance(value, list):
        shown = " ".join(format(item, ".3g") for item in value[:_SHOWN])
        return shown + (" ..." if len(value) > _SHOWN else "")
    if value is None or isinstance(value, str):
        return value or "-"
    return format(value, ".4g")


def _video_settings(
    model: nn.Module, world: str, config: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """What was scored, beside `scoring.settings`; `source` where a world says what it shows."""
    source = getattr(
        create_world(world, held_out(world, config), 1, arguments.seed), "source", None
    )
    return {
        "slots": model.num_slots,
        "frames": model.num_frames,
        "particles": arguments.particles or model.config.particles,
        **({"source": source} if source else {}),
    }


def _draw_strips(
    model: nn.Module, world: str, config: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """What a model of videos sees, and what it expects of the last frames unseen, in sequences
    with many objects.
    """
    arguments.figures.mkdir(parents=True, exist_ok=True)
    wanted = (model, world, config, arguments.scenes, arguments.seed, arguments.device)
    images, motion = next(sequences(*wanted))
    most = motion.present.any(1).sum(1).argsort(descending=True, stable=True)[:_STRIPS]
    images = images[most]
    draw_strips(model, images[:, : model.num_frames], arguments.figures / "tracks.png")
    foreseen = images[:, : SEEN + max(HORIZONS)]
    draw_strips(model, foreseen, arguments.figures / "forecast.png", SEEN)


def _readout(
    model: nn.Module, world: str, config: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, dict[str, float | None]]:
    """Accuracy, chance and R^2 by factor; None where a factor never changes."""
    scenes = arguments.scenes
    found = evaluate_readout(
        model, world, config, _READOUT_TRAINING * scenes, scenes, arguments.seed, arguments.device
    )
    return {
        kind: {
            name: value if math.isfinite(value) else None for name, value in found[kind].items()
        }
        for kind in ("accuracy", "chance", "r2")
    }


def _draw(
    model: nn.Module, world: str, config: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """All figures that the model has an answer to; says which ones are left out, and why."""
    directory, seed = arguments.figures, arguments.seed
    directory.mkdir(parents=True, exist_ok=True)

    def scenes(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        wanted = min(count, arguments.scenes)
        return list(fresh_scenes(model, world, config, wanted, seed, arguments.device))

    title = f"{model.name} on {world}"
    images, labels = scenes(_GRID_SCENES)[0]
    with torch.inference_mode():
        _, decomposition = model.step(model.initial_state(len(images)), images)
        decomposition_grid(images, decomposition, directory / "decompositions.png", labels)
    if labels is None:
        _leave_out(
            "all figures but decompositions.png", "they need labels, which are unknown here"
        )
        return

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
