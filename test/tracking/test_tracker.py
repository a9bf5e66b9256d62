# SPDX-License-Identifier: Apache-2.0
"""Identities through time: life cycle, blackouts, calibration, determinism."""

import dataclasses
import uuid

import numpy as np
import pytest
from scipy.stats import binom, chi2

from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.kalman import MotionModel
from oc_perception.tracking.stamps import StampError
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import UNLABELLED, Detection, Segmentation, SensorState, TrackState

TENTATIVE, CONFIRMED, COASTING, LOST = TrackState
SESSION = uuid.UUID(int=7).bytes
SIZE = (480, 640)
PERIOD_NS = 33_333_333
START_NS = 5_000_000_000
NO_HORIZON = TrackerConfig(horizon_s=0)


def segmentation(positions, embeddings=None, score=1.0, size=(40, 40), labels=None):
    """What discovery would say about objects at `positions` `(N, 2)`."""
    positions = np.asarray(positions, float).reshape(-1, 2)
    embeddings = np.zeros((len(positions), 0)) if embeddings is None else embeddings
    detections = [
        Detection(
            label=i if labels is None else labels[i],
            box=np.array([*position, *size]),
            area_px=900,
            score=score,
            embedding=np.asarray(embedding, np.float32),
        )
        for i, (position, embedding) in enumerate(zip(positions, embeddings, strict=True))
    ]
    return Segmentation(0, SensorState.OK, "test", 0, np.zeros(SIZE, np.uint8), tuple(detections))


def blind(sensor_state):
    return Segmentation(0, sensor_state, "test", 0)


def stamp(frame):
    return START_NS + frame * PERIOD_NS


def run(frames, tracker=None, start=0, state=None):
    """Step through `frames` at 30 Hz; returns the last state and all outputs."""
    tracker = tracker or Tracker(NO_HORIZON)
    state = state or tracker.initial_state(SESSION, SIZE)
    outputs = []
    for frame, seen in enumerate(frames, start):
        state, output = tracker.step(state, seen, stamp(frame))
        outputs.append(output)
    return state, outputs


def ids(output, *states):
    return [t.id for t in output.tracks if not states or t.state in states]


def same_tracks(left, right):
    """Bit for bit, what was reported LOST aside: that is reported once, wherever it falls."""
    left, right = (
        [dataclasses.asdict(t) for t in output.tracks if t.state != LOST]
        for output in (left, right)
    )
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for name, value in a.items():
            np.testing.assert_array_equal(value, b[name], err_msg=name)


class Scene:
    """Objects at constant velocity with a look of their own, seen with noise."""

    def __init__(self, count, seed, speed=40.0, noise=2.0, dimensions=4):
        self.rng = np.random.default_rng(seed)
        self.start = self.rng.uniform((120, 120), (520, 360), (count, 2))
        angle = self.rng.uniform(0, 2 * np.pi, count)
        self.velocity = speed * np.stack([np.cos(angle), np.sin(angle)], 1)
        self.look = self.rng.normal(0, 1, (count, dimensions))
        self.noise = noise

    def seen(self, frame):
        positions = self.start + self.velocity * frame / 30
        noise = self.rng.normal(0, self.noise, positions.shape)
        look = self.look + self.rng.normal(0, 0.1, self.look.shape)
        # discovery numbers its slots as it likes
        order = self.rng.permutation(len(positions))
        return segmentation((positions + noise)[order], look[order], labels=order.tolist())


# Life cycle


def test_a_track_is_tentative_then_confirmed_then_coasts_then_is_lost_once():
    still, nothing = segmentation([[100, 100]]), segmentation([])
    _, outputs = run([still] * 3 + [None] * 2 + [still] + [nothing] * 60)
    states = [[t.state for t in output.tracks] for output in outputs]
    assert states[:6] == [
        [TENTATIVE],
        [TENTATIVE],
        [CONFIRMED],
        [COASTING],
        [COASTING],
        [CONFIRMED],
    ]
    rest = states[6:]
    coasted = rest.index([LOST])
    assert rest[:coasted] == [[COASTING]] * coasted and coasted > 10
    assert all(later == [] for later in rest[coasted + 1 :])
    assert {i for output in outputs for i in ids(output)} == {1}


def test_ages_hits_labels_and_stamps_are_reported():
    seen = segmentation([[100, 100]], labels=[3])
    _, outputs = run([seen, seen, None, segmentation([]), seen])
    tracks = [output.tracks[0] for output in outputs]
    assert [t.hits for t in tracks] == [1, 2, 2, 2, 3]
    assert [t.age for t in tracks] == [1, 2, 2, 3, 4]
    assert [t.slot_label for t in tracks] == [3, 3, UNLABELLED, UNLABELLED, 3]
    assert [t.last_seen_ns for t in tracks] == [stamp(i) for i in (0, 1, 1, 1, 4)]
    assert [o.source_stamp_ns for o in outputs] == [stamp(i) for i in (0, 1, 1, 3, 4)]
    assert [o.stamp_ns for o in outputs] == [stamp(i) for i in range(5)]


def test_no_observation_is_not_an_observation_of_nothing():
    still = [segmentation([[100, 100]])] * 5
    _, unseen = run([*still, *[None] * 30])
    _, empty = run([*still, *[segmentation([])] * 30])
    assert ids(unseen[-1], COASTING) == [1]
    assert ids(empty[-1]) == []
    for believed, doubted in zip(unseen[5:15], empty[5:15], strict=True):
        (kept,), (missed,) = believed.tracks, doubted.tracks
        assert kept.existence_probability > missed.existence_probability


def test_existence_while_blind_depends_on_elapsed_time_only():
    tracker = Tracker(NO_HORIZON)
    state, _ = run([segmentation([[100, 100]])] * 5, tracker)
    once = tracker.predict(state, stamp(40))
    _, often = run([None] * 36, tracker, 5, state)
    same_tracks(once, often[-1])
    survived = (
        once.tracks[0].existence_probability
        / tracker.predict(state, stamp(5)).tracks[0].existence_probability
    )
    elapsed_s = 35 * PERIOD_NS * 1e-9
    assert survived == pytest.approx(np.exp(-elapsed_s / NO_HORIZON.lifetime_s))


def test_one_miss_after_a_long_gap_counts_as_one():
    tracker = Tracker(NO_HORIZON)
    state, _ = run([segmentation([[100, 100]])] * 5, tracker)
    before = tracker.predict(state, stamp(65)).tracks[0].existence_probability
    _, output = tracker.step(state, segmentation([]), stamp(65))
    assert ids(output, COASTING) == [1]
    missed = before * (1 - NO_HORIZON.detection_probability)
    expected = missed / (missed + 1 - before)  # Bayes, once
    assert output.tracks[0].existence_probability == pytest.approx(expected)


@pytest.mark.parametrize("rate_hz", [10, 30, 120])
def test_how_long_a_hidden_object_lives_does_not_depend_on_the_frame_rate(rate_hz):
    tracker = Tracker(NO_HORIZON)
    state = tracker.initial_state(SESSION, SIZE)
    period = round(1e9 / rate_hz)
    for k in range(1, 21):
        state, output = tracker.step(state, segmentation([[100, 100]]), k * period)
    while ids(output, CONFIRMED, COASTING):
        k += 1
        state, output = tracker.step(state, segmentation([]), k * period)
    assert 0.6 < (k - 20) / rate_hz < 1.4


def test_blind_tracks_are_lost_once_after_max_coast_s():
    tracker = Tracker(dataclasses.replace(NO_HORIZON, max_coast_s=0.5))
    state, _ = run([segmentation([[100, 100], [300, 300]])] * 5, tracker)
    state, outputs = run([None] * 30, tracker, 5, state)
    lost = [i for i, output in enumerate(outputs, 1) if ids(output, LOST)]
    assert lost == [16] and ids(outputs[15], LOST) == [1, 2]
    assert ids(outputs[-1]) == []
    # seen again too late: new identities, and no second report
    _, output = tracker.step(state, segmentation([[100, 100], [300, 300]]), stamp(40))
    assert [(t.id, t.state) for t in output.tracks] == [(3, TENTATIVE), (4, TENTATIVE)]


def test_tracks_that_expired_unreported_are_reported_by_the_next_observation():
    tracker = Tracker(dataclasses.replace(NO_HORIZON, max_coast_s=0.5))
    state, _ = run([segmentation([[100, 100]])] * 5, tracker)
    _, output = tracker.step(state, segmentation([]), stamp(40))
    assert ids(output, LOST) == [1]


def test_an_object_that_left_the_view_dies_sooner_than_a_hidden_one():
    def frames_until_lost(speed, start):
        seen = [segmentation([[start + speed * k / 30, 200]]) for k in range(60)]
        seen = [s for s in seen if s.objects[0].box[0] < 640]
        _, outputs = run([*seen, *[segmentation([])] * 60])
        return next(i for i, o in enumerate(outputs) if ids(o, LOST)) - len(seen)

    assert frames_until_lost(300.0, 300.0) < 0.5 * frames_until_lost(0.0, 300.0)


def test_flicker_never_confirms():
    rng = np.random.default_rng(0)
    frames = [segmentation(rng.uniform(50, 430, (rng.poisson(0.3), 2))) for _ in range(300)]
    _, outputs = run(frames)
    assert max((i for o in outputs for i in ids(o)), default=0) > 20
    assert not any(ids(o, CONFIRMED, COASTING) for o in outputs)


def test_detections_without_confidence_and_background_start_no_track():
    vague = segmentation([[100, 100]], score=0.3)
    table = segmentation([[320, 240]])
    table = dataclasses.replace(
        table,
        detections=tuple(dataclasses.replace(d, is_background=True) for d in table.detections),
    )
    _, outputs = run([vague, table] * 5)
    assert not any(output.tracks for output in outputs)


# Identity


@pytest.mark.parametrize("embedding", [True, False])
def test_objects_that_cross_keep_their_ids(embedding):
    look = np.array([[0.0, 1.0], [1.0, 0.0]]) if embedding else None
    rng = np.random.default_rng(1)
    frames = []
    for k in range(91):
        x = 200 + 4 * k
        centres = np.array([[x, 240.0], [760 - x, 243.0]])
        frames.append(segmentation(centres + rng.normal(0, 1, (2, 2)), look))
    _, outputs = run(frames)
    assert ids(outputs[5]) == ids(outputs[-1]) == [1, 2]
    assert outputs[-1].tracks[0].box[0] > 500 > outputs[-1].tracks[1].box[0]


@pytest.mark.parametrize("frames_blind", [5, 10, 20])
@pytest.mark.parametrize("seed", range(4))
def test_ids_survive_a_blackout(frames_blind, seed):
    scene = Scene(6, seed)
    tracker = Tracker(NO_HORIZON)
    state, outputs = run([scene.seen(k) for k in range(60)], tracker)
    before = {t.slot_label: t.id for t in outputs[-1].tracks}
    resumed = 60 + frames_blind
    state, outputs = run([None] * frames_blind, tracker, 60, state)
    assert set(ids(outputs[-1], COASTING)) == set(before.values())
    _, outputs = run([scene.seen(resumed + k) for k in range(5)], tracker, resumed, state)
    assert {t.slot_label: t.id for t in outputs[-1].tracks if t.state == CONFIRMED} == before


def test_look_decides_where_position_cannot():
    """Two objects swap places unseen; a third place is taken by something that looks different."""
    look = np.eye(3, 8) * 2
    tracker = Tracker(NO_HORIZON)
    rng = np.random.default_rng(2)

    def seen(centres, looks):
        return segmentation(centres, looks + rng.normal(0, 0.1, looks.shape))

    centres = np.array([[200.0, 200.0], [240.0, 200.0], [440.0, 300.0]])
    state, _ = run([seen(centres, look) for _ in range(60)], tracker)
    stranger = np.concatenate([look[[1, 0]], -look[2:]])
    _, output = tracker.step(state, seen(centres, stranger), stamp(60 + 45))
    by_label = {t.slot_label: t.id for t in output.tracks}
    assert by_label[0] == 2 and by_label[1] == 1
    assert by_label[2] == 4, "the stranger is new"
    assert ids(output, COASTING) == [3]


def test_a_change_of_look_in_plain_view_keeps_the_id():
    look = np.eye(2, 8) * 2
    centres = [[200, 200], [400, 200]]
    _, outputs = run([segmentation(centres, look)] * 60 + [segmentation(centres, -look)] * 5)
    assert ids(outputs[-1]) == [1, 2]


def test_a_known_object_goes_before_a_newborn_track():
    """After a gap one detection is near a track seen once, and in reach of a confirmed one."""
    tracker = Tracker(NO_HORIZON)
    state, _ = run([segmentation([[200, 200]])] * 10, tracker)
    state, output = tracker.step(state, segmentation([[200, 200], [260, 200]]), stamp(10))
    assert ids(output, TENTATIVE) == [2]
    _, output = tracker.step(state, segmentation([[254, 200]]), stamp(11 + 30))
    assert [t.slot_label for t in output.tracks if t.id == 1] == [0]


def test_a_suddenly_smaller_box_is_trusted_less():
    """Half hidden: the centroid of what is left is not the object's."""
    tracker = Tracker(NO_HORIZON)
    state, _ = run([segmentation([[200, 200]], size=(60, 60))] * 30, tracker)
    whole, half = (
        tracker.step(state, segmentation([[206, 200]], size=size), stamp(30))[1].tracks[0]
        for size in ((60, 60), (30, 60))
    )
    assert whole.id == half.id == 1
    assert 200 < half.box[0] < whole.box[0] - 0.5
    assert half.covariance[0, 0] > whole.covariance[0, 0]
    assert half.covariance[1, 1] == pytest.approx(whole.covariance[1, 1])


@pytest.mark.parametrize("rate_hz", [10, 30, 100])
def test_box_size_follows_with_its_time_constant_at_any_rate(rate_hz):
    tracker = Tracker(dataclasses.replace(NO_HORIZON, size_smoothing_s=0.5))
    state = tracker.initial_state(SESSION, SIZE)
    state, _ = tracker.step(state, segmentation([[200, 200]], size=(40, 50)), START_NS)
    for k in range(1, rate_hz + 1):
        seen = segmentation([[200, 200]], size=(60, 50))
        state, output = tracker.step(state, seen, START_NS + k * 1_000_000_000 // rate_hz)
    np.testing.assert_allclose(output.tracks[0].box[2:], [60 - 20 * np.exp(-2), 50])


@pytest.mark.parametrize(("share", "matched"), [(0.97, True), (1.03, False)])
def test_the_gate_is_the_chi_square_ellipse_of_the_prediction(share, matched):
    tracker = Tracker(dataclasses.replace(NO_HORIZON, systematic_std_widths=0))
    state, _ = run([segmentation([[200, 200]])] * 60, tracker)
    predicted = tracker.predict(state, stamp(70)).tracks[0]
    variance = predicted.covariance[0, 0] + (NO_HORIZON.measurement_std_widths * 640) ** 2
    radius = np.sqrt(chi2.ppf(NO_HORIZON.gate_probability, 2) * variance)
    _, output = tracker.step(state, segmentation([[200 + share * radius, 200]]), stamp(70))
    assert (ids(output) == [1]) == matched


# What must not depend on what


def schedule(rng):
    """Frames that are seen, and the stamps of blind steps scattered between them."""
    seen = np.sort(rng.choice(np.arange(1, 200), 80, replace=False)) * 10_000_000 + START_NS
    blind_stamps = rng.integers(START_NS, seen[-1], rng.integers(1, 120))
    return seen, np.setdiff1d(blind_stamps, seen)


@pytest.mark.parametrize("seed", range(12))
def test_blind_steps_leave_later_tracks_bit_identical(seed):
    rng = np.random.default_rng(seed)
    tracker = Tracker(dataclasses.replace(TrackerConfig(), max_coast_s=0.3))
    seen, blind_stamps = schedule(rng)
    scene = Scene(4, seed)
    frames = {int(s): scene.seen(k) for k, s in enumerate(seen)}
    missing = rng.random(len(seen)) < 0.2
    frames = {
        s: segmentation([]) if m else f for (s, f), m in zip(frames.items(), missing, strict=True)
    }

    plain, expected = tracker.initial_state(SESSION, SIZE), {}
    for s, frame in frames.items():
        plain, expected[s] = tracker.step(plain, frame, s)
    state = tracker.initial_state(SESSION, SIZE)
    lost = []
    for s in sorted({*frames, *blind_stamps.tolist()}):
        unseen = blind(SensorState(int(rng.integers(1, 5)))) if rng.random() < 0.7 else None
        state, output = tracker.step(state, frames.get(s, unseen), s)
        lost += ids(output, LOST)
        if s in frames:
            same_tracks(output, expected[s])
            assert len(output.trajectories) == len(expected[s].trajectories)
    assert len(lost) == len(set(lost)), "LOST is reported once"
    assert set(lost) == {i for output in expected.values() for i in ids(output, LOST)}


@pytest.mark.parametrize("how", [SensorState.STALE, SensorState.BLACK, SensorState.FROZEN, None])
def test_every_kind_of_blackout_gives_the_same_tracks(how):
    def outputs_with(unseen):
        scene = Scene(5, 3)
        frames = [scene.seen(k) for k in range(30)] + [unseen] * 10
        return run([*frames, *[scene.seen(k) for k in range(40, 50)]])[1]

    reference = outputs_with(blind(SensorState.CORRUPT))
    for output, expected in zip(outputs_with(blind(how) if how else None), reference, strict=True):
        same_tracks(output, expected)


def test_two_runs_are_bit_identical_and_leave_the_first_state_alone():
    tracker = Tracker()
    state, _ = run([segmentation([[100, 100], [300, 200]])] * 10, tracker)
    kept = [np.copy(getattr(state.tracks, f.name)) for f in dataclasses.fields(state.tracks)]
    first = run([Scene(4, 5).seen(k) for k in range(20)], tracker, 10, state)[1]
    second = run([Scene(4, 5).seen(k) for k in range(20)], tracker, 10, state)[1]
    for a, b in zip(first, second, strict=True):
        same_tracks(a, b)
    for field, value in zip(dataclasses.fields(state.tracks), kept, strict=True):
        np.testing.assert_array_equal(getattr(state.tracks, field.name), value)


def test_an_observation_overrules_what_a_blind_step_has_given_up():
    tracker = Tracker(dataclasses.replace(NO_HORIZON, max_coast_s=0.5))
    still = segmentation([[100, 100]])
    state, _ = run([still] * 5, tracker)
    state, output = tracker.step(state, None, stamp(30))
    assert ids(output, LOST) == [1]
    state, output = tracker.step(state, still, stamp(10))  # older than the blind step, not late
    assert ids(output, CONFIRMED) == [1]
    assert ids(tracker.predict(state, stamp(40)), LOST) == [1]


def test_prediction_changes_nothing_and_equals_a_blind_step():
    tracker = Tracker()
    state, _ = run([Scene(3, 1).seen(k) for k in range(10)], tracker)
    predicted = tracker.predict(state, stamp(20), SensorState.BLACK)
    _, stepped = tracker.step(state, blind(SensorState.BLACK), stamp(20))
    same_tracks(predicted, stepped)
    assert predicted.sensor_state == stepped.sensor_state == SensorState.BLACK


# Time


@pytest.mark.parametrize("unseen", [True, False])
@pytest.mark.parametrize("behind_ns", [0, 1, PERIOD_NS, 900_000_000])
def test_late_and_duplicate_stamps_are_refused_and_harmless(unseen, behind_ns):
    tracker = Tracker(NO_HORIZON)
    still = segmentation([[100, 100]])
    state, outputs = run([still] * 40, tracker)
    with pytest.raises(StampError, match=r"behind|duplicate"):
        tracker.step(state, None if unseen else still, stamp(39) - behind_ns)
    _, output = tracker.step(state, still, stamp(40))
    assert ids(output, CONFIRMED) == [1] and output.session == outputs[0].session


@pytest.mark.parametrize("bad", [0, -1])
def test_a_stamp_that_was_never_set_is_refused(bad):
    tracker = Tracker(NO_HORIZON)
    with pytest.raises(StampError, match="not positive"):
        tracker.step(tracker.initial_state(SESSION, SIZE), segmentation([[1, 1]]), bad)


def test_a_clock_reset_starts_a_new_session_that_replay_repeats():
    still = segmentation([[100, 100]])

    def sessions():
        tracker = Tracker(NO_HORIZON)
        state, outputs = run([still] * 5, tracker)
        for s in (1_000_000_000, 1_033_000_000, 9_000_000_000, 2_000_000_000):
            state, output = tracker.step(state, still, s)
            outputs.append(output)
        return outputs

    first, second = sessions(), sessions()
    assert [o.session for o in first] == [o.session for o in second]
    assert first[4].session == SESSION
    assert first[5].session == first[6].session == first[7].session
    assert len({SESSION, first[5].session, first[8].session}) == 3
    assert ids(first[5], TENTATIVE) == [1] and first[5].source_stamp_ns == 1_000_000_000


def test_a_gap_of_ten_seconds_loses_the_tracks_and_finds_new_ones():
    still = segmentation([[100, 100]])
    tracker = Tracker(NO_HORIZON)
    state, _ = run([still] * 5, tracker)
    _, output = tracker.step(state, still, stamp(4) + 10_000_000_000)
    assert [(t.id, t.state) for t in output.tracks] == [(2, TENTATIVE), (1, LOST)]


# Input


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    tracker = Tracker(NO_HORIZON)
    state, _ = run([segmentation([[100, 100]], [[1.0, 2.0]])] * 5, tracker)
    for bad in (segmentation([[value, 1]], [[1.0, 2.0]]), segmentation([[1, 1]], [[value, 2.0]])):
        with pytest.raises(ValueError, match="finite"):
            tracker.step(state, bad, stamp(5))
    _, output = tracker.step(state, segmentation([[100, 100]], [[1.0, 2.0]]), stamp(5))
    assert ids(output, CONFIRMED) == [1]


def test_embeddings_of_different_length_in_one_frame_are_refused():
    tracker = Tracker(NO_HORIZON)
    bad = segmentation([[1, 1], [9, 9]], [[1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match="one length"):
        tracker.step(tracker.initial_state(SESSION), bad, stamp(0))


def test_ids_survive_a_change_of_model():
    short, long = ([[1.0, 0.0]], [[0.0, 0.5, 1.0]])
    frames = [segmentation([[100, 100]], e) for e in (short, long, None) for _ in range(5)]
    _, outputs = run(frames)
    assert ids(outputs[-1], CONFIRMED) == [1]
    assert [len(outputs[k].tracks[0].embedding) for k in (4, 9, 14)] == [2, 3, 0]


def test_ids_survive_a_change_of_resolution():
    tracker = Tracker(NO_HORIZON)
    state, _ = run([segmentation([[99.5, 199.5], [400, 100]])] * 10, tracker)
    small = dataclasses.replace(
        segmentation([[49.5, 99.5], [199.75, 49.75]], size=(20, 20)),
        label_image=np.zeros((240, 320), np.uint8),
    )
    state, output = tracker.step(state, small, stamp(10))
    assert ids(output, CONFIRMED) == [1, 2]
    np.testing.assert_allclose(output.tracks[0].box, [49.5, 99.5, 20, 20], atol=1e-6)


def test_an_unknown_image_size_is_explained():
    tracker = Tracker(NO_HORIZON)
    unsized = dataclasses.replace(segmentation([[1, 1]]), label_image=None)
    with pytest.raises(ValueError, match="image_size"):
        tracker.step(tracker.initial_state(SESSION), unsized, stamp(0))
    with pytest.raises(ValueError, match="16 bytes"):
        tracker.initial_state(b"short")


@pytest.mark.parametrize(
    "bad",
    [
        {"max_coast_s": 0.0},
        {"horizon_step_s": -0.1},
        {"gate_probability": 1.0},
        {"velocity_decay_per_s": -1.0},
        {"lifetime_s": np.inf},
        {"min_existence": 0.6},
    ],
)
def test_parameters_out_of_range_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrackerConfig(**bad)


# Prediction


def test_trajectories_follow_from_the_state_with_constant_size():
    config = TrackerConfig(horizon_s=0.5, horizon_step_s=0.25)
    frames = [segmentation([[100 + 2 * k, 200 - k]], size=(30, 50)) for k in range(60)]
    _, outputs = run(frames, Tracker(config))
    (track,), (trajectory,) = outputs[-1].tracks, outputs[-1].trajectories
    (mode,) = trajectory.modes
    assert (trajectory.track_id, trajectory.track_state, mode.probability) == (1, CONFIRMED, 1.0)
    np.testing.assert_allclose(mode.times_s, [0.25, 0.5])
    motion = config.kalman(640)
    state = np.concatenate([track.box[:2], track.velocity])
    for j, dt in enumerate(mode.times_s):
        mean, covariance = motion.predict(state, track.covariance, dt)
        np.testing.assert_allclose(mode.boxes[j], [*mean[:2], 30, 50])
        np.testing.assert_allclose(
            mode.covariances[j], [covariance[0, 0], covariance[0, 1], covariance[1, 1]]
        )


def test_lost_tracks_have_no_future():
    config = TrackerConfig(max_coast_s=0.5)
    tracker = Tracker(config)
    state, _ = run([segmentation([[100, 100]])] * 5, tracker)
    _, output = tracker.step(state, None, stamp(40))
    assert ids(output, LOST) == [1] and output.trajectories == ()


def test_uncertainty_grows_while_blind_and_falls_when_seen():
    _, outputs = run(
        [segmentation([[100, 100]])] * 20 + [None] * 10 + [segmentation([[100, 100]])]
    )
    area = [np.linalg.det(o.tracks[0].covariance[:2, :2]) for o in outputs]
    assert (np.diff(area[19:30]) > 0).all() and area[30] < area[29]


def simulate(config, rng, frames, width=640):
    """An object that moves and is measured as the tracker believes: states, positions."""
    motion = config.kalman(width)
    kick = np.linalg.cholesky(motion.process_noise(PERIOD_NS * 1e-9))
    state = np.concatenate(
        [(320, 240), rng.normal(0, config.initial_speed_widths_per_s * width, 2)]
    )
    path = []
    for _ in range(frames):
        path.append(state)
        state = motion.transition(PERIOD_NS * 1e-9) @ state + kick @ rng.normal(size=4)
    path = np.array(path)
    constant = rng.normal(0, config.systematic_std_widths * width, 2)
    noise = rng.normal(0, config.measurement_std_widths * width, (frames, 2))
    return path, path[:, :2] + constant + noise


def test_covariance_is_calibrated_in_view_and_in_blackout():
    """Matched noise: errors are chi-square, and 90 % ellipses hold 90 %, also for trajectories."""
    config = TrackerConfig(
        horizon_s=0.5,
        horizon_step_s=0.5,
        initial_speed_widths_per_s=0.1,
        velocity_decay_per_s=0.5,
        max_coast_s=10.0,
        view_margin_widths=10.0,
    )
    tracker, rng, runs = Tracker(config), np.random.default_rng(8), 150
    squared = {"view": [], "blind": [], "after": [], "trajectory": []}
    for _ in range(runs):
        path, measured = simulate(config, rng, 50)
        frames = [segmentation([m]) for m in measured]
        state, outputs = run(frames[:20], tracker)
        (track,), (trajectory,) = outputs[-1].tracks, outputs[-1].trajectories
        dark = tracker.predict(state, stamp(39)).tracks[0]
        after = tracker.step(state, frames[40], stamp(40))[1].tracks[0]
        for name, estimate, k in (("view", track, 19), ("blind", dark, 39), ("after", after, 40)):
            error = path[k] - np.concatenate([estimate.box[:2], estimate.velocity])
            squared[name].append(error @ np.linalg.solve(estimate.covariance, error))
        (xx, xy, yy) = trajectory.modes[0].covariances[0]
        gap = path[34, :2] - trajectory.modes[0].boxes[0, :2]
        squared["trajectory"].append(gap @ np.linalg.solve([[xx, xy], [xy, yy]], gap))
    for name, values in squared.items():
        dimensions = 2 if name == "trajectory" else 4
        low, high = chi2.ppf([1e-4, 1 - 1e-4], dimensions * runs)
        assert low < np.sum(values) < high, name
        inside = np.sum(np.array(values) < chi2.ppf(0.9, dimensions))
        low, high = binom.ppf([1e-4, 1 - 1e-4], runs, 0.9)
        assert low <= inside <= high, name


def test_collision_noise_has_the_covariance_of_random_velocity_jumps():
    config = TrackerConfig(
        velocity_diffusion_widths=1e-9,
        velocity_decay_per_s=0.3,
        collision_rate_per_s=2.0,
        collision_speed_widths_per_s=0.25,
    )
    rng, duration, runs = np.random.default_rng(9), 1.5, 40_000
    damped = MotionModel(1.0, 0.3)
    counts = rng.poisson(2.0 * duration, runs)
    times = rng.uniform(0, duration, counts.sum())
    jumps = rng.normal(0, 0.25, counts.sum())
    response = damped.transition(duration - times)
    owner = np.repeat(np.arange(runs), counts)
    moved = np.bincount(owner, response[:, 0, 2] * jumps, runs)
    gained = np.bincount(owner, response[:, 2, 2] * jumps, runs)
    expected = config.kalman(1.0).process_noise(duration)[np.ix_([0, 2], [0, 2])]
    np.testing.assert_allclose(np.cov(moved, gained), expected, rtol=0.05)
