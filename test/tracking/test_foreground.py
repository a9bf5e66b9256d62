# SPDX-License-Identifier: Apache-2.0
"""The background of a camera at rest, and what stands out before it."""

from dataclasses import replace

import numpy as np
import pytest

from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.foreground import BackgroundState, Foreground, View

SIZE = (48, 64)
FRAME_S = 1 / 30
CONFIG = TrackerConfig(background_frames=9)


def room(rng, light=0.0):
    """A noisy textured room, never twice the same."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    texture = 90 + 40 * np.sin(x / 5) + 30 * np.cos(y / 7)
    frame = texture[..., None] * np.array([1.0, 0.9, 0.8]) + light
    return frame + rng.normal(0, 3, frame.shape)


def with_disc(frame, centre, colour=(40, 200, 60), radius=5):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    inside = np.hypot(x - centre[0], y - centre[1]) <= radius
    frame[inside] = colour
    return frame, inside


def camera(frames, foreground=None, state=None, dt_s=FRAME_S):
    """The last state, and all pictures."""
    foreground = foreground or Foreground(CONFIG, SIZE)
    state, pictures = state or BackgroundState(), []
    for frame in frames:
        state, picture = foreground.step(state, np.clip(frame, 0, 255).astype(np.uint8), dt_s)
        pictures.append(picture)
    return state, pictures


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_nothing_is_shown_until_the_background_is_known_although_things_move_in_it(rng):
    frames = [with_disc(room(rng), (6 * k, 20))[0] for k in range(10)]
    _, pictures = camera(frames)
    assert [picture is None for picture in pictures] == [True] * 9 + [False]
    _, inside = with_disc(room(rng), (54, 20))
    assert pictures[-1].shape == SIZE and pictures[-1].dtype == np.float32
    assert pictures[-1][inside].mean() > 0.9 and pictures[-1][~inside].mean() < 0.01


def test_what_passes_leaves_no_trace_and_what_stays_becomes_background(rng):
    state, _ = camera([room(rng) for _ in range(9)])
    still, inside = with_disc(room(rng), (30, 20))
    passed, pictures = camera([with_disc(room(rng), (30, 20))[0] for _ in range(15)], state=state)
    assert pictures[-1][inside].mean() > 0.9
    _, after = camera([room(rng)], state=passed)
    assert after[0].max() < 0.3
    slow = Foreground(replace(CONFIG, frame_period_s=1.0), SIZE)
    _, pictures = camera([still] * 60, slow, passed, dt_s=1.0)
    assert pictures[0][inside].mean() > 0.9 and pictures[-1].max() < 0.1


@pytest.mark.parametrize("gap_s", [2.0, 20.0])
def test_what_stands_there_after_a_blackout_is_not_taken_up(rng, gap_s):
    state, _ = camera([room(rng) for _ in range(9)])
    still, inside = with_disc(room(rng), (30, 20))
    state, _ = camera([still] * 3, state=state)
    state, (first,) = camera([still], state=state, dt_s=gap_s)
    _, pictures = camera([still] * 30, state=state)
    assert first[inside].mean() > 0.9 and pictures[-1][inside].mean() > 0.9


def test_the_background_is_what_is_seen_most_of_the_time(rng):
    state, _ = camera([room(rng) for _ in range(9)])
    often = [with_disc(room(rng), (30, 20))[0] if k % 10 < 3 else room(rng) for k in range(300)]
    slow = Foreground(replace(CONFIG, frame_period_s=1.0), SIZE)
    state, _ = camera(often, slow, state, dt_s=1.0)
    _, inside = with_disc(room(rng), (30, 20))
    _, (empty,) = camera([room(rng)], state=state)
    _, (picture,) = camera([often[0]], state=state)
    assert empty.mean() < 0.05 and picture[inside].mean() > 0.9


def test_light_that_changes_everywhere_is_no_object(rng):
    state, _ = camera([room(rng) for _ in range(9)])
    frame, inside = with_disc(room(rng, light=50), (30, 20), colour=(90, 250, 110))
    _, (picture,) = camera([frame], state=state)
    assert picture[inside].mean() > 0.9 and picture[~inside].mean() < 0.01


def test_another_background_is_learned_anew_once_it_stays(rng):
    state, _ = camera([room(rng) for _ in range(9)])
    turned = [np.roll(room(rng), 17, 1)[::-1] for _ in range(20)]
    _, pictures = camera([*turned[:5], room(rng), *turned], state=state)
    shown = [picture is not None for picture in pictures]
    # Five frames are not enough, nine in a row are; the first of the new ones is among them.
    assert shown == [True] * 6 + [True] * 8 + [False] * 9 + [True] * 3
    assert (pictures[13] > 0).mean() > 0.5 and pictures[-1].max() < 0.3


def test_pictures_keep_their_proportions_and_boxes_find_back(rng):
    foreground = Foreground(TrackerConfig(background="black"), SIZE)
    frame = np.zeros((128, 256, 3), np.uint8)
    frame[40:80, 32:72, 1] = 200  # a square
    _, picture = foreground.step(BackgroundState(), frame, FRAME_S)
    rows, columns = np.nonzero(picture > 0.4)
    assert rows.max() - rows.min() == columns.max() - columns.min() > 4
    assert picture[:8].max() == picture[-8:].max() == 0  # 64 x 32 of the 64 x 48
    assert picture.max() == pytest.approx(200 / 255)
    centre = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / SIZE[1]
    box = View(frame.shape[:2], SIZE).to_pixels(np.array([*centre, 0.1, 0.1]))
    np.testing.assert_allclose(box, [51.5, 59.5, 25.6, 25.6])
    half = View(frame.shape[:2], SIZE, 0.5).to_pixels(np.array([*centre, 0.1, 0.1]))
    np.testing.assert_allclose(half, [51.5, 59.5, 12.8, 12.8])


def test_a_picture_of_another_shape_has_another_background(rng):
    state, _ = camera([room(rng) for _ in range(9)])
    _, (picture,) = camera([room(rng)[:, :40]], state=state)
    assert picture is None
    _, pictures = camera([room(rng).repeat(2, 0).repeat(2, 1)], state=state)
    assert pictures[0] is not None
