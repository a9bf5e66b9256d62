# SPDX-License-Identifier: Apache-2.0
"""Replay: the answers of stepping by hand, equal bytes in every run, robust to what bags hold."""

import hashlib
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from oc_perception.bags.definitions import typestore
from oc_perception.bags.messages import (
    compressed_message,
    image_message,
    segmentation_from_message,
    segmentation_message,
    track_messages,
    track_output_from_messages,
)
from oc_perception.bags.reader import Bag
from oc_perception.bags.sequence import open_sequence
from oc_perception.bags.writer import BagWriter
from oc_perception.cli import main
from oc_perception.evaluation.replay import run_job
from oc_perception.evaluation.replay_steps import ReplayCounts, session_of, steps
from oc_perception.evaluation.replay_store import ReplayJob
from oc_perception.models.registry import load_model
from oc_perception.pipeline import Discovery, Perception
from oc_perception.resources import share_directory
from oc_perception.tracking.reordering import ReorderingTracker
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import Segmentation, SensorState

START_NS, PERIOD_NS = 10_000_000_000, 40_000_000
HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Lit noise: never black, never frozen."""
    generator = np.random.default_rng(0)
    return generator.integers(40, 256, (30, HEIGHT, WIDTH, 3), dtype=np.uint8)


def perception() -> Perception:
    return Perception(Discovery(load_model("grid")), Tracker())


def replay(bag: Path, output: Path, **settings) -> dict:
    """Metrics of a replay by the grid."""
    return run_job(ReplayJob(bag, output, model="grid", **settings))


def stepped(bag: Path, able: Perception, counts: ReplayCounts | None = None) -> list:
    """All steps of a replay."""
    with open_sequence(bag) as sequence:
        return list(steps(sequence, able, counts))


def stamp(index: float) -> int:
    return START_NS + round(index * PERIOD_NS)


def write_bag(path: Path, images: list[tuple[int, np.ndarray]]) -> Path:
    with BagWriter(path) as bag:
        for recorded, (stamp_ns, image) in enumerate(images):
            bag.write("/camera/image", stamp(recorded), image_message(stamp_ns, image))
    return path


def as_bytes(message) -> bytes:
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


def digests(directory: Path) -> dict[str, str]:
    """Of all files but those that tell times."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in ("timing.json", "report.html")
    }


@pytest.fixture(scope="module")
def eventful_bag(tmp_path_factory, frames) -> Path:
    """23 frames: 3 black, 1 undecodable, 1 with a duplicate and 1 with a late stamp; 5 missing."""
    path = tmp_path_factory.mktemp("eventful") / "bag"
    with BagWriter(path) as bag:

        def write(index: int, image: np.ndarray, shift: float = 0.0) -> None:
            data = cv2.imencode(".png", image)[1].tobytes()
            data = data[:-40] if index == 17 else data
            message = compressed_message(stamp(index + shift), "png", data)
            bag.write("/camera/image/compressed", stamp(index), message)

        for index in [*range(8), *range(13, 25)]:
            write(index, np.zeros_like(frames[0]) if 20 <= index <= 22 else frames[index])
        write(25, frames[25], shift=-1)  # the stamp of frame 24 again
        write(26, frames[26], shift=-2.5)
        write(27, frames[27])
    return path


def test_three_runs_are_byte_identical(tmp_path, eventful_bag):
    copy = tmp_path / "elsewhere" / "bag"
    shutil.copytree(eventful_bag, copy)
    results = []
    for run, bag in enumerate((eventful_bag, eventful_bag, copy)):
        replay(bag, tmp_path / f"run{run}")
        results.append(digests(tmp_path / f"run{run}"))
    assert results[0] == results[1] == results[2]
    assert set(results[0]) == {
        "annotated.mp4",
        "contact_sheet.png",
        "metrics.json",
        "results/metadata.yaml",
        "results/results.mcap",
        "tracks.txt",
    }


def test_results_equal_stepping_by_hand(tmp_path, frames):
    bag_path = write_bag(tmp_path / "bag", [(stamp(i), frames[i]) for i in range(10)])
    replay(bag_path, tmp_path / "out")
    with open_sequence(bag_path) as sequence:
        session = session_of(sequence)
    by_hand = perception()
    state = by_hand.initial_state(session)
    with Bag(tmp_path / "out" / "results") as bag:
        found = list(bag.messages(bag.topics))
    assert len(found) == 30
    for index in range(10):
        state, output = by_hand.step(state, frames[index], stamp(index))
        expected = (segmentation_message(output.segmentation), *track_messages(output.tracks))
        for (_, recorded_ns, message), wanted in zip(
            found[3 * index : 3 * index + 3], expected, strict=True
        ):
            assert recorded_ns == stamp(index)
            assert as_bytes(message) == as_bytes(wanted)


def test_every_event_is_a_step_of_its_kind(eventful_bag):
    counts = ReplayCounts()
    taken = stepped(eventful_bag, perception(), counts)
    found = {round((s.stamp_ns - START_NS) / PERIOD_NS, 3): s.output for s in taken}
    assert list(found) == [*range(25), 25, 26, 27]
    states = {index: output.tracks.sensor_state for index, output in found.items()}
    blind = dict.fromkeys([8, 9, 10, 11, 12, 25, 26], SensorState.STALE)
    blind |= {17: SensorState.CORRUPT} | dict.fromkeys([20, 21, 22], SensorState.BLACK)
    assert states == {index: blind.get(index, SensorState.OK) for index in found}
    assert (counts.frames, counts.malformed, counts.late, counts.missing) == (23, 1, 2, 7)
    assert "truncated" in counts.first_error
    sessions = {output.tracks.session for output in found.values()}
    assert len(sessions) == 1
    # the grid stands still: its objects keep their identities through all of it
    ids = [{t.id for t in found[i].tracks.tracks} for i in (5, 10, 17, 21, 27)]
    assert ids[0] and all(i == ids[0] for i in ids)


def test_a_gap_is_stepped_only_while_there_is_a_track_to_predict(tmp_path, frames):
    before, after = range(10), range(5000, 5003)
    images = [(stamp(i), frames[i % 30]) for i in (*before, *after)]
    taken = stepped(write_bag(tmp_path / "bag", images), perception())
    blind = [s for s in taken if s.frame is None]
    longest = Tracker().config.max_coast_s * 1e9 / PERIOD_NS
    assert 0 < len(blind) <= longest + 2
    assert len(taken) == len(images) + len(blind)


def test_jitter_below_half_a_period_is_no_gap(tmp_path, frames):
    jitter = np.random.default_rng(1).uniform(-0.2, 0.2, 20)
    images = [(stamp(i + jitter[i]), frames[i]) for i in range(20)]
    taken = stepped(write_bag(tmp_path / "bag", images), perception())
    assert all(step.frame is not None for step in taken)


def test_frames_out_of_order_are_put_in_their_place(tmp_path, frames):
    order = [0, 1, 2, 5, 3, 4, 6, 7, 9, 8, 9, 10, 11, 12]  # and frame 9 comes twice

    def last_tracks(name, order):
        images = [(stamp(i), frames[i]) for i in order]
        tracker = ReorderingTracker(Tracker())
        able = Perception(Discovery(load_model("grid"), reorder_window_s=0.2), tracker)
        counts = ReplayCounts()
        *_, last = stepped(write_bag(tmp_path / name, images), able, counts)
        return last.output.tracks, counts

    (right, _), (wrong, counts) = last_tracks("right", range(13)), last_tracks("wrong", order)
    assert (counts.late, counts.missing) == (1, 3), "3, 4 and 8 are missed until they come"
    assert "duplicate" in counts.first_error
    as_messages = [track_messages(replace(t, session=bytes(16))) for t in (right, wrong)]
    assert [as_bytes(m) for m in as_messages[0]] == [as_bytes(m) for m in as_messages[1]]


def test_a_clock_that_jumps_back_starts_a_new_session(tmp_path, frames):
    images = [(stamp(i), frames[i]) for i in range(10)]
    images += [(stamp(i - 200), frames[10 + i]) for i in range(10)]
    metrics = replay(write_bag(tmp_path / "bag", images), tmp_path / "out")
    assert (metrics["sessions"], metrics["frames_late"], metrics["steps"]) == (2, 0, 20)
    times = metrics["series"]["stamp_s"]
    assert times[0] == 0 and times == sorted(times), "time does not run backwards in a chart"
    assert times[-1] == metrics["duration_s"] == pytest.approx(0.72)


def test_a_frame_an_hour_is_a_film_and_a_report(tmp_path, frames):
    hour_ns = 3600 * 10**9
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(3):
            stamp_ns = START_NS + index * hour_ns
            bag.write("/camera/image", stamp_ns, image_message(stamp_ns, frames[index]))
    words = ["--output", str(tmp_path / "out"), "--model", "grid"]
    assert main(["replay", str(tmp_path / "bag"), *words]) == 0
    metrics = json.loads((tmp_path / "out" / "bag" / "metrics.json").read_text())
    assert metrics["rate_hz"] == pytest.approx(1 / 3600, rel=1e-3)
    film = cv2.VideoCapture(str(tmp_path / "out" / "bag" / "annotated.mp4"))
    assert sum(1 for _ in iter(lambda: film.read()[0], False)) == 3
    assert (tmp_path / "out" / "report.html").is_file()


def test_ground_truth_is_scored(tmp_path, frames):
    discovery = perception().discovery
    _, found = discovery.step(discovery.initial_state(), frames[0], stamp(0))
    truth = found.label_image  # a perfect answer ...
    worse = np.where(truth > 2, truth, 0).astype(np.uint8)  # ... and two objects that are none
    background = np.zeros_like(truth)  # nothing in view: says nothing
    with BagWriter(tmp_path / "bag") as bag:
        for index, labels in enumerate((truth, worse, background)):
            bag.write("/camera/image", stamp(index), image_message(stamp(index), frames[index]))
            answer = Segmentation(stamp(index), SensorState.OK, "truth", index, labels)
            message = segmentation_message(answer)
            bag.write("/simulator/ground_truth/segmentation", stamp(index), message)
    metrics = replay(tmp_path / "bag", tmp_path / "out")
    scores = metrics["discovery"]
    assert scores["frames_with_truth"] == 2
    assert scores["fg_ari"] == 1.0
    areas = np.bincount(worse.ravel(), minlength=6)
    matched = np.bincount(truth.ravel()).max() / areas[0]  # one of three merged cells is paired
    assert scores["miou"] == pytest.approx((1 + (matched + 3) / 4) / 2, abs=0.01)


def test_the_mot_file_and_the_video_tell_the_same_as_the_results_bag(tmp_path, eventful_bag):
    metrics = replay(eventful_bag, tmp_path, video_hz=25.0)
    rows = np.loadtxt(tmp_path / "tracks.txt", delimiter=",")
    with Bag(tmp_path / "results") as bag:
        outputs = [
            track_output_from_messages(m) for _, _, m in bag.messages(["/tracking_node/tracks"])
        ]
        labels = [
            segmentation_from_message(m)
            for _, _, m in bag.messages(["/discovery_node/segmentation"])
        ]
    assert metrics["steps"] == len(outputs) == 29, "one of the late frames is put in its place"
    assert sum(s.sensor_state == SensorState.OK for s in labels) == metrics["sensor_states"]["OK"]
    believed = [
        (number, track)
        for number, o in enumerate(outputs, 1)
        for track in o.tracks
        if track.state in (1, 2)
    ]
    assert len(rows) == len(believed)
    for row, (number, track) in zip(rows, believed, strict=True):
        assert (row[0], row[1]) == (number, track.id)
        # the first pixel of a box w px wide around cx is cx - (w - 1) / 2, counted from 1
        np.testing.assert_allclose(row[4:6], track.box[2:], atol=0.006)
        np.testing.assert_allclose(row[2:4], track.box[:2] - (row[4:6] - 1) / 2 + 1, atol=0.011)
    capture = cv2.VideoCapture(str(tmp_path / "annotated.mp4"))
    count = 0
    while capture.read()[0]:
        count += 1
    assert count == 29
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    assert cv2.imread(str(tmp_path / "contact_sheet.png")).shape[1] == 1600


def test_the_session_names_the_recording_not_its_place(tmp_path, frames):
    images = [(stamp(i), frames[i]) for i in range(3)]
    later = [(stamp(i + 1), frames[i]) for i in range(3)]
    sessions = []
    for name, content in (("a", images), ("b", images), ("c", later)):
        with open_sequence(write_bag(tmp_path / name / "bag", content)) as sequence:
            sessions.append(session_of(sequence))
    assert sessions[0] == sessions[1] != sessions[2]
    assert len(sessions[0]) == 16


def test_an_interrupted_replay_leaves_nothing_that_looks_whole(tmp_path, frames):
    bag_path = write_bag(tmp_path / "bag", [(stamp(i), frames[i]) for i in range(10)])
    output = tmp_path / "out"

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(ReplayJob(bag_path, output, "grid"), on_frame=interrupt)
    assert list(output.iterdir()) == []
    assert replay(bag_path, output)["frames"] == 10
    count = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        run_job(
            ReplayJob(bag_path, output, "grid", threads=2),
            on_frame=lambda: interrupt() if next(count) == 5 else None,
        )
    assert not (output / "metrics.json").exists()
    assert not [p for p in output.iterdir() if "part" in p.name or "unfinished" in p.name]


def test_a_bag_of_undecodable_images_is_reported_not_raised(tmp_path):
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(5):
            bag.write(
                "/image/compressed", stamp(index), compressed_message(stamp(index), "jpeg", b"x")
            )
    metrics = replay(tmp_path / "bag", tmp_path / "out")
    assert metrics["frames_malformed"] == metrics["sensor_states"]["CORRUPT"] == 5
    assert "neither JPEG nor PNG" in metrics["first_error"]


@pytest.mark.parametrize(
    "settings",
    ["horizon_s: 0.5\n", "/**/tracking_node:\n  ros__parameters:\n    horizon_s: 0.5\n"],
    ids=["keys", "parameter file"],
)
def test_the_command_writes_metrics_timing_and_a_summary(tmp_path, eventful_bag, capsys, settings):
    config = tmp_path / "tracking.yaml"
    config.write_text(settings)
    arguments = ["replay", str(eventful_bag), "--model", "grid", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--config", str(config)]) == 0
    printed = capsys.readouterr().out
    written = tmp_path / "out" / "bag"
    metrics = json.loads((written / "metrics.json").read_text())
    timing = json.loads((written / "timing.json").read_text())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["bags"] == [{"directory": "bag", **metrics}] and not report["failed"]
    assert metrics["frames"] == 23 and f"{metrics['frames_missing']}" in printed
    assert timing["wall_s"] > 0
    with Bag(written / "results") as bag:
        *_, (_, _, last) = bag.messages(["/tracking_node/trajectories"])
    assert last.trajectories[0].modes[0].points[-1].time_from_start.nanosec == 500_000_000


def test_of_several_settings_the_last_word_counts(tmp_path, eventful_bag):
    at_rest, moving = (
        share_directory() / "config" / f"tracking_by_detection{camera}.yaml"
        for camera in ("", "_moving")
    )
    output = tmp_path / "out"
    words = ["replay", str(eventful_bag), "--model", "grid", "--output", str(output)]
    configs = ["--config", str(at_rest), "--config", str(moving)]
    assert main([*words, *configs, "--no-self-test", "--no-baselines", "--video-rate", "0"]) == 0
    report = json.loads((output / "report.json").read_text())
    tracker = report["configuration"]["tracker"]
    assert tracker["velocity_decay_per_s"] == 0.3, "of the second file, which says otherwise"
    assert tracker["systematic_std_widths"] == 0.0, "of the first, where the second says nothing"
    assert shlex.join(configs) in report["command"]


@pytest.mark.parametrize(
    ("arguments", "status", "cause"),
    [
        (["--model", "grid", "--topic", "/nope"], 1, "no image topic '/nope'"),
        (["--model", "no_such_model"], 2, "No checkpoint 'no_such_model'"),
        (["--model", "grid", "--config", "absent.yaml"], 2, "Cannot read absent.yaml"),
    ],
)
def test_errors_of_the_command_name_the_cause(
    tmp_path, eventful_bag, capsys, arguments, status, cause
):
    output = ["--output", str(tmp_path / "out")]
    assert main(["replay", str(eventful_bag), *output, *arguments]) == status
    assert cause in capsys.readouterr().err


def test_a_missing_bag_is_an_error_with_its_path(tmp_path):
    with pytest.raises(ValueError, match="check the path"):
        replay(tmp_path / "absent", tmp_path / "out")


def test_real_pedestrians_are_replayed_alike_twice(tmp_path, data_directory):
    source = data_directory / "otb_crossing" / "Crossing.tar"
    bag_path = tmp_path / "bag"
    assert main(["import-frames", str(source), str(bag_path), "--fps", "30"]) == 0
    for run in "ab":
        metrics = replay(bag_path, tmp_path / run)
    assert metrics["frames"] == metrics["sensor_states"]["OK"] == 120
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
