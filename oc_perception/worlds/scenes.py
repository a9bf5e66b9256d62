# SPDX-License-Identifier: Apache-2.0
"""What a procedural world draws: pictures, who is where in them, and what each object is like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Scenes:
    """A batch of independent scenes with up to N objects; object n has the label n + 1.

    `images` `(B, 3, H, W)` in [0, 1]; `labels` `(B, H, W)` int64, 0 the background; `present`
    `(B, N)` bool, whether the object exists (it may be hidden by others). `factors`: `(B, N)`
    int64 for a category, `(B, N, D)` float for a quantity; undefined where not present.
    """

    images: Tensor
    labels: Tensor
    present: Tensor
    factors: Mapping[str, Tensor] = field(default_factory=dict)
