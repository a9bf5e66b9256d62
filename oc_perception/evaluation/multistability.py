# SPDX-License-Identifier: Apache-2.0
"""Whether inference reaches several groupings of a picture that allows them (Greff et al. 2019,
section 4.4), on the rectangles of `ambiguous_tetrominoes`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from oc_perception.evaluation.latents import hypotheses
from oc_perception.evaluation.segmentation import fg_ari
from oc_perception.worlds.tetrominoes import AmbiguousScenes

SAME = 0.9
"""FG-ARI from which two groupings count as one."""


@torch.no_grad()
def examine_multistability(
    model: nn.Module, scenes: AmbiguousScenes, runs: int, seed: int
) -> dict[str, Any]:
    """Infer each of the B scenes `runs` times with fresh noise; means over scenes.

    `fg_ari`: of a run to its nearest valid cut; `valid_runs`: share of runs that reach 0.9 of it;
    `groupings`: different groupings among the runs, `valid_groupings`: different valid cuts
    found; `slot_orders`: most different orders of the slots in which one grouping was found.
    """
    found = hypotheses(model, scenes.images, runs, seed).labels  # (B, N, H, W)
    cuts = scenes.alternatives
    agreement = torch.stack(
        [_pairwise(cuts[b], found[b]) for b in range(len(found))]
    )  # (B, cuts, runs)
    nearest, which = agreement.max(1)
    valid = nearest >= SAME
    counts = [_groupings(labels, scenes.labels[b] > 0) for b, labels in enumerate(found)]
    return {
        "fg_ari": nearest.mean().item(),
        "valid_runs": valid.double().mean().item(),
        "groupings": sum(groups for groups, _ in counts) / len(counts),
        "valid_groupings": sum(len(w[v].unique()) for w, v in zip(which, valid, strict=True))
        / len(found),
        "slot_orders": sum(orders for _, orders in counts) / len(counts),
        "runs": runs,
        "scenes": len(found),
        "seed": seed,
    }


def _pairwise(true: Tensor, predicted: Tensor) -> Tensor:
    """FG-ARI `(T, P)` of label maps `(T, H, W)` and `(P, H, W)`."""
    rows = true.repeat_interleave(len(predicted), 0)
    columns = predicted.repeat(len(true), 1, 1)
    return fg_ari(rows, columns).view(len(true), len(predicted))


def _groupings(labels: Tensor, foreground: Tensor) -> tuple[int, int]:
    """How many groupings `labels` `(N, H, W)` hold of the pixels `foreground` `(H, W)`, and in how
    many orders of the slots the one with most orders was found.

    Each map joins the first that agrees with it, so that the count never exceeds what is there.
    """
    maps = torch.where(foreground, labels + 1, 0)
    groups = [int(row.nonzero()[0]) for row in _pairwise(maps, maps) >= SAME]
    orders = {
        (group, tuple(member[maps[group] == value].mode().values.item()
                      for value in maps[group].unique() if value))
        for group, member in zip(groups, maps, strict=True)
    }  # fmt: skip
    return len(set(groups)), max(sum(g == group for g, _ in orders) for group in groups)
