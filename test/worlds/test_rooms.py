# SPDX-License-Identifier: Apache-2.0
"""The world of CLEVR-like rooms: placement rules, exact labels, fair pictures, the real camera."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch

from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.raycast import CUBE, SPHERE, Camera, intersect, intersect_near
from oc_perception.worlds.registry import create_world
from oc_perception.worlds.room_pictures import (
    COLOURS,
    MATERIALS,
    PALETTE,
    SHAPES,
    SIZES,
    Layout,
    render,
    visible_px,
)
from oc_perception.worlds.rooms import Rooms, RoomsConfig

QUICK_PX = 24


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Rooms(RoomsConfig(num_objects=(3, 10)), batch_size=24, seed=4).draw()


def lone(shape: int, **values) -> Layout:
    """One room with one large rubber object in the middle, seen without jitter."""
    room = Rooms(
        RoomsConfig(num_objects=(1, 1), camera_jitter_m=0, lamp_jitter_m=0), seed=1
    ).draw()
    fixed = {
        "place": torch.zeros(1, 1, 2),
        "radius": torch.full((1, 1), 0.7),
        "shape": torch.full((1, 1), shape),
        "size": torch.ones(1, 1, dtype=torch.long),
        "material": torch.zeros(1, 1, dtype=torch.long),
        "colour": torch.full((1, 1), COLOURS.index("red")),
        "yaw": torch.zeros(1, 1),
    }
    return Layout(**{**vars(room), **fixed, **values})


def test_a_seed_is_one_world_and_another_is_another():
    first, same, other = (
        Rooms(batch_size=2, seed=seed).sample(QUICK_PX, QUICK_PX) for seed in (3, 3, 4)
    )
    assert torch.equal(first.images, same.images) and torch.equal(first.labels, same.labels)
    assert all(torch.equal(first.factors[name], same.factors[name]) for name in first.factors)
    assert not torch.equal(first.images, other.images)


def test_a_sample_has_the_shapes_and_ranges_of_scenes():
    world = create_world("rooms", {"num_objects": [3, 6]}, 12, 5)
    scenes = world.sample(QUICK_PX, QUICK_PX)
    assert scenes.images.shape == (12, 3, QUICK_PX, QUICK_PX)
    assert scenes.images.min() >= 0 and scenes.images.max() <= 1
    assert scenes.labels.shape == (12, QUICK_PX, QUICK_PX) and scenes.labels.dtype == torch.int64
    assert scenes.present.shape == (12, 6)
    count = scenes.present.sum(1)
    assert count.min() >= 3 and count.max() <= 6 and len(count.unique()) == 4
    for name, kinds in {
        "shape": SHAPES,
        "size": SIZES,
        "material": MATERIALS,
        "colour": COLOURS,
    }.items():
        values = scenes.factors[name]
        assert values.shape == (12, 6) and values.dtype == torch.int64
        assert set(values.flatten().tolist()) == set(range(len(kinds)))
    rgb = torch.tensor(PALETTE)[scenes.factors["colour"]] / 255
    assert torch.equal(scenes.factors["rgb"], rgb)
    position = scenes.factors["position"][scenes.present]
    assert position.min() >= 0 and position.max() <= 1 and position.std(0).min() > 0.1
    assert scenes.factors["position_m"].abs().max() <= 3
    angle = scenes.factors["angle"]
    assert angle.shape == (12, 6, 1) and angle.min() >= 0 and angle.max() <= 2 * np.pi


def test_every_present_object_can_be_seen_and_no_other(layout):
    assert (visible_px(layout)[layout.present] >= 200).all()
    _, labels = render(layout, 96, 96, supersampling=1, shadow_samples=1)
    seen = torch.nn.functional.one_hot(labels, 11).sum((1, 2))[:, 1:]
    assert torch.equal(seen > 0, layout.present)
    # 200 px of the 320 x 240 px picture are 50 of this one; both counts sample the outline.
    assert seen[layout.present].min() > 40


def test_objects_keep_their_gaps_and_margins(layout):
    distance = (layout.place.unsqueeze(2) - layout.place.unsqueeze(1)).norm(dim=-1)
    radii = layout.radius.unsqueeze(2) + layout.radius.unsqueeze(1)
    pair = layout.present.unsqueeze(2) & layout.present.unsqueeze(1)
    pair &= ~torch.eye(10, dtype=torch.bool)
    assert pair.sum() > 100
    assert (distance - radii)[pair].min() >= 0.25 - 1e-5
    corner = torch.where(layout.shape == CUBE, layout.radius * 2**0.5, layout.radius)
    corners = corner.unsqueeze(2) + corner.unsqueeze(1)
    assert (distance - corners)[pair].min() >= -1e-5
    axis = torch.tensor([7.48, -6.51])
    axis /= axis.norm()
    for direction in (axis, torch.stack([-axis[1], axis[0]])):
        along = layout.place @ direction
        margin = (along.unsqueeze(2) - along.unsqueeze(1)).abs()
        assert margin[pair].min() >= 0.4 - 1e-5


def test_spheres_are_labelled_around_their_position():
    config = RoomsConfig(num_objects=(1, 1))
    scenes = Rooms(config, batch_size=60, seed=8).sample(64, 64)
    whole = scenes.labels.bool()
    for edge in (whole[:, 0], whole[:, -1], whole[:, :, 0], whole[:, :, -1]):
        whole = whole & ~edge.any(1)[:, None, None]
    spheres = (scenes.factors["shape"][:, 0] == SPHERE) & whole.any((1, 2))
    assert spheres.sum() > 8
    grid = (torch.arange(64) + 0.5) / 64
    mask = whole[spheres].float()
    mask = mask / mask.sum((1, 2), keepdim=True)
    x, y = (mask.sum(1) * grid).sum(1), (mask.sum(2) * grid).sum(1)
    error = torch.stack([x, y], 1) - scenes.factors["position"][spheres, 0]
    assert (error.norm(dim=1) * 64).max() < 0.8  # px; perspective shifts outlines a little


def test_labels_agree_between_resolutions():
    labels = {}
    for size in (64, 96, 128):
        labels[size] = Rooms(batch_size=4, seed=9).sample(size, size).labels
    for size in (96, 128):
        coarse = labels[size].unsqueeze(1).float()
        coarse = torch.nn.functional.interpolate(coarse, (64, 64), mode="nearest-exact")
        assert (coarse[:, 0].long() == labels[64]).float().mean() > 0.97


def test_pictures_agree_between_resolutions_and_with_plain_supersampling():
    room = Rooms(batch_size=4, seed=10).draw()
    small, _ = render(room, 32, 32)
    large, _ = render(room, 64, 64)
    full, _ = render(room, 64, 64, supersampling=1, shadow_samples=32)
    large, full = (torch.nn.functional.avg_pool2d(image, 2) for image in (large, full))
    assert (small - large).abs().mean() < 0.01
    assert (small - full).abs().mean() < 0.01


def test_a_picture_does_not_depend_on_its_batch():
    room = Rooms(batch_size=3, seed=11).draw()
    images, labels = render(room, QUICK_PX, QUICK_PX)
    for scene in range(3):
        alone = Layout(**{name: value[scene : scene + 1] for name, value in vars(room).items()})
        image, label = render(alone, QUICK_PX, QUICK_PX)
        assert torch.equal(label[0], labels[scene])
        assert torch.allclose(image[0], images[scene], atol=1e-5)


def test_shadows_are_darker_than_the_lit_floor_and_have_soft_edges():
    room = lone(SPHERE)
    picture, labels = render(room, 96, 96, shadow_samples=64)
    empty = Layout(**{**vars(room), "present": torch.zeros(1, 1, dtype=torch.bool)})
    bare, _ = render(empty, 96, 96)
    floor = torch.nn.functional.max_pool2d((labels > 0).float(), 3, 1, 1)[0] == 0
    kept = (picture / bare).mean(1)[0][floor]
    assert kept.max() < 1 + 1e-4
    assert kept.min() < 0.9
    depth = 1 - kept.min()
    assert (kept > 1 - 0.05 * depth).float().mean() > 0.5  # most of the floor is lit
    assert ((kept < 1 - 0.2 * depth) & (kept > 1 - 0.8 * depth)).float().mean() > 0.02


def test_metal_mirrors_and_rubber_does_not():
    rubber, labels = render(lone(SPHERE), 64, 64)
    metal, _ = render(lone(SPHERE, material=torch.ones(1, 1, dtype=torch.long)), 64, 64)
    ball = labels[0] == 1
    contrast = [image[0, 0][ball].std() for image in (rubber, metal)]
    assert contrast[1] > 1.5 * contrast[0]
    assert metal[0, 0][ball].max() > rubber[0, 0][ball].max() + 0.1  # the lamps


def test_culled_rays_hit_the_same_as_all_rays(layout):
    solids, rays = layout.solids(), layout.view().rays(16, 16)
    for origin in (layout.camera.unsqueeze(2), layout.camera.unsqueeze(2) + 0.05 * rays):
        full = intersect(solids, origin.expand_as(rays), rays)
        near = intersect_near(solids, origin, rays)
        assert full.isfinite().any()
        assert torch.equal(full.isfinite(), near.isfinite())
        assert torch.allclose(full.nan_to_num(posinf=0), near.nan_to_num(posinf=0), atol=1e-4)


def test_rays_of_a_window_are_those_of_the_whole_picture():
    position = torch.tensor([[7.48, -6.51, 5.34]])
    whole = Camera(position, torch.zeros(1, 3), 350 / 320).rays(240, 320)
    window = Camera(position, torch.zeros(1, 3), 350 / 192, (0.0, -5 / 192))
    cut = whole.view(3, 240, 320)[:, 29:221, 64:256]
    rays = window.rays(192, 192)
    assert torch.allclose(rays.view(3, 192, 192), cut, atol=1e-5)
    points = (position.unsqueeze(2) + 9 * rays[:, :, ::97]).transpose(1, 2)
    pixel = torch.arange(192 * 192)[::97]
    expected = (torch.stack([pixel % 192, pixel // 192], 1) + 0.5) / 192 - 0.5
    assert torch.allclose(window.project(points)[0], expected, atol=1e-4)


def test_what_does_not_fit_is_left_out_instead_of_searching_forever():
    config = RoomsConfig(num_objects=(10, 10), extent_m=1.2)
    room = Rooms(config, batch_size=2, seed=12).draw()
    assert (room.present.sum(1) < 10).all() and room.present.any(1).all()
    assert (visible_px(room)[room.present] > 0).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_objects": (4, 3)}, "num_objects"),
        ({"num_objects": (3, 11)}, "num_objects"),
        ({"radius_m": (0.7, 0.35)}, "radius_m"),
        ({"extent_m": 0.0}, "extent_m"),
        ({"min_gap_m": -1.0}, "min_gap_m"),
        ({"camera_position_m": (0.0, 0.0, 5.0)}, "camera_position_m"),
        ({"camera_jitter_m": 9.0}, "camera_jitter_m"),
        ({"lamp_jitter_m": 3.0}, "lamp_jitter_m"),
        ({"supersampling": 0}, "supersampling"),
        ({"shadow_samples": 0}, "shadow_samples"),
    ],
)
def test_a_bad_configuration_is_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        RoomsConfig(**wrong)


def test_unknown_keys_are_refused():
    with pytest.raises(ConfigurationError, match="num_objects"):
        create_world("rooms", {"num_object": [3, 6]}, 1, 0)


def real_scenes(data_directory):
    """Published CLEVR scenes with their pictures `(240, 320, 3)`."""
    path = data_directory / "clevr_mini" / "clevr_mini_train.tar"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    image = pytest.importorskip("PIL.Image")
    with tarfile.open(path) as tar:
        for part in ("1obj", "2obj"):
            scenes = json.load(tar.extractfile(f"{part}/scenes/CLEVR_train_scenes.json"))
            for scene in scenes["scenes"]:
                name = f"{part}/images/train/{scene['image_filename']}"
                picture = image.open(io.BytesIO(tar.extractfile(name).read()))
                yield scene["objects"], np.array(picture.convert("RGB"))


def test_the_camera_is_that_of_published_clevr_pictures(data_directory):
    """The jitter of each picture's camera is unknown: the nominal one must be right on average,
    and one shift of at most the jitter must bring every object onto its published pixel.
    """
    steps = torch.linspace(-0.5, 0.5, 21)
    shifts = torch.cartesian_prod(steps, steps, steps)
    nominal = torch.tensor([7.48, -6.51, 5.34])
    offsets, errors = [], []
    for objects, _ in real_scenes(data_directory):
        points = torch.tensor([item["3d_coords"] for item in objects])
        pixels = torch.tensor([item["pixel_coords"][:2] for item in objects])
        position = torch.cat([nominal[None], nominal + shifts])
        room = Layout(**{**vars(lone(SPHERE)), "camera": position})
        spot = room.view().project(points.expand(len(position), -1, -1)) * 192
        offset = spot + torch.tensor([160.0, 125.0]) - pixels
        offsets.append(offset[0])
        errors.append(offset[1:].norm(dim=-1).mean(1).min())
    assert torch.cat(offsets).norm(dim=-1).mean() < 3.5
    assert torch.cat(offsets).mean(0).abs().max() < 1.5
    assert torch.stack(errors).mean() < 0.5


def test_brightness_and_colour_are_those_of_published_clevr_pictures(data_directory):
    real = np.stack([picture for _, picture in real_scenes(data_directory)]) / 255
    real = torch.from_numpy(real[:, 29:221, 64:256]).float().permute(0, 3, 1, 2)
    real = torch.nn.functional.avg_pool2d(real, 8).median(0).values  # the floor
    scenes = Rooms(RoomsConfig(num_objects=(1, 1)), batch_size=20, seed=13).sample(24, 24)
    ours = scenes.images.median(0).values
    assert (ours - real).mean((1, 2)).abs().max() < 0.03
    assert (ours - real).abs().max() < 0.08
