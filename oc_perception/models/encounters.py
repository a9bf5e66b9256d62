# SPDX-License-Identifier: Apache-2.0
"""The geometry of an encounter: where and when, within one tick, an object comes closest to
another or to a border of the view. Lengths in contact distances, time in ticks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GEOMETRY = 11
"""How many numbers describe an encounter."""
_TINY = 1e-6


class Encounter(NamedTuple):
    """Who meets whom in a tick, in units of the contact distance; `(..., M)` for M partners.

    `gaps` `(..., M, 3)` distances now, at closest, at the end; `hit` whether they touch within the
    tick; `when` (0 to 1) they do or are closest; `axes` `(..., M, 2, 2)`, in columns: the line of
    centres then, towards the partner, and across it, along the partner's slip; `speeds` `(..., M,
    2)` of the partner along both, per tick.
    """

    gaps: Tensor
    hit: Tensor
    when: Tensor
    axes: Tensor
    speeds: Tensor

    @classmethod
    def of_directions(
        cls, gaps: Tensor, hit: Tensor, when: Tensor, normal: Tensor, slip: Tensor
    ) -> Encounter:
        """From the unit vector to the partner and the partner's slip, `(..., M, 2)`."""
        across = torch.stack([-normal[..., 1], normal[..., 0]], -1)
        aside = (slip * across).sum(-1, keepdim=True)
        along = (slip * normal).sum(-1, keepdim=True)
        tangent = torch.where(aside >= 0, across, -across)
        speeds = torch.cat([along, aside.abs()], -1)
        return cls(gaps, hit, when, torch.stack([normal, tangent], -1), speeds)

    def joined(self, other: Encounter) -> Encounter:
        """With the partners of `other` behind these, `(B, N, M + M')`."""
        return Encounter(*(torch.cat(pair, 2) for pair in zip(self, other, strict=True)))

    def described(self, doubt: Tensor, proportion: Tensor) -> Tensor:
        """`(..., M, 11)`; `doubt` `(..., M, 2)` variance of offset and slip, `proportion` of the
        object's size to the contact distance.
        """
        return torch.cat(
            [
                self.gaps.clamp(max=4) - 1,
                1 / self.gaps[..., :1].clamp(min=0.5),
                self.hit[..., None].to(self.when),
                self.when[..., None],
                self.speeds.clamp(-2, 2),
                doubt.log() / 8,
                proportion[..., None].log(),
            ],
            -1,
        )


def meeting(offset: Tensor, slip: Tensor) -> Encounter:
    """`offset`, `slip` `(..., 2)`: where the partner is, and how it moves in the tick relative to
    the object, in contact distances.
    """
    along, way = (offset * slip).sum(-1), (slip * slip).sum(-1) + _TINY**2
    closest = (-along / way).clamp(0, 1)
    root = along**2 - way * ((offset * offset).sum(-1) - 1)
    contact = (-(along + root.clamp(min=_TINY**2).sqrt()) / way).clamp(min=0)
    hit = (along < 0) & (root > 0) & (contact <= 1)
    when = torch.where(hit, contact, closest)
    nothing = torch.zeros_like(when)
    times = torch.stack([nothing, closest, nothing + 1, when], -1)[..., None]
    places = offset[..., None, :] + slip[..., None, :] * times  # now, at closest, at the end, then
    distances = ((places * places).sum(-1) + _TINY**2).sqrt()  # with a gradient at 0
    normal = places[..., 3, :] / distances[..., 3:]
    return Encounter.of_directions(distances[..., :3], hit, when, normal, slip)


def meeting_with_border(distance: Tensor, slip: Tensor, normal: Tensor) -> Encounter:
    """`distance` `(..., 4)` to the borders with outward `normal` `(4, 2)`, `slip` `(..., 2)` of
    the border relative to the object, in box widths.
    """
    approach = -(slip @ normal.T)
    end = distance - approach
    hit = (approach > 0) & (end < 1)
    when = ((distance - 1) / approach.clamp(min=_TINY)).clamp(0, 1) * (approach > 0)
    gaps = torch.stack([distance, torch.minimum(distance, end), end], -1)
    slip = slip[..., None, :].expand(*distance.shape, 2)
    return Encounter.of_directions(gaps, hit, when, normal.expand_as(slip), slip)
