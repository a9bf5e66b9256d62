# SPDX-License-Identifier: Apache-2.0
"""Trajectories in text files: windows, sets to leave out, and the world that is made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from oc_perception.configuration import ConfigurationError
from oc_perception.worlds import trajectory_files
from oc_perception.worlds.registry import create_world
from oc_perception.worlds.trajectory_files import TrajectoryError, read, recordings


def _write(path: Path, rows: list[tuple[float, ...]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(f"{value:g}" for value in row) + "\n" for row in rows))
    return path


def _walk(identity: int, first: int, count: int, step: int = 10) -> list[tuple[float, ...]]:
    """On a curve that is another for each identity."""
    return [
        (first + step * k, identity, 0.5 * k * np.cos(identity + k / 20), identity + 0.3 * k)
        for k in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three places; in `park` two persons stay for 25 frames and one for 12."""
    _write(tmp_path / "park_0.txt", _walk(1, 0, 25) + _walk(2, 0, 25) + _walk(3, 20, 12))
    _write(tmp_path / "park_1.txt", _walk(4, 0, 60))
    _write(tmp_path / "square_0.txt", _walk(5, 100, 60) + _walk(6, 100, 60))
    _write(tmp_path / "hall_0.txt", _walk(7, 0, 60) + _walk(8, 300, 30))
    return tmp_path


def test_windows_are_those_of_a_plain_search(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        row
        for identity in range(12)
        for row in _walk(identity, 10 * random.integers(0, 30), random.integers(5, 40))
        if row[0] != 170  # a frame in which nobody was seen
    ]
    recording = read(_write(tmp_path / "a_0.txt", rows))
    table = {(int(frame), int(identity)): (x, y) for frame, identity, x, y in rows}
    expected = []
    for start in sorted({frame for frame, _ in table}):
        frames = [start + 10 * k for k in range(20)]
        whole = [i for i in range(12) if all((frame, i) in table for frame in frames)]
        seen = [i for i in range(12) if (frames[7], i) in table and i not in whole]
        if whole:
            nowhere = (np.nan, np.nan)
            places = [[table.get((f, i), nowhere) for i in whole + seen] for f in frames]
            expected.append(np.array(places))
    found = list(recording.crowds(20, 8))
    assert len(found) == len(expected) > 5
    assert any(np.isnan(crowd).any() for crowd in found)
    for crowd, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(crowd, wanted, atol=1e-4)  # files have six digits


def test_resampling_follows_straight_lines(tmp_path: Path) -> None:
    rows = [(10 * k, 1, 2.0 * k, -1.0 * k) for k in range(7)]
    recording = read(_write(tmp_path / "a_0.txt", rows)).resampled(6)
    assert recording.frames.tolist() == list(range(0, 61, 6))
    np.testing.assert_allclose(recording.positions[:, 0, 0], np.arange(0, 12.1, 1.2))
    np.testing.assert_allclose(recording.positions[:, 0, 1], -np.arange(0, 6.1, 0.6))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Cannot read"),
        ("", "rows of four numbers"),
        ("1 2 3\n", "rows of four numbers"),
        ("1 2 3 nan\n", "rows of four numbers"),
        ("1 2 3 four\n", "Cannot read"),
        ("1 2 3 4\n1 2 3 5\n", "two positions of one identity"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_a_bad_file_is_one_clear_error(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "a_0.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TrajectoryError, match=message):
        read(path)


def test_the_place_left_out_is_tested_on_and_not_learned_from(folder: Path) -> None:
    def persons(split: str) -> list[tuple[int, int]]:
        """Frames and persons of each recording."""
        return [r.positions.shape[:2] for r in recordings(folder, "park", split)]

    assert persons("test") == [(25, 3), (60, 1)]
    assert persons("train") == [(48, 2), (48, 2)]
    assert persons("validation") == [(12, 2), (12, 2)]
    with pytest.raises(TrajectoryError, match="Did you mean 'square'"):
        recordings(folder, "squares", "train")


def test_folders_of_the_eth_ucy_kind_keep_their_splits(tmp_path: Path) -> None:
    for scene in ("biwi_eth", "biwi_hotel", "students001"):
        for split, suffix, count in (
            ("all_data", "", 30),
            ("train", "_train", 25),
            ("val", "_val", 22),
        ):
            _write(tmp_path / split / f"{scene}{suffix}.txt", _walk(1, 0, count))
    lengths = {
        split: [len(r.frames) for r in recordings(tmp_path, "hotel", split)]
        for split in ("train", "validation", "test")
    }
    assert lengths == {"train": [25, 25], "validation": [22, 22], "test": [30]}


def test_the_data_sets_are_found_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OC_DATA", str(folder.parent))
    assert trajectory_files.data_directory(folder.name).samefile(folder)
    with pytest.raises(TrajectoryError, match="OC_DATA"):
        trajectory_files.data_directory("no_such_folder")


def test_a_window_shows_the_person_drawn_in_the_middle_and_those_nearest(folder: Path) -> None:
    config = {"data": str(folder), "leave_out": "hall", "max_objects": 2, "split": "validation"}
    with pytest.raises(ConfigurationError, match="nobody is there"):
        create_world("trajectories", config, 4, 0).sample_motion(20)
    world = create_world("trajectories", {**config, "split": "test", "leave_out": "park"}, 64, 0)
    motion = world.sample_motion(20)
    assert torch.allclose(motion.positions[:, 7, 0], torch.tensor(0.5), atol=1e-6)
    assert motion.present[:, :, 0].all()
    assert motion.positions.isfinite().all()
    pairs = motion.present[:, :, 1].all(1)
    assert pairs.any() and not pairs.all()
    offset = (motion.positions[:, :, 1] - motion.positions[:, :, 0])[pairs] * 20
    # persons 1 and 2 as written above
    time = 20 * motion.positions[pairs, :, 0, 1].diff(dim=1)
    assert torch.allclose(time, torch.tensor(0.3), atol=1e-3)
    assert torch.allclose(offset[..., 1].abs(), torch.tensor(1.0), atol=1e-4)
    assert motion.sizes.unique().tolist() == pytest.approx([0.05])


def test_augmentation_turns_mirrors_and_scales_but_bends_nothing(folder: Path) -> None:
    config = {"data": str(folder), "leave_out": "hall", "max_objects": 2}
    plain = create_world("trajectories", {**config, "augment": False}, 128, 3).sample_motion(20)
    world = create_world("trajectories", config, 128, 3)
    motion = world.sample_motion(20)
    twin = create_world("trajectories", config, 128, 3).sample_motion(20)
    assert torch.equal(motion.positions, twin.positions)

    def paces(batch: torch.Tensor) -> torch.Tensor:
        return batch.diff(dim=1).norm(dim=-1)

    ways, before = paces(motion.positions[:, :, 0]), paces(plain.positions[:, :, 0])
    forward = (ways / before).std(1) < 1e-3
    backward = (ways.flip(1) / before).std(1) < 1e-3
    assert (forward | backward).all()
    assert 0.3 < forward.float().mean() < 0.7
    ratio = (ways.sum(1) / before.sum(1)).log()
    assert ratio.abs().max() < 0.401 and ratio.std() > 0.15

    def turn(batch: torch.Tensor) -> torch.Tensor:
        way = batch.diff(dim=1)
        first, last = way[:, 0], way[:, -1]
        return first[:, 0] * last[:, 1] - first[:, 1] * last[:, 0]

    same = turn(motion.positions[:, :, 0]).sign() == turn(plain.positions[:, :, 0]).sign()
    assert 0.3 < same.float().mean() < 0.7
