# SPDX-License-Identifier: Apache-2.0
"""What several training seeds of one recipe reach together."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from oc_perception.configuration import ConfigurationError

PUBLISHED = {
    ("iodine", "tetrominoes"): (0.992, 0.004),
    ("iodine", "sprites"): (0.767, 0.056),
    ("iodine", "rooms"): (0.988, 0.000),
    ("monet", "sprites"): (0.904, 0.008),
    ("monet", "rooms"): (0.962, 0.006),
    ("slot_attention", "tetrominoes"): (0.995, 0.002),
    ("slot_attention", "sprites"): (0.913, 0.003),
    ("slot_attention", "rooms"): (0.988, 0.003),
}
"""FG-ARI, mean and standard deviation over 5 seeds, on the sets of which our worlds are replicas
(Multi-dSprites on grey, CLEVR6, Tetrominoes): IODINE and MONet from Greff et al. 2019, Table 1,
Slot Attention from Locatello et al. 2020, Table 1."""


def training_seeds(recipes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[int]:
    """The seed of each of `recipes`, called `names`.

    Raises ConfigurationError unless they differ in `training.seed` and in nothing else.
    """
    flat = [_flatten(recipe) for recipe in recipes]
    seeds = [recipe.pop("training.seed", 0) for recipe in flat]
    for name, recipe in zip(names, flat, strict=True):
        different = sorted(
            key for key in flat[0].keys() | recipe.keys() if flat[0].get(key) != recipe.get(key)
        )
        if different:
            raise ConfigurationError(
                f"{names[0]} and {name} are not seeds of one recipe: {', '.join(different)}"
                " differ. Compare them in two benchmarks."
            )
    for seed in seeds:
        if seeds.count(seed) > 1:
            twins = [name for name, own in zip(names, seeds, strict=True) if own == seed]
            raise ConfigurationError(f"{' and '.join(twins)} have the same training.seed {seed}.")
    return seeds


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in mapping.items():
        nested = isinstance(value, Mapping)
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def summarize_seeds(runs: Sequence[Mapping[str, Any]], score: str = "fg_ari") -> dict[str, Any]:
    """Mean and sample standard deviation of all numbers that the `runs` share, and the worst of
    them by `score`. The standard deviation of a single run is None.
    """
    shared = [
        name
        for name, value in runs[0].items()
        if name != "seed" and all(isinstance(run.get(name), float) for run in runs)
    ]
    columns = {name: [run[name] for run in runs] for name in shared}
    mean = {name: statistics.fmean(column) for name, column in columns.items()}
    worst = min(runs, key=lambda run: run[score])
    return {
        "seeds": len(runs),
        "mean": mean,
        "std": {
            name: statistics.stdev(column) if len(runs) > 1 else None
            for name, column in columns.items()
        },
        "worst": {
            "seed": worst["seed"],
            score: worst[score],
            "below_mean": mean[score] - worst[score],
        },
    }
