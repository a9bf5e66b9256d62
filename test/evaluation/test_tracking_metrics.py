# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from oc_perception.evaluation.tracking import (
    Blackout,
    Recovery,
    Truth,
    agreement,
    ghosts,
    identity_recovery,
    match,
    truth_at,
)
from oc_perception.types import SensorState, Track, TrackOutput, TrackState

PERIOD = 33_333_333
BLACKOUT = Blackout(10 * PERIOD, 15 * PERIOD, 5, "missing")


def make_output(frame, centres, state=TrackState.CONFIRMED, session=b"a" * 16, variance=4.0):
    """Tracks `{id: (x, y)}` at frame number `frame`."""
    tracks = tuple(
        Track(
            id=i,
            state=state,
            box=np.array([*centre, 20.0, 20.0]),
            velocity=np.zeros(2),
            covariance=np.eye(4) * variance,
            existence_probability=1.0,
            age=1,
            hits=1,
            last_seen_ns=0,
        )
        for i, centre in centres.items()
    )
    return TrackOutput(int(frame * PERIOD), 0, session, SensorState.OK, tracks, ())


def make_truth(frame, centres, hidden=()):
    return Truth(
        frame * PERIOD,
        np.array(list(centres), np.int64),
        np.array(list(centres.values()), float).reshape(-1, 2),
        np.array([i not in hidden for i in centres], bool),
    )


STILL = {1: (100, 100), 2: (300, 100), 3: (500, 100)}
TRUTHS = [make_truth(frame, STILL) for frame in range(40)]


def recovery_of(before, after, truths=TRUTHS, session=b"a" * 16):
    outputs = [make_output(frame, before) for frame in range(10)]
    outputs += [make_output(frame, after, session=session) for frame in range(10, 40)]
    return identity_recovery(truths, outputs, BLACKOUT)


def test_each_fate_of_an_identity_is_told_apart():
    before = {11: (101, 100), 12: (300, 103), 13: (500, 100)}
    assert recovery_of(before, before) == Recovery(recovered=3)
    swapped = {12: (100, 100), 11: (300, 100), 13: (500, 100)}
    assert recovery_of(before, swapped) == Recovery(recovered=1, swapped=2)
    renamed = {11: (100, 100), 21: (300, 100), 22: (500, 100)}
    assert recovery_of(before, renamed) == Recovery(recovered=1, new=2)
    assert recovery_of(before, {11: (100, 100)}) == Recovery(recovered=1, lost=2)
    assert recovery_of({11: (100, 100)}, before) == Recovery(recovered=1, untracked=2)


def test_the_same_id_in_another_session_is_a_new_identity():
    tracks = {11: (100, 100), 12: (300, 100), 13: (500, 100)}
    assert recovery_of(tracks, tracks, session=b"b" * 16) == Recovery(new=3)


def test_only_objects_visible_before_and_after_count():
    truths = [make_truth(f, STILL, hidden=(1,) if f >= 12 else (2,)) for f in range(40)]
    tracks = {11: (100, 100), 12: (300, 100), 13: (500, 100)}
    assert recovery_of(tracks, tracks, truths) == Recovery(recovered=1)


def test_identity_is_judged_only_after_the_tracker_had_time_to_settle():
    good = {11: (100, 100), 12: (300, 100), 13: (500, 100)}
    outputs = [make_output(frame, good) for frame in range(10)]
    outputs += [make_output(frame, {}) for frame in range(10, 19)]
    outputs += [make_output(frame, good) for frame in range(19, 40)]
    assert identity_recovery(TRUTHS, outputs, BLACKOUT) == Recovery(recovered=3)
    assert identity_recovery(TRUTHS, outputs, BLACKOUT, settle_frames=4) == Recovery(lost=3)


def test_a_blackout_without_neighbours_says_nothing():
    outputs = [make_output(frame, {}) for frame in range(10, 40)]
    assert identity_recovery(TRUTHS, outputs, BLACKOUT) == Recovery()
    assert np.isnan(Recovery().share)
    early_end = [make_output(frame, {11: (100, 100)}) for frame in range(12)]
    assert identity_recovery(TRUTHS, early_end, BLACKOUT) == Recovery()


def test_recoveries_add_up_to_a_share():
    total = Recovery(recovered=3, swapped=1) + Recovery(recovered=2, new=1, lost=1, untracked=4)
    assert total.tracked == 8 and total.share == pytest.approx(5 / 8)


def test_matching_pairs_as_many_as_the_gate_allows():
    positions = {1: np.array([0.0, 0.0]), 2: np.array([30.0, 0.0])}
    # Nearest first would pair object 2 with track 5 and leave object 1 without a partner.
    output = make_output(0, {5: (28, 0), 6: (65, 0)})
    assert match(positions, output, gate_px=40) == {1: 5, 2: 6}
    assert match(positions, output, gate_px=10) == {2: 5}
    tentative = make_output(0, {5: (28, 0)}, state=TrackState.TENTATIVE)
    assert match(positions, tentative) == {} == match({}, output)
    assert match(positions, make_output(0, {5: (28, 0)}, state=TrackState.COASTING)) == {2: 5}


def test_truth_between_two_stamps_is_interpolated():
    truths = [make_truth(0, {1: (0, 0), 2: (9, 9)}), make_truth(2, {1: (10, 20)}, hidden=(2,))]
    between = truth_at(truths, PERIOD)
    assert list(between) == [1]
    np.testing.assert_allclose(between[1], (5, 10))
    assert truth_at(truths, -1) == {} == truth_at(truths, 2 * PERIOD + 1)
    np.testing.assert_allclose(truth_at(truths, 0)[2], (9, 9))


def test_coverage_of_a_calibrated_and_of_an_overconfident_filter():
    rng = np.random.default_rng(0)
    truths = [make_truth(frame, {1: (100, 100)}) for frame in range(4000)]
    noise = rng.normal(0, 3, (4000, 2))

    def coverage(variance, probability):
        outputs = [
            make_output(frame, {7: (100 + x, 100 + y)}, variance=variance)
            for frame, (x, y) in enumerate(noise)
        ]
        return agreement(truths, outputs)[0].coverage(probability)

    for probability in (0.5, 0.9, 0.99):
        assert coverage(9.0, probability) == pytest.approx(probability, abs=0.025)
    assert coverage(1.0, 0.9) < 0.5


def test_a_blind_prediction_is_compared_with_its_own_object_however_far_it_is():
    tracks = {11: (100, 100), 12: (300, 100)}
    wrong = {11: (300, 100), 12: (100, 100)}
    outputs = [make_output(frame, tracks) for frame in range(10)]
    outputs += [make_output(frame, wrong) for frame in range(10, 15)]
    outputs += [make_output(frame, tracks) for frame in range(15, 40)]
    overall, blind = agreement(TRUTHS, outputs, [BLACKOUT])
    assert blind.error_px() == pytest.approx(200) and blind.coverage() == 0
    assert len(blind.errors) == 10
    assert overall.error_px() == pytest.approx(200 * 10 / 80)


def test_ellipse_distance_uses_the_full_covariance():
    output = make_output(0, {7: (103, 97)})
    covariance = np.eye(4)
    covariance[:2, :2] = [[5.0, -4.0], [-4.0, 5.0]]
    output = replace(output, tracks=(replace(output.tracks[0], covariance=covariance),))
    (result, _) = agreement([make_truth(0, {1: (100, 100)})], [output])
    np.testing.assert_allclose(result.distances, [2.0])  # (3, -3) along the long axis, variance 9
    np.testing.assert_allclose(result.errors, [np.sqrt(18)])


def test_nothing_compared_gives_nan():
    overall, blind = agreement([], [])
    assert np.isnan(overall.coverage()) and np.isnan(blind.error_px())


def test_truth_read_from_tracks_takes_confirmed_for_visible():
    output = make_output(3, {4: (1, 2)})
    truth = Truth.from_tracks(output)
    assert truth.stamp_ns == 3 * PERIOD and list(truth.visible_positions()) == [4]
    hidden = Truth.from_tracks(make_output(3, {4: (1, 2)}, state=TrackState.COASTING))
    assert hidden.visible_positions() == {} and list(hidden.ids) == [4]
    assert Truth.from_tracks(make_output(3, {})).positions.shape == (0, 2)


def test_ghosts_are_tracks_of_nothing_that_is_there():
    truths = [make_truth(f, {1: (100, 100), 2: (300, 100)}, hidden=(2,)) for f in range(1, 4)]
    tracks = {11: (101, 100), 12: (300, 103)}
    outputs = [
        make_output(1, tracks, state=TrackState.COASTING),
        make_output(1.5, {**tracks, 13: (105, 100)}),  # a second one on object 1
        make_output(2, {**tracks, 13: (500, 100), 14: (300, 145)}),
        make_output(3, {**tracks, 13: (500, 100)}, state=TrackState.TENTATIVE),
        make_output(3, {}),
    ]
    np.testing.assert_array_equal(ghosts(truths, outputs), [0, 1, 2, 0, 0])
    assert ghosts(truths, outputs, gate_px=2)[0] == 1
    assert ghosts(truths, outputs[2:3], gate_px=46)[0] == 2
    left = [*truths, make_truth(4, {1: (100, 100)})]
    np.testing.assert_array_equal(ghosts(left, [make_output(4, tracks)]), [1])


def test_ghosts_are_unknown_where_there_is_no_truth():
    truths = [make_truth(f, {1: (100, 100)}) for f in range(1, 3)]
    outputs = [make_output(f, {11: (500, 100)}) for f in range(4)]
    np.testing.assert_array_equal(ghosts(truths, outputs), [np.nan, 1, 1, np.nan])
    np.testing.assert_array_equal(ghosts([], outputs[:1]), [np.nan])
    assert ghosts(truths, []).shape == (0,)
