# SPDX-License-Identifier: Apache-2.0
"""`discs`: circles in a box that bounce, attract, repel, avoid one another, come and go.

The world of the blackout benchmark (regimes R0-R5) and of MOHART's simulations (D1-D3). Positions
in box widths, the view is [0, 1] x [0, 1]; 30 frames per second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from oc_perception.worlds.disc_physics import FRAME_S, REGIMES, State, advance, move_camera
from oc_perception.worlds.disc_pictures import DiscMotion, hidden_share, paint, random_looks
from oc_perception.worlds.scenes import Scenes, World

_ARRIVALS = 0.2  # probability that a disc enters in a frame, while some are missing
_GOAL_REACHED = 0.1  # widths
_BAR_WIDTH = 0.12
_MOST_AREA = 0.15  # of the box that discs may cover, so that random places can be found


@dataclass(frozen=True)
class DiscsConfig:
    """`speed_diameters`: range per frame; `rho`: probability per frame that all charges are drawn
    anew. None takes the regime's own. `max_rows`: in R4, how many discs one sequence can see.
    Without `textured` the background is black, as it is once what stands still is taken away.
    """

    regime: str = "R1"
    num_objects: tuple[int, int] = (3, 5)
    speed_diameters: tuple[float, float] | None = None
    rho: float | None = None
    max_rows: int = 16
    unique_colours: bool = True
    textured: bool = True

    def __post_init__(self) -> None:
        if self.regime not in REGIMES:
            raise ValueError(f"regime must be one of {', '.join(REGIMES)}, not {self.regime!r}")
        low, high = self.num_objects
        if not 0 <= low <= high or high < 1:
            raise ValueError(f"num_objects must be 0 <= low <= high, not {self.num_objects}")
        most = int(_MOST_AREA / (math.pi * REGIMES[self.regime].radii[1] ** 2))
        if high > most:
            raise ValueError(f"at most {most} discs find room in {self.regime}, not {high}")
        if self.speed_diameters is not None:
            slow, fast = self.speed_diameters
            if not 0 <= slow <= fast:
                raise ValueError(
                    f"speed_diameters must be 0 <= low <= high, not {self.speed_diameters}"
                )
        if self.rho is not None and not 0 <= self.rho <= 1:
            raise ValueError(f"rho is a probability, from 0 to 1, not {self.rho}")
        if REGIMES[self.regime].open_world and self.max_rows < high:
            raise ValueError(f"max_rows must be at least the {high} of num_objects")


class Discs(World):
    """Batches of independent sequences; all randomness from one seeded generator."""

    Config = DiscsConfig

    def _prepare(self) -> None:
        self.regime = REGIMES[self.config.regime]
        self.rho = self.regime.rho if self.config.rho is None else self.config.rho
        self.speeds = self.config.speed_diameters or self.regime.speed_diameters

    def sample_motion(self, num_frames: int) -> DiscMotion:
        """Fresh sequences. A charge shown in a frame acts until the next one."""
        state, camera, bars = self._start(), self._first_camera(), self._bars()
        wanted = state.present.sum(1)
        states, cameras = [state], [camera]
        for _ in range(num_frames - 1):
            state = self._meanwhile(advance(state, self.regime), wanted)
            noise = self._normal(self.batch_size, 2)
            camera = self._move_camera(camera, noise)
            states.append(state)
            cameras.append(camera)
        track = {
            f.name: torch.stack([getattr(s, f.name) for s in states], 1) for f in fields(State)
        }
        return self._observe(State(**track), torch.stack(cameras, 1), bars)

    def draw(self, motion: DiscMotion, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Images `(B, T, 3, H, W)` in [0, 1] and label maps `(B, T, H, W)` int64 of `motion`."""
        return paint(motion, self.regime, height, width)

    def sample(self, height: int, width: int) -> Scenes:
        """First frames of fresh sequences. Factors: `position`, `velocity`, `size`, `rgb`."""
        motion = self.sample_motion(1)
        images, labels = self.draw(motion, height, width)
        factors = {
            "position": motion.positions[:, 0],
            "velocity": motion.velocities[:, 0],
            "size": motion.sizes[:, 0],
            "rgb": motion.hidden["rgb"][:, 0],
        }
        return Scenes(images[:, 0], labels[:, 0], motion.present[:, 0], factors)

    def continue_from(
        self,
        positions: Tensor,
        velocities: Tensor,
        motion: DiscMotion,
        frame: int,
        num_frames: int,
    ) -> Tensor:
        """Where discs at `positions` with `velocities` `(B, N, 2)` in `frame` of `motion` will be
        in the `num_frames` after it, `(B, num_frames, N, 2)`, by the exact laws without chance:
        charges and goals stay, nobody enters, the camera's motion fades.
        """
        hidden = {name: value[:, frame].double() for name, value in motion.hidden.items()}
        camera = hidden["camera"]
        state = State(
            positions.double() + camera[:, :1],
            velocities.double() + camera[:, 1:],
            motion.sizes[:, frame, :, 0].double() / 2,
            motion.features[:, frame, :, 0].double(),
            motion.present[:, frame],
            motion.present[:, frame],
            hidden["goals"],
            hidden["pace"],
        )
        places = []
        for _ in range(num_frames):
            state = advance(state, self.regime)
            if self.regime.open_world:
                state = _leave(state)
            camera = self._move_camera(camera, torch.zeros_like(camera[:, 0]))
            places.append(state.positions - camera[:, :1])
        return torch.stack(places, 1).to(positions.dtype)

    def _start(self) -> State:
        (low, high), batch = self.config.num_objects, self.batch_size
        rows = self.config.max_rows if self.regime.open_world else high
        count = low + self._integers(high + 1 - low, batch, 1)
        present = torch.arange(rows, device=self.device) < count
        radii = self._uniform(*self.regime.radii, batch, rows).double()
        pace = self._speeds(batch, rows)
        return State(
            self._apart(radii, present),
            pace.unsqueeze(-1) * self._directions(batch, rows) * present.unsqueeze(-1),
            radii,
            self._charges(batch, rows),
            present,
            present,
            self._goals(batch, rows),
            pace,
        )

    def _apart(self, radii: Tensor, present: Tensor) -> Tensor:
        """Places in the box at least a tenth of a diameter apart, `(B, N, 2)`."""

        def draw() -> Tensor:
            spread = self._uniform(0, 1, *radii.shape, 2).double()
            return radii.unsqueeze(-1) + spread * (1 - 2 * radii).unsqueeze(-1)

        positions = draw()
        reach = 1.1 * (radii.unsqueeze(2) + radii.unsqueeze(1))
        pairs = (present.unsqueeze(2) & present.unsqueeze(1)).tril(-1)
        while True:
            gaps = (positions.unsqueeze(2) - positions.unsqueeze(1)).norm(dim=-1)
            clash = ((gaps < reach) & pairs).any(2, keepdim=True)
            if not clash.any():
                return positions
            first = clash & (clash.cumsum(1) == 1)  # those after it will see where it goes
            positions = torch.where(first, draw(), positions)

    def _meanwhile(self, state: State, wanted: Tensor) -> State:
        """What chance changes from one frame to the next."""
        if self.rho > 0:
            drawn = self._uniform(0, 1, self.batch_size, 1) < self.rho
            charges = self._charges(*state.charges.shape)
            state = replace(state, charges=torch.where(drawn, charges, state.charges))
        if self.regime.social:
            reached = (state.goals - state.positions).norm(dim=-1, keepdim=True) < _GOAL_REACHED
            goals = self._goals(*state.charges.shape)
            state = replace(state, goals=torch.where(reached, goals, state.goals))
        return self._enter(_leave(state), wanted) if self.regime.open_world else state

    def _enter(self, state: State, wanted: Tensor) -> State:
        """Let a disc in over a border where fewer than `wanted` `(B,)` are left and it is free."""
        batch, rows = state.radii.shape
        row = torch.arange(rows, device=self.device) == state.born.sum(1, keepdim=True)
        radius = (state.radii * row).sum(1, keepdim=True)
        side = self._integers(4, batch) * (math.pi / 2)
        along = self._uniform(0.1, 0.9, batch, 1).double() - 0.5
        inward = torch.stack([side.cos(), side.sin()], -1).double().round()
        place = 0.5 - (0.5 + radius) * inward + along * inward.flip(-1)
        turn = side + self._uniform(-math.pi / 3, math.pi / 3, batch)
        heading = torch.stack([turn.cos(), turn.sin()], -1).double()
        gaps = (state.positions - place.unsqueeze(1)).norm(dim=-1)
        free = ((gaps > state.radii + radius) | ~state.present).all(1)
        chance = self._uniform(0, 1, batch) < _ARRIVALS
        new = row & (free & chance & (state.present.sum(1) < wanted)).unsqueeze(1)
        velocity = state.pace.unsqueeze(-1) * heading.unsqueeze(1)
        return replace(
            state,
            positions=torch.where(new.unsqueeze(-1), place.unsqueeze(1), state.positions),
            velocities=torch.where(new.unsqueeze(-1), velocity, state.velocities),
            present=state.present | new,
            born=state.born | new,
        )

    def _first_camera(self) -> Tensor:
        place = torch.zeros(self.batch_size, 2, device=self.device, dtype=torch.float64)
        return torch.stack([place, self._normal(self.batch_size, 2) * self._camera_speed], 1)

    @property
    def _camera_speed(self) -> float:
        return self.regime.camera_sd / FRAME_S

    def _move_camera(self, camera: Tensor, noise: Tensor) -> Tensor:
        return move_camera(camera, self._camera_speed, FRAME_S, noise)

    def _bars(self) -> Tensor:
        """Left and right edges of upright occluders, side by side, `(B, bars, 2)`."""
        count = self.regime.occluders
        room = 1 / max(count, 1)
        start = torch.arange(count, device=self.device) * room
        left = start + self._uniform(0.05, room - _BAR_WIDTH - 0.01, self.batch_size, count)
        return torch.stack([left, left + _BAR_WIDTH], -1).double()

    def _observe(self, track: State, camera: Tensor, bars: Tensor) -> DiscMotion:
        """What is to be known of `track`, whose tensors are `(B, T, N, ...)`."""
        positions = (track.positions - camera[:, :, :1]).float()
        batch, frames, rows, _ = positions.shape
        bars = bars.unsqueeze(1).expand(-1, frames, -1, -1)
        unique = self.config.unique_colours
        looks = random_looks(self.regime, self._uniform, batch, rows, unique)
        if not self.config.textured:
            looks["texture"][..., 3:] = 0
        in_view = ((positions >= 0) & (positions <= 1)).all(-1)
        shown = hidden_share(track, bars, through=not self.regime.collide) <= 0.5
        hidden = {"goals": track.goals, "pace": track.pace, "camera": camera, "bars": bars}
        for name, look in looks.items():
            hidden[name] = look.unsqueeze(1).expand(-1, frames, -1, -1)
        return DiscMotion(
            positions=positions,
            velocities=(track.velocities - camera[:, :, 1:]).float(),
            sizes=(2 * track.radii).float().unsqueeze(-1).expand(-1, -1, -1, 2),
            features=track.charges.float().unsqueeze(-1),
            present=track.present,
            visible=track.present & in_view & shown,
            dt_s=FRAME_S,
            hidden={name: value.float() for name, value in hidden.items()},
        )

    def _charges(self, batch: int, rows: int) -> Tensor:
        """-1 or 1 `(B, N)` where charges matter, else 0."""
        if not self.regime.charged:
            return torch.zeros(batch, rows, device=self.device, dtype=torch.float64)
        return self._integers(2, batch, rows).double() * 2 - 1

    def _directions(self, *shape: int) -> Tensor:
        angle = self._uniform(0, 2 * math.pi, *shape).double()
        return torch.stack([angle.cos(), angle.sin()], -1)

    def _speeds(self, *shape: int) -> Tensor:
        """Widths per second; diameters are those of the middle of the range of sizes."""
        diameter = sum(self.regime.radii)
        return self._uniform(*self.speeds, *shape).double() * (diameter / FRAME_S)

    def _goals(self, *shape: int) -> Tensor:
        return self._uniform(0.1, 0.9, *shape, 2).double()

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device).double()


def _leave(state: State) -> State:
    """Discs wholly outside the box are gone."""
    reach = state.radii.unsqueeze(-1)
    outside = (state.positions < -reach) | (state.positions > 1 + reach)
    return replace(state, present=state.present & ~outside.any(-1))
