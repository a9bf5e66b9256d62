# SPDX-License-Identifier: Apache-2.0
"""Run the whole chain on a simulated camera that goes blind, and measure it.

Simulator, discovery, tracking, visualization and a recorder run as processes of their own over
DDS. Writes metrics.json, annotated.mp4, contact_sheet.png, results/ (mcap) and logs/.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from oc_perception import deployment
from oc_perception.cli import UserError
from oc_perception.commands.up import command

_RATE_HZ = 30.0
_PATIENCE_S = 10.0


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
        default=0.25,
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
            f"render_ahead_s:={plan.seconds}",
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
    with ExitStack() as stack:
        environment = isolated_environment()
        nodes = start(stack, commands, output / "logs", environment)
        recorder = [sys.executable, "-m", "oc_perception.nodes.demo_recorder_node", str(plan_file)]
        process = subprocess.Popen(recorder, env=environment)
        stack.callback(end, {"demo_recorder_node": process})
        while process.poll() is None:
            dead = [name for name, node in nodes.items() if node.poll() is not None]
            if dead:
                log = output / "logs" / f"{dead[0]}.log"
                raise UserError(f"{dead[0]} ended early. Its last words ({log}):\n{tail(log)}")
            time.sleep(0.2)
        if process.returncode:
            raise UserError(f"The run was not recorded. The nodes' logs are in {output / 'logs'}.")
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


def require_ros() -> None:
    """Raises UserError where rclpy or the built messages cannot be imported."""
    for module in ("rclpy", "oc_perception.msg"):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"Python finds no {module}. Run `. ./activate` in the source tree after "
                "`make setup`, or source your ROS installation and this package's workspace."
            )


def isolated_environment() -> dict[str, str]:
    """Variables for processes that shall see one another and nobody else on this machine."""
    environment = {**os.environ, **deployment.environment(), "PYTHONUNBUFFERED": "1"}
    environment.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randrange(1, 100)))
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    return environment


def start(
    stack: ExitStack, commands: dict[str, list[str]], logs: Path, environment: dict[str, str]
) -> dict[str, subprocess.Popen]:
    """Start processes that write to `logs`; the stack ends them."""
    processes: dict[str, subprocess.Popen] = {}
    stack.callback(end, processes)
    for name, words in commands.items():
        log = stack.enter_context((logs / f"{name}.log").open("w"))
        # Sessions of their own keep the terminal's Ctrl-C from them: they are ended in order.
        processes[name] = subprocess.Popen(
            words, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    return processes


def end(processes: dict[str, subprocess.Popen]) -> None:
    """Interrupt what still runs, and kill what does not listen."""
    alive = [process for process in processes.values() if process.poll() is None]
    for process in alive:
        process.send_signal(signal.SIGINT)
    for process in alive:
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tail(path: Path, lines: int = 10) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
