# SPDX-License-Identifier: Apache-2.0
"""Digits: where they come from, what is kept from training, how they move."""

import numpy as np
import pytest
import torch

from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.digits import Digits, _cropped, _mnist
from oc_perception.worlds.registry import create_world, held_out
from oc_perception.worlds.stroke_digits import draw_digits


def world(batch=32, seed=1, **config):
    return create_world("digits", {"source": "strokes", **config}, batch, seed)


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """60 pictures in the layout of the real file: squares whose side tells their number."""
    images = np.zeros((60, 28, 28), np.uint8)
    for index, image in enumerate(images):
        image[3 : 4 + index % 20, 5 : 6 + index % 20] = 100 + index
    (tmp_path / "mnist").mkdir()
    path = tmp_path / "mnist" / "mnist_train.npz"
    np.savez_compressed(path, images=images, labels=(np.arange(60) % 10).astype(np.uint8))
    monkeypatch.setenv("OC_DATA", str(tmp_path))
    _mnist.cache_clear()
    yield path
    _mnist.cache_clear()


def test_where_digits_come_from_is_chosen_and_told(small_mnist):
    sources = {name: world(2, source=name).source for name in ("auto", "mnist", "strokes")}
    assert sources == {"auto": "mnist", "mnist": "mnist", "strokes": "strokes"}
    small_mnist.unlink()
    _mnist.cache_clear()
    assert world(2, source="auto").source == "strokes"
    with pytest.raises(ConfigurationError, match=r"OC_DATA.*source: strokes"):
        world(2, source="mnist")


def test_a_file_that_is_not_what_it_should_be_is_refused(small_mnist):
    np.savez(small_mnist, images=np.zeros((3, 8, 8), np.uint8), labels=np.zeros(3, np.uint8))
    with pytest.raises(ConfigurationError, match=r"must hold images \(M, 28, 28\)"):
        world(2, source="mnist")
    np.savez(small_mnist, images=np.array([{}], object), labels=np.zeros(1, np.uint8))
    with pytest.raises(ConfigurationError, match="Cannot read the digits"):
        world(2, source="mnist")  # loading it would execute code
    small_mnist.write_bytes(b"not an archive")
    with pytest.raises(ConfigurationError, match="Cannot read the digits"):
        world(2, source="mnist")


def test_what_is_kept_from_training_are_the_last_digits_of_the_file(small_mnist):
    config = {"source": "mnist", "num_objects": [1, 1], "validation": 0.25}
    kept = held_out("digits", config)
    assert kept["split"] == "validation"
    shades = {}
    for name, settings in {"train": config, "validation": kept}.items():
        digits = create_world("digits", settings, 512, 1)
        images = digits.sample(50, 50).images
        shades[name] = images.flatten(1).amax(1).mul(255).round().int().unique().tolist()
    assert shades == {"train": list(range(100, 145)), "validation": list(range(145, 160))}
    assert len(world(2, source="mnist", split="all")._glyphs) == 60


def test_looks_boxes_and_labels_are_those_of_the_same_digit(small_mnist):
    digits = world(256, source="mnist", num_objects=[1, 1], split="all")
    motion = digits.sample_motion(1)
    images, labels = digits.draw(motion, 50, 50)
    number = images[:, 0, 0].flatten(1).amax(1).mul(255).round().int() - 100
    assert motion.hidden["label"][:, 0, 0].int().equal(number % 10)
    side = (number % 20 + 1).float() / 50
    assert motion.sizes[:, 0, 0].allclose(side.unsqueeze(-1).expand(-1, 2))
    pixel = torch.arange(50) + 0.5
    ink = images[:, 0, 0] > 0.1
    for axis, line in enumerate((ink.any(1), ink.any(2))):
        middle = (line * pixel).sum(1) / line.sum(1) / 50
        assert middle.allclose(motion.positions[:, 0, 0, axis], atol=1e-6)
    bright = images[:, 0, 0] >= 0.5
    assert labels[:, 0].equal(bright.long())


def test_real_digits_are_cropped_and_split(data_directory):
    train, validation = (
        create_world("digits", {"source": "mnist", "split": split}, 4, 0)
        for split in ("train", "validation")
    )
    assert (len(train._glyphs), len(validation._glyphs)) == (50000, 10000)
    assert train._glyphs.shape[1:] == (20, 20)  # MNIST's digits fit a box of this size
    assert train._labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    touches = train._glyphs[:, 0].any(1) & train._glyphs[:, :, 0].any(1)
    assert touches.all()


def test_digits_leave_to_the_right_and_below_and_come_back():
    motion = world(256, num_objects=[2, 2]).sample_motion(60)
    corner = (motion.positions - motion.sizes / 2) * 50
    assert corner.min() >= -1e-4 and corner.max() <= 50 + 1e-4
    assert (corner - corner.round()).abs().max() < 1e-4  # whole pixels
    assert motion.present.all() and motion.visible[:, 0].all()
    assert 0.3 < motion.visible[:, 30:].float().mean() < 0.9
    gone = ~motion.visible
    back = (gone.cumsum(1) > 0) & motion.visible
    assert back.any(1)[gone.any(1)].float().mean() > 0.95


def test_velocities_follow_accelerations_within_their_bounds():
    motion = world(512, num_objects=[1, 1]).sample_motion(10)
    step = motion.velocities * motion.dt_s * 50
    assert step.abs().max() <= 10 + 1e-4 and step.abs().max() > 9.9
    first = step[:, 0]
    assert first.mean().abs() < 0.5 and first.std().item() == pytest.approx(
        100 / 300**0.5, rel=0.1
    )
    corner = (motion.positions - motion.sizes / 2) * 50
    free = (corner[:, 1:] - corner[:, :-1] - step[:, :-1]).abs() <= 1 + 1e-3  # rounding
    assert free.float().mean() > 0.7  # the others met a wall
    faster = step.diff(dim=1)[:, :, 0].abs()
    same_sign = step[:, 1:, 0].sign() == step[:, :-1, 0].sign()
    assert faster[same_sign].max() <= 3 + 1e-3 and faster[same_sign].max() > 2.8
    slow = world(64, num_objects=[1, 1], speed_px=0.0, acceleration_px=0.0).sample_motion(5)
    assert slow.positions.std(1).max() < 1e-6


def test_strokes_draw_all_digits_and_each_in_its_own_hand():
    labels = torch.arange(10).repeat(20)
    pictures = draw_digits(labels, torch.Generator().manual_seed(0))
    again = draw_digits(labels, torch.Generator().manual_seed(0))
    assert pictures.equal(again) and pictures.dtype == torch.uint8
    values = pictures.flatten(1).float() / 255
    assert (values.amax(1) > 0.95).all() and (values.mean(1) < 0.35).all()
    border = torch.cat([pictures[:, [0, -1]].flatten(1), pictures[:, :, [0, -1]].flatten(1)], 1)
    assert (border > 127).float().mean() < 1e-3
    assert torch.cdist(values, values)[~torch.eye(200).bool()].min() > 0.5  # no two alike
    # A digit is nearest to the mean of its own class, of those drawn by another hand.
    means = values[100:].unflatten(0, (10, 10)).mean(0)
    assert (torch.cdist(values[:100], means).argmin(1) == labels[:100]).float().mean() > 0.85


def test_cropping_moves_ink_to_the_corner_and_leaves_out_empty_pictures():
    images = torch.zeros(3, 28, 28, dtype=torch.uint8)
    images[0, 20:28, 25:28] = 7
    images[2, 4, 9] = 5
    glyphs, sizes, labels = _cropped(images, torch.tensor([4, 5, 6]))
    assert glyphs.shape == (2, 8, 8) and labels.tolist() == [4, 6]
    assert sizes.tolist() == [[3, 8], [1, 1]]
    assert (glyphs[0, :, :3] == 7).all() and glyphs[0].sum() == 7 * 24
    assert glyphs[1, 0, 0] == 5 and glyphs[1].sum() == 5


def test_sequences_repeat_with_their_seed():
    first, same, other = (world(4, seed) for seed in (3, 3, 4))
    pictures = [w.draw(w.sample_motion(3), 50, 50)[0] for w in (first, same, other)]
    assert pictures[0].equal(pictures[1]) and not pictures[0].equal(pictures[2])
    scenes = first.sample(25, 25)
    assert scenes.images.shape == (4, 3, 25, 25) and scenes.factors["digit"].max() <= 9


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"source": "svhn"}, "source must be one of"),
        ({"num_objects": [0, 3]}, "at most 2"),
        ({"num_objects": [2, 1]}, "low <= high"),
        ({"speed_px": -1.0}, "speed_px"),
        ({"split": "test"}, "split must be one of"),
        ({"validation": 1.0}, "validation"),
    ],
)
def test_a_bad_setting_is_refused_with_its_reason(config, reason):
    with pytest.raises(ConfigurationError, match=reason):
        world(**config)


def test_the_defaults_are_those_of_the_paper():
    config = Digits.Config()
    assert (config.num_objects, config.speed_px, config.acceleration_px) == ((0, 2), 10.0, 3.0)
