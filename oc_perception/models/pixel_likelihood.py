# SPDX-License-Identifier: Apache-2.0
"""How likely a picture is under decoded slots, with gradients in closed form (Greff et al. 2019,
eq. 1 and App. C).

`mixture`: a pixel is a mixture over slots of densities around their means, weighted by the masks.
`composite`: one density around the mask-weighted mean, as in EfficientMORL (Emami et al. 2021);
the maps that compare slots are those of the mixture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LIKELIHOODS = ("mixture", "composite")
DENSITIES = ("gaussian", "logistic")


@dataclass(frozen=True)
class PixelScores:
    """How well a decoding explains a frame, and what the refinement looks at (App. C)."""

    log_masks: Tensor  # (B, K, 1, H, W)
    log_pixel: Tensor  # (B, 1, 1, H, W)
    mask_posterior: Tensor  # (B, K, 1, H, W)
    d_means: Tensor  # (B, K, 3, H, W), and all below: no gradient flows
    d_logits: Tensor  # (B, K, 1, H, W)
    pixel_maps: Tensor  # (B, K, 3, H, W): d_logits, log p(x), log p(x) - log p(x without slot k)


def score_pixels(
    likelihood: str, density: str, sigma: float, frame: Tensor, means: Tensor, logits: Tensor
) -> PixelScores:
    """Score the decoding `means` `(B, K, 3, H, W)`, `logits` `(B, K, 1, H, W)` by `frame`
    `(B, 1, 3, H, W)`; `sigma` is the deviation of a gaussian, the scale of a logistic density.
    """
    log_masks = logits.log_softmax(1)
    log_density, slope = _density(density, sigma, frame, means)
    joint = log_masks + log_density
    log_mixture = joint.logsumexp(1, keepdim=True)
    log_pixel = log_mixture
    with torch.no_grad():
        masks = log_masks.exp()
        if likelihood == "mixture":
            responsibility = (joint - log_mixture).exp()
            d_means, d_logits = -responsibility * slope, masks - responsibility
    if likelihood == "composite":
        composite = (log_masks.exp() * means).sum(1, keepdim=True)
        log_pixel, slope = _density(density, sigma, frame, composite)
        with torch.no_grad():
            d_means = -masks * slope
            d_logits = (d_means * (means - composite)).sum(2, keepdim=True)
    with torch.no_grad():
        slots = joint.shape[1]
        itself = torch.eye(slots, dtype=torch.bool, device=joint.device).view(
            1, slots, slots, 1, 1
        )
        others = joint.squeeze(2).unsqueeze(1).masked_fill(itself, -math.inf).logsumexp(2)
        left = (1 - masks.squeeze(2)).clamp(min=1e-6).log()
        gain = log_mixture.squeeze(2) - (others - left)
        if slots == 1:
            gain = torch.zeros_like(gain)  # nothing is left without the only slot
        maps = [d_logits, log_mixture.expand_as(d_logits), gain.unsqueeze(2)]
        pixel_maps = torch.cat(maps, 2)
    return PixelScores(log_masks, log_pixel, log_density.softmax(1), d_means, d_logits, pixel_maps)


def _density(density: str, sigma: float, frame: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Log density over the three channels `(B, K, 1, H, W)` and its derivative by the mean."""
    scaled = (frame - means) / sigma
    if density == "gaussian":
        log_density = -0.5 * scaled.square() - 0.5 * math.log(2 * math.pi)
        slope = scaled.detach() / sigma
    else:
        log_density = -scaled - 2 * F.softplus(-scaled)
        slope = (scaled.detach() / 2).tanh() / sigma
    return (log_density - math.log(sigma)).sum(2, keepdim=True), slope
