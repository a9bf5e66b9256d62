# SPDX-License-Identifier: Apache-2.0
"""How well a model discovers the objects of a world, on fresh scenes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from oc_perception.evaluation.refinement import is_iterative, refinements
from oc_perception.evaluation.segmentation import contingency, segmentation_scores
from oc_perception.types import Decomposition
from oc_perception.worlds.registry import create_world, held_out

_BATCH = 32
USED_SHARE = 0.01
"""A slot with a smaller share of the mask counts as empty."""
_WHOLE_BACKGROUND = 0.9  # of the background pixels in one slot: the background is one segment
_LABEL_SCORES = ("fg_ari", "ari", "ami", "miou")


def fresh_scenes(
    model: nn.Module,
    world: str,
    world_config: Mapping[str, Any],
    scenes: int,
    seed: int,
    device: str = "cpu",
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images `(B, 3, H, W)` and labels `(B, H, W)` of `scenes` scenes at the model's frame size,
    of a recording those kept from training; labels are None where nobody knows.

    They come in batches of 32 from one seed, so that the same seed gives the same scenes to every
    model, and the first ones of a longer evaluation to a shorter one.
    """
    source = create_world(world, held_out(world, world_config), _BATCH, seed, device)
    for start in range(0, scenes, _BATCH):
        sample, count = source.sample(*model.frame_size), min(_BATCH, scenes - start)
        labels = None if sample.labels is None else sample.labels[:count]
        yield sample.images[:count], labels


def scene_scores(
    images: Tensor,
    labels: Tensor | None,
    decomposition: Decomposition,
    names: Iterable[str] = ("fg_ari", "ari", "miou"),
) -> dict[str, Tensor]:
    """The scores called `names`, if there are labels, and the MSE of the composite, each `(B,)`.

    Predicted labels are the argmax over all slots (Greff et al. 2019, section 4.1).
    """
    scores = {}
    if labels is not None:
        scores = segmentation_scores(labels, decomposition.log_masks.argmax(1), names=names)
    return {**scores, "mse": (decomposition.composite - images).square().mean((1, 2, 3))}


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
    composite on fresh scenes; the MSE alone where labels are unknown.
    """
    parts = [
        scene_scores(images, labels, model.step(model.initial_state(len(images)), images)[1])
        for images, labels in fresh_scenes(model, world, world_config, scenes, seed, device)
    ]
    return {**_means(parts), "scenes": scenes, "seed": seed}


@torch.inference_mode()
def examine_discovery(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]]
) -> dict[str, float]:
    """The scores of `evaluate_discovery` and AMI, how the slots are used, and the floors below
    which no score means anything, over `batches` as of `fresh_scenes`.

    `used_slots`: mean number of slots with more than 1 % of the mask; `background_in_one_slot`:
    share of the images where one slot holds 90 % of the background. `floor_*`: a fixed partition
    of the image into as many cells; `iteration_0_*`, for iterative models: before the first
    refinement, when the model has not seen the image. Compact segments alone give high FG-ARI.
    Without labels: MSE and `used_slots`.
    """
    parts = []
    for images, labels in batches:
        _, decomposition = model.step(model.initial_state(len(images)), images)
        part = {
            **scene_scores(images, labels, decomposition, _LABEL_SCORES),
            "used_slots": (decomposition.masks.mean((2, 3)) > USED_SHARE).sum(1).double(),
        }
        parts.append(part)
        if labels is None:
            continue
        cells = spatial_partition(*labels.shape[1:], decomposition.log_masks.shape[1])
        cells = cells.to(labels.device).expand_as(labels)
        floor = segmentation_scores(labels, cells, names=_LABEL_SCORES)
        part |= {
            "background_in_one_slot": _background_is_whole(labels, decomposition),
            **{f"floor_{name}": values for name, values in floor.items()},
        }
        if is_iterative(model) and 0 in (unseen := refinements(model, images, 0)):
            start = scene_scores(images, labels, unseen[0].decomposition, _LABEL_SCORES)
            part |= {f"iteration_0_{name}": values for name, values in start.items()}
    return _means(parts)


def _means(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: torch.cat([part[name] for part in parts]).nanmean().item() for name in parts[0]}


def _background_is_whole(labels: Tensor, decomposition: Decomposition) -> Tensor:
    """1 where one slot holds 90 % of the background, else 0; NaN without background; `(B,)`."""
    counts = contingency(labels, decomposition.log_masks.argmax(1))[:, 0].double()
    share = counts.amax(1) / counts.sum(1)  # 0 / 0 is NaN
    return torch.where(share.isnan(), share, (share >= _WHOLE_BACKGROUND).double())


def spatial_partition(height: int, width: int, cells: int) -> Tensor:
    """Labels `(height, width)` of a fixed partition into `cells` near-square cells of equal area.

    Rows hold equal numbers of cells, or some one more, and are as high as they have cells; the
    floor of every table, since it does not look at the image.
    """
    rows = min(cells, max(1, round(math.sqrt(cells * height / width))))
    counts = torch.tensor([cells // rows + (row < cells % rows) for row in range(rows)])
    ends = counts.cumsum(0)
    row = torch.bucketize(torch.arange(height) * cells // height, ends, right=True)
    column = torch.arange(width) * counts[row, None] // width
    return (ends - counts)[row, None] + column
