# SPDX-License-Identifier: Apache-2.0
"""A camera over the tabletop world: sensor noise, blackouts and exact truth for every frame.

The world is drawn small and enlarged, which leaves a CPU to the robot's own work; truth is
measured on the labels as drawn and scaled to the camera's pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from oc_perception.types import SensorState, Track, TrackState
from oc_perception.worlds.raycast import Camera, Objects, render
from oc_perception.worlds.tabletop import Tabletop, TabletopConfig

MODES = {
    "missing": SensorState.STALE,
    "black": SensorState.BLACK,
    "frozen": SensorState.FROZEN,
}
"""Names of the ways in which a camera goes blind."""

VISIBLE_SHARE = 0.0025
"""An object is visible when it covers this share of the image (about a tenth of a typical one)."""

_COARSE = 4
_SAME = 1e-3  # difference of brightness that a picture of 8 bits cannot show
_NOISE_MARGIN_PX = 64
_NOISE_LIMIT = 4  # noise is cut at this many standard deviations


@dataclass(frozen=True)
class ScheduledBlackout:
    """Frames `start_frame` to `start_frame + frames - 1` are blind in the way of `state`."""

    start_frame: int
    frames: int
    state: SensorState

    def __contains__(self, frame: int) -> bool:
        return self.start_frame <= frame < self.start_frame + self.frames


def parse_blackouts(text: str, rate_hz: float) -> tuple[ScheduledBlackout, ...]:
    """A schedule from `start_s:frames:mode, ...` in the order of time; an empty text is no
    blackout.

    Raises ValueError that names the entry which cannot be read or overlaps the one before.
    """
    schedule = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        try:
            start_s, frames, mode = entry.split(":")
            blackout = ScheduledBlackout(round(float(start_s) * rate_hz), int(frames), MODES[mode])
        except (ValueError, KeyError, OverflowError) as error:
            raise ValueError(
                f"Blackout {entry!r} is not of the form start_s:frames:mode "
                f"with a mode of {', '.join(MODES)}."
            ) from error
        if blackout.start_frame < 1 or blackout.frames < 1:
            raise ValueError(f"Blackout {entry!r} must begin after the first frame and last one.")
        if schedule and blackout.start_frame <= schedule[-1].start_frame + schedule[-1].frames:
            raise ValueError(f"Blackout {entry!r} does not come after the one before it.")
        schedule.append(blackout)
    return tuple(schedule)


@dataclass(frozen=True)
class CameraConfig:
    """`render_scale` is the size of the drawn over the published image; noise in grey levels."""

    width: int = 640
    height: int = 480
    rate_hz: float = 30.0
    seed: int = 0
    num_objects: int = 4
    render_scale: float = 0.5
    noise_level: float = 2.0
    blackouts: str = ""

    def __post_init__(self) -> None:
        if self.width < 16 or self.height < 16:
            raise ValueError(f"The image must be at least 16x16, not {self.width}x{self.height}.")
        if self.rate_hz <= 0:
            raise ValueError(f"rate_hz must be above 0, not {self.rate_hz}.")
        if not 0 < self.render_scale <= 1:
            raise ValueError(f"render_scale must be in (0, 1], not {self.render_scale}.")
        if not 0 <= self.noise_level <= 20:
            raise ValueError(f"noise_level must be 0 to 20 grey levels, not {self.noise_level}.")
        parse_blackouts(self.blackouts, self.rate_hz)


@dataclass(frozen=True)
class View:
    """One frame as drawn, small, and the truth about it in camera pixels.

    `image` `(h, w, 3)` uint8 RGB, `labels` `(h, w)` uint8 (0: table), `depth` `(h, w)` float32 m
    where asked for, `state` what the sensor does. A track's id is the object's identity, its
    `slot_label` the value in `labels`; it is confirmed where the object is visible, coasting where
    too little is in view.
    """

    number: int
    state: SensorState
    image: np.ndarray
    labels: np.ndarray
    depth: np.ndarray | None
    tracks: tuple[Track, ...]


@dataclass(frozen=True)
class _Rays:
    """A camera of the ray-caster with chosen rays `(1, 3, P)`, as a picture of one row."""

    position: torch.Tensor
    directions: torch.Tensor

    def rays(self, height: int, width: int) -> torch.Tensor:
        return self.directions


class _Painter:
    """Draws a world, one ray per pixel, but only where it differs from the empty table.

    A picture of a quarter of the size finds those places, objects and shadows, with a margin; it
    reaches one of its pixels beyond the view, so that tips at the border are found. What `paint`
    returns is what `Tabletop.render` draws without supersampling.
    """

    def __init__(self, world: Tabletop, height: int, width: int) -> None:
        self._world, self._height, self._width = world, height, width
        self._rays = world.camera.rays(height, width)
        rows, columns = math.ceil(height / _COARSE), math.ceil(width / _COARSE)
        self._coarse = rows + 2, columns + 2
        focal = world.camera.focal * columns / (columns + 2)  # in widths of the larger picture
        self._coarse_camera = replace(world.camera, focal=focal)
        absent = torch.zeros_like(world.objects.present)
        self._table = replace(world.objects, present=absent)
        self._empty_coarse = self._cast(self._table, self._coarse_camera, *self._coarse)[0]
        image, _, depth = self._cast(self._table, world.camera, height, width)
        self._empty = image[0].flatten(1), depth[0].flatten()

    def paint(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image `(h, w, 3)` uint8, identities `(h, w)` int64 (0: table), depth `(h, w)` in m."""
        world = self._world
        pixels = self._find()
        rays = _Rays(world.camera.position, self._rays[:, :, pixels])
        colours, index, distances = self._cast(world.objects, rays, 1, len(pixels))
        image, depth = (empty.clone() for empty in self._empty)
        image[:, pixels], depth[pixels] = colours[0, :, 0], distances[0, 0]
        identities = torch.zeros(depth.shape, dtype=torch.int64)
        known = torch.cat([world.identity.new_zeros(1), world.identity[0]])
        identities[pixels] = known[index[0, 0] + 1]
        shape = (self._height, self._width)
        rgb = (image * 255).round().byte().view(3, *shape).permute(1, 2, 0).contiguous()
        return rgb.numpy(), identities.view(shape).numpy(), depth.view(shape).numpy()

    def _find(self) -> torch.Tensor:
        """Flat indices of the pixels that may show an object or a shadow."""
        image, index, _ = self._cast(self._world.objects, self._coarse_camera, *self._coarse)
        touched = ((image - self._empty_coarse).abs().amax(1) > _SAME) | (index >= 0)
        touched = torch.nn.functional.max_pool2d(touched.float(), 3, 1)  # drops what lies outside
        size = (self._height, self._width)
        return torch.nn.functional.interpolate(touched[None], size)[0, 0].flatten().nonzero()[:, 0]

    def _cast(self, objects: Objects, camera: Camera | _Rays, height: int, width: int) -> tuple:
        return render(objects, camera, self._world.lighting, height, width)


class SimulatedCamera:
    """Draws views one after the other; the same configuration gives the same frames."""

    def __init__(self, config: CameraConfig) -> None:
        self.config = config
        self.schedule = parse_blackouts(config.blackouts, config.rate_hz)
        self.size = (
            max(8, round(config.height * config.render_scale)),
            max(8, round(config.width * config.render_scale)),
        )
        count = config.num_objects
        self._world = Tabletop(TabletopConfig(num_objects=(count, count)), seed=config.seed)
        self._painter = _Painter(self._world, *self.size)
        self._number = 0
        self._centres: dict[int, np.ndarray] = {}
        # Noise is added as a bank of non-negative numbers around a bias that is taken off before.
        generator = np.random.default_rng(config.seed)
        self._bias = round(_NOISE_LIMIT * config.noise_level)
        shape = (config.height + _NOISE_MARGIN_PX, config.width + _NOISE_MARGIN_PX, 3)
        noise = generator.normal(self._bias, config.noise_level, shape)
        self._noise = noise.round().clip(0, 2 * self._bias).astype(np.uint8)
        self._frozen: np.ndarray | None = None

    @property
    def matrix(self) -> np.ndarray:
        """Intrinsics `(3, 3)` px of the published image."""
        return self._world.camera_matrix(self.config.height, self.config.width)

    def state(self, number: int) -> SensorState:
        """What the sensor does at frame `number`."""
        return next((b.state for b in self.schedule if number in b), SensorState.OK)

    @torch.inference_mode()
    def draw(self, with_depth: bool = False) -> View:
        """The next view; the world moves on by one period."""
        if self._number:
            self._world.advance(1 / self.config.rate_hz)
        image, identities, depth = self._painter.paint()
        labels = np.where(identities > 0, (identities - 1) % 254 + 1, 0).astype(np.uint8)
        view = View(
            number=self._number,
            state=self.state(self._number),
            image=image,
            labels=labels,
            depth=depth if with_depth else None,
            tracks=self._measure(identities),
        )
        self._number += 1
        return view

    def expose(self, view: View) -> np.ndarray | None:
        """The image `(height, width, 3)` uint8 the sensor delivers, or None where it is missing.

        Views must come in order: a frozen one repeats the last image that was exposed.
        """
        if view.state == SensorState.STALE:
            return None
        shape = (self.config.height, self.config.width)
        if view.state == SensorState.BLACK:
            return np.zeros((*shape, 3), np.uint8)
        if view.state == SensorState.FROZEN and self._frozen is not None:
            return self._frozen
        dimmed = cv2.subtract(view.image, np.full_like(view.image, self._bias))
        image = cv2.resize(dimmed, shape[::-1], interpolation=cv2.INTER_LINEAR)
        # Neighbouring frames never share an offset, so that no two of them are equal.
        y = view.number * 17 % _NOISE_MARGIN_PX
        x = view.number * 37 % _NOISE_MARGIN_PX
        noise = self._noise[y : y + shape[0], x : x + shape[1]]
        self._frozen = cv2.add(image, noise, dst=image)
        return self._frozen

    def enlarge(self, small: np.ndarray) -> np.ndarray:
        """Labels or depth of a view at the size of the image, pixel centre on pixel centre."""
        size = (self.config.width, self.config.height)
        return cv2.resize(small, size, interpolation=cv2.INTER_NEAREST_EXACT)

    def _measure(self, identities: np.ndarray) -> tuple[Track, ...]:
        height, width = identities.shape
        scale = np.array([self.config.width / width, self.config.height / height])
        stamp_ns = round(self._number * 1e9 / self.config.rate_hz)
        tracks, centres = [], {}
        for identity in np.unique(identities[identities > 0]):
            rows, columns = np.nonzero(identities == identity)
            # Pixel centres are integers in both images.
            centre = (np.array([columns.mean(), rows.mean()]) + 0.5) * scale - 0.5
            extent = (np.array([np.ptp(columns), np.ptp(rows)]) + 1) * scale
            centres[int(identity)] = centre
            step = centre - self._centres.get(int(identity), centre)
            visible = len(rows) >= VISIBLE_SHARE * identities.size
            tracks.append(
                Track(
                    id=int(identity),
                    state=TrackState.CONFIRMED if visible else TrackState.COASTING,
                    box=np.concatenate([centre, extent]),
                    velocity=step * self.config.rate_hz,
                    covariance=np.zeros((4, 4)),
                    existence_probability=1.0,
                    age=self._number,
                    hits=self._number,
                    last_seen_ns=stamp_ns,
                    slot_label=(int(identity) - 1) % 254 + 1,
                )
            )
        self._centres = centres
        return tuple(tracks)
