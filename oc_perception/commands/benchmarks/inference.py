# SPDX-License-Identifier: Apache-2.0
"""Time per frame of the discovery models, beside a plain textbook implementation of each on the
same weights, by turns in one run.

`oc-perception benchmark inference --slots 4,6,11 --json docs/results/inference.json`
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.evaluation.inference import MODELS, Workload, measure
from oc_perception.evaluation.provenance import provenance
from oc_perception.memory import keep_freed_memory

_SECONDS = 10.0
_QUICK_SECONDS, _QUICK_LEAST = 1.0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark inference`."""
    default = "(default: %(default)s)"
    parser.add_argument(
        "--models", default=",".join(MODELS), help=f"separated by commas {default}"
    )
    parser.add_argument("--sizes", default="64", help=f"of the square frames, in px {default}")
    parser.add_argument("--slots", default="6", help=f"numbers of slots {default}")
    parser.add_argument("--batch", type=int, default=1, help=f"frames at a time {default}")
    parser.add_argument("--threads", type=int, help="of torch (default: what torch chooses)")
    parser.add_argument("--device", default="cpu", help=default)
    parser.add_argument(
        "--seconds", type=float, default=_SECONDS, help=f"for each line of the table {default}"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{_QUICK_SECONDS:g} s a line, to see that it works"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    models = arguments.models.split(",")
    for name in models:
        if name not in MODELS:
            raise UserError(f"--models {name}: choose from {', '.join(MODELS)}.")
    sizes, slots = _numbers("sizes", arguments.sizes), _numbers("slots", arguments.slots)
    counts = (
        [arguments.batch] if arguments.threads is None else [arguments.batch, arguments.threads]
    )
    if min(counts) < 1:
        raise UserError("--batch and --threads must be at least 1.")
    effort = (arguments.seconds,)
    if arguments.quick:
        effort = (_QUICK_SECONDS, _QUICK_LEAST)
    keep_freed_memory()  # as the nodes do
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads or before)
    try:
        rows = []
        for name, size, count in itertools.product(models, sizes, slots):
            workload = Workload(name, size, count, arguments.batch)
            try:
                rows.append(measure(workload, *effort, device=arguments.device))
            except ValueError as error:  # a size that the network cannot have
                raise UserError(str(error)) from error
        threads = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    report = {"rows": rows, "threads": threads, **provenance(arguments.device)}
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        print(_table(report))
    return 0


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise UserError(f"--{option} {text}: give whole numbers above 0, separated by commas.")
    return numbers


def _table(report: dict[str, Any]) -> str:
    """The report for people: a row per workload."""
    heading = f"{'model':<15}{'px':>5}{'slots':>6}{'batch':>6}{'ours ms':>10}{'p90':>8}"
    heading += f"{'textbook ms':>13}{'p90':>8}{'faster':>8}{'in CPU':>8}{'difference':>12}"
    lines = [heading]
    for row in report["rows"]:
        ours, plain = row["ours"], row["textbook"]
        line = f"{row['model']:<15}{row['size']:>5}{row['slots']:>6}{row['batch']:>6}"
        line += f"{ours['ms']:>10.1f}{ours['p90_ms']:>8.1f}{plain['ms']:>13.1f}"
        line += f"{plain['p90_ms']:>8.1f}{row['speedup']:>7.2f}x{row['cpu_speedup']:>7.2f}x"
        line += f"{row['mask_difference']:>12.1e}"
        if row["target_ms"]:
            reached = "reached" if ours["ms"] <= row["target_ms"] else "missed"
            line += f"  target {row['target_ms']:g} ms: {reached}"
        lines.append(line)
    lines.append(f"{report['threads']} threads, {report['machine']}, torch {report['torch']}")
    return "\n".join(lines)
