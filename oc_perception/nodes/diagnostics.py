# SPDX-License-Identifier: Apache-2.0
"""One status per node and second: rates, latencies, counters, and what to do about trouble."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from oc_perception.types import SensorState

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
PERIOD_S = 1.0
EVENT_MEMORY_S = 5.0
RATE_WINDOW_S = 2.0
COUNTERS = (
    "dropped",
    "lost",
    "malformed",
    "late",
    "reordered",
    "duplicate",
    "clock_resets",
    "zero_stamp",
    "future_stamp",
    "gaps",
    "format_changes",
    "failures",
)
SENSOR_TROUBLE = {
    SensorState.STALE: "No frame arrived in time: check that the camera driver runs and its link.",
    SensorState.BLACK: "The camera sends black frames: check lens cap, exposure and lighting.",
    SensorState.FROZEN: "The camera repeats one frame bit by bit: restart its driver.",
    SensorState.CORRUPT: "The newest frame cannot be used: check the camera driver and its link.",
}


def frame_loss_cure() -> str:
    """What to do when frames get lost between two processes."""
    if not os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE"):
        return (
            "FASTDDS_DEFAULT_PROFILES_FILE is not set, so that an image does not fit into the "
            "shared-memory segment: run `. ./activate`, or set it to the package's "
            "config/fastdds.xml, for all processes."
        )
    return (
        "The Fast DDS profile is loaded here: check that the publisher's process loads it too, "
        "the load of the machine, and the network if the camera is on another one."
    )


class Diagnostics:
    """Collects from any thread, publishes on the executor's."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._name = node.get_fully_qualified_name().lstrip("/")
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._lock = threading.Lock()
        self._counters = Counter(dict.fromkeys(COUNTERS, 0))
        self._events: dict[str, tuple[float, bytes, str]] = {}
        self._conditions: dict[str, tuple[bytes, str]] = {}
        self._arrivals: deque[float] = deque(maxlen=1000)
        self._departures: deque[float] = deque(maxlen=1000)
        self._latencies_s: deque[float] = deque(maxlen=1000)
        self._values: dict[str, str] = {}
        self.before_publishing: Callable[[], None] = lambda: None
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(PERIOD_S, self.publish, clock=steady)

    def count(self, counter: str, amount: int = 1) -> None:
        """Add to a counter; not a reason to warn."""
        with self._lock:
            self._counters[counter] += amount

    def event(self, counter: str, message: str, level: bytes = WARN, amount: int = 1) -> None:
        """Count something that went wrong once; `message` is shown for some seconds and logged."""
        now_s = time.monotonic()
        with self._lock:
            self._counters[counter] += amount
            previous_s = self._events.get(counter, (-math.inf,))[0]
            self._events[counter] = (now_s, level, message)
        if now_s - previous_s > EVENT_MEMORY_S:
            self._node.get_logger().warning(message)

    def condition(self, name: str, message: str | None, level: bytes = WARN) -> None:
        """Set a lasting condition, or end it with None."""
        with self._lock:
            if message is None:
                self._conditions.pop(name, None)
            else:
                self._conditions[name] = (level, message)

    def sensor(self, state: SensorState) -> None:
        """What the sensor looks like since the newest step."""
        self.value("sensor_state", state.name)
        self.condition("sensor", SENSOR_TROUBLE.get(state))

    def value(self, name: str, text: object) -> None:
        """Show a value beside the counters."""
        with self._lock:
            self._values[name] = str(text)

    def arrived(self) -> None:
        """A message came in."""
        with self._lock:
            self._arrivals.append(time.monotonic())

    def published(self, latency_s: float | None = None) -> None:
        """A result went out, `latency_s` after the stamp of its image."""
        with self._lock:
            self._departures.append(time.monotonic())
            if latency_s is not None:
                self._latencies_s.append(latency_s)

    @property
    def silence_s(self) -> float | None:
        """Seconds since the last arrival, None before the first."""
        with self._lock:
            return time.monotonic() - self._arrivals[-1] if self._arrivals else None

    def publish(self) -> None:
        """Send the status now."""
        self.before_publishing()
        message = DiagnosticArray(status=[self.status()])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)

    def status(self) -> DiagnosticStatus:
        """The status as a message: the worst thing first, all values behind it."""
        now_s, silence_s = time.monotonic(), self.silence_s
        with self._lock:
            events = [e[1:] for e in self._events.values() if now_s - e[0] < EVENT_MEMORY_S]
            troubles = sorted([*self._conditions.values(), *events], key=lambda t: t[0])[::-1]
            latencies_ms = np.array(self._latencies_s) * 1e3
            values = {
                "rate_in_hz": f"{_rate(self._arrivals, now_s):.1f}",
                "rate_out_hz": f"{_rate(self._departures, now_s):.1f}",
                "latency_p50_ms": _percentile(latencies_ms, 50),
                "latency_p99_ms": _percentile(latencies_ms, 99),
                "last_frame_age_s": "none yet" if silence_s is None else f"{silence_s:.3f}",
                **{name: str(count) for name, count in self._counters.items()},
                **self._values,
                "memory_mb": f"{_resident_bytes() / 1e6:.0f}",
            }
        return DiagnosticStatus(
            level=troubles[0][0] if troubles else OK,
            name=self._name,
            message=" | ".join(dict.fromkeys(text for _, text in troubles)) or "OK",
            hardware_id=self._name,
            values=[KeyValue(key=key, value=value) for key, value in values.items()],
        )


def _rate(times_s: deque[float], now_s: float) -> float:
    return sum(now_s - t < RATE_WINDOW_S for t in times_s) / RATE_WINDOW_S


def _percentile(values: np.ndarray, q: float) -> str:
    return f"{np.percentile(values, q):.2f}" if values.size else "none yet"


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
