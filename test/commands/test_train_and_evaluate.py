# SPDX-License-Identifier: Apache-2.0
"""The commands a researcher types: train, stop, resume, evaluate."""

import json

import pytest
import yaml

from oc_perception.cli import main

TINY = [
    "training.steps=2",
    "training.batch_size=2",
    "training.evaluate_every=2",
    "training.evaluation_scenes=2",
    "model_config.frame_size=[12,16]",
    "model_config.attention_channels=[8,8]",
    "model_config.encoder_channels=[8]",
    "model_config.decoder_channels=8",
]


def train(directory, *extra):
    settings = [word for setting in TINY for word in ("--set", setting)]
    return main(["train", "--recipe", "monet_demo", *settings, "--output", str(directory), *extra])


def test_training_stops_resumes_and_ends_with_metrics_of_fresh_scenes(tmp_path, capsys):
    assert train(tmp_path, "--stop-at-step", "1") == 0
    assert "resumes" in capsys.readouterr().out
    assert not (tmp_path / "metrics.json").exists()
    assert train(tmp_path, "--device", "cpu") == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["scenes"] == 320 and 0 <= metrics["miou"] <= 1
    assert metrics["recipe"]["training"]["steps"] == 2


def test_a_seed_and_a_time_limit_are_options(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [word for setting in TINY for word in ("--set", setting)]
    words = ["train", "--recipe", "monet_demo", *settings, "--seed", "3", "--time-limit", "0"]
    assert main([*words, "--device", "cpu"]) == 0
    assert "the same command resumes runs/monet_demo_s3" in capsys.readouterr().out
    recipe = yaml.safe_load((tmp_path / "runs/monet_demo_s3/recipe.yaml").read_text())
    assert recipe["training"]["seed"] == 3


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["train", "--recipe", "monet_dem"], "Did you mean 'monet_demo'"),
    ],
)
def test_mistakes_are_one_line_with_the_cure(words, reason, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert reason in error and len(error.splitlines()) == 1
