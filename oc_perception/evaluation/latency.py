# SPDX-License-Identifier: Apache-2.0
"""What a latency run says: delays of the answers, and what became of every frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LatencyRun:
    """Stamps of the `published` images, `(stamp, time of arrival)` of the `answers` to images, ns.

    `dropped` frames were taken by discovery and replaced by a newer one before their turn, `lost`
    ones were missed by it in the numbering of the publisher.
    """

    published: Sequence[int]
    answers: Sequence[tuple[int, int]]
    dropped: int
    lost: int


def summarize(run: LatencyRun, warm_up: int = 0) -> dict[str, Any]:
    """Percentiles of the latency in ms without the first `warm_up` frames, and all frames counted.

    `frames_unexplained` were neither answered nor counted as dropped or lost. It may be below 0:
    a frame in work at the end is not counted by anybody, one that was dropped may be.
    """
    known = set(run.published)
    first_ns = sorted(run.published)[warm_up] if len(run.published) > warm_up else 0
    answered = {stamp: arrival for stamp, arrival in run.answers if stamp in known}
    delays_ms = np.array(
        [(arrival - stamp) * 1e-6 for stamp, arrival in answered.items() if stamp >= first_ns]
    )
    percentiles = (
        {f"p{q}": round(float(np.percentile(delays_ms, q)), 3) for q in (50, 90, 99)}
        if delays_ms.size
        else {"p50": None, "p90": None, "p99": None}
    )
    return {
        "latency_ms": {
            **percentiles,
            "max": round(float(delays_ms.max()), 3) if delays_ms.size else None,
        },
        "frames_published": len(known),
        "frames_answered": len(answered),
        "frames_dropped": run.dropped,
        "frames_lost": run.lost,
        "frames_unexplained": len(known) - len(answered) - run.dropped - run.lost,
    }


def usage(
    before: Mapping[str, tuple[float, float]],
    after: Mapping[str, tuple[float, float]],
    wall_s: float,
) -> dict[str, dict[str, float]]:
    """CPU percent of one core and resident MB of each process, from two `Processes.usage()`."""
    return {
        name: {
            "cpu_percent": round(100 * (after[name][0] - before[name][0]) / wall_s, 1),
            "rss_mb": round(after[name][1], 1),
        }
        for name in before.keys() & after.keys()
    }


def table(report: Mapping[str, Any]) -> str:
    """The report for people."""

    def text(value: Any) -> str:
        return "-" if value is None else f"{value:g}"

    latency = report["latency_ms"]
    rows = [(f"latency {name}, ms", text(value)) for name, value in latency.items()]
    rows += [(k.replace("_", " "), text(v)) for k, v in report.items() if k.startswith("frames_")]
    rows += [
        (name, f"{one['cpu_percent']:.0f} % CPU, {one['rss_mb']:.0f} MB")
        for name, one in sorted(report["processes"].items())
    ]
    return "\n".join(f"{name:<26}{value:>20}" for name, value in rows)
