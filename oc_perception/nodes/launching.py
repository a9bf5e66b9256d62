# SPDX-License-Identifier: Apache-2.0
"""A deployment as a launch description: the body of launch/*.launch.py."""

from __future__ import annotations

from launch.actions import (
    DeclareLaunchArgument,
    OpaqueFunction,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from oc_perception import deployment


def describe(name: str) -> LaunchDescription:
    """All arguments with their descriptions, then the nodes of the deployment."""
    arguments = deployment.ARGUMENTS[name]

    def start(context: LaunchContext) -> list[Node]:
        values = {key: LaunchConfiguration(key).perform(context) for key in arguments}
        files = [str(path) for path in deployment.parameter_files(name, values["params_file"])]
        return [
            Node(
                package="oc_perception",
                executable=node.executable,
                name=node.executable,
                namespace=node.namespace,
                remappings=list(node.remappings),
                parameters=[*files, dict(node.parameters)],
                arguments=["--ros-args", "--log-level", values["log_level"]],
                output="screen",
                on_exit=Shutdown(reason=f"{node.executable} ended") if node.leads else None,
            )
            for node in deployment.nodes(name, values)
        ]

    return LaunchDescription(
        [
            *(SetEnvironmentVariable(*item) for item in deployment.environment().items()),
            *(
                DeclareLaunchArgument(key, default_value=default, description=description)
                for key, (default, description) in arguments.items()
            ),
            OpaqueFunction(function=start),
        ]
    )
