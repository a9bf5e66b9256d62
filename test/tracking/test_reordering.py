# SPDX-License-Identifier: Apache-2.0
"""Observations out of order: the same tracks as in order, at once, in bounded memory."""

import dataclasses
import pickle
import uuid

import numpy as np
import pytest

from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.reordering import MOST_KEPT, ReorderingTracker
from oc_perception.tracking.stamps import DuplicateStampError, StampError
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import Detection, Segmentation, SensorState, TrackState

SIZE = (480, 640)
PERIOD_NS = 33_333_333
START_NS = 5_000_000_000
SESSION = uuid.UUID(int=3).bytes
CONFIG = TrackerConfig(horizon_s=0.2)


def stamp(frame):
    return START_NS + frame * PERIOD_NS


def scene(frames, seed=0, objects=5):
    """Objects in motion, now and then missed, born half way; what is seen at each frame."""
    rng = np.random.default_rng(seed)
    start, velocity = rng.uniform(150, 330, (objects, 2)), rng.normal(0, 60, (objects, 2))
    look = rng.normal(0, 1, (objects, 4))
    answer = []
    for k in range(frames):
        detections = tuple(
            Detection(
                label=i,
                box=np.array([*(start[i] + velocity[i] * k / 30 + rng.normal(0, 2, 2)), 40, 40]),
                area_px=900,
                embedding=(look[i] + rng.normal(0, 0.1, 4)).astype(np.float32),
            )
            for i in rng.permutation(objects)
            if rng.random() > 0.05 and (i < objects - 1 or k > frames // 2)
        )
        answer.append(Segmentation(stamp(k), SensorState.OK, "test", k, None, detections))
    return answer


def take(arrivals, config=CONFIG, blind=()):
    """Step through segmentations in order of arrival; returns the state and what came of each."""
    tracker = ReorderingTracker(Tracker(config))
    state, outputs = tracker.initial_state(SESSION, SIZE), []
    for number, seen in enumerate(arrivals):
        try:
            state, output = tracker.step(state, seen, seen.stamp_ns)
        except StampError as error:
            output = error
        outputs.append(output)
        if number in blind:
            newest_ns = state.tracker.anchor_ns
            for offset_ns in blind[number]:
                state, _ = tracker.step(state, None, newest_ns + offset_ns)
    return state, outputs


def same(left, right):
    """The tracks of two outputs are equal, what was reported LOST aside."""
    assert (left.stamp_ns, left.source_stamp_ns) == (right.stamp_ns, right.source_stamp_ns)
    pairs = [
        [dataclasses.asdict(t) for t in output.tracks if t.state != TrackState.LOST]
        for output in (left, right)
    ]
    for a, b in zip(*pairs, strict=True):
        for name, value in a.items():
            np.testing.assert_allclose(value, b[name], rtol=0, atol=1e-9, err_msg=name)
    for a, b in zip(left.trajectories, right.trajectories, strict=True):
        assert a.track_id == b.track_id
        np.testing.assert_allclose(a.modes[0].boxes, b.modes[0].boxes, rtol=0, atol=1e-9)


def shuffled(frames, delays):
    """In order of arrival, each frame as many periods late as `delays` says."""
    return [frames[i] for i in np.argsort(np.arange(len(frames)) + delays, kind="stable")]


@pytest.mark.parametrize("seed", range(4))
def test_any_order_within_the_window_gives_the_tracks_of_the_right_order(seed):
    frames = scene(60, seed)
    rng = np.random.default_rng(seed)
    delays = np.where(rng.random(60) < 0.3, rng.uniform(0, 5.9, 60), 0)  # up to 197 ms
    delays[-8:] = 0
    arrivals = shuffled(frames, delays)
    assert [f.stamp_ns for f in arrivals] != sorted(f.stamp_ns for f in frames)
    _, expected = take(frames)
    by_stamp = {output.stamp_ns: output for output in expected}
    blind = {k: rng.integers(1, 3 * PERIOD_NS, 3) for k in range(0, 60, 7)}
    for state, outputs in (take(arrivals), take(arrivals, blind=blind)):
        same(outputs[-1], expected[-1])
        assert not any(isinstance(output, StampError) for output in outputs)
        # complete up to the newest: as good as in order, not only at the end
        complete = 0
        for number, output in enumerate(outputs, 1):
            if number == len(
                {f.stamp_ns for f in arrivals[:number]} & {*map(stamp, range(number))}
            ):
                same(output, by_stamp[output.stamp_ns])
                complete += 1
        assert complete > 10
        assert state.tracker.next_id == take(frames)[0].tracker.next_id


def test_the_answer_to_a_late_observation_is_of_the_newest_time():
    frames = scene(12)
    _, outputs = take([*frames[:9], frames[10], frames[11], frames[9]])
    assert [o.stamp_ns for o in outputs[-3:]] == [stamp(10), stamp(11), stamp(11)]


@pytest.mark.parametrize("behind", [0, 1, 4])
def test_duplicates_are_refused_by_name_and_change_nothing(behind):
    frames = scene(20)
    _, outputs = take([*frames[:15], frames[14 - behind], *frames[15:]])
    assert isinstance(outputs[15], DuplicateStampError)
    same(outputs[-1], take(frames)[1][-1])


def test_what_is_older_than_the_window_is_refused_and_changes_nothing():
    frames = scene(20)
    in_time = [f for f in frames if f is not frames[5]]
    for at, config in ((13, CONFIG), (7, dataclasses.replace(CONFIG, reorder_window_s=0.0))):
        arrivals = [*in_time[: at - 1], frames[5], *in_time[at - 1 :]]
        _, outputs = take(arrivals, config)
        assert isinstance(outputs[at - 1], StampError)
        assert "behind" in str(outputs[at - 1])
        same(outputs[-1], take(in_time, config)[1][-1])


def test_late_news_of_no_observation_is_refused_and_changes_nothing():
    frames = scene(20)
    black = dataclasses.replace(frames[17], sensor_state=SensorState.BLACK, detections=())
    _, outputs = take([*frames[:17], frames[18], black, frames[19]])
    assert isinstance(outputs[18], StampError)
    same(outputs[-1], take([*frames[:17], *frames[18:]])[1][-1])


def test_a_clock_that_jumps_back_starts_a_clean_session():
    frames = scene(20)
    back = [dataclasses.replace(f, stamp_ns=f.stamp_ns - 3_000_000_000) for f in frames]
    state, outputs = take([*frames, *back])
    assert len({o.session for o in outputs}) == 2
    assert [t.id for t in outputs[20].tracks] == [1, 2, 3, 4]
    assert outputs[20].session != SESSION and outputs[21].session == outputs[20].session
    assert all(taken.before.session == outputs[-1].session for taken in state.taken[1:])
    _, blind = take(
        [*frames, dataclasses.replace(back[0], sensor_state=SensorState.BLACK), back[1]]
    )
    assert len({o.session for o in blind}) == 2 and blind[-1].tracks[0].id == 1


def test_a_track_that_the_late_observation_takes_back_is_reported_lost_once():
    """Somebody new at frame 4, whom the late frame 3 shows to be track 1 on its way."""

    def seen(k):
        x = 100.0 + 18.0 * np.clip(k - 2, 0, 2)
        detection = Detection(0, np.array([x, 200.0, 40, 40]), 900)
        return Segmentation(stamp(k), SensorState.OK, "test", k, None, (detection,))

    frames = [seen(k) for k in range(12)]
    _, expected = take(frames)
    assert {t.id for t in expected[-1].tracks} == {1}
    _, outputs = take([*frames[:3], frames[4], frames[3], *frames[5:]])
    assert {t.id for t in outputs[3].tracks} == {1, 2}
    lost = [
        (k, t.id) for k, o in enumerate(outputs) for t in o.tracks if t.state == TrackState.LOST
    ]
    assert lost == [(4, 2)]
    same(outputs[-1], expected[-1])


def test_an_observation_that_cannot_be_tracked_leaves_the_state_alone():
    frames = scene(12)
    wrong = Detection(0, np.array([np.nan, 1, 1, 1]), 900)
    bad = dataclasses.replace(frames[9], detections=(wrong,))
    tracker = ReorderingTracker(Tracker(CONFIG))
    state = tracker.initial_state(SESSION, SIZE)
    for seen in (*frames[:9], frames[10]):
        state, _ = tracker.step(state, seen, seen.stamp_ns)
    with pytest.raises(ValueError, match="finite"):
        tracker.step(state, bad, bad.stamp_ns)
    for seen in (frames[9], frames[11]):
        state, output = tracker.step(state, seen, seen.stamp_ns)
    same(output, take(frames)[1][-1])


def test_memory_is_bounded_over_a_long_run_of_anything():
    tracker = ReorderingTracker(Tracker(dataclasses.replace(CONFIG, horizon_s=0.0)))
    state = tracker.initial_state(SESSION, SIZE)
    rng = np.random.default_rng(0)
    sizes, now = [], START_NS
    for k in range(600):
        now += int(rng.choice([PERIOD_NS, 1, 20 * PERIOD_NS], p=[0.6, 0.38, 0.02]))
        positions = rng.uniform(50, 430, (rng.poisson(2), 2))
        detections = tuple(
            Detection(i, np.array([*p, 40, 40]), 900) for i, p in enumerate(positions)
        )
        seen = Segmentation(now, SensorState.OK, "test", k, None, detections)
        stamp_ns = now - int(rng.integers(0, 3)) * PERIOD_NS
        try:
            state, _ = tracker.step(state, None if rng.random() < 0.2 else seen, stamp_ns)
        except StampError:
            continue
        if k % 20 == 19:
            sizes.append(len(pickle.dumps(state)))
    assert len(state.taken) <= MOST_KEPT
    assert max(sizes[5:]) < 1.5 * max(sizes[:5])
