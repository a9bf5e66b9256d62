# SPDX-License-Identifier: Apache-2.0
"""Published files are read exactly as they are, or refused with cause and cure."""

import gzip
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from published_files import (
    example,
    floats,
    in_order,
    one_hot,
    picture,
    string,
    strings,
    tetrominoes,
    world,
    write,
)

from oc_perception.cli import main
from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.registry import create_world
from oc_perception.worlds.tfrecord import parse_example, read_records

# SPDX-License-Identifier: Apache-2.0
"""Published files are read exactly as they are, or refused with cause and cure."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Five scenes; number n has n + 1 entities, the background among them."""
    records = [example_with(n) for n in range(5)]
    return write(tmp_path_factory.mktemp("published") / "tetrominoes.tfrecords", records)


def example_with(number):
    image, entities = picture((35, 35), number + 1, number)
    shape = floats(np.arange(6) + 10 * number)
    return example(image=strings(image), mask=strings(one_hot(entities, 6)), shape=shape)


@pytest.mark.parametrize("compress", [True, False])
def test_tetrominoes_are_read_exactly(tmp_path, compress):
    path = write(tmp_path / "t.tfrecords", [tetrominoes(n) for n in range(3)], compress)
    scenes = in_order(path, 3).sample(35, 35)
    for n in range(3):
        image, entities = picture((35, 35), 4, n)
        assert torch.equal(scenes.images[n], torch.tensor(image / 255).permute(2, 0, 1).float())
        assert torch.equal(scenes.labels[n], torch.tensor(entities))
    assert scenes.images.dtype == torch.float32 and scenes.labels.dtype == torch.int64
    assert scenes.present.tolist() == [[True] * 3] * 3
    assert scenes.factors["shape"].tolist() == [[1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert scenes.factors["rgb"][2].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    edges = [9, 18, 27, 35]  # where stripes end
    for n, position in enumerate(scenes.factors["position"][0].tolist()):
        assert position == pytest.approx([(edges[n] + edges[n + 1]) / 2 / 35, 0.5])


@pytest.mark.parametrize("channels", [3, 1])
def test_multi_dsprites_have_masks_with_entities_last(tmp_path, channels):
    image, entities = picture((64, 64), 4, 7, channels)
    record = example(
        image=strings(image),
        mask=strings(one_hot(entities, 6).transpose(1, 2, 0, 3)),
        color=floats(np.full((6, channels), 0.5)),
        orientation=floats(np.arange(6)),
        scale=floats(np.arange(6) / 8),
    )
    scenes = in_order(write(tmp_path / "s.tfrecords", [record]), 2).sample(64, 64)
    assert torch.equal(scenes.labels[1], torch.tensor(entities))
    assert scenes.images.shape == (2, 3, 64, 64)
    expected = torch.tensor(image / 255).permute(2, 0, 1).float().expand(3, -1, -1)
    assert torch.equal(scenes.images[0], expected)
    assert scenes.present[0].tolist() == [True] * 3 + [False] * 2
    assert scenes.factors["angle"][0].tolist() == [[1], [2], [3], [4], [5]]
    assert scenes.factors["size"][0].tolist() == [[0.125], [0.25], [0.375], [0.5], [0.625]]
    assert ("rgb" if channels == 3 else "colour") in scenes.factors


def test_clevr_is_cropped_and_has_categories_and_radians(tmp_path):
    image, entities = picture((240, 320), 11, 1)
    numbers = np.arange(11)
    record = example(
        image=string(image),
        mask=string(one_hot(entities, 11)),
        color=strings(numbers),
        material=strings(numbers % 3),
        size=strings(numbers % 2),
        rotation=floats(numbers * 36),
    )
    path = write(tmp_path / "clevr.tfrecords", [record])
    scenes = in_order(path, 1, crop=[29, 64, 192, 192]).sample(192, 192)
    crop = np.s_[29:221, 64:256]
    assert torch.equal(scenes.labels[0], torch.tensor(entities[crop]))
    assert torch.equal(scenes.images[0], torch.tensor(image[crop] / 255).permute(2, 0, 1).float())
    seen = np.isin(numbers[1:], entities[crop])
    assert scenes.present[0].tolist() == seen.tolist() and not seen.all()
    assert scenes.factors["colour"][0].tolist() == numbers[1:].tolist()
    assert scenes.factors["size"][0].tolist() == (numbers[1:] % 2).tolist()
    assert scenes.factors["material"].dtype == torch.int64
    assert scenes.factors["angle"][0, 4].item() == pytest.approx(math.pi)
    with pytest.raises(ConfigurationError, match="reaches beyond the images"):
        world(path, crop=[100, 0, 192, 192])


def test_objects_room_has_four_background_entities(tmp_path):
    image, entities = picture((64, 64), 7, 3)
    record = example(image=strings(image), mask=strings(one_hot(entities, 7)))
    path = write(tmp_path / "rooms.tfrecords", [record])
    assert in_order(path, 1).sample(64, 64).labels.unique().tolist() == [0, 1, 2, 3]
    walls = in_order(path, 1, background_entities=1).sample(64, 64)
    assert walls.labels.unique().tolist() == list(range(7))


def test_resizing_averages_images_and_keeps_labels_whole(file):
    scenes = in_order(file, 5)
    native, small, large = (scenes.sample(size, size) for size in (35, 7, 70))
    picture = Image.fromarray((native.images[4] * 255).round().byte().permute(1, 2, 0).numpy())
    expected = np.asarray(picture.resize((7, 7), Image.Resampling.BILINEAR)) / 255
    assert small.images[4].permute(1, 2, 0).numpy() == pytest.approx(expected, abs=1.1 / 255)
    assert torch.equal(small.labels, native.labels[:, 2::5, 2::5])
    assert torch.equal(large.labels, native.labels.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert large.images.min() >= 0 and large.images.max() <= 1


def test_number_of_objects_does_not_count_the_background(file):
    scenes = in_order(file, 3, num_objects=[2, 4]).sample(35, 35)
    assert scenes.present.sum(1).tolist() == [2, 3, 4]
    assert in_order(file, 1, num_objects=[0, 0]).sample(35, 35).labels.max() == 0


def test_first_and_count_are_positions_in_the_file(file):
    shapes = in_order(file, 2, first=1, count=2).sample(35, 35).factors["shape"]
    assert shapes[:, 0].tolist() == [11, 21]
    filtered = in_order(file, 1, first=1, count=2, num_objects=[2, 5]).sample(35, 35)
    assert filtered.factors["shape"][0, 0] == 21


def first_shapes(source, batches):
    draws = [source.sample(35, 35).factors["shape"][:, 0] // 10 for _ in range(batches)]
    return torch.cat(draws).tolist()


def test_in_order_every_scene_comes_once_in_each_round(file):
    assert first_shapes(in_order(file, 2), 5) == [0, 1, 2, 3, 4] * 2
    started = create_world("published", {"path": str(file), "shuffle": False}, 5, 2_000_003)
    assert first_shapes(started, 1) == [3, 4, 0, 1, 2]


def test_shuffling_follows_the_seed_and_reaches_all_scenes(file):
    draws = first_shapes(world(file, 4, seed=1), 20)
    assert draws == first_shapes(world(file, 4, seed=1), 20)
    assert draws != first_shapes(world(file, 4, seed=2), 20)
    assert set(draws) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_restored_generator_resumes_exactly(file, shuffle):
    source = world(file, 3, seed=5, shuffle=shuffle)
    source.sample(35, 35)
    state = source.generator.get_state()
    rest = first_shapes(source, 4)
    resumed = world(file, 3, seed=5, shuffle=shuffle)
    resumed.generator.set_state(state)
    assert first_shapes(resumed, 4) == rest


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "t.tfrecords", [example_with(1)])
    assert in_order(path, 1).sample(35, 35).labels.max() == 1
    write(path, [example_with(2)])
    assert in_order(path, 1).sample(35, 35).labels.max() == 2


def damaged(tmp_path, kind):
    """A file that is `kind`, and what must be said about it."""
    path = tmp_path / "bad.tfrecords"
    records = [tetrominoes(0), tetrominoes(1)]
    if kind == "missing":
        return path, "set path to"
    if kind == "cut off, plain":
        write(path, records, compress=False).write_bytes(path.read_bytes()[:-100])
        return path, "ends in the middle of record 1. Download"
    if kind == "cut off, compressed":
        write(path, records).write_bytes(path.read_bytes()[:-100])
        return path, "Download"
    if kind == "flipped bit":
        data = bytearray(write(path, records, compress=False).read_bytes())
        data[500] ^= 1
        path.write_bytes(data)
        return path, "checksum of record 0 is wrong"
    if kind == "flipped length":
        data = bytearray(write(path, records, compress=False).read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return path, "record 1 is damaged"
    if kind == "another format":
        path.write_bytes(bytes(1000))
        return path, "not a TFRecord"
    if kind == "damaged gzip":
        path.write_bytes(gzip.compress(b"")[:10] + b"\xff" * 100)
        return path, "Cannot read"
    if kind == "empty":
        path.write_bytes(b"")
        return path, "holds no scene"
    if kind == "no protocol buffer":
        return write(path, [b"\x0b hello"]), "Unknown wire type 3"
    if kind == "other features":
        write(path, [example(image_0=strings([1]), x=floats([1]))])
        return path, "no feature image and mask, but image_0, x"
    if kind == "unknown size":
        write(path, [example(image=strings(range(30)), mask=strings([0]))])
        return path, "30 values has none of the published sizes"
    if kind == "mask of another size":
        write(path, [example(image=strings(np.zeros(3675)), mask=strings(range(7)))])
        return path, "does not fit an image of 35x35"
    if kind == "factor of another length":
        image, entities = picture((35, 35), 2, 0)
        mask = strings(one_hot(entities, 2))
        write(path, [example(image=strings(image), mask=mask, shape=floats([1, 2, 3]))])
        return path, "shape has 3 values for 2 masks"
    if kind == "scenes of two kinds":
        return write(path, [tetrominoes(0, 4), tetrominoes(0, 3)]), "scene 1 differs"
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "cut off, plain",
        "cut off, compressed",
        "flipped bit",
        "flipped length",
        "another format",
        "damaged gzip",
        "empty",
        "no protocol buffer",
        "other features",
        "unknown size",
        "mask of another size",
        "factor of another length",
        "scenes of two kinds",
    ],
)
def test_a_bad_file_is_refused_with_cause_and_cure(tmp_path, kind):
    path, reason = damaged(tmp_path, kind)
    with pytest.raises(ConfigurationError, match=reason) as error:
        world(path)
    assert "bad.tfrecords" in str(error.value)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"first": 5}, "no scene from number 5 on: lower first"),
        ({"first": 3, "count": 3}, "ends after 5 scenes: lower first or count"),
        ({"num_objects": [7, 9]}, "none of the 5 scenes has num_objects"),
        ({"memory_gb": 1e-5}, "4.9 kB each.*Set count or crop"),
        ({"count": 4, "memory_gb": 1.8e-5}, "take more than memory_gb"),
        ({"split": "train"}, "no splits: choose scenes by first and count"),
        ({"first": -1}, "first must be at least 0"),
        ({"count": 0}, "count at least 1"),
        ({"num_objects": [3, 2]}, "low <= high"),
        ({"crop": [0, 0, 0, 5]}, "top, left, height, width"),
        ({"background_entities": 0}, "at least 1"),
        ({"memory_gb": 0}, "positive"),
    ],
)
def test_an_impossible_selection_is_refused_with_cause_and_cure(file, config, reason):
    with pytest.raises(ConfigurationError, match=reason):
        world(file, **config)


def test_the_evaluate_command_runs_on_a_published_file(file, capsys):
    settings = ["--set", f"path={file}", "--set", "num_objects=[1,5]", "--set", "shuffle=false"]
    words = ["evaluate", "grid", "--world", "published", *settings, "--device", "cpu"]
    assert main([*words, "--scenes", "4", "--json", "-"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["scenes"] == 4 and 0 <= scores["miou"] <= 1
    assert main([*words, "--set", "first=9"]) == 2
    assert "lower first" in capsys.readouterr().err


def test_the_train_command_runs_on_a_published_file(file, tmp_path):
    settings = {
        "world": "published",
        "world_config": f"{{path: {file}}}",
        "training.steps": 1,
        "training.batch_size": 2,
        "training.evaluation_scenes": 2,
        "model_config.frame_size": "[12,16]",
        "model_config.attention_channels": "[8,8]",
        "model_config.encoder_channels": "[8]",
        "model_config.decoder_channels": 8,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    output = ["--output", str(tmp_path), "--device", "cpu"]
    assert main(["train", "--recipe", "monet_demo", *words, *output]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["world"] == "published"


def test_a_file_written_by_tensorflow_is_read(data_directory):
    """Sums, frames and features of 14 real robot episodes (no scenes, so only the records)."""
    path = data_directory / "bridge_mini" / "bridge_carrot_cup.tfrecord"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    episodes = [parse_example(record) for _, record in read_records(path)]
    assert len(episodes) == 14
    for episode in episodes:
        assert bytes(episode["steps/observation/image_0"][:2]) == b"\xff\xd8"  # JPEG
        assert episode["steps/action"].shape == (70,) and episode["steps/reward"].shape == (10,)
        assert episode["steps/is_first"].tolist() == [1] + [0] * 9
    assert [number for number, _ in read_records(path, 12)] == [12, 13]
    with pytest.raises(ConfigurationError, match="no feature image and mask"):
        world(path)


def test_published_tetrominoes_are_what_their_description_says(data_directory):
    """The ten scenes that come with the published code of IODINE (Greff et al. 2019)."""
    path = data_directory / "tetrominoes_mini" / "tetrominoes_mini.tfrecords"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    scenes = in_order(path, 10, count=10).sample(35, 35)
    assert scenes.present.all() and scenes.present.shape == (10, 3)
    for image, labels, shape, rgb in zip(
        scenes.images, scenes.labels, scenes.factors["shape"], scenes.factors["rgb"], strict=True
    ):
        assert labels.flatten().bincount().tolist() == [925, 100, 100, 100]
        assert image[:, labels == 0].eq(0).all()
        assert shape.min() >= 1 and shape.max() <= 19
        for n in range(3):  # full colour at the brightest pixels of a block, which are shaded
            assert torch.equal(image[:, labels == n + 1].amax(1), rgb[n])
