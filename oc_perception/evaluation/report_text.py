# SPDX-License-Identifier: Apache-2.0
"""Numbers and names of a replay as a reader says them."""

from __future__ import annotations

import math

from oc_perception.evaluation.forecast import Interval
from oc_perception.evaluation.report_statistics import MEASURES

_SHARES = {one.key: one.share for one in MEASURES}
_STATES = {
    "OK": "camera works",
    "STALE": "no frame",
    "BLACK": "black frame",
    "FROZEN": "frozen frame",
    "CORRUPT": "corrupt frame",
}


def percent(value: float | None) -> str:
    """A share, in percent."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")


def sizes(value: float | None) -> str:
    """A number to two places, or three digits if it is large."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def measured(value: float, key: str) -> str:
    """A value of the measure `key` of the self-test."""
    return percent(value) if _SHARES[key] else sizes(value)


def spread(one: Interval, key: str) -> str:
    """Its interval, short."""
    if _SHARES[key]:
        return f"{100 * one.low:.0f}–{100 * one.high:.0f}\N{NO-BREAK SPACE}%"
    return f"{sizes(one.low)}–{sizes(one.high)}"


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60, 1)
    return f"{minutes:g} min" if minutes < 60 else f"{seconds / 3600:.1f} h"


def schedule_name(schedule: str, short: bool = False) -> str:
    """A schedule of the self-test as a reader says it."""
    kind, _, share = schedule.partition("_")
    if kind == "bernoulli":
        return f"{100 * float(share):.0f}\N{NO-BREAK SPACE}% random"
    if short:
        return schedule
    return "1 frame hidden" if schedule == "1" else f"{schedule} frames hidden"


def sensor_state(name: str) -> str:
    """A state of the sensor by its name in messages."""
    return _STATES.get(name, name)
