# SPDX-License-Identifier: Apache-2.0
"""Time per step of motion models (predict and update), of whole trackers, of MOHART and of SQAIR,
on one thread.

`oc-perception benchmark tracking --compile --json docs/results/tracking_cost.json`
"""

from __future__ import annotations

import argparse

import torch

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.evaluation.provenance import provenance
from oc_perception.evaluation.tracking_cost import TARGETS_MS, measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark tracking`."""
    default = "(default: %(default)s)"
    parser.add_argument("--objects", type=int, default=10, help=default)
    parser.add_argument("--seconds", type=float, default=3.0, help=f"for each row {default}")
    parser.add_argument(
        "--weights", default="relational_tabletop", help=f"of the relational model {default}"
    )
    parser.add_argument(
        "--compile", action="store_true", help="also SQAIR compiled, which takes minutes"
    )
    parser.add_argument("--quick", action="store_true", help="0.1 s a row, to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    if arguments.objects < 1:
        raise UserError(f"--objects must be at least 1, not {arguments.objects}.")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = 0.1 if arguments.quick else arguments.seconds
        rows = measure(arguments.objects, seconds, arguments.weights, arguments.compile)
    finally:
        torch.set_num_threads(before)
    report = {"objects": arguments.objects, "rows": rows, "targets_ms": TARGETS_MS, **provenance()}
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        print(
            f"{'ms per step, ' + str(arguments.objects) + ' objects':<40}{'median':>9}{'p90':>9}"
        )
        for name, row in rows.items():
            target = f"  target {TARGETS_MS[name]:g}" if name in TARGETS_MS else ""
            print(f"{name:<40}{row['ms']:>9.3f}{row['p90_ms']:>9.3f}{target}")
    return 0
