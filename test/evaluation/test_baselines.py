# SPDX-License-Identifier: Apache-2.0
"""SORT-like and ByteTrack-like trackers, the noisy start of the oracle, and who is who after."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oc_perception.evaluation.baselines import (
    Oracle,
    line_fit_covariance,
    oracle_forecasts,
    tune_diffusion,
)
from oc_perception.evaluation.blackout import BlackoutConfig
from oc_perception.evaluation.blackout_scores import SequenceTruth
from oc_perception.evaluation.box_trackers import BYTETRACK, SORT, BoxTracker
from oc_perception.tracking.config import TrackerConfig
from oc_perception.types import Detection, Segmentation, SensorState, TrackState

PERIOD_S = 1 / 30
SESSION = bytes(16)


def seen(frame, *boxes, scores=None):
    scores = [1.0] * len(boxes) if scores is None else scores
    detections = tuple(
        Detection(label=i + 1, box=np.array(box, float), area_px=1, score=score)
        for i, (box, score) in enumerate(zip(boxes, scores, strict=True))
    )
    return Segmentation(stamp(frame), SensorState.OK, "test", frame, None, detections)


def stamp(frame):
    return 1_000_000_000 + round(frame * PERIOD_S * 1e9)


def drive(tracker, frames):
    """Outputs of a list of segmentations or None."""
    state, outputs = tracker.initial_state(SESSION), []
    for frame, segmentation in enumerate(frames):
        state, output = tracker.step(state, segmentation, stamp(frame))
        outputs.append(output)
    return outputs


def box(frame, speed=3.0):
    return (100 + speed * frame, 200, 60, 60)


@pytest.mark.parametrize("config", [SORT, BYTETRACK])
def test_a_box_in_steady_flight_is_one_track_with_its_velocity(config):
    outputs = drive(BoxTracker(config, PERIOD_S), [seen(k, box(k)) for k in range(30)])
    assert not outputs[0].tracks  # not confirmed by one sight
    assert {t.id for o in outputs for t in o.tracks} == {1}
    (track,) = outputs[-1].tracks
    assert track.state == TrackState.CONFIRMED
    np.testing.assert_allclose(track.box[:2], box(29)[:2], atol=1.0)
    np.testing.assert_allclose(track.velocity, [3 / PERIOD_S, 0], atol=3)
    assert (np.linalg.eigvalsh(track.covariance) > 0).all()


def test_an_empty_list_ends_sort_and_carries_bytetrack_until_its_patience_ends():
    def through(config, blind):
        frames = [seen(k, box(k)) if not 10 <= k < 10 + blind else None for k in range(60)]
        return drive(BoxTracker(config, PERIOD_S), frames)

    assert [t.id for t in through(SORT, 2)[-1].tracks] == [2]
    kept = through(BYTETRACK, 20)
    assert [t.id for t in kept[-1].tracks] == [1]
    assert kept[15].tracks[0].state == TrackState.COASTING
    assert kept[25].tracks[0].box[0] == pytest.approx(box(25)[0], abs=6)
    assert [t.id for t in through(BYTETRACK, 35)[-1].tracks] == [2]


def test_without_calls_time_stands_still_and_overlap_is_lost():
    uncalled = BoxTracker(replace(BYTETRACK, called_when_blind=False), PERIOD_S)
    frames = [seen(k, box(k, 12.0)) if not 10 <= k < 20 else None for k in range(30)]
    outputs = drive(uncalled, frames)
    assert outputs[15].tracks == outputs[9].tracks
    assert outputs[15].source_stamp_ns == stamp(9)
    assert {t.id for t in outputs[-1].tracks if t.state == TrackState.CONFIRMED} == {2}


def test_a_doubtful_detection_extends_a_track_but_starts_none():
    frames = [seen(k, box(k), scores=[0.9 if k < 5 else 0.3]) for k in range(20)]
    outputs = drive(BoxTracker(BYTETRACK, PERIOD_S), frames)
    assert [t.state for t in outputs[-1].tracks] == [TrackState.CONFIRMED]
    lonely = [seen(k, box(k), scores=[0.3]) for k in range(20)]
    assert not drive(BoxTracker(BYTETRACK, PERIOD_S), lonely)[-1].tracks


def test_the_oracle_is_as_uncertain_as_a_line_fit():
    rng = np.random.default_rng(0)
    times = np.arange(-19, 1) * PERIOD_S
    fits = np.polyfit(times, 0.3 * rng.standard_normal((20, 20000)), 1)
    observed = np.cov(np.stack([fits[1], fits[0]]))
    np.testing.assert_allclose(observed, line_fit_covariance(20, 0.3, PERIOD_S), rtol=0.05)


def test_the_oracle_without_noise_foresees_collisions_exactly():
    config = BlackoutConfig(regime="R1", objects=4)
    world = config.world(2, 3)
    motion = world.sample_motion(50)
    blind = np.ones((2, 50), bool)
    blind[:, 20:] = False
    (first, second) = oracle_forecasts(world, motion, blind, 0.0, torch.Generator())
    for row, forecasts in enumerate((first, second)):
        error = forecasts[19][:29] - motion.positions[row, 20:49].numpy()
        assert np.abs(error).max() < 1e-3


def make_truth(paths):
    paths = np.array(paths, float)  # (T, N, 2)
    frames, count, _ = paths.shape
    everywhere = np.ones((frames, count), bool)
    stamps = np.array([stamp(k) for k in range(frames)])
    sizes = np.full((frames, count, 2), 64.0)
    return SequenceTruth(stamps, paths, sizes, everywhere, everywhere, (640, 640), 64.0)


def test_the_oracle_swaps_identities_where_its_predictions_do():
    paths = [[(100, 100), (500, 500)]] * 6
    truth = make_truth(paths)
    frames = [
        seen(k, *[(*p, 64, 64) for p in truth.positions[k]]) if k not in (2, 3) else None
        for k in range(6)
    ]
    right = np.array(paths[:3], float)
    for forecast, ids in ((right, [1, 2]), (right[:, ::-1], [2, 1])):
        outputs = drive(Oracle(truth, {1: forecast}), frames)
        assert [t.id for t in outputs[1].tracks] == [1, 2]
        assert [t.id for t in outputs[-1].tracks] == ids
    far = drive(Oracle(truth, {1: right + 300}), frames)
    assert [t.id for t in far[-1].tracks] == [3, 4]


def test_tuning_finds_that_straight_flight_has_no_disturbance():
    times = np.arange(40)[:, None, None]
    rng = np.random.default_rng(0)
    start, velocity = rng.uniform(100, 500, (1, 30, 2)), rng.normal(0, 4, (1, 30, 2))
    straight = make_truth(start + velocity * times)
    kicks = np.cumsum(rng.normal(0, 2, (40, 30, 2)), 0)
    erratic = make_truth(start + np.cumsum(velocity + kicks, 0))
    config = TrackerConfig(
        measurement_std_widths=0.002,
        velocity_decay_per_s=0.0,
        collision_rate_per_s=0.0,
        initial_speed_widths_per_s=0.4,
    )
    for objective in ("ade", "nll"):
        low, high = (
            tune_diffusion(config, [t], objective, 20, np.random.default_rng(1))
            for t in (straight, erratic)
        )
        assert low < 0.02 < 0.1 < high
