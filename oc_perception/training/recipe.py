# SPDX-License-Identifier: Apache-2.0
"""A training recipe: one YAML file per published result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oc_perception.configuration import (
    ConfigurationError,
    from_mapping,
    nearest,
    override,
    read_yaml,
)
from oc_perception.resources import share_directory


@dataclass(frozen=True)
class TrainingConfig:
    """Linear warm-up of the learning rate, then cosine decay to `final_learning_rate`; gradients
    clipped by global norm.

    `optimizer` is `adam`, or `rmsprop` without momentum; `betas` are Adam's. `ema_decay` above 0
    averages the weights over updates: the average is evaluated and shipped. `compile` pays off on
    GPUs, after a minute or more of compilation. `patience` above 0 ends training after so many
    evaluations without a lower loss on what is not learned from, and ships the best weights.

    A batch is drawn in `shards` equal parts, each with random numbers of its own, and the loss is
    their mean. Processes divide the shards among them, so that their number does not change the
    result; one process learns from one shard after the other, which takes less memory.
    """

    steps: int
    batch_size: int = 32
    shards: int = 1
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    learning_rate: float = 3e-4
    final_learning_rate: float = 3e-5
    warmup_steps: int = 200
    gradient_clip: float = 5.0
    ema_decay: float = 0.0
    autocast_bfloat16: bool = True
    compile: bool = False
    seed: int = 0
    evaluate_every: int = 250
    evaluation_scenes: int = 64
    checkpoint_every_s: float = 60.0
    patience: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.evaluate_every, self.evaluation_scenes) < 1:
            raise ValueError(
                "steps, batch_size, evaluate_every and evaluation_scenes must be at least 1"
            )
        if self.shards < 1 or self.batch_size % self.shards:
            raise ValueError(f"shards must divide batch_size {self.batch_size}")
        if self.optimizer not in ("adam", "rmsprop"):
            raise ValueError("optimizer must be 'adam' or 'rmsprop'")
        if not all(0 <= rate < 1 for rate in (*self.betas, self.ema_decay)):
            raise ValueError("betas and ema_decay must be at least 0 and below 1")
        if min(self.patience, self.seed) < 0:
            raise ValueError("patience and seed must be at least 0")


@dataclass(frozen=True)
class Recipe:
    """Which model learns which world, and how."""

    model: str
    world: str
    training: TrainingConfig
    model_config: dict[str, Any] = field(default_factory=dict)
    world_config: dict[str, Any] = field(default_factory=dict)


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in _recipes().glob("*.yaml"))


def _recipes() -> Path:
    return share_directory() / "config" / "recipes"


def load_recipe(name_or_path: str, assignments: Iterable[str] = ()) -> Recipe:
    """A recipe by name or YAML path, with `key.sub=value` assignments applied.

    Raises ConfigurationError for an unknown recipe, key or value.
    """
    path = Path(name_or_path)
    if not path.is_file():
        path = _recipes() / f"{name_or_path}.yaml"
    if not path.is_file():
        raise ConfigurationError(
            f"Unknown recipe {name_or_path!r}.{nearest(name_or_path, recipe_names())}"
        )
    return from_mapping(Recipe, override(read_yaml(path), assignments))
