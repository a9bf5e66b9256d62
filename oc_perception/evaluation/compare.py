# SPDX-License-Identifier: Apache-2.0
"""Two replays of the same recordings side by side: what differs, and whether that is chance.

Bags are paired by name, blackouts of the self-test by bag, schedule and step. Intervals (95 %)
are of the difference B - A and redraw pairs, so that what is hard for both cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oc_perception.evaluation.forecast import Interval
from oc_perception.evaluation.report import write_page
from oc_perception.evaluation.report_data import BagRun, ReportError, Run
from oc_perception.evaluation.report_statistics import (
    LEAST_DRAWN,
    MEASURES,
    RESAMPLES,
    Measure,
    enough,
    interval,
    place,
    ratio,
    redraw,
    sums,
)
from oc_perception.evaluation.report_text import schedule_name

_SAME = ("topic", "frames", "duration_s", "recording")
"""What two replays of one recording have in common, whatever the model."""
_SCORES = (
    ("tracking", "hota", "HOTA", 1, True),
    ("tracking", "idf1", "IDF1", 1, True),
    ("tracking", "mota", "MOTA", 1, True),
    ("tracking", "id_switches", "identity switches", -1, False),
    ("discovery", "fg_ari", "FG-ARI", 1, False),
    ("discovery", "miou", "mIoU", 1, False),
    ("discovery", "mbo", "mBO", 1, False),
)
"""Scores against truth: table, key, title, what is better, whether it is a share."""


@dataclass(frozen=True)
class Row:
    """One number of both runs. `low` and `high` bound the difference B - A, None where there is
    too little to redraw. `verdict` is better or worse if B is so beyond chance, else "".
    """

    group: str
    name: str
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    share: bool
    verdict: str


def compare(a: Run, b: Run) -> dict[str, Any]:
    """What `oc-perception compare` says, as plain values.

    Raises ReportError where the runs have no recording in common, or two recordings of one name.
    """
    pairs = _pairs(a, b)
    names = [own.name for own, _ in pairs]
    rows = [*_self_test(pairs), *_truth(pairs)]
    return {
        "schema": 1,
        "a": _describe(a, [own for own, _ in pairs]),
        "b": _describe(b, [own for _, own in pairs]),
        "bags": names,
        "left_out": sorted({bag.name for bag in (*a.bags, *b.bags)} - set(names)),
        "resampled": _resampled(pairs),
        "rows": [asdict(row) for row in rows],
        "by_bag": [_bag_row(own, other) for own, other in pairs],
    }


def write_comparison(path: Path, found: dict[str, Any]) -> None:
    """Write the comparison as one HTML page. Raises OSError."""
    spans: dict[tuple[str, bool], float] = {}
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        ends = [abs(row[key]) for key in ("low", "high", "difference") if row[key] is not None]
        unit = (row["group"], row["share"])
        spans[unit] = max([spans.get(unit, 0.0), *ends])
        groups.setdefault(row["group"], []).append(row)
    write_page(path, "compare.html.j2", {**found, "spans": spans, "groups": groups})


def _pairs(a: Run, b: Run) -> list[tuple[BagRun, BagRun]]:
    others = {bag.name: bag for bag in b.bags}
    pairs = [(bag, others[bag.name]) for bag in a.bags if bag.name in others]
    if not pairs:
        raise ReportError(
            f"{a.directory} and {b.directory} have no recording in common "
            f"({_names(a)} and {_names(b)}): replay the same bags with both models."
        )
    for own, other in pairs:
        for key in _SAME:
            one, another = (bag.metrics.get(key) for bag in (own, other))
            if one != another:
                raise ReportError(
                    f"{own.name} is not the same recording in {a.directory} and {b.directory}: "
                    f"{key} is {one} and {another}. Replay the same bags, in the same order if "
                    "some have one name."
                )
    return pairs


def _names(run: Run) -> str:
    names = [bag.name for bag in run.bags]
    return ", ".join(names[:3]) + (", ..." if names[3:] else "") if names else "nothing"


def _describe(run: Run, bags: Sequence[BagRun]) -> dict[str, Any]:
    return {
        "directory": str(run.directory),
        "model": ", ".join(sorted({str(bag.metrics["model"]) for bag in bags})),
        "tracker": ", ".join(sorted({_own(bag) for bag in bags})),
        "commit": run.report.get("commit"),
        "command": run.report.get("command"),
    }


def _own(bag: BagRun) -> str:
    return str(bag.metrics["tracker"])


def _resampled(pairs: Sequence[tuple[BagRun, BagRun]]) -> str:
    drawn = (
        "blackouts within this one recording; other recordings may differ more"
        if len(pairs) == 1
        else f"the {len(pairs)} recordings, and within each of them its blackouts"
    )
    rough = "; from so few recordings they are rough" if 1 < len(pairs) < LEAST_DRAWN else ""
    return f"redrawn {RESAMPLES} times, in pairs: {drawn}{rough}"


def _self_test(pairs: Sequence[tuple[BagRun, BagRun]]) -> list[Row]:
    schedules = dict.fromkeys(s for own, _ in pairs for s in own.metrics.get("self_test", {}))
    rows = []
    for schedule in schedules:
        tables = [_paired(own, other, schedule) for own, other in pairs]
        tables = [table for table in tables if len(table)]
        if not tables:
            continue
        whole = np.sum([table.sum(0) for table in tables], axis=0)  # (2, columns)
        drawn = redraw(tables) if enough(tables) else np.full((1, *whole.shape), np.nan)
        for measure in MEASURES:
            a, b = ratio(whole, measure).tolist()
            found = interval(b - a, np.diff(ratio(drawn, measure), axis=-1)[:, 0])
            rows.append(_row(measure, schedule_name(schedule), a, b, found))
    return sorted(rows, key=lambda row: [m.title for m in MEASURES].index(row.group))


def _paired(a: BagRun, b: BagRun, schedule: str) -> np.ndarray:
    """What the blackouts that both runs went through add: `(N, 2, columns)`."""
    rows = [bag.metrics.get("blackouts", []) for bag in (a, b)]
    own = [
        [row for row in part if row["tracker"] == _own(bag)]
        for bag, part in zip((a, b), rows, strict=True)
    ]
    common = {place(row) for row in own[0]} & {place(row) for row in own[1]}
    tables = [
        sums([row for row in part if place(row) in common], (_own(bag),), schedule)
        for bag, part in zip((a, b), own, strict=True)
    ]
    return np.concatenate(tables, axis=1)


def _row(measure: Measure, name: str, a: float, b: float, found: Interval) -> Row:
    gain = measure.better * found.value
    if measure.target is not None:
        gain = abs(a - measure.target) - abs(b - measure.target)
    return _finished(measure.title, name, a, b, found, gain, measure.share)


def _finished(
    group: str, name: str, a: float, b: float, found: Interval, gain: float, share: bool
) -> Row:
    beyond_chance = found.low > 0 or found.high < 0
    verdict = ("better" if gain > 0 else "worse") if beyond_chance and gain else ""
    numbers = (_number(v) for v in (a, b, found.value, found.low, found.high))
    return Row(group, name, *numbers, share, verdict)


def _truth(pairs: Sequence[tuple[BagRun, BagRun]]) -> list[Row]:
    """Scores against truth: means over recordings, redrawn where there are enough of them."""
    rows = []
    for table, key, title, better, share in _SCORES:
        values = np.array([(_score(own, table, key), _score(other, table, key))
                           for own, other in pairs], float)  # fmt: skip
        values = values[np.isfinite(values).all(-1)]
        if not len(values):
            continue
        a, b = values.mean(0).tolist()
        difference = values[:, 1] - values[:, 0]
        # one table whose rows are bags: they are drawn as a whole
        draws = redraw([difference[:, None]])[:, 0] / len(difference)
        known = draws if len(difference) >= LEAST_DRAWN else np.array([np.nan])
        found = interval(float(difference.mean()), known)
        group = f"against true {'boxes' if table == 'tracking' else 'masks'}"
        rows.append(_finished(group, title, a, b, found, better * found.value, share))
    return rows


def _score(bag: BagRun, table: str, key: str) -> float:
    scores = bag.metrics.get(table) or {}
    if table == "tracking":
        scores = scores.get(_own(bag)) or {}
    value = scores.get(key)
    return math.nan if value is None else value


def _bag_row(a: BagRun, b: BagRun) -> dict[str, Any]:
    def both(values: Sequence[float | None]) -> list[float | None]:
        return [None if value is None else _number(value) for value in values]

    return {
        "bag": a.name,
        "kept_share": {
            schedule: both(
                [
                    bag.metrics["self_test"].get(schedule, {}).get(_own(bag), {}).get("kept_share")
                    for bag in (a, b)
                ]
            )
            for schedule in a.metrics.get("self_test", {})
            if "self_test" in b.metrics
        },
        **{key: both([_score(bag, table, key) for bag in (a, b)]) for table, key, *_ in _SCORES},
    }


def _number(value: float) -> float | None:
    """Rounded for JSON, which knows neither NaN nor infinity."""
    return round(float(value), 6) if math.isfinite(value) else None
