# SPDX-License-Identifier: Apache-2.0
"""The world of recordings: what is drawn from a bag, and what is kept from training."""

import numpy as np
import pytest
import torch

from oc_perception.bags.messages import image_message, segmentation_message
from oc_perception.bags.writer import BagWriter
from oc_perception.configuration import ConfigurationError
from oc_perception.evaluation.discovery import evaluate_discovery, examine_discovery, fresh_scenes
from oc_perception.models.registry import create_model
from oc_perception.types import Segmentation, SensorState
from oc_perception.worlds.registry import create_world, held_out

RATE_HZ = 10
FRAMES = 40
SIZE = (8, 12)


def stamp(index: int) -> int:
    return 1_000_000_000 + index * 1_000_000_000 // RATE_HZ


def write_bag(path, count=FRAMES, start=0, masks=False):
    """Frames as bright as their number says, darker on the left; a mask grows with the number."""
    with BagWriter(path) as bag:
        for index in range(count):
            image = np.full((2 * SIZE[0], 2 * SIZE[1], 3), start + index, np.uint8)
            image[:, SIZE[1] :] += 100
            bag.write("/camera/image", stamp(index), image_message(stamp(index), image))
            if masks:
                labels = np.zeros(image.shape[:2], np.uint8)
                labels[:, : 2 + index // 4] = 1
                truth = Segmentation(stamp(index), SensorState.OK, "truth", index, labels)
                topic = "/simulator/ground_truth/segmentation"
                bag.write(topic, stamp(index), segmentation_message(truth))
    return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bag(tmp_path):
    return write_bag(tmp_path / "bag")


def numbers(images):
    """Which frames these are, by their brightness."""
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def drawn(bags, count=400, **config):
    config.setdefault("gap_s", 0.0)
    world = create_world("recordings", {"bags": bags, **config}, count, 0)
    return sorted(set(numbers(world.sample(*SIZE).images)))


def test_the_end_of_a_recording_is_kept_from_training_and_a_gap_belongs_to_neither(bag):
    assert drawn([bag], validation=0.25, gap_s=0.55) == list(range(24))
    assert drawn([bag], validation=0.25, split="validation") == list(range(30, 40))
    assert drawn([bag], split="all") == list(range(40))


def test_each_recording_is_split_by_itself(tmp_path, bag):
    other = write_bag(tmp_path / "other", count=20, start=60)
    train = drawn([bag, other], validation=0.5)
    assert train == [*range(20), *range(60, 70)]
    assert drawn([bag, other], validation=0.5, split="validation") == [
        *range(20, 40),
        *range(70, 80),
    ]


def test_a_seed_draws_the_same_pictures(bag):
    first, same, other = (
        create_world("recordings", {"bags": [bag], "brightness": 0.2}, 16, seed).sample(*SIZE)
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.images, same.images)
    assert not torch.equal(first.images, other.images)


def test_what_is_held_out_comes_once_before_any_comes_again(bag):
    config = {"bags": [bag], "split": "validation", "validation": 0.25}
    world = create_world("recordings", config, 4, 0)
    seen = [n for _ in range(5) for n in numbers(world.sample(*SIZE).images)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(30, 40))


def test_pictures_have_no_labels_where_nobody_gave_any(bag):
    scenes = create_world("recordings", {"bags": [bag]}, 4, 0).sample(*SIZE)
    assert scenes.images.shape == (4, 3, *SIZE)
    assert scenes.labels is None
    assert scenes.present.shape == (4, 0)


def test_recorded_masks_label_what_is_held_out_at_the_size_asked_for(tmp_path):
    bag = write_bag(tmp_path / "masked", masks=True)
    config = {"bags": [bag], "split": "validation", "validation": 0.25}
    scenes = create_world("recordings", config, 10, 0).sample(*SIZE)
    columns = (scenes.labels[:, 0] == 1).sum(1).tolist()
    assert columns == [round((2 + n // 4) / 2 - 0.01) for n in numbers(scenes.images)]
    assert scenes.present.tolist() == [[True]] * 10


def test_a_crop_is_cut_out_of_pictures_and_masks(tmp_path):
    bag = write_bag(tmp_path / "masked", masks=True)
    config = {"bags": [bag], "split": "validation", "crop": [12, 0, 12, 16]}
    scenes = create_world("recordings", config, 4, 0).sample(16, 12)
    assert min(numbers(scenes.images)) >= 100
    assert not scenes.labels.any()


def test_brightness_and_flips_vary_training_alone(bag):
    varied = {"bags": [bag], "brightness": 0.3, "flips": True}
    plain = create_world("recordings", {"bags": [bag]}, 64, 0).sample(*SIZE).images
    train = create_world("recordings", varied, 64, 0).sample(*SIZE).images
    right, left = train[..., -1].mean(1), train[..., 0].mean(1)
    assert 0.2 < (left > right).float().mean() < 0.8  # mirrored: the bright side is left
    ratio = train.amax((1, 2, 3)) / plain.amax((1, 2, 3))
    assert ratio.min() < 0.9
    assert ratio.max() > 1.1
    assert ((train >= 0) & (train <= 1)).all()
    held = {**varied, "split": "validation"}
    scenes = create_world("recordings", held, 8, 0).sample(*SIZE).images
    assert set(numbers(scenes)) == set(range(32, 40))


def test_moments_are_triplets_a_fifth_of_a_second_apart_within_the_split(tmp_path, bag):
    other = write_bag(tmp_path / "other", count=20, start=60)
    config = {"bags": [bag, other], "validation": 0.5, "gap_s": 0.0, "brightness": 0.5}
    moments = create_world("recordings", config, 4, 0).moments(512, *SIZE)
    assert moments.shape == (30, 3, 3, *SIZE)
    before, present, after = (numbers(part) for part in moments.unbind(1))
    assert present == [*range(20), *range(60, 70)]
    assert before == [0, 0, *range(18), 60, 60, *range(60, 68)]
    assert after == [*range(2, 20), 19, 19, *range(62, 70), 69, 69]
    few = create_world("recordings", config, 4, 0).moments(3, *SIZE)
    assert numbers(few[:, 1]) == [0, 14, 69]


def test_shards_draw_what_one_process_would(bag):
    world = create_world("recordings", {"bags": [bag], "brightness": 0.1}, 4, 0)
    alone = []
    for seed in (7, 8):
        world.generator.manual_seed(seed)
        alone.append(world.sample(*SIZE).images)
    other = create_world("recordings", {"bags": [bag], "brightness": 0.1}, 4, 5)
    other.generator.manual_seed(8)
    assert torch.equal(other.sample(*SIZE).images, alone[1])


def test_only_recordings_have_something_held_out():
    assert held_out("recordings", {"bags": ["a"]})["split"] == "validation"
    assert held_out("recordings", {"bags": ["a"], "split": "all"})["split"] == "all"
    assert held_out("tabletop", {"num_objects": [1, 2]}) == {"num_objects": [1, 2]}
    assert held_out("published", {"path": "x"}) == {"path": "x"}


def test_discovery_without_labels_is_scored_by_what_needs_none(tmp_path, bag):
    model = create_model("grid", rows=1, columns=2, frame_size=list(SIZE))
    scores = evaluate_discovery(model, "recordings", {"bags": [bag]}, 8, 0)
    assert set(scores) == {"mse", "scenes", "seed"}
    batches = list(fresh_scenes(model, "recordings", {"bags": [bag]}, 8, 0))
    assert set(numbers(batches[0][0])) == set(range(32, 40))  # of the part held out
    assert set(examine_discovery(model, batches)) == {"mse", "used_slots"}
    masked = {"bags": [write_bag(tmp_path / "masked", masks=True)]}
    scores = evaluate_discovery(model, "recordings", masked, 8, 0)
    assert {"fg_ari", "miou", "mse"} <= set(scores)
    assert np.isfinite(scores["miou"])


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ({}, "at least one recording"),
        ({"split": "test"}, "split must be one of train, validation, all"),
        ({"validation": 0.0}, "between 0 and 1"),
        ({"gap_s": -1.0}, "gap_s"),
        ({"brightness": 1.5}, "brightness"),
        ({"truth": ["a", "b"]}, "as many files as there are bags"),
    ],
)
def test_settings_that_cannot_be_met_name_the_cause(bag, config, cause):
    bags = {"bags": [bag]} if config else {}
    with pytest.raises(ConfigurationError, match=cause):
        create_world("recordings", {**bags, **config}, 4, 0)


def test_a_recording_too_short_to_be_split_says_so(bag):
    world = create_world("recordings", {"bags": [bag], "gap_s": 9.0}, 4, 0)
    with pytest.raises(ConfigurationError, match=r"none of its 40 frames.*Record for longer"):
        world.sample(*SIZE)


def test_masks_of_a_real_recording_lie_on_its_pictures(data_directory):
    tar = data_directory / "davis_bmx_trees" / "bmx-trees.tar"
    config = {"bags": [str(tar)], "fps": 24.0, "split": "validation"}
    scenes = create_world("recordings", config, 16, 0).sample(60, 108)
    shares = (scenes.labels > 0).float().mean((1, 2))
    assert scenes.labels.unique().tolist() == [0, 1]
    assert ((shares > 0.002) & (shares < 0.3)).float().mean() > 0.7
    model = create_model("grid", rows=1, columns=2, frame_size=[60, 108])
    scores = evaluate_discovery(model, "recordings", {"bags": [str(tar)], "fps": 24.0}, 16, 0)
    assert 0 < scores["miou"] < 1
