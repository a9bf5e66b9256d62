# SPDX-License-Identifier: Apache-2.0
"""Work beside the main thread, in order: decoding, compressing and encoding release Python's lock,
so they take time of another core. What is done, and in which order, does not depend on it.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_AHEAD, _BEHIND = 4, 8


def ahead(items: Iterable[T], depth: int = _AHEAD) -> Iterator[T]:
    """`items`, made on a thread that is at most `depth` of them ahead.

    An exception of theirs is raised in its place. The thread ends with the iteration, also when
    that is given up.
    """
    made: queue.Queue[tuple[bool, object]] = queue.Queue(depth)
    given_up = threading.Event()

    def put(ended: bool, item: object) -> None:
        while not given_up.is_set():
            try:
                made.put((ended, item), timeout=0.1)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(False, item)
                if given_up.is_set():
                    return
            put(True, None)
        except BaseException as error:  # raised where it is waited for
            put(True, error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            ended, item = made.get()
            if not ended:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        given_up.set()
        thread.join()


class Behind:
    """A context manager that runs tasks one after the other on a thread, at most `depth` behind.

    A task's exception is raised by the next `add`, or on exit. After an exception in the block the
    tasks that wait are dropped.
    """

    def __init__(self, depth: int = _BEHIND) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: deque[Future[None]] = deque()
        self._depth = depth

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self._wait(0)

    def add(self, task: Callable[..., None], *arguments: object) -> None:
        """Run `task(*arguments)` when those before are done."""
        self._wait(self._depth - 1)
        self._pending.append(self._thread.submit(task, *arguments))

    def _wait(self, most: int) -> None:
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            self._pending.popleft().result()
