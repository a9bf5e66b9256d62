# SPDX-License-Identifier: Apache-2.0
"""Find, build and load models by name.

A model is an `nn.Module` with `config` (frozen dataclass) and `task` ("discovery" where absent).
One that can be trained has `loss(batch, generator, progress) -> dict` with the entry `loss`; its
task says what it learns from (`training/tasks.py`).

A discovery model has `frame_size` `(height, width)`, `num_slots`,
`initial_state(batch_size) -> state` and `step(state, frame (B, 3, H, W) | None) ->
(state, Decomposition | None)`; no frame, no decomposition. One whose slots each hold one place
says so by `slots_are_local`. The others have `score(batch, generator) -> dict[str, float]`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from oc_perception.configuration import ConfigurationError, nearest, read_yaml, to_mapping
from oc_perception.resources import share_directory

_DAMAGE = (ConfigurationError, LookupError, TypeError, OSError, SafetensorError, RuntimeError)
"""What reading a checkpoint that is missing, cut short or of another model can raise."""
_MODULES = {
    "air": "video",
    "grid": "discovery",
    "hart": "tracking",
    "inert_mohart": "tracking",
    "iodine": "discovery",
    "mohart": "tracking",
    "mohart_states": "motion",
    "monet": "discovery",
    "pedestrians": "motion",
    "relational": "motion",
    "slot_attention": "discovery",
    "sqair": "video",
}
"""The task of the models in each module."""
_FACTORIES: dict[str, Callable[..., nn.Module]] = {}


class ModelError(ValueError):
    """A model that cannot be built or loaded; the message names the cause and the cure."""


def register_model(factory: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Make `factory(**config) -> nn.Module` known under its function name."""
    _FACTORIES[factory.__name__] = factory
    return factory


def model_names(task: str | None = None) -> tuple[str, ...]:
    """All registered models, or those for one task."""
    modules = {f"{__package__}.{name}": kind for name, kind in _MODULES.items()}
    for module in modules:
        importlib.import_module(module)
    return tuple(
        name
        for name, factory in sorted(_FACTORIES.items())
        if task in (None, modules.get(factory.__module__))
    )


def task_of(model: nn.Module) -> str:
    """What `model` is for: "discovery", "motion", "tracking" or "video"."""
    return getattr(model, "task", "discovery")


def checkpoint_names(task: str | None = None) -> tuple[str, ...]:
    """All shipped checkpoints, or those for one task."""
    models = model_names(task)
    return tuple(
        path.parent.name
        for path in sorted(_weights().glob("*/config.yaml"))
        if read_yaml(path).get("model") in models
    )


def checkpoint_directory(name: str | Path) -> Path:
    """`name` itself if it is a directory, else where a shipped checkpoint of this name lies; it
    need not exist.
    """
    return Path(name) if Path(name).is_dir() else _weights() / name


def _weights() -> Path:
    return share_directory() / "weights"


def create_model(name: str, **config: Any) -> nn.Module:
    """Build a registered model. Raises ModelError for an unknown name or a bad configuration."""
    if name not in model_names():
        raise ModelError(f"Unknown model {name!r}.{nearest(name, model_names())}")
    try:
        model = _FACTORIES[name](**config)
    except ConfigurationError as error:
        raise ModelError(f"Model {name!r}: {error}") from error
    model.name = model.architecture = name
    return model


def load_model(
    name_or_directory: str | Path, device: str = "cpu", task: str | None = "discovery"
) -> nn.Module:
    """A model ready for inference, in this order: `name[:key=value,...]` of a model without
    weights (`grid`), a checkpoint directory, or the name of a shipped checkpoint.

    Raises ModelError when it does not exist, is damaged, does not fit its configuration, or is
    for another task than `task` (None: any), and when there is no such device.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {device!r} cannot be used ({error}): choose 'cpu', or 'cuda' on a "
            "machine with a GPU and a CUDA build of torch."
        ) from error
    name, _, settings = str(name_or_directory).partition(":")
    if name in model_names() and not list(create_model(name).parameters()):
        pairs = [pair.partition("=") for pair in settings.split(",") if pair]
        config = {key: yaml.safe_load(value) for key, _, value in pairs}
        model = create_model(name, **config)
    else:
        model = _load_checkpoint(name_or_directory, task)
    if task not in (None, task_of(model)):
        raise ModelError(
            f"{name_or_directory} is a {task_of(model)} model, not a {task} model. Shipped for"
            f" {task}: {', '.join(checkpoint_names(task)) or 'none'}."
        )
    return model.eval().to(device, memory_format=torch.channels_last)  # faster, on CPUs too


def _load_checkpoint(name_or_directory: str | Path, task: str | None) -> nn.Module:
    directory = checkpoint_directory(name_or_directory)
    if not directory.is_dir():
        known = checkpoint_names(task)
        raise ModelError(
            f"No checkpoint {str(name_or_directory)!r}: give a directory written by `oc-perception"
            f" train`, or a shipped name.{nearest(str(name_or_directory), known) if known else ''}"
        )
    try:
        description = read_yaml(directory / "config.yaml")
        model = create_model(description["model"], **description.get("config", {}))
        model.load_state_dict(load_file(directory / "weights.safetensors"))
    except _DAMAGE as error:
        raise ModelError(
            f"Checkpoint {directory} is missing or damaged ({error}). Copy it anew or retrain it."
        ) from error
    model.name = directory.name
    return model


def save_checkpoint(model: nn.Module, directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `weights.safetensors`, floats as `dtype`, and `config.yaml`."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for key, value in model.state_dict().items()
    }
    # As bytes through our own file: safetensors would make one that only its owner can read.
    partial = directory / "weights.safetensors.part"
    partial.write_bytes(save(state))
    partial.replace(directory / "weights.safetensors")
    description = {"model": model.architecture, "config": to_mapping(model.config)}
    (directory / "config.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
