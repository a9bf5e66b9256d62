# SPDX-License-Identifier: Apache-2.0
"""Launch the perception nodes on a simulated camera with blackouts."""

from launch import LaunchDescription
from oc_perception.nodes.launching import describe


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch oc_perception demo.launch.py`."""
    return describe("demo")
