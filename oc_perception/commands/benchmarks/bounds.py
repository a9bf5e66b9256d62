# SPDX-License-Identifier: Apache-2.0
"""What importance weights do to the gradients of inference: signal-to-noise ratios and training on
a Gaussian model whose optimum is known, then IWAE, PIWAE, MIWAE, CIWAE, the VAE and, as an option,
DReG on handwritten digits.

`oc-perception benchmark bounds --json docs/results/bounds.json --figure docs/images/bounds.png`
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.evaluation import bounds_checks, bounds_deep, bounds_signal, bounds_toy
from oc_perception.evaluation.bounds_checks import Check
from oc_perception.evaluation.bounds_deep import kept
from oc_perception.evaluation.bounds_figure import draw_bounds
from oc_perception.evaluation.plots import require_matplotlib
from oc_perception.evaluation.provenance import provenance
from oc_perception.worlds.digits64 import load_digits64

_PARTS = ("signal", "toy", "deep")
_TABLES = ("particles", "groups", "of_64")
_METHODS = tuple(bounds_deep.methods(1))
_TOY_METHODS = ("VAE", "MIWAE", "IWAE")
_PUBLISHED = bounds_signal.SignalConfig(
    points=1024,
    repeats=10_000,
    counts=(1, 3, 10, 30, 100, 300, 1000),
    groups=(1, 3, 10, 30, 100, 300, 1000),
)
_QUICK_SIGNAL = bounds_signal.SignalConfig(
    points=64, repeats=400, counts=(1, 4, 16, 64), groups=(1, 4, 16, 64)
)
_QUICK_TOY = bounds_toy.ToyConfig(total=16, points=32, dimensions=4, steps=60)
_QUICK_DEEP = bounds_deep.DeepConfig(
    total=16,
    steps=40,
    batch=16,
    hidden=16,
    latent=4,
    signal_checks=2,
    signal_repeats=10,
    evidence_particles=128,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark bounds`."""
    parser.add_argument(
        "--parts", nargs="+", choices=_PARTS, default=_PARTS, help="only these (default: all)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=_METHODS,
        default=_METHODS,
        metavar="NAME",
        help=f"on the digits, of {', '.join(_METHODS)} (default: all)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="of training (default: %(default)s)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small and short, in seconds")
    size.add_argument(
        "--published",
        action="store_true",
        help="the signal of 1024 points, 10 000 estimates and up to 1000 particles, as published",
    )
    parser.add_argument(
        "--runs", type=Path, metavar="DIRECTORY", help="keep trained results, and find them, there"
    )
    parser.add_argument("--device", default="cpu", help="of the signal (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw the report there")


def run(arguments: argparse.Namespace) -> int:
    """Measure, compare with what is expected, and report."""
    parts, seeds = arguments.parts, arguments.seeds
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}.")
    if arguments.figure:
        if set(parts) != set(_PARTS):
            raise UserError("--figure shows all parts: leave out --parts.")
        require_matplotlib()
    if "deep" in parts:
        load_digits64()  # tells what is missing before time is spent
    signal = bounds_signal.SignalConfig()
    toy, deep = bounds_toy.ToyConfig(), bounds_deep.DeepConfig()
    if arguments.quick:
        signal, toy, deep = _QUICK_SIGNAL, _QUICK_TOY, _QUICK_DEEP
    elif arguments.published:
        signal = _PUBLISHED
    report: dict[str, Any] = {"quick": arguments.quick}
    checks: dict[str, list[Check]] = {}
    if "signal" in parts:
        studies = _studies(signal, arguments)
        slopes = {name: bounds_checks.slopes(study) for name, study in studies.items()}
        report["signal"] = {**studies, "slopes": slopes}
        checks["signal"] = bounds_checks.check_signal(studies["near"], studies["far"])
    if "toy" in parts:
        runs = bounds_toy.optimise_all(_TOY_METHODS, seeds, toy, arguments.runs)
        report["toy"] = {"config": asdict(toy), "runs": _without_settings(runs)}
        checks["toy"] = bounds_checks.check_toy(runs)
    if "deep" in parts:
        runs = bounds_deep.run_all(arguments.methods, seeds, deep, arguments.runs)
        summary = bounds_checks.summarise(runs)
        report["deep"] = {
            "config": asdict(deep),
            "summary": summary,
            "runs": _without_settings(runs),
        }
        checks["deep"] = bounds_checks.check_deep(runs)
    report["checks"] = {part: [c._asdict() for c in found] for part, found in checks.items()}
    report.update(provenance(arguments.device))
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        _print(report)
    if arguments.figure:
        draw_bounds(report, arguments.figure)
    return 0


def _studies(
    config: bounds_signal.SignalConfig, arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """The signal by regime, kept as the other runs."""
    found = {}
    for name, regime in bounds_signal.REGIMES.items():
        settings = {"device": arguments.device, "config": asdict(config), "regime": regime}
        compute = partial(bounds_signal.measure, config, regime, arguments.device)
        found[name] = kept(arguments.runs, f"signal_{name}", settings, compute)
    return found


def _without_settings(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in run.items() if key != "config"} for run in runs]


def _print(report: dict[str, Any]) -> None:
    if "signal" in report:
        for regime in bounds_signal.REGIMES:
            _print_signal(regime, report["signal"][regime])
    if "toy" in report:
        print("\ndistance from the optimum, worst seed")
        worst: dict[str, dict[str, float]] = {}
        for run in report["toy"]["runs"]:
            row = worst.setdefault(run["method"], {})
            for name in ("mean", "matrix", "bias"):
                row[name] = max(row.get(name, 0.0), run[name][-1])
        _table(worst)
    if "deep" in report:
        print("\ndigits64, means over seeds (nats; ess: effective samples per sample)")
        rows = report["deep"]["summary"]
        _table({n: {m: row[m]["mean"] for m in bounds_checks.METRICS} for n, row in rows.items()})
        print("standard deviations")
        _table({n: {m: row[m]["std"] for m in bounds_checks.METRICS} for n, row in rows.items()})
    for part, checks in report["checks"].items():
        print(f"\n{part}" + " (too small for what is asked)" * report["quick"])
        for check in checks:
            verdict = "yes" if check["met"] else "NO"
            print(f"  {verdict:>3}  {check['what']}: {check['measured']} (asked {check['asked']})")


def _print_signal(regime: str, study: dict[str, Any]) -> None:
    print(f"\n{regime} the optimum (DSNR of no signal {study['random']:.3f})")
    rows = {(r["m"], r["k"]): r for part in _TABLES for r in study[part]}
    _table(
        {
            f"M {m}, K {k}": {
                **{f"SNR {name}": value for name, value in row["snr"].items()},
                **{f"DSNR {name}": row["dsnr"][name] for name in ("theta", "phi")},
                "RMSE theta": row["rmse"],
            }
            for (m, k), row in rows.items()
        }
    )


def _table(rows: Mapping[str, Mapping[str, float]]) -> None:
    width = max(map(len, rows)) + 2
    print(" " * width + "".join(f"{name:>13}" for name in next(iter(rows.values()))))
    for label, row in rows.items():
        print(f"{label:<{width}}" + "".join(f"{value:>13.5g}" for value in row.values()))
