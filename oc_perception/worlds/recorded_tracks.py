# SPDX-License-Identifier: Apache-2.0
"""`recorded_tracks`: motion and clips cut from recordings in which boxes tell who is where.

A view of a recording is the whole picture, in the middle of a canvas of the configured aspect; or,
with `augment`, a part of it around one of the objects, maybe mirrored, backwards in time, brighter
or darker, through a camera that moves: no two draws are alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from torch import Tensor

from oc_perception.configuration import ConfigurationError
from oc_perception.models.boxes import area, intersection
from oc_perception.types import Motion
from oc_perception.worlds.recorded_boxes import Recording, load_recording
from oc_perception.worlds.scenes import World

_SPLITS = ("train", "validation", "all")
_MIDDLE = (0.15, 0.85)  # of a view, where the object lies around which it is laid
_COLOUR = 0.05  # log gain of single colours, one standard deviation
_DRIFT, _SHAKE = 0.01, 0.003  # of a moving camera, view widths per frame
_SKEW = 0.02  # of a picture's aspect that does not matter
_SAME_RATE = 0.05  # of a period
_GAP = 1.5  # periods between frames beyond which something is missing


@dataclass(frozen=True)
class RecordedTracksConfig:
    """Recordings `bags` (whatever `open_sequence` reads) and the files of their boxes, `truth`,
    where these are not found in them.

    `split` by time: the last `validation` share of each recording is kept from training. Clips
    take every first to `stride`-th frame. `resolution` `(height, width)` px is what recordings are
    kept at; pictures are drawn `aspect` times as high as wide. `augment` only matters in training:
    views are `zoom` of the whole, `brightness` is a standard deviation of its log, in
    `moving_camera` of the clips the camera moves. `one_rate`: all clips of a batch have the same
    rate, for models that count seconds and not frames.
    """

    bags: tuple[str, ...]
    topic: str | None = None
    truth: tuple[str, ...] = ()
    fps: float | None = None
    split: str = "train"
    validation: float = 0.3
    stride: int = 1
    max_objects: int = 5
    resolution: tuple[int, int] = (384, 512)
    aspect: float = 0.75
    augment: bool = True
    zoom: tuple[float, float] = (0.5, 1.0)
    brightness: float = 0.2
    moving_camera: float = 0.5
    one_rate: bool = False

    def __post_init__(self) -> None:
        if not self.bags:
            raise ValueError("bags must name at least one recording")
        if self.truth and len(self.truth) != len(self.bags):
            raise ValueError("truth must name as many files as there are bags, or none")
        if self.split not in _SPLITS:
            raise ValueError(f"split must be one of {', '.join(_SPLITS)}, not {self.split!r}")
        if not 0 < self.validation < 1:
            raise ValueError("validation must be above 0 and below 1")
        if self.stride < 1 or self.max_objects < 1:
            raise ValueError("stride and max_objects must be at least 1")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError("zoom must be a range above 0")


@dataclass(frozen=True)
class RecordedMotion(Motion):
    """`frames` `(B, T)` int64 of the recordings, one after the other; `views` `(B, T, 3)`: centre
    and width of what is seen, in source widths, mirrored where the width is negative; `gains`
    `(B, 3)` of colours; `recordings` `(B,)` int64.
    """

    frames: Tensor
    views: Tensor
    gains: Tensor
    recordings: Tensor

    def __getitem__(self, index: object) -> Motion:
        """The same index into all tensors of the motion; it cannot be drawn any more."""
        plain = (getattr(self, field.name) for field in fields(Motion))
        return Motion(*plain)[index]


class RecordedTracks(World):
    """Batches of clips from recordings; all randomness from one seeded generator."""

    Config = RecordedTracksConfig

    def _prepare(self) -> None:
        config = self.config
        truths = config.truth or (None,) * len(config.bags)
        self.recordings = [
            self._split(load_recording(bag, config.resolution, config.topic, truth, config.fps))
            for bag, truth in zip(config.bags, truths, strict=True)
        ]
        width = max(recording.boxes.shape[1] for recording in self.recordings)
        boxes = torch.cat([_padded(r.boxes, width, 0.5) for r in self.recordings])
        present = torch.cat([_padded(r.present, width, False) for r in self.recordings])
        self._boxes, self._present = boxes.to(self.device), present.to(self.device)
        lengths = [len(recording.boxes) for recording in self.recordings]
        self._offsets = torch.tensor([0, *np.cumsum(lengths)[:-1]], device=self.device)
        self._periods_s, self._aspects = torch.tensor(
            [[r.period_s, r.aspect] for r in self.recordings], device=self.device
        ).T
        self._choices: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def _learning(self) -> bool:
        return self.config.augment and self.config.split != "validation"

    def _split(self, recording: Recording) -> Recording:
        count = len(recording.boxes)
        cut = round(count * (1 - self.config.validation))
        first, last = {"train": (0, cut), "validation": (cut, count), "all": (0, count)}[
            self.config.split
        ]
        return recording.part(first, last)

    def sample_motion(self, num_frames: int) -> RecordedMotion:
        """Clips of `num_frames` frames from all recordings that are long enough, each as often."""
        rows, weights = self._starts(num_frames)
        if self.config.one_rate:
            weights = weights * self._alike(rows, weights)
        row = rows[torch.multinomial(weights, self.batch_size, True, generator=self.generator)]
        recording, start, stride = row.unbind(1)
        frames = start[:, None] + stride[:, None] * torch.arange(num_frames, device=self.device)
        if self._learning:
            backwards = self._uniform(0, 1, self.batch_size, 1) < 0.5
            frames = torch.where(backwards, frames.flip(1), frames)
        return self.motion(recording, frames, self._learning)

    def _alike(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Which `rows` have the rate of one of them, drawn by `weights`."""
        one = torch.multinomial(weights, 1, generator=self.generator)
        periods_s = self._periods_s[rows[:, 0]] * rows[:, 2]
        return (periods_s / periods_s[one] - 1).abs() < _SAME_RATE

    def motion(self, recording: Tensor, frames: Tensor, augment: bool = False) -> RecordedMotion:
        """Of `frames` `(B, T)` of `recording` `(B,)`."""
        found = frames + self._offsets[recording][:, None]
        boxes, present = self._boxes[found], self._present[found]
        views = self._whole_views(recording, frames.shape[1])
        gains = torch.ones(len(frames), 3, device=self.device)
        if augment:
            views = self._views(views, boxes[:, 0], present[:, 0])
            gains = self._gains(len(frames))
        boxes = self._seen_from(boxes, views)
        limit = boxes.new_tensor([1.0, self.config.aspect])
        present = present & ((boxes[..., :2] >= 0) & (boxes[..., :2] <= limit)).all(-1)
        visible = present & ~_hidden(boxes, present)
        chosen = self._choose(boxes[:, 0], present[:, 0], visible[:, 0], augment)[:, None, :]
        everywhen = chosen.expand(-1, frames.shape[1], -1)
        present, visible = present.gather(2, everywhen), visible.gather(2, everywhen)
        boxes = boxes.gather(2, everywhen[..., None].expand(-1, -1, -1, 4))
        strides = (frames[:, 1:2] - frames[:, :1]).abs() if frames.shape[1] > 1 else 1
        dt_s = float((self._periods_s[recording, None] * strides).mean())
        moved = boxes[..., :2].diff(dim=1)
        both = (present[:, 1:] & present[:, :-1])[..., None]
        moved = torch.where(both, moved, 0.0)
        velocities = torch.cat([moved[:, :1], moved], 1) / dt_s
        return RecordedMotion(
            boxes[..., :2],
            velocities,
            boxes[..., 2:],
            boxes.new_zeros(*present.shape, 0),
            present,
            visible,
            frames=found,
            views=views,
            gains=gains,
            recordings=recording,
            dt_s=dt_s,
        )

    def draw(self, motion: RecordedMotion, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Images `(B, T, 3, H, W)` in [0, 1] of `motion`, and label maps `(B, T, H, W)` of zeros:
        boxes tell nothing of pixels. Raises ConfigurationError for another aspect.
        """
        if abs(height / width / self.config.aspect - 1) > _SKEW:
            raise ConfigurationError(
                f"Pictures of {width}x{height} px are not {self.config.aspect:g} times as high as"
                " wide: set world_config.aspect, or model_config.frame_size."
            )
        batch, times = motion.frames.shape
        images = np.empty((batch * times, height, width, 3), np.uint8)
        recordings = motion.recordings.tolist()
        views = motion.views.double().cpu().numpy()
        within = (motion.frames - self._offsets[motion.recordings][:, None]).tolist()
        # One by one, for OpenCV does this on bytes, ten times as fast as on a batch of floats.
        for index, (image, view) in enumerate(zip(images, views.reshape(-1, 3), strict=True)):
            clip, time = divmod(index, times)
            recording = self.recordings[recordings[clip]]
            source = np.asarray(recording.images[within[clip][time]])
            rows, columns = source.shape[:2]
            step = view[2] / width
            across, down = step * columns, abs(step) * rows / recording.aspect
            to_source = np.array(
                [
                    [across, 0, view[0] * columns - 0.5 - across * (width - 1) / 2],
                    [0, down, view[1] * rows / recording.aspect - 0.5 - down * (height - 1) / 2],
                ]
            )
            cv2.warpAffine(source, to_source, (width, height), image,
                           cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)  # fmt: skip
        tensor = torch.from_numpy(images).to(self.device).view(batch, times, height, width, 3)
        tensor = tensor.permute(0, 1, 4, 2, 3)
        gains = (motion.gains / 255)[:, None, :, None, None]
        labels = torch.zeros(1, dtype=torch.int64).expand(batch, times, height, width)
        return (tensor * gains).clamp(max=1), labels

    def _starts(self, num_frames: int) -> tuple[Tensor, Tensor]:
        """Rows of recording, first frame and stride, and how often each is to be drawn."""
        if num_frames in self._choices:
            return self._choices[num_frames]
        rows, weights = [], []
        for index, recording in enumerate(self.recordings):
            gaps = np.diff(recording.times_s)
            gaps = np.concatenate([[0], np.cumsum(gaps > _GAP * np.median(gaps))])
            anyone = recording.present.any(1)
            found = []
            for stride in range(1, self.config.stride + 1):
                reach = (num_frames - 1) * stride
                start = np.arange(max(0, len(gaps) - reach))
                end = start + reach
                start = start[(gaps[start] == gaps[end]) & anyone[start] & anyone[end]]
                found.append(np.stack([0 * start + index, start, 0 * start + stride], 1))
            found = [part for part in found if len(part)]
            rows += found
            weights += [np.full(len(part), 1 / (len(found) * len(part))) for part in found]
        if not rows:
            raise ConfigurationError(
                f"No recording has {num_frames} frames in a row with boxes at both ends in its"
                f" {self.config.split} part: give longer ones, or lower model_config.num_frames."
            )
        self._choices[num_frames] = (
            torch.from_numpy(np.concatenate(rows)).to(self.device),
            torch.from_numpy(np.concatenate(weights)).to(self.device),
        )
        return self._choices[num_frames]

    def _whole_views(self, recording: Tensor, times: int) -> Tensor:
        aspects = self._aspects[recording]
        width = (aspects / self.config.aspect).clamp(min=1)
        views = torch.stack([torch.full_like(aspects, 0.5), aspects / 2, width], -1)
        return views[:, None].expand(-1, times, -1).clone()

    def _views(self, whole: Tensor, boxes: Tensor, present: Tensor) -> Tensor:
        batch, times = whole.shape[:2]
        focus = torch.multinomial(present.float(), 1, generator=self.generator)
        place = boxes.gather(1, focus[..., None].expand(-1, 1, 4))[:, 0, :2]
        low, high = (math.log(edge) for edge in self.config.zoom)
        zoom = self._uniform(low, high, batch, 1).exp()
        canvas = place.new_tensor([1.0, self.config.aspect])
        width = whole[:, 0, 2:] * zoom
        centre = place - (self._uniform(*_MIDDLE, batch, 2) - 0.5) * canvas * width
        room = (whole[:, 0, 2:] - width).clamp(min=0) * canvas / 2
        middle = whole[:, 0, :2]
        centre = torch.minimum(torch.maximum(centre, middle - room), middle + room)
        moving = self._uniform(0, 1, batch, 1, 1) < self.config.moving_camera
        drift = _DRIFT * self._normal(batch, 1, 2) + _SHAKE * self._normal(batch, times, 2)
        drift[:, 0] = 0
        way = drift.cumsum(1) * moving * width[:, None]
        mirrored = torch.where(self._uniform(0, 1, batch, 1) < 0.5, -1.0, 1.0)
        width = (width * mirrored)[:, None].expand(-1, times, -1)
        return torch.cat([centre[:, None] + way, width], -1)

    def _seen_from(self, boxes: Tensor, views: Tensor) -> Tensor:
        """`boxes` `(B, T, M, 4)` in source widths as seen in `views` `(B, T, 3)`."""
        centre, width = views[:, :, None, :2], views[:, :, None, 2:]
        scale = torch.cat([width, width.abs()], -1)
        middle = boxes.new_tensor([0.5, self.config.aspect / 2])
        places = middle + (boxes[..., :2] - centre) / scale
        return torch.cat([places, boxes[..., 2:] / width.abs()], -1)

    def _gains(self, batch: int) -> Tensor:
        light = self.config.brightness * self._normal(batch, 1)
        return (light + _COLOUR * self._normal(batch, 3)).exp()

    def _choose(self, boxes: Tensor, present: Tensor, visible: Tensor, augment: bool) -> Tensor:
        """Columns of those to follow `(B, M)`, of those present in the first frame, in sight if
        possible: random ones, or the largest.
        """
        score = boxes[..., 2:].prod(-1)
        if augment:
            score = self._uniform(0, 1, *present.shape)
        score = score / score.amax(1, keepdim=True).clamp(min=1e-9) + visible
        order = (score * present).sort(dim=1, descending=True, stable=True).indices
        return order[:, : self.config.max_objects]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)


def _hidden(boxes: Tensor, present: Tensor) -> Tensor:
    """Whether `boxes` `(B, T, M, 4)` are more than half covered by one that reaches lower down in
    the picture, and so is nearer on common ground.
    """
    bottom = boxes[..., 1] + boxes[..., 3] / 2
    shared = intersection(boxes.unsqueeze(3), boxes.unsqueeze(2))
    nearer = (bottom.unsqueeze(2) > bottom.unsqueeze(3)) & present.unsqueeze(2)
    return (nearer & (shared > 0.5 * area(boxes).unsqueeze(3))).any(3)


def _padded(values: np.ndarray, width: int, filler: float | bool) -> Tensor:
    """`(N, M, ...)` with columns of `filler` up to `width`."""
    missing = np.full((len(values), width - values.shape[1], *values.shape[2:]), filler)
    return torch.from_numpy(np.concatenate([values, missing.astype(values.dtype)], 1))
