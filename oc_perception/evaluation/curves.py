# SPDX-License-Identifier: Apache-2.0
"""How the scores of a model change with its iterations and with its number of slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oc_perception.evaluation.discovery import scene_scores
from oc_perception.evaluation.refinement import refinements


@dataclass(frozen=True)
class Curve:
    """Scores `(X, S)` of S scenes by name, at X values of `x`; training used `trained_at`."""

    x: tuple[int, ...]
    trained_at: int
    scores: Mapping[str, Tensor]

    def quartiles(self, score: str) -> Tensor:
        """Quantiles 25, 50 and 75 % over the scenes that have the score, `(3, X)`."""
        quantiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        return self.scores[score].double().nanquantile(quantiles, 1)

    def summary(self) -> dict[str, Any]:
        """Mean and quartiles over scenes, plain numbers for JSON."""
        summary: dict[str, Any] = {
            "x": list(self.x),
            "trained_at": self.trained_at,
            "scenes": next(iter(self.scores.values())).shape[1],
        }
        for name, values in self.scores.items():
            low, median, high = self.quartiles(name).tolist()
            mean = values.double().nanmean(1).tolist()
            summary[name] = {"mean": mean, "median": median, "quartiles": [low, high]}
        return summary


@torch.no_grad()
def refinement_curve(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Curve:
    """FG-ARI, ARI, mIoU, MSE and, where the model has an ELBO, its negative in nats, after 0 to 3T
    iterations of a model trained with T (Greff et al. 2019, Fig. 8).

    `batches` are images `(B, 3, H, W)` and labels `(B, H, W)`, as of `fresh_scenes`.
    """
    trained = model.config.num_iterations
    parts = []
    for images, labels in batches:
        results = refinements(model, images, 3 * trained)
        part = {}
        for count, result in results.items():
            part[count] = scene_scores(images, labels, result.decomposition)
            if result.elbo is not None:
                part[count]["negative_elbo"] = -result.elbo
        parts.append(part)
    return _curve(parts, trained)


@torch.no_grad()
def slot_curve(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Curve:
    """FG-ARI, ARI, mIoU and MSE with 2 to K + 4 slots of a model trained with K; `model` stays as
    it was. Raises ModelError where it cannot have as many.

    `batches` are images `(B, 3, H, W)` and labels `(B, H, W)`, as of `fresh_scenes`.
    """
    trained, chosen = model.config.num_slots, model.num_slots
    parts = []
    try:
        for images, labels in batches:
            part = {}
            for count in range(min(2, trained), trained + 5):
                model.num_slots = count
                _, decomposition = model.step(model.initial_state(len(images)), images)
                part[count] = scene_scores(images, labels, decomposition)
            parts.append(part)
    finally:
        model.num_slots = chosen
    return _curve(parts, trained)


def _curve(parts: list[dict[int, dict[str, Tensor]]], trained_at: int) -> Curve:
    """From batches of scores `(B,)` by x and name."""
    x = tuple(parts[0])
    scores = {
        name: torch.stack([torch.cat([part[at][name] for part in parts]) for at in x]).cpu()
        for name in parts[0][x[0]]
    }
    return Curve(x, trained_at, scores)
