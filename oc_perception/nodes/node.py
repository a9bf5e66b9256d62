# SPDX-License-Identifier: Apache-2.0
"""What perception nodes share: life cycle, parameters from a table, a worker, diagnostics."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile

from oc_perception.memory import keep_freed_memory
from oc_perception.nodes import qos
from oc_perception.nodes.diagnostics import ERROR, frame_loss_cure
from oc_perception.nodes.parameter_node import ParameterNode
from oc_perception.nodes.parameters import Parameter, ParameterError
from oc_perception.nodes.worker import Worker

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
SILENCE_S = 3.0
OVERLOAD = (
    "Input comes faster than it can be processed, and is skipped: use a faster model or device, "
    "lower the rate of the camera, or free the processor."
)


class PerceptionNode(ParameterNode):
    """A lifecycle node with one worker thread.

    A subclass gives its parameter table and defines `configure` (raise ValueError or OSError where
    the user can put it right: the node stays unconfigured and alive), `activate`, `process`, and
    where it needs them `release`, `overdue`, `deadline`, `check_values` and `parameters_changed`.
    """

    capacity = 1
    """How many messages may wait for the worker."""

    def __init__(self, name: str, table: tuple[Parameter, ...], **kwargs: Any) -> None:
        super().__init__(name, table, **kwargs)
        self._worker: Worker | None = None
        self._inputs: list = []
        self._outputs: list = []
        self._sequence: dict[tuple[str, bytes], int] = {}
        self._failed_values: dict[str, Any] | None = None
        self.diagnostics.before_publishing = self._tick

    # ---- what a subclass defines

    def configure(self) -> None:
        """Load what is slow and create publishers and subscriptions."""
        raise NotImplementedError

    def activate(self) -> None:
        """Start from a fresh state, fast."""
        raise NotImplementedError

    def process(self, item: Any) -> None:
        """Process one item, on the worker's thread."""
        raise NotImplementedError

    def release(self) -> None:
        """Let go of what `configure` loaded."""

    def overdue(self) -> None:
        """The deadline passed without an item, on the worker's thread."""

    def deadline(self) -> float | None:
        """Steady time at which `overdue` is due."""
        return None

    # ---- topics

    def output(self, message_type: type, topic: str) -> Any:
        """A reliable publisher that is silent while the node is inactive; released by clean-up."""
        publisher = self.create_lifecycle_publisher(
            message_type, topic, qos.result(), qos_overriding_options=qos.overridable()
        )
        self._outputs.append(publisher)
        return publisher

    def input(
        self, message_type: type, topic: str, callback: Callable, profile: QoSProfile
    ) -> Any:
        """A subscription whose callback runs while the node is active; released by clean-up.

        The first one is the node's main input: there silence and lost messages are reported.
        """

        def receive(message: Any, info: dict) -> None:
            lost = self._lost_before(topic, info)
            if self._worker is not None:
                if lost and subscription is self._inputs[0]:
                    text = (
                        f"Messages on {topic} get lost before they are taken. {frame_loss_cure()}"
                    )
                    self.diagnostics.event("lost", text, amount=lost)
                callback(message)

        subscription = self.create_subscription(
            message_type, topic, receive, profile, qos_overriding_options=qos.overridable()
        )
        self._inputs.append(subscription)
        return subscription

    def _lost_before(self, topic: str, info: dict) -> int:
        """Messages that a publisher sent since its last one here, and that did not arrive."""
        # Jazzy numbers messages, but does not say whose they are: nothing can be told from that.
        number, publisher = info.get("publication_sequence_number"), info.get("publisher_gid")
        if number is None or publisher is None:
            return 0
        key = (topic, bytes(publisher["data"]))
        previous = self._sequence.get(key, number)
        self._sequence[key] = number
        return max(0, number - previous - 1)

    def submit(self, item: Any, late: bool = False) -> None:
        """Hand an item to the worker (from a subscription's callback)."""
        self._worker.put(item, late)

    # ---- life cycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load; on failure stay unconfigured, with the reason in log and diagnostics."""
        try:
            if self.invalid:
                raise ParameterError(" ".join(self.invalid.values()))
            self.configure()
        except Exception as error:  # the process must live, so that the cause can be put right
            self._release()
            self._failed_values = self.values
            return self._failed_to("configure", error)
        self._failed_values = None
        self.diagnostics.condition("life cycle", None)
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start from a fresh state."""
        started_s = time.monotonic()
        try:
            self.activate()
        except Exception as error:
            return self._failed_to("activate", error)
        super().on_activate(state)
        self._worker = Worker(
            self.process,
            self.overdue,
            self.deadline,
            lambda: self.diagnostics.event("dropped", OVERLOAD),
            self._failed_step,
            self.capacity,
        )
        self.diagnostics.condition("life cycle", None)
        self.get_logger().info(f"active after {(time.monotonic() - started_s) * 1e3:.1f} ms")
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop working; everything loaded stays."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to the beginning."""
        self._release()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and release from whatever state."""
        self._release()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release, so that the node can be configured again."""
        self._release()
        return SUCCESS

    def destroy_node(self) -> None:
        """Stop the worker before its publishers go."""
        self._stop()
        super().destroy_node()

    def start(self) -> None:
        """Configure and activate, if parameter `autostart` asks for it."""
        if self.value("autostart") and self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def _release(self) -> None:
        self._stop()
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        for publisher in self._outputs:
            self.destroy_lifecycle_publisher(publisher)
        self._inputs, self._outputs = [], []
        self.release()

    def _failed_to(self, what: str, error: Exception) -> TransitionCallbackReturn:
        message = f"Cannot {what}: {error}"
        self.get_logger().error(message)
        if not isinstance(error, (ValueError, OSError)):
            self.get_logger().error("".join(traceback.format_exception(error)))
        self.diagnostics.condition("life cycle", message, ERROR)
        return FAILURE

    def _failed_step(self, error: Exception) -> None:
        if not self.context.ok():
            return  # Ctrl-C took the publishers away in the middle of a step
        self.get_logger().error(
            "".join(traceback.format_exception(error)), throttle_duration_sec=SILENCE_S
        )
        text = f"A step failed ({type(error).__name__}: {error}): see the log of this node."
        self.diagnostics.event("failures", text, ERROR)

    def _tick(self) -> None:
        """Once a second: retry a failed start once a parameter was corrected; notice silence."""
        if self._failed_values is not None and self.values is not self._failed_values:
            self.start()
        self.diagnostics.value("life_cycle_state", self._state_machine.current_state[1])
        self.diagnostics.condition("silence", self._silence())

    def _silence(self) -> str | None:
        silence_s = self.diagnostics.silence_s
        if self._worker is None or not self._inputs:
            return None
        if silence_s is not None and silence_s < SILENCE_S:
            return None
        topic = self._inputs[0].topic_name
        if not self.count_publishers(topic):
            return f"Nobody publishes on {topic}: start the publisher or correct the remapping."
        return f"Nothing arrives on {topic}, although it has a publisher. {frame_loss_cure()}"


def run(factory: Callable[[], PerceptionNode]) -> int:
    """Main function of a node's process; returns its exit status."""
    keep_freed_memory()
    rclpy.init(args=sys.argv)
    node = factory()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        node.start()
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        node.get_logger().debug("shut down by signal")
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0
