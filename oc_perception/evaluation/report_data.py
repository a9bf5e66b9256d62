# SPDX-License-Identifier: Apache-2.0
"""A replay directory as reports and comparisons read it, and its numbers over all bags."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oc_perception.evaluation.forecast import Interval
from oc_perception.evaluation.report_statistics import estimates

TRACKING = ("hota", "det_a", "ass_a", "idf1", "mota", "id_switches", "frames")
DISCOVERY = ("fg_ari", "ari", "miou", "mbo", "frames_with_truth")


class ReportError(ValueError):
    """A directory that no report can be made of; the message names the cure."""


@dataclass(frozen=True)
class BagRun:
    """One bag of a run. `timing` is empty where timing.json is missing."""

    anchor: str
    directory: Path
    metrics: dict[str, Any]
    timing: dict[str, Any]

    @property
    def name(self) -> str:
        """What the bag is called here: its directory, since two bags may have one name."""
        return self.directory.name


@dataclass(frozen=True)
class Run:
    """What `oc-perception replay` left in a directory."""

    directory: Path
    report: dict[str, Any]
    bags: list[BagRun]
    failed: list[dict[str, Any]]

    @property
    def trackers(self) -> list[str]:
        """The run's own tracker, then its baselines."""
        names = dict.fromkeys(str(bag.metrics["tracker"]) for bag in self.bags)
        for bag in self.bags:
            for table in (*bag.metrics.get("self_test", {}).values(), bag.metrics.get("tracking")):
                names |= dict.fromkeys(table or ())
        return list(names)

    @property
    def schedules(self) -> list[str]:
        """Schedules of the self-test: frames hidden in rising order, then the others."""
        names = {str(key) for bag in self.bags for key in bag.metrics.get("self_test", {})}
        return sorted(names, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0, n))

    def blackouts(self) -> list[list[dict[str, Any]]]:
        """The rows of every bag."""
        return [bag.metrics.get("blackouts", []) for bag in self.bags]


def read_run(directory: Path) -> Run:
    """Read report.json, and timing.json of each bag.

    Raises ReportError where there is no report.json, or one that cannot be read.
    """
    path = directory / "report.json"
    if not path.is_file():
        raise ReportError(
            f"{directory} holds no report.json: name the --output directory of a finished "
            "`oc-perception replay`."
        )
    report = _read(path)
    bags = []
    for number, metrics in enumerate(report["bags"], start=1):
        own = directory / str(metrics.get("directory", metrics["bag"]))
        timing = own / "timing.json"
        times = _read(timing) if timing.is_file() else {}
        bags.append(BagRun(f"bag-{number}", own, metrics, times))
    return Run(directory, report, bags, list(report["failed"]))


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ReportError(f"{path} is damaged ({error}): replay once more.") from error


def self_test(run: Run) -> dict[str, dict[str, dict[str, Interval]]]:
    """`[schedule][tracker][measure]` over all bags, with intervals."""
    return {
        schedule: estimates(run.blackouts(), run.trackers, schedule) for schedule in run.schedules
    }


def mean_tracking(run: Run) -> dict[str, dict[str, float]]:
    """`[tracker][score]`: mean over the bags with boxes, sum for counts."""
    tables = [bag.metrics["tracking"] for bag in run.bags if bag.metrics.get("tracking")]
    return {
        name: {
            key: _pool([t[name].get(key) for t in tables if name in t], key) for key in TRACKING
        }
        for name in run.trackers
        if any(name in table for table in tables)
    }


def mean_discovery(run: Run) -> dict[str, float]:
    """Mean over the bags with masks, sum for counts; empty without any."""
    tables = [bag.metrics["discovery"] for bag in run.bags if bag.metrics.get("discovery")]
    return {key: _pool([t.get(key) for t in tables], key) for key in DISCOVERY if tables}


def _pool(values: Sequence[float | None], key: str) -> float:
    known = [value for value in values if value is not None]
    if key in ("id_switches", "frames", "frames_with_truth"):
        return sum(known)
    return sum(known) / len(known) if known else math.nan
