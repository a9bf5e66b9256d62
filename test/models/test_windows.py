# SPDX-License-Identifier: Apache-2.0
"""Windows of an image, against torch's own bilinear sampler and against one another."""

import math

import pytest
import torch
from torch.nn import functional

from oc_perception.models.windows import REACH, boxes_of, brightest, paint, read, where_of


def random_windows(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(rows, 4, generator=generator)


def test_reading_is_bilinear_interpolation():
    generator = torch.Generator().manual_seed(0)
    images, where = torch.rand(3, 20, 32, generator=generator), random_windows(6)
    found = read(images, where, 9)
    share, centre = where[:, :2].sigmoid(), REACH * (where[:, 2:] / REACH).tanh()
    scale = torch.diag_embed(share)
    theta = torch.cat([scale, centre[..., None]], -1)
    grid = functional.affine_grid(theta, [6, 1, 9, 9], align_corners=False)
    repeated = images.repeat_interleave(2, 0)[:, None]
    expected = functional.grid_sample(repeated, grid, align_corners=False)[:, 0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_what_is_painted_into_a_window_is_read_there_again():
    generator = torch.Generator().manual_seed(0)
    glimpses = torch.rand(4, 1, 8, 8, generator=generator)
    where = torch.tensor([where_of(0.25)]).repeat(4, 1)  # 8 of 32 px: cells are pixels
    painted = paint(glimpses, where[:, None], (32, 32))
    assert torch.allclose(read(painted, where, 8), glimpses[:, 0], atol=1e-5)
    assert painted.sum() == pytest.approx(glimpses.sum().item(), rel=1e-4)
    box = boxes_of(where, (32, 32))[0]
    assert torch.allclose(box, torch.tensor([0.5, 0.5, 0.25, 0.25]))


def test_windows_add_up():
    generator = torch.Generator().manual_seed(0)
    glimpses = torch.rand(2, 3, 6, 6, generator=generator)
    where = random_windows(6).view(2, 3, 4)
    together = paint(glimpses, where, (20, 30))
    single = sum(paint(glimpses[:, n : n + 1], where[:, n : n + 1], (20, 30)) for n in range(3))
    assert together.shape == (2, 20, 30)
    assert torch.allclose(together, single, atol=1e-5)


def test_boxes_are_in_image_widths_and_may_leave_the_image():
    where = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 100.0, -100.0]])
    middle, corner = boxes_of(where, (20, 40))
    assert middle.tolist() == [0.5, 0.25, 0.5, 0.25]
    assert corner[:2].tolist() == pytest.approx([(1 + REACH) / 2, (1 - REACH) / 4])


def test_windows_can_be_moved_by_gradient():
    """A window beside a bright spot is drawn to it."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    image = (-((x - 24) ** 2 + (y - 10) ** 2) / 50).exp()[None]
    where = torch.tensor([where_of(0.5)], requires_grad=True)
    read(image, where, 8)[:, 3:5, 3:5].sum().backward()
    assert where.grad[0, 2] > 0  # to the right
    assert where.grad[0, 3] < 0  # upwards


def test_a_window_of_no_size_has_no_infinite_gradient():
    where = torch.tensor([[[-50.0, -50.0, 0.0, 0.0]]], requires_grad=True)
    painted = paint(torch.ones(1, 1, 4, 4), where, (16, 16))
    painted.sum().backward()
    assert painted.isfinite().all() and where.grad.isfinite().all()


def test_where_of_gives_the_share():
    assert torch.tensor(where_of(0.375))[:2].sigmoid().tolist() == pytest.approx([0.375] * 2)
    assert math.isclose(where_of(0.5)[0], 0.0)


def test_the_brightest_spot_is_found_between_pixels():
    """Of a bright and a dim blob, in an image that is not square, with noise below zero."""
    height, width, radius = 24, 32, 0.06
    y = (torch.arange(height)[:, None] + 0.5) / width
    x = (torch.arange(width) + 0.5) / width

    def blob(column, row):
        return (-0.5 * ((x - column).square() + (y - row).square()) / radius**2).exp()

    centres = [(0.31, 0.2), (0.733, 0.51), (0.5, 0.4)]
    images = torch.stack([blob(*centre) for centre in centres])
    images = images + 0.6 * blob(0.5, 0.05) - 0.02
    where = torch.cat([torch.zeros(3, 2), brightest(images, radius)], 1)
    found = boxes_of(where, (height, width))[:, :2]
    assert torch.allclose(found, torch.tensor(centres), atol=0.3 / width)


def test_where_nothing_is_bright_the_spot_is_finite_and_in_the_middle():
    where = brightest(torch.full((2, 8, 8), -1.0), 0.1)
    assert torch.equal(where, torch.zeros(2, 2))
