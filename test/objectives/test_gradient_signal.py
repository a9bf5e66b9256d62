# SPDX-License-Identifier: Apache-2.0
"""Diagnostics of gradients, on random numbers whose ratios are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from oc_perception.objectives import gradient_signal


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_ratios_of_known_normals(generator: torch.Generator) -> None:
    mean, std = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([1.0, 4.0, 1.0])
    estimates = mean + std * torch.randn(20_000, 3, generator=generator)
    found = gradient_signal.signal_to_noise(estimates)
    torch.testing.assert_close(found, torch.tensor([2.0, 0.25, 0.0]), rtol=0, atol=0.05)
    rms = gradient_signal.rms_signal_to_noise(estimates)
    assert rms == pytest.approx(math.sqrt((4 + 1 / 16) / 3), rel=0.02)


def test_noise_alone_has_no_debiased_signal(generator: torch.Generator) -> None:
    noise = torch.randn(100, 4000, generator=generator)
    assert gradient_signal.signal_to_noise(noise).mean() == pytest.approx(0.08, rel=0.05)
    signal = 0.3 + noise
    assert gradient_signal.rms_signal_to_noise(signal) == pytest.approx(0.3, rel=0.05)
    assert gradient_signal.rms_signal_to_noise(noise) < 0.08


def test_parameters_without_gradient_count_for_nothing() -> None:
    estimates = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert gradient_signal.signal_to_noise(estimates)[1] == 0
    alone = gradient_signal.rms_signal_to_noise(estimates[:, :1])
    assert gradient_signal.rms_signal_to_noise(estimates) == alone
    assert gradient_signal.rms_signal_to_noise(torch.zeros(5, 2)) == 0


def test_direction_of_random_vectors_and_of_known_ones(generator: torch.Generator) -> None:
    noise = torch.randn(40_000, 20, generator=generator)
    found = gradient_signal.directional_signal_to_noise(noise, torch.ones(20))
    assert found == pytest.approx(gradient_signal.random_directional(20), rel=0.02)
    vectors = torch.tensor([[3.0, 4.0], [3.0, -4.0]])
    assert gradient_signal.directional_signal_to_noise(vectors) == pytest.approx(3 / 4)
    sideways = gradient_signal.directional_signal_to_noise(vectors, torch.tensor([0.0, 2.0]))
    assert sideways == pytest.approx(4 / 3)


def test_gradients_of_random_weights_leave_the_model_alone(generator: torch.Generator) -> None:
    long, short, idle = (
        Parameter(torch.ones(50, 2)),
        Parameter(torch.ones(3)),
        Parameter(torch.ones(4)),
    )
    scale = torch.arange(100.0).view(50, 2)

    def loss() -> torch.Tensor:
        noise = torch.randn((), generator=generator)
        return (long * scale).sum() + (noise + 1) * short.sum()

    found = gradient_signal.sample_gradients(loss, [long, short, idle], 6, generator, entries=10)
    assert found.shape == (6, 10 + 3 + 4)
    assert (found[:, :10] == found[0, :10]).all() and len(set(found[0, :10].tolist())) == 10
    assert (found[:, 10:13] == found[:, 10:11]).all() and found[:, 10].std() > 0.1
    assert (found[:, 13:] == 0).all()
    assert long.grad is None
    with pytest.raises(ValueError, match="at least 2"):
        gradient_signal.sample_gradients(loss, [long], 1, generator)


def test_the_slope_is_the_exponent() -> None:
    x = [1, 3, 10, 300]
    assert gradient_signal.slope(x, [7 * v**-0.5 for v in x]) == pytest.approx(-0.5)
