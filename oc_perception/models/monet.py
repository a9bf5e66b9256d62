# SPDX-License-Identifier: Apache-2.0
"""MONet: Multi-Object Network (Burgess et al. 2019, arXiv 1901.11390).

Generative story: each of K slots draws a latent z_k ~ N(0, I); a shared decoder turns it into an
appearance mu_k and a mask logit; a pixel is a mixture over slots of N(mu_k, sigma_k^2 I).
Inference: a recurrent attention network (a U-Net) peels the image into K masks by stick-breaking
over a scope, and a shared encoder turns image and mask k into q(z_k). Section numbers in the code
refer to the paper.

With `static_background`, not in the paper, slot 0 draws no latent: it shows what a standing camera
sees behind everything that moves (`static_background.py`), and it has the scope that remains. Each
other step looks at the difference to it, near the place where an object of `object_size` covers
most of the difference that is left. So the likelihood itself pushes what moves into these slots,
and each has one place.

Shapes: frames `(B, 3, H, W)` in [0, 1], masks `(B, K, H, W)`, latents `(B, K, D)`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oc_perception.configuration import from_mapping
from oc_perception.models.blocks import (
    broadcast_convolution,
    coordinate_grid,
    doubled_convolution,
    doubling_weights,
)
from oc_perception.models.registry import register_model
from oc_perception.models.static_background import StaticBackground
from oc_perception.types import Decomposition

_LOG_MASK_FLOOR = -20.0  # for network inputs only: log masks are unbounded below


@dataclass(frozen=True)
class MonetConfig:
    """Sizes and weights of the objective; `frame_size` must be a multiple of 2^(U-Net blocks -
    1).

    `static_background` is for cameras that stand still; `object_size` is then about the height and
    width of the objects, as shares of the frame.
    """

    frame_size: tuple[int, int] = (64, 64)
    num_slots: int = 6
    latent_size: int = 16
    attention_channels: tuple[int, ...] = (32, 32, 64, 64, 64)
    attention_hidden: int = 128
    encoder_channels: tuple[int, ...] = (32, 32, 64, 64)
    encoder_hidden: int = 256
    decoder_channels: int = 32
    sigma_background: float = 0.09
    sigma_foreground: float = 0.11
    beta: float = 0.5
    gamma: float = 0.5
    weight_warmup: float = 0.1
    static_background: bool = False
    object_size: tuple[float, float] = (0.3, 0.12)

    def __post_init__(self) -> None:
        factor = 2 ** (len(self.attention_channels) - 1)
        if any(side % factor or side // factor < 2 for side in self.frame_size):
            raise ValueError(
                f"frame_size {self.frame_size} must be a multiple of {factor}, at least twice it"
            )
        if self.num_slots < 1 + self.static_background:
            raise ValueError("num_slots must be at least 1, and 2 with static_background")
        if not all(0 < side <= 1 for side in self.object_size):
            raise ValueError(f"object_size must be shares of the frame, not {self.object_size}")


class InstanceNorm(nn.InstanceNorm2d):
    """In inference computed as a group norm, which is several times faster on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # group norm of one channels-last image learns wrongly on CPUs
            return super().forward(x)
        return F.group_norm(x, self.num_features, self.weight, self.bias, self.eps)


class UNet(nn.Module):
    """Attention network (App. B.2): image and log scope `(B, 4, H, W)`, with a static background
    also the difference to it and nearness `(B, 8, H, W)`, to one logit map `(B, 1, H, W)`.
    """

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        widths = config.attention_channels
        height, width = (side // 2 ** (len(widths) - 1) for side in config.frame_size)
        self.bottleneck_shape = (widths[-1], height, width)
        seen = 8 if config.static_background else 4
        self.down = nn.ModuleList(
            _block(before, after) for before, after in itertools.pairwise((seen, *widths))
        )
        size, hidden = math.prod(self.bottleneck_shape), config.attention_hidden
        self.bottleneck = nn.Sequential(
            nn.Linear(size, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, size), nn.ReLU(),
        )  # fmt: skip
        targets = (widths[0], *widths[:-1])
        befores = (*targets[1:], widths[-1])
        self.up = nn.ModuleList(
            _block(before + skip, after)
            for before, skip, after in zip(
                reversed(befores), reversed(widths), reversed(targets), strict=True
            )
        )
        self.head = nn.Conv2d(targets[0], 1, 1)

    def doubling(self) -> tuple[Tensor, Tensor]:
        """Weights that let the last block, half of the work, do without enlarging its input."""
        return doubling_weights(self.up[-1][0], self.down[0][0].out_channels)

    def forward(self, x: Tensor, doubling: tuple[Tensor, Tensor] | None = None) -> Tensor:
        skips = []
        for index, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 1, 2) if index else x)  # nearest-neighbour halving
            skips.append(x)
        x = self.bottleneck(x.flatten(1)).view(-1, *self.bottleneck_shape)
        for index, (block, skip) in enumerate(zip(self.up, reversed(skips), strict=True)):
            convolution, norm, activation = block
            if index and doubling is not None and index == len(self.up) - 1:
                x = doubled_convolution(doubling, x, skip)
            else:
                if index:
                    x = F.interpolate(x, scale_factor=2, mode="nearest")
                x = convolution(torch.cat([x, skip], 1))
            x = activation(norm(x))
        return self.head(x)


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        InstanceNorm(after, affine=True),
        nn.ReLU(inplace=True),
    )


class ComponentVAE(nn.Module):
    """Shared over slots (App. B.1): image and log mask to q(z), z to appearance and mask logit."""

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        height, width = config.frame_size
        widths = (4, *config.encoder_channels)
        convolutions = []
        for before, after in itertools.pairwise(widths):
            convolutions += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU(True)]
            height, width = (height + 1) // 2, (width + 1) // 2
        self.encoder = nn.Sequential(
            *convolutions, nn.Flatten(),
            nn.Linear(widths[-1] * height * width, config.encoder_hidden), nn.ReLU(),
            nn.Linear(config.encoder_hidden, 2 * config.latent_size),
        )  # fmt: skip
        channels = config.decoder_channels
        layers = [nn.Conv2d(config.latent_size + 2, channels, 3), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(channels, channels, 3), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(channels, 4, 1))
        height, width = (side + 8 for side in config.frame_size)  # four unpadded 3x3 trim 8
        self.register_buffer("coordinates", coordinate_grid(height, width), persistent=False)

    def encode(self, image: Tensor, log_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation `(N, D)` from `(N, 3, H, W)` and `(N, 1, H, W)`."""
        statistics = self.encoder(torch.cat([image, log_mask.clamp(min=_LOG_MASK_FLOOR)], 1))
        mean, log_scale = statistics.float().chunk(2, 1)
        return mean, log_scale.clamp(-8, 4)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Appearance `(N, 3, H, W)` in [0, 1] and mask logit `(N, 1, H, W)` from `(N, D)`."""
        x = broadcast_convolution(self.decoder[0], z, self.coordinates)
        colour, logit = self.decoder[1:](x).float().split((3, 1), 1)
        return colour.sigmoid(), logit


class Monet(nn.Module):
    """Attention network and component VAE; K may be changed at test time by `num_slots`."""

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size = config.frame_size
        self.num_slots = config.num_slots
        self.attention = UNet(config)
        self.vae = ComponentVAE(config)
        self.slots_are_local = config.static_background
        self.background = None
        if config.static_background:
            self.background = StaticBackground(config.frame_size, config.object_size)

    def attend(self, frames: Tensor, num_slots: int | None = None) -> Tensor:
        """Log masks `(B, K, H, W)` by stick-breaking; the last mask is the remaining scope (eq.
        2), or the first one, that of a static background.
        """
        return self._attend(frames, self._behind(frames), num_slots)

    def _behind(self, frames: Tensor) -> Tensor | None:
        """The static background in the light of each frame `(B, 3, H, W)`, if there is one."""
        return None if self.background is None else self.background(frames)

    def _attend(
        self, frames: Tensor, behind: Tensor | None, num_slots: int | None = None
    ) -> Tensor:
        log_scope = frames.new_zeros(len(frames), 1, *frames.shape[2:])
        log_masks = []
        doubling = None if torch.is_grad_enabled() else self.attention.doubling()
        features = [frames]
        if behind is not None:
            difference = (frames - behind) / (2 * self.config.sigma_background)
            energy = difference.square().mean(1, keepdim=True)
            change = energy / (1 + energy)
            features = [frames, difference.clamp(-3, 3)]
        for _ in range((num_slots or self.num_slots) - 1):
            scope_input, distance = log_scope.clamp(min=_LOG_MASK_FLOOR), 0.0
            seen = [*features, scope_input]
            if behind is not None:
                left = change * log_scope.detach().exp()
                distance = self.background.distance_to_object(left)
                seen.append((-distance).exp())
            logit = self.attention(torch.cat(seen, 1), doubling).float() - distance
            log_masks.append(log_scope + F.logsigmoid(logit))
            log_scope = log_scope + F.logsigmoid(-logit)
        if behind is not None:
            return torch.cat([log_scope, *log_masks], 1)
        return torch.cat([*log_masks, log_scope], 1)

    def decode(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Log masks `(B, K, H, W)` as the VAE draws them and means `(B, K, 3, H, W)` of latents
        `(B, K, D)`. What is said of a static background is not used.
        """
        if self.background is None:
            return self._decode(latents, None)
        behind = self.background.image.expand(len(latents), -1, -1, -1)
        return self._decode(latents[:, 1:], behind)

    def _decode(self, latents: Tensor, behind: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `decode`, from the latents of those slots that draw one."""
        colours, logits = self.vae.decode(latents.flatten(0, 1))
        colours = colours.unflatten(0, latents.shape[:2])
        logits = logits.unflatten(0, latents.shape[:2]).squeeze(2)
        if behind is not None:  # the logits of the others are their odds against it
            colours = torch.cat([behind.unsqueeze(1), colours], 1)
            logits = F.pad(logits, (0, 0, 0, 0, 1, 0))
        return logits.log_softmax(1), colours

    def _encode(self, frames: Tensor, log_masks: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation `(B, K, D)` of those slots that draw a latent."""
        if self.background is not None:
            log_masks = log_masks[:, 1:]
        slots = log_masks.shape[1]
        images = frames.unsqueeze(1).expand(-1, slots, -1, -1, -1).flatten(0, 1)
        mean, log_scale = self.vae.encode(images, log_masks.flatten(0, 1).unsqueeze(1))
        return mean.unflatten(0, (-1, slots)), log_scale.unflatten(0, (-1, slots))

    def initial_state(self, batch_size: int) -> None:
        """MONet sees every frame anew: nothing is carried."""

    def step(
        self, state: None, frame: Tensor | None, decode: bool = True
    ) -> tuple[None, Decomposition | None]:
        """Decompose `frame` `(B, 3, H, W)`; no frame, no decomposition.

        Without `decode` the appearance decoder is skipped and `means` is None.
        """
        if frame is None:
            return None, None
        behind = self._behind(frame)
        log_masks = self._attend(frame, behind)
        latents, _ = self._encode(frame, log_masks)
        means = self._decode(latents, behind)[1] if decode else None
        if behind is None:
            return None, Decomposition(log_masks, means, latents)
        return None, Decomposition(log_masks, means, F.pad(latents, (0, 0, 1, 0)), 0)

    def loss(
        self, frames: Tensor, generator: torch.Generator, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Eq. 3, averaged over the batch: mixture likelihood, latent KL, mask KL.

        `progress` in [0, 1] is the share of training done; beta and gamma grow linearly from 0
        over the first `weight_warmup` of it.
        """
        config = self.config
        behind = self._behind(frames)
        log_masks = self._attend(frames, behind)
        mean, log_scale = self._encode(frames, log_masks)
        shape = mean.flatten(0, 1).shape
        noise = torch.randn(shape, generator=generator, device=mean.device).view_as(mean)
        log_decoded, means = self._decode(mean + log_scale.exp() * noise, behind)

        sigma = mean.new_full((log_masks.shape[1], 1, 1), config.sigma_foreground)
        sigma[0] = config.sigma_background
        if behind is not None:
            uncertain = (self.background.deviation**2 + config.sigma_background**2).sqrt()
            sigma = torch.cat([uncertain, sigma[1:].expand(-1, *config.frame_size)])
        squared = (frames.unsqueeze(1) - means).square().sum(2)
        log_density = -0.5 * squared / sigma**2 - 3 * (sigma.log() + 0.5 * math.log(2 * math.pi))
        reconstruction = -torch.logsumexp(log_masks + log_density, 1).sum((1, 2))
        latent_kl = 0.5 * (mean**2 + (2 * log_scale).exp() - 1 - 2 * log_scale)
        latent_kl = latent_kl.flatten(1).sum(1)
        mask_kl = (log_masks.exp() * (log_masks - log_decoded)).sum((1, 2, 3))
        ramp = min(1.0, progress / config.weight_warmup) if config.weight_warmup else 1.0
        total = reconstruction + ramp * (config.beta * latent_kl + config.gamma * mask_kl)
        return {
            "loss": total.mean(),
            "reconstruction": reconstruction.mean(),
            "latent_kl": latent_kl.mean(),
            "mask_kl": mask_kl.mean(),
        }


@register_model
def monet(**config: object) -> Monet:
    """MONet with the sizes of its paper unless told otherwise."""
    return Monet(from_mapping(MonetConfig, config))
