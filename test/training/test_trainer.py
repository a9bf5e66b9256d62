# SPDX-License-Identifier: Apache-2.0
"""Training: exact resume, safe interruption, clear errors."""

import functools
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from oc_perception.configuration import ConfigurationError, to_mapping
from oc_perception.models.registry import create_model, load_model
from oc_perception.training import tasks, trainer
from oc_perception.training.optimization import create_optimizer, learning_rate
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


@pytest.fixture(autouse=True)
def few_test_scenes(monkeypatch):
    monkeypatch.setattr(trainer, "_TEST_SCENES", 2)


def recipe(*extra):
    return load_recipe("monet_demo", [*SETTINGS, *extra])


def weights(model):
    return list(model.state_dict().values())


def quiet(line):
    assert line


@pytest.mark.parametrize("extra", ["ema_decay=0", "ema_decay=0.9", "shards=2"])
def test_a_resumed_run_ends_with_the_same_weights_as_an_uninterrupted_one(tmp_path, extra):
    plan = recipe(f"training.{extra}")
    trainer.train(plan, tmp_path / "whole", report=quiet)
    trainer.train(plan, tmp_path / "parts", report=quiet, stop_at_step=1)
    trainer.train(plan, tmp_path / "parts", report=quiet, time_limit_s=0)
    state = torch.load(tmp_path / "parts/state.pt", weights_only=True)
    assert state["step"] == 2
    trainer.train(plan, tmp_path / "parts", report=quiet)
    whole, parts = (tmp_path / name / "weights.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_an_interrupted_run_is_a_loadable_checkpoint_and_resumes(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(recipe(), tmp_path, report=quiet)
    assert load_model(tmp_path).num_slots == recipe().model_config["num_slots"]
    resumed = trainer.train(recipe(), tmp_path, report=quiet)
    whole = trainer.train(recipe(), tmp_path / "whole", report=quiet)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_signal_within_a_step_is_saved_behind_it_and_resumes_exactly(tmp_path, monkeypatch):
    build = trainer.create_model

    def interrupted_model(*arguments, **config):
        model = build(*arguments, **config)
        loss = model.loss

        def interrupted_loss(frames, generator, progress):
            if progress == 0.25:
                signal.raise_signal(signal.SIGINT)
            return loss(frames, generator, progress)

        model.loss = interrupted_loss
        return model

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "create_model", interrupted_model)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(recipe(), tmp_path, report=quiet)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = trainer.train(recipe(), tmp_path, report=quiet)
    whole = trainer.train(recipe(), tmp_path / "whole", report=quiet)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_an_average_of_the_weights_is_shipped_where_asked_for(tmp_path):
    plan = recipe("training.ema_decay=0.15")
    torch.manual_seed(plan.training.seed)
    expected = create_model("monet", **plan.model_config).double().state_dict()
    for step in range(3):
        trainer.train(plan, tmp_path, report=quiet, stop_at_step=step + 1)
        trained = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
        decay = min(0.15, (1 + step) / (10 + step))
        expected = {
            name: decay * value + (1 - decay) * trained[name] for name, value in expected.items()
        }
    shipped = load_file(tmp_path / "weights.safetensors")
    for name, value in expected.items():
        assert torch.allclose(shipped[name].double(), value, atol=1e-7, rtol=1e-6), name
    name = "attention.head.weight"
    assert not torch.equal(shipped[name], trained[name])


def test_two_processes_learn_what_one_does_and_one_can_go_on(tmp_path):
    plan = recipe("training.shards=2", "training.evaluate_every=1", "training.evaluation_scenes=1")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(to_mapping(plan)))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["-m", "oc_perception.cli", "train", "--recipe", str(tmp_path / "plan.yaml")]
    words += ["--device", "cpu", "--output", str(tmp_path / "two"), "--stop-at-step", "3"]
    result = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("stopped early") == 1
    trainer.train(plan, tmp_path / "two", report=quiet)
    trainer.train(plan, tmp_path / "one", report=quiet)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [entry["step"] for entry in two] == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "reconstruction", "latent_kl", "mask_kl", "gradient_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-5), name


def test_a_compiled_loss_teaches_the_same(tmp_path, monkeypatch):
    plans = {
        flag: recipe("training.evaluate_every=1", f"training.compile={flag}")
        for flag in ("false", "true")
    }
    tracing = functools.partial(torch.compile, backend="eager")  # code generation takes minutes
    monkeypatch.setattr(torch, "compile", tracing)
    losses = {}
    for flag, plan in plans.items():
        trainer.train(plan, tmp_path / flag, report=quiet, stop_at_step=2)
        lines = (tmp_path / flag / "log.jsonl").read_text().splitlines()
        losses[flag] = [json.loads(line)["loss"] for line in lines]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-5)


def test_shards_that_the_processes_cannot_share_are_refused(tmp_path):
    group = trainer.ProcessGroup(rank=0, size=2, device="cpu")
    with pytest.raises(ConfigurationError, match=r"2 processes cannot share training\.shards 1"):
        trainer._Run(recipe(), tmp_path, group)


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


def poison(kind):
    """A forward hook that spoils what a module gives, or its gradient, in the third step."""
    calls = []

    def hook(module, inputs, output):
        calls.append(module)
        if len(calls) <= 2 * 6:  # six calls of the attention network for seven slots
            return output
        if kind == "output":
            return output * float("nan")
        output.register_hook(lambda gradient: gradient * float("inf"))
        return output

    return hook


@pytest.mark.parametrize(
    ("kind", "culprit"),
    [
        ("output", r"attention\.up\.1\.0 \(Conv2d\) is the first module to give"),
        ("gradient", r"gradient at the output of attention\.up\.1\.0 \(Conv2d\) is"),
    ],
)
def test_divergence_names_the_module_and_keeps_the_weights_before_it(
    tmp_path, monkeypatch, kind, culprit
):
    plan = recipe("training.autocast_bfloat16=false")
    trainer.train(plan, tmp_path / "good", report=quiet, stop_at_step=2)
    build = trainer.create_model

    def poisoned_model(*arguments, **config):
        model = build(*arguments, **config)
        model.attention.up[1][0].register_forward_hook(poison(kind))
        return model

    monkeypatch.setattr(trainer, "create_model", poisoned_model)
    monkeypatch.setattr(trainer._Run, "_score", lambda *_: dict(fg_ari=0.0, miou=0.0, mse=0.0))
    monkeypatch.setattr(tasks, "decomposition_grid", lambda *_: None)
    with pytest.raises(trainer.NonFiniteLoss, match=f"at step 2: .*{culprit}"):
        trainer.train(plan, tmp_path / "bad", report=quiet)
    good, bad = (weights(load_model(tmp_path / name)) for name in ("good", "bad"))
    assert all(torch.equal(a, b) for a, b in zip(good, bad, strict=True))


def test_a_gradient_too_long_for_its_norm_stops_the_run_too(tmp_path, monkeypatch):
    build = trainer.create_model

    def steep_model(*arguments, **config):
        model = build(*arguments, **config)
        loss = model.loss
        model.loss = lambda *inputs: {"loss": 1e25 * loss(*inputs)["loss"]}
        return model

    monkeypatch.setattr(trainer, "create_model", steep_model)
    with pytest.raises(trainer.NonFiniteLoss, match="gradient's norm inf at step 0: each"):
        trainer.train(recipe(), tmp_path, report=quiet)


def test_optimizers_are_those_of_the_recipe():
    model = torch.nn.Linear(2, 2)
    adam = create_optimizer(recipe("training.betas=[0.95,0.99]").training, model)
    assert adam.defaults["betas"] == (0.95, 0.99)
    config = recipe("training.optimizer=rmsprop").training
    assert isinstance(create_optimizer(config, model), torch.optim.RMSprop)


def test_rows_of_the_table_are_aligned_below_one_header(tmp_path):
    lines = []
    trainer.train(recipe(), tmp_path, report=lines.append, stop_at_step=2)
    trainer.train(recipe(), tmp_path, report=lines.append, stop_at_step=4)
    header, first, resuming, again, second, *final = lines
    assert header == again and "resuming" in resuming
    columns = r"step|loss|gradient norm|fg ari|miou|mse|elapsed|left"
    ends = [match.end() for match in re.finditer(columns, header)]
    assert len(ends) == 8
    for row in (first, second):
        assert [match.end() for match in re.finditer(r"\S+", row)] == ends
    assert second.split()[0] == "4" and second.split()[-1] == "0:00:00"
    assert [line.split()[0] for line in final] == ["fg_ari", "miou", "mse"]


def test_learning_rate_warms_up_and_decays():
    plan = recipe("training.steps=100", "training.warmup_steps=10")
    rates = [learning_rate(plan.training, step) for step in range(100)]
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
        (["training.shards=3"], "shards must divide batch_size 8"),
        (["training.optimizer=sgd"], "'adam' or 'rmsprop'"),
        (["training.ema_decay=1"], "below 1"),
        (["training.seed=-1"], "seed must be at least 0"),
        (["modle=monet"], "Did you mean 'model'"),
    ],
)
def test_bad_settings_name_the_cure(settings, reason):
    with pytest.raises(ConfigurationError, match=reason):
        load_recipe("monet_demo", settings)
