# SPDX-License-Identifier: Apache-2.0
"""Launch a bag played through the perception nodes on simulated time."""

from launch import LaunchDescription
from oc_perception.nodes.launching import describe


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch oc_perception replay.launch.py`."""
    return describe("replay")
