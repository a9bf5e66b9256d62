# SPDX-License-Identifier: Apache-2.0
"""The directory that keeps a run: what is in it, `training/trainer.py` tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from oc_perception.configuration import ConfigurationError, from_mapping, read_yaml, to_mapping
from oc_perception.training.parallel import ProcessGroup
from oc_perception.training.recipe import Recipe


class RunDirectory:
    """The directory `path`, which belongs to the run of `recipe` from now on.

    Raises ConfigurationError when it belongs to another run or that one is complete.
    """

    def __init__(self, path: Path, recipe: Recipe, group: ProcessGroup) -> None:
        self.path = path
        self._state, self._metrics = path / "state.pt", path / "metrics.json"
        description = path / "recipe.yaml"
        if description.is_file() and from_mapping(Recipe, read_yaml(description)) != recipe:
            raise ConfigurationError(
                f"{path} holds a run of another recipe: choose another --output, or resume it"
                " with the settings in its recipe.yaml."
            )
        if self._metrics.is_file():
            raise ConfigurationError(f"The run in {path} is complete: choose another --output.")
        group.wait()  # before it is written, every process has looked for it
        if group.is_first and not description.is_file():
            path.mkdir(parents=True, exist_ok=True)
            description.write_text(yaml.safe_dump(to_mapping(recipe), sort_keys=False))

    def load_state(self, device: str) -> dict[str, Any] | None:
        """What `save_state` kept last, with tensors on `device`; None in a new run."""
        if not self._state.is_file():
            return None
        return torch.load(self._state, map_location=device, weights_only=True)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Keep what a resumed run needs; whatever happens, one whole file remains."""
        partial = self._state.with_suffix(".part")
        torch.save(dict(state), partial)
        partial.replace(self._state)

    def log(self, entry: Mapping[str, float]) -> None:
        """Add a line to `log.jsonl`."""
        with (self.path / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")

    def complete(self, metrics: Mapping[str, Any]) -> None:
        """Write `metrics.json`; the run cannot be resumed any more."""
        self._metrics.write_text(json.dumps(metrics, indent=2) + "\n")
        self._state.unlink()
