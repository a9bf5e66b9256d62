# SPDX-License-Identifier: Apache-2.0
"""Scores of models of videos, against followers whose faults are known, `trackeval`, and closed
forms.
"""

import contextlib
import io
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from oc_perception.evaluation.video import counting, evaluate_video, examine_video
from oc_perception.evaluation.video_forecast import forecast
from oc_perception.evaluation.video_tracks import best_pairs, tracks
from oc_perception.models.objects import VideoOutput
from oc_perception.types import Motion
from oc_perception.worlds.mini_shapes import MiniShapes


def motion_of(positions, sizes=0.2, present=None, visible=None):
    """From centres `(B, T, N, 2)`."""
    positions = torch.as_tensor(positions, dtype=torch.float32)
    there = torch.ones(positions.shape[:3], dtype=torch.bool)
    present = there if present is None else torch.as_tensor(present)
    visible = present if visible is None else torch.as_tensor(visible)
    still = torch.zeros_like(positions)
    sizes = torch.full_like(positions, sizes)
    return Motion(positions, still, sizes, positions[..., :0], present, visible, 0.1)


class Follower:
    """Knows the truth, one particle like the other, and errs as it is told to.

    `gone_after`: number of frames after which it knows the last object no more; `swaps_at`: frame
    from which the first two objects have each other's identity; `forgets`: identities are new in
    each frame; `offset`: of all centres; `wider`: factor of its boxes' sides.
    """

    def __init__(self, motion=None, frames=6, **faults):
        self.config = SimpleNamespace(particles=3, sigma=0.3)
        self.frame_size, self.num_frames = (32, 32), frames
        self.motion, self.faults = motion, faults
        self.seen = []  # of each step, whether there was a frame

    def initial_state(self, batch_size, particles=1):
        return 0, batch_size, particles

    def step(self, state, frame, generator=None):
        (time, batch, particles), wrong = state, self.faults
        self.seen.append(frame is not None)
        truth = self.motion[:batch, time]
        boxes = torch.cat([truth.positions, truth.sizes * wrong.get("wider", 1)], -1)
        boxes[..., :2] += wrong.get("offset", 0)
        presence = truth.present.clone()
        number = torch.arange(presence.shape[1])
        if time >= wrong.get("gone_after", math.inf):
            presence[:, -1] = False
        if time >= wrong.get("swaps_at", math.inf):
            number[:2] = torch.tensor([1, 0])
        if wrong.get("forgets"):
            number = number + time * len(number)
        new = presence & (time == 0 or bool(wrong.get("forgets")))
        parts = (boxes, presence, presence.float(), torch.where(presence, number + 1, 0), new)
        copies = (part.unsqueeze(1).expand(-1, particles, *part.shape[1:]) for part in parts)
        weights = torch.zeros(len(presence), particles)
        return (time + 1, batch, particles), VideoOutput(*copies, weights, weights)

    def follow(self, images, particles=1, generator=None):
        state, outputs = self.initial_state(len(images), particles), []
        for frame in images.unbind(1):
            state, output = self.step(state, frame)
            outputs.append(output)
        return VideoOutput(*(torch.stack(parts, 1) for parts in zip(*outputs, strict=True)))

    def bound(self, images, generator, particles):
        self.asked = particles
        values = {"log_evidence": 60.0, "elbo": 50.0, "log_likelihood": 70.0}
        bounds = {name: torch.full((len(images),), value) for name, value in values.items()}
        empty = ~self.motion[: len(images)].present.flatten(1).any(1)
        return {**bounds, "kl": torch.where(empty, 2.0, 20.0)}


@pytest.fixture
def follower(monkeypatch):
    """Makes followers of what the world `mini_shapes` shows."""
    made, sample_motion = [], MiniShapes.sample_motion

    def watched(world, frames):
        made[-1].motion = sample_motion(world, frames)
        return made[-1].motion

    def make(**settings):
        made.append(Follower(**settings))
        return made[-1]

    monkeypatch.setattr(MiniShapes, "sample_motion", watched)
    return make


def scores_of(model, scenes=40, config=None, **settings):
    return examine_video(model, "mini_shapes", config or {}, scenes, 7, **settings)


def test_one_that_knows_the_truth_has_the_best_scores(follower):
    scores = scores_of(follower(), particles=9)
    for name in ("counting_accuracy", "counting_accuracy_weighted", "counting_accuracy_crowded",
                 "discoveries_over_ideal", "tracked_share", "forecast_kept",
                 "forecast_constant_count"):  # fmt: skip
        assert scores[name] == pytest.approx(1), name
    assert scores["box_iou"] == pytest.approx(1)
    assert scores["id_switches_per_100"] == scores["discoveries_later"] == 0
    assert scores["counting_by_frame"] == [1] * 6
    for horizon in (1, 3, 5):
        assert scores[f"forecast_ade_{horizon}"] < 1e-6
        assert scores[f"forecast_sample_ade_{horizon}"] < 1e-6
        own, true = (scores[f"forecast_frozen{end}_{horizon}"] for end in ("", "_truth"))
        assert own == pytest.approx(true) and own > 0.03 * horizon
        own, true = (scores[f"forecast_velocity{end}_{horizon}"] for end in ("", "_truth"))
        assert own == pytest.approx(true, abs=1e-6)
        assert own < 0.5 * scores[f"forecast_frozen_{horizon}"]


def test_evidence_is_told_beside_a_perfect_reconstruction(follower):
    model = follower(frames=10)
    scores = scores_of(model, 32, particles=9)
    perfect = 10 * 32 * 32 * 0.28503
    assert (scores["log_evidence"], scores["elbo"], scores["kl_empty"]) == (60, 50, 2)
    empty = 1 - model.motion.present.flatten(1).any(1).float().mean().item()
    assert scores["kl"] == pytest.approx(20 - 18 * empty) and 0 < empty < 1
    assert scores["log_evidence_gap"] == pytest.approx(perfect - 60, rel=1e-4)
    assert scores["log_likelihood_gap"] == pytest.approx(perfect - 70, rel=1e-4)
    assert model.asked == 9
    scores_of(model)
    assert model.asked == model.config.particles


def test_a_longer_evaluation_begins_with_the_same_sequences(follower):
    shorter, longer = ([] for _ in range(2))
    for count, seen in ((20, shorter), (40, longer)):
        model = follower()
        follow = model.follow

        def watched(images, particles, generator, follow=follow, seen=seen):
            seen.append(images)
            return follow(images, particles)

        model.follow = watched
        scores_of(model, count)
    assert torch.cat(longer)[:20].equal(torch.cat(shorter)) and len(torch.cat(longer)) == 40
    assert len(scores_of(follower(frames=30))["counting_by_frame"]) == 30
    flat = evaluate_video(follower(), "mini_shapes", {}, 32, 7)
    assert all(isinstance(value, float) for value in flat.values()) and "kl" in flat


def test_counting_is_wrong_where_an_object_is_forgotten(follower):
    scores = scores_of(follower(gone_after=2), 64, {"num_objects": [2, 2]})
    assert scores["counting_by_frame"] == [1, 1, 0, 0, 0, 0]
    assert scores["counting_accuracy"] == pytest.approx(1 / 3)
    assert scores["tracked_share"] < 0.75


def test_particles_count_as_much_as_they_weigh():
    motion = motion_of(torch.rand(1, 2, 2, 2), present=[[[True, False], [True, True]]])
    presence = torch.tensor([[[[1, 0], [0, 0]], [[1, 0], [1, 1]]]]).bool()  # (B, T, K, N)
    weights = torch.tensor([[[0.9, 0.1], [0.3, 0.7]]]).log()
    found = counting(presence, presence, weights, motion)
    scores = {name: (value / weight).tolist() for name, (value, weight) in found.items()}
    assert scores["counting_accuracy"] == pytest.approx(0.5)
    assert scores["counting_accuracy_weighted"] == pytest.approx((0.9 + 0.7) / 2)
    assert scores["counting_by_frame"] == pytest.approx([0.5, 0.5])
    assert scores["discoveries_by_frame"] == pytest.approx([0.5, 1.5])
    assert scores["discoveries_over_ideal"] == pytest.approx((0.5 + 1.5) / 2)
    assert scores["discoveries_later"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("places", "crowded"),
    [
        ([[0.5, 0.5], [0.8, 0.8]], False),
        ([[0.5, 0.5], [0.65, 0.65]], True),
        ([[0.5, 0.5], [0.65, 0.8]], False),  # beside one another in y
        ([[0.05, 0.5], [0.8, 0.8]], True),
        ([[0.5, 0.5], [0.8, 0.95]], True),
    ],
)
def test_frames_are_crowded_where_objects_overlap_or_leave(places, crowded):
    motion = motion_of([[places]])
    wrong = torch.zeros(1, 1, 1, 2).bool()
    value, weight = counting(wrong, wrong, torch.zeros(1, 1, 1), motion)[
        "counting_accuracy_crowded"
    ]
    assert value == 0 and weight == crowded
    alone = motion_of([[places]], present=[[[True, False]]])
    leaves = places[0][0] < 0.1
    assert counting(wrong, wrong, torch.zeros(1, 1, 1), alone)["counting_accuracy_crowded"][
        1
    ] == float(leaves)


def test_identities_that_are_exchanged_or_forgotten_are_switches(follower):
    config = {"num_objects": [2, 2], "speed_px": 0.0}
    exchanged = scores_of(follower(swaps_at=3), 32, config)
    assert exchanged["id_switches_per_100"] == pytest.approx(100 * 2 / (2 * 6))
    forgotten = scores_of(follower(forgets=True), 32, config)
    assert forgotten["id_switches_per_100"] == pytest.approx(100 * 5 / 6)
    assert forgotten["discoveries_over_ideal"] == pytest.approx(6)
    assert forgotten["discoveries_later"] == pytest.approx(2)
    assert forgotten["counting_accuracy"] == 1


def test_a_wider_view_of_an_object_costs_overlap_but_no_identity(follower):
    scores = scores_of(follower(wider=2.0), 32, {"num_objects": [1, 1]})
    assert scores["box_iou"] == pytest.approx(0.25)
    assert scores["tracked_share"] == 1 and scores["id_switches_per_100"] == 0
    away = scores_of(follower(offset=0.15), 32, {"num_objects": [1, 1]})
    assert away["tracked_share"] == 0
    assert away["box_iou"] == pytest.approx(0.36 / 1.64)  # 0.6 of each side is shared


@pytest.fixture(scope="module")
def trackeval_clear():
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what optional parts it misses
        trackeval = pytest.importorskip("trackeval", reason="trackeval is installed by make setup")
    return trackeval.metrics.CLEAR({"PRINT_CONFIG": False})


def test_switches_are_those_of_trackeval(trackeval_clear):
    generator = torch.Generator().manual_seed(3)
    batch, frames, objects, slots, side = 12, 15, 3, 4, 0.3
    walk = torch.randn(batch, frames, objects, 2, generator=generator) * 0.05
    centres = walk.cumsum(1) + 0.5
    visible = torch.rand(batch, frames, objects, generator=generator) < 0.85
    motion = motion_of(centres, side, visible=visible)
    noise = torch.randn(batch, frames, slots, 2, generator=generator) * 0.04
    places = torch.cat([centres, centres[:, :, :1]], 2) + noise
    boxes = torch.cat([places, torch.full_like(places, side)], -1)
    ids = torch.rand(batch, frames, slots, generator=generator).argsort(-1) + 1
    steady = torch.rand(batch, frames, 1, generator=generator) < 0.7
    ids = torch.where(steady, torch.arange(slots) + 1, ids)
    ids = torch.where(torch.rand(ids.shape, generator=generator) < 0.9, ids, 0)

    expected = dict.fromkeys(("IDSW", "CLR_TP"), 0)
    for b in range(batch):
        truth_ids = [visible[b, t].nonzero()[:, 0].numpy() for t in range(frames)]
        track_ids = [ids[b, t][ids[b, t] > 0].numpy() - 1 for t in range(frames)]
        similarity = []
        for t in range(frames):
            first, second = centres[b, t][visible[b, t]], places[b, t][ids[b, t] > 0]
            shared = (side - (first[:, None] - second).abs()).clamp(min=0).prod(-1)
            similarity.append((shared / (2 * side**2 - shared)).numpy())
        data = {
            "num_gt_ids": objects, "num_tracker_ids": slots, "num_timesteps": frames,
            "num_gt_dets": sum(map(len, truth_ids)), "num_tracker_dets": sum(map(len, track_ids)),
            "gt_ids": truth_ids, "tracker_ids": track_ids, "similarity_scores": similarity,
        }  # fmt: skip
        result = trackeval_clear.eval_sequence(data)
        expected = {name: count + result[name] for name, count in expected.items()}
    assert expected["IDSW"] > 20
    found = tracks(boxes, ids, motion)
    switches, weight = found["id_switches_per_100"]
    assert switches == 100 * expected["IDSW"] and weight == visible.sum()
    assert found["tracked_share"][0] == expected["CLR_TP"]


def test_pairs_are_as_many_as_possible_and_then_worth_most():
    generator = torch.Generator().manual_seed(0)
    worth = torch.rand(40, 3, 4, generator=generator)
    possible = torch.rand(40, 3, 4, generator=generator) < 0.5
    chosen = best_pairs(worth, possible)
    assert (chosen <= possible).all()
    assert (chosen.sum(1) <= 1).all() and (chosen.sum(2) <= 1).all()
    for frame in range(40):
        best = (0, 0.0)
        for columns in itertools.permutations(range(4), 3):
            kept = [(row, column) for row, column in enumerate(columns)
                    if possible[frame, row, column]]  # fmt: skip
            total = sum(worth[frame, row, column].item() for row, column in kept)
            best = max(best, (len(kept), total))
        found = chosen[frame]
        assert found.sum() == best[0]
        assert worth[frame][found].sum().item() == pytest.approx(best[1], abs=1e-5)
    assert not best_pairs(worth[:, :0], possible[:, :0]).any()


def forecasts(model, images=None):
    images = torch.zeros(len(model.motion.present), 8, 3, 4, 4) if images is None else images
    noise = torch.Generator().manual_seed(0)
    parts = forecast(model, images, model.motion, 2, noise)
    return {name: (value / weight).item() for name, (value, weight) in parts.items()}


def accelerated(pull):
    """Two objects: x is `pull` t^2 from 0.1, the other one lies still."""
    positions = torch.full((2, 8, 2, 2), 0.1)
    positions[:, :, 0, 0] += pull * torch.arange(8) ** 2
    positions[:, :, 1, 1] = 0.8
    return motion_of(positions)


def test_baselines_are_frozen_and_straight_lines_from_what_was_seen():
    pull = 0.01
    model = Follower(accelerated(pull), offset=0.005)
    scores = forecasts(model)
    assert model.seen == 2 * (3 * [True] + 5 * [False])  # once as most probable, once in samples
    for horizon in (1, 3, 5):
        shift = 0.005 * math.sqrt(2)
        assert scores[f"forecast_ade_{horizon}"] == pytest.approx(shift, rel=1e-3)
        # Least squares through 0, 1 and 4 at the times 0, 1 and 2: 5/3 + 2 (t - 1).
        time = 2 + horizon
        line = pull * (time**2 - (5 / 3 + 2 * (time - 1)))
        frozen = pull * (time**2 - 4)
        for name, error in (("frozen", frozen), ("velocity", line)):
            assert scores[f"forecast_{name}_truth_{horizon}"] == pytest.approx(error / 2, rel=1e-4)
            own = (math.hypot(error - 0.005, 0.005) + shift) / 2
            assert scores[f"forecast_{name}_{horizon}"] == pytest.approx(own, rel=1e-3)


def test_a_velocity_is_known_from_as_many_frames_as_an_object_was_seen_in():
    motion = accelerated(0.0)
    motion.positions[:, :, 0, 0] += 0.01 * torch.arange(8)
    late = Follower(motion)
    step = late.step

    def step_with_late_discovery(state, frame, generator=None):
        following, output = step(state, frame)
        if state[0] < 2:
            empty = torch.zeros_like(output.ids)
            output = output._replace(ids=empty, presence=empty.bool())
        return following, output

    late.step = step_with_late_discovery
    scores = forecasts(late)
    assert scores["forecast_velocity_5"] == scores["forecast_frozen_5"] == pytest.approx(0.025)
    assert scores["forecast_velocity_truth_5"] == pytest.approx(0, abs=1e-6)


def test_what_the_model_forgets_or_what_is_out_of_view_is_not_scored():
    motion = accelerated(0.01)
    scores = forecasts(Follower(motion, gone_after=6))
    assert scores["forecast_kept"] == pytest.approx(0.5)
    assert scores["forecast_constant_count"] == 0
    assert scores["forecast_frozen_truth_3"] == pytest.approx(0.01 * 21 / 2)
    assert scores["forecast_frozen_truth_5"] == pytest.approx(0.01 * 45)  # the moving one alone
    hidden = motion.visible.clone()
    hidden[:, 7, 0] = False
    scores = forecasts(Follower(motion_of(motion.positions, visible=hidden)))
    assert scores["forecast_frozen_truth_5"] == pytest.approx(0)
    assert scores["forecast_kept"] == scores["forecast_constant_count"] == 1


def test_what_has_no_value_is_left_out(follower):
    scores = scores_of(follower(gone_after=0), 32, {"num_objects": [1, 1]})
    assert scores["counting_accuracy"] == scores["tracked_share"] == 0
    assert not {"box_iou", "forecast_ade_1", "forecast_kept"} & scores.keys()
    assert not any(np.isnan(value) for value in scores.values() if isinstance(value, float))
