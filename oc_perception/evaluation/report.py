# SPDX-License-Identifier: Apache-2.0
"""report.html: what a replay found, in one file that needs nothing else.

Templates and style lie in config/report; everything that comes from a bag is escaped. Equal
directories give equal bytes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import yaml

from oc_perception.evaluation import report_charts
from oc_perception.evaluation.forecast import Interval
from oc_perception.evaluation.report_data import (
    BagRun,
    Run,
    mean_discovery,
    mean_tracking,
    read_run,
    self_test,
)
from oc_perception.evaluation.report_figures import (
    RULES,
    SelfTest,
    headline,
    key_figures,
    key_schedule,
    percent,
    sizes,
)
from oc_perception.evaluation.report_statistics import MEASURES
from oc_perception.resources import share_directory

STRIP_BYTES = 2_500_000
"""Of JPEG data in one report; further film strips stay in their folders."""
_WORST = 6
_STRIPS_PER_BAG = 2
_FILES = ("annotated.mp4", "annotated.avi", "contact_sheet.png", "tracks.txt", "metrics.json",
          "timing.json", "results")  # fmt: skip
_SHARES = {measure.key: measure.share for measure in MEASURES}
_STATES = {
    "OK": "camera works",
    "STALE": "no frame",
    "BLACK": "black frame",
    "FROZEN": "frozen frame",
    "CORRUPT": "corrupt frame",
}


def write_report(directory: str | Path) -> Path:
    """Write `report.html` into a directory of `oc-perception replay`; returns its path.

    The file appears when it is whole. Raises ReportError where the directory holds no replay, and
    OSError where it cannot be written.
    """
    path = Path(directory) / "report.html"
    write_page(path, "report.html.j2", _context(read_run(path.parent)))
    return path


def write_page(path: Path, template: str, context: dict[str, Any]) -> None:
    """Render a template of config/report to `path`. Raises OSError."""
    folder = jinja2.FileSystemLoader(share_directory() / "config" / "report")
    environment = jinja2.Environment(
        loader=folder,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "sizes": sizes,
        "measure": _measure,
        "spread": _spread,
        "duration": duration,
        "schedule": schedule_name,
        "schedule_short": lambda schedule: schedule_name(schedule, short=True),
        "sensor_state": lambda state: _STATES.get(state, state),
    }
    part = path.with_name(f".{path.name}.part")
    part.write_text(environment.get_template(template).render(context), encoding="utf-8")
    part.replace(path)


def _measure(value: float, key: str) -> str:
    return percent(value) if _SHARES[key] else sizes(value)


def _spread(one: Interval, key: str) -> str:
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


def _context(run: Run) -> dict[str, Any]:
    test = self_test(run) if run.trackers else {}
    tracking = mean_tracking(run)
    figures = key_figures(run, test, tracking)
    strips = _Strips()
    worst = _worst(run, strips)
    per_bag = {bag.anchor: strips.of_bag(bag) for bag in run.bags}
    timed = [bag for bag in run.bags if bag.timing.get("stages")]
    names = [bag.name for bag in run.bags] or [str(one["bag"]) for one in run.failed]
    return {
        "run": run,
        "title": names[0] if len(names) == 1 else f"{len(names)} bags",
        "duration": duration(sum(bag.metrics["duration_s"] for bag in run.bags)),
        "frames": sum(bag.metrics["frames"] for bag in run.bags),
        "models": sorted({bag.metrics["model"] for bag in run.bags}),
        "trackers": run.trackers,
        "sentences": headline(run, test, tracking, figures),
        "figures": figures,
        "warned": [bag for bag in run.bags if bag.metrics.get("warnings")],
        "test": test,
        "best": _best(test),
        "charts": _charts(run, test),
        "interval_note": _interval_note(run),
        "key_schedule": key_schedule(run),
        "tracking": tracking,
        "tracked_bags": sum(bool(bag.metrics.get("tracking")) for bag in run.bags),
        "discovery": mean_discovery(run),
        "worst": worst,
        "strips": per_bag,
        "unseen": {bag.anchor: strips.left(bag) for bag in run.bags},
        "time_lines": {
            bag.anchor: report_charts.time_line(bag.metrics.get("series", {})) for bag in run.bags
        },
        "timing": [_timing(bag) for bag in timed],
        "stages": list(dict.fromkeys(name for bag in timed for name in bag.timing["stages"])),
        "files": {bag.anchor: _files(run, bag) for bag in run.bags},
        "versions": _versions(run),
        "configuration": yaml.safe_dump(run.report.get("configuration", {}), sort_keys=False),
        "rules": RULES,
    }


def _best(test: SelfTest) -> dict[str, dict[str, set[str]]]:
    """`[schedule][measure]`: the trackers that did best, unless all of them did."""
    found: dict[str, dict[str, set[str]]] = {}
    for schedule, rows in test.items():
        for measure in MEASURES:
            known = {name: measure.better * row[measure.key].value for name, row in rows.items()}
            highest = max((v for v in known.values() if math.isfinite(v)), default=math.nan)
            winners = {name for name, value in known.items() if value == highest}
            everyone = len(winners) == len(rows)
            found.setdefault(schedule, {})[measure.key] = set() if everyone else winners
    return found


def _charts(run: Run, test: SelfTest) -> list[dict[str, Any]]:
    titles = {
        "kept_share": ("Identities kept", ""),
        "error_sizes": ("Error while hidden", "error in box sizes"),
        "coverage_90": ("Inside the 90 % region", "dotted: as it should be"),
    }
    charts = []
    for measure in MEASURES:
        if measure.key in titles:
            title, unit = titles[measure.key]
            lines: dict[str, Sequence[Interval]] = {
                tracker: [test[schedule][tracker][measure.key] for schedule in test]
                for tracker in run.trackers
            }
            charts.append(
                report_charts.by_schedule(
                    title, unit, list(test), lines, measure.share, measure.target
                )
            )
    return charts


def _interval_note(run: Run) -> str:
    drawn = "blackouts of this bag" if len(run.bags) == 1 else "bags, and blackouts within them,"
    return (
        f"Intervals (95 %) come from redrawing the {drawn} 2000 times: "
        "how far the numbers would move with other blackouts"
        + (" of the same recording." if len(run.bags) == 1 else " in recordings like these.")
    )


class _Strips:
    """Film strips as data URIs, each shown once, until the report is full."""

    def __init__(self) -> None:
        self._room = STRIP_BYTES
        self._shown: set[tuple[str, str]] = set()

    def show(self, bag: BagRun, case: dict[str, Any]) -> dict[str, Any] | None:
        """A case with its picture; None where the report is full. A lost picture is said so."""
        path = bag.directory / case["strip"]
        shown = {"bag": bag.name, "step": case["step"], "caption": case["caption"], "data": ""}
        data = path.read_bytes() if path.is_file() else b""
        if len(data) > self._room:
            return None
        self._shown.add((bag.anchor, case["strip"]))
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if picture is None:
            return {**shown, "absent": f"{case['strip']} is missing or damaged."}
        self._room -= len(data)
        height, width = picture.shape[:2]
        encoded = base64.b64encode(data).decode()
        uri = f"data:image/jpeg;base64,{encoded}"
        return {**shown, "data": uri, "height": height, "width": width}

    def of_bag(self, bag: BagRun) -> list[dict[str, Any]]:
        """The worst cases of a bag that were not shown before."""
        cases = [
            case
            for case in bag.metrics.get("worst", [])
            if (bag.anchor, case["strip"]) not in self._shown
        ]
        shown = (self.show(bag, case) for case in cases[:_STRIPS_PER_BAG])
        return [case for case in shown if case]

    def left(self, bag: BagRun) -> int:
        """How many of a bag are not in the report."""
        names = {(bag.anchor, case["strip"]) for case in bag.metrics.get("worst", [])}
        return len(names - self._shown)


def _worst(run: Run, strips: _Strips) -> list[dict[str, Any]]:
    """The worst cases over all bags: the worst of each bag before the second of any."""
    ranked = [
        (rank, -case["score"], number, case)
        for number, bag in enumerate(run.bags)
        for rank, case in enumerate(bag.metrics.get("worst", []))
    ]
    ranked.sort(key=lambda entry: entry[:3])
    shown = (strips.show(run.bags[number], case) for *_, number, case in ranked[:_WORST])
    return [case for case in shown if case]


def _timing(bag: BagRun) -> dict[str, Any]:
    stages = bag.timing["stages"]
    whole = sum(stage["total_s"] for stage in stages.values()) or 1.0
    return {
        "name": bag.name,
        "machine": bag.timing["machine"],
        "start_mb": bag.timing["rss_start_mb"],
        "peak_mb": bag.timing["rss_peak_mb"],
        "speed": bag.timing["bag_s_per_wall_s"],
        "stages": {
            name: {"share": stage["total_s"] / whole, **stage} for name, stage in stages.items()
        },
    }


def _files(run: Run, bag: BagRun) -> list[str]:
    present = [bag.directory / name for name in _FILES if (bag.directory / name).exists()]
    return [path.relative_to(run.directory).as_posix() for path in present]


def _versions(run: Run) -> list[tuple[str, str]]:
    versions = {"commit": run.report.get("commit"), **run.report.get("versions", {})}
    machines = sorted({bag.timing["machine"] for bag in run.bags if bag.timing})
    return [
        *((name, str(value)) for name, value in versions.items() if value),
        ("machine", "; ".join(machines) or "–"),
    ]
