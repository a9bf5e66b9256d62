# SPDX-License-Identifier: Apache-2.0
"""The mixture of Gaussians: draws, densities and posteriors."""

import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from oc_perception.worlds.mixture import GaussianMixture, sample_categorical


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_components_are_drawn_as_often_as_told_and_points_around_their_means():
    world = GaussianMixture()
    z, x = world.sample(world.true_log_prior(), 200_000, seeded())
    share = torch.bincount(z, minlength=20) / len(z)
    expected = torch.arange(5.0, 25.0) / torch.arange(5.0, 25.0).sum()
    assert (share - expected).abs().max() < 0.003
    residual = x - 10 * z
    assert residual.mean().abs() < 0.05 and (residual.std() - 5).abs() < 0.05


def test_evidence_is_that_of_the_mixture_and_the_posterior_is_bayes_rule():
    world, x = GaussianMixture(), torch.linspace(-20, 210, 47)
    prior = world.true_log_prior()
    joint = prior + world.log_likelihood(x.unsqueeze(1), torch.arange(20))
    oracle = MixtureSameFamily(Categorical(logits=prior), Normal(10.0 * torch.arange(20), 5.0))
    torch.testing.assert_close(joint.logsumexp(1), oracle.log_prob(x))
    expected = (joint - oracle.log_prob(x).unsqueeze(1)).exp()
    torch.testing.assert_close(world.posterior(x, prior), expected, atol=1e-5, rtol=1e-4)


def test_impossible_categories_are_never_drawn():
    log_probabilities = torch.tensor([[-torch.inf, 0.0, -torch.inf], [-0.7, -torch.inf, -0.69]])
    drawn = sample_categorical(log_probabilities, 10_000, seeded())
    assert (drawn[0] == 1).all() and not (drawn[1] == 1).any()
