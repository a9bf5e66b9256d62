# SPDX-License-Identifier: Apache-2.0
"""Models of motion and tracking are trained as exactly as those of discovery."""

import functools
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import moving_toys
import pytest
import torch
import yaml
from safetensors.torch import load_file

from oc_perception.cli import main
from oc_perception.configuration import ConfigurationError, to_mapping
from oc_perception.models import registry
from oc_perception.models.registry import ModelError, create_model, load_model
from oc_perception.training import trainer
from oc_perception.training.recipe import Recipe, TrainingConfig
from oc_perception.training.tasks import TASKS, held_out_loss
from oc_perception.worlds.registry import WORLDS

KINDS = ["motion", "tracking"]


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    models, worlds = dict(registry._FACTORIES), dict(WORLDS)
    moving_toys.register(models, worlds)
    for name in ("toy_motion", "toy_tracking"):
        monkeypatch.setitem(registry._FACTORIES, name, models[name])
    monkeypatch.setitem(WORLDS, "points", worlds["points"])
    monkeypatch.setattr(trainer, "_TEST_SCENES", 5)


def recipe(kind, **training):
    settings = {"steps": 4, "batch_size": 4, "evaluate_every": 2, "evaluation_scenes": 5,
                "warmup_steps": 0, "autocast_bfloat16": False, **training}  # fmt: skip
    return Recipe(f"toy_{kind}", "points", TrainingConfig(**settings), {"num_frames": 3})


def quiet(line):
    assert line


def log(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", [{"ema_decay": 0.9}, {"shards": 2}, {"autocast_bfloat16": True}])
def test_a_resumed_run_ends_with_the_same_weights_as_an_uninterrupted_one(tmp_path, kind, extra):
    plan = recipe(kind, **extra)
    trainer.train(plan, tmp_path / "whole", report=quiet)
    trainer.train(plan, tmp_path / "parts", report=quiet, stop_at_step=1)
    trainer.train(plan, tmp_path / "parts", report=quiet, time_limit_s=0)
    assert torch.load(tmp_path / "parts/state.pt", weights_only=True)["step"] == 2
    trainer.train(plan, tmp_path / "parts", report=quiet)
    whole, parts = (tmp_path / name / "weights.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_held_out_losses_are_of_what_is_not_learned_from(kind, monkeypatch):
    drawn = []

    class Recorded(WORLDS["points"]):
        @dataclass(frozen=True)
        class Config(WORLDS["points"].Config):
            split: str = "train"
            validation: float = 0.2

        def sample_motion(self, num_frames):
            drawn.append(self.config.split)
            return super().sample_motion(num_frames)

    monkeypatch.setitem(WORLDS, "recorded", Recorded)
    scope = (create_model(f"toy_{kind}").eval(), "recorded", {"speed": 0.5}, 5, 0)
    TASKS[kind].evaluate(*scope)
    held_out_loss(TASKS[kind], *scope)
    assert drawn == ["validation", "validation"]


def test_two_processes_learn_what_one_does_and_one_can_go_on(tmp_path):
    plan = recipe("tracking", shards=2, evaluate_every=1)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(to_mapping(plan)))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += [moving_toys.__file__, str(tmp_path / "plan.yaml"), str(tmp_path / "two"), "3"]
    source = str(Path(registry.__file__).parents[2])
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    trainer.train(plan, tmp_path / "two", report=quiet)
    trainer.train(plan, tmp_path / "one", report=quiet)
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [entry["step"] for entry in two] == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "gradient_norm", "error"):
            assert b[name] == pytest.approx(a[name], rel=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_learning_the_world_lowers_the_error_of_fresh_sequences(tmp_path, kind):
    lines = []
    plan = recipe(kind, steps=100, evaluate_every=1, learning_rate=0.05)
    trainer.train(plan, tmp_path, report=lines.append)
    errors = [entry["error"] for entry in log(tmp_path)]
    assert errors[-1] < 0.1 * errors[0]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["error"] < 0.1 * errors[0] and metrics["scenes"] == 5 and metrics["recipe"]
    assert lines[0].split()[:5] == ["step", "loss", "gradient", "norm", "error"]
    assert lines[-1 if kind == "tracking" else -2].split()[0] == "error"
    assert not (tmp_path / "samples.png").exists()


def test_weights_of_motion_models_are_shipped_as_trained(tmp_path):
    model = trainer.train(recipe("motion"), tmp_path, report=quiet)
    shipped = load_file(tmp_path / "weights.safetensors")
    assert shipped["offset"].dtype == torch.float32
    assert not torch.equal(shipped["offset"], shipped["offset"].half().float())
    assert torch.equal(shipped["offset"], model.offset)


def test_scores_are_means_over_sequences_and_repeat():
    torch.manual_seed(0)
    model, evaluate = create_model("toy_motion", blur=0.0), TASKS["motion"].evaluate
    scores = [evaluate(model, "points", {}, scenes, 7) for scenes in (32, 35, 35)]
    assert scores[1] == scores[2]
    world = WORLDS["points"](batch_size=32, seed=7)
    batches = [world.sample_motion(4), world.sample_motion(4)[:3]]
    errors = torch.cat([model.errors(batch, torch.Generator()) for batch in batches])
    assert scores[1]["error"] == pytest.approx(errors.mean().item(), rel=1e-6)
    assert scores[1]["first"] == scores[0]["first"]  # NaN in the second batch is left out
    assert math.isnan(evaluate(model, "points", {}, 3, 7)["first"])


def test_divergence_of_a_motion_model_is_diagnosed(tmp_path):
    trainer.train(recipe("motion"), tmp_path, report=quiet, stop_at_step=2)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["model"]["gain"].fill_(float("inf"))
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(trainer.NonFiniteLoss, match="at step 2: every module gives finite values"):
        trainer.train(recipe("motion"), tmp_path, report=quiet)


def test_a_world_without_motion_is_refused_by_name(tmp_path):
    plan = Recipe("toy_motion", "sprites", TrainingConfig(steps=1))
    with pytest.raises(ConfigurationError, match=r"Sprites is a world without motion.*points"):
        trainer.train(plan, tmp_path, report=quiet)


def test_weights_of_another_task_are_refused_where_discovery_is_wanted(tmp_path, capsys):
    trainer.train(recipe("motion"), tmp_path, report=quiet)
    with pytest.raises(ModelError, match="is a motion model, not a discovery model"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="grid is a discovery model, not a motion model"):
        load_model("grid", task="motion")
    assert load_model(tmp_path, task="motion").num_frames == 3
    assert load_model(tmp_path, task=None).task == "motion"
    assert main(["benchmark", "discovery", str(tmp_path), "--quick"]) == 2
    assert "not a discovery model" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_scores_fresh_sequences_of_the_training_world(tmp_path, capsys, kind):
    trainer.train(recipe(kind), tmp_path, report=quiet)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    words = ["evaluate", str(tmp_path), "--scenes", "5", "--device", "cpu"]
    assert main([*words, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["error"] == metrics["error"]  # same sequences: the test seed is the default
    assert report["world"] == "points" and report["scenes"] == 5 and "slots" not in report
    assert main(words) == 0
    assert f"error  {report['error']:.4g}" in capsys.readouterr().out
    for option in (["--figures", str(tmp_path / "figures")], ["--readout"], ["--slots", "3"]):
        assert main([*words, *option]) == 2
        error = capsys.readouterr().err
        assert option[0] in error and len(error.splitlines()) == 1


def test_a_score_called_like_a_term_of_the_loss_does_not_hide_it(tmp_path, monkeypatch):
    score = moving_toys.ToyMotion.score
    monkeypatch.setattr(
        moving_toys.ToyMotion, "score", lambda *given: {"halved": score(*given)["error"]}
    )
    trainer.train(recipe("motion", evaluate_every=4), tmp_path, report=quiet)
    (entry,) = log(tmp_path)
    assert entry["halved"] == pytest.approx(entry["loss"] / 2)
    assert entry["fresh_halved"] != entry["halved"]
    assert json.loads((tmp_path / "metrics.json").read_text())["halved"] > 0


def test_a_compiled_loss_learns_from_motion_alike(tmp_path, monkeypatch):
    tracing = functools.partial(torch.compile, backend="eager")  # code generation takes minutes
    monkeypatch.setattr(torch, "compile", tracing)
    for compiled in (False, True):
        plan = recipe("tracking", evaluate_every=1, compile=compiled)
        trainer.train(plan, tmp_path / str(compiled), report=quiet, stop_at_step=2)
    plain, traced = log(tmp_path / "False"), log(tmp_path / "True")
    assert [e["loss"] for e in traced] == pytest.approx([e["loss"] for e in plain], rel=1e-5)
