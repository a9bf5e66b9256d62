# SPDX-License-Identifier: Apache-2.0
"""How far forecasts are off, whether their covariances tell so, and how sure these answers are.

Everything works on whole arrays: the leading axes `...` are sequences, objects and forecast steps
in any order. What cannot be compared (an object that is not there, a track that was lost) is NaN
in a position or a result, and left out of every mean. An infinite error is not left out.

Objects of one sequence act on one another and share its blackouts: they are no independent draws.
So intervals come from a bootstrap that draws whole sequences (Davison & Hinkley 1997, section 3.8;
percentiles as in Efron & Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Statistic = Callable[..., "float | np.ndarray"]


@dataclass(frozen=True)
class Interval:
    """An estimate, and the bounds that hold the truth with the probability asked for."""

    value: float
    low: float
    high: float


def distances(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distances `(...)` between positions `(..., 2)`, in their unit."""
    return np.linalg.norm(predicted - truth, axis=-1)


def displacement_errors(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ADE and FDE `(...)` of forecasts `(..., K, 2)`: mean distance over K steps, and the last.

    ADE is over the steps that are known, NaN if none is; FDE is NaN if the last one is not.
    """
    steps = distances(predicted, truth)
    known = ~np.isnan(steps)
    total = np.where(known, steps, 0.0).sum(-1)
    count = known.sum(-1)
    return np.where(count > 0, total / np.maximum(1, count), np.nan), steps[..., -1]


def squared_mahalanobis(
    predicted: np.ndarray, covariances: np.ndarray, truth: np.ndarray
) -> np.ndarray:
    """Squared distances `(...)` of positions `(..., 2)` in units of covariances `(..., 2, 2)`.

    Raises ValueError where a position is known and its covariance is not positive definite.
    """
    return _whiten(predicted, covariances, truth)[0]


def gaussian_nll(predicted: np.ndarray, covariances: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Negative log density `(...)` of truths `(..., 2)` under Gaussians with means `predicted`.

    In nats, and relative to the unit of length: in a unit k times as long it is less by 2 log k.
    Raises ValueError as `squared_mahalanobis` does.
    """
    squared, log_determinant = _whiten(predicted, covariances, truth)
    return (squared + log_determinant) / 2 + np.log(2 * np.pi)


def inside(squared: np.ndarray, probability: float = 0.9) -> np.ndarray:
    """1 where a truth is in the ellipse that should hold it with `probability`, else 0, or NaN.

    `squared` `(...)` are the Mahalanobis distances of `squared_mahalanobis`, which are chi-squared
    with 2 degrees of freedom if the covariances are right.
    """
    return np.where(np.isnan(squared), np.nan, squared <= -2 * np.log1p(-probability))


def coverage(squared: np.ndarray, probability: float = 0.9) -> float:
    """Share of truths inside the `probability` ellipse; NaN where nothing was compared."""
    return mean(inside(squared, probability))


def anees(squared: np.ndarray) -> float:
    """Average normalised estimation error squared: 1 is right, more is overconfident.

    Divided by the dimension (Bar-Shalom et al. 2001, section 5.4, have it be 2 instead).
    """
    return mean(squared) / 2


def mean(values: np.ndarray) -> float:
    """Mean of all values that are not NaN; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def sums_by_sequence(*values: np.ndarray) -> np.ndarray:
    """Sums of C arrays `(S, ...)` over all but the sequences, and what was counted: `(S, C + 1)`.

    Counted is where all of them are known: methods are compared on the same objects.
    """
    table = np.stack(values, -1).astype(float)
    known = ~np.isnan(table).any(-1, keepdims=True)
    counted = np.concatenate([np.where(known, table, 0.0), known], -1)
    return counted.sum(tuple(range(1, counted.ndim - 1)))


def bootstrap(
    sums: np.ndarray,
    statistic: Statistic,
    generator: np.random.Generator,
    probability: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Any ratio of sums over sequences, with the interval that redrawing sequences gives.

    `sums` `(S, C)` holds what each sequence adds. `statistic` takes C arrays, which are these
    columns added up over sequences, and works element by element. Draws in which it is not defined
    are left out; NaN if all are. A single sequence gives an interval of no width, not certainty.
    """
    count = len(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(*sums.sum(0))
        if not count or np.isnan(value):
            return Interval(float("nan"), float("nan"), float("nan"))
        place = generator.integers(count, size=(resamples, count))
        place += count * np.arange(resamples)[:, None]
        times = np.bincount(place.ravel(), minlength=resamples * count).reshape(resamples, count)
        drawn = statistic(*(times @ sums).T)
    tail = (1 - probability) / 2
    low, high = np.nanquantile(drawn, (tail, 1 - tail))
    return Interval(float(value), float(low), float(high))


def mean_interval(values: np.ndarray, generator: np.random.Generator) -> Interval:
    """Mean of `(S, ...)` over sequences and objects, with its 95 % interval."""
    return bootstrap(sums_by_sequence(values), lambda total, n: total / n, generator)


def skill_interval(
    model: np.ndarray, baseline: np.ndarray, oracle: np.ndarray, generator: np.random.Generator
) -> Interval:
    """Share of the way from a baseline's error to an oracle's, with its 95 % interval.

    From errors `(S, ...)` of the same objects: 0 is as good as the baseline, 1 as the oracle.
    """
    return bootstrap(
        sums_by_sequence(model, baseline, oracle),
        lambda error, worst, best, _: (worst - error) / (worst - best),
        generator,
    )


def gain_interval(
    model: np.ndarray, baseline: np.ndarray, generator: np.random.Generator
) -> Interval:
    """Share of a baseline's error that a model saves, with its 95 % interval.

    From errors `(S, ...)` of the same objects: 0 is none of it, 1 all of it.
    """
    return bootstrap(
        sums_by_sequence(model, baseline),
        lambda error, without, _: 1 - error / without,
        generator,
    )


def _whiten(
    predicted: np.ndarray, covariances: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squared Mahalanobis distances and log determinants `(...)`, by the Cholesky factor."""
    x, y = np.moveaxis(np.asarray(truth - predicted, float), -1, 0)
    xx, xy, yy = (covariances[..., i, j] for i, j in ((0, 0), (1, 0), (1, 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = xy / xx
        rest = yy - slope * xy  # variance of y where x is known
        positive = (xx > 0) & (rest > 0)
        squared = x**2 / xx + (y - slope * x) ** 2 / rest
        log_determinant = np.log(xx) + np.log(rest)
    bad = ~positive & ~np.isnan(x + y)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {bad.size} covariances are not positive definite. Is one of them "
            "zero, or NaN where its position is not?"
        )
    return squared, np.where(np.isnan(squared), np.nan, log_determinant)
