# SPDX-License-Identifier: Apache-2.0
"""What a world draws: pictures, who is where in them, and what each object is like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scenes:
    """A batch of independent scenes with up to N objects; object n has the label n + 1.

    `images` `(B, 3, H, W)` in [0, 1]; `labels` `(B, H, W)` int64, 0 the background, None where
    nobody knows; `present` `(B, N)` bool, whether the object exists (it may be hidden by others).
    `factors`: `(B, N)` int64 for a category, `(B, N, D)` float for a quantity; undefined where not
    present.
    """

    images: Tensor
    labels: Tensor | None
    present: Tensor
    factors: Mapping[str, Tensor] = field(default_factory=dict)


class World:
    """A batch of scenes on `device`, drawn anew by each `sample(height, width)`; all randomness
    comes from one seeded generator. `Config` is the class of its settings.
    """

    Config: ClassVar[type]

    def __init__(
        self,
        config: Any = None,
        batch_size: int = 1,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.config = self.Config() if config is None else config
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._prepare()

    def _prepare(self) -> None:
        """What a world sets up once."""

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand(*shape, generator=self.generator, device=self.device)
        return low + (high - low) * draw

    def _integers(self, count: int, *shape: int) -> Tensor:
        """Whole numbers below `count`."""
        return torch.randint(count, shape, generator=self.generator, device=self.device)
