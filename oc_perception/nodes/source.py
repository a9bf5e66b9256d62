# SPDX-License-Identifier: Apache-2.0
"""What the nodes that feed the others share: start-up, pause, and pacing on the steady clock."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

from oc_perception.memory import keep_freed_memory
from oc_perception.nodes.diagnostics import Diagnostics
from oc_perception.nodes.parameter_node import FOREIGN_PARAMETERS, descriptor
from oc_perception.nodes.parameters import Parameter, ParameterError, check, unknown

_POLL_S = 0.05
_DISCOVERY_S = 0.5  # a matched subscriber needs a moment until it has matched us, too


class SourceNode(Node):
    """A node whose own thread publishes on schedule, while the executor serves parameters.

    A subclass defines `produce`. What it is doing is published, latched, as JSON on `~/summary`.
    Raises ValueError for parameters that cannot be.
    """

    def __init__(self, name: str, table: tuple[Parameter, ...], **kwargs: Any) -> None:
        # First what `destroy_node` needs: a context also destroys nodes that could not be made.
        self.ended = threading.Event()
        self.failed = False
        self._stopped = threading.Event()
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        super().__init__(name, **kwargs)
        self.values = self._declare(table)
        if self.values["running"]:
            self._running.set()
        self.add_on_set_parameters_callback(self._set)
        self.diagnostics = Diagnostics(self)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._summary = self.create_publisher(String, "~/summary", latched)

    def produce(self) -> None:
        """Publish everything; return at the end, or soon after `sleep_until` said False."""
        raise NotImplementedError

    def start(self) -> None:
        """Let the thread begin."""
        self._thread.start()

    @property
    def stopped(self) -> bool:
        """Whether the node is being destroyed."""
        return self._stopped.is_set()

    def summarize(self, state: str, **numbers: Any) -> None:
        """Publish what the node is doing."""
        self.diagnostics.value("state", state)
        self._summary.publish(String(data=json.dumps({"state": state, **numbers})))

    def sleep_until(self, steady_s: float) -> bool:
        """Sleep until `time.monotonic()` is `steady_s`; False if the node must stop."""
        return not self._stopped.wait(max(0.0, steady_s - time.monotonic()))

    def hold(self) -> float:
        """Wait while `running` is false; the seconds it took."""
        began_s = time.monotonic()
        while not self._running.wait(_POLL_S) and not self.stopped:
            pass
        return time.monotonic() - began_s

    def wait_for_subscribers(self, publishers: list) -> None:
        """Wait until each publisher has a subscriber, up to the parameter's time."""
        deadline_s = time.monotonic() + self.values["wait_for_subscribers_s"]
        while time.monotonic() < deadline_s and not self.stopped:
            if all(publisher.get_subscription_count() for publisher in publishers):
                self.sleep_until(time.monotonic() + _DISCOVERY_S)
                return
            self.sleep_until(time.monotonic() + _POLL_S)

    def destroy_node(self) -> None:
        """Stop the thread before its publishers go."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        super().destroy_node()

    def _declare(self, table: tuple[Parameter, ...]) -> dict[str, Any]:
        values = {}
        for parameter in table:
            override = self._parameter_overrides.get(parameter.name)
            value = parameter.default if override is None else check(parameter, override.value)
            self.declare_parameter(
                parameter.name, value, descriptor(parameter), ignore_override=True
            )
            values[parameter.name] = value
        for name in self._parameter_overrides.keys() - values.keys():
            if not name.startswith(FOREIGN_PARAMETERS):
                raise ParameterError(unknown(table, name))
        return values

    def _set(self, changes: list[RosParameter]) -> SetParametersResult:
        for change in changes:
            if change.name == "running":
                if not isinstance(change.value, bool):
                    return SetParametersResult(
                        successful=False, reason="running must be true or false."
                    )
                (self._running.set if change.value else self._running.clear)()
        return SetParametersResult(successful=True)

    def _run(self) -> None:
        try:
            self.produce()
        except Exception as error:  # the executor's thread must hear of it
            if not self.stopped:
                self.failed = True
                expected = isinstance(error, (ValueError, OSError))
                text = str(error) if expected else "".join(traceback.format_exception(error))
                self.get_logger().error(text)
                self.summarize("failed", error=str(error))
        finally:
            self.ended.set()


def run(factory: Callable[[], SourceNode], until_ended: bool) -> int:
    """Main function of a source's process; with `until_ended` it exits when all is published.

    The exit status is 1 where publishing failed, 2 where it could not begin.
    """
    keep_freed_memory()
    rclpy.init(args=sys.argv)
    try:
        node = factory()
    except (ValueError, OSError) as error:
        print(f"{error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        node.start()
        while not (until_ended and node.ended.is_set()):
            executor.spin_once(timeout_sec=_POLL_S if until_ended else None)
    except (KeyboardInterrupt, ExternalShutdownException):
        node.get_logger().debug("shut down by signal")
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return int(node.failed)
