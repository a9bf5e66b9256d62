# SPDX-License-Identifier: Apache-2.0
"""Launch discovery, tracking and visualization of one or several cameras; `--show-args` lists the arguments."""

from launch import LaunchDescription
from oc_perception.nodes.launching import describe


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch oc_perception perception.launch.py`."""
    return describe("perception")
