# SPDX-License-Identifier: Apache-2.0
"""Which nodes run together, under which names, topics and parameters; without ROS.

`launch/*.launch.py` and `oc-perception up` both start what this table says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oc_perception.configuration import nearest
from oc_perception.resources import share_directory

ARGUMENTS: dict[str, dict[str, tuple[str, str]]] = {}
"""Of each deployment: argument -> (default, description)."""

_CAMERA_TOPICS = {
    "camera_info": ("camera_info", "Topic of the camera_info, for objects in 3-D."),
    "depth": ("depth", "Topic of a depth image registered to the image, for objects in 3-D."),
}
_COMMON = {
    "model": ("", "Discovery model instead of the one in the parameter file."),
    "namespace": ("", "Namespace of all nodes."),
    "params_file": ("", "YAML with parameters, read after the ones that come with the package."),
    "log_level": ("info", "debug, info, warn, error or fatal."),
}
ARGUMENTS["perception"] = {
    "image": ("image", "Topic of the camera's images, relative to the namespace."),
    **_CAMERA_TOPICS,
    **_COMMON,
    "cameras": ("", "Names of cameras, by commas: all nodes once in the namespace of each."),
}
ARGUMENTS["replay"] = {
    "bag": ("", "Directory or file of the rosbag2 to play (needed)."),
    "rate": ("1.0", "Speed of playing."),
    "loop": ("false", "Play again and again."),
    "image": ("/camera/image", "Topic of the images in the bag."),
    **_CAMERA_TOPICS,
    **_COMMON,
}
ARGUMENTS["demo"] = _COMMON
DEPLOYMENTS = tuple(ARGUMENTS)


class DeploymentError(ValueError):
    """A deployment that cannot be started as asked; the message names the cause and the cure."""


@dataclass(frozen=True)
class NodeSpec:
    """One process. `executable` is also the node's name; when one that `leads` ends, all end."""

    executable: str
    namespace: str = ""
    remappings: tuple[tuple[str, str], ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    leads: bool = False


def nodes(deployment: str, arguments: Mapping[str, str] | None = None) -> tuple[NodeSpec, ...]:
    """The nodes of a deployment. Raises DeploymentError for what cannot be started."""
    given = dict(arguments or {})
    known = _arguments(deployment)
    for name in given:
        if name not in known:
            raise DeploymentError(f"Unknown argument {name!r}.{nearest(name, known)}")
    values = {name: given.get(name) or default for name, (default, _) in known.items()}
    namespace = values["namespace"].strip("/")
    if deployment == "demo":
        image, info, depth = (
            f"camera_simulator_node/{t}" for t in ("image", "camera_info", "depth")
        )
        source = (NodeSpec("camera_simulator_node", namespace, leads=True),)
        return source + _perception(namespace, image, info, depth, values["model"], {})
    topics = (values["image"], values["camera_info"], values["depth"])
    if deployment == "replay":
        if not values["bag"]:
            raise DeploymentError(
                "replay needs a bag: give bag:=PATH (launch) or --bag PATH (up)."
            )
        played = {
            "bag": str(Path(values["bag"]).absolute()),
            "rate": _number(values["rate"]),
            "loop": values["loop"].lower() == "true",
        }
        source = (NodeSpec("bag_player_node", namespace, parameters=played, leads=True),)
        simulated = {"use_sim_time": True}
        return source + _perception(namespace, *topics, values["model"], simulated)
    cameras = [name.strip("/ ") for name in values["cameras"].split(",") if name.strip("/ ")]
    if len(set(cameras)) < len(cameras):
        raise DeploymentError(f"cameras = {values['cameras']!r} names a camera twice.")
    absolute = [topic for topic in topics if topic.startswith("/")]
    if len(cameras) > 1 and absolute:
        raise DeploymentError(
            f"{absolute[0]} would be the topic of all cameras ({', '.join(cameras)}): give a name "
            "without leading slash, which is looked for in the namespace of each."
        )
    return tuple(
        node
        for camera in cameras or [""]
        for node in _perception(f"{namespace}/{camera}".strip("/"), *topics, values["model"], {})
    )


def parameter_files(deployment: str, params_file: str = "") -> tuple[Path, ...]:
    """The YAML files to read, later ones over earlier ones. Raises DeploymentError."""
    config = share_directory() / "config"
    files = [config / "perception.yaml"]
    if deployment != "perception":
        files.append(config / f"{deployment}.yaml")
    if params_file:
        files.append(Path(params_file).absolute())
    for path in files:
        if not path.is_file():
            raise DeploymentError(f"There is no parameter file {path}.")
    return tuple(files)


def environment() -> dict[str, str]:
    """Variables that the processes need and this process lacks."""
    name = "FASTDDS_DEFAULT_PROFILES_FILE"
    if os.environ.get(name):
        return {}
    return {name: str(share_directory() / "config" / "fastdds.xml")}


def _arguments(deployment: str) -> dict[str, tuple[str, str]]:
    if deployment not in ARGUMENTS:
        raise DeploymentError(
            f"Unknown deployment {deployment!r}.{nearest(deployment, ARGUMENTS)}"
        )
    return ARGUMENTS[deployment]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DeploymentError(f"rate must be a number, not {text!r}.") from error


def _perception(
    namespace: str,
    image: str,
    camera_info: str,
    depth: str,
    model: str,
    parameters: Mapping[str, Any],
) -> tuple[NodeSpec, ...]:
    pictures = (("image", image), ("image/compressed", f"{image}/compressed"))
    tracks = (
        ("segmentation", "discovery_node/segmentation"),
        ("tracks", "tracking_node/tracks"),
        ("trajectories", "tracking_node/trajectories"),
    )
    chosen = {"model": model} if model else {}
    return (
        NodeSpec(
            "discovery_node",
            namespace,
            (*pictures, ("camera_info", camera_info), ("depth", depth)),
            {**parameters, **chosen},
        ),
        NodeSpec("tracking_node", namespace, (*pictures, tracks[0]), parameters),
        NodeSpec(
            "visualization_node",
            namespace,
            (*pictures, ("camera_info", camera_info), *tracks),
            parameters,
        ),
    )
