# SPDX-License-Identifier: Apache-2.0
"""Mini shapes: how they move, what a pixel shows of them, and whose it is."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.glyphs import first_corners, folded, observed, paint
from oc_perception.worlds.mini_shapes import SHAPES, templates
from oc_perception.worlds.registry import create_world


def world(batch=64, seed=1, **config):
    return create_world("mini_shapes", config, batch, seed)


def corners(motion):
    return motion.positions - motion.sizes / 2


def test_shapes_begin_apart_and_wholly_on_the_canvas():
    motion = world(256, num_objects=[2, 4]).sample_motion(1)
    low, high = corners(motion)[:, 0], (corners(motion) + motion.sizes)[:, 0]
    assert (low >= 0).all() and (high <= 1 + 1e-6).all()
    meet = ((low.unsqueeze(2) < high.unsqueeze(1)) & (low.unsqueeze(1) < high.unsqueeze(2))).all(
        -1
    )
    present = motion.present[:, 0]
    pairs = (present.unsqueeze(2) & present.unsqueeze(1)).tril(-1)
    assert pairs.sum() > 500 and not (meet & pairs).any()
    assert motion.visible.equal(motion.present)


def test_places_are_as_likely_as_in_plain_rejection():
    shapes = world(4096, num_objects=[2, 2])
    sizes, present = torch.full((4096, 2, 2), 0.375), torch.ones(4096, 2).bool()
    found = first_corners(shapes, sizes, present)
    drawn = torch.rand(40000, 2, 2, generator=torch.Generator().manual_seed(0)) * 0.625
    expected = drawn[(drawn[:, 0] - drawn[:, 1]).abs().amax(-1) >= 0.375]
    for quantile in (0.1, 0.5, 0.9):
        assert found.quantile(quantile).item() == pytest.approx(
            expected.quantile(quantile).item(), abs=0.02
        )
    assert found[:, 0].mean(0).allclose(found[:, 1].mean(0), atol=0.02)


def test_shapes_keep_their_velocity_and_bounce_with_two_fifths_outside():
    motion = world(256, num_objects=[2, 2]).sample_motion(60)
    place, step = corners(motion) * 32, motion.velocities * motion.dt_s * 32
    assert step.abs().max() <= 2.5 + 1e-5 and step.abs().max() > 2.45
    assert place.min() >= -4.8 - 1e-4 and place.max() <= 32 - 12 + 4.8 + 1e-4
    assert place.min() < -4.7 and place.max() > 24.7  # walls were met
    assert step.abs().amax(1).allclose(step.abs().amin(1), atol=1e-4)
    straight = step[:, 1:] == step[:, :-1]
    assert straight.float().mean() > 0.9
    assert (place.diff(dim=1) - step[:, :-1])[straight].abs().max() < 1e-3
    assert motion.present.all() and motion.visible.float().mean() > 0.8
    outside = (-corners(motion)).clamp(min=0) + (corners(motion) + motion.sizes - 1).clamp(min=0)
    share = (1 - outside / motion.sizes).prod(-1)
    assert motion.visible.equal(share >= 0.5)


def test_a_folded_path_turns_round_at_the_mirrors():
    path = torch.tensor([0.0, 3.0, 5.0, 7.0, 10.0, 13.0, -2.0])
    place, step = folded(path, torch.ones(7), 0.0, 5.0)
    assert place.tolist() == pytest.approx([0, 3, 5, 3, 0, 3, 2], abs=1e-5)
    assert step.tolist() == [1, 1, 1, -1, 1, 1, -1]


def test_a_pixel_shows_the_mean_of_what_it_covers():
    shapes = world(32, num_objects=[1, 1])
    motion = shapes.sample_motion(8)
    coarse, fine = (shapes.draw(motion, size, size)[0] for size in (32, 128))
    pooled = avg_pool2d(fine.flatten(0, 1), 4).unflatten(0, (32, 8))
    assert coarse.allclose(pooled, atol=1e-5)
    assert coarse.shape == (32, 8, 3, 32, 32) and coarse.min() == 0 and coarse.max() == 1
    area = templates().mean((1, 2)) * 12 * 12  # all in view in the first frame
    assert coarse[:, 0, 0].sum((1, 2)).allclose(area[motion.hidden["label"][:, 0, 0]], rtol=1e-4)


def test_glyphs_at_whole_pixels_are_copied_and_the_brighter_one_is_seen():
    glyphs = torch.rand(1, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    corner = torch.tensor([[[[2.0, 3.0], [4.0, 1.0]]]]) / 16
    motion = observed(corner, 0 * corner, torch.full((1, 2, 2), 5 / 16),
                      torch.ones(1, 2).bool(), {})  # fmt: skip
    image, labels = paint(motion, glyphs, 1 / 16, 12, 16)
    layers = torch.zeros(2, 12, 16)
    layers[0, 3:8, 2:7], layers[1, 1:6, 4:9] = glyphs[0]
    assert image[0, 0].allclose(layers.amax(0).expand(3, -1, -1), atol=1e-6)
    expected = torch.where(layers.amax(0) >= 0.5, layers.argmax(0) + 1, 0)
    assert labels[0, 0].equal(expected) and labels.unique().tolist() == [0, 1, 2]


def test_nothing_is_drawn_of_what_is_not_there():
    shapes = world(128)
    motion = shapes.sample_motion(2)
    images, labels = shapes.draw(motion, 32, 32)
    counts = motion.present.sum(2)
    assert counts.unique().tolist() == [0, 1, 2]
    assert counts[:, 0].bincount().float().div(128).sub(1 / 3).abs().max() < 0.1
    assert (images.flatten(2).amax(2) > 0.9).equal(counts > 0)
    seen = torch.stack([(labels == n + 1).flatten(2).any(2) for n in range(2)], 2)
    assert seen[:, 0].equal(motion.present[:, 0])
    assert not seen[~motion.present].any()


def test_shapes_differ_and_fill_their_boxes():
    pictures = templates()
    assert len(pictures) == len(SHAPES) == 5
    for first in range(5):
        for second in range(first):
            assert (pictures[first] - pictures[second]).abs().mean() > 0.1
    for picture in pictures:
        rows, columns = picture.amax(1), picture.amax(0)
        assert min(rows[0], rows[-1], columns[0], columns[-1]) > 0.1


def test_the_same_seed_gives_the_same_sequences_and_another_one_others():
    first, same, other = (world(8, seed).sample_motion(5) for seed in (1, 1, 2))
    assert first.positions.equal(same.positions)
    assert not first.positions.equal(other.positions)
    late = first[:, 3:]
    assert late.hidden["label"].equal(first.hidden["label"][:, 3:]) and late.present.shape[1] == 2


def test_first_frames_come_with_what_is_in_them():
    scenes = world(16).sample(32, 32)
    assert scenes.images.shape == (16, 3, 32, 32) and scenes.labels.shape == (16, 32, 32)
    assert scenes.factors["shape"].shape == scenes.present.shape == (16, 2)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"num_objects": [2, 1]}, "low <= high"),
        ({"num_objects": [0, 5]}, "at most 4"),
        ({"speed_px": 13.0}, "speed_px"),
    ],
)
def test_a_bad_setting_is_refused_with_its_reason(config, reason):
    with pytest.raises(ConfigurationError, match=reason):
        world(**config)
