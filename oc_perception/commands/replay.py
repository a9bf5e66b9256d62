# SPDX-License-Identifier: Apache-2.0
"""Run perception over a rosbag2, offline and deterministic.

Writes results/ (mcap), tracks.txt (MOTChallenge), annotated.mp4, contact_sheet.png and
metrics.json, which are byte-identical in every run, and timing.json, which is not.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from oc_perception.cli import UserError
from oc_perception.configuration import from_mapping, read_yaml
from oc_perception.evaluation.replay import replay
from oc_perception.models.registry import load_model
from oc_perception.pipeline import Discovery, Perception
from oc_perception.progress import Progress
from oc_perception.tracking.config import TRACKERS, TrackerConfig
from oc_perception.tracking.reordering import ReorderingTracker
from oc_perception.tracking.tracker import create_tracker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `oc-perception replay`."""
    parser.add_argument("bag", type=Path, help="rosbag2 directory, or a .mcap or .db3 file")
    parser.add_argument("--output", type=Path, required=True, help="directory for the results")
    parser.add_argument(
        "--model",
        default="monet_demo",
        help="checkpoint directory, or name of a shipped one (default: %(default)s)",
    )
    parser.add_argument("--topic", help="image topic (default: the only one in the bag)")
    parser.add_argument("--config", type=Path, help="YAML with the keys of TrackerConfig")
    parser.add_argument(
        "--tracker",
        choices=TRACKERS,
        help="mohart follows objects in the images (default: as in --config, else filter)",
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of the model; as in the discovery node, whose results depend on it in the "
        "last bits (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Replay, and say in a few lines what was found."""
    if arguments.threads < 1:
        raise UserError("--threads must be at least 1.")
    torch.set_num_threads(arguments.threads)
    tracking = read_yaml(arguments.config) if arguments.config else {}
    config = from_mapping(TrackerConfig, tracking)
    if arguments.tracker:
        config = replace(config, tracker=arguments.tracker)
    tracker = ReorderingTracker(create_tracker(config))
    model = load_model(arguments.model, arguments.device)
    discovery = Discovery(
        model,
        device=arguments.device,
        clock_reset_threshold_s=config.clock_reset_threshold_s,
        reorder_window_s=config.reorder_window_s,
    )
    perception = Perception(discovery, tracker)
    progress: Progress | None = None

    def start(total: int) -> None:
        nonlocal progress
        progress = Progress("frames", total)

    begin_s = time.monotonic()
    metrics = replay(
        arguments.bag,
        perception,
        arguments.output,
        arguments.topic,
        on_start=start,
        on_frame=lambda: progress.advance(),
    )
    progress.finish()
    wall_s = time.monotonic() - begin_s
    bag_s = metrics["steps"] / metrics["rate_hz"]
    timing = {"wall_s": wall_s, "bag_s": bag_s, "bag_s_per_wall_s": bag_s / wall_s}
    (arguments.output / "timing.json").write_text(json.dumps(timing, indent=2) + "\n")
    for name, value in metrics.items():
        if value != "":
            print(f"{name:>18}  {value}")
    print(f"{'speed':>18}  {bag_s / wall_s:.2f} x real time")
    print(f"{'written to':>18}  {arguments.output}")
    return 0
