# SPDX-License-Identifier: Apache-2.0
"""The wake-sleep benchmark: its learners, its checks, its command."""

import json

import pytest
import torch

from oc_perception.cli import main
from oc_perception.evaluation.wake_sleep_grammar import GrammarTraining, train_grammar
from oc_perception.evaluation.wake_sleep_mixture import METHODS, MixtureTraining, train_mixture
from oc_perception.evaluation.wake_sleep_report import grammar_checks, mixture_checks


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_its_own_repetitions(method):
    training = MixtureTraining(method, 3, "near", repetitions=2, steps=12, batch_size=20)
    found, again = train_mixture(training, 1), train_mixture(training, 1)
    assert found == again
    assert found["q_error"][0] != found["q_error"][1]
    assert all(value > 0 for value in found["phi_gradient_std"])
    assert found["curve"]["step"][-1] == 12


@pytest.mark.parametrize("method", ["ws", "ww", "delta-ww"])
def test_wake_sleep_methods_learn_the_posterior(method):
    training = MixtureTraining(method, 10, "near", repetitions=3, steps=500)
    found = train_mixture(training, 0)
    assert found["curve"]["q_error"][-1] < 0.75 * found["curve"]["q_error"][0]


def test_vimco_has_a_less_noisy_gradient_than_reinforce():
    spread = {}
    for method in ("vimco", "reinforce"):
        found = train_mixture(MixtureTraining(method, 10, repetitions=3, steps=30), 0)
        spread[method] = max(found["phi_gradient_std"])
    assert spread["vimco"] < 0.5 * spread["reinforce"]


@pytest.mark.parametrize("method", ["ws", "ww", "vimco", "reinforce"])
def test_every_method_moves_the_grammar_and_the_parser(method):
    training = GrammarTraining(method, 3, steps=4)
    found = train_grammar(training, 1)
    assert found == train_grammar(training, 1)
    for curve in (found["curve"]["production_kl"], found["curve"]["sleep_loss"]):
        assert curve[0] != curve[-1]


def row(method, particles, support, p_error=0.0, q_error=0.0, start="far"):
    return {
        "start": start, "method": method, "particles": particles,
        "support": support, "p_error": [p_error] * len(support),
        "q_error": [q_error] * len(support), "phi_gradient_std": [0.1],
    }  # fmt: skip


def test_checks_tell_pruned_from_whole():
    rows = [
        row("ws", 2, [8, 9, 9], 0.8), row("ww", 2, [13, 14, 17], 0.7),
        row("vimco", 2, [17, 17, 16], 0.35), row("reinforce", 2, [16, 16, 16], 0.35),
        row("delta-ww", 2, [19, 19, 19, 19, 4], 0.15),
    ]  # fmt: skip
    met = {check.what: check.met for check in mixture_checks(rows)}
    assert met == {
        "far, K=2: largest support of WS": True,
        "far, K=2: of WW": False,
        "far, K=2: of VIMCO": True,
        "far, K=2: of REINFORCE": True,
        "far, K=2: of delta-WW": True,
        "far, K=2: P-error of delta-WW, then of WS, WW, VIMCO, REINFORCE": True,
        "far, K=2: P-error of WW, WS": True,
    }


def test_checks_compare_parsers():
    def result(method, seed, kl, matches):
        return {"method": method, "particles": 20, "seed": seed, "production_kl": kl,
                "sleep_loss": 9 + kl, "matches": matches}  # fmt: skip

    rows = [result("ws", s, 0.05 + s / 100, 0.7) for s in range(3)]
    rows += [result("vimco", s, 0.02, 0.1) for s in range(3)]
    assert [check.met for check in grammar_checks(rows)] == [True, True, False, False]
    assert grammar_checks(rows[3:]) == []


def test_the_command_measures_all_in_seconds_and_finds_what_it_kept(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    words = ["benchmark", "wake-sleep", "--quick", "--runs", str(tmp_path / "runs")]
    figure, report = tmp_path / "figure.png", tmp_path / "report.json"
    threads = torch.get_num_threads()
    assert main([*words, "--json", str(report), "--figure", str(figure)]) == 0
    assert torch.get_num_threads() == threads
    assert "delta-ww" in capsys.readouterr().out and figure.stat().st_size > 10_000
    found = json.loads(report.read_text())
    assert {row["method"] for row in found["mixture"]["rows"]} == set(METHODS)
    kept = tmp_path / "runs" / "mixture_far_ws_2.json"
    kept.write_text(kept.read_text().replace('"support": [', '"support": [77, '))
    assert main([*words, "--json", "-", "--parts", "mixture", "--methods", "ws"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["mixture"]["rows"][0]["support"][0] == 77


@pytest.mark.parametrize(
    "words", [["--particles", "1"], ["--seeds", "0"], ["--parts", "grammar", "--figure", "f.png"]]
)
def test_settings_that_measure_nothing_are_refused(words, capsys):
    assert main(["benchmark", "wake-sleep", *words]) != 0
    assert "--" in capsys.readouterr().err
