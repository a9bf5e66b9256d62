# SPDX-License-Identifier: Apache-2.0
"""One line on stderr that says how far a long command is, and how long it will take yet."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """`advance()` once per item. A terminal shows one line, a log gets one every `log_s`."""

    def __init__(
        self, label: str, total: int, stream: TextIO | None = None, log_s: float = 10.0
    ) -> None:
        self._label, self._total = label, total
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._every_s = 0.2 if self._terminal else log_s
        self._done = 0
        self._start_s = self._shown_s = time.monotonic()

    def advance(self) -> None:
        """One item more is done."""
        self._done += 1
        if time.monotonic() - self._shown_s >= self._every_s:
            self._show()

    def finish(self) -> float:
        """Show the final state and end the line; returns the seconds it took."""
        self._show()
        if self._terminal:
            self._stream.write("\n")
        return time.monotonic() - self._start_s

    def _show(self) -> None:
        self._shown_s = time.monotonic()
        elapsed_s = self._shown_s - self._start_s
        rate = self._done / elapsed_s if elapsed_s else 0.0
        left = ""
        if 0 < self._done < self._total and rate:
            minutes, seconds = divmod(round((self._total - self._done) / rate), 60)
            left = f", {minutes}:{seconds:02d} left"
        line = f"{self._label}: {self._done}/{self._total} ({rate:.0f}/s{left})"
        self._stream.write(f"\r{line:<79}" if self._terminal else line + "\n")
        self._stream.flush()
