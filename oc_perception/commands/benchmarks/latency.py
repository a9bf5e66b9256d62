# SPDX-License-Identifier: Apache-2.0
"""Latency of the node chain: camera, discovery and tracking as processes of their own over DDS.

From the stamp of a VGA image to the arrival of its TrackArray at a subscriber; what became of
every frame, CPU and memory. `--model grid:delay_ms=100` shows the age under overload.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from oc_perception import deployment
from oc_perception.cli import UserError
from oc_perception.commands.up import command
from oc_perception.evaluation.latency import LatencyRun, summarize, table, usage
from oc_perception.processes import Processes, isolated_environment, require_ros, stop

_RATE_HZ = 30.0
_WARM_UP_FRAMES = 15
_QUICK_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark latency`."""
    parser.add_argument(
        "--model",
        default="grid:delay_ms=0",
        help="discovery model; the grid is a stub with a chosen delay (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="length (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{_QUICK_S:g} s, to see that it works"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    require_ros()
    seconds = _QUICK_S if arguments.quick else arguments.seconds
    if seconds * _RATE_HZ <= _WARM_UP_FRAMES:
        raise UserError(f"--seconds must be above {_WARM_UP_FRAMES / _RATE_HZ:g}.")
    settings = {
        "camera_simulator_node": [
            f"rate_hz:={_RATE_HZ}",
            f"duration_s:={seconds}",
            f"render_ahead_s:={seconds}",  # nothing but publishing is left to do in the run
            "blackouts:=''",
            "running:=false",
        ]
    }
    files = deployment.parameter_files("demo")
    commands = {
        node.executable: command(node, files, settings.get(node.executable, []))
        for node in deployment.nodes("demo", {"model": arguments.model})
        if node.executable != "visualization_node"
    }
    report = {
        "model": arguments.model,
        "seconds": seconds,
        "rate_hz": _RATE_HZ,
        **_measure(commands, seconds),
    }
    if arguments.json == "-":
        print(json.dumps(report, indent=2))
        return 0
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))
    return 0


def _measure(commands: dict[str, list[str]], seconds: float) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        result_file = Path(scratch, "result.json")
        environment = isolated_environment()
        module = "oc_perception.nodes.latency_probe_node"
        words = [sys.executable, "-m", module, str(seconds), str(result_file)]
        samples = []
        with Processes(commands, Path(scratch), environment) as nodes:
            probe = subprocess.Popen(words, env=environment)
            try:
                while probe.poll() is None:
                    nodes.check()
                    samples.append((time.time_ns(), nodes.usage()))
                    time.sleep(0.1)
            finally:
                stop([probe])
        if probe.returncode:
            raise UserError("The chain could not be measured; the reason stands above.")
        run = LatencyRun(**json.loads(result_file.read_text()))
    if not run.published:
        raise UserError("The camera published nothing that arrived here: is the machine too busy?")
    start_ns, end_ns = run.published[0], run.published[-1]
    during = [sample for sample in samples if start_ns <= sample[0] <= end_ns]
    (first_ns, before), (last_ns, after) = during[0], during[-1]
    return {
        **summarize(run, _WARM_UP_FRAMES),
        "processes": usage(before, after, (last_ns - first_ns) * 1e-9),
    }
