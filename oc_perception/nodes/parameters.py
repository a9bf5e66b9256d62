# SPDX-License-Identifier: Apache-2.0
"""What a parameter is, which values it takes, and how tables of them are written down.

The tables stand in parameter_tables.py; `python -m oc_perception.nodes.parameters` prints them as
docs/parameters.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from oc_perception.configuration import nearest

Value = bool | int | float | str
T = TypeVar("T")


@dataclass(frozen=True)
class Parameter:
    """One parameter; its type is that of the default."""

    name: str
    default: Value
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = False

    @property
    def range_text(self) -> str:
        """The allowed values in words, empty if all are."""
        if self.choices:
            return ", ".join(f"`{choice}`" for choice in self.choices)
        low, high = self.minimum, self.maximum
        if low is None and high is None:
            return ""
        if high is None:
            return f">= {low:g}"
        return f"{low:g} to {high:g}" if low is not None else f"<= {high:g}"


class ParameterError(ValueError):
    """A value that a parameter cannot take; the text names the parameter and what it can take."""


def check(parameter: Parameter, value: Any) -> Value:
    """`value` as the parameter's type (an int becomes a float where one is asked for).

    Raises ParameterError.
    """
    kind = type(parameter.default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        words = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
        raise ParameterError(f"{parameter.name} must be {words[kind]}, not {value!r}.")
    if kind is float and not math.isfinite(value):
        raise ParameterError(f"{parameter.name} must be a finite number, not {value}.")
    too_low = parameter.minimum is not None and value < parameter.minimum
    too_high = parameter.maximum is not None and value > parameter.maximum
    if too_low or too_high or (parameter.choices and value not in parameter.choices):
        allowed = parameter.range_text.replace("`", "")
        raise ParameterError(f"{parameter.name} = {value!r} is not allowed: choose {allowed}.")
    return value


def find(table: tuple[Parameter, ...], name: str) -> Parameter:
    """The parameter of that name. Raises ParameterError naming the nearest."""
    for parameter in table:
        if parameter.name == name:
            return parameter
    raise ParameterError(unknown(table, name))


def unknown(table: tuple[Parameter, ...], name: str) -> str:
    """The sentence for a parameter that does not exist."""
    return f"Unknown parameter {name!r}.{nearest(name, [p.name for p in table])}"


def defaults(table: tuple[Parameter, ...]) -> dict[str, Value]:
    """The mapping of all names to their defaults."""
    return {parameter.name: parameter.default for parameter in table}


def of_dataclass(cls: type, prefix: str, rows: Mapping[str, tuple]) -> tuple[Parameter, ...]:
    """A row per field of a configuration dataclass; `rows` has description, minimum, maximum,
    choices, as far as there are such.
    """
    fields = {field.name: field.default for field in dataclasses.fields(cls)}
    if fields.keys() != rows.keys():
        raise TypeError(f"{cls.__name__} and its table differ in {fields.keys() ^ rows.keys()}.")
    return tuple(Parameter(prefix + name, fields[name], *row) for name, row in rows.items())


def to_dataclass(cls: type[T], prefix: str, values: Mapping[str, Value]) -> T:
    """The dataclass from a mapping of `prefix` and field names. Raises ValueError as it does."""
    return cls(**{field.name: values[prefix + field.name] for field in dataclasses.fields(cls)})


def render(tables: Mapping[str, tuple[Parameter, ...]]) -> str:
    """docs/parameters.md from the tables of all nodes."""
    lines = [
        "# Parameters",
        "",
        "Written by `python -m oc_perception.nodes.parameters > docs/parameters.md`; do not edit.",
        "",
        "Set them in `config/*.yaml`, with `oc-perception up ... --set node.parameter=value`, "
        "or at run time with `ros2 param set /node parameter value`. A change is checked as a "
        "whole: all of it is taken, or nothing, with the reason. All nodes also take "
        "`qos_overrides.<topic>.{publisher,subscription}.{history,depth,reliability}`.",
    ]
    for node, table in tables.items():
        lines += [
            "",
            f"## {node}",
            "",
            "| parameter | type | default | range | description |",
            "|---|---|---|---|---|",
        ]
        for p in table:
            kind = type(p.default).__name__ + (", read-only" if p.read_only else "")
            lines.append(
                f"| `{p.name}` | {kind} | {_literal(p.default)} | {p.range_text} | "
                f"{p.description} |"
            )
    return "\n".join(lines) + "\n"


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:.6g}`" if isinstance(value, float) else f"`{value}`"


if __name__ == "__main__":
    from oc_perception.nodes.parameter_tables import TABLES

    print(render(TABLES), end="")
