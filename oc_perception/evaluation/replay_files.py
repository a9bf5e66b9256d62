# SPDX-License-Identifier: Apache-2.0
"""The files that a replay writes step by step; each appears under its name when it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
from oc_perception.types import TrackOutput

SHEET_TILES = 12


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


def write_messages(bag: BagWriter, step: Any) -> None:
    """Append what was found and what is believed to a results bag, as nodes would publish it."""
    tracks, trajectories = track_messages(step.output.tracks)
    bag.write(
        "/discovery_node/segmentation",
        step.stamp_ns,
        segmentation_message(step.output.segmentation),
    )
    bag.write("/tracking_node/tracks", step.stamp_ns, tracks)
    bag.write("/tracking_node/trajectories", step.stamp_ns, trajectories)


def mot_lines(number: int, output: TrackOutput) -> Iterator[str]:
    """MOTChallenge rows of the tracks that are believed, seen or predicted."""
    for track in believed(output):
        cx, cy, width, height = track.box
        # MOTChallenge counts pixels from 1, and names the first pixel inside the box.
        left, top = cx - (width - 1) / 2 + 1, cy - (height - 1) / 2 + 1
        yield (
            f"{number},{track.id},{left:.2f},{top:.2f},{width:.2f},{height:.2f},"
            f"{track.existence_probability:.4f},-1,-1,-1\n"
        )


class Film:
    """annotated.mp4 and contact_sheet.png, drawn on a thread of their own, one step behind."""

    def __init__(self, output_dir: Path, rate_hz: float) -> None:
        self._output_dir, self._rate_hz = output_dir, rate_hz
        self._painter = ThreadPoolExecutor(max_workers=1)
        self._painting: Future[None] | None = None
        self._video: VideoWriter | None = None
        self._sheet = _Sheet()
        self._shown: np.ndarray | None = None
        self._start_ns = 0

    def __enter__(self) -> Film:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._painter.shutdown(cancel_futures=kind is not None)
        whole = kind is None and (self._painting is None or self._painting.exception() is None)
        if self._video is not None:
            self._video.__exit__(None if whole else RuntimeError, None, None)
        if kind is None:
            self._wait()
        if whole and self._sheet.tiles:
            write_png(self._output_dir / "contact_sheet.png", contact_sheet(self._sheet.choose()))

    def add(self, step: Any) -> None:
        """Paint a step, as soon as the one before is done."""
        self._wait()
        self._painting = self._painter.submit(self._paint, step)

    def _wait(self) -> None:
        if self._painting is not None:
            self._painting.result()

    def _paint(self, step: Any) -> None:
        image = None if step.frame is None else step.frame.image
        if isinstance(image, np.ndarray):
            self._shown = image
        if self._shown is None:
            return  # the bag starts with frames that cannot be decoded
        self._start_ns = self._start_ns or step.stamp_ns
        picture = annotate(
            self._shown if image is self._shown else dimmed(self._shown),
            step.output.tracks,
            step.output.segmentation.label_image,
            caption=f"{(step.stamp_ns - self._start_ns) * 1e-9:.2f} s",
        )
        if self._video is None:
            path = self._output_dir / "annotated.mp4"
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
