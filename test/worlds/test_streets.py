# SPDX-License-Identifier: Apache-2.0
"""Streets: plausible boxes of pedestrians, vehicles and cyclists."""

import pytest
import torch

from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.registry import create_world

SCENES = ("street", "road", "roundabout")


def motion(scene, batch=64, frames=30, seed=1, **config):
    return create_world("streets", {"scene": scene, **config}, batch, seed).sample_motion(frames)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("ego", [False, True])
def test_positions_change_as_velocities_say(scene, ego):
    m = motion(scene, ego=ego)
    change = m.positions.diff(dim=1) / m.dt_s
    # The velocity of the camera belongs to the frame it starts from, that of agents changes.
    error = (change - m.velocities[:, :-1])[m.present[:, 1:] & m.present[:, :-1]]
    assert error.abs().mean() < 0.1 * change.abs().mean()
    assert m.positions.isfinite().all() and m.sizes.min() > 0


@pytest.mark.parametrize(
    ("scene", "kinds", "counts", "pixels", "width_px"),
    [
        ("street", {0}, (3, 8), (0.3, 3.0), 224),
        ("road", {2}, (0, 8), (0.3, 4.0), 224),
        ("roundabout", {0, 1}, (10, 14), (0.3, 2.5), 160),
    ],
)
def test_scenes_have_their_agents_sizes_and_speeds(scene, kinds, counts, pixels, width_px):
    m = motion(scene)
    assert set(m.features.argmax(-1)[m.present].tolist()) == kinds
    assert m.features.sum(-1).eq(1).all() and m.features.shape[-1] == 3
    present = m.present.sum(2)
    assert counts[0] <= present.min() and present.max() == counts[1]
    height_px = m.sizes[..., 1][m.visible] * width_px
    assert height_px.min() > 4 and height_px.max() < 75
    speed = m.velocities.norm(dim=-1)[m.visible].mean().item() * m.dt_s * width_px
    assert pixels[0] < speed < pixels[1]
    again, other = motion(scene), motion(scene, seed=2)
    assert torch.equal(again.positions, m.positions)
    assert not torch.equal(other.positions, m.positions)


def test_pedestrians_near_poles_or_others_are_hidden_and_come_back():
    visible = motion("street", frames=90).visible.int()
    changes = visible.diff(dim=1)
    assert (changes == 1).sum() > 30 and (changes == -1).sum() > 30
    assert 0.6 < visible[motion("street", frames=90).present].float().mean() < 0.95


def test_people_keep_apart():
    m = motion("roundabout", frames=60)
    distance = (m.positions.unsqueeze(3) - m.positions.unsqueeze(2)).norm(dim=-1) * 40
    pairs = m.present.unsqueeze(3) & m.present.unsqueeze(2) & ~torch.eye(14, dtype=torch.bool)
    assert (distance[:, 15:][pairs[:, 15:]] < 0.3).float().mean() < 1e-3


def test_vehicles_follow_without_running_into_the_next():
    world = create_world("streets", {"scene": "road", "num_objects": [8, 8]}, 64, 0)
    m = world.sample_motion(60)
    depth = 1.8 / m.sizes[..., 0]  # metres ahead, of vehicles 1.8 m wide
    lane = world._lane.unsqueeze(1)
    same = (lane.unsqueeze(3) == lane.unsqueeze(2)) & ~torch.eye(8, dtype=torch.bool)
    both = same & m.present.unsqueeze(3) & m.present.unsqueeze(2)
    assert (depth.unsqueeze(3) - depth.unsqueeze(2)).abs()[both].min() > 4.5
    ahead = m.present[:, 1:] & m.present[:, :-1]
    assert (depth.diff(dim=1)[ahead] > -1e-4).all()
    assert (m.present[:, 1:] & ~m.present[:, :-1]).any()  # some come into view


def test_a_moving_camera_shifts_everybody_alike():
    still, moving = motion("roundabout"), motion("roundabout", ego=True)
    shift = still.positions - moving.positions
    assert torch.allclose(shift, shift[:, :, :1].expand_as(shift), atol=1e-6)
    assert shift[:, 10:].std() > 0.01


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scene": "square"}, "street, road, roundabout"),
        ({"num_objects": [3, 2]}, "low <= high"),
        ({"dt_s": 0.0}, "dt_s"),
    ],
)
def test_a_bad_setting_says_what_is_wrong(config, message):
    with pytest.raises(ConfigurationError, match=message):
        create_world("streets", config, 1, 0)


def test_there_are_no_pictures():
    with pytest.raises(ConfigurationError, match="no pictures"):
        create_world("streets", {}, 1, 0).sample(64, 64)
