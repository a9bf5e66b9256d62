# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 message types in bags: the standard ones, and ours from msg/."""

from __future__ import annotations

from functools import cache
from typing import Any

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from oc_perception.resources import PACKAGE, share_directory

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
SEGMENTATION = f"{PACKAGE}/msg/ObjectSegmentation"
TRACKS = f"{PACKAGE}/msg/TrackArray"
TRAJECTORIES = f"{PACKAGE}/msg/PredictedTrajectoryArray"


@cache
def typestore() -> Typestore:
    """Humble's types, which later distributions kept for all messages used here, and ours.

    Raises FileNotFoundError when the installation lacks msg/.
    """
    store = get_typestore(Stores.ROS2_HUMBLE)
    definitions = sorted((share_directory() / "msg").glob("*.msg"))
    if not definitions:
        raise FileNotFoundError(
            f"No message definitions in {share_directory() / 'msg'}: install {PACKAGE} again."
        )
    types: dict[str, Any] = {}
    for path in definitions:
        types.update(get_types_from_msg(path.read_text(), f"{PACKAGE}/msg/{path.stem}"))
    store.register(types)
    return store


def make(message_type: str, **fields: Any) -> Any:
    """A message of the given type, as rosbags represents it."""
    return typestore().types[message_type](**fields)
