# SPDX-License-Identifier: Apache-2.0
"""latency_probe_node: how long after an image's stamp the tracks arrive at a subscriber.

    python -m oc_perception.nodes.latency_probe_node SECONDS RESULT.json

Part of `oc-perception benchmark latency`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import rclpy
from rclpy.executors import ExternalShutdownException

from oc_perception import msg as messages
from oc_perception.nodes.conversions import to_nanoseconds
from oc_perception.nodes.observer import CAMERA, ChainError, ChainObserver
from oc_perception.types import SensorState


class LatencyProbeNode(ChainObserver):
    """Notes when what arrives, and does nothing else that could take time."""

    def __init__(self) -> None:
        super().__init__("latency_probe_node", ("discovery_node", "tracking_node"))
        self.published: list[int] = []
        self.answers: list[tuple[int, int]] = []
        tracks = messages.TrackArray
        self.create_subscription(
            tracks, f"/{CAMERA}/ground_truth/tracks", self._note_published, 100
        )
        self.create_subscription(tracks, "/tracking_node/tracks", self._note_answer, 100)

    def _note_published(self, message: messages.TrackArray) -> None:
        if self.running:
            self.published.append(to_nanoseconds(message.header.stamp))

    def _note_answer(self, message: messages.TrackArray) -> None:
        arrival_ns = time.time_ns()
        if self.running and message.sensor_state == SensorState.OK:
            self.answers.append((to_nanoseconds(message.header.stamp), arrival_ns))


def main() -> int:
    """Measure one run; 2 if it could not be."""
    seconds, result_file = float(sys.argv[1]), Path(sys.argv[2])
    rclpy.init()
    node = LatencyProbeNode()
    try:
        node.observe(seconds)
    except ChainError as error:
        print(error, file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130
    finally:
        rclpy.try_shutdown()
    result = {
        "published": node.published,
        "answers": node.answers,
        "dropped": int(node.value("discovery_node", "dropped")),
        "lost": int(node.value("discovery_node", "lost")),
    }
    result_file.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
