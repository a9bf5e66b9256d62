# SPDX-License-Identifier: Apache-2.0
"""From glimpses to features: the convolutions of MOHART's trackers."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional


class Eyes(nn.Module):
    """Glimpses `(N, colours, h, w)` to features `(N, D)`, and `numbers` that these say, `(N, F)`.

    Convolutions of the given `widths` with strides 2, 1, 2, 1 ... and skip connections around all
    but the first (Fuchs et al. 2019, appendix 2.A, which does not say where the connections are).
    """

    def __init__(
        self,
        glimpse_size: tuple[int, int],
        widths: tuple[int, ...],
        kernel: int,
        size: int,
        numbers: int,
        colours: int = 3,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(colours, widths[0], kernel, 2)
        self.convolutions, self.shortcuts = nn.ModuleList(), nn.ModuleList()
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            stride = 1 + index % 2
            self.convolutions.append(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2))
            plain = stride == 1 and inputs == outputs
            shortcut = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1, stride)
            self.shortcuts.append(shortcut)
        with torch.no_grad():
            cells = self._maps(torch.zeros(1, colours, *glimpse_size)).numel()
        self.features = nn.Linear(cells, size)
        self.say = nn.Linear(size, numbers)

    def _maps(self, x: Tensor) -> Tensor:
        x = functional.elu(self.first(x))
        for convolution, shortcut in zip(self.convolutions, self.shortcuts, strict=True):
            x = functional.elu(convolution(x)) + shortcut(x)
        return x

    def forward(self, glimpses: Tensor) -> tuple[Tensor, Tensor]:
        maps = self._maps(glimpses.contiguous(memory_format=torch.channels_last))
        features = functional.elu(self.features(maps.flatten(1))).float()
        with torch.autocast(features.device.type, enabled=False):
            return features, self.say(features)
