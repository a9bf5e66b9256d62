# SPDX-License-Identifier: Apache-2.0
"""Launch discovery, tracking and visualization for one or several cameras."""

from launch import LaunchDescription
from oc_perception.nodes.launching import describe


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch oc_perception perception.launch.py`."""
    return describe("perception")
