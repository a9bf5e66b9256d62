# SPDX-License-Identifier: Apache-2.0
"""`rooms`: shaded spheres, cubes and cylinders on a grey floor, after CLEVR.

Sizes, materials, colours, placement and jitter follow the public CLEVR generator (Johnson et
al., 2017); CLEVR6 has 3 to 6 objects, CLEVR10 has 3 to 10. Unlike there, objects are seen inside
the drawn window, not just somewhere in the picture that it is cut from, and cubes never touch.
World frame: z up, metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oc_perception.worlds.raycast import CUBE
from oc_perception.worlds.room_pictures import (
    COLOURS,
    LAMPS,
    MATERIALS,
    SHAPES,
    SIZES,
    Layout,
    render,
    visible_px,
)
from oc_perception.worlds.scenes import Scenes, World

_CANDIDATES = 256  # positions tried per object before its room is given up
_ROUNDS, _TRIES = 25, 8  # rooms that failed are drawn anew so often, in so many tries at a time


@dataclass(frozen=True)
class RoomsConfig:
    """What the rooms look like. `num_objects` `(3, 6)` is CLEVR6, `(3, 10)` CLEVR10.

    `min_gap_m` is kept between the surfaces of any two objects and `min_margin_m` between their
    centres along both horizontal axes of the camera; of each, `min_visible_px` pixels of a
    320 x 240 px picture can be seen inside the window.
    """

    num_objects: tuple[int, int] = (3, 6)
    radius_m: tuple[float, float] = (0.35, 0.7)
    extent_m: float = 3.0
    min_gap_m: float = 0.25
    min_margin_m: float = 0.4
    min_visible_px: int = 200
    camera_position_m: tuple[float, float, float] = (7.48, -6.51, 5.34)
    camera_jitter_m: float = 0.5
    lamp_jitter_m: float = 1.0
    supersampling: int = 2
    shadow_samples: int = 16

    def __post_init__(self) -> None:
        low, high = self.num_objects
        if not 0 <= low <= high or not 1 <= high <= 10:
            raise ValueError(f"num_objects must be 0 <= low <= high <= 10, not {self.num_objects}")
        small, large = self.radius_m
        if not 0 < small <= large <= 1:
            raise ValueError(f"radius_m must be 0 < small <= large <= 1, not {self.radius_m}")
        if self.extent_m <= 0:
            raise ValueError(f"extent_m must be positive, not {self.extent_m}")
        for name in ("min_gap_m", "min_margin_m", "min_visible_px"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("camera_jitter_m", "lamp_jitter_m"):
            if not 0 <= getattr(self, name) <= 2:
                raise ValueError(f"{name} must be in [0, 2], not {getattr(self, name)}")
        if self.camera_position_m[2] < 4 or math.hypot(*self.camera_position_m[:2]) < 4:
            raise ValueError(
                "camera_position_m must be 4 m or more above the floor and beside the origin, "
                f"not {self.camera_position_m}"
            )
        for name in ("supersampling", "shadow_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


class Rooms(World):
    """A batch of independent rooms; all randomness from one seeded generator. A seed gives the
    same rooms at every resolution.
    """

    Config = RoomsConfig

    def sample(self, height: int, width: int) -> Scenes:
        """Fresh rooms. Factors: `shape`, `size`, `material`, `colour` categories, `rgb` albedo,
        `position` (centre, as image fraction), `position_m` on the floor, `angle` rad.
        """
        layout = self.draw()
        images, labels = render(
            layout, height, width, self.config.supersampling, self.config.shadow_samples
        )
        spot = layout.view().project(layout.solids().centre)
        factors = {
            "shape": layout.shape,
            "size": layout.size,
            "material": layout.material,
            "colour": layout.colour,
            "rgb": layout.rgb,
            "position": spot * spot.new_tensor([1.0, width / height]) + 0.5,
            "position_m": layout.place,
            "angle": layout.yaw.unsqueeze(-1),
        }
        return Scenes(images, labels, layout.present, factors)

    def draw(self) -> Layout:
        """Rooms in which every object stands free and can be seen.

        A room that fails is drawn anew with as many objects; after many failures, what does not
        fit or cannot be seen is left out.
        """
        low, high = self.config.num_objects
        wanted = low + self._integers(high - low + 1, self.batch_size, 1)
        rows, layout = torch.arange(self.batch_size, device=self.device), None
        for _ in range(_ROUNDS):
            tries = min(_TRIES, -(-self.batch_size // len(rows)))
            fresh, good = self._propose(wanted[rows].repeat_interleave(tries, 0))
            best = good.view(-1, tries).float().argmax(1)
            best += tries * torch.arange(len(rows), device=self.device)
            fresh = fresh.of(best)
            layout = layout.merged(fresh, rows) if layout else fresh
            rows = rows[~good[best]]
            if not len(rows):
                break
        return layout

    def _propose(self, wanted: Tensor) -> tuple[Layout, Tensor]:
        """Rooms with those of `wanted` `(B, 1)` objects that fit and can be seen, and `(B,)` bool,
        whether all do.
        """
        config, batch, high = self.config, len(wanted), self.config.num_objects[1]
        shift = config.camera_jitter_m
        camera = torch.tensor(config.camera_position_m, device=self.device)
        camera = camera + self._uniform(-shift, shift, batch, 3)
        shift = config.lamp_jitter_m
        loose = torch.tensor([[float(lamp.jitters)] for lamp in LAMPS], device=self.device)
        lamps = torch.tensor([lamp.position for lamp in LAMPS], device=self.device)
        lamps = lamps + loose * self._uniform(-shift, shift, batch, len(LAMPS), 3)
        size = self._integers(len(SIZES), batch, high)
        radius = torch.tensor(config.radius_m, device=self.device)[size]
        layout = Layout(
            place=torch.zeros(batch, high, 2, device=self.device),
            yaw=self._uniform(0, 2 * torch.pi, batch, high),
            radius=radius,
            shape=self._integers(len(SHAPES), batch, high),
            size=size,
            material=self._integers(len(MATERIALS), batch, high),
            colour=self._integers(len(COLOURS), batch, high),
            present=torch.arange(high, device=self.device) < wanted,
            camera=camera,
            lamps=lamps,
        )
        place, free = self._places(layout)
        layout = replace(layout, place=place, present=layout.present & free)
        seen = layout.present & (visible_px(layout) >= config.min_visible_px)
        return replace(layout, present=seen), seen.sum(1) == wanted.squeeze(1)

    def _places(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Where objects stand `(B, N, 2)` m, and whether there was room for each `(B, N)`."""
        config, (batch, high) = self.config, layout.shape.shape
        extent = config.extent_m
        tried = self._uniform(-extent, extent, batch, high, _CANDIDATES, 2)
        solids = layout.solids()
        height = solids.half_height[:, :, None, None].expand(-1, -1, _CANDIDATES, 1)
        spot = layout.view().project(torch.cat([tried, height], -1).flatten(1, 2))
        in_view = (spot.abs() < 0.5).all(-1).view(batch, high, _CANDIDATES)

        # Cubes are wider than their radius, and must not reach into one another with the corners.
        radius, half = layout.radius, solids.reach / 1.5**0.5
        width = torch.where(layout.shape == CUBE, half, radius)
        apart = torch.maximum(
            radius.unsqueeze(2) + radius.unsqueeze(1) + config.min_gap_m,
            width.unsqueeze(2) + width.unsqueeze(1),
        )
        ahead = torch.nn.functional.normalize(
            tried.new_tensor(config.camera_position_m[:2]), dim=0
        )
        axes = torch.stack([ahead, torch.stack([-ahead[1], ahead[0]])])
        place, placed = torch.zeros_like(layout.place), torch.zeros_like(layout.present)
        for slot in range(high):
            offset = tried[:, slot, :, None] - place[:, None]  # (B, C, N, 2)
            clear = offset.square().sum(-1) >= apart[:, slot, None].square()
            margin = (offset @ axes.T).abs().amin(-1)
            clear &= margin >= config.min_margin_m
            free = in_view[:, slot] & (clear | ~placed[:, None]).all(2)
            chosen = free.float().argmax(1)[:, None, None].expand(-1, 1, 2)
            place = place.slice_scatter(tried[:, slot].gather(1, chosen), 1, slot, slot + 1)
            stands = free.any(1, keepdim=True) & layout.present[:, slot : slot + 1]
            placed = placed.slice_scatter(stands, 1, slot, slot + 1)
        return place, placed
