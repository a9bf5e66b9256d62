# SPDX-License-Identifier: Apache-2.0
"""What a replay is, by its key: equal keys give equal files, so a second run does only what is
missing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from oc_perception.configuration import to_mapping
from oc_perception.evaluation.provenance import provenance
from oc_perception.models.registry import checkpoint_directory
from oc_perception.tracking.config import TrackerConfig

SCHEMA = 1
"""Of metrics.json; another number is another layout."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ReplayJob:
    """One recording to replay: everything that its files depend on, and where they go."""

    bag: Path
    output: Path
    model: str = "monet_demo"
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    topic: str | None = None
    truth: Path | None = None
    fps: float | None = None
    device: str = "cpu"
    threads: int = 1
    self_test: bool = True
    baselines: bool = True
    video_hz: float = 5.0

    def configuration(self) -> dict[str, Any]:
        """What the result depends on besides the recording and its truth, as plain values."""
        return {
            "model": self.model,
            "tracker": to_mapping(self.tracker),
            "topic": self.topic,
            "fps": self.fps,
            "device": self.device,
            "threads": self.threads,
            "self_test": self.self_test,
            "baselines": self.baselines,
            "video_hz": self.video_hz,
        }


def job_key(job: ReplayJob, identity: str, truth_identity: str) -> str:
    """Of a job on a recording and its truth: configuration, weights and software go in, too."""
    tracker = job.tracker
    weights = {"model": _weights_digest(job.model)}
    if tracker.tracker != "filter":
        weights["tracker"] = _weights_digest(tracker.tracker_weights)
    if tracker.motion_model == "relational":
        weights["motion"] = _weights_digest(tracker.motion_weights)
    content = {
        "schema": SCHEMA,
        "identity": identity,
        "configuration": job.configuration(),
        "weights": weights,
        "truth": truth_identity,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def finished(job: ReplayJob, key: str) -> dict[str, Any] | None:
    """The metrics of this very job, if its files are there."""
    try:
        metrics = json.loads((job.output / "metrics.json").read_text())
    except (OSError, ValueError):
        return None
    return metrics if isinstance(metrics, dict) and metrics.get("job_key") == key else None


def write_report_json(
    directory: Path,
    command: str,
    job: ReplayJob,
    done: Sequence[Mapping[str, Any]],
    failed: Sequence[Mapping[str, str]],
) -> None:
    """`report.json`: metrics of all recordings and their directories, the `command` without what
    they do not depend on, the configuration, which is that of any `job`, and the software. It is
    the same for any number of workers.
    """
    content = {
        "schema": SCHEMA,
        "command": command,
        "configuration": job.configuration(),
        "versions": versions(),
        "commit": provenance()["commit"],
        "bags": list(done),
        "failed": list(failed),
    }
    write_json(directory / "report.json", content)


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    names = ("oc_perception", "torch", "numpy", "scipy", "opencv-python-headless", "rosbags")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a source tree, or another build of the same library
    return found


def write_json(path: Path, content: Any) -> None:
    """Write `content` as a whole or not at all. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    part.replace(path)


@lru_cache
def _weights_digest(name: str) -> str:
    directory = checkpoint_directory(name)
    return _digest(directory) if directory.is_dir() else name


def _digest(path: Path) -> str:
    """Of the names and bytes of a file or of all files in a directory."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            own = hashlib.sha256()
            with file.open("rb") as content:
                while chunk := content.read(_CHUNK_BYTES):
                    own.update(chunk)
            digest.update(f"{file.name} {own.hexdigest()}\n".encode())
    return digest.hexdigest()
