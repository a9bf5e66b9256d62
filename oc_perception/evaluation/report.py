# SPDX-License-Identifier: Apache-2.0
"""report.html: what a replay found, in one file that needs nothing else.

Templates and style lie in config/report; everything that comes from a bag is escaped. Equal
directories give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
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
)
from oc_perception.evaluation.report_statistics import LEAST_DRAWN, MEASURES, RESAMPLES
from oc_perception.evaluation.report_strips import Strips, worst
from oc_perception.evaluation.report_text import (
    duration,
    measured,
    percent,
    schedule_name,
    sensor_state,
    sizes,
    spread,
)
from oc_perception.resources import share_directory

_FILES = ("annotated.mp4", "annotated.avi", "contact_sheet.png", "tracks.txt", "metrics.json",
          "timing.json", "results")  # fmt: skip


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
        "measure": measured,
        "spread": spread,
        "duration": duration,
        "schedule": schedule_name,
        "schedule_short": lambda schedule: schedule_name(schedule, short=True),
        "sensor_state": sensor_state,
    }
    part = path.with_name(f".{path.name}.part")
    page = environment.get_template(template).render(context)
    part.write_text(page, encoding="utf-8", errors="replace")  # names of files may be no text
    part.replace(path)


def _context(run: Run) -> dict[str, Any]:
    test = self_test(run) if run.trackers else {}
    tracking = mean_tracking(run)
    figures = key_figures(run, test, tracking)
    strips = Strips()
    worst_cases = worst(run, strips)
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
        "worst": worst_cases,
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
    """`[schedule][measure]`: the trackers that did best as far as is shown, unless all did."""
    found: dict[str, dict[str, set[str]]] = {}
    for schedule, rows in test.items():
        for measure in MEASURES:
            key = measure.key
            known = {n: row[key].value for n, row in rows.items() if math.isfinite(row[key].value)}
            best = max(known.values(), key=lambda value: measure.better * value, default=math.nan)
            shown = measured(best, key)
            winners = {name for name, value in known.items() if measured(value, key) == shown}
            found.setdefault(schedule, {})[key] = winners if len(winners) < len(rows) else set()
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
    count = len(run.bags)
    drawn, where = "bags, and blackouts within them,", "in recordings like these"
    if count == 1:
        drawn, where = "blackouts of this bag", "of the same recording"
    note = (
        f"Intervals (95 %) come from redrawing the {drawn} {RESAMPLES} times: how far the numbers "
        f"would move with other blackouts {where}."
    )
    return note + (f" From {count} bags they are rough." if 1 < count < LEAST_DRAWN else "")


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
