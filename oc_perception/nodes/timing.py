# SPDX-License-Identifier: Apache-2.0
"""Time at the door of a node: which stamps to believe, the period of frames, what is missing."""

from __future__ import annotations

import enum
import math
import statistics
import time
from collections import deque

NANOSECONDS = 1_000_000_000
LONGEST_PERIOD_NS = 5 * NANOSECONDS  # a longer gap says nothing about the rate of a camera


class StampVerdict(enum.Enum):
    """What a stamp is, compared with those before it. The values are names of counters."""

    OK = "ok"
    ZERO = "zero_stamp"
    DUPLICATE = "duplicate"
    REORDERED = "reordered"
    LATE = "late"
    FUTURE = "future_stamp"
    RESET = "clock_resets"

    @property
    def usable(self) -> bool:
        """Whether the message that carries the stamp may be processed."""
        return self in (StampVerdict.OK, StampVerdict.REORDERED, StampVerdict.RESET)


class StampGate:
    """Judges the stamps of one topic in order of arrival.

    A stamp more than `clock_reset_threshold_s` before the newest is a clock that was set back, a
    smaller step back a late message, which can be put in its place up to `reorder_window_s`. A
    stamp more than `future_tolerance_s` ahead of now is
    refused (0: never), because believing it would make every good stamp after it look late.
    """

    def __init__(
        self,
        clock_reset_threshold_s: float,
        future_tolerance_s: float = 0.0,
        reorder_window_s: float = 0.0,
    ) -> None:
        self._reset_ns = round(clock_reset_threshold_s * NANOSECONDS)
        self._future_ns = round(future_tolerance_s * NANOSECONDS)
        self._window_ns = round(reorder_window_s * NANOSECONDS)
        self._newest_ns: int | None = None
        self._recent_ns: deque[int] = deque(maxlen=64)

    def judge(self, stamp_ns: int, now_ns: int = 0) -> StampVerdict:
        """The verdict on `stamp_ns`; `now_ns` is the node's clock, 0 if unknown."""
        if stamp_ns <= 0:
            return StampVerdict.ZERO
        if self._future_ns and now_ns and stamp_ns - now_ns > self._future_ns:
            return StampVerdict.FUTURE
        behind_ns = 0 if self._newest_ns is None else self._newest_ns - stamp_ns
        if behind_ns > self._reset_ns:
            self._newest_ns = stamp_ns
            self._recent_ns = deque([stamp_ns], self._recent_ns.maxlen)
            return StampVerdict.RESET
        if stamp_ns in self._recent_ns:
            return StampVerdict.DUPLICATE
        if behind_ns > self._window_ns:
            return StampVerdict.LATE
        self._recent_ns.append(stamp_ns)
        if behind_ns > 0:
            return StampVerdict.REORDERED
        self._newest_ns = stamp_ns
        return StampVerdict.OK


class Watchdog:
    """Notices on the steady clock that a frame is overdue, and says which stamp it would have.

    The period is the median of the last nine differences between stamps, so that single gaps do
    not move it and a new rate is learned within five frames. Before the second frame nothing is
    ever overdue. A frame at most `late_s` older than the newest says nothing about the next.
    """

    def __init__(self, periods: float, late_s: float = 0.0) -> None:
        self._periods = periods
        self._late_ns = round(late_s * NANOSECONDS)
        self._differences_ns: deque[int] = deque(maxlen=9)
        self._stamp_ns: int | None = None
        self._arrival_s = 0.0
        self._missed = 0
        self._resting = False

    @property
    def period_ns(self) -> int | None:
        """Estimated period of the frames, None before the second one."""
        return round(statistics.median(self._differences_ns)) if self._differences_ns else None

    @property
    def silence_s(self) -> float:
        """How long (on the stamps' clock) the frames reported missing reach by now."""
        return self._missed * (self.period_ns or 0) / NANOSECONDS

    @property
    def deadline_s(self) -> float | None:
        """Steady time (`time.monotonic()`) at which a frame counts as missing, None: never."""
        period_ns = self.period_ns
        if period_ns is None or self._resting:
            return None
        return self._arrival_s + (self._periods + self._missed) * period_ns / NANOSECONDS

    def observe(self, stamp_ns: int, arrival_s: float) -> float:
        """A frame came at `arrival_s` (steady time); returns seconds since the newest stamp."""
        difference_ns = 0 if self._stamp_ns is None else stamp_ns - self._stamp_ns
        if -self._late_ns <= difference_ns < 0:
            return difference_ns / NANOSECONDS
        if 0 < difference_ns <= LONGEST_PERIOD_NS:
            self._differences_ns.append(difference_ns)
        self._stamp_ns, self._arrival_s = stamp_ns, arrival_s
        self._missed, self._resting = 0, False
        return difference_ns / NANOSECONDS

    def expire(self, now_s: float | None = None) -> int:
        """The deadline passed: count what is missing and return the stamp of the newest."""
        period_ns = self.period_ns
        if period_ns is None:
            raise RuntimeError("expire() before two frames were observed")
        now_s = time.monotonic() if now_s is None else now_s
        elapsed = (now_s - self._arrival_s) * NANOSECONDS / period_ns
        # After a long computation several frames may be overdue at once: report the newest only.
        self._missed = max(self._missed, math.floor(elapsed - self._periods)) + 1
        return self._stamp_ns + self._missed * period_ns

    def rest(self) -> None:
        """Nothing is overdue until the next frame is observed."""
        self._resting = True
