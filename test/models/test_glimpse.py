# SPDX-License-Identifier: Apache-2.0
"""Glimpses against the image itself, finite differences and the cost of large images."""

import math

import pytest
import torch

import oc_perception.models.glimpse as module
from oc_perception.models.glimpse import glimpse


def smooth_images(batch: int, height: int, width: int) -> torch.Tensor:
    """`(B, 3, H, W)` in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    phase = 2 * math.pi * torch.rand(batch, 3, 1, 1, generator=generator)
    y, x = torch.arange(height)[:, None] / width, torch.arange(width) / width
    return 0.5 + 0.25 * (torch.sin(7 * x + 3 * y + phase) + torch.cos(5 * y - 4 * x + phase))


def square(height: int, width: int, top: int, left: int, side: int) -> torch.Tensor:
    image = torch.zeros(1, 3, height, width)
    image[:, :, top : top + side, left : left + side] = 1
    return image


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_a_window_as_large_as_the_image_shows_the_image(height: int, width: int) -> None:
    images = smooth_images(2, height, width)
    whole = torch.tensor([0.5, height / width / 2, 1.0, height / width]).expand(2, 1, 4)
    error = (glimpse(images, whole, (height, width))[:, 0] - images).abs().mean()
    assert error < 1e-2


def test_the_window_is_where_the_square_is() -> None:
    image = square(48, 64, top=10, left=30, side=8)
    window = torch.tensor([[[34 / 64, 14 / 64, 16 / 64, 16 / 64]]])
    seen = glimpse(image, window, (16, 16))[0, 0, 0]
    assert torch.equal(seen > 0.5, square(16, 16, top=4, left=4, side=8)[0, 0] > 0.5)


def test_gradient_matches_central_differences() -> None:
    images = smooth_images(1, 30, 40).double()
    mix = torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def read(window: torch.Tensor) -> torch.Tensor:
        return (glimpse(images, window.view(1, 1, 4), (8, 8)) * mix).sum()

    window = torch.tensor([0.43, 0.31, 0.3, 0.25], requires_grad=True)
    (gradient,) = torch.autograd.grad(read(window), window)
    step = 1e-3
    differences = torch.stack(
        [(read(window + step * e) - read(window - step * e)) / (2 * step) for e in torch.eye(4)]
    )
    assert (gradient - differences).norm() < 1e-2 * differences.norm()


def test_outside_of_the_image_glimpses_fade_to_zero() -> None:
    images = torch.ones(1, 3, 64, 64)
    window = torch.tensor([0.5, 0.5, 0.25, 0.25])
    centres = torch.tensor([0.5, 0.97, 1.05, 1.3, 40.0])
    windows = window.repeat(5, 1)
    windows[:, 0] = centres
    sums = glimpse(images, windows[None], (16, 16))[0].mean((1, 2, 3))
    assert sums.isfinite().all()
    assert sums[0] == pytest.approx(1, abs=1e-3)
    assert 0.3 < sums[1] < 0.9
    assert sums[3:].abs().max() < 1e-4
    assert (sums.diff() <= 1e-6).all()


@pytest.mark.parametrize("extent", [0.0, 5.0])
def test_degenerate_windows_stay_finite(extent: float) -> None:
    windows = torch.tensor([[[0.5, 0.5, extent, extent]]], requires_grad=True)
    seen = glimpse(smooth_images(1, 40, 130), windows, (8, 8))
    seen.sum().backward()
    assert seen.isfinite().all()
    assert windows.grad.isfinite().all()


def test_a_crop_shows_what_the_whole_image_would(monkeypatch: pytest.MonkeyPatch) -> None:
    images = smooth_images(2, 120, 160)
    generator = torch.Generator().manual_seed(2)
    windows = torch.rand(2, 5, 4, generator=generator) * torch.tensor([1.2, 1.0, 0.2, 0.2])
    cropped = glimpse(images, windows, (16, 16))
    monkeypatch.setattr(module, "_SIGMAS", 1000.0)
    assert (cropped - glimpse(images, windows, (16, 16))).abs().max() < 1e-2


def test_no_tensor_grows_with_the_image() -> None:
    windows = torch.full((1, 4, 4), 0.5)
    windows[..., 2:] = 20 / 2000

    def largest(height: int, width: int) -> int:
        sizes = [0]

        class Watch(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                if isinstance(result, torch.Tensor):
                    sizes.append(result.numel())
                return result

        images = torch.zeros(1, 3, height, width)
        scaled = windows * torch.tensor([1, 1, 2000 / width, 2000 / width])
        with Watch():
            glimpse(images, scaled, (16, 16))
        return max(sizes)

    assert largest(1500, 2000) == largest(150, 200)
