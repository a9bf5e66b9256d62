# SPDX-License-Identifier: Apache-2.0
"""Association against SciPy's densities, brute force and pooled statistics."""

import itertools

import numpy as np
import pytest
from scipy.stats import chi2, multivariate_normal

from oc_perception.tracking.association import (
    AppearanceModel,
    assign,
    chi_square_gate,
    position_log_likelihood,
)


@pytest.mark.parametrize("probability", [0.5, 0.9, 0.999])
def test_gate_equals_chi_square(probability):
    assert chi_square_gate(probability) == pytest.approx(chi2.ppf(probability, 2))


def test_position_likelihood_equals_scipy():
    rng = np.random.default_rng(0)
    means, positions = rng.normal(0, 30, (3, 4)), rng.normal(0, 30, (5, 2))
    factor = rng.normal(0, 3, (3, 4, 4))
    covariances = factor @ factor.transpose(0, 2, 1)
    noises = rng.uniform(1, 5, (3, 5, 1, 1)) * np.eye(2)
    log_likelihood, distance = position_log_likelihood(means, covariances, positions, noises)
    for i, j in itertools.product(range(3), range(5)):
        total = covariances[i, :2, :2] + noises[i, j]
        expected = multivariate_normal(means[i, :2], total).logpdf(positions[j])
        assert log_likelihood[i, j] == pytest.approx(expected)
        gap = positions[j] - means[i, :2]
        assert distance[i, j] == pytest.approx(gap @ np.linalg.solve(total, gap))


def best_by_brute_force(log_odds):
    rows, columns = log_odds.shape
    best = 0.0
    for choice in itertools.product(range(-1, columns), repeat=rows):
        used = [c for c in choice if c >= 0]
        if len(used) == len(set(used)):
            best = max(best, sum(log_odds[r, c] for r, c in enumerate(choice) if c >= 0))
    return best


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (2, 4), (4, 4), (5, 3)])
def test_assignment_equals_brute_force(shape):
    rng = np.random.default_rng(1)
    for _ in range(40):
        log_odds = rng.normal(0, 3, shape)
        log_odds[rng.random(shape) < 0.3] = -np.inf
        rows, columns = assign(log_odds)
        assert (log_odds[rows, columns] > 0).all()
        assert len(set(rows)) == len(set(columns)) == len(rows)
        assert log_odds[rows, columns].sum() == pytest.approx(best_by_brute_force(log_odds))


def learn(model, means, counts, samples, track_memory=10**9, model_memory=10**9):
    for observed in samples:
        model, means, counts = model.learn(means, counts, observed, track_memory, model_memory)
    return model, means, counts


def test_pooled_variance_equals_the_two_pass_formula():
    rng = np.random.default_rng(2)
    samples = rng.normal([0, 5, -3], [1, 2, 0.1], (40, 4, 3)) + rng.normal(0, 9, (4, 3))
    model, means, counts = learn(
        AppearanceModel.prior(3, 0.5, 8), np.zeros((4, 3)), np.zeros(4), samples
    )
    squares = ((samples - samples.mean(0)) ** 2).sum((0, 1))
    np.testing.assert_allclose(model.variance, (squares + 0.5 * 8) / (39 * 4 + 8))
    np.testing.assert_allclose(means, samples.mean(0))
    assert (counts == 40).all()


def test_forgetting_follows_a_change_of_noise():
    rng = np.random.default_rng(3)
    start = AppearanceModel.prior(1, 100.0, 10), np.zeros((2, 1)), np.zeros(2)
    model, _, _ = learn(*start, rng.normal(0, 1, (2000, 2, 1)), 50, 200)
    assert model.variance[0] == pytest.approx(1.0, rel=0.3)


def test_what_identifies_counts_and_what_wanders_does_not():
    """Dimension 0 is a constant colour per object, dimension 1 walks over the same range too."""
    rng = np.random.default_rng(4)
    colour = np.array([-1.0, 0.0, 1.0])
    time = np.linspace(0, 30, 600)[:, None]
    samples = np.stack(
        [
            colour + rng.normal(0, 0.05, (600, 3)),
            np.sin(time + rng.uniform(0, 6, 3)) + rng.normal(0, 0.05, (600, 3)),
        ],
        -1,
    )
    model, means, counts = learn(
        AppearanceModel.prior(2, 0.1, 20), np.zeros((3, 2)), np.zeros(3), samples, 150
    )
    observed = np.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    ratio = model.log_ratio(means, counts, observed)
    assert abs(ratio[1, 0] - ratio[1, 1]) < 3  # moved to the other side: hardly matters
    assert (ratio[1, :2] > 0).all() and ratio[2, 2] > 0
    assert ratio[1, 2] < -20 and (ratio[[0, 2], 0] < -20).all()


def test_log_ratio_is_free_of_the_scale_of_the_embedding():
    rng = np.random.default_rng(5)
    samples = rng.normal(0, 0.1, (200, 4, 3)) + rng.normal(0, 1, (4, 3))
    ratios = []
    for scale in (1.0, 1e3):
        prior = AppearanceModel.prior(3, 0.1 * scale**2, 20)
        model, means, counts = learn(prior, np.zeros((4, 3)), np.zeros(4), scale * samples)
        ratios.append(model.log_ratio(means, counts, scale * samples[0]))
    np.testing.assert_allclose(*ratios)
    assert (ratios[0].argmax(1) == np.arange(4)).all()


def test_a_track_of_unknown_look_is_indifferent():
    model = AppearanceModel.prior(2, 0.1, 20)
    observed = np.array([[3.0, 3.0]])
    assert model.log_ratio(np.zeros((1, 2)), np.zeros(1), observed) == 0
