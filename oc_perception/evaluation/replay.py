# SPDX-License-Identifier: Apache-2.0
"""Perception over a bag, offline: the same `step` as on the robot, equal bytes in every run."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from oc_perception.bags.frames import Frame
from oc_perception.bags.messages import segmentation_message, track_messages
from oc_perception.bags.reader import Bag, BagTopics
from oc_perception.bags.writer import BagWriter
from oc_perception.evaluation.draw import (
    VideoWriter,
    annotate,
    contact_sheet,
    dimmed,
    write_png,
)
from oc_perception.evaluation.segmentation import fg_ari, miou
from oc_perception.images import MalformedImage
from oc_perception.pipeline import Perception, PerceptionOutput, PerceptionState
from oc_perception.tracking.stamps import StampError, check_stamp
from oc_perception.types import Segmentation, SensorState, TrackOutput, TrackState

WATCHDOG_PERIODS = 1.5
"""A frame is missing when the gap is this many periods long, as in the live watchdog."""
SHEET_TILES = 12


@dataclass(frozen=True)
class Step:
    """One step of a replay: what the bag held (None where a frame was missing), and the answer."""

    stamp_ns: int
    frame: Frame | None
    output: PerceptionOutput


@dataclass
class ReplayCounts:
    """What became of the frames of a bag."""

    frames: int = 0
    malformed: int = 0
    late: int = 0
    missing: int = 0
    first_error: str = ""

    def refuse(self, error: StampError) -> None:
        """A frame whose stamp cannot be used."""
        self.late += 1
        self.first_error = self.first_error or str(error)


def session_of(bag: Bag, topics: BagTopics) -> bytes:
    """A UUID (16 bytes) that is the same for the same recording, wherever it lies."""
    name = f"{topics.image} {bag.count(topics.image)} {bag.first_stamp_ns(topics.image)}"
    return uuid.uuid5(uuid.NAMESPACE_OID, name).bytes


def steps(
    bag: Bag,
    perception: Perception,
    topics: BagTopics,
    counts: ReplayCounts | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> Iterator[Step]:
    """Perception's answer to every frame of an open bag, and to every frame that is missing in it.

    In a gap of more than WATCHDOG_PERIODS perception steps without a frame, at the camera's rate,
    while there is a track to predict. An image that cannot be decoded is a step without a frame,
    marked CORRUPT; one with a duplicate or zero stamp, or late by more than the window of
    perception, is left out. `counts` is filled on the way, `on_frame` called per recorded image.
    """
    counts = ReplayCounts() if counts is None else counts
    period_ns = bag.period_ns(topics.image)
    reset_s = perception.tracker.config.clock_reset_threshold_s
    window_s = perception.discovery.reorder_window_s
    state = perception.initial_state(session_of(bag, topics))
    last_ns, tracks_left = 0, False
    for frame in bag.frames(topics):
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
            yield Step(missing_ns, None, output)
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
        yield Step(frame.stamp_ns, frame, output)


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


def replay(
    path: str | Path,
    perception: Perception,
    output_dir: Path,
    image_topic: str | None = None,
    on_start: Callable[[int], None] = lambda total: None,
    on_frame: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write results/ (mcap), tracks.txt (MOTChallenge), annotated.mp4, contact_sheet.png, metrics.

    Returns the metrics. All files depend on the bag and on perception, not on time or place.
    `on_start` is told how many images there are, `on_frame` is called after each. Raises BagError,
    and OSError where `output_dir` cannot be written.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    metrics_file = output_dir / "metrics.json"
    metrics_file.unlink(missing_ok=True)  # written last: its presence says that the rest is whole
    counts, summary = ReplayCounts(), _Summary()
    with ExitStack() as stack:
        bag = stack.enter_context(Bag(path))
        topics = bag.select(image_topic)
        rate_hz = 1e9 / bag.period_ns(topics.image)
        on_start(bag.count(topics.image))
        results = stack.enter_context(
            BagWriter(output_dir / "results", compress=True, overwrite=True)
        )
        tracks_file = stack.enter_context(_whole_file(output_dir / "tracks.txt"))
        film = stack.enter_context(_Film(output_dir, rate_hz))
        for number, step in enumerate(steps(bag, perception, topics, counts, on_frame), start=1):
            film.add(step)
            _write_messages(results, step)
            tracks_file.writelines(_mot_lines(number, step.output.tracks))
            summary.add(step)
    metrics = {
        "bag": Path(path).name,
        "image_topic": topics.image,
        "model": perception.discovery.model.name,
        "rate_hz": round(rate_hz, 3),
        "frames": counts.frames,
        "frames_malformed": counts.malformed,
        "frames_late": counts.late,
        "frames_missing": counts.missing,
        "first_error": counts.first_error,
        **summary.metrics(),
    }
    metrics_file.write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


@contextmanager
def _whole_file(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name on a clean exit only."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_messages(bag: BagWriter, step: Step) -> None:
    tracks, trajectories = track_messages(step.output.tracks)
    bag.write(
        "/discovery_node/segmentation",
        step.stamp_ns,
        segmentation_message(step.output.segmentation),
    )
    bag.write("/tracking_node/tracks", step.stamp_ns, tracks)
    bag.write("/tracking_node/trajectories", step.stamp_ns, trajectories)


def _mot_lines(number: int, output: TrackOutput) -> Iterator[str]:
    """MOTChallenge rows of the tracks that are believed, seen or predicted."""
    for track in output.tracks:
        if track.state in (TrackState.CONFIRMED, TrackState.COASTING):
            cx, cy, width, height = track.box
            # MOTChallenge counts pixels from 1, and names the first pixel inside the box.
            left, top = cx - (width - 1) / 2 + 1, cy - (height - 1) / 2 + 1
            yield (
                f"{number},{track.id},{left:.2f},{top:.2f},{width:.2f},{height:.2f},"
                f"{track.existence_probability:.4f},-1,-1,-1\n"
            )


@dataclass
class _Summary:
    """Running totals over the steps."""

    sensor_states: Counter[str] = field(default_factory=Counter)
    sessions: set[bytes] = field(default_factory=set)
    confirmed: set[tuple[bytes, int]] = field(default_factory=set)
    objects: int = 0
    tracked: int = 0
    scores: list[tuple[float, float]] = field(default_factory=list)

    def add(self, step: Step) -> None:
        output = step.output.tracks
        self.sensor_states[output.sensor_state.name] += 1
        self.sessions.add(output.session)
        seen = [track.id for track in output.tracks if track.state == TrackState.CONFIRMED]
        self.confirmed.update((output.session, track_id) for track_id in seen)
        if output.sensor_state == SensorState.OK:
            self.objects += len(step.output.segmentation.objects)
            self.tracked += len(seen)
        truth = step.frame.truth if step.frame else None
        if truth is not None:
            self.scores.extend(_scores(truth, step.output.segmentation))

    def metrics(self) -> dict[str, Any]:
        observed = max(1, self.sensor_states[SensorState.OK.name])
        result: dict[str, Any] = {
            "steps": sum(self.sensor_states.values()),
            "sensor_states": dict(sorted(self.sensor_states.items())),
            "sessions": len(self.sessions),
            "tracks_confirmed": len(self.confirmed),
            "objects_per_frame": round(self.objects / observed, 4),
            "tracks_per_frame": round(self.tracked / observed, 4),
        }
        if self.scores:
            means = np.nanmean(np.array(self.scores), axis=0)
            result["frames_with_truth"] = len(self.scores)
            result["fg_ari"], result["miou"] = (round(float(mean), 6) for mean in means)
        return result


def _scores(truth: Segmentation, found: Segmentation) -> Iterator[tuple[float, float]]:
    """`(fg_ari, miou)` where both have a label image of one size and an object is in view."""
    true, labels = truth.label_image, found.label_image
    if true is None or labels is None or true.shape != labels.shape or not true.any():
        return
    pair = (torch.from_numpy(image.copy())[None].long() for image in (true, labels))
    true_map, found_map = pair
    yield float(fg_ari(true_map, found_map)), float(miou(true_map, found_map))


class _Film:
    """annotated.mp4 and contact_sheet.png, drawn on a thread of their own, one step behind."""

    def __init__(self, output_dir: Path, rate_hz: float) -> None:
        self._output_dir, self._rate_hz = output_dir, rate_hz
        self._painter = ThreadPoolExecutor(max_workers=1)
        self._painting: Future[None] | None = None
        self._video: VideoWriter | None = None
        self._sheet = _Sheet()
        self._shown: np.ndarray | None = None
        self._start_ns = 0

    def __enter__(self) -> _Film:
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

    def add(self, step: Step) -> None:
        """Paint a step, as soon as the one before is done."""
        self._wait()
        self._painting = self._painter.submit(self._paint, step)

    def _wait(self) -> None:
        if self._painting is not None:
            self._painting.result()

    def _paint(self, step: Step) -> None:
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
