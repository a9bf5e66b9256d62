# SPDX-License-Identifier: Apache-2.0
"""The best weights so far, by the loss on what is not learned from."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch import nn


class EarlyStopping:
    """Keeps a copy of the weights whenever the held-out loss falls; `is_exhausted` after
    `patience` evaluations in a row without.
    """

    def __init__(self, patience: int, model: nn.Module) -> None:
        self.patience = patience
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.loss, self.step, self.failures = math.inf, 0, 0

    @property
    def is_exhausted(self) -> bool:
        return self.failures >= self.patience

    def judge(self, model: nn.Module, loss: float, step: int) -> bool:
        """Whether `model` after `step` updates is the best so far; it is kept if so."""
        if not loss < self.loss:
            self.failures += 1
            return False
        self.model.load_state_dict(model.state_dict())
        self.loss, self.step, self.failures = loss, step, 0
        return True

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        numbers = {"loss": self.loss, "step": self.step, "failures": self.failures}
        return {"model": self.model.state_dict(), **numbers}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.model.load_state_dict(state["model"])
        self.loss, self.step, self.failures = (state[key] for key in ("loss", "step", "failures"))

    def summary(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            "patience": self.patience,
            "best_step": self.step,
            "held_out_loss": self.loss,
            "stopped_early": self.is_exhausted,
        }
