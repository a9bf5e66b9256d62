# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node whose parameters come from a table and change all at once or not at all."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter as RosParameter

from oc_perception.nodes.diagnostics import ERROR, Diagnostics
from oc_perception.nodes.parameters import Parameter, ParameterError, check, find, unknown

# Declared by rclpy itself, not by our tables.
FOREIGN_PARAMETERS = ("use_sim_time", "start_type_description_service", "qos_overrides.")


class ParameterNode(LifecycleNode):
    """Shows unknown and unusable parameters in `diagnostics`; `invalid` has the latter by name."""

    def __init__(self, name: str, table: tuple[Parameter, ...], **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self._table = table
        self.diagnostics = Diagnostics(self)
        self._values, self.invalid = self._declare()
        self.add_on_set_parameters_callback(self._validate)
        self.add_post_set_parameters_callback(self._store)

    def check_values(self, values: dict[str, Any]) -> None:
        """Check parameters against one another. Raises ValueError."""

    def parameters_changed(self) -> None:
        """New values are in force, on the executor's thread."""

    def value(self, name: str) -> Any:
        """The value of a parameter now."""
        return self._values[name]

    @property
    def values(self) -> dict[str, Any]:
        """All parameters now; replaced as a whole at a change, never modified."""
        return self._values

    def _declare(self) -> tuple[dict[str, Any], dict[str, str]]:
        values, invalid = {}, {}
        # rclpy offers no public way to see overrides before they are declared.
        overrides = {name: p.value for name, p in self._parameter_overrides.items()}
        for parameter in self._table:
            values[parameter.name] = parameter.default
            try:
                if parameter.name in overrides:
                    values[parameter.name] = check(parameter, overrides[parameter.name])
            except ParameterError as error:
                invalid[parameter.name] = str(error)
            self.declare_parameter(
                parameter.name,
                values[parameter.name],
                descriptor(parameter),
                ignore_override=True,
            )
        strangers = [
            unknown(self._table, name)
            for name in sorted(overrides.keys() - values.keys())
            if not name.startswith(FOREIGN_PARAMETERS)
        ]
        try:
            self.check_values(values)
        except ValueError as error:
            invalid[""] = str(error)
        for message in [*strangers, *invalid.values()]:
            self.get_logger().error(message)
        self.diagnostics.condition("unknown parameters", " ".join(strangers) or None, ERROR)
        self.diagnostics.condition("parameters", " ".join(invalid.values()) or None, ERROR)
        return values, invalid

    def set_parameters_atomically(self, parameter_list: list[RosParameter]) -> SetParametersResult:
        """All or nothing; a refusal names the parameter and the cure, as rclpy's own would not."""
        refusal = self._validate(parameter_list)
        if not refusal.successful:
            return refusal
        return super().set_parameters_atomically([self._typed(p) for p in parameter_list])

    def _typed(self, change: RosParameter) -> RosParameter:
        """An integer as the number that the parameter is; rclpy would refuse it."""
        if change.name not in self._values:
            return change
        return RosParameter(change.name, value=check(find(self._table, change.name), change.value))

    def _validate(self, changes: list[RosParameter]) -> SetParametersResult:
        proposed = dict(self._values)
        try:
            for change in changes:
                if change.name.startswith(FOREIGN_PARAMETERS):
                    continue
                parameter = find(self._table, change.name)
                proposed[change.name] = check(parameter, change.value)
                if parameter.read_only and proposed[change.name] != self._values[change.name]:
                    raise ParameterError(
                        f"{change.name} is read-only: set it when the node is started."
                    )
            self.check_values(proposed)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _store(self, changes: list[RosParameter]) -> None:
        ours = {c.name: c.value for c in changes if c.name in self._values}
        self._values = {**self._values, **ours}
        for name in [*ours, ""]:
            self.invalid.pop(name, None)
        remaining = " ".join(self.invalid.values())
        self.diagnostics.condition("parameters", remaining or None, ERROR)
        self.parameters_changed()


def descriptor(parameter: Parameter) -> ParameterDescriptor:
    """The declaration of a table's row."""
    result = ParameterDescriptor(
        description=parameter.description,
        read_only=parameter.read_only,
        additional_constraints=parameter.range_text,
    )
    low, high = parameter.minimum, parameter.maximum
    if low is not None and high is not None:
        if isinstance(parameter.default, float):
            limits = FloatingPointRange(from_value=float(low), to_value=float(high))
            result.floating_point_range = [limits]
        else:
            result.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
    return result
