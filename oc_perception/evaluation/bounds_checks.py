# SPDX-License-Identifier: Apache-2.0
"""What theory and Rainforth et al. (2018, "Tighter Variational Bounds are Not Necessarily Better")
say about the three studies of bounds, and whether what was measured agrees.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy.stats import ttest_ind

from oc_perception.objectives.gradient_signal import slope

METRICS = ("iwae_64", "log_evidence", "minus_kl", "ess", "ess_64", "signal")
_MANY = 3  # particles: the power laws are those of many


class Check(NamedTuple):
    """An expectation in words, and whether the measured one meets it."""

    what: str
    asked: str
    measured: str
    met: bool


def slopes(study: dict[str, Any]) -> dict[str, float]:
    """Exponents of the signal-to-noise ratios of `bounds_signal.measure`."""
    particles = [row for row in study["particles"] if row["k"] >= _MANY]
    found = {}
    for name, axis, rows in (
        ("phi", "k", particles),
        ("theta", "k", particles[-2:]),
        ("ciwae", "k", particles),
        ("dreg", "k", particles),
        ("phi", "m", study["groups"]),
        ("theta", "m", study["groups"]),
    ):
        ratios = [row["snr"][name] for row in rows]
        positive = all(ratio > 0 for ratio in ratios)
        found[f"{name}_{axis}"] = slope([r[axis] for r in rows], ratios) if positive else 0.0
    return found


def check_signal(study: dict[str, Any], far: dict[str, Any]) -> list[Check]:
    """Of `bounds_signal.measure` near the optimum and far from it: Theorem 1 and section 4."""
    particles, groups = study["particles"], study["groups"]
    fitted, distant = slopes(study), slopes(far)
    least = min(particles, key=lambda row: row["snr"]["theta"])["k"]
    last, most = particles[-1]["dsnr"]["phi"], groups[-1]["dsnr"]
    random = study["random"]
    many, few, lots = _nearest(particles, "k", 100), _nearest(groups, "m", 10), groups[-1]
    fall, change = particles[0]["rmse"] / many["rmse"], lots["rmse"] / few["rmse"] - 1
    k, m = particles[-1]["k"], lots["m"]
    return [
        _between(f"phi: slope of SNR in K, {_MANY} to {k}", fitted["phi_k"], -0.55, -0.4),
        _between(f"phi: slope of SNR in M, to {m}", fitted["phi_m"], 0.45, 0.55),
        _between(f"theta: slope of SNR in M, to {m}", fitted["theta_m"], 0.45, 0.55),
        Check("theta: K with the least SNR", "3 to 30", str(least), 3 <= least <= 30),
        _at_least(
            f"theta: slope of SNR in K, {particles[-2]['k']} to {k}", fitted["theta_k"], 0.35
        ),
        _between(f"phi: DSNR over that of no signal, K = {k}", last / random, 0.9, 1.1),
        _at_least(
            f"phi and theta: DSNR over that of no signal, M = {m}",
            min(most["phi"], most["theta"]) / random,
            40,
        ),
        _at_least(f"theta: RMSE falls from K = 1 to {many['k']}, times", fall, 8),
        _between(f"theta: change of RMSE from M = {few['m']} to {m}", change, -0.1, 0.1),
        _between("phi, far: slope of SNR in K", distant["phi_k"], -0.2, 0),
        _between("phi, far: slope of SNR in M", distant["phi_m"], 0.45, 0.55),
    ]


def check_toy(runs: Sequence[dict[str, Any]]) -> list[Check]:
    """Of `bounds_toy.optimise_all`: single particles lead nearest to the optimum (App. E)."""
    ends = {
        name: _by_method(
            [{**run, name: run[name][-1]} for run in runs],
            name,
        )
        for name in ("matrix", "bias", "mean")
    }
    return [
        *(
            _ordered(f"distance of {name} from the optimum", ends[name], ["VAE", "IWAE"])
            for name in ends
        ),
        _ordered("distance of matrix from the optimum", ends["matrix"], ["VAE", "MIWAE", "IWAE"]),
    ]


def check_deep(runs: Sequence[dict[str, Any]]) -> list[Check]:
    """Of `bounds_deep.run_all`: section 6, Table 1 and the text about it; those whose methods are
    all among the runs.
    """
    by = {metric: _by_method(_with_mean_signal(runs), metric) for metric in METRICS}
    known = set(by["ess"])
    checks = []
    for what, metric, compare, names in (
        ("-KL(Q||P), means", "minus_kl", _means_ordered, ["IWAE", "PIWAE", "MIWAE", "VAE"]),
        ("log p(x), means", "log_evidence", _means_ordered, ["VAE", "MIWAE", "IWAE", "PIWAE"]),
        ("IWAE-64 on the same test pixels", "iwae_64", _ordered, ["IWAE", "PIWAE"]),
        ("IWAE-64 on the same test pixels", "iwae_64", _ordered, ["IWAE", "MIWAE"]),
    ):
        if known.issuperset(names):
            checks.append(compare(what, by[metric], names))
    if known.issuperset(["IWAE", "MIWAE"]):
        few, many = (statistics.mean(by["ess"][name]) for name in ("IWAE", "MIWAE"))
        checks.append(_at_least("effective samples, MIWAE over IWAE", many / few, 2))
    signal = {name: statistics.mean(values) for name, values in by["signal"].items()}
    lowest = min(signal, key=signal.__getitem__)
    if "IWAE" in known:
        what = "least signal of the encoder in training"
        checks.append(Check(what, "IWAE", lowest, lowest == "IWAE"))
    return checks


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By method: `mean` and `std` over the seeds of each of `METRICS`, and `welch_p` of the tested
    bound against that of IWAE (None where there are not two seeds of both).
    """
    runs = _with_mean_signal(runs)
    table: dict[str, dict[str, Any]] = {}
    for metric in METRICS:
        for name, values in _by_method(runs, metric).items():
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            table.setdefault(name, {})[metric] = {"mean": statistics.mean(values), "std": std}
    bound = _by_method(runs, "iwae_64")
    for name, values in bound.items():
        known = name != "IWAE" and "IWAE" in bound and len(values) > 1
        p = ttest_ind(values, bound["IWAE"], equal_var=False).pvalue if known else None
        table[name]["welch_p"] = None if p is None else float(p)
    return table


def _with_mean_signal(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**run, "signal": statistics.mean(run["signal"])} for run in runs]


def _by_method(runs: Sequence[dict[str, Any]], key: str) -> dict[str, list[float]]:
    """Values over the seeds."""
    found: dict[str, list[float]] = {}
    for run in runs:
        found.setdefault(run["method"], []).append(run[key])
    return found


def _nearest(rows: Sequence[dict[str, Any]], axis: str, count: int) -> dict[str, Any]:
    return min(rows, key=lambda row: abs(row[axis] - count))


def _between(what: str, value: float, low: float, high: float) -> Check:
    return Check(what, f"{low} to {high}", f"{value:.3f}", low <= value <= high)


def _at_least(what: str, value: float, least: float) -> Check:
    return Check(what, f">= {least}", f"{value:.3g}", value >= least)


def _ordered(what: str, values: dict[str, list[float]], names: Sequence[str]) -> Check:
    """Rising in this order with every seed."""
    seeds = list(zip(*(values[name] for name in names), strict=True))
    rising = [all(a < b for a, b in itertools.pairwise(seed)) for seed in seeds]
    measured = "; ".join(" ".join(f"{value:.5g}" for value in seed) for seed in seeds)
    return Check(what, " < ".join(names) + ", every seed", measured, all(rising))


def _means_ordered(what: str, values: dict[str, list[float]], names: Sequence[str]) -> Check:
    means = [statistics.mean(values[name]) for name in names]
    measured = " ".join(f"{mean:.3f}" for mean in means)
    return Check(
        what, " < ".join(names), measured, all(a < b for a, b in itertools.pairwise(means))
    )
