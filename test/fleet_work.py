# SPDX-License-Identifier: Apache-2.0
"""What workers of a fleet are given to do in tests; importable in a new process."""

import os
import signal
from typing import Any

from oc_perception.evaluation.replay import run_job
from oc_perception.evaluation.replay_store import ReplayJob


def _killed_in_the_middle(job: ReplayJob) -> dict[str, Any]:
    frames = iter(range(3))

    def on_frame() -> None:
        if next(frames, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    return run_job(job, on_frame=on_frame)


def killed_once(job: ReplayJob) -> dict[str, Any]:
    """Replays, but is killed in the middle of bag3 when it does that for the first time."""
    marker = job.output.parent.parent / "killed"
    if job.output.name == "bag3" and not marker.exists():
        marker.touch()
        return _killed_in_the_middle(job)
    return run_job(job)


def killed_always(job: ReplayJob) -> dict[str, Any]:
    """Replays, but is killed in the middle of bag1; bag2 is a defect of the program."""
    with (job.output.parent / f"{job.output.name}.begun").open("a") as marker:
        marker.write("x")
    if job.output.name == "bag1":
        return _killed_in_the_middle(job)
    if job.output.name == "bag2":
        raise KeyError("nothing there")
    return run_job(job)
