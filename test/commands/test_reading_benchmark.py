# SPDX-License-Identifier: Apache-2.0
"""oc-perception benchmark reading: every form is read, and memory does not grow."""

import json

from oc_perception.cli import main


def test_a_quick_benchmark_reports_speed_and_memory(tmp_path, capsys):
    report = tmp_path / "report.json"
    assert main(["benchmark", "reading", "--quick", "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert {row["frames"] for row in found["speed"].values()} == {10}
    assert len(found["speed"]) == 4
    for row in found["memory"].values():
        assert [row[minutes]["frames"] for minutes in row if minutes != "growth_mb"] == [30, 60]
        assert row["growth_mb"] < 10
    assert "frames/s" in capsys.readouterr().out


def test_impossible_lengths_are_refused(capsys):
    assert main(["benchmark", "reading", "--frames", "1"]) == 2
    assert "--frames must be at least 2" in capsys.readouterr().err
