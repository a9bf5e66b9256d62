# SPDX-License-Identifier: Apache-2.0
"""Detections as detectors give them: scored, doubled, hidden by one another, of things near and
far."""

import dataclasses

import numpy as np
import pytest

from oc_perception.tracking.boxes import iou, shared_area
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.kalman import MotionModel
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import Detection, Segmentation, SensorState, TrackState

SIZE = (480, 640)
PLAIN = TrackerConfig(horizon_s=0, min_birth_score=0.5)
TWO_STAGES = dataclasses.replace(PLAIN, high_score=0.5, min_birth_score=0.3)


def seen(*boxes):
    """Detections `(cx, cy, w, h, score)`."""
    detections = tuple(
        Detection(k, np.array(box[:4], float), int(box[2] * box[3]), box[4])
        for k, box in enumerate(boxes)
    )
    return Segmentation(0, SensorState.OK, "", 0, detections=detections)


def tracks_after(config, frames, period_s=0.04):
    """Tracks reported after each of `frames`."""
    tracker = Tracker(config)
    state, reported = tracker.initial_state(bytes(16), SIZE), []
    for k, frame in enumerate(frames):
        state, output = tracker.step(state, frame, 1_000_000_000 + round(k * period_s * 1e9))
        reported.append([t for t in output.tracks if t.state != TrackState.LOST])
    return reported


def test_a_low_score_extends_a_track_and_starts_none():
    walking = [seen((100 + k, 200, 40, 90, 0.9)) for k in range(10)]
    faint = [seen((110 + k, 200, 40, 90, 0.2), (400, 200, 40, 90, 0.2)) for k in range(10)]
    (track,) = tracks_after(TWO_STAGES, walking + faint)[-1]
    assert track.hits == 20
    assert track.state == TrackState.CONFIRMED


def test_a_high_score_goes_before_a_nearer_low_one():
    stay = [seen((100, 200, 40, 90, 0.9))] * 10
    both = seen((103, 200, 40, 90, 0.9), (100, 200, 40, 90, 0.2))
    labels = {
        name: tracks_after(config, [*stay, both])[-1][0].slot_label
        for name, config in (("one stage", PLAIN), ("two stages", TWO_STAGES))
    }
    assert labels == {"one stage": 1, "two stages": 0}


def test_clutter_among_low_scores_makes_them_weak_evidence():
    stay = [seen((100, 200, 40, 90, 0.9))] * 10
    faint = [seen((104, 200, 40, 90, 0.2))] * 10
    hits = [
        tracks_after(
            dataclasses.replace(TWO_STAGES, low_score_clutter_per_frame=clutter), stay + faint
        )[-1][0].hits
        for clutter in (0.1, 1e6)
    ]
    assert hits == [20, 10]


@pytest.mark.parametrize(("limit", "count"), [(1.0, 2), (0.9, 2), (0.3, 1)])
def test_a_detection_that_overlaps_a_track_starts_none(limit, count):
    config = dataclasses.replace(PLAIN, max_birth_overlap=limit)
    frame = seen((100, 200, 40, 90, 0.9), (106, 205, 40, 90, 0.8))
    frames = [seen((100, 200, 40, 90, 0.9))] * 3 + [frame] * 5
    assert len(tracks_after(config, frames)[-1]) == count


def test_who_is_covered_is_missed_with_less_doubt():
    """Two stand beside each other, and one steps behind or in front of the other."""

    def existence(bottom_shift, occlusion):
        config = dataclasses.replace(PLAIN, occlusion=occlusion, miss_correlation_s=0.04)
        other = (120, 200, 60, 100, 0.9)
        mine = (115, 200 + bottom_shift, 40, 80, 0.9)
        frames = [seen(other, mine)] * 10 + [seen(other)] * 2
        return next(t.existence_probability for t in tracks_after(config, frames)[-1] if t.id == 2)

    assert existence(-20, 1.0) > 0.99  # behind, all covered
    assert existence(+20, 1.0) == existence(+20, 0.0) == existence(-20, 0.0) < 0.99


def test_growth_of_uncertainty_depends_on_elapsed_time_only_for_each_object():
    motion = MotionModel(np.array([3.0, 50.0]), 0.4, np.array([2.0, 0.5]))
    parts = motion.process_noise(0.3), motion.process_noise(0.9)
    step = motion.transition(0.9)
    np.testing.assert_allclose(
        motion.process_noise(1.2), step @ parts[0] @ step.T + parts[1], rtol=1e-12, atol=1e-12
    )
    still = MotionModel(0.0, 0.4, 2.0).process_noise(0.7)
    np.testing.assert_allclose(still, np.diag([1.4, 1.4, 0, 0]))


def test_lengths_in_sizes_scale_with_the_object():
    """The same walk twice as near: boxes, velocities and deviations are twice as large."""
    config = dataclasses.replace(
        PLAIN,
        **{name: 1e-9 for name in ("measurement_std_widths", "initial_speed_widths_per_s")},
        **{name: 0.0 for name in ("collision_rate_per_s", "systematic_std_widths")},
        velocity_diffusion_widths=1e-9,
        measurement_std_sizes=0.05,
        velocity_diffusion_sizes=0.3,
        wander_sizes=0.2,
        initial_speed_sizes_per_s=1.0,
    )
    noise = np.random.default_rng(0).normal(0, 1.0, (15, 2))

    def last(scale):
        frames = [
            seen((*(scale * (np.array([50 + 2 * k, 60]) + noise[k])), 20 * scale, 45 * scale, 0.9))
            for k in range(15)
        ]
        return tracks_after(config, [*frames, None])[-1][0]

    near, far = last(2.0), last(1.0)
    np.testing.assert_allclose(near.box, 2 * far.box, rtol=1e-9)
    np.testing.assert_allclose(near.velocity, 2 * far.velocity, rtol=1e-6)
    np.testing.assert_allclose(near.covariance, 4 * far.covariance, rtol=1e-6)


@pytest.mark.parametrize("name", ["occlusion", "max_birth_overlap"])
def test_shares_are_at_most_one(name):
    with pytest.raises(ValueError, match=name):
        TrackerConfig(**{name: 1.01})


def test_overlaps_of_boxes_by_hand():
    first = np.array([10.0, 10.0, 4.0, 4.0])
    others = np.array([[12.0, 10.0, 4.0, 4.0], [10.0, 10.0, 2.0, 2.0], [30.0, 10.0, 4.0, 4.0]])
    np.testing.assert_allclose(shared_area(first, others), [8, 4, 0])
    np.testing.assert_allclose(iou(first, others), [8 / 24, 4 / 16, 0])
    assert iou(first, np.array([10.0, 10.0, 0.0, 4.0])) == 0
