# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of `oc-perception replay` with a stub model, which leaves what all models pay.

Speed on a raw VGA recording of 30 Hz, with everything that a report shows and without parts of
it; memory as the peak of a replay of one minute of small pictures, and of many. Each replay is a
process of its own. The recordings are drawn for it and deleted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from oc_perception.bags.messages import image_message
from oc_perception.bags.writer import BagWriter
from oc_perception.cli import UserError
from oc_perception.evaluation.provenance import provenance
from oc_perception.progress import Progress

_RATE_HZ, _START_NS = 30, 1_000_000_000
_VGA, _SMALL = (480, 640), (48, 64)
_VARIANTS = {
    "everything": [],
    "without film": ["--video-rate", "0"],
    "without self-test": ["--no-self-test", "--no-baselines"],
    "without film and self-test": ["--video-rate", "0", "--no-self-test", "--no-baselines"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark replay`."""
    parser.add_argument(
        "--minutes",
        type=float,
        default=3.0,
        help="length of the VGA recording, 1.7 GB a minute (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-minutes",
        type=float,
        default=60.0,
        help="length of the long recording of small pictures (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="2 s, to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    if min(arguments.minutes, arguments.memory_minutes) <= 0:
        raise UserError("--minutes and --memory-minutes must be above 0.")
    minutes, short, long = arguments.minutes, 1.0, arguments.memory_minutes
    variants = _VARIANTS
    if arguments.quick:
        minutes, short, long = 2 / 60, 1 / 60, 2 / 60
        variants = {name: _VARIANTS[name] for name in ("everything", "without film and self-test")}
    report = {"minutes": minutes, "speed": {}, "memory": {}}
    with tempfile.TemporaryDirectory() as scratch:
        bag = _drawn(Path(scratch, "vga"), _VGA, minutes)
        for name, options in variants.items():
            report["speed"][name] = timing = _replayed(bag, options)
            frames = timing["bag_s"] * _RATE_HZ / timing["wall_s"]
            print(f"{name:>28}  {timing['bag_s_per_wall_s']:6.1f} x real time  {frames:5.0f}/s")
    for length in (short, long):
        with tempfile.TemporaryDirectory() as scratch:
            timing = _replayed(_drawn(Path(scratch, "small"), _SMALL, length), [])
        report["memory"][f"{length:g}"] = timing
        print(f"{length:>24g} min  {timing['rss_peak_mb']:6.0f} MB at most")
    peaks = [timing["rss_peak_mb"] for timing in report["memory"].values()]
    report["growth_mb"] = peaks[-1] - peaks[0]
    print(f"{'growth':>28}  {report['growth_mb']:6.1f} MB")
    report |= provenance()
    if arguments.json == "-":
        print(json.dumps(report, indent=2))
    elif arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _drawn(path: Path, size: tuple[int, int], minutes: float) -> Path:
    """A recording of noisy pictures in which a disc crosses the view."""
    rng = np.random.default_rng(0)
    height, width = size
    scene = cv2.GaussianBlur(rng.integers(0, 248, (*size, 3), np.uint8), (0, 0), width / 60)
    noises = rng.integers(0, 8, (8, *size, 3), np.uint8)  # never the same picture twice in a row
    count = max(2, round(minutes * 60 * _RATE_HZ))
    progress = Progress("drawing", count)
    with BagWriter(path) as bag:
        for number in range(count):
            picture = cv2.add(scene, noises[number % len(noises)])
            centre = (number * 3 % width, height // 2)
            cv2.circle(picture, centre, height // 10, (220, 40, 40), -1)
            stamp_ns = _START_NS + round(number * 1e9 / _RATE_HZ)
            bag.write("/camera/image", stamp_ns, image_message(stamp_ns, picture))
            progress.advance()
    progress.finish()
    return path


def _replayed(bag: Path, options: list[str]) -> dict:
    """timing.json of a replay by a new process."""
    with tempfile.TemporaryDirectory() as output:
        words = [sys.executable, "-m", "oc_perception.cli", "replay", str(bag), "--model", "grid"]
        words += ["--output", output, *options]
        done = subprocess.run(words, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise UserError("The replay failed; the reason stands above.")
        return json.loads(Path(output, bag.name, "timing.json").read_text())
