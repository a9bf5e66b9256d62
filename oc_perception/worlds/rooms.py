# SPDX-License-Identifier: Apache-2.0
"""`rooms`: shaded spheres, cubes and cylinders on a grey floor, as in CLEVR (Johnson et al., 2017).

Placement, materials, colours and camera follow the public CLEVR generator; lamps, floor and
finish were fitted to published CLEVR pictures. What is drawn is the square window that
object-discovery papers cut out of the 320 x 240 px pictures (rows 29 to 220, columns 64 to 255),
at any resolution. CLEVR6 has 3 to 6 objects, CLEVR10 has 3 to 10. World frame: z up, metres.

Two facts of the published pictures that the generator's source does not suggest: a cube is as
high as a cylinder of the same size, and every camera looks at the origin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from oc_perception.worlds.raycast import (
    CUBE,
    SPHERE,
    Camera,
    Objects,
    candidates,
    distances,
    nearest,
)
from oc_perception.worlds.scenes import Scenes

SHAPES = ("sphere", "cube", "cylinder")
SIZES = ("small", "large")
MATERIALS = ("rubber", "metal")
COLOURS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
PALETTE = (
    (87, 87, 87),
    (173, 35, 35),
    (42, 75, 215),
    (29, 105, 20),
    (129, 74, 25),
    (129, 38, 192),
    (41, 208, 208),
    (255, 238, 51),
)
"""Albedo of each colour times 255. It is linear light, so pictures look paler."""

_FRAME_WIDTH_PX, _WINDOW_PX = 320, 192
_FOCAL_WIDTHS = 350 / _WINDOW_PX
_AXIS = (0.0, -5 / _WINDOW_PX)  # the optical axis meets row 120 of the frame, the window's is 125
_CANDIDATES = 32  # positions tried per object before its scene is drawn anew
_ROUNDS = 40  # scenes drawn anew before what does not fit or cannot be seen is left out
_CENSUS_PX = 64  # resolution at which visible pixels are counted

_FLOOR_ALBEDO = 0.75
_SKY = 0.105  # radiance from above the horizon
_BEVEL = 0.12  # of the radius: edges shade as if rounded
_OFFSET_M = 1e-3  # lifts shadow and mirror rays off the surface they start on


@dataclass(frozen=True)
class _Lamp:
    """A round lamp: `position` m, `aim` (emits into the half space ahead), radiant `power` by
    channel, `radius` m."""

    position: tuple[float, float, float]
    aim: tuple[float, float, float]
    power: tuple[float, float, float]
    radius: float
    jitters: bool = True


_SUN_M = 60.0
_LAMPS = (
    _Lamp((-1.17, 2.65, 5.82), (0.02, -0.63, -0.78), (3.33, 3.31, 3.30), 0.55),  # back
    _Lamp((6.45, -2.91, 4.26), (-0.66, 0.33, -0.68), (5.79, 5.35, 4.61), 0.28),  # key
    _Lamp((-4.67, -4.01, 3.01), (0.66, 0.51, -0.55), (1.26, 1.38, 1.75), 0.28),  # fill
    _Lamp(
        (0.414 * _SUN_M, -0.195 * _SUN_M, 0.889 * _SUN_M),
        (-0.414, 0.195, -0.889),
        (0.09 * _SUN_M**2,) * 3,
        0.1 * _SUN_M,
        jitters=False,
    ),
)


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
        for name in ("min_gap_m", "min_margin_m", "min_visible_px", "lamp_jitter_m"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.camera_jitter_m <= 2:
            raise ValueError(f"camera_jitter_m must be in [0, 2], not {self.camera_jitter_m}")
        if self.camera_position_m[2] < 4 or math.hypot(*self.camera_position_m[:2]) < 4:
            raise ValueError(
                "camera_position_m must be 4 m or more above the floor and beside the origin, "
                f"not {self.camera_position_m}"
            )
        for name in ("supersampling", "shadow_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Layout:
    """What stands where: all that a picture depends on. Categories index `SHAPES`, `SIZES`,
    `MATERIALS`, `COLOURS`.

    `place` `(B, N, 2)` m, `yaw` rad, `radius` m, `shape`, `size`, `material`, `colour` int64 and
    `present` bool `(B, N)`; `camera` `(B, 3)` and `lamps` `(B, L, 3)` positions in m.
    """

    place: Tensor
    yaw: Tensor
    radius: Tensor
    shape: Tensor
    size: Tensor
    material: Tensor
    colour: Tensor
    present: Tensor
    camera: Tensor
    lamps: Tensor

    @property
    def rgb(self) -> Tensor:
        """Albedo `(B, N, 3)`, linear light."""
        return torch.tensor(PALETTE, device=self.colour.device)[self.colour] / 255

    def solids(self) -> Objects:
        """The objects as the ray-caster wants them; its cubes have half edge radius / sqrt(2)."""
        cube = self.shape == CUBE
        return Objects(
            position=self.place,
            yaw=self.yaw,
            radius=torch.where(cube, self.radius * 2**0.5, self.radius),
            shape=self.shape,
            colour=self.rgb,
            gloss=self.material.float(),
            present=self.present,
        )

    def view(self) -> Camera:
        """The camera of the window, looking at the origin."""
        return Camera(self.camera, torch.zeros_like(self.camera), _FOCAL_WIDTHS, _AXIS)

    def merged(self, other: Layout, rows: Tensor) -> Layout:
        """This with its scenes `rows` replaced by those of `other`."""
        return Layout(
            **{
                f.name: getattr(self, f.name).index_copy(0, rows, getattr(other, f.name))
                for f in fields(self)
            }
        )


class Rooms:
    """A batch of independent rooms; all randomness from one seeded generator. A seed gives the
    same rooms at every resolution.
    """

    def __init__(
        self,
        config: RoomsConfig = RoomsConfig(),
        batch_size: int = 1,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.config = config
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

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

        A room that fails is drawn anew; after many failures, what does not fit or cannot be seen
        is left out of it.
        """
        layout, fits = self._propose(self.batch_size)
        hidden = layout.present & (visible_px(layout) < self.config.min_visible_px)
        bad = ~fits | hidden.any(1)
        for _ in range(_ROUNDS):
            rows = bad.nonzero().squeeze(1)
            if not len(rows):
                return layout
            fresh, fits = self._propose(len(rows))
            lost = fresh.present & (visible_px(fresh) < self.config.min_visible_px)
            layout = layout.merged(fresh, rows)
            hidden = hidden.index_copy(0, rows, lost)
            bad = bad.index_copy(0, rows, ~fits | lost.any(1))
        return replace(layout, present=layout.present & ~hidden)

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand(*shape, generator=self.generator, device=self.device)
        return low + (high - low) * draw

    def _integers(self, count: int, *shape: int) -> Tensor:
        return torch.randint(0, count, shape, generator=self.generator, device=self.device)

    def _propose(self, batch: int) -> tuple[Layout, Tensor]:
        """Rooms with as many objects as fit, and `(B,)` bool, whether all did."""
        config, (low, high) = self.config, self.config.num_objects
        shift = config.camera_jitter_m
        camera = torch.tensor(config.camera_position_m, device=self.device)
        camera = camera + self._uniform(-shift, shift, batch, 3)
        shift = config.lamp_jitter_m
        loose = torch.tensor([[float(lamp.jitters)] for lamp in _LAMPS], device=self.device)
        lamps = torch.tensor([lamp.position for lamp in _LAMPS], device=self.device)
        lamps = lamps + loose * self._uniform(-shift, shift, batch, len(_LAMPS), 3)
        wanted = low + self._integers(high - low + 1, batch, 1)
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
        return layout, (layout.present.sum(1, keepdim=True) == wanted).squeeze(1)

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


def _label(layout: Layout, height: int, width: int) -> Tensor:
    """`(B, H * W)` int64: 0 floor, n + 1 object n, at pixel centres."""
    direction = layout.view().rays(height, width)
    scene, origin, direction = _flat(layout, direction)
    _, owner = nearest(layout.solids(), scene, origin, direction)
    return (owner + 1).view(len(layout.camera), -1)


def _flat(layout: Layout, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rays `(B, 3, P)` from the cameras as scene `(R,)`, origin and direction `(3, R)`."""
    batch, _, pixels = direction.shape
    scene = torch.arange(batch, device=direction.device).repeat_interleave(pixels)
    return scene, layout.camera.T[:, scene], direction.transpose(0, 1).reshape(3, -1)


def visible_px(layout: Layout) -> Tensor:
    """Pixels `(B, N)` of each object that can be seen in the window, counted in pixels of a
    320 x 240 px picture.
    """
    labels = _label(layout, _CENSUS_PX, _CENSUS_PX)
    count = labels.new_zeros(len(labels), layout.shape.shape[1] + 1)
    count = count.scatter_add(1, labels, torch.ones_like(labels))
    return count[:, 1:] * (_WINDOW_PX / _CENSUS_PX) ** 2


def render(
    layout: Layout, height: int, width: int, supersampling: int = 2, shadow_samples: int = 16
) -> tuple[Tensor, Tensor]:
    """Images `(B, 3, H, W)` in [0, 1] (sRGB) and labels `(B, H, W)` int64.

    One ray a pixel, through its centre, gives the label. Bare floor is smooth, its shadows are
    soft: only pixels that touch an object are shaded by `supersampling` squared rays.
    """
    batch, camera, factor = len(layout.camera), layout.view(), supersampling
    labels = _label(layout, height, width).view(batch, height, width)
    touched = torch.nn.functional.max_pool2d((labels > 0).float(), 3, 1, 1).bool().flatten()
    image = torch.zeros(3, batch * height * width, device=labels.device)
    pixel = torch.arange(height * width, device=labels.device)
    row, column = pixel // width, pixel % width

    bare = (~touched if factor > 1 else torch.ones_like(touched)).nonzero().squeeze(1)
    scene, origin, direction = _flat(layout, camera.rays(height, width))
    spin = _spin(row, column).repeat(batch)
    rays = (scene[bare], origin[:, bare], direction[:, bare], spin[bare])
    image[:, bare] = _radiance(layout, *rays, shadow_samples)
    if factor > 1:
        fine = touched.nonzero().squeeze(1)
        scene, spot = fine // (height * width), fine % (height * width)
        direction = camera.rays(height * factor, width * factor)
        direction = direction.transpose(0, 1).reshape(3, -1)
        step = torch.arange(factor, device=fine.device)
        y = (row[spot] * factor)[:, None, None] + step[:, None]
        x = (column[spot] * factor)[:, None, None] + step
        inner = (scene[:, None, None] * height * factor + y) * width * factor + x
        scene = scene.repeat_interleave(factor**2)
        rays = (scene, layout.camera.T[:, scene], direction[:, inner.flatten()])
        colour = _radiance(layout, *rays, _spin(y, x).flatten(), shadow_samples)
        image[:, fine] = colour.clamp(max=1).view(3, -1, factor**2).mean(2)
    image = _srgb(image.clamp(0, 1)).view(3, batch, height, width).transpose(0, 1)
    return image.contiguous(), labels


def _srgb(linear: Tensor) -> Tensor:
    return torch.where(
        linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055
    )


def _spin(row: Tensor, column: Tensor) -> Tensor:
    """An angle in rad by pixel, far from its neighbours' (R2 sequence): turns bands of sampled
    shadows into fine grain.
    """
    return 2 * torch.pi * ((row * 0.7548776662 + column * 0.5698402910) % 1)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Dot product `(R,)` of `(3, R)` vectors."""
    return (first[0] * second[0]).addcmul_(first[1], second[1]).addcmul_(first[2], second[2])


def _unit(vector: Tensor) -> Tensor:
    return vector * _dot(vector, vector).clamp(min=1e-12).rsqrt()


def _normals(solids: Objects, scene: Tensor, index: Tensor, point: Tensor) -> Tensor:
    """Outward normals `(3, R)` at surface points `(3, R)`, turning smoothly around edges."""
    place = scene, index
    shape, yaw = solids.shape[place], solids.yaw[place]
    half = solids.half_height[place]
    cube, sphere = shape == CUBE, shape == SPHERE
    yaw = torch.where(cube, yaw, 0.0)
    cosine, sine = yaw.cos(), yaw.sin()
    dx, dy, dz = point - solids.centre[place].T
    x, y = cosine * dx + sine * dy, cosine * dy - sine * dx
    core = half * (1 - _BEVEL)  # the solid is rounded off around a core this large
    around = torch.hypot(x, y).clamp(min=1e-6)
    out = torch.where(sphere, 1.0, (around - core).clamp(min=0) / around)
    x = torch.where(cube, x - x.clamp(-core, core), x * out)
    y = torch.where(cube, y - y.clamp(-core, core), y * out)
    z = torch.where(sphere, dz, dz - dz.clamp(-core, core))
    return _unit(torch.stack([cosine * x - sine * y, sine * x + cosine * y, z]))


def _shadow(
    solids: Objects,
    scene: Tensor,
    owner: Tensor,
    point: Tensor,
    to_lamp: Tensor,
    radius: float,
    spin: Tensor,
    samples: int,
) -> Tensor:
    """Share `(R,)` of a round lamp seen from points `(3, R)`; `to_lamp` `(3, R)` leads to its
    middle. The disc is sampled on a sunflower spiral turned by `spin`.
    """
    ray, index = candidates(solids, scene, point, to_lamp, radius)
    other = (index != owner[ray]).nonzero().squeeze(1)  # a convex solid never shades its lit side
    ray, index = ray[other], index[other]
    number = torch.arange(samples, device=scene.device) + 0.5
    reach = radius * (number / samples).sqrt()
    turn = spin[ray].unsqueeze(1) + number * 2.39996323
    middle = to_lamp[:, ray]
    side = _unit(torch.stack([-middle[1], middle[0], torch.zeros_like(middle[0])]))
    over = _unit(torch.linalg.cross(middle, side, dim=0))
    ends = (
        middle.unsqueeze(2)
        + side.unsqueeze(2) * (reach * turn.cos())
        + over.unsqueeze(2) * (reach * turn.sin())
    )
    many = [t.repeat_interleave(samples, -1) for t in (scene[ray], index, point[:, ray])]
    blocked = distances(solids, *many, ends.flatten(1)) < 1
    dark = torch.zeros(len(scene), samples, dtype=torch.bool, device=scene.device)
    sample = torch.arange(samples, device=scene.device).repeat(len(ray))
    ray = ray.repeat_interleave(samples)
    hit = blocked.nonzero().squeeze(1)
    dark[ray[hit], sample[hit]] = True
    return 1 - dark.float().mean(1)


def _radiance(
    layout: Layout,
    scene: Tensor,
    origin: Tensor,
    direction: Tensor,
    spin: Tensor,
    shadow_samples: int,
    mirrored: bool = False,
) -> Tensor:
    """Light `(3, R)`, linear, that comes in along rays `(3, R)`.

    Lambert and Blinn-Phong for each lamp, light from sky and floor by the slope of the surface;
    metal shows the mirrored room in its own colour, once.
    """
    solids = layout.solids()
    distance, owner = nearest(solids, scene, origin, direction)
    floor = torch.where(direction[2] < -1e-6, -origin[2] / direction[2], float("inf"))
    on_object = distance < floor
    distance = torch.minimum(distance, floor)
    sky = distance.isinf()
    point = origin + torch.where(sky, 1.0, distance) * direction
    up = direction.new_tensor([0.0, 0.0, 1.0]).unsqueeze(1).expand_as(direction)
    normal, metal = up.clone(), torch.zeros_like(distance)
    albedo = torch.full_like(direction, _FLOOR_ALBEDO)
    hit = on_object.nonzero().squeeze(1)
    place = scene[hit], owner[hit]
    normal[:, hit] = _normals(solids, *place, point[:, hit])
    albedo[:, hit] = solids.colour[place].T
    metal[hit] = solids.gloss[place]
    view = _unit(direction)

    diffuse = torch.zeros_like(direction)
    shine = torch.zeros_like(direction)
    sharpness = 20 + 180 * metal
    for number, lamp in enumerate(_LAMPS):
        to_lamp = layout.lamps.permute(1, 2, 0)[number][:, scene] - point
        square = _dot(to_lamp, to_lamp)
        light = to_lamp * square.rsqrt()
        aim = light.new_tensor(lamp.aim).unsqueeze(1).expand_as(light)
        strength = _dot(light, -aim).clamp(min=0) / square
        facing = _dot(normal, light).clamp(min=0)
        lit = (strength * facing > 1e-5) & ~sky
        if mirrored:
            seen = lit.float()
        else:
            some = lit.nonzero().squeeze(1)
            start = point[:, some] + _OFFSET_M * normal[:, some]
            seen = torch.zeros_like(strength)
            seen[some] = _shadow(
                solids,
                scene[some],
                owner[some],
                start,
                to_lamp[:, some],
                lamp.radius,
                spin[some],
                shadow_samples,
            )
        arriving = strength * facing * seen
        power = light.new_tensor(lamp.power).unsqueeze(1)
        diffuse += power * arriving
        lobe = _dot(normal, _unit(light - view)).clamp(min=0) ** sharpness
        shine += power * (arriving * lobe * (sharpness + 8) / 8)

    slope = 0.5 + 0.5 * normal[2]
    ambient = _SKY * slope + 0.18 * (1 - slope)
    matt = albedo * (diffuse + ambient) + 0.03 * shine * on_object
    colour = matt
    if not mirrored:
        shiny = (metal > 0).nonzero().squeeze(1)
        bounce = view[:, shiny] - 2 * _dot(view, normal)[shiny] * normal[:, shiny]
        start = point[:, shiny] + _OFFSET_M * normal[:, shiny]
        room = _radiance(
            layout, scene[shiny], start, bounce, spin[shiny], shadow_samples, mirrored=True
        )
        colour[:, shiny] = albedo[:, shiny] * (room + shine[:, shiny])
    return torch.where(sky, _SKY, colour)
