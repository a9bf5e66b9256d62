# SPDX-License-Identifier: Apache-2.0
"""Scoring checkpoints from the command line: worlds, settings, figures, several seeds."""

import json
import sys

import cv2
import pytest
import torch
import yaml

from oc_perception.cli import main
from oc_perception.models.registry import create_model, save_checkpoint

SIZE = [12, 16]
MODELS = {
    "monet": {"attention_channels": [8, 8], "encoder_channels": [8], "decoder_channels": 8},
    "iodine": {
        "decoder_channels": [8], "encoder_channels": [8], "encoder_hidden": 8,
        "recurrent_size": 8, "latent_size": 4, "num_iterations": 1,
    },
}  # fmt: skip


def checkpoint(directory, name="monet", seed=0, world="tabletop", **world_config):
    """An untrained model as a finished run of `oc-perception train` leaves it."""
    torch.manual_seed(seed)
    config = {"frame_size": SIZE, "num_slots": 3, **MODELS[name]}
    save_checkpoint(create_model(name, **config), directory)
    recipe = {"model": name, "world": world, "world_config": world_config, "model_config": config}
    recipe["training"] = {"steps": 2, "seed": seed}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    metrics = {"fg_ari": 0.5, "elapsed_s": 60.0, "cpu_s": 100.0, "recipe": recipe}
    (directory / "metrics.json").write_text(json.dumps(metrics))
    return str(directory)


def scores(capsys, *words):
    assert main([*words, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_scores_say_what_was_measured_and_repeat(capsys):
    words = ["evaluate", "grid", "--scenes", "40"]
    found = scores(capsys, *words)
    assert {"fg_ari", "ari", "ami", "miou", "mse", "scenes", "seed"} <= found.keys()
    assert found["scenes"] == 40 and 0 < found["fg_ari"] < 1
    assert found["world"] == "tabletop" and found["slots"] == 6
    assert found["floor_fg_ari"] == found["fg_ari"]  # the grid is the floor
    assert scores(capsys, *words) == found
    assert main(words) == 0
    assert f"fg_ari  {found['fg_ari']:.4g}" in capsys.readouterr().out


def test_a_checkpoint_is_scored_on_the_world_it_was_trained_on(tmp_path, capsys):
    name = checkpoint(tmp_path, num_objects=[1, 1], supersampling=1)
    words = ["evaluate", name, "--scenes", "4"]
    trained = scores(capsys, *words)
    assert trained["world_config"] == {"num_objects": [1, 1], "supersampling": 1}
    assert trained["floor_fg_ari"] != scores(capsys, *words, "--seed", "1")["floor_fg_ari"]
    changed = scores(capsys, *words, "--set", "num_objects=[5,5]")
    assert changed["world_config"] == {"num_objects": [5, 5], "supersampling": 1}
    assert scores(capsys, *words, "--world", "tabletop")["world_config"] == trained["world_config"]
    other = scores(capsys, *words, "--world", "sprites")
    assert other["world"] == "sprites" and other["world_config"] == {}
    floors = {result["floor_fg_ari"] for result in (trained, changed, other)}
    assert len(floors) == 3
    (tmp_path / "recipe.yaml").unlink()  # a shipped checkpoint may hold metrics.json alone
    assert scores(capsys, *words) == trained


def test_slots_and_iterations_can_be_chosen(tmp_path, capsys):
    words = ["evaluate", checkpoint(tmp_path, "iodine"), "--scenes", "4"]
    trained, chosen = scores(capsys, *words), scores(capsys, *words, "--slots", "5")
    assert (trained["slots"], trained["iterations"], chosen["slots"]) == (3, 1, 5)
    assert trained["iteration_0_fg_ari"] != chosen["iteration_0_fg_ari"]
    more = scores(capsys, *words, "--iterations", "3")
    assert more["iterations"] == 3 and more["mse"] != trained["mse"]
    assert more["iteration_0_mse"] == trained["iteration_0_mse"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("monet", {"decompositions", "slots", "traversal"}),
        ("iodine", {"decompositions", "slots", "traversal", "refinement", "hypotheses"}),
    ],
)
def test_figures_are_drawn_as_far_as_the_model_has_an_answer(name, expected, tmp_path, capsys):
    run = checkpoint(tmp_path / "run", name)
    figures = tmp_path / "deep" / "figures"
    assert main(["evaluate", run, "--scenes", "3", "--figures", str(figures)]) == 0
    assert {path.stem for path in figures.glob("*.png")} == expected
    for path in figures.glob("*.png"):
        picture = cv2.imread(str(path))
        assert min(picture.shape[:2]) > 150 and picture.std() > 5, path
    curves = json.loads((figures / "curves.json").read_text())
    assert curves["slots"]["x"] == [2, 3, 4, 5, 6, 7]
    assert ("refinement" in curves) == ("refinement" in expected)
    left_out = capsys.readouterr().err
    assert ("refinement.png left out" in left_out) == ("refinement" not in expected)


def test_without_matplotlib_figures_are_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    figures = tmp_path / "figures"
    assert main(["evaluate", "grid", "--scenes", "2", "--figures", str(figures)]) == 2
    assert "pip install oc_perception[figures]" in capsys.readouterr().err
    assert not figures.exists()
    assert main(["evaluate", "grid", "--scenes", "2"]) == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["evaluate", "no_such"], "oc-perception train"),
        (["evaluate", "grid", "--device", "cuda:99"], "choose 'cpu'"),
        (["evaluate", "grid", "--slots", "3"], "cannot run with --slots 3"),
        (["evaluate", "grid", "--iterations", "3"], "does not iterate"),
        (["evaluate", "grid", "--scenes", "0"], "--scenes must be at least 1"),
        (["evaluate", "grid", "--set", "radius=1"], "Did you mean 'radius_m'"),
        (["benchmark", "discovery", "grid"], "has no recipe.yaml"),
    ],
)
def test_mistakes_are_one_line_with_the_cure(words, reason, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert reason in error and len(error.splitlines()) == 1


def test_several_seeds_of_one_recipe_become_one_report(tmp_path, capsys):
    runs = [checkpoint(tmp_path / str(seed), seed=seed) for seed in (0, 1, 2)]
    words = ["benchmark", "discovery", *runs, "--quick", "--target", "0.9"]
    report = scores(capsys, *words)
    assert [run["seed"] for run in report["runs"]] == [0, 1, 2]
    values = [run["fg_ari"] for run in report["runs"]]
    assert report["mean"]["fg_ari"] == pytest.approx(sum(values) / 3)
    assert report["worst"]["fg_ari"] == min(values)
    assert report["runs"][0]["training"]["cpu_s"] == 100.0
    assert report["mean"]["floor_fg_ari"] == pytest.approx(report["runs"][0]["floor_fg_ari"])
    assert report["target"] == 0.9 and report["published"] is None and report["machine"]
    alone = scores(capsys, "evaluate", runs[1], "--scenes", "16", "--seed", str(report["seed"]))
    assert alone["fg_ari"] == values[1]

    file = tmp_path / "report.json"
    assert main([*words, "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert json.loads(file.read_text())["runs"] == report["runs"]
    assert "target 0.9: missed" in shown and f"{min(values):.4f}" in shown


def test_runs_that_are_not_seeds_of_one_recipe_are_refused(tmp_path, capsys):
    first = checkpoint(tmp_path / "a")
    other = checkpoint(tmp_path / "b", seed=1, num_objects=[1, 2])
    assert main(["benchmark", "discovery", first, other, "--quick"]) == 2
    assert "world_config.num_objects" in capsys.readouterr().err
    (tmp_path / "a" / "metrics.json").unlink()
    assert main(["benchmark", "discovery", first, "--quick"]) == 2
    assert "finish its training first" in capsys.readouterr().err


def test_a_readout_tells_factors_beside_chance(tmp_path, capsys):
    name = checkpoint(tmp_path, world="sprites")
    found = scores(capsys, "evaluate", name, "--scenes", "16", "--readout")
    assert found["accuracy"].keys() == found["chance"].keys() == {"shape"}
    assert {"position", "size", "rgb", "angle"} == found["r2"].keys()
    assert 0 <= found["accuracy"]["shape"] <= 1
    assert main(["evaluate", name, "--scenes", "16", "--readout"]) == 0
    assert "accuracy shape" in capsys.readouterr().out
    assert main(["evaluate", "grid", "--scenes", "4", "--readout"]) == 2  # tabletop has no factors
    assert "factors" in capsys.readouterr().err
