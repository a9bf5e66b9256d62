# SPDX-License-Identifier: Apache-2.0
"""Sprites: geometry, colours and occlusion of the published variants."""

import colorsys
import math

import pytest
import torch

from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.registry import create_world
from oc_perception.worlds.sprites import _inside


def scenes(batch=128, seed=3, size=64, **config):
    return create_world("sprites", config, batch, seed).sample(size, size)


@pytest.mark.parametrize(("shape", "area"), [(0, 368.6), (1, 285.9), (2, 226.0)])
@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5])
def test_areas_are_those_of_dsprites_at_any_angle_and_scale(shape, area, angle):
    for size in (0.5, 1.0):
        covered = _inside(
            torch.tensor([[shape]]), torch.tensor([[size]]), torch.tensor([[[0.5, 0.5]]]),
            torch.tensor([[angle]]), 512, 512,
        )  # fmt: skip
        assert covered.sum() / 64 == pytest.approx(area * size**2, rel=0.025)


def test_a_heart_stands_on_its_tip_and_turns_clockwise():
    upright = _inside(torch.tensor([[2]]), torch.tensor([[1.0]]), torch.tensor([[[0.5, 0.5]]]),
                      torch.tensor([[0.0]]), 64, 64)[0, 0]  # fmt: skip
    widths = upright.sum(1)
    rows = widths.nonzero().flatten()
    assert widths[rows[-1]] < widths[rows[0]]
    assert torch.equal(upright, upright.flip(1))
    assert 17 <= len(rows) <= 19 and 17 <= int(upright.any(0).sum()) <= 19
    turned = _inside(torch.tensor([[2]]), torch.tensor([[1.0]]), torch.tensor([[[0.5, 0.5]]]),
                     torch.tensor([[math.pi / 2]]), 64, 64)[0, 0]  # fmt: skip
    assert (turned != upright.rot90(-1)).float().mean() < 0.01


def test_later_sprites_lie_in_front_and_hidden_ones_are_left_out():
    sample = scenes(batch=256)
    covered = _inside(
        sample.factors["shape"], sample.factors["size"].squeeze(-1), sample.factors["position"],
        sample.factors["angle"].squeeze(-1), 64, 64,
    )  # fmt: skip
    expected = torch.zeros(256, 64, 64, dtype=torch.long)
    for n in range(5):
        here = covered[:, n] & sample.present[:, n, None, None]
        expected[here] = n + 1
    assert torch.equal(sample.labels, expected)
    seen = torch.stack([(sample.labels == n + 1).sum((1, 2)) for n in range(5)], 1)
    assert (seen[sample.present] >= 20).all() and (seen[~sample.present] == 0).all()


def test_numbers_of_objects_stay_in_their_range():
    present = scenes(batch=512, min_visible_px=0).present
    assert present.sum(1).unique().tolist() == [2, 3, 4, 5]
    assert scenes(batch=64, num_objects=[1, 1]).present.shape == (64, 1)


@pytest.mark.parametrize("background", ["grey", "coloured", "binary"])
def test_pixels_have_the_colour_of_their_sprite(background):
    sample = scenes(batch=32, background=background)
    for b in range(32):
        for n in range(5):
            pixels = sample.images[b][:, sample.labels[b] == n + 1]
            colour = sample.factors["rgb"][b, n]
            assert torch.equal(pixels, colour[:, None].expand_as(pixels))
        ground = sample.images[b][:, sample.labels[b] == 0]
        assert (ground == ground[:, :1]).all()
        if background == "grey":
            assert (ground[0] == ground[1]).all() and (ground[0] == ground[2]).all()
        if background == "binary":
            assert ground.max() == 0
    steps = sample.images * 255
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)


def test_grey_variant_has_saturated_colours_of_every_hue():
    rgb = scenes(batch=512).factors["rgb"].flatten(0, 1).tolist()
    hsv = [colorsys.rgb_to_hsv(*colour) for colour in rgb]
    assert min(s for _, s, _ in hsv) > 0.99 and min(v for _, _, v in hsv) > 0.99
    hues = torch.histc(torch.tensor([h for h, _, _ in hsv]), 12, 0, 1)
    assert hues.min() > 0.6 * hues.mean()


def test_positions_are_centres_of_what_is_seen():
    sample = scenes(batch=64, num_objects=[1, 1], min_visible_px=0)
    for b in range(64):
        rows, columns = (sample.labels[b] == 1).nonzero(as_tuple=True)
        seen = torch.stack([columns.float().mean() + 0.5, rows.float().mean() + 0.5]) / 64
        assert (seen - sample.factors["position"][b, 0]).abs().max() < 0.05


def test_another_size_draws_the_same_scene():
    large, small = scenes(size=64), scenes(size=32)
    agree = (large.labels[:, ::2, ::2] == small.labels).float().mean()
    assert agree > 0.97


def test_a_seed_repeats_and_draws_differ():
    world = create_world("sprites", {}, 8, 1)
    first, second = world.sample(32, 32).images, world.sample(32, 32).images
    assert torch.equal(first, create_world("sprites", {}, 8, 1).sample(32, 32).images)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"background": "gray"}, "grey"),
        ({"num_objects": [3, 2]}, "num_objects"),
        ({"scale": [0.0, 1.0]}, "scale"),
        ({"sprites": 3}, "Unknown key"),
    ],
)
def test_bad_settings_are_refused(settings, reason):
    with pytest.raises(ConfigurationError, match=reason):
        scenes(**settings)
