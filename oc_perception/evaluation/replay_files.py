# SPDX-License-Identifier: Apache-2.0
"""The files that a replay writes step by step; each appears under its name when it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from oc_perception.bags.messages import segmentation_message, track_messages
from oc_perception.bags.writer import BagWriter
from oc_perception.evaluation.draw import (
    VideoWriter,
    annotate,
    contact_sheet,
    dimmed,
    write_png,
)
from oc_perception.evaluation.replay_runs import believed
from oc_perception.evaluation.replay_threads import Behind
from oc_perception.evaluation.replay_timing import Stopwatch
from oc_perception.types import TrackOutput

TOPICS = ("/discovery_node/segmentation", "/tracking_node/tracks", "/tracking_node/trajectories")
"""Of the results bag: what nodes would publish."""
SHEET_TILES = 12
_PICTURES_BEHIND = 3


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
    """A context manager that writes what each step adds, on threads of their own: results/ and
    tracks.txt on one, annotated.mp4 and contact_sheet.png on the other.

    The film has about `video_hz` pictures per second of a recording of `rate_hz`; 0: no film.
    """

    def __init__(self, directory: Path, rate_hz: float, video_hz: float, watch: Stopwatch) -> None:
        self._directory, self._watch = directory, watch
        self._film = _Film(directory, rate_hz, video_hz) if video_hz else None

    def __enter__(self) -> Files:
        with ExitStack() as stack:
            self._bag = stack.enter_context(
                BagWriter(self._directory / "results", compress=True, overwrite=True)
            )
            self._tracks = stack.enter_context(whole_file(self._directory / "tracks.txt"))
            if self._film:
                stack.enter_context(self._film)
                self._painter = stack.enter_context(Behind(_PICTURES_BEHIND))
            self._writer = stack.enter_context(Behind())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *reason: Any) -> None:
        self._stack.__exit__(*reason)

    def add(self, number: int, step: Any) -> None:
        """Write step `number`, from 0."""
        self._writer.add(self._write, number, step)
        if self._film and self._film.wants(number, step):
            self._painter.add(self._film.paint, step, self._film.shown)

    def _write(self, number: int, step: Any) -> None:
        with self._watch.stage("write"):
            tracks, trajectories = track_messages(step.output.tracks)
            found = segmentation_message(step.output.segmentation)
            for topic, message in zip(TOPICS, (found, tracks, trajectories), strict=True):
                self._bag.write(topic, step.stamp_ns, message)
            self._tracks.writelines(_mot_lines(number + 1, step.output.tracks))


class _Film:
    """annotated.mp4 and contact_sheet.png."""

    def __init__(self, directory: Path, rate_hz: float, video_hz: float) -> None:
        self._directory = directory
        self._stride = max(1, round(rate_hz / video_hz))
        self._rate_hz = rate_hz / self._stride
        self._video: VideoWriter | None = None
        self._sheet = _Sheet()
        self._start_ns = 0
        self.shown: np.ndarray | None = None

    def __enter__(self) -> _Film:
        return self

    def __exit__(self, kind: type[BaseException] | None, *reason: Any) -> None:
        if self._video is not None:
            self._video.__exit__(kind, *reason)
        if kind is None and self._sheet.tiles:
            write_png(self._directory / "contact_sheet.png", contact_sheet(self._sheet.choose()))

    def wants(self, number: int, step: Any) -> bool:
        """Whether step `number` is one to paint, on the image `shown`: the newest so far."""
        self._start_ns = self._start_ns or step.stamp_ns
        if step.frame is not None and isinstance(step.frame.image, np.ndarray):
            self.shown = step.frame.image
        return number % self._stride == 0 and self.shown is not None

    def paint(self, step: Any, shown: np.ndarray) -> None:
        """Draw and encode a step."""
        own = step.frame is not None and step.frame.image is shown
        picture = annotate(
            shown if own else dimmed(shown),
            step.output.tracks,
            step.output.segmentation.label_image,
            caption=f"{(step.stamp_ns - self._start_ns) * 1e-9:.2f} s",
        )
        if self._video is None:
            path = self._directory / "annotated.mp4"
            self._video = VideoWriter(path, self._rate_hz, *picture.shape[:2]).__enter__()
        self._video.write(picture)
        self._sheet.add(picture)


class _Sheet:
    """Evenly spaced pictures of a sequence whose length is unknown, in bounded memory."""

    def __init__(self) -> None:
        self.tiles: list[np.ndarray] = []
        self._stride, self._seen = 1, 0

    def add(self, picture: np.ndarray) -> None:
        if self._seen % self._stride == 0:
            self.tiles.append(picture)
            if len(self.tiles) == 2 * SHEET_TILES:
                self.tiles = self.tiles[::2]
                self._stride *= 2
        self._seen += 1

    def choose(self) -> list[np.ndarray]:
        count = min(SHEET_TILES, len(self.tiles))
        return [
            self.tiles[i] for i in np.linspace(0, len(self.tiles) - 1, count).round().astype(int)
        ]
