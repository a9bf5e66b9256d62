# SPDX-License-Identifier: Apache-2.0
"""The key figures of a run and what to think of them: good, fair or poor, by stated rules."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from oc_perception.evaluation.forecast import Interval
from oc_perception.evaluation.report_data import BagRun, Run, mean_discovery
from oc_perception.evaluation.report_statistics import MEASURES
from oc_perception.evaluation.report_text import percent, schedule_name, sizes

SelfTest = dict[str, dict[str, dict[str, Interval]]]
"""`[schedule][tracker][measure]`."""
_KEY_SCHEDULES = ("10", "5", "20", "1")
"""The schedule that key figures speak of: the first of these that was run."""

_ON_ROBOT = ("discovery", "tracking")
"""Stages of a replay that a robot has too."""
RULES = (
    ("identities kept", "at least 90 %", "at least 70 %"),
    ("error while hidden", "at most 0.25 box sizes", "at most 0.5"),
    ("inside the 90 % region", "85 % to 95 %", "75 % to 99 %"),
    ("HOTA", "at least 50 %, and no baseline is ahead", "at least 30 %, at most 2 points behind"),
    ("FG-ARI", "at least 0.8", "at least 0.5"),
    ("usable frames", "at least 99 %", "at least 95 %"),
    ("time per frame", "99 % are ready before the next", "the median is"),
)
"""What a verdict means: figure, good, fair; anything else is poor."""


def key_schedule(run: Run) -> str | None:
    """The schedule that key figures speak of."""
    return next((s for s in _KEY_SCHEDULES if s in run.schedules), None)


@dataclass(frozen=True)
class Figure:
    """One key figure. `verdict` is good, fair, poor or "" where there is none."""

    title: str
    value: str
    detail: str
    verdict: str


def key_figures(run: Run, test: SelfTest, tracking: dict[str, Any]) -> list[Figure]:
    """What a reader in a hurry needs."""
    figures = _self_test_figures(run, test)
    figures += _truth_figures(tracking, mean_discovery(run))
    states: Counter[str] = Counter()
    for bag in run.bags:
        states.update(bag.metrics.get("sensor_states", {}))
    steps = sum(states.values())
    if steps:
        usable = states["OK"] / steps
        blind = ", ".join(
            f"{count} {name.lower()}" for name, count in sorted(states.items()) if name != "OK"
        )
        figures.append(
            Figure("Usable frames", percent(usable), blind or "none blind",
                   _grade(usable, 0.99, 0.95))
        )  # fmt: skip
    timed = [bag for bag in run.bags if bag.timing.get("stages")]
    if timed:
        figures.append(_time_figure(timed))
    return figures


def headline(
    run: Run, test: SelfTest, tracking: dict[str, Any], figures: list[Figure]
) -> list[str]:
    """Two or three sentences for who reads nothing else."""
    if not run.bags:
        return ["No bag could be replayed."]
    if not any(bag.metrics["tracks_confirmed"] for bag in run.bags):
        return [
            "No object was tracked in any bag. Does the model know pictures like these? "
            "Train one on these bags, and replay again."
        ]
    sentences = _self_test_sentence(run, test)
    if tracking:
        own = next(iter(tracking.values()))
        scores = (f"{name.upper()} {percent(own[name])}" for name in ("hota", "idf1", "mota"))
        sentences.append(f"Against true boxes it reaches {', '.join(scores)}.")
    poor, fair = (
        ", ".join(
            one.title if one.title.isupper() else one.title.lower()
            for one in figures
            if one.verdict == verdict
        )
        for verdict in ("poor", "fair")
    )
    if poor:
        sentences.append(f"Poor, look there first: {poor}.")
    elif fair:
        sentences.append(f"Nothing is poor; could be better: {fair}.")
    elif figures:
        sentences.append("All key figures are good.")
    return sentences


def _self_test_sentence(run: Run, test: SelfTest) -> list[str]:
    schedule = key_schedule(run)
    if schedule is None:
        return []
    kept = {name: row["kept_share"].value for name, row in test[schedule].items()}
    own = kept.pop(run.trackers[0])
    if not math.isfinite(own):
        return []
    frames = "one frame is" if schedule == "1" else f"{schedule} frames are"
    text = f"When {frames} hidden, {run.trackers[0]} keeps {percent(own)} of the identities"
    rivals = [(value, name) for name, value in kept.items() if math.isfinite(value)]
    if rivals:
        best, rival = max(rivals)
        points = round(100 * (own - best), 1)
        how = f"{abs(points)} points {'more' if points > 0 else 'less'} than"
        text += f", {how if points else 'as many as'} the best baseline, {rival}"
    return [f"{text}."]


def _counts(run: Run, schedule: str) -> str:
    """How much stands behind the share of identities kept."""
    tables = (bag.metrics.get("self_test", {}).get(schedule, {}) for bag in run.bags)
    own = [table[run.trackers[0]] for table in tables if run.trackers[0] in table]
    kept, tracked, blackouts = (sum(r[k] for r in own) for k in ("kept", "tracked", "blackouts"))
    return f"{kept} of {tracked} in {blackouts} blackouts"


def _self_test_figures(run: Run, test: SelfTest) -> list[Figure]:
    schedule = key_schedule(run)
    if schedule is None:
        return []
    own, *others = run.trackers
    rows = test[schedule]
    figures = []
    for key, title, best in (("kept_share", "Identities kept", max),
                             ("error_sizes", "Error while hidden", min),
                             ("coverage_90", "Inside the 90 % region", None)):  # fmt: skip
        one = rows[own][key]
        if not math.isfinite(one.value):
            continue
        write = percent if next(m.share for m in MEASURES if m.key == key) else sizes
        detail = schedule_name(schedule)
        if key == "kept_share":
            detail += f": {_counts(run, schedule)}"
        known = [(rows[n][key].value, n) for n in others if math.isfinite(rows[n][key].value)]
        if best and known:
            value, name = best(known)
            detail += f"; best baseline {name}: {write(value)}"
        if math.isfinite(one.low):
            detail += f"; interval {write(one.low)} to {write(one.high)}"
        unit = " box sizes" if key == "error_sizes" else ""
        verdict = _self_test_grade(key, one.value)
        figures.append(Figure(title, write(one.value) + unit, detail, verdict))
    return figures


def _self_test_grade(key: str, value: float) -> str:
    if key == "kept_share":
        return _grade(value, 0.9, 0.7)
    if key == "error_sizes":
        return _grade(-value, -0.25, -0.5)
    if 0.85 <= value <= 0.95:
        return "good"
    return "fair" if 0.75 <= value <= 0.99 else "poor"


def _truth_figures(tracking: dict[str, Any], discovery: dict[str, float]) -> list[Figure]:
    figures = []
    if tracking:
        own, *others = (scores["hota"] for scores in tracking.values())
        detail, behind = "against true boxes", 0.0
        if others:
            detail += f"; best baseline {percent(max(others))}"
            behind = max(others) - own
        verdict = min(
            (_grade(own, 0.5, 0.3), _grade(-behind, 0.0, -0.02)),
            key=("poor", "fair", "good").index,
        )
        figures.append(Figure("HOTA", percent(own), detail, verdict))
    if discovery:
        value = discovery["fg_ari"]
        detail = f"against true masks, {discovery['frames_with_truth']:.0f} frames"
        figures.append(Figure("FG-ARI", f"{value:.3f}", detail, _grade(value, 0.8, 0.5)))
    return figures


def _time_figure(bags: list[BagRun]) -> Figure:
    """Of the bag in which there was least time left: what a robot would need for a frame."""

    def load(bag: BagRun) -> tuple[float, float, float]:
        stages = [bag.timing["stages"][n] for n in _ON_ROBOT if n in bag.timing["stages"]]
        period_ms = 1000 / bag.metrics["rate_hz"]
        p50, p99 = (sum(stage[key] for stage in stages) for key in ("p50_ms", "p99_ms"))
        return p99 / period_ms, p50 / period_ms, period_ms

    p99, p50, period_ms = max(load(bag) for bag in bags)
    wall_s, length_s = (sum(bag.timing[key] for bag in bags) for key in ("wall_s", "bag_s"))
    detail = (
        f"median; 99 % within {p99 * period_ms:.1f} ms, a frame comes every {period_ms:.0f} ms; "
        f"replayed at {length_s / wall_s:.1f} × real time"
    )
    verdict = "good" if p99 <= 1 else "fair" if p50 <= 1 else "poor"
    return Figure("Time per frame", f"{p50 * period_ms:.1f} ms", detail, verdict)


def _grade(value: float, good: float, fair: float) -> str:
    return "good" if value >= good else "fair" if value >= fair else "poor"
