# SPDX-License-Identifier: Apache-2.0
"""How the world `rooms` looks: its camera, lamps and materials, and pictures of it.

Lamps, floor and finish were fitted to published CLEVR pictures (Johnson et al., 2017): over bare
floor the fit leaves a root mean square error of 0.02, within rubber objects of 0.025 and within
metal ones of 0.05 of the range of an image. What is drawn is the square window that
object-discovery papers cut out of the 320 x 240 px pictures (rows 29 to 220, columns 64 to 255),
at any resolution.

Two facts of the published pictures that the generator's source does not suggest: a cube is as
high as a cylinder of the same size, and every camera looks at the origin.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

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

_WINDOW_PX = 192
_FOCAL_WIDTHS = 350 / _WINDOW_PX  # CLEVR: 35 mm on a sensor of 32 mm, 320 px wide
_AXIS = (0.0, -5 / _WINDOW_PX)  # the optical axis meets row 120 of the frame, the window's is 125
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
class Lamp:
    """A round lamp: `position` m, `aim` (emits into the half space ahead), radiant `power` by
    channel, `radius` m.
    """

    position: tuple[float, float, float]
    aim: tuple[float, float, float]
    power: tuple[float, float, float]
    radius: float
    jitters: bool = True


_SUN_M = 60.0
LAMPS = (
    Lamp((-1.17, 2.65, 5.82), (0.02, -0.63, -0.78), (3.33, 3.31, 3.30), 0.55),  # back
    Lamp((6.45, -2.91, 4.26), (-0.66, 0.33, -0.68), (5.79, 5.35, 4.61), 0.28),  # key
    Lamp((-4.67, -4.01, 3.01), (0.66, 0.51, -0.55), (1.26, 1.38, 1.75), 0.28),  # fill
    Lamp(
        (0.414 * _SUN_M, -0.195 * _SUN_M, 0.889 * _SUN_M),
        (-0.414, 0.195, -0.889),
        (0.1 * _SUN_M**2,) * 3,
        0.1 * _SUN_M,
        jitters=False,
    ),
)


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
    solids, camera = layout.solids(), layout.view()
    batch, pixels = len(layout.camera), height * width
    origin = layout.camera.unsqueeze(2)
    labels = _owner(solids, origin, camera.rays(height, width))[1] + 1
    fine = torch.zeros_like(labels, dtype=torch.bool)
    if supersampling > 1:
        touched = (labels > 0).float().view(batch, height, width)
        fine = torch.nn.functional.max_pool2d(touched, 3, 1, 1).flatten(1) > 0
    image = torch.zeros(batch, 3, pixels + 1, device=labels.device)  # the last is for padding
    for mask, factor in ((~fine, 1), (fine, supersampling)):
        pixel = _packed(mask)
        if not pixel.shape[1]:
            continue
        inside = pixel.clamp(max=pixels - 1)[..., None, None]
        step = torch.arange(factor, device=pixel.device)
        row = inside // width * factor + step[:, None]
        column = inside % width * factor + step
        ray = (row * (width * factor) + column).flatten(1)
        direction = _pick(camera.rays(height * factor, width * factor), ray)
        samples = -(-shadow_samples // factor**2)
        colour = _radiance(layout, origin, direction, _spin(row, column).flatten(1), samples)
        colour = colour.clamp(max=1).unflatten(2, (-1, factor**2)).mean(3)
        image.scatter_(2, pixel.unsqueeze(1).expand(-1, 3, -1), colour)
    image = _srgb(image[..., :pixels].clamp(0, 1)).view(batch, 3, height, width)
    return image, labels.view(batch, height, width)


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
    source = lamp.unsqueeze(2)
    near = passing(solids, source, point - source, margin, segments=True) & lit.unsqueeze(1)
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
    for number, lamp in enumerate(LAMPS):
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
    spin = spin.gather(1, inside)
    room = _radiance(layout, start, bounce, spin, _MIRRORED_SAMPLES, mirrored=True)
    colour = torch.nn.functional.pad(colour, (0, 1))
    room = _MIRROR * tint * room
    return colour.scatter(2, ray.unsqueeze(1).expand(-1, 3, -1), room)[..., :-1]
