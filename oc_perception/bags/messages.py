# SPDX-License-Identifier: Apache-2.0
"""Messages of a bag from images and from the shared vocabulary (types.py), and back.

Numbers become float32 on the way, as on the wire; pixels are handed over as views.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from oc_perception.bags.definitions import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    SEGMENTATION,
    TRACKS,
    TRAJECTORIES,
    make,
)
from oc_perception.images import MalformedImage, decode_compressed, decode_depth, decode_image
from oc_perception.resources import PACKAGE
from oc_perception.types import (
    Detection,
    Segmentation,
    SensorState,
    Track,
    TrackOutput,
    TrackState,
    Trajectory,
    TrajectoryMode,
)

_UPPER = np.triu_indices(4)
_NS_PER_S = 1_000_000_000
_DEPTH_HEAD = 12


def time_message(stamp_ns: int, kind: str = "Time") -> Any:
    """`builtin_interfaces/Time` (or Duration)."""
    sec, nanosec = divmod(int(stamp_ns), _NS_PER_S)
    return make(f"builtin_interfaces/msg/{kind}", sec=sec, nanosec=nanosec)


def stamp_ns(time: Any) -> int:
    """Nanoseconds of a `builtin_interfaces` Time or Duration."""
    return time.sec * _NS_PER_S + time.nanosec


def header_message(stamp_ns: int, frame_id: str = "camera") -> Any:
    """`std_msgs/Header`."""
    return make("std_msgs/msg/Header", stamp=time_message(stamp_ns), frame_id=frame_id)


def image_message(stamp_ns: int, image: np.ndarray, frame_id: str = "camera") -> Any:
    """`sensor_msgs/Image` of `(H, W, 3)` uint8 RGB, `(H, W)` uint8 (mono8) or float32 (32FC1)."""
    image = np.ascontiguousarray(image)
    encoding = {(3, "u1"): "rgb8", (2, "u1"): "mono8", (2, "f4"): "32FC1"}[
        image.ndim, image.dtype.str[1:]
    ]
    return make(
        IMAGE,
        header=header_message(stamp_ns, frame_id),
        height=image.shape[0],
        width=image.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=image.strides[0] if image.size else 0,
        data=image.reshape(-1).view(np.uint8) if image.size else np.zeros(0, np.uint8),
    )


def compressed_message(stamp_ns: int, format: str, data: bytes, frame_id: str = "camera") -> Any:
    """`sensor_msgs/CompressedImage` holding a JPEG or PNG file as it is."""
    return make(
        COMPRESSED_IMAGE,
        header=header_message(stamp_ns, frame_id),
        format=format,
        data=np.frombuffer(data, np.uint8),
    )


def camera_info_message(
    stamp_ns: int, camera_matrix: np.ndarray, height: int, width: int, frame_id: str = "camera"
) -> Any:
    """`sensor_msgs/CameraInfo` of an undistorted camera with the given `(3, 3)` matrix."""
    matrix = np.asarray(camera_matrix, np.float64)
    return make(
        CAMERA_INFO,
        header=header_message(stamp_ns, frame_id),
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=matrix.reshape(9),
        r=np.eye(3).reshape(9),
        p=np.hstack([matrix, np.zeros((3, 1))]).reshape(12),
        binning_x=0,
        binning_y=0,
        roi=_region(0, 0, 0, 0),
    )


def rgb_from_message(message: Any) -> np.ndarray:
    """`(H, W, 3)` uint8 RGB of an Image or CompressedImage. Raises MalformedImage."""
    if message.__msgtype__ == COMPRESSED_IMAGE:
        return decode_compressed(message.format, message.data)
    return decode_image(
        message.height,
        message.width,
        message.encoding,
        message.is_bigendian,
        message.step,
        message.data,
    )


def depth_from_message(message: Any) -> np.ndarray:
    """`(H, W)` float32 metres, NaN where nothing was measured, of a depth Image or of the
    CompressedImage of compressed_depth_image_transport. Raises MalformedImage.
    """
    if message.__msgtype__ == COMPRESSED_IMAGE:
        return _packed_depth(message.format, message.data)
    return decode_depth(
        message.height,
        message.width,
        message.encoding,
        message.is_bigendian,
        message.step,
        message.data,
    )


def _packed_depth(format: str, data: np.ndarray) -> np.ndarray:
    """A PNG behind a head of 12 bytes: a number, and two floats a, b. For 32FC1 the PNG holds
    a / depth + b, for 16UC1 millimetres.
    """
    packed = cv2.imdecode(data[_DEPTH_HEAD:], cv2.IMREAD_UNCHANGED) if len(data) > 20 else None
    if packed is None or packed.dtype != np.uint16 or packed.ndim != 2:
        raise MalformedImage(f"The {format!r} data is not a depth PNG: record the raw depth.")
    depth = packed.astype(np.float32)
    if format.startswith("32FC1"):
        a, b = data[4:_DEPTH_HEAD].view("<f4")
        depth = a / (depth - b)
    else:
        depth *= np.float32(1e-3)
    depth[(packed == 0) | ~(depth > 0)] = np.nan
    return depth


def segmentation_message(segmentation: Segmentation, frame_id: str = "camera") -> Any:
    """`oc_perception/ObjectSegmentation`. A blind segmentation carries an empty label image."""
    labels = segmentation.label_image
    labels = np.zeros((0, 0), np.uint8) if labels is None else labels
    return make(
        SEGMENTATION,
        header=header_message(segmentation.stamp_ns, frame_id),
        sensor_state=int(segmentation.sensor_state),
        label_image=image_message(segmentation.stamp_ns, labels, frame_id),
        model=segmentation.model,
        frame_seq=segmentation.frame_seq,
        slots=[_slot_message(d) for d in segmentation.detections],
    )


def segmentation_from_message(message: Any) -> Segmentation:
    """The inverse of `segmentation_message`."""
    image = message.label_image
    labels = None
    if image.height and image.width:
        labels = image.data.reshape(image.height, image.step)[:, : image.width]
    return Segmentation(
        stamp_ns=stamp_ns(message.header.stamp),
        sensor_state=SensorState(message.sensor_state),
        model=message.model,
        frame_seq=message.frame_seq,
        label_image=labels,
        detections=tuple(_detection(slot) for slot in message.slots),
    )


def track_messages(output: TrackOutput, frame_id: str = "camera") -> tuple[Any, Any]:
    """`oc_perception/TrackArray` and `oc_perception/PredictedTrajectoryArray` of one step."""
    header = header_message(output.stamp_ns, frame_id)
    session = make("unique_identifier_msgs/msg/UUID", uuid=np.frombuffer(output.session, np.uint8))
    tracks = make(
        TRACKS,
        header=header,
        source_stamp=time_message(output.source_stamp_ns),
        session=session,
        sensor_state=int(output.sensor_state),
        tracks=[_track_message(track) for track in output.tracks],
    )
    trajectories = make(
        TRAJECTORIES,
        header=header,
        session=session,
        trajectories=[_trajectory_message(t) for t in output.trajectories],
    )
    return tracks, trajectories


def track_output_from_messages(tracks: Any, trajectories: Any | None = None) -> TrackOutput:
    """The inverse of `track_messages`; without a trajectory message there are no trajectories."""
    return TrackOutput(
        stamp_ns=stamp_ns(tracks.header.stamp),
        source_stamp_ns=stamp_ns(tracks.source_stamp),
        session=tracks.session.uuid.tobytes(),
        sensor_state=SensorState(tracks.sensor_state),
        tracks=tuple(_track(message) for message in tracks.tracks),
        trajectories=tuple(_trajectory(m) for m in trajectories.trajectories)
        if trajectories
        else (),
    )


def _region(x: int, y: int, width: int, height: int) -> Any:
    return make(
        "sensor_msgs/msg/RegionOfInterest",
        x_offset=x,
        y_offset=y,
        width=width,
        height=height,
        do_rectify=False,
    )


def _floats(values: np.ndarray) -> np.ndarray:
    """float32 in C order, which rosbags needs to look at it as bytes."""
    return np.ascontiguousarray(values, np.float32)


def _slot_message(detection: Detection) -> Any:
    position = detection.point_m if detection.point_m is not None else np.full(3, np.nan)
    return make(
        f"{PACKAGE}/msg/ObjectSlot",
        label=detection.label,
        is_background=detection.is_background,
        score=float(detection.score),
        area=int(detection.area_px),
        roi=_region(*detection.region),
        centroid_x=float(detection.box[0]),
        centroid_y=float(detection.box[1]),
        position=_floats(position),
        embedding=_floats(detection.embedding),
    )


def _detection(slot: Any) -> Detection:
    return Detection(
        label=slot.label,
        box=np.array([slot.centroid_x, slot.centroid_y, slot.roi.width, slot.roi.height], float),
        area_px=slot.area,
        score=slot.score,
        embedding=slot.embedding,
        is_background=slot.is_background,
        point_m=None if np.isnan(slot.position).any() else slot.position,
        roi=(slot.roi.x_offset, slot.roi.y_offset, slot.roi.width, slot.roi.height),
    )


def _track_message(track: Track) -> Any:
    return make(
        f"{PACKAGE}/msg/Track",
        id=track.id,
        state=int(track.state),
        slot_label=track.slot_label,
        existence_probability=float(track.existence_probability),
        box=_floats(track.box),
        velocity=_floats(track.velocity),
        covariance=_floats(track.covariance)[_UPPER],
        age=track.age,
        hits=track.hits,
        last_seen=time_message(track.last_seen_ns),
        embedding=_floats(track.embedding),
    )


def _track(message: Any) -> Track:
    covariance = np.zeros((4, 4))
    covariance[_UPPER] = message.covariance
    covariance.T[_UPPER] = message.covariance
    return Track(
        id=message.id,
        state=TrackState(message.state),
        box=message.box.astype(float),
        velocity=message.velocity.astype(float),
        covariance=covariance,
        existence_probability=message.existence_probability,
        age=message.age,
        hits=message.hits,
        last_seen_ns=stamp_ns(message.last_seen),
        slot_label=message.slot_label,
        embedding=message.embedding,
    )


def _trajectory_message(trajectory: Trajectory) -> Any:
    return make(
        f"{PACKAGE}/msg/PredictedTrajectory",
        track_id=trajectory.track_id,
        track_state=int(trajectory.track_state),
        modes=[_mode_message(mode) for mode in trajectory.modes],
    )


def _mode_message(mode: TrajectoryMode) -> Any:
    points = [
        make(
            f"{PACKAGE}/msg/TrajectoryPoint",
            time_from_start=time_message(round(time_s * _NS_PER_S), "Duration"),
            box=box,
            covariance=covariance,
        )
        for time_s, box, covariance in zip(
            mode.times_s.tolist(),
            _floats(mode.boxes),
            _floats(mode.covariances),
            strict=True,
        )
    ]
    return make(
        f"{PACKAGE}/msg/TrajectoryMode", probability=float(mode.probability), points=points
    )


def _trajectory(message: Any) -> Trajectory:
    modes = tuple(
        TrajectoryMode(
            probability=mode.probability,
            times_s=np.array([stamp_ns(p.time_from_start) / _NS_PER_S for p in mode.points]),
            boxes=np.array([p.box for p in mode.points], float).reshape(-1, 4),
            covariances=np.array([p.covariance for p in mode.points], float).reshape(-1, 3),
        )
        for mode in message.modes
    )
    return Trajectory(message.track_id, TrackState(message.track_state), modes)
