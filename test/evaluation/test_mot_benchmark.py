# SPDX-License-Identifier: Apache-2.0
"""Tracking by detection: sequences as files, what counts, hidden frames, and the command."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from oc_perception.cli import main
from oc_perception.evaluation.mot import score
from oc_perception.evaluation.mot_benchmark import (
    BASELINES,
    DetectedSequence,
    Entry,
    SequenceError,
    counted,
    follow,
    hidden_frames,
    measure,
    read_sequence,
)
from oc_perception.evaluation.mot_files import MotTable, write_mot
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.tracker import Tracker

FRAMES, PICTURES = 30, 24


def table(frames, ids, boxes, confidences, classes=None):
    count = len(frames)
    classes = np.full(count, -1) if classes is None else classes
    return MotTable(frames, ids, boxes, confidences, classes, np.ones(count))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three people walk for 30 frames, of which 24 have pictures; clutter scores low. The second
    is not to be counted.
    """
    path = tmp_path / "STREET-01"
    for name in ("gt", "det", "img1"):
        (path / name).mkdir(parents=True)
    frames, ids = np.repeat(np.arange(FRAMES), 3), np.tile([1, 2, 3], FRAMES)
    boxes = np.stack(
        [50.0 + 100 * ids + 3 * frames, 120.0 + 0 * frames, 30 + 0 * frames, 80 + 0 * frames], 1
    )
    write_mot(path / "gt" / "gt.txt", table(frames, ids, boxes, 1.0 * (ids != 2)))
    generator = np.random.default_rng(0)
    noisy = boxes + generator.normal(0, 1.0, boxes.shape)
    clutter = np.column_stack([generator.uniform(50, 400, (20, 2)), np.full((20, 2), 40.0)])
    detections = table(
        np.r_[frames, np.arange(20)],
        np.full(len(frames) + 20, -1),
        np.concatenate([noisy, clutter]),
        np.r_[generator.uniform(60, 100, len(frames)), generator.uniform(-10, 10, 20)],
    )
    write_mot(path / "det" / "det.txt", detections)
    for k in range(1, PICTURES + 1):
        (path / "img1" / f"{k:06d}.jpg").touch()
    (path / "seqinfo.ini").write_text(
        "[Sequence]\nname=STREET-01\nimDir=img1\nframeRate=20\nseqLength=999\nimWidth=640\n"
        "imHeight=480\nimExt=.jpg\n"
    )
    return path


def test_a_tar_reads_as_its_folder_up_to_the_last_picture(tmp_path, folder):
    tar = tmp_path / "packed.tar"
    with tarfile.open(tar, "w") as file:
        file.add(folder, "STREET-01")
    packed, plain = read_sequence(tar), read_sequence(folder)
    for sequence in (packed, plain):
        assert (sequence.name, sequence.rate_hz, sequence.image_size) == (
            "STREET-01",
            20.0,
            (480, 640),
        )
        assert len(sequence) == PICTURES
        assert sequence.truth.frames.max() == PICTURES - 1
    for left, right in zip(packed.detections, plain.detections, strict=True):
        assert [d.score for d in left] == [d.score for d in right]
        np.testing.assert_array_equal([d.box for d in left], [d.box for d in right])
    scores = np.array([d.score for frame in plain.detections for d in frame])
    count = 3 * PICTURES + 20
    np.testing.assert_allclose(np.sort(scores), (np.arange(count) + 0.5) / count)
    assert sorted(scores[:4]) == sorted(d.score for d in plain.part(0, 1).detections[0])
    assert plain.part(5, 9).truth.frames.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


@pytest.mark.parametrize("missing", ["det/det.txt", "seqinfo.ini", "img1/000001.jpg"])
def test_what_is_no_sequence_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(SequenceError, match="STREET-01"):
        read_sequence(folder)


def test_a_box_on_a_distractor_is_neither_right_nor_wrong():
    """Frame 0: a pedestrian, a distractor and a car, each with a track; one more on nothing."""
    places = np.array([[100.0, 100, 40, 80], [200, 100, 40, 80], [300, 100, 40, 80]])
    truth = table(np.zeros(3, int), np.arange(1, 4), places, np.r_[1.0, 0, 0], np.r_[1, 8, 3])
    sequence = DetectedSequence("", (480, 640), 25.0, ((),), truth)
    boxes = np.concatenate([places + 2, [[400.0, 100, 40, 80]]])
    result = score(counted(sequence, [np.arange(4)], [boxes])).clear
    assert (result.matches, result.misses, result.false_positives) == (1, 0, 2)


def test_hidden_frames_are_bernoulli_and_belong_to_their_seed():
    hidden = hidden_frames(20000, 0.2, 3)
    assert abs(hidden.mean() - 0.2) < 0.012
    np.testing.assert_array_equal(hidden, hidden_frames(20000, 0.2, 3))
    assert (hidden != hidden_frames(20000, 0.2, 4)).any()


@pytest.fixture
def entry() -> Entry:
    config = TrackerConfig(horizon_s=0, min_birth_score=0.3, measurement_std_widths=0.005)
    return Entry(Tracker(config), coast_s=1.0, existence=0.5)


def test_hidden_frames_are_answered_from_what_was_seen_before(folder, entry):
    sequence = read_sequence(folder)
    hidden = np.zeros(PICTURES, bool)
    hidden[[10, 11, 20]] = True
    whole = follow(entry, sequence, np.zeros(PICTURES, bool))
    result = follow(entry, sequence, hidden)
    for k in range(10):
        np.testing.assert_array_equal(result.track_boxes[k], whole.track_boxes[k])
    for k in (10, 11, 20):  # the second person is known, but not counted as true
        assert len(result.truth_ids[k]) == 2 and len(result.track_ids[k]) == 3
    assert score(result).identity.misses == score(whole).identity.misses
    mute = follow(Entry(entry.tracker), sequence, hidden)
    assert [len(mute.track_ids[k]) for k in (9, 10, 11, 12)] == [3, 0, 0, 3]


def test_draws_add_up(folder, entry):
    sequences = [read_sequence(folder).part(0, 12), read_sequence(folder)]
    sequences[0] = DetectedSequence("FIRST", *list(vars(sequences[0]).values())[1:])
    told = []
    found = measure(sequences, {"own": lambda sequence: entry}, [0.3], 4, lambda: told.append(1))[
        "own"
    ]
    assert told == [1]
    through = [
        sum(
            len(f.truth_ids[k])
            for f in (follow(entry, s, hidden_frames(len(s), 0.3, seed)) for s in sequences)
            for k in range(len(f.truth_ids))
        )
        for seed in range(4)
    ]
    combined = found["hidden_0.3_through"]["combined"]
    assert len(combined["hota_of_draws"]) == 4
    assert sum(through) == 4 * 2 * (12 + PICTURES)
    assert set(found["hidden_0.3_seen"]) == {"FIRST", "STREET-01", "combined"}
    assert 0.5 < combined["hota"] < 1


def test_the_command_reports_all_trackers(tmp_path, folder, capsys):
    file = tmp_path / "report.json"
    words = ["benchmark", "mot", f"{folder}:3-20", "--quick", "--moving", "STREET-01"]
    assert main([*words, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert list(report["trackers"]) == ["tracker", *BASELINES]
    assert [s["frames"] for s in report["sequences"].values()] == [18]
    hota = report["trackers"]["tracker"]["hidden_0.2_through"]["combined"]["hota"]
    assert f"{100 * hota:.1f} /" in capsys.readouterr().out
    for name, lead in report["lead"]["hidden_0.2_through"].items():
        other = report["trackers"][name]["hidden_0.2_through"]["combined"]["hota"]
        assert lead["hota"] == pytest.approx(hota - other)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["{folder}:0-3"], "frames 1 to 24"),
        (["{folder}", "--hidden", "1"], "share"),
        (["{folder}", "--seeds", "0"], "at least 1"),
        (["{folder}", "{folder}"], "different names"),
        (["{folder}", "--moving", "STREET-2"], "there are STREET-01"),
        (["nowhere"], "nowhere"),
        (["{folder}", "--config", "{folder}/seqinfo.ini"], "seqinfo.ini"),
    ],
)
def test_what_cannot_be_measured_is_refused(folder, capsys, words, reason):
    given = [word.format(folder=folder) for word in words]
    assert main(["benchmark", "mot", *given]) != 0
    assert reason in capsys.readouterr().err
