# SPDX-License-Identifier: Apache-2.0
"""Find, build and load discovery models by name.

A model is an `nn.Module` with `config` (frozen dataclass), `frame_size` `(height, width)`,
`num_slots`, `initial_state(batch_size) -> state` and
`step(state, frame (B, 3, H, W) | None) -> (state, Decomposition | None)`; no frame, no
decomposition. A trainable one also has `loss(frames, generator, progress) -> dict` with the entry
`loss`.
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
_MODULES = ("grid", "iodine", "monet", "slot_attention")
_FACTORIES: dict[str, Callable[..., nn.Module]] = {}


class ModelError(ValueError):
    """A model that cannot be built or loaded; the message names the cause and the cure."""


def register_model(factory: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Make `factory(**config) -> nn.Module` known under its function name."""
    _FACTORIES[factory.__name__] = factory
    return factory


def model_names() -> tuple[str, ...]:
    """All registered models."""
    for module in _MODULES:
        importlib.import_module(f"oc_perception.models.{module}")
    return tuple(sorted(_FACTORIES))


def checkpoint_names() -> tuple[str, ...]:
    """All shipped checkpoints."""
    return tuple(sorted(path.parent.name for path in _weights().glob("*/config.yaml")))


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


def load_model(name_or_directory: str | Path, device: str = "cpu") -> nn.Module:
    """A model ready for inference, in this order: `name[:key=value,...]` of a model without
    weights (`grid`), a checkpoint directory, or the name of a shipped checkpoint.

    Raises ModelError when it does not exist, is damaged, or does not fit its configuration, and
    when there is no such device.
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
        return create_model(name, **config).eval().to(device)
    directory = checkpoint_directory(name_or_directory)
    if not directory.is_dir():
        known = checkpoint_names()
        raise ModelError(
            f"No checkpoint {str(name_or_directory)!r}: give a directory written by `oc-perception"
            f" train`, or a shipped name.{nearest(name, known) if known else ''}"
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
    return model.eval().to(device, memory_format=torch.channels_last)  # faster, on CPUs too


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
