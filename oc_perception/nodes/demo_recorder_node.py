# SPDX-License-Identifier: Apache-2.0
"""demo_recorder_node: starts the simulated camera when the chain is ready, and records the run.

    python -m oc_perception.nodes.demo_recorder_node PLAN.json

Part of `oc-perception demo`. Writes results/ (mcap, times are those of arrival), annotated.mp4 and
contact_sheet.png into the plan's output directory, then exits.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.srv import SetParameters
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import String

from oc_perception import msg as messages
from oc_perception.bags.writer import BagWriter
from oc_perception.configuration import from_mapping
from oc_perception.evaluation.demo import DIAGNOSTICS, RECORDED, TRUE_TRACKS, DemoPlan
from oc_perception.evaluation.draw import VideoWriter, contact_sheet, write_png
from oc_perception.nodes.conversions import to_frame, to_nanoseconds
from oc_perception.progress import Progress

CAMERA = "camera_simulator_node"
CHAIN = ("discovery_node", "tracking_node", "visualization_node")
_TYPES = {
    "oc_perception/msg/ObjectSegmentation": messages.ObjectSegmentation,
    "oc_perception/msg/TrackArray": messages.TrackArray,
    "oc_perception/msg/PredictedTrajectoryArray": messages.PredictedTrajectoryArray,
    "diagnostic_msgs/msg/DiagnosticArray": DiagnosticArray,
}
_READY_S = 120.0
_SETTLE_S = 1.0  # matched on our side; the others need a moment
_TAIL_S = 2.5  # the last answers and one more round of diagnostics


class DemoError(RuntimeError):
    """The run cannot go on; the message says why."""


class Pictures:
    """Video and contact sheet, encoded on a thread of its own so that recording never waits."""

    def __init__(self, plan: DemoPlan) -> None:
        self._plan = plan
        self._waiting: queue.Queue[tuple[int, np.ndarray] | None] = queue.Queue(maxsize=30)
        self._tiles: list[np.ndarray] = []
        self._moments = list(plan.moments())
        self.start_ns: int | None = None
        self.skipped = 0
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)

    def __enter__(self) -> Pictures:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()

    def put(self, stamp_ns: int, picture: np.ndarray) -> None:
        """Hand over a picture; left out when encoding is far behind."""
        try:
            self._waiting.put_nowait((stamp_ns, picture))
        except queue.Full:
            self.skipped += 1

    def _run(self) -> None:
        output = Path(self._plan.output)
        period_ns = 1e9 / self._plan.rate_hz
        with ExitStack() as stack:
            video = None
            while (item := self._waiting.get()) is not None:
                stamp_ns, picture = item
                if video is None:
                    size = picture.shape[:2]
                    video = stack.enter_context(
                        VideoWriter(output / "annotated.mp4", self._plan.rate_hz, *size)
                    )
                video.write(picture)
                if self.start_ns is None or not self._moments:
                    continue
                # Half a period of tolerance: coasting stamps are predictions.
                if stamp_ns >= self.start_ns + (self._moments[0] - 0.5) * period_ns:
                    self._tiles.append(picture)
                    self._moments.pop(0)
        if self._tiles:
            write_png(output / "contact_sheet.png", contact_sheet(self._tiles))


class DemoRecorderNode(Node):
    """Subscribes to everything the demo is measured by; messages stay bytes."""

    def __init__(self, plan: DemoPlan, bag: BagWriter, pictures: Pictures) -> None:
        super().__init__("demo_recorder_node")
        self._plan, self._bag, self._pictures = plan, bag, pictures
        self._statuses: dict[str, DiagnosticStatus] = {}
        self._camera: dict[str, Any] = {"state": "starting"}
        self._recording = False
        self._progress: Progress | None = None
        for topic, kind in RECORDED.items():
            self.create_subscription(
                _TYPES[kind], topic, self._recorder(topic, kind), QoSProfile(depth=100), raw=True
            )
        self.create_subscription(Image, "/visualization_node/image", self._keep_picture, 10)
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(String, f"/{CAMERA}/summary", self._learn, latched)
        self._client = self.create_client(SetParameters, f"/{CAMERA}/set_parameters")

    def record(self) -> None:
        """Wait for the chain, let the camera run, and stay until it has finished.

        Raises DemoError when that takes too long or a node reports a fault of its own.
        """
        self._spin_until(self._ready, _READY_S, self._missing)
        self._spin_for(_SETTLE_S)
        self._recording = True
        self._progress = Progress("frames", self._plan.frames)
        go = Parameter("running", value=True).to_parameter_msg()
        answer = self._client.call_async(SetParameters.Request(parameters=[go]))
        self._spin_until(answer.done, 10.0, lambda: "the camera does not answer")
        self._spin_until(
            lambda: self._camera["state"] in ("finished", "failed"),
            2 * self._plan.seconds + 30,
            lambda: f"the camera is {self._camera['state']}",
        )
        if self._camera["state"] == "failed":
            raise DemoError(f"The camera failed: {self._camera.get('error')}")
        self._spin_for(_TAIL_S)
        self._progress.finish()

    def _recorder(self, topic: str, kind: str) -> Callable[[bytes, dict], None]:
        def receive(data: bytes, info: dict) -> None:
            if topic == DIAGNOSTICS:
                for status in deserialize_message(data, DiagnosticArray).status:
                    self._statuses[status.name] = status
            if self._recording:
                # When the middleware had it: our own queue is not part of what is measured.
                self._bag.write_raw(topic, info["received_timestamp"], kind, data)
                if topic == TRUE_TRACKS:
                    self._count(data)

        return receive

    def _count(self, data: bytes) -> None:
        if self._pictures.start_ns is None:
            header = deserialize_message(data, messages.TrackArray).header
            self._pictures.start_ns = to_nanoseconds(header.stamp)
        self._progress.advance()

    def _keep_picture(self, message: Image) -> None:
        if self._recording:
            self._pictures.put(to_nanoseconds(message.header.stamp), to_frame(message))

    def _learn(self, message: String) -> None:
        self._camera = json.loads(message.data)

    def _ready(self) -> bool:
        for name in CHAIN:
            status = self._statuses.get(name)
            fault = self._value(name, "life_cycle_state") == "unconfigured"
            if fault and status.level == DiagnosticStatus.ERROR:
                raise DemoError(f"{name}: {status.message}")
        if self._camera["state"] == "failed":
            raise DemoError(f"The camera failed: {self._camera.get('error')}")
        return not self._missing()

    def _missing(self) -> str:
        """What the run still waits for, empty if nothing."""
        waiting = [n for n in CHAIN if self._value(n, "life_cycle_state") != "active"]
        if self._camera["state"] != "ready":
            waiting.append(f"{CAMERA} ({self._camera['state']})")
        waiting += [t for t in RECORDED if not self.count_publishers(t)]
        if not self._client.service_is_ready():
            waiting.append(f"the parameters of {CAMERA}")
        return ", ".join(waiting)

    def _value(self, node: str, key: str) -> str:
        status = self._statuses.get(node)
        values = status.values if status else []
        return next((v.value for v in values if v.key == key), "")

    def _spin_for(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left_s)

    def _spin_until(
        self, condition: Callable[[], bool], limit_s: float, why: Callable[[], str]
    ) -> None:
        end_s = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > end_s:
                raise DemoError(f"Nothing came for {limit_s:.0f} s. Waiting for: {why()}.")
            rclpy.spin_once(self, timeout_sec=0.05)


def main() -> int:
    """Record one run; 2 if it could not be."""
    plan = from_mapping(DemoPlan, json.loads(Path(sys.argv[1]).read_text()))
    rclpy.init()
    try:
        with (
            BagWriter(Path(plan.output) / "results", compress=True, overwrite=True) as bag,
            Pictures(plan) as pictures,
        ):
            DemoRecorderNode(plan, bag, pictures).record()
    except DemoError as error:
        print(error, file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
