# SPDX-License-Identifier: Apache-2.0
"""HDF5 conversions of the published sets are read exactly as they are, or refused."""

import sys

import numpy as np
import pytest
import torch
from published_files import in_order, one_hot, picture, world

from oc_perception.configuration import ConfigurationError


def write_hdf5(path, **datasets):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as stream:
        for name, values in datasets.items():
            stream[name.replace("__", "/")] = values
    return path


def pictures(total, size=(20, 24), num_entities=4):
    images, entities = zip(*(picture(size, num_entities, n) for n in range(total)), strict=True)
    return np.stack(images), np.stack(entities)


def assert_same(scenes, images, entities):
    assert torch.equal(scenes.images, torch.tensor(images / 255).permute(0, 3, 1, 2).float())
    assert torch.equal(scenes.labels, torch.tensor(entities))


@pytest.mark.parametrize("form", ["entities", "entities, flat", "numbers", "numbers, flat"])
@pytest.mark.parametrize("names", [("image", "mask"), ("imgs", "masks"), ("images", "masks")])
def test_hdf5_is_read_exactly(tmp_path, names, form):
    images, entities = pictures(70)  # more than are read at a time
    masks = entities[..., None].astype(np.uint8)
    if "entities" in form:
        masks = np.stack([one_hot(scene, 4) for scene in entities])
    if "flat" in form:
        masks = masks[..., 0]
    shape = np.arange(70)[:, None] + np.arange(4)
    path = write_hdf5(tmp_path / "d.h5", **dict(zip(names, (images, masks), strict=True)),
                      shape=shape, color=np.full((70, 4, 3), 255))  # fmt: skip
    scenes = in_order(path, 70).sample(20, 24)
    assert_same(scenes, images, entities)
    assert torch.equal(scenes.factors["shape"], torch.tensor(shape[:, 1:]))
    assert scenes.factors["rgb"].eq(1).all() and scenes.factors["rgb"].shape == (70, 3, 3)
    part = in_order(path, 2, first=63, count=2).sample(20, 24)
    assert_same(part, images[63:65], entities[63:65])


def test_hdf5_splits_are_chosen_by_name(tmp_path):
    images, entities = pictures(4)
    masks = np.stack([one_hot(scene, 4) for scene in entities])
    path = write_hdf5(tmp_path / "d.h5", train__imgs=images[:3], train__masks=masks[:3],
                      test__imgs=images[3:].astype(np.float32), test__masks=masks[3:] / 255.0,
                      train__factors__x=np.zeros(3))  # fmt: skip
    assert_same(in_order(path, 3, split="train").sample(20, 24), images[:3], entities[:3])
    assert_same(in_order(path, 1, split="test").sample(20, 24), images[3:], entities[3:])
    with pytest.raises(ConfigurationError, match=r"has several splits: set split.*test, train"):
        world(path)
    with pytest.raises(ConfigurationError, match=r"no split 'tran'. Did you mean 'train'"):
        world(path, split="tran")


def test_hdf5_sequences_give_their_first_frame(tmp_path):
    images, entities = pictures(6, (28, 28))
    features = (images[..., :1] > 127).astype(np.float32).reshape(2, 3, 28, 28, 1)
    path = write_hdf5(tmp_path / "shapes.h5", training__features=features,
                      training__groups=entities.reshape(2, 3, 28, 28, 1) * 1.0)  # fmt: skip
    scenes = in_order(path, 3).sample(28, 28)
    assert_same(scenes, np.repeat(features[0] * 255, 3, -1), entities[:3])


def test_hdf5_objects_room_has_four_background_entities(tmp_path):
    images, entities = pictures(2, (64, 64), 7)
    path = write_hdf5(tmp_path / "rooms.hdf5", image=images, mask=entities[..., None],
                      visibility=np.ones((2, 7)), num_actual_objects=[[3], [3]])  # fmt: skip
    assert in_order(path, 2).sample(64, 64).labels.unique().tolist() == [0, 1, 2, 3]
    assert world(path, num_objects=[3, 3]).sample(64, 64).present.all()


@pytest.mark.parametrize(
    ("datasets", "config", "reason"),
    [
        ({"pictures": 1, "train__imgs": 2}, {}, "none of the pairs.*but pictures, train/imgs"),
        ({"image": 1}, {"split": "train"}, "no splits"),
        ({"image": np.zeros((2, 5, 5, 4))}, {}, r"must be \(N, H, W, 1 or 3\)"),
        ({"image": np.full((2, 20, 24, 3), -0.5)}, {}, r"must lie in \[0, 1\]"),
        ({"image": np.full((2, 20, 24, 3), np.nan)}, {}, r"must lie in \[0, 1\]"),
        ({"mask": np.zeros((2, 4, 20, 20, 1))}, {}, "do not fit images"),
        ({"mask": np.full((2, 20, 24), 0.5)}, {}, "integers from 0 to 255"),
        ({}, {"first": 2}, "no scene from number 2 on"),
        ({}, {"count": 3}, "ends after 2 scenes"),
    ],
)
def test_hdf5_of_another_layout_is_refused_with_cause_and_cure(tmp_path, datasets, config, reason):
    if "pictures" not in datasets:
        images, entities = pictures(2)
        datasets = {"image": images, "mask": entities, **datasets}
        if isinstance(datasets["image"], int):
            datasets["image"] = images
    path = write_hdf5(tmp_path / "d.h5", **datasets)
    with pytest.raises(ConfigurationError, match=reason):
        world(path, **config)


def test_hdf5_cut_off_is_refused(tmp_path):
    images, entities = pictures(3)
    path = write_hdf5(tmp_path / "d.h5", image=images, mask=entities)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ConfigurationError, match=r"Cannot read.*download it again"):
        world(path)


def test_hdf5_without_its_library_names_the_cure(tmp_path, monkeypatch):
    path = tmp_path / "d.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'oc_perception\[datasets\]'"):
        world(path)
