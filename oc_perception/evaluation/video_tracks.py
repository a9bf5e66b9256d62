# SPDX-License-Identifier: Apache-2.0
"""Whether identities stay with the objects of a video, and how well their boxes lie."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from oc_perception.evaluation.mot import score
from oc_perception.evaluation.mot_sequence import MotSequence
from oc_perception.models.boxes import iou
from oc_perception.types import Motion

Ratio = tuple[Tensor, Tensor]
"""A sum and its weight: those of several batches add up."""


def true_boxes(motion: Motion) -> Tensor:
    """`(B, T, N, 4)`: centre x, y, width, height in image widths."""
    return torch.cat([motion.positions, motion.sizes], -1)


def tracks(boxes: Tensor, ids: Tensor, motion: Motion) -> dict[str, Ratio]:
    """Scores of `boxes` `(B, T, M, 4)` with `ids` `(B, T, M)` (0: none) as tracks of the objects
    in view.

    Identities are those of CLEAR (`mot`), where a box matches whose centre lies within about a
    third of an object's side: all boxes are taken to be squares of the mean side, so that a model
    that takes a wider view of its objects is not taken to have lost them.
    """
    truth = true_boxes(motion)
    side = typical_side(motion)
    squares = (torch.cat([x[..., :2], side.expand_as(x[..., 2:])], -1) for x in (truth, boxes))
    clear = score(_one_sequence(*squares, motion.visible, ids)).clear
    objects = motion.visible.sum().double()
    overlap = iou(truth.unsqueeze(3), boxes.unsqueeze(2)).flatten(0, 1)
    possible = (motion.visible.unsqueeze(3) & (ids > 0).unsqueeze(2)).flatten(0, 1)
    matched = best_pairs(overlap, possible & (overlap > 0))
    return {
        "id_switches_per_100": (objects.new_tensor(100.0 * clear.id_switches), objects),
        "tracked_share": (objects.new_tensor(float(clear.matches)), objects),
        "box_iou": (overlap[matched].double().sum(), matched.sum().double()),
    }


def typical_side(motion: Motion) -> Tensor:
    """Mean side of the objects that are present, in image widths; 1 where nobody is."""
    sides = motion.sizes.prod(-1).sqrt()[motion.present]
    return sides.mean() if len(sides) else motion.sizes.new_ones(())


def best_pairs(worth: Tensor, possible: Tensor) -> Tensor:
    """One to one pairs `(F, N, M)` bool out of those `possible`: as many as there can be of them,
    then of most `worth` `(F, N, M)` in sum; worths lie between 0 and 1.
    """
    values = torch.where(possible, worth + worth.shape[1], 0.0).cpu().numpy()
    chosen = np.zeros(values.shape, bool)
    for frame in np.flatnonzero(values.any((1, 2))):
        chosen[frame][linear_sum_assignment(values[frame], maximize=True)] = True
    return torch.from_numpy(chosen).to(possible.device) & possible


def _one_sequence(truth: Tensor, boxes: Tensor, visible: Tensor, ids: Tensor) -> MotSequence:
    """All sequences one after the other. Their switches add up, as no object is in two of them."""
    objects = torch.arange(visible[:, 0].numel(), device=ids.device)
    objects = objects.view_as(visible[:, 0]).unsqueeze(1).expand_as(visible)
    lists = []
    for values, there in ((objects, visible), (truth, visible), (ids, ids > 0), (boxes, ids > 0)):
        counts = there.sum(2).flatten().cpu().numpy()
        lists.append(np.split(values[there].cpu().numpy(), np.cumsum(counts)[:-1]))
    return MotSequence(*lists)
