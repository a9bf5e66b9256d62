# SPDX-License-Identifier: Apache-2.0
"""Tables of the wake-sleep benchmark, and what its numbers should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

import numpy as np

from oc_perception.evaluation.bounds_checks import Check

Row = Mapping[str, Any]


def mixture_table(rows: Iterable[Row]) -> str:
    """Medians over repetitions, quartiles in brackets, supports from least to most."""
    lines = [
        f"{'start':<6}{'method':<11}{'K':>3}{'P-error':>24}{'Q-error':>24}"
        f"{'support':>10}{'std of gradient':>18}"
    ]
    for row in rows:
        support = f"{min(row['support'])}-{max(row['support'])}"
        lines.append(
            f"{row['start']:<6}{row['method']:<11}{row['particles']:>3}"
            f"{_quartiles(row['p_error']):>24}{_quartiles(row['q_error']):>24}"
            f"{support:>10}{median(row['phi_gradient_std']):>18.4f}"
        )
    return "\n".join(lines)


def mixture_checks(rows: Iterable[Row]) -> list[Check]:
    """Branch pruning with few particles, what more of them mend, and the near start; of the
    claims, those that the rows can tell.
    """
    found = {(row["start"], row["method"], row["particles"]): row for row in rows}

    def values(quantity: str, method: str, particles: int, start: str = "far") -> list[float]:
        return found[start, method, particles][quantity]

    def middle(*key: Any) -> float:
        return median(values(*key))

    checks: list[Check] = []

    def add(claim: str, wanted: str, judge: Callable[[], tuple[str, bool]]) -> None:
        try:
            measured, met = judge()
        except KeyError:  # of a method that did not run
            return
        checks.append(Check(claim, wanted, measured, met))

    def supports(method: str, least: int, most: int, share: float = 1.0):
        def judge() -> tuple[str, bool]:
            support = values("support", method, 2)
            inside = sum(least <= value <= most for value in support)
            measured = f"{min(support)}..{max(support)}, {inside} of {len(support)} inside"
            return measured, inside >= share * len(support)

        return judge

    def medians(quantity: str, keys: list[tuple], test: Callable[..., bool]):
        def judge() -> tuple[str, bool]:
            numbers = [middle(quantity, *key) for key in keys]
            return ", ".join(f"{number:.3f}" for number in numbers), test(*numbers)

        return judge

    few, many = 2, 20
    others = ["ws", "ww", "vimco", "reinforce"]
    add("far, K=2: largest support of WS", "<= 11", supports("ws", 0, 11))
    add("far, K=2: of WW", "10..16", supports("ww", 10, 16))
    add("far, K=2: of VIMCO", "15..18", supports("vimco", 15, 18))
    add("far, K=2: of REINFORCE", "15..18", supports("reinforce", 15, 18))
    add("far, K=2: of delta-WW", "19 in 4 of 5", supports("delta-ww", 19, 19, 0.8))
    add(
        "far, K=2: P-error of delta-WW, then of WS, WW, VIMCO, REINFORCE",
        "first < 0.25 and < half of each",
        medians(
            "p_error",
            [("delta-ww", few), *((method, few) for method in others)],
            lambda first, *rest: first < min(0.25, *(value / 2 for value in rest)),
        ),
    )
    add(
        "far, K=2: P-error of WW, WS",
        "> 0.5",
        medians("p_error", [("ww", few), ("ws", few)], lambda *errors: min(errors) > 0.5),
    )
    for quantity, limit in (("p_error", 0.03), ("q_error", 0.3)):
        add(
            f"far, K=20: {quantity[0].upper()}-error of WW, delta-WW",
            f"< {limit}",
            medians(
                quantity,
                [("ww", many), ("delta-ww", many)],
                lambda *errors, limit=limit: max(errors) < limit,
            ),
        )
    add("far, K=20: P-error of WS", "> 0.3", medians("p_error", [("ws", many)], lambda p: p > 0.3))
    add(
        "far, K=20: Q-error of VIMCO, REINFORCE",
        "> 0.4",
        medians("q_error", [("vimco", many), ("reinforce", many)], lambda *q: min(q) > 0.4),
    )
    add(
        "far: Q-error of WW, K=2 and K=20",
        "falls to a third",
        medians("q_error", [("ww", few), ("ww", many)], lambda q2, q20: q20 <= q2 / 3),
    )
    add(
        "near, K=20: P-error of WS, WW",
        "< 0.03",
        medians("p_error", [("ws", many, "near"), ("ww", many, "near")], lambda *p: max(p) < 0.03),
    )
    add(
        "near, K=20: Q-error of WS, VIMCO",
        "first < half",
        medians(
            "q_error",
            [("ws", many, "near"), ("vimco", many, "near")],
            lambda ws, vimco: ws < vimco / 2,
        ),
    )
    add(
        "near, K=20: least support of WS, WW",
        "19",
        lambda: _least(values("support", method, many, "near") for method in ("ws", "ww")),
    )
    return checks


def grammar_table(rows: Iterable[Row]) -> str:
    """Medians over seeds, the range in brackets."""
    lines = [
        f"{'method':<11}{'K':>3}{'production KL':>24}{'-log q of true trees':>26}"
        f"{'trees that match':>26}"
    ]
    for (method, particles), group in _by_method(rows).items():
        lines.append(
            f"{method:<11}{particles:>3}{_range(group, 'production_kl'):>24}"
            f"{_range(group, 'sleep_loss', 2):>26}{_range(group, 'matches', 2):>26}"
        )
    return "\n".join(lines)


def grammar_checks(rows: Iterable[Row]) -> list[Check]:
    """Whether wake-sleep learns the grammar and its parser, where VIMCO does not."""
    most = max((row["particles"] for row in rows), default=0)
    groups = _by_method(rows)
    if ("ws", most) not in groups:
        return []
    dreams = groups["ws", most]
    kl, matches = _range(dreams, "production_kl"), _range(dreams, "matches", 2)
    checks = [
        Check(
            f"K={most}: production KL of WS", "< 0.1", kl, _median(dreams, "production_kl") < 0.1
        ),
        Check(
            f"K={most}: trees of WS for the test sentence that match it",
            ">= 0.5",
            matches,
            _median(dreams, "matches") >= 0.5,
        ),
    ]
    if ("vimco", most) in groups:
        other = groups["vimco", most]
        for what, name in (
            ("production KL", "production_kl"),
            ("-log q of true trees", "sleep_loss"),
        ):
            checks.append(
                Check(
                    f"K={most}: {what} of WS, of VIMCO",
                    "first is less",
                    f"{_range(dreams, name)}, {_range(other, name)}",
                    _median(dreams, name) < _median(other, name),
                )
            )
    return checks


def _by_method(rows: Iterable[Row]) -> dict[tuple[str, int], list[Row]]:
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["particles"]), []).append(row)
    return groups


def _median(rows: list[Row], name: str) -> float:
    return median(row[name] for row in rows)


def _range(rows: list[Row], name: str, digits: int = 3) -> str:
    low, high = (pick(row[name] for row in rows) for pick in (min, max))
    return f"{_median(rows, name):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _least(supports: Iterable[list[int]]) -> tuple[str, bool]:
    least = [min(support) for support in supports]
    return ", ".join(map(str, least)), min(least) == 19


def _quartiles(values: list[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"
