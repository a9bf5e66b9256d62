# SPDX-License-Identifier: Apache-2.0
"""Frame cache: what decoding would give, decoded once, whole or not at all."""

import multiprocessing
import shutil

import cv2
import numpy as np
import pytest
from bag_makers import TOPIC, images, pictures, rosbag2, stamp

from oc_perception.bags import cache
from oc_perception.bags.cache import cached_frames
from oc_perception.bags.messages import image_message
from oc_perception.bags.sequence import BagError

FRAMES = pictures(6, 24, 32)


@pytest.fixture
def bag(tmp_path):
    return rosbag2(tmp_path / "it", images(FRAMES))


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("OC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_holds_the_frames_at_the_wanted_size(bag):
    frames = cached_frames(bag, (24, 32))
    np.testing.assert_array_equal(frames.images, FRAMES)
    assert (frames.images.dtype, frames.images.flags.writeable) == (np.uint8, False)
    np.testing.assert_array_equal(frames.stamps_ns, [stamp(i) for i in range(6)])
    np.testing.assert_array_equal(frames.indices, np.arange(6))
    assert (frames.name, frames.topic, frames.period_ns) == ("it", TOPIC, 40_000_000)
    assert frames.boxes == [None] * 6
    halves = cached_frames(bag, (12, 16)).images
    means = FRAMES.reshape(6, 12, 2, 16, 2, 3).astype(float).mean((2, 4))
    np.testing.assert_allclose(halves, means, atol=0.51)  # every pixel counts alike
    np.testing.assert_array_equal(
        cached_frames(bag, (10, 8), crop=(4, 6, 8, 10)).images, FRAMES[:, 6:16, 4:12]
    )


def test_boxes_move_with_the_pixels(tmp_path):
    """A bright rectangle is where its box says, in any crop and size."""
    scene = np.zeros((2, 24, 32, 3), np.uint8)
    scene[:, 8:16, 12:24] = 255
    truth = tmp_path / "gt.txt"
    truth.write_text("1,5,13,9,12,8,1,1,1\n1,6,1,1,2,2,1,1,1\n")  # pixels count from 1 there
    bag = rosbag2(tmp_path / "scene", images(scene))
    for size, crop in (((24, 32), None), ((48, 32), None), ((40, 50), (8, 4, 20, 16))):
        frames = cached_frames(bag, size, crop=crop, truth=truth)
        (center_x, center_y, width, height) = frames.boxes[0].boxes[0]
        rows, columns = np.nonzero(frames.images[0, ..., 0] > 127)
        np.testing.assert_allclose([center_x, center_y], [columns.mean(), rows.mean()], atol=0.01)
        np.testing.assert_allclose(
            [width, height], [np.ptp(columns) + 1, np.ptp(rows) + 1], atol=0.01
        )
        assert frames.boxes[0].ids.tolist() == (
            [5, 6] if crop is None else [5]
        )  # 6 is not in view
        assert frames.boxes[1] is None


def test_it_decodes_once(bag, tmp_path, monkeypatch):
    before = cached_frames(bag, (12, 16))
    monkeypatch.setattr(cache, "_build", None)
    moved = tmp_path / "moved"
    shutil.copytree(bag, moved)
    again = cached_frames(moved, (12, 16))
    np.testing.assert_array_equal(again.images, before.images)
    assert again.name == "moved"


def test_another_recording_size_crop_or_truth_is_another_cache(bag, tmp_path, directory):
    truths = []
    for number in range(2):
        truths.append(tmp_path / f"gt{number}.txt")
        truths[-1].write_text(f"{number + 1},1,1,1,4,4\n")
    other = rosbag2(tmp_path / "other", images(FRAMES[::-1]))
    for path, size, choices in (
        (bag, (12, 16), {}),
        (bag, (16, 12), {}),
        (bag, (12, 16), {"crop": (0, 0, 16, 12)}),
        (bag, (12, 16), {"truth": truths[0]}),
        (bag, (12, 16), {"truth": truths[1]}),
        (other, (12, 16), {}),
    ):
        before = len(list(directory.glob("frames_*/")))
        cached_frames(path, size, **choices)
        assert len(list(directory.glob("frames_*/"))) == before + 1


def test_an_interruption_leaves_nothing_and_the_next_time_is_whole(bag, directory, monkeypatch):
    count, fitted = [], cache.fitted

    def interrupted(*arguments):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return fitted(*arguments)

    monkeypatch.setattr(cache, "fitted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached_frames(bag, (24, 32))
    assert [p for p in directory.iterdir() if p.is_dir()] == []
    np.testing.assert_array_equal(cached_frames(bag, (24, 32)).images, FRAMES)


def test_what_a_killed_process_left_is_removed(bag, directory, monkeypatch):
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **b: None)  # as if there were no time for it
    monkeypatch.setattr(cache, "_decode", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cached_frames(bag, (24, 32))
    (left,) = (p for p in directory.iterdir() if p.is_dir())
    (left / "images.raw").write_bytes(b"half")
    monkeypatch.undo()
    assert shutil.rmtree is remove
    np.testing.assert_array_equal(cached_frames(bag, (24, 32), directory=directory).images, FRAMES)
    assert not left.exists()


def _build_in_a_process(bag, directory, results):
    frames = cached_frames(bag, (24, 32), directory=directory)
    results.put((frames.images.sum(dtype=np.int64), (frames.images == FRAMES).all()))


def test_processes_at_once_share_one_build(bag, directory):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [
        context.Process(target=_build_in_a_process, args=(bag, directory, results))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert found == [(FRAMES.sum(dtype=np.int64), True)] * 4
    assert len(list(directory.glob("frames_*/"))) == 1


def test_frames_that_cannot_be_decoded_are_left_out_and_told(tmp_path):
    messages = images(FRAMES)
    messages[2] = (TOPIC, stamp(2), image_message(stamp(2), np.zeros((0, 0, 3), np.uint8)))
    for _ in range(2):  # from the cache, too
        frames = cached_frames(rosbag2(tmp_path / f"{_}", messages), (24, 32))
        np.testing.assert_array_equal(frames.images, FRAMES[[0, 1, 3, 4, 5]])
        np.testing.assert_array_equal(frames.indices, [0, 1, 3, 4, 5])
        assert frames.warnings[0].startswith(f"1 image(s) on {TOPIC} left out; the first: ")
    nothing = [(TOPIC, t, image_message(t, np.zeros((0, 0, 3), np.uint8))) for _, t, _ in messages]
    with pytest.raises(BagError, match=r"No image on .* can be decoded"):
        cached_frames(rosbag2(tmp_path / "nothing", nothing), (24, 32))


def test_images_of_several_sizes_become_one(tmp_path):
    flat = [np.full((h, 20, 3), 40 * h, np.uint8) for h in (1, 2, 3)]
    messages = [(TOPIC, stamp(i), image_message(stamp(i), f)) for i, f in enumerate(flat)]
    frames = cached_frames(rosbag2(tmp_path / "it", messages), (4, 5))
    assert frames.images[:, 0, 0, 0].tolist() == [40, 80, 120]


def test_a_crop_out_of_the_image_or_a_full_disk_says_so(bag, directory, monkeypatch):
    with pytest.raises(BagError, match=r"crop \(30, 0, 8, 8\).* leaves the images of 32x24 px"):
        cached_frames(bag, (8, 8), crop=(30, 0, 8, 8))
    full = shutil.disk_usage(directory)._replace(free=1000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match="set OC_CACHE to a larger disk"):
        cached_frames(bag, (24, 32))
    assert [p for p in directory.iterdir() if p.is_dir()] == []


def test_long_recordings_show_how_far_they_are(bag, capsys, monkeypatch):
    monkeypatch.setattr(cache, "_SILENT_S", 0.0)
    cached_frames(bag, (24, 32))
    assert "frames of it: 6/6" in capsys.readouterr().err
    monkeypatch.setattr(cache, "_SILENT_S", 60.0)
    cached_frames(bag, (23, 32))
    assert capsys.readouterr().err == ""


def test_videos_and_pictures_are_cached_too(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, frame in enumerate(FRAMES):
        cv2.imwrite(str(folder / f"{index}.png"), frame[..., ::-1])
    slow, fast = (cached_frames(folder, (24, 32), fps=fps) for fps in (1, 25))
    np.testing.assert_array_equal(slow.images, FRAMES)
    assert np.diff(slow.stamps_ns).tolist() == [1_000_000_000] * 5
    assert np.diff(fast.stamps_ns).tolist() == [40_000_000] * 5
