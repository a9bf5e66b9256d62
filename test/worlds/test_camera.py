# SPDX-License-Identifier: Apache-2.0
import itertools
from dataclasses import replace

import numpy as np
import pytest

from oc_perception.types import SensorState, TrackState
from oc_perception.worlds.camera import CameraConfig, SimulatedCamera, parse_blackouts
from oc_perception.worlds.tabletop import Tabletop, TabletopConfig

SMALL = dict(width=160, height=120, num_objects=3)


def frames(count, **config):
    camera = SimulatedCamera(CameraConfig(**{**SMALL, **config}))
    views = [camera.draw() for _ in range(count)]
    return views, [camera.expose(view) for view in views]


def test_the_same_seed_gives_the_same_frames_and_another_seed_does_not():
    first, again, other = frames(3)[1], frames(3)[1], frames(3, seed=1)[1]
    for a, b, c in zip(first, again, other, strict=True):
        assert a.shape == (120, 160, 3) and a.dtype == np.uint8
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_no_two_neighbouring_frames_are_equal_even_when_nothing_moves():
    camera = SimulatedCamera(CameraConfig(**SMALL))
    view = camera.draw()
    images = [camera.expose(replace(view, number=number)) for number in range(70)]
    for previous, image in itertools.pairwise(images):
        assert (previous != image).mean() > 0.5
    noise = images[0].astype(float) - images[1]
    assert noise.std() == pytest.approx(2.0 * 2**0.5, rel=0.1)


def test_labels_enlarged_by_an_odd_factor_stay_under_the_objects():
    camera = SimulatedCamera(CameraConfig(**SMALL, render_scale=0.29))
    small = np.random.default_rng(0).integers(0, 256, camera.size, np.uint8)
    rows, columns = (
        ((np.arange(size) + 0.5) * drawn / size).astype(int)
        for size, drawn in zip((120, 160), camera.size, strict=True)
    )
    np.testing.assert_array_equal(camera.enlarge(small), small[np.ix_(rows, columns)])


def test_each_blackout_mode_does_what_it_says_and_the_truth_goes_on():
    schedule = "0.1:2:missing, 0.3:2:black, 0.5:2:frozen"
    views, images = frames(20, rate_hz=30, blackouts=schedule)
    states = [view.state for view in views]
    assert states[3:5] == [SensorState.STALE] * 2 and images[3] is images[4] is None
    assert states[9:11] == [SensorState.BLACK] * 2 and not images[9].any() and not images[10].any()
    assert states[15:17] == [SensorState.FROZEN] * 2
    np.testing.assert_array_equal(images[15], images[14])
    np.testing.assert_array_equal(images[16], images[14])
    assert states.count(SensorState.OK) == 14
    assert all(view.tracks for view in views)
    seeing = frames(20, rate_hz=30)[1]
    for number in (5, 11, 17):  # what follows is what would have been seen anyway
        np.testing.assert_array_equal(images[number], seeing[number])


def test_truth_agrees_with_the_enlarged_labels():
    camera = SimulatedCamera(CameraConfig(**SMALL, render_scale=0.5, seed=4))
    for _ in range(5):
        view = camera.draw()
        labels = camera.enlarge(view.labels)
        assert labels.shape == (120, 160)
        assert {t.slot_label for t in view.tracks} == set(np.unique(labels)) - {0}
        for track in view.tracks:
            rows, columns = np.nonzero(labels == track.slot_label)
            np.testing.assert_allclose(track.box[:2], [columns.mean(), rows.mean()], atol=1e-9)
            assert track.box[2:] == pytest.approx([np.ptp(columns) + 1, np.ptp(rows) + 1])
            visible = len(rows) >= 0.0025 * labels.size
            assert (track.state == TrackState.CONFIRMED) == visible


def test_velocity_is_the_step_of_the_centre_over_the_period():
    camera = SimulatedCamera(CameraConfig(**SMALL, rate_hz=10))
    before = {t.id: t for t in camera.draw().tracks}
    after = {t.id: t for t in camera.draw().tracks}
    shared = before.keys() & after.keys()
    assert shared
    for i in shared:
        step = after[i].box[:2] - before[i].box[:2]
        np.testing.assert_allclose(after[i].velocity, step * 10)


@pytest.mark.parametrize(
    "text", ["5", "1:2:dim", "x:2:black", "0:2:black", "1:0:black", "2:9:black,2.1:3:black"]
)
def test_a_schedule_that_cannot_be_is_refused_with_the_entry(text):
    with pytest.raises(ValueError, match=text.split(",")[-1]):
        parse_blackouts(text, 30)
    with pytest.raises(ValueError):
        CameraConfig(blackouts=text)


def test_an_empty_schedule_never_blinds():
    assert parse_blackouts(" ", 30) == ()


def test_painting_only_what_changed_gives_the_whole_picture():
    camera = SimulatedCamera(CameraConfig(width=320, height=240, num_objects=5, seed=2))
    world = Tabletop(TabletopConfig(num_objects=(5, 5), supersampling=1), seed=2)
    for _ in range(8):
        view = camera.draw(with_depth=True)
        whole = world.render(120, 160)
        image = (whole.images[0] * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.abs(view.image.astype(int) - image).max() <= 1
        np.testing.assert_array_equal(view.labels, whole.labels[0].numpy())
        np.testing.assert_allclose(view.depth, whole.depths[0].numpy(), atol=1e-5)
        for _ in range(20):  # further apart, to see objects come and go
            world.advance(1 / 30)
        for _ in range(19):
            camera.draw()
