# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import chi2, multivariate_normal

from oc_perception.evaluation.forecast import (
    anees,
    bootstrap,
    coverage,
    displacement_errors,
    distances,
    gain_interval,
    gaussian_nll,
    inside,
    mean,
    mean_interval,
    skill_interval,
    squared_mahalanobis,
    sums_by_sequence,
)


def random_covariances(rng, shape):
    factor = rng.normal(size=(*shape, 2, 2)) * rng.uniform(0.01, 10, (*shape, 1, 1))
    return factor @ factor.swapaxes(-1, -2) + 1e-4 * np.eye(2)


def test_nll_and_mahalanobis_equal_scipy():
    rng = np.random.default_rng(0)
    predicted, truth = rng.normal(size=(2, 4, 5, 6, 2))
    covariances = random_covariances(rng, (4, 5, 6))
    nll = gaussian_nll(predicted, covariances, truth)
    squared = squared_mahalanobis(predicted, covariances, truth)
    assert nll.shape == squared.shape == (4, 5, 6)
    for i in np.ndindex(nll.shape):
        expected = -multivariate_normal(predicted[i], covariances[i]).logpdf(truth[i])
        assert nll[i] == pytest.approx(expected, rel=1e-9)
        offset = truth[i] - predicted[i]
        expected = offset @ np.linalg.inv(covariances[i]) @ offset
        assert squared[i] == pytest.approx(expected, rel=1e-9)


def test_a_longer_unit_lowers_nll_by_its_log_squared_and_leaves_mahalanobis():
    rng = np.random.default_rng(1)
    predicted, truth = rng.normal(size=(2, 50, 2))
    covariances = random_covariances(rng, (50,))
    np.testing.assert_allclose(
        gaussian_nll(predicted / 10, covariances / 100, truth / 10),
        gaussian_nll(predicted, covariances, truth) - 2 * np.log(10),
    )
    np.testing.assert_allclose(
        squared_mahalanobis(predicted / 10, covariances / 100, truth / 10),
        squared_mahalanobis(predicted, covariances, truth),
    )


def test_calibration_of_right_and_wrong_covariances():
    rng = np.random.default_rng(2)
    covariances = random_covariances(rng, (20_000,))
    factor = np.linalg.cholesky(covariances)
    truth = (factor @ rng.normal(size=(20_000, 2, 1)))[..., 0]
    squared = squared_mahalanobis(np.zeros(2), covariances, truth)
    assert anees(squared) == pytest.approx(1, abs=0.03)
    for probability in (0.5, 0.9, 0.99):
        assert coverage(squared, probability) == pytest.approx(probability, abs=0.01)
    overconfident = squared_mahalanobis(np.zeros(2), covariances / 4, truth)
    assert anees(overconfident) == pytest.approx(4, abs=0.12)
    assert coverage(overconfident) == pytest.approx(chi2.cdf(chi2.ppf(0.9, 2) / 4, 2), abs=0.01)


def test_ellipse_bounds_are_those_of_chi_squared():
    for probability in (0.5, 0.9, 0.99):
        bound = chi2.ppf(probability, 2)
        result = inside(np.array([bound * (1 - 1e-9), bound * (1 + 1e-9), np.nan]), probability)
        np.testing.assert_array_equal(result, [1, 0, np.nan])


def test_displacement_errors_of_known_tracks():
    truth = np.zeros((3, 4, 2))
    predicted = np.zeros((3, 4, 2))
    predicted[..., 0] = [3, 6, 9, 12]
    predicted[..., 1] = [4, 8, 12, 16]
    truth[1, 3] = truth[2] = np.nan
    ade, fde = displacement_errors(predicted, truth)
    np.testing.assert_allclose(ade, [12.5, 10, np.nan])
    np.testing.assert_allclose(fde, [20, np.nan, np.nan])
    np.testing.assert_allclose(distances(predicted[0], truth[0]), [5, 10, 15, 20])


def test_what_is_unknown_is_left_out():
    rng = np.random.default_rng(3)
    predicted, truth = rng.normal(size=(2, 6, 7, 2))
    covariances = random_covariances(rng, (6, 7))
    full = squared_mahalanobis(predicted, covariances, truth)
    hidden = rng.random((6, 7)) < 0.4
    truth[hidden], covariances[hidden] = np.nan, 0.0  # whatever stands there
    squared, nll = (f(predicted, covariances, truth) for f in (squared_mahalanobis, gaussian_nll))
    np.testing.assert_array_equal(np.isnan(squared), hidden)
    np.testing.assert_array_equal(np.isnan(nll), hidden)
    assert anees(squared) == pytest.approx(full[~hidden].mean() / 2)
    assert coverage(squared, 0.5) == pytest.approx((full[~hidden] <= chi2.ppf(0.5, 2)).mean())
    nothing = np.full((2, 3), np.nan)
    assert np.isnan([mean(nothing), anees(nothing), coverage(nothing)]).all()
    assert mean(np.array([1.0, np.inf])) == np.inf


@pytest.mark.parametrize("matrix", [np.zeros((2, 2)), [[1, 2], [2, 1]], np.full((2, 2), np.nan)])
def test_covariances_that_are_none_are_refused(matrix):
    covariances = np.stack([np.eye(2), matrix])
    with pytest.raises(ValueError, match="1 of 2 covariances are not positive definite"):
        gaussian_nll(np.zeros((2, 2)), covariances, np.ones((2, 2)))


def test_sums_count_only_what_all_methods_know():
    first = np.array([[1.0, 2.0, np.nan], [4.0, 5.0, 6.0]])
    second = np.array([[10.0, np.nan, 30.0], [40.0, 50.0, 60.0]])
    np.testing.assert_array_equal(sums_by_sequence(first, second), [[1, 10, 1], [15, 150, 3]])
    np.testing.assert_array_equal(sums_by_sequence(first)[:, 1], [2, 3])


def test_interval_of_a_mean_equals_scipy():
    values = np.random.default_rng(4).gamma(2, size=60)
    ours = mean_interval(values, np.random.default_rng(5))
    theirs = scipy_bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(6))
    assert ours.value == pytest.approx(values.mean())
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)


def test_intervals_hold_the_truth_as_often_as_they_say_although_objects_are_not_independent():
    rng = np.random.default_rng(7)
    hits_sequences = hits_objects = 0
    for _ in range(120):
        shared = rng.normal(size=(40, 1))
        values = 3 + shared + 0.5 * rng.normal(size=(40, 8))
        values[rng.random(values.shape) < 0.2] = np.nan
        interval = mean_interval(values, rng)
        hits_sequences += interval.low <= 3 <= interval.high
        interval = mean_interval(values.reshape(-1, 1), rng)
        hits_objects += interval.low <= 3 <= interval.high
    assert 106 <= hits_sequences <= 119
    assert hits_objects < 90


def test_skill_and_gain_are_ratios_of_means_and_not_means_of_ratios():
    rng = np.random.default_rng(8)
    oracle, model, baseline = (rng.gamma(4, scale, (100, 5)) for scale in (0.1, 0.3, 1.0))
    skill = skill_interval(model, baseline, oracle, rng)
    expected = (baseline.mean() - model.mean()) / (baseline.mean() - oracle.mean())
    assert skill.value == pytest.approx(expected)
    gain = gain_interval(model, baseline, rng)
    assert gain.value == pytest.approx(1 - model.mean() / baseline.mean())
    # Width by the delta method: variance of (model - ratio * baseline) / mean baseline.
    ratio = model.mean() / baseline.mean()
    residual = (model - ratio * baseline).mean(1) / baseline.mean()
    width = 2 * 1.96 * residual.std() / np.sqrt(100)
    assert gain.high - gain.low == pytest.approx(width, rel=0.15)
    assert skill.low < skill.value < skill.high
    assert skill_interval(baseline, baseline, oracle, rng).value == 0
    np.testing.assert_allclose(gain_interval(0 * model, baseline, rng).low, 1)


def test_bootstrap_repeats_with_its_generator():
    sums = np.random.default_rng(9).gamma(2, size=(30, 2))

    def run(seed):
        return bootstrap(sums, lambda a, b: a / b, np.random.default_rng(seed))

    assert run(1) == run(1) != run(2)
    narrow = bootstrap(sums, lambda a, b: a / b, np.random.default_rng(1), probability=0.5)
    assert run(1).low < narrow.low < narrow.value < narrow.high < run(1).high


def test_bootstrap_of_little_or_nothing():
    rng = np.random.default_rng(10)
    nothing = mean_interval(np.full((5, 2), np.nan), rng)
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert np.isnan(mean_interval(np.zeros((0, 2)), rng).value)
    single = mean_interval(np.array([[2.0, 4.0]]), rng)
    assert (single.value, single.low, single.high) == (3, 3, 3)
    sparse = np.full((4, 2), np.nan)
    sparse[0] = 1.0  # in three of ten draws this sequence is missing
    assert mean_interval(sparse, rng).low == 1
