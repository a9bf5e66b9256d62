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
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

from oc_perception import msg as messages
from oc_perception.bags.writer import BagWriter
from oc_perception.configuration import from_mapping
from oc_perception.evaluation.demo import RECORDED, TRUE_TRACKS, DemoPlan, stamp_of
from oc_perception.evaluation.draw import VideoWriter, contact_sheet, write_png
from oc_perception.memory import keep_freed_memory
from oc_perception.nodes.conversions import to_frame, to_nanoseconds
from oc_perception.nodes.observer import ChainError, ChainObserver
from oc_perception.progress import Progress

CHAIN = ("discovery_node", "tracking_node", "visualization_node")
_TYPES = {
    "oc_perception/msg/ObjectSegmentation": messages.ObjectSegmentation,
    "oc_perception/msg/TrackArray": messages.TrackArray,
    "oc_perception/msg/PredictedTrajectoryArray": messages.PredictedTrajectoryArray,
    "diagnostic_msgs/msg/DiagnosticArray": DiagnosticArray,
}


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
                if self.start_ns is not None:
                    # Half a period of tolerance: coasting stamps are predictions.
                    reached = (stamp_ns - self.start_ns) / period_ns + 0.5
                    while self._moments and self._moments[0] <= reached:
                        self._tiles.append(picture)
                        self._moments.pop(0)
        if self._tiles:
            write_png(output / "contact_sheet.png", contact_sheet(self._tiles))


class DemoRecorderNode(ChainObserver):
    """Subscribes to everything the demo is measured by; messages stay bytes."""

    def __init__(self, plan: DemoPlan, bag: BagWriter, pictures: Pictures) -> None:
        super().__init__("demo_recorder_node", CHAIN)
        self._plan, self._bag, self._pictures = plan, bag, pictures
        self._progress: Progress | None = None
        for topic, kind in RECORDED.items():
            self.create_subscription(
                _TYPES[kind], topic, self._recorder(topic, kind), QoSProfile(depth=100), raw=True
            )
        self.create_subscription(Image, "/visualization_node/image", self._keep_picture, 10)

    def record(self) -> None:
        """Record one run. Raises ChainError."""
        self.observe(self._plan.seconds)
        self._progress.finish()

    def _recorder(self, topic: str, kind: str) -> Callable[[bytes, dict], None]:
        def receive(data: bytes, info: dict) -> None:
            if self.running:
                # When the middleware had it: our own queue is not part of what is measured.
                self._bag.write_raw(topic, info["received_timestamp"], kind, data)
                if topic == TRUE_TRACKS:
                    self._count(data)

        return receive

    def _count(self, data: bytes) -> None:
        if self._progress is None:
            self._progress = Progress("frames", self._plan.frames)
            self._pictures.start_ns = stamp_of(data)
        self._progress.advance()

    def _keep_picture(self, message: Image) -> None:
        if self.running:
            self._pictures.put(to_nanoseconds(message.header.stamp), to_frame(message))


def main() -> int:
    """Record one run; 2 if it could not be."""
    plan = from_mapping(DemoPlan, json.loads(Path(sys.argv[1]).read_text()))
    keep_freed_memory()
    rclpy.init()
    try:
        with (
            BagWriter(Path(plan.output) / "results", compress=True, overwrite=True) as bag,
            Pictures(plan) as pictures,
        ):
            DemoRecorderNode(plan, bag, pictures).record()
    except ChainError as error:
        print(error, file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
