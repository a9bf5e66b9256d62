# SPDX-License-Identifier: Apache-2.0
"""The benchmark of models that discover and track over their training seeds."""

import json

import cv2
import numpy as np
import pytest
import torch
import yaml

from oc_perception.cli import main
from oc_perception.evaluation.video import examine_video
from oc_perception.evaluation.videos_rows import Asked, Group, Row, shown, tables
from oc_perception.models.registry import create_model, load_model, save_checkpoint

SIZES = {"frame_size": [16, 16], "glimpse_size": 4, "hidden_size": 8, "what_size": 4,
         "num_slots": 2, "num_frames": 3, "particles": 2}  # fmt: skip
FRAMES = (4, 6, 9)


@pytest.fixture
def finished(tmp_path):
    """Makes untrained models that lie where finished runs of `oc-perception train` leave them."""

    def make(model, seed, world="mini_shapes", complete=True, **training):
        directory = tmp_path / f"{model}_s{seed}{''.join(map(str, training.values()))}"
        torch.manual_seed(seed)
        save_checkpoint(create_model(model, **SIZES), directory)
        recipe = {"model": model, "world": world, "world_config": {}, "model_config": SIZES,
                  "training": {"steps": 2, "seed": seed, **training}}  # fmt: skip
        (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        if complete:
            (directory / "metrics.json").write_text(json.dumps({"steps": 2, "cpu_s": 60.5}))
        return str(directory)

    return make


def benchmark(*words):
    return main(["benchmark", "videos", *words])


def test_each_seed_is_scored_on_the_same_sequences_and_compared_with_air(
    finished, tmp_path, capsys
):
    runs = [finished(model, seed) for model in ("air", "sqair") for seed in (0, 1)]
    pictures = [tmp_path / "scores.png", tmp_path / "film.png"]
    words = ["--quick", "--frames", *map(str, FRAMES), "--json", str(tmp_path / "report.json"),
             "--figure", str(pictures[0]), "--strip", str(pictures[1])]  # fmt: skip
    assert benchmark(*runs, *words) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    text = capsys.readouterr().out

    expected = {}
    for name in runs:
        model = load_model(name, "cpu", "video")
        model.num_frames = FRAMES[0]
        expected[name] = examine_video(model, "mini_shapes", {}, 8, 3_000_017)
    air, sqair = report["recipes"]
    for recipe, names in ((air, runs[:2]), (sqair, runs[2:])):
        assert [run["run"] for run in recipe["runs"]] == names
        assert [run["seed"] for run in recipe["runs"]] == [0, 1]
        assert [run["scores"]["4"] for run in recipe["runs"]] == [expected[n] for n in names]
        assert recipe["runs"][0]["training"] == {"steps": 2, "cpu_s": 60.5}
        assert len(recipe["runs"][1]["scores"]["9"]["counting_by_frame"]) == 9
        scores = [expected[name]["counting_accuracy"] for name in names]
        assert recipe["summary"]["4"]["worst"]["counting_accuracy"] == min(scores)

    many = examine_video(model, "mini_shapes", {}, 8, 3_000_017, particles=8)
    evidence = sqair["runs"][1]["evidence"]
    assert evidence["log_evidence"] == many["log_evidence"]
    assert evidence["encoder_kl"] == pytest.approx(many["log_evidence"] - many["elbo"])

    rows = {row["name"]: row for row in sqair["rows"]}
    divergence = np.array([expected[name]["kl"] for name in runs])
    ratio = rows["KL over KL of AIR"]
    assert ratio["seeds"] == pytest.approx(divergence[2:] / divergence[:2].mean())
    assert ratio["worst"] == max(ratio["seeds"]) and ratio["asked"] == "<= 0.7"
    counted = np.array([expected[name]["counting_accuracy"] for name in runs])
    differences = rows["- minus AIR, same frames"]["seeds"]
    assert differences == pytest.approx(counted[2:] - counted[:2].mean())
    longer = [run["scores"]["9"]["counting_accuracy"] for run in sqair["runs"]]
    assert rows["counting accuracy, T = 9"]["seeds"] == longer
    assert {"command", "commit", "machine"} <= report.keys()
    assert report["evidence"] == {"scenes": 8, "particles": 8}

    line = next(line for line in text.splitlines() if line.startswith("KL over KL of AIR"))
    assert line.split("<= 0.7")[1].split()[:2] == [f"{value:.4f}" for value in ratio["seeds"]]
    scores, film = (cv2.imread(str(picture)) for picture in pictures)
    assert scores.shape == (420, 1440, 3) and scores.std() > 10
    assert film.shape[1] == 52 + 12 * 100 and (film[20:116] == 255).any()


def test_recipes_of_one_model_are_told_apart_by_the_names_of_their_runs(finished, capsys):
    runs = [finished("air", 0), finished("air", 1, learning_rate=0.1), finished("air", 1)]
    words = ["--quick", "--frames", "3", "--json", "-"]
    assert benchmark(*runs, *words) == 0
    groups = json.loads(capsys.readouterr().out)["recipes"]
    assert [group["label"] for group in groups] == ["AIR air_s0", "AIR air_s10.1"]
    assert [[run["seed"] for run in group["runs"]] for group in groups] == [[0, 1], [1]]


@pytest.mark.parametrize(
    ("make", "words", "reason"),
    [
        (lambda f: [f("air", 0), f("sqair", 0, complete=False)], [], "has no metrics.json"),
        (lambda f: [f("air", 0), f("sqair", 0, world="digits")], [], "choose one by --world"),
        (lambda f: [f("air", 0)], ["--strip", "film.png"], "--strip needs a run of a model that"),
        (lambda f: [f("air", 0)], ["--particles", "0"], "must be at least 1"),
        (lambda f: [f("air", 0), f("air", 0) + "/../air_s0"], [], "have the same training.seed"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_its_reason(make, words, reason, finished, capsys):
    assert benchmark(*make(finished), "--quick", "--frames", "3", *words) == 2
    assert reason in capsys.readouterr().err


def test_a_row_tells_what_is_asked_and_how_many_seeds_reach_it():
    high, low = Asked(0.9), Asked(8, below=True, strictly=True)
    assert (str(high), str(low), str(Asked())) == (">= 0.9", "< 8", "-")
    row = Row("accuracy", high, [0.9, 1.0, 0.5])
    assert (row.mean, row.worst) == (pytest.approx(0.8), 0.5)
    assert row.as_dict()["met"] == 2
    row = Row("switches", low, [8.0, 0.0])
    assert (row.worst, row.as_dict()["met"]) == (8.0, 1)
    assert Row("reported", Asked(), [1.0, 2.0]).as_dict()["met"] is None
    missing = Row("accuracy", high, [None, 1.0])
    assert (missing.mean, missing.worst, missing.as_dict()["met"]) == (1.0, None, 1)


SCORES = {
    "counting_accuracy": 0.96, "counting_accuracy_crowded": 0.9, "kl": 30.0, "kl_empty": 12.0,
    "id_switches_per_100": 3.0, "discoveries_over_ideal": 1.8, "discoveries_later": 0.01,
    "forecast_ade_3": 0.06, "forecast_frozen_3": 0.1, "forecast_velocity_3": 0.05,
    "forecast_velocity_truth_3": 0.04, "forecast_constant_count": 0.7, "log_likelihood_gap": 9.0,
}  # fmt: skip


def rows_of(world):
    longer = {**SCORES, "counting_accuracy": 0.9}
    evidence = {"log_evidence_gap": 20.0, "encoder_kl": 5.0}
    run = {"seed": 4, "scores": {"10": SCORES, "30": longer}, "evidence": evidence}
    groups = [Group(name.upper(), name, [run]) for name in ("sqair", "air")]
    (group, rows), _ = tables(groups, world, (10, 30))
    return group, rows


@pytest.mark.parametrize(
    ("world", "reached"),
    [
        ("mini_shapes", {"counting accuracy, T = 10": 1, "- minus AIR, same frames": 0,
                         "KL over KL of AIR": 0, "discoveries over ideal": 1,
                         "- drop from T = 10": None}),
        ("digits", {"counting accuracy, T = 10": 0, "- minus AIR, same frames": 0,
                    "KL over KL of AIR": 0, "discoveries over ideal": 0,
                    "- drop from T = 10": 0}),
    ],
)  # fmt: skip
def test_more_is_asked_on_worlds_of_full_size(world, reached):
    _, rows = rows_of(world)
    assert {row.name: row.as_dict()["met"] for row in rows if row.name in reached} == reached


def test_forecasts_are_told_in_shares_of_those_of_simple_rules():
    group, rows = rows_of("mini_shapes")
    values = {row.name: row.values[0] for row in rows}
    assert values["- over frozen, own places"] == pytest.approx(0.6)
    assert values["- over frozen, true places"] is None
    assert values["- over constant velocity, own places"] == pytest.approx(1.2)
    assert values["- over constant velocity, true places"] == pytest.approx(1.5)
    assert values["KL of empty scenes, nats per frame"] == pytest.approx(1.2)
    lines = shown(group, rows).splitlines()
    assert lines[0].split() == ["SQAIR", "asked", "seed", "4", "mean", "worst", "reached"]
    assert lines[1].split()[-7:] == ["0.9", "0.9600", "0.9600", "0.9600", "1", "of", "1"]
