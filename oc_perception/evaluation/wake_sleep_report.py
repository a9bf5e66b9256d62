# SPDX-License-Identifier: Apache-2.0
"""Tables of the wake-sleep benchmark, and what its numbers should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple

import numpy as np

Row = Mapping[str, Any]


class Check(NamedTuple):
    """What was `measured`, what was `wanted`, and whether it was `met`."""

    claim: str
    measured: str
    wanted: str
    met: bool


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
        checks.append(Check(claim, measured, wanted, met))

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


def checks_table(checks: Iterable[Check]) -> str:
    """One line for each."""
    return "\n".join(
        f"{'met   ' if check.met else 'MISSED'}  {check.claim}: {check.measured}"
        f"  (wanted {check.wanted})"
        for check in checks
    )


def _least(supports: Iterable[list[int]]) -> tuple[str, bool]:
    least = [min(support) for support in supports]
    return ", ".join(map(str, least)), min(least) == 19


def _quartiles(values: list[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"
