# SPDX-License-Identifier: Apache-2.0
"""The one thread of a node that computes and publishes; callbacks only hand over the newest."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Worker(Generic[Item]):
    """Calls `handle(item)` for each item in order, or `overdue()` when `deadline()` passes.

    At most `capacity` items wait; a newer one pushes out the oldest, which `dropped()` counts. A
    late one does not: it is let go itself where there is no room.
    `deadline()` is steady time in seconds, None for never. An exception of `handle` or `overdue`
    goes to `failed` and the next item is handled as if nothing had happened. All callbacks but
    `dropped` run on the worker's thread.
    """

    def __init__(
        self,
        handle: Callable[[Item], None],
        overdue: Callable[[], None],
        deadline: Callable[[], float | None],
        dropped: Callable[[], None],
        failed: Callable[[Exception], None],
        capacity: int = 1,
    ) -> None:
        self._handle, self._overdue, self._deadline = handle, overdue, deadline
        self._dropped, self._failed = dropped, failed
        self._waiting: deque[Item] = deque()
        self._capacity = capacity
        self._changed = threading.Condition()
        self._running = True
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def put(self, item: Item, late: bool = False) -> None:
        """Hand over an item; returns at once."""
        with self._changed:
            full = len(self._waiting) >= self._capacity
            if full and not late:
                self._waiting.popleft()
            if not full or not late:
                self._waiting.append(item)
            self._changed.notify()
        if full:
            self._dropped()

    def stop(self) -> None:
        """End the thread after the item it is working on; waiting items are let go."""
        with self._changed:
            self._running = False
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                overdue = self._wait()
                if not self._running:
                    return
                item = None if overdue else self._waiting.popleft()
            try:
                if overdue:
                    self._overdue()
                else:
                    self._handle(item)
            except Exception as error:  # a robot's perception must outlive one bad frame
                self._failed(error)

    def _wait(self) -> bool:
        """Sleep until there is an item (False), a deadline passed (True) or the end has come."""
        while self._running and not self._waiting:
            deadline_s = self._deadline()
            remaining_s = None if deadline_s is None else deadline_s - time.monotonic()
            if remaining_s is not None and remaining_s <= 0:
                return True
            self._changed.wait(remaining_s)
        return False
