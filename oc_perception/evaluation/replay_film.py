# SPDX-License-Identifier: Apache-2.0
"""The film of a replay: annotated.mp4 and contact_sheet.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oc_perception.evaluation.draw import (
    VideoWriter,
    annotate,
    contact_sheet,
    dimmed,
    write_png,
)
from oc_perception.evaluation.replay_steps import Step

SHEET_TILES = 12
_SLOWEST_HZ = 0.1
"""Of a film: encoders refuse much less, and nobody waits for pictures minutes apart."""


class Film:
    """A context manager that paints about `video_hz` pictures per second of a recording of
    `rate_hz`: a picture takes longer than everything else that is done for a frame.
    """

    def __init__(self, directory: Path, rate_hz: float, video_hz: float) -> None:
        self._directory = directory
        self._stride = max(1, round(rate_hz / video_hz))
        self._rate_hz = max(_SLOWEST_HZ, rate_hz / self._stride)
        self._video: VideoWriter | None = None
        self._sheet = _Sheet()
        self._shown: np.ndarray | None = None
        self._start_ns = 0

    def __enter__(self) -> Film:
        return self

    def __exit__(self, kind: type[BaseException] | None, *reason: Any) -> None:
        if self._video is not None:
            self._video.__exit__(kind, *reason)
        if kind is None and self._sheet.tiles:
            write_png(self._directory / "contact_sheet.png", contact_sheet(self._sheet.choose()))

    def add(self, number: int, step: Step) -> None:
        """Take step `number` of the replay, from 0; without an image it is painted on a memory of
        the last.
        """
        self._start_ns = self._start_ns or step.stamp_ns
        image = None if step.frame is None else step.frame.image
        if isinstance(image, np.ndarray):
            self._shown = image
        if number % self._stride or self._shown is None:
            return  # not its turn, or no image could be decoded so far
        picture = annotate(
            self._shown if image is self._shown else dimmed(self._shown),
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
