# SPDX-License-Identifier: Apache-2.0
"""A fixed spatial partition of the frame: the trivial baseline of every segmentation table.

It looks at the image only to give each cell its mean colour. With `delay_ms` it takes a known
time, which makes it the stand-in model of the latency benchmark.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oc_perception.configuration import from_mapping
from oc_perception.models.registry import register_model
from oc_perception.types import Decomposition

_LOG_ZERO = -30.0


@dataclass(frozen=True)
class GridConfig:
    """Cells of the partition and the least time one step takes."""

    rows: int = 2
    columns: int = 3
    frame_size: tuple[int, int] = (48, 64)
    delay_ms: float = 0.0

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, *self.frame_size) < 1 or self.delay_ms < 0:
            raise ValueError(
                "rows, columns and frame_size must be positive, delay_ms not negative"
            )


class Grid(nn.Module):
    """Masks depend on the position only; embeddings `(B, K, 3)` are mean colours."""

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        self.config = config
        self.frame_size = config.frame_size
        self.num_slots = config.rows * config.columns
        height, width = config.frame_size
        row = torch.arange(height) * config.rows // height
        column = torch.arange(width) * config.columns // width
        labels = row[:, None] * config.columns + column
        masks = torch.stack([labels == slot for slot in range(self.num_slots)]).float()
        self.register_buffer("masks", masks, persistent=False)

    def initial_state(self, batch_size: int) -> None:
        """Nothing is carried from frame to frame."""

    def step(
        self, state: None, frame: Tensor | None, decode: bool = True
    ) -> tuple[None, Decomposition | None]:
        """Partition `frame` `(B, 3, H, W)`; no frame, no decomposition."""
        if frame is None:
            return None, None
        start = time.perf_counter()
        weights = self.masks / self.masks.sum((1, 2), keepdim=True).clamp(min=1)
        colours = torch.einsum("b c h w, k h w -> b k c", frame, weights)
        height, width = self.frame_size
        result = Decomposition(
            log_masks=torch.where(self.masks > 0, 0.0, _LOG_ZERO).expand(len(frame), -1, -1, -1),
            means=colours[..., None, None].expand(-1, -1, -1, height, width) if decode else None,
            embeddings=colours,
        )
        left_s = self.config.delay_ms / 1000 - (time.perf_counter() - start)
        if left_s > 0:
            time.sleep(left_s)
        return None, result


@register_model
def grid(**config: object) -> Grid:
    """A fixed partition into rows x columns cells."""
    return Grid(from_mapping(GridConfig, config))
