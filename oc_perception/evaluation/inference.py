# SPDX-License-Identifier: Apache-2.0
"""How long the discovery models take for a frame, beside a plain textbook implementation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oc_perception.evaluation.textbook import Textbook, textbook
from oc_perception.models.registry import create_model

MODELS = ("monet", "iodine", "slot_attention")
_SETTINGS: dict[str, dict[str, Any]] = {
    "iodine": {"scene_cut_nats": math.inf}  # untrained, it would start anew at random
}
_TARGETS_MS = {("monet", 64, 6, 1): 20.0, ("iodine", 64, 6, 1): 60.0}  # on 2 cores


@dataclass(frozen=True)
class Workload:
    """`batch` frames of `size` x `size` px, split into `slots` by the paper's network `model`."""

    model: str
    size: int
    slots: int
    batch: int = 1


def measure(
    workload: Workload, seconds: float, least: int = 5, device: str = "cpu"
) -> dict[str, Any]:
    """Time both implementations by turns for about `seconds`, each at least `least` times.

    Masks and latents of one more frame after a first one: MONet anew, the others from the slots
    of the first frame, by one iteration. Weights are random: they do not matter for the time.
    `ms` and `cpu_ms` (of all threads) are per frame, medians, `p90_ms` the slow tenth;
    `mask_difference` and `latent_difference` are the largest of any element.
    """
    model = _build(workload).to(device)
    plain = textbook(model)
    model.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)
    size = (2, workload.batch, 3, workload.size, workload.size)
    first, second = torch.rand(size, generator=generator).to(device)
    with torch.inference_mode():
        steps = {
            "ours": _tracking(model, first, second),
            "textbook": _tracking(plain, first, second),
        }
        ours, theirs = steps["ours"](), steps["textbook"]()
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        start_s = time.perf_counter()
        while len(times["ours"]) < least or time.perf_counter() - start_s < seconds:
            for name, step in steps.items():
                times[name].append(_timed(step, device))
    result = {name: _summary(np.array(times[name]) * 1e3 / workload.batch) for name in steps}
    key = (workload.model, workload.size, workload.slots, workload.batch)
    return {
        "model": workload.model,
        "size": workload.size,
        "slots": workload.slots,
        "batch": workload.batch,
        **result,
        "speedup": result["textbook"]["ms"] / result["ours"]["ms"],
        "cpu_speedup": result["textbook"]["cpu_ms"] / result["ours"]["cpu_ms"],
        "mask_difference": _difference(ours.masks, theirs.masks),
        "latent_difference": _difference(ours.embeddings, theirs.embeddings),
        "repetitions": len(times["ours"]),
        "target_ms": _TARGETS_MS.get(key),
    }


def _build(workload: Workload) -> nn.Module:
    torch.manual_seed(0)  # torch's initialisers take no generator
    settings = _SETTINGS.get(workload.model, {})
    frame_size = (workload.size, workload.size)
    model = create_model(
        workload.model, frame_size=frame_size, num_slots=workload.slots, **settings
    )
    return model.eval()


def _tracking(model: nn.Module | Textbook, first: Tensor, second: Tensor) -> Callable[[], Any]:
    """What decomposes the frames `second` after `first`, again at each call."""
    state, _ = model.step(model.initial_state(len(first)), first)
    return lambda: model.step(state, second, decode=False)[1]


def _timed(step: Callable[[], Any], device: str) -> tuple[float, float]:
    """Duration and CPU time of all threads, in seconds."""
    start = time.perf_counter(), time.process_time()
    step()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def _summary(times_ms: np.ndarray) -> dict[str, float]:
    """Of durations and CPU times `(N, 2)`."""
    wall, cpu = times_ms.T
    return {
        "ms": float(np.median(wall)),
        "p90_ms": float(np.quantile(wall, 0.9)),
        "cpu_ms": float(np.median(cpu)),
    }


def _difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()
