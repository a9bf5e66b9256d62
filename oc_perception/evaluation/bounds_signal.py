# SPDX-License-Identifier: Apache-2.0
"""How the signal of gradients depends on M groups of K particles, on the Gaussian toy (Rainforth
et al. 2018, "Tighter Variational Bounds are Not Necessarily Better", section 4).

Gradients are in closed form. With noise e, variance s^2 of the proposal and its mean m,

    d log w / d mean = m + s e - mean        d log w / d bias = c - 2 s e,  c = mean + x - 2 m
    log w = s c e + (1/2 - s^2) e^2 + constant

so that any weighted sum over particles follows from the weighted sum of their noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oc_perception.objectives.gradient_signal import (
    directional_signal_to_noise,
    random_directional,
    rms_signal_to_noise,
)
from oc_perception.worlds.gaussian_toy import GaussianToy, Parameters

BETA = 0.5  # of the CIWAE that is measured
_CPU_NUMBERS = 2**21  # drawn at once: they stay in the cache
_GPU_NUMBERS = 2**28


class Regime(NamedTuple):
    """How far the parameters are from the optimum, and the variance of the proposal."""

    offset_std: float
    variance: float


REGIMES = {"near": Regime(0.01, 2 / 3), "far": Regime(0.5, 1.0)}


@dataclass(frozen=True)
class SignalConfig:
    """`counts`: particles, of one group each, and groups, of one particle each."""

    points: int = 256
    dimensions: int = 20
    repeats: int = 2000
    counts: tuple[int, ...] = (1, 3, 10, 30, 100, 300)
    groups: tuple[int, ...] = (1, 3, 10, 30, 100)
    seed: int = 0

    def tables(self) -> dict[str, list[tuple[int, int]]]:
        """Pairs of M and K: more particles, more groups, and 64 weights shared out differently."""
        return {
            "particles": [(1, k) for k in self.counts],
            "groups": [(m, 1) for m in self.groups],
            "of_64": [(1, 64), (8, 8), (64, 1)],
        }


@torch.no_grad()
def estimate_gradients(
    toy: GaussianToy,
    parameters: Parameters,
    settings: Sequence[tuple[int, int]],
    repeats: int,
    generator: torch.Generator,
) -> dict[str, dict[tuple[int, int], Tensor]]:
    """Independent estimates `(repeats, D)` of gradients of the bounds, by setting `(M, K)`:

    `theta` and `phi`, of MIWAE by `mean` and by `bias`; `ciwae` and `dreg`, by `bias`, means over
    M groups too. All settings see the same noise, from its beginning on.
    """
    x, s = toy.data, math.sqrt(toy.variance)
    points, size = x.shape
    proposal = x @ parameters.matrix.T + parameters.bias
    c = parameters.mean + x - 2 * proposal
    most = max(m * k for m, k in settings)
    budget = _CPU_NUMBERS if generator.device.type == "cpu" else _GPU_NUMBERS
    width = min(points, max(1, budget // (most * size)))
    height = min(repeats, max(1, budget // (width * most * size)))
    sums = {setting: torch.zeros(3, repeats, size).to(x) for setting in settings}
    for first in range(0, repeats, height):
        rows = slice(first, min(first + height, repeats))
        for left in range(0, points, width):
            part = c[left : left + width]
            noise = torch.randn(
                rows.stop - rows.start,
                len(part),
                most,
                size,
                generator=generator,
                device=x.device,
                dtype=x.dtype,
            )
            squares = torch.linalg.vector_norm(noise, dim=-1).square_()
            log_weights = s * (noise @ part.unsqueeze(2)).squeeze(3) + (0.5 - s * s) * squares
            for m, k in settings:
                weights = log_weights[..., : m * k].unflatten(2, (m, k)).softmax(3)
                weighting = torch.stack([weights, weights.square(), torch.ones_like(weights) / k])
                weighting = weighting.flatten(3).div_(m).movedim(0, 2)
                found = weighting @ noise[:, :, : m * k]
                # the weights of DReG do not sum to 1
                found[:, :, 1] *= 1 / s - 2 * s
                found[:, :, 1] += weighting[:, :, 1].sum(2, keepdim=True) * part
                sums[m, k][:, rows] += found.sum(1).movedim(1, 0)
    result: dict[str, dict[tuple[int, int], Tensor]] = {}
    for setting, (posterior, dreg, prior) in ((key, v / points) for key, v in sums.items()):
        bias = c.mean(0) - 2 * s * posterior
        values = {
            "theta": (proposal - parameters.mean).mean(0) + s * posterior,
            "phi": bias,
            "ciwae": (1 - BETA) * bias + BETA * (c.mean(0) - 2 * s * prior),
            "dreg": dreg,
        }
        for name, estimates in values.items():
            result.setdefault(name, {})[setting] = estimates
    return result


def measure(config: SignalConfig, regime: Regime, device: str = "cpu") -> dict[str, Any]:
    """Tables by name, as those of `config`, of rows `m`, `k` and, by gradient, `snr`, `dsnr` and
    `dsnr_tightest`, against the direction that most particles have; `rmse` and `bias` of the one
    for theta, from the gradient of the evidence. And `random`, the `dsnr` of no signal.
    """
    generator = torch.Generator(device).manual_seed(config.seed)
    toy = GaussianToy(generator, config.points, config.dimensions, regime.variance)
    parameters = toy.near_optimum(regime.offset_std, generator)
    tables = config.tables()
    settings = [*dict.fromkeys(pair for pairs in tables.values() for pair in pairs)]
    gradients = estimate_gradients(toy, parameters, settings, config.repeats, generator)
    target = (toy.data - parameters.mean).mean(0).double() / 2
    tightest = (1, max(config.counts))
    directions = {name: found[tightest].double().mean(0) for name, found in gradients.items()}
    rows = {}
    for m, k in settings:
        row: dict[str, Any] = {"m": m, "k": k, "snr": {}, "dsnr": {}, "dsnr_tightest": {}}
        for name, direction in directions.items():
            estimates = gradients[name][m, k].double()
            row["snr"][name] = rms_signal_to_noise(estimates)
            row["dsnr"][name] = directional_signal_to_noise(estimates)
            row["dsnr_tightest"][name] = directional_signal_to_noise(estimates, direction)
        misses = gradients["theta"][m, k].double() - target
        row["rmse"] = misses.square().sum(1).mean().sqrt().item()
        row["bias"] = misses.mean(0).norm().item()
        rows[m, k] = row
    return {
        "random": random_directional(config.dimensions),
        **{name: [rows[pair] for pair in pairs] for name, pairs in tables.items()},
    }
