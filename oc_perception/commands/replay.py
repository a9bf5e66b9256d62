# SPDX-License-Identifier: Apache-2.0
"""Run perception over recordings, offline and deterministic, and judge it.

For each one writes DIR/NAME/ with results/ (mcap), tracks.txt (MOTChallenge), annotated.mp4,
contact_sheet.png, strips/ and metrics.json, and for all of them DIR/report.json, which are
byte-identical in every run, and timing.json, which is not. What is there already is not done
again.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from oc_perception.bags.sequence import recording_name
from oc_perception.cli import UserError
from oc_perception.configuration import from_mapping, node_parameters, read_yaml
from oc_perception.evaluation.fleet import Outcome, attempt, map_jobs
from oc_perception.evaluation.replay import create_perception, run_job
from oc_perception.evaluation.replay_store import ReplayJob, write_report_json
from oc_perception.evaluation.report import write_report
from oc_perception.progress import Progress
from oc_perception.tracking.config import TRACKERS, TrackerConfig

_UNSAID = ("schema", "job_key", "recording")
_VIDEO_HZ = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `oc-perception replay`."""
    parser.add_argument(
        "bags",
        type=Path,
        nargs="+",
        metavar="BAG",
        help="rosbag2 directory, .mcap, .db3 or ROS 1 .bag file, folder or tar of pictures, video",
    )
    parser.add_argument("--output", type=Path, required=True, help="directory for the results")
    parser.add_argument(
        "--model",
        default="monet_demo",
        help="checkpoint directory, or name of a shipped one (default: %(default)s)",
    )
    parser.add_argument("--topic", help="image topic (default: the only one in the bag)")
    parser.add_argument(
        "--truth",
        type=Path,
        nargs="+",
        default=[],
        help="MOTChallenge gt.txt, or folder or tar of masks: one for all bags, or one per bag",
    )
    parser.add_argument("--fps", type=float, help="frames per second of pictures without stamps")
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="YAML with the keys of TrackerConfig, or a parameter file of tracking_node; of "
        "several, the last word counts: --config FILE --config FILE",
    )
    parser.add_argument(
        "--tracker",
        choices=TRACKERS,
        help="mohart follows objects in the images, sqair also finds them there (default: as in "
        "--config, else filter)",
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of the model; as in the discovery node, whose results depend on it in the "
        "last bits (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes of this machine that share the bags (default: %(default)s)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="share the bags over the Ray cluster there instead (`auto` for the one that this "
        "machine is part of; see docs/fleet.md)",
    )
    parser.add_argument(
        "--no-self-test", action="store_true", help="do not hide frames from the tracker"
    )
    parser.add_argument(
        "--no-baselines", action="store_true", help="do not run other trackers for comparison"
    )
    parser.add_argument(
        "--video-rate",
        type=float,
        default=_VIDEO_HZ,
        metavar="HZ",
        help="pictures per second in the film; 0: no film and no contact sheet (default: "
        "%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Replay, and say in a few lines what was found."""
    jobs = _jobs(arguments)
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=arguments.output):
            pass
    except OSError as error:
        raise UserError(
            f"--output {arguments.output} cannot be written ({error.strerror}): choose another."
        ) from error
    create_perception(jobs[0])  # what is wrong with the model is wrong for all bags
    if arguments.workers > 1 or arguments.ray:
        outcomes = _by_fleet(jobs, arguments.workers, arguments.ray)
    else:
        outcomes = _one_by_one(jobs)
    done = [
        {"directory": jobs[outcome.number].output.name, **outcome.metrics}
        for outcome in outcomes
        if outcome.metrics
    ]
    failed = [
        {"bag": jobs[outcome.number].output.name, "error": outcome.error}
        for outcome in outcomes
        if outcome.error
    ]
    write_report_json(arguments.output, _command(arguments), jobs[0], done, failed)
    page = write_report(arguments.output)
    for failure in failed:
        print(f"{failure['bag']} failed: {failure['error']}", file=sys.stderr)
    print(f"{'report':>18}  {page}")
    return 1 if failed else 0


def _command(arguments: argparse.Namespace) -> str:
    """What was asked for, without where the results go and who does the work."""
    words = ["oc-perception", "replay", *map(str, arguments.bags), "--model", arguments.model]
    for name in ("topic", "truth", "fps"):
        value = getattr(arguments, name)
        if value:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    for config in arguments.config:
        words += ["--config", str(config)]
    words += ["--tracker", arguments.tracker] if arguments.tracker else []
    for name, usual in (("device", "cpu"), ("threads", 1), ("video_rate", _VIDEO_HZ)):
        value = getattr(arguments, name)
        if value != usual:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--no-self-test"] if arguments.no_self_test else []
    words += ["--no-baselines"] if arguments.no_baselines else []
    return shlex.join(words)


def _one_by_one(jobs: list[ReplayJob]) -> list[Outcome]:
    outcomes = []
    for number, job in enumerate(jobs):
        display = _Display(f"{job.output.name} ({number + 1} of {len(jobs)})")
        work = partial(run_job, on_start=display.start, on_frame=display.advance)
        try:
            outcome = attempt(number, job, work)
        finally:
            display.finish()
        outcomes.append(outcome)
        if outcome.metrics:
            _print(job, outcome.metrics)
    return outcomes


def _by_fleet(jobs: list[ReplayJob], workers: int, address: str | None) -> list[Outcome]:
    progress = Progress("bags", len(jobs))
    outcomes = map_jobs(jobs, workers, address, lambda outcome: progress.advance(), run_job)
    progress.finish()
    for outcome in outcomes:
        if outcome.metrics:
            _print(jobs[outcome.number], outcome.metrics)
    return outcomes


class _Display:
    """Progress through a bag, if there is anything to do."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._progress: Progress | None = None

    def start(self, total: int) -> None:
        self._progress = Progress(self._label, total)

    def advance(self) -> None:
        self._progress.advance()

    def finish(self) -> None:
        if self._progress:
            self._progress.finish()


def _jobs(arguments: argparse.Namespace) -> list[ReplayJob]:
    for name in ("threads", "workers"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1.")
    if not 0 <= arguments.video_rate < math.inf:
        raise UserError("--video-rate must be 0 or more.")
    if arguments.fps is not None and not 0 < arguments.fps < math.inf:
        raise UserError("--fps must be above 0.")
    bags, truths = arguments.bags, arguments.truth
    if len(truths) not in (0, 1, len(bags)):
        raise UserError(f"--truth names {len(truths)} files for {len(bags)} bags: one each.")
    settings = {}
    for file in arguments.config:
        settings |= node_parameters(read_yaml(file), "tracking_node")
    config = from_mapping(TrackerConfig, settings)
    if arguments.tracker:
        config = replace(config, tracker=arguments.tracker)
    truths = truths * len(bags) if len(truths) == 1 else truths or [None] * len(bags)
    jobs = []
    for bag, truth, name in zip(bags, truths, _names(bags, truths), strict=True):
        output = arguments.output / name
        if bag.is_dir() and output.resolve().is_relative_to(bag.resolve()):
            raise UserError(
                f"The results of {bag} would go into the recording itself, to {output}: choose "
                "another --output."
            )
        jobs.append(
            ReplayJob(
                bag=bag,
                output=output,
                model=arguments.model,
                tracker=config,
                topic=arguments.topic,
                truth=truth,
                fps=arguments.fps,
                device=arguments.device,
                threads=arguments.threads,
                self_test=not arguments.no_self_test,
                baselines=not arguments.no_baselines,
                video_hz=arguments.video_rate,
            )
        )
    return jobs


def _names(bags: Sequence[Path], truths: Sequence[Path | None]) -> list[str]:
    """A directory for each recording; those of one name are numbered."""
    names: list[str] = []
    seen = set()
    for bag, truth in zip(bags, truths, strict=True):
        if (bag.resolve(), truth) in seen:
            raise UserError(f"{bag} is named twice: name every recording once.")
        seen.add((bag.resolve(), truth))
        name = stem = recording_name(bag)
        copy = 2
        while name in names:
            name, copy = f"{stem}-{copy}", copy + 1
        names.append(name)
    return names


def _print(job: ReplayJob, metrics: dict[str, Any]) -> None:
    for name, value in metrics.items():
        if isinstance(value, str | int | float) and value != "" and name not in _UNSAID:
            print(f"{name:>18}  {value}")
    for warning in metrics["warnings"]:
        print(f"{'warning':>18}  {warning}")
    scores = metrics.get("discovery", {})
    for name in [name for name in scores if name != "frames_with_truth"]:
        print(f"{name:>18}  {scores[name]:.3f}")
    for tracker, table in metrics.get("tracking", {}).items():
        words = (f"{name} {table[name]:.3f}" for name in ("hota", "idf1", "mota"))
        print(f"{tracker:>18}  {'  '.join(words)}  id switches {table['id_switches']}")
    for schedule, table in metrics.get("self_test", {}).items():
        shares = (f"{tracker} {_percent(cell)}" for tracker, cell in table.items())
        print(f"{f'hidden {schedule}':>18}  identities kept: {'  '.join(shares)}")
    timing = job.output / "timing.json"
    if timing.is_file():  # who keeps results may leave it out, since it differs in every run
        speed = json.loads(timing.read_text())["bag_s_per_wall_s"]
        print(f"{'speed':>18}  {speed:.2f} x real time")
    print(f"{'written to':>18}  {job.output}")


def _percent(cell: dict[str, Any]) -> str:
    return "-" if cell["kept_share"] is None else f"{100 * cell['kept_share']:.0f} %"
