# SPDX-License-Identifier: Apache-2.0
"""Losses of reweighted wake-sleep against their definitions and exact divergences."""

import math

import pytest
import torch
from enumeration import LOG_JOINT, LOGITS, draw
from torch import nn

from oc_perception.objectives.bounds import backward
from oc_perception.objectives.wake_sleep import (
    defensive,
    delta_wake_wake,
    sleep,
    wake_phi,
    wake_sleep,
    wake_theta,
    wake_wake,
)

POSTERIOR = LOG_JOINT.softmax(0)
EXACT = LOGITS.softmax(0) - POSTERIOR  # gradient of KL(p(z | x) || q(z | x)) by the logits of q


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def wake_phi_gradient(particles, draws):
    logits, z, _, log_q = draw(seeded(), draws, particles)
    return torch.autograd.grad(wake_phi(LOG_JOINT[z], log_q), logits)[0].sum(0)


def test_wake_phi_of_many_particles_descends_the_forward_divergence():
    error = wake_phi_gradient(2000, 1000) - EXACT
    assert error.norm() < 0.02 * EXACT.norm()


def test_wake_phi_of_two_particles_is_biased():
    error = wake_phi_gradient(2, 200_000) - EXACT
    assert error.norm() > 0.3 * EXACT.norm()


def test_both_gradients_are_those_of_their_definitions():
    theta = nn.Parameter(torch.randn(3, 4, 5, generator=seeded()).double())
    phi = nn.Parameter(torch.randn(3, 4, 5, generator=seeded(1)).double())
    losses = wake_wake(theta, phi)
    backward(losses, [theta], [phi])
    weights = (theta - phi).detach().softmax(-1)
    bound = (theta - phi).logsumexp(-1).mean() - math.log(5)
    assert losses.theta.item() == pytest.approx(-bound.item(), abs=1e-12)
    expected = torch.autograd.grad(-bound, theta)[0]
    torch.testing.assert_close(theta.grad, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(phi.grad, -weights / 12, atol=1e-6, rtol=0)


def test_neither_loss_leaks_into_the_other_parameters():
    theta, phi = (torch.randn(2, 1, 3, generator=seeded(s)).requires_grad_() for s in (0, 1))
    losses = wake_wake(theta, phi)
    assert torch.autograd.grad(losses.theta, phi, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(losses.phi, theta, allow_unused=True)[0] is None


def test_one_particle_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        wake_wake(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1))


def test_dreams_descend_the_forward_divergence_exactly():
    logits = LOGITS.clone().requires_grad_()
    z = torch.multinomial(POSTERIOR, 200_000, True, generator=seeded())
    gradient = torch.autograd.grad(sleep(logits.log_softmax(0)[z]), logits)[0]
    assert (gradient - EXACT).norm() < 0.02 * EXACT.norm()
    losses = wake_sleep(torch.zeros(1, 1, 2), torch.ones(1, 1, 2), torch.tensor([-1.0, -3.0]))
    assert losses.theta.item() == 1 and losses.phi.item() == 2


def test_defensive_mixture_is_normalised_and_covers():
    log_q = torch.tensor([0.0, -200.0, -300.0])
    mixture = defensive(log_q, -math.log(3), 0.3)
    assert mixture.exp().sum().item() == pytest.approx(1)
    assert mixture[1].exp().item() == pytest.approx(0.1)
    for delta in (0.0, 1.0):
        with pytest.raises(ValueError, match="delta"):
            defensive(log_q, -math.log(3), delta)


def test_particles_of_the_mixture_teach_q_what_it_never_samples():
    logits = torch.tensor([0.0, -50.0]).double()
    log_joint = torch.tensor([-3.0, -1.0]).double()

    def phi_gradient(delta):
        leaf = logits.clone().requires_grad_()
        log_probabilities = leaf.log_softmax(0)
        log_mixture = defensive(log_probabilities.detach(), -math.log(2), delta)
        z = torch.multinomial(log_mixture.exp(), 4000, True, generator=seeded()).view(1, 1, -1)
        losses = delta_wake_wake(
            torch.zeros(1, 1, 2), torch.zeros(1, 1, 2),
            log_joint[z], log_probabilities[z], log_mixture[z],
        )  # fmt: skip
        return torch.autograd.grad(losses.phi, leaf)[0]

    exact = logits.softmax(0) - log_joint.softmax(0)
    assert (phi_gradient(0.2) - exact).norm() < 0.1 * exact.norm()
    assert phi_gradient(1e-9).norm() < 1e-3


def test_theta_of_delta_wake_wake_uses_particles_of_q():
    log_p = torch.randn(2, 1, 4, generator=seeded()).requires_grad_()
    other = torch.randn(2, 1, 4, generator=seeded(1)).requires_grad_()
    log_q = torch.zeros(2, 1, 4)
    losses = delta_wake_wake(log_p, log_q, other, log_q, log_q)
    assert losses.theta.item() == pytest.approx(wake_theta(log_p, log_q).item())
