# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from oc_perception.bags.definitions import make
from oc_perception.bags.messages import header_message, segmentation_message, track_messages
from oc_perception.bags.writer import BagWriter
from oc_perception.evaluation import demo
from oc_perception.types import Segmentation, SensorState, Track, TrackOutput, TrackState
from oc_perception.worlds.camera import MODES, CameraConfig, parse_blackouts

PERIOD_NS, START_NS, LATENCY_NS = 33_333_333, 1_700_000_000_000_000_000, 7_000_000
COUNT, BLIND = 60, {20: SensorState.STALE, 40: SensorState.FROZEN}
LENGTH = 5


def make_track(i, x, offset=0.0):
    return Track(
        id=i,
        state=TrackState.CONFIRMED,
        box=np.array([x + offset, 20.0, 8.0, 8.0]),
        velocity=np.zeros(2),
        covariance=np.eye(4),
        existence_probability=1.0,
        age=1,
        hits=1,
        last_seen_ns=0,
        slot_label=i,
    )


@pytest.fixture
def recording(tmp_path):
    """A run in which two objects are found; one is renamed in the frozen blackout."""
    labels = np.zeros((40, 60), np.uint8)
    labels[16:25, 6:15], labels[16:25, 36:45] = 1, 2
    session = b"s" * 16
    with BagWriter(tmp_path / "results") as bag:
        for number in range(COUNT):
            stamp_ns = START_NS + number * PERIOD_NS
            state = next((s for b, s in BLIND.items() if b <= number < b + LENGTH), SensorState.OK)
            truth = TrackOutput(
                stamp_ns, 0, bytes(16), state, (make_track(1, 10), make_track(2, 40)), ()
            )
            bag.write(demo.TRUE_TRACKS, stamp_ns, track_messages(truth)[0])
            true = Segmentation(stamp_ns, state, "ground_truth", number, labels)
            bag.write(demo.TRUE_LABELS, stamp_ns, segmentation_message(true))
            if number == 51:
                continue  # dropped by discovery
            seen = state == SensorState.OK
            found = replace(true, model="grid", label_image=labels if seen else None)
            bag.write(demo.LABELS, stamp_ns, segmentation_message(found))
            name = 9 if number >= 40 + LENGTH else 2
            # Errors of 3 px at a standard deviation of 1 px while frozen: outside the ellipse.
            wide = 3.0 if state == SensorState.FROZEN else 0.0
            tracks = (make_track(1, 10, wide), make_track(name, 40, wide))
            output = TrackOutput(stamp_ns, stamp_ns, session, state, tracks, ())
            bag.write(demo.OUTPUTS, stamp_ns + LATENCY_NS, track_messages(output)[0])
        value = make("diagnostic_msgs/msg/KeyValue", key="dropped", value="1")
        status = make(
            "diagnostic_msgs/msg/DiagnosticStatus",
            level=0,
            name="discovery_node",
            message="OK",
            hardware_id="",
            values=[value],
        )
        diagnostics = make(
            "diagnostic_msgs/msg/DiagnosticArray", header=header_message(stamp_ns), status=[status]
        )
        bag.write(demo.DIAGNOSTICS, stamp_ns, diagnostics)
    return bag.path


def test_a_recording_is_measured_by_what_is_in_it(recording):
    metrics = demo.measure(recording)
    assert metrics["frames_published"] == COUNT - LENGTH
    assert metrics["frames_processed"] == COUNT - LENGTH - 1
    assert metrics["frames_received"] == COUNT - LENGTH
    assert metrics["latency_ms"] == {"p50": 7.0, "p99": 7.0}
    assert metrics["fg_ari"] == metrics["miou"] == 1.0
    assert metrics["frames_compared"] == 10  # every fifth of the 50 that were seen
    assert metrics["id_recovery"] == {"5": 0.75}
    assert metrics["id_recovery_by_mode"] == {"missing": {"5": 1.0}, "frozen": {"5": 0.5}}
    assert metrics["identities"] == {
        "recovered": 3,
        "swapped": 0,
        "new": 1,
        "lost": 0,
        "untracked": 0,
    }
    assert metrics["coverage_90_blackout"] == 0.5
    assert metrics["coverage_90"] == pytest.approx(1 - 10 / 118, abs=1e-4)
    assert metrics["centre_error_blackout_px"] == 1.5


def test_the_table_shows_every_target(recording):
    text = demo.table({**demo.measure(recording), "wall_s": 12.3})
    for words in ("100.0 %   >= 99.9 %", "75.0 %   >= 95 %", "frozen", "12 s   <= 180 s"):
        assert words in text


def test_a_recording_without_truth_is_refused(tmp_path):
    with BagWriter(tmp_path / "empty") as bag:
        bag.write("/x", 1, header_message(1))
    with pytest.raises(ValueError, match="no ground truth"):
        demo.measure(bag.path)


def test_a_full_run_has_every_length_in_every_mode_with_room_between():
    blackouts = parse_blackouts(demo.schedule(60), 30)
    pairs = {(b.frames, b.state) for b in blackouts}
    assert pairs == {(n, state) for n in (5, 10, 20) for state in MODES.values()}
    starts = [b.start_frame for b in blackouts] + [60 * 30]
    ends = [0] + [b.start_frame + b.frames for b in blackouts]
    assert min(np.subtract(starts, ends)) >= 45
    for seconds in (5.5, 8, 30):
        CameraConfig(blackouts=demo.schedule(seconds))
    with pytest.raises(ValueError, match=r"at least 5\.5 s"):
        demo.schedule(5)


def test_an_unfinished_blackout_is_left_out():
    names = ["OK", "BLACK", "BLACK", "FROZEN", "OK", "STALE"]
    truth = [
        TrackOutput(n, 0, bytes(16), SensorState[name], (), ()) for n, name in enumerate(names)
    ]
    found = [(b.start_ns, b.end_ns, b.frames, b.mode) for b in demo.find_blackouts(truth)]
    assert found == [(1, 3, 2, "black"), (3, 4, 1, "frozen")]
