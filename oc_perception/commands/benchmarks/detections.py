# SPDX-License-Identifier: Apache-2.0
"""How many true boxes of a recording a discovery model finds, and how many of its detections are
one: matched at an IoU, over all frames and over the end that was kept from training. Beside it
what needs no training: the same model with random weights (but its background, if it has one), a
fixed grid, difference to the median frame, MOG2.

`oc-perception benchmark detections TUD-Stadtmitte.tar --model runs/monet_bag --model monet_demo
--json docs/results/monet_tud_cpu.json --strip strip.jpg`
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from oc_perception.bags.sequence import Sequence, open_sequence
from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.configuration import to_mapping
from oc_perception.evaluation.detections import (
    MEDIAN_THRESHOLDS,
    ModelFinder,
    film_strip,
    median_difference,
    median_frame,
    mixture_of_gaussians,
    score_finders,
)
from oc_perception.evaluation.provenance import provenance
from oc_perception.models.registry import create_model, load_model
from oc_perception.pipeline import Discovery

_STRIP_FRAMES = 5
_SEED = 0  # of random weights
_JPEG_QUALITY = 85
_EFFORT = ("steps", "early_stopping", "elapsed_s", "cpu_s", "threads", "machine", "torch", "mse",
           "held_out_loss", "recipe")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark detections`."""
    parser.add_argument("bag", help="a recording with true boxes: whatever replay reads")
    parser.add_argument("--model", action="append", default=[], metavar="MODEL",
                        help="shipped checkpoint or run directory; may be repeated")  # fmt: skip
    parser.add_argument("--topic", help="of the images, if there are several")
    parser.add_argument("--truth", help="MOTChallenge file of the boxes, if not in the recording")
    parser.add_argument("--iou", type=float, default=0.3, help="of a match (default: %(default)s)")
    parser.add_argument("--held-out", type=float, default=0.2, metavar="SHARE",
                        help="the last share of the time (default: %(default)s)")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")
    parser.add_argument("--strip", metavar="FILE", help="draw what the first model finds there")
    parser.add_argument("--no-footage", action="store_true",
                        help="draw boxes and slots alone, where pictures are private")  # fmt: skip
    parser.add_argument("--device", default="cpu")


def run(arguments: argparse.Namespace) -> int:
    """Find, match and report."""
    if not 0 < arguments.iou <= 1 or not 0 < arguments.held_out < 1:
        raise UserError("--iou must lie in (0, 1], --held-out between 0 and 1.")
    if arguments.strip and not arguments.model:
        raise UserError("--strip draws what a model finds: name one by --model.")
    with open_sequence(arguments.bag, arguments.topic, arguments.truth) as sequence:
        finders = {"grid": _model_finder("grid", arguments)}
        for name in arguments.model:
            finders[name] = _model_finder(name, arguments)
            finders[f"{name}, untrained"] = _untrained_finder(name, arguments)
        background = median_frame(sequence)
        for threshold in MEDIAN_THRESHOLDS:
            finders[f"median, {threshold}"] = median_difference(background, threshold)
        finders["MOG2"] = mixture_of_gaussians()
        scores = score_finders(sequence, finders, arguments.iou, arguments.held_out)
        if not scores["grid"]["all"]["true"]:
            raise UserError(f"{arguments.bag} has no true boxes: give them by --truth.")
        if arguments.strip:
            finder = _model_finder(arguments.model[0], arguments)
            _draw(sequence, finder, arguments.strip, not arguments.no_footage)
    report = {
        "recording": sequence.name,
        "iou": arguments.iou,
        "held_out": arguments.held_out,
        "scores": {Path(name).name: values for name, values in scores.items()},
        "training": {Path(name).name: _training(name) for name in arguments.model},
        **provenance(arguments.device),
    }
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        print(f"{'':>24}{'recall':>9}{'precision':>11}{'held out:':>12} recall  precision")
        for name, values in report["scores"].items():
            cells = [values[part][key] for part in ("all", "held_out")
                     for key in ("recall", "precision")]  # fmt: skip
            shown = ["-" if cell is None else f"{cell:.3f}" for cell in cells]
            print(f"{name:>24}{shown[0]:>9}{shown[1]:>11}{shown[2]:>19}{shown[3]:>11}")
    return 0


def _model_finder(name: str, arguments: argparse.Namespace) -> ModelFinder:
    return ModelFinder(Discovery(load_model(name, arguments.device), device=arguments.device))


def _untrained_finder(name: str, arguments: argparse.Namespace) -> ModelFinder:
    trained = load_model(name, arguments.device)
    torch.manual_seed(_SEED)  # torch's initialisers take no generator
    model = create_model(trained.architecture, **to_mapping(trained.config))
    model.load_state_dict({**model.state_dict(), **_kept(trained)})
    return ModelFinder(Discovery(model.eval().to(arguments.device), device=arguments.device))


def _kept(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint holds beside weights: what it knows about the place."""
    weights = {name for name, _ in model.named_parameters()}
    return {name: value for name, value in model.state_dict().items() if name not in weights}


def _training(name: str) -> dict[str, object]:
    """Which effort the weights took, without the paths of the recordings."""
    metrics = scoring.metrics(name)
    effort = {key: metrics[key] for key in _EFFORT if key in metrics}
    world = effort.get("recipe", {}).get("world_config", {})
    if "bags" in world:
        world["bags"] = [Path(bag).name for bag in world["bags"]]
    return effort


def _draw(sequence: Sequence, finder: ModelFinder, path: str, footage: bool) -> None:
    """Evenly spaced frames, the last one among those kept from training."""
    wanted = np.linspace(0, sequence.num_frames - 1, _STRIP_FRAMES).round().astype(int)
    shown = [
        frame
        for number, frame in enumerate(sequence.frames())
        if number in wanted and isinstance(frame.image, np.ndarray) and frame.boxes is not None
    ]
    strip = film_strip([f.image for f in shown], [f.boxes.boxes for f in shown], finder, footage)
    is_jpeg = Path(path).suffix.lower() in (".jpg", ".jpeg")
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if is_jpeg else []
    if not cv2.imwrite(path, cv2.cvtColor(strip, cv2.COLOR_RGB2BGR), quality):
        raise UserError(f"Cannot write {path}: give a .jpg or .png in a folder that exists.")
