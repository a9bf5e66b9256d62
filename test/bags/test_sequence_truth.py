# SPDX-License-Identifier: Apache-2.0
"""The truth of a recording: boxes and masks, in it or beside it, come with their frames."""

import numpy as np
import pytest
from bag_makers import FRAMES, folder, images, motchallenge, rosbag2, stamp, tar
from PIL import Image

from oc_perception.bags import pictures as picture_files
from oc_perception.bags.messages import track_messages
from oc_perception.bags.sequence import BagError, open_sequence
from oc_perception.types import SensorState, Track, TrackOutput, TrackState


@pytest.mark.parametrize("box", [(np.nan, 5, 4, 4), (5, 5, -4, 4)])
def test_true_boxes_that_are_none_are_left_out(tmp_path, box):
    def tracks(index, box):
        numbers = np.array(box, float), np.zeros(2), np.eye(4)
        track = Track(1, TrackState.CONFIRMED, *numbers, 0.9, 5, 5, stamp(index))
        output = TrackOutput(stamp(index), stamp(index), bytes(16), SensorState.OK, (track,), ())
        return "/ground_truth/tracks", stamp(index), track_messages(output)[0]

    recorded = [*images(FRAMES[:2]), tracks(0, (5, 5, 4, 4)), tracks(1, box)]
    bag = rosbag2(tmp_path / "bag", sorted(recorded, key=lambda m: m[1]))
    with open_sequence(bag) as sequence:
        assert [frame.boxes is None for frame in sequence.frames()] == [False, True]
        assert "1 message(s) on /ground_truth/tracks left out" in sequence.warnings[0]


def test_a_truth_of_another_length_is_told_whatever_pictures_are_missing(tmp_path):
    path, truth = motchallenge(tmp_path / "it"), tmp_path / "gt.txt"
    for rows, warning in (("5,1,1,1,4,4,1\n12,1,1,1,4,4,1\n13,1,1,1,4,4,0\n", None),
                          ("11,1,1,1,4,4,1\n", "ends with frame 11 of 12"),
                          ("14,1,1,1,4,4,1\n", "goes on to frame 14")):  # fmt: skip
        truth.write_text(rows)
        with open_sequence(path, truth=truth) as sequence:
            assert sequence.num_frames == 11
            assert (warning is None) == (not sequence.warnings)
            assert warning is None or warning in sequence.warnings[0]


def test_motchallenge_text_counts_frames_by_image_or_by_its_number(tmp_path):
    path = motchallenge(tmp_path / "SEQ")
    with open_sequence(path) as sequence:
        boxes = [f.boxes for f in sequence.frames()]
    # the picture of frame 6 is missing: frame 7 is the picture of index 5
    assert [None if b is None else b.ids.tolist() for b in boxes] == [
        *[[]] * 5, [3, 8], [], [8], *[None] * 3,
    ]  # fmt: skip
    np.testing.assert_array_equal(boxes[5].boxes, [[1.5, 2.5, 4, 6], [2.5, 2.5, 4, 4]])
    bag = rosbag2(tmp_path / "bag", images(FRAMES))
    for truth in (path, path / "gt" / "gt.txt", tar(tmp_path / "x.tar")):
        with open_sequence(bag, truth=truth) as sequence:
            found = {f.index: f.boxes.ids.tolist() for f in sequence.frames(0, 0.35)}
            assert found == {i: {6: [3, 8], 8: [8]}.get(i, []) for i in range(9)}
            assert sequence.warnings == ["The ground truth ends with frame 9 of 12."]


def masks(path, names, colors=None):
    path.mkdir(parents=True)
    for index, name in enumerate(names):
        image = Image.fromarray(np.eye(12, 16, dtype=np.uint8) * (index % 3))
        if colors is not None:
            image.putpalette(colors)
        image.save(path / name)
    return path


VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0]
"""The first three colours of PASCAL VOC's palette, as everybody publishes it."""


@pytest.mark.parametrize("colors", [None, VOC])
def test_masks_are_label_images_in_numbers_or_in_colours(tmp_path, colors):
    truth = masks(tmp_path / "truth", [f"m{i}.png" for i in range(12)], colors)
    with open_sequence(rosbag2(tmp_path / "it", images(FRAMES)), truth=truth) as sequence:
        for frame in sequence.frames():
            expected = np.eye(12, 16) * (frame.index % 3)
            np.testing.assert_array_equal(frame.truth.label_image, expected)
            assert frame.truth.stamp_ns == frame.stamp_ns


def test_masks_belong_to_the_picture_of_their_name(tmp_path):
    folder(tmp_path / "DAVIS" / "bike")
    masks(tmp_path / "DAVIS" / "bike_mask", ["1.png", "2.png", "3.png", "9.png"])
    with open_sequence(tmp_path / "DAVIS", fps=25) as sequence:
        frames = list(sequence.frames())
    assert [f.index for f in frames if f.truth is not None and f.index > 2] == [3, 7]
    np.testing.assert_array_equal(frames[2].truth.label_image, np.eye(12, 16) * 2)


def test_masks_of_another_size_fit_the_image(tmp_path):
    truth = masks(tmp_path / "truth", ["1.png", "2.png", "3.png"])
    large = np.repeat(np.repeat(FRAMES[:3], 2, axis=1), 2, axis=2)
    with open_sequence(rosbag2(tmp_path / "it", images(large)), truth=truth) as sequence:
        frames = list(sequence.frames())
        expected = np.kron(np.eye(12, 16), np.ones((2, 2)))
        np.testing.assert_array_equal(frames[1].truth.label_image, expected)
        assert "16x12 px, the images of 32x24: the masks are resized" in sequence.warnings[0]


def test_a_bad_truth_is_refused_or_told(tmp_path):
    bag = rosbag2(tmp_path / "it", images(FRAMES))
    (tmp_path / "gt.txt").write_text("1,2,3\n")
    (tmp_path / "nothing").mkdir()
    for truth, cause in (
        ("gt.txt", r"gt.txt, line 1: 3 columns"),
        ("nothing", "holds no ground truth"),
        ("absent", "check the path"),
    ):
        with pytest.raises(BagError, match=cause):
            open_sequence(bag, truth=tmp_path / truth)
    damaged = masks(tmp_path / "masks", [f"{i}.png" for i in range(12)])
    (damaged / "4.png").write_bytes(b"no picture")
    with open_sequence(bag, truth=damaged) as sequence:
        assert [f.index for f in sequence.frames() if f.truth is None] == [4]
        assert sequence.warnings[0].startswith("1 mask(s) left out; the first: 4.png in")


@pytest.mark.parametrize(
    ("name", "frames", "boxes"),
    [
        ("TUD-Stadtmitte.tar", 179, 1156),
        ("PETS09-S2L1_frames_0001-0060.tar", 60, 283),
        ("MOT16-11_frames_0001-0040.tar", 40, 607),
    ],
)
def test_the_pedestrian_sequences_have_their_boxes(
    data_directory, name, frames, boxes, monkeypatch
):
    path = data_directory / "mot_sequences" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    pixel = np.zeros((1, 1, 3), np.uint8)
    monkeypatch.setattr(picture_files.Picture, "rgb", lambda self: pixel)
    with open_sequence(path) as sequence:
        found = [frame.boxes for frame in sequence.frames()]
    assert len(found) == frames
    # the numbers of the data's description; the last frames may be behind the last row
    assert sum(len(b.ids) for b in found if b is not None) == boxes


def test_the_davis_masks_come_with_their_pictures(data_directory):
    path = data_directory / "davis_bmx_trees" / "bmx-trees.tar"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with open_sequence(path, fps=24) as sequence:
        frames = list(sequence.frames(0, 1))
        assert sequence.num_frames == 80
    assert len(frames) == 24
    assert all(f.truth.label_image.shape == (240, 432) for f in frames)
    assert {1} == {int(f.truth.label_image.max()) for f in frames}
