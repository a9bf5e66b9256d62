# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
from functools import reduce
from operator import add

import numpy as np
import pytest

from oc_perception.evaluation.mot import score
from oc_perception.evaluation.mot_sequence import MotSequence, iou


@pytest.fixture(scope="module")
def trackeval():
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what optional parts it misses
        return pytest.importorskip("trackeval", reason="trackeval is installed by make setup")


def sequence_of(truth, tracks):
    """From `{id: box}` of each frame."""
    frames = [*truth, *tracks]
    ids = [np.array(list(frame), np.int64) for frame in frames]
    boxes = [np.array(list(frame.values()), float).reshape(-1, 4) for frame in frames]
    count = len(truth)
    return MotSequence(ids[:count], boxes[:count], ids[count:], boxes[count:])


def reference(trackeval, sequence):
    """What trackeval's three metrics say of one sequence."""

    def renumber(ids):
        names = np.unique(np.concatenate([np.zeros(0, np.int64), *ids]))
        return len(names), [np.searchsorted(names, frame) for frame in ids]

    def corners(boxes):
        return np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2])

    box_ious = trackeval.datasets.MotChallenge2DBox._calculate_box_ious
    num_truths, truth_ids = renumber(sequence.truth_ids)
    num_tracks, track_ids = renumber(sequence.track_ids)
    data = {
        "num_timesteps": len(truth_ids),
        "num_gt_ids": num_truths,
        "num_tracker_ids": num_tracks,
        "num_gt_dets": sum(map(len, truth_ids)),
        "num_tracker_dets": sum(map(len, track_ids)),
        "gt_ids": truth_ids,
        "tracker_ids": track_ids,
        "similarity_scores": [
            box_ious(corners(a), corners(b), box_format="x0y0x1y1")
            for a, b in zip(sequence.truth_boxes, sequence.track_boxes, strict=True)
        ],
    }
    return {name: metric.eval_sequence(data) for name, metric in metrics(trackeval).items()}


def metrics(trackeval):
    quiet = {"PRINT_CONFIG": False}
    return {
        "hota": trackeval.metrics.HOTA(),
        "clear": trackeval.metrics.CLEAR(dict(quiet)),
        "identity": trackeval.metrics.Identity(dict(quiet)),
    }


NAMES = {
    "hota": {
        "HOTA": "hota",
        "DetA": "det_a",
        "AssA": "ass_a",
        "LocA": "loc_a",
        "HOTA_TP": "matches",
        "HOTA_FN": "misses",
        "HOTA_FP": "false_positives",
    },
    "clear": {
        "MOTA": "mota",
        "MOTP": "motp",
        "CLR_TP": "matches",
        "CLR_FN": "misses",
        "CLR_FP": "false_positives",
        "IDSW": "id_switches",
        "Frag": "fragmentations",
        "MT": "mostly_tracked",
        "PT": "partly_tracked",
        "ML": "mostly_lost",
    },
    "identity": {
        "IDF1": "idf1",
        "IDP": "idp",
        "IDR": "idr",
        "IDTP": "matches",
        "IDFN": "misses",
        "IDFP": "false_positives",
    },
}


def assert_equal(scores, expected, case):
    for part, names in NAMES.items():
        for theirs, ours in names.items():
            value = getattr(getattr(scores, part), ours)
            error = np.abs(value - expected[part][theirs]).max()
            assert error <= 1e-9, f"{theirs} of case {case} differs by {error}"


def random_sequence(rng):
    """Boxes that move and meet; a tracker that misses, invents, switches, doubles and drops out.

    Half of them on a coarse grid of integers, where overlaps tie and lie exactly on thresholds.
    """
    num_frames, num_objects = rng.integers(1, 25), rng.integers(1, 11)
    grid = rng.random() < 0.5
    arena = rng.choice([6.0, 12.0, 40.0])
    miss, clutter, switch, double = rng.choice([0.0, 0.02, 0.2, 0.6], 4)
    noise = rng.choice([0.0, 0.1, 0.6])
    positions = rng.uniform(0, arena, (num_objects, 2))
    velocities = rng.normal(0, 1, (num_objects, 2))
    sizes = rng.uniform(2, 6, (num_objects, 2))
    names = rng.permutation(100)[:num_objects]
    next_id = 100
    truth, tracks = [], []
    for _ in range(num_frames):
        positions = positions + velocities
        boxes = np.hstack([positions, sizes])
        seen = boxes + rng.normal(0, noise, boxes.shape) * (noise > 0)
        seen[:, 2:] = np.maximum(seen[:, 2:], 0)
        if grid:
            boxes, seen = 2 * np.round(boxes / 2), 2 * np.round(seen / 2)
        if rng.random() < switch:
            names = rng.permutation(names)
        if rng.random() < switch:
            names[rng.integers(num_objects)] = next_id
            next_id += 1
        present = rng.random(num_objects) >= rng.choice([0.0, 0.3])
        dark = rng.random() < 0.1
        frame = {}
        for i in range(num_objects):
            if present[i] and not dark and rng.random() >= miss:
                frame[names[i]] = seen[i]
            if rng.random() < double:
                frame[names[i] + 10_000] = seen[i]
            if rng.random() < clutter:
                frame[rng.integers(20_000, 20_010)] = np.round(
                    [*rng.uniform(0, arena, 2), *rng.uniform(0, 6, 2)]
                )
        tracks.append(frame)
        nothing = rng.random() < 0.05
        order = rng.permutation(num_objects)
        truth.append({} if nothing else {i: boxes[i] for i in order if present[i]})
    return sequence_of(truth, tracks)


A, B, C = (0, 0, 4, 4), (20, 0, 4, 4), (2, 0, 4, 4)
ADVERSARIAL = {
    "no frames": sequence_of([], []),
    "nothing at all": sequence_of([{}, {}], [{}, {}]),
    "no tracks": sequence_of([{1: A}, {1: A, 2: B}], [{}, {}]),
    "no truth": sequence_of([{}, {}], [{1: A}, {1: A, 2: B}]),
    "never together": sequence_of([{1: A}, {}], [{}, {1: A}]),
    "perfect": sequence_of([{1: A, 2: B}] * 5, [{8: A, 7: B}] * 5),
    "touching only": sequence_of([{1: A}] * 3, [{1: (4, 0, 4, 4)}] * 3),
    "exactly half": sequence_of([{1: (0, 0, 4, 4)}] * 3, [{1: (1, 0, 2, 4)}] * 3),
    "exactly 0.05": sequence_of([{1: (0, 0, 20, 4)}] * 3, [{1: (0, 0, 1, 4)}] * 3),
    "empty boxes": sequence_of([{1: (0, 0, 0, 4), 2: B}] * 3, [{1: (0, 0, 0, 4), 2: B}] * 3),
    "swap": sequence_of([{1: A, 2: B}] * 6, [{1: A, 2: B}] * 3 + [{1: B, 2: A}] * 3),
    "swap while blind": sequence_of(
        [{1: A, 2: B}] * 9, [{1: A, 2: B}] * 3 + [{}] * 3 + [{1: B, 2: A}] * 3
    ),
    "gap in tracks": sequence_of([{1: A}] * 6, [{5: A}, {}, {5: A}, {6: B}, {5: A}, {6: A}]),
    "gap in truth": sequence_of([{1: A}, {}, {1: A}, {2: B}, {1: A}, {1: A}], [{5: A}] * 6),
    "two tracks on one": sequence_of([{1: A}] * 4, [{5: A, 6: A}] * 2 + [{6: A, 5: A}] * 2),
    "one track on two": sequence_of([{1: A, 2: C}] * 4, [{5: (1, 0, 4, 4)}] * 4),
    "better newcomer": sequence_of([{1: A}] * 4, [{5: (1, 0, 4, 4)}] + [{5: C, 6: A}] * 3),
    "faithful newcomer": sequence_of(
        [{1: A}] * 4, [{5: (1, 0, 4, 4)}] + [{5: (1, 0, 4, 4), 6: A}] * 3
    ),
    "shares of frames": sequence_of(
        [{1: A, 2: B, 3: (40, 0, 4, 4)}] * 10,
        [{1: A, 2: B, 3: (40, 0, 4, 4)}] * 2 + [{1: A}] * 6 + [{}] * 2,
    ),
}


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_adversarial_sequences_score_as_in_trackeval(trackeval, case):
    assert_equal(score(ADVERSARIAL[case]), reference(trackeval, ADVERSARIAL[case]), case)


@pytest.mark.parametrize("seed", range(4))
def test_random_sequences_score_as_in_trackeval_alone_and_combined(trackeval, seed):
    rng = np.random.default_rng(seed)
    for start in range(0, 60, 5):
        sequences = [random_sequence(rng) for _ in range(5)]
        ours = [score(sequence) for sequence in sequences]
        theirs = [reference(trackeval, sequence) for sequence in sequences]
        for offset, (scores, expected) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(scores, expected, start + offset)
        combined = {
            part: metric.combine_sequences({i: one[part] for i, one in enumerate(theirs)})
            for part, metric in metrics(trackeval).items()
        }
        assert_equal(reduce(add, ours), combined, f"{start}, combined")


def test_adversarial_sequences_combine_as_in_trackeval(trackeval):
    ours = reduce(add, map(score, ADVERSARIAL.values()))
    theirs = [reference(trackeval, sequence) for sequence in ADVERSARIAL.values()]
    combined = {
        part: metric.combine_sequences({i: one[part] for i, one in enumerate(theirs)})
        for part, metric in metrics(trackeval).items()
    }
    assert_equal(ours, combined, "combined")


def test_random_sequences_reach_every_score():
    rng = np.random.default_rng(0)
    total = reduce(add, (score(random_sequence(rng)) for _ in range(100)))
    clear = total.clear
    counts = (clear.id_switches, clear.fragmentations, clear.misses, clear.false_positives)
    assert min(counts) > 100
    assert min(clear.mostly_tracked, clear.partly_tracked, clear.mostly_lost) > 20
    assert 0.2 < total.summary()["hota"] < 0.8


def test_blind_frames_can_be_left_out_or_kept():
    frames = 12
    blind = np.arange(frames) // 4 == 1
    tracks = [{} if dark else {1: A, 2: B} for dark in blind]
    sequence = sequence_of([{1: A, 2: B}] * frames, tracks)
    through, visible = score(sequence), score(sequence.select(~blind))
    assert visible.summary()["hota"] == pytest.approx(1) and visible.clear.mota == 1
    assert through.clear.mota == pytest.approx(8 / 12) == through.identity.idr
    np.testing.assert_allclose(through.hota.hota, 8 / 12)  # det_a and ass_a alike
    by_number = score(sequence.select(np.flatnonzero(~blind)))
    assert by_number.summary() == visible.summary()
    assert score(sequence.select(np.zeros(frames, bool))).clear.misses == 0


def test_summary_has_one_plain_number_per_score():
    summary = score(ADVERSARIAL["swap"]).summary()
    assert summary["id_switches"] == 2 and summary["false_positives"] == 0
    assert summary["idf1"] == 0.5 == summary["idp"] and summary["mota"] == pytest.approx(10 / 12)
    assert summary["hota"] == pytest.approx(np.sqrt(3 / 9)) and summary["det_a"] == 1
    assert all(type(value) in (int, float) for value in summary.values())


def test_false_positives_without_any_truth_cost_no_accuracy_that_could_be_had():
    both = score(ADVERSARIAL["no truth"]) + score(ADVERSARIAL["no truth"])
    assert both.clear.mota == 0 and both.clear.false_positives == 6


def test_iou_of_known_boxes():
    boxes = np.array([[0, 0, 2, 2], [1, 0, 2, 2], [0, 0, 4, 4], [5, 5, 1, 1], [0, 0, 0, 2]], float)
    expected = [[1, 1 / 3, 1 / 4, 0, 0], [1 / 3, 1, 1 / 4, 0, 0]]
    np.testing.assert_allclose(iou(boxes[:2, None], boxes), expected)
    np.testing.assert_allclose(iou(boxes / 1000, boxes / 1000), [1, 1, 1, 1, 0])


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (([[1, 2, 1]], [[A, B, C]], [[]], [[]]), "truth id 1 is twice in frame 0"),
        (([[1], [1]], [[A], [A]], [[], [7, 7]], [[], [A, B]]), "track id 7 is twice in frame 1"),
        (([[1]], [[A, B]], [[]], [[]]), "as many truth boxes as truth ids"),
        (([[1]], [[A]], [[2]], [[(0, 0, np.nan, 1)]]), "track box is not finite"),
        (([[1]], [[A]], [[2]], [[(0, 0, -1, 1)]]), "size is negative"),
    ],
)
def test_damaged_sequences_are_refused(sequence, message):
    with pytest.raises(ValueError, match=message):
        score(MotSequence(*([np.array(x) for x in part] for part in sequence)))


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="one array per frame"):
        MotSequence([], [], [np.array([1])], [np.array([A])])
