# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix

from oc_perception.evaluation.segmentation import ari, contingency, fg_ari, miou


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


def test_every_image_of_a_batch_is_scored_on_its_own():
    rng = np.random.default_rng(1)
    true = torch.as_tensor(rng.integers(0, 5, (7, 8, 9)))
    predicted = torch.as_tensor(rng.integers(0, 4, (7, 8, 9)))
    for metric in (ari, fg_ari, miou):
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
