# SPDX-License-Identifier: Apache-2.0
"""Batched analytic ray-caster: spheres, cubes and upright cylinders standing on a plane.

Everything is a tensor over `(B, N, P)` scenes, objects and pixels, so it runs wherever torch does
and needs no graphics stack. Shading: Lambert plus Blinn-Phong for one shadow-casting key light,
one shadowless fill light and an ambient term. World frame: z up, the plane is z = 0, metres.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

SPHERE, CUBE, CYLINDER = range(3)
_FAR = float("inf")
_SURFACE_OFFSET_M = 1e-4  # lifts shadow rays off the surface they start on


@dataclass(frozen=True)
class Objects:
    """`(B, N, ...)` solids. A cube has half edge `radius / sqrt(2)`, a cylinder height `2 *
    radius`.

    `position` `(B, N, 2)` footprint centre in m, `yaw` rad, `radius` m, `shape` one of SPHERE,
    CUBE, CYLINDER, `colour` `(B, N, 3)` in [0, 1], `gloss` 0 (rubber) to 1 (metal), `present`
    bool.
    """

    position: Tensor
    yaw: Tensor
    radius: Tensor
    shape: Tensor
    colour: Tensor
    gloss: Tensor
    present: Tensor

    @property
    def half_height(self) -> Tensor:
        """Height of the centre over the plane `(B, N)`, m."""
        return torch.where(self.shape == CUBE, self.radius * 0.5**0.5, self.radius)

    @property
    def centre(self) -> Tensor:
        """Centres `(B, N, 3)`, m."""
        return torch.cat([self.position, self.half_height.unsqueeze(-1)], -1)

    @property
    def reach(self) -> Tensor:
        """Radius `(B, N)` of the sphere around the centre that holds the solid, m."""
        ratio = self.radius.new_tensor([1.0, 1.5**0.5, 2**0.5])  # by shape
        return self.radius * ratio[self.shape]


@dataclass(frozen=True)
class Camera:
    """Pinhole camera. `position`, `target` `(B, 3)` m; `focal` in image widths; `centre` is where
    the optical axis meets the image, in widths from the image centre (x right, y down): not zero
    for a window cut out of a larger picture.
    """

    position: Tensor
    target: Tensor
    focal: float
    centre: tuple[float, float] = (0.0, 0.0)

    def axes(self) -> Tensor:
        """`(B, 3, 3)`: rows are the camera's x (right), y (down), z (forward) axes in the
        world.
        """
        forward = torch.nn.functional.normalize(self.target - self.position, dim=-1)
        up = forward.new_tensor([0.0, 0.0, 1.0]).expand_as(forward)
        right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
        return torch.stack([right, torch.linalg.cross(forward, right), forward], 1)

    def rays(self, height: int, width: int) -> Tensor:
        """`(B, 3, H * W)` directions with unit length along the optical axis, so that t is the
        depth.
        """
        axes = self.axes()
        v, u = torch.meshgrid(
            torch.arange(height, device=axes.device) - (height - 1) / 2,
            torch.arange(width, device=axes.device) - (width - 1) / 2,
            indexing="ij",
        )
        u, v = u - self.centre[0] * width, v - self.centre[1] * width
        focal_px = self.focal * width
        local = torch.stack([u / focal_px, v / focal_px, torch.ones_like(u)]).to(axes).flatten(1)
        return torch.einsum("bij,ip->bjp", axes, local)

    def project(self, points: Tensor) -> Tensor:
        """World points `(B, N, 3)` to `(B, N, 2)` in image widths from the image centre (x right,
        y down).
        """
        local = torch.einsum("bij,bnj->bni", self.axes(), points - self.position.unsqueeze(1))
        return self.focal * local[..., :2] / local[..., 2:] + local.new_tensor(self.centre)


@dataclass(frozen=True)
class Lighting:
    """`key`, `fill` `(B, 3)` light positions in m; `plane_colour` `(B, 3)`."""

    key: Tensor
    fill: Tensor
    plane_colour: Tensor
    ambient: float = 0.55


def _sphere(origin: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
    a = (direction * direction).sum(1)
    b = (origin * direction).sum(1)
    discriminant = b * b - a * ((origin * origin).sum(1) - radius**2)
    t = (-b - discriminant.clamp(min=0).sqrt()) / a
    return torch.where((discriminant > 0) & (t > 0), t, _FAR)


def _cube(origin: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
    half = (radius * 0.5**0.5).unsqueeze(1)
    inverse = 1 / torch.where(direction.abs() < 1e-9, 1e-9, direction)
    near, far = (-half - origin) * inverse, (half - origin) * inverse
    enter = torch.minimum(near, far).amax(1)
    leave = torch.maximum(near, far).amin(1)
    return torch.where((enter < leave) & (enter > 0), enter, _FAR)


def _cylinder(origin: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
    (ox, oy, oz), (dx, dy, dz) = origin.unbind(1), direction.unbind(1)
    a = (dx * dx + dy * dy).clamp(min=1e-12)
    b = ox * dx + oy * dy
    discriminant = b * b - a * (ox * ox + oy * oy - radius**2)
    root = discriminant.clamp(min=0).sqrt()
    inverse = 1 / torch.where(dz.abs() < 1e-9, 1e-9, dz)
    bottom, top = (-radius - oz) * inverse, (radius - oz) * inverse
    enter = torch.maximum((-b - root) / a, torch.minimum(bottom, top))
    leave = torch.minimum((-b + root) / a, torch.maximum(bottom, top))
    return torch.where((discriminant > 0) & (enter < leave) & (enter > 0), enter, _FAR)


_INTERSECT = {SPHERE: _sphere, CUBE: _cube, CYLINDER: _cylinder}


def _to_local(vector: Tensor, yaw: Tensor) -> Tensor:
    """Turn `(M, 3, P)` by minus yaw `(M, 1)` or `(M, P)` about z."""
    cosine, sine = yaw.cos(), yaw.sin()
    x, y, z = vector.unbind(1)
    return torch.stack([cosine * x + sine * y, cosine * y - sine * x, z], 1)


def intersect(objects: Objects, origin: Tensor, direction: Tensor) -> Tensor:
    """Distance `(B, N, P)` along rays from `origin` `(B, 3, P or 1)` to each object; inf where
    missed.

    Every object is tested by its own shape's formula only; absent objects cost nothing.
    """
    pixels = direction.shape[2]
    hits = direction.new_full((*objects.shape.shape, pixels), _FAR)
    centre = objects.centre
    for shape, formula in _INTERSECT.items():
        scene, index = (objects.present & (objects.shape == shape)).nonzero(as_tuple=True)
        if not len(scene):
            continue
        offset = origin[scene] - centre[scene, index].unsqueeze(-1)
        ray, radius = direction[scene], objects.radius[scene, index].unsqueeze(1)
        if shape == CUBE:
            yaw = objects.yaw[scene, index].unsqueeze(1)
            offset, ray = _to_local(offset, yaw), _to_local(ray, yaw)
        hits[scene, index] = formula(offset, ray, radius)
    return hits


def passing(
    objects: Objects,
    origin: Tensor,
    direction: Tensor,
    margin: Tensor | float = 0.0,
    segments: bool = False,
) -> Tensor:
    """Whether rays may meet objects, `(B, N, P)` bool: whether they pass through the sphere
    around each, enlarged by `margin` m (a number or `(B, N)`). `origin` `(B, 3, P or 1)`,
    `direction` `(B, 3, P)`; `segments` end at distance 1.
    """
    x, y, z = (objects.centre.unsqueeze(3) - origin.unsqueeze(1)).unbind(2)  # (B, N, P or 1)
    dx, dy, dz = direction.unsqueeze(1).unbind(2)
    length = direction.square().sum(1, keepdim=True)
    ahead = (x * dx).addcmul_(y, dy).addcmul_(z, dz)
    reach = (objects.reach + margin).unsqueeze(2)
    outside = (x * x).addcmul_(y, y).addcmul_(z, z) - reach * reach
    outside = torch.where(objects.present.unsqueeze(2), outside, _FAR)
    near = (ahead > 0) | (outside < 0)
    near &= outside * length < ahead * ahead
    if segments:
        near &= ahead < length + reach.amax(1, keepdim=True) * length.sqrt()
    return near


def distances(
    objects: Objects, scene: Tensor, index: Tensor, origin: Tensor, direction: Tensor
) -> Tensor:
    """Distance `(K, S)` along S rays from `origin` `(3, K)` in `direction` `(3, K, S)` to the one
    object `index` `(K,)` of `scene` `(K,)`; inf where missed.
    """
    hits = torch.full_like(direction[0], _FAR)
    kind = objects.shape[scene, index]
    offset = origin - objects.centre[scene, index].T
    for shape, formula in _INTERSECT.items():
        rows = (kind == shape).nonzero().squeeze(1)
        place = scene[rows], index[rows]
        start, ray = offset[:, rows].unsqueeze(2).unsqueeze(0), direction[:, rows].unsqueeze(0)
        if shape == CUBE:
            yaw = objects.yaw[place].view(1, -1, 1)
            start, ray = _to_local(start, yaw), _to_local(ray, yaw)
        hits[rows] = formula(start, ray, objects.radius[place].view(1, -1, 1)).squeeze(0)
    return hits


def intersect_near(objects: Objects, origin: Tensor, direction: Tensor) -> Tensor:
    """As `intersect`, testing only the rays that pass close by each object: much cheaper where
    objects fill little of the view.
    """
    hits = direction.new_full((*objects.shape.shape, direction.shape[2]), _FAR)
    scene, index, ray = passing(objects, origin, direction).nonzero().unbind(1)
    start = origin.expand_as(direction).transpose(0, 1)[:, scene, ray]
    ahead = direction.transpose(0, 1)[:, scene, ray].unsqueeze(2)
    hits[scene, index, ray] = distances(objects, scene, index, start, ahead).squeeze(1)
    return hits


def _unit(vector: Tensor) -> Tensor:
    """`(B, 3, P)` scaled to length 1; norms over a strided dimension are slow on CPUs, sums are
    not.
    """
    return vector * vector.square().sum(1, keepdim=True).clamp(min=1e-24).rsqrt()


def _per_pixel(values: Tensor, index: Tensor) -> Tensor:
    """Pick `(B, N)` or `(B, N, C)` object values by `(B, P)` object index: `(B, P)` or `(B, C,
    P)`.
    """
    if values.dim() == 2:
        return values.gather(1, index)
    channels = values.shape[2]
    return values.transpose(1, 2).gather(2, index.unsqueeze(1).expand(-1, channels, -1))


def _normals(objects: Objects, index: Tensor, point: Tensor) -> Tensor:
    """Outward normals `(B, 3, P)` of object `index` at surface `point`."""
    shape = _per_pixel(objects.shape, index).unsqueeze(1)
    radius = _per_pixel(objects.radius, index).unsqueeze(1)
    yaw = _per_pixel(objects.yaw, index)
    local = (point - _per_pixel(objects.centre, index)) / radius
    turned = _to_local(local, yaw)
    reach = turned.abs()
    face = (reach == reach.amax(1, keepdim=True)) * turned.sign()
    face = _to_local(face, -yaw)
    on_cap = local[:, 2:].abs() > (local[:, :2] ** 2).sum(1, keepdim=True).sqrt()
    vertical = local * local.new_tensor([0.0, 0.0, 1.0])[:, None]
    sideways = local * local.new_tensor([1.0, 1.0, 0.0])[:, None]
    round_wall = torch.where(on_cap, vertical, sideways)
    normal = torch.where(shape == CUBE, face, torch.where(shape == CYLINDER, round_wall, local))
    return _unit(normal)


def render(
    objects: Objects, camera: Camera, lighting: Lighting, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Images `(B, 3, H, W)` in [0, 1], object index `(B, H, W)` (-1: plane), depth `(B, H, W)` in
    m.
    """
    direction = camera.rays(height, width)
    origin = camera.position.unsqueeze(-1)
    plane_hit = -origin[:, 2] / direction[:, 2].clamp(max=-1e-6)
    hits = intersect(objects, origin, direction)
    nearest, index = hits.min(1)
    on_object = nearest < plane_hit
    depth = torch.where(on_object, nearest, plane_hit)
    point = origin + depth.unsqueeze(1) * direction
    up = point.new_tensor([0.0, 0.0, 1.0]).view(1, 3, 1)
    picked = on_object.unsqueeze(1)
    normal = torch.where(picked, _normals(objects, index, point), up)
    base = torch.where(
        picked, _per_pixel(objects.colour, index), lighting.plane_colour.unsqueeze(-1)
    )
    gloss = torch.where(on_object, _per_pixel(objects.gloss, index), 0.0)

    view = _unit(-direction)
    start = point + _SURFACE_OFFSET_M * normal
    light = lighting.key.unsqueeze(-1) - start
    shadowed = intersect(objects, start, light).amin(1) < 1.0
    light = _unit(light)
    diffuse = (normal * light).sum(1).clamp(min=0) * ~shadowed
    half = _unit(light + view)
    shine = (normal * half).sum(1).clamp(min=0) ** (10 + 50 * gloss) * ~shadowed
    fill = _unit(lighting.fill.unsqueeze(-1) - point)
    filled = (normal * fill).sum(1).clamp(min=0)
    brightness = lighting.ambient + 0.35 * diffuse + 0.2 * filled
    highlight = (0.1 + 0.35 * gloss) * shine * on_object
    image = (base * brightness.unsqueeze(1) + highlight.unsqueeze(1)).clamp(0, 1)
    label = torch.where(on_object, index, -1)
    shape = (-1, height, width)
    return image.view(-1, 3, height, width), label.view(shape), depth.view(shape)


def take(objects: Objects, scenes: Tensor) -> Objects:
    """The objects of some scenes only."""
    return replace(objects, **{f.name: getattr(objects, f.name)[scenes] for f in fields(objects)})
