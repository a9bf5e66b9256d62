# SPDX-License-Identifier: Apache-2.0
"""HART: its streams, masks, windows and losses; spec checks that need no long training."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from oc_perception.models.hart import Dorsal, Hart, HartConfig
from oc_perception.models.registry import ModelError, create_model
from oc_perception.types import Clip, Motion

SMALL = HartConfig(
    frame_size=(32, 32),
    num_frames=5,
    glimpse_size=(12, 12),
    channels=(8, 8, 8),
    kernel_size=3,
    size=32,
    dropout=0.0,
    zoneout=0.0,
)


def build(**changes: object) -> Hart:
    torch.manual_seed(0)
    return Hart(dataclasses.replace(SMALL, **changes))


def clip(batch: int = 2, frames: int = 5) -> Clip:
    """Two bright squares of side 0.25 each, which drift over black images of 32 x 32 px."""
    generator = torch.Generator().manual_seed(0)
    start = torch.tensor([[0.25, 0.3], [0.7, 0.65]]).expand(batch, 1, 2, 2)
    velocities = torch.randn(batch, 1, 2, 2, generator=generator).expand(-1, frames, -1, -1)
    positions = start + 0.03 * torch.arange(frames)[:, None, None] * velocities
    sizes = torch.full_like(positions, 0.25)
    pixel = (torch.arange(32) + 0.5) / 32
    x, y = ((pixel - positions[..., axis, None]).abs() < 0.125 for axis in (0, 1))
    images = (y[..., :, None] & x[..., None, :]).any(2).float()
    there = torch.ones(batch, frames, 2, dtype=torch.bool)
    motion = Motion(positions, 0.9 * velocities, sizes, sizes[..., :0], there, there, 1 / 30)
    return Clip(images.unsqueeze(2).expand(-1, -1, 3, -1, -1), motion)


def first_boxes(sample: Clip) -> torch.Tensor:
    return torch.cat([sample.motion.positions, sample.motion.sizes], -1)[:, 0]


def test_generated_filters_are_convolutions_of_each_object_by_itself():
    torch.manual_seed(0)
    dorsal, x, appearance = Dorsal(4, 3, 16), torch.randn(2, 4, 5, 6), torch.randn(2, 16)
    logits, _ = dorsal(x, appearance)
    for index in range(2):
        y = x[index : index + 1]
        for (out, into, kernel), generator, static in zip(
            dorsal.shapes, dorsal.generators, dorsal.static, strict=True
        ):
            filters = generator(appearance[index]) + static
            weight = filters[:-out].view(out, into, kernel, kernel)
            y = functional.elu(functional.conv2d(y, weight, filters[-out:], padding=kernel // 2))
        assert torch.allclose(dorsal.decide(y)[0, 0], logits[index], atol=1e-5)


def test_cells_inside_of_the_box_are_the_target_of_the_mask():
    model = build()
    rows, columns = model.cells
    window = torch.tensor([0.5, 0.5, 0.4, 0.4])
    left_half = torch.tensor([0.4, 0.5, 0.2, 0.8])
    inside = model._inside(window, left_half)
    assert inside.shape == (rows, columns)
    centres = (torch.arange(columns) + 0.5) / columns
    assert torch.equal(inside, (centres <= 0.5).expand(rows, columns))


def test_the_first_box_is_given_and_objects_do_not_know_of_each_other():
    model, sample = build().eval(), clip()
    first, present = first_boxes(sample), torch.ones(2, 2, dtype=torch.bool)
    both, alone = model.initial_state(first, present), None
    alone = model.initial_state(first[:, :1], present[:, :1])
    for index, frame in enumerate(sample.images.unbind(1)):
        both, boxes, presence = model.step(both, frame)
        alone, only, _ = model.step(alone, frame)
        assert index or torch.equal(boxes, first)
        assert torch.allclose(boxes[:, :1], only, atol=1e-6)
        assert presence.tolist() == [[1, 1], [1, 1]]
        assert (both.windows[..., 2:] <= 1.5 * boxes[..., 2:] + 0.01).all()


def test_no_frame_is_a_black_one():
    model, sample = build().eval(), clip()
    state = model.initial_state(first_boxes(sample), torch.ones(2, 2, dtype=torch.bool))
    state, _, _ = model.step(state, sample.images[:, 0])
    _, missing, _ = model.step(state, None)
    _, black, _ = model.step(state, torch.zeros_like(sample.images[:, 0]))
    assert torch.equal(missing, black)


@pytest.mark.parametrize(
    ("appearance", "mask_loss"), [(True, True), (True, False), (False, False)]
)
def test_the_ablations_train_all_they_have(appearance, mask_loss):
    model = build(appearance=appearance, mask_loss=mask_loss, dropout=0.25, zoneout=0.05)
    terms = model.loss(clip(), torch.Generator().manual_seed(0))
    terms["loss"].backward()
    assert ("mask" in terms) == mask_loss
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_zoneout_keeps_its_expectation_in_use():
    model = build(zoneout=0.25)
    old, new = torch.zeros(1, 20_000), torch.ones(1, 20_000)
    drawn = model._zoned_out(old, new, torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    used = model._zoned_out(old, new, None)
    assert used.unique().tolist() == [0.75]
    assert drawn.mean().item() == pytest.approx(0.75, abs=0.02)


def test_a_clip_is_learned_by_heart_and_no_weight_of_a_loss_vanishes():
    model, sample = build(box_jitter=0.0), clip()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(140):
        terms = model.loss(sample, generator)
        assert min(terms[f"weight_{n}"] for n in ("tracking", "window", "mask")) > 1e-3
        optimizer.zero_grad()
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.inference_mode():
        scores = model.score(sample, generator)
    assert scores["iou"] > 0.7 > 0.5 > scores["iou_frozen"]
    assert scores["mask_iou"] > 0.5
    assert scores["window_ratio"] < 1.6


def test_an_empty_clip_gives_a_finite_loss():
    sample, model = clip(), build()
    nobody = torch.zeros_like(sample.motion.present)
    motion = dataclasses.replace(sample.motion, present=nobody, visible=nobody)
    terms = model.loss(Clip(sample.images, motion), torch.Generator().manual_seed(0))
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_errors_name_the_cure():
    assert create_model("hart_full").task == "tracking"
    with pytest.raises(ModelError, match="glimpse_size at least"):
        create_model("hart_full", glimpse_size=(4, 4))
