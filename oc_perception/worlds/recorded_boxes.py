# SPDX-License-Identifier: Apache-2.0
"""Recordings in which boxes tell who is where: the raw material of `recorded_tracks`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oc_perception.bags.cache import cached_frames
from oc_perception.bags.definitions import TRACKS
from oc_perception.bags.messages import track_output_from_messages
from oc_perception.bags.reader import Bag
from oc_perception.bags.sequence import TrueBoxes, open_sequence
from oc_perception.configuration import ConfigurationError
from oc_perception.types import TrackState

_FOLLOWED = (TrackState.CONFIRMED, TrackState.COASTING)
_HALF_PIXEL = np.array([0.5, 0.5, 0.0, 0.0])  # pixel centres are at integers


@dataclass(frozen=True)
class Recording:
    """N frames with boxes of M identities.

    `images` `(N, h, w, 3)` uint8 may be memory-mapped, and squeezed: the picture is `aspect` times
    as high as wide. `boxes` `(N, M, 4)` centre x, y, width, height in image widths, anything where
    not `present` `(N, M)`; `times_s` `(N,)`.
    """

    name: str
    images: np.ndarray
    boxes: np.ndarray
    present: np.ndarray
    times_s: np.ndarray
    aspect: float

    @property
    def period_s(self) -> float:
        """The median time between frames."""
        return float(np.median(np.diff(self.times_s)))

    def part(self, first: int, last: int) -> Recording:
        """Frames `first` to before `last`, and who is present there."""
        there = self.present[first:last].any(0)
        return Recording(
            self.name,
            self.images[first:last],
            self.boxes[first:last, there],
            self.present[first:last, there],
            self.times_s[first:last],
            self.aspect,
        )


def load_recording(
    bag: str,
    size: tuple[int, int],
    topic: str | None = None,
    truth: str | None = None,
    fps: float | None = None,
) -> Recording:
    """The recording `bag` at `size` `(height, width)` px.

    `truth` is the file of its boxes in MOTChallenge's format, where they are not found in the
    recording, or the results of a replay, whose tracks are taken for true. Raises BagError, and
    ConfigurationError where there are no boxes.
    """
    tracked = None if truth is None or Path(truth).is_file() else Path(truth)
    text = None if tracked else truth
    with open_sequence(bag, topic, text, fps) as sequence:
        frames = (frame.image for frame in sequence.frames())
        height, width = next(x.shape[:2] for x in frames if isinstance(x, np.ndarray))
    cached = cached_frames(bag, size, topic, truth=text, fps=fps)
    scale = np.array([1 / size[1], height / width / size[0]])
    found = cached.boxes
    if tracked is not None:
        scale = np.array([1 / width, 1 / width])
        found = _tracks(tracked, cached.stamps_ns, cached.period_ns)
    counts = [0 if boxes is None else len(boxes.ids) for boxes in found]
    if len(found) < 2 or not any(counts):
        raise ConfigurationError(
            f"Nothing tells who is where in {cached.name}: give a MOTChallenge gt.txt, or the"
            " results of a replay, as world_config.truth."
        )
    known = [boxes for boxes in found if boxes is not None]
    ids, column = np.unique(np.concatenate([b.ids for b in known]), return_inverse=True)
    row = np.repeat(np.arange(len(found)), counts)
    pixels = np.concatenate([b.boxes for b in known])
    boxes = np.full((len(found), len(ids), 4), 0.5, np.float32)
    boxes[row, column] = (pixels + _HALF_PIXEL) * np.tile(scale, 2)
    present = np.zeros(boxes.shape[:2], bool)
    present[row, column] = True
    times_s = (cached.stamps_ns - cached.stamps_ns[0]) * 1e-9
    return Recording(cached.name, cached.images, boxes, present, times_s, height / width)


def _tracks(results: Path, stamps_ns: np.ndarray, period_ns: int) -> list[TrueBoxes | None]:
    """What a replay followed at these stamps, in px of its images; None where it says nothing of
    the time.
    """
    said: dict[int, TrueBoxes] = {}
    with Bag(results) as bag:
        topics = [topic for topic, kind in bag.topics.items() if kind == TRACKS]
        for _, _, message in bag.messages(topics):
            output = track_output_from_messages(message)
            tracks = [track for track in output.tracks if track.state in _FOLLOWED]
            said[output.stamp_ns] = TrueBoxes(
                np.array([track.id for track in tracks], np.int64),
                np.array([track.box for track in tracks]).reshape(-1, 4),
            )
    if not said:
        return [None] * len(stamps_ns)
    times = np.array(sorted(said))
    right = np.searchsorted(times, stamps_ns).clip(1, max(1, len(times) - 1))
    choices = np.stack([right - 1, right.clip(max=len(times) - 1)])
    distance = np.abs(times[choices] - stamps_ns)
    nearest = np.where(distance[0] <= distance[1], choices[0], choices[1])
    near = distance.min(0) <= period_ns / 2
    return [said[times[k]] if ok else None for k, ok in zip(nearest, near, strict=True)]
