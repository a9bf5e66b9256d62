# SPDX-License-Identifier: Apache-2.0
"""The model of pedestrians: filter, symmetries, who hears whom, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from oc_perception.models.pedestrians import Pedestrians, PedestriansConfig
from oc_perception.models.registry import ModelError, create_model
from oc_perception.tracking import kalman
from oc_perception.types import Motion
from oc_perception.worlds.trajectories import in_view


def _model(**config: object) -> Pedestrians:
    torch.manual_seed(0)
    model = Pedestrians(PedestriansConfig(**config)).double()
    for parameter in model.parameters():  # the last layers begin near zero: make them matter
        torch.nn.init.normal_(parameter, std=0.15)
    return model


def _walks(batch: int = 3, persons: int = 4, seed: int = 0, speed: float = 0.5) -> torch.Tensor:
    """`(B, 20, N, 2)` metres, a few apart."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    way = speed * normal(batch, 1, persons, 2) + 0.05 * normal(batch, 20, persons, 2)
    return normal(batch, 1, persons, 2) + way.cumsum(1)


def _motion(positions: torch.Tensor) -> Motion:
    return in_view(positions, 20.0, 1.0, 8)


def _forecast(model: Pedestrians, motion: Motion) -> tuple[torch.Tensor, torch.Tensor]:
    """Means `(B, 12, N, 2)` and covariances `(B, 12, N, 2, 2)`, of lengths in sizes."""
    with torch.no_grad():
        states = [s for frame, s in model.follow(motion, motion.positions) if frame >= 8]
    means = torch.stack([state.means[..., :2] for state in states], 1)
    covariances = torch.stack([state.covariances[..., :2, :2] for state in states], 1)
    return 20 * (means - 0.5), 400 * covariances


def test_without_answers_it_is_the_textbook_filter() -> None:
    model = _model(relations=False, noise=0.03)
    for part in (model.alone, model.doubt):
        for parameter in part.parameters():
            torch.nn.init.zeros_(parameter)
    walks = _walks()
    means, covariances = _forecast(model, _motion(walks))

    truth = (walks - walks[:, 7:8, :1]).numpy()
    diffusion = (math.exp(-4) / 0.4) ** 2 / 0.4
    filter_ = kalman.MotionModel(diffusion)
    noise = 0.03**2 * np.eye(2)
    mean = np.concatenate([truth[:, 0], np.zeros_like(truth[:, 0])], -1)
    covariance = np.tile(np.diag([0.03**2] * 2 + [(0.5 / 0.4) ** 2] * 2), (*mean.shape[:2], 1, 1))
    for frame in range(1, 20):
        mean, covariance = filter_.predict(mean, covariance, 0.4)
        if frame < 8:
            mean, covariance = kalman.update(mean, covariance, truth[:, frame], noise)
            continue
        np.testing.assert_allclose(means[:, frame - 8], mean[..., :2], atol=1e-9)
        np.testing.assert_allclose(covariances[:, frame - 8], covariance[..., :2, :2], atol=1e-9)


def test_ticks_and_updates_turn_with_the_world() -> None:
    model, walks = _model(), _walks()
    angle = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]),
                        torch.stack([angle.sin(), angle.cos()])])  # fmt: skip
    both = torch.block_diag(turn, turn)
    motion = _motion(walks)
    with torch.no_grad():
        state = dict(model.follow(motion, motion.positions))[12]  # nobody is at rest any more
        turned = replace(
            state, means=state.means @ both.T, covariances=both @ state.covariances @ both.T
        )
        noises = 1e-4 * torch.eye(2, dtype=torch.float64).expand(3, 4, 2, 2)
        position = motion.positions[:, 13]
        for _ in range(2):
            state = model.step(state, position, 0.4, noises)[0]
            turned = model.step(turned, position @ turn.T, 0.4, noises)[0]
    torch.testing.assert_close(turned.means, state.means @ both.T)
    torch.testing.assert_close(turned.covariances, both @ state.covariances @ both.T)
    torch.testing.assert_close(turned.memories, state.memories)


def test_forecasts_do_not_depend_on_the_order_of_persons() -> None:
    model, walks = _model(), _walks(persons=5)
    order = [0, 3, 1, 4, 2]  # the first is the middle of the view
    means, covariances = _forecast(model, _motion(walks))
    others, spread = _forecast(model, _motion(walks[:, :, order]))
    torch.testing.assert_close(others, means[:, :, order])
    torch.testing.assert_close(spread, covariances[:, :, order])


def test_only_those_within_reach_are_heard() -> None:
    walks = _walks(persons=2, speed=0.1)
    near, far = walks.clone(), walks.clone()
    near[:, :, 1] += 1.0
    far[:, :, 1] += 40.0
    alone = _forecast(_model(), _motion(walks[:, :, :1]))[0][:, :, 0]
    torch.testing.assert_close(_forecast(_model(), _motion(far))[0][:, :, 0], alone)
    assert (_forecast(_model(), _motion(near))[0][:, :, 0] - alone).norm(dim=-1).min() > 1e-4
    deaf = _model(relations=False)
    alone = _forecast(deaf, _motion(walks[:, :, :1]))[0][:, :, 0]
    torch.testing.assert_close(_forecast(deaf, _motion(near))[0][:, :, 0], alone)


def test_attention_to_a_crowd_is_bounded() -> None:
    model = _model()
    for persons, least in ((3, 0.1), (60, 0.8)):
        motion = _motion(_walks(persons=persons, speed=0.1))
        with torch.no_grad():
            state = dict(model.follow(motion, motion.positions))[8]
            attention = model.tick(state, 0.4)[1]
        assert least < attention.sum(-1).mean() < 1
        assert attention.min() >= 0
        assert attention.diagonal(dim1=1, dim2=2).max() == 0


def test_the_future_is_not_looked_at() -> None:
    model, walks = _model(), _walks()
    means = _forecast(model, _motion(walks))[0]
    walks[:, 8:] = torch.nan
    assert torch.equal(_forecast(model, _motion(walks))[0], means)


def test_who_comes_late_is_followed_and_who_was_never_seen_is_not() -> None:
    model, walks = _model(), _walks(persons=3)
    walks[:, :5, 1] = torch.nan
    walks[:, :, 2] = torch.nan
    motion = _motion(walks)
    with torch.no_grad():
        states = dict(model.follow(motion, motion.positions))
    assert [states[frame].active[0].tolist() for frame in (5, 6, 19)] == [
        [True, False, False],
        [True, True, False],
        [True, True, False],
    ]
    latest = 20 * (states[8].means[:, 1, :2] - motion.positions[:, 7, 1]).norm(dim=-1)
    assert latest.max() < 3


def test_it_learns_that_persons_walk_in_circles() -> None:
    torch.manual_seed(0)
    model = Pedestrians(PedestriansConfig(hidden=16, memory=8, message=4, added_noise=0.0))
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    generator = torch.Generator().manual_seed(0)

    def circles() -> Motion:
        start = 2 * math.pi * torch.rand(16, 1, 2, generator=generator)
        angle = start + 0.1 * torch.arange(20)[:, None]
        ways = 0.5 * torch.stack([angle.cos(), angle.sin()], -1)
        return _motion(5 * torch.randn(16, 1, 2, 2, generator=generator) + ways.cumsum(1))

    fresh = circles()
    before = model.score(fresh, generator)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(circles(), generator)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    after = model.score(fresh, generator)
    assert before["fde"] > 2
    assert after["fde"] < before["fde"] / 3
    assert after["coverage_90"] > 0.6


@pytest.mark.parametrize(
    "config",
    [
        {"memory": 0},
        {"reach": 0.0},
        {"added_noise": -1.0},
        {"seen_frames": 20},
        {"seen_frames": 2},
    ],
)
def test_settings_without_sense_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        create_model("pedestrians", **config)
