# SPDX-License-Identifier: Apache-2.0
"""What a terminal shows while training runs."""

import io

from oc_perception.training.table import Table


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_steps_in_between_and_rows_replace_them(monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr("oc_perception.training.table.time.monotonic", lambda: now_s[0])
    screen = Terminal()
    table = Table(lambda line: screen.write(line + "\n"), 100, 400, screen)
    now_s[0] = 10.0
    table.advance(200)
    assert screen.getvalue().strip() == "step 200/400, 10/s, 0:00:20 left"
    table.advance(201)  # too soon for another line
    entry = {"loss": 1.0, "gradient_norm": 2.0, "fg_ari": 0.5, "miou": 0.4, "mse": 0.01}
    table.row({"step": 300, "elapsed_s": 3700.0, **entry})
    lines = screen.getvalue().split("\r")
    assert lines[2].isspace() and lines[3].split()[0] == "step"
    assert lines[-1].split()[-2:] == ["1:01:40", "0:00:05"]


def test_a_log_gets_rows_only():
    log = io.StringIO()
    table = Table(log.write, 0, 10, log)
    table.advance(5)
    assert log.getvalue() == ""
