# SPDX-License-Identifier: Apache-2.0
"""Pictures: what must be visible where, and equal bytes for equal input."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from oc_perception.evaluation.draw import (
    VideoWriter,
    annotate,
    color,
    contact_sheet,
    dimmed,
    write_png,
)
from oc_perception.types import (
    UNLABELLED,
    SensorState,
    Track,
    TrackOutput,
    TrackState,
    Trajectory,
    TrajectoryMode,
)

GREY = np.full((480, 640, 3), 128, np.uint8)


def track(state=TrackState.CONFIRMED, **fields) -> Track:
    values = {
        "id": 1,
        "state": state,
        "box": np.array([320.0, 240, 100, 80]),
        "velocity": np.zeros(2),
        "covariance": np.diag([25.0, 25, 1, 1]),
        "existence_probability": 1.0,
        "age": 5,
        "hits": 5,
        "last_seen_ns": 1_000_000_000,
        "slot_label": 2 if state == TrackState.CONFIRMED else UNLABELLED,
    }
    return Track(**{**values, **fields})


def output(*tracks: Track, sensor_state=SensorState.OK, trajectories=()) -> TrackOutput:
    return TrackOutput(1_500_000_000, 1_000_000_000, bytes(16), sensor_state, tracks, trajectories)


def colored(image: np.ndarray, track_id: int = 1) -> np.ndarray:
    """`(H, W)` bool: nearer to the colour of the identity than to the grey ground."""
    return np.abs(image.astype(int) - color(track_id)).sum(-1) < 130


def test_the_frame_itself_is_left_alone():
    frame = GREY.copy()
    frame.flags.writeable = False
    picture = annotate(frame, output(track()), np.full((480, 640), 2, np.uint8), "0 s")
    assert picture.shape == frame.shape and picture.dtype == np.uint8
    np.testing.assert_array_equal(frame, GREY)
    np.testing.assert_array_equal(annotate(frame), GREY)


def test_a_confirmed_track_has_its_box_where_it_is():
    rows, columns = np.nonzero(colored(annotate(GREY, output(track()))))
    assert abs(columns.min() - 270) <= 3 and abs(columns.max() - 370) <= 3
    assert abs(rows.max() - 280) <= 3  # above the box stands its label


def test_a_coasting_box_is_dashed_and_a_confirmed_one_is_not():
    right_edge = (slice(210, 270), 370)
    solid = colored(annotate(GREY, output(track())))[right_edge]
    dashed = colored(annotate(GREY, output(track(TrackState.COASTING))))[right_edge]
    assert solid.all()
    assert 0.3 < dashed.mean() < 0.8
    assert np.abs(np.diff(dashed.astype(int))).sum() >= 4


def test_only_the_pixels_of_a_tracks_slot_are_tinted():
    labels = np.zeros((480, 640), np.uint8)
    labels[200:280, 270:370] = 2
    labels[300:400, 50:150] = 3  # a slot without a track
    picture = annotate(GREY, output(track()), labels)
    tinted = np.abs(picture[225:230, 280:290].astype(int) - 128).sum(-1)
    assert (tinted > 30).all()
    np.testing.assert_array_equal(picture[290:420, 40:160], GREY[290:420, 40:160])


def test_the_ellipse_holds_ninety_percent():
    covariance = np.zeros((4, 4))
    covariance[:2, :2] = [[400.0, 0], [0, 100]]
    big_box = np.array([320.0, 240, 400, 300])
    picture = colored(annotate(GREY, output(track(covariance=covariance, box=big_box))))
    inside = picture[120:360, 150:490]
    rows, columns = np.nonzero(inside)
    # chi-square with 2 degrees of freedom: P(r^2 < 4.605) = 1 - exp(-4.605 / 2) = 0.9
    reach = np.sqrt(-2 * np.log(0.1))
    assert abs((np.ptp(columns) + 1) / 2 - 20 * reach) <= 2.5
    assert abs((np.ptp(rows) + 1) / 2 - 10 * reach) <= 2.5


def test_the_arrow_ends_where_the_prediction_does():
    boxes = np.linspace([320, 240, 100, 80], [500, 240, 100, 80], 10)
    mode = TrajectoryMode(1.0, np.linspace(0.1, 1, 10), boxes, np.tile([4.0, 0, 4], (10, 1)))
    path = Trajectory(1, TrackState.CONFIRMED, (mode,))
    picture = colored(annotate(GREY, output(track(), trajectories=(path,))))
    columns = np.nonzero(picture[236:245, 380:].any(0))[0] + 380
    assert abs(columns.max() - 500) <= 3
    assert picture[240, 400:480].all()


@pytest.mark.parametrize("state", [s for s in SensorState if s != SensorState.OK])
def test_a_banner_shows_while_the_sensor_is_blind(state):
    seen = annotate(GREY, output(track(TrackState.COASTING)))
    blind = annotate(GREY, output(track(TrackState.COASTING), sensor_state=state))
    red = (blind[2:20, -50:, 0].astype(int) - blind[2:20, -50:, 1]) > 80
    assert red.all()
    np.testing.assert_array_equal(seen[40:], blind[40:])


def test_lost_and_impossible_tracks_are_not_drawn():
    lost = track(TrackState.LOST)
    broken = track(box=np.array([np.nan, 0, 1, 1]))
    np.testing.assert_array_equal(annotate(GREY, output(lost, broken)), GREY)
    far = track(box=np.array([1e12, -1e12, 1e9, 10]), covariance=np.full((4, 4), np.inf))
    assert annotate(GREY, output(far)).shape == GREY.shape


def test_a_label_map_of_another_size_is_left_out():
    labels = np.full((48, 64), 2, np.uint8)
    np.testing.assert_array_equal(
        annotate(GREY, output(track()), labels), annotate(GREY, output(track()))
    )


@pytest.mark.parametrize("shape", [(1, 1), (32, 48), (720, 1280)])
def test_every_size_of_picture_can_be_annotated(shape):
    frame = np.zeros((*shape, 3), np.uint8)
    scene = output(track(), track(TrackState.COASTING, id=2), sensor_state=SensorState.BLACK)
    assert annotate(frame, scene, np.zeros(shape, np.uint8), "1 s").shape == frame.shape


def test_colors_are_stable_and_neighbours_differ():
    colors = [color(i) for i in range(1, 15)]
    assert len(set(colors)) == 14
    assert color(1) == color(15)


def test_dimming_keeps_the_shape_and_darkens():
    bright = np.full((4, 4, 3), (200, 40, 90), np.uint8)
    memory = dimmed(bright)
    assert memory.shape == bright.shape
    assert memory.max() < 80 and np.ptp(memory) == 0


def test_a_contact_sheet_shows_the_frames_in_order():
    frames = [np.full((60, 80, 3), 20 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(frames, columns=3, width=400, gap_px=10)
    tile = (400 - 40) // 3
    height = round(tile * 60 / 80)
    assert sheet.shape == (10 + 2 * (height + 10), 400, 3)
    for index in range(5):
        row, column = divmod(index, 3)
        y, x = 10 + row * (height + 10) + height // 2, 10 + column * (tile + 10) + tile // 2
        assert sheet[y, x].tolist() == [20 * index] * 3
    assert (sheet[-20:, -20:] == 255).all()
    with pytest.raises(ValueError, match="at least one frame"):
        contact_sheet([])


def moving_square() -> list[np.ndarray]:
    frames = [np.full((96, 128, 3), 60, np.uint8) for _ in range(12)]
    for index, frame in enumerate(frames):
        frame[30:60, 5 * index : 5 * index + 30] = (200, 60, 30)
    return frames


def test_videos_are_playable_and_equal_bytes(tmp_path):
    contents = set()
    for name in "abc":
        with VideoWriter(tmp_path / f"{name}.mp4", 25.0, 96, 128) as video:
            for frame in moving_square():
                video.write(frame)
            video.write(np.zeros((10, 10, 3), np.uint8))  # letterboxed
        contents.add(video.path.read_bytes())
    assert len(contents) == 1
    capture = cv2.VideoCapture(str(video.path))
    assert capture.get(cv2.CAP_PROP_FPS) == 25.0
    for frame in moving_square():
        found, decoded = capture.read()
        assert found
        assert np.abs(decoded[..., ::-1].astype(int) - frame).mean() < 6
    assert capture.read()[0] and not capture.read()[0]


def test_an_interrupted_video_leaves_no_file(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        VideoWriter(tmp_path / "a.mp4", 30, 96, 128) as video,
    ):
        video.write(moving_square()[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_png_holds_the_rgb_it_was_given(tmp_path: Path):
    frame = moving_square()[3]
    write_png(tmp_path / "a.png", frame)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], frame)
