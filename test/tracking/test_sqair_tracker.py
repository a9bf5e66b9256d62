# SPDX-License-Identifier: Apache-2.0
"""SQAIR behind the tracker's protocol: particles, identities, futures, background and time."""

import dataclasses
import json
import uuid

import numpy as np
import pytest
from followers import SIDE, SIZE, picture, seen, stamp, unseen
from watchers import Watcher, untrained

from oc_perception.bags.messages import image_message
from oc_perception.bags.writer import BagWriter
from oc_perception.cli import main
from oc_perception.models.registry import ModelError
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.particles import identified
from oc_perception.tracking.reordering import ReorderingTracker
from oc_perception.tracking.sqair import SqairTracker
from oc_perception.tracking.stamps import StampError
from oc_perception.tracking.table import TrackTable
from oc_perception.tracking.tracker import create_tracker
from oc_perception.types import UNLABELLED, SensorState, TrackState

TENTATIVE, CONFIRMED, COASTING, LOST = TrackState
BLACK, FROZEN = SensorState.BLACK, SensorState.FROZEN
SESSION = uuid.UUID(int=7).bytes
CONFIG = TrackerConfig(
    tracker="sqair",
    background="black",
    systematic_std_widths=0.0,
    horizon_s=0.0,
    exit_probability=0.0,
    restart_probability=0.0,
)
JITTER = 0.004  # widths; half a pixel


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("weights") / "untrained")


@pytest.fixture(params=["watcher", "alone", "untrained"])
def tracker(request, weights):
    """What must hold for any network, and for one particle as for five."""
    if request.param == "untrained":
        config = dataclasses.replace(CONFIG, tracker_weights=weights, restart_probability=0.1)
        return create_tracker(config)
    alone = request.param == "alone"
    config = dataclasses.replace(CONFIG, particles=1 if alone else 5)
    return SqairTracker(config, Watcher(JITTER))


def run(tracker, frames, state=None):
    """`frames` are (frame number, centres shown, or a segmentation without a picture, or None);
    returns the last state and all outputs.
    """
    state, outputs = state or tracker.initial_state(SESSION), []
    for number, shown in frames:
        looks = isinstance(shown, (list, np.ndarray))
        frame = picture(shown) if looks else None
        found = seen(shown) if looks else shown
        state, output = tracker.step(state, found, stamp(number), frame)
        outputs.append(output)
    return state, outputs


def line(number, start=(30.0, 48.0), velocity=(2.0, 0.0)):
    """The centre of a disc that flies straight."""
    return np.array([start]) + number * np.array([velocity])


def flight(numbers):
    return [(k, line(k)) for k in numbers]


def pair(number):
    return np.concatenate([line(number), line(number, (110.0, 70.0), (-2.0, 0.0))])


def ids(output, *states):
    return [t.id for t in output.tracks if not states or t.state in states]


def states(outputs, track_id):
    return [next((t.state for t in o.tracks if t.id == track_id), None) for o in outputs]


def numbers_of(output):
    tracks = [t for t in output.tracks if t.state != LOST]
    modes = [m for t in output.trajectories for m in t.modes]
    return [
        np.concatenate([np.ravel(v).astype(float) for v in dataclasses.asdict(item).values()])
        for item in (*tracks, *modes)
    ]


def same(left, right):
    assert left.tracks[0].id == right.tracks[0].id if left.tracks else True
    assert len(left.tracks) == len(right.tracks)
    for a, b in zip(numbers_of(left), numbers_of(right), strict=True):
        np.testing.assert_array_equal(a, b)


# Tracks of what is seen


def test_objects_are_found_and_followed_without_detections():
    tracker = SqairTracker(CONFIG, Watcher())
    state, outputs = tracker.initial_state(SESSION), []
    for k in range(20):
        state, output = tracker.step(state, seen([]), stamp(k), picture(pair(k)))
        outputs.append(output)
    assert states(outputs, 1) == states(outputs, 2) == [TENTATIVE] * 2 + [CONFIRMED] * 18
    for track, centre in zip(outputs[-1].tracks, pair(19), strict=True):
        np.testing.assert_allclose(track.box, [*centre, SIDE, SIDE], atol=2)
        assert track.slot_label == UNLABELLED and track.existence_probability > 0.98
    np.testing.assert_allclose(outputs[-1].tracks[0].velocity, [60.0, 0.0], atol=1)


def test_detections_lend_their_labels_to_the_tracks_that_they_overlap():
    tracker = SqairTracker(CONFIG, Watcher())
    state, shown = tracker.initial_state(SESSION), pair(0)
    found = seen([shown[1] + 2, shown[0] + [12, 0], shown[0] - 2], labels=[7, 8, 9])
    _, output = tracker.step(state, found, stamp(0), picture(shown))
    assert [t.slot_label for t in output.tracks] == [9, 7]


def test_tracks_end_when_their_objects_are_gone_and_ids_are_not_used_again():
    tracker = SqairTracker(CONFIG, Watcher())
    shown = [pair(0)] * 6 + [pair(0)[:1]] * 30 + [pair(0)] * 4
    _, outputs = run(tracker, list(enumerate(shown)))
    second = states(outputs, 2)
    lost = second.index(LOST)
    assert second[2:lost] == [CONFIRMED] * 4 + [COASTING] * (lost - 6) and 10 < lost < 36
    existence = [t.existence_probability for o in outputs[6:lost] for t in o.tracks if t.id == 2]
    assert np.all(np.diff(existence) < 0)
    assert set(second[lost + 1 :]) == {None} and ids(outputs[-1]) == [1, 3]
    assert states(outputs, 1)[2:] == [CONFIRMED] * 38


def test_existence_is_the_share_of_weight_that_has_the_object():
    weights = np.array([0.4, 0.25, 0.2, 0.1, 0.05])
    never = frozenset(range(100))

    def tracks(blind, **config):
        model = Watcher(
            blind_spots=dict.fromkeys(blind, never),
            log_weights=lambda frame, count: np.log(weights) * (frame == 0),
        )
        tracker = SqairTracker(dataclasses.replace(CONFIG, **config), model)
        return run(tracker, flight(range(1)))[1][-1].tracks

    (track,) = tracks([1, 3])
    assert track.existence_probability == pytest.approx(0.99 * 0.65, abs=1e-6)
    assert not tracks([0, 1])  # most of the weight does not have it


def test_covariance_is_the_spread_of_the_particles_and_the_error_of_boxes():
    config = dataclasses.replace(CONFIG, particles=400, forecast_samples=1)
    _, outputs = run(SqairTracker(config, Watcher(0.015)), flight(range(1)))
    (track,) = outputs[-1].tracks
    expected = np.hypot(0.015 * SIZE[1], CONFIG.box_std_sizes * SIDE)
    np.testing.assert_allclose(np.sqrt(track.covariance.diagonal()[:2]), expected, rtol=0.1)
    (alone,) = run(SqairTracker(dataclasses.replace(CONFIG, particles=1), Watcher(0.015)),
                   flight(range(1)))[1][-1].tracks  # fmt: skip
    stated = SIDE * np.array([CONFIG.box_std_sizes] * 2 + [CONFIG.blind_std_sizes_per_s] * 2)
    assert np.all(np.sqrt(alone.covariance.diagonal()) >= 0.99 * stated)
    np.testing.assert_allclose(np.sqrt(alone.covariance.diagonal()[:2]), stated[:2], rtol=0.01)
    np.testing.assert_allclose(alone.box[:2], line(0)[0], atol=0.6)


def test_every_frame_draws_anew():
    _, outputs = run(SqairTracker(CONFIG, Watcher(0.03)), [(k, line(0)) for k in range(6)])
    places = np.array([o.tracks[0].box[:2] for o in outputs])
    assert len(np.unique(places[:, 0])) == 6 and places.std(0).min() > 0.1


# Who is who


def test_an_object_that_comes_back_after_its_track_was_lost_has_a_new_id():
    """One particle never forgot it, which in the end has all the weight."""
    forgetful = dict.fromkeys(range(1, 5), frozenset(range(8, 100)))
    model = Watcher(
        blind_spots=forgetful, log_weights=lambda k, n: 20.0 * (k == 30) * (np.arange(n) == 0)
    )
    config = dataclasses.replace(CONFIG, min_existence=0.3)
    _, outputs = run(SqairTracker(config, model), flight(range(31)))
    assert LOST in states(outputs, 1) and ids(outputs[29]) == [] and ids(outputs[30]) == [2]


def test_ids_do_not_depend_on_which_particle_weighs_most():
    """Particles number the objects in different orders, and take the lead by turns."""
    model = Watcher(JITTER, log_weights=lambda k, n: 3.0 * (np.arange(n) == k % n))
    _, outputs = run(SqairTracker(CONFIG, model), [(k, pair(k)) for k in range(20)])
    for k, output in enumerate(outputs):
        assert ids(output) == [1, 2]
        for track, centre in zip(output.tracks, pair(k), strict=True):
            np.testing.assert_allclose(track.box[:2], centre, atol=2)


def test_an_object_that_all_particles_forget_for_a_moment_keeps_its_id():
    never = dict.fromkeys(range(5), frozenset({8, 9}))
    _, outputs = run(SqairTracker(CONFIG, Watcher(blind_spots=never)), flight(range(15)))
    assert states(outputs, 1)[2:] == [CONFIRMED] * 6 + [COASTING] * 2 + [CONFIRMED] * 5
    assert ids(outputs[-1]) == [1]
    for k in (8, 9):
        np.testing.assert_allclose(outputs[k].tracks[0].box[:2], line(k)[0], atol=3)


@pytest.mark.parametrize("restart", [0.0, 1e-3])
def test_what_was_not_discovered_in_time_is_found_when_all_is_discovered_anew(restart):
    """The first object keeps its id, and one that is always there never weighs against it."""
    config = dataclasses.replace(CONFIG, restart_probability=restart)
    shown = [(k, pair(k)[: 1 if k < 8 else 2]) for k in range(20)]
    state, outputs = run(SqairTracker(config, Watcher(late=False)), shown)
    found = [ids(output) for output in outputs]
    assert found[:8] == [[1]] * 8 and found[-1] == ([1, 2] if restart else [1])
    late = found.index([1, 2]) - 8 if restart else 0
    assert 0 <= late < 5
    assert state.particles.ids.shape == (1, 5, 4)


def test_objects_are_recognised_across_particles_and_new_ones_are_told_apart():
    tracks = dataclasses.replace(
        TrackTable.empty(),
        ids=np.array([1, 2]),
        means=np.array([[20.0, 20, 0, 0], [60, 20, 0, 0]]),
        covariances=np.tile(np.eye(4), (2, 1, 1)),
    )
    places = {"a": (20, 21), "b": (61, 20), "c": (40, 60), "d": (80, 60)}
    slots = ["cab", "bcd", "dac"]  # of which the first particle knew none, the others one each
    boxes = np.array([[[*places[x], 16, 16] for x in row] for row in slots], float)
    ids = np.array([[0, 0, 0], [2, 0, 0], [0, 1, 0]])
    answer = identified(ids, ids == 0, boxes, np.array([0.1, 0.2, 0.7]), tracks, 20.0)
    c, d = answer[2, 2], answer[2, 0]
    assert answer.tolist() == [[c, 1, 2], [2, c, d], [d, 1, c]]
    assert sorted([c, d]) == [-2, -1]
    boxes[1, 2] = boxes[1, 0] + 1  # another one where there is one already
    assert identified(ids, ids == 0, boxes, np.array([0.1, 0.2, 0.7]), tracks, 20.0)[1, 2] < -2


# While blind


def test_identities_survive_a_blackout_in_which_objects_fly_on():
    tracker = SqairTracker(CONFIG, Watcher())
    state, _ = run(tracker, [(k, pair(k)) for k in range(15)])
    state, outputs = run(tracker, [(k, None) for k in range(15, 30)], state)
    for track, centre in zip(tracker.predict(state, stamp(20.5)).tracks, pair(20.5), strict=True):
        np.testing.assert_allclose(track.box[:2], centre, atol=0.6)
    for track, centre in zip(outputs[-1].tracks, pair(29), strict=True):
        assert track.state == COASTING
        np.testing.assert_allclose(track.box[:2], centre, atol=2)
    _, outputs = run(tracker, [(k, pair(k)) for k in range(30, 33)], state)
    assert ids(outputs[0], CONFIRMED) == [1, 2]
    for track, centre in zip(outputs[-1].tracks, pair(32), strict=True):
        np.testing.assert_allclose(track.box[:2], centre, atol=2)


@pytest.mark.parametrize("frames_blind", [1, 12])
def test_every_way_in_which_a_blackout_arrives_gives_the_same_tracks(tracker, frames_blind):
    tracker = tracker.with_config(dataclasses.replace(CONFIG, horizon_s=0.3))
    jitter = np.random.default_rng(0).uniform(-0.4, 0.4, frames_blind)
    blind = 6 + np.arange(frames_blind)
    back = flight(range(6 + frames_blind, 10 + frames_blind))
    ways = {
        "missing": [],
        "stale": [(k, None) for k in blind],
        "black": [(k, unseen(BLACK)) for k in blind + jitter],
        "frozen": [(k, unseen(FROZEN)) for k in blind],
        "without a picture": [(k, seen([[30.0, 30.0]])) for k in blind],
    }
    answers = {}
    for way, frames in ways.items():
        if hasattr(tracker.model, "seen"):
            tracker.model.seen = 0
        outputs = run(tracker, [*flight(range(6)), *frames, *back])[1]
        observed = [output.sensor_state == SensorState.OK for output in outputs]
        assert observed == [True] * 6 + [False] * len(frames) + [True] * 4
        answers[way] = outputs[:6] + outputs[-4:]
    for other in list(answers.values())[1:]:
        for left, right in zip(answers["missing"], other, strict=True):
            same(left, right)


def test_blind_answers_depend_on_elapsed_time_only(tracker):
    state, _ = run(tracker, flight(range(10)))
    once = tracker.predict(state, stamp(25.4))
    _, often = run(tracker, [(k, None) for k in np.arange(9.3, 25.5, 0.7)], state)
    same(once, tracker.predict(state, stamp(25.4)))
    same(tracker.predict(state, often[-1].stamp_ns), often[-1])


def test_trajectories_are_the_blind_predictions_to_come(tracker):
    tracker = tracker.with_config(dataclasses.replace(CONFIG, horizon_s=0.4, horizon_step_s=0.1))
    state, outputs = run(tracker, flight(range(10)))
    assert outputs[-1].trajectories
    for track, trajectory in zip(outputs[-1].tracks, outputs[-1].trajectories, strict=True):
        (mode,) = trajectory.modes
        points = zip(mode.times_s, mode.boxes, mode.covariances, strict=True)
        for time_s, box, spread in points:
            answer = tracker.predict(state, stamp(9) + round(time_s * 1e9))
            (later,) = (t for t in answer.tracks if t.id == track.id)
            np.testing.assert_allclose(box[:2], later.box[:2], atol=1e-5)
            np.testing.assert_allclose(spread[[0, 2]], later.covariance.diagonal()[:2], rtol=1e-4)


def test_ignorance_grows_with_the_spread_of_the_futures_and_as_stated():
    def errors(jitter, stated):
        config = dataclasses.replace(
            CONFIG, forecast_samples=100, box_std_sizes=1e-6, blind_std_sizes_per_s=stated
        )
        tracker = SqairTracker(config, Watcher(jitter))
        state, _ = run(tracker, flight(range(10)))
        ages = [tracker.predict(state, stamp(9 + k)) for k in (0, 5, 10, 20)]
        return np.array([np.sqrt(output.tracks[0].covariance[0, 0]) for output in ages])

    assert np.all(np.diff(errors(JITTER, 1e-6)) > 0.5)
    stated = 2.0 * SIDE * np.array([0, 5, 10, 20]) / 30
    np.testing.assert_allclose(errors(0.0, 2.0), stated, atol=1e-3)
    both = np.hypot(errors(JITTER, 1e-6), stated)
    np.testing.assert_allclose(errors(JITTER, 2.0), both, rtol=1e-3)


def test_after_a_blackout_every_future_is_shown_the_picture_and_few_particles_go_on():
    model = Watcher(JITTER)
    tracker = SqairTracker(CONFIG, model)
    state, _ = run(tracker, flight(range(10)))
    del model.rows[:]
    run(tracker, flight([15, 16, 17]), state)
    particles, many = CONFIG.particles, CONFIG.particles * CONFIG.forecast_samples
    assert [rows for rows, looks in model.rows if looks] == [many, particles, particles]


def test_an_hour_without_a_frame_costs_no_more_than_the_life_of_a_track():
    model = Watcher()
    tracker = SqairTracker(CONFIG, model)
    state, _ = run(tracker, flight(range(5)))
    del model.rows[:]
    state, output = tracker.step(state, None, stamp(108_000))
    assert ids(output, LOST) == [1]
    _, (output,) = run(tracker, [(108_001, line(0))], state)
    assert ids(output, TENTATIVE) == [2] and ids(output, LOST) == []
    assert len(model.rows) <= CONFIG.max_coast_s * 30 + 5


def test_a_camera_of_half_the_rate_gives_the_prior_a_step_between_two_frames():
    model = Watcher()
    tracker = SqairTracker(CONFIG, model)
    _, outputs = run(tracker, flight(range(0, 20, 2)))
    assert ids(outputs[-1], CONFIRMED) == [1]
    np.testing.assert_allclose(outputs[-1].tracks[0].box[:2], line(18)[0], atol=1)


# What must not depend on what


def test_the_same_frames_and_seed_give_the_same_tracks_and_another_seed_does_not(weights):
    config = dataclasses.replace(CONFIG, tracker_weights=weights, horizon_s=0.2)
    once, again, other = (
        run(create_tracker(dataclasses.replace(config, seed=seed)), flight(range(10)))[1]
        for seed in (3, 3, 4)
    )
    assert any(output.tracks for output in once)
    for left, right in zip(once, again, strict=True):
        same(left, right)
    assert any(
        a.shape != b.shape or not np.array_equal(a, b)
        for left, right in zip(once, other, strict=True)
        for a, b in zip(numbers_of(left), numbers_of(right), strict=False)
    )


def test_frames_out_of_order_give_the_tracks_of_the_right_order(tracker):
    frames = flight(range(16))
    order = [0, 1, 2, 4, 3, 5, 8, 7, 6, 9, 12, 13, 11, 10, 14, 15]
    straight, crooked = (
        run(ReorderingTracker(tracker), taken)[1][-1]
        for taken in (frames, [frames[k] for k in order])
    )
    same(straight, crooked)


def test_a_clock_that_jumps_back_starts_a_new_session_and_late_stamps_are_refused(tracker):
    state, outputs = run(tracker, flight(range(100, 110)))
    with pytest.raises(StampError, match="behind"):
        tracker.step(state, seen([]), stamp(108), picture(line(0)))
    with pytest.raises(StampError, match="duplicate"):
        tracker.step(state, seen([]), stamp(109), picture(line(0)))
    _, after = run(tracker, flight(range(6)), state)
    _, fresh = run(tracker, flight(range(6)))
    assert after[0].session != outputs[-1].session == SESSION
    for left, right in zip(after, fresh, strict=True):
        same(left, right)


def test_ids_survive_a_change_of_resolution():
    tracker = SqairTracker(CONFIG, Watcher())
    state, _ = run(tracker, flight(range(10)))
    small = picture(line(10))[::2, ::2]
    _, output = tracker.step(state, seen([]), stamp(10), small)
    assert ids(output, CONFIRMED) == [1]
    np.testing.assert_allclose(output.tracks[0].box[:2], (line(10)[0] + 0.5) / 2 - 0.5, atol=1)


# The background


def room(centres, rng):
    noise = rng.integers(60, 80, (*SIZE, 3), dtype=np.uint8)
    return np.maximum(picture(centres), noise)


def test_tracking_begins_once_the_background_is_known_and_blind_time_is_not_background():
    config = dataclasses.replace(CONFIG, background="learned", background_frames=10)
    tracker, rng = SqairTracker(config, Watcher()), np.random.default_rng(0)
    state, outputs = tracker.initial_state(SESSION), []
    for k in range(26):
        blind = 5 <= k < 9
        found = unseen(BLACK) if blind else seen([])
        frame = None if blind else room(line(2 * k, (10.0, 48.0)), rng)
        state, output = tracker.step(state, found, stamp(k), frame)
        outputs.append(output)
    assert [bool(o.tracks) for o in outputs] == [False] * 14 + [True] * 12
    assert ids(outputs[-1], CONFIRMED) == [1]


def test_tracks_are_lost_with_the_background():
    config = dataclasses.replace(CONFIG, background="learned", background_frames=3)
    tracker, rng = SqairTracker(config, Watcher()), np.random.default_rng(0)
    elsewhere = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    state, outputs = tracker.initial_state(SESSION), []
    for k in range(12):
        frame = room(line(4 * k, (10.0, 48.0)), rng)
        if k >= 8:  # the camera is turned
            frame = elsewhere
        state, output = tracker.step(state, seen([]), stamp(k), frame)
        outputs.append(output)
    assert [bool(ids(o, TENTATIVE, CONFIRMED)) for o in outputs[3:10]] == [True] * 7
    assert ids(outputs[10]) == ids(outputs[10], LOST) != [] and not outputs[11].tracks


# Weights and settings


def test_weights_that_cannot_serve_are_refused_with_the_cure(tmp_path):
    def refused(weights, message):
        with pytest.raises(ModelError, match=message):
            create_tracker(dataclasses.replace(CONFIG, tracker_weights=str(weights)))

    refused(tmp_path / "absent", r"No checkpoint.*give a directory")
    refused("mohart_d3a_cpu", "is a tracking model, not a video model")
    refused(untrained(tmp_path / "air", "air"), "a checkpoint of sqair")
    for key, value in (("background", "blue"), ("particles", 0), ("window_share", 1.1)):
        with pytest.raises(ValueError, match=key):
            TrackerConfig(**{key: value})


def test_other_settings_keep_what_is_loaded(tracker):
    other = tracker.with_config(TrackerConfig(max_coast_s=0.5, particles=3))
    assert other.config.tracker == "sqair" and other.config.max_coast_s == 0.5
    assert other.model is tracker.model and other.config.particles == tracker.config.particles


def test_slots_can_be_more_than_were_learned(weights):
    config = dataclasses.replace(CONFIG, tracker_weights=weights, slots=6)
    tracker = create_tracker(config)
    state, _ = run(tracker, flight(range(2)))
    assert state.particles.ids.shape == (1, 5, 6)


def test_weights_that_are_not_finite_are_an_error():
    broken = Watcher(log_weights=lambda k, n: np.full(n, np.nan))
    with pytest.raises(ValueError, match="not finite"):
        run(SqairTracker(CONFIG, broken), flight(range(1)))


def test_a_bag_is_replayed_with_it_alike_twice(tmp_path, weights, capsys):
    rng = np.random.default_rng(0)
    with BagWriter(tmp_path / "bag") as bag:
        for k in range(16):
            if not 9 <= k < 12:
                frame = room(line(2 * k, (10.0, 48.0)), rng)
                bag.write("/image", stamp(k), image_message(stamp(k), frame))
    config = tmp_path / "tracking.yaml"
    config.write_text(f"tracker_weights: {weights}\nbackground_frames: 4\nconfirm_hits: 1\n")
    command = ["replay", str(tmp_path / "bag"), "--model", "grid", "--tracker", "sqair"]
    for run_name in "ab":
        output = ["--output", str(tmp_path / run_name), "--config", str(config)]
        assert main([*command, *output]) == 0
    metrics = json.loads((tmp_path / "a" / "bag" / "metrics.json").read_text())
    assert metrics["frames_missing"] == 3 and metrics["tracks_confirmed"] > 0
    a, b = ((tmp_path / n / "bag" / "results" / "results.mcap").read_bytes() for n in "ab")
    assert a == b
    config.write_text(f"tracker_weights: {tmp_path / 'absent'}\n")
    assert main([*command, "--output", str(tmp_path / "c"), "--config", str(config)]) == 2
    assert "No checkpoint" in capsys.readouterr().err
