# SPDX-License-Identifier: Apache-2.0
import time

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix

from oc_perception.evaluation.segmentation import (
    ami,
    ari,
    contingency,
    fg_ami,
    fg_ari,
    miou,
    msc,
    sc,
    segmentation_scores,
)

ALL = {
    "fg_ari": fg_ari,
    "ari": ari,
    "fg_ami": fg_ami,
    "ami": ami,
    "miou": miou,
    "sc": sc,
    "msc": msc,
}


def random_maps(rng, count):
    """Label maps from independent noise to near agreement, with few to many segments."""
    for _ in range(count):
        height, width = rng.integers(1, 9, 2)
        true = rng.integers(0, rng.integers(1, 9), (height, width))
        predicted = rng.permutation(12)[true]
        noise = rng.random((height, width)) < rng.choice([0.0, 0.1, 0.5, 1.0])
        predicted = np.where(noise, rng.integers(0, rng.integers(1, 13), true.shape), predicted)
        yield true, predicted


def adversarial_maps():
    line = np.arange(24).reshape(4, 6)
    checks = line % 2
    zeros = np.zeros_like(line)
    parts = [
        zeros,
        zeros + 3,
        checks,
        1 - checks,
        line,
        line[::-1].copy(),
        line // 6,
        line % 6,
        line // 12,
    ]
    yield from ((a, b) for a in parts for b in parts)
    single = np.zeros((1, 1), int)
    yield single, single
    yield single + 1, single + 4
    vga = np.arange(480 * 640).reshape(480, 640)
    yield vga % 3, vga % 7
    yield vga % 3, (vga + 1) % 3
    yield vga // 640 // 240, vga % 640 // 320


@pytest.mark.parametrize("source", ["random", "adversarial"])
def test_ari_and_fg_ari_equal_scikit_learn(source):
    random_cases = random_maps(np.random.default_rng(5), 1000)
    cases = random_cases if source == "random" else adversarial_maps()
    seen = 0
    for true, predicted in cases:
        batch = torch.as_tensor(true)[None], torch.as_tensor(predicted)[None]
        expected = adjusted_rand_score(true.ravel(), predicted.ravel())
        assert ari(*batch).item() == pytest.approx(expected, abs=1e-9)
        foreground = true > 0
        if foreground.any():
            expected = adjusted_rand_score(true[foreground], predicted[foreground])
            assert fg_ari(*batch).item() == pytest.approx(expected, abs=1e-9)
        else:
            assert fg_ari(*batch).isnan().all()
        seen += 1
    assert seen >= (1000 if source == "random" else 80)


def oracle_overlaps(true, predicted):
    """IoU of all true with all predicted segments, and the label and area of the true ones."""
    counts = contingency_matrix(true.ravel(), predicted.ravel()).astype(float)
    area = counts.sum(1)
    return counts / (area[:, None] + counts.sum(0) - counts), np.unique(true), area


def batches_of_one_shape(cases):
    by_shape = {}
    for true, predicted in cases:
        by_shape.setdefault(true.shape, []).append((true, predicted))
    return [[np.stack(maps) for maps in zip(*images, strict=True)] for images in by_shape.values()]


@pytest.mark.parametrize("source, least", [("random", 1000), ("adversarial", 80)])
def test_ami_miou_and_covering_equal_scikit_learn_and_scipy(source, least):
    random_cases = random_maps(np.random.default_rng(6), 1000)
    seen = 0
    for batch in batches_of_one_shape(random_cases if source == "random" else adversarial_maps()):
        scores = segmentation_scores(*map(torch.as_tensor, batch))
        for image, (true, predicted) in enumerate(zip(*batch, strict=True)):
            overlap, labels, area = oracle_overlaps(true, predicted)
            expected = {
                "ami": adjusted_mutual_info_score(true.ravel(), predicted.ravel()),
                "miou": overlap[linear_sum_assignment(-overlap)].sum() / len(labels),
                **dict.fromkeys(("fg_ami", "sc", "msc"), np.nan),
            }
            objects, best = true > 0, overlap.max(1)[labels > 0]
            if objects.any():
                expected["fg_ami"] = adjusted_mutual_info_score(true[objects], predicted[objects])
                expected["sc"] = np.average(best, weights=area[labels > 0])
                expected["msc"] = best.mean()
            found = {name: scores[name][image].item() for name in expected}
            assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)
            seen += 1
    assert seen >= least


def test_ami_of_vga_maps_with_many_segments_equals_scikit_learn():
    rng = np.random.default_rng(7)
    pixels = np.arange(480 * 640).reshape(480, 640)
    blocks = pixels // 640 // 16 * 40 + pixels % 640 // 16  # 1200 superpixels
    objects = blocks % 37 // 5
    noisy = np.where(rng.random(pixels.shape) < 0.1, rng.integers(0, 8, pixels.shape), objects)
    for true, predicted in (
        (objects, noisy),
        (objects, blocks),
        (noisy, blocks),
        (pixels, blocks % 3),
    ):
        ours = ami(torch.as_tensor(true)[None], torch.as_tensor(predicted)[None]).item()
        expected = adjusted_mutual_info_score(true.ravel(), predicted.ravel())
        assert ours == pytest.approx(expected, abs=1e-9)


def test_ami_of_unrelated_maps_is_0_on_average_and_its_unit_is_agreement():
    g = torch.Generator().manual_seed(0)
    true, predicted = torch.randint(0, 6, (2, 500, 8, 8), generator=g)
    assert abs(ami(true, predicted).mean()) < 0.01
    assert (ami(true, (true + 3) % 6) == 1).all()
    every_pixel = torch.arange(64).view(1, 8, 8)
    assert ami(every_pixel, every_pixel.flip(1)).item() == 1  # the same partition
    assert ami(every_pixel, true[:1]).item() == pytest.approx(0, abs=1e-12)


def test_covering_of_hand_made_maps():
    true = torch.tensor([[[0, 0, 0, 0, 1, 1, 2, 2, 2, 2]]])
    split = torch.tensor([[[0, 0, 0, 5, 5, 5, 3, 3, 3, 4]]])  # best IoU 2/3 and 3/4
    assert sc(true, split).item() == pytest.approx((2 * 2 / 3 + 4 * 3 / 4) / 6)
    assert msc(true, split).item() == pytest.approx((2 / 3 + 3 / 4) / 2)
    merged = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]]])  # objects may share a segment
    assert msc(true, merged).item() == pytest.approx((2 / 6 + 4 / 6) / 2)


def test_one_table_gives_what_the_single_scores_give():
    rng = np.random.default_rng(3)
    true = torch.as_tensor(rng.integers(0, 5, (9, 8, 9)))
    predicted = torch.as_tensor(rng.integers(0, 4, (9, 8, 9)))
    true[3] = 0
    for sizes in ((), (5, 4), (11, 16)):  # labels that do not occur change nothing
        scores = segmentation_scores(true, predicted, *sizes)
        assert scores.keys() == ALL.keys()
        for name, score in scores.items():
            assert score.shape == (9,) and score.dtype == torch.float64
            torch.testing.assert_close(
                score, ALL[name](true, predicted), rtol=0, atol=1e-12, equal_nan=True
            )
    assert list(segmentation_scores(true, predicted, names=("ami", "sc"))) == ["ami", "sc"]
    with pytest.raises(ValueError, match="predicted label lies outside"):
        segmentation_scores(true, predicted, 5, 3)


def scikit_learn_scores(true, predicted):
    foreground = true > 0
    fg = adjusted_rand_score(true[foreground], predicted[foreground])
    overlap, labels, _ = oracle_overlaps(true, predicted)
    return {
        "fg_ari": fg,
        "ari": adjusted_rand_score(true.ravel(), predicted.ravel()),
        "ami": adjusted_mutual_info_score(true.ravel(), predicted.ravel()),
        "miou": overlap[linear_sum_assignment(-overlap)].sum() / len(labels),
    }


def test_320_scenes_are_scored_10_times_faster_than_by_a_loop_over_scikit_learn():
    """In CPU time of one thread; the loop runs over every eighth scene and counts eightfold."""
    rng = np.random.default_rng(4)
    rows, columns = np.mgrid[:64, :64]
    true = np.zeros((320, 64, 64), int)
    for image in true:
        for label in range(1, 7):
            row, column, radius = rng.uniform((8, 8, 5), (56, 56, 12))
            image[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = label
    noise = rng.random(true.shape) < 0.1
    predicted = np.where(noise, rng.integers(0, 7, true.shape), true)
    batch = torch.as_tensor(true), torch.as_tensor(predicted)
    names = ("fg_ari", "ari", "ami", "miou")
    ours_s, loop_s = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(3):
            start = time.process_time()
            scores = segmentation_scores(*batch, names=names)
            middle = time.process_time()
            expected = [scikit_learn_scores(true[i], predicted[i]) for i in range(0, 320, 8)]
            ours_s.append(middle - start)
            loop_s.append(8 * (time.process_time() - middle))
    finally:
        torch.set_num_threads(threads)
    for name in names:
        oracle = [image[name] for image in expected]
        np.testing.assert_allclose(scores[name][::8], oracle, rtol=0, atol=1e-9)
    print(f"{min(loop_s) / min(ours_s):.1f} times: {min(loop_s):.3f} s, {min(ours_s):.4f} s")
    assert min(loop_s) > 10 * min(ours_s)


def test_every_image_of_a_batch_is_scored_on_its_own():
    rng = np.random.default_rng(1)
    true = torch.as_tensor(rng.integers(0, 5, (7, 8, 9)))
    predicted = torch.as_tensor(rng.integers(0, 4, (7, 8, 9)))
    for metric in ALL.values():
        alone = torch.cat([metric(true[i : i + 1], predicted[i : i + 1]) for i in range(7)])
        torch.testing.assert_close(metric(true, predicted), alone, rtol=0, atol=1e-12)


def test_contingency_equals_scikit_learn():
    rng = np.random.default_rng(2)
    true, predicted = rng.integers(0, 4, (3, 20, 20)), rng.integers(0, 6, (3, 20, 20))
    ours = contingency(torch.as_tensor(true), torch.as_tensor(predicted), 4, 6).numpy()
    for i in range(3):
        np.testing.assert_array_equal(
            ours[i], contingency_matrix(true[i].ravel(), predicted[i].ravel())
        )


def test_degenerate_images_have_defined_values():
    zeros, ones = torch.zeros(1, 4, 4, dtype=torch.long), torch.ones(1, 4, 4, dtype=torch.long)
    half = ones.clone()
    half[:, :2] = 0
    assert ari(zeros, ones).item() == 1  # both one segment
    assert fg_ari(ones, zeros).item() == 1  # one object, whole
    assert fg_ari(ones, half).item() == 0  # one object, split
    assert fg_ari(zeros, half).isnan().all()  # no object


def test_fg_ari_ignores_what_is_predicted_on_the_background():
    true = torch.tensor([[[0, 0, 1, 1, 2, 2]]])
    assert fg_ari(true, torch.tensor([[[9, 4, 5, 5, 6, 6]]])).item() == 1
    assert ari(true, torch.tensor([[[9, 4, 5, 5, 6, 6]]])).item() < 1


def test_miou_of_hand_made_maps():
    true = torch.tensor([[[0, 0, 0, 0, 1, 1, 2, 2]]])
    assert (
        miou(true, torch.tensor([[[7, 7, 7, 7, 3, 3, 0, 0]]])).item() == 1
    )  # names do not matter
    # Background 3/4; the slot that swallowed both objects pays for one (2/4), not for the other.
    assert miou(true, torch.tensor([[[0, 0, 0, 1, 2, 2, 2, 2]]])).item() == pytest.approx(1.25 / 3)
    # Two slots share the background: only one of them counts.
    assert miou(true, torch.tensor([[[0, 0, 1, 1, 2, 2, 3, 3]]])).item() == pytest.approx(2.5 / 3)


def test_maps_that_cannot_be_compared_are_refused():
    labels = torch.zeros(1, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="must both be"):
        ari(labels, labels[:, :1])
    with pytest.raises(ValueError, match="outside"):
        ari(labels - 1, labels)
    with pytest.raises(ValueError, match="empty"):
        miou(labels[:0], labels[:0])
