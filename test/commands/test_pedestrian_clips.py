# SPDX-License-Identifier: Apache-2.0
"""The benchmark of boxes followed through recordings, on squares that move straight on."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch

from oc_perception.cli import main
from oc_perception.evaluation.box_clips import average, baselines, cut_clips, score
from oc_perception.models.clips import true_boxes
from oc_perception.models.registry import create_model, save_checkpoint
from oc_perception.worlds.registry import create_world

SIDE, FRAMES = 12, 60


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of two recordings; in each, a square goes right by 1 px a frame and one stays."""
    monkeypatch.setenv("OC_CACHE", str(tmp_path / "cache"))
    for name, frames in (("long", FRAMES), ("short", 40)):
        folder = tmp_path / "data" / name
        (folder / "img1").mkdir(parents=True)
        (folder / "gt").mkdir()
        (folder / "seqinfo.ini").write_text("[Sequence]\nframeRate=20\nimDir=img1\n")
        rows = []
        for frame in range(frames):
            image = np.full((90, 120, 3), 60, np.uint8)
            for identity, (left, top) in enumerate(((20 + frame, 20), (40, 60)), 1):
                image[top : top + SIDE, left : left + SIDE] = 40 + 90 * identity
                rows.append(
                    f"{frame + 1},{identity},{left + 1},{top + 1},{SIDE},{SIDE},1,-1,-1,-1"
                )
            cv2.imwrite(str(folder / "img1" / f"{frame + 1:06}.png"), image)
        (folder / "gt" / "gt.txt").write_text("\n".join(rows))
    return tmp_path / "data"


def held_out(data, share):
    bags = [str(data / name) for name in ("long", "short")]
    config = {"bags": bags, "split": "validation", "validation": share, "resolution": [90, 120]}
    return create_world("recorded_tracks", config, 1, 0)


def test_every_stretch_is_a_clip(data):
    world = held_out(data, 0.6)  # 36 and 24 frames
    assert cut_clips(world, 0).present.shape[:2] == (7, 30)
    assert cut_clips(world, 1).present.shape[:2] == (1, 24)
    assert cut_clips(world, 0, stride=2).present.shape[:2] == (2, 18)
    assert cut_clips(world, 0, longest=10).present.shape[:2] == (27, 10)


def test_straight_motion_is_linear_and_what_stays_is_frozen(data):
    clip = cut_clips(held_out(data, 0.6), 0)
    scores = score(clip, baselines(true_boxes(clip)))
    assert scores["linear"]["iou"] == pytest.approx(1, abs=1e-4)
    off = np.arange(1, 30)
    overlap = np.maximum(SIDE - off, 0) / (SIDE + np.minimum(off, SIDE))
    assert scores["frozen"]["iou"] == pytest.approx((overlap.mean() + 1) / 2, abs=1e-4)
    black = [6, 7, 8, 13, 14, 15, 16, 17, 23, 24, 25]
    expected = (overlap[np.array(black) - 1].mean() + 1) / 2
    assert scores["frozen"]["iou_black_frames"] == pytest.approx(expected, abs=1e-4)
    blind_5 = (overlap[17 - 1] + 1) / 2
    assert scores["frozen"]["iou_blind"]["5"] == pytest.approx(blind_5, abs=1e-4)


def test_who_is_hidden_in_the_first_frame_does_not_count(data):
    clip = cut_clips(held_out(data, 0.6), 0)
    everyone = score(clip, baselines(true_boxes(clip)))["frozen"]["iou"]
    moving = clip.positions[:, 0, :, 0] != clip.positions[:, 1, :, 0]
    visible = clip.visible & ~moving[:, None]
    rest = score(dataclasses.replace(clip, visible=visible), baselines(true_boxes(clip)))
    assert rest["frozen"]["iou"] == pytest.approx(1, abs=1e-4) and everyone < 0.8


def test_means_leave_out_what_is_unknown():
    scores = [{"a": 1.0, "b": {"1": None}}, {"a": 0.5, "b": {"1": 0.25}}]
    assert average(scores) == {"a": 0.75, "b": {"1": 0.25}}
    assert average([{"a": None}]) == {"a": None}


def test_runs_are_scored_beside_the_baselines(data, tmp_path, capsys):
    torch.manual_seed(0)
    model = create_model(
        "inert_hart", frame_size=[36, 48], glimpse_size=[24, 24], channels=[8, 8, 8],
        kernel_size=3, size=16,
    )  # fmt: skip
    save_checkpoint(model, tmp_path / "run")
    report, strip = tmp_path / "report.json", tmp_path / "strip.jpg"
    words = [
        "benchmark",
        "pedestrian-clips",
        "--data",
        str(data),
        "--width",
        "120",
        str(tmp_path / "run"),
    ]
    words += ["--held-out", "0.3", "--json", str(report), "--figure", str(strip)]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "frozen" in table and "linear" in table and "run" in table
    found = json.loads(report.read_text())
    assert found["recordings"]["long"] == {"clips": 1, "frames_per_clip": 18, "boxes_scored": 34}
    assert set(found["methods"]) == {"frozen", "linear", "run"}
    assert found["methods"]["linear"]["iou"] == pytest.approx(1, abs=1e-4)
    assert 0 < found["methods"]["run"]["iou"] < 1
    assert str(tmp_path) not in json.dumps({**found, "command": ""})
    assert cv2.imread(str(strip)).shape == (2 * 180, 5 * 240, 3)


def test_what_cannot_be_scored_is_said(data, tmp_path, capsys):
    assert main(["benchmark", "pedestrian-clips", "--data", str(tmp_path / "empty")]) != 0
    assert "no recordings" in capsys.readouterr().err
    words = ["benchmark", "pedestrian-clips", "--data", str(data), "--held-out", "0.05"]
    assert main(words) != 0
    assert "raise --held-out" in capsys.readouterr().err
