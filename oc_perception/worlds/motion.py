# SPDX-License-Identifier: Apache-2.0
"""Objects on their way: what a world that moves hands to motion models and trackers.

Lengths are image widths (x right, y down; the view is `[0, 1]` wide), velocities image widths per
second.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class Motion:
    """B sequences of T frames with up to N objects, `dt_s` seconds apart.

    `positions`, `velocities` `(B, T, N, 2)`; `sizes` `(B, T, N, 2)` width and height of the box;
    `features` `(B, T, N, F)` what a detector sees of an object's look, F may be 0; `present`
    `(B, T, N)` bool: in the world; `visible` `(B, T, N)` bool: present, in view and at most half
    hidden. Undefined but finite where not present.
    """

    positions: Tensor
    velocities: Tensor
    sizes: Tensor
    features: Tensor
    present: Tensor
    visible: Tensor
    dt_s: float

    def __getitem__(self, index: object) -> Motion:
        """The same index into all tensors: `motion[:, 5:]` are the frames from the sixth on."""
        tensors = (getattr(self, field.name)[index] for field in fields(self)[:-1])
        return Motion(*tensors, self.dt_s)


@dataclass(frozen=True)
class Clip:
    """A drawn motion: `images` `(B, T, 3, H, W)` in [0, 1]."""

    images: Tensor
    motion: Motion

    def __getitem__(self, index: object) -> Clip:
        """The same index into images and motion."""
        return Clip(self.images[index], self.motion[index])
