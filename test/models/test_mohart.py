# SPDX-License-Identifier: Apache-2.0
"""MOHART: symmetry, masks, blackouts and its losses; spec checks that need no long training."""

import dataclasses
import math

import pytest
import torch

from oc_perception.models.boxes import corrected, iou, mismatch
from oc_perception.models.clips import draw_blackouts, score_blackouts
from oc_perception.models.clips import test_layout as layout
from oc_perception.models.mohart import Mohart, MohartConfig
from oc_perception.models.mohart_states import MohartStates, MohartStatesConfig
from oc_perception.models.registry import ModelError, create_model
from oc_perception.models.relations import RELATIONS
from oc_perception.types import Clip, Motion

SMALL = MohartConfig(
    frame_size=(32, 40),
    num_frames=6,
    glimpse_size=(12, 12),
    channels=(8, 8, 8),
    kernel_size=3,
    size=32,
    max_objects=8,
    num_features=1,
    taught=0.5,
)
SYMMETRIC = [name for name in RELATIONS if name != "mlp"]


def build(**changes: object) -> Mohart:
    torch.manual_seed(0)
    model = Mohart(dataclasses.replace(SMALL, **changes))
    for parameter in model.core.parameters():  # read-outs start at almost nothing
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def clip(batch: int = 2, frames: int = 6, objects: int = 4, seed: int = 0) -> Clip:
    """Bright squares of side 0.2 that drift over a black image of 32 x 40 px."""
    generator = torch.Generator().manual_seed(seed)
    start = 0.2 + 0.4 * torch.rand(batch, 1, objects, 2, generator=generator)
    velocities = torch.randn(batch, 1, objects, 2, generator=generator).expand(-1, frames, -1, -1)
    positions = start + 0.02 * torch.arange(frames)[:, None, None] * velocities
    sizes = torch.full_like(positions, 0.2)
    looks = torch.randint(0, 2, (batch, frames, objects, 1), generator=generator) * 2.0 - 1
    y, x = (torch.arange(32)[:, None] + 0.5) / 40, (torch.arange(40) + 0.5) / 40
    covered = ((x - positions[..., 0, None, None]).abs() < 0.1) & (
        (y - positions[..., 1, None, None]).abs() < 0.1
    )
    red = (covered & (looks[..., None] > 0)).any(2)
    images = torch.stack([red, covered.any(2) & ~red, covered.any(2)], 2).float()
    there = torch.ones(batch, frames, objects, dtype=torch.bool)
    return Clip(images, Motion(positions, 0.6 * velocities, sizes, looks, there, there, 1 / 30))


def boxes(sample: Clip) -> torch.Tensor:
    return torch.cat([sample.motion.positions, sample.motion.sizes], -1)


def follow(model: Mohart, images: list, first: torch.Tensor, present: torch.Tensor):
    state, predicted, presence = model.initial_state(first, present), [], []
    with torch.inference_mode():
        for image in images:
            state, box, probability = model.step(state, image)
            predicted.append(box)
            presence.append(probability)
    return torch.stack(predicted, 1), torch.stack(presence, 1)


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("relations", SYMMETRIC)
def test_another_order_of_objects_gives_the_same_in_that_order(relations, feedback):
    model, sample = build(relations=relations, memory_feedback=feedback), clip()
    images, first = [*sample.images.unbind(1)], boxes(sample)[:, 0]
    present = torch.tensor([[True, True, False, True], [True, True, True, True]])
    order = torch.tensor([2, 0, 3, 1])
    predicted, presence = follow(model, images, first, present)
    other = follow(model, images, first[:, order], present[:, order])
    assert (predicted[:, :, order] - other[0]).abs().max() < 1e-5
    assert (presence[:, :, order] - other[1]).abs().max() < 1e-5


@pytest.mark.parametrize("relations", RELATIONS)
def test_absent_objects_leave_the_others_unchanged(relations):
    model, sample = build(relations=relations, memory_feedback=True), clip()
    images, first = [*sample.images.unbind(1)], boxes(sample)[:, 0]
    present = torch.tensor([True, True, False, False]).expand(2, 4)
    alone, _ = follow(model, images, first[:, :2], present[:, :2])
    for junk in (0.3, math.nan):
        first = first.clone()
        first[:, 2:] = junk
        predicted, _ = follow(model, images, first, present)
        assert (predicted[:, :, :2] - alone).abs().max() < 1e-6


@pytest.mark.parametrize("relations", SYMMETRIC[1:])
def test_objects_hear_of_one_another_only_with_relations(relations):
    sample = clip()
    images, first = [*sample.images.unbind(1)], boxes(sample)[:, 0]
    moved = first.clone()
    moved[:, 3, :2] += 0.15
    present = torch.ones(2, 4, dtype=torch.bool)
    for name, hears in ((relations, True), ("none", False)):
        model = build(relations=name)
        change = (
            follow(model, images, first, present)[0] - follow(model, images, moved, present)[0]
        )
        assert (change[:, :, :3].abs().max() > 1e-5) == hears


def test_any_number_of_objects_at_test_time_but_for_mlp():
    for number in (1, 10):
        sample = clip(objects=number)
        present = torch.ones(2, number, dtype=torch.bool)
        predicted, _ = follow(build(), [*sample.images.unbind(1)], boxes(sample)[:, 0], present)
        assert predicted.shape == (2, 6, number, 4) and predicted.isfinite().all()
    with pytest.raises(ValueError, match="raise max_objects"):
        follow(build(relations="mlp"), [None], torch.rand(1, 9, 4), torch.ones(1, 9).bool())


def test_no_frame_is_a_black_one_bit_for_bit():
    model, sample = build(memory_feedback=True), clip()
    present, first = torch.ones(2, 4, dtype=torch.bool), boxes(sample)[:, 0]
    images = [*sample.images.unbind(1)]
    black = [image if index < 3 else torch.zeros_like(image) for index, image in enumerate(images)]
    missing = [image if index < 3 else None for index, image in enumerate(images)]
    blind, seeing = (follow(model, x, first, present)[0] for x in (missing, images))
    assert torch.equal(follow(model, black, first, present)[0], blind)
    assert not torch.equal(seeing[:, 3], blind[:, 3])


def test_trackers_that_lost_their_objects_do_not_run_away():
    model, sample = build(), clip()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    images = [*sample.images.unbind(1)] + 50 * [None]
    present = torch.ones(2, 4, dtype=torch.bool)
    state = model.initial_state(boxes(sample)[:, 0], present)
    with torch.inference_mode():
        for image in images:
            state, predicted, _ = model.step(state, image)
            assert predicted.isfinite().all()
            assert state.expected.abs().max() <= 1.25


def test_a_row_that_begins_anew_knows_nothing_of_its_past():
    model, sample = build(relations="none"), clip()
    first, rows = boxes(sample)[:, 0], torch.tensor([[False, True, False, True]] * 2)
    state = model.initial_state(first, ~rows)
    for frame in (sample.images[:, 0], None):
        state, _, _ = model.step(state, frame)
    fresh, frame = model.initial_state(first, rows), sample.images[:, 0]
    _, kept, _ = model.step(state, frame)
    _, new, _ = model.step(fresh, frame)
    state, both, _ = model.step(model.start(state, first, rows), frame)
    assert state.present.all()
    assert torch.allclose(both, torch.where(rows[..., None], new, kept), atol=1e-5)


def test_windows_stay_within_one_and_a_half_boxes():
    model, sample = build(), clip()
    state = model.initial_state(boxes(sample)[:, 0], torch.ones(2, 4, dtype=torch.bool))
    for frame in sample.images.unbind(1):
        state, _, _ = model.step(state, frame)
        assert (state.windows[..., 2:] <= 1.5 * state.expected[..., 2:] + 0.01).all()


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_a_clip_without_objects_gives_a_finite_loss_and_gradient(progress):
    sample = clip()
    motion = dataclasses.replace(
        sample.motion,
        present=torch.zeros_like(sample.motion.present),
        visible=torch.zeros_like(sample.motion.visible),
    )
    model = build(blackout_rate=0.5)
    terms = model.loss(Clip(sample.images, motion), torch.Generator().manual_seed(0), progress)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_absent_objects_do_not_count_in_the_loss():
    sample, model = clip(), build()
    present = torch.tensor([True, True, False, False]).expand(2, 6, 4)
    motion = dataclasses.replace(sample.motion, present=present, visible=present)
    nowhere = {
        name: torch.where(present[..., None], getattr(motion, name), 0.0)
        for name in ("positions", "sizes", "velocities")
    }
    other = dataclasses.replace(motion, **nowhere)
    for progress in (0.0, 1.0):
        first, second = (
            model.loss(Clip(sample.images, m), torch.Generator().manual_seed(0), progress)["loss"]
            for m in (motion, other)
        )
        assert first.isfinite() and torch.allclose(first, second)


def test_a_few_clips_are_learned_by_heart_and_no_weight_of_a_loss_vanishes():
    torch.manual_seed(0)
    model, sample = Mohart(SMALL), clip(2, objects=2)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    generator, steps = torch.Generator().manual_seed(0), 120
    with torch.inference_mode():
        before = model.score(sample, generator)["iou"]
    for step in range(steps):
        terms = model.loss(sample, generator, step / steps)
        assert min(terms[f"weight_{name}"] for name in ("tracking", "window", "presence")) > 1e-3
        optimizer.zero_grad()
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.inference_mode():
        scores = model.score(sample, generator)
    assert scores["iou"] > max(scores["iou_frozen"], before) + 0.05


def test_blackouts_leave_the_first_frames_and_two_between():
    black = draw_blackouts(500, 30, 0.7, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert not black[:, :3].any()
    assert 0.6 < black.any(1).float().mean() < 0.8
    for row in black.tolist():
        runs = "".join("x" if blind else "." for blind in row).split(".")
        assert max(map(len, runs)) <= 5
        assert "x.x" not in "".join("x" if blind else "." for blind in row)


def test_blackouts_are_scored_by_the_frames_since_the_last_image():
    truth = torch.tensor([0.2, 0.5, 0.1, 0.1]).repeat(1, 16, 1, 1)
    truth[..., 0] += 0.02 * torch.arange(16)[:, None]
    present = torch.ones(1, 16, 1, dtype=torch.bool)
    black = layout(16, truth.device)
    assert black.nonzero().squeeze(1).tolist() == [6, 7, 8, 9, 10]
    scores = score_blackouts(truth, truth, present, black, 0)
    for offset in range(1, 6):
        assert scores[f"iou_blind_{offset}"] == pytest.approx(1, abs=1e-5)
        assert scores[f"iou_velocity_blind_{offset}"] == pytest.approx(1, abs=1e-5)
        expected = max(0, 0.1 - 0.02 * offset) / min(0.2, 0.1 + 0.02 * offset)
        assert scores[f"iou_frozen_blind_{offset}"] == pytest.approx(expected, abs=1e-5)
    assert scores["reacquired"] == 1


def test_boxes_overlap_as_they_should():
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    assert iou(box, box) == pytest.approx(1)
    moved = corrected(box, torch.tensor([0.5, 0.0, 0.0, math.atanh(math.log(1.5))]))
    assert moved.tolist() == pytest.approx([0.6, 0.5, 0.2, 0.3])
    assert iou(box, moved) == pytest.approx(0.02 / (0.04 + 0.06 - 0.02))
    change = torch.tensor([0.0, 0.0, 4.0, -4.0], requires_grad=True)
    corrected(box, change).sum().backward()
    assert (change.grad != 0).all(), "sizes that changed too much must be able to return"
    apart = (box + torch.tensor([0.4, 0.0, 0.0, 0.0])).requires_grad_()
    mismatch(apart, box).backward()
    assert apart.grad[0] > 0, "boxes that are apart must be pulled together"


def test_states_alone_tell_that_looks_govern_forces():
    """Two objects; each moves by the other's look, which only a relation can tell."""
    generator = torch.Generator().manual_seed(0)

    def motions(batch: int) -> Motion:
        looks = torch.randint(0, 2, (batch, 8, 2, 1), generator=generator) * 2.0 - 1
        steps = 0.02 * looks.flip(2).expand(-1, -1, -1, 2)
        positions = 0.5 + torch.cat([torch.zeros_like(steps[:, :1]), steps[:, :-1]], 1).cumsum(1)
        sizes, there = torch.full_like(positions, 0.1), torch.ones(batch, 8, 2).bool()
        return Motion(positions, 0 * positions, sizes, looks, there, there, 1 / 30)

    reached = {}
    for relations in ("none", "self_attention"):
        torch.manual_seed(0)
        model = MohartStates(MohartStatesConfig(relations, num_frames=8, size=32))
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(120):
            loss = model.loss(motions(32), generator)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.inference_mode():
            reached[relations] = model.score(motions(64), generator)["iou"]
    assert reached["self_attention"] > reached["none"] + 0.2


def test_factories_and_their_errors():
    assert create_model("hart").core.relation is None
    assert create_model("mohart").task == "tracking"
    assert create_model("mohart_states").task == "motion"
    for config in ({"relations": "telepathy"}, {"horizon": 14}, {"heads": 3}):
        with pytest.raises(ModelError):
            create_model("mohart", **config)
