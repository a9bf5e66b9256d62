# SPDX-License-Identifier: Apache-2.0
"""`streets`: boxes of synthetic traffic, to stand in for recordings of streets. No pictures.

| scene | agents | camera |
|---|---|---|
| `street` | pedestrians with goals, behind poles and one another | at 3 m height |
| `road` | vehicles in 2 or 3 lanes, each following the one ahead | at 5 m height |
| `roundabout` | cyclists in a circle, pedestrians across | straight from above |

Pedestrians and cyclists obey a social force model (Helbing and Molnar 1995), vehicles the
intelligent driver model (Treiber et al. 2000). The simulation is in metres and seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from oc_perception.configuration import ConfigurationError
from oc_perception.types import Motion
from oc_perception.worlds.disc_physics import move_camera
from oc_perception.worlds.scenes import World

PEDESTRIAN, CYCLIST, VEHICLE = range(3)

_SUBSTEPS = 2
_HORIZON, _POLES = 0.12, 2
_POLE_SIZE_M = (0.3, 5.0)
_TOP_VIEW_M = 40.0  # what the camera above the roundabout sees
_RELAXATION_S, _PUSH_M_S2, _PUSH_RANGE_M = 0.5, 3.0, 0.3
_HEADWAY_S, _ACCELERATION, _BRAKING, _STANDSTILL_M, _LENGTH_M = 1.5, 1.0, 1.5, 2.0, 4.5
_LANE_M, _SPACING_M = 3.5, 20.0
_SHAKE = 0.06  # of a camera that moves, widths per second


@dataclass(frozen=True)
class _Scene:
    num_objects: tuple[int, int]
    area_m: tuple[tuple[float, float], tuple[float, float]]  # x and depth where agents walk
    aspect: float
    camera_height_m: float = 0.0


_SCENES = {
    "street": _Scene((3, 8), ((-6, 6), (7, 18)), 128 / 224, 3.0),
    "road": _Scene((5, 8), ((-6, 6), (9, 70)), 128 / 224, 5.0),
    "roundabout": _Scene((10, 14), ((-18, 18), (-18, 18)), 1.0),
}


@dataclass(frozen=True)
class StreetsConfig:
    """With `ego` the camera moves; `num_objects` None takes the scene's own."""

    scene: str = "street"
    num_objects: tuple[int, int] | None = None
    ego: bool = False
    dt_s: float = 1 / 15

    def __post_init__(self) -> None:
        if self.scene not in _SCENES:
            raise ValueError(f"scene must be one of {', '.join(_SCENES)}, not {self.scene!r}")
        low, high = self.num_objects or (1, 1)
        if not 0 <= low <= high or high < 1:
            raise ValueError(f"num_objects must be 0 <= low <= high, not {self.num_objects}")
        if not 0 < self.dt_s <= 0.2:
            raise ValueError(f"dt_s must be above 0 and at most 0.2 s, not {self.dt_s}")


class Streets(World):
    """Batches of independent sequences; the view is `[0, 1] x [0, aspect]`. Features are the
    class, one-hot: pedestrian, cyclist, vehicle.
    """

    Config = StreetsConfig

    def _prepare(self) -> None:
        self.scene = _SCENES[self.config.scene]
        self.aspect = self.scene.aspect

    def sample_motion(self, num_frames: int) -> Motion:
        """Fresh sequences of `config.dt_s`."""
        place, velocity, kind, present = self._start()
        camera = torch.zeros(self.batch_size, 2, 2, device=self.device)
        shake = _SHAKE * self.config.ego
        frames = []
        for _ in range(num_frames):
            frames.append((place, velocity, camera))
            for _ in range(_SUBSTEPS):
                step_s = self.config.dt_s / _SUBSTEPS
                velocity = velocity + self._acceleration(place, velocity, kind) * step_s
                if self.config.scene == "road":
                    velocity = velocity.clamp(min=0)  # nobody reverses
                place = place + velocity * step_s
            noise = torch.randn(self.batch_size, 2, generator=self.generator, device=self.device)
            camera = move_camera(camera, shake, self.config.dt_s, noise)
            self._choose_goals(place)
        place, velocity, camera = (torch.stack(parts, 1) for parts in zip(*frames, strict=True))
        return self._observe(place, velocity, kind, present, camera)

    def draw(self, motion: Motion, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Raises ConfigurationError: there is nothing to draw."""
        raise ConfigurationError(
            "streets has boxes but no pictures: choose a model of motion, or world: discs."
        )

    def sample(self, height: int, width: int) -> None:
        """Raises ConfigurationError, as `draw`."""
        self.draw(self.sample_motion(1), height, width)

    def _start(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Places and velocities `(B, N, 2)`, classes and presence `(B, N)`."""
        (low, high), batch = self.config.num_objects or self.scene.num_objects, self.batch_size
        index = torch.arange(high, device=self.device).expand(batch, -1)
        present = index < low + self._integers(high + 1 - low, batch, 1)
        self._shown = present
        if self.config.scene == "road":
            kind = torch.full_like(index, VEHICLE)
            lanes = 2 + self._integers(2, batch, 1)
            self._lane = index % lanes
            across = (self._lane - (lanes - 1) / 2) * _LANE_M
            along = index.div(lanes, rounding_mode="floor") * _SPACING_M - 15
            place = torch.stack([across, along + self._uniform(0, 12, batch, high)], -1)
            self._pace = self._uniform(7, 14, batch, high)
            velocity = torch.stack([torch.zeros_like(self._pace), self._pace], -1)
            return place, velocity, kind, present
        walking = (index % 2 == 0) | (self.config.scene == "street")
        kind = torch.where(walking, PEDESTRIAN, CYCLIST)
        self._pace = torch.where(
            walking, self._uniform(1.0, 1.6, batch, high), self._uniform(4, 6, batch, high)
        )
        self._ring = self._uniform(8, 12, batch, high)
        self._goals = self._spots(batch, high)
        place = self._spots(batch, high)
        angle = (index + self._uniform(0, 0.5, batch, high)) * (2 * math.pi / high)
        circle = self._ring.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)
        place = torch.where(walking.unsqueeze(-1), place, circle)
        return place, self._preferred(place, kind), kind, present

    def _spots(self, *shape: int) -> Tensor:
        (left, right), (near, far) = self.scene.area_m
        return torch.stack(
            [self._uniform(left, right, *shape), self._uniform(near, far, *shape)], -1
        )

    def _choose_goals(self, place: Tensor) -> None:
        if self.config.scene != "road":
            reached = (self._goals - place).norm(dim=-1, keepdim=True) < 1
            self._goals = torch.where(reached, self._spots(*place.shape[:2]), self._goals)

    def _preferred(self, place: Tensor, kind: Tensor) -> Tensor:
        """Velocities that pedestrians (to their goals) and cyclists (along their circles) would
        like.
        """
        way = self._goals - place
        radius = place.norm(dim=-1, keepdim=True).clamp(min=1)
        tangent = torch.stack([-place[..., 1], place[..., 0]], -1) / radius
        back = (self._ring.unsqueeze(-1) - radius) / 4 * place / radius
        way = torch.where((kind == CYCLIST).unsqueeze(-1), tangent + back, way)
        return self._pace.unsqueeze(-1) * way / way.norm(dim=-1, keepdim=True).clamp(min=0.1)

    def _acceleration(self, place: Tensor, velocity: Tensor, kind: Tensor) -> Tensor:
        if self.config.scene == "road":
            return self._follow(place[..., 1], velocity[..., 1])
        offset = place.unsqueeze(2) - place.unsqueeze(1)  # from j to i
        distance = offset.norm(dim=-1).clamp(min=0.05)
        reach = torch.where(kind == CYCLIST, 0.8, 0.3)
        near = (reach.unsqueeze(2) + reach.unsqueeze(1) - distance) / _PUSH_RANGE_M
        others = ~torch.eye(place.shape[1], dtype=torch.bool, device=place.device)
        push = _PUSH_M_S2 * near.clamp(max=1).exp() * (others & self._shown.unsqueeze(1))
        force = ((push / distance).unsqueeze(-1) * offset).sum(2)
        return (self._preferred(place, kind) - velocity) / _RELAXATION_S + force

    def _follow(self, along: Tensor, speed: Tensor) -> Tensor:
        """The intelligent driver model behind the next vehicle in the lane."""
        gap = along.unsqueeze(1) - along.unsqueeze(2)  # (B, N, N): from i ahead to j
        ahead = (gap > 0) & (self._lane.unsqueeze(1) == self._lane.unsqueeze(2))
        ahead &= self._shown.unsqueeze(1)
        gap, leader = torch.where(ahead, gap, torch.inf).min(2)
        closing = speed - torch.where(gap.isinf(), speed, speed.gather(1, leader))
        wish = speed * _HEADWAY_S + speed * closing / (2 * math.sqrt(_ACCELERATION * _BRAKING))
        ratio = (_STANDSTILL_M + wish.clamp(min=0)) / (gap - _LENGTH_M).clamp(min=0.1)
        push = _ACCELERATION * (1 - (speed / self._pace) ** 4 - ratio**2)
        return torch.stack([torch.zeros_like(push), push.clamp(min=-8)], -1)

    def _observe(
        self, place: Tensor, velocity: Tensor, kind: Tensor, present: Tensor, camera: Tensor
    ) -> Motion:
        """What the camera `(B, T, 2, 2)` sees of agents at `place` `(B, T, N, 2)`."""
        batch, frames, count, _ = place.shape
        sizes = place.new_tensor([[0.6, 1.75], [1.0, 1.0], [1.8, 1.5]])[kind]
        present = present.unsqueeze(1).expand(-1, frames, -1)
        nothing = torch.zeros(batch, frames, count, dtype=torch.bool, device=place.device)
        if not self.scene.camera_height_m:
            centre = place / _TOP_VIEW_M + 0.5
            drift = velocity / _TOP_VIEW_M
            box = torch.where((kind == CYCLIST), 1.8, 1.3)[:, None, :, None] / _TOP_VIEW_M
            box, hidden = box.expand(-1, frames, -1, 2), nothing
        else:
            depths = self.scene.area_m[1]
            if self.config.scene == "road":
                present = present & (place[..., 1] > depths[0]) & (place[..., 1] < depths[1])
            centre, drift, box, depth = self._project(place, velocity, sizes.unsqueeze(1))
            hidden = nothing
            poles = self._spots(batch, _POLES).unsqueeze(1).expand(-1, frames, -1, -1)
            pole = self._project(poles, 0 * poles, place.new_tensor(_POLE_SIZE_M))
            in_front = torch.full_like(poles[..., 0], self.config.scene == "street").bool()
            hidden = _covered(
                centre, box, depth,
                torch.cat([centre, pole[0]], 2), torch.cat([box, pole[2]], 2),
                torch.cat([depth, pole[3]], 2), torch.cat([present, in_front], 2),
            )  # fmt: skip
        centre, drift = centre - camera[:, :, :1], drift - camera[:, :, 1:]
        in_view = ((centre >= 0) & (centre <= centre.new_tensor([1, self.aspect]))).all(-1)
        features = torch.nn.functional.one_hot(kind, 3).float()
        features = features.unsqueeze(1).expand(-1, frames, -1, -1)
        visible = present & in_view & ~hidden
        return Motion(centre, drift, box, features, present, visible, self.config.dt_s)

    def _project(
        self, place: Tensor, velocity: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centres, their velocities and sizes of the boxes of upright things, and their depths,
        for a focal length of one image width.
        """
        depth = place[..., 1].clamp(min=2)
        scale = 1 / depth
        change = -scale / depth * velocity[..., 1]
        down = self.scene.camera_height_m - sizes[..., 1] / 2
        centre = torch.stack([0.5 + scale * place[..., 0], _HORIZON + scale * down], -1)
        drift = torch.stack([change * place[..., 0] + scale * velocity[..., 0], change * down], -1)
        return centre, drift, scale.unsqueeze(-1) * sizes, depth


def _covered(
    centre: Tensor,
    box: Tensor,
    depth: Tensor,
    centres: Tensor,
    boxes: Tensor,
    depths: Tensor,
    there: Tensor,
) -> Tensor:
    """Whether a single nearer box covers more than half of a box, `(B, T, N)`."""
    low = torch.maximum((centre - box / 2).unsqueeze(3), (centres - boxes / 2).unsqueeze(2))
    high = torch.minimum((centre + box / 2).unsqueeze(3), (centres + boxes / 2).unsqueeze(2))
    share = (high - low).clamp(min=0).prod(-1) / box.prod(-1).unsqueeze(-1)
    nearer = (depths.unsqueeze(2) < depth.unsqueeze(3)) & there.unsqueeze(2)
    return ((share > 0.5) & nearer).any(-1)
