# SPDX-License-Identifier: Apache-2.0
"""Real rclpy and Fast DDS in this process: a domain per module, deadlines, no sleeps."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

from oc_perception.nodes.conversions import to_header, to_image_message

os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
PERIOD_NS = 33_000_000
_DOMAINS = itertools.count(os.getpid())


class Graph:
    """A context with nodes under test, and a node `peer` that feeds and listens."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(args=[], context=self.context, domain_id=1 + next(_DOMAINS) % 100)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.nodes: list = []
        self.peer = self.add(rclpy.create_node("peer", context=self.context))
        self.diagnostics: list[DiagnosticStatus] = []
        self.listen(DiagnosticArray, "/diagnostics", lambda m: self.diagnostics.extend(m.status))
        self.random = np.random.default_rng(0)
        # In the past, so that stamps may advance faster than time does.
        self.stamp_ns = time.time_ns() - 3600 * 10**9

    def add(self, node: Any) -> Any:
        self.executor.add_node(node)
        self.nodes.append(node)
        return node

    def remove(self, node: Any) -> None:
        self.executor.remove_node(node)
        self.nodes.remove(node)
        node.destroy_node()

    def make(self, factory: type, arguments: tuple[str, ...] = (), **parameters: Any) -> Any:
        """A node with these parameters and command line arguments."""
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        return self.add(
            factory(
                context=self.context,
                parameter_overrides=overrides,
                cli_args=["--ros-args", *arguments] if arguments else None,
            )
        )

    def listen(
        self, message_type: type, topic: str, callback: Callable[[Any], None] | None = None
    ) -> list:
        received: list = []
        # deep enough that a stall of this process overwrites nothing
        profile = QoSProfile(depth=1000)
        self.peer.create_subscription(message_type, topic, callback or received.append, profile)
        return received

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> Any:
        """Spin until the condition holds and return what it returned; fail at the deadline."""
        deadline_s = time.monotonic() + timeout_s
        while not (result := condition()):
            if time.monotonic() > deadline_s:
                pytest.fail(f"{what}: not within {timeout_s} s")
            self.executor.spin_once(timeout_sec=0.02)
        return result

    def status_of(self, node: Any, text: str, level: bytes | None = None) -> DiagnosticStatus:
        """A diagnostic status of the node, published from now on, whose message holds `text`."""
        del self.diagnostics[:]
        name = node.get_fully_qualified_name().lstrip("/")

        def found() -> DiagnosticStatus | None:
            for status in self.diagnostics:
                if status.name == name and text in status.message:
                    return status
            node.diagnostics.publish()  # rather than wait for its timer
            return None

        status = self.until(found, f"diagnostic of {name} with {text!r}")
        assert level is None or status.level == level
        return status

    def counts(self, node: Any) -> dict[str, int]:
        """The counters of a node, from a new diagnostic status."""
        values = self.status_of(node, "").values
        return {item.key: int(item.value) for item in values if item.value.isdigit()}

    def advance(self, nanoseconds: int = PERIOD_NS) -> int:
        self.stamp_ns += nanoseconds
        return self.stamp_ns

    def picture(self, height: int = 48, width: int = 64) -> np.ndarray:
        """Noise that no other frame repeats."""
        return self.random.integers(0, 256, (height, width, 3), np.uint8)

    def image(self, stamp_ns: int | None = None, picture: np.ndarray | None = None) -> Image:
        """A valid image message, one period after the last."""
        stamp_ns = self.advance() if stamp_ns is None else stamp_ns
        picture = self.picture() if picture is None else picture
        return to_image_message(picture, to_header(stamp_ns, "camera"))

    def close(self) -> None:
        for node in self.nodes:
            node.destroy_node()
        self.executor.shutdown()
        rclpy.shutdown(context=self.context)
