# SPDX-License-Identifier: Apache-2.0
"""Our inference against the textbook's, and the benchmark that compares them."""

import dataclasses
import json

import pytest
import torch

from oc_perception import cli
from oc_perception.commands.benchmarks import inference as command
from oc_perception.evaluation import inference
from oc_perception.evaluation.inference import Workload, measure
from oc_perception.evaluation.textbook import textbook
from oc_perception.models.registry import create_model

MONET = {"attention_channels": (8, 12, 16), "encoder_channels": (8, 8), "decoder_channels": 8}
IODINE = {
    "num_iterations": 3,
    "tracking_iterations": 2,
    "latent_size": 8,
    "decoder_channels": (8, 8, 8),
    "encoder_channels": (8, 8),
    "encoder_hidden": 16,
    "recurrent_size": 16,
    "scene_cut_nats": 1e6,
}
SLOT_ATTENTION = {
    "slot_size": 8,
    "encoder_channels": (8, 8),
    "decoder_channels": (8, 8),
    "decoder_strides": (2, 1),
}


def difference(name, size, slots, channels_last=True, **settings):
    """The largest difference in masks, means and embeddings over three frames."""
    torch.manual_seed(0)
    model = create_model(name, frame_size=size, num_slots=slots, **settings).eval()
    plain = textbook(model)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        ours, theirs = model.initial_state(2), plain.initial_state(2)
        largest = 0.0
        for frame in torch.rand(3, 2, 3, *size, generator=torch.Generator().manual_seed(1)):
            ours, a = model.step(ours, frame)
            theirs, b = plain.step(theirs, frame)
            for x, y in ((a.masks, b.masks), (a.means, b.means), (a.embeddings, b.embeddings)):
                assert x.shape == y.shape
                largest = max(largest, (x - y).abs().max().item())
    return largest


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("size", [(16, 24), (32, 32)])
def test_monet_decomposes_as_the_textbook_does(size, slots):
    assert difference("monet", size, slots, **MONET) < 1e-4


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("size", [(9, 12), (24, 24)])
def test_iodine_tracks_as_the_textbook_does(size, slots):
    assert difference("iodine", size, slots, **IODINE) < 1e-4


@pytest.mark.parametrize("change", [
    {"likelihood": "composite", "sigma": 0.3},
    {"density": "logistic"},
    {"recurrent_size": 0},
    {"kernel_size": 5},
])  # fmt: skip
def test_variants_of_iodine_do_too(change):
    assert difference("iodine", (9, 12), 3, **{**IODINE, **change}) < 1e-4


@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("size", [(16, 24), (15, 13)])
def test_slot_attention_tracks_as_the_textbook_does(size, slots):
    assert difference("slot_attention", size, slots, **SLOT_ATTENTION) < 1e-4


@pytest.mark.parametrize(
    ("name", "settings"),
    [("monet", MONET), ("iodine", IODINE), ("slot_attention", SLOT_ATTENTION)],
)
def test_the_memory_layout_does_not_matter(name, settings):
    assert difference(name, (16, 16), 3, channels_last=False, **settings) < 1e-4


def test_the_papers_monet_agrees_at_full_size():
    assert difference("monet", (64, 64), 3) < 1e-4


def test_a_difference_is_seen():
    torch.manual_seed(0)
    model = create_model("monet", frame_size=(16, 16), num_slots=3, **MONET).eval()
    plain = textbook(model)
    frame = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.attention.head.bias += 0.01
        a, b = (each.step(None, frame)[1].masks for each in (model, plain))
    assert (a - b).abs().max() > 1e-4


@pytest.fixture
def small(monkeypatch):
    settings = {"monet": MONET, "iodine": IODINE, "slot_attention": SLOT_ATTENTION}
    monkeypatch.setattr(inference, "_SETTINGS", settings)
    monkeypatch.setattr(command, "_QUICK_SECONDS", 0.0)


def test_times_are_per_frame_and_add_up(small, monkeypatch):
    def timed(step, device):
        step()
        return next(clock)

    clock = iter([(0.02, 0.04), (0.06, 0.06)] * 9 + [(0.1, 0.1), (0.06, 0.06)])
    monkeypatch.setattr(inference, "_timed", timed)
    row = measure(Workload("monet", 16, 2, batch=2), seconds=0, least=10)
    assert row["repetitions"] == 10
    assert row["ours"] == pytest.approx({"ms": 10, "p90_ms": 14, "cpu_ms": 20})
    assert (row["speedup"], row["cpu_speedup"]) == pytest.approx((3, 1.5))


def test_only_the_workload_of_the_target_has_one(small, monkeypatch):
    monkeypatch.setattr(inference, "_TARGETS_MS", {("monet", 16, 2, 1): 20.0})
    workload = Workload("monet", 16, 2)
    assert measure(workload, 0, 1)["target_ms"] == 20.0
    assert measure(dataclasses.replace(workload, slots=3), 0, 1)["target_ms"] is None


def run(capsys, *words):
    status = cli.main(["benchmark", "inference", *words])
    return status, capsys.readouterr()


def test_the_command_measures_every_combination(small, capsys):
    threads = torch.get_num_threads()
    words = ["--quick", "--sizes", "16", "--slots", "2,3", "--threads", "1", "--json", "-"]
    status, output = run(capsys, *words)
    report = json.loads(output.out)
    assert status == 0 and report["threads"] == 1 and torch.get_num_threads() == threads
    found = {(row["model"], row["slots"]) for row in report["rows"]}
    assert found == {(m, k) for m in inference.MODELS for k in (2, 3)}
    for row in report["rows"]:
        assert row["mask_difference"] < 1e-4 and row["ours"]["ms"] > 0


def test_the_table_names_the_target(small, monkeypatch, capsys):
    monkeypatch.setattr(inference, "_TARGETS_MS", {("monet", 16, 2, 1): 1e9})
    _, output = run(capsys, "--quick", "--models", "monet", "--sizes", "16", "--slots", "2")
    assert "target 1e+09 ms: reached" in output.out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--models", "monte"], "choose from"),
        (["--sizes", "big"], "whole numbers"),
        (["--slots", "0"], "above 0"),
        (["--threads", "0"], "at least 1"),
        (["--models", "monet", "--sizes", "62"], "multiple of"),
    ],
)
def test_bad_options_name_the_cure(small, words, reason, capsys):
    status, output = run(capsys, *words)
    assert status != 0 and reason in output.err
