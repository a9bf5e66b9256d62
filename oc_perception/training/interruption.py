# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and its like between two training steps, never within one."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

_NOTICE = b"\nstopping after this step; once more to stop at once\n"


class HeldSignals:
    """Within this context the first signal that would raise an exception only sets `pending`.

    A second one acts at once, as before. Ignored signals and default actions stay as they are.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> HeldSignals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                handler = signal.getsignal(number) if number else None
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._hold)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def release(self) -> None:
        """Do now what the pending signal would have done."""
        if self.pending is not None:
            self._handlers[self.pending](self.pending, None)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self.pending = number
        self._restore()
        os.write(2, _NOTICE)  # print() must not be used here: it may be what was interrupted

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
