# SPDX-License-Identifier: Apache-2.0
"""Perception's answers to the frames of a recording, and to those that are missing in it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from oc_perception.bags.sequence import Frame, Sequence
from oc_perception.evaluation.replay_timing import Stopwatch
from oc_perception.images import MalformedImage
from oc_perception.pipeline import Perception, PerceptionOutput, PerceptionState
from oc_perception.tracking.stamps import StampError, check_stamp
from oc_perception.types import SensorState

WATCHDOG_PERIODS = 1.5
"""A frame is missing when the gap is this many periods long, as in the live watchdog."""


@dataclass(frozen=True)
class Step:
    """One step of a replay: what was recorded (None where a frame was missing), the answer, and
    what perception remembers after it.
    """

    stamp_ns: int
    frame: Frame | None
    output: PerceptionOutput
    state: PerceptionState


@dataclass
class ReplayCounts:
    """What became of the frames of a recording."""

    frames: int = 0
    malformed: int = 0
    late: int = 0
    missing: int = 0
    first_error: str = ""

    def refuse(self, error: StampError) -> None:
        """A frame whose stamp cannot be used."""
        self.late += 1
        self.first_error = self.first_error or str(error)


def session_of(sequence: Sequence) -> bytes:
    """A UUID (16 bytes) that is the same for the same recording, wherever it lies."""
    return uuid.uuid5(uuid.NAMESPACE_OID, sequence.identity()).bytes


def steps(
    sequence: Sequence,
    perception: Perception,
    counts: ReplayCounts | None = None,
    on_frame: Callable[[], None] = lambda: None,
    watch: Stopwatch | None = None,
) -> Iterator[Step]:
    """Perception's answer to every frame of a recording, and to every frame that is missing in it.

    In a gap of more than WATCHDOG_PERIODS perception steps without a frame, at the camera's rate,
    while there is a track to predict. An image that cannot be decoded is a step without a frame,
    marked CORRUPT; one with a duplicate or zero stamp, or late by more than the window of
    perception, is left out. `counts` is filled on the way, `on_frame` called per recorded image,
    `watch` told how long everything takes.
    """
    counts = ReplayCounts() if counts is None else counts
    watch = watch or Stopwatch()
    period_ns = sequence.period_ns
    reset_s = perception.tracker.config.clock_reset_threshold_s
    window_s = perception.discovery.reorder_window_s
    perception = Perception(
        watch.timed(perception.discovery, "discovery"),
        watch.timed(perception.tracker, "tracking"),
    )
    state = perception.initial_state(session_of(sequence))
    last_ns, tracks_left = 0, False
    for frame in watch.each("read", sequence.frames(-math.inf)):  # clocks jump
        counts.frames += 1
        on_frame()
        try:
            reset = check_stamp(last_ns, frame.stamp_ns, reset_s, window_s)
        except StampError as error:
            counts.refuse(error)
            continue
        missing_ns = last_ns + period_ns
        while tracks_left and frame.stamp_ns - missing_ns > (WATCHDOG_PERIODS - 1) * period_ns:
            state, output = perception.step(state, None, missing_ns)
            counts.missing += 1
            tracks_left = bool(output.tracks.tracks)
            yield Step(missing_ns, None, output, state)
            missing_ns += period_ns
        if isinstance(frame.image, MalformedImage):
            counts.malformed += 1
            counts.first_error = counts.first_error or str(frame.image)
        try:
            state, output = _step(perception, state, frame)
        except StampError as error:  # a repetition within the window
            counts.refuse(error)
            continue
        last_ns = frame.stamp_ns if reset else max(last_ns, frame.stamp_ns)
        tracks_left = bool(output.tracks.tracks)
        yield Step(frame.stamp_ns, frame, output, state)


def _step(
    perception: Perception, state: PerceptionState, frame: Frame
) -> tuple[PerceptionState, PerceptionOutput]:
    """Perception's step; for an image that cannot be decoded a blind one that says why, as
    discovery_node and tracking_node take it.
    """
    if not isinstance(frame.image, MalformedImage):
        return perception.step(
            state, frame.image, frame.stamp_ns, frame.depth_m, frame.camera_matrix
        )
    discovery, segmentation = perception.discovery.step(state.discovery, None, frame.stamp_ns)
    segmentation = replace(segmentation, sensor_state=SensorState.CORRUPT)
    tracker, tracks = perception.tracker.step(state.tracker, segmentation, frame.stamp_ns)
    return PerceptionState(discovery, tracker), PerceptionOutput(segmentation, tracks)
