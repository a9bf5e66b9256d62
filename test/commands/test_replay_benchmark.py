# SPDX-License-Identifier: Apache-2.0
"""The benchmark of replay works, and tells what it measured."""

import json

from oc_perception.cli import main


def test_a_quick_benchmark_reports_speed_and_memory(tmp_path, capsys):
    report = tmp_path / "report.json"
    assert main(["benchmark", "replay", "--quick", "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert set(found["speed"]) >= {"everything", "without film and self-test"}
    for timing in found["speed"].values():
        assert timing["bag_s_per_wall_s"] > 0
        assert set(timing["stages"]) >= {"read", "discovery", "tracking", "write"}
    assert len(found["memory"]) == 2 and abs(found["growth_mb"]) < 50
    assert "real time" in capsys.readouterr().out


def test_a_length_of_nothing_is_an_error(capsys):
    assert main(["benchmark", "replay", "--minutes", "0"]) == 2
    assert "above 0" in capsys.readouterr().err
