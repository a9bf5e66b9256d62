# SPDX-License-Identifier: Apache-2.0
"""Score-function estimators against sums over every latent."""

import math
from typing import NamedTuple

import pytest
import torch
from enumeration import draw, standardised_errors

from oc_perception.objectives.score_function import (
    leave_one_out,
    reinforce,
    vimco,
    vimco_released,
)


def errors(estimator):
    logits, _, log_weights, log_q = draw(torch.Generator().manual_seed(0))
    losses = estimator(log_weights, log_q)
    return standardised_errors(torch.autograd.grad(losses.phi, logits)[0] * len(logits))


@pytest.mark.parametrize(
    "estimator",
    [reinforce, lambda weights, log_q: reinforce(weights, log_q, -1.5), vimco],
    ids=["reinforce", "baseline", "vimco"],
)
def test_gradient_of_the_bound_is_unbiased(estimator):
    assert (errors(estimator) < 4).all()


def test_released_signal_is_biased_for_the_bound():
    assert errors(vimco_released).max() > 20


def test_left_out_particle_leaves_no_trace():
    log_weights = torch.tensor([[0.3, -2.0, 1.1, 0.0]])
    moved = log_weights + torch.tensor([0.0, 0.0, 5.0, 0.0])
    before, after = leave_one_out(log_weights), leave_one_out(moved)
    assert before[0, 2] == after[0, 2]
    assert (before[0, [0, 1, 3]] < after[0, [0, 1, 3]]).all()


def test_left_out_particle_is_replaced_by_geometric_mean():
    log_weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
    w = log_weights.exp()
    expected = ((w[:, 1] * w[:, 2]).sqrt() + w[:, 1] + w[:, 2]).div(3).log()
    torch.testing.assert_close(leave_one_out(log_weights)[:, 0], expected)


def test_one_huge_weight_does_not_blur_the_others():
    log_weights = torch.tensor([[0.5, -1e8, 0.25]])
    expected = math.log((math.exp(0.375) + math.exp(0.5) + math.exp(0.25)) / 3)
    assert leave_one_out(log_weights)[0, 1].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("estimator", [vimco, vimco_released])
def test_leaving_out_needs_two_particles(estimator):
    with pytest.raises(ValueError, match="at least two"):
        estimator(torch.zeros(3, 1, 1), torch.zeros(3, 1, 1))


def test_groups_average_their_bounds():
    generator = torch.Generator().manual_seed(2)
    log_weights = torch.randn(2, 3, 4, generator=generator)
    log_q = torch.randn(2, 3, 4, generator=generator)
    split = vimco(log_weights.view(6, 1, 4), log_q.view(6, 1, 4))
    torch.testing.assert_close(vimco(log_weights, log_q).phi, split.phi)


class Switch(NamedTuple):
    """z ~ Bern, u ~ N(0, 1), x | z, u ~ N(u + 2 z, 0.5^2); q(z) Bern, q(u | z) normal.

    Parameters `(5,)`: logit of q(z = 1), means of q(u | z), log stds of q(u | z).
    """

    x: float
    prior: float

    def log_weights(self, phi, z, noise):
        """log w and log q(z), where u = mean_z + std_z * noise."""
        logit, means, log_stds = phi[..., :1], phi[..., 1:3], phi[..., 3:5]
        log_q_z = torch.nn.functional.logsigmoid(torch.where(z, logit, -logit))
        mean = torch.where(z, means[..., 1:], means[..., :1])
        log_std = torch.where(z, log_stds[..., 1:], log_stds[..., :1])
        u = mean + log_std.exp() * noise
        log_p = torch.where(z, math.log(self.prior), math.log(1 - self.prior))
        log_p = log_p - u.square() / 2 - ((self.x - u - 2 * z) / 0.5).square() / 2
        return log_p - (log_q_z - log_std - noise.square() / 2), log_q_z


def test_binary_and_reparameterised_latents_together_agree_with_quadrature():
    switch = Switch(x=1.2, prior=0.3)
    phi = torch.tensor([0.4, 0.2, -0.5, -0.7, -0.4], dtype=torch.float64)

    nodes = torch.linspace(-6, 6, 81, dtype=torch.float64)
    density = torch.exp(-nodes.square() / 2)
    density = density / density.sum()
    parameters = phi.clone().requires_grad_()
    bound = 0.0
    for first in (False, True):
        for second in (False, True):
            z = torch.tensor([first, second])
            noise = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij"), -1)
            log_weights, log_q = switch.log_weights(parameters, z.expand_as(noise), noise)
            expected = (log_weights.logsumexp(-1) - math.log(2)) * density.outer(density)
            bound = bound + (log_q[0, 0].sum().exp() * expected.sum())
    exact = -torch.autograd.grad(bound, parameters)[0]

    draws, generator = 200_000, torch.Generator().manual_seed(5)
    tiled = phi.expand(draws, 1, -1).clone().requires_grad_()
    uniform = torch.rand(draws, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(draws, 2, generator=generator, dtype=torch.float64)
    log_weights, log_q = switch.log_weights(tiled.squeeze(1), uniform < phi[0].sigmoid(), noise)
    loss = vimco(log_weights.unsqueeze(1), log_q.unsqueeze(1)).phi
    mean = (torch.autograd.grad(loss, tiled)[0] * draws).mean((0, 1))
    assert (mean - exact).norm() / exact.norm() < 0.05


def test_more_particles_tighten_the_bound_of_the_mixed_latents_up_to_the_evidence():
    switch = Switch(x=1.2, prior=0.3)
    phi = torch.tensor([0.4, 0.2, -0.5, -0.7, -0.4], dtype=torch.float64)
    generator = torch.Generator().manual_seed(6)
    uniform = torch.rand(20_000, 50, generator=generator, dtype=torch.float64)
    noise = torch.randn(20_000, 50, generator=generator, dtype=torch.float64)
    log_weights, _ = switch.log_weights(phi, uniform < phi[0].sigmoid(), noise)
    bounds = [
        (log_weights[:, :count].logsumexp(1) - math.log(count)).mean().item()
        for count in (1, 5, 50)
    ]
    # `log_weights` leave out the constant of p(x | z, u): the std of x given z is sqrt(1.25).
    squares = torch.tensor([1.2, -0.8], dtype=torch.float64).square() / 1.25
    shares = torch.tensor([0.7, 0.3], dtype=torch.float64).log()
    evidence = (shares - squares / 2).logsumexp(0).item() + math.log(0.5 / math.sqrt(1.25))
    assert bounds[0] < bounds[1] < bounds[2] < evidence + 0.002
    assert evidence - bounds[2] < 0.1 < evidence - bounds[0]
