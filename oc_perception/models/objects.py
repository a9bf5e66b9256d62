# SPDX-License-Identifier: Apache-2.0
"""Objects that are drawn into pictures: what AIR and SQAIR share.

Rows R are B images times K particles. Slots that are absent take part in every computation and
count for nothing, so that shapes never change.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from oc_perception.models.windows import paint, read

_DECODER_SCALE = 0.25  # a picture that begins grey is never left: objects would all be dropped


class Terms(NamedTuple):
    """Log densities `(R,)`: of the latents under the model and the posterior, and what of the
    latter is that of presences.
    """

    log_p: Tensor
    log_q: Tensor
    log_q_presence: Tensor

    def __add__(self, other: Terms) -> Terms:
        return Terms(*(a + b for a, b in zip(self, other, strict=True)))


class Found(NamedTuple):
    """Objects `(R, N, ...)`: `presence` bool, `probability` before it was drawn."""

    what: Tensor
    where: Tensor
    presence: Tensor
    probability: Tensor


class Noise(NamedTuple):
    """What objects `(R, N, ...)` are drawn with, None for the most probable: normal deviates of
    `what` and `where`, uniform ones of their presence.

    It is drawn before anything is computed, so that the rest is a graph of tensors.
    """

    what: Tensor | None = None
    where: Tensor | None = None
    presence: Tensor | None = None

    def of(self, index: object) -> Noise:
        """Of some of the objects."""
        return Noise(*(None if part is None else part[:, index] for part in self))


class VideoOutput(NamedTuple):
    """Objects `(B, K, N, ...)` of each of K particles.

    `boxes` (centre x, y, width, height in image widths), `presence` bool, `probability` of it,
    `ids` from 1 (0: absent), `discovered` bool (new in this frame); `log_weights` `(B, K)` of the
    particles, normalised, after this frame, which changed them by `log_increment` `(B, K)`.
    """

    boxes: Tensor
    presence: Tensor
    probability: Tensor
    ids: Tensor
    discovered: Tensor
    log_weights: Tensor
    log_increment: Tensor


class Picture(nn.Module):
    """Images to codes, glimpses to codes, and objects back to images: perceptrons, or the
    convolutions of SQAIR's paper (appendix B), which see images and glimpses with the same eyes.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        glimpse_size: int,
        hidden_size: int,
        what_size: int,
        sigma: float,
        convolutional: bool = False,
    ) -> None:
        super().__init__()
        self.frame_size, self.glimpse_size, self.sigma = frame_size, glimpse_size, sigma
        self.features, layers = nn.Flatten(), 2
        if convolutional:
            self.features, layers = _eyes(), 1
            self.decode_glimpse = _painter(what_size, glimpse_size)
        else:
            sizes = (hidden_size, hidden_size, glimpse_size**2)
            self.decode_glimpse = perceptron(what_size, *sizes)
        with torch.no_grad():
            image, glimpse = (
                self.features(torch.zeros(1, 1, *size)).shape[1]
                for size in (frame_size, (glimpse_size, glimpse_size))
            )
        self.encode_image = perceptron(image, *[hidden_size] * layers)
        self.encode_glimpse = perceptron(glimpse, *[hidden_size] * layers)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_DECODER_SCALE)))

    def encode(self, images: Tensor) -> Tensor:
        """`(B, D)` of images `(B, H, W)`."""
        return functional.elu(self.encode_image(self.features(images.unsqueeze(1))))

    def look(self, images: Tensor, where: Tensor, mask: Tensor | None = None) -> Tensor:
        """Codes `(R, D)` of what windows `(R, 4)` show of images, seen through a mask."""
        glimpses = read(images, where, self.glimpse_size)
        if mask is not None:
            glimpses = glimpses * mask.view_as(glimpses)
        return functional.elu(self.encode_glimpse(self.features(glimpses.unsqueeze(1))))

    def draw(self, found: Found) -> Tensor:
        """The picture `(R, H, W)` of the objects that are present."""
        glimpses = self.decode_glimpse(found.what.flatten(0, 1)) * self.log_scale.exp()
        size = (self.glimpse_size, self.glimpse_size)
        glimpses = glimpses.view(*found.presence.shape, *size)
        glimpses = torch.where(found.presence[..., None, None], glimpses, 0)
        return paint(glimpses, found.where, self.frame_size)

    def log_likelihood(self, images: Tensor, found: Found) -> Tensor:
        """`(R,)` of images `(B, H, W)`, in nats per image."""
        drawn = self.draw(found).view(len(images), -1, *self.frame_size)
        squared = (images.unsqueeze(1) - drawn).square().sum((2, 3)).flatten()
        pixels = math.prod(self.frame_size)
        return -0.5 * squared / self.sigma**2 - pixels * math.log(
            self.sigma * math.sqrt(2 * math.pi)
        )


def _eyes() -> nn.Sequential:
    """Pictures `(R, 1, h, w)` to features `(R, D)`."""
    layers: list[nn.Module] = []
    before = 1
    for channels, stride in ((16, 2), (32, 2), (32, 1), (64, 1)):
        layers += [nn.Conv2d(before, channels, 3, stride, 1), nn.ELU()]
        before = channels
    return nn.Sequential(*layers, nn.Flatten())


def _painter(what_size: int, glimpse_size: int) -> nn.Sequential:
    """Appearances `(R, A)` to glimpses `(R, 1, size, size)`, by sub-pixel convolutions."""
    small = glimpse_size // 4
    return nn.Sequential(
        perceptron(what_size, 256, 32 * small**2), nn.ELU(),
        nn.Unflatten(1, (32, small, small)),
        nn.Conv2d(32, 32, 3, padding=1), nn.ELU(),
        nn.Conv2d(32, 4 * 64, 3, padding=1), nn.PixelShuffle(2), nn.ELU(),
        nn.Conv2d(64, 4 * 64, 3, padding=1), nn.PixelShuffle(2), nn.ELU(),
        nn.Conv2d(64, 1, 3, padding=1),
    )  # fmt: skip


def perceptron(inputs: int, *sizes: int, gain: float = 1.0) -> nn.Sequential:
    """Linear layers with ELUs in between; the last one begins at `gain` times the usual weights,
    without bias.
    """
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [nn.Linear(inputs, size), nn.ELU()]
        inputs = size
    last = layers[-2]
    with torch.no_grad():
        last.weight.mul_(gain)
        last.bias.zero_()
    return nn.Sequential(*layers[:-1])


def draw_noise(rows: int, slots: int, what_size: int, generator: torch.Generator | None) -> Noise:
    """For N slots in R rows; without `generator` there is none."""
    if generator is None:
        return Noise()
    device = generator.device
    normal = torch.randn(rows, slots, what_size + 4, generator=generator, device=device)
    uniform = torch.rand(rows, slots, generator=generator, device=device)
    return Noise(normal[..., 4:], normal[..., :4], uniform)


def draw(mean: Tensor, std: Tensor, noise: Tensor | None, pathwise: bool = True) -> Tensor:
    """A sample of a normal distribution, its mean without `noise`; gradients pass through it if
    `pathwise`.
    """
    sample = mean if noise is None else mean + std * noise
    return sample if pathwise else sample.detach()


def draw_presence(
    logit: Tensor,
    possible: Tensor,
    noise: Tensor | None,
    cover: Tensor | None = None,
    given: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Presence `(...)` bool where `possible`, and the log-probability of what was drawn, or was
    `given`; in `cover` rows a coin is tossed.
    """
    if given is not None:
        drawn = given
    elif noise is None:
        drawn = logit > 0
    else:
        chance = logit.sigmoid()
        if cover is not None:
            chance = torch.where(cover, 0.5, chance)
        drawn = noise < chance
    log_q = functional.logsigmoid(torch.where(drawn, logit, -logit))
    return drawn & possible, torch.where(possible, log_q, 0)


def log_normal(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density `(...)` of values `(..., D)`."""
    density = -0.5 * ((value - mean) / std).square() - std.log()
    return density.sum(-1) - 0.5 * math.log(2 * math.pi) * value.shape[-1]


def numbered(new: Tensor, next_id: Tensor) -> tuple[Tensor, Tensor]:
    """Ids `(B, K, N)` for `new` objects from `next_id` `(B, K)` on, 0 for others; the next id."""
    ids = torch.where(new, next_id[..., None] + new.cumsum(-1) - 1, 0)
    return ids, next_id + new.sum(-1)


def bounds(log_likelihood: Tensor, terms: Terms) -> dict[str, Tensor]:
    """`(B,)` each, from log-likelihoods `(B, K)` and densities `(R,)`."""
    divergence = (terms.log_q - terms.log_p).view_as(log_likelihood)
    log_weights = log_likelihood - divergence
    return {
        "log_evidence": log_weights.logsumexp(1) - math.log(log_weights.shape[1]),
        "elbo": log_weights.mean(1),
        "kl": divergence.mean(1),
        "log_likelihood": log_likelihood.mean(1),
    }


def follow(
    model: nn.Module, images: Tensor, particles: int, generator: torch.Generator | None
) -> VideoOutput:
    """Outputs `(B, T, ...)` of a video model for all frames of `images` `(B, T, 3, H, W)`."""
    state = model.initial_state(len(images), particles)
    outputs = []
    for frame in images.unbind(1):
        state, output = model.step(state, frame, generator)
        outputs.append(output)
    return VideoOutput(*(torch.stack(parts, 1) for parts in zip(*outputs, strict=True)))
