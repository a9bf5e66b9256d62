# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of reading recordings, without any perception.

Speed in VGA pictures per second, raw and JPEG; memory as the peak of reading one minute of small
pictures at 30 Hz, and of reading many minutes. Each reading is a process of its own. The
recordings are drawn for it and deleted.

`oc-perception benchmark reading --json docs/results/reading.json`
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

from oc_perception.bags.messages import compressed_message, image_message
from oc_perception.bags.writer import BagWriter
from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.evaluation.provenance import provenance

_RATE_HZ, _START_NS = 30, 1_000_000_000
_VGA, _SMALL = (480, 640), (48, 64)
_SPEED = {
    "mcap, raw": {},
    "mcap zstd, raw": {"compress": True},
    "sqlite3, raw": {"storage": "sqlite3"},
    "mcap, JPEG": {"jpeg": True},
}
_MEMORY = {"mcap": {}, "sqlite3": {"storage": "sqlite3"}}
_READ = """
import json, sys, time
from oc_perception.bags.sequence import open_sequence
wall_s, cpu_s = time.perf_counter(), time.process_time()
with open_sequence(sys.argv[1]) as sequence:
    count = sum(1 for _ in sequence.frames())
timing = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
with open("/proc/self/status") as status:
    peak = next(line for line in status if line.startswith("VmHWM"))
print(json.dumps({"frames": count, **timing, "rss_peak_mb": int(peak.split()[1]) / 1024}))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark reading`."""
    parser.add_argument(
        "--frames",
        type=int,
        default=900,
        help="length of the VGA recordings, 0.9 MB a frame (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-minutes",
        type=float,
        default=60.0,
        help="length of the long recordings of small pictures (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="2 s, to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    if arguments.frames < 2 or arguments.memory_minutes <= 0:
        raise UserError("--frames must be at least 2, and --memory-minutes above 0.")
    count, short, long = arguments.frames, 1.0, arguments.memory_minutes
    if arguments.quick:
        count, short, long = 10, 1 / 60, 2 / 60
    report = {"speed": {}, "memory": {}, **provenance()}
    rows = []
    for name, form in _SPEED.items():
        report["speed"][name] = timing = _read_once(_VGA, count, **form)
        per_s = (timing["frames"] / timing[key] for key in ("wall_s", "cpu_s"))
        rows.append(f"{name:<20}{next(per_s):>8.0f} frames/s{next(per_s):>8.0f} per CPU s")
    for name, form in _MEMORY.items():
        peaks = {
            f"{minutes:g}": _read_once(_SMALL, max(2, round(minutes * 60 * _RATE_HZ)), **form)
            for minutes in (short, long)
        }
        first_mb, last_mb = (peak["rss_peak_mb"] for peak in peaks.values())
        report["memory"][name] = {**peaks, "growth_mb": last_mb - first_mb}
        rows.append(
            f"{name:<20}{first_mb:>8.1f} MB at {short:.2g} min, {last_mb:.1f} MB at {long:.2g} min"
        )
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        print("\n".join(rows))
    return 0


def _read_once(
    size: tuple[int, int],
    count: int,
    storage: str = "mcap",
    compress: bool = False,
    jpeg: bool = False,
) -> dict[str, float]:
    """Draw a recording and read it by a new process: time, and the peak of its memory."""
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    scene = cv2.GaussianBlur(noise, (0, 0), 3)
    picture = cv2.imencode(".jpg", scene)[1].tobytes()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "recording")
        with BagWriter(path, storage, compress) as bag:
            for number in range(count):
                stamp_ns = _START_NS + round(number * 1e9 / _RATE_HZ)
                if jpeg:
                    message = compressed_message(stamp_ns, "jpeg", picture)
                else:
                    message = image_message(stamp_ns, scene)
                bag.write("/camera/image", stamp_ns, message)
        words = [sys.executable, "-c", _READ, str(path)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError("The reading failed; the reason stands above.")
    return json.loads(done.stdout)
