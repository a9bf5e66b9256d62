# SPDX-License-Identifier: Apache-2.0
"""Bounds from importance weights: identities, order, gradients, on a model in closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from oc_perception.objectives import bounds
from oc_perception.worlds.gaussian_toy import GaussianToy, Parameters

_POINTS, _SIZE, _M, _K = 6, 3, 4, 5
Objective = Callable[[Tensor], bounds.Losses]


def _toy(variance: float = 2 / 3, offset: float = 0.3) -> tuple[GaussianToy, Parameters]:
    """The model and parameters with gradients, in double precision."""
    generator = torch.Generator().manual_seed(0)
    toy = GaussianToy(generator, _POINTS, _SIZE, variance, torch.float64)
    return toy, Parameters(*map(Parameter, toy.near_optimum(offset, generator)))


def _noise(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _gradients(
    objective: Objective, groups: int, particles: int, detach: bool = False, seed: int = 1
) -> tuple[bounds.Losses, list[Tensor]]:
    """Losses, and gradients by mean, matrix and bias; the noise is the same for all M K."""
    toy, parameters = _toy()
    noise = _noise(_POINTS, groups * particles, _SIZE, seed=seed)
    noise = noise.unflatten(1, (groups, particles))
    losses = objective(toy.log_weights(parameters, noise, detach))
    bounds.backward(losses, parameters[:1], parameters[1:])
    return losses, [p.grad for p in parameters]


@pytest.mark.parametrize(
    ("one", "other", "groups", "particles"),
    [
        (bounds.miwae, bounds.iwae, 1, _M * _K),
        (bounds.piwae, bounds.iwae, 1, _M * _K),
        (lambda w: bounds.ciwae(w, 0), bounds.iwae, _M, _K),
        (bounds.miwae, bounds.elbo, _M * _K, 1),
        (lambda w: bounds.ciwae(w, 1), bounds.elbo, _M, _K),
    ],
    ids=["miwae M=1", "piwae M=1", "ciwae beta=0", "miwae K=1", "ciwae beta=1"],
)
def test_limits_of_the_bounds_are_iwae_and_the_vae_in_value_and_gradient(
    one: Objective, other: Objective, groups: int, particles: int
) -> None:
    losses, found = _gradients(one, groups, particles)
    wanted, gradients = _gradients(other, groups, particles)
    assert losses.theta.item() == pytest.approx(wanted.theta.item(), abs=1e-12)
    assert losses.phi.item() == pytest.approx(wanted.phi.item(), abs=1e-12)
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_values_are_those_of_their_definitions() -> None:
    weights = 2 * _noise(_POINTS, _M, _K)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    rows = weights.exp().tolist()
    vae = mean([math.log(w) for row in rows for group in row for w in group])
    iwae = mean([math.log(mean([w for group in row for w in group])) for row in rows])
    miwae = mean([math.log(mean(group)) for row in rows for group in row])
    assert bounds.elbo(weights).theta.item() == pytest.approx(-vae)
    assert bounds.iwae(weights).theta.item() == pytest.approx(-iwae)
    assert bounds.miwae(weights).theta.item() == pytest.approx(-miwae)
    assert bounds.ciwae(weights, 0.3).theta.item() == pytest.approx(-0.3 * vae - 0.7 * iwae)
    assert [loss.item() for loss in bounds.piwae(weights)] == pytest.approx([-iwae, -miwae])
    assert [loss.item() for loss in bounds.dreg(weights)] == pytest.approx([-iwae, -iwae])


def test_gradients_weigh_particles_by_their_normalised_weights() -> None:
    """Of MIWAE by log-weights: minus the normalised weight in the group, over B and M."""
    weights = _noise(_POINTS, _M, _K).requires_grad_()
    bounds.miwae(weights).theta.backward()
    expected = -weights.detach().exp()
    expected /= -expected.sum(2, keepdim=True) * _POINTS * _M
    torch.testing.assert_close(weights.grad, expected)


def test_piwae_trains_theta_as_iwae_and_phi_as_miwae() -> None:
    _, found = _gradients(bounds.piwae, _M, _K)
    _, of_iwae = _gradients(bounds.iwae, _M, _K)
    _, of_miwae = _gradients(bounds.miwae, _M, _K)
    torch.testing.assert_close(found, [of_iwae[0], *of_miwae[1:]], rtol=0, atol=1e-12)
    assert (of_iwae[1] - of_miwae[1]).abs().max() > 1e-3  # a mix-up would show


def test_bounds_tighten_with_particles_and_stay_below_the_evidence() -> None:
    """With the same noise in groups of 1, 4, 16 and 64, by Jensen's inequality, without error."""
    toy, parameters = _toy()
    with torch.no_grad():
        weights = toy.log_weights(parameters, _noise(_POINTS, 200, 64, _SIZE))
        evidence = toy.log_evidence(parameters.mean).mean()
        found = [-bounds.miwae(weights.view(_POINTS, -1, k)).theta for k in (1, 4, 16, 64)]
        assert all(a < b for a, b in itertools.pairwise(found))
        by_group = bounds.log_mean_exp(weights).mean(0)
        vae = weights.mean((0, 2))
        ciwae = 0.5 * (vae + by_group)
        error = by_group.std() / math.sqrt(len(by_group))
    assert vae.mean() < ciwae.mean() < by_group.mean() < evidence + 3 * error
    assert evidence - found[0] > 0.1  # there is a gap to close


def test_with_the_exact_posterior_every_bound_is_the_evidence() -> None:
    toy, _ = _toy(variance=0.5)
    parameters = toy.optimum()
    weights = toy.log_weights(parameters, _noise(_POINTS, _M, _K, _SIZE))
    evidence = toy.log_evidence(parameters.mean)
    torch.testing.assert_close(weights, evidence[:, None, None].expand_as(weights))
    for losses in (bounds.elbo(weights), bounds.piwae(weights), bounds.ciwae(weights, 0.4)):
        assert losses.phi.item() == pytest.approx(-evidence.mean().item())
    torch.testing.assert_close(
        bounds.effective_sample_size(weights), torch.full((_POINTS, _M), float(_K)).double()
    )


def test_the_gradient_of_the_elbo_is_unbiased() -> None:
    """Against its expectation: mean of the posterior minus mean, and mean + x - 2 that mean."""
    toy, parameters = _toy()
    found = torch.stack(
        [torch.cat([g.flatten() for g in _gradients(bounds.elbo, 8, 1, seed=s)[1]])
         for s in range(300)]
    )  # fmt: skip
    with torch.no_grad():
        center = toy.data @ parameters.matrix.T + parameters.bias
        bracket = parameters.mean + toy.data - 2 * center
        matrix = bracket.T @ toy.data / _POINTS
        parts = [(center - parameters.mean).mean(0), matrix.flatten(), bracket.mean(0)]
        _assert_unbiased(found, -torch.cat(parts))


def test_dreg_has_the_expectation_of_iwae_and_less_noise() -> None:
    toy, parameters = _toy()
    noise = _noise(_POINTS, 4000, _K, _SIZE)
    bias = parameters.bias.expand(4000, -1).detach().requires_grad_()  # one for each estimate

    def estimates(objective: Objective, detach: bool) -> Tensor:
        center = (toy.data @ parameters.matrix.T)[:, None, None] + bias[None, :, None]
        z = center + math.sqrt(toy.variance) * noise
        x = toy.data[:, None, None]
        base = center.detach() if detach else center
        squares = (z - parameters.mean) ** 2 + (x - z) ** 2 - (z - base) ** 2 / toy.variance
        weights = -squares.sum(-1) / 2
        loss = objective(weights.flatten(0, 1).unsqueeze(1)).phi * weights[..., 0].numel()
        return torch.autograd.grad(loss / _POINTS, bias)[0]

    plain, double = estimates(bounds.iwae, False), estimates(bounds.dreg, True)
    difference = plain - double
    _assert_unbiased(difference, torch.zeros(_SIZE, dtype=torch.float64))
    assert (double.var(0) < 0.5 * plain.var(0)).all()
    assert double.mean(0).norm() > 0.05  # there is something to estimate


def test_dreg_gives_theta_the_gradient_of_iwae() -> None:
    _, found = _gradients(bounds.dreg, 1, _K, detach=True)
    _, wanted = _gradients(bounds.iwae, 1, _K)
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-12)


def _assert_unbiased(estimates: Tensor, expected: Tensor) -> None:
    """Within 4.5 standard errors, each of a dozen numbers."""
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert ((estimates.mean(0) - expected).abs() < 4.5 * error).all()


def test_backward_adds_to_each_set_its_own_gradient_only() -> None:
    theta, phi, frozen, idle = (Parameter(torch.tensor(v)) for v in (2.0, 3.0, 5.0, 7.0))
    frozen.requires_grad_(False)
    for _ in range(2):
        losses = bounds.Losses(theta * phi * frozen, theta * phi**2)
        bounds.backward(losses, [theta, frozen], [phi, idle])
    assert theta.grad.item() == 2 * 15 and phi.grad.item() == 2 * 12
    assert frozen.grad is None and idle.grad is None
    one = theta * phi
    bounds.backward(bounds.Losses(one, one), [theta], [phi])
    assert theta.grad.item() == 33 and phi.grad.item() == 26
    bounds.backward(bounds.Losses(theta * phi, theta * phi), [], [phi])  # only one network learns
    assert theta.grad.item() == 33 and phi.grad.item() == 28


def test_a_parameter_of_both_networks_is_an_error() -> None:
    shared = Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match="in theta and in phi"):
        bounds.backward(bounds.elbo(shared.view(1, 1, 1)), [shared], [shared])


def test_effective_samples_count_from_one_to_all() -> None:
    weights = torch.tensor([[0.0, 0.0, 0.0, 0.0], [500.0, 0.0, 0.0, 0.0], [9.0, 9.0, -500, -500]])
    found = bounds.effective_sample_size(weights)
    torch.testing.assert_close(found, torch.tensor([4.0, 1.0, 2.0]))


def test_evidence_in_chunks_is_that_of_all_particles_without_gradients() -> None:
    weights = (100 * _noise(2, 7, 30) - 5000).requires_grad_()
    chunks = (part for part in weights.split([1, 4, 2], 1))
    found = bounds.log_evidence(chunks)
    torch.testing.assert_close(found, bounds.log_mean_exp(weights.flatten(1)).detach())
    assert not found.requires_grad
    with pytest.raises(ValueError, match="at least one"):
        bounds.log_evidence([])


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 0, 5)])
def test_other_shapes_are_refused_with_the_cure(shape: tuple[int, ...]) -> None:
    for objective in (bounds.elbo, bounds.iwae, bounds.miwae, bounds.piwae, bounds.dreg):
        with pytest.raises(ValueError, match="unsqueeze"):
            objective(torch.zeros(shape))


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_ciwae_wants_a_share(beta: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        bounds.ciwae(torch.zeros(1, 1, 1), beta)
