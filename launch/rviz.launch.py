# SPDX-License-Identifier: Apache-2.0
"""Launch RViz with image, markers and trajectories, beside another launch file."""

from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription
from oc_perception.resources import share_directory


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch oc_perception rviz.launch.py`."""
    layout = str(share_directory() / "config" / "rviz" / "perception.rviz")
    return LaunchDescription(
        [
            DeclareLaunchArgument("layout", default_value=layout, description="RViz layout file."),
            DeclareLaunchArgument(
                "namespace", default_value="", description="Namespace of the perception nodes."
            ),
            DeclareLaunchArgument(
                "frame", default_value="camera", description="Fixed frame: that of the images."
            ),
            Node(
                package="rviz2",
                executable="rviz2",
                namespace=LaunchConfiguration("namespace"),
                arguments=[
                    "-d",
                    LaunchConfiguration("layout"),
                    "-f",
                    LaunchConfiguration("frame"),
                ],
            ),
        ]
    )
