# SPDX-License-Identifier: Apache-2.0
"""How well a decomposition finds the objects: scores of label maps, batched in torch.

Label maps are integer tensors `(B, H, W)`; the numbers in them are names without order. True label
0 is the background. Predicted maps are the argmax over *all* slots, the background slot included.
Every score is a function of the contingency table of the two maps, counted once, and is `(B,)`
float64, one number per image:

- `ari`, `fg_ari`: adjusted Rand index (Hubert & Arabie 1985) in its pair-counting form, which is
  what `sklearn.metrics.adjusted_rand_score` computes;
- `ami`, `fg_ami`: adjusted mutual information (Vinh et al. 2010), over the arithmetic mean of the
  entropies, as `sklearn.metrics.adjusted_mutual_info_score`;
- `miou`: mean intersection over union, background included, paired by the Hungarian method;
- `sc`, `msc`: segmentation covering of the objects (Arbelaez et al. 2011; Engelcke et al. 2020).

`fg_` scores look only at pixels whose true label is not 0. They, `sc` and `msc` are NaN where an
image has no such pixel: leave those out with `nanmean`, they say nothing about a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

_TAIL = 36.0
"""Negative log of the probability that may be missing on each side of a distribution."""
_CHUNK = {"cpu": 1 << 15, "cuda": 1 << 22}
"""Elements of a table of distributions: it stays in the cache of a CPU, and fills a GPU."""


def segmentation_scores(
    true: Tensor,
    predicted: Tensor,
    num_true: int | None = None,
    num_predicted: int | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """The scores called `names` (default: all of the table above), from one contingency table.

    Raises KeyError for an unknown name and ValueError as `contingency` does.
    """
    counts = contingency(true, predicted, num_true, num_predicted)
    return {name: _SCORES[name](counts) for name in (_SCORES if names is None else names)}


def contingency(
    true: Tensor, predicted: Tensor, num_true: int | None = None, num_predicted: int | None = None
) -> Tensor:
    """Pixels shared by each true and each predicted label: `(B, num_true, num_predicted)` int64.

    Without sizes the greatest labels set them. Raises ValueError when the maps differ in shape,
    hold a label outside `[0, num)`, or are empty and no size is given.
    """
    if true.shape != predicted.shape or true.ndim < 2:
        raise ValueError(
            f"Label maps must both be (B, H, W), not {tuple(true.shape)} and "
            f"{tuple(predicted.shape)}."
        )
    true, predicted = true.flatten(1).long(), predicted.flatten(1).long()
    batch, pixels = true.shape
    bounds = [0, -1, 0, -1]
    if true.numel():  # all four in one go: each look at a number of the GPU waits for the GPU
        bounds = torch.stack([*true.aminmax(), *predicted.aminmax()]).tolist()
    elif num_true is None or num_predicted is None:
        raise ValueError("Label maps are empty.")
    num_true = bounds[1] + 1 if num_true is None else num_true
    num_predicted = bounds[3] + 1 if num_predicted is None else num_predicted
    for name, low, high, limit in (
        ("true", bounds[0], bounds[1], num_true),
        ("predicted", bounds[2], bounds[3], num_predicted),
    ):
        if low < 0 or high >= limit:
            raise ValueError(f"A {name} label lies outside [0, {limit}).")
    cells = num_true * num_predicted
    cell = (true * num_predicted).add_(predicted)
    cell.add_(torch.arange(batch, device=cell.device).unsqueeze(1) * cells)
    counts = torch.zeros(batch * cells, dtype=torch.int64, device=cell.device)
    counts.scatter_add_(0, cell.view(-1), counts.new_ones(1).expand(batch * pixels))
    return counts.view(batch, num_true, num_predicted)


def ari(true: Tensor, predicted: Tensor) -> Tensor:
    """Adjusted Rand index over all pixels, `(B,)` float64; 1 is agreement, 0 is what chance gives.

    1 where both maps are the same partition, be it a single segment each or one segment per pixel.
    """
    return _adjusted_rand_index(contingency(true, predicted))


def fg_ari(true: Tensor, predicted: Tensor) -> Tensor:
    """Adjusted Rand index over the pixels whose true label is not 0, `(B,)` float64, else NaN.

    An image with one object gives 1 if one slot holds all of it, and 0 if it is split.
    """
    return _adjusted_rand_index(contingency(true, predicted)[:, 1:])


def ami(true: Tensor, predicted: Tensor) -> Tensor:
    """Adjusted mutual information over all pixels, `(B,)` float64; 1 agreement, 0 chance.

    1 where both maps are the same partition, 0 where just one of them is a single segment.
    """
    return _adjusted_mutual_information(contingency(true, predicted))


def fg_ami(true: Tensor, predicted: Tensor) -> Tensor:
    """Adjusted mutual information over the pixels whose true label is not 0, else NaN."""
    return _adjusted_mutual_information(contingency(true, predicted)[:, 1:])


def miou(true: Tensor, predicted: Tensor) -> Tensor:
    """Mean intersection over union, `(B,)` float64, the background counted as one more object.

    True and predicted segments are paired one to one so that the sum of IoU is greatest
    (Hungarian); the mean is over the true segments present in the image, an unpaired one counts 0.
    """
    return _matched_overlap(contingency(true, predicted))


def sc(true: Tensor, predicted: Tensor) -> Tensor:
    """Segmentation covering, `(B,)` float64: best IoU of each object, weighted by its area."""
    return _covering(contingency(true, predicted), weighted=True)


def msc(true: Tensor, predicted: Tensor) -> Tensor:
    """Mean segmentation covering, `(B,)` float64: every object has the same weight.

    Also known as mean best overlap (mBO). Unlike in `miou` objects may share a segment.
    """
    return _covering(contingency(true, predicted), weighted=False)


def _adjusted_rand_index(counts: Tensor) -> Tensor:
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


def _adjusted_mutual_information(counts: Tensor) -> Tensor:
    """From counts `(B, C, K)`, in sums of n log n over cells, rows and columns.

    With N pixels in all, an entropy is log N - sum / N and mutual information is the sum of both
    entropies less the joint one. All of it but the joint sum cancels or is fixed by the margins.
    """
    counts = counts.double()
    rows, columns = counts.sum(2), counts.sum(1)
    joint = _n_log_n(counts).sum((1, 2))
    best = (_n_log_n(rows).sum(1) + _n_log_n(columns).sum(1)) / 2
    chance = _expected_joint_sum(rows, columns)
    segments = (counts > 0).sum((1, 2))
    same = (segments == (rows > 0).sum(1)) & (segments == (columns > 0).sum(1))
    index = torch.where(same, 1.0, (joint - chance) / (best - chance))
    return torch.where(rows.sum(1) == 0, torch.nan, index)


def _expected_joint_sum(rows: Tensor, columns: Tensor) -> Tensor:
    """Mean of the sum of n log n over cells if pixels are dealt at random, `(B,)`.

    A cell n of margins `rows` `(B, C)` and `columns` `(B, K)` is hypergeometric. Successive
    probabilities have a simple ratio, so each distribution is a cumulative product, scaled to sum
    to 1: no factorials, whose rounding grows with the image. Only the range that Bernstein's
    inequality leaves likely is computed, which is about 17 standard deviations wide.
    """
    # A segment of one pixel adds nothing, as n log n is 0 for 0 and for 1.
    matter = (rows > 1).unsqueeze(2) & (columns > 1).unsqueeze(1)
    image, row, column = matter.nonzero().unbind(1)
    a, b, pixels = rows[image, row], columns[image, column], rows.sum(1)[image]
    mean = a * b / pixels
    variance = mean * (pixels - a) * (pixels - b) / (pixels * (pixels - 1))
    reach = _TAIL / 3 + (_TAIL**2 / 9 + 2 * _TAIL * variance).sqrt()
    first = torch.maximum((mean - reach).floor(), a + b - pixels).clamp(min=0)
    last = torch.minimum((mean + reach).ceil(), torch.minimum(a, b))
    steps, order = (last - first).long().sort(descending=True)
    a, b, first, spare = (x[order, None] for x in (a, b, first, pixels - a - b))
    lengths, chunk = steps.tolist(), _CHUNK.get(rows.device.type, _CHUNK["cpu"])
    expected = torch.empty_like(mean)
    start = 0
    while start < len(lengths):  # chunks of distributions of about the same length
        part = slice(start, start + max(1, chunk // max(1, lengths[start])))
        n = first[part] + torch.arange(1, lengths[start] + 1, device=rows.device)
        # The probability of n over that of n - 1; 0 above the greatest n, where others go on.
        ratio = (a[part] + 1 - n) * (b[part] + 1 - n) / (n * (n + spare[part]))
        weight = ratio.cumprod(1)
        total = (weight * (n * n.log())).sum(1) + _n_log_n(first[part, 0])
        expected[order[part]] = total / (1 + weight.sum(1))
        start = part.stop
    # Not index_add_, which adds in an order of its own on a GPU.
    cells = torch.zeros_like(matter, dtype=rows.dtype)
    cells[image, row, column] = expected
    return cells.sum((1, 2))


def _n_log_n(n: Tensor) -> Tensor:
    return n * n.clamp(min=1).log()


def _overlap(counts: Tensor) -> Tensor:
    """Intersection over union of each true with each predicted segment, `(B, C, K)` float64."""
    counts = counts.double()
    union = counts.sum(2, keepdim=True) + counts.sum(1, keepdim=True) - counts
    return counts / union.clamp(min=1)


def _matched_overlap(counts: Tensor) -> Tensor:
    overlap = _overlap(counts).cpu().numpy()
    best = [image[linear_sum_assignment(image, maximize=True)].sum() for image in overlap]
    present = (counts.sum(2) > 0).sum(1)
    return torch.tensor(best, dtype=torch.float64, device=counts.device) / present


def _covering(counts: Tensor, weighted: bool) -> Tensor:
    best = _overlap(counts)[:, 1:].amax(2)
    area = counts[:, 1:].sum(2)
    weight = area if weighted else area > 0
    return (weight * best).sum(1) / weight.sum(1)


_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "fg_ari": lambda counts: _adjusted_rand_index(counts[:, 1:]),
    "ari": _adjusted_rand_index,
    "fg_ami": lambda counts: _adjusted_mutual_information(counts[:, 1:]),
    "ami": _adjusted_mutual_information,
    "miou": _matched_overlap,
    "sc": lambda counts: _covering(counts, weighted=True),
    "msc": lambda counts: _covering(counts, weighted=False),
}
