# SPDX-License-Identifier: Apache-2.0
"""Pictures of discs: where they are drawn, in which colours, before which background."""

from dataclasses import replace

import pytest
import torch

from oc_perception.worlds.disc_physics import REGIMES
from oc_perception.worlds.disc_pictures import NEGATIVE, POSITIVE
from oc_perception.worlds.registry import create_world


def drawn(regime, batch=4, frames=5, size=64, **config):
    world = create_world("discs", {"regime": regime, **config}, batch, 2)
    motion = world.sample_motion(frames)
    return world, motion, *world.draw(motion, size, size)


@pytest.mark.parametrize("regime", list(REGIMES))
def test_pictures_have_the_promised_shapes_and_ranges(regime):
    _, motion, images, labels = drawn(regime, 2, 3)
    assert images.shape == (2, 3, 3, 64, 64) and labels.shape == (2, 3, 64, 64)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() >= 0 and images.max() <= 1
    numbers = torch.arange(1, motion.present.shape[2] + 1).view(1, 1, -1, 1, 1)
    seen = (labels.unsqueeze(2) == numbers).any((-1, -2))
    assert (seen | ~motion.visible).all() and not (seen & ~motion.present).any()


def test_discs_are_drawn_where_they_are():
    """The centroid of what a disc adds to the black background, to a tenth of a pixel."""
    world, motion, *_ = drawn("D1", 16, num_objects=[1, 1])
    images, labels = world.draw(motion, 64, 64)
    light = images[:, :, 0]
    pixel = torch.arange(64) + 0.5
    x = (light.sum(-2) * pixel).sum(-1) / light.sum((-1, -2))
    y = (light.sum(-1) * pixel).sum(-1) / light.sum((-1, -2))
    error = torch.stack([x, y], -1) - motion.positions[:, :, 0] * 64
    assert error.abs().max() < 0.1
    area = torch.pi * (0.06 * 64) ** 2
    assert ((light.sum((-1, -2)) / area - 1).abs() < 0.02).all()
    assert ((labels == 1).sum((-1, -2)) / area - 1).abs().max() < 0.1


def test_the_colour_of_a_disc_is_its_own_up_to_the_edge():
    _, motion, images, labels = drawn("R1", 8, num_objects=[3, 5])
    rgb = motion.hidden["rgb"][:, :1]
    for n in range(5):
        pixel = (labels == n + 1).unsqueeze(2)
        distance = (images - rgb[:, :, n, :, None, None]).abs().amax(2, keepdim=True)
        assert (distance[pixel] < 0.51).all() and distance[pixel].median() < 1e-5
        assert pixel.any((-1, -2, -3)).equal(motion.present[:, :, n])
    background = images[(labels == 0).unsqueeze(2).expand_as(images)]
    assert background.quantile(0.05) > 0.02 and background.quantile(0.9) < 0.35


def test_unique_colours_differ_and_are_saturated():
    world = create_world("discs", {"num_objects": [5, 5]}, 64, 0)
    rgb = world.sample(16, 16).factors["rgb"]
    assert rgb.amax(-1).eq(1).all() and rgb.amin(-1).eq(0).all()
    gaps = torch.cdist(rgb, rgb) + 9 * torch.eye(5)
    assert gaps.min() > 0.99
    world = create_world("discs", {"num_objects": [5, 5], "unique_colours": False}, 64, 0)
    rgb = world.sample(16, 16).factors["rgb"]
    assert (torch.cdist(rgb, rgb) + 9 * torch.eye(5)).min() < 0.1


def test_mohart_domains_show_charges_before_black():
    _, motion, images, labels = drawn("D2", 4, num_objects=[5, 5])
    assert images.movedim(2, -1)[labels == 0].quantile(0.8) == 0
    for charge, colour in ((1, POSITIVE), (-1, NEGATIVE)):
        numbers = torch.arange(1, 6) * (motion.features[..., 0] == charge)
        middle = (labels.unsqueeze(2) == numbers[..., None, None]) & (labels > 0).unsqueeze(2)
        pixels = images.movedim(2, -1)[middle.any(2)]
        assert torch.equal(pixels.median(0).values, torch.tensor(colour))


def test_later_discs_and_bars_lie_in_front():
    world, motion, *_ = drawn("R1o", 1, 1, num_objects=[2, 2])
    middle = torch.full_like(motion.positions, 0.5)
    motion = replace(
        motion,
        positions=middle,
        sizes=torch.tensor([0.1, 0.06])[:, None].expand_as(motion.sizes),
        hidden={**motion.hidden, "bars": torch.tensor([[[[0.5, 0.62]]]])},
    )
    images, labels = world.draw(motion, 64, 64)
    assert not labels[..., 32:].any()
    assert labels[0, 0, 31, 31] == 2 and labels[0, 0, 31, 29] == 1
    assert torch.equal(images[0, 0, :, 31, 31], motion.hidden["rgb"][0, 0, 1])
    assert (images[0, 0, :, :, 33:39] == 0.5).all()


def test_the_background_moves_with_the_world():
    world, motion, *_ = drawn("R5", 1, 2, num_objects=[1, 1])
    camera = motion.hidden["camera"].clone()
    camera[:, 0, 0], camera[:, 1, 0] = 0.0, torch.tensor([0.125, -0.0625])  # 8 and -4 pixels
    away = torch.full_like(motion.positions, -1.0)
    images, labels = world.draw(
        replace(motion, positions=away, hidden={**motion.hidden, "camera": camera}), 64, 64
    )
    assert not labels.any()
    torch.testing.assert_close(images[0, 1, :, 4:, :56], images[0, 0, :, :60, 8:])
    assert images[0, 0].std((-1, -2)).min() > 0.005


def test_a_scene_is_a_first_frame():
    world = create_world("discs", {"num_objects": [3, 5]}, 16, 3)
    scenes = world.sample(64, 64)
    assert scenes.images.shape == (16, 3, 64, 64) and scenes.labels.shape == (16, 64, 64)
    assert scenes.present.sum(1).unique().tolist() == [3, 4, 5]
    seen = torch.stack([(scenes.labels == n + 1).any((1, 2)) for n in range(5)], 1)
    assert torch.equal(seen, scenes.present)
    again = create_world("discs", {"num_objects": [3, 5]}, 16, 3)
    motion = again.sample_motion(1)
    assert torch.equal(again.draw(motion, 64, 64)[0][:, 0], scenes.images)
    assert torch.equal(scenes.factors["position"], motion.positions[:, 0])


def test_pictures_of_a_slice_are_slices_of_the_pictures():
    world, motion, images, labels = drawn("R1o", 20, 8)  # more frames than are painted at once
    part, part_labels = world.draw(motion[5:9, 3:], 64, 64)
    torch.testing.assert_close(part, images[5:9, 3:])
    assert torch.equal(part_labels, labels[5:9, 3:])
