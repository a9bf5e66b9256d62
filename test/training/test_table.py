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
    table.row({"step": 300, "elapsed_s": 3700.0, **entry}, ["fg_ari", "miou", "mse"])
    lines = screen.getvalue().split("\r")
    assert lines[2].isspace() and lines[3].split()[0] == "step"
    assert lines[-1].split()[-2:] == ["1:01:40", "0:00:05"]


def test_a_log_gets_rows_only():
    log = io.StringIO()
    table = Table(log.write, 0, 10, log)
    table.advance(5)
    assert log.getvalue() == ""


def test_scores_of_any_name_are_aligned_below_it():
    lines = []
    table = Table(lines.append, 0, 10, io.StringIO())
    entry = {"step": 1, "loss": 1.0, "gradient_norm": 2.0, "elapsed_s": 3.0, "ari": 0.5}
    table.row({**entry, "ade": -1.23456e-7, "coverage_at_95": 0.5}, ["ade", "coverage_at_95"])
    header, row = lines
    assert "ari" not in header and row.index("-1.235e-07") + 10 == header.index("ade") + 3
    assert row.index(" 0.5") + 4 == header.index("coverage at 95") + 14
