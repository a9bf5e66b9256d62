# SPDX-License-Identifier: Apache-2.0
"""Levels P and B of the blackout benchmark: the same motion as pictures, and as bags of pictures.

A blind frame is a black picture.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from oc_perception.bags.messages import image_message
from oc_perception.bags.sequence import open_sequence
from oc_perception.bags.writer import BagWriter
from oc_perception.evaluation.baselines import FIT_FRAMES
from oc_perception.evaluation.blackout import Chunk, Recording
from oc_perception.evaluation.blackout_scores import AFTER_FRAMES, SequenceTruth
from oc_perception.evaluation.box_trackers import BoxTracker
from oc_perception.evaluation.replay_steps import steps
from oc_perception.models.registry import load_model
from oc_perception.pipeline import Discovery, DiscoveryState, Perception
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import Segmentation, TrackOutput

_TOPIC = "/camera/image"


class Cameras:
    """A camera in front of each sequence of a chunk."""

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._discovery = _discovery(chunk.config.model)
        self._recordings: dict[int, Recording] = {}

    @cached_property
    def _pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames `(B, T, H, W, 3)` uint8 and labels `(B, T, H, W)`."""
        chunk = self._chunk
        images, labels = chunk.world.draw(chunk.motion, *chunk.config.image_size)
        frames = (images.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2)
        return frames.contiguous().numpy(), labels.long().numpy()

    @cached_property
    def truths(self) -> list[SequenceTruth]:
        """One per sequence, with labels."""
        labels = self._pictures[1]
        return [
            replace(truth, labels=own)
            for truth, own in zip(self._chunk.truths, labels, strict=True)
        ]

    def recording(self, row: int) -> Recording:
        """What discovery finds in the pictures of a sequence; computed once for all trackers."""
        if row not in self._recordings:
            self._recordings[row] = self._record(row)
        return self._recordings[row]

    def _record(self, row: int) -> Recording:
        frames, seen = self._pictures[0][row], self._chunk.seen[row]
        stamps = self.truths[row].stamps_ns.tolist()
        starts = self._starts
        state, trunk, tails = self._discovery.initial_state(), [], {}
        for frame in range(len(seen) + 1):
            if frame in starts:
                tails[frame] = self._discover(
                    state, frames[frame : frame + AFTER_FRAMES], stamps[frame:]
                )[1]
            if frame < len(seen):
                shown = frames[frame] if seen[frame] else np.zeros_like(frames[frame])
                state, found = self._discover(state, shown[None], stamps[frame:])
                trunk += found
        return Recording(trunk, tails, frames)

    def replay(
        self, tracker: Tracker | BoxTracker, row: int
    ) -> Iterator[tuple[int, list[TrackOutput]]]:
        """Write each run of a sequence as a bag, and replay it with the product's own code."""
        frames, seen = self._pictures[0][row], self._chunk.seen[row]
        shown = np.where(seen[:, None, None, None], frames[: len(seen)], np.uint8(0))
        perception = Perception(self._discovery, tracker)
        stamps = self.truths[row].stamps_ns.tolist()
        for start in self._starts or [len(seen)]:
            after = frames[start : start + AFTER_FRAMES] if self._starts else frames[:0]
            film = np.concatenate([shown[:start], after])
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch, "bag")
                with BagWriter(path) as bag:
                    for stamp, frame in zip(stamps, film, strict=False):
                        bag.write(_TOPIC, stamp, image_message(stamp, frame))
                with open_sequence(path) as sequence:
                    answers = list(steps(sequence, perception))
            yield start, [answer.output.tracks for answer in answers]

    @property
    def _starts(self) -> list[int]:
        """Frames in which the sensor comes back; none where the trunk says it all."""
        config = self._chunk.config
        if config.schedule != "blackout":
            return []
        return [FIT_FRAMES + length for length in config.lengths]

    def _discover(
        self, state: DiscoveryState, frames: np.ndarray, stamps: list[int]
    ) -> tuple[DiscoveryState, list[Segmentation]]:
        found = []
        for frame, stamp in zip(frames, stamps, strict=False):
            state, segmentation = self._discovery.step(state, frame, stamp)
            found.append(segmentation)
        return state, found


@lru_cache
def _discovery(model: str) -> Discovery:
    return Discovery(load_model(model))
