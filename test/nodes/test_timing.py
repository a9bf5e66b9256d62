# SPDX-License-Identifier: Apache-2.0
"""Stamps, the estimated period, and the worker that sleeps until there is something to do."""

from __future__ import annotations

import threading
import time

import pytest

from oc_perception.nodes.timing import StampGate, StampVerdict, Watchdog
from oc_perception.nodes.worker import Worker

SECOND = 10**9
PERIOD = SECOND // 20


def test_the_gate_tells_late_from_reset_and_refuses_without_forgetting() -> None:
    gate = StampGate(clock_reset_threshold_s=1.0, future_tolerance_s=0.5)
    now = 1000 * SECOND
    verdicts = [
        (now, StampVerdict.OK),
        (now, StampVerdict.DUPLICATE),
        (0, StampVerdict.ZERO),
        (now - SECOND, StampVerdict.LATE),
        (now + SECOND, StampVerdict.FUTURE),
        (now + SECOND // 2, StampVerdict.OK),
        (now - SECOND, StampVerdict.RESET),
        (now - SECOND + 1, StampVerdict.OK),
    ]
    for stamp_ns, expected in verdicts:
        assert gate.judge(stamp_ns, now) == expected


def test_the_gate_lets_in_what_is_late_by_less_than_the_window_once() -> None:
    gate = StampGate(clock_reset_threshold_s=1.0, reorder_window_s=0.2)
    now = 1000 * SECOND
    verdicts = [
        (now, StampVerdict.OK),
        (now - SECOND // 5, StampVerdict.REORDERED),
        (now - SECOND // 5, StampVerdict.DUPLICATE),
        (now - SECOND // 5 - 1, StampVerdict.LATE),
        (now - 1, StampVerdict.REORDERED),
        (now, StampVerdict.DUPLICATE),
        (now + 1, StampVerdict.OK),
        (now - 2 * SECOND, StampVerdict.RESET),
        (now - 1, StampVerdict.OK),
    ]
    for stamp_ns, expected in verdicts:
        assert gate.judge(stamp_ns) == expected
        assert expected.usable == (expected.value in ("ok", "reordered", "clock_resets"))


def test_without_a_clock_no_stamp_is_in_the_future() -> None:
    assert StampGate(1.0, 0.5).judge(10**18, now_ns=0) == StampVerdict.OK


def feed(watchdog: Watchdog, stamps: list[int]) -> None:
    for stamp_ns in stamps:
        watchdog.observe(stamp_ns, stamp_ns / SECOND)


def test_nothing_is_overdue_before_the_second_frame() -> None:
    watchdog = Watchdog(1.5)
    assert watchdog.deadline_s is None
    feed(watchdog, [SECOND])
    assert watchdog.deadline_s is None
    with pytest.raises(RuntimeError):
        watchdog.expire()


def test_frames_are_overdue_after_so_many_periods_and_then_each_period() -> None:
    watchdog = Watchdog(1.5)
    feed(watchdog, [SECOND + i * PERIOD for i in range(5)])
    last_ns = SECOND + 4 * PERIOD
    for n in range(1, 6):
        due_s = (last_ns + (n + 0.5) * PERIOD) / SECOND
        assert watchdog.deadline_s == pytest.approx(due_s)
        assert watchdog.expire(due_s) == last_ns + n * PERIOD
    watchdog.rest()
    assert watchdog.deadline_s is None
    watchdog.observe(last_ns + 6 * PERIOD, last_ns / SECOND)
    assert watchdog.deadline_s is not None


def test_after_a_long_computation_only_the_newest_missing_frame_is_reported() -> None:
    watchdog = Watchdog(1.5)
    feed(watchdog, [SECOND + i * PERIOD for i in range(5)])
    last_ns = SECOND + 4 * PERIOD
    assert watchdog.expire((last_ns + 7.6 * PERIOD) / SECOND) == last_ns + 7 * PERIOD


def test_gaps_do_not_move_the_period_and_a_new_rate_is_learned_in_five_frames() -> None:
    watchdog = Watchdog(1.5)
    stamps = [SECOND + i * PERIOD for i in range(20)]
    feed(watchdog, stamps)
    stamps = [stamps[-1] + SECOND]
    feed(watchdog, stamps)
    assert watchdog.period_ns == PERIOD
    feed(watchdog, [stamps[-1] + i * 4 * PERIOD for i in range(1, 6)])
    assert watchdog.period_ns == 4 * PERIOD


def test_a_late_frame_does_not_change_when_the_next_is_due() -> None:
    watchdog = Watchdog(1.5, late_s=1.0)
    feed(watchdog, [SECOND + i * PERIOD for i in range(5)])
    due_s = watchdog.deadline_s
    watchdog.observe(SECOND + 2 * PERIOD + 1, due_s - 0.01)
    assert (watchdog.deadline_s, watchdog.period_ns) == (due_s, PERIOD)
    assert watchdog.expire(due_s) == SECOND + 5 * PERIOD
    watchdog.observe(SECOND // 10, due_s)  # a clock that was set back
    assert watchdog.expire(due_s + 1.5 * PERIOD / SECOND) == SECOND // 10 + PERIOD


def run_worker(handle, overdue=lambda: None, deadline=lambda: None, capacity=1):
    dropped, failed = [], []
    worker = Worker(handle, overdue, deadline, lambda: dropped.append(1), failed.append, capacity)
    return worker, dropped, failed


def test_the_worker_keeps_the_newest_and_counts_the_rest() -> None:
    handled, entered, gate = [], threading.Event(), threading.Event()

    def handle(item: int) -> None:
        handled.append(item)
        entered.set()
        assert gate.wait(10)

    worker, dropped, _ = run_worker(handle)
    worker.put(0)
    assert entered.wait(10)
    for item in range(1, 6):
        worker.put(item)
    entered.clear()
    gate.set()
    assert entered.wait(10)
    worker.stop()
    assert handled == [0, 5]
    assert len(dropped) == 4


def test_a_late_item_does_not_push_out_a_newer_one() -> None:
    handled, entered, gate = [], threading.Event(), threading.Event()

    def handle(item: int) -> None:
        handled.append(item)
        entered.set()
        assert gate.wait(10)

    worker, dropped, _ = run_worker(handle)
    worker.put(0)
    assert entered.wait(10)
    worker.put(2)
    worker.put(1, late=True)
    entered.clear()
    gate.set()
    assert entered.wait(10)
    worker.put(3, late=True)
    deadline_s = time.monotonic() + 10
    while len(handled) < 3 and time.monotonic() < deadline_s:
        time.sleep(0.001)
    worker.stop()
    assert handled == [0, 2, 3]
    assert len(dropped) == 1


def test_the_worker_keeps_order_within_its_capacity_and_outlives_exceptions() -> None:
    handled, done = [], threading.Event()

    def handle(item: int) -> None:
        if item == 1:
            raise ValueError("one")
        handled.append(item)
        if item == 3:
            done.set()

    worker, dropped, failed = run_worker(handle, capacity=4)
    for item in range(4):
        worker.put(item)
    assert done.wait(10)
    worker.stop()
    assert handled == [0, 2, 3]
    assert not dropped
    assert [str(error) for error in failed] == ["one"]


def test_the_worker_wakes_at_the_deadline_and_not_before() -> None:
    due_s, woken = time.monotonic() + 0.05, []
    done = threading.Event()

    def overdue() -> None:
        woken.append(time.monotonic())
        done.set()

    worker, _, _ = run_worker(lambda item: None, overdue, lambda: None if woken else due_s)
    assert done.wait(10)
    worker.stop()
    assert len(woken) == 1
    assert woken[0] >= due_s
