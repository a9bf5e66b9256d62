# SPDX-License-Identifier: Apache-2.0
"""Estimators of gradients through discrete latents, where the answer is known: reweighted
wake-sleep beside VIMCO, REINFORCE, RELAX and Concrete on a mixture of 20 Gaussians.

`oc-perception benchmark wake-sleep --json docs/results/wake_sleep.json`
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.evaluation.provenance import provenance
from oc_perception.evaluation.wake_sleep_mixture import METHODS, MixtureTraining, train_mixture
from oc_perception.evaluation.wake_sleep_report import (
    checks_table,
    mixture_checks,
    mixture_table,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark wake-sleep`."""
    default = "(default: %(default)s)"
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
        help=f"of {', '.join(METHODS)}; default: all",
    )  # fmt: skip
    parser.add_argument("--particles", nargs="+", type=int, default=[2, 5, 10, 20], help=default)
    parser.add_argument("--repetitions", type=int, default=5, help=default)
    parser.add_argument("--steps", type=int, default=10_000, help=default)
    parser.add_argument("--seed", type=int, default=0, help=default)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")


def run(arguments: argparse.Namespace) -> int:
    """Train, measure and report, after every method."""
    if min(arguments.particles) < 2:
        raise UserError("--particles must be at least 2: one has no other to be weighed against.")
    if min(arguments.repetitions, arguments.steps) < 1:
        raise UserError("--repetitions and --steps must be at least 1.")
    particles, repetitions, steps = arguments.particles, arguments.repetitions, arguments.steps
    if arguments.quick:
        particles, repetitions, steps = [2, 5], 2, 20
    settings = [("far", count) for count in particles] + [("near", max(particles))]
    report = {"mixture": {"rows": [], "checks": []}, **provenance()}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for start, count in settings:
            for method in arguments.methods:
                training = MixtureTraining(method, count, start, repetitions, steps)
                _mixture_row(training, arguments.seed, report["mixture"])
                if arguments.json and arguments.json != "-":
                    scoring.write_json(report, arguments.json)
    finally:
        torch.set_num_threads(before)
    if arguments.json == "-":
        scoring.write_json(report, "-")
    else:
        print(mixture_table(report["mixture"]["rows"]))
        print(checks_table(mixture_checks(report["mixture"]["rows"])))
    return 0


def _mixture_row(training: MixtureTraining, seed: int, section: dict) -> None:
    """Train, and add what came of it to `section`."""
    begin = time.process_time()
    row = {
        "start": training.start,
        "method": training.method,
        "particles": training.particles,
        "repetitions": training.repetitions,
        "steps": training.steps,
        **train_mixture(training, seed),
        "cpu_s": round(time.process_time() - begin, 1),
    }
    section["rows"].append(row)
    section["checks"] = [check._asdict() for check in mixture_checks(section["rows"])]
    print(mixture_table([row]).splitlines()[1], file=sys.stderr)
