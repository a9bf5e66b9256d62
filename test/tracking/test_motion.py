# SPDX-License-Identifier: Apache-2.0
"""Motion models: the classical ones against closed forms, and what a tracker does with any."""

import dataclasses
import uuid

import numpy as np
import pytest

from oc_perception.tracking.config import MOTION_MODELS, TrackerConfig
from oc_perception.tracking.motion import Belief, Kalman, create_motion_model
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import Detection, Segmentation, SensorState, TrackState

SIZE = (480, 640)
PERIOD_NS = 33_333_333
SESSION = uuid.UUID(int=1).bytes
CLASSICAL = [name for name in MOTION_MODELS if name != "relational"]


def model(name, **config):
    return create_motion_model(TrackerConfig(motion_model=name, **config))


def belief(means, memory_size=0, sizes=(40.0, 30.0)):
    means = np.asarray(means, float).reshape(-1, 4)
    factor = np.random.default_rng(0).normal(0, 2, (len(means), 4, 4))
    covariances = factor @ factor.transpose(0, 2, 1)
    return Belief(
        means,
        covariances,
        np.tile(np.asarray(sizes, float), (len(means), 1)),
        np.zeros((len(means), 2)),
        np.full((len(means), memory_size), 0.1),
    )


def seen(positions):
    detections = tuple(
        Detection(i, np.array([*p, 40.0, 30.0]), 900, 1.0, np.array([i, 1.0], np.float32))
        for i, p in enumerate(positions)
    )
    return Segmentation(0, SensorState.OK, "test", 0, np.zeros(SIZE, np.uint8), detections)


def run(tracker, frames):
    state = tracker.initial_state(SESSION, SIZE)
    outputs = []
    for k, frame in enumerate(frames):
        state, output = tracker.step(state, frame, 10**9 + k * PERIOD_NS)
        outputs.append(output)
    return state, outputs


@pytest.mark.parametrize("name", CLASSICAL)
def test_a_forecast_is_many_predictions_and_nothing_is_written_in_place(name):
    motion = model(name)
    start = belief([[100, 100, 300, -200], [600, 400, 90, 10]], motion.memory_size)
    kept = [array.copy() for array in vars(start).values()]
    times = np.array([0.0, 0.03, 0.5, 3.0])
    means, covariances = motion.forecast(start, SIZE, times)
    for j, time in enumerate(times):
        single = motion.predict(start, SIZE, time)
        np.testing.assert_allclose(means[:, j], single.means, atol=1e-9)
        np.testing.assert_allclose(covariances[:, j], single.covariances, atol=1e-9)
        assert (np.linalg.eigvalsh(single.covariances) > -1e-9).all()
    after = motion.update(start, SIZE, np.array([1]), np.array([[599.0, 401]]), np.eye(2)[None])
    for array, copy in zip(vars(start).values(), kept, strict=True):
        np.testing.assert_array_equal(array, copy)
    np.testing.assert_array_equal(after.means[0], start.means[0])
    assert after.covariances[1, 0, 0] < start.covariances[1, 0, 0]


def test_walls_reflect_as_a_ball_in_a_box_does():
    config = {"velocity_decay_per_s": 0.0}
    start = belief([[100.0, 100.0, -300.0, 170.0]])
    path = [start.means[0].copy()]
    low, high = np.array([19.5, 14.5]), np.array([639 - 19.5, 479 - 14.5])
    state, dt = start.means[0].copy(), 1e-2
    for _ in range(400):
        state[:2] += state[2:] * dt
        out = (state[:2] < low) | (state[:2] > high)
        state[2:][out] *= -1
        state[:2] = np.where(state[:2] < low, 2 * low - state[:2], state[:2])
        state[:2] = np.where(state[:2] > high, 2 * high - state[:2], state[:2])
        path.append(state.copy())
    times = np.array([0.1, 0.5, 1.3, 4.0])
    means, covariances = model("kalman_walls", **config).forecast(start, SIZE, times)
    np.testing.assert_allclose(
        means[0], np.array(path)[np.rint(times / dt).astype(int)], atol=1e-6
    )
    _, free = model("kalman", **config).forecast(start, SIZE, times)
    np.testing.assert_allclose(np.linalg.det(covariances), np.linalg.det(free), rtol=1e-6)
    signs = np.sign(means[0, :, 2:] * start.means[0, 2:])
    twist = signs[:, 0] * signs[:, 1]  # a reflection on one axis turns the ellipse over
    np.testing.assert_allclose(covariances[0, :, 0, 1], twist * free[0, :, 0, 1], rtol=1e-9)


def test_an_object_as_large_as_the_image_is_not_reflected():
    start = belief([[320.0, 100.0, 500.0, -200.0]], sizes=(700.0, 30.0))
    free, walled = (model(n).predict(start, SIZE, 1.0) for n in ("kalman", "kalman_walls"))
    assert walled.means[0, 0] == free.means[0, 0] > 700
    assert walled.means[0, 1] > 0 > free.means[0, 1]


def test_constant_velocity_is_the_line_through_the_last_two_sightings():
    tracker = Tracker(TrackerConfig(motion_model="constant_velocity", horizon_s=0.0))
    path = np.array([[100, 100], [103, 99], [108, 99], [0, 0], [118, 97]], float)
    frames = [seen([p]) if p[0] else seen([]) for p in path]
    _, outputs = run(tracker, [*frames, None])
    (track,) = outputs[-1].tracks
    dt = PERIOD_NS * 1e-9
    velocity = (path[4] - path[2]) / (2 * dt)
    np.testing.assert_allclose(track.velocity, velocity)
    np.testing.assert_allclose(track.box[:2], path[4] + velocity * dt)


def test_hold_stays():
    tracker = Tracker(TrackerConfig(motion_model="hold", horizon_s=0.0))
    _, outputs = run(tracker, [*[seen([[100 + 3 * k, 100]]) for k in range(20)], *[None] * 20])
    last, dark = outputs[19].tracks[0], outputs[-1].tracks[0]
    np.testing.assert_allclose(dark.box, last.box)
    assert dark.box[0] > 150 and not dark.velocity.any()
    spread = 20 * PERIOD_NS * 1e-9 * TrackerConfig.initial_speed_widths_per_s * 640
    grown = dark.covariance[0, 0] - last.covariance[0, 0]
    np.testing.assert_allclose(grown, spread**2)


@pytest.mark.parametrize("name", CLASSICAL)
def test_every_model_tracks_what_moves(name):
    tracker = Tracker(TrackerConfig(motion_model=name))
    frames = [seen([[100 + 2 * k, 100], [500, 400 - k]]) for k in range(40)]
    frames[20:25] = [None] * 5
    _, outputs = run(tracker, frames)
    states = [(t.id, t.state) for t in outputs[-1].tracks]
    assert states == [(1, TrackState.CONFIRMED), (2, TrackState.CONFIRMED)]
    assert len(outputs[-1].trajectories) == 2


@pytest.mark.parametrize("name", CLASSICAL)
def test_blind_steps_at_any_stamps_leave_what_follows_bit_identical(name):
    tracker, rng = Tracker(TrackerConfig(motion_model=name)), np.random.default_rng(3)
    frames = [seen([[100 + 2 * k, 100], [500, 400 - k]]) for k in range(30)]
    results = []
    for blind_steps in (0, 40):
        state = tracker.initial_state(SESSION, SIZE)
        for k, frame in enumerate(frames):
            if 10 <= k < 18:
                continue
            stamp_ns = 10**9 + k * PERIOD_NS
            for offset_ns in np.sort(rng.integers(1, 9 * PERIOD_NS, blind_steps * (k == 18))):
                state, _ = tracker.step(state, None, 10**9 + 9 * PERIOD_NS + int(offset_ns))
            state, output = tracker.step(state, frame, stamp_ns)
        results.append(output)
    for one, other in zip(*(r.tracks for r in results), strict=True):
        np.testing.assert_array_equal(one.box, other.box)
        np.testing.assert_array_equal(one.covariance, other.covariance)
    for one, other in zip(*(r.trajectories for r in results), strict=True):
        np.testing.assert_array_equal(one.modes[0].boxes, other.modes[0].boxes)


class Herd(Kalman):
    """All objects take the mean velocity of all. Notes whom it was asked about, and for what."""

    memory_size = 2

    def __init__(self, config):
        super().__init__(config)
        self.asked, self.updates = [], []

    def predict(self, belief, image_size, dt_s):
        self.asked.append(belief.means)
        predicted = super().predict(self.together(belief), image_size, dt_s)
        return dataclasses.replace(predicted, memories=belief.memories + 1)

    def forecast(self, belief, image_size, times_s):
        self.asked.append(belief.means)
        return super().forecast(self.together(belief), image_size, times_s)

    def update(self, belief, image_size, rows, positions, noises):
        self.updates.append((rows.tolist(), belief.memories.copy(), belief.features.copy()))
        return super().update(belief, image_size, rows, positions, noises)

    @staticmethod
    def together(belief):
        means = belief.means.copy()
        means[:, 2:] = means[:, 2:].mean(0)
        return dataclasses.replace(belief, means=means)


def test_a_model_in_which_objects_act_on_one_another_gets_what_it_needs():
    config = TrackerConfig(horizon_s=0.2, horizon_step_s=0.1, max_coast_s=0.5)
    motion = Herd(config)
    tracker = Tracker(config, motion)
    frames = [seen([[100 + 6 * k, 100], [300, 300]]) for k in range(10)]
    frames += [seen([[160, 100]]), None, None]
    state, outputs = run(tracker, frames)

    rows, memories, features = zip(*motion.updates, strict=True)
    assert rows[-2:] == ([0, 1], [0]), "an update also where a track was missed"
    assert memories[0].tolist() == [[1, 1], [1, 1]], "zero at birth, and kept since"
    assert memories[-1].tolist() == [[10, 10], [10, 10]]
    np.testing.assert_array_equal(features[-1], [[0, 1], [1, 1]])
    assert state.tracks.memories.tolist() == [[10, 10], [10, 10]], "blind steps write nothing"
    anchor = state.tracks.means
    assert all(means is anchor for means in motion.asked[-4:]), "two blind steps, one computation"

    # objects move together, and trajectories continue what blind steps say
    before, dark = outputs[-3].tracks, outputs[-1].tracks
    common = np.mean([t.velocity for t in before], 0)
    np.testing.assert_allclose(dark[0].velocity, dark[1].velocity)
    assert np.linalg.norm(dark[0].velocity) == pytest.approx(np.linalg.norm(common), rel=0.02)
    anchor_ns = outputs[-1].source_stamp_ns
    for j, time_s in enumerate((0.1, 0.2)):
        later_ns = outputs[-1].stamp_ns + round(time_s * 1e9)
        later = tracker.predict(state, later_ns)
        for trajectory, track in zip(outputs[-1].trajectories, later.tracks, strict=True):
            np.testing.assert_allclose(trajectory.modes[0].boxes[j], track.box, atol=1e-6)
            xx, xy, yy = trajectory.modes[0].covariances[j]
            np.testing.assert_allclose([[xx, xy], [xy, yy]], track.covariance[:2, :2], rtol=1e-6)
    # one of two is lost while blind: the other still moves as both would
    one_left = tracker.predict(state, anchor_ns + 480_000_000)
    assert [t.state for t in one_left.tracks] == [TrackState.COASTING, TrackState.LOST]
    both = motion.predict(state.tracks.belief, SIZE, 0.48)
    np.testing.assert_array_equal(one_left.tracks[0].box[:2], both.means[0, :2])
    assert [t.track_id for t in one_left.trajectories] == [1]


def test_a_change_of_the_motion_model_keeps_tracks_and_empties_memories():
    config = TrackerConfig(horizon_s=0.0)
    state, _ = run(Tracker(config), [seen([[100, 100]])] * 5)
    changed = Tracker(config, Herd(config))
    stamp_ns = 10**9 + 5 * PERIOD_NS
    assert [t.id for t in changed.predict(state, stamp_ns).tracks] == [1]
    state, output = changed.step(state, seen([[100, 100]]), stamp_ns)
    assert [t.id for t in output.tracks] == [1] and state.tracks.memories.shape == (1, 2)


def test_an_unknown_motion_model_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="choose kalman, relational"):
        TrackerConfig(motion_model="magic")
