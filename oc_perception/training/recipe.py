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
    """Adam with linear warm-up, then cosine decay to `final_learning_rate`; gradients clipped by
    global norm.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 3e-4
    final_learning_rate: float = 3e-5
    warmup_steps: int = 200
    gradient_clip: float = 5.0
    autocast_bfloat16: bool = True
    seed: int = 0
    evaluate_every: int = 250
    evaluation_scenes: int = 64
    checkpoint_every_s: float = 60.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.evaluate_every, self.evaluation_scenes) < 1:
            raise ValueError(
                "steps, batch_size, evaluate_every and evaluation_scenes must be at least 1"
            )


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
