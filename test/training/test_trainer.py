# SPDX-License-Identifier: Apache-2.0
"""Training: exact resume, safe interruption, clear errors."""

import json

import pytest
import torch

from oc_perception.configuration import ConfigurationError
from oc_perception.models.registry import load_model
from oc_perception.training import trainer
from oc_perception.training.recipe import load_recipe, recipe_names

SETTINGS = [
    "training.steps=4",
    "training.batch_size=2",
    "training.evaluate_every=2",
    "training.evaluation_scenes=2",
    "training.warmup_steps=2",
    "model_config.frame_size=[12,16]",
    "model_config.attention_channels=[8,8]",
    "model_config.encoder_channels=[8]",
    "model_config.decoder_channels=8",
]


def recipe(*extra):
    return load_recipe("monet_demo", [*SETTINGS, *extra])


def weights(model):
    return list(model.state_dict().values())


def quiet(line):
    assert line


def test_a_resumed_run_ends_with_the_same_weights_as_an_uninterrupted_one(tmp_path):
    whole = trainer.train(recipe(), tmp_path / "whole", report=quiet)
    trainer.train(recipe(), tmp_path / "parts", report=quiet, stop_at_step=1)
    trainer.train(recipe(), tmp_path / "parts", report=quiet, stop_at_step=3)
    parts = trainer.train(recipe(), tmp_path / "parts", report=quiet)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(parts), strict=True))


def test_an_interrupted_run_is_a_loadable_checkpoint_and_resumes(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(recipe(), tmp_path, report=quiet)
    assert load_model(tmp_path).num_slots == recipe().model_config["num_slots"]
    resumed = trainer.train(recipe(), tmp_path, report=quiet)
    whole = trainer.train(recipe(), tmp_path / "whole", report=quiet)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_run_leaves_a_log_a_picture_and_a_checkpoint(tmp_path):
    trainer.train(recipe(), tmp_path, report=quiet)
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 4]
    assert {"loss", "fg_ari", "miou", "mse", "elapsed_s", "cpu_s"} <= entries[0].keys()
    assert (tmp_path / "samples.png").stat().st_size > 1000
    assert not (tmp_path / "state.pt").exists()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == 4 and metrics["threads"] == torch.get_num_threads()
    assert metrics["elapsed_s"] >= entries[1]["elapsed_s"] > 0
    assert metrics["torch"] == torch.__version__ and metrics["machine"]


def test_time_adds_up_over_resumes(tmp_path):
    trainer.train(recipe(), tmp_path, report=quiet, stop_at_step=1)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["cpu_s"] > 0 and state["elapsed_s"] > 0
    state.update(cpu_s=1000.0, elapsed_s=2000.0)
    torch.save(state, tmp_path / "state.pt")
    trainer.train(recipe(), tmp_path, report=quiet)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 1000 < metrics["cpu_s"] < 1500 and 2000 < metrics["elapsed_s"] < 2500


def test_a_directory_of_another_recipe_is_not_overwritten(tmp_path):
    trainer.train(recipe(), tmp_path, report=quiet, stop_at_step=1)
    with pytest.raises(ConfigurationError, match="another recipe"):
        trainer.train(recipe("training.seed=5"), tmp_path, report=quiet)


def test_a_complete_run_is_not_trained_again(tmp_path):
    trainer.train(recipe(), tmp_path, report=quiet)
    with pytest.raises(ConfigurationError, match="complete"):
        trainer.train(recipe(), tmp_path, report=quiet)


def test_divergence_stops_with_a_cure_and_keeps_the_last_good_weights(tmp_path):
    trainer.train(recipe(), tmp_path, report=quiet, stop_at_step=2)
    good = load_model(tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["model"]["attention.head.bias"].fill_(float("nan"))
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(trainer.NonFiniteLoss, match="learning_rate"):
        trainer.train(recipe(), tmp_path, report=quiet)
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(good), weights(load_model(tmp_path)), strict=True)
    )


def test_learning_rate_warms_up_and_decays():
    plan = recipe("training.steps=100", "training.warmup_steps=10")
    rates = [trainer.learning_rate(plan, step) for step in range(100)]
    config = plan.training
    assert rates[0] == pytest.approx(config.learning_rate / 10)
    assert max(rates) == pytest.approx(config.learning_rate)
    assert rates[-1] < 1.1 * config.final_learning_rate
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid(name):
    assert load_recipe(name).training.steps > 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["training.step=4"], "Did you mean 'steps'"),
        (["training.steps=many"], "must be int"),
        (["training.steps"], "key=value"),
        (["modle=monet"], "Did you mean 'model'"),
    ],
)
def test_bad_settings_name_the_cure(settings, reason):
    with pytest.raises(ConfigurationError, match=reason):
        load_recipe("monet_demo", settings)
