# SPDX-License-Identifier: Apache-2.0
"""Discs: the laws of motion, what chance adds, and what is known of it."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.disc_physics import FRAME_S, REGIMES, State, advance
from oc_perception.worlds.discs import Discs, DiscsConfig
from oc_perception.worlds.registry import create_world


def world(regime, batch=32, seed=1, **config):
    return create_world("discs", {"regime": regime, **config}, batch, seed)


def state_of(positions, velocities, radii, charges=None):
    """One sequence, from lists of discs."""
    positions = torch.tensor([positions], dtype=torch.float64)
    radii = torch.tensor([radii], dtype=torch.float64)
    charges = torch.zeros_like(radii) if charges is None else torch.tensor([charges]).double()
    present = torch.ones_like(radii).bool()
    velocities = torch.tensor([velocities], dtype=torch.float64)
    return State(positions, velocities, radii, charges, present, present, positions, radii)


def kinetic(state):
    """Per unit of mass of a disc of average area, `(B,)`."""
    mass = state.radii**2 / (state.radii**2).mean(1, keepdim=True)
    return 0.5 * (mass * (state.velocities**2).sum(-1)).sum(1)


def potential(state, regime):
    first, second = torch.triu_indices(*[state.radii.shape[1]] * 2, 1)
    distance = (state.positions[:, first] - state.positions[:, second]).norm(dim=-1)
    sign = state.charges[:, first] * state.charges[:, second] if regime.charged else 1
    energy = -distance.log() if regime.exponent == 1 else -2 * distance.sqrt()
    return regime.strength / FRAME_S**2 * (sign * energy).sum(1)


@pytest.mark.parametrize("name", ["R1", "R1o", "R2", "D1", "D3b"])
def test_energy_drifts_less_than_one_percent_in_100_frames(name):
    regime, state = REGIMES[name], world(name, num_objects=[5, 5])._start()
    start = kinetic(state) + potential(state, regime)
    drift, largest = torch.zeros_like(start), kinetic(state)
    for _ in range(100):
        state = advance(state, regime)
        drift = torch.maximum(drift, (kinetic(state) + potential(state, regime) - start).abs())
        largest = torch.maximum(largest, kinetic(state))
    assert (drift / largest).max() < (0.01 if regime.forced else 1e-12)
    if regime.forced:  # the forces did work
        assert (kinetic(state) - largest).abs().max() > 0.1 * largest.max()


@pytest.mark.parametrize("name", ["R1", "R1o", "R2", "D1"])
def test_momentum_is_kept_between_discs_without_walls(name):
    regime, state = replace(REGIMES[name], walls=False), world(name, num_objects=[5, 5])._start()

    def momentum(state):
        return (state.radii.unsqueeze(-1) ** 2 * state.velocities).sum(1)

    start, first = momentum(state), state.velocities
    for _ in range(100):
        state = advance(state, regime)
    assert (momentum(state) - start).abs().max() < 1e-12
    assert (state.velocities - first).abs().amax() > 0.1  # they did meet


@pytest.mark.parametrize("name", ["R1", "R1o", "R2", "R3", "D1", "D2"])
def test_discs_never_overlap_nor_leave_through_walls(name):
    motion = world(name, num_objects=[4, 6]).sample_motion(60)
    reach = motion.sizes[..., 0] / 2
    distance = (motion.positions.unsqueeze(3) - motion.positions.unsqueeze(2)).norm(dim=-1)
    gaps = distance - reach.unsqueeze(3) - reach.unsqueeze(2)
    pairs = motion.present.unsqueeze(3) & motion.present.unsqueeze(2)
    pairs &= ~torch.eye(6, dtype=torch.bool)
    assert gaps[pairs].min() > -1e-6
    inside = torch.minimum(motion.positions, 1 - motion.positions) - reach.unsqueeze(-1)
    assert inside[motion.present].min() > -1e-6
    assert motion.present.sum(2).unique().tolist() == [4, 5, 6]


def test_an_oblique_collision_is_that_of_tiny_steps():
    radii = [0.05, 0.035]
    state = state_of([[0.4, 0.5], [0.5, 0.53]], [[0.7, 0.1], [-0.3, -0.2]], radii)
    place, speed = state.positions[0].numpy().copy(), state.velocities[0].numpy().copy()
    step_s, met = 1e-6, False
    for _ in range(round(FRAME_S / step_s)):
        place = place + speed * step_s
        offset = place[0] - place[1]
        if not met and np.hypot(*offset) < sum(radii):
            met, masses = True, np.square(radii)
            change = 2 * (speed[0] - speed[1]) @ offset / (offset @ offset) / masses.sum() * offset
            speed = speed + np.stack([-masses[1] * change, masses[0] * change])
    assert met
    after = advance(state, REGIMES["R1o"])
    np.testing.assert_allclose(after.positions[0], place, atol=3e-6)
    np.testing.assert_allclose(after.velocities[0], speed, atol=3e-4)


def test_forces_are_those_of_an_adaptive_integrator():
    regime = REGIMES["R2"]
    discs = [[0.2, 0.2], [0.8, 0.3], [0.4, 0.8]]
    state = state_of(discs, [[0.1, 0.05], [-0.1, 0.1], [0.02, -0.1]], [0.05] * 3, [1, -1, -1])
    charge = np.array([1, -1, -1])

    def rates(_, values):
        place, speed = values.reshape(2, 3, 2)
        offset = place[:, None] - place[None]
        distance = np.linalg.norm(offset, axis=-1) + np.eye(3)
        pull = regime.strength / FRAME_S**2 * np.outer(charge, charge) / distance**1.5
        return np.concatenate([speed.ravel(), (pull[..., None] * offset).sum(1).ravel()])

    start = np.concatenate([state.positions.numpy().ravel(), state.velocities.numpy().ravel()])
    exact = solve_ivp(rates, (0, 30 * FRAME_S), start, rtol=1e-10, atol=1e-12).y[:6, -1]
    for _ in range(30):
        state = advance(state, regime)
    np.testing.assert_allclose(state.positions.numpy().ravel(), exact, atol=1e-5)
    assert np.abs(exact - start[:6] - start[6:]).max() > 0.01  # forces matter


def iou(first, second, side):
    overlap = (side - (first - second).abs()).clamp(min=0).prod(-1)
    return (overlap / (2 * side**2 - overlap)).mean().item()


@pytest.mark.parametrize(
    ("name", "count", "ahead", "frozen", "linear"),
    [("D2", 5, 1, 0.34, 0.47), ("D1", 4, 3, 0.18, 0.46)],
)
def test_simple_guesses_score_in_mohart_domains_as_calibrated(name, count, ahead, frozen, linear):
    motion = world(name, 300, num_objects=[count, count]).sample_motion(15 + ahead)
    places = motion.positions
    now, before, later = places[:, 1:15], places[:, :14], places[:, 1 + ahead :]
    assert iou(now, later, 0.12) == pytest.approx(frozen, abs=0.02)
    assert iou(now + ahead * (now - before), later, 0.12) == pytest.approx(linear, abs=0.03)


@pytest.mark.parametrize(
    ("name", "frames"),
    [("R0", 20), ("R1", 20), ("R1o", 20), ("R2", 20), ("D1", 20), ("D3b", 20), ("D2", 1)],
)
def test_the_true_state_continues_into_the_true_future(name, frames):
    source = world(name, 64)
    motion = source.sample_motion(31)
    places = source.continue_from(
        motion.positions[:, 10], motion.velocities[:, 10], motion, 10, frames
    )
    future = motion[:, 11 : 11 + frames]
    places, truth = places[future.present], future.positions[future.present]
    assert (places - truth).abs().max() < 1e-4
    assert iou(places, truth, 0.1) > 0.999


def test_continuing_a_slice_is_continuing_the_whole():
    source = world("R2", 8)
    motion = source.sample_motion(20)
    part = motion[2:5, 5:]
    start = motion.positions[2:5, 12], motion.velocities[2:5, 12]
    whole = source.continue_from(motion.positions[:, 12], motion.velocities[:, 12], motion, 12, 9)
    assert torch.equal(source.continue_from(*start, part, 7, 9), whole[2:5])


@pytest.mark.parametrize("name", list(REGIMES))
def test_the_same_seed_gives_the_same_sequences(name):
    first, again, other = (world(name, 2, seed).sample_motion(6) for seed in (5, 5, 6))
    for f in fields(first)[:-2]:
        assert torch.equal(getattr(first, f.name), getattr(again, f.name))
    assert all(torch.equal(first.hidden[name], again.hidden[name]) for name in first.hidden)
    assert not torch.equal(first.positions, other.positions)
    assert first.positions.dtype == torch.float32 and first.positions.isfinite().all()
    assert first.dt_s == 1 / 30 and first.features.shape[-1] == 1


@pytest.mark.parametrize("name", ["R1", "R2"])
def test_sequences_of_a_batch_do_not_touch_one_another(name):
    state = world(name, 8)._start()
    alone = State(*(getattr(state, f.name)[3:4] for f in fields(State)))
    for _ in range(20):
        state, alone = advance(state, REGIMES[name]), advance(alone, REGIMES[name])
    torch.testing.assert_close(state.positions[3:4], alone.positions, rtol=0, atol=1e-9)


def test_speeds_are_drawn_from_their_range():
    motion = world("R0", 128, num_objects=[5, 5], speed_diameters=[0.05, 0.25]).sample_motion(2)
    speed = motion.velocities.norm(dim=-1) * motion.dt_s / 0.1
    assert 0.05 <= speed.min() < 0.06 and 0.24 < speed.max() <= 0.2501
    step = motion.positions[:, 1] - motion.positions[:, 0]
    steady = (motion.velocities[:, 0] == motion.velocities[:, 1]).all(-1)
    expected = (motion.velocities[:, 0] * motion.dt_s)[steady]
    torch.testing.assert_close(step[steady], expected, rtol=0, atol=1e-6)


def test_charges_change_with_probability_rho():
    for rho, changes in ((0.0, 0.0), (0.5, 0.25), (1.0, 0.5)):
        features = world("D2", 64, num_objects=[5, 5], rho=rho).sample_motion(21).features
        assert features.abs().eq(1).all()
        rate = (features[:, 1:] != features[:, :-1]).float().mean().item()
        assert rate == pytest.approx(changes, abs=0.03)
    assert not world("R1").sample_motion(2).features.any()


def test_like_charges_repel_and_unlike_attract():
    for charges, sign in (([1, 1], 1), ([-1, -1], 1), ([1, -1], -1)):
        state = state_of([[0.4, 0.5], [0.6, 0.5]], [[0, 0], [0, 0]], [0.05] * 2, charges)
        apart = advance(state, REGIMES["R2"]).positions[0, :, 0].diff().item() - 0.2
        assert apart * sign > 0


def test_people_reach_their_goals_at_about_their_pace():
    motion = world("R3", num_objects=[3, 3]).sample_motion(120)
    goals = motion.hidden["goals"]
    changed = (goals[:, 1:] != goals[:, :-1]).any(-1)
    assert 0.01 < changed.float().mean() < 0.05
    near = (goals[:, :-1] - motion.positions[:, 1:]).norm(dim=-1)
    assert near[changed].max() < 0.1 <= near[~changed].min()
    assert 0.3 < motion.velocities.norm(dim=-1).mean() < 0.6 < 0.9


def test_the_open_world_exchanges_its_discs_and_never_uses_a_row_twice():
    motion = world("R4", 32, num_objects=[5, 5], max_rows=14).sample_motion(100)
    present, change = motion.present, motion.present[:, 1:].int() - motion.present[:, :-1].int()
    assert present.shape[2] == 14
    assert ((change == 1).sum(1) + present[:, 0].int() <= 1).all()
    assert (change == 1).sum() > 100 and (change == -1).sum() > 100
    assert present.sum(2).max() == 5 and 4 < present.sum(2).float().mean() < 5
    come = motion.positions[:, 1:][change == 1]
    edge = torch.minimum(come, 1 - come).amin(-1)
    assert ((edge > -0.051) & (edge < 0)).all()
    centre = ((motion.positions >= 0) & (motion.positions <= 1)).all(-1)
    assert torch.equal(motion.visible, present & centre)
    distance = (motion.positions.unsqueeze(3) - motion.positions.unsqueeze(2)).norm(dim=-1)
    pairs = present.unsqueeze(3) & present.unsqueeze(2) & ~torch.eye(14, dtype=torch.bool)
    assert distance[pairs].min() > 0.1 - 1e-6


def test_a_moving_camera_shifts_all_discs_alike():
    source = world("R5", 64, num_objects=[5, 5])
    motion = source.sample_motion(60)
    camera = motion.hidden["camera"][:, :, 0]
    shift = camera.diff(dim=1)
    assert shift.std().item() == pytest.approx(0.01, rel=0.15)
    again = (shift[:, 1:] * shift[:, :-1]).mean() / shift.square().mean()
    assert again.item() == pytest.approx(0.9, abs=0.05)
    fixed = motion.positions + camera.unsqueeze(2)
    assert fixed.min() > 0.05 - 1e-5 and fixed.max() < 0.95 + 1e-5
    outside = ((motion.positions < 0) | (motion.positions > 1)).any(-1)
    assert motion.present.all() and outside.any() and torch.equal(motion.visible, ~outside)
    places = source.continue_from(motion.positions[:, 9], motion.velocities[:, 9], motion, 9, 10)
    error = places - motion.positions[:, 10:20]
    assert (error - error.mean(2, keepdim=True)).abs().max() < 1e-4
    assert error[:, 0].abs().max() < 1e-5 < 0.01 < error[:, -1].abs().max()


def test_discs_more_than_half_behind_bars_are_invisible():
    motion = world("R1o", 64, num_objects=[5, 5]).sample_motion(30)
    bars = motion.hidden["bars"].unsqueeze(2)
    assert torch.allclose(bars[..., 1] - bars[..., 0], torch.tensor(0.12))
    assert ((bars >= 0) & (bars <= 1)).all() and (bars[..., 0, 1] < bars[..., 1, 0]).all()
    radii = motion.sizes[..., 0] / 2
    assert 0.035 <= radii.min() < 0.04 and 0.06 < radii.max() <= 0.065
    x = motion.positions[..., :1]
    # A disc is narrower than a bar or little wider: its centre says it but close to an edge.
    clear = (x.unsqueeze(-1) - bars).abs().flatten(-2).amin(-1) > 0.006
    behind = ((x > bars[..., 0]) & (x < bars[..., 1])).any(-1)
    assert torch.equal(motion.visible[clear], ~behind[clear])
    assert clear.float().mean() > 0.9 and 0.15 < behind.float().mean() < 0.4


def test_a_disc_more_than_half_behind_another_is_invisible():
    motion = world("R0", 64, num_objects=[5, 5]).sample_motion(60)
    distance = (motion.positions.unsqueeze(3) - motion.positions.unsqueeze(2)).norm(dim=-1)
    front = distance.masked_fill(~torch.ones(5, 5).triu(1).bool(), math.inf).amin(-1)
    assert torch.equal(motion.visible, front > 0.0404)
    assert not motion.visible.all() and motion.visible[:, :, -1].all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"regime": "R9"}, "one of R0, R1"),
        ({"num_objects": [4, 3]}, "low <= high"),
        ({"num_objects": [1, 60]}, "at most 19 discs find room in R1"),
        ({"speed_diameters": [0.2, 0.1]}, "speed_diameters"),
        ({"rho": 1.5}, "from 0 to 1"),
        ({"regime": "R4", "max_rows": 3}, "at least the 5"),
    ],
)
def test_a_bad_setting_says_what_is_wrong(config, message):
    with pytest.raises(ConfigurationError, match=message):
        create_world("discs", config, 1, 0)


def test_one_disc_alone_is_a_world():
    for name in REGIMES:
        motion = Discs(DiscsConfig(regime=name, num_objects=(1, 1)), 4, 0).sample_motion(10)
        assert motion.present.any(2).all() and motion.positions.isfinite().all()
