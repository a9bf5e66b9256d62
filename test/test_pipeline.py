# SPDX-License-Identifier: Apache-2.0
"""Discovery and Perception with a model whose right answer is known: one slot per pure colour."""

import dataclasses
import uuid

import numpy as np
import pytest
import torch

from oc_perception.pipeline import Discovery, Perception
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.reordering import ReorderingTracker
from oc_perception.tracking.stamps import StampError
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import UNLABELLED, Decomposition, SensorState, TrackState

OK, STALE, BLACK, FROZEN, CORRUPT = SensorState
SESSION = uuid.UUID(int=3).bytes
PERIOD_NS = 33_333_333
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


class Colours:
    """Slot 0 dark, 1 red, 2 green, 3 blue; counts its frames, in its state and outside."""

    name = "colours"
    num_slots = 4
    prototypes = torch.cat([torch.zeros(1, 3), torch.eye(3)])

    def __init__(self, frame_size=(48, 64), background_slot=None):
        self.frame_size = frame_size
        self.background_slot = background_slot
        self.calls = 0

    def initial_state(self, batch_size):
        return torch.zeros(batch_size)

    def step(self, state, frame, decode):
        assert not decode  # nobody looks at the appearance of slots, which costs time
        assert frame.shape == (1, 3, *self.frame_size) and frame.dtype == torch.float32
        assert frame.min() >= 0 and frame.max() <= 1 and torch.is_inference_mode_enabled()
        self.calls += 1
        distance = (frame[:, None] - self.prototypes[None, :, :, None, None]).square().sum(2)
        log_masks = (-8 * distance).log_softmax(1)
        means = self.prototypes[None, :, :, None, None].expand(1, -1, -1, *self.frame_size)
        embeddings = self.prototypes[None]
        return state + 1, Decomposition(log_masks, means, embeddings, self.background_slot)


def picture(*blocks, size=(480, 640), seed=0):
    """Dark noisy ground with blocks `(colour, top, left, height, width)`."""
    frame = np.random.default_rng(seed).integers(0, 40, (*size, 3), dtype=np.uint8)
    for colour, top, left, height, width in blocks:
        frame[top : top + height, left : left + width] = colour
    return frame


def discover(frame, model=None, **arguments):
    discovery = Discovery(model or Colours())
    return discovery.step(discovery.initial_state(), frame, 1, **arguments)[1]


def by_label(segmentation):
    return {d.label: d for d in segmentation.detections}


# Detections


@pytest.mark.parametrize("size", [(480, 640), (48, 64), (96, 256)])
def test_boxes_are_in_source_pixels_with_centres_at_integers(size):
    scale_y, scale_x = size[0] / 48, size[1] / 64
    # rows 12..19 and columns 8..23 of the model's picture
    block = (RED, *(round(v) for v in (12 * scale_y, 8 * scale_x, 8 * scale_y, 16 * scale_x)))
    frame = picture(block, size=size)
    segmentation = discover(frame)
    red = by_label(segmentation)[1]
    rows, columns = np.nonzero((frame == RED).all(-1))
    np.testing.assert_allclose(red.box[:2], [columns.mean(), rows.mean()], atol=1e-4)
    assert red.roi == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
    np.testing.assert_array_equal(red.box[2:], [16 * scale_x, 8 * scale_y])
    assert red.area_px == len(rows)
    assert segmentation.label_image.shape == size and segmentation.label_image.dtype == np.uint8
    np.testing.assert_array_equal(segmentation.label_image == 1, (frame == RED).all(-1))


def test_scores_are_mean_soft_masks_and_embeddings_those_of_the_slot():
    frame = picture((RED, 100, 100, 100, 100), (BLUE, 300, 300, 60, 60))
    detections = by_label(discover(frame))
    assert set(detections) == {0, 1, 3}
    for label in (1, 3):
        assert 0.99 < detections[label].score <= 1
        np.testing.assert_array_equal(detections[label].embedding, Colours.prototypes[label])
    dim = frame.copy()
    dim[100:200, 100:200, 0] = 180
    assert 0.5 < by_label(discover(dim))[1].score < detections[1].score


def test_the_largest_component_is_the_detection_and_the_label_image_keeps_all():
    frame = picture((RED, 100, 100, 100, 100), (RED, 300, 400, 40, 40))
    segmentation = discover(frame)
    red = by_label(segmentation)[1]
    assert red.area_px == 100 * 100
    np.testing.assert_allclose(red.box, [149.5, 149.5, 100, 100], atol=1e-4)
    np.testing.assert_array_equal(segmentation.label_image == 1, (frame == RED).all(-1))


def test_a_model_whose_slots_are_local_has_one_detection_around_all_of_a_slot():
    frame = picture((RED, 100, 100, 100, 100), (RED, 220, 140, 40, 40), (GREEN, 300, 400, 10, 20))
    model = Colours()
    model.slots_are_local = True
    segmentation = discover(frame, model)
    red = by_label(segmentation)[1]
    rows, columns = np.nonzero((frame == RED).all(-1))
    assert red.area_px == len(rows)
    assert red.roi == (100, 100, 100, 160)
    np.testing.assert_allclose(red.box, [columns.mean(), rows.mean(), 100, 160], atol=1e-3)
    assert 2 not in by_label(segmentation)  # specks are none here either


@pytest.mark.parametrize("background", [0, 2])
def test_local_slots_that_share_an_object_win_against_the_background_together(background):
    class Shared(Colours):
        """What is bright is shared by all slots, most of it by the background."""

        shares = torch.tensor([0.3, 0.25, 0.2, 0.0])

        def step(self, state, frame, decode):
            shares = self.shares.clone()
            shares[background] = 0.4
            bright = frame.mean(1, keepdim=True) > 0.5
            alone = torch.eye(4)[background]
            masks = torch.where(bright, *(m.view(1, 4, 1, 1) for m in (shares, alone)))
            log_masks = (masks / masks.sum(1, keepdim=True)).log().clamp(min=-50)
            return state, Decomposition(log_masks, None, torch.zeros(1, 4, 2), background)

    frame = picture(((255, 255, 255), 100, 100, 100, 100))
    assert discover(frame, Shared()).objects == ()
    model = Shared()
    model.slots_are_local = True
    (found,) = discover(frame, model).objects
    assert found.label == (0 if background else 1)
    assert found.area_px == 100 * 100


def test_specks_are_no_objects_and_unlabelled():
    frame = picture((RED, 100, 100, 100, 100), (GREEN, 300, 400, 10, 20))
    segmentation = discover(frame)
    assert set(by_label(segmentation)) == {0, 1}
    assert (segmentation.label_image[300:310, 400:420] == UNLABELLED).all()
    finer = Discovery(Colours(), min_area_fraction=0.0)
    assert set(by_label(finer.step(finer.initial_state(), frame, 1)[1])) == {0, 1, 2}


def test_background_is_the_models_own_or_the_slot_along_the_border():
    frame = picture((GREEN, 0, 0, 480, 640), (RED, 40, 40, 400, 560))  # red covers more
    assert [d.label for d in discover(frame).detections if d.is_background] == [2]
    assert [d.label for d in discover(frame).objects] == [1]
    own = discover(frame, Colours(background_slot=1))
    assert [d.label for d in own.detections if d.is_background] == [1]


def test_numbers_survive_the_message_unchanged():
    frame = picture((RED, 101, 103, 97, 91), size=(479, 641))
    for detection in discover(frame).detections:
        np.testing.assert_array_equal(detection.box[:2].astype(np.float32), detection.box[:2])
        np.testing.assert_array_equal(detection.box[2:].astype(np.uint32), detection.box[2:])
        assert np.float32(detection.score) == detection.score


# Depth


CAMERA = np.array([[500.0, 0, 319.5], [0, 400.0, 239.5], [0, 0, 1]])


def test_depth_and_camera_give_points_and_holes_are_ignored():
    frame = picture((RED, 100, 100, 100, 100), (BLUE, 300, 300, 60, 60))
    rng = np.random.default_rng(1)
    depth = np.full((480, 640), 9.0, np.float32)
    depth[100:200, 100:200] = rng.normal(2.0, 0.001, (100, 100))
    depth[100:200, 100:140] = rng.choice([np.nan, 0.0, np.inf, -1.0], (100, 40))
    depth[300:360, 300:360] = np.nan
    detections = by_label(discover(frame, depth=depth, camera_matrix=CAMERA))
    expected = [(149.5 - 319.5) / 500 * 2, (149.5 - 239.5) / 400 * 2, 2.0]
    np.testing.assert_allclose(detections[1].point_m, expected, rtol=1e-3)
    assert detections[3].point_m is None, "no valid depth"


def test_depth_is_read_at_the_pixels_of_the_mask():
    frame = picture((RED, 100, 100, 100, 100))
    slope = np.broadcast_to(2 + 0.01 * np.arange(640, dtype=np.float32), (480, 640))
    red = by_label(discover(frame, depth=slope, camera_matrix=CAMERA))[1]
    assert red.point_m[2] == pytest.approx(2 + 0.01 * 149.5, abs=0.01)


@pytest.mark.parametrize("given", ["depth", "camera_matrix"])
def test_half_of_the_inputs_gives_no_points(given):
    both = {"depth": np.ones((480, 640), np.float32), "camera_matrix": CAMERA}
    segmentation = discover(picture((RED, 100, 100, 100, 100)), **{given: both[given]})
    assert all(d.point_m is None for d in segmentation.detections)


@pytest.mark.parametrize(
    ("depth", "camera"),
    [
        (np.ones((240, 320), np.float32), CAMERA),
        (np.ones((480, 640), np.uint16), CAMERA),
        (np.ones((480, 640), np.float32), np.zeros((3, 3))),
        (np.ones((480, 640), np.float32), np.full((3, 3), np.nan)),
        (np.ones((480, 640), np.float32), np.eye(4)),
    ],
)
def test_depth_that_does_not_fit_is_refused(depth, camera):
    with pytest.raises(ValueError, match=r"Depth must|camera_matrix must"):
        discover(picture((RED, 100, 100, 100, 100)), depth=depth, camera_matrix=camera)


# What is no observation


def test_unusable_frames_are_not_shown_to_the_model():
    model = Colours()
    discovery = Discovery(model)
    good = picture((RED, 100, 100, 100, 100))
    black, grey = np.zeros_like(good), np.full_like(good, 90)
    state = discovery.initial_state()
    answers = []
    for stamp, frame in enumerate([good, None, black, good, grey, picture(seed=1)], 1):
        state, segmentation = discovery.step(state, frame, stamp)
        answers.append(segmentation)
    assert [a.sensor_state for a in answers] == [OK, STALE, BLACK, FROZEN, CORRUPT, OK]
    assert [a.frame_seq for a in answers] == [1, 1, 2, 3, 4, 5]
    assert [a.stamp_ns for a in answers] == [1, 2, 3, 4, 5, 6]
    assert model.calls == 2 and state.model.item() == 2
    for answer in answers[1:5]:
        assert answer.label_image is None and answer.detections == ()
    assert {a.model for a in answers} == {"colours"}


def test_an_empty_picture_is_an_observation():
    segmentation = discover(picture())
    assert segmentation.sensor_state == OK and segmentation.objects == ()
    assert (segmentation.label_image == 0).all()


def test_a_model_that_diverged_is_named():
    model = Colours()
    model.prototypes = torch.full((4, 3), float("nan"))
    with pytest.raises(ValueError, match="'colours' returned masks"):
        discover(picture(), model)


# Time


def test_late_frames_are_refused_and_a_clock_reset_starts_anew():
    discovery = Discovery(Colours())
    state, _ = discovery.step(discovery.initial_state(), picture(seed=1), 5_000_000_000)
    for late in (5_000_000_000, 4_900_000_000, 0):
        with pytest.raises(StampError):
            discovery.step(state, picture(seed=2), late)
    state, segmentation = discovery.step(state, picture(seed=1), 1_000_000_000)
    assert segmentation.sensor_state == OK, "the first frame after a reset cannot be frozen"
    assert state.model.item() == 1 and segmentation.frame_seq == 2


def test_within_the_window_late_frames_are_segmented_under_their_own_stamp():
    discovery = Discovery(Colours(), reorder_window_s=0.2)
    state, _ = discovery.step(discovery.initial_state(), picture(seed=1), 5_000_000_000)
    red = picture((RED, 100, 100, 100, 100), seed=2)
    state, segmentation = discovery.step(state, red, 4_850_000_000)
    assert segmentation.stamp_ns == 4_850_000_000 and set(by_label(segmentation)) == {0, 1}
    assert state.stamp_ns == 5_000_000_000, "the newest, not the last to come"
    with pytest.raises(StampError, match="behind"):
        discovery.step(state, picture(seed=3), 4_790_000_000)
    with pytest.raises(StampError, match="duplicate"):
        discovery.step(state, picture(seed=3), 5_000_000_000)


# Perception


def moving(frame):
    """Three objects in motion; sensor noise makes every frame new."""
    return picture(
        (RED, 100 + frame, 100 + 3 * frame, 60, 80),
        (GREEN, 300, 400 - 2 * frame, 80, 80),
        (BLUE, 350 - 2 * frame, 200, 60, 60),
        seed=frame,
    )


def perceive(frames):
    perception = Perception(Discovery(Colours()), Tracker(TrackerConfig()))
    state, outputs = perception.initial_state(SESSION), []
    for k, frame in enumerate(frames):
        state, output = perception.step(state, frame, 1_000_000_000 + k * PERIOD_NS)
        outputs.append(output.tracks)
    return outputs


def plain(output):
    """Everything in an output but the sensor state, as bytes and numbers."""
    rows = []
    for item in (*output.tracks, *(m for t in output.trajectories for m in t.modes)):
        values = dataclasses.asdict(item).values()
        rows.append([v.tobytes() if isinstance(v, np.ndarray) else v for v in values])
    return output.stamp_ns, output.source_stamp_ns, output.session, rows


@pytest.mark.parametrize("frames_blind", [5, 20])
def test_missing_black_and_frozen_give_identical_tracks_that_keep_their_ids(frames_blind):
    def blackout(unseen):
        before, after = (range(30), range(30 + frames_blind, 40 + frames_blind))
        frames = [*map(moving, before), *[unseen] * frames_blind, *map(moving, after)]
        return perceive(frames)

    missing = blackout(None)
    black, frozen = blackout(np.zeros((480, 640, 3), np.uint8)), blackout(moving(29))
    for a, b, c in zip(missing, black, frozen, strict=True):
        assert plain(a) == plain(b) == plain(c)
    states = [(o[30].sensor_state, o[-1].sensor_state) for o in (missing, black, frozen)]
    assert states == [(STALE, OK), (BLACK, OK), (FROZEN, OK)]
    assert {t.state for t in missing[30].tracks} == {TrackState.COASTING}

    def by_slot(output):
        return {t.slot_label: t.id for t in output.tracks}

    assert by_slot(missing[29]) == by_slot(missing[-1]) and len(missing[-1].tracks) == 3


def test_an_exception_leaves_the_state_usable():
    model = Colours()
    perception = Perception(Discovery(model), Tracker(TrackerConfig()))
    state = perception.initial_state(SESSION)
    for k in range(10):
        state, _ = perception.step(state, moving(k), 1_000_000_000 + k * PERIOD_NS)
    following = 1_000_000_000 + 10 * PERIOD_NS
    expected = plain(perception.step(state, moving(10), following)[1].tracks)
    calls = model.calls
    malformed = np.zeros((480, 640), np.uint8)
    for frame, stamp, error in (
        (moving(10), following - PERIOD_NS, StampError),
        (moving(10), following - PERIOD_NS - 5, StampError),
        (None, following - PERIOD_NS, StampError),
        (moving(10), 0, StampError),
        (malformed, following, ValueError),
    ):
        with pytest.raises(error):
            perception.step(state, frame, stamp)
    assert model.calls == calls, "refused before the model runs"
    assert plain(perception.step(state, moving(10), following)[1].tracks) == expected


def test_frames_and_nothing_seen_are_told_apart():
    seen = [moving(k) for k in range(10)]
    coasting = perceive([*seen, *[None] * 45])[-1]
    gone = perceive([*seen, *[picture(seed=100 + k) for k in range(45)]])[-1]
    assert [t.state for t in coasting.tracks] == [TrackState.COASTING] * 3
    assert gone.tracks == ()


def test_frames_out_of_order_give_the_tracks_of_the_right_order():
    def perceive_in(order):
        discovery = Discovery(Colours(), reorder_window_s=0.2)
        perception = Perception(discovery, ReorderingTracker(Tracker()))
        state = perception.initial_state(SESSION)
        for k in order:
            frame = None if 10 <= k < 15 else moving(k)
            state, output = perception.step(state, frame, 1_000_000_000 + k * PERIOD_NS)
        return output.tracks

    right, wrong = list(range(30)), list(range(30))
    wrong[3:9] = [8, 4, 3, 6, 5, 7]
    wrong[20:24] = [23, 22, 21, 20]
    assert plain(perceive_in(right)) == plain(perceive_in(wrong))


def test_a_clock_reset_restarts_both_parts():
    perception = Perception(Discovery(Colours()), Tracker(TrackerConfig()))
    state = perception.initial_state(SESSION)
    for k in range(5):
        state, output = perception.step(state, moving(k), 9_000_000_000 + k * PERIOD_NS)
    state, output = perception.step(state, moving(0), 1_000_000_000)
    assert output.tracks.session != SESSION and output.segmentation.sensor_state == OK
    assert [t.id for t in output.tracks.tracks] == [1, 2, 3]
