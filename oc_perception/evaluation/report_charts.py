# SPDX-License-Identifier: Apache-2.0
"""Geometry of the report's charts; templates draw it as SVG, in colours of the style sheet.

Inline SVG rather than an image: text stays text, and light, dark and print share one drawing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from oc_perception.evaluation.forecast import Interval

WIDTH, HEIGHT = 340, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 40
_DODGE = 3.0  # between the marks of two trackers at one place
_STRIP_HEIGHT = 100.0


def nice_ticks(highest: float, count: int = 4) -> list[float]:
    """Round numbers from 0 to the first that is not below `highest`, about `count` steps."""
    if not (math.isfinite(highest) and highest > 0):
        return [0.0, 1.0]
    rough = highest / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * (1 - 1e-9))
    return [round(step * i, 12) for i in range(math.ceil(highest / step - 1e-9) + 1)]


def by_schedule(
    title: str,
    unit: str,
    columns: Sequence[str],
    values: Mapping[str, Sequence[Interval]],
    share: bool,
    target: float | None = None,
) -> dict[str, Any]:
    """A chart of `values[tracker]`, one per column, with whiskers where intervals are known.

    Columns that are numbers (frames hidden) are joined by a line; others stand apart.
    """
    known = [
        bound
        for line in values.values()
        for one in line
        for bound in (one.value, one.high)
        if math.isfinite(bound)
    ]
    ticks = [0, 0.25, 0.5, 0.75, 1.0] if share else nice_ticks(max(known, default=0.0))
    places = _places(columns)

    def y(value: float) -> float:
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - value / ticks[-1]), 1)

    lines = []
    for index, (tracker, line) in enumerate(values.items()):
        shift = (index - (len(values) - 1) / 2) * _DODGE
        marks = [
            {
                "x": round(x + shift, 1),
                "y": y(one.value),
                "whisker": (y(one.low), y(one.high)) if math.isfinite(one.low) else None,
                "column": column,
                "value": one.value,
            }
            for x, column, one in zip(places, columns, line, strict=True)
            if math.isfinite(one.value)
        ]
        joined = [f"{mark['x']},{mark['y']}" for mark in marks if mark["column"].isdigit()]
        lines.append({"name": tracker, "style": index, "marks": marks, "points": " ".join(joined)})
    return {
        "title": title,
        "unit": unit,
        "share": share,
        "width": WIDTH,
        "height": HEIGHT,
        "left": _LEFT,
        "right": WIDTH - _RIGHT,
        "top": _TOP,
        "floor": HEIGHT - _BOTTOM,
        "target": None if target is None else y(target),
        "ticks": [(tick, y(tick)) for tick in ticks],
        "columns": list(zip(columns, places, strict=True)),
        # the last first, so that the run's own tracker lies on top
        "lines": lines[::-1],
    }


def _places(columns: Sequence[str]) -> list[float]:
    """Equal steps, with half a step more before the first column that is not a number."""
    steps, at = [], 0.0
    for index, column in enumerate(columns):
        at += 0.0 if index == 0 else 1.0 if column.isdigit() else 1.4
        steps.append(at)
    inner = WIDTH - _LEFT - _RIGHT - 54
    scale = inner / steps[-1] if steps and steps[-1] else 0.0
    return [round(_LEFT + 20 + step * scale, 1) for step in steps]


def time_line(series: Mapping[str, Sequence[Any]]) -> dict[str, Any] | None:
    """Objects and tracks over time and the lane of sensor states; None without a series.

    In percent of width and height: the template stretches it to the page.
    """
    stamps = series.get("stamp_s") or []
    if not stamps:
        return None
    start, span = stamps[0], (stamps[-1] - stamps[0]) or 1.0
    xs = [round(100 * (stamp - start) / span, 3) for stamp in stamps]
    counts = [n for key in ("objects", "tracks") for n in series[key] if n is not None]
    ticks = nice_ticks(max(counts, default=0))

    def path(key: str) -> str:
        # a count holds until the next one
        points, last = [], None
        for x, count in zip(xs, series[key], strict=True):
            if count is None:
                last = None
                continue
            height = round(_STRIP_HEIGHT * (1 - count / ticks[-1]), 2)
            points.append(f"M{x} {height}" if last is None else f"H{x}V{height}")
            last = height
        return "".join(points)

    runs = [list(run) for _, run in groupby(range(len(xs)), lambda i: series["sensor_state"][i])]
    lane = []
    for run in runs:
        end = xs[run[-1] + 1] if run[-1] + 1 < len(xs) else 100.0
        state = str(series["sensor_state"][run[0]])
        lane.append(
            {
                "state": state,
                "x": xs[run[0]],
                "width": round(max(end - xs[run[0]], 0.15), 3),
                "start_s": stamps[run[0]] - start,
                "seconds": (end - xs[run[0]]) * span / 100,
            }
        )
    return {
        "objects": path("objects"),
        "tracks": path("tracks"),
        "lane": lane,
        "states": list(dict.fromkeys(part["state"] for part in lane)),
        "highest": ticks[-1],
        "labels_s": [span * i / 4 for i in range(5)],
        "start_s": start,
    }
