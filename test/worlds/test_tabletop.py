# SPDX-License-Identifier: Apache-2.0
"""The tabletop world: exact labels, honest physics, one seed one world."""

import numpy as np
import pytest
import torch

from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.raycast import (
    CUBE,
    CYLINDER,
    SPHERE,
    Camera,
    Objects,
    intersect,
)
from oc_perception.worlds.registry import create_world
from oc_perception.worlds.tabletop import Tabletop, TabletopConfig

RAYS = 400


def one_object(shape: int, yaw: float = 0.4) -> Objects:
    return Objects(
        position=torch.tensor([[[0.1, -0.2]]]),
        yaw=torch.tensor([[yaw]]),
        radius=torch.tensor([[0.3]]),
        shape=torch.tensor([[shape]]),
        colour=torch.ones(1, 1, 3),
        gloss=torch.zeros(1, 1),
        present=torch.ones(1, 1, dtype=torch.bool),
    )


def inside(objects: Objects, points: torch.Tensor) -> torch.Tensor:
    """Whether points `(..., 3)` lie in the single solid, from its definition."""
    shape, radius = objects.shape.item(), objects.radius.item()
    half = radius / 2**0.5 if shape == CUBE else radius
    centre = torch.tensor([*objects.position[0, 0].tolist(), half])
    x, y, z = (points - centre).unbind(-1)
    if shape == SPHERE:
        return x**2 + y**2 + z**2 < radius**2
    if shape == CYLINDER:
        return (x**2 + y**2 < radius**2) & (z.abs() < radius)
    yaw = objects.yaw.item()
    u, v = x * np.cos(yaw) + y * np.sin(yaw), y * np.cos(yaw) - x * np.sin(yaw)
    return (u.abs() < half) & (v.abs() < half) & (z.abs() < half)


@pytest.mark.parametrize("shape", [SPHERE, CUBE, CYLINDER])
def test_ray_hits_agree_with_marching_along_the_ray(shape):
    generator = torch.Generator().manual_seed(shape)
    objects = one_object(shape)
    origin = torch.tensor([0.4, -1.5, 1.2]).view(1, 3, 1)
    target = torch.tensor([0.1, -0.2, 0.3]) + 0.5 * (
        torch.rand(RAYS, 3, generator=generator) - 0.5
    )
    direction = (target.T - origin[0]).unsqueeze(0)
    hit = intersect(objects, origin, direction)[0, 0]
    steps = torch.linspace(0, 2, 4001)
    points = origin[0].T.unsqueeze(0) + steps[:, None, None] * direction[0].T
    occupied = inside(objects, points)
    first = torch.where(occupied.any(0), steps[occupied.float().argmax(0)], float("inf"))
    grazing = occupied.sum(0) < 20  # too short a chord for the marching step
    agree = torch.isclose(hit, first, atol=2e-3) | (hit.isinf() & first.isinf())
    assert agree[~grazing | ~occupied.any(0)].float().mean() > 0.99
    assert occupied.any(0).float().mean() > 0.3


def test_projection_inverts_the_rays():
    camera = Camera(torch.tensor([[0.0, -0.5, 1.0]]), torch.zeros(1, 3), 0.9)
    rays = camera.rays(6, 8)
    points = camera.position.unsqueeze(-1) + 1.7 * rays
    spot = camera.project(points.transpose(1, 2))[0] * 8
    expected_x = (torch.arange(8) - 3.5).repeat(6)
    expected_y = (torch.arange(6) - 2.5).repeat_interleave(8)
    assert torch.allclose(spot[:, 0], expected_x, atol=1e-4)
    assert torch.allclose(spot[:, 1], expected_y, atol=1e-4)


def test_depth_and_labels_place_objects_where_they_are():
    world = Tabletop(TabletopConfig(camera_jitter_m=0.0), batch_size=4, seed=3)
    frame = world.render(120, 160)
    assert frame.images.shape == (4, 3, 120, 160)
    assert frame.images.min() >= 0 and frame.images.max() <= 1
    rays = world.camera.rays(120, 160)
    points = world.camera.position.unsqueeze(-1) + frame.depths.flatten(1).unsqueeze(1) * rays
    for scene in range(4):
        labels = frame.labels[scene].flatten()
        assert points[scene, 2, labels == 0].abs().max() < 0.02
        for slot in range(world.objects.radius.shape[1]):
            seen = labels == world.identity[scene, slot]
            if not world.objects.present[scene, slot] or not seen.any():
                continue
            offset = points[scene, :2, seen].T - world.objects.position[scene, slot]
            assert offset.norm(dim=1).max() < world.objects.radius[scene, slot] * 1.1


def test_one_seed_is_one_world_and_another_is_another():
    first, same, other = (Tabletop(batch_size=2, seed=seed) for seed in (5, 5, 6))
    for world in (first, same, other):
        for _ in range(30):
            world.advance(1 / 30)
    images = [world.render(24, 32).images for world in (first, same, other)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_objects_move_leave_and_come_back_with_new_identities():
    world = Tabletop(TabletopConfig(num_objects=(4, 4)), batch_size=4, seed=7)
    born = world.next_identity.clone()
    in_view = []
    for _ in range(20):
        world.advance(1.0)
        in_view.append(len(world.render(24, 32).labels.unique()) > 1)
    assert (world.next_identity > born).all()
    assert np.mean(in_view) > 0.9


def test_solids_never_pass_through_one_another():
    world = Tabletop(TabletopConfig(num_objects=(5, 5)), batch_size=8, seed=8)
    for _ in range(300):
        world.advance(1 / 30)
        position, radius = world.objects.position, world.objects.radius
        gap = (position.unsqueeze(2) - position.unsqueeze(1)).norm(dim=-1)
        gap = gap - radius.unsqueeze(2) - radius.unsqueeze(1)
        present = world.objects.present
        pairs = present.unsqueeze(2) & present.unsqueeze(1) & ~torch.eye(5, dtype=torch.bool)
        assert gap[pairs].min() > -0.03


def test_momentum_is_conserved_without_friction():
    config = TabletopConfig(num_objects=(5, 5), friction_per_s=0.0, speed_m_s=(0.2, 0.25))
    world = Tabletop(config, batch_size=16, seed=9)
    mass = (world.objects.radius**2 * world.objects.present).unsqueeze(-1)
    before = (mass * world.velocity).sum(1)
    start = world.velocity.clone()
    for _ in range(60):
        world._glide_and_collide(1 / 60)
    assert (world.velocity != start).any()  # something did collide
    assert torch.allclose((mass * world.velocity).sum(1), before, atol=1e-6)


def test_no_two_objects_in_view_share_a_colour_unless_allowed():
    world = Tabletop(TabletopConfig(num_objects=(5, 5)), batch_size=32, seed=10)
    for _ in range(10):
        world.advance(2.0)
        for colours, present in zip(world.colour_index, world.objects.present, strict=True):
            used = colours[present]
            assert len(used.unique()) == len(used)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_object": [1, 2]}, "Did you mean 'num_objects'"),
        ({"num_objects": [3, 2]}, "low <= high"),
        ({"num_objects": [2, 9]}, "unique colours"),
    ],
)
def test_bad_settings_are_errors_that_name_the_cure(settings, reason):
    with pytest.raises(ConfigurationError, match=reason):
        create_world("tabletop", settings, 1, 0)
