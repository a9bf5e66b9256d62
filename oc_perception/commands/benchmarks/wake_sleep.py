# SPDX-License-Identifier: Apache-2.0
"""Estimators of gradients through discrete latents, where the answer is known: reweighted
wake-sleep beside VIMCO, REINFORCE, RELAX and Concrete on a mixture of 20 Gaussians, then on the
trees of a grammar.

`oc-perception benchmark wake-sleep --json docs/results/wake_sleep.json --figure
docs/images/wake_sleep.png`
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.evaluation import wake_sleep_grammar, wake_sleep_mixture, wake_sleep_report
from oc_perception.evaluation.bounds_deep import kept
from oc_perception.evaluation.plots import require_matplotlib
from oc_perception.evaluation.provenance import provenance
from oc_perception.evaluation.wake_sleep_figure import draw_wake_sleep
from oc_perception.evaluation.wake_sleep_grammar import GrammarTraining, train_grammar
from oc_perception.evaluation.wake_sleep_mixture import MixtureTraining, train_mixture
from oc_perception.progress import Progress

_PARTS = ("mixture", "grammar")
_SEED = 0  # of the mixture, whose repetitions are drawn from one generator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark wake-sleep`."""
    default = "(default: %(default)s)"
    parser.add_argument(
        "--parts", nargs="+", choices=_PARTS, default=_PARTS, help="only these (default: all)"
    )
    parser.add_argument(
        "--methods", nargs="+", choices=wake_sleep_mixture.METHODS, metavar="METHOD",
        default=wake_sleep_mixture.METHODS,
        help=f"only these of {', '.join(wake_sleep_mixture.METHODS)}; the grammar takes"
        f" {', '.join(wake_sleep_grammar.METHODS)}",
    )  # fmt: skip
    parser.add_argument(
        "--particles", nargs="+", type=int, default=[2, 5, 10, 20],
        help=f"{default}; the near start of the mixture and the grammar take the most of them",
    )  # fmt: skip
    parser.add_argument("--repetitions", type=int, default=5, help=f"of the mixture {default}")
    parser.add_argument("--seeds", type=int, default=3, help=f"of the grammar {default}")
    parser.add_argument("--quick", action="store_true", help="few and short, in seconds")
    parser.add_argument(
        "--runs", type=Path, metavar="DIRECTORY", help="keep trained results, and find them, there"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw the report there")


def run(arguments: argparse.Namespace) -> int:
    """Train, compare with what is expected, and report."""
    if min(arguments.particles) < 2:
        raise UserError("--particles must be at least 2: one has no other to be weighed against.")
    if min(arguments.repetitions, arguments.seeds) < 1:
        raise UserError("--repetitions and --seeds must be at least 1.")
    if arguments.figure:
        if set(arguments.parts) != set(_PARTS):
            raise UserError("--figure shows all parts: leave out --parts.")
        require_matplotlib()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report = _measure(arguments)
    finally:
        torch.set_num_threads(before)
    report.update(provenance())
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        _print(report)
    if arguments.figure:
        draw_wake_sleep(report, arguments.figure)
    return 0


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    particles, seeds = arguments.particles, arguments.seeds
    mixture: dict[str, Any] = {"repetitions": arguments.repetitions}
    grammar: dict[str, Any] = {}
    if arguments.quick:
        particles, seeds = [2, 3], 1
        mixture, grammar = {"repetitions": 2, "steps": 10}, {"steps": 2}
    jobs: dict[str, list[Callable[[], dict[str, Any]]]] = {part: [] for part in arguments.parts}
    if "mixture" in jobs:
        for start, count in [*(("far", k) for k in particles), ("near", max(particles))]:
            for method in arguments.methods:
                training = MixtureTraining(method, count, start, **mixture)
                name = f"mixture_{start}_{method}_{count}"
                jobs["mixture"].append(_job(arguments.runs, name, training, _SEED, train_mixture))
    if "grammar" in jobs:
        for seed in range(seeds):
            for method in wake_sleep_grammar.METHODS:
                if method in arguments.methods:
                    training = GrammarTraining(method, max(particles), **grammar)
                    name = f"grammar_{method}_{max(particles)}_{seed}"
                    jobs["grammar"].append(
                        _job(arguments.runs, name, training, seed, train_grammar)
                    )
    progress = Progress("trained", sum(map(len, jobs.values())))
    report: dict[str, Any] = {"quick": arguments.quick}
    for part, waiting in jobs.items():
        rows = []
        for job in waiting:
            rows.append(job())
            progress.advance()
        checks = getattr(wake_sleep_report, f"{part}_checks")(rows)
        report[part] = {"rows": rows, "checks": [check._asdict() for check in checks]}
    progress.finish()
    return report


def _job(
    directory: Path | None,
    name: str,
    training: MixtureTraining | GrammarTraining,
    seed: int,
    train: Callable[[Any, int], dict[str, Any]],
) -> Callable[[], dict[str, Any]]:
    settings = {**asdict(training), "seed": seed}
    return partial(kept, directory, name, settings, partial(train, training, seed))


def _print(report: dict[str, Any]) -> None:
    for part in _PARTS:
        if part not in report:
            continue
        print(f"\n{part}" + " (too short for what is asked)" * report["quick"])
        print(getattr(wake_sleep_report, f"{part}_table")(report[part]["rows"]))
        for check in report[part]["checks"]:
            verdict = "yes" if check["met"] else "NO"
            print(f"  {verdict:>3}  {check['what']}: {check['measured']} (asked {check['asked']})")
