# SPDX-License-Identifier: Apache-2.0
"""What each kind of model learns from, and how it is scored.

| task | batch | scores |
|---|---|---|
| discovery | images `(B, 3, H, W)` | of its decompositions, by `evaluate_discovery`, if labelled |
| motion | `Motion` of `model.num_frames` frames | `model.score(motion, generator)` |
| tracking | `Clip` of as many, `model.frame_size` large | `model.score(clip, generator)` |
| video | the same, of whose motion it is not told | of what it follows, by `evaluate_video` |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oc_perception.configuration import ConfigurationError
from oc_perception.evaluation.discovery import evaluate_discovery
from oc_perception.evaluation.figures import decomposition_grid
from oc_perception.evaluation.video import evaluate_video
from oc_perception.types import Clip, Motion
from oc_perception.worlds.registry import WORLDS, create_world, held_out
from oc_perception.worlds.scenes import World

_BATCH = 32
_MOMENTS = 512  # of a recording that a static background is estimated from


@dataclass(frozen=True)
class Task:
    """`draw(world, model)` is the batch for `model.loss`.

    `evaluate(model, world, world_config, scenes, seed, device)` scores fresh scenes or sequences;
    `columns` are the scores to show, all if empty. `prepare(model, world)` is done once before
    training, `illustrate(model, world, path)` draws a picture of how it goes. Weights are shipped
    in `precision`.
    """

    draw: Callable[[World, nn.Module], Any]
    evaluate: Callable[..., dict[str, float]]
    columns: tuple[str, ...] = ()
    prepare: Callable[[nn.Module, World], None] | None = None
    illustrate: Callable[[nn.Module, World, Path], None] | None = None
    precision: torch.dtype = torch.float32


def _draw_frames(world: World, model: nn.Module) -> Tensor:
    images = world.sample(*model.frame_size).images
    return images.contiguous(memory_format=torch.channels_last)


def _prepare(model: nn.Module, world: World) -> None:
    """Show a model with a static background the world that it is to see."""
    background = getattr(model, "background", None)
    if background is None:
        return
    if not hasattr(world, "moments"):
        raise ConfigurationError(
            "static_background needs a recording of a camera that stands still: choose world:"
            " recordings, or set model_config.static_background=false."
        )
    background.fit(world.moments(_MOMENTS, *model.frame_size))


@torch.inference_mode()
def _illustrate(model: nn.Module, world: World, path: Path) -> None:
    frames = world.sample(*model.frame_size).images
    _, decomposition = model.step(model.initial_state(len(frames)), frames)
    decomposition_grid(frames, decomposition, path)


def _evaluate_frames(*arguments: Any) -> dict[str, float]:
    scores = evaluate_discovery(*arguments)
    return {name: scores[name] for name in ("fg_ari", "ari", "miou", "mse") if name in scores}


def _draw_motion(world: World, model: nn.Module) -> Motion:
    if not hasattr(world, "sample_motion"):
        moving = sorted(name for name, kind in WORLDS.items() if hasattr(kind, "sample_motion"))
        raise ConfigurationError(
            f"{type(world).__name__} is a world without motion: choose world: {', '.join(moving)}."
        )
    return world.sample_motion(model.num_frames)


def _draw_clip(world: World, model: nn.Module) -> Clip:
    motion = _draw_motion(world, model)
    return Clip(world.draw(motion, *model.frame_size)[0], motion)


def _score(draw: Callable[[World, nn.Module], Any]) -> Callable[..., dict[str, float]]:
    """An `evaluate` for models that score what `draw` gives them."""

    @torch.inference_mode()
    def evaluate(
        model: nn.Module,
        world: str,
        world_config: Mapping[str, Any],
        scenes: int,
        seed: int,
        device: str = "cpu",
    ) -> dict[str, float]:
        """Means over `scenes` sequences, without batches whose score is NaN.

        They come in batches of 32 from one seed, so that the same seed gives the same sequences to
        every model, and the first ones of a longer evaluation to a shorter one.
        """
        source = create_world(world, held_out(world, world_config), _BATCH, seed, device)
        noise = torch.Generator(device).manual_seed(seed)
        counts = [min(_BATCH, scenes - start) for start in range(0, scenes, _BATCH)]
        parts = [model.score(draw(source, model)[:count], noise) for count in counts]
        values = torch.tensor([list(part.values()) for part in parts], dtype=torch.float64)
        weights = torch.tensor(counts)[:, None] * ~values.isnan()
        means = (values * weights).nansum(0) / weights.sum(0)
        return dict(zip(parts[0], means.tolist(), strict=True))

    return evaluate


def held_out_loss(
    task: Task,
    model: nn.Module,
    world: str,
    world_config: Mapping[str, Any],
    scenes: int,
    seed: int,
    device: str = "cpu",
) -> float:
    """Mean loss at the end of training, in nats for likelihoods, of `scenes` scenes or sequences
    that are not learned from; drawn as for scores.
    """
    source = create_world(world, held_out(world, world_config), _BATCH, seed, device)
    noise = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        batches = math.ceil(scenes / _BATCH)
        losses = [model.loss(task.draw(source, model), noise, 1.0) for _ in range(batches)]
    return sum(terms["loss"].item() for terms in losses) / batches


TASKS = {
    "discovery": Task(
        _draw_frames,
        _evaluate_frames,
        columns=("fg_ari", "miou", "mse"),
        prepare=_prepare,
        illustrate=_illustrate,
        precision=torch.float16,  # half the file, and the scores stay
    ),
    "motion": Task(_draw_motion, _score(_draw_motion)),
    "tracking": Task(_draw_clip, _score(_draw_clip)),
    "video": Task(
        _draw_clip,
        evaluate_video,
        columns=("counting_accuracy", "discoveries_over_ideal", "id_switches_per_100", "kl"),
    ),
}
