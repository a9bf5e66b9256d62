# SPDX-License-Identifier: Apache-2.0
"""Read the scenes of published data sets, one after the other.

Accepted are
- TFRecord files of Multi-Object Datasets (Kabra et al. 2019), plain or gzip-compressed:
  Tetrominoes, Multi-dSprites (all three variants), CLEVR with masks, Objects Room;
- HDF5 files, at their root or in one group per split, with one of the pairs
  `image` and `mask` (conversions of the above; the object-centric library of Dittadi et al.),
  `imgs` and `masks` (EfficientMORL, slot attention), `images` and `masks`,
  `features` and `groups` (N-EM; the first frame of each sequence).
  Images `(N, H, W, 1 or 3)` or `(N, H, W)`, 8 bit or float; masks either of one entity each,
  `(N, E, H, W[, 1])`, or one map of entity numbers, `(N, H, W[, 1])`.

Entity 0 is the background; in Objects Room the first four are: sky, floor, two parts of the wall.
Where masks of entities overlap, the first entity has the pixel; where there is none, entity 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oc_perception.configuration import ConfigurationError, nearest
from oc_perception.worlds.tfrecord import parse_example, read_records

_IMAGE_SHAPES = {
    height * width * channels: (height, width, channels)
    for height, width, channels in ((35, 35, 3), (64, 64, 3), (64, 64, 1), (240, 320, 3))
}
_FACTORS = ("shape", "color", "material", "size", "scale", "orientation", "rotation")
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HDF5_LAYOUTS = (
    ("image", "mask"),
    ("imgs", "masks"),
    ("images", "masks"),
    ("features", "groups"),
)
_HDF5_BLOCK = 64  # scenes read at a time
_OBJECTS_ROOM_BACKGROUND = 4


class SceneRecord(NamedTuple):
    """A scene as a file has it: `image` `(H, W, C)` uint8; `entities` `(H, W)` int64, the number
    of each pixel's entity; `factors` `(E, D)` by name; how many entities are background.
    """

    image: np.ndarray
    entities: np.ndarray
    factors: dict[str, np.ndarray]
    background: int


def read_scenes(
    path: Path, split: str | None, first: int, count: int | None
) -> Iterator[SceneRecord]:
    """The scenes of a file, or of the group `split` of an HDF5 file, from number `first` on; at
    most `count` of them.

    Raises ConfigurationError for a file that is damaged, or that none of the layouts above fits.
    """
    with path.open("rb") as stream:
        is_hdf5 = stream.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE
    if is_hdf5:
        return _read_hdf5(path, split, first, count)
    if split is not None:
        raise _no_splits(path)
    return _read_tfrecord(path, first, count)


def _no_splits(path: Path) -> ConfigurationError:
    return ConfigurationError(f"{path} has no splits: choose scenes by first and count.")


def _read_tfrecord(path: Path, first: int, count: int | None) -> Iterator[SceneRecord]:
    for number, record in read_records(path, first):
        where = f"{path}, record {number}"
        try:
            features = parse_example(record)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error} Is this a data set of scenes?") from error
        if missing := {"image", "mask"} - features.keys():
            raise ConfigurationError(
                f"{where} has no feature {' and '.join(sorted(missing))}, but"
                f" {', '.join(sorted(features)) or 'none at all'}."
            )
        image, mask = features["image"], features["mask"]
        if image.dtype != np.uint8 or image.size not in _IMAGE_SHAPES:
            known = ", ".join("x".join(map(str, shape)) for shape in _IMAGE_SHAPES.values())
            raise ConfigurationError(
                f"{where}: an image of {image.size} values has none of the published sizes"
                f" ({known})."
            )
        height, width, channels = _IMAGE_SHAPES[image.size]
        if mask.dtype != np.uint8 or mask.size % (height * width) or not mask.size:
            raise ConfigurationError(
                f"{where}: a mask of {mask.size} values does not fit an image of"
                f" {height}x{width} px."
            )
        factors = {name: features[name] for name in _FACTORS if name in features}
        num_entities = mask.size // (height * width)
        for name, values in factors.items():
            if not values.size or values.size % num_entities:
                raise ConfigurationError(
                    f"{where}: feature {name} has {values.size} values for {num_entities} masks."
                )
            factors[name] = values.reshape(num_entities, -1)
        if {"orientation", "scale"} <= factors.keys():  # Multi-dSprites: entities come last
            entities = mask.reshape(height, width, num_entities).argmax(2)
        else:
            entities = mask.reshape(num_entities, height, width).argmax(0)
        yield SceneRecord(
            image.reshape(height, width, channels),
            entities,
            factors,
            1 if factors else _OBJECTS_ROOM_BACKGROUND,  # the only set without factors
        )
        if number + 1 - first == count:
            return


def _read_hdf5(
    path: Path, split: str | None, first: int, count: int | None
) -> Iterator[SceneRecord]:
    try:
        import h5py  # an optional dependency
    except ImportError as error:
        raise ConfigurationError(
            "HDF5 files need h5py: pip install 'oc_perception[datasets]'"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            yield from _read_datasets(_datasets_of(file, split, path), first, count, path)
    except (OSError, RuntimeError) as error:  # h5py's words for damaged files
        raise ConfigurationError(
            f"Cannot read {path}: {error}. If it is damaged, download it again."
        ) from error


def _datasets(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in group.items() if hasattr(item, "shape")}


def _layout(datasets: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _HDF5_LAYOUTS if datasets.keys() >= set(pair)), None)


def _datasets_of(file: Mapping[str, Any], split: str | None, path: Path) -> dict[str, Any]:
    """The datasets of an HDF5 file, or of one of its splits."""
    root = _datasets(file)
    if _layout(root):
        if split is not None:
            raise _no_splits(path)
        return root
    groups = {name: _datasets(item) for name, item in file.items() if isinstance(item, Mapping)}
    splits = {name: datasets for name, datasets in groups.items() if _layout(datasets)}
    if not splits:
        found = [*root, *(f"{name}/{inner}" for name in groups for inner in groups[name])]
        known = ", ".join(" and ".join(pair) for pair in _HDF5_LAYOUTS)
        raise ConfigurationError(
            f"{path} has none of the pairs {known}, but {', '.join(found) or 'no data set'}."
        )
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        cause = "has several splits: set split" if split is None else f"has no split {split!r}"
        raise ConfigurationError(f"{path} {cause}.{nearest(split or '', splits)}")
    return splits[split]


def _read_datasets(
    datasets: Mapping[str, Any], first: int, count: int | None, path: Path
) -> Iterator[SceneRecord]:
    image_name, mask_name = _layout(datasets)
    images, masks = datasets[image_name], datasets[mask_name]
    in_time = (0,) if image_name == "features" else ()
    total = images.shape[len(in_time)]
    columns = {
        name: datasets[name]
        for name in _FACTORS
        if name in datasets and datasets[name].ndim in (2, 3) and len(datasets[name]) == total
    }
    is_room = image_name == "image" and not columns
    stop = total if count is None else min(total, first + count)
    for start in range(first, stop, _HDF5_BLOCK):
        block = slice(start, min(stop, start + _HDF5_BLOCK))
        pictures = _as_bytes(images[(*in_time, block)], f"{path}, {image_name}")
        entities = _entities(masks[(*in_time, block)], pictures, f"{path}, {mask_name}")
        factors = {name: column[block] for name, column in columns.items()}
        for n in range(len(pictures)):
            yield SceneRecord(
                pictures[n],
                entities[n],
                {name: values[n].reshape(values.shape[1], -1) for name, values in factors.items()},
                _OBJECTS_ROOM_BACKGROUND if is_room else 1,
            )


def _as_bytes(images: np.ndarray, where: str) -> np.ndarray:
    """Images as `(n, H, W, C)` uint8; floats are in [0, 1], or up to 255."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ConfigurationError(f"{where}: images must be (N, H, W, 1 or 3), not {images.shape}.")
    if images.dtype == np.uint8:
        return images
    images = images.astype(np.float32)
    if not (images.min() >= 0 and images.max() <= 255):
        raise ConfigurationError(f"{where}: values must lie in [0, 1] or in [0, 255].")
    return np.rint(images * 255 if images.max() <= 1 else images).astype(np.uint8)


def _entities(masks: np.ndarray, images: np.ndarray, where: str) -> np.ndarray:
    """The number of each pixel's entity `(n, H, W)` from masks of either form."""
    if masks.ndim in (4, 5) and masks.shape[-1] == 1:
        masks = masks[..., 0]
    if masks.shape[-2:] != images.shape[1:3] or masks.ndim not in (3, 4):
        raise ConfigurationError(f"{where}: masks {masks.shape} do not fit images {images.shape}.")
    if masks.ndim == 4:
        return masks.argmax(1)
    if not (masks.min() >= 0 and masks.max() <= 255 and (masks == np.rint(masks)).all()):
        raise ConfigurationError(f"{where}: entity numbers must be integers from 0 to 255.")
    return masks.astype(np.int64)
