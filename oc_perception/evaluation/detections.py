# SPDX-License-Identifier: Apache-2.0
"""How many true boxes of a recording are found, whatever finds them, and with what false alarms.

Beside discovery models stand ways that learn nothing: background subtraction by the median of the
recording and by MOG2 (Zivkovic 2004), each connected component being a detection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from oc_perception.bags.sequence import Sequence
from oc_perception.evaluation.draw import color
from oc_perception.evaluation.mot_sequence import iou
from oc_perception.pipeline import Discovery
from oc_perception.types import Segmentation

MEDIAN_THRESHOLDS = (25, 40, 60)
"""Differences of a colour channel, of 255, that baselines take for something."""
_MEDIAN_FRAMES = 60
_MIN_AREA = 0.002  # of the picture, as in `Discovery`
_CLOSING = 0.02  # of the picture's height: gaps that background subtraction closes
_TILE_PX = 320
_TRUE, _FOUND = (255, 255, 255), (255, 220, 0)

Finder = Callable[[np.ndarray, int], np.ndarray]
"""Boxes `(M, 4)`, `(cx, cy, w, h)` px, in a frame `(H, W, 3)` uint8 RGB of a stamp in ns."""


Scores = dict[str, float | int | None]


class ModelFinder:
    """The objects of `Discovery`, as their tight rectangles; remembers the last segmentation."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery, self._state = discovery, discovery.initial_state()
        self.segmentation: Segmentation | None = None

    def __call__(self, frame: np.ndarray, stamp_ns: int) -> np.ndarray:
        self._state, self.segmentation = self._discovery.step(self._state, frame, stamp_ns)
        regions = [detection.region for detection in self.segmentation.objects]
        return _centred(np.array(regions, float).reshape(-1, 4))


def median_difference(background: np.ndarray, threshold: int) -> Finder:
    """Connected pixels that differ from `background` `(H, W, 3)` by more than `threshold`."""

    def find(frame: np.ndarray, stamp_ns: int) -> np.ndarray:
        return _components(cv2.absdiff(frame, background).max(2) > threshold)

    return find


def mixture_of_gaussians() -> Finder:
    """Connected foreground of OpenCV's MOG2, which learns as it goes; without shadows."""
    subtractor = cv2.createBackgroundSubtractorMOG2(history=200)

    def find(frame: np.ndarray, stamp_ns: int) -> np.ndarray:
        return _components(subtractor.apply(frame) == 255)

    return find


def median_frame(sequence: Sequence) -> np.ndarray:
    """The median `(H, W, 3)` uint8 of up to 60 evenly spaced frames."""
    every = max(1, sequence.num_frames // _MEDIAN_FRAMES)
    frames = [
        frame.image
        for number, frame in enumerate(sequence.frames())
        if number % every == 0 and isinstance(frame.image, np.ndarray)
    ]
    return np.median(np.stack(frames[:_MEDIAN_FRAMES]), 0).astype(np.uint8)


def score_finders(
    sequence: Sequence, finders: Mapping[str, Finder], threshold: float, held_out: float
) -> dict[str, dict[str, Scores]]:
    """Scores by finder over `all` frames with true boxes, and over those in the last `held_out`
    share of the recording. Frames that cannot be decoded are left out.
    """
    stamps_ns, counts, scored = [], [], []
    for frame in sequence.frames():
        if not isinstance(frame.image, np.ndarray):
            continue
        boxes = [find(frame.image, frame.stamp_ns) for find in finders.values()]
        stamps_ns.append(frame.stamp_ns)
        if frame.boxes is not None:
            counts.append([count_matches(frame.boxes.boxes, found, threshold) for found in boxes])
            scored.append(frame.stamp_ns)
    table = np.array(counts).reshape(-1, len(finders), 3)
    begin_ns = stamps_ns[0] + (1 - held_out) * (stamps_ns[-1] - stamps_ns[0])
    late = np.array(scored) >= begin_ns
    return {
        name: {"all": _scores(table[:, index]), "held_out": _scores(table[late, index])}
        for index, name in enumerate(finders)
    }


def count_matches(true: np.ndarray, found: np.ndarray, threshold: float) -> tuple[int, int, int]:
    """Matches, true and found boxes, when as many as possible of `true` `(N, 4)` and `found`
    `(M, 4)` are paired that overlap by an IoU of at least `threshold`.
    """
    overlap = iou(true[:, None], found[None])
    pairs = linear_sum_assignment(np.where(overlap >= threshold, 1 + overlap, 0), maximize=True)
    return int((overlap[pairs] >= threshold).sum()), len(true), len(found)


def _scores(counts: np.ndarray) -> Scores:
    """Of `counts` `(frames, 3)`; a share is None where there is nothing to divide by."""
    matched, true, found = (int(total) for total in counts.sum(0))
    return {
        "recall": matched / true if true else None,
        "precision": matched / found if found else None,
        "matched": matched,
        "true": true,
        "found": found,
        "frames": len(counts),
    }


def film_strip(
    frames: list[np.ndarray], truths: list[np.ndarray], finder: ModelFinder, footage: bool = True
) -> np.ndarray:
    """Two rows on white: `frames` `(H, W, 3)` with their true boxes `(N, 4)`, below them what the
    model finds, each slot in a colour of its own. Without `footage` on black.
    """
    upper, lower = [], []
    for number, (frame, true) in enumerate(zip(frames, truths, strict=True)):
        found = finder(frame, 1_000_000_000 * (number + 1))
        labels = finder.segmentation.label_image
        shown = frame if footage else np.zeros_like(frame)
        canvas = shown // 2
        for detection in finder.segmentation.objects:
            canvas[labels == detection.label] = color(1 + detection.label)
        upper.append(_tile(shown, true, _TRUE))
        lower.append(_tile(canvas, found, _FOUND))
    return np.vstack([np.hstack(upper), np.hstack(lower)])


def _tile(image: np.ndarray, boxes: np.ndarray, ink: tuple[int, int, int]) -> np.ndarray:
    scale = _TILE_PX / image.shape[1]
    tile = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for centre, size in zip(boxes[:, :2], boxes[:, 2:], strict=True):
        corners = (((centre + part * size) * scale).round().astype(int) for part in (-0.5, 0.5))
        cv2.rectangle(tile, *(tuple(map(int, corner)) for corner in corners), ink, 1, cv2.LINE_AA)
    return cv2.copyMakeBorder(tile, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def _components(mask: np.ndarray) -> np.ndarray:
    size = 2 * round(_CLOSING * mask.shape[0] / 2) + 1
    kernel = np.ones((size, size), np.uint8)
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    statistics = cv2.connectedComponentsWithStats(closed)[2][1:]
    large = statistics[:, cv2.CC_STAT_AREA] >= _MIN_AREA * mask.size
    return _centred(statistics[large, :4].astype(float))


def _centred(rectangles: np.ndarray) -> np.ndarray:
    """`(left, top, width, height)` in whole pixels as `(cx, cy, w, h)`."""
    corner, size = rectangles[:, :2], rectangles[:, 2:]
    return np.hstack([corner + (size - 1) / 2, size])
