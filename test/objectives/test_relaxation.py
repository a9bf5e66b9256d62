# SPDX-License-Identifier: Apache-2.0
"""Control variates and relaxations of categorical latents."""

import math

import pytest
import torch
from enumeration import CATEGORIES, DRAWS, LOG_JOINT, LOGITS, draw, standardised_errors

from oc_perception.objectives.bounds import log_mean_exp
from oc_perception.objectives.relaxation import (
    conditional_gumbels,
    gumbels,
    log_concrete,
    log_concrete_density,
    rebar_control,
    relax,
    relax_gradients,
)
from oc_perception.objectives.score_function import reinforce


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def both_gumbels(logits, z, generator):
    """Of unconditional draws, the latents `(draws, 1, K)` and both kinds of Gumbels."""
    log_probabilities = logits.log_softmax(-1)[:, None, None].expand(-1, 1, z.shape[-1], -1)
    free = gumbels(log_probabilities, generator)
    z = free.argmax(-1)
    return z, free, conditional_gumbels(log_probabilities, z, generator)


def free_form(logits, weights):
    """A control variate of no special form."""
    first, second = weights

    def control(g):
        return (torch.tanh(g @ first) @ second).mean(-1)

    return control


def rebar(logits, parameters):
    """That of REBAR, with soft probabilities, which depend on the logits directly too."""

    def relaxed_log_weights(y):
        log_q = (y * logits.log_softmax(-1)[:, None, None]).sum(-1)
        return (y * LOG_JOINT).sum(-1) - log_q

    return lambda g: rebar_control(g, relaxed_log_weights, *parameters)


def controlled(form, parameters):
    """Logits, log-weights, log_q and both controls of many draws."""
    logits, z, _, _ = draw(seeded())
    z, free, conditional = both_gumbels(logits, z, seeded(1))
    log_q = logits.log_softmax(-1).gather(-1, z.squeeze(1)).unsqueeze(1)
    control = form(logits, parameters)
    return logits, (LOG_JOINT[z] - log_q, log_q, control(free), control(conditional))


FORMS = {
    "free form": (
        free_form,
        [torch.randn(CATEGORIES, 3, generator=seeded(2)).double(), torch.ones(3).double()],
    ),
    "rebar": (rebar, [torch.tensor(-0.4).double(), torch.tensor(0.8).double()]),
}


@pytest.mark.parametrize("name", FORMS)
def test_any_control_variate_leaves_the_gradient_unbiased(name):
    logits, terms = controlled(*FORMS[name])
    gradients = torch.autograd.grad(relax(*terms).phi, logits)[0] * DRAWS
    assert (standardised_errors(gradients) < 4).all()


@pytest.mark.parametrize("name", FORMS)
def test_gradients_that_train_the_control_variate_are_those_of_the_loss(name):
    logits, terms = controlled(*FORMS[name])
    expected = torch.autograd.grad(relax(*terms).phi, logits, retain_graph=True)[0]
    torch.testing.assert_close(relax_gradients(*terms, [logits])[0].detach(), expected)


def test_training_the_control_variate_lowers_the_variance_below_that_of_reinforce():
    form, parameters = FORMS["rebar"]
    parameters = [parameter.clone().requires_grad_() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for seed in range(60):
        logits, z, _, _ = draw(seeded(seed), draws=500)
        z, free, conditional = both_gumbels(logits, z, seeded(100 + seed))
        log_q = logits.log_softmax(-1).gather(-1, z.squeeze(1)).unsqueeze(1)
        control = form(logits, parameters)
        terms = (LOG_JOINT[z] - log_q, log_q, control(free), control(conditional))
        (gradient,) = relax_gradients(*terms, [logits])
        optimizer.zero_grad()
        (gradient * len(gradient)).square().mean().backward(inputs=parameters)
        optimizer.step()
    logits, terms = controlled(form, parameters)
    learned = torch.autograd.grad(relax(*terms).phi, logits, retain_graph=True)[0]
    plain = torch.autograd.grad(reinforce(*terms[:2]).phi, logits)[0]
    assert learned.var(0).sum() < 0.7 * plain.var(0).sum()


def test_conditional_gumbels_have_their_maximum_where_told():
    log_probabilities = torch.tensor([0.0, -3.0, -120.0]).log_softmax(0).expand(900, -1)
    z = torch.arange(3).repeat(300)
    g = conditional_gumbels(log_probabilities, z, seeded())
    assert g.isfinite().all() and (g.argmax(-1) == z).all()


def test_conditional_gumbels_of_sampled_latents_are_distributed_as_unconditional_ones():
    log_probabilities = LOGITS.log_softmax(0).expand(DRAWS, -1)
    free = gumbels(log_probabilities, seeded())
    conditional = conditional_gumbels(log_probabilities, free.argmax(-1), seeded(1))
    for g in (free, conditional):
        torch.testing.assert_close(
            g.mean(0), log_probabilities[0] + 0.5772156649, atol=0.02, rtol=0
        )
        torch.testing.assert_close(
            g.var(0), torch.full_like(g[0], math.pi**2 / 6), atol=0.04, rtol=0
        )


@pytest.mark.parametrize("temperature", [0.4, 1.5])
def test_concrete_density_agrees_with_that_of_torch(temperature):
    log_probabilities = LOGITS.log_softmax(0)
    log_y = log_concrete(log_probabilities.expand(50, -1), temperature, seeded())
    oracle = torch.distributions.RelaxedOneHotCategorical(
        torch.tensor(temperature).double(), logits=log_probabilities
    )
    density = log_concrete_density(log_y, log_probabilities, temperature)
    torch.testing.assert_close(density - log_y.sum(-1), oracle.log_prob(log_y.exp()))


def test_concrete_bound_has_a_gradient_through_its_samples():
    logits = LOGITS.expand(20_000, -1).clone().requires_grad_()
    prior = LOG_JOINT.log_softmax(0)

    def bound(temperature):
        log_q = logits.log_softmax(-1)[:, None, None]
        log_y = log_concrete(log_q.expand(-1, 1, 2, -1), temperature, seeded())
        log_weights = log_concrete_density(log_y, prior, temperature)
        return log_mean_exp(log_weights - log_concrete_density(log_y, log_q, temperature))

    gradient = torch.autograd.grad(-bound(0.5).mean(), logits)[0].sum(0)
    towards = LOGITS.softmax(0) - prior.exp()  # downhill for KL(q || p) of the discrete model
    assert torch.nn.functional.cosine_similarity(gradient, towards, 0) > 0.8
