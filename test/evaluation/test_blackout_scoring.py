# SPDX-License-Identifier: Apache-2.0
"""The blackout benchmark: timelines, scores of hand-made tracks, and anchors of its scale."""

from dataclasses import replace

import numpy as np
import pytest

from oc_perception.evaluation.blackout import (
    SCHEDULES,
    BlackoutConfig,
    draw_chunk,
    schedule,
)
from oc_perception.evaluation.blackout_cameras import Cameras
from oc_perception.evaluation.blackout_report import gain, stack, summarize
from oc_perception.evaluation.blackout_run import (
    create_tracker,
    measure,
    run,
    score_runs,
    tracker_configs,
)
from oc_perception.evaluation.blackout_scores import (
    SequenceTruth,
    find_blackouts,
    follow,
    score_run,
)
from oc_perception.types import SensorState, Track, TrackOutput, TrackState

BEFORE, BLIND, AFTER = 20, 5, 10
FRAMES = BEFORE + BLIND + AFTER
SEEN = np.r_[np.ones(BEFORE, bool), np.zeros(BLIND, bool), np.ones(AFTER, bool)]


def make_truth(start=((100, 100), (500, 100), (300, 500)), velocity=(0, 0), frames=FRAMES):
    times = np.arange(frames)[:, None, None]
    positions = np.array(start, float) + times * np.array(velocity, float)
    everywhere = np.ones(positions.shape[:2], bool)
    stamps = 1_000_000_000 + 33_333_333 * np.arange(frames)
    sizes = np.full(positions.shape, 64.0)
    return SequenceTruth(stamps, positions, sizes, everywhere, everywhere, (640, 640), 64.0)


def make_output(truth, frame, centres, variance=16.0, state=TrackState.CONFIRMED):
    """Tracks `{id: (x, y)}`."""
    tracks = tuple(
        Track(
            id=i,
            state=state,
            box=np.array([*centre, 64.0, 64.0]),
            velocity=np.zeros(2),
            covariance=np.eye(4) * variance,
            existence_probability=1.0,
            age=1,
            hits=1,
            last_seen_ns=0,
        )
        for i, centre in centres.items()
    )
    return TrackOutput(int(truth.stamps_ns[frame]), 0, bytes(16), SensorState.OK, tracks, ())


def perfect(truth, names=None):
    """Tracks on the truth; `names(frame, object)` is the id (None: no track)."""
    names = names or (lambda frame, item: item + 1)
    return [
        make_output(
            truth,
            frame,
            {
                names(frame, item): place
                for item, place in enumerate(places)
                if names(frame, item) is not None
            },
        )
        for frame, places in enumerate(truth.positions)
    ]


def share(scores, name):
    total, count = scores[name][-1]
    return total / count


def outcomes(scores):
    return {n: round(share(scores, f"id_{n}"), 6) for n in ("recovered", "swapped", "new", "lost")}


def test_perfect_tracks_score_perfectly():
    truth = make_truth(velocity=(2, 0))
    scores = score_run(truth, perfect(truth), SEEN, (BLIND,))
    assert share(scores, "fde") == share(scores, "ade") == share(scores, "anees") == 0
    assert outcomes(scores) == {"recovered": 1, "swapped": 0, "new": 0, "lost": 0}
    assert share(scores, "ghosts") == share(scores, "reacquired_after") == 0
    assert share(scores, "idf1_through") == 1
    assert scores["coverage"][-1, :, 0] == pytest.approx(scores["coverage"][-1, :, 1])


def test_a_swap_a_new_and_a_lost_identity_are_told_apart():
    truth = make_truth()
    swap = {0: 2, 1: 1, 2: 3}

    def named(late):
        return perfect(truth, lambda frame, i: late[i] if frame >= BEFORE + BLIND else i + 1)

    scores = score_run(truth, named(swap), SEEN, (BLIND,))
    assert outcomes(scores) == pytest.approx(
        {"recovered": 1 / 3, "swapped": 2 / 3, "new": 0, "lost": 0}, abs=1e-5
    )
    assert share(scores, "fde") == 0  # the predictions themselves were right
    scores = score_run(truth, named({0: 1, 1: 7, 2: None}), SEEN, (BLIND,))
    assert outcomes(scores) == pytest.approx(
        {"recovered": 1 / 3, "swapped": 0, "new": 1 / 3, "lost": 1 / 3}, abs=1e-5
    )
    assert share(scores, "reacquired_after") == pytest.approx(10 / 3)


def test_objects_without_a_track_are_counted_and_ended_tracks_stay_where_they_were():
    truth = make_truth(velocity=(6.4, 0))

    def name(frame, item):
        if item == 2:
            return None  # never had a track
        return None if item == 1 and frame >= BEFORE + 1 else item + 1  # ends while blind

    scores = score_run(truth, perfect(truth, name), SEEN, (BLIND,))
    assert share(scores, "untracked") == pytest.approx(1 / 3)
    assert share(scores, "ended") == pytest.approx(1 / 2)
    # Reported for the last time in the first blind frame, 4 frames of 0.1 diameters ago.
    assert share(scores, "fde") == pytest.approx(0.4 / 2)
    assert share(scores, "id_untracked") == pytest.approx(1 / 3)
    inside, total = scores["coverage_last"][-1, 17]
    assert (inside, total) == (1, 2)  # the ellipse of a track that is gone holds nothing


def test_an_object_stays_with_its_track_while_blind_even_if_another_is_nearer():
    truth = make_truth(start=((100, 100), (200, 100)))
    outputs = perfect(truth)
    crossed = make_output(truth, BEFORE, {1: (200, 100), 2: (100, 100)})
    outputs[BEFORE : BEFORE + BLIND] = [crossed] * BLIND
    event = follow(truth, outputs, BEFORE, BLIND)
    np.testing.assert_allclose(event.errors, 100 / 64)


def test_densities_and_distances_are_those_of_a_gaussian():
    truth = make_truth(start=((100, 100),))
    outputs = [make_output(truth, k, {1: (103, 104)}, variance=25.0) for k in range(FRAMES)]
    event = follow(truth, outputs, BEFORE, BLIND)
    np.testing.assert_allclose(event.distances, 1.0)
    density = np.exp(-0.5) / (2 * np.pi * 25 / 64**2)
    np.testing.assert_allclose(event.nll, -np.log(density))


def test_ghosts_are_reported_tracks_without_an_object():
    truth = make_truth()
    outputs = [
        make_output(truth, k, {1: (100, 100), 2: (500, 100), 3: (300, 500), 9: (300, 300)})
        for k in range(FRAMES)
    ]
    assert share(score_run(truth, outputs, SEEN, (BLIND,)), "ghosts") == 1


def test_what_leaves_the_world_while_blind_has_no_error():
    truth = make_truth()
    present = truth.present.copy()
    present[BEFORE + 2 :, 0] = False
    truth = replace(truth, present=present, visible=present)
    scores = score_run(truth, perfect(make_truth()), SEEN, (BLIND,))
    assert scores["fde"][-1, 1] == 2 and scores["ade"][-1, 1] == 2 * BLIND + 2


def test_the_scores_of_many_blackouts_go_to_the_lengths_they_reach():
    seen = np.ones(60, bool)
    for start, length in ((20, 1), (30, 3), (40, 5)):
        seen[start : start + length] = False
    assert find_blackouts(seen) == [(20, 1), (30, 3), (40, 5)]
    truth = make_truth(frames=60)
    scores = score_run(truth, perfect(truth), seen, (1, 2, 5), several=True)
    assert scores["fde"][:, 1].tolist() == [9, 6, 3, 9]
    assert scores["ade"][:, 1].tolist() == [9, 12, 15, 27]
    assert scores["id_recovered"][:, 1].tolist() == [3, 3, 3, 3]
    assert scores["error_by_age"][:, 1].tolist() == [9, 6, 6, 3, 3]
    # a sequence of the same schedule may have one blackout or none: its columns are the same
    for blind in (slice(20, 21), slice(0, 0)):
        seen = np.ones(60, bool)
        seen[blind] = False
        scores = score_run(truth, perfect(truth), seen, (1, 2, 5), several=True)
        count = 3 * (~seen).sum()
        assert scores["fde"][:, 1].tolist() == [count, 0, 0, count]


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_begin_and_end_with_a_view(name):
    rng = np.random.default_rng(0)
    seen = np.stack([schedule(BlackoutConfig(schedule=name), rng) for _ in range(200)])
    assert seen[:, :20].all()
    if name == "blackout":
        assert seen.shape == (200, 60) and not seen[:, 20:].any()
        return
    assert seen[:, -10:].all()
    blind = 1 - seen[:, 20:-10].mean()
    expected = {"bernoulli_0.2": 0.2, "bernoulli_0.5": 0.5, "periodic": 0.5, "burst": 1 / 3}
    assert blind == pytest.approx(expected[name], abs=0.03)
    if name == "burst":
        lengths = [length for row in seen for _, length in find_blackouts(row)]
        assert np.mean(lengths) == pytest.approx(5, abs=0.5)


def small(**settings):
    return BlackoutConfig(**{"sequences": 4, "lengths": (2, 10), **settings})


def test_bad_settings_are_refused():
    for settings in (
        {"level": "x"}, {"schedule": "x"}, {"objects": 0}, {"sequences": 0}, {"noise": -1.0},
        {"miss": 1.0}, {"lengths": ()}, {"lengths": (5, 2)}, {"lengths": (0, 2)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(settings))):
            BlackoutConfig(**settings)


def test_hold_errs_by_the_distance_flown_and_a_noiseless_oracle_by_nothing():
    config = small(regime="R0", speed=0.05, noise=0.0, objects=3)
    scores = measure(config, tracker_configs(config, ["hold"]), ["hold", "oracle"])
    chunk = draw_chunk(config, 0)
    for column, length in enumerate(config.lengths):
        flown = [
            np.linalg.norm(t.positions[19 + length] - t.positions[19], axis=-1)[t.visible[19]]
            for t in chunk.truths
        ]
        total, count = sum(s["fde"] for s in scores["hold"])[column]
        assert count == sum(map(len, flown))
        assert total == pytest.approx(np.concatenate(flown).sum() / 64, rel=1e-6)
        assert total / count <= 0.05 * length + 1e-6  # straight flight, less where it turned
        assert (sum(s["fde"] for s in scores["oracle"]) / count)[column, 0] < 1e-3


def test_the_scale_of_skill_goes_from_the_filter_with_walls_to_the_oracle():
    config = small(sequences=8)
    names = ["hold", "kalman", "kalman_walls", "oracle"]
    found = measure(config, tracker_configs(config, names), names)
    scores = {name: stack(found[name]) for name in names}
    report = summarize(scores, config.columns, (config.filter, "oracle"))
    assert report["kalman_walls"]["skill"] == {"2": 0, "10": 0}
    assert report["oracle"]["skill"] == {"2": 1, "10": 1}
    assert report["hold"]["skill"]["10"] < report["kalman"]["skill"]["10"] < 0
    low, high = report["kalman"]["fde_interval"]["10"]
    assert low < report["kalman"]["fde"]["10"] < high
    # Anchors of the design's table at 10 frames: Kalman 0.96, with walls 0.49, oracle 0.04.
    assert 0.6 < report["kalman"]["fde"]["10"] < 1.5
    assert 0.2 < report["kalman_walls"]["fde"]["10"] < 0.7
    assert report["oracle"]["fde"]["10"] < 0.1
    assert report["oracle"]["anees"]["10"] is None and report["oracle"]["coverage_90"]["2"] is None
    assert report["oracle"]["hota_through"]["10"] > report["kalman"]["hota_through"]["10"]
    saved = gain(scores["kalman_walls"], scores["kalman"], config.columns)["relational_gain"]
    expected = 1 - report["kalman_walls"]["fde"]["10"] / report["kalman"]["fde"]["10"]
    assert saved["10"] == pytest.approx(expected, abs=1e-5)


def test_the_filter_of_skill_0_believes_in_walls_where_they_are():
    filters = {r: BlackoutConfig(regime=r).filter for r in ("R0", "R1", "R4", "R5")}
    assert filters == {"R0": "kalman_walls", "R1": "kalman_walls", "R4": "kalman", "R5": "kalman"}


def test_equal_seeds_give_equal_numbers_whatever_the_number_of_processes():
    config = small(sequences=10, lengths=(2,), miss=0.1, clutter=0.5)
    configs = tracker_configs(config, ["kalman_walls"])
    once, again = (measure(config, configs, ["kalman_walls"], workers) for workers in (1, 2))
    assert len(once["kalman_walls"]) == 10
    for a, b in zip(once["kalman_walls"], again["kalman_walls"], strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    other = measure(replace(config, seed=1, sequences=1), configs, ["kalman_walls"])
    assert not np.array_equal(other["kalman_walls"][0]["fde"], once["kalman_walls"][0]["fde"])


def test_branches_share_what_came_before_them():
    config = small(sequences=1)
    chunk = draw_chunk(config, 0)
    runs = dict(run(chunk.oracle(0), chunk.states()[0], chunk.truths[0]))
    assert [len(outputs) for outputs in runs.values()] == [32, 40]
    assert list(runs) == [22, 30]
    assert all(a is b for a, b in zip(runs[22][:22], runs[30], strict=False))


def test_misses_and_clutter_come_as_often_as_asked_for():
    config = small(sequences=8, miss=0.25, clutter=0.5, lengths=(40,))
    chunk = draw_chunk(config, 0)
    count = config.objects
    tail = [s for recording in chunk.states() for s in recording.trunk[:20]]
    true = sum(d.label <= count for s in tail for d in s.detections)
    false = sum(d.label > count for s in tail for d in s.detections)
    visible = sum(t.visible[:20].sum() for t in chunk.truths)
    assert true / visible == pytest.approx(0.75, abs=0.06)
    assert false / len(tail) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("schedule", "model"), [("blackout", "monet_demo"), ("periodic", "grid")])
def test_a_bag_gives_the_tracks_of_its_pictures(schedule, model):
    config = BlackoutConfig(
        level="p", sequences=1, objects=3, lengths=(3,), schedule=schedule, model=model
    )
    chunk = draw_chunk(config, 0)
    cameras = Cameras(chunk)
    tracker = create_tracker("kalman_walls", tracker_configs(config, ["kalman_walls"]), 1 / 30)
    (truth,) = cameras.truths
    assert truth.image_size == truth.labels.shape[1:] == (64, 64)
    drawn = dict(run(tracker, cameras.recording(0), truth))
    replayed = dict(cameras.replay(tracker, 0))
    assert list(drawn) == list(replayed) == [23 if schedule == "blackout" else 90]
    for start, outputs in drawn.items():
        assert len(outputs) == len(replayed[start])
        for ours, theirs in zip(outputs, replayed[start], strict=True):
            assert ours.stamp_ns == theirs.stamp_ns
            assert ours.sensor_state == theirs.sensor_state
            assert [t.id for t in ours.tracks] == [t.id for t in theirs.tracks]
            for a, b in zip(ours.tracks, theirs.tracks, strict=True):
                np.testing.assert_array_equal(a.box, b.box)
                np.testing.assert_array_equal(a.covariance, b.covariance)
    states = [output.sensor_state for output in next(iter(drawn.values()))]
    assert states[19:24] == [SensorState.OK, *[SensorState.BLACK] * 3, states[23]]
    scores = score_runs(config, truth, chunk.seen[0], iter(drawn.items()))
    total, count = scores["fg_ari_visible"][-1]
    assert total / count > (0.5 if model == "monet_demo" else 0)  # discs are found
