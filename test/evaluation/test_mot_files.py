# SPDX-License-Identifier: Apache-2.0
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from oc_perception.evaluation.mot import score
from oc_perception.evaluation.mot_files import (
    MotFileError,
    MotTable,
    mot_sequence,
    read_mot,
    write_mot,
)

SEQUENCES = {  # archive: usable ground truth and identities in the frames that have images
    "TUD-Stadtmitte": ("TUD-Stadtmitte.tar", 179, 1156, 10),
    "PETS09-S2L1": ("PETS09-S2L1_frames_0001-0060.tar", 60, 283, 6),
    "MOT16-11": ("MOT16-11_frames_0001-0040.tar", 40, 607, 18),
}


@pytest.fixture
def text_file(tmp_path):
    def write(text):
        path = tmp_path / "rows.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture(params=SEQUENCES)
def recorded(request, data_directory, tmp_path):
    """A sequence of MOTChallenge: its name and the bytes of gt.txt and det.txt."""
    archive = data_directory / "mot_sequences" / SEQUENCES[request.param][0]
    if not archive.is_file():
        pytest.skip(f"{archive} is not there")
    with tarfile.open(archive) as tar:
        for name in ("gt", "det"):
            member = tar.extractfile(f"{request.param}/{name}/{name}.txt")
            (tmp_path / f"{name}.txt").write_bytes(member.read())
    return request.param, tmp_path


def test_recorded_truth_has_the_published_boxes_and_identities(recorded):
    name, directory = recorded
    _, frames, boxes, identities = SEQUENCES[name]
    truth = read_mot(directory / "gt.txt")
    used = truth.select(~truth.ignored & (truth.frames < frames))
    if name == "MOT16-11":  # has classes: 1 is a person, others are not counted
        assert set(used.classes) == {1} < set(truth.classes)
    assert len(used) == boxes and len(set(used.ids.tolist())) == identities
    assert used.frames.min() == 0 and used.frames.max() == frames - 1


def test_recorded_files_survive_a_round_trip(recorded):
    _, directory = recorded
    for name in ("gt", "det"):
        table = read_mot(directory / f"{name}.txt")
        write_mot(directory / "copy.txt", table)
        copy = read_mot(directory / "copy.txt")
        for field in ("frames", "ids", "classes"):
            np.testing.assert_array_equal(getattr(copy, field), getattr(table, field))
        for field in ("boxes", "confidences", "visibilities"):
            np.testing.assert_allclose(getattr(copy, field), getattr(table, field), atol=1e-6)
    assert len(table) > 100 and set(table.ids) == {-1}  # the detections


def test_recorded_truth_scores_perfectly_against_itself(recorded):
    name, directory = recorded
    _, frames, boxes, _ = SEQUENCES[name]
    truth = read_mot(directory / "gt.txt")
    scores = score(mot_sequence(truth, truth.select(~truth.ignored), frames))
    assert scores.clear.mota == 1 == scores.identity.idf1 and scores.clear.misses == 0
    assert scores.summary()["hota"] == pytest.approx(1)
    assert scores.clear.matches == boxes


def test_every_number_of_columns_is_understood(text_file):
    table = read_mot(
        text_file(
            "1,7,11,21,4,6\n"
            "1,8,11,21,4,6,0\n"
            "\n"
            "2,7,11,21,4,6,0.5,3\n"
            "3,7,11.5,21,4,6,1,2,0.25,\n"
            " 4, 7, 11, 21, 4, 6, 1, 8.5, -2.5, 0\r\n"
            "5,-1,1,1,1,1,-3,-1,-1,-1"
        )
    )
    np.testing.assert_array_equal(table.frames, [0, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(table.ids, [7, 8, 7, 7, 7, -1])
    np.testing.assert_array_equal(table.confidences, [1, 0, 0.5, 1, 1, -3])
    np.testing.assert_array_equal(table.classes, [-1, -1, 3, 2, -1, -1])
    np.testing.assert_array_equal(table.visibilities, [1, 1, 1, 0.25, 1, 1])
    np.testing.assert_array_equal(table.ignored, [0, 1, 0, 0, 0, 0])
    # Pixels 11 to 14 counted from 1 are 10 to 13 counted from 0.
    np.testing.assert_array_equal(table.boxes[0], [11.5, 22.5, 4, 6])
    np.testing.assert_array_equal(table.boxes[3], [12, 22.5, 4, 6])
    np.testing.assert_array_equal(table.boxes[5], [0, 0, 1, 1])


def test_an_empty_file_is_an_empty_table(text_file):
    table = read_mot(text_file("\n\n"))
    assert len(table) == 0 and table.boxes.shape == (0, 4)
    sequence = mot_sequence(table, table)
    assert score(sequence).clear.misses == 0 and len(sequence.truth_ids) == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("1,7,11,21,4", "line 3: 5 columns, at least 6"),
        ("1,7,11,21,4,six", "line 3: '1,7,11,21,4,six' is not all numbers"),
        ("1 7 11 21 4 6", "line 3: 1 columns"),
        ("1,7,,21,4,6", "line 3: .* is not all numbers"),
        ("1,7,11,21,nan,6", "line 3: a number is not finite"),
        (
            "0,7,11,21,4,6",
            "line 3: frame, id and class must be whole 32-bit numbers, frames from 1",
        ),
        ("1.5,7,11,21,4,6", "line 3: frame, id and class"),
        ("1,7.5,11,21,4,6", "line 3: frame, id and class"),
        ("1e300,7,11,21,4,6", "line 3: frame, id and class"),
        ("1,7,11,21,-4,6", "line 3: the box has a negative size, -4 x 6"),
        (b"\x89PNG\xff\x00", "line 3: 1 columns"),
    ],
)
def test_damage_is_named_with_its_line(text_file, damage, message):
    damage = damage if isinstance(damage, bytes) else damage.encode()
    path = text_file(b"1,7,11,21,4,6\n\n" + damage + b"\n1,8,11,21,4,6\n")
    with pytest.raises(MotFileError, match=f"rows.txt, {message}.*Columns are frame,id,left"):
        read_mot(path)


def test_what_is_written_is_motchallenge(tmp_path):
    table = MotTable(
        np.array([0, 9]),
        np.array([3, 4]),
        np.array([[11.5, 22.5, 4, 6], [0.25, 0, 2, 1]]),
        np.array([1, 0.5]),
        np.array([-1, -1]),
        np.array([1.0, 1.0]),
    )
    write_mot(tmp_path / "rows.txt", table)
    expected = "1,3,11,21,4,6,1,-1,-1,-1\n10,4,0.75,1,2,1,0.5,-1,-1,-1\n"
    assert (tmp_path / "rows.txt").read_text() == expected
    labelled = replace(table, classes=np.array([1, 0]), visibilities=np.array([1.0, 0.0]))
    write_mot(tmp_path / "rows.txt", labelled)
    assert (tmp_path / "rows.txt").read_text() == "1,3,11,21,4,6,1,1,1\n10,4,0.75,1,2,1,0.5,0,0\n"


def test_rows_in_any_order_become_frames(text_file):
    truth = read_mot(text_file("3,1,1,1,9,9\n1,1,1,1,9,9\n1,2,50,1,9,9\n1,3,90,1,9,9,0\n"))
    tracks = read_mot(text_file("1,5,1,1,9,9\n5,6,1,1,9,9\n"))
    sequence = mot_sequence(truth, tracks)
    assert [list(ids) for ids in sequence.truth_ids] == [[1, 2], [], [1], [], []]
    assert [list(ids) for ids in sequence.track_ids] == [[5], [], [], [], [6]]
    clear = score(sequence).clear
    assert (clear.matches, clear.misses, clear.false_positives) == (1, 2, 1)
    assert len(mot_sequence(truth, tracks, num_frames=2).track_ids) == 2
    with pytest.raises(ValueError, match="truth id 7 is twice in frame 0"):
        score(mot_sequence(read_mot(text_file("1,7,1,1,9,9\n1,7,1,1,9,9\n")), tracks))
