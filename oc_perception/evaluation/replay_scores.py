# SPDX-License-Identifier: Apache-2.0
"""The numbers of a replay, in memory that does not grow with the recording: running sums, a
thinned series, and, where there are true boxes, the boxes of a stretch of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from oc_perception.evaluation import mot
from oc_perception.evaluation.mot_sequence import MotSequence
from oc_perception.evaluation.replay_runs import believed
from oc_perception.evaluation.segmentation import segmentation_scores
from oc_perception.types import Segmentation, SensorState, TrackOutput, TrackState

SERIES_POINTS = 500
STRETCH_FRAMES = 9000
"""Frames with true boxes that are scored together, five minutes at 30 Hz; longer recordings are
scored as several, which are added up as a benchmark adds up its sequences."""
_DISCOVERY = {"fg_ari": "fg_ari", "ari": "ari", "miou": "miou", "mbo": "msc"}
_TRACKING = ("hota", "det_a", "ass_a", "idf1", "mota", "id_switches")


@dataclass
class Summary:
    """Running totals over the steps."""

    sensor_states: Counter[str] = field(default_factory=Counter)
    sessions: int = 0
    tracks_confirmed: int = 0
    objects: int = 0
    tracked: int = 0
    _session: bytes = b""
    _confirmed: frozenset[int] = frozenset()

    def add(self, segmentation: Segmentation, output: TrackOutput) -> None:
        """Count one step."""
        self.sensor_states[output.sensor_state.name] += 1
        if output.session != self._session:
            self._session, self._confirmed = output.session, frozenset()
            self.sessions += 1
        seen = {track.id for track in output.tracks if track.state == TrackState.CONFIRMED}
        self.tracks_confirmed += len(seen - self._confirmed)
        # Of those that are gone nothing is kept: an id never comes again.
        self._confirmed = (self._confirmed | seen) & {track.id for track in output.tracks}
        if output.sensor_state == SensorState.OK:
            self.objects += len(segmentation.objects)
            self.tracked += len(seen)

    def metrics(self) -> dict[str, Any]:
        """Counts, and means over the frames that were seen."""
        observed = max(1, self.sensor_states[SensorState.OK.name])
        return {
            "steps": sum(self.sensor_states.values()),
            "sensor_states": dict(sorted(self.sensor_states.items())),
            "sessions": self.sessions,
            "tracks_confirmed": self.tracks_confirmed,
            "objects_per_frame": round(self.objects / observed, 4),
            "tracks_per_frame": round(self.tracked / observed, 4),
        }


class DiscoveryScores:
    """Segmentation against true masks; a frame without an object in view says nothing."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(_DISCOVERY, 0.0)
        self.frames = self.misfits = 0

    def add(self, truth: Segmentation | None, found: Segmentation) -> float | None:
        """Score a frame; returns its FG-ARI, None where there is nothing to score.

        Masks of another size than the image are counted as `misfits`.
        """
        true, labels = (None if s is None else s.label_image for s in (truth, found))
        if true is None or labels is None:
            return None
        if true.shape != labels.shape:
            self.misfits += 1
            return None
        if not true.any():
            return None
        maps = (torch.from_numpy(image.astype(np.int64))[None] for image in (true, labels))
        scores = segmentation_scores(*maps, names=_DISCOVERY.values())
        for name, source in _DISCOVERY.items():
            self._sums[name] += float(scores[source])
        self.frames += 1
        return float(scores["fg_ari"])

    def warnings(self) -> list[str]:
        """A line about masks that do not fit."""
        if not self.misfits:
            return []
        return [f"{self.misfits} true masks are of another size than the images: left out."]

    def metrics(self) -> dict[str, Any]:
        """Means over frames; empty where there was nothing to score."""
        if not self.frames:
            return {}
        means = {name: round(total / self.frames, 6) for name, total in self._sums.items()}
        return {"discovery": {"frames_with_truth": self.frames, **means}}


class TrackingScores:
    """HOTA, CLEAR and identity scores of several trackers against true boxes."""

    def __init__(self) -> None:
        self._truth: list[tuple[np.ndarray, np.ndarray]] = []
        self._said: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        self._sums: dict[str, mot.MotScores] = {}
        self._sessions: dict[bytes, int] = {}
        self.frames = self.repeated = 0

    def add(self, ids: np.ndarray, boxes: np.ndarray, outputs: Mapping[str, TrackOutput]) -> None:
        """Take a frame: true `ids` `(N,)` and `boxes` `(N, 4)`, and what each tracker said.

        Of boxes with one id the first counts, the others are counted as `repeated`.
        """
        own, first = np.unique(ids, return_index=True)
        self.repeated += len(ids) - len(own)
        self._truth.append((own.astype(np.int64), boxes[first].astype(np.float32)))
        for name, output in outputs.items():
            tracks = believed(output)
            session = self._sessions.setdefault(output.session, len(self._sessions))
            found = np.array([t.id + (session << 40) for t in tracks], np.int64)
            places = np.array([t.box for t in tracks], np.float32).reshape(-1, 4)
            self._said.setdefault(name, []).append((found, places))
        self.frames += 1
        if len(self._truth) == STRETCH_FRAMES:
            self._score()

    def warnings(self) -> list[str]:
        """A line about ids that are twice in a frame."""
        if not self.repeated:
            return []
        return [f"{self.repeated} true boxes have the id of another one in their frame: left out."]

    def metrics(self) -> dict[str, Any]:
        """Scores by tracker; empty where there were no boxes."""
        if self._truth:
            self._score()
        table = {}
        for name, scores in self._sums.items():
            summary = scores.summary()
            table[name] = {key: round(summary[key], 6) for key in _TRACKING}
            table[name]["frames"] = self.frames
        return {"tracking": table} if table else {}

    def _score(self) -> None:
        truth = [list(column) for column in zip(*self._truth, strict=True)]
        for name, said in self._said.items():
            tracks = [list(column) for column in zip(*said, strict=True)]
            scores = mot.score(MotSequence(*truth, *tracks))
            self._sums[name] = self._sums[name] + scores if name in self._sums else scores
        self._truth, self._said = [], {}


_Point = tuple[float, float, float, SensorState]


class Series:
    """Objects, tracks and the sensor's state over time, at most SERIES_POINTS points of a length
    that doubles when there are more: means, and the sensor's state furthest from OK.
    """

    def __init__(self) -> None:
        self._points: list[_Point] = []
        self._open: list[_Point] = []
        self._length = 1

    def add(self, elapsed_ns: int, segmentation: Segmentation, output: TrackOutput) -> None:
        """Take one step; time is since the first, and goes on where a clock was set back."""
        tracks = len(believed(output))
        point = (elapsed_ns * 1e-9, len(segmentation.objects), tracks, output.sensor_state)
        self._open.append(point)
        if len(self._open) < self._length:
            return
        self._points.append(_joined(self._open))
        self._open = []
        if len(self._points) == SERIES_POINTS:
            pairs = [self._points[i : i + 2] for i in range(0, len(self._points), 2)]
            self._points = [_joined(pair) for pair in pairs]
            self._length *= 2

    def metrics(self) -> dict[str, Any]:
        """Columns of the series."""
        points = [*self._points, *([_joined(self._open)] if self._open else [])]
        names = ("stamp_s", "objects", "tracks")
        series = {name: [point[i] for point in points] for i, name in enumerate(names)}
        return {"series": {**series, "sensor_state": [point[3].name for point in points]}}


def _joined(points: list[_Point]) -> _Point:
    times, objects, tracks, states = zip(*points, strict=True)
    count = len(points)
    return (
        round(times[0], 4),
        round(sum(objects) / count, 4),
        round(sum(tracks) / count, 4),
        max(states),
    )
