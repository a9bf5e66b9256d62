# SPDX-License-Identifier: Apache-2.0
"""Objects that leave and enter while nobody looks."""

import dataclasses
import uuid

import numpy as np
import pytest
from scipy.stats import norm

from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import Detection, Segmentation, SensorState, TrackState

SIZE = (480, 640)
PERIOD_NS = 33_333_333
SESSION = uuid.UUID(int=2).bytes
OPEN = TrackerConfig(horizon_s=0, exit_probability=1.0, velocity_decay_per_s=0)


def seen(positions):
    detections = tuple(
        Detection(i, np.array([*position, 40.0, 40.0]), 900)
        for i, position in enumerate(positions)
    )
    return Segmentation(0, SensorState.OK, "test", 0, np.zeros(SIZE, np.uint8), detections)


def run(config, frames, state=None, start=0):
    tracker = Tracker(config)
    state = state or tracker.initial_state(SESSION, SIZE)
    outputs = []
    for k, frame in enumerate(frames, start):
        state, output = tracker.step(state, frame, 10**9 + k * PERIOD_NS)
        outputs.append(output)
    return state, outputs


def leaver_and_stayer(k):
    """300 px/s to the right, in view for 30 frames; one that stays."""
    return seen([[300 + 10 * k, 240], [200, 100]][k > 33 :])


def existence(output):
    return {t.id: t.existence_probability for t in output.tracks if t.state != TrackState.LOST}


def test_existence_falls_by_the_share_of_the_belief_that_is_outside():
    state, _ = run(OPEN, [leaver_and_stayer(k) for k in range(30)])
    tracker = Tracker(dataclasses.replace(OPEN, exit_probability=0.4, systematic_std_widths=0))
    free = Tracker(dataclasses.replace(OPEN, exit_probability=0.0))
    for dt_s in (0.1, 0.16, 0.2, 0.3):
        stamp_ns = 10**9 + 29 * PERIOD_NS + round(dt_s * 1e9)
        track = tracker.predict(state, stamp_ns).tracks[0]
        border = 639 + OPEN.view_margin_widths * 640
        beyond = max(0.0, track.box[0] - border) / np.sqrt(track.covariance[0, 0])
        inside = 2 * norm.sf(beyond)
        expected = 1 - 0.4 * (1 - inside)
        kept = existence(free.predict(state, stamp_ns))
        found = existence(tracker.predict(state, stamp_ns))
        assert found[1] / kept[1] == pytest.approx(expected)
        assert found[2] == kept[2], "the one that stays is not doubted"
    assert expected < 0.65, "it has left"


def test_in_an_open_scene_a_leaver_is_lost_while_blind_and_only_that():
    state, outputs = run(OPEN, [*[leaver_and_stayer(k) for k in range(30)], *[None] * 30])
    lost = [k for k, o in enumerate(outputs) if any(t.state == TrackState.LOST for t in o.tracks)]
    assert len(lost) == 1 and 34 <= lost[0] <= 42
    assert list(existence(outputs[-1])) == [2]
    _, outputs = run(OPEN, [leaver_and_stayer(k) for k in range(60, 64)], state, 60)
    assert [t.id for t in outputs[-1].tracks] == [2], "no ghost"


@pytest.mark.parametrize("exit_probability", [0.0, 0.25, 1.0])
def test_existence_depends_on_elapsed_time_only(exit_probability):
    config = dataclasses.replace(OPEN, exit_probability=exit_probability)
    state, _ = run(config, [leaver_and_stayer(k) for k in range(30)])
    once = Tracker(config).predict(state, 10**9 + 36 * PERIOD_NS)
    _, often = run(config, [None] * 7, state, 30)
    assert existence(once) == existence(often[-1])


def test_a_wide_belief_about_an_object_inside_is_no_exit():
    config = dataclasses.replace(OPEN, initial_speed_widths_per_s=3.0, max_coast_s=10)
    state, _ = run(config, [seen([[320, 240]])] * 3)
    output = Tracker(config).predict(state, 10**9 + 60 * PERIOD_NS)
    assert output.tracks[0].covariance[0, 0] > 120**2
    survived = np.exp(-58 * PERIOD_NS * 1e-9 / config.lifetime_s)
    start = existence(Tracker(config).predict(state, 10**9 + 2 * PERIOD_NS))[1]
    assert existence(output)[1] / start == pytest.approx(survived)


def test_behind_walls_nothing_leaves():
    config = dataclasses.replace(OPEN, motion_model="kalman_walls")
    _, outputs = run(config, [*[leaver_and_stayer(k) for k in range(30)], *[None] * 30])
    assert set(existence(outputs[-1])) == {1, 2}
    assert min(existence(outputs[-1]).values()) > 0.9


def test_what_is_seen_again_is_believed_again():
    """It turned back at a border that the motion model does not know of."""
    config = dataclasses.replace(
        OPEN, exit_probability=0.8, collision_rate_per_s=1.0, collision_speed_widths_per_s=0.3
    )
    state, outputs = run(config, [*[leaver_and_stayer(k) for k in range(30)], *[None] * 12])
    assert existence(outputs[-1])[1] < 0.5
    back = seen([[630, 240], [200, 100]])
    _, output = Tracker(config).step(state, back, 10**9 + 42 * PERIOD_NS)
    assert existence(output)[1] > 0.9 and len(output.tracks) == 2


def test_who_enters_unseen_is_somebody_else():
    state, _ = run(OPEN, [*[leaver_and_stayer(k) for k in range(30)], *[None] * 15])
    frames = [seen([[20 + 10 * k, 240], [200, 100]]) for k in range(5)]
    _, outputs = run(OPEN, frames, state, 45)
    assert {t.slot_label: t.id for t in outputs[-1].tracks} == {0: 3, 1: 2}


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_an_exit_probability_is_a_probability(bad):
    with pytest.raises(ValueError, match="exit_probability"):
        TrackerConfig(exit_probability=bad)
