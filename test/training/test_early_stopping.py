# SPDX-License-Identifier: Apache-2.0
"""Training on recordings ends when the held-out loss falls no more, and ships the best weights."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from torch import nn

from oc_perception.bags.messages import image_message
from oc_perception.bags.writer import BagWriter
from oc_perception.cli import main
from oc_perception.configuration import from_mapping, read_yaml, to_mapping
from oc_perception.models.registry import load_model
from oc_perception.pipeline import Discovery
from oc_perception.training import trainer
from oc_perception.training.early_stopping import EarlyStopping
from oc_perception.training.recipe import Recipe

MODEL = {
    "frame_size": [16, 24],
    "num_slots": 3,
    "latent_size": 4,
    "attention_channels": [8, 8, 8],
    "attention_hidden": 16,
    "encoder_channels": [8, 8],
    "encoder_hidden": 16,
    "decoder_channels": 8,
    "static_background": True,
}
TRAINING = {
    "steps": 40,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 1,
    "evaluate_every": 2,
    "evaluation_scenes": 8,
    "autocast_bfloat16": False,
}


@pytest.fixture(autouse=True)
def small_scope(tmp_path, monkeypatch):
    monkeypatch.setenv("OC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trainer, "_TEST_SCENES", 8)


@pytest.fixture
def bag(tmp_path):
    """Six seconds in which a bright square crosses a striped wall."""
    frames = torch.zeros(60, 32, 48, 3, dtype=torch.uint8)
    frames[:, :, ::8] = 90
    frames += 40
    for n in range(60):
        left = (3 * n) % 40
        frames[n, 8:20, left : left + 8] = 220
    with BagWriter(tmp_path / "bag") as bag:
        for n, frame in enumerate(frames.numpy()):
            stamp_ns = 1_000_000_000 + n * 100_000_000
            bag.write("/camera/image", stamp_ns, image_message(stamp_ns, frame))
    return str(tmp_path / "bag")


def recipe(bag, world=None, **training):
    mapping = {
        "model": "monet",
        "model_config": MODEL,
        "world": "recordings",
        "world_config": {"bags": [bag], **(world or {})},
        "training": {**TRAINING, **training},
    }
    return from_mapping(Recipe, mapping)


def quiet(line):
    """Training that says nothing."""


def log(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def weights(directory):
    return (directory / "weights.safetensors").read_bytes()


def test_patience_counts_evaluations_without_a_better_loss_and_keeps_the_best_weights():
    model = nn.Linear(1, 1)
    stopping = EarlyStopping(2, model)
    for step, loss in enumerate((3.0, 2.0, 2.0, 2.5), 1):
        assert not stopping.is_exhausted
        with torch.no_grad():
            model.weight.fill_(step)
        assert stopping.judge(model, loss, step) == (step <= 2)
    assert stopping.is_exhausted
    assert (stopping.loss, stopping.step, stopping.model.weight.item()) == (2.0, 2, 2.0)
    other = EarlyStopping(2, nn.Linear(1, 1))
    other.restore(stopping.state())
    assert other.is_exhausted
    assert other.model.weight.item() == 2.0
    assert not stopping.judge(model, float("nan"), 5)


def test_training_stops_early_and_ships_what_was_best(tmp_path, bag):
    # Far too large steps: the loss soon grows.
    plan = recipe(bag, patience=2, learning_rate=0.05, final_learning_rate=0.05)
    model = trainer.train(plan, tmp_path / "run", report=quiet)
    entries = log(tmp_path / "run")
    losses = [entry["held_out_loss"] for entry in entries]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 3 < 20
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["early_stopping"] == {
        "patience": 2,
        "best_step": entries[best]["step"],
        "held_out_loss": losses[best],
        "stopped_early": True,
    }
    assert metrics["steps"] == entries[-1]["step"]
    assert "fg_ari" not in metrics  # nobody gave labels
    again = trainer.train(
        recipe(bag, learning_rate=0.05, final_learning_rate=0.05),
        tmp_path / "other",
        report=quiet,
        stop_at_step=entries[best]["step"],
    )
    for shipped, then in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(shipped, then.half().float())


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, bag):
    plan = recipe(bag, patience=2, steps=12)
    trainer.train(plan, tmp_path / "whole", report=quiet)
    for stop in (3, 4, 7, None):
        trainer.train(plan, tmp_path / "parts", report=quiet, stop_at_step=stop)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    scores = [
        [(entry["step"], entry["loss"], entry["held_out_loss"]) for entry in log(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert scores[0] == scores[1]


def test_a_run_that_died_after_its_patience_ended_only_finishes(tmp_path, bag, monkeypatch):
    plan = recipe(bag, patience=1, learning_rate=0.05, final_learning_rate=0.05)
    finish = trainer._Run.finish

    def die(run, report):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer._Run, "finish", die)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(plan, tmp_path / "run", report=quiet)
    steps = len(log(tmp_path / "run"))
    monkeypatch.setattr(trainer._Run, "finish", finish)
    trainer.train(plan, tmp_path / "run", report=quiet)
    assert len(log(tmp_path / "run")) == steps
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_two_processes_learn_from_a_bag_what_one_with_two_shards_does(tmp_path, bag):
    plan = recipe(bag, shards=2, patience=1, steps=6, learning_rate=0.05, evaluate_every=1)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(to_mapping(plan)))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["-m", "oc_perception.cli", "train", "--recipe", str(tmp_path / "plan.yaml")]
    words += ["--device", "cpu", "--output", str(tmp_path / "two")]
    result = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    trainer.train(plan, tmp_path / "one", report=quiet)
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one]
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "gradient_norm", "held_out_loss"):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name


def test_a_static_background_needs_a_recording(tmp_path, bag):
    plan = to_mapping(recipe(bag))
    plan |= {"world": "tabletop", "world_config": {}}
    with pytest.raises(ValueError, match="choose world: recordings"):
        trainer.train(from_mapping(Recipe, plan), tmp_path / "run", report=quiet)


def test_the_command_learns_from_a_bag_and_the_pipeline_runs_the_directory(tmp_path, bag, capsys):
    settings = [f"model_config.{key}={value}" for key, value in MODEL.items()
                if key not in ("frame_size", "static_background")]  # fmt: skip
    settings += [f"training.{key}={value}" for key, value in TRAINING.items()]
    settings += ["training.steps=2", "world_config.validation=0.3"]
    words = ["train", "--recipe", "monet_bag", "--bag", bag, "--topic", "/camera/image"]
    words += ["--output", str(tmp_path / "run"), "--device", "cpu"]
    for setting in settings:
        words += ["--set", setting]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "held out loss" in shown
    assert "fg ari" not in shown
    written = read_yaml(tmp_path / "run" / "recipe.yaml")
    assert written["world_config"]["bags"] == [bag]
    assert written["world_config"]["topic"] == "/camera/image"
    height, width = written["model_config"]["frame_size"]
    assert height / width == pytest.approx(32 / 48, rel=0.15)  # the aspect of the bag
    assert (tmp_path / "run" / "samples.png").is_file()

    model = load_model(tmp_path / "run")
    discovery = Discovery(model)
    frame = (model.background.image.permute(1, 2, 0) * 255).round().byte().numpy().copy()
    frame[4:20, 10:20] = 250
    _, segmentation = discovery.step(discovery.initial_state(), frame, 1)
    assert segmentation.label_image.shape == (height, width)

    words = ["evaluate", str(tmp_path / "run"), "--scenes", "8"]
    assert main([*words, "--figures", str(tmp_path / "figures")]) == 0
    shown = capsys.readouterr()
    assert "mse" in shown.out
    assert "fg_ari" not in shown.out
    assert "need labels" in shown.err
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["decompositions.png"]
    assert main([*words, "--readout"]) == 2
    assert "no labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--recipe", "monet_demo", "--bag", "x"], "not from recordings"),
        (["--recipe", "monet_bag", "--topic", "/image"], "paths too"),
        (["--recipe", "monet_bag"], "--bag PATH"),
        (["--recipe", "monet_bag", "--bag", "nowhere"], "nowhere"),
    ],
)
def test_what_the_command_cannot_do_it_says_in_one_line(tmp_path, capsys, words, cause):
    assert main(["train", *words, "--output", str(tmp_path / "run"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert cause in error
    assert "Traceback" not in error
