# SPDX-License-Identifier: Apache-2.0
"""MOHART behind the tracker's protocol: what the network does, what discovery does, and time."""

import dataclasses
import json
import uuid

import numpy as np
import pytest
from followers import SIDE, SIZE, Follower, picture, seen, stamp, unseen, untrained

from oc_perception.bags.messages import image_message
from oc_perception.bags.writer import BagWriter
from oc_perception.cli import main
from oc_perception.models.registry import ModelError, load_model
from oc_perception.pipeline import Discovery, Perception
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.mohart import MohartTracker
from oc_perception.tracking.reordering import ReorderingTracker
from oc_perception.tracking.stamps import StampError
from oc_perception.tracking.tracker import Tracker, create_tracker
from oc_perception.types import SensorState, TrackState

TENTATIVE, CONFIRMED, COASTING, LOST = TrackState
BLACK, FROZEN, STALE = SensorState.BLACK, SensorState.FROZEN, SensorState.STALE
SESSION = uuid.UUID(int=7).bytes
CONFIG = TrackerConfig(
    box_std_sizes=0.1,  # the follower here never errs
    blind_std_sizes_per_s=1.0,
    tracker="mohart",
    systematic_std_widths=0.0,
    horizon_s=0.0,
    exit_probability=0.0,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("weights") / "untrained")


@pytest.fixture(scope="module")
def inert_weights(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights") / "inert"
    return untrained(directory, "inert_mohart", num_features=0, glimpse_size=(16, 16))


@pytest.fixture(params=["follower", "untrained", "inert"])
def tracker(request, weights, inert_weights):
    """What must hold for any network."""
    if request.param == "follower":
        return MohartTracker(CONFIG, Follower())
    weights = inert_weights if request.param == "inert" else weights
    return create_tracker(dataclasses.replace(CONFIG, tracker_weights=weights))


def run(tracker, frames, state=None):
    """`frames` are (frame number, centres found or segmentation, centres in the picture or None);
    returns the last state and all outputs.
    """
    state, outputs = state or tracker.initial_state(SESSION, SIZE), []
    for number, found, shown in frames:
        segmentation = seen(found) if isinstance(found, (list, np.ndarray)) else found
        frame = None if shown is None else picture(shown)
        state, output = tracker.step(state, segmentation, stamp(number), frame)
        outputs.append(output)
    return state, outputs


def line(number, start=(30.0, 48.0), velocity=(1.5, 0.0)):
    """The centre of a disc that flies straight."""
    return np.array([start]) + number * np.array([velocity])


def flight(numbers, **where):
    return [(k, line(k, **where), line(k, **where)) for k in numbers]


def ids(output, *states):
    return [t.id for t in output.tracks if not states or t.state in states]


def numbers_of(output):
    """All numbers in an output, what was reported LOST aside."""
    tracks = [t for t in output.tracks if t.state != LOST]
    modes = [m for t in output.trajectories for m in t.modes]
    return [
        np.concatenate([np.ravel(v).astype(float) for v in dataclasses.asdict(item).values()])
        for item in (*tracks, *modes)
    ]


def same(left, right, tolerance=1e-9):
    assert len(left.tracks) == len(right.tracks)
    for a, b in zip(numbers_of(left), numbers_of(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


# Who moves the boxes


def test_boxes_follow_the_picture_where_discovery_is_off():
    off = np.array([3.0, -2.0])
    frames = [(k, line(k) + off, line(k)) for k in range(20)]
    _, outputs = run(MohartTracker(CONFIG, Follower()), frames)
    assert ids(outputs[-1], CONFIRMED) == [1]
    (track,) = outputs[-1].tracks
    np.testing.assert_allclose(track.box, [*line(19)[0], SIDE, SIDE], atol=0.3)
    np.testing.assert_allclose(track.velocity, [45.0, 0.0], atol=6)


def test_boxes_follow_what_turns_while_discovery_misses_it():
    """The filter goes straight on there."""
    path = [line(k)[0] if k < 15 else line(15)[0] + (0, 2.0 * (k - 15)) for k in range(25)]
    frames = [(k, [at] if k < 15 else [], [at]) for k, at in enumerate(path)]
    looking, straight = MohartTracker(CONFIG, Follower()), Tracker(CONFIG)
    errors = [
        np.linalg.norm(run(tracker, frames)[1][-1].tracks[0].box[:2] - path[-1])
        for tracker in (looking, straight)
    ]
    assert errors[0] < 0.5 < 10 < errors[1]


def test_trajectories_are_the_blind_predictions_to_come(tracker):
    tracker = tracker.with_config(dataclasses.replace(CONFIG, horizon_s=0.4, horizon_step_s=0.1))
    state, outputs = run(tracker, flight(range(10)))
    (mode,) = outputs[-1].trajectories[0].modes
    for time_s, box, spread in zip(mode.times_s, mode.boxes, mode.covariances, strict=True):
        (later,) = tracker.predict(state, stamp(9) + round(time_s * 1e9)).tracks
        np.testing.assert_allclose(box[:2], later.box[:2], atol=1e-6)
        np.testing.assert_allclose(spread[[0, 2]], later.covariance.diagonal()[:2], rtol=1e-6)


# Life cycle


def test_tracks_are_born_confirmed_and_lost_by_what_is_discovered(tracker):
    alone, pair = [[30, 30]], [[30, 30], [90, 60]]
    script = [alone] * 3 + [pair] * 4 + [alone] * 40
    # In sight at all times, so that nothing but discovery can say so.
    frames = [(k, found, pair) for k, found in enumerate(script)]
    _, outputs = run(MohartTracker(CONFIG, Follower()), frames)
    second = [next((t.state for t in o.tracks if t.id == 2), None) for o in outputs]
    assert second[:7] == [None] * 3 + [TENTATIVE] * 2 + [CONFIRMED] * 2
    lost = second.index(LOST)
    assert second[7:lost] == [COASTING] * (lost - 7) and lost > 10
    assert set(second[lost + 1 :]) == {None}
    assert all(ids(o, CONFIRMED)[:1] == [1] for o in outputs[2:])
    # Whatever an untrained network does to the boxes, everything found belongs to some track.
    _, outputs = run(tracker, frames)
    for (_, found, _), output in zip(frames, outputs, strict=True):
        assert {t.slot_label for t in output.tracks} >= set(range(len(found)))


def test_an_hour_without_a_frame_costs_no_more_than_the_life_of_a_track():
    network = Follower()
    tracker = MohartTracker(CONFIG, network)
    state, _ = run(tracker, flight(range(5)))
    del network.rows[:]
    state, output = tracker.step(state, None, stamp(108_000))
    assert ids(output, LOST) == [1]
    _, output = tracker.step(state, seen(line(0)), stamp(108_001), picture(line(0)))
    assert ids(output, TENTATIVE) == [2]
    assert len(network.rows) <= CONFIG.max_coast_s * 30 + 3


# While blind


def test_identities_survive_a_blackout_in_which_objects_fly_on():
    def both(k):
        return np.concatenate([line(k), line(k, (100.0, 70.0), (-1.0, -1.0))])

    tracker = MohartTracker(CONFIG, Follower())
    state, outputs = run(tracker, [(k, both(k), both(k)) for k in range(15)])
    assert ids(outputs[-1]) == [1, 2]
    state, outputs = run(tracker, [(k, None, None) for k in range(15, 30)], state)
    for track, centre in zip(outputs[-1].tracks, both(29), strict=True):
        assert track.state == COASTING
        np.testing.assert_allclose(track.box[:2], centre, atol=2)
    _, outputs = run(tracker, [(k, both(k)[::-1], both(k)) for k in range(30, 33)], state)
    assert {t.id: t.slot_label for t in outputs[-1].tracks} == {1: 1, 2: 0}


def test_a_track_that_was_led_astray_is_put_back_where_its_object_is_found():
    """The disc turns while nobody looks, further than its box can see."""
    tracker = MohartTracker(CONFIG, Follower())
    state, _ = run(tracker, flight(range(15)))
    turned = [line(15)[0] + (0, 1.6 * k) for k in range(20)]
    frames = [(30 + k, [at], [at]) for k, at in enumerate(turned[15:])]
    state, outputs = run(tracker, frames, state)
    assert [ids(o) for o in outputs] == [[1]] * 5
    np.testing.assert_allclose(outputs[0].tracks[0].box, [*turned[15], SIDE, SIDE], atol=1e-3)
    np.testing.assert_allclose(outputs[-1].tracks[0].box[:2], turned[-1], atol=0.5)


@pytest.mark.parametrize("frames_blind", [5, 20])
def test_every_way_in_which_a_blackout_arrives_gives_the_same_tracks(tracker, frames_blind):
    tracker = tracker.with_config(dataclasses.replace(CONFIG, horizon_s=0.3))
    jitter = np.random.default_rng(0).uniform(-0.4, 0.4, frames_blind)
    blind = 12 + np.arange(frames_blind)
    back = flight(range(12 + frames_blind, 18 + frames_blind))
    ways = {
        "missing": [],
        "stale": [(k, None, None) for k in blind],
        "black": [(k, unseen(BLACK), []) for k in blind + jitter],
        "frozen": [(k, unseen(FROZEN), line(11)) for k in blind],
    }
    answers = {}
    for way, frames in ways.items():
        outputs = run(tracker, [*flight(range(12)), *frames, *back])[1]
        answers[way] = outputs[:12] + outputs[-6:]
    for other in list(answers.values())[1:]:
        for left, right in zip(answers["missing"], other, strict=True):
            same(left, right)


def test_blind_answers_depend_on_elapsed_time_only(tracker):
    state, _ = run(tracker, flight(range(10)))
    once = tracker.predict(state, stamp(25.4))
    _, often = run(tracker, [(k, None, None) for k in np.arange(9.3, 25.5, 0.7)], state)
    same(once, tracker.predict(state, stamp(25.4)), 0)
    later = tracker.predict(state, round(often[-1].stamp_ns))
    same(later, often[-1])


def test_the_error_is_stated_in_sizes_and_grows_until_something_is_found_again():
    tracker = MohartTracker(CONFIG, Follower())
    state, outputs = run(tracker, flight(range(10)))

    def sizes(output):
        return np.sqrt(output.tracks[0].covariance[[0, 1], [0, 1]]) / SIDE

    def expected(frames):
        return np.hypot(CONFIG.box_std_sizes, CONFIG.blind_std_sizes_per_s * frames / 30)

    np.testing.assert_allclose(sizes(outputs[-1]), expected(0))
    for frames in (1, 7.5, 30):
        output = tracker.predict(state, stamp(9 + frames))
        np.testing.assert_allclose(sizes(output), expected(frames), rtol=1e-6)
        assert np.linalg.eigvalsh(output.tracks[0].covariance).min() > 0
    state, outputs = run(tracker, [(k, [], line(k)) for k in range(10, 14)], state)
    np.testing.assert_allclose(sizes(outputs[-1]), expected(4), rtol=1e-6)
    _, outputs = run(tracker, flight([14]), state)
    np.testing.assert_allclose(sizes(outputs[-1]), expected(0))


def test_numbers_stay_finite_whatever_the_weights(tmp_path):
    wild = untrained(tmp_path / "wild")
    model = load_model(wild, task="tracking")
    for parameter in model.core.parameters():
        parameter.data.mul_(30)
    tracker = MohartTracker(CONFIG, model)
    state, _ = run(tracker, flight(range(20)))
    output = tracker.predict(state, stamp(19 + 89))
    assert all(np.isfinite(values).all() for values in numbers_of(output)) and output.tracks


# What must not depend on what


def test_another_order_of_detections_gives_the_same_tracks(weights):
    rng = np.random.default_rng(0)
    start = np.array([[20.0, 20.0], [60.0, 70.0], [100.0, 30.0], [30.0, 70.0], [90.0, 75.0]])
    path = start + np.cumsum(rng.normal(0, 0.5, (25, 5, 2)), 0)
    tracker = create_tracker(dataclasses.replace(CONFIG, tracker_weights=weights))
    boxes = []
    for order in (np.arange(5), np.array([3, 0, 4, 2, 1])):
        state, _ = run(tracker, [(k, at[order], at) for k, at in enumerate(path)])
        output = tracker.predict(state, stamp(40))
        by_object = {int(order[t.id - 1]): t.box for t in output.tracks if t.id <= 5}
        boxes.append(np.array([by_object[i] for i in sorted(by_object)]))
    assert boxes[0].shape == boxes[1].shape and len(boxes[0]) >= 3
    np.testing.assert_allclose(boxes[0], boxes[1], atol=1e-2)


def test_objects_act_on_one_another_and_free_slots_do_not(weights):
    tracker = create_tracker(dataclasses.replace(CONFIG, tracker_weights=weights))

    def box(others, after=6):
        found = np.array([[30.0, 30.0], *others])
        state, _ = run(tracker, [(k, found, found) for k in range(6)])
        return tracker.predict(state, stamp(5 + after)).tracks[0].box

    alone, near, far = box([]), box([[60.0, 30.0]]), box([[60.0, 60.0]])
    assert np.abs(near - far).max() > 1e-3 < np.abs(alone - near).max()


def test_the_network_runs_on_whole_groups_of_slots():
    network = Follower()
    tracker = MohartTracker(CONFIG, network)
    grid = [[20.0 + 24 * i, 20.0 + 26 * j] for i in range(4) for j in range(3)]
    script = [grid[:n] for n in (1, 1, 4, 4, 5, 5, 12, 12)]
    run(tracker, [(k, found, found) for k, found in enumerate(script)])
    assert network.rows == [(4, 1), (4, 1), (4, 4), (4, 4), (8, 5), (8, 5), (12, 12)]


def test_ids_survive_a_change_of_resolution():
    tracker = MohartTracker(CONFIG, Follower())
    state, _ = run(tracker, flight(range(10)))
    at = line(10)[0]
    small = dataclasses.replace(
        seen([(at + 0.5) / 2 - 0.5]), label_image=np.zeros((SIZE[0] // 2, SIZE[1] // 2), np.uint8)
    )
    _, output = tracker.step(state, small, stamp(10), picture(at)[::2, ::2])
    assert ids(output, CONFIRMED) == [1]
    np.testing.assert_allclose(output.tracks[0].box[:2], (at + 0.5) / 2 - 0.5, atol=0.6)


def test_frames_out_of_order_give_the_tracks_of_the_right_order(tracker):
    frames = flight(range(16))
    order = [0, 1, 2, 4, 3, 5, 8, 7, 6, 9, 12, 13, 11, 10, 14, 15]
    straight, crooked = (
        run(ReorderingTracker(tracker), taken)[1][-1]
        for taken in (frames, [frames[k] for k in order])
    )
    assert ids(straight, CONFIRMED)
    same(straight, crooked)


def test_a_clock_that_jumps_back_starts_a_new_session_and_late_stamps_are_refused(tracker):
    state, outputs = run(tracker, flight(range(100, 110)))
    with pytest.raises(StampError, match="behind"):
        tracker.step(state, seen(line(0)), stamp(108), picture(line(0)))
    with pytest.raises(StampError, match="duplicate"):
        tracker.step(state, seen(line(0)), stamp(109), picture(line(0)))
    _, after = run(tracker, flight(range(6)), state)
    _, fresh = run(tracker, flight(range(6)))
    assert after[0].session != outputs[-1].session == SESSION
    for left, right in zip(after, fresh, strict=True):
        same(left, right)


# Without pictures, without weights


def test_without_a_picture_tracking_is_by_association_alone():
    tracker = MohartTracker(CONFIG, Follower())
    state, outputs = run(tracker, [(k, line(k), None) for k in range(10)])
    assert ids(outputs[-1], CONFIRMED) == [1]
    np.testing.assert_allclose(outputs[-1].tracks[0].box, [*line(9)[0], SIDE, SIDE], atol=1e-3)
    _, outputs = run(tracker, flight(range(10, 15)), state)
    assert ids(outputs[-1], CONFIRMED) == [1]


@pytest.mark.parametrize(
    ("changes", "cure"),
    [({"horizon": 1}, "horizon: 0"), ({"relations": "mlp"}, "other relations than mlp")],
)
def test_weights_that_cannot_serve_are_refused_with_the_cure(tmp_path, changes, cure):
    weights = untrained(tmp_path / "useless", **changes)
    with pytest.raises(ModelError, match=cure):
        create_tracker(dataclasses.replace(CONFIG, tracker_weights=weights))


def test_missing_weights_and_unknown_trackers_are_refused_with_the_cure(tmp_path):
    absent = str(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"No checkpoint.*give a directory"):
        create_tracker(dataclasses.replace(CONFIG, tracker_weights=absent))
    with pytest.raises(ValueError, match="choose filter, mohart"):
        TrackerConfig(tracker="magic")


def test_other_settings_keep_what_is_loaded(tracker):
    other = tracker.with_config(TrackerConfig(max_coast_s=0.5))
    assert other.config.tracker == "mohart" and other.config.max_coast_s == 0.5
    assert other.motion.model is tracker.motion.model


# With the rest of the package


def table(frames):
    """Noisy pictures of a flying disc."""
    rng = np.random.default_rng(0)
    for k in range(frames):
        yield np.maximum(picture(line(k)), rng.integers(40, 90, (*SIZE, 3), dtype=np.uint8))


def test_perception_shows_its_frames_to_trackers_that_look():
    shown = []

    class Looking(MohartTracker):
        def step(self, state, segmentation, stamp_ns, frame=None):
            shown.append(frame)
            return super().step(state, segmentation, stamp_ns, frame)

    discovery = Discovery(load_model("grid"))
    perception = Perception(discovery, Looking(CONFIG, Follower()))
    state, frames = perception.initial_state(SESSION), [*table(3), None]
    for k, frame in enumerate(frames):
        state, _ = perception.step(state, frame, stamp(k))
    assert all(a is b for a, b in zip(shown, frames, strict=True)) and len(shown) == 4


def test_a_bag_is_replayed_with_it_alike_twice(tmp_path, weights, capsys):
    with BagWriter(tmp_path / "bag") as bag:
        for k, frame in enumerate(table(12)):
            if not 5 <= k < 8:
                bag.write("/image", stamp(k), image_message(stamp(k), frame))
    config = tmp_path / "tracking.yaml"
    config.write_text(f"tracker_weights: {weights}\n")
    command = ["replay", str(tmp_path / "bag"), "--model", "grid", "--tracker", "mohart"]
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
