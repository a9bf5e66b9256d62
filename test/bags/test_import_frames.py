# SPDX-License-Identifier: Apache-2.0
"""import-frames: pictures arrive unchanged, with the times that their source gives."""

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from rosbags.highlevel import AnyReader

from oc_perception.cli import main

SECOND_NS = 1_000_000_000
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3, 4, 3), dtype=np.uint8)


def pictures(folder: Path, suffix: str = ".jpg", numbers: range = range(1, 13)) -> list[Path]:
    """Pictures made by Pillow; frame 10 sorts after frame 9 by number only."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"frame{number}{suffix}" for number in numbers]
    for path, pixels in zip(paths, PIXELS, strict=False):
        Image.fromarray(np.kron(pixels, np.ones((8, 8, 1), np.uint8))).save(path)
    return paths


def mot_sequence(folder: Path, numbers: range = range(1, 13)) -> list[Path]:
    paths = pictures(folder / "img1", numbers=numbers)
    (folder / "seqinfo.ini").write_text("[Sequence]\nname=x\nimDir=img1\nframeRate=25\n")
    (folder / "gt").mkdir()
    (folder / "gt" / "gt.txt").write_text("1,1,2,3,4,5,1,1,1\n")
    return paths


def video(path: Path) -> list[np.ndarray]:
    """A lossless video, and its frames."""
    frames = [np.kron(pixels, np.ones((8, 8, 1), np.uint8)) for pixels in PIXELS]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 12.5, (32, 24))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()
    return frames


def tar(folder: Path) -> Path:
    path = folder.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def read(bag: Path) -> tuple[set[str], list[int], list]:
    """Topics, header stamps and messages, through rosbags alone."""
    with AnyReader([bag]) as reader:
        topics = {c.topic for c in reader.connections}
        messages = [reader.deserialize(data, c.msgtype) for c, _, data in reader.messages()]
    stamps = [m.header.stamp.sec * SECOND_NS + m.header.stamp.nanosec for m in messages]
    return topics, stamps, messages


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_files_are_stored_byte_for_byte_in_natural_order(tmp_path, suffix, packed):
    paths = pictures(tmp_path / "frames", suffix)
    source = tar(tmp_path / "frames") if packed else tmp_path / "frames"
    assert main(["import-frames", str(source), str(tmp_path / "bag"), "--fps", "30"]) == 0
    topics, stamps, messages = read(tmp_path / "bag")
    assert topics == {"/camera/image/compressed"}
    assert [m.data.tobytes() for m in messages] == [p.read_bytes() for p in paths]
    assert {m.format for m in messages} == {{".jpg": "jpeg", ".png": "png"}[suffix]}
    assert stamps == [SECOND_NS + round(i * 1e9 / 30) for i in range(12)]


@pytest.mark.parametrize("packed", [False, True])
def test_motchallenge_rate_and_numbers_give_the_stamps(tmp_path, packed):
    mot_sequence(tmp_path / "SEQ")
    (tmp_path / "SEQ" / "img1" / "frame5.jpg").unlink()
    source = tar(tmp_path / "SEQ") if packed else tmp_path / "SEQ"
    assert main(["import-frames", str(source), str(tmp_path / "bag"), "--start-stamp", "5"]) == 0
    _, stamps, _ = read(tmp_path / "bag")
    expected = [5 * SECOND_NS + i * 40_000_000 for i in range(12) if i != 4]
    assert stamps == expected  # the missing file is a gap in time


def test_raw_images_equal_pillows_decoding(tmp_path):
    paths = pictures(tmp_path / "frames", ".png")
    arguments = ["--fps", "10", "--raw", "--topic", "/eye", "--storage", "sqlite3"]
    assert (
        main(["import-frames", str(tmp_path / "frames"), str(tmp_path / "bag"), *arguments]) == 0
    )
    topics, _, messages = read(tmp_path / "bag")
    assert topics == {"/eye"}
    for message, path in zip(messages, paths, strict=True):
        expected = np.asarray(Image.open(path))
        np.testing.assert_array_equal(message.data.reshape(message.height, -1, 3), expected)


def test_other_formats_are_stored_without_loss(tmp_path):
    paths = pictures(tmp_path / "frames", ".bmp")
    bag = tmp_path / "bag"
    assert main(["import-frames", str(tmp_path / "frames"), str(bag), "--fps", "10"]) == 0
    _, _, messages = read(bag)
    for message, path in zip(messages, paths, strict=True):
        assert message.format == "png"
        stored = cv2.imdecode(message.data, cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(stored, np.asarray(Image.open(path)))


def test_video_times_are_kept(tmp_path):
    frames = video(tmp_path / "clip.avi")
    bag = tmp_path / "bag"
    assert main(["import-frames", str(tmp_path / "clip.avi"), str(bag), "--raw"]) == 0
    _, stamps, messages = read(bag)
    np.testing.assert_allclose(np.array(stamps) - SECOND_NS, np.arange(12) * 80_000_000, atol=1000)
    for message, frame in zip(messages, frames, strict=True):
        np.testing.assert_array_equal(message.data.reshape(message.height, -1, 3), frame)


@pytest.mark.parametrize(
    ("build", "arguments", "cause"),
    [
        (lambda p: pictures(p / "s"), [], "give their rate with --fps"),
        (lambda p: (pictures(p / "s/a"), pictures(p / "s/b")), ["--fps", "9"], "a, b. Choose one"),
        (lambda p: (p / "s").mkdir(), ["--fps", "9"], "and has none"),
        (lambda p: (p / "s").write_text("no video"), [], "neither a folder, a tar nor a video"),
        (lambda p: (p / "s.tar").write_text("no tar"), [], "Copy it again"),
        (lambda p: None, [], "check the path"),
        (lambda p: pictures(p / "s"), ["--fps", "0"], "not a frame rate"),
        (lambda p: pictures(p / "s"), ["--fps", "9", "--start-stamp", "0"], "--start-stamp"),
    ],
)
def test_errors_name_cause_and_cure_and_leave_no_bag(tmp_path, capsys, build, arguments, cause):
    build(tmp_path)
    source = tmp_path / ("s.tar" if (tmp_path / "s.tar").exists() else "s")
    before = sorted(tmp_path.iterdir())
    assert main(["import-frames", str(source), str(tmp_path / "bag"), *arguments]) == 2
    assert cause in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_bad_seqinfo_says_what_it_needs(tmp_path, capsys):
    mot_sequence(tmp_path / "SEQ")
    (tmp_path / "SEQ" / "seqinfo.ini").write_text("[Sequence]\nframeRate=fast\n")
    assert main(["import-frames", str(tmp_path / "SEQ"), str(tmp_path / "bag")]) == 2
    assert "needs a section [Sequence] with frameRate" in capsys.readouterr().err


def test_one_of_several_folders_can_be_chosen(tmp_path):
    pictures(tmp_path / "s/a", numbers=range(1, 4))
    pictures(tmp_path / "s/b", numbers=range(1, 8))
    bag = tmp_path / "bag"
    arguments = ["--fps", "9", "--folder", "b"]
    assert main(["import-frames", str(tmp_path / "s"), str(bag), *arguments]) == 0
    assert len(read(bag)[1]) == 7


def test_the_real_pedestrian_sequence_is_stored_unchanged(tmp_path, data_directory):
    source = data_directory / "mot_sequences" / "TUD-Stadtmitte.tar"
    assert main(["import-frames", str(source), str(tmp_path / "bag")]) == 0
    _, stamps, messages = read(tmp_path / "bag")
    assert stamps == [SECOND_NS + i * 40_000_000 for i in range(179)]
    with tarfile.open(source) as archive:
        for index in (0, 99, 178):
            file = archive.extractfile(f"TUD-Stadtmitte/img1/{index + 1:06d}.jpg")
            assert messages[index].data.tobytes() == file.read()


def test_the_real_video_keeps_its_rate(tmp_path, data_directory):
    source = data_directory / "video_cups" / "02_cups.mp4"
    assert main(["import-frames", str(source), str(tmp_path / "bag")]) == 0
    _, stamps, messages = read(tmp_path / "bag")
    assert len(stamps) == 300
    expected = SECOND_NS + np.arange(300) * 1001 / 30000 * SECOND_NS
    np.testing.assert_allclose(stamps, expected, atol=2000)
    assert cv2.imdecode(messages[150].data, cv2.IMREAD_COLOR).shape == (720, 1280, 3)
