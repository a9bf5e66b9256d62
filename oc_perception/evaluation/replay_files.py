# SPDX-License-Identifier: Apache-2.0
"""The files that a replay writes step by step; each appears under its name when it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from oc_perception.bags.messages import segmentation_message, track_messages
from oc_perception.bags.writer import BagWriter
from oc_perception.evaluation.replay_film import Film
from oc_perception.evaluation.replay_runs import believed
from oc_perception.evaluation.replay_steps import Step
from oc_perception.evaluation.replay_timing import Stopwatch
from oc_perception.types import TrackOutput

TOPICS = ("/discovery_node/segmentation", "/tracking_node/tracks", "/tracking_node/trajectories")
"""Of the results bag: what nodes would publish."""


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name on a clean exit only."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _mot_lines(number: int, output: TrackOutput) -> Iterator[str]:
    """MOTChallenge rows of the tracks that are believed, seen or predicted."""
    for track in believed(output):
        cx, cy, width, height = track.box
        # MOTChallenge counts pixels from 1, and names the first pixel inside the box.
        left, top = cx - (width - 1) / 2 + 1, cy - (height - 1) / 2 + 1
        yield (
            f"{number},{track.id},{left:.2f},{top:.2f},{width:.2f},{height:.2f},"
            f"{track.existence_probability:.4f},-1,-1,-1\n"
        )


class Files:
    """A context manager that writes what each step adds: results/, tracks.txt, and the film.

    All at once: most of the work is Python's, so that threads beside, which wait for one another,
    were measured to cost more than they gain.
    """

    def __init__(self, directory: Path, rate_hz: float, video_hz: float, watch: Stopwatch) -> None:
        self._directory, self._watch = directory, watch
        self._film = Film(directory, rate_hz, video_hz) if video_hz else None

    def __enter__(self) -> Files:
        with ExitStack() as stack:
            self._bag = stack.enter_context(
                BagWriter(self._directory / "results", compress=True, overwrite=True)
            )
            self._tracks = stack.enter_context(whole_file(self._directory / "tracks.txt"))
            if self._film:
                stack.enter_context(self._film)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *reason: Any) -> None:
        self._stack.__exit__(*reason)

    def add(self, number: int, step: Step) -> None:
        """Write step `number`, from 0."""
        with self._watch.stage("write"):
            tracks, trajectories = track_messages(step.output.tracks)
            found = segmentation_message(step.output.segmentation)
            for topic, message in zip(TOPICS, (found, tracks, trajectories), strict=True):
                self._bag.write(topic, step.stamp_ns, message)
            self._tracks.writelines(_mot_lines(number + 1, step.output.tracks))
            if self._film:
                self._film.add(number, step)
