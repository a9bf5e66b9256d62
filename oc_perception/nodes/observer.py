# SPDX-License-Identifier: Apache-2.0
"""Watches a node chain from outside: waits until it is ready, lets the simulated camera run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

CAMERA = "camera_simulator_node"
_READY_S = 120.0
_SETTLE_S = 1.0  # matched on our side; the others need a moment
_TAIL_S = 2.5  # the last answers and one more round of diagnostics


class ChainError(RuntimeError):
    """The run cannot go on; the message says why."""


class ChainObserver(Node):
    """A node that starts the camera when all nodes of `chain` are active and its inputs exist."""

    def __init__(self, name: str, chain: tuple[str, ...]) -> None:
        super().__init__(name)
        self._chain = chain
        self._statuses: dict[str, DiagnosticStatus] = {}
        self.camera: dict[str, Any] = {"state": "starting"}
        self.running = False
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(String, f"/{CAMERA}/summary", self._learn, latched)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._keep_status, 100)
        self._client = self.create_client(SetParameters, f"/{CAMERA}/set_parameters")

    def observe(self, seconds: float) -> None:
        """Wait for the chain, let the camera run for its `seconds`, and for the last answers.

        Raises ChainError when that takes too long or a node reports a fault of its own.
        """
        self._spin_until(lambda: not self._missing(), _READY_S, self._missing)
        self._spin_for(_SETTLE_S)
        self.running = True
        go = Parameter("running", value=True).to_parameter_msg()
        answer = self._client.call_async(SetParameters.Request(parameters=[go]))
        self._spin_until(answer.done, 10.0, lambda: "the camera's answer")
        self._spin_until(
            lambda: self.camera["state"] == "finished",
            2 * seconds + 30,
            lambda: f"the end of the camera, which is {self.camera['state']}",
        )
        self._spin_for(_TAIL_S)

    def value(self, node: str, key: str) -> str:
        """A value of a node's newest diagnostics, empty before there is one."""
        status = self._statuses.get(node)
        return next((v.value for v in status.values if v.key == key), "") if status else ""

    def _learn(self, message: String) -> None:
        self.camera = json.loads(message.data)

    def _keep_status(self, message: DiagnosticArray) -> None:
        self._statuses.update({status.name: status for status in message.status})

    def _missing(self) -> str:
        """What the run still waits for, empty if nothing."""
        waiting = [n for n in self._chain if self.value(n, "life_cycle_state") != "active"]
        if self.camera["state"] != "ready":
            waiting.append(f"{CAMERA} ({self.camera['state']})")
        waiting += [s.topic_name for s in self.subscriptions if not self._has_publisher(s)]
        if not self._client.service_is_ready():
            waiting.append(f"the parameters of {CAMERA}")
        return ", ".join(waiting)

    def _has_publisher(self, subscription: Any) -> bool:
        return bool(self.count_publishers(subscription.topic_name))

    def _check_faults(self) -> None:
        if self.camera["state"] == "failed":
            raise ChainError(f"{CAMERA} failed: {self.camera['error']}")
        for name in self._chain:
            if self.value(name, "life_cycle_state") == "unconfigured":
                status = self._statuses[name]
                if status.level == DiagnosticStatus.ERROR:
                    raise ChainError(f"{name}: {status.message}")

    def _spin_for(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left_s)

    def _spin_until(
        self, condition: Callable[[], bool], limit_s: float, waiting_for: Callable[[], str]
    ) -> None:
        end_s = time.monotonic() + limit_s
        while not condition():
            self._check_faults()
            if time.monotonic() > end_s:
                raise ChainError(f"{limit_s:.0f} s were not enough for {waiting_for()}.")
            rclpy.spin_once(self, timeout_sec=0.05)
