# SPDX-License-Identifier: Apache-2.0
"""Inference of the discovery models as papers and tutorials write it, on the weights of ours: a
yardstick of speed, and an oracle.

Plain eager PyTorch in the default memory layout. What it does without:

- MONet: channels in front, the scope concatenated to the image at every step, one pass of the
  component VAE per slot.
- IODINE: latents are tiled over the picture, gradients come from autograd (one backward pass to
  means, logits and posterior, no double derivatives), leave-one-out is a loop over slots, and
  every frame is decoded before and after its refinement.
- Slot Attention: Algorithm 1 and one tiled latent per slot, in a batch.

All batch what their public implementations batch, and compute no gradient by the weights.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oc_perception.models.iodine import Iodine
from oc_perception.models.monet import Monet
from oc_perception.models.slot_attention import SlotAttention, SlotState
from oc_perception.types import Decomposition

_LOG_MASK_FLOOR = -20.0


class TextbookMonet:
    """MONet (Burgess et al. 2019, section 2 and App. B), `step` as that of `model`."""

    def __init__(self, model: Monet) -> None:
        self._model = _plain(model)

    def initial_state(self, batch_size: int) -> None:
        """Nothing is carried from frame to frame."""

    @torch.no_grad()
    def step(self, state: None, frame: Tensor, decode: bool = True) -> tuple[None, Decomposition]:
        """Masks and latent means of `frame` `(B, 3, H, W)`, and `means` if `decode`."""
        model = self._model
        log_scope, log_masks = torch.zeros_like(frame[:, :1]), []
        for _ in range(model.num_slots - 1):
            logit = self._attention(torch.cat([frame, log_scope.clamp(min=_LOG_MASK_FLOOR)], 1))
            log_masks.append(log_scope + F.logsigmoid(logit))
            log_scope = log_scope + F.logsigmoid(-logit)
        log_masks.append(log_scope)
        latents, means = [], []
        for log_mask in log_masks:
            image = torch.cat([frame, log_mask.clamp(min=_LOG_MASK_FLOOR)], 1)
            latents.append(model.vae.encoder(image).chunk(2, 1)[0])
            if decode:
                grid = model.vae.coordinates
                output = model.vae.decoder(_tile(latents[-1], grid))
                means.append(output[:, :3].sigmoid())
        found = torch.stack(means, 1) if decode else None
        return None, Decomposition(torch.cat(log_masks, 1), found, torch.stack(latents, 1))

    def _attention(self, x: Tensor) -> Tensor:
        unet, skips = self._model.attention, []
        for index, block in enumerate(unet.down):
            if index:
                x = F.interpolate(x, scale_factor=0.5, mode="nearest")
            x = _normalized(block, x)
            skips.append(x)
        x = unet.bottleneck(x.flatten(1)).view_as(x)
        for index, block in enumerate(unet.up):
            if index:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = _normalized(block, torch.cat([x, skips[-1 - index]], 1))
        return unet.head(x)


def _normalized(block: nn.Sequential, x: Tensor) -> Tensor:
    """Convolution, instance norm and ReLU."""
    convolution, norm, _ = block
    return F.instance_norm(convolution(x), None, None, norm.weight, norm.bias, eps=norm.eps).relu()


def _tile(z: Tensor, grid: Tensor) -> Tensor:
    """`(N, D + C, H, W)`: `z` `(N, D)` at every position, stacked on `grid` `(C, H, W)`."""
    tiled = z[:, :, None, None].expand(-1, -1, *grid.shape[1:])
    return torch.cat([tiled, grid.expand(len(z), -1, -1, -1)], 1)


class TextbookState(NamedTuple):
    """Posterior `(B, K, 2 D)`, LSTM state, frames so far, and the noise of the last draw."""

    posterior: Tensor
    memory: tuple[Tensor, Tensor] | None
    frames: int
    eps: Tensor | None


class TextbookIodine:
    """IODINE (Greff et al. 2019, section 3 and App. A.1, C), `step` as that of `model` where no
    scene is cut. Noise is that of `model`: `(1, K, D)` drawn in turn by a generator that the
    number of the frame seeds.
    """

    def __init__(self, model: Iodine) -> None:
        self._model = _plain(model)

    def initial_state(self, batch_size: int) -> TextbookState:
        """Every slot at the learned first posterior."""
        posterior = self._model.first_posterior.detach()
        return TextbookState(
            posterior.expand(batch_size, self._model.num_slots, -1), None, 0, None
        )

    @torch.inference_mode(False)
    def step(
        self, state: TextbookState, frame: Tensor, decode: bool = True
    ) -> tuple[TextbookState, Decomposition]:
        """Refine on `frame` `(B, 3, H, W)`, then decode."""
        model, (posterior, memory, frames, eps) = self._model, state
        count = model.config.tracking_iterations if frames else model.num_iterations
        generator = torch.Generator().manual_seed(frames)
        size, device = (1, model.num_slots, model.config.latent_size), frame.device
        if eps is None:
            eps = torch.randn(size, generator=generator).to(device)
        frame = frame.clone()  # inference tensors cannot be saved for the gradient
        for _ in range(count):
            posterior, memory = self._refine(frame, posterior, memory, eps)
            eps = torch.randn(size, generator=generator).to(device)
        with torch.no_grad():
            means, logits = self._decode(posterior, eps)
            log_masks = logits.squeeze(2).log_softmax(1)
        mean = posterior.chunk(2, -1)[0]
        result = Decomposition(log_masks, means if decode else None, mean)
        return TextbookState(posterior, memory, frames + 1, eps), result

    def _decode(self, posterior: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Means `(B, K, 3, H, W)` and mask logits `(B, K, 1, H, W)`."""
        decoder = self._model.decoder
        mean, raw = posterior.chunk(2, -1)
        z = mean + F.softplus(raw).sqrt() * eps
        x = _tile(z.flatten(0, 1), decoder.grid)
        for layer in decoder.layers[:-1]:
            x = F.elu(layer(x))
        x = decoder.layers[-1](x).unflatten(0, z.shape[:2])
        return x[:, :, :3], x[:, :, 3:]

    @torch.enable_grad()
    def _refine(
        self,
        frame: Tensor,
        posterior: Tensor,
        memory: tuple[Tensor, Tensor] | None,
        eps: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The posterior and the LSTM state after one iteration."""
        config, refinement = self._model.config, self._model.refinement
        posterior = posterior.detach().requires_grad_()
        means, logits = self._decode(posterior, eps)
        image = frame.unsqueeze(1)
        log_masks = logits.log_softmax(1)
        log_density = self._log_density(image, means)
        joint = log_masks + log_density
        log_mixture = joint.logsumexp(1, keepdim=True)
        log_pixel = log_mixture
        if config.likelihood == "composite":
            composite = (log_masks.exp() * means).sum(1, keepdim=True)
            log_pixel = self._log_density(image, composite)
        mean, raw = posterior.chunk(2, -1)
        variance = F.softplus(raw)
        kl = 0.5 * (variance + mean**2 - 1 - variance.log()).sum()
        d_means, d_logits, gradient = torch.autograd.grad(
            kl - log_pixel.sum(), (means, logits, posterior)
        )
        with torch.no_grad():
            gains = []
            for slot in range(joint.shape[1]):
                others = [index for index in range(joint.shape[1]) if index != slot]
                if not others:
                    gains.append(torch.zeros_like(log_mixture[:, 0]))
                    continue
                left = (1 - log_masks[:, slot].exp()).clamp(min=1e-6).log()
                without = joint[:, others].logsumexp(1) - left
                gains.append(log_mixture[:, 0] - without)
            pixel = torch.cat(
                [d_logits, log_mixture.expand_as(d_logits), torch.stack(gains, 1)], 2
            )
            maps = [
                image.expand_as(means),
                means,
                log_masks.exp(),
                logits,
                log_density.softmax(1),
                refinement.colour_norm(d_means.flatten(0, 1)).view_as(d_means),
                refinement.pixel_norm(pixel.flatten(0, 1)).view_as(pixel),
                refinement.grid.expand(*means.shape[:2], -1, -1, -1),
            ]
            x = torch.cat(maps, 2).flatten(0, 1)
            features = refinement.mlp(refinement.convolutions(x).mean((2, 3)))
            flat = posterior.flatten(0, 1)
            gradient = refinement.gradient_norm(gradient.flatten(0, 1))
            hidden = torch.cat([features, flat, gradient], 1)
            if refinement.lstm is not None:
                memory = refinement.lstm(hidden, memory)
                hidden = memory[0]
            return posterior + refinement.head(hidden).view_as(posterior), memory

    def _log_density(self, image: Tensor, means: Tensor) -> Tensor:
        """Of all three channels, `(B, K, 1, H, W)`."""
        sigma = float(self._model.sigma)
        if self._model.config.density == "gaussian":
            normal = torch.distributions.Normal(means, sigma, validate_args=False)
            log_density = normal.log_prob(image)
        else:
            scaled = (image - means) / sigma
            log_density = -scaled - 2 * F.softplus(-scaled) - math.log(sigma)
        return log_density.sum(2, keepdim=True)


class TextbookSlotAttention:
    """Slot Attention (Locatello et al. 2020, Algorithm 1 and App. E), `step` as that of `model`
    without a predictor.
    """

    def __init__(self, model: SlotAttention) -> None:
        self._model = _plain(model)

    def initial_state(self, batch_size: int) -> SlotState:
        """The initial slots of the model."""
        return self._model.initial_state(batch_size)

    @torch.no_grad()
    def step(
        self, state: SlotState, frame: Tensor, decode: bool = True
    ) -> tuple[SlotState, Decomposition]:
        """Masks and slots of `frame` `(B, 3, H, W)`, and `means` if `decode`."""
        model, (slots, observed) = self._model, state
        encoder, corrector, decoder = model.encoder, model.corrector, model.decoder
        features = encoder.convolutions(frame)
        features = features + encoder.position().permute(2, 0, 1)
        features = encoder.mlp(encoder.norm(features.flatten(2).transpose(1, 2)))
        features = corrector.norm_inputs(features)
        keys, values = corrector.keys(features), corrector.values(features)
        batch, count, size = slots.shape
        for _ in range(model.tracking_iterations if observed else model.num_iterations):
            queries = corrector.queries(corrector.norm_slots(slots))
            attention = (keys @ queries.transpose(1, 2) / math.sqrt(size)).softmax(2) + 1e-8
            attention = attention / attention.sum(1, keepdim=True)
            updates = attention.transpose(1, 2) @ values
            slots = corrector.gru(updates.view(-1, size), slots.reshape(-1, size))
            slots = slots.view(batch, count, size)
            slots = slots + corrector.mlp(slots)
        position = decoder.position().permute(2, 0, 1)
        tiled = slots.view(-1, size, 1, 1).expand(-1, -1, *position.shape[1:]) + position
        height, width = model.frame_size
        output = decoder.convolutions(tiled)[..., :height, :width]
        output = output.unflatten(0, (batch, count))
        means = output[:, :, :3].clamp(0, 1) if decode else None
        return SlotState(slots, True), Decomposition(output[:, :, 3].log_softmax(1), means, slots)


Textbook = TextbookMonet | TextbookIodine | TextbookSlotAttention
_IMPLEMENTATIONS = {
    Monet: TextbookMonet,
    Iodine: TextbookIodine,
    SlotAttention: TextbookSlotAttention,
}


def textbook(model: nn.Module) -> Textbook:
    """The plain implementation of `model` on a copy of its weights. Raises KeyError if there is
    none.
    """
    return _IMPLEMENTATIONS[type(model)](model)


def _plain(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)
