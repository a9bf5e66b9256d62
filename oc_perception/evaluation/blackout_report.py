# SPDX-License-Identifier: Apache-2.0
"""Numbers of the blackout benchmark from the sums of its sequences.

Every number is a ratio of sums over sequences; intervals (95 %) redraw whole sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oc_perception.evaluation import mot
from oc_perception.evaluation.blackout_scores import PROBABILITIES, Scores
from oc_perception.evaluation.forecast import Interval, Statistic, bootstrap

HEADLINES = ("fde", "id_recovered", "id_swapped", "id_new", "hota_through", "coverage_90", "anees")
"""What is given an interval."""
_RATIOS = ("fde", "ade", "nll", "nll_last", "anees", "anees_last", "untracked", "ended", "ghosts",
           "reacquired_after", "id_recovered", "id_swapped", "id_new", "id_lost", "id_untracked",
           "idf1_visible", "idf1_through", "fg_ari_visible", "fg_ari_blind")  # fmt: skip
_ELLIPSES = {"50": 9, "90": 17, "99": 19}  # places in PROBABILITIES
_LEAST_ROOM = 0.1
"""Skill is left open where the oracle errs by more than all but this share of the filter."""
_SEED = 0  # of redrawing

Columns = dict[str, float | None]
Stacked = dict[str, np.ndarray]
"""Scores of all sequences, `(S, columns, ...)`."""


def stack(scores: Sequence[Scores]) -> Stacked:
    """Scores of S sequences as arrays with a first axis for them."""
    return {name: np.stack([one[name] for one in scores]) for name in scores[0]}


def summarize(
    scores: Mapping[str, Stacked], columns: Sequence[str], scale: tuple[str, str]
) -> dict[str, Any]:
    """For each tracker every number by column, the `HEADLINES` with an `_interval`, its skill on
    the `scale` between two trackers (0 and 1), and what figures show: error by blind frame and
    coverage by nominal probability.
    """
    ends = [scores[name]["fde"] for name in scale]
    return {name: _tracker(own, ends, columns) for name, own in scores.items()}


def gain(model: Stacked, twin: Stacked, columns: Sequence[str]) -> dict[str, Any]:
    """Share of the error of a `twin` without relations that relations save, with intervals."""

    def saved(error: Any, count: Any, other: Any, other_count: Any) -> Any:
        return 1 - (error / count) / (other / other_count)

    intervals = _intervals([model["fde"], twin["fde"]], saved, columns)
    return {
        "relational_gain": {key: _number(i.value) for key, i in intervals.items()},
        "relational_gain_interval": _bounds(intervals),
    }


def _tracker(own: Stacked, ends: Sequence[np.ndarray], columns: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    sums = {
        **{key: own[key] for key in _RATIOS},
        **{f"coverage_{p}": own["coverage"][:, :, i] for p, i in _ELLIPSES.items()},
        **{f"coverage_{p}_last": own["coverage_last"][:, :, i] for p, i in _ELLIPSES.items()},
    }
    for key, values in sums.items():
        result[key] = _columns(_ratio(*np.moveaxis(values.sum(0), -1, 0)), columns)
        if key in HEADLINES:
            result[f"{key}_interval"] = _bounds(_intervals([values], _ratio, columns))
    for key in ("hota_through", "hota_visible"):
        flat = own[key].reshape(*own[key].shape[:2], -1)  # (S, columns, 4 * 19)
        result[key] = _columns(_hota(*np.moveaxis(flat.sum(0), -1, 0)), columns)
        if key in HEADLINES:
            result[f"{key}_interval"] = _bounds(_intervals([flat], _hota, columns))
    intervals = _intervals([own["fde"], *ends], _skill, columns)
    result["skill"] = {key: _number(i.value) for key, i in intervals.items()}
    result["skill_interval"] = _bounds(intervals)
    blind, visible = (_ratio(*own[f"fg_ari_{k}"].sum(0).T) for k in ("blind", "visible"))
    result["fg_ari_retained"] = _columns(_ratio(blind, visible), columns)
    ages = [str(age) for age in range(1, own["error_by_age"].shape[1] + 1)]
    result["error_by_age"] = _columns(
        _ratio(*np.moveaxis(own["error_by_age"].sum(0), -1, 0)), ages
    )
    result["error_by_age_interval"] = _bounds(_intervals([own["error_by_age"]], _ratio, ages))
    total = own["coverage"].sum(0)  # (columns, probabilities, 2)
    result["reliability"] = {
        column: _columns(
            _ratio(total[i, :, 0], total[i, :, 1]), [f"{p:.2f}" for p in PROBABILITIES]
        )
        for i, column in enumerate(columns)
    }
    return result


def _ratio(total: Any, count: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(total, count)


def _skill(
    error: Any, count: Any, worst: Any, worst_count: Any, best: Any, best_count: Any
) -> Any:
    worst, best = _ratio(worst, worst_count), _ratio(best, best_count)
    room = np.where(worst - best > _LEAST_ROOM * worst, worst - best, np.nan)
    return (worst - _ratio(error, count)) / room


def _hota(*sums: Any) -> Any:
    """From matches, misses, false positives and association, 19 each; NaN without truth."""
    matches, misses, wrong, association = np.split(np.stack(sums), 4)
    nothing = np.zeros_like(matches)
    score = mot.Hota(matches, misses, wrong, association, nothing).hota.mean(0)
    return np.where((matches + misses).any(0), score, np.nan)


def _intervals(
    sums: Sequence[np.ndarray], statistic: Statistic, columns: Sequence[str]
) -> dict[str, Interval]:
    """By column, from arrays `(S, columns, C)` whose C are handed to `statistic` one by one."""
    table = np.concatenate(sums, -1)
    return {
        column: bootstrap(table[:, i], statistic, np.random.default_rng(_SEED))
        for i, column in enumerate(columns)
    }


def _columns(values: np.ndarray, columns: Sequence[str]) -> Columns:
    return {column: _number(value) for column, value in zip(columns, values, strict=True)}


def _bounds(intervals: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    return {key: [_number(i.low), _number(i.high)] for key, i in intervals.items()}


def _number(value: float) -> float | None:
    """Rounded for JSON, which knows neither NaN nor infinity."""
    return round(float(value), 6) if math.isfinite(value) else None
