# SPDX-License-Identifier: Apache-2.0
"""Perception over a recording, offline: the same `step` as on the robot, equal bytes in every
run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import torch

from oc_perception.bags.sequence import Sequence, open_sequence
from oc_perception.evaluation.provenance import machine
from oc_perception.evaluation.replay_files import Files
from oc_perception.evaluation.replay_runs import Runs
from oc_perception.evaluation.replay_scores import (
    DiscoveryScores,
    Series,
    Summary,
    TrackingScores,
)
from oc_perception.evaluation.replay_steps import ReplayCounts, Step, steps
from oc_perception.evaluation.replay_store import (
    SCHEMA,
    ReplayJob,
    finished,
    job_key,
    write_json,
)
from oc_perception.evaluation.replay_strips import WorstCases
from oc_perception.evaluation.replay_timing import Stopwatch
from oc_perception.evaluation.self_test import SelfTest
from oc_perception.models.registry import load_model
from oc_perception.pipeline import Discovery, Perception
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.reordering import ReorderingTracker
from oc_perception.tracking.tracker import create_tracker


def create_perception(job: ReplayJob) -> Perception:
    """The perception of a job. Raises ModelError, or ValueError for the tracker's weights."""
    torch.set_num_threads(job.threads)
    cv2.setNumThreads(job.threads)  # more of them cost more than they gain on pictures this small
    return _perception(job.model, job.tracker, job.device)


@lru_cache(maxsize=1)  # a worker has many bags for one model
def _perception(model: str, config: TrackerConfig, device: str) -> Perception:
    discovery = Discovery(
        load_model(model, device),
        device=device,
        clock_reset_threshold_s=config.clock_reset_threshold_s,
        reorder_window_s=config.reorder_window_s,
    )
    return Perception(discovery, ReorderingTracker(create_tracker(config)))


def run_job(
    job: ReplayJob,
    on_start: Callable[[int], None] = lambda total: None,
    on_frame: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the files of one recording into `job.output`; returns its metrics.

    Where these very files are there already nothing is done. Otherwise they are written anew:
    results/ (mcap), tracks.txt (MOTChallenge), annotated.mp4, contact_sheet.png, strips/,
    timing.json, and in the end metrics.json, whose presence says that the rest is whole. All but
    timing.json depend on the job and the recording, not on time or place. `on_start` is told how
    many images there are, `on_frame` is called after each. Raises BagError, ModelError, and
    OSError where `job.output` cannot be written.
    """
    with open_sequence(job.bag, job.topic, job.truth, job.fps) as sequence:
        identity = sequence.identity()
        key = job_key(job, identity, sequence.truth_identity())
        metrics = finished(job, key)
        if metrics is None:
            names = {"job_key": key, "bag": sequence.name, "recording": identity}
            metrics = _replay(job, names, sequence, on_start, on_frame)
    return metrics


def _replay(
    job: ReplayJob,
    names: dict[str, str],
    sequence: Sequence,
    on_start: Callable[[int], None],
    on_frame: Callable[[], None],
) -> dict[str, Any]:
    perception = create_perception(job)
    watch, counts = Stopwatch(), ReplayCounts()
    rate_hz = 1e9 / sequence.period_ns
    judge = _Judge(job, perception, sequence.num_frames, rate_hz)
    _prepare(job.output)
    on_start(sequence.num_frames)
    with Files(job.output, rate_hz, job.video_hz, watch) as files:
        for number, step in enumerate(steps(sequence, perception, counts, on_frame, watch)):
            files.add(number, step)
            with watch.stage("self_test"):
                judge.add(number, step)
    metrics = {
        "schema": SCHEMA,
        **names,
        "topic": sequence.topic,
        "model": perception.discovery.model.name,
        "tracker": judge.runs.own,
        "rate_hz": float(f"{rate_hz:.5g}"),  # of a slow one not 0
        "duration_s": round(judge.elapsed_ns * 1e-9, 4),
        "frames": counts.frames,
        "frames_malformed": counts.malformed,
        "frames_late": counts.late,
        "frames_missing": counts.missing,
        "warnings": [*sequence.warnings, *judge.warnings()],
        "first_error": counts.first_error,
        **judge.metrics(),
    }
    bag_s = metrics["steps"] / rate_hz
    write_json(job.output / "timing.json", watch.report(bag_s, machine(job.device)))
    write_json(job.output / "metrics.json", metrics)
    return metrics


def _prepare(directory: Path) -> None:
    """Make the directory, without what an older replay has left there."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", "annotated.mp4", "contact_sheet.png"):
        (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / "strips", ignore_errors=True)


class _Judge:
    """Everything that is measured on a replay."""

    def __init__(
        self, job: ReplayJob, perception: Perception, num_frames: int, rate_hz: float
    ) -> None:
        self._directory = job.output
        self.runs = Runs(perception, 1 / rate_hz, job.baselines)
        self._test = (
            SelfTest(perception, self.runs, num_frames, rate_hz) if job.self_test else None
        )
        self._summary, self._series = Summary(), Series()
        self._discovery, self._tracking = DiscoveryScores(), TrackingScores()
        self._worst = WorstCases(perception.tracker.config.confirm_hits)
        self._has_boxes = False
        self.elapsed_ns = self._newest_ns = 0

    def add(self, number: int, step: Step) -> None:
        output, frame, runs = step.output, step.frame, self.runs
        self._has_boxes |= frame is not None and frame.boxes is not None
        test = self._test
        runs.add(step, self._has_boxes or (test is not None and test.needs_baselines(number)))
        if runs.restarted:
            self._newest_ns = step.stamp_ns
        self.elapsed_ns += max(0, step.stamp_ns - self._newest_ns)
        self._newest_ns = max(self._newest_ns, step.stamp_ns)
        if test:
            test.add(number, step)
            self._worst.add_blackouts(number, step, test, runs)
        self._summary.add(output.segmentation, output.tracks)
        self._series.add(self.elapsed_ns, output.segmentation, output.tracks)
        if frame is None:
            return
        fg_ari = self._discovery.add(frame.truth, output.segmentation)
        if fg_ari is not None:
            self._worst.add_segmentation(number, step, fg_ari)
        if frame.boxes is not None and runs.in_order:
            self._tracking.add(frame.boxes.ids, frame.boxes.boxes, runs.outputs)
            self._worst.add_tracking(number, step, frame.boxes, output.tracks)

    def warnings(self) -> list[str]:
        """What could not be judged."""
        return [*self._discovery.warnings(), *self._tracking.warnings()]

    def metrics(self) -> dict[str, Any]:
        """All of it; writes the strips of the worst cases."""
        return {
            **self._summary.metrics(),
            **self._discovery.metrics(),
            **self._tracking.metrics(),
            **(self._test.metrics() if self._test else {}),
            "worst": self._worst.write(self._directory),
            **self._series.metrics(),
        }
