# SPDX-License-Identifier: Apache-2.0
"""The trackers of a replay side by side: the run's own, and baselines that are given the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oc_perception.evaluation.box_trackers import BYTETRACK, SORT, BoxTracker
from oc_perception.evaluation.replay_steps import Step
from oc_perception.pipeline import Perception
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.reordering import ReorderingState
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import Segmentation, Track, TrackOutput, TrackState

BASELINES = ("kalman", "hold", "sort", "bytetrack")


def tracker_name(config: TrackerConfig) -> str:
    """What a tracker is called in tables: how it moves objects."""
    return config.tracker if config.tracker != "filter" else config.motion_model


def believed(output: TrackOutput) -> list[Track]:
    """The tracks that count as said: confirmed, or coasting."""
    return [t for t in output.tracks if t.state in (TrackState.CONFIRMED, TrackState.COASTING)]


class Runs:
    """All trackers after the newest step, by name: `states` and `outputs`.

    The own tracker is stepped by perception, and known from its steps. Baselines take frames in
    the order of their stamps alone: `in_order` says whether the newest was in order, `restarted`
    whether it began a new session. None of them makes trajectories, which nobody scores.
    """

    def __init__(self, perception: Perception, period_s: float, baselines: bool) -> None:
        own = perception.tracker
        own = getattr(own, "tracker", own)  # out of its ReorderingTracker
        config = own.config
        self.own = tracker_name(config)
        self._trackers: dict[str, Any] = {
            self.own: own.with_config(replace(config, horizon_s=0.0))
        }
        plain = replace(config, tracker="filter", horizon_s=0.0)
        made = {
            "kalman": lambda: Tracker(replace(plain, motion_model="kalman")),
            "hold": lambda: Tracker(replace(plain, motion_model="hold")),
            "sort": lambda: BoxTracker(SORT, period_s),
            "bytetrack": lambda: BoxTracker(BYTETRACK, period_s),
        }
        for name in BASELINES if baselines else ():
            if name != self.own:
                self._trackers[name] = made[name]()
        self._newest_ns, self._session = 0, b""
        self.names = tuple(self._trackers)
        self.states: dict[str, Any] = {}
        self.outputs: dict[str, TrackOutput] = {}
        self.in_order = self.restarted = False

    def add(self, step: Step, baselines: bool = True) -> None:
        """Take the next step of the replay; a baseline that is left out forgets everything."""
        session = step.output.tracks.session
        self.restarted = session != self._session
        self.in_order = self.restarted or step.stamp_ns > self._newest_ns
        if self.restarted or not baselines:
            self._session = session
            self.states, self.outputs = {}, {}
        own = step.state.tracker
        self.states[self.own] = own.tracker if isinstance(own, ReorderingState) else own
        self.outputs[self.own] = step.output.tracks
        if not self.in_order:
            return
        self._newest_ns = step.stamp_ns
        for name in self.names[1:] if baselines else ():
            state = self.states.get(name) or self._trackers[name].initial_state(session)
            self.states[name], self.outputs[name] = self.step(
                name, state, step.output.segmentation, step
            )

    def step(
        self, name: str, state: Any, found: Segmentation | None, step: Step
    ) -> tuple[Any, TrackOutput]:
        """Advance a tracker from `state` to the stamp of `step`, where this was `found`."""
        tracker = self._trackers[name]
        image = () if step.frame is None else (step.frame.image,)
        picture = image if getattr(tracker, "needs_frame", False) and found is not None else ()
        return tracker.step(state, found, step.stamp_ns, *picture)
