# SPDX-License-Identifier: Apache-2.0
"""Run the whole chain on a simulated camera that goes blind, and measure it.

Simulator, discovery, tracking, visualization and a recorder run as processes of their own over
DDS. Writes metrics.json, annotated.mp4, contact_sheet.png, results/ (mcap) and logs/.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

from oc_perception import deployment
from oc_perception.cli import UserError
from oc_perception.commands.up import command
from oc_perception.processes import Processes, isolated_environment, require_ros, stop

_RATE_HZ = 30.0
_RENDER_AHEAD_S = 60.0  # drawn before the run, 9 MB a second


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception demo`."""
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="length (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo_output"),
        help="directory for the results (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        default="monet_demo",
        help="discovery model: a checkpoint or a registered name (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the world (default: %(default)s)")
    parser.add_argument(
        "--render-scale",
        type=float,
        default=0.5,
        help="size of the drawn over the published image (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 when all processes did their part."""
    require_ros()
    from oc_perception.evaluation.demo import DemoPlan, measure, schedule, table

    began_s = time.monotonic()
    output = arguments.output
    (output / "logs").mkdir(parents=True, exist_ok=True)
    metrics_file = output / "metrics.json"
    metrics_file.unlink(missing_ok=True)  # written last: its presence says that the rest is whole
    plan = DemoPlan(
        arguments.seconds, str(output.absolute()), _RATE_HZ, schedule(arguments.seconds)
    )
    plan_file = output / "logs" / "plan.json"
    plan_file.write_text(json.dumps(dataclasses.asdict(plan), indent=2) + "\n")
    settings = {
        "camera_simulator_node": [
            f"rate_hz:={plan.rate_hz}",
            f"duration_s:={plan.seconds}",
            f"render_ahead_s:={min(plan.seconds, _RENDER_AHEAD_S)}",
            f"render_scale:={arguments.render_scale}",
            f"blackouts:={plan.blackouts}",
            f"seed:={arguments.seed}",
            "running:=false",
        ]
    }
    files = deployment.parameter_files("demo")
    commands = {
        node.executable: command(node, files, settings.get(node.executable, []))
        for node in deployment.nodes("demo", {"model": arguments.model})
    }
    print(f"starting {len(commands)} nodes; the camera draws its {plan.frames} frames", flush=True)
    logs = output / "logs"
    environment = isolated_environment()
    with Processes(commands, logs, environment) as nodes:
        words = [sys.executable, "-m", "oc_perception.nodes.demo_recorder_node", str(plan_file)]
        recorder = subprocess.Popen(words, env=environment)
        try:
            while recorder.poll() is None:
                nodes.check()
                time.sleep(0.2)
        finally:
            stop([recorder])
        if recorder.returncode:
            raise UserError(f"The run was not recorded. The nodes' logs are in {logs}.")
    print("measuring", flush=True)
    metrics = {
        "model": arguments.model,
        "seconds": arguments.seconds,
        **measure(output / "results"),
        "wall_s": round(time.monotonic() - began_s, 1),
    }
    metrics_file.write_text(json.dumps(metrics, indent=2) + "\n")
    print(table(metrics))
    print(f"\nwritten to {output}")
    return 0
