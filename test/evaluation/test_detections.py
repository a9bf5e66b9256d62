# SPDX-License-Identifier: Apache-2.0
"""Found boxes against true ones, and the ways of finding that learn nothing."""

import json

import cv2
import numpy as np
import pytest

from oc_perception.bags.frames import Frame, TrueBoxes
from oc_perception.bags.messages import image_message
from oc_perception.bags.writer import BagWriter
from oc_perception.cli import main
from oc_perception.evaluation.detections import (
    ModelFinder,
    count_matches,
    film_strip,
    median_difference,
    median_frame,
    mixture_of_gaussians,
    score_finders,
)
from oc_perception.images import MalformedImage
from oc_perception.models.registry import load_model
from oc_perception.pipeline import Discovery

SIZE = (96, 128)
FRAMES = 40


def wall():
    return np.random.default_rng(0).integers(60, 90, (*SIZE, 3), dtype=np.uint8)


def left_of(number):
    return 4 + 2 * number


def frame(number):
    image = wall()
    image[30:60, left_of(number) : left_of(number) + 16] = 220
    return image


def true_box(number):
    return np.array([[left_of(number) + 7.5, 44.5, 16.0, 30.0]])


class Recorded:
    """A sequence in memory; frame 3 is damaged, frame 5 has no truth."""

    name, num_frames = "square", FRAMES

    def frames(self):
        for number in range(FRAMES):
            image = MalformedImage("cut short") if number == 3 else frame(number)
            boxes = None if number == 5 else TrueBoxes(np.array([1]), true_box(number))
            yield Frame(number, 10**9 + number * 10**8, image, boxes=boxes)


def test_each_box_matches_at_most_one_and_as_many_as_possible_do():
    true = np.array([[10.0, 10, 10, 10], [18, 10, 10, 10]])
    found = np.array([[14.0, 10, 10, 10], [19, 10, 10, 10], [60, 60, 5, 5]])
    # The first found box overlaps both; greedily it could take the one that the second needs.
    assert count_matches(true, found, 0.3) == (2, 2, 3)
    assert count_matches(true, found, 0.5) == (1, 2, 3)
    assert count_matches(true, found[:0], 0.3) == (0, 2, 0)
    assert count_matches(true[:0], found, 0.3) == (0, 0, 3)


def test_an_overlap_of_exactly_the_threshold_is_a_match():
    true, found = np.array([[5.0, 5, 10, 10]]), np.array([[10.0, 5, 10, 10]])
    assert count_matches(true, found, 1 / 3) == (1, 1, 1)


def test_scores_leave_out_what_is_damaged_or_unknown_and_tell_the_end_apart():
    def right(image, stamp_ns):
        return true_box(round((stamp_ns - 10**9) / 10**8))

    def early(image, stamp_ns):
        return right(image, stamp_ns) if stamp_ns < 4 * 10**9 else np.zeros((0, 4))

    scores = score_finders(Recorded(), {"right": right, "early": early}, 0.9, 0.25)
    assert scores["right"]["all"] == {
        "recall": 1.0, "precision": 1.0, "matched": 38, "true": 38, "found": 38, "frames": 38,
    }  # fmt: skip
    assert scores["early"]["all"]["recall"] == 28 / 38
    assert scores["early"]["held_out"] == {
        "recall": 0.0, "precision": None, "matched": 0, "true": 10, "found": 0, "frames": 10,
    }  # fmt: skip


def test_background_subtraction_finds_what_moves():
    background = median_frame(Recorded())
    assert np.abs(background.astype(int) - wall()).max() <= 1
    finders = {"median": median_difference(background, 40), "mog2": mixture_of_gaussians()}
    scores = score_finders(Recorded(), finders, 0.5, 0.5)
    assert scores["median"]["all"]["recall"] == 1.0
    assert scores["median"]["all"]["precision"] == 1.0
    assert scores["mog2"]["held_out"]["recall"] > 0.8


def test_a_model_finds_the_tight_rectangles_of_its_objects():
    finder = ModelFinder(Discovery(load_model("grid:rows=2,columns=2")))
    found = finder(frame(0), 10**9)
    halves = [[31.5, 71.5], [95.5, 23.5], [95.5, 71.5]]  # one cell is the background
    assert sorted(found[:, :2].tolist()) == sorted(halves)
    assert (found[:, 2:] == [64, 48]).all()


def test_the_strip_shows_each_frame_twice():
    def draw(footage):
        finder = ModelFinder(Discovery(load_model("grid")))
        return film_strip([frame(0), frame(9)], [true_box(0), true_box(9)], finder, footage)

    strip, bare = draw(True), draw(False)
    assert strip.shape == (2 * 244, 2 * 324, 3)
    lit = [(picture[:240] > 0).all(2).mean() for picture in (strip, bare)]
    assert lit[1] < 0.1 < lit[0]  # boxes and margins are left


def test_the_command_reports_models_beside_baselines(tmp_path, capsys):
    with BagWriter(tmp_path / "bag") as bag:
        for number in range(FRAMES):
            stamp_ns = 10**9 + number * 10**8
            bag.write("/camera/image", stamp_ns, image_message(stamp_ns, frame(number)))
    rows = [f"{n + 1},1,{left_of(n) + 1},31,16,30,1,-1,-1,-1" for n in range(FRAMES)]
    (tmp_path / "gt.txt").write_text("\n".join(rows))
    words = ["benchmark", "detections", str(tmp_path / "bag"), "--truth", str(tmp_path / "gt.txt")]
    words += ["--model", "monet_demo", "--json", str(tmp_path / "report.json")]
    words += ["--strip", str(tmp_path / "strip.jpg")]
    assert main(words) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    names = {"grid", "monet_demo", "monet_demo, untrained", "median, 40", "MOG2"}
    assert names <= set(report["scores"])
    assert report["scores"]["monet_demo, untrained"] != report["scores"]["monet_demo"]
    assert report["scores"]["median, 40"]["all"]["recall"] == 1.0
    assert report["training"]["monet_demo"]["recipe"]["world"] == "tabletop"
    assert cv2.imread(str(tmp_path / "strip.jpg")).shape[1] == 5 * 324
    assert "monet_demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "cause"),
    [(["--iou", "0"], "--iou"), (["--strip", "x.jpg"], "--model"), ([], "no true boxes")],
)
def test_what_cannot_be_scored_is_said(tmp_path, capsys, words, cause):
    with BagWriter(tmp_path / "bag") as bag:
        for number in range(3):
            bag.write("/camera/image", 10**9, image_message(10**9 + number, frame(number)))
    assert main(["benchmark", "detections", str(tmp_path / "bag"), *words]) == 2
    assert cause in capsys.readouterr().err
