# SPDX-License-Identifier: Apache-2.0
"""bag_player_node: plays a rosbag2 (mcap, sqlite3) with `/clock`, without needing rosbag2.

Messages go out as they were recorded, byte for byte, at the distances of their recording, paced on
the steady clock. Topics whose message type is not installed are left out with a warning. In a loop
time jumps back to the start, as the clock of a robot that is reset does.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from oc_perception.bags.reader import Bag, BagError
from oc_perception.nodes import qos
from oc_perception.nodes.conversions import to_time
from oc_perception.nodes.parameter_tables import BAG_PLAYER
from oc_perception.nodes.parameters import ParameterError
from oc_perception.nodes.source import SourceNode, run

_FLUSH_S = 0.5  # how long the last messages get to leave the process


class BagPlayerNode(SourceNode):
    """Plays one bag. Raises BagError or ParameterError for what cannot be played."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("bag_player_node", BAG_PLAYER, **kwargs)
        if not self.values["bag"]:
            raise ParameterError("Parameter bag is empty: set it to a rosbag2 directory or file.")
        self._bag = Bag(self.values["bag"])
        with self._bag as bag:
            recorded = bag.topics
            wanted = _names(self.values["topics"]) or list(recorded)
            renamed = _renames(self.values["remap"])
            for topic in [*wanted, *renamed]:
                if topic not in recorded:
                    raise BagError(
                        f"{bag.path} has no topic {topic!r}. Its topics: {', '.join(recorded)}."
                    )
        self._outputs = {}
        for topic in wanted:
            kind = recorded[topic]
            message_type = _message_type(kind)
            if message_type is None:
                self.get_logger().warning(
                    f"{topic} is left out: its type {kind} is not installed here."
                )
                continue
            if kind != "rosgraph_msgs/msg/Clock":
                self._outputs[topic] = self.create_publisher(
                    message_type,
                    renamed.get(topic, topic),
                    qos.result(),
                    qos_overriding_options=qos.overridable(),
                )
        if not self._outputs:
            raise BagError(f"{self._bag.path} has no topic that can be played here.")
        clock_profile = QoSProfile(depth=1)
        self._clock_publisher = (
            self.create_publisher(Clock, "/clock", clock_profile)
            if self.values["publish_clock"]
            else None
        )
        self.messages_published = 0

    def produce(self) -> None:
        """Play the bag once, or in a loop."""
        self.summarize("ready")
        pictures = [p for p in self._outputs.values() if p.msg_type in (Image, CompressedImage)]
        self.wait_for_subscribers(pictures or list(self._outputs.values()))
        self.hold()
        self.summarize("running")
        while self._play() and self.values["loop"]:
            pass
        if not self.stopped:
            self.summarize("finished", messages_published=self.messages_published)
            self.sleep_until(time.monotonic() + _FLUSH_S)

    def _play(self) -> bool:
        """One pass through the bag; False if the node must stop."""
        rate = self.values["rate"]
        skip_ns = round(self.values["start_offset_s"] * 1e9)
        clock_step_ns = round(1e9 * rate / self.values["clock_rate_hz"])
        first_ns, published_before = None, self.messages_published
        with self._bag as bag:
            for topic, recorded_ns, _, data in bag.raw(self._outputs):
                if first_ns is None:
                    first_ns = clock_ns = recorded_ns + skip_ns
                    start_s = time.monotonic()
                if recorded_ns < first_ns:
                    continue
                start_s += self.hold()
                while self._clock_publisher is not None and clock_ns < recorded_ns:
                    if not self.sleep_until(start_s + (clock_ns - first_ns) * 1e-9 / rate):
                        return False
                    self._tell_time(clock_ns)
                    clock_ns += clock_step_ns
                due_s = start_s + (recorded_ns - first_ns) * 1e-9 / rate
                if not self.sleep_until(due_s):
                    return False
                if self._clock_publisher is not None:
                    self._tell_time(recorded_ns)
                self._outputs[topic].publish(bytes(data))
                self.messages_published += 1
                self.diagnostics.published()
        if self.messages_published == published_before:
            raise BagError(
                f"{self._bag.path} holds nothing to play after start_offset_s = "
                f"{self.values['start_offset_s']:g}: choose an earlier start."
            )
        return not self.stopped

    def _tell_time(self, now_ns: int) -> None:
        self._clock_publisher.publish(Clock(clock=to_time(now_ns)))


def _message_type(kind: str) -> type | None:
    """The class of `package/msg/Name`, or None where it is not installed."""
    package, _, name = kind.replace("/msg/", "/").rpartition("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name, None)
    except ModuleNotFoundError:
        return None


def _names(text: str) -> list[str]:
    return [name for name in (part.strip() for part in text.split(",")) if name]


def _renames(text: str) -> dict[str, str]:
    renames = {}
    for rename in _names(text):
        recorded, separator, published = rename.partition(":=")
        if not (recorded and separator and published):
            raise ParameterError(f"{rename!r} in remap is not of the form recorded:=published.")
        renames[recorded] = published
    return renames


def main() -> int:
    """Play to the end."""
    return run(BagPlayerNode, until_ended=True)


if __name__ == "__main__":
    sys.exit(main())
