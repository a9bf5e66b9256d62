# SPDX-License-Identifier: Apache-2.0
"""Tracking by detection on MOTChallenge sequences (folders or tars with gt/gt.txt, det/det.txt and
seqinfo.ini), with all frames and with some of them hidden: this package's tracker beside SORT-like
and ByteTrack-like ones.

`oc-perception benchmark mot TUD-Stadtmitte.tar:90-179 PETS09-S2L1_frames_0001-0060.tar
MOT16-11_frames_0001-0040.tar --moving MOT16-11 --json docs/results/mot_tracking.json`
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

import torch

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.configuration import from_mapping, read_yaml
from oc_perception.evaluation.mot_benchmark import (
    BASELINES,
    Choice,
    DetectedSequence,
    Entry,
    SequenceError,
    measure,
    read_sequence,
)
from oc_perception.evaluation.mot_files import MotFileError
from oc_perception.evaluation.provenance import provenance
from oc_perception.progress import Progress
from oc_perception.resources import share_directory
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.tracker import Tracker

_CONFIGS = share_directory() / "config"
_OWN = "tracker"
_SCORES = ("hota", "idf1", "mota")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark mot`."""
    default = "(default: %(default)s)"
    parser.add_argument(
        "sequences",
        nargs="+",
        metavar="SEQUENCE[:FIRST-LAST]",
        help="folder or tar, perhaps only these of its frames, counted from 1",
    )
    parser.add_argument(
        "--moving", nargs="+", default=[], metavar="NAME",
        help="names of the sequences (in seqinfo.ini) whose camera moves",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, default=_CONFIGS / "tracking_by_detection.yaml", metavar="FILE",
        help=f"of the tracker {default}",
    )  # fmt: skip
    parser.add_argument(
        "--moving-config", type=Path, metavar="FILE",
        default=_CONFIGS / "tracking_by_detection_moving.yaml",
        help=f"what is different where the camera moves {default}",
    )  # fmt: skip
    parser.add_argument(
        "--weights", default="", metavar="NAME",
        help="measure the tracker with the relational motion model of this checkpoint, too",
    )  # fmt: skip
    parser.add_argument(
        "--hidden", type=float, nargs="+", default=[0.2], metavar="SHARE",
        help="of the frames (default: 0.2)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=10, help=f"draws of hidden frames {default}")
    parser.add_argument(
        "--existence", type=float, default=0.9,
        help=f"probability from which a track of the tracker is handed in {default}",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one draw, to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    if not all(0 < share < 1 for share in arguments.hidden):
        raise UserError("--hidden is a share of the frames: above 0 and below 1.")
    if arguments.seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {arguments.seeds}.")
    seeds = 1 if arguments.quick else arguments.seeds
    sequences = [_read(text, arguments.moving) for text in arguments.sequences]
    names = [sequence.name for sequence in sequences]
    if unknown := set(arguments.moving) - set(names):
        raise UserError(f"--moving {' '.join(unknown)}: there are {', '.join(names)}.")
    if len(set(names)) < len(names):
        raise UserError(f"Sequences must have different names, not {', '.join(names)}.")
    entries = _own(arguments) | BASELINES
    progress = Progress("trackers", len(entries))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trackers = measure(sequences, entries, arguments.hidden, seeds, progress.advance)
        seconds = progress.finish()
    finally:
        torch.set_num_threads(before)
    report = {
        "sequences": {
            sequence.name: {
                "file": Path(given).name,
                "frames": len(sequence),
                "rate_hz": sequence.rate_hz,
                "moving": sequence.moving,
            }
            for given, sequence in zip(arguments.sequences, sequences, strict=True)
        },
        "hidden": arguments.hidden,
        "seeds": seeds,
        "existence": arguments.existence,
        "trackers": trackers,
        "lead": _leads(trackers),
        "seconds": round(seconds, 1),
        **provenance(),
    }
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        print(table(report))
    return 0


def _read(text: str, moving: list[str]) -> DetectedSequence:
    """A sequence or a part of it, as named on the command line."""
    cut = re.fullmatch(r"(.+):(\d+)-(\d+)", text)
    try:
        sequence = read_sequence(cut[1] if cut else text)
    except (SequenceError, MotFileError, OSError) as error:
        raise UserError(str(error)) from error
    sequence = dataclasses.replace(sequence, moving=sequence.name in moving)
    if not cut:
        return sequence
    first, last = int(cut[2]), int(cut[3])
    if not 1 <= first <= last <= len(sequence):
        raise UserError(f"{text}: there are frames 1 to {len(sequence)}.")
    return sequence.part(first - 1, last)


def _own(arguments: argparse.Namespace) -> dict[str, Choice]:
    """The tracker of the configuration files, and the same with the relational motion model."""
    values = _parameters(arguments.config)
    names = {_OWN: {}}
    if arguments.weights:
        learned = {"motion_model": "relational", "motion_weights": arguments.weights}
        names |= {f"{_OWN}, {arguments.weights}": learned}
    still = {name: _entry(arguments, values | motion) for name, motion in names.items()}
    values |= _parameters(arguments.moving_config)
    moving = {name: _entry(arguments, values | motion) for name, motion in names.items()}

    def chosen(name: str) -> Choice:
        return lambda sequence: (moving if sequence.moving else still)[name]

    return {name: chosen(name) for name in names}


def _parameters(file: Path) -> dict[str, Any]:
    """Those of the tracking node in a parameter file."""
    try:
        return read_yaml(file)["/**/tracking_node"]["ros__parameters"]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{file} has no parameters for /**/tracking_node: {error}") from error


def _entry(arguments: argparse.Namespace, values: dict[str, Any]) -> Entry:
    # Trajectories are not scored.
    config = from_mapping(TrackerConfig, values | {"horizon_s": 0.0})
    return Entry(Tracker(config), config.max_coast_s, arguments.existence)


def _leads(trackers: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """By setting, baseline and score, how far the tracker is ahead, combined."""
    own = trackers[_OWN]
    return {
        setting: {
            baseline: {
                name: own[setting]["combined"][name]
                - trackers[baseline][setting]["combined"][name]
                for name in _SCORES
            }
            for baseline in BASELINES
        }
        for setting in own
    }


def table(report: dict[str, Any]) -> str:
    """The report for people: a block per setting, HOTA / IDF1 / MOTA in percent."""
    names = [*report["sequences"], "combined"]
    heading = "".join(f"{name:>21}" for name in names)
    lines = []
    for setting in report["lead"]:
        lines.append(f"{setting.replace('_', ' '):<44}{heading}")
        for tracker, scores in report["trackers"].items():
            cells = (
                " / ".join(f"{100 * scores[setting][n][key]:.1f}" for key in _SCORES)
                for n in names
            )
            lines.append(f"  {tracker:<42}" + "".join(f"{cell:>21}" for cell in cells))
    lines.append(
        f"HOTA / IDF1 / MOTA, %; {report['seeds']} draws of hidden frames,"
        f" {report['seconds']:.0f} s, {report['machine']}"
    )
    return "\n".join(lines)
