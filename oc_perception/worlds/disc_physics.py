# SPDX-License-Identifier: Apache-2.0
"""Laws of motion of the `discs`: free flight with exact events, forces by velocity-Verlet.

Lengths in box widths, time in seconds. All functions are batched over sequences; each sequence
runs from event to event (a wall, a pair) at its own pace.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

FRAME_S = 1 / 30
_CAMERA_MEMORY, _CAMERA_PULL = 0.9, 0.01  # per frame; the pull keeps the camera near its place
_TOUCHING = 1e-12  # slower approaches than this (times a distance) are rounding, not collisions
_RELAXATION_S = 0.5  # time to take up the preferred velocity (Helbing and Molnar 1995)
_CROWD_ACCELERATION = 3.0  # of two people in touch, widths / s^2
_CROWD_RANGE = 0.05  # over which that decays by e, widths


@dataclass(frozen=True)
class Regime:
    """One set of laws. Forces act between all pairs with `strength / distance ** exponent`
    (widths per frame^2); with `charged`, like charges repel and unlike ones attract.
    """

    radii: tuple[float, float] = (0.05, 0.05)
    speed_diameters: tuple[float, float] = (0.2, 0.2)
    collide: bool = True
    walls: bool = True
    exponent: float = 1.0
    strength: float = 0.0
    charged: bool = False
    rho: float = 0.0
    damping: float = 1.0  # what one frame leaves of a velocity
    social: bool = False
    occluders: int = 0
    open_world: bool = False
    camera_sd: float = 0.0  # of the camera's velocity, widths per frame
    substeps: int = 1
    mohart: bool = False  # drawn as there

    @property
    def forced(self) -> bool:
        return self.social or self.strength > 0


_MOHART = {"radii": (0.06, 0.06), "speed_diameters": (0.125, 0.375), "substeps": 8, "mohart": True}
REGIMES = {
    "R0": Regime(collide=False),
    "R1": Regime(),
    "R1o": Regime(radii=(0.035, 0.065), occluders=2),
    # As strong as lets a Kalman filter with walls miss by 0.6 and 1.7 diameters after 10 and 20
    # frames.
    "R2": Regime(exponent=0.5, strength=0.00025, charged=True, substeps=3),
    "R3": Regime(social=True, substeps=4),
    "R4": Regime(open_world=True, walls=False),
    "R5": Regime(camera_sd=0.01),
    "D1": Regime(**_MOHART, strength=0.001),
    "D2": Regime(**_MOHART, exponent=0.5, strength=0.02, charged=True, rho=1.0, damping=0.8),
    "D3a": Regime(**_MOHART, strength=0.001),
    # A tenth of D2's force and no drag: with it, charges that stay would soon clot and rest.
    "D3b": Regime(**_MOHART, exponent=0.5, strength=0.002, charged=True),
    "D3c": Regime(**_MOHART, strength=0.001, camera_sd=0.02),
}
"""R0-R5: the blackout benchmark. D1, D2: the simulated domains of MOHART (Fuchs et al. 2019),
constants fitted to its stated baselines; D3: the same under blackouts.
"""


@dataclass(frozen=True)
class State:
    """`positions`, `velocities`, `goals` `(B, N, 2)`; `radii`, `charges`, `pace` (the preferred
    speed) `(B, N)`; `present`, `born` (present now or once) `(B, N)` bool. In float64.
    """

    positions: Tensor
    velocities: Tensor
    radii: Tensor
    charges: Tensor
    present: Tensor
    born: Tensor
    goals: Tensor
    pace: Tensor


def advance(state: State, regime: Regime) -> State:
    """The state one frame later; charges and goals stay."""
    if not regime.forced:
        return fly(state, FRAME_S, regime)
    step_s = FRAME_S / regime.substeps
    drag = regime.damping ** (0.5 / regime.substeps)
    acceleration = accelerations(state, regime)
    for _ in range(regime.substeps):
        velocities = (state.velocities + acceleration * (step_s / 2)) * drag
        state = fly(replace(state, velocities=velocities), step_s, regime, acceleration)
        acceleration = accelerations(state, regime)
        velocities = state.velocities * drag + acceleration * (step_s / 2)
        state = replace(state, velocities=velocities)
    return state


def accelerations(state: State, regime: Regime) -> Tensor:
    """Of all forces on the discs, `(B, N, 2)` widths / s^2."""
    offset = state.positions.unsqueeze(2) - state.positions.unsqueeze(1)  # from j to i
    distance = offset.norm(dim=-1).clamp(min=1e-9)
    touching = state.radii.unsqueeze(2) + state.radii.unsqueeze(1)
    if regime.social:
        size = _CROWD_ACCELERATION * ((touching - distance) / _CROWD_RANGE).exp()
    else:
        size = regime.strength / FRAME_S**2 / torch.maximum(distance, touching) ** regime.exponent
    if regime.charged:
        size = size * state.charges.unsqueeze(2) * state.charges.unsqueeze(1)
    others = ~torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
    size = size * (others & state.present.unsqueeze(1))
    total = (size / distance).unsqueeze(-1) * offset
    return total.sum(2) + (_intentions(state) if regime.social else 0)


def _intentions(state: State) -> Tensor:
    """What drives a pedestrian: the preferred velocity, and distance to the walls."""
    way = state.goals - state.positions
    preferred = state.pace.unsqueeze(-1) * way / way.norm(dim=-1, keepdim=True).clamp(min=0.02)
    reach = state.radii.unsqueeze(-1)
    low = ((reach - state.positions) / _CROWD_RANGE).exp()
    high = ((state.positions + reach - 1) / _CROWD_RANGE).exp()
    return (preferred - state.velocities) / _RELAXATION_S + _CROWD_ACCELERATION * (low - high)


def fly(
    state: State, duration_s: float, regime: Regime, acceleration: Tensor | None = None
) -> State:
    """Straight lines for `duration_s`, with elastic bounces at their exact times.

    Mass is proportional to area. Of a smooth `acceleration` `(B, N, 2)` half has been given as a
    kick before and half will be after: a bounce sees what has acted until then, without which the
    energy would be wrong to first order of the step.
    """
    positions, velocities = state.positions.clone(), state.velocities.clone()
    batch, count, _ = positions.shape
    first, second = torch.triu_indices(count, count, 1, device=positions.device)
    pairs = len(first) if regime.collide else 0
    rows = torch.arange(batch, device=positions.device)
    left = positions.new_full((batch,), duration_s)
    while len(rows):
        place, velocity, radii = positions[rows], velocities[rows], state.radii[rows]
        times = [place.new_full((len(rows), 1), torch.inf)]
        if regime.walls:
            times.append(_wall_times(place, velocity, radii))
        if pairs:
            both = (state.present[:, first] & state.present[:, second])[rows]
            pair = _pair_times(place, velocity, radii, first, second)
            times.append(torch.where(both, pair, torch.inf))
        soonest, event = torch.cat(times, 1).clamp(min=0).min(1)
        step = torch.minimum(soonest, left[rows])
        positions[rows] = place + velocity * step[:, None, None]
        hit = soonest < left[rows]
        left[rows] -= step
        rows, event = rows[hit], event[hit] - 1
        late = torch.zeros_like(velocities[rows])  # velocity at the bounce minus that of the line
        if acceleration is not None:
            late = acceleration[rows] * (duration_s / 2 - left[rows])[:, None, None]
        if regime.walls:
            wall = torch.arange(2 * count, device=event.device) == event.unsqueeze(1)
            _reflect(velocities, rows, wall.view(-1, count, 2), late)
            event = event - 2 * count
        if pairs:
            chosen = event >= 0
            event, rows_hit, late = event[chosen], rows[chosen], late[chosen]
            _collide(
                positions, velocities, state.radii, rows_hit, first[event], second[event], late
            )
    return replace(state, positions=positions, velocities=velocities)


def _wall_times(place: Tensor, velocity: Tensor, radii: Tensor) -> Tensor:
    """Until each disc meets each wall it heads for, `(B, 2N)`; negative where beyond it."""
    radii = radii.unsqueeze(-1)
    wall = torch.where(velocity > 0, 1 - radii, radii)
    return torch.where(velocity != 0, (wall - place) / velocity, torch.inf).flatten(1)


def _pair_times(
    place: Tensor, velocity: Tensor, radii: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """Until each pair touches, `(B, P)`, infinite if never; negative where it overlaps."""
    offset = place[:, first] - place[:, second]
    relative = velocity[:, first] - velocity[:, second]
    reach = radii[:, first] + radii[:, second]
    closing = -(offset * relative).sum(-1)
    gap = (offset * offset).sum(-1) - reach * reach
    root = closing * closing - (relative * relative).sum(-1) * gap
    time = gap / (closing + root.clamp(min=0).sqrt())  # the stable form of the smaller root
    return torch.where((closing > _TOUCHING) & (root > 0), time, torch.inf)


def _reflect(velocities: Tensor, rows: Tensor, wall: Tensor, late: Tensor) -> None:
    """Turn the components of velocity `wall` `(b, N, 2)` bool of `rows` round, in place."""
    before = velocities[rows]
    after = -_away(before.abs(), late * before.sign()) * before.sign()
    velocities[rows] = torch.where(wall, after, before)


def _collide(
    positions: Tensor,
    velocities: Tensor,
    radii: Tensor,
    rows: Tensor,
    first: Tensor,
    second: Tensor,
    late: Tensor,
) -> None:
    """Exchange momentum between discs `first` and `second` `(b,)` of `rows`, in place."""
    b = torch.arange(len(rows), device=rows.device)
    normal = positions[rows, second] - positions[rows, first]
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    closing = ((velocities[rows, first] - velocities[rows, second]) * normal).sum(-1)
    later = ((late[b, first] - late[b, second]) * normal).sum(-1)
    impulse = (closing + _away(closing, later)).unsqueeze(-1) * normal
    mass, other = radii[rows, first] ** 2, radii[rows, second] ** 2
    share = (other / (mass + other)).unsqueeze(-1)
    velocities[rows, first] -= share * impulse
    velocities[rows, second] += (1 - share) * impulse


def _away(closing: Tensor, late: Tensor) -> Tensor:
    """The speed after a bounce at `closing` speed, both on the straight line, off the true one by
    `late`; without `late` where it would not lead away.
    """
    away = closing + 2 * late
    return torch.where(away > 0, away, closing)


def move_camera(camera: Tensor, speed_sd: float, frame_s: float, noise: Tensor) -> Tensor:
    """One frame of a shaking camera `(B, 2, 2)`, place and velocity: an AR(1) process of standard
    deviation `speed_sd`, drawn to 0; `noise` `(B, 2)` is standard normal.
    """
    place = camera[:, 0] + camera[:, 1] * frame_s
    velocity = _CAMERA_MEMORY * camera[:, 1] - _CAMERA_PULL / frame_s * place
    kick = (1 - _CAMERA_MEMORY**2) ** 0.5 * speed_sd
    return torch.stack([place, velocity + kick * noise], 1)
