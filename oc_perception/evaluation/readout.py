# SPDX-License-Identifier: Apache-2.0
"""Factor read-out: what one linear layer can tell of an object from the slot that holds it.

After training, with the model fixed, each true object is matched to the slot with the greatest
share of its pixels, and a linear layer is fitted from slot embeddings to the factors of objects
(Greff et al. 2019, section 4.2): categories by multinomial logistic regression, quantities by
least squares. It is fitted on one set of scenes and scored on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from oc_perception.worlds.registry import create_world
from oc_perception.worlds.scenes import Scenes

_BATCH = 32
_PENALTY = 1e-4
_MAX_STEPS = 1000


class World(Protocol):
    """Where scenes come from; see `worlds/registry.py`."""

    def sample(self, height: int, width: int) -> Scenes: ...


@dataclass(frozen=True)
class Readout:
    """One linear layer from embeddings `(M, D)`, in float64: `weights[factor]` `(D, O)`,
    `biases[factor]` `(O,)`. Its O outputs are logits of a category or the quantity itself.
    """

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]

    def predict(self, embeddings: Tensor) -> dict[str, Tensor]:
        """The outputs `(M, O)` for each factor."""
        embeddings = embeddings.double()
        return {
            name: embeddings @ weight + self.biases[name] for name, weight in self.weights.items()
        }


@torch.no_grad()
def collect(model: nn.Module, world: World, scenes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Embeddings `(M, D)` of the slots of all M objects in view in `scenes` scenes, and the
    objects' factors: `(M,)` int64 for a category, `(M, O)` for a quantity; float64, on the CPU.

    An angle, in radians, is given as its cosine and sine. Raises ValueError when the world knows
    no factors or no object is in view.
    """
    embeddings: list[Tensor] = []
    factors: dict[str, list[Tensor]] = {}
    left = scenes
    while left > 0:
        sample = world.sample(*model.frame_size)
        batch = len(sample.images)
        if not getattr(sample, "factors", None):
            raise ValueError(
                f"{type(world).__name__} gives no factors of its objects to read out: choose "
                "another world, for example sprites."
            )
        _, decomposition = model.step(model.initial_state(batch), sample.images, decode=False)
        inside = one_hot(sample.labels, sample.present.shape[1] + 1)[..., 1:].float()
        share = torch.einsum("b h w n, b k h w -> b n k", inside, decomposition.masks.float())
        slot = share.argmax(2, keepdim=True)
        seen = sample.present & inside.any((1, 2))
        seen[left:] = False
        embedding = decomposition.embeddings.take_along_dim(slot, 1)  # (B, N, D)
        embeddings.append(embedding[seen].double().cpu())
        for name, values in sample.factors.items():
            if name == "angle":
                values = torch.cat([values.cos(), values.sin()], -1)
            values = values[seen].cpu()
            factors.setdefault(name, []).append(
                values.double() if values.is_floating_point() else values
            )
        left -= batch
    if not sum(map(len, embeddings)):
        raise ValueError("No object is in view in any of the scenes: draw more scenes.")
    return torch.cat(embeddings), {name: torch.cat(parts) for name, parts in factors.items()}


def fit_readout(
    embeddings: Tensor, factors: Mapping[str, Tensor], penalty: float = _PENALTY
) -> Readout:
    """The linear layer of least mean cross entropy (categories) or half mean squared error
    (quantities), plus `penalty` / 2 times the squared weights of standardised embeddings.

    `embeddings` and `factors` are as `collect` gives them. The problem is convex: the result does
    not depend on chance.
    """
    embeddings = embeddings.double()
    mean = embeddings.mean(0)
    scale = embeddings.std(0, correction=0)
    scale = torch.where(scale > 1e-9 * mean.abs(), scale, 1.0)  # an entry that never changes
    inputs = (embeddings - mean) / scale
    weights, biases = {}, {}
    for name, target in factors.items():
        fit = _least_squares if target.is_floating_point() else _logistic_regression
        weight, bias = fit(inputs, target, penalty)
        weights[name] = weight / scale.unsqueeze(1)
        biases[name] = bias - mean @ weights[name]
    return Readout(weights, biases)


def score_readout(
    readout: Readout, embeddings: Tensor, factors: Mapping[str, Tensor]
) -> dict[str, dict[str, float]]:
    """`accuracy` and `chance` of each category, `r2` of each quantity.

    `chance` is the accuracy of always giving the most common answer. `r2` is the share of the
    variance that is explained, the mean over a quantity's dimensions; NaN if one never changes.
    """
    scores: dict[str, dict[str, float]] = {"accuracy": {}, "chance": {}, "r2": {}}
    for name, output in readout.predict(embeddings).items():
        target = factors[name]
        if target.is_floating_point():
            error = (output - target).square().sum(0)
            spread = (target - target.mean(0)).square().sum(0)
            explained = torch.where(spread > 0, 1 - error / spread, torch.nan)
            scores["r2"][name] = explained.mean().item()
        else:
            scores["accuracy"][name] = (output.argmax(1) == target).double().mean().item()
            scores["chance"][name] = int(target.bincount().max()) / len(target)
    return scores


def evaluate_readout(
    model: nn.Module,
    world: str,
    world_config: Mapping[str, Any],
    train_scenes: int,
    test_scenes: int,
    seed: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """Scores as `score_readout`, on scenes of `seed`, of a read-out fitted on those of `seed` + 1.

    Also `train_objects` and `test_objects`, the number of objects in view. Raises ValueError as
    `collect` does.
    """

    def draw(scenes: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        return collect(model, create_world(world, world_config, _BATCH, seed, device), scenes)

    train, test = draw(train_scenes, seed + 1), draw(test_scenes, seed)
    return {
        **score_readout(fit_readout(*train), *test),
        "train_objects": len(train[0]),
        "test_objects": len(test[0]),
        "seed": seed,
    }


def _least_squares(inputs: Tensor, target: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """For `inputs` `(M, D)` of mean 0."""
    bias = target.mean(0)
    moment = inputs.T @ inputs / len(inputs)
    moment.diagonal().add_(penalty)
    return torch.linalg.solve(moment, inputs.T @ (target - bias) / len(inputs)), bias


def _logistic_regression(inputs: Tensor, target: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    classes = int(target.max()) + 1
    weight = inputs.new_zeros(inputs.shape[1], classes, requires_grad=True)
    bias = inputs.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_STEPS,
        tolerance_grad=1e-7,  # about the least that the rounding of the loss allows
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(inputs @ weight + bias, target)
        value = value + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()
