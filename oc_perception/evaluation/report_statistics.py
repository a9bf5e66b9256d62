# SPDX-License-Identifier: Apache-2.0
"""Numbers of the self-test over blackouts and bags, with intervals that redraw both.

An interval (95 %) is a two-stage bootstrap: bags are redrawn with replacement, and within each
redrawn bag its blackouts. With a single bag it speaks of the blackouts in that bag alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oc_perception.evaluation.forecast import Interval

RESAMPLES = 2000
LEAST_DRAWN = 5
"""No interval is given for fewer blackouts or bags than this: it would feign knowledge."""
_SEED = 0
_TAIL = 0.025


@dataclass(frozen=True)
class Measure:
    """A ratio of two sums over blackouts. `better`: 1 if more is better, -1 if less is, 0 if it
    should be near `target`.
    """

    key: str
    title: str
    total: str
    count: str
    better: int
    share: bool
    target: float | None = None


MEASURES = (
    Measure("kept_share", "identities kept", "kept", "tracked", 1, True),
    Measure("error_sizes", "error (box sizes)", "error_sizes", "compared", -1, False),
    Measure("error_px", "error (px)", "error_px", "compared", -1, False),
    Measure("coverage_90", "inside the 90 % region", "inside_90", "compared", 0, True, 0.9),
)
_COLUMNS = tuple(dict.fromkeys(name for m in MEASURES for name in (m.total, m.count)))
_WEIGHTED = ("error_sizes", "error_px")  # rows hold means over `compared` places

Blackouts = Sequence[Mapping[str, Any]]
"""Rows of `blackouts` in metrics.json."""


def place(row: Mapping[str, Any]) -> tuple[str, int]:
    """What names a blackout within its bag."""
    return str(row["schedule"]), int(row["start_step"])


def sums(rows: Blackouts, trackers: Sequence[str], schedule: str) -> np.ndarray:
    """What each blackout of a schedule adds: `(N, len(trackers), columns)`, in order of time."""
    own = [row for row in rows if str(row["schedule"]) == schedule]
    places = {key: index for index, key in enumerate(sorted({place(row) for row in own}))}
    table = np.zeros((len(places), len(trackers), len(_COLUMNS)))
    for row in own:
        if row["tracker"] in trackers:
            table[places[place(row)], trackers.index(row["tracker"])] = _contribution(row)
    return table


def _contribution(row: Mapping[str, Any]) -> list[float]:
    weight = dict.fromkeys(_WEIGHTED, row["compared"])
    return [(row[name] or 0.0) * weight.get(name, 1) for name in _COLUMNS]


def ratio(table: np.ndarray, measure: Measure) -> np.ndarray:
    """The measure from sums `(..., columns)`; NaN where nothing was counted."""
    total, count = (table[..., _COLUMNS.index(name)] for name in (measure.total, measure.count))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(count > 0, total / count, np.nan)


def redraw(bags: Sequence[np.ndarray], resamples: int = RESAMPLES) -> np.ndarray:
    """Sums `(resamples, ...)` over redrawn bags of redrawn blackouts, from `(N_bag, ...)` each.

    A bag that is drawn m times gives m N_bag draws of its blackouts. Seeded: equal input gives
    equal output.
    """
    generator = np.random.default_rng(_SEED)
    bags = [bag for bag in bags if len(bag)]
    result = np.zeros((resamples, *bags[0].shape[1:]))
    times = generator.multinomial(len(bags), np.full(len(bags), 1 / len(bags)), resamples)
    for column, bag in zip(times.T, bags, strict=True):
        count = len(bag)
        drawn = generator.multinomial(column * count, np.full(count, 1 / count))
        result += np.tensordot(drawn, bag, 1)
    return result


def enough(bags: Sequence[np.ndarray]) -> bool:
    """Whether there is enough to redraw for an interval that means something."""
    return sum(len(bag) for bag in bags) >= LEAST_DRAWN


def interval(value: float, draws: np.ndarray) -> Interval:
    """`value` with the middle 95 % of its redraws; open where it is not known in most of them."""
    known = draws[np.isfinite(draws)]
    if not math.isfinite(value) or 2 * len(known) < len(draws):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(known, (_TAIL, 1 - _TAIL))
    return Interval(value, float(low), float(high))


def estimates(
    bags: Sequence[Blackouts], trackers: Sequence[str], schedule: str
) -> dict[str, dict[str, Interval]]:
    """For each tracker every measure over all `bags`, with its interval."""
    tables = [sums(rows, trackers, schedule) for rows in bags]
    tables = [table for table in tables if len(table)]
    if not tables:
        unknown = Interval(math.nan, math.nan, math.nan)
        return {name: {m.key: unknown for m in MEASURES} for name in trackers}
    whole = np.sum([table.sum(0) for table in tables], axis=0)
    drawn = redraw(tables) if enough(tables) else np.full((1, *whole.shape), np.nan)
    return {
        name: {m.key: interval(float(ratio(whole[i], m)), ratio(drawn[:, i], m)) for m in MEASURES}
        for i, name in enumerate(trackers)
    }
