# SPDX-License-Identifier: Apache-2.0
"""From glimpses to features: the convolutions of MOHART's trackers."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_COMPARED = 8  # maps in which looks are compared
_PART = (0.73, 0.47)  # of a glimpse, its middle: about what a person's box takes up in it
_SHARPNESS = 3.0  # log of what cosines are multiplied with, at first
_FAINT = 1e-6


class Eyes(nn.Module):
    """Glimpses `(N, 3, h, w)` to features `(N, D)`, and `numbers` that these say, `(N, F)`.

    Convolutions of the given `widths` with strides 2, 1, 2, 1 ... and skip connections around all
    but the first (Fuchs et al. 2019, appendix 2.A, which does not say where the connections are).

    Eyes that `compare` also tell how well each place in the glimpse agrees with a `look` `(N, L)`
    from an earlier one, and where best (as in Bertinetto et al. 2016, *Fully-convolutional Siamese
    networks for object tracking*, but on a few learned maps of the same window).
    """

    def __init__(
        self,
        glimpse_size: tuple[int, int],
        widths: tuple[int, ...],
        kernel: int,
        size: int,
        numbers: int,
        compare: bool = False,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, widths[0], kernel, 2)
        self.convolutions, self.shortcuts = nn.ModuleList(), nn.ModuleList()
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            stride = 1 + index % 2
            self.convolutions.append(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2))
            plain = stride == 1 and inputs == outputs
            shortcut = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1, stride)
            self.shortcuts.append(shortcut)
        self.reduce = nn.Conv2d(widths[1], _COMPARED, 1) if compare else None
        self.sharpness = nn.Parameter(torch.tensor(_SHARPNESS)) if compare else None
        with torch.no_grad():
            maps, rest = self._maps(torch.zeros(1, 3, *glimpse_size))
        self._low, numbers_seen, places = tuple(maps.shape[2:]), rest.numel(), 0
        if compare:
            high, wide = self._low
            self._part = (round(_PART[0] * high), round(_PART[1] * wide))
            self._steps = (high - self._part[0] + 1, wide - self._part[1] + 1)
            numbers_seen, places = numbers_seen + math.prod(self._steps), 2
        self.features = nn.Linear(numbers_seen, size)
        self.say = nn.Linear(size + places, numbers)

    @property
    def look_size(self) -> int:
        """Numbers that tell how something looks."""
        return 0 if self.reduce is None else _COMPARED * math.prod(self._part)

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """After the second convolution, and after the last."""
        low = x = functional.elu(self.first(x))
        for index, layers in enumerate(zip(self.convolutions, self.shortcuts, strict=True)):
            convolution, shortcut = layers
            x = functional.elu(convolution(x)) + shortcut(x)
            low = x if index == 0 else low
        return low, x

    def forward(
        self, glimpses: Tensor, looks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features, numbers, and `(N, L)` how the middle of the glimpses looks. Where `looks` are
        None, or zeros, glimpses are compared with themselves. Black ones say nothing: zeros.
        """
        low, high = self._maps(glimpses.contiguous(memory_format=torch.channels_last))
        seen, peak, lit = high.flatten(1), None, None
        if self.reduce is not None:
            lit = glimpses.flatten(1).any(1, keepdim=True)
            response, looks = self._compare(self.reduce(low), looks, lit)
            places = (self.sharpness.exp() * response).softmax(1).unflatten(1, self._steps)
            peak = torch.stack([_middle(places.sum(1)), _middle(places.sum(2))], 1)
            seen = torch.cat([seen, response.to(seen.dtype)], 1)
        features = functional.elu(self.features(seen)).float()
        with torch.autocast(features.device.type, enabled=False):
            if peak is None:
                return features, self.say(features), None
            return features, self.say(torch.cat([features, peak], 1)) * lit, looks

    def _compare(self, maps: Tensor, looks: Tensor | None, lit: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines `(N, places)` between looks and what is in each place, and the looks. Who is not
        `lit` `(N, 1)` has none.
        """
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.float() - maps.float().mean((2, 3), keepdim=True)
            top, left = ((steps - 1) // 2 for steps in self._steps)
            own = (
                maps[:, :, top : top + self._part[0], left : left + self._part[1]].flatten(1) * lit
            )
            looks = own if looks is None else torch.where(looks.any(1, True), looks, own)
            patches = functional.unfold(maps, self._part)  # (N, L, places)
            response = (looks[:, None] @ patches)[:, 0]
            norms = patches.square().sum(1) * looks.square().sum(1, keepdim=True)
            return response / (norms + _FAINT).sqrt(), looks


def _middle(weights: Tensor) -> Tensor:
    """Mean place `(N,)` from -1 to 1 under `weights` `(N, places)` that sum to 1."""
    return weights @ torch.linspace(-1, 1, weights.shape[1], device=weights.device)
