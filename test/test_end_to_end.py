# SPDX-License-Identifier: Apache-2.0
"""The chain as a user runs it: separate processes over DDS."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from oc_perception.bags.reader import Bag
from oc_perception.evaluation.demo import OUTPUTS, RECORDED, TRUE_TRACKS
from oc_perception.types import SensorState


def oc_perception(*words):
    command = [sys.executable, "-m", "oc_perception.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_a_short_demo_records_and_measures_the_chain(ros_domain, tmp_path):
    output = tmp_path / "demo"
    done = oc_perception("demo", "--seconds", 6, "--model", "grid", "--output", output)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["frames_published"] == 180 - 5  # one blackout of five missing frames
    assert metrics["frames_received"] >= 0.9 * metrics["frames_published"]
    assert 0 < metrics["latency_ms"]["p50"] <= metrics["latency_ms"]["p99"]
    assert set(metrics["id_recovery"]) == {"5"} and set(metrics["id_recovery_by_mode"]) == {
        "missing"
    }
    assert {"fg_ari", "coverage_90", "wall_s"} <= metrics.keys()
    assert "frames received / published" in done.stdout

    with Bag(output / "results") as bag:
        assert set(bag.topics) == set(RECORDED)
        assert bag.count(TRUE_TRACKS) == 180
        # The grid's cells never move, so each keeps its one identity, and in view its place.
        # (While blind the learned motion may expect neighbours that touch to push one another.)
        cells, states = {}, set()
        for _, _, message in bag.messages([OUTPUTS]):
            states.add(message.sensor_state)
            for track in message.tracks:
                places = cells.setdefault(track.id, [])
                if message.sensor_state == SensorState.OK:
                    places.append(track.box[:2])
    assert cells and all(np.ptp(places, axis=0).max() < 2 for places in cells.values())
    firsts = np.array([places[0] for places in cells.values()])
    apart = np.linalg.norm(firsts[:, None] - firsts, axis=-1) + 1000 * np.eye(len(firsts))
    assert apart.min() > 150
    assert states == {0, 1}

    video = cv2.VideoCapture(str(output / "annotated.mp4"))
    assert video.read()[1].shape == (480, 640, 3)
    assert cv2.imread(str(output / "contact_sheet.png")) is not None


def test_the_latency_benchmark_counts_every_frame(ros_domain):
    done = oc_perception("benchmark", "latency", "--quick", "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["frames_published"] == 60
    assert report["frames_answered"] >= 30 and abs(report["frames_unexplained"]) <= 2
    assert report["latency_ms"]["p99"] > 0
    assert set(report["processes"]) == {"camera_simulator_node", "discovery_node", "tracking_node"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--seconds", "3"), "at least 5.5 s"),
        (("--model", "no_such_model", "--seconds", "6"), "no_such_model"),
    ],
)
def test_a_demo_that_cannot_run_says_why(ros_domain, tmp_path, words, reason):
    done = oc_perception("demo", "--output", tmp_path, *words)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
