# SPDX-License-Identifier: Apache-2.0
"""Inert trackers: what eyes find before they have learned anything, the filter, and blackouts."""

import dataclasses
import math

import pytest
import torch

from oc_perception.models import inert_mohart
from oc_perception.models.boxes import iou
from oc_perception.models.clips import true_boxes
from oc_perception.models.inert_mohart import InertMohart, InertMohartConfig
from oc_perception.models.registry import ModelError, create_model
from oc_perception.types import Clip, Motion

SMALL = InertMohartConfig(
    frame_size=(48, 64),
    num_frames=8,
    glimpse_size=(24, 24),
    channels=(8, 8, 8),
    kernel_size=3,
    size=32,
    taught=0.5,
)
WAY = (0.012, -0.004)  # of all objects per frame, widths


def build(**changes: object) -> InertMohart:
    torch.manual_seed(0)
    return InertMohart(dataclasses.replace(SMALL, **changes)).eval()


def clip(batch: int = 2, frames: int = 8, objects: int = 2, way=WAY) -> Clip:
    """Patches of coloured noise, 0.16 x 0.32 widths, that go straight on over grey."""
    generator = torch.Generator().manual_seed(0)
    first = torch.tensor([[0.25, 0.4], [0.7, 0.35], [0.5, 0.5]])[:objects]
    steps = torch.arange(frames)[:, None, None] * torch.tensor(way)
    positions = (first + steps).expand(batch, -1, -1, -1)
    sizes = torch.tensor([0.16, 0.32]).expand_as(positions)
    looks = torch.rand(batch, objects, 3, 4, 4, generator=generator)
    y, x = (torch.arange(48)[:, None] + 0.5) / 64, (torch.arange(64) + 0.5) / 64
    images = torch.full((batch, frames, 3, 48, 64), 0.4)
    for index in range(objects):
        place, size = positions[:, :, index, :, None, None], sizes[:, :, index, :, None, None]
        within_x = (x - place[:, :, 0]) / size[:, :, 0] + 0.5
        within_y = (y - place[:, :, 1]) / size[:, :, 1] + 0.5
        inside = (within_x >= 0) & (within_x < 1) & (within_y >= 0) & (within_y < 1)
        column, row = ((4 * w).long().clamp(0, 3) for w in (within_x, within_y))
        column, row = torch.broadcast_tensors(column, row)
        rows = torch.arange(batch)[:, None, None, None]
        texture = looks[rows, index, :, row, column].movedim(-1, 2)
        images = torch.where(inside[:, :, None], texture, images)
    there = torch.ones(positions.shape[:-1], dtype=torch.bool)
    moves = torch.tensor(way).expand_as(positions) * 30
    nothing = positions.new_zeros(*there.shape, 0)
    return Clip(images, Motion(positions, moves, sizes, nothing, there, there, 1 / 30))


def follow(model, images, first, present=None):
    present = torch.ones(first.shape[:2], dtype=torch.bool) if present is None else present
    state, boxes = model.initial_state(first, present), []
    with torch.inference_mode():
        for image in images:
            state, box, _ = model.step(state, image)
            boxes.append(box)
    return torch.stack(boxes, 1), state


def test_what_was_seen_is_found_again_without_any_training():
    model, sample = build(), clip(frames=2, way=(0.03, 0.0))
    boxes = true_boxes(sample.motion)
    looks = model._looks(model._glimpses(sample.images[:, 0], inert_mohart._around(boxes[:, 0])))
    expected, windows = boxes[:, 0], inert_mohart._around(boxes[:, 0])
    with torch.inference_mode():
        glimpses = model._glimpses(sample.images[:, 1], windows)
        found = model._find(glimpses, 0 * glimpses, looks, expected, windows)[1]
    off = (boxes[:, 1] - expected)[..., :2] / expected[..., 2:]
    assert (found[..., :2] - off).abs().max() < 0.06
    assert off[..., 0].min() > 0.15


def test_what_stirs_is_told_by_place():
    change = torch.zeros(2, 3, 24, 24)
    change[0, :, 4:8, 18:22] = 0.5
    across, down, centre = build().eyes._stir(change).split((12, 12, 3), 1)
    assert across[0].argmax() in (9, 10) and across[0].sum() == pytest.approx(1, abs=1e-3)
    assert down[0].argmax() in (2, 3)
    assert centre[0, :2].tolist() == pytest.approx([20 / 24 - 0.5, 6 / 24 - 0.5], abs=1e-3)
    assert not across[1].any() and not down[1].any() and centre[1, 2] < centre[0, 2]


def test_untrained_trackers_follow_what_goes_straight_on():
    sample = clip(frames=8)
    boxes = true_boxes(sample.motion)
    found, _ = follow(build(), sample.images.unbind(1), boxes[:, 0])
    overlap = iou(found, boxes)[:, -1]
    assert overlap.min() > 0.75
    assert overlap.min() > iou(boxes[:, 0], boxes[:, -1]).max() + 0.2


def test_blind_trackers_go_on_as_they_did():
    sample = clip(frames=16, way=(0.01, 0.0))
    boxes, images = true_boxes(sample.motion), list(sample.images.unbind(1))
    blind = [image if index < 12 else None for index, image in enumerate(images)]
    found, _ = follow(build(), blind, boxes[:, 0])
    moved = found[:, 12:, :, 0].diff(dim=1)
    assert ((moved > 0.004) & (moved < 0.016)).all()
    dark = [image if index < 12 else 0 * image for index, image in enumerate(images)]
    assert torch.equal(follow(build(), dark, boxes[:, 0])[0], found)


def test_looks_are_taken_at_first_sight_and_kept():
    model, sample = build(), clip()

    def look(state):
        return state.kept[..., : model.eyes.look_size]

    present = torch.ones(2, 2, dtype=torch.bool)
    first = true_boxes(sample.motion)[:, 0]
    state = model.initial_state(first, present)
    with torch.inference_mode():
        unseen, _, _ = model.step(state, None)
        assert not look(unseen).any()
        seen, _, _ = model.step(unseen, sample.images[:, 0])
        later, _, _ = model.step(seen, sample.images[:, 1])
        blind, _, _ = model.step(later, None)
    assert look(seen).any(2).all()
    assert torch.equal(look(seen), look(later)) and torch.equal(look(blind), look(later))
    again = model.start(later, first, torch.tensor([[True, False]] * 2))
    assert not again.kept[:, 0].any() and torch.equal(again.kept[:, 1], later.kept[:, 1])


def test_order_and_absent_objects_do_not_matter():
    model, sample = build(), clip(objects=3)
    for parameter in model.core.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    first, images = true_boxes(sample.motion)[:, 0], sample.images.unbind(1)
    found, _ = follow(model, images, first)
    order = torch.tensor([2, 0, 1])
    assert (follow(model, images, first[:, order])[0] - found[:, :, order]).abs().max() < 1e-5
    present = torch.tensor([True, True, False]).expand(2, 3)
    alone, _ = follow(model, images, first[:, :2])
    nowhere = first.clone()
    nowhere[:, 2] = math.nan
    assert (follow(model, images, nowhere, present)[0][:, :, :2] - alone).abs().max() < 1e-4


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_absent_objects_and_empty_clips_do_not_count(progress):
    sample, model = clip(), build(blackout_rate=0.5)
    motion = sample.motion
    present = torch.tensor([True, False]).expand_as(motion.present)
    one = dataclasses.replace(motion, present=present, visible=present)
    moved = torch.where(present[..., None], motion.positions, 0.1)
    other = dataclasses.replace(one, positions=moved)
    losses = [
        model.loss(Clip(sample.images, m), torch.Generator().manual_seed(0), progress)["loss"]
        for m in (one, other)
    ]
    assert losses[0].isfinite() and torch.allclose(*losses, atol=1e-6)
    nobody = torch.zeros_like(present)
    empty = dataclasses.replace(motion, present=nobody, visible=nobody)
    loss = model.loss(Clip(sample.images, empty), torch.Generator().manual_seed(0), progress)
    loss["loss"].backward()
    assert loss["loss"] == 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_first_eyes_learn_and_then_memory_alone():
    sample, model = clip(), build()
    for progress, taught in ((0.0, "eyes."), (0.9, "core.")):
        model.zero_grad(set_to_none=True)
        model.loss(sample, torch.Generator().manual_seed(0), progress)["loss"].backward()
        learned = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert learned and all(name.startswith(taught) for name in learned)


def test_eyes_learn_how_doubtful_they_are():
    sample, model = clip(frames=6), build(taught=1.0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator, surprises = torch.Generator().manual_seed(0), []
    for _ in range(60):
        terms = model.loss(sample, generator, 0.0)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        surprises.append(float(terms["loss"].detach()))
    assert sum(surprises[-10:]) / 10 < sum(surprises[:3]) / 3 - 0.5


def test_the_filter_is_that_of_kalman():
    generator = torch.Generator().manual_seed(0)
    variances = inert_mohart._first_variances(torch.zeros(1, 8, dtype=torch.float64))
    place, velocity = variances[0, 0], variances[0, 4]
    covariance = torch.diag(torch.stack([place, velocity]))
    flight = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    for _ in range(6):
        noise, restless = torch.rand(2, 1, 4, generator=generator, dtype=torch.float64) * 0.01
        gains, variances = inert_mohart._weighed(variances, noise, restless)
        gain = covariance[:, :1] / (covariance[0, 0] + noise[0, 0])
        covariance = covariance - gain @ covariance[:1]
        push = torch.tensor([[0.25, 0.5], [0.5, 1.0]], dtype=torch.float64) * restless[0, 0]
        covariance = flight @ covariance @ flight.T + push
        assert torch.allclose(gains[0, [0, 4]], gain[:, 0])
        expected = covariance[[0, 1, 0], [0, 1, 1]]
        assert torch.allclose(variances[0, [0, 4, 6]], expected)


def test_only_boxes_of_the_seen_frame_can_be_told():
    with pytest.raises((ModelError, ValueError), match="horizon"):
        create_model("inert_mohart", horizon=1)
    assert create_model("inert_hart").config.relations == "none"
