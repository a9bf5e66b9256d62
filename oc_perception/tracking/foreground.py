# SPDX-License-Identifier: Apache-2.0
"""What stands out before the background of a camera at rest: bright objects before black.

The background is learned online. It begins as the median of the first frames; from then on each
pixel moves towards what is seen at a limited rate, whatever the difference, so that it settles on
the median of what it sees (McFarlane and Schofield 1995, *Segmentation and tracking of piglets in
images*): what passes leaves almost no trace, what stays is taken up after a while.

Pictures keep their proportions: a network sees the whole image, with black where it does not
reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from oc_perception.tracking.config import TrackerConfig

_NOISE = 1 / 255  # deviation of a pixel at least
_CLEAR = 3.0  # deviations from the background that are noise
_ROBUST = 1.4826  # median absolute deviation to standard deviation
_FLOODED = 0.5  # share of the image that stands out above which the background is another


@dataclass(frozen=True)
class View:
    """Where an image of `image_size` lies in the picture that a network sees; both `(height,
    width)` px. Of a window of the network, the object in it takes the `window_share`.
    """

    image_size: tuple[int, int]
    frame_size: tuple[int, int]
    window_share: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in the picture."""
        scale = min(f / i for f, i in zip(self.frame_size, self.image_size, strict=True))
        height, width = (max(1, round(scale * side)) for side in self.image_size)
        return height, width

    @property
    def corner(self) -> tuple[int, int]:
        """Its upper left pixel in the picture."""
        top, left = ((f - s) // 2 for f, s in zip(self.frame_size, self.size, strict=True))
        return top, left

    def to_pixels(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes `(..., 4)` of objects in the image, whose pixel centres are whole, from windows in
        widths of the picture.
        """
        scale = np.array(self.image_size[::-1]) / np.array(self.size[::-1])
        boxes = boxes * self.frame_size[1]
        centres = (boxes[..., :2] - self.corner[::-1]) * scale - 0.5
        return np.concatenate([centres, boxes[..., 2:] * scale * self.window_share], -1)


@dataclass(frozen=True)
class BackgroundState:
    """`image` `(h, w, 3)` and `deviation` `(h, w)` in [0, 1] once they are known; until then the
    `first` frames. `flooded` counts frames of another background. Arrays are never written.
    """

    first: tuple[np.ndarray, ...] = ()
    image: np.ndarray | None = None
    deviation: np.ndarray | None = None
    flooded: int = 0


class Foreground:
    """Shows a network of `frame_size` `(height, width)` what stands out; see TrackerConfig."""

    def __init__(self, config: TrackerConfig, frame_size: tuple[int, int]) -> None:
        self.config, self.frame_size = config, frame_size

    def step(
        self, state: BackgroundState, frame: np.ndarray, dt_s: float
    ) -> tuple[BackgroundState, np.ndarray | None]:
        """The picture `(H, W)` float32 in [0, 1] of `frame` `(h, w, 3)` uint8, `dt_s` after the
        last; None while there is no background yet.
        """
        view = View(frame.shape[:2], self.frame_size)
        small = cv2.resize(frame, view.size[::-1], interpolation=cv2.INTER_AREA)
        if self.config.background == "black":
            return state, self._framed(small.max(2).astype(np.float32) / 255, view)
        if state.image is None or state.image.shape != small.shape:
            return self._learned(state, small), None
        shown = small.astype(np.float32) / 255
        change = shown - state.image
        # Most of what is seen is background: if that is lighter all over, the lamps or the
        # exposure are.
        relit = change - np.median(change.reshape(-1, 3), 0)
        distance = np.abs(relit).max(2)
        clear = (distance - _CLEAR * state.deviation) / self.config.foreground_contrast
        picture = np.clip(clear, 0, 1).astype(np.float32)
        flooded = state.flooded + 1 if (picture > 0).mean() > _FLOODED else 0
        if flooded >= self.config.background_frames:
            return self._learned(BackgroundState(), small), None
        # Only time that was seen counts: after a blackout what stands there would be taken up.
        most = min(dt_s, self.config.frame_period_s) / self.config.background_s
        noise = np.clip(_ROBUST * distance - state.deviation, -most, most)
        deviation = state.deviation + np.where(picture > 0, 0, noise)
        state = replace(
            state,
            image=state.image + np.clip(change, -most, most),
            deviation=np.maximum(deviation, _NOISE),
            flooded=flooded,
        )
        return state, self._framed(picture, view)

    def _learned(self, state: BackgroundState, small: np.ndarray) -> BackgroundState:
        """The state after one of the first frames, `(h, w, 3)` uint8."""
        first = (*(f for f in state.first if f.shape == small.shape), small)
        if len(first) < self.config.background_frames:
            return BackgroundState(first)
        frames = np.stack(first).astype(np.float32) / 255
        image = np.median(frames, 0)
        deviation = _ROBUST * np.median(np.abs(frames - image).max(3), 0)
        return BackgroundState((), image, np.maximum(deviation, _NOISE))

    def _framed(self, picture: np.ndarray, view: View) -> np.ndarray:
        if view.size == self.frame_size:
            return picture
        (top, left), (height, width) = view.corner, view.size
        framed = np.zeros(self.frame_size, np.float32)
        framed[top : top + height, left : left + width] = picture
        return framed
