# SPDX-License-Identifier: Apache-2.0
"""The relational motion model: geometry, filter, symmetry, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from oc_perception.models.beliefs import MotionState
from oc_perception.models.encounters import meeting, meeting_with_border
from oc_perception.models.motion_training import dynamics_error
from oc_perception.models.registry import ModelError, create_model
from oc_perception.models.relational import Relational, RelationalConfig
from oc_perception.tracking import kalman
from oc_perception.worlds.discs import Discs


def _model(**config: object) -> Relational:
    torch.manual_seed(0)
    model = Relational(RelationalConfig(**config)).double()
    for parameter in model.parameters():  # the last layers begin near zero: make them matter
        torch.nn.init.normal_(parameter, std=0.15)
    return model


def _state(count: int = 4, seed: int = 0, batch: int = 2) -> MotionState:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    root = 0.01 * (uniform(batch, count, 4, 4) - 0.5)
    return MotionState(
        means=torch.cat([uniform(batch, count, 2), uniform(batch, count, 2) - 0.5], -1),
        covariances=root @ root.mT + 1e-6 * torch.eye(4, dtype=torch.float64),
        memories=uniform(batch, count, 16) - 0.5,
        ages_s=uniform(batch, count),
        sizes=0.1 + 0.05 * uniform(batch, count, 2),
        features=uniform(batch, count, 1),
        active=torch.ones(batch, count, dtype=torch.bool),
    )


def _rows(state: MotionState, rows: list[int]) -> MotionState:
    names = ("means", "covariances", "memories", "ages_s", "sizes", "features", "active")
    return replace(state, **{name: getattr(state, name)[:, rows] for name in names})


def test_meeting_finds_first_contact_and_closest_approach() -> None:
    generator = torch.Generator().manual_seed(0)
    offset = 3 * torch.rand(2000, 2, generator=generator, dtype=torch.float64) - 1.5
    slip = 3 * torch.rand(2000, 2, generator=generator, dtype=torch.float64) - 1.5
    outside = offset.norm(dim=1) > 1
    met = meeting(offset, slip)
    times = torch.linspace(0, 1, 4001, dtype=torch.float64)
    distances = (offset[:, None] + times[:, None] * slip[:, None]).norm(dim=2)
    touches = (distances <= 1).any(1)
    first = times[(distances <= 1).double().argmax(1)]
    clear = (distances.min(1).values - 1).abs() > 1e-3  # the sampled path decides
    assert (met.hit == touches)[outside & clear].all()
    hits = outside & clear & met.hit
    assert hits.sum() > 100
    assert (met.when - first)[hits].abs().max() < 5e-4
    assert (met.gaps[:, 1] - distances.min(1).values).abs().max() < 1e-3
    assert torch.allclose(
        met.axes[..., 0].norm(dim=1), torch.ones(2000, dtype=torch.float64), atol=1e-4
    )


def test_border_is_met_when_the_box_arrives() -> None:
    distance = torch.tensor([[[1.5, 3.0, 1.2, 2.0]]], dtype=torch.float64)
    normal = torch.tensor([[-1.0, 0], [1, 0], [0, -1], [0, 1]], dtype=torch.float64)
    slip = -torch.tensor([[[-1.0, 0.1]]], dtype=torch.float64)  # the object flies to the left
    met = meeting_with_border(distance, slip, normal)
    assert met.hit.tolist() == [[[True, False, False, False]]]
    assert met.when[0, 0, 0] == pytest.approx(0.5)
    assert met.speeds[0, 0, :, 0].tolist() == pytest.approx([-1.0, 1.0, 0.1, -0.1])


def test_order_of_objects_does_not_matter() -> None:
    model, state, order = _model(), _state(), [2, 0, 3, 1]
    detections = state.means[..., :2] + 0.01
    noises = 1e-4 * torch.eye(2, dtype=torch.float64).expand(2, 4, 2, 2)
    seen = torch.tensor([[True, False, True, True]]).expand(2, -1)
    after, _ = model.step(state, detections, 0.05, noises, seen)
    other, _ = model.step(_rows(state, order), detections[:, order], 0.05, noises, seen[:, order])
    expected = _rows(after, order)
    for name in ("means", "covariances", "memories", "ages_s"):
        assert torch.allclose(getattr(other, name), getattr(expected, name), atol=1e-10)


def test_absent_objects_neither_give_nor_receive() -> None:
    model, state = _model(), _state(5)
    state = replace(state, active=torch.tensor([[True] * 4 + [False]]).expand(2, -1))
    padded = _rows(model.predict(state, 0.1), [0, 1, 2, 3])
    alone = model.predict(_rows(state, [0, 1, 2, 3]), 0.1)
    assert torch.allclose(padded.means, alone.means, atol=1e-12)
    everybody = model.predict(replace(state, active=torch.ones_like(state.active)), 0.1)
    assert not torch.allclose(everybody.means[:, :4], alone.means, atol=1e-6)


def test_pairs_act_alike_in_rotated_and_mirrored_scenes() -> None:
    model, state = _model(), _state(batch=1)
    angle = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )
    size, dt = state.sizes.mean(-1), torch.full((1, 1, 1), 0.03, dtype=torch.float64)
    doubt = torch.full((1, 4, 2), 1e-4, dtype=torch.float64)
    for matrix in (turn, turn @ torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))):
        moved = replace(state, means=(state.means.view(1, 4, 2, 2) @ matrix.T).view(1, 4, 4))
        (still, noise), (turned, other_noise) = (
            model._effect(met, answer, answer[..., 0].sigmoid() * counts, reach, relative, dt)
            for met, answer, reach, relative, counts in (
                model._meet_others(s, dt, size, doubt) for s in (state, moved)
            )
        )
        for before, after in zip(still, turned, strict=True):
            assert torch.allclose(before @ matrix.T, after, atol=1e-10)
        block = torch.block_diag(matrix, matrix)
        assert torch.allclose(block @ noise @ block.T, other_noise, atol=1e-10)


def test_without_networks_it_flies_straight() -> None:
    model, state = _model(), _state()
    for network in (model.pairs.rest[-1], model.borders.rest[-1], model.alone[-1]):
        torch.nn.init.zeros_(network.weight)
        torch.nn.init.zeros_(network.bias)
        network.bias.data[-2:] = -50  # log standard deviations
    after = model.predict(state, 0.1)
    flight = kalman.MotionModel(0.0).transition(0.1)
    means = np.einsum("ij,bnj->bni", flight, state.means.numpy())
    assert np.allclose(after.means.detach().numpy(), means, atol=1e-12)
    covariances = flight @ state.covariances.numpy() @ flight.T
    assert np.allclose(after.covariances.detach().numpy(), covariances, atol=1e-12)


def test_update_is_the_kalman_update_and_leaves_the_unseen_alone() -> None:
    model, state = _model(), _state()
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(2, 4, 2, 2, generator=generator, dtype=torch.float64) * 0.01
    noises = noise @ noise.mT + 1e-6 * torch.eye(2, dtype=torch.float64)
    seen = torch.tensor([[True, True, False, True], [False, True, True, True]])
    detections = state.means[..., :2] + 0.01
    after = model.update(state, detections, noises, seen)
    means, covariances = kalman.update(
        *(t.numpy() for t in (state.means, state.covariances, detections, noises))
    )
    mask = seen.numpy()
    assert np.allclose(after.means.detach().numpy()[mask], means[mask], atol=1e-12)
    assert np.allclose(after.covariances.detach().numpy()[mask], covariances[mask], atol=1e-12)
    assert torch.equal(after.means[~seen], state.means[~seen])
    assert torch.equal(after.memories[~seen], state.memories[~seen])
    assert (after.ages_s[seen] == 0).all() and torch.equal(
        after.ages_s[~seen], state.ages_s[~seen]
    )


def test_blind_steps_grow_doubt_and_age_but_not_memory() -> None:
    model, state = _model(), _state()
    after, predicted = model.step(state, None, 0.2)
    assert after is predicted
    assert torch.equal(after.memories, state.memories)
    assert torch.allclose(after.ages_s, state.ages_s + 0.2)
    spread = [s.covariances.diagonal(dim1=-2, dim2=-1).sum() for s in (state, after)]
    assert spread[1] > spread[0]
    assert torch.linalg.eigvalsh(after.covariances).min() > 0


def test_no_time_changes_nothing_and_no_scene_leads_to_infinity() -> None:
    model = _model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    state = _state(6)
    assert model.predict(state, 0.0) is state
    far = model.predict(state, 3.0)
    assert far.means.isfinite().all() and far.covariances.isfinite().all()
    assert far.means[..., 2:].abs().max() <= 30  # a view per tick


def test_attention_is_between_0_and_1_and_not_to_oneself() -> None:
    _, attention = _model().tick(_state(), 0.03)
    assert attention.shape == (2, 4, 4)
    assert ((attention >= 0) & (attention <= 1)).all()
    assert (attention.diagonal(dim1=1, dim2=2) == 0).all() and attention.sum() > 0


@pytest.mark.parametrize("regime", ["R1", "R4"])
def test_loss_is_finite_with_comings_and_goings(regime: str) -> None:
    model = create_model("relational", num_frames=24, visible_frames=[4, 8])
    world = Discs(Discs.Config(regime=regime, num_objects=(1, 4)), 8, 0)
    motion = world.sample_motion(model.num_frames)
    generator = torch.Generator().manual_seed(0)
    for progress in (0.0, 1.0):
        terms = model.loss(motion, generator, progress)
        terms["loss"].backward()
        assert terms["loss"].isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_learns_that_discs_bounce() -> None:
    """One tick from noisy true states, before and after fifty small updates."""
    torch.manual_seed(0)
    model = create_model("relational", num_frames=16, visible_frames=[4, 8])
    world = Discs(Discs.Config(regime="R1", num_objects=(5, 5), speed_diameters=(0.2, 0.2)), 16, 0)
    test, generator = world.sample_motion(16), torch.Generator()

    def missed() -> float:
        with torch.no_grad():
            return dynamics_error(model, test, 1 / 30, generator.manual_seed(1)).item()

    before = missed()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(50):
        optimizer.zero_grad()
        model.loss(world.sample_motion(16), generator, progress=0.0)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert missed() < 0.75 * before


def test_bad_configurations_say_so() -> None:
    with pytest.raises(ModelError, match="visible_frames"):
        create_model("relational", num_frames=10, visible_frames=[5, 10])
    with pytest.raises(ModelError, match="tick_s"):
        create_model("relational", tick_s=0.0)
