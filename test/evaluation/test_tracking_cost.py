# SPDX-License-Identifier: Apache-2.0
"""The benchmark of time per step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oc_perception import cli
from oc_perception.models.registry import create_model, save_checkpoint


def test_every_row_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(create_model("relational"), tmp_path)
    options = ["--quick", "--objects", "3", "--weights", str(tmp_path), "--json", "-"]
    assert cli.main(["benchmark", "tracking", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    compiled = {"sqair, 50x50, 3 slots, compiled"}  # which takes minutes
    assert set(report["targets_ms"]) - compiled < set(report["rows"])
    assert len(report["rows"]) == 10
    for row in report["rows"].values():
        assert 0 < row["best_ms"] <= row["ms"] <= row["p90_ms"]


def test_no_objects_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", "tracking", "--objects", "0"]) != 0
    assert "--objects" in capsys.readouterr().err
