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

    `gaps` now, at closest, at the end; `hit` whether they touch within the tick; `when` `(0..1)`
    they do or are closest; `normal`, `tangent` `(..., M, 2)` of the line of centres then, pointing
    to the partner and along the partner's slip; `speeds` of the partner along them, per tick.
    """

    gaps: tuple[Tensor, Tensor, Tensor]
    hit: Tensor
    when: Tensor
    normal: Tensor
    tangent: Tensor
    speeds: tuple[Tensor, Tensor]


def meeting(offset: Tensor, slip: Tensor) -> Encounter:
    """`offset`, `slip` `(..., 2)`: where the partner is, and how it moves in the tick relative to
    the object, in contact distances.
    """
    along, way = (offset * slip).sum(-1), (slip * slip).sum(-1) + _TINY**2
    distance = (offset * offset).sum(-1)
    closest = (-along / way).clamp(0, 1)
    root = along**2 - way * (distance - 1)
    contact = ((-along - root.clamp(min=_TINY**2).sqrt()) / way).clamp(min=0)
    hit = (along < 0) & (root > 0) & (contact <= 1)
    when = torch.where(hit, contact, closest)
    then = offset + slip * when[..., None]
    normal = then / (_norm(then)[..., None] + _TINY)
    return _encounter(
        (distance + _TINY**2).sqrt(),
        _norm(offset + slip * closest[..., None]),
        _norm(offset + slip),
        hit,
        when,
        normal,
        slip,
    )


def meeting_with_border(distance: Tensor, slip: Tensor, normal: Tensor) -> Encounter:
    """`distance` `(..., 4)` to the borders with outward `normal` `(4, 2)`, `slip` `(..., 2)` of
    the border relative to the object, in box widths.
    """
    approach = -(slip @ normal.T)
    when = ((distance - 1) / approach.clamp(min=_TINY)).clamp(0, 1)
    when = torch.where(approach > 0, when, 0.0)
    end = distance - approach
    hit = (approach > 0) & (end < 1)
    slip = slip[..., None, :].expand(*distance.shape, 2)
    return _encounter(
        distance, torch.minimum(distance, end), end, hit, when, normal.expand_as(slip), slip
    )


def _encounter(
    now: Tensor,
    closest: Tensor,
    end: Tensor,
    hit: Tensor,
    when: Tensor,
    normal: Tensor,
    slip: Tensor,
) -> Encounter:
    across = torch.stack([-normal[..., 1], normal[..., 0]], -1)
    along, aside = (slip * normal).sum(-1), (slip * across).sum(-1)
    tangent = across * torch.where(aside >= 0, 1.0, -1.0)[..., None]
    return Encounter((now, closest, end), hit, when, normal, tangent, (along, aside.abs()))


def described(met: Encounter, doubt: Tensor, proportion: Tensor) -> Tensor:
    """`(..., M, 11)`; `doubt` `(..., M, 2)` variance of offset and slip, `proportion` of the
    object's size to the contact distance.
    """
    now, closest, end = (gap.clamp(max=4) - 1 for gap in met.gaps)
    return torch.stack(
        [
            now,
            closest,
            end,
            1 / met.gaps[0].clamp(min=0.5),
            met.hit.to(now),
            met.when,
            *met.speeds,
            *(doubt.log() / 8).unbind(-1),
            proportion.log(),
        ],
        -1,
    )


def _norm(vector: Tensor) -> Tensor:
    """Length over the last axis, with a gradient at 0."""
    return ((vector * vector).sum(-1) + _TINY**2).sqrt()
