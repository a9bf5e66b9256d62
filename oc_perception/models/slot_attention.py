# SPDX-License-Identifier: Apache-2.0
"""Slot Attention (Locatello et al. 2020, arXiv 2006.15055), through time as in SAVi (Kipf et al.
2022, arXiv 2111.12594).

K slots start as draws from one Gaussian and compete for the features of a frame: each feature
shares its attention among the slots, each slot moves towards the weighted mean of what it won. A
spatial broadcast decoder turns a slot into an appearance and a mask logit; the squared error of
the mixture is the only objective. A predictor carries the slots on, also when no frame comes.

Shapes: frames `(B, 3, H, W)` in [0, 1], slots `(B, K, D)`, features `(B, N, D)` for N positions,
masks `(B, K, H, W)`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from oc_perception.configuration import from_mapping
from oc_perception.models.registry import ModelError, register_model
from oc_perception.types import Decomposition


@dataclass(frozen=True)
class SlotAttentionConfig:
    """Sizes of the paper (App. E) for frames of 64 x 64 px.

    `encoder_stride` is that of the first convolution. The decoder broadcasts slots over the frame
    divided by the product of `decoder_strides`, then undoes one stride in each layer.
    Training takes `training_iterations` (0: `num_iterations`); more help afterwards.
    `initial` slots are `gaussian` (any K at test time) or `learned`, one vector for each slot.
    `implicit` sends gradients through the last iteration only (Chang et al. 2022, arXiv
    2207.00787); off, because the paper unrolls all. `predictor_heads` 0: slots do not change
    between frames.
    """

    frame_size: tuple[int, int] = (64, 64)
    num_slots: int = 7
    slot_size: int = 64
    num_iterations: int = 3
    training_iterations: int = 0
    tracking_iterations: int = 1
    mlp_hidden: int = 128
    kernel_size: int = 5
    encoder_channels: tuple[int, ...] = (64, 64, 64, 64)
    encoder_stride: int = 1
    decoder_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_strides: tuple[int, ...] = (2, 2, 2, 1)
    predictor_heads: int = 0
    initial: str = "gaussian"
    implicit: bool = False
    noise_seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_slots, self.num_iterations, self.tracking_iterations) < 1:
            raise ValueError("num_slots, num_iterations, tracking_iterations must be at least 1")
        if len(self.decoder_channels) != len(self.decoder_strides):
            raise ValueError("decoder_channels and decoder_strides must have the same length")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {self.kernel_size}")
        if self.initial not in ("gaussian", "learned"):
            raise ValueError(f"initial must be gaussian or learned, not {self.initial!r}")
        if self.predictor_heads and self.slot_size % self.predictor_heads:
            raise ValueError("slot_size must be a multiple of predictor_heads")


class SlotState(NamedTuple):
    """Slots `(B, K, D)` expected in the next frame, and whether any frame was seen yet."""

    slots: Tensor
    observed: bool


class PositionEmbedding(nn.Module):
    """A linear map of the distances to the four sides, for a frame reduced by `factor`."""

    def __init__(self, frame_size: tuple[int, int], factor: int, channels: int) -> None:
        super().__init__()
        axes = (torch.linspace(0, 1, math.ceil(side / factor)) for side in frame_size)
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        self.register_buffer("grid", torch.cat([grid, 1 - grid], -1), persistent=False)
        self.project = nn.Linear(4, channels)

    def forward(self) -> Tensor:
        return self.project(self.grid)


class Encoder(nn.Module):
    """Frames `(B, 3, H, W)` to features `(B, N, D)`."""

    def __init__(self, config: SlotAttentionConfig) -> None:
        super().__init__()
        kernel, stride, size = config.kernel_size, config.encoder_stride, config.slot_size
        widths, layers = (3, *config.encoder_channels), []
        for index, shape in enumerate(itertools.pairwise(widths)):
            step = 1 if index else stride
            layers += [nn.Conv2d(*shape, kernel, step, kernel // 2), nn.ReLU()]
        self.convolutions, last = nn.Sequential(*layers), widths[-1]
        self.position = PositionEmbedding(config.frame_size, stride, last)
        self.norm = nn.LayerNorm(last)
        self.mlp = nn.Sequential(nn.Linear(last, last), nn.ReLU(), nn.Linear(last, size))

    def forward(self, frames: Tensor) -> Tensor:
        features = self.convolutions(frames).permute(0, 2, 3, 1).float() + self.position().float()
        return self.mlp(self.norm(features.flatten(1, 2))).float()


class Corrector(nn.Module):
    """Slot Attention (Algorithm 1)."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.norm_inputs, self.norm_slots = nn.LayerNorm(size), nn.LayerNorm(size)
        projections = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.keys, self.values, self.queries = projections
        self.gru = nn.GRUCell(size, size)
        self.mlp = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, size)
        )

    def forward(
        self, features: Tensor, slots: Tensor, num_iterations: int, implicit: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Slots `(B, K, D)` after `num_iterations`, and the last attention `(B, K, N)`, which
        sums to 1 over K. If `implicit`, only the last iteration passes gradients, straight
        through to the initial slots.
        """
        features, initial = self.norm_inputs(features), slots
        keys, values = self.keys(features), self.values(features)
        for iteration in range(num_iterations):
            if implicit and iteration == num_iterations - 1:
                slots = slots.detach() + initial - initial.detach()
            queries = self.queries(self.norm_slots(slots)) / math.sqrt(slots.shape[2])
            attention = torch.einsum("b k d, b n d -> b k n", queries, keys).softmax(1)
            weights = attention / attention.sum(2, keepdim=True).clamp(min=1e-8)
            updates = torch.einsum("b k n, b n d -> b k d", weights, values)
            # The hidden state of the GRU is the slot itself, not its normalised copy.
            slots = self.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + self.mlp(slots)
        return slots, attention


class Decoder(nn.Module):
    """Spatial broadcast decoder, the same for every slot."""

    def __init__(self, config: SlotAttentionConfig) -> None:
        super().__init__()
        self.frame_size, factor = config.frame_size, math.prod(config.decoder_strides)
        self.position = PositionEmbedding(config.frame_size, factor, config.slot_size)
        kernel, widths = config.kernel_size, (config.slot_size, *config.decoder_channels)
        layers = []
        for shape, step in zip(itertools.pairwise(widths), config.decoder_strides, strict=True):
            shape = (*shape, kernel, step, kernel // 2)
            layer = nn.Conv2d(*shape) if step == 1 else nn.ConvTranspose2d(*shape, step - 1)
            layers += [layer, nn.ReLU()]
        self.convolutions = nn.Sequential(*layers, nn.Conv2d(widths[-1], 4, 3, padding=1))

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Appearance `(B, K, 3, H, W)`, not limited to [0, 1], and log masks `(B, K, H, W)`."""
        height, width = self.frame_size
        tiled = slots.flatten(0, 1)[:, None, None] + self.position()
        maps = self.convolutions(tiled.permute(0, 3, 1, 2))[..., :height, :width].float()
        means, logits = maps.unflatten(0, slots.shape[:2]).split((3, 1), 2)
        return means, logits.squeeze(2).log_softmax(1)


class SlotAttention(nn.Module):
    """`num_slots`, `num_iterations` (first frame) and `tracking_iterations` (later frames) may be
    changed at test time. Attention and slots stay in float32 under autocast.
    """

    def __init__(self, config: SlotAttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size, self.num_slots = config.frame_size, config.num_slots
        self.num_iterations = config.num_iterations
        self.tracking_iterations = config.tracking_iterations
        size, hidden, heads = config.slot_size, config.mlp_hidden, config.predictor_heads
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.corrector = Corrector(size, hidden)
        self.predictor = None
        if heads:  # normalised last, so that slots stay bounded however long the camera is blind
            self.predictor = nn.TransformerEncoderLayer(size, heads, hidden, 0, batch_first=True)
        for module in self.modules():  # torch's default shrinks the signal in every layer
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if config.initial == "gaussian":
            self.initial_mean = nn.Parameter(torch.zeros(size))
            self.initial_log_scale = nn.Parameter(torch.zeros(size))
        else:
            self.initial_slots = nn.Parameter(torch.randn(config.num_slots, size))

    def _initial(self, noise: Tensor) -> Tensor:
        """Initial slots from standard normal `noise` `(B, K, D)`, which `learned` ones ignore."""
        if self.config.initial == "gaussian":
            return self.initial_mean + self.initial_log_scale.exp() * noise
        if noise.shape[1] > len(self.initial_slots):
            raise ModelError(f"num_slots: only {len(self.initial_slots)} were learned, lower it")
        return self.initial_slots[: noise.shape[1]].expand(len(noise), -1, -1)

    def _correct(self, frames: Tensor, slots: Tensor, num_iterations: int) -> Tensor:
        features = self.encoder(frames)
        with torch.autocast(frames.device.type, enabled=False):
            return self.corrector(features, slots, num_iterations, self.config.implicit)[0]

    def _predict(self, slots: Tensor) -> Tensor:
        with torch.autocast(slots.device.type, enabled=False):
            return self.predictor(slots) if self.predictor else slots

    def decode(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Log masks `(B, K, H, W)` and means `(B, K, 3, H, W)`, limited to [0, 1], of slots
        `(B, K, D)`.
        """
        means, log_masks = self.decoder(slots)
        return log_masks, means.clamp(0, 1)

    def initial_state(self, batch_size: int) -> SlotState:
        """The same slots for every image; slot k starts alike for any K and on any device."""
        generator = torch.Generator().manual_seed(self.config.noise_seed)
        size = self.config.slot_size  # drawn slot by slot: one large draw depends on its size
        draws = [torch.randn(size, generator=generator) for _ in range(self.num_slots)]
        noise = torch.stack(draws).to(self.decoder.position.grid.device)
        return SlotState(self._initial(noise.expand(batch_size, -1, -1)).detach(), False)

    def step(
        self, state: SlotState, frame: Tensor | None, decode: bool = True
    ) -> tuple[SlotState, Decomposition | None]:
        """Correct the slots by `frame` `(B, 3, H, W)`, decompose it, predict the next slots.
        Without a frame only predict, once there was a first one; without `decode` no `means`.
        """
        slots, observed = state
        if frame is None:
            return SlotState(self._predict(slots).detach() if observed else slots, observed), None
        iterations = self.tracking_iterations if observed else self.num_iterations
        slots = self._correct(frame, slots, iterations)
        means, log_masks = self.decoder(slots)
        result = Decomposition(log_masks, means.clamp(0, 1) if decode else None, slots)
        return SlotState(self._predict(slots).detach(), True), result

    def loss(
        self, frames: Tensor, generator: torch.Generator, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Squared error summed over pixels and channels, averaged over images, and over the time
        of sequences `(B, T, 3, H, W)`. A sum as in SAVi: clipping then scales nearly every
        gradient, so that the large first ones do not fill Adam's averages.
        """
        sequence = frames if frames.dim() == 5 else frames.unsqueeze(1)
        shape = (len(frames), self.num_slots, self.config.slot_size)
        slots = self._initial(torch.randn(shape, generator=generator, device=frames.device))
        errors, iterations = [], self.config.training_iterations or self.num_iterations
        for frame in sequence.unbind(1):
            slots = self._correct(frame, slots, iterations)
            means, log_masks = self.decoder(slots)
            composite = (log_masks.exp().unsqueeze(2) * means).sum(1)
            errors.append((frame - composite).square().sum((1, 2, 3)).mean())
            slots, iterations = self._predict(slots), self.tracking_iterations
        return {"loss": torch.stack(errors).mean()}


@register_model
def slot_attention(**config: object) -> SlotAttention:
    """Slot Attention with the sizes of its paper unless told otherwise."""
    return SlotAttention(from_mapping(SlotAttentionConfig, config))
