# SPDX-License-Identifier: Apache-2.0
"""A tracker that looks at the pictures: MOHART moves the boxes of all tracks, discovered objects
confirm, begin and end them.

What MOHART remembers of an object is the memory of its track, so everything else is the Tracker's:
the anchor, the association, births, existence, stamps. While nothing is observed MOHART goes on
from the anchor without frames, one step per period of the frames it learned from, and tracks are
in between two of these steps: how often anyone asks changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from oc_perception.models.boxes import iou
from oc_perception.models.mohart import MohartState
from oc_perception.models.registry import ModelError, load_model
from oc_perception.models.relations import Memory
from oc_perception.tracking.config import TrackerConfig, loaded_as
from oc_perception.tracking.motion import Belief
from oc_perception.tracking.table import Sightings
from oc_perception.tracking.tracker import Tracker

_SLOTS = 4
"""The network runs on a multiple of so many objects; what is over is absent."""
_ASTRAY_IOU = 0.2
"""A box that overlaps less with the object found for it does not see that object any more."""
_SAME_STEPS = 1e-5
"""Numbers of steps that differ by less are one: stamps are whole nanoseconds, periods are not."""


class MohartTracker(Tracker):
    """The Tracker whose boxes follow what they see in `frame`.

    A track begins anew at the object that was found for it where it has lost it from sight, or
    there is no frame to see: then tracking is by association alone. `model` replaces the one that
    `config.tracker_weights` names. Raises ModelError where that is missing, damaged, or of no use.
    """

    needs_frame = True
    motion: MohartMotion

    def __init__(self, config: TrackerConfig | None = None, model: Any = None) -> None:
        config = config or TrackerConfig(tracker="mohart")
        super().__init__(config, MohartMotion(config, model or _load(config.tracker_weights)))

    def with_config(self, config: TrackerConfig) -> MohartTracker:
        """See Tracker."""
        return MohartTracker(loaded_as(self.config, config), self.motion.model)

    def _moved(
        self,
        belief: Belief,
        image_size: tuple[int, int],
        dt_s: float,
        frame: np.ndarray | None,
    ) -> Belief:
        if frame is None:
            return self.motion.predict(belief, image_size, dt_s)
        return self.motion.look(belief, image_size, dt_s, frame)

    def _placed(
        self,
        belief: Belief,
        image_size: tuple[int, int],
        at: Sightings,
        dt_s: float,
        frame: np.ndarray | None,
    ) -> Belief:
        return self.motion.confirm(belief, at, seen=frame is not None)


class MohartMotion:
    """`models.mohart` as a MotionModel without an update: px and NumPy outside, widths and torch
    inside.

    A memory is the seconds since the object was found last, then its row of a MohartState; zeros
    are an object that begins where its track is.
    """

    def __init__(self, config: TrackerConfig, model: Any) -> None:
        self.config, self.model = config, model
        self._parts = (4, 4, 4, model.config.size, model.config.size, model.kept_size)
        self.memory_size = 1 + sum(self._parts)
        self._origin: tuple[np.ndarray, tuple[int, int]] | None = None
        self._blind: list[tuple[MohartState, np.ndarray]] = []

    @torch.inference_mode()
    def predict(self, belief: Belief, image_size: tuple[int, int], dt_s: float) -> Belief:
        """See MotionModel; memories are those of the nearest step. Boxes keep their sizes, of
        which nothing tells.
        """
        means = self._at(belief, image_size, np.array([dt_s]))
        state, _ = self._unseen(belief, image_size, round(dt_s / self.config.frame_period_s))
        memories = self._memories(state, belief.memories[:, 0] + dt_s)
        return self._believed(belief, means[:, 0], belief.sizes, memories)

    @torch.inference_mode()
    def forecast(
        self, belief: Belief, image_size: tuple[int, int], times_s: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See MotionModel."""
        elapsed_s = belief.memories[:, :1] + times_s
        means = self._at(belief, image_size, times_s)
        return means, self.config.box_errors(belief.sizes[:, None], elapsed_s)

    @torch.inference_mode()
    def look(
        self, belief: Belief, image_size: tuple[int, int], dt_s: float, frame: np.ndarray
    ) -> Belief:
        """The belief `dt_s` later, where `frame` `(H, W, 3)` uint8 RGB shows the objects."""
        period_s = self.config.frame_period_s
        steps = max(1, round(dt_s / period_s))
        state, _ = self._unseen(belief, image_size, steps - 1)
        state, boxes = self._step(state, self._picture(frame))
        going = (state.expected - state.boxes)[0, : len(belief.means), :2].numpy()
        boxes = _to_pixels(boxes[: len(belief.means)], image_size)
        means = np.concatenate([boxes[:, :2], going * (image_size[1] / period_s)], 1)
        memories = self._memories(state, belief.memories[:, 0] + dt_s)
        return self._believed(belief, means, boxes[:, 2:], memories)

    def confirm(self, belief: Belief, at: Sightings, seen: bool) -> Belief:
        """The belief once objects were found; all of them begin anew there unless they were
        `seen`, in a frame, and then those that went astray.
        """
        rows, found = at.rows, np.concatenate([at.positions, at.sizes], 1)
        boxes = np.concatenate([belief.means[rows, :2], belief.sizes[rows]], 1)
        overlap = iou(torch.from_numpy(boxes), torch.from_numpy(found)).numpy()
        lost = (overlap < _ASTRAY_IOU) | (not seen)
        means, sizes, memories = belief.means.copy(), belief.sizes.copy(), belief.memories.copy()
        means[rows[lost], :2], means[rows[lost], 2:] = at.positions[lost], 0.0
        sizes[rows[lost]] = at.sizes[lost]
        memories[rows[lost]] = 0.0
        memories[rows, 0] = 0.0
        return self._believed(belief, means, sizes, memories)

    # Parts

    def _at(self, belief: Belief, image_size: tuple[int, int], times_s: np.ndarray) -> np.ndarray:
        """Means `(N, K, 4)` after `times_s` `(K,)` without a frame: on straight lines from step to
        step.
        """
        period_s = self.config.frame_period_s
        steps = times_s / period_s
        whole = np.floor(steps + _SAME_STEPS).astype(int)
        self._unseen(belief, image_size, whole.max(initial=-1) + 1)
        boxes = np.stack([boxes for _, boxes in self._blind])
        centres = _to_pixels(boxes[:, : len(belief.means)], image_size)[..., :2]
        step = centres[whole + 1] - centres[whole]
        there = centres[whole] + np.maximum(steps - whole, 0.0)[:, None, None] * step
        return np.concatenate([there, step / period_s], -1).swapaxes(0, 1)

    def _unseen(
        self, belief: Belief, image_size: tuple[int, int], steps: int
    ) -> tuple[MohartState, np.ndarray]:
        """The state, and boxes `(slots, 4)` widths, `steps` after `belief` without a frame. Those
        of the last belief are kept.
        """
        if self._origin is None or not (
            self._origin[0] is belief.means and self._origin[1] == image_size
        ):
            self._origin = (belief.means, image_size)
            self._blind = [self._start(belief, image_size)]
        while len(self._blind) <= steps:
            self._blind.append(self._step(self._blind[-1][0], None))
        return self._blind[steps]

    def _start(
        self, belief: Belief, image_size: tuple[int, int]
    ) -> tuple[MohartState, np.ndarray]:
        count = len(belief.means)
        slots = -(-count // _SLOTS) * _SLOTS
        boxes = np.full((slots, 4), 0.5)  # harmless where nobody is
        boxes[:count, :2] = (belief.means[:, :2] + 0.5) / image_size[1]
        boxes[:count, 2:] = belief.sizes / image_size[1]
        memories = torch.zeros(1, slots, self.memory_size - 1)
        memories[0, :count] = torch.from_numpy(belief.memories[:, 1:])
        expected, windows, last, *memory, kept = memories.split(self._parts, -1)
        known = windows[..., 2] > 0
        kept = kept if self.model.kept_size else None
        state = MohartState(expected, windows, last, Memory(*memory), known, kept)
        state = self.model.start(state, torch.from_numpy(boxes).float()[None], ~known)
        return state._replace(present=torch.arange(slots)[None] < count), boxes

    def _step(self, state: MohartState, frame: Tensor | None) -> tuple[MohartState, np.ndarray]:
        state, boxes, _ = self.model.step(state, frame)
        # What an untrained or mistaken network adds up while blind must stay finite.
        state = state._replace(expected=_bounded(state.expected), boxes=_bounded(state.boxes))
        return state, _bounded(boxes)[0].double().numpy()

    def _picture(self, frame: np.ndarray) -> Tensor:
        """`(1, 3, h, w)`, as wide as the network knows pictures."""
        width = self.model.frame_size[1]
        size = (width, max(1, round(frame.shape[0] * width / frame.shape[1])))
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        return torch.from_numpy(small).permute(2, 0, 1).float()[None] / 255

    def _memories(self, state: MohartState, since_found_s: np.ndarray) -> np.ndarray:
        parts = [state.expected, state.windows, state.boxes, *state.memory]
        if state.kept is not None:
            parts.append(state.kept)
        rows = torch.cat(parts, -1)[0, : len(since_found_s)].double().numpy()
        return np.concatenate([since_found_s[:, None], rows], 1)

    def _believed(
        self, belief: Belief, means: np.ndarray, sizes: np.ndarray, memories: np.ndarray
    ) -> Belief:
        covariances = self.config.box_errors(sizes, memories[:, 0])
        return replace(
            belief, means=means, covariances=covariances, sizes=sizes, memories=memories
        )


def _bounded(boxes: Tensor) -> Tensor:
    """Boxes `(..., 4)` in widths, no further than a width from the image, nor twice its size."""
    centres, sizes = boxes.split(2, -1)
    return torch.cat([centres.clamp(-1, 2), sizes.clamp(1e-3, 2)], -1)


def _to_pixels(boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Boxes `(..., 4)` from widths; the left edge of an image is at -0.5 px."""
    return boxes * image_size[1] - np.array([0.5, 0.5, 0.0, 0.0])


def _load(name: str) -> Any:
    model = load_model(name, task="tracking")
    if model.config.horizon or model.config.relations == "mlp":
        raise ModelError(
            f"{name} cannot track here, where boxes are wanted for the frame that was seen and the"
            " number of objects changes: train it with horizon: 0 and other relations than mlp."
        )
    return model
