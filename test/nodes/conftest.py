# SPDX-License-Identifier: Apache-2.0
"""Node tests need ROS 2 and the built messages: without them modules skip and say why."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ros_graph import Graph

MISSING = [m for m in ("rclpy", "oc_perception.msg") if importlib.util.find_spec(m) is None]


class WithoutRos(pytest.Module):
    """A test module that cannot be imported here."""

    def collect(self) -> list:
        pytest.skip(f"{MISSING[0]} is not installed: run `make setup`", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Any:
    return WithoutRos.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="module")
def graph() -> Iterator[Graph]:
    from ros_graph import Graph

    graph = Graph()
    yield graph
    graph.close()


@pytest.fixture
def added(graph: Graph) -> Iterator[Callable[..., Any]]:
    """Makes nodes that live for one test."""
    made = []

    def make(*arguments: Any, **parameters: Any) -> Any:
        made.append(graph.make(*arguments, **parameters))
        return made[-1]

    yield make
    for node in made:
        graph.remove(node)
