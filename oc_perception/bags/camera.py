# SPDX-License-Identifier: Apache-2.0
"""The frames of one camera in a bag, with what was recorded for the same stamp on other topics."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from oc_perception.bags.definitions import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    SEGMENTATION,
    TRACKS,
)
from oc_perception.bags.frames import BagError, Frame, TrueBoxes
from oc_perception.bags.messages import (
    depth_from_message,
    rgb_from_message,
    segmentation_from_message,
    stamp_ns,
    track_output_from_messages,
)
from oc_perception.images import MalformedImage

if TYPE_CHECKING:
    from oc_perception.bags.reader import Bag

COMPANION_LOOKAHEAD_FRAMES = 8
"""How many frames later a depth image or ground truth of the same stamp may have been recorded."""


@dataclass(frozen=True)
class BagTopics:
    """The topics that belong to one camera; None where the bag has none."""

    image: str
    depth: str | None = None
    camera_info: str | None = None
    truth: str | None = None
    true_tracks: str | None = None


def select(bag: Bag, image_topic: str | None = None) -> BagTopics:
    """The topics of the camera: the named image topic, or the only one with images in the bag.

    The camera_info beside it, the only depth topic, the only ground-truth segmentation and the
    only ground-truth tracks go with it. Raises BagError that lists the image topics when the
    choice is open.
    """
    topics = bag.topics
    pictures = [t for t, kind in topics.items() if kind in (IMAGE, COMPRESSED_IMAGE)]
    depth = [t for t in pictures if _is_depth(bag, t)]
    color = [t for t in pictures if t not in depth]
    if image_topic is None:
        # A raw topic and its compressed copy are one camera; raw needs no decoding.
        copies = {f"{topic}/compressed" for topic in color}
        choices = [topic for topic in color if topic not in copies]
        # A recorder of all topics lists those that nobody published on, too.
        choices = [topic for topic in choices if bag.count(topic)] or choices
        if len(choices) != 1:
            listing = ", ".join(color) or f"none; its topics: {', '.join(topics) or 'none'}"
            raise BagError(
                f"{bag.path} needs exactly one image topic, and has {listing}."
                + (" Choose one with --topic." if color else "")
            )
        image_topic = choices[0]
    elif image_topic not in color:
        raise BagError(
            f"{bag.path} has no image topic {image_topic!r}. Image topics: "
            f"{', '.join(color) or 'none'}."
        )
    camera = image_topic.removesuffix("/compressed").rpartition("/")[0]
    camera_info = f"{camera}/camera_info"
    truth, true_tracks = (
        [t for t, kind in topics.items() if kind == wanted and "ground_truth" in t]
        for wanted in (SEGMENTATION, TRACKS)
    )
    return BagTopics(
        image=image_topic,
        depth=depth[0] if len(depth) == 1 else None,
        camera_info=camera_info if topics.get(camera_info) == CAMERA_INFO else None,
        truth=truth[0] if len(truth) == 1 else None,
        true_tracks=true_tracks[0] if len(true_tracks) == 1 else None,
    )


def frames(
    bag: Bag, topics: BagTopics, start_ns: int, stop_ns: int, margin_ns: int
) -> Iterator[Frame]:
    """The frames of a camera with companions of the same stamp, in the order of recording.

    Only images recorded `start_ns <= t < stop_ns` are decoded; companions are looked for up to
    `margin_ns` around. Holds COMPANION_LOOKAHEAD_FRAMES frames at most. The camera matrix is the
    newest recorded. Like the nodes, leaves out a camera matrix and depth that do not fit an image.
    """
    companions: _Companions = {
        t: OrderedDict() for t in (topics.depth, topics.truth, topics.true_tracks) if t
    }
    pending: deque[_Pending] = deque()
    camera_info, index = None, 0
    wanted = [topics.image, *companions]
    if topics.camera_info:
        wanted.append(topics.camera_info)
        first = next(bag.messages([topics.camera_info]), None)
        camera_info = None if first is None else first[2]
    if start_ns > 0:
        index = bag.count_before(topics.image, start_ns)

    def complete(frame: _Pending) -> bool:
        return all(frame.stamp_ns in found for found in companions.values())

    recorded = bag.recorded(wanted, max(0, start_ns - margin_ns), stop_ns + margin_ns)
    for channel, recorded_ns, data in recorded:
        is_image = channel.topic == topics.image
        if is_image and not start_ns <= recorded_ns < stop_ns:
            continue
        index += is_image
        message = bag.decoded(channel, recorded_ns, data)
        if message is None:
            continue
        if is_image:
            time_ns = stamp_ns(message.header.stamp)
            pending.append(_Pending(index - 1, time_ns, message, camera_info))
        elif channel.topic == topics.camera_info:
            camera_info = message
        else:
            found = companions[channel.topic]
            found[stamp_ns(message.header.stamp)] = message
            if len(found) > 2 * COMPANION_LOOKAHEAD_FRAMES:
                found.popitem(last=False)
        while pending and (complete(pending[0]) or len(pending) > COMPANION_LOOKAHEAD_FRAMES):
            yield _frame(bag, topics, pending.popleft(), companions)
    while pending:
        yield _frame(bag, topics, pending.popleft(), companions)


_Companions = dict[str, OrderedDict[int, Any]]
"""Messages by topic and stamp."""


@dataclass
class _Pending:
    """An image that waits for its companions."""

    index: int
    stamp_ns: int
    message: Any = field(repr=False)
    camera_info: Any


def _frame(bag: Bag, topics: BagTopics, pending: _Pending, companions: _Companions) -> Frame:
    def companion(topic: str | None, read: Callable[[Any], Any]) -> Any:
        message = companions[topic].get(pending.stamp_ns) if topic else None
        try:
            return None if message is None else read(message)
        # Values that no message of ours has, or a malformed image.
        except (ValueError, TypeError) as error:
            bag.skipped.add(f"message(s) on {topic}", pending.stamp_ns, f"{error}")
            return None

    try:
        image: np.ndarray | MalformedImage = rgb_from_message(pending.message)
    except MalformedImage as error:
        image = error
    depth_m = companion(topics.depth, depth_from_message)
    camera_matrix = None if pending.camera_info is None else pending.camera_info.k.reshape(3, 3)
    misfit = _misfit(pending.camera_info, depth_m, image)
    if misfit:
        bag.skipped.note(misfit)
        depth_m = camera_matrix = None
    return Frame(
        index=pending.index,
        stamp_ns=pending.stamp_ns,
        image=image,
        depth_m=depth_m,
        camera_matrix=camera_matrix,
        truth=companion(topics.truth, segmentation_from_message),
        boxes=companion(topics.true_tracks, _true_boxes),
    )


def _misfit(camera_info: Any, depth_m: np.ndarray | None, image: Any) -> str:
    """Why depth says nothing about an image, or nothing."""
    if depth_m is None or not isinstance(image, np.ndarray):
        return ""
    size = image.shape[:2]
    if depth_m.shape != size:
        return (
            f"The depth is of {depth_m.shape[1]}x{depth_m.shape[0]} px, the images of "
            f"{size[1]}x{size[0]}: it is left out (register depth to colour)."
        )
    if camera_info is None:
        return ""
    matrix = camera_info.k.reshape(3, 3)
    if not (np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0):
        return "camera_info has no usable matrix k: depth is left out (calibrate the camera)."
    if (camera_info.height, camera_info.width) != size:
        return (
            f"camera_info is of {camera_info.width}x{camera_info.height} px, the images of "
            f"{size[1]}x{size[0]}: depth is left out (record the camera_info of these images)."
        )
    return ""


def _true_boxes(message: Any) -> TrueBoxes:
    """Raises ValueError for boxes that are none."""
    tracks = track_output_from_messages(message).tracks
    boxes = np.array([track.box for track in tracks], float).reshape(-1, 4)
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] >= 0).all()):
        raise ValueError("a box is not finite, or of negative size")
    return TrueBoxes(np.array([track.id for track in tracks], np.int64), boxes)


def _is_depth(bag: Bag, topic: str) -> bool:
    first = next(bag.messages([topic]), None)
    if first is None:
        return False
    if bag.topics[topic] == COMPRESSED_IMAGE:
        return "compressedDepth" in first[2].format
    return first[2].encoding in ("16UC1", "32FC1")
