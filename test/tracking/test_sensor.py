# SPDX-License-Identifier: Apache-2.0
"""What counts as an observation."""

import numpy as np
import pytest

from oc_perception.tracking.sensor import SensorMonitor, SensorMonitorConfig
from oc_perception.types import SensorState

OK, STALE, BLACK, FROZEN, CORRUPT = SensorState


def picture(seed, shape=(480, 640)):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def classify(frames, **config):
    monitor = SensorMonitor(SensorMonitorConfig(**config))
    state, answers = monitor.initial_state(), []
    for stamp, frame in enumerate(frames, 1):
        state, answer = monitor.step(state, frame, stamp)
        answers.append(answer)
    return answers


def test_changing_pictures_are_observations():
    assert classify([picture(0), picture(1), picture(0)]) == [OK, OK, OK]


def test_no_frame_is_stale():
    assert classify([None, picture(0), None]) == [STALE, OK, STALE]


@pytest.mark.parametrize("noise", [0, 8])
def test_dark_and_flat_is_black_even_with_sensor_noise(noise):
    dark = np.random.default_rng(0).integers(0, noise + 1, (480, 640, 3), dtype=np.uint8)
    assert classify([dark, dark]) == [BLACK, BLACK]


def test_a_dark_scene_with_something_in_it_is_an_observation():
    night = np.zeros((480, 640, 3), np.uint8)
    night[200:280, 300:380] = 200
    assert classify([night]) == [OK]


@pytest.mark.parametrize("colour", [(128, 128, 128), (0, 135, 0), (255, 255, 255)])
def test_one_flat_colour_is_corrupt(colour):
    flat = np.broadcast_to(np.array(colour, np.uint8), (480, 640, 3))
    assert classify([flat]) == [CORRUPT]


def test_repeat_is_frozen_and_one_changed_pixel_is_not():
    first = picture(0)
    moved = first.copy()
    moved[-1, -1, -1] ^= 1
    assert classify([first, first.copy(), moved, moved]) == [OK, FROZEN, OK, FROZEN]


def test_repeat_across_a_black_interval_is_frozen():
    black = np.zeros((480, 640, 3), np.uint8)
    assert classify([picture(0), black, None, picture(0)]) == [OK, BLACK, STALE, FROZEN]


@pytest.mark.parametrize(
    ("repeats", "expected"), [(0, [OK] * 4), (1, [OK] + [FROZEN] * 3), (3, [OK] * 3 + [FROZEN])]
)
def test_frozen_after_a_chosen_number_of_repeats(repeats, expected):
    assert classify([picture(0)] * 4, frozen_after_repeats=repeats) == expected


def test_a_driver_that_reuses_its_buffer_is_not_frozen():
    monitor, buffer = SensorMonitor(), picture(0)
    state, _ = monitor.step(monitor.initial_state(), buffer, 1)
    buffer[:] = picture(1)
    assert monitor.step(state, buffer, 2)[1] == OK


def test_other_resolution_and_strided_views_are_read_right():
    wide = picture(0, (480, 1280))
    assert classify([wide, wide[:, ::2], wide[:, ::2], picture(0, (1, 1))]) == [
        OK,
        OK,
        FROZEN,
        CORRUPT,
    ]


@pytest.mark.parametrize(
    "frame",
    [
        np.full((4, 4, 3), np.nan),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        [[[0, 0, 0]]],
    ],
)
def test_what_is_not_a_picture_is_refused(frame):
    with pytest.raises(ValueError, match="A frame must"):
        classify([frame])


@pytest.mark.parametrize("config", [{"black_level": -1}, {"frozen_after_repeats": -1}])
def test_configuration_out_of_range_is_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        SensorMonitorConfig(**config)
