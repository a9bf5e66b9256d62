# SPDX-License-Identifier: Apache-2.0
"""`rooms`: shaded spheres, cubes and cylinders on a grey floor, after CLEVR
(Johnson et al., 2017).

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
    distances,
    intersect_near,
    passing,
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
_CANDIDATES = 256  # positions tried per object before its room is given up
_ROUNDS, _TRIES = 25, 8  # rooms that failed are drawn anew so often, in so many tries at a time
_CENSUS_PX = 64  # resolution at which visible pixels are counted

_FLOOR_ALBEDO = 0.75
_SKY = 0.105  # radiance from above the horizon
_BOUNCE = 0.19  # radiance from the floor below
_RUBBER_GLOSS = 0.02
_MIRROR = 0.88  # share of light that metal reflects, next to its colour
_SHARPNESS = (20.0, 300.0)  # Blinn-Phong exponent of rubber and metal
_BEVEL = 0.1  # of the radius: edges shade as if rounded
_MIRRORED_SAMPLES = 2  # shadow rays for what metal shows
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
        (0.1 * _SUN_M**2,) * 3,
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

    def of(self, rows: Tensor) -> Layout:
        """Some scenes only."""
        return Layout(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

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

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand(*shape, generator=self.generator, device=self.device)
        return low + (high - low) * draw

    def _integers(self, count: int, *shape: int) -> Tensor:
        return torch.randint(0, count, shape, generator=self.generator, device=self.device)

    def _propose(self, wanted: Tensor) -> tuple[Layout, Tensor]:
        """Rooms with those of `wanted` `(B, 1)` objects that fit and can be seen, and `(B,)` bool,
        whether all do.
        """
        config, batch, high = self.config, len(wanted), self.config.num_objects[1]
        shift = config.camera_jitter_m
        camera = torch.tensor(config.camera_position_m, device=self.device)
        camera = camera + self._uniform(-shift, shift, batch, 3)
        shift = config.lamp_jitter_m
        loose = torch.tensor([[float(lamp.jitters)] for lamp in _LAMPS], device=self.device)
        lamps = torch.tensor([lamp.position for lamp in _LAMPS], device=self.device)
        lamps = lamps + loose * self._uniform(-shift, shift, batch, len(_LAMPS), 3)
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


def _owner(solids: Objects, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and index `(B, P)` of the first object along each ray; inf and -1 where none."""
    distance, index = intersect_near(solids, origin, direction).min(1)
    return distance, torch.where(distance.isfinite(), index, -1)


def visible_px(layout: Layout) -> Tensor:
    """Pixels `(B, N)` of each object that can be seen in the window, counted in pixels of a
    320 x 240 px picture.
    """
    rays = layout.view().rays(_CENSUS_PX, _CENSUS_PX)
    labels = _owner(layout.solids(), layout.camera.unsqueeze(2), rays)[1] + 1
    count = labels.new_zeros(len(labels), layout.shape.shape[1] + 1)
    count = count.scatter_add(1, labels, torch.ones_like(labels))
    return count[:, 1:] * (_WINDOW_PX / _CENSUS_PX) ** 2


def render(
    layout: Layout, height: int, width: int, supersampling: int = 2, shadow_samples: int = 16
) -> tuple[Tensor, Tensor]:
    """Images `(B, 3, H, W)` in [0, 1] (sRGB) and labels `(B, H, W)` int64.

    One ray a pixel, through its centre, gives the label. Bare floor is smooth and its shadows are
    soft, so that ray is enough; pixels that touch an object get `supersampling` squared ones.
    """
    solids, camera, factor = layout.solids(), layout.view(), supersampling
    batch, pixels = len(layout.camera), height * width
    origin, direction = layout.camera.unsqueeze(2), camera.rays(height, width)
    labels = (_owner(solids, origin, direction)[1] + 1).view(batch, height, width)
    image = torch.zeros(batch, 3, pixels + 1, device=labels.device)  # the last is for padding

    fine = torch.zeros_like(labels, dtype=torch.bool).flatten(1)
    if factor > 1:
        fine = torch.nn.functional.max_pool2d((labels > 0).float(), 3, 1, 1).flatten(1) > 0
    pixel = _packed(~fine)
    inside = pixel.clamp(max=pixels - 1)
    spin = _spin(inside // width, inside % width)
    colour = _radiance(layout, origin, _pick(direction, inside), spin, shadow_samples)
    image.scatter_(2, pixel.unsqueeze(1).expand(-1, 3, -1), colour)
    if factor > 1:
        pixel = _packed(fine)
        inside = pixel.clamp(max=pixels - 1)
        step = torch.arange(factor, device=pixel.device)
        row = ((inside // width * factor)[..., None, None] + step[:, None]).expand(
            -1, -1, -1, factor
        )
        column = (inside % width * factor)[..., None, None] + step
        direction = camera.rays(height * factor, width * factor)
        direction = _pick(direction, (row * width * factor + column).flatten(1))
        samples = -(-shadow_samples // factor**2)
        colour = _radiance(layout, origin, direction, _spin(row, column).flatten(1), samples)
        colour = colour.clamp(max=1).unflatten(2, (-1, factor**2)).mean(3)
        image.scatter_(2, pixel.unsqueeze(1).expand(-1, 3, -1), colour)
    image = _srgb(image[..., :pixels].clamp(0, 1)).view(batch, 3, height, width)
    return image, labels


def _packed(mask: Tensor) -> Tensor:
    """Where `mask` `(B, P)` holds, row by row `(B, Q)` for the largest count Q; P pads."""
    position = mask.cumsum(1) - 1
    row, column = mask.nonzero().unbind(1)
    packed = column.new_full((len(mask), int(mask.sum(1).amax())), mask.shape[1])
    packed[row, position[row, column]] = column
    return packed


def _pick(rays: Tensor, index: Tensor) -> Tensor:
    """Columns `index` `(B, Q)` of `(B, 3, P)`."""
    return rays.gather(2, index.unsqueeze(1).expand(-1, 3, -1))


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
    """Dot product `(B, Q)` of `(B, 3, Q)` vectors."""
    (a, b, c), (x, y, z) = first.unbind(1), second.unbind(1)
    return (a * x).addcmul_(b, y).addcmul_(c, z)


def _unit(vector: Tensor) -> Tensor:
    return vector * _dot(vector, vector).clamp(min=1e-12).rsqrt().unsqueeze(1)


def _normals(solids: Objects, scene: Tensor, index: Tensor, point: Tensor) -> Tensor:
    """Outward normals `(K, 3)` at surface points `(K, 3)`, turning smoothly around edges."""
    place = scene, index
    shape, half = solids.shape[place], solids.half_height[place]
    cube, sphere = shape == CUBE, shape == SPHERE
    yaw = torch.where(cube, solids.yaw[place], 0.0)
    cosine, sine = yaw.cos(), yaw.sin()
    dx, dy, dz = (point - solids.centre[place]).unbind(1)
    x, y = cosine * dx + sine * dy, cosine * dy - sine * dx
    core = half * (1 - _BEVEL)  # the solid is rounded off around a core this large
    around = torch.hypot(x, y).clamp(min=1e-6)
    out = torch.where(sphere, 1.0, (around - core).clamp(min=0) / around)
    x = torch.where(cube, x - x.clamp(-core, core), x * out)
    y = torch.where(cube, y - y.clamp(-core, core), y * out)
    z = torch.where(sphere, dz, dz - dz.clamp(-core, core))
    normal = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], 1)
    return torch.nn.functional.normalize(normal, dim=1)


def _shadow(
    solids: Objects,
    owner: Tensor,
    lit: Tensor,
    point: Tensor,
    lamp: Tensor,
    radius: float,
    spin: Tensor,
    samples: int,
) -> Tensor:
    """Share `(B, Q)` of a round lamp at `lamp` `(B, 3)` that is hidden from points `(B, 3, Q)` on
    the objects `owner`, where they are `lit`. The disc is sampled on a sunflower spiral turned by
    `spin`.
    """
    # A solid blocks only below its top, where the cone from the point to the lamp is narrow.
    margin = radius * (solids.half_height + solids.reach) / lamp[:, 2:]
    ray = lamp.unsqueeze(2) - point
    near = passing(solids, point, ray, margin) & lit.unsqueeze(1)
    scene, index, ray = near.nonzero().unbind(1)
    other = (index != owner[scene, ray]).nonzero().squeeze(1)  # a convex solid hides no lit side
    scene, index, ray = scene[other], index[other], ray[other]
    start = point.transpose(0, 1)[:, scene, ray]
    middle = lamp.T[:, scene] - start
    level = torch.hypot(middle[0], middle[1]).clamp(min=1e-6)
    side = torch.stack([-middle[1], middle[0], torch.zeros_like(level)]) / level
    over = torch.linalg.cross(middle, side, dim=0) / middle.square().sum(0).sqrt()
    number = torch.arange(samples, device=point.device) + 0.5
    reach = radius * (number / samples).sqrt()
    turn = spin[scene, ray].unsqueeze(1) + number * 2.39996323
    direction = (side.unsqueeze(2) * (reach * turn.cos())).addcmul_(
        over.unsqueeze(2), reach * turn.sin()
    )
    direction += middle.unsqueeze(2)
    row, sample = (distances(solids, scene, index, start, direction) < 1).nonzero().unbind(1)
    dark = torch.zeros(*owner.shape, samples, dtype=torch.bool, device=point.device)
    dark[scene[row], ray[row], sample] = True
    return dark.float().mean(2)


def _radiance(
    layout: Layout,
    origin: Tensor,
    direction: Tensor,
    spin: Tensor,
    shadow_samples: int,
    mirrored: bool = False,
) -> Tensor:
    """Light `(B, 3, Q)`, linear, that comes in along rays from `origin` `(B, 3, Q or 1)`.

    Lambert and Blinn-Phong for each lamp, light from sky and floor by the slope of the surface;
    metal shows the room in its own colour, once.
    """
    solids = layout.solids()
    distance, owner = _owner(solids, origin, direction)
    fall = direction[:, 2]
    floor = torch.where(fall < -1e-6, -origin[:, 2] / fall, float("inf"))
    on_object = distance < floor
    distance = torch.minimum(distance, floor)
    sky = distance.isinf()
    point = origin + torch.where(sky, 1.0, distance).unsqueeze(1) * direction
    normal = (
        direction.new_tensor([0.0, 0.0, 1.0]).view(1, 3, 1).repeat(len(point), 1, fall.shape[1])
    )
    albedo = torch.full_like(direction, _FLOOR_ALBEDO)
    scene, ray = on_object.nonzero().unbind(1)
    place = scene, owner[scene, ray]
    facet = _normals(solids, *place, point[scene, :, ray])
    normal[scene, :, ray] = facet
    hue = solids.colour[place]
    albedo[scene, :, ray] = hue
    metal = solids.gloss[place]
    sharpness = torch.lerp(*metal.new_tensor(_SHARPNESS), metal)
    view = _unit(direction)
    look = view[scene, :, ray]
    start = point + _OFFSET_M * normal

    diffuse = torch.zeros_like(direction)
    shine = torch.zeros_like(facet)
    for number, lamp in enumerate(_LAMPS):
        place = layout.lamps[:, number]
        light = place.unsqueeze(2) - point
        square = _dot(light, light)
        light = light * square.rsqrt().unsqueeze(1)
        aim = light.new_tensor(lamp.aim).view(1, 3, 1)
        strength = (-aim * light).sum(1).clamp(min=0) / square
        arriving = strength * _dot(normal, light).clamp(min=0)
        lit = (arriving > 1e-5) & ~sky
        hidden = _shadow(solids, owner, lit, start, place, lamp.radius, spin, shadow_samples)
        arriving = arriving * (1 - hidden)
        power = light.new_tensor(lamp.power)
        diffuse.addcmul_(power.view(1, 3, 1), arriving.unsqueeze(1))
        half = torch.nn.functional.normalize(light[scene, :, ray] - look, dim=1)
        lobe = (facet * half).sum(1).clamp(min=0) ** sharpness * (sharpness + 8) / 8
        shine += power * (arriving[scene, ray] * lobe).unsqueeze(1)

    slope = 0.5 + 0.5 * normal[:, 2:]
    colour = albedo * (diffuse + _SKY * slope + _BOUNCE * (1 - slope))
    if not mirrored:
        gleam = torch.zeros_like(on_object)
        gleam[scene, ray] = metal > 0
        colour = _gilded(layout, colour, albedo, normal, view, start, gleam, spin)
        reflected = torch.where(metal.unsqueeze(1) > 0, _MIRROR * hue, _RUBBER_GLOSS)
        colour[scene, :, ray] += reflected * shine
    return torch.where(sky.unsqueeze(1), _SKY, colour)


def _gilded(
    layout: Layout,
    colour: Tensor,
    albedo: Tensor,
    normal: Tensor,
    view: Tensor,
    start: Tensor,
    metal: Tensor,
    spin: Tensor,
) -> Tensor:
    """`colour` `(B, 3, Q)` with the mirrored room, tinted, where surfaces are of `metal`."""
    ray = _packed(metal)
    if not ray.shape[1]:
        return colour
    inside = ray.clamp(max=metal.shape[1] - 1)
    normal, view, start, tint = (_pick(t, inside) for t in (normal, view, start, albedo))
    bounce = view - 2 * _dot(view, normal).unsqueeze(1) * normal
    room = (
        _MIRROR * tint * _radiance(layout, start, bounce, spin, _MIRRORED_SAMPLES, mirrored=True)
    )
    colour = torch.nn.functional.pad(colour, (0, 1))
    return colour.scatter(2, ray.unsqueeze(1).expand(-1, 3, -1), room)[..., :-1]
