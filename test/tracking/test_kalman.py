# SPDX-License-Identifier: Apache-2.0
"""The motion model against matrix exponentials, the update against a random process."""

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.stats import chi2

from oc_perception.tracking.kalman import MotionModel, inverse_2x2, update


def van_loan(diffusion, decay, dt):
    """F and Q of the stochastic differential equation, by the exponential of Van Loan (1978)."""
    drift = np.zeros((4, 4))
    drift[[0, 1], [2, 3]] = 1
    drift[[2, 3], [2, 3]] = -decay
    block = np.zeros((8, 8))
    block[:4, :4] = -drift
    block[:4, 4:] = np.diag([0, 0, diffusion, diffusion])
    block[4:, 4:] = drift.T
    exponential = expm(block * dt)
    return expm(drift * dt), exponential[4:, 4:].T @ exponential[:4, 4:]


@pytest.mark.parametrize("decay", [0.0, 1e-9, 0.03, 0.5, 3.0])
@pytest.mark.parametrize("dt", [0.0, 1e-3, 1 / 30, 0.2, 1.0, 3.0])
def test_moments_equal_the_matrix_exponential(decay, dt):
    model = MotionModel(7.0, decay)
    transition, noise = van_loan(7.0, decay, dt)
    np.testing.assert_allclose(model.transition(dt), transition, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(model.process_noise(dt), noise, rtol=1e-7, atol=1e-13)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.7])
def test_two_short_predictions_equal_one_long(decay):
    model, rng = MotionModel(3.0, decay), np.random.default_rng(1)
    for a, b in rng.uniform(0, 2, (50, 2)):
        later = model.transition(b)
        np.testing.assert_allclose(
            model.transition(a + b), later @ model.transition(a), rtol=1e-12
        )
        composed = later @ model.process_noise(a) @ later.T + model.process_noise(b)
        np.testing.assert_allclose(model.process_noise(a + b), composed, rtol=1e-9, atol=1e-15)


def test_series_meets_the_closed_form():
    below, above = (MotionModel(1.0, 0.5 + e).process_noise(1.0) for e in (-1e-13, 1e-13))
    np.testing.assert_allclose(below, above, rtol=1e-11)


def test_damped_velocity_forgets_and_stays_bounded():
    model = MotionModel(2.0, 0.5)
    assert np.allclose(model.transition(100.0)[2:, 2:], 0)
    np.testing.assert_allclose(model.process_noise(100.0)[2, 2], 2.0 / (2 * 0.5))


@pytest.mark.parametrize("dt", [-1e-9, np.nan, np.inf])
def test_time_that_is_not_elapsed_is_refused(dt):
    with pytest.raises(ValueError, match="Elapsed time"):
        MotionModel(1.0).predict(np.zeros(4), np.eye(4), dt)


def random_covariances(rng, count, size):
    factor = rng.normal(size=(count, size, size))
    return factor @ np.swapaxes(factor, -1, -2) + 0.1 * np.eye(size)


def test_batch_equals_one_by_one_and_the_textbook():
    rng, model = np.random.default_rng(2), MotionModel(1.3, 0.4)
    means, covariances = rng.normal(size=(6, 4)), random_covariances(rng, 6, 4)
    positions, noises = rng.normal(size=(6, 2)), random_covariances(rng, 6, 2)
    predicted, spread = model.predict(means, covariances, 0.7)
    corrected, posterior = update(predicted, spread, positions, noises)
    observe = np.eye(2, 4)
    for i in range(6):
        transition = model.transition(0.7)
        mean = transition @ means[i]
        prior = transition @ covariances[i] @ transition.T + model.process_noise(0.7)
        np.testing.assert_allclose(predicted[i], mean)
        np.testing.assert_allclose(spread[i], prior)
        # the information form shares nothing with gain and Joseph form
        information = np.linalg.inv(prior) + observe.T @ np.linalg.inv(noises[i]) @ observe
        expected = np.linalg.inv(information)
        np.testing.assert_allclose(posterior[i], expected, rtol=1e-9)
        weighted = (
            np.linalg.inv(prior) @ mean + observe.T @ np.linalg.inv(noises[i]) @ positions[i]
        )
        np.testing.assert_allclose(corrected[i], expected @ weighted, rtol=1e-9)


def test_covariance_stays_positive_over_long_and_badly_scaled_runs():
    rng, model = np.random.default_rng(3), MotionModel(1e-6, 0.1)
    mean, covariance = np.zeros((3, 4)), np.tile(np.diag([1e8, 1e8, 1e10, 1e10]), (3, 1, 1))
    noise = 1e-6 * np.eye(2)
    for dt in rng.choice([1e-6, 1e-3, 1 / 30, 5.0], 2000):
        mean, covariance = model.predict(mean, covariance, dt)
        mean, covariance = update(mean, covariance, rng.normal(0, 1e-3, (3, 2)), noise)
        assert np.array_equal(covariance, np.swapaxes(covariance, 1, 2))
        assert np.linalg.eigvalsh(covariance).min() > 0


def test_many_horizons_in_one_call_equal_single_predictions():
    rng, model = np.random.default_rng(4), MotionModel(2.0, 0.3)
    means, covariances = rng.normal(size=(5, 4)), random_covariances(rng, 5, 4)
    horizons = np.array([0.1, 0.5, 2.0])
    many = model.predict(means[:, None], covariances[:, None], horizons)
    for j, dt in enumerate(horizons):
        for whole, single in zip(many, model.predict(means, covariances, dt), strict=True):
            np.testing.assert_allclose(whole[:, j], single, rtol=1e-12)


def test_inverse_2x2_equals_lapack():
    matrices = random_covariances(np.random.default_rng(5), 20, 2)
    np.testing.assert_allclose(inverse_2x2(matrices), np.linalg.inv(matrices), rtol=1e-9)


def test_errors_are_as_large_as_the_covariance_says():
    """Normalised estimation error squared over many runs lies within its chi-square bounds."""
    rng, runs, model = np.random.default_rng(6), 2000, MotionModel(900.0, 0.5)
    truth = np.concatenate([rng.normal(0, 3, (runs, 2)), rng.normal(0, 50, (runs, 2))], 1)
    mean = np.zeros((runs, 4))
    covariance = np.tile(np.diag([9.0, 9.0, 2500.0, 2500.0]), (runs, 1, 1))
    for dt in [1 / 30] * 20 + [0.5] + [1 / 30] * 10 + [1.0]:
        kick = np.linalg.cholesky(model.process_noise(dt))
        truth = truth @ model.transition(dt).T + rng.normal(size=(runs, 4)) @ kick.T
        mean, covariance = model.predict(mean, covariance, dt)
        error = truth - mean
        squared = np.einsum("ni,nij,nj->n", error, np.linalg.inv(covariance), error).sum()
        low, high = chi2.ppf([1e-5, 1 - 1e-5], 4 * runs)
        assert low < squared < high
        seen = truth[:, :2] + rng.normal(0, 2, (runs, 2))
        if dt < 0.1:
            mean, covariance = update(mean, covariance, seen, 4 * np.eye(2))
