# SPDX-License-Identifier: Apache-2.0
"""`oc-perception benchmark blackout` as its users call it."""

import json

import pytest
from watchers import Watcher

from oc_perception.cli import main
from oc_perception.evaluation.blackout_run import TRACKERS
from oc_perception.models.registry import create_model, save_checkpoint
from oc_perception.tracking import sqair

COMMAND = ["benchmark", "blackout", "--quick"]
KEYS = ("skill", "fde", "fde_oracle", "fde_kalman_walls", "id_recovered", "id_swapped", "id_new",
        "hota_through", "coverage_90", "anees", "relational_gain")  # fmt: skip


def report_of(capsys, *words):
    assert main([*COMMAND, *words, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_report_maps_blind_frames_to_numbers_with_intervals(capsys):
    report = report_of(capsys, "--tracker", "kalman", "--seed", "3")
    for key in KEYS:
        assert list(report[key]) == ["1", "2", "5", "10", "20", "40"]
    for key in KEYS[:2] + KEYS[4:-1]:
        for column, (low, high) in report[f"{key}_interval"].items():
            assert low <= report[key][column] <= high
    assert set(report["relational_gain"].values()) == {None}
    identities = (report[f"id_{name}"]["5"] for name in ("recovered", "swapped", "new"))
    assert 0 <= sum(identities) <= 1
    assert report["fde_oracle"]["10"] < report["fde_kalman_walls"]["10"] < report["fde"]["10"]
    assert set(report["trackers"]) == {"kalman", "kalman_walls", "oracle"}
    assert report["seed"] == 3 and report["command"] and report["machine"]
    again = report_of(capsys, "--tracker", "kalman", "--seed", "3")
    differing = {key for key in report if report[key] != again[key]}
    assert differing <= {"seconds", "command", "commit"}


def test_a_table_has_every_tracker_whose_weights_are_there_and_figures(tmp_path, capsys):
    words = ["--tracker", "hold", "--table", "--sequences", "2", "--lengths", "2,10"]
    weights = ["--weights", str(tmp_path / "none")]
    assert main([*COMMAND, *words, *weights, "--figures", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    for name in set(TRACKERS) - {"relational", "nonrelational", "sqair"}:
        assert name in shown.out
    assert "sqair" not in shown.out + shown.err  # which needs pictures
    assert "without relational" in shown.err and "without nonrelational" in shown.err
    for figure in ("error", "reliability", "identity", "film"):
        assert (tmp_path / f"{figure}.png").stat().st_size > 5000


def test_what_relations_gain_needs_both_checkpoints(tmp_path, capsys):
    weights = tmp_path / "relational_toy"
    size = {"hidden": 8, "memory": 2}
    words = ["--tracker", "relational", "--lengths", "2", "--sequences", "1"]
    words += ["--weights", str(weights)]
    save_checkpoint(create_model("relational", **size), weights)
    assert report_of(capsys, *words)["relational_gain"] == {"2": None}
    save_checkpoint(
        create_model("relational", **size, relations=False), tmp_path / "nonrelational_toy"
    )
    report = report_of(capsys, *words)
    fde = {name: scores["fde"]["2"] for name, scores in report["trackers"].items()}
    saved = 1 - fde["relational"] / fde["nonrelational"]
    assert report["relational_gain"]["2"] == pytest.approx(saved, abs=1e-4)
    assert report["fde"]["2"] == fde["relational"]


def test_sqair_is_measured_by_the_pictures_that_discovery_sees(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sqair, "_load", lambda config: Watcher(slots=config.slots))
    words = ["--level", "p", "--tracker", "sqair", "--sqair-weights", str(tmp_path)]
    words += ["--lengths", "2,5", "--objects", "2"]
    report = report_of(capsys, *words)
    assert set(report["trackers"]) == {"sqair", "kalman_walls", "oracle"}
    assert report["sqair_weights"] == str(tmp_path) and report["id_recovered"]["2"] == 1
    own = report["trackers"]["sqair"]
    assert own["fde"]["2"] < 0.5 and own["fg_ari_retained"]["2"] > 0.5
    from_bags = report_of(capsys, *words, "--level", "b")
    assert from_bags["trackers"]["sqair"] == own


def test_many_blackouts_have_a_column_for_all(capsys):
    report = report_of(capsys, "--tracker", "kalman_walls", "--schedule", "burst")
    assert list(report["fde"]) == ["1", "2", "5", "10", "20", "40", "all"]
    assert report["id_recovered"]["all"] is not None
    assert report["hota_through"]["all"] is not None and report["hota_through"]["5"] is None


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tracker", "relational", "--weights", "nowhere"], "no checkpoint nowhere"),
        (["--tracker", "sqair"], "--level p or b"),
        (["--tracker", "sqair", "--level", "p", "--sqair-weights", "nowhere"], "--sqair-weights"),
        (["--tracker", "kalman", "--lengths", "5,x"], "--lengths 5,x"),
        (["--tracker", "kalman", "--lengths", "5,2"], "ascending"),
        (["--tracker", "kalman", "--objects", "500"], "500"),
        (["--tracker", "kalman", "--workers", "0"], "--workers"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(words, complaint, capsys):
    assert main([*COMMAND, *words]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
