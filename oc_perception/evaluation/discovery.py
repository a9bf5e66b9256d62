# SPDX-License-Identifier: Apache-2.0
"""How well a model discovers the objects of a world, on fresh scenes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from oc_perception.evaluation.segmentation import ari, fg_ari, miou
from oc_perception.worlds.registry import create_world

_BATCH = 32


@torch.inference_mode()
def evaluate_discovery(
    model: nn.Module,
    world: str,
    world_config: Mapping[str, Any],
    scenes: int,
    seed: int,
    device: str = "cpu",
) -> dict[str, float | int]:
    """Mean FG-ARI (over scenes with an object in view), ARI, mIoU with background and MSE of the
    composite.

    Labels are the argmax over all slots (Greff et al. 2019, section 4.1). Scenes come in batches
    of 32 from one seed, so that the same seed gives the same scenes to every model.
    """
    source = create_world(world, world_config, _BATCH, seed, device)
    scores: dict[str, list[torch.Tensor]] = {"fg_ari": [], "ari": [], "miou": [], "mse": []}
    for _ in range(-(-scenes // _BATCH)):
        sample = source.sample(*model.frame_size)
        _, decomposition = model.step(model.initial_state(_BATCH), sample.images)
        predicted = decomposition.log_masks.argmax(1)
        scores["fg_ari"].append(fg_ari(sample.labels, predicted))
        scores["ari"].append(ari(sample.labels, predicted))
        scores["miou"].append(miou(sample.labels, predicted))
        error = (decomposition.composite - sample.images).square().mean((1, 2, 3))
        scores["mse"].append(error)
    means = {name: torch.cat(parts)[:scenes].nanmean().item() for name, parts in scores.items()}
    return {**means, "scenes": scenes, "seed": seed}
