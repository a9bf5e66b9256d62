# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses from mappings and YAML files; an unknown key is an error that names the
nearest key.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


class ConfigurationError(ValueError):
    """A configuration value or key that cannot be used; the message names the cause and the
    cure.
    """


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest known name, or a list of what exists."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {match[0]!r}?" if match else f" Known: {', '.join(known)}."


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Build the frozen dataclass `cls` from a mapping, nested dataclasses included.

    Raises ConfigurationError for an unknown key, a missing key, or a value of the wrong type.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(mapping, Mapping):
        raise ConfigurationError(f"{where or cls.__name__} must be a mapping, not {mapping!r}.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in mapping.items():
        if key not in fields:
            raise ConfigurationError(
                f"Unknown key {prefix + str(key)!r}.{nearest(str(key), fields)}"
            )
        values[key] = _convert(hints[key], value, prefix + key)
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigurationError(f"{where or cls.__name__}: missing {', '.join(missing)}.")
    try:
        return cls(**values)
    except ValueError as error:  # a dataclass's own __post_init__ check
        raise ConfigurationError(f"{where or cls.__name__}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        chosen = [a for a in arguments if a is not type(None)]
        return _convert(chosen[0], value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigurationError(f"{where} must be a list, not {value!r}.")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], v, where) for v in value)
        if len(value) != len(arguments):
            raise ConfigurationError(
                f"{where} must have {len(arguments)} entries, not {len(value)}."
            )
        return tuple(_convert(a, v, where) for a, v in zip(arguments, value, strict=True))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is int and isinstance(value, bool))
    ):
        return value
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    raise ConfigurationError(f"{where} must be {getattr(hint, '__name__', hint)}, not {value!r}.")


def to_mapping(configuration: Any) -> dict[str, Any]:
    """The plain mapping of a configuration dataclass, ready for YAML (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(configuration))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises ConfigurationError when it is missing, unreadable or not
    a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"Cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold a YAML mapping.")
    return content


def node_parameters(content: dict[str, Any], node: str) -> dict[str, Any]:
    """What a ROS parameter file sets for `node` in any namespace, as a mapping of its own; without
    an entry for it, `content` itself: so one file serves the node and what runs without ROS.
    """
    for name, entry in content.items():
        if str(name).rpartition("/")[2] == node and isinstance(entry, Mapping):
            return dict(entry.get("ros__parameters") or {})
    return content


def override(mapping: Mapping[str, Any], assignments: typing.Iterable[str]) -> dict[str, Any]:
    """A copy of `mapping` with `key.sub=value` assignments applied (values parsed as YAML)."""
    result = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in mapping.items()
    }
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigurationError(f"{assignment!r} is not of the form key=value.")
        *parents, last = path.split(".")
        target = result
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigurationError(f"{path!r}: {parent!r} is not a mapping.")
        target[last] = yaml.safe_load(text)
    return result
