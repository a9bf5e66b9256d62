# SPDX-License-Identifier: Apache-2.0
"""The studies of variational bounds, small: closed forms against autograd, laws, the command."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal
from torch.nn import Parameter

from oc_perception.cli import main
from oc_perception.evaluation import bounds_checks, bounds_deep, bounds_signal, bounds_toy
from oc_perception.objectives import bounds
from oc_perception.worlds import digits64
from oc_perception.worlds.gaussian_toy import GaussianToy, Parameters

_UNIT = bounds_signal.SignalConfig(
    points=64, repeats=400, counts=(1, 4, 16, 64), groups=(1, 4, 16, 64)
)


@pytest.fixture(scope="module")
def near() -> dict:
    return bounds_signal.measure(_UNIT, bounds_signal.REGIMES["near"])


@pytest.mark.parametrize("variance", [2 / 3, 1.0])
@pytest.mark.parametrize(("m", "k"), [(1, 6), (2, 3), (6, 1)])
def test_closed_form_gradients_are_those_of_the_objectives(
    variance: float, m: int, k: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    toy = GaussianToy(generator, 5, 4, variance, torch.float64)
    parameters = toy.near_optimum(0.3, generator)
    noise = torch.randn(5, m, k, 4, generator=generator.clone_state(), dtype=torch.float64)
    found = bounds_signal.estimate_gradients(toy, parameters, [(m, k)], 1, generator)
    leaves = Parameters(*map(Parameter, parameters))
    weights = toy.log_weights(leaves, noise)

    def gradient(losses: bounds.Losses, of: str) -> Tensor:
        loss = losses.theta if of == "mean" else losses.phi
        return -torch.autograd.grad(loss, getattr(leaves, of), retain_graph=True)[0]

    beta = bounds_signal.BETA
    ciwae = beta * bounds.elbo(weights).phi + (1 - beta) * bounds.miwae(weights).phi
    detached = toy.log_weights(leaves, noise, detach=True).flatten(0, 1).unsqueeze(1)
    expected = {
        "theta": gradient(bounds.miwae(weights), "mean"),
        "phi": gradient(bounds.miwae(weights), "bias"),
        "ciwae": gradient(bounds.Losses(ciwae, ciwae), "bias"),
        "dreg": gradient(bounds.dreg(detached), "bias"),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name][m, k][0], value)


def test_estimates_in_chunks_have_the_same_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    toy = GaussianToy(generator, 10, 3)
    parameters = toy.near_optimum(0.3, generator)
    monkeypatch.setattr(bounds_signal, "_CPU_NUMBERS", 4 * 2 * 3)  # 4 points at a time
    found = bounds_signal.estimate_gradients(toy, parameters, [(2, 1)], 500, generator)
    center = toy.data @ parameters.matrix.T + parameters.bias
    for name, expected in (
        ("theta", center - parameters.mean),
        ("phi", parameters.mean + toy.data - 2 * center),
    ):
        estimates = found[name][2, 1]
        error = estimates.std(0) / math.sqrt(len(estimates))
        assert ((estimates.mean(0) - expected.mean(0)).abs() < 4.5 * error).all()


def test_signal_follows_its_laws_on_the_toy(near: dict) -> None:
    """Looser than the full study: 400 estimates of 64 points."""
    slopes = bounds_checks.slopes(near)
    assert slopes["phi_k"] == pytest.approx(-0.475, abs=0.15)
    assert slopes["phi_m"] == pytest.approx(0.5, abs=0.15)
    assert slopes["theta_m"] == pytest.approx(0.5, abs=0.15)
    assert slopes["dreg_k"] > 0.2 and slopes["ciwae_k"] > 0.2
    signal = [row["snr"]["theta"] for row in near["particles"]]
    assert signal.index(min(signal)) in (1, 2)  # falls first, then rises
    assert slopes["theta_k"] > 0.2


def test_direction_and_error_follow_theirs(near: dict) -> None:
    particles, groups = near["particles"], near["groups"]
    assert particles[-1]["dsnr"]["phi"] == pytest.approx(near["random"], rel=0.15)
    assert groups[-1]["dsnr"]["phi"] > 15 * near["random"]
    assert particles[0]["rmse"] > 6 * particles[-1]["rmse"]
    assert groups[-1]["bias"] == pytest.approx(groups[0]["bias"], rel=0.1)
    assert particles[-1]["bias"] < 0.1 * particles[0]["bias"]


def test_far_from_the_optimum_particles_hardly_cost_signal() -> None:
    slopes = bounds_checks.slopes(bounds_signal.measure(_UNIT, bounds_signal.REGIMES["far"]))
    assert -0.2 < slopes["phi_k"] < 0.05
    assert slopes["phi_m"] == pytest.approx(0.5, abs=0.15)


def test_single_particles_lead_the_toy_nearest_to_its_optimum() -> None:
    config = bounds_toy.ToyConfig(total=36, points=32, dimensions=3, steps=900)
    runs = bounds_toy.optimise_all(["VAE", "MIWAE", "IWAE"], 1, config)
    ends = {run["method"]: run["matrix"][-1] for run in runs}
    assert ends["VAE"] < ends["MIWAE"] < ends["IWAE"]
    starts = {tuple(run[name][0] for name in ("matrix", "bias")) for run in runs}
    assert np.ptp(list(starts), axis=0).max() < 0.1  # from the same place


def test_log_weights_of_the_vae_are_log_densities() -> None:
    torch.manual_seed(0)
    model = bounds_deep.Vae(torch.rand(6), hidden=5, latent=2)
    pictures = torch.rand(4, 6).round()
    generator = torch.Generator().manual_seed(1)
    for detach in (False, True):
        noise = torch.randn(4, 3, 7, 2, generator=generator.clone_state())
        found = model.log_weights(pictures, 3, 7, generator, detach)
        mean, log_scale = model.encoder(pictures)[:, None, None].chunk(2, -1)
        posterior = Normal(mean, log_scale.exp())
        z = mean + log_scale.exp() * noise
        likelihood = Bernoulli(logits=model.decoder(z)).log_prob(pictures[:, None, None])
        ratio = Normal(0, 1).log_prob(z) - posterior.log_prob(z)
        torch.testing.assert_close(found, likelihood.sum(-1) + ratio.sum(-1))
    of_detached = torch.autograd.grad(found.sum(), model.encoder[-1].bias)[0]
    fixed = Normal(mean.detach(), log_scale.exp().detach())
    weights = likelihood.sum(-1) + (Normal(0, 1).log_prob(z) - fixed.log_prob(z)).sum(-1)
    expected = torch.autograd.grad(weights.sum(), model.encoder[-1].bias)[0]
    torch.testing.assert_close(of_detached, expected)


def test_expectations_can_fail() -> None:
    def runs(**bound: float) -> list[dict]:
        return [
            {"method": name, "seed": 0, "signal": [1.0], "ess": 0.1, "ess_64": 0.1,
             "iwae_64": value, "log_evidence": value, "minus_kl": value}
            for name, value in bound.items()
        ]  # fmt: skip

    checks = bounds_checks.check_deep(runs(VAE=1, MIWAE=2, IWAE=3, PIWAE=4))
    assert [check.met for check in checks] == [False, True, True, False, False, False]
    checks = bounds_checks.check_deep(runs(VAE=4, MIWAE=3, IWAE=1, PIWAE=2))
    assert [check.met for check in checks[:4]] == [True, False, True, True]
    few = bounds_checks.check_deep(runs(VAE=4, IWAE=1))
    assert [check.what for check in few] == ["least signal of the encoder in training"]


def test_the_digits_are_split_once_and_binarised_by_their_intensity() -> None:
    digits = digits64.load_digits64()
    assert digits.train.shape == (1497, 64) and digits.test.shape == (300, 64)
    assert torch.equal(digits.test, digits64.load_digits64().test)
    assert digits.train.min() == 0 and digits.train.max() == 1
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([digits64.binarise(digits.test, generator) for _ in range(400)])
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (drawn.mean(0) - digits.test).abs().max() < 0.15


def test_the_command_measures_draws_and_keeps_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, figure, kept = tmp_path / "a.json", tmp_path / "a.png", tmp_path / "runs"
    words = ["benchmark", "bounds", "--quick", "--seeds", "2", "--runs", str(kept)]
    assert main([*words, "--json", str(file), "--figure", str(figure)]) == 0
    table, report = capsys.readouterr().out, json.loads(file.read_text())
    assert "too small" in table and "phi: slope of SNR in K" in table
    assert len(report["deep"]["runs"]) == 14 and len(report["toy"]["runs"]) == 6
    for run in report["deep"]["runs"]:
        assert run["iwae_64"] < run["log_evidence"] < 0 < run["ess"] < 1
        assert len(run["signal"]) == 2
    assert set(report["checks"]) == {"signal", "toy", "deep"}
    assert figure.stat().st_size > 30_000
    written = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert len(written) == 14 + 6 + 2
    assert main([*words, "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert all(again[part] == report[part] for part in ("signal", "toy", "deep"))
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds must be"),
        (["--parts", "toy", "--figure", "a.png"], "leave out --parts"),
    ],
)
def test_what_cannot_be_measured_is_told(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "bounds", "--quick", *options]) == 2
    assert message in capsys.readouterr().err


def test_missing_digits_are_told_before_time_is_spent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["benchmark", "bounds"]) == 2
    assert "pip install 'oc_perception[datasets]'" in capsys.readouterr().err
