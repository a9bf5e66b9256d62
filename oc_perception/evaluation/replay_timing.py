# SPDX-License-Identifier: Apache-2.0
"""How long the stages of a replay take, and how much memory the process holds."""

from __future__ import annotations

import os
import resource
import sys
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
STAGES = ("read", "discovery", "tracking", "self_test", "write")


class Stopwatch:
    """Seconds of each pass through each stage; 4 bytes a pass."""

    def __init__(self) -> None:
        self._seconds = {name: array("f") for name in STAGES}
        self._begin_s = time.perf_counter()
        self._start_mb = resident_mb()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as a pass through a stage."""
        begin_s = time.perf_counter()
        yield
        self._seconds[name].append(time.perf_counter() - begin_s)

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """`items`, whose making is timed."""
        iterator, end = iter(items), object()
        while True:
            with self.stage(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item

    def timed(self, part: Any, name: str) -> Any:
        """`part` with its `step` timed."""
        return _Timed(part, name, self)

    def report(self, bag_s: float, machine: str) -> dict[str, Any]:
        """timing.json: how long `bag_s` seconds of recording took, on this kind of machine."""
        wall_s = time.perf_counter() - self._begin_s
        stages = {}
        for name, seconds in self._seconds.items():
            milliseconds = 1000 * np.array(seconds, np.float64)
            if len(milliseconds):
                p50, p99 = np.percentile(milliseconds, [50, 99])
                stages[name] = {"p50_ms": p50, "p99_ms": p99, "total_s": sum(seconds)}
        return {
            "wall_s": wall_s,
            "bag_s": bag_s,
            "bag_s_per_wall_s": bag_s / wall_s,
            "stages": stages,
            "rss_peak_mb": peak_mb(),
            "rss_start_mb": self._start_mb,
            "machine": machine,
        }


class _Timed:
    def __init__(self, part: Any, name: str, watch: Stopwatch) -> None:
        self._part, self._name, self._watch = part, name, watch

    def step(self, *arguments: Any) -> Any:
        with self._watch.stage(self._name):
            return self._part.step(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def resident_mb() -> float:
    """Memory that this process holds now."""
    statistics = Path("/proc/self/statm")  # Linux; elsewhere the peak is all there is to know
    if not statistics.is_file():
        return peak_mb()
    return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_mb() -> float:
    """The most memory that this process ever held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
