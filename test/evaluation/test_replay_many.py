# SPDX-License-Identifier: Apache-2.0
"""Replay of several recordings: resumed, compared with truth, and what is wrong with one of them
told without harm to the others.
"""

import json
import os
import shutil
import tracemalloc
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from oc_perception.bags.frames import Frame
from oc_perception.bags.messages import compressed_message, image_message, segmentation_message
from oc_perception.bags.writer import BagWriter
from oc_perception.cli import main
from oc_perception.evaluation import replay_store
from oc_perception.evaluation.replay import _Judge, create_perception, run_job
from oc_perception.evaluation.replay_files import Files
from oc_perception.evaluation.replay_scores import SERIES_POINTS, Series, TrackingScores
from oc_perception.evaluation.replay_steps import Step
from oc_perception.evaluation.replay_store import ReplayJob, job_key
from oc_perception.evaluation.replay_timing import Stopwatch
from oc_perception.evaluation.report_data import read_run
from oc_perception.models.registry import create_model, save_checkpoint
from oc_perception.types import Segmentation, SensorState

PERIOD_NS = 40_000_000
SIZE = (48, 64)


def stamp(index):
    return 10**9 + index * PERIOD_NS


def noise(count, seed=0, size=SIZE):
    generator = np.random.default_rng(seed)
    return generator.integers(40, 256, (count, *size, 3), dtype=np.uint8)


def bag(path, count=12, seed=0):
    with BagWriter(path) as writer:
        for index, image in enumerate(noise(count, seed)):
            writer.write("/camera/image", stamp(index), image_message(stamp(index), image))
    return path


def files(directory, but=("timing.json", "report.html")):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in but
    }


def replay(*words, model="grid"):
    return main(["replay", *map(str, words), "--model", str(model)])


def report(directory):
    return json.loads((directory / "report.json").read_text())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny model that learns, and remembers: slots of one frame are where the next begins."""
    directory = tmp_path_factory.mktemp("weights") / "tiny"
    torch.manual_seed(0)
    channels = {"encoder_channels": (8, 8), "decoder_channels": (8,), "decoder_strides": (2,)}
    config = {"frame_size": (16, 16), "num_slots": 3, "slot_size": 8, "num_iterations": 1}
    save_checkpoint(create_model("slot_attention", **config, **channels), directory)
    return directory


def test_a_learned_model_with_memory_is_replayed_alike_three_times(tmp_path, checkpoint):
    path = bag(tmp_path / "bag", 40)
    for run in "abc":
        assert replay(path, "--output", tmp_path / run, model=checkpoint) == 0
    first = files(tmp_path / "a")
    assert first == files(tmp_path / "b") == files(tmp_path / "c")
    metrics = report(tmp_path / "a")["bags"][0]
    assert metrics["blackouts"] and metrics["model"] == "tiny"
    assert {"bag/metrics.json", "bag/tracks.txt", "bag/results/results.mcap"} <= set(first)


def test_one_bad_bag_does_not_stop_the_others(tmp_path, capsys):
    good = [bag(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    broken = tmp_path / "broken.mcap"
    broken.write_bytes(b"\x89MCAP0\r\n" + bytes(100))
    output = tmp_path / "out"
    assert replay(good[0], broken, tmp_path / "absent", good[1], "--output", output) == 1
    found = report(output)
    assert [metrics["bag"] for metrics in found["bags"]] == ["one", "two"]
    assert [failure["bag"] for failure in found["failed"]] == ["broken", "absent"]
    assert "check the path" in found["failed"][1]["error"]
    assert f"replay {good[0]} {broken}" in found["command"] and "--output" not in found["command"]
    told = capsys.readouterr()
    assert "broken failed" in told.err and "two" in told.out
    assert (output / "report.html").is_file()


def test_a_second_run_does_only_what_is_missing(tmp_path):
    paths = [bag(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    output = tmp_path / "out"
    assert replay(*paths, "--output", output) == 0
    whole = files(output)
    shutil.rmtree(output / "two")
    (output / "two").mkdir()
    done = (output / "one" / "timing.json").read_bytes()
    assert replay(*paths, "--output", output) == 0
    assert files(output) == whole
    assert (output / "one" / "timing.json").read_bytes() == done, "not done again"
    assert replay(*paths, "--output", output, "--no-self-test") == 0
    assert (output / "one" / "timing.json").read_bytes() != done, "another configuration"
    assert "self_test" not in report(output)["bags"][0]


def test_other_software_or_weights_are_another_replay(monkeypatch, checkpoint):
    job = ReplayJob(None, None, str(checkpoint))
    keys = [job_key(job, "recording", "truth")]
    monkeypatch.setattr(replay_store, "versions", lambda: {"torch": "0.1"})
    keys.append(job_key(job, "recording", "truth"))
    replay_store._weights_digest.cache_clear()
    (checkpoint / "note.txt").write_text("trained longer")
    keys.append(job_key(job, "recording", "truth"))
    (checkpoint / "note.txt").unlink()
    assert len(set(keys)) == 3


def test_what_an_interrupt_leaves_is_whole_and_goes_on_where_it_ended(tmp_path, monkeypatch):
    paths = [bag(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    output, count = tmp_path / "out", iter(range(100))
    original = _Judge.add

    def interrupted(judge, number, step):
        if next(count) == 17:  # in the second bag
            raise KeyboardInterrupt
        original(judge, number, step)

    monkeypatch.setattr(_Judge, "add", interrupted)
    assert replay(*paths, "--output", output) == 130
    assert (output / "one" / "metrics.json").is_file()
    assert not list((output / "two").iterdir())
    monkeypatch.setattr(_Judge, "add", original)
    done = (output / "one" / "timing.json").read_bytes()
    assert replay(*paths, "--output", output) == 0
    assert (output / "one" / "timing.json").read_bytes() == done
    assert len(report(output)["bags"]) == 2


def test_bags_of_one_name_have_directories_of_their_own(tmp_path):
    paths = [bag(tmp_path / place / "bag", seed=seed) for seed, place in enumerate("ab")]
    assert replay(*paths, "--output", tmp_path / "out") == 0
    assert {p.parent.name for p in (tmp_path / "out").glob("*/metrics.json")} == {"bag", "bag-2"}


def test_copies_of_a_recording_have_rows_of_their_own_and_one_is_named_once(tmp_path, capsys):
    path = bag(tmp_path / "walk")
    copy = shutil.copytree(path, tmp_path / "other" / "copy")
    output = tmp_path / "out"
    assert replay(path, copy, "--output", output) == 0
    assert [own.name for own in read_run(output).bags] == ["walk", "copy"]
    assert replay(path, path / "..", path / ".." / "walk", "--output", output) == 2
    assert "is named twice" in capsys.readouterr().err


def test_results_never_go_into_a_recording(tmp_path, capsys):
    path = bag(tmp_path / "bags" / "walk")
    (path / "strips").mkdir()
    (path / "strips" / "mine.txt").write_text("precious")
    for output in (path.parent, path, path / "replays"):
        assert replay(path, "--output", output) == 2
        assert "would go into the recording itself" in capsys.readouterr().err
    assert (path / "strips" / "mine.txt").is_file()
    assert {own.name for own in path.iterdir()} == {"strips", "walk.mcap", "metadata.yaml"}


def test_names_that_are_no_text_are_told_all_the_same(tmp_path, capsys):
    path = bag(tmp_path / "bag").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert replay(path, "--output", tmp_path / "out", "--no-self-test") == 0
    assert (tmp_path / "out" / "caf\N{REPLACEMENT CHARACTER}" / "annotated.mp4").is_file()
    assert report(tmp_path / "out")["bags"][0]["bag"] == "caf\N{REPLACEMENT CHARACTER}"
    assert "caf\N{REPLACEMENT CHARACTER}" in (tmp_path / "out" / "report.html").read_text()


def test_a_rate_that_is_none_is_refused_before_anything_is_done(tmp_path, capsys):
    for rate in ("0", "nan", "-5"):
        assert replay(bag(tmp_path / rate), "--output", tmp_path / "out", "--fps", rate) == 2
        assert "--fps must be above 0" in capsys.readouterr().err


def test_results_without_their_times_are_told_all_the_same(tmp_path):
    path, output = bag(tmp_path / "bag"), tmp_path / "out"
    assert replay(path, "--output", output) == 0
    (output / "bag" / "timing.json").unlink()
    assert replay(path, "--output", output) == 0
    assert not (output / "bag" / "timing.json").exists(), "not done again"


def test_tracks_are_perfect_against_themselves_and_worse_with_a_box_too_many(tmp_path):
    path = bag(tmp_path / "bag")
    run_job(ReplayJob(path, tmp_path / "first", "grid"))
    truth = tmp_path / "gt.txt"
    rows = (tmp_path / "first" / "tracks.txt").read_text()
    truth.write_text(rows)
    metrics = run_job(ReplayJob(path, tmp_path / "again", "grid", truth=truth))
    table = metrics["tracking"]
    assert list(table) == ["kalman", "hold", "sort", "bytetrack"]
    assert table["kalman"]["hota"] == pytest.approx(1, abs=1e-4)
    assert (table["kalman"]["mota"], table["kalman"]["idf1"]) == (1, 1)
    assert table["kalman"]["frames"] == 12
    truth.write_text(rows + "5,99,1,1,9,9,1,-1,-1,-1\n")
    worse = run_job(ReplayJob(path, tmp_path / "worse", "grid", truth=truth))
    boxes = rows.count("\n") + 1
    assert worse["tracking"]["kalman"]["mota"] == pytest.approx(1 - 1 / boxes, abs=1e-6)
    assert worse["job_key"] != metrics["job_key"], "another truth"
    case = next(case for case in worse["worst"] if case["kind"] == "tracking")
    assert case["step"] == 4 and "1 of 6 boxes missed" in case["caption"]
    strip = cv2.imread(str(tmp_path / "worse" / case["strip"]))
    assert strip is not None and strip.shape[1] > strip.shape[0]


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        ("1,1,5,5,10,10,1\n50,1,5,5,10,10,1\n", "goes on to frame 50"),
        ("1,1,5,5,10,10,1\n1,1,9,9,10,10,1\n", "1 true boxes have the id of another one"),
    ],
)
def test_boxes_that_do_not_fit_are_a_warning(tmp_path, rows, warning):
    truth = tmp_path / "gt.txt"
    truth.write_text(rows)
    metrics = run_job(ReplayJob(bag(tmp_path / "bag"), tmp_path / "out", "grid", truth=truth))
    assert any(warning in line for line in metrics["warnings"])
    assert metrics["tracking"]["kalman"]["frames"] >= 1


def test_a_truth_that_cannot_be_read_fails_before_anything_is_done(tmp_path, capsys):
    truth = tmp_path / "gt.txt"
    truth.write_text("hello\n")
    path = bag(tmp_path / "bag")
    assert replay(path, "--output", tmp_path / "out", "--truth", truth) == 1
    assert "line 1" in capsys.readouterr().err
    assert not (tmp_path / "out" / "bag").exists()
    assert replay(path, path, path, "--truth", truth, truth, "--output", tmp_path / "out") == 2
    assert "one each" in capsys.readouterr().err


def test_no_worst_case_is_told_of_frames_in_which_nothing_can_be_confirmed(tmp_path):
    path, truth = bag(tmp_path / "bag"), tmp_path / "gt.txt"
    truth.write_text("".join(f"{frame},1,1,1,3,3,1\n" for frame in range(1, 13)))  # no object

    def first(confirm_hits):
        job = ReplayJob(path, tmp_path / f"{confirm_hits}", "grid", truth=truth)
        job = replace(job, tracker=replace(job.tracker, confirm_hits=confirm_hits))
        return [case["step"] for case in run_job(job)["worst"] if case["kind"] == "tracking"]

    assert (first(1), first(3)) == ([0], [2])


def test_the_stamp_of_a_worst_blackout_is_that_of_its_first_step(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:  # identities end where the size changes
        for index, image in enumerate([*noise(15), *noise(15, size=(96, 80))]):
            writer.write("/camera/image", stamp(index), image_message(stamp(index), image))
    metrics = run_job(ReplayJob(tmp_path / "bag", tmp_path / "out", "grid", baselines=False))
    found = [case for case in metrics["worst"] if case["kind"] == "blackout"]
    assert found and all(case["stamp_ns"] == stamp(case["step"]) for case in found)


def test_masks_that_do_not_fit_are_a_warning_and_bad_segmentations_are_shown(tmp_path):
    labels = np.zeros(SIZE, np.uint8)
    labels[10:30, 20:50] = 1
    with BagWriter(tmp_path / "bag") as writer:
        for index, image in enumerate(noise(6)):
            writer.write("/camera/image", stamp(index), image_message(stamp(index), image))
            mask = labels if index % 2 else labels[:24]
            told = Segmentation(stamp(index), SensorState.OK, "truth", index, mask)
            message = segmentation_message(told)
            writer.write("/simulator/ground_truth/segmentation", stamp(index), message)
    metrics = run_job(ReplayJob(tmp_path / "bag", tmp_path / "out", "grid"))
    assert metrics["discovery"]["frames_with_truth"] == 3
    assert set(metrics["discovery"]) == {"frames_with_truth", "fg_ari", "ari", "miou", "mbo"}
    assert "3 true masks are of another size" in metrics["warnings"][0]
    assert [case["kind"] for case in metrics["worst"]] == ["segmentation"]


def test_a_bag_of_one_frame_and_one_in_which_nothing_is_found(tmp_path):
    lone = run_job(ReplayJob(bag(tmp_path / "lone", 1), tmp_path / "a", "grid"))
    assert (lone["frames"], lone["steps"], lone["tracks_confirmed"]) == (1, 1, 0)
    model = "grid:rows=1,columns=1"  # all of it is background
    empty = run_job(ReplayJob(bag(tmp_path / "empty", 40), tmp_path / "b", model))
    assert (empty["objects_per_frame"], empty["tracks_confirmed"], empty["worst"]) == (0, 0, [])
    cell = empty["self_test"]["5"]["kalman"]
    assert cell["blackouts"] and not cell["tracked"] and cell["kept_share"] is None
    assert (tmp_path / "b" / "tracks.txt").read_text() == ""


def test_damaged_images_hide_objects_but_keep_identities(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for index, image in enumerate(noise(30)):
            data = cv2.imencode(".png", image)[1].tobytes()
            data = data[: len(data) // 2] if index in (12, 13, 20) else data
            message = compressed_message(stamp(index), "png", data)
            writer.write("/camera/image/compressed", stamp(index), message)
    metrics = run_job(ReplayJob(tmp_path / "bag", tmp_path / "out", "grid"))
    assert metrics["frames_malformed"] == metrics["sensor_states"]["CORRUPT"] == 3
    assert metrics["tracks_confirmed"] == 5 and metrics["warnings"]
    assert metrics["series"]["sensor_state"].count("CORRUPT") == 3


def test_an_output_that_is_a_file_is_an_error_that_says_so(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert replay(bag(tmp_path / "bag"), "--output", tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_shorter_film_is_told_by_its_rate(tmp_path):
    path = bag(tmp_path / "bag", 25)
    counts = {}
    for rate in (0.0, 5.0, 25.0):
        run_job(ReplayJob(path, tmp_path / f"{rate}", "grid", video_hz=rate, self_test=False))
        film = cv2.VideoCapture(str(tmp_path / f"{rate}" / "annotated.mp4"))
        counts[rate] = sum(1 for _ in iter(lambda film=film: film.read()[0], False))
    assert counts == {0.0: 0, 5.0: 5, 25.0: 25}
    assert not (tmp_path / "0.0" / "contact_sheet.png").exists()


def test_a_series_keeps_its_length_its_mean_and_its_blackouts():
    series, count = Series(), 3000
    perception = create_perception(ReplayJob(None, None, "grid"))
    _, output = perception.step(perception.initial_state(bytes(16)), None, 10**9)
    for number in range(count):
        state = SensorState.BLACK if number == 1234 else SensorState.OK
        found = Segmentation(stamp(number), state, "grid", number)
        tracks = replace(output.tracks, sensor_state=state)
        series.add(stamp(number) - stamp(0), found, tracks)
    columns = series.metrics()["series"]
    assert SERIES_POINTS / 2 <= len(columns["stamp_s"]) <= SERIES_POINTS
    assert columns["sensor_state"].count("BLACK") == 1
    assert columns["stamp_s"][0] == 0 and columns["stamp_s"] == sorted(columns["stamp_s"])


def test_stretches_of_a_long_recording_add_up(monkeypatch):
    perception = create_perception(ReplayJob(None, None, "grid"))
    outputs = []
    state = perception.initial_state(bytes(16))
    for index, image in enumerate(noise(12)):
        state, output = perception.step(state, image, stamp(index))
        outputs.append(output.tracks)
    ids, boxes = np.array([7]), np.array([[10.0, 10, 21, 24]])

    def scores(stretch):
        monkeypatch.setattr("oc_perception.evaluation.replay_scores.STRETCH_FRAMES", stretch)
        table = TrackingScores()
        for output in outputs:
            table.add(ids, boxes, {"kalman": output})
        return table.metrics()["tracking"]["kalman"]

    whole, parts = scores(1000), scores(4)
    for name in ("det_a", "mota"):  # which do not look beyond a frame, but for switches
        assert whole[name] == pytest.approx(parts[name])
    assert whole["frames"] == parts["frames"] == 12


def test_what_is_kept_of_a_replay_does_not_grow_with_it(tmp_path):
    job = ReplayJob(tmp_path, tmp_path, "grid", video_hz=1.0)
    perception = create_perception(job)
    images, state = noise(4, size=(24, 32)), perception.initial_state(bytes(16))
    judge = _Judge(job, perception, 10**6, 25.0)
    held = []
    tracemalloc.start()
    with Files(tmp_path, 25.0, 1.0, Stopwatch()) as written:
        for number in range(700):
            image = images[number % 4]
            state, output = perception.step(state, image, stamp(number))
            step = Step(stamp(number), Frame(number, stamp(number), image), output, state)
            judge.add(number, step)
            written.add(number, step)
            if number in (200, 699):
                held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    bytes_per_step = (held[1] - held[0]) / 500
    # 50 MB in the 106200 frames by which an hour at 30 Hz is longer than a minute
    assert bytes_per_step < 50e6 / 106_200, f"{bytes_per_step:.0f} bytes per step"
