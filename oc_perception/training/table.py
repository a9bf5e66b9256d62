# SPDX-License-Identifier: Apache-2.0
"""How training goes: one row for each evaluation, and on a terminal one line in between."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

_PROGRESS = {"step": "{:>9}", "loss": "{:>12.5g}", "gradient_norm": "{:>14.4g}"}
_SCORES = {"fg_ari": "{:>8.3f}", "miou": "{:>7.3f}", "mse": "{:>9.5f}"}
_REFRESH_S = 0.5


class Table:
    """Rows go to `report`, the line in between to `stream` if it is a terminal.

    Time left is extrapolated from all steps since `first_step`, evaluations included.
    """

    def __init__(
        self,
        report: Callable[[str], None],
        first_step: int,
        steps: int,
        stream: TextIO | None = None,
    ) -> None:
        self._report, self._first_step, self._steps = report, first_step, steps
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._started_s = self._shown_s = time.monotonic()
        self._has_header = False

    def row(self, entry: Mapping[str, float], scores: Iterable[str]) -> None:
        """One evaluation: what `entry`, a line of the log, says of it; `scores` are the names of
        the scores to show, the same in each row.
        """
        columns = dict(_PROGRESS)
        for name in scores:
            columns[name] = _SCORES.get(name, f"{{:>{max(len(name), 8) + 2}.4g}}")
        if not self._has_header:
            widths = {name: len(form.format(0)) for name, form in columns.items()}
            names = [f"{name.replace('_', ' '):>{width}}" for name, width in widths.items()]
            self._say("".join([*names, f"{'elapsed':>10}{'left':>10}"]))
            self._has_header = True
        cells = [form.format(entry[name]) for name, form in columns.items()]
        times = (_clock(entry["elapsed_s"]), _clock(self._left_s(entry["step"])))
        self._say("".join([*cells, *(f"{text:>10}" for text in times)]))

    def advance(self, step: int) -> None:
        """Show on a terminal that `step` steps are done."""
        if self._terminal and time.monotonic() - self._shown_s >= _REFRESH_S:
            self._shown_s = time.monotonic()
            rate = (step - self._first_step) / (self._shown_s - self._started_s)
            line = f"step {step}/{self._steps}, {rate:.3g}/s, {_clock(self._left_s(step))} left"
            self._stream.write(f"\r{line:<79}")
            self._stream.flush()

    def _left_s(self, step: int) -> float:
        spent_s = time.monotonic() - self._started_s
        return spent_s / (step - self._first_step) * (self._steps - step)

    def _say(self, line: str) -> None:
        if self._terminal:
            self._stream.write(f"\r{'':<79}\r")
            self._stream.flush()
        self._report(line)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
