# SPDX-License-Identifier: Apache-2.0
"""Slot Attention (Locatello et al. 2020, arXiv 2006.15055), carried through time as in SAVi (Kipf et
al. 2022, arXiv 2111.12594).

K slots start as draws from one Gaussian and compete for the features of a frame: each feature
shares its attention among the slots (softmax over slots), each slot moves towards the weighted
mean of what it won. A spatial broadcast decoder turns each slot into an appearance and a mask
logit; the squared error of their mixture is the only objective. A predictor carries the slots to
the next frame, and further when there is none.

Shapes: frames `(B, 3, H, W)` in [0, 1], slots `(B, K, D)`, features `(B, N, C)` for N positions,
masks `(B, K, H, W)`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oc_perception.configuration import from_mapping
from oc_perception.models.registry import ModelError, register_model
from oc_perception.types import Decomposition

_EPSILON = 1e-8  # keeps the weighted mean finite for a slot that wins no feature


@dataclass(frozen=True)
class SlotAttentionConfig:
    """Sizes of the paper (App. E) for frames of 64 x 64 px.

    The first encoder convolution has stride `encoder_stride`. The decoder broadcasts slots over
    the frame divided by the product of `decoder_strides`, one (transposed) convolution each.
    `initial` slots are `gaussian` (any K at test time) or `learned`, one vector for each slot.
    `implicit` sends gradients through the last iteration only (Chang et al. 2022, arXiv
    2207.00787); off, because the paper unrolls all three.
    `predictor_heads` 0: slots stay as they are from frame to frame.
    """

    frame_size: tuple[int, int] = (64, 64)
    num_slots: int = 7
    slot_size: int = 64
    num_iterations: int = 3
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
    """A linear map of each position's distances to the four sides (App. E.1), `(H, W, C)`."""

    def __init__(self, size: tuple[int, int], channels: int) -> None:
        super().__init__()
        axes = (torch.linspace(0, 1, side) for side in size)
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        self.register_buffer("grid", torch.cat([grid, 1 - grid], -1), persistent=False)
        self.project = nn.Linear(4, channels)

    def forward(self) -> Tensor:
        return self.project(self.grid)


class Encoder(nn.Module):
    """Convolutions, position embedding and an MLP for each position: `(B, 3, H, W)` to `(B, N,
    C)`.
    """

    def __init__(self, config: SlotAttentionConfig) -> None:
        super().__init__()
        size, widths, layers = config.kernel_size, (3, *config.encoder_channels), []
        for index, (before, after) in enumerate(itertools.pairwise(widths)):
            stride = 1 if index else config.encoder_stride
            layers += [nn.Conv2d(before, after, size, stride, size // 2), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        reduced = tuple(-(-side // config.encoder_stride) for side in config.frame_size)
        self.position = PositionEmbedding(reduced, widths[-1])
        self.norm = nn.LayerNorm(widths[-1])
        self.mlp = nn.Sequential(
            nn.Linear(widths[-1], widths[-1]), nn.ReLU(), nn.Linear(widths[-1], config.slot_size)
        )

    def forward(self, frames: Tensor) -> Tensor:
        features = self.convolutions(frames).permute(0, 2, 3, 1)
        features = (features.float() + self.position().float()).flatten(1, 2)
        return self.mlp(self.norm(features)).float()


class Corrector(nn.Module):
    """Slot Attention (Algorithm 1)."""

    def __init__(self, config: SlotAttentionConfig) -> None:
        super().__init__()
        size, hidden = config.slot_size, config.mlp_hidden
        self.norm_inputs = nn.LayerNorm(size)
        self.norm_slots = nn.LayerNorm(size)
        self.keys = nn.Linear(size, size, bias=False)
        self.values = nn.Linear(size, size, bias=False)
        self.queries = nn.Linear(size, size, bias=False)
        self.gru = nn.GRUCell(size, size)
        self.mlp = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, size)
        )

    def forward(
        self, features: Tensor, slots: Tensor, num_iterations: int, implicit: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Slots `(B, K, D)` after `num_iterations`, and the last attention `(B, K, N)`, which
        sums to 1 over K.

        With `implicit` the slots before the last iteration count as constant, except that the
        initial slots still receive its gradient (straight through).
        """
        batch, count, size = slots.shape
        features = self.norm_inputs(features)
        keys, values = self.keys(features), self.values(features)
        initial = slots
        for iteration in range(num_iterations):
            if implicit and iteration == num_iterations - 1:
                slots = slots.detach() + initial - initial.detach()
            queries = self.queries(self.norm_slots(slots)) / math.sqrt(size)
            attention = torch.einsum("b k d, b n d -> b k n", queries, keys).softmax(1)
            weights = attention + _EPSILON
            weights = weights / weights.sum(2, keepdim=True)
            updates = torch.einsum("b k n, b n d -> b k d", weights, values)
            # The hidden state of the GRU is the slot itself, not its normalised copy.
            slots = self.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view(batch, count, size)
            slots = slots + self.mlp(slots)
        return slots, attention


class Decoder(nn.Module):
    """Spatial broadcast decoder, the same for every slot."""

    def __init__(self, config: SlotAttentionConfig) -> None:
        super().__init__()
        self.frame_size = config.frame_size
        factor, size = math.prod(config.decoder_strides), config.kernel_size
        self.position = PositionEmbedding(
            tuple(-(-side // factor) for side in config.frame_size), config.slot_size
        )
        widths, layers = (config.slot_size, *config.decoder_channels), []
        for (before, after), stride in zip(
            itertools.pairwise(widths), config.decoder_strides, strict=True
        ):
            if stride == 1:
                layer = nn.Conv2d(before, after, size, padding=size // 2)
            else:
                layer = nn.ConvTranspose2d(before, after, size, stride, size // 2, stride - 1)
            layers += [layer, nn.ReLU()]
        self.convolutions = nn.Sequential(*layers, nn.Conv2d(widths[-1], 4, 3, padding=1))

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Appearance `(B, K, 3, H, W)`, not limited to [0, 1], and log masks `(B, K, H, W)`."""
        height, width = self.frame_size
        tiled = slots.flatten(0, 1)[:, None, None] + self.position()
        maps = self.convolutions(tiled.permute(0, 3, 1, 2))[..., :height, :width].float()
        means, logits = maps.unflatten(0, slots.shape[:2]).split((3, 1), 2)
        return means, F.log_softmax(logits.squeeze(2), 1)


class SlotAttention(nn.Module):
    """Encoder, corrector, predictor and decoder.

    `num_slots`, `num_iterations` (first frame) and `tracking_iterations` (later frames) may be
    changed at test time. Attention and slots stay in float32 under autocast.
    """

    def __init__(self, config: SlotAttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size = config.frame_size
        self.num_slots = config.num_slots
        self.num_iterations = config.num_iterations
        self.tracking_iterations = config.tracking_iterations
        self.encoder = Encoder(config)
        self.corrector = Corrector(config)
        self.decoder = Decoder(config)
        self.predictor = None
        if config.predictor_heads:
            # Normalised last, so that slots stay bounded however long the camera is blind.
            self.predictor = nn.TransformerEncoderLayer(
                config.slot_size, config.predictor_heads, config.mlp_hidden, 0.0, batch_first=True
            )
        for module in self.modules():  # torch's default shrinks the signal in every layer
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if config.initial == "gaussian":
            self.initial_mean = nn.Parameter(torch.zeros(config.slot_size))
            self.initial_log_scale = nn.Parameter(torch.zeros(config.slot_size))
        else:
            self.initial_slots = nn.Parameter(torch.randn(config.num_slots, config.slot_size))

    def _initial(self, noise: Tensor) -> Tensor:
        """Initial slots from standard normal `noise` `(B, K, D)`, which `learned` ones ignore."""
        if self.config.initial == "gaussian":
            return self.initial_mean + self.initial_log_scale.exp() * noise
        batch, slots, _ = noise.shape
        if slots > self.config.num_slots:
            raise ModelError(
                f"num_slots {slots} is more than the {self.config.num_slots} learned slots: lower"
                " it, or train with initial: gaussian."
            )
        return self.initial_slots[:slots].expand(batch, -1, -1)

    def _correct(self, frames: Tensor, slots: Tensor, num_iterations: int) -> Tensor:
        features = self.encoder(frames)
        with torch.autocast(frames.device.type, enabled=False):
            return self.corrector(features, slots, num_iterations, self.config.implicit)[0]

    def _predict(self, slots: Tensor) -> Tensor:
        if self.predictor is None:
            return slots
        with torch.autocast(slots.device.type, enabled=False):
            return self.predictor(slots)

    def initial_state(self, batch_size: int) -> SlotState:
        """The same initial slots for every image, so that inference repeats; slot k starts alike
        for every `num_slots`, and on every device.
        """
        generator = torch.Generator().manual_seed(self.config.noise_seed)
        size = self.config.slot_size  # drawn slot by slot: one large draw depends on its size
        draws = [torch.randn(size, generator=generator) for _ in range(self.num_slots)]
        noise = torch.stack(draws).to(next(self.parameters()).device)
        return SlotState(self._initial(noise.expand(batch_size, -1, -1)).detach(), False)

    def step(
        self, state: SlotState, frame: Tensor | None, decode: bool = True
    ) -> tuple[SlotState, Decomposition | None]:
        """Correct the slots by `frame` `(B, 3, H, W)`, decompose it, predict the next slots.

        Without a frame the slots are only predicted, once there was a first one. Without `decode`
        `means` is None.
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
        """Squared error summed over pixels and channels, averaged over images (and over time,
        for sequences `(B, T, 3, H, W)`, through which the gradient flows).

        A sum, as in SAVi: a mean would give gradients far below any common clipping norm.
        `progress` is unused: the objective does not change while training.
        """
        sequence = frames if frames.dim() == 5 else frames.unsqueeze(1)
        shape = (len(frames), self.num_slots, self.config.slot_size)
        slots = self._initial(torch.randn(shape, generator=generator, device=frames.device))
        errors, iterations = [], self.num_iterations
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
