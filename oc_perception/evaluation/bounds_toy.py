# SPDX-License-Identifier: Apache-2.0
"""How near to its known optimum the Gaussian toy comes, trained with the same number of weights
shared out differently (Rainforth et al. 2018, "Tighter Variational Bounds are Not Necessarily
Better", App. E).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from oc_perception.evaluation.bounds_deep import Method, kept, methods
from oc_perception.objectives.bounds import backward
from oc_perception.worlds.gaussian_toy import GaussianToy, Parameters

_RECORDED = 20  # distances in a curve


@dataclass(frozen=True)
class ToyConfig:
    """Adam at `learning_rate` on all `points`, from entries between 1.5 and 2.5."""

    total: int = 64
    points: int = 64
    dimensions: int = 20
    steps: int = 5000
    learning_rate: float = 1e-2


def optimise(method: Method, config: ToyConfig, seed: int) -> dict[str, list[float]]:
    """`step` and the distances of `mean`, `matrix` and `bias` from the optimum. With one seed, all
    methods have the same data and the same start.
    """
    generator = torch.Generator().manual_seed(seed)
    toy = GaussianToy(generator, config.points, config.dimensions)
    optimum = toy.optimum()
    parameters = Parameters(
        *(
            torch.nn.Parameter(1.5 + torch.rand(value.shape, generator=generator))
            for value in optimum
        )
    )
    optimizer = torch.optim.Adam(parameters, config.learning_rate)
    size = (config.points, method.groups, method.particles, config.dimensions)
    curve: dict[str, list[float]] = {"step": [], **{name: [] for name in Parameters._fields}}
    every = max(1, config.steps // _RECORDED)
    for step in range(1, config.steps + 1):
        optimizer.zero_grad(set_to_none=True)
        noise = torch.randn(size, generator=generator)
        losses = method.loss(toy.log_weights(parameters, noise, method.detach))
        backward(losses, theta=parameters[:1], phi=parameters[1:])
        optimizer.step()
        if step % every == 0 or step == config.steps:
            curve["step"].append(step)
            for name, value, best in zip(Parameters._fields, parameters, optimum, strict=True):
                curve[name].append((value.detach() - best).norm().item())
    return curve


def optimise_all(
    names: Sequence[str], seeds: int, config: ToyConfig, directory: Path | None = None
) -> list[dict[str, Any]]:
    """Settings, curve and CPU `minutes` of each method and seed, the seeds outermost; kept in
    `directory` as `kept` does.
    """
    found = []
    for seed, name in itertools.product(range(seeds), names):
        settings = {"method": name, "seed": seed, "config": asdict(config)}
        compute = partial(optimise, methods(config.total)[name], config, seed)
        found.append(kept(directory, f"toy_{name}_{seed}", settings, compute))
    return found
