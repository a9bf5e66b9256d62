# SPDX-License-Identifier: Apache-2.0
"""What a camera that stands still sees behind everything that moves.

The picture is a weighted median over frames of a recording: a frame counts for a pixel by how
little happens around it, since where much moves, a crowd may hide the background most of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oc_perception.models.blocks import coordinate_grid

_NOISE = 1 / 255  # activity below this is the noise of a good camera
_NEIGHBOURHOOD = 0.14  # of the picture's height: textureless clothes move unseen but for edges
_ROWS = 8  # rows of the picture estimated at once, which bounds memory
_ROBUST = 1.4826  # median absolute deviation to standard deviation
_MOVES = 0.3  # share of deviating pixels in the typical frame above which the camera moves
_DEVIATES = 0.1


class MovingCamera(ValueError):
    """The recording has no standing background; the message says what to do."""


class StaticBackground(nn.Module):
    """`image` `(3, H, W)` in [0, 1] and `deviation` `(1, H, W)` around it, kept with the weights.

    Black until `fit` has seen a recording. `object_size` is the height and width of what may stand
    in front of it, as shares of the frame.
    """

    def __init__(self, frame_size: tuple[int, int], object_size: tuple[float, float]) -> None:
        super().__init__()
        self._object_size = object_size
        self.register_buffer("places", coordinate_grid(*frame_size), persistent=False)
        self.register_buffer("image", torch.zeros(3, *frame_size))
        self.register_buffer("deviation", torch.zeros(1, *frame_size))

    @torch.no_grad()
    def fit(self, frames: Tensor) -> None:
        """Estimate both from `frames` `(N, 3, 3, H, W)` in [0, 1]: N moments, each with the frames
        shortly before, at and after it.

        Raises MovingCamera where more than 30 % of the typical frame deviate from the result.
        """
        before, present, after = frames.unbind(1)
        change = torch.maximum((after - present).abs(), (present - before).abs()).amax(1, True)
        size = 2 * round(_NEIGHBOURHOOD * frames.shape[3] / 2) + 1
        activity = F.avg_pool2d(change, size, 1, size // 2, count_include_pad=False)
        weights = (activity + _NOISE) ** -2
        self.image.copy_(_weighted_median(present, weights))
        for _ in range(2):  # so that a lamp or the exposure does not widen the deviation
            relit = _relight(present, self.image.expand_as(present))
            self.image.copy_(_weighted_median(relit, weights))
        distance = (present - self(present)).abs().amax(1, True)
        moving = (distance > _DEVIATES).float().mean((1, 2, 3)).median().item()
        if moving > _MOVES:
            raise MovingCamera(
                f"{100 * moving:.0f} % of the typical frame deviate from the background, as if the"
                " camera moved: set model_config.static_background=false."
            )
        self.deviation.copy_(_ROBUST * _weighted_median(distance, weights))

    def forward(self, frames: Tensor) -> Tensor:
        """The picture in the light of each frame: `(B, 3, H, W)` both."""
        with torch.no_grad():
            return _relight(self.image.expand_as(frames), frames)

    @torch.no_grad()
    def distance_to_object(self, change: Tensor) -> Tensor:
        """How far each place `(B, 1, H, W)` is from where an object would cover most of `change`
        `(B, 1, H, W)`: 0.5 at its edge, growing with the fourth power.
        """
        sides = [
            2 * round(share * side / 2) + 1
            for share, side in zip(self._object_size, change.shape[2:], strict=True)
        ]
        covered = F.avg_pool2d(change, sides, 1, [side // 2 for side in sides])
        centre = self.places.flatten(1)[:, covered.flatten(1).argmax(1)].T
        half = self.places.new_tensor(self._object_size[::-1])  # places reach from -1 to 1
        offset = (self.places - centre[..., None, None]) / half[:, None, None]
        return 0.5 * offset.square().sum(1, keepdim=True).square()


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """`(C, H, W)` of `values` `(N, C, H, W)` by `weights` `(N, 1, H, W)`."""
    strips = []
    for part, weight in zip(values.split(_ROWS, 2), weights.split(_ROWS, 2), strict=True):
        ordered, order = part.sort(0)
        reached = weight.expand_as(part).gather(0, order).cumsum(0)
        index = (reached < reached[-1:] / 2).sum(0, keepdim=True).clamp(max=len(part) - 1)
        strips.append(ordered.gather(0, index)[0])
    return torch.cat(strips, 1)


def _relight(source: Tensor, target: Tensor) -> Tensor:
    """`source` with a gain and an offset for each image and channel, which bring it close to
    `target` `(B, 3, H, W)`, wherever they show the same.

    Least squares over the pixels that differ no more than most do, found anew after a first fit.
    """
    result = source
    for _ in range(3):
        distance = (result - target).abs().amax(1, True)
        limit = 2 * distance.flatten(1).median(1).values.clamp(min=_NOISE)
        weight = (distance <= limit.view(-1, 1, 1, 1)).float()
        total = weight.sum((2, 3), keepdim=True)
        mean_s, mean_t = ((weight * x).sum((2, 3), keepdim=True) / total for x in (source, target))
        covariance = (weight * (source - mean_s) * (target - mean_t)).sum((2, 3), keepdim=True)
        variance = (weight * (source - mean_s).square()).sum((2, 3), keepdim=True)
        gain = ((covariance + 1e-3 * total) / (variance + 1e-3 * total)).clamp(0.5, 2)
        result = mean_t + gain * (source - mean_s)
    return result
