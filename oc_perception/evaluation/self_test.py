# SPDX-License-Identifier: Apache-2.0
"""The self-test of a replay: what a tracker makes of frames that are hidden from it, compared with
the run of the same tracker that sees them. It needs no truth.

At a stamp where a blackout starts, the run is forked: the branch is shown nothing for some frames,
then `SETTLE_FRAMES` more, and is dropped. A state is immutable, so that a fork costs a reference,
every blackout meets the tracker as it is on the robot, and blackouts may overlap. What is kept of
one is a row of numbers, so memory does not grow with the recording.

In the unhidden run an object is a confirmed track. Its prediction is compared in frames in which
the unhidden run saw it; a track that ends while it is blind leaves its object where it was last
reported, outside of every ellipse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import chi2

from oc_perception.evaluation.replay_runs import Runs, believed
from oc_perception.evaluation.replay_steps import Step
from oc_perception.evaluation.tracking import match
from oc_perception.pipeline import DiscoveryState, Perception
from oc_perception.types import Segmentation, SensorState, Track, TrackOutput, TrackState

LENGTHS = (1, 5, 10, 20)
"""Frames hidden in a row."""
HIDDEN_SHARE = 0.2
SCHEDULES = (*map(str, LENGTHS), f"bernoulli_{HIDDEN_SHARE}")
"""The last hides each frame of a second with this probability."""
BLACKOUTS = 20
"""How many of each schedule a recording is to have, if it is long enough."""
SETTLE_FRAMES = 5
"""Identities are compared in this frame seen after a blackout."""
_FIRST_START, _LEAST_SPACING = 10, 10
_WARM_UP_FRAMES = 30
"""Baselines of which nothing else is wanted are woken up as long before a blackout."""
_MOST_WINDOW_FRAMES = 60
_GATE_DIAGONALS = 0.05
"""Greatest distance at which a track is that of an object, image diagonals."""
_INSIDE_90 = chi2.ppf(0.9, 2)
_OUTCOMES = ("kept", "swapped", "new", "lost")


@dataclass
class Arm:
    """One tracker in one branch: `places` are where its tracks were last reported, by id."""

    state: Any
    places: dict[int, np.ndarray]
    alive: frozenset[int]
    output: TrackOutput | None = None
    errors_px: list[float] = field(default_factory=list)
    errors_sizes: list[float] = field(default_factory=list)
    inside: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_OUTCOMES, 0))


@dataclass
class Branch:
    """A blackout under way: `hidden` `(L,)` bool from step `start` on, whose stamp is `start_ns`
    (0: it is still to come), `age` steps of it done, `settled` frames seen after it. `discovery`
    is None for a model without memory.
    """

    schedule: str
    start: int
    hidden: np.ndarray
    discovery: DiscoveryState | None
    arms: dict[str, Arm]
    start_ns: int = 0
    age: int = 0
    settled: int = 0

    @property
    def blind(self) -> bool:
        """Whether the next step is hidden."""
        return self.age < len(self.hidden) and bool(self.hidden[self.age])

    def rows(self) -> list[dict[str, Any]]:
        """What became of it, one row per tracker."""
        return [
            {
                "schedule": self.schedule,
                "tracker": name,
                "start_step": self.start,
                "frames": int(self.hidden.sum()),
                "tracked": sum(arm.outcomes.values()),
                **arm.outcomes,
                "error_px": _mean(arm.errors_px),
                "error_sizes": _mean(arm.errors_sizes),
                "inside_90": arm.inside,
                "compared": len(arm.errors_px),
            }
            for name, arm in self.arms.items()
        ]


class SelfTest:
    """Hides frames of a replay from branches of its `runs`.

    `num_frames` and `rate_hz` are the recording's. Branches of a model with memory run the model
    themselves; otherwise all share what it found.
    """

    def __init__(
        self, perception: Perception, runs: Runs, num_frames: int, rate_hz: float, seed: int = 0
    ) -> None:
        self._discovery, self._runs, self._seed = perception.discovery, runs, seed
        self._has_memory = perception.discovery.model.initial_state(1) is not None
        self._spacing = max(_LEAST_SPACING, -(-num_frames // BLACKOUTS))
        self._window = int(np.clip(round(rate_hz), _LEAST_SPACING, _MOST_WINDOW_FRAMES))
        self._branches: list[Branch] = []
        self.taken: list[Branch] = []
        self.complete: list[Branch] = []
        self.started: list[Branch] = []
        self.rows: list[dict[str, Any]] = []

    def add(self, number: int, step: Step) -> None:
        """Take step `number` (from 0) of the replay, which `runs` have taken."""
        self.taken, self.complete, self.started = [], [], []
        if self._runs.restarted:
            self._branches = []
        if not self._runs.in_order:
            return
        self.taken = self._branches
        for branch in self.taken:
            self._advance(branch, step)
        self.complete = [branch for branch in self.taken if branch.settled == SETTLE_FRAMES]
        for branch in self.complete:
            self.rows += branch.rows()
        if step.output.segmentation.sensor_state == SensorState.OK:
            self.started = self._begun(number + 1, step)
        self._branches = [branch for branch in self.taken if branch.settled < SETTLE_FRAMES]
        self._branches += self.started

    def needs_baselines(self, number: int) -> bool:
        """Whether they have to take step `number`: a blackout is near, or under way."""
        return bool(self._branches) or self._until(number) <= _WARM_UP_FRAMES

    def _until(self, number: int) -> int:
        """Steps from `number` to the next in which blackouts start."""
        first = _FIRST_START - number
        return first if first > 0 else first % self._spacing

    def metrics(self) -> dict[str, Any]:
        """`self_test`: sums and means by schedule and tracker; `blackouts`: a row for each."""
        table = {
            schedule: {name: _summary(self.rows, schedule, name) for name in self._runs.names}
            for schedule in SCHEDULES
        }
        return {"self_test": table, "blackouts": self.rows}

    def _begun(self, start: int, step: Step) -> list[Branch]:
        """All schedules start together: so baselines can sleep most of a long recording."""
        if self._until(start):
            return []
        branches = []
        for schedule in SCHEDULES:
            arms = {
                name: Arm(
                    self._runs.states[name],
                    {t.id: t.box[:2] for t in _seen(output)},
                    frozenset(t.id for t in output.tracks if t.state != TrackState.LOST),
                )
                for name, output in self._runs.outputs.items()
            }
            memory = step.state.discovery if self._has_memory else None
            branches.append(Branch(schedule, start, self._pattern(schedule, start), memory, arms))
        return branches

    def _pattern(self, schedule: str, start: int) -> np.ndarray:
        if schedule != SCHEDULES[-1]:
            return np.ones(int(schedule), bool)
        rng = np.random.default_rng([self._seed, start])
        hidden = rng.random(self._window) < HIDDEN_SHARE
        hidden[0] |= not hidden.any()
        return hidden

    def _advance(self, branch: Branch, step: Step) -> None:
        branch.start_ns = branch.start_ns or step.stamp_ns
        blind = branch.blind
        usable = step.output.segmentation.sensor_state == SensorState.OK
        found = None if blind else self._found(branch, step)
        for name, arm in branch.arms.items():
            arm.state, arm.output = self._runs.step(name, arm.state, found, step)
            if blind and usable:
                self._compare(arm, self._runs.outputs[name])
        branch.age += 1
        if usable and branch.age > len(branch.hidden):
            branch.settled += 1
        if branch.settled == SETTLE_FRAMES:
            gate_px = _GATE_DIAGONALS * float(np.hypot(*step.frame.image.shape[:2]))
            for name, arm in branch.arms.items():
                _identify(arm, self._runs.outputs[name], gate_px)

    def _found(self, branch: Branch, step: Step) -> Segmentation:
        frame = step.frame
        if branch.discovery is None or not isinstance(getattr(frame, "image", None), np.ndarray):
            return step.output.segmentation
        branch.discovery, found = self._discovery.step(
            branch.discovery, frame.image, step.stamp_ns, frame.depth_m, frame.camera_matrix
        )
        return found

    @staticmethod
    def _compare(arm: Arm, unhidden: TrackOutput) -> None:
        objects = [track for track in _seen(unhidden) if track.id in arm.places]
        if not objects:
            return
        predicted = {track.id: track for track in believed(arm.output)}
        arm.places |= {i: track.box[:2] for i, track in predicted.items() if i in arm.places}
        boxes = np.array([track.box for track in objects])
        offsets = np.array([arm.places[track.id] for track in objects]) - boxes[:, :2]
        errors = np.hypot(*offsets.T)
        arm.errors_px += errors.tolist()
        arm.errors_sizes += (errors / np.maximum(1.0, np.sqrt(boxes[:, 2:].prod(1)))).tolist()
        there = [i for i, track in enumerate(objects) if track.id in predicted]
        if there:
            spreads = np.array([predicted[objects[i].id].covariance[:2, :2] for i in there])
            scaled = np.linalg.solve(spreads, offsets[there][..., None])[..., 0]
            arm.inside += int(((offsets[there] * scaled).sum(1) <= _INSIDE_90).sum())


def _identify(arm: Arm, unhidden: TrackOutput, gate_px: float) -> None:
    """Count what became of the objects that were seen before and are seen now."""
    objects = {t.id: t.box[:2] for t in _seen(unhidden) if t.id in arm.places}
    current = match(objects, arm.output, gate_px)
    for item in objects:
        found = current.get(item)
        if found is None:
            outcome = "lost"
        elif found == item:
            outcome = "kept"
        else:
            outcome = "swapped" if found in arm.alive else "new"
        arm.outcomes[outcome] += 1


def _seen(output: TrackOutput) -> list[Track]:
    return [track for track in output.tracks if track.state == TrackState.CONFIRMED]


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 6) if values else None


def _summary(rows: Sequence[Mapping[str, Any]], schedule: str, tracker: str) -> dict[str, Any]:
    """One cell of the table; means are over what was compared, None where that is nothing."""
    own = [row for row in rows if (row["schedule"], row["tracker"]) == (schedule, tracker)]
    sums = {name: sum(row[name] for row in own) for name in ("tracked", *_OUTCOMES, "compared")}
    inside = sum(row["inside_90"] for row in own)
    compared, tracked = sums["compared"], sums["tracked"]

    def mean(name: str) -> float | None:
        total = sum(row[name] * row["compared"] for row in own if row["compared"])
        return round(total / compared, 6) if compared else None

    return {
        "blackouts": len(own),
        **sums,
        "kept_share": round(sums["kept"] / tracked, 6) if tracked else None,
        "error_px": mean("error_px"),
        "error_sizes": mean("error_sizes"),
        "coverage_90": round(inside / compared, 6) if compared else None,
    }
