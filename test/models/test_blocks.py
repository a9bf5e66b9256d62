# SPDX-License-Identifier: Apache-2.0
"""Shared blocks against the plain way to compute the same."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from oc_perception.models.blocks import (
    broadcast_convolution,
    coordinate_grid,
    doubled_convolution,
    doubling_weights,
)


def test_coordinates_run_from_left_to_right_and_from_top_to_bottom():
    x, y = coordinate_grid(3, 5)
    assert x[0].tolist() == [-1, -0.5, 0, 0.5, 1] and torch.equal(x[0], x[2])
    assert y[:, 0].tolist() == [-1, 0, 1] and torch.equal(y[:, 0], y[:, 4])


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (5, 2), (3, 0), (1, 0), (5, 1)])
def test_broadcast_convolution_equals_tiling_and_convolving(kernel, padding):
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 7, kernel, padding=padding).double()
    z = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    grid = coordinate_grid(8, 9).double()
    tiled = z[..., None, None].expand(-1, -1, 8, 9)
    expected = convolution(torch.cat([tiled, grid.expand(3, -1, -1, -1)], 1))
    result = broadcast_convolution(convolution, z, grid)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    inputs = (z, convolution.weight, convolution.bias)
    for ours, plain in zip(
        torch.autograd.grad((result * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (5, 3)])
def test_doubled_convolution_equals_enlarging_stacking_and_convolving(shape):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3 + 2, 4, 3, padding=1, bias=False).double()
    x = torch.randn(2, 3, *shape, dtype=torch.double)
    skip = torch.randn(2, 2, *(2 * side for side in shape), dtype=torch.double)
    enlarged = F.interpolate(x, scale_factor=2, mode="nearest")
    expected = convolution(torch.cat([enlarged, skip], 1))
    result = doubled_convolution(doubling_weights(convolution, 2), x, skip)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
