# SPDX-License-Identifier: Apache-2.0
"""A tracker that takes observations out of order, without waiting for any.

An observation that arrives late, within `TrackerConfig.reorder_window_s` of the newest, is put in
its place: the tracker goes back to the state from before the first observation that is newer, and
takes that one and all that followed again. States are immutable, so going back costs a reference.
From then on all is as if the observations had come in order; what was said in between is corrected
by the answer to the late one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.output import describe
from oc_perception.tracking.stamps import DuplicateStampError
from oc_perception.tracking.tracker import Tracker, TrackerState
from oc_perception.types import Segmentation, SensorState, TrackOutput, TrackState

MOST_KEPT = 64
"""Observations that can be taken again; more within the window are a fault of the stamps."""


@dataclass(frozen=True)
class Taken:
    """An observation, and the state of the tracker before it."""

    before: TrackerState
    segmentation: Segmentation
    stamp_ns: int
    frame: np.ndarray | None = None  # kept for a tracker that needs it


@dataclass(frozen=True)
class ReorderingState:
    """The tracker's state, and the last observations in the order of their stamps."""

    tracker: TrackerState
    taken: tuple[Taken, ...] = ()


class ReorderingTracker:
    """A Tracker with the same protocol, for observations that may come in any order."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        config = tracker.config
        window_s = min(config.reorder_window_s, config.clock_reset_threshold_s)
        self._window_ns = round(window_s * 1e9)

    @property
    def config(self) -> TrackerConfig:
        """The tracker's."""
        return self.tracker.config

    @property
    def needs_frame(self) -> bool:
        """The tracker's."""
        return self.tracker.needs_frame

    def initial_state(
        self, session: bytes, image_size: tuple[int, int] | None = None
    ) -> ReorderingState:
        """As the tracker's."""
        return ReorderingState(self.tracker.initial_state(session, image_size))

    def step(
        self,
        state: ReorderingState,
        segmentation: Segmentation | None,
        stamp_ns: int,
        frame: np.ndarray | None = None,
    ) -> tuple[ReorderingState, TrackOutput]:
        """As the tracker's, but a late observation within the window is taken too.

        The answer to that one is valid at the stamp of the newest observation, and reports LOST
        what it takes back. Raises DuplicateStampError for an observation that was taken before,
        StampError for one that is older than the window, and for late news of no observation.
        """
        if segmentation is None or segmentation.sensor_state != SensorState.OK:
            tracker, output = self.tracker.step(state.tracker, segmentation, stamp_ns)
            kept = state.taken if tracker.session == state.tracker.session else ()
            return ReorderingState(tracker, kept), output
        frame = frame if self.needs_frame else None
        newer = self._newer(state, stamp_ns)
        if not newer:
            tracker, output = self.tracker.step(state.tracker, segmentation, stamp_ns, frame)
            taken = Taken(state.tracker, segmentation, stamp_ns, frame)
            return self._with(state, taken, tracker), output

        again = ReorderingState(newer[0].before, state.taken[: -len(newer)])
        late = Taken(newer[0].before, segmentation, stamp_ns, frame)
        for taken in (late, *newer):
            taken = replace(taken, before=again.tracker)
            tracker, output = self.tracker.step(
                again.tracker, taken.segmentation, taken.stamp_ns, taken.frame
            )
            again = self._with(again, taken, tracker)
        return again, _corrected(state.tracker, again.tracker, output)

    def _newer(self, state: ReorderingState, stamp_ns: int) -> tuple[Taken, ...]:
        """The observations to take again after one at `stamp_ns`; none if that is the newest, or
        cannot be put in its place. Raises DuplicateStampError.
        """
        if stamp_ns in (taken.stamp_ns for taken in state.taken):
            raise DuplicateStampError(stamp_ns)
        newer = tuple(taken for taken in state.taken if taken.stamp_ns > stamp_ns)
        late = state.tracker.anchor_ns - stamp_ns > self._window_ns
        # The state before the oldest observation that is kept may know of newer ones still.
        known = bool(newer) and newer[0].before.anchor_ns < stamp_ns
        return newer if known and not late else ()

    def _with(self, state: ReorderingState, new: Taken, tracker: TrackerState) -> ReorderingState:
        """`state` once `new` has led to `tracker`, without what is older than the window."""
        same = tracker.session == state.tracker.session
        oldest_ns = new.stamp_ns - self._window_ns
        kept = tuple(taken for taken in state.taken if same and taken.stamp_ns >= oldest_ns)
        return ReorderingState(tracker, (*kept, new)[-MOST_KEPT:])


def _corrected(said: TrackerState, now: TrackerState, output: TrackOutput) -> TrackOutput:
    """`output` with LOST for the tracks that were believed, and are not any more."""
    known = [*now.tracks.ids.tolist(), *said.reported_lost]
    withdrawn = said.tracks[~np.isin(said.tracks.ids, known)]
    believed = (track for track in output.tracks if track.state != TrackState.LOST)
    lost = describe(withdrawn, np.full(len(withdrawn), TrackState.LOST))
    return replace(output, tracks=(*believed, *lost))
