# SPDX-License-Identifier: Apache-2.0
"""Progress says how far it is, and how long it will take yet."""

import io

import pytest

from oc_perception import progress
from oc_perception.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("stream", "lines"), [(Terminal(), 1), (io.StringIO(), 4)])
def test_a_terminal_shows_one_line_and_a_log_one_per_interval(clock, stream, lines):
    bar = Progress("frames", 300, stream)
    for _ in range(300):
        clock[0] += 0.125  # exact in binary
        bar.advance()
    assert bar.finish() == pytest.approx(37.5)
    text = stream.getvalue()
    assert text.count("\n") == lines
    assert text.rstrip().endswith("frames: 300/300 (8/s)")
    assert "frames: 1" in text and ", 0:28 left)" in text


def test_nothing_done_yet_promises_nothing(clock):
    stream = io.StringIO()
    Progress("frames", 0, stream).finish()
    assert stream.getvalue() == "frames: 0/0 (0/s)\n"
