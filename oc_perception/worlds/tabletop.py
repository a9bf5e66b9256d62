# SPDX-License-Identifier: Apache-2.0
"""`tabletop`: shaded solids sliding, colliding, entering and leaving under a tilted robot camera.

Up to `max(num_objects)` spheres, cubes and cylinders glide over a table with little friction,
bounce off one another and leave the view; for each that has left, a new one with a new identity
comes in. Exact label maps, identities and depth come with every frame. Geometry in metres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from oc_perception.types import Motion
from oc_perception.worlds.raycast import Camera, Lighting, Objects, render
from oc_perception.worlds.scenes import World

PALETTE = (
    (215, 35, 35),
    (250, 225, 50),
    (30, 150, 50),
    (60, 220, 230),
    (40, 60, 205),
    (205, 60, 200),
)
"""Object colours, 8-bit RGB: red, yellow, green, cyan, blue, magenta."""

_MARGIN = 0.12  # objects live until their centre is this many image widths outside the view
_CANDIDATES = 32  # positions tried per object before it is left out
_SUBSTEP_S = 1 / 60
_FRAME_S = 1 / 30


@dataclass(frozen=True)
class TabletopConfig:
    """What the world looks like. With `unique_colours`, no two objects in view share a colour."""

    num_objects: tuple[int, int] = (2, 5)
    radius_m: tuple[float, float] = (0.07, 0.11)
    speed_m_s: tuple[float, float] = (0.05, 0.25)
    friction_per_s: float = 0.05
    restitution: float = 0.9
    unique_colours: bool = True
    camera_position_m: tuple[float, float, float] = (0.0, -0.55, 0.95)
    camera_target_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    camera_jitter_m: float = 0.02
    focal_widths: float = 0.95
    light_jitter_m: float = 0.3
    plane_colour: tuple[float, float, float] = (0.62, 0.58, 0.52)
    plane_jitter: float = 0.05
    supersampling: int = 2

    def __post_init__(self) -> None:
        low, high = self.num_objects
        if not 0 <= low <= high or high < 1:
            raise ValueError(f"num_objects must be 0 <= low <= high, not {self.num_objects}")
        if self.unique_colours and high > len(PALETTE):
            raise ValueError(f"at most {len(PALETTE)} objects can have unique colours, not {high}")
        if self.supersampling < 1:
            raise ValueError("supersampling must be at least 1")


@dataclass(frozen=True)
class TabletopFrame:
    """`images` `(B, 3, H, W)` in [0, 1], `labels` `(B, H, W)` int64 (0 table, else identity),
    `depths` m.
    """

    images: Tensor
    labels: Tensor
    depths: Tensor


class Tabletop(World):
    """A batch of independent tables, advanced and drawn together; all randomness from one seeded
    generator.
    """

    Config = TabletopConfig

    def _prepare(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Draw a fresh set of independent tables."""
        config, batch, slots = self.config, self.batch_size, self.config.num_objects[1]
        jitter = config.camera_jitter_m
        position = torch.tensor(config.camera_position_m, device=self.device)
        target = torch.tensor(config.camera_target_m, device=self.device)
        self.camera = Camera(
            position + self._uniform(-jitter, jitter, batch, 3),
            target + self._uniform(-jitter, jitter, batch, 3),
            config.focal_widths,
        )
        shift = config.light_jitter_m
        tint = torch.tensor(config.plane_colour, device=self.device)
        self.lighting = Lighting(
            key=torch.tensor([-0.9, -0.5, 1.8], device=self.device)
            + self._uniform(-shift, shift, batch, 3),
            fill=torch.tensor([1.2, 0.3, 1.5], device=self.device).expand(batch, 3),
            plane_colour=tint + self._uniform(-config.plane_jitter, config.plane_jitter, batch, 1),
        )
        zeros = torch.zeros(batch, slots, device=self.device)
        self.objects = Objects(
            position=torch.zeros(batch, slots, 2, device=self.device),
            yaw=zeros,
            radius=zeros,
            shape=zeros.long(),
            colour=torch.zeros(batch, slots, 3, device=self.device),
            gloss=zeros,
            present=zeros.bool(),
        )
        self.velocity = torch.zeros(batch, slots, 2, device=self.device)
        self.colour_index = torch.full_like(self.objects.shape, -1)
        self.identity = torch.zeros_like(self.objects.shape)
        self.next_identity = torch.ones(batch, dtype=torch.long, device=self.device)
        low, high = config.num_objects
        count = low + self._integers(high + 1 - low, batch)
        for slot in range(slots):
            self._spawn(slot, wanted=slot < count, entering=False)
        self.target_count = count

    def _spawn(self, slot: int, wanted: Tensor, entering: bool) -> None:
        """Put a new object into `slot` of the scenes `wanted` `(B,)`, in view or just outside it,
        moving in.

        A scene without free room for it goes without.
        """
        config, batch = self.config, self.batch_size
        radius = self._uniform(*config.radius_m, batch)
        # Candidate places: uniform over the image, cast onto the table, so that far and near fill
        # alike.
        spot = self._uniform(-0.5, 0.5, batch, _CANDIDATES, 2)
        spot[..., 1] *= 0.75
        heading = self._uniform(0, 2 * torch.pi, batch, _CANDIDATES)
        direction = torch.stack([heading.cos(), heading.sin()], -1)
        place = self._to_table(spot)
        if entering:
            place = self._back_out(place, direction)
        gap = (place.unsqueeze(2) - self.objects.position.unsqueeze(1)).norm(dim=-1)
        room = gap - self.objects.radius.unsqueeze(1) - radius[:, None, None] > 0.01
        free = (room | ~self.objects.present.unsqueeze(1)).all(-1)
        chosen = free.float().argmax(1)
        wanted = wanted & free.any(1)
        scene = torch.arange(batch, device=self.device)
        speed = self._uniform(*config.speed_m_s, batch, 1)
        weight = torch.rand(batch, len(PALETTE), generator=self.generator, device=self.device)
        if config.unique_colours:
            used = torch.nn.functional.one_hot(self.colour_index + 1, len(PALETTE) + 1)[..., 1:]
            weight = weight - (used.bool() & self.objects.present.unsqueeze(-1)).any(1).float()
        colour_index = weight.argmax(1)
        palette = torch.tensor(PALETTE, device=self.device) / 255
        shape = self._integers(3, batch)
        gloss = (self._uniform(0, 1, batch) < 0.5).float()
        yaw = self._uniform(0, torch.pi / 2, batch)

        def put(old: Tensor, new: Tensor) -> Tensor:
            result = old.clone()
            mask = wanted.view(-1, *(1,) * (new.dim() - 1))
            result[:, slot] = torch.where(mask, new, old[:, slot])
            return result

        self.objects = Objects(
            position=put(self.objects.position, place[scene, chosen]),
            yaw=put(self.objects.yaw, yaw),
            radius=put(self.objects.radius, radius),
            shape=put(self.objects.shape, shape),
            colour=put(self.objects.colour, palette[colour_index]),
            gloss=put(self.objects.gloss, gloss),
            present=put(self.objects.present, wanted | self.objects.present[:, slot]),
        )
        self.velocity = put(self.velocity, direction[scene, chosen] * speed)
        self.colour_index = put(self.colour_index, colour_index)
        self.identity = put(self.identity, self.next_identity)
        self.next_identity = self.next_identity + wanted

    def _to_table(self, spot: Tensor) -> Tensor:
        """Image points `(B, M, 2)` in widths from the centre to table points `(B, M, 2)` in m."""
        local = torch.cat([spot / self.camera.focal, torch.ones_like(spot[..., :1])], -1)
        ray = torch.einsum("bij,bmi->bmj", self.camera.axes(), local)
        origin = self.camera.position.unsqueeze(1)
        return (origin - ray * (origin[..., 2:] / ray[..., 2:]))[..., :2]

    def _outside(self, place: Tensor) -> Tensor:
        """Whether table points `(B, M, 2)` lie beyond the view by the margin, `(B, M)` bool."""
        points = torch.cat([place, torch.full_like(place[..., :1], 0.05)], -1)
        projected = self.camera.project(points).abs()
        return (projected[..., 0] > 0.5 + _MARGIN) | (projected[..., 1] > 0.375 + _MARGIN)

    def _back_out(self, place: Tensor, direction: Tensor) -> Tensor:
        """Move places back along their heading until just outside the view."""
        steps = torch.arange(0, 2, 0.05, device=self.device)
        trail = place.unsqueeze(2) - direction.unsqueeze(2) * steps[:, None]
        batch, candidates, count, _ = trail.shape
        outside = self._outside(trail.flatten(1, 2)).view(batch, candidates, count)
        first = outside.float().argmax(2)
        return trail.gather(2, first[..., None, None].expand(-1, -1, 1, 2)).squeeze(2)

    def advance(self, dt_s: float) -> None:
        """Let `dt_s` seconds pass: glide, collide, leave, enter."""
        steps = max(1, round(dt_s / _SUBSTEP_S))
        for _ in range(steps):
            self._glide_and_collide(dt_s / steps)
        heading_out = self._outside(self.objects.position) & (
            self._outside(self.objects.position + self.velocity * 0.2)
        )
        still_out = self._outside(self.objects.position + self.velocity * 2.0)
        gone = self.objects.present & heading_out & still_out
        self.objects = replace(self.objects, present=self.objects.present & ~gone)
        for slot in range(self.config.num_objects[1]):
            wanted = ~self.objects.present[:, slot] & (
                self.objects.present.sum(1) < self.target_count
            )
            if wanted.any():
                self._spawn(slot, wanted, entering=True)

    def _glide_and_collide(self, dt_s: float) -> None:
        objects = self.objects
        velocity = self.velocity * float(np.exp(-self.config.friction_per_s * dt_s))
        position = objects.position + velocity * dt_s
        offset = position.unsqueeze(2) - position.unsqueeze(1)  # (B, N, N, 2): from j to i
        distance = offset.norm(dim=-1).clamp(min=1e-6)
        normal = offset / distance.unsqueeze(-1)
        overlap = objects.radius.unsqueeze(2) + objects.radius.unsqueeze(1) - distance
        pair = objects.present.unsqueeze(2) & objects.present.unsqueeze(1) & (overlap > 0)
        pair &= ~torch.eye(position.shape[1], dtype=torch.bool, device=self.device)
        approach = ((velocity.unsqueeze(2) - velocity.unsqueeze(1)) * normal).sum(-1)
        mass = objects.radius**2
        share = mass.unsqueeze(1) / (mass.unsqueeze(2) + mass.unsqueeze(1)).clamp(min=1e-9)
        push = -(1 + self.config.restitution) * share * approach.clamp(max=0) * pair
        self.velocity = velocity + (push.unsqueeze(-1) * normal).sum(2)
        apart = (share * overlap.clamp(min=0) * pair).unsqueeze(-1) * normal
        self.objects = replace(objects, position=position + apart.sum(2))

    def render(self, height: int, width: int) -> TabletopFrame:
        """Draw all tables at `height x width`; images are averaged over supersampled rays, labels
        are exact.
        """
        factor = self.config.supersampling
        images, index, depths = render(
            self.objects, self.camera, self.lighting, height * factor, width * factor
        )
        if factor > 1:
            images = torch.nn.functional.avg_pool2d(images, factor)
            centre = factor // 2
            index = index[:, centre::factor, centre::factor]
            depths = depths[:, centre::factor, centre::factor]
        identity = torch.cat([self.identity.new_zeros(self.batch_size, 1), self.identity], 1)
        labels = identity.gather(1, (index + 1).flatten(1)).view_as(index)
        return TabletopFrame(images, labels, depths)

    def sample(self, height: int, width: int) -> TabletopFrame:
        """A batch of fresh, independent scenes: the training and evaluation distribution."""
        self.reset()
        return self.render(height, width)

    def sample_motion(self, num_frames: int) -> Motion:
        """Fresh tables, watched for `num_frames` frames at 30 Hz: centres of the objects in the
        image (4:3). Nothing enters meanwhile.
        """
        self.reset()
        self.target_count = torch.zeros_like(self.target_count)
        frames = []
        for _ in range(num_frames):
            frames.append(self._in_image())
            self.advance(_FRAME_S)
        positions, velocities, sizes, present = (
            torch.stack(parts, 1) for parts in zip(*frames, strict=True)
        )
        centre = (positions - positions.new_tensor([0.5, 0.375])).abs()
        in_view = (centre < centre.new_tensor([0.5, 0.375])).all(-1)
        return Motion(
            positions=positions,
            velocities=velocities,
            sizes=sizes,
            features=positions[..., :0],
            present=present,
            visible=present & in_view,
            dt_s=_FRAME_S,
        )

    def _in_image(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Position, velocity and size in the image, in widths from its corner; presence."""
        objects = self.objects
        radius = objects.radius.unsqueeze(-1)
        centre = torch.cat([objects.position, radius], -1)
        motion = torch.cat([self.velocity, torch.zeros_like(radius)], -1) * _FRAME_S
        right = self.camera.axes()[:, None, 0] * radius
        here, soon, left, beside = (
            self.camera.project(point)
            for point in (centre, centre + motion, centre - right, centre + right)
        )
        size = (beside - left).norm(dim=-1, keepdim=True).clamp(min=1e-3).expand_as(here)
        corner = here.new_tensor([0.5, 0.375])
        return here + corner, (soon - here) / _FRAME_S, size, objects.present

    def camera_matrix(self, height: int, width: int) -> np.ndarray:
        """Intrinsics `(3, 3)` in px for images of this size (pixel centres at integers)."""
        focal_px = self.config.focal_widths * width
        return np.array(
            [[focal_px, 0, (width - 1) / 2], [0, focal_px, (height - 1) / 2], [0, 0, 1.0]]
        )
