# SPDX-License-Identifier: Apache-2.0
"""The parameter tables, their rendering, and the YAML files that set them."""

from __future__ import annotations

import math

import pytest
import yaml

from oc_perception.nodes.parameter_tables import TABLES, sensor_config, tracker_config
from oc_perception.nodes.parameters import (
    Parameter,
    ParameterError,
    check,
    defaults,
    find,
    render,
)
from oc_perception.resources import share_directory
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.sensor import SensorMonitorConfig

FLOAT = Parameter("rate_hz", 30.0, "", 1.0, 60.0)
WORD = Parameter("mode", "raw", "", choices=("raw", "compressed"))


@pytest.mark.parametrize(
    ("parameter", "value", "reason"),
    [
        (FLOAT, math.nan, "finite"),
        (FLOAT, math.inf, "finite"),
        (FLOAT, 0.5, "choose 1 to 60"),
        (FLOAT, 61, "choose 1 to 60"),
        (FLOAT, "fast", "a number"),
        (FLOAT, True, "a number"),
        (WORD, "theora", "choose raw, compressed"),
        (Parameter("count", 1, ""), 1.5, "an integer"),
        (Parameter("count", 1, ""), True, "an integer"),
        (Parameter("flag", True, ""), 1, "true or false"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_with_what_is_allowed(parameter, value, reason) -> None:
    with pytest.raises(ParameterError, match=parameter.name) as error:
        check(parameter, value)
    assert reason in str(error.value)


def test_an_integer_serves_where_a_number_is_asked_for() -> None:
    value = check(FLOAT, 30)
    assert value == 30.0
    assert isinstance(value, float)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ParameterError, match="Did you mean 'rate_hz'"):
        find((FLOAT, WORD), "rate_hx")


@pytest.mark.parametrize("node", TABLES)
def test_each_table_has_unique_names_descriptions_and_defaults_that_are_allowed(node) -> None:
    table = TABLES[node]
    assert len({parameter.name for parameter in table}) == len(table)
    for parameter in table:
        assert check(parameter, parameter.default) == parameter.default
        assert parameter.description.endswith(".")


def test_the_defaults_are_those_of_the_dataclasses() -> None:
    assert tracker_config(defaults(TABLES["tracking_node"])) == TrackerConfig()
    assert sensor_config(defaults(TABLES["discovery_node"])) == SensorMonitorConfig()


def test_the_documentation_is_current() -> None:
    path = share_directory() / "docs" / "parameters.md"
    hint = "run `python -m oc_perception.nodes.parameters > docs/parameters.md`"
    assert path.read_text() == render(TABLES), hint


@pytest.mark.parametrize(
    "path", sorted((share_directory() / "config").glob("*.yaml")), ids=lambda p: p.name
)
def test_the_shipped_files_set_only_what_exists(path) -> None:
    for pattern, content in yaml.safe_load(path.read_text()).items():
        table = TABLES[pattern.rpartition("/")[2]]
        for name, value in content["ros__parameters"].items():
            check(find(table, name), value)
