# SPDX-License-Identifier: Apache-2.0
"""How well a model of videos counts, tracks, describes and foresees the objects of a world.

| scores | what they say |
|---|---|
| `counting_accuracy` | share of frames with the right number of objects, those out of view included; mean over particles, `_weighted` by their importance, `_crowded` where objects overlap or leave |
| `discoveries_over_ideal` | how often objects are discovered; 1 is once each. `discoveries_later`: new ones per frame after the first |
| `id_switches_per_100` | of objects in view, frame by frame; `tracked_share` of them have a box near by; `box_iou` is the overlap of true boxes with the best of the model's that touch them |
| `forecast_...` | see `video_forecast` |
| `log_evidence`, `elbo`, `kl`, `log_likelihood` | nats per sequence; a `_gap` is what lacks to a perfect reconstruction, `kl_empty` is of sequences without objects |
"""  # noqa: E501 (a table)

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from oc_perception.evaluation.video_forecast import HORIZONS, SEEN, forecast
from oc_perception.evaluation.video_tracks import Ratio, tracks, true_boxes
from oc_perception.types import Motion
from oc_perception.worlds.registry import create_world, held_out

_BATCH = 32
_ROWS = 4096  # sequences times particles whose likelihood is asked for at once


def evaluate_video(
    model: nn.Module,
    world: str,
    world_config: Mapping[str, Any],
    scenes: int,
    seed: int,
    device: str = "cpu",
    particles: int | None = None,
) -> dict[str, float]:
    """The scores of `examine_video` that are one number."""
    scores = examine_video(model, world, world_config, scenes, seed, device, particles)
    return {name: value for name, value in scores.items() if isinstance(value, float)}


@torch.inference_mode()
def examine_video(
    model: nn.Module,
    world: str,
    world_config: Mapping[str, Any],
    scenes: int,
    seed: int,
    device: str = "cpu",
    particles: int | None = None,
) -> dict[str, float | list[float]]:
    """All scores over `scenes` sequences of `model.num_frames` frames that are not learned from;
    those called `..._by_frame` are lists. What has no value, as a forecast of a model that makes
    none, is left out.

    The evidence is estimated with `particles`, all else with as many as in training (None: that
    too). Sequences come in batches of 32 from one seed, so that the same seed gives the same ones
    to every model, and the first ones of a longer evaluation to a shorter one.
    """
    noise = torch.Generator(device).manual_seed(seed)
    trained_with = model.config.particles
    sums: dict[str, Ratio] = {}
    for images, motion in sequences(model, world, world_config, scenes, seed, device):
        seen, truth = images[:, : model.num_frames], motion[:, : model.num_frames]
        found = model.follow(seen, trained_with, noise)
        parts = {
            **counting(found.presence, found.discovered, found.log_weights, truth),
            **tracks(found.boxes[:, :, 0], found.ids[:, :, 0], truth),
            **forecast(model, images, motion, trained_with, noise),
            **_bounds(model, seen, truth, noise, particles or trained_with),
        }
        for name, (value, weight) in parts.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + value, before[1] + weight)
    scores = {name: (value / weight).tolist() for name, (value, weight) in sums.items()}
    return {name: score for name, score in scores.items() if score == score}  # not NaN


def sequences(
    model: nn.Module,
    world: str,
    world_config: Mapping[str, Any],
    scenes: int,
    seed: int,
    device: str = "cpu",
) -> Iterator[tuple[Tensor, Motion]]:
    """Images `(B, T, 3, H, W)` and motion of `scenes` sequences, long enough for forecasts and for
    `model.num_frames`.
    """
    source = create_world(world, held_out(world, world_config), _BATCH, seed, device)
    frames = max(model.num_frames, SEEN + max(HORIZONS))
    for start in range(0, scenes, _BATCH):
        motion, count = source.sample_motion(frames), min(_BATCH, scenes - start)
        yield source.draw(motion, *model.frame_size)[0][:count], motion[:count]


def counting(
    presence: Tensor, discovered: Tensor, log_weights: Tensor, motion: Motion
) -> dict[str, Ratio]:
    """Numbers of objects in `motion` and in what was found of it: `presence` and `discovered`
    `(B, T, K, N)`, weights of the particles `(B, T, K)`.
    """
    particles = presence.shape[2]
    true = motion.present.sum(2)
    right = (presence.sum(3) == true.unsqueeze(2)).double()
    weighted = (log_weights.double().softmax(2) * right).sum(2)
    crowded = _crowded(motion)
    new = discovered.sum(3).double()
    ones = torch.ones_like(weighted)
    objects = motion.present.any(1).sum().double()
    return {
        "counting_accuracy": (right.mean(2).sum(), ones.sum()),
        "counting_accuracy_weighted": (weighted.sum(), ones.sum()),
        "counting_accuracy_crowded": ((right.mean(2) * crowded).sum(), crowded.double().sum()),
        "discoveries_over_ideal": (new.sum() / particles, objects),
        "discoveries_later": (new[:, 1:].sum() / particles, ones[:, 1:].sum()),
        "counting_by_frame": (right.mean(2).sum(0), ones.sum(0)),
        "discoveries_by_frame": (new.mean(2).sum(0), ones.sum(0)),
    }


def _crowded(motion: Motion) -> Tensor:
    """Frames `(B, T)` in which boxes overlap or are not wholly on the canvas."""
    boxes = true_boxes(motion)
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    leaving = ((low < 0) | (high > 1)).any(3) & motion.present
    meet = (low.unsqueeze(3) < high.unsqueeze(2)).all(4)
    pairs = (motion.present.unsqueeze(3) & motion.present.unsqueeze(2)).tril(-1)
    return leaving.any(2) | (meet & meet.transpose(2, 3) & pairs).flatten(2).any(2)


def _bounds(
    model: nn.Module, images: Tensor, motion: Motion, noise: torch.Generator, particles: int
) -> dict[str, Ratio]:
    """Per sequence. A perfect reconstruction has -log(sigma sqrt(2 pi)) nats at each pixel."""
    parts = [
        model.bound(part, noise, particles) for part in images.split(max(1, _ROWS // particles))
    ]
    bounds = {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}
    pixels = images.shape[1] * math.prod(model.frame_size)
    perfect = -math.log(model.config.sigma * math.sqrt(2 * math.pi)) * pixels
    for name in ("log_evidence", "log_likelihood"):
        bounds[f"{name}_gap"] = perfect - bounds[name]
    everything = torch.ones_like(bounds["kl"])
    scores = {name: (value.sum(), everything.sum()) for name, value in bounds.items()}
    empty = ~motion.present.flatten(1).any(1)
    return {**scores, "kl_empty": ((bounds["kl"] * empty).sum(), empty.double().sum())}
