# SPDX-License-Identifier: Apache-2.0
"""How well a decomposition finds the objects: FG-ARI, ARI and mIoU of label maps, in torch.

Label maps are integer tensors `(B, H, W)`; the numbers in them are names without order. True label
0 is the background. Predicted maps are the argmax over *all* slots, the background slot included.
Agreement of partitions is the adjusted Rand index (Hubert & Arabie 1985) in its pair-counting
form, which is what `sklearn.metrics.adjusted_rand_score` computes.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment


def contingency(
    true: torch.Tensor, predicted: torch.Tensor, num_true: int, num_predicted: int
) -> torch.Tensor:
    """Pixels shared by each true and each predicted label: `(B, num_true, num_predicted)` int64.

    Raises ValueError when the maps differ in shape or hold a label outside `[0, num)`.
    """
    if true.shape != predicted.shape or true.ndim < 2:
        raise ValueError(
            f"Label maps must both be (B, H, W), not {tuple(true.shape)} and "
            f"{tuple(predicted.shape)}."
        )
    B = true.shape[0]
    for name, labels, limit in (("true", true, num_true), ("predicted", predicted, num_predicted)):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < limit:
            raise ValueError(f"A {name} label lies outside [0, {limit}).")
    cell = true.reshape(B, -1).long() * num_predicted + predicted.reshape(B, -1).long()
    offset = torch.arange(B, device=true.device).unsqueeze(1) * (num_true * num_predicted)
    counts = torch.bincount((cell + offset).reshape(-1), minlength=B * num_true * num_predicted)
    return counts.view(B, num_true, num_predicted)


def ari(true: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Adjusted Rand index over all pixels, `(B,)` float64; 1 is agreement, 0 is what chance gives.

    1 where both maps are the same partition, be it a single segment each or one segment per pixel.
    """
    return _adjusted_rand_index(_contingency(true, predicted))


def fg_ari(true: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Adjusted Rand index over the pixels whose true label is not 0, `(B,)` float64.

    NaN where an image has no such pixel: leave those out with `nanmean`, they say nothing about a
    model.
    An image with one object gives 1 if one slot holds all of it, and 0 if it is split.
    """
    return _adjusted_rand_index(_contingency(true, predicted)[:, 1:])


def miou(true: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Mean intersection over union, `(B,)` float64, the background counted as one more object.

    True and predicted segments are paired one to one so that the sum of IoU is greatest
    (Hungarian); the mean is over the true segments present in the image, an unpaired one counts 0.
    """
    counts = _contingency(true, predicted).double()
    union = counts.sum(2, keepdim=True) + counts.sum(1, keepdim=True) - counts
    overlap = torch.where(union > 0, counts / union.clamp(min=1), 0.0).cpu().numpy()
    present = (counts.sum(2) > 0).sum(1).cpu()
    best = [image[linear_sum_assignment(image, maximize=True)].sum() for image in overlap]
    return (torch.tensor(best, dtype=torch.float64) / present).to(true.device)


def _contingency(true: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    if not true.numel():
        raise ValueError("Label maps are empty.")
    return contingency(true, predicted, int(true.max()) + 1, int(predicted.max()) + 1)


def _adjusted_rand_index(counts: torch.Tensor) -> torch.Tensor:
    """From counts `(B, C, K)`; in float64, as products of pair counts overflow int64."""
    counts = counts.double()
    pixels = counts.sum((1, 2))
    together = counts.square().sum((1, 2))  # ordered pairs together in both maps, self-pairs too
    together_true = counts.sum(2).square().sum(1)
    together_predicted = counts.sum(1).square().sum(1)
    both = together - pixels
    only_true = together_true - together
    only_predicted = together_predicted - together
    neither = pixels.square() - together_true - together_predicted + together
    index = (
        2
        * (both * neither - only_true * only_predicted)
        / (
            (both + only_true) * (only_true + neither)
            + (both + only_predicted) * (only_predicted + neither)
        )
    )
    index = torch.where((only_true == 0) & (only_predicted == 0), 1.0, index)
    return torch.where(pixels == 0, torch.nan, index)
