# SPDX-License-Identifier: Apache-2.0
"""What the latents of a slot stand for, and which decompositions of one frame a model considers.

Traversals need `decode(latents (B, K, D)) -> (log_masks (B, K, H, W), means (B, K, 3, H, W))`,
hypotheses need `refine(frames, num_iterations, generator)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oc_perception.evaluation.discovery import USED_SHARE
from oc_perception.types import Decomposition

_STEPS = 9
_REACH = 2.0  # standard deviations to either side


@dataclass(frozen=True)
class Traversal:
    """Images `(R, 9, 3, H, W)` of one scene where one latent of one slot takes nine values.

    `latents` `(R,)` are their indices, most active first, `spreads` `(R,)` their standard
    deviations over slots, `offsets` `(9,)` the values in standard deviations from the mean,
    `nearest` `(R,)` the column nearest to what the model inferred. `frame` `(3, H, W)` is the
    input, `reconstruction` `(3, H, W)` what is decoded from the inferred latents, `mask` `(H, W)`
    that of the slot.
    """

    frame: Tensor
    reconstruction: Tensor
    mask: Tensor
    images: Tensor
    latents: Tensor
    spreads: Tensor
    offsets: Tensor
    nearest: Tensor


@torch.no_grad()
def traverse(model: nn.Module, frames: Tensor, labels: Tensor, rows: int = 8) -> Traversal:
    """Sweep the `rows` most active latents of the slot that holds the largest object of the first
    of `frames` `(B, 3, H, W)` with `labels` `(B, H, W)`.

    A latent is active if its inferred value varies over the slots in use (Burda et al. 2016,
    section 5.2): one that stays near the prior carries nothing.
    """
    _, decomposition = model.step(model.initial_state(len(frames)), frames)
    used = decomposition.masks.mean((2, 3)) > USED_SHARE
    values = decomposition.embeddings[used]
    spreads, centres = values.std(0, correction=0), values.mean(0)
    latents = spreads.argsort(descending=True)[:rows]
    offsets = torch.linspace(-_REACH, _REACH, _STEPS, device=frames.device)

    inferred = decomposition.embeddings[:1]
    slot = _object_slot(labels[0], decomposition.log_masks[0].argmax(0))
    swept = inferred.expand(len(latents) * _STEPS, -1, -1).clone()
    for row, latent in enumerate(latents.tolist()):
        block = slice(row * _STEPS, (row + 1) * _STEPS)
        swept[block, slot, latent] = centres[latent] + spreads[latent] * offsets
    images = torch.cat([_composite(model, chunk) for chunk in swept.split(_STEPS)])
    own = (inferred[0, slot, latents] - centres[latents]) / spreads[latents].clamp(min=1e-12)
    log_masks, _ = model.decode(inferred)
    return Traversal(
        frame=frames[0],
        reconstruction=_composite(model, inferred)[0],
        mask=log_masks[0, slot].exp(),
        images=images.unflatten(0, (len(latents), _STEPS)),
        latents=latents,
        spreads=spreads[latents],
        offsets=offsets,
        nearest=(own.unsqueeze(1) - offsets).abs().argmin(1),
    )


def _composite(model: nn.Module, latents: Tensor) -> Tensor:
    log_masks, means = model.decode(latents)
    return Decomposition(log_masks, means, latents).composite.clamp(0, 1)


def _object_slot(labels: Tensor, predicted: Tensor) -> int:
    """The slot with most pixels of the largest object; of the background where there is none."""
    objects = labels.unique(return_counts=True)
    sizes = torch.where(objects[0] == 0, 0, objects[1])
    return int(predicted[labels == objects[0][sizes.argmax()]].mode().values)


@dataclass(frozen=True)
class Hypotheses:
    """Segmentations `labels` `(B, N, H, W)` of B frames from N seeds, with their `elbo` `(B, N)`
    in nats; best first.
    """

    labels: Tensor
    elbo: Tensor


@torch.no_grad()
def hypotheses(model: nn.Module, frames: Tensor, count: int, seed: int) -> Hypotheses:
    """Infer `count` times with fresh noise: ambiguous frames end in different decompositions
    (Greff et al. 2019, section 4.4).
    """
    results = []
    for number in range(count):
        generator = torch.Generator(frames.device).manual_seed(seed + number)
        results.append(model.refine(frames, model.num_iterations, generator)[-1])
    elbo = torch.stack([result.elbo for result in results], 1)
    labels = torch.stack([result.decomposition.log_masks.argmax(1) for result in results], 1)
    order = elbo.argsort(1, descending=True)
    return Hypotheses(
        labels.gather(1, order[..., None, None].expand_as(labels)), elbo.gather(1, order)
    )
