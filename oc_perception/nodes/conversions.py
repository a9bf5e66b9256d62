# SPDX-License-Identifier: Apache-2.0
"""Our dataclasses to and from rclpy messages.

Bulk data goes through `array.array`: rclpy takes it with one copy, where lists and NumPy arrays
are taken element by element.
"""

from __future__ import annotations

import array

import numpy as np
from builtin_interfaces.msg import Duration, Time
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header
from unique_identifier_msgs.msg import UUID

from oc_perception import msg as messages
from oc_perception.images import decode_compressed, decode_depth, decode_image
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

_NANOSECONDS = 1_000_000_000
_UPPER_TRIANGLE = np.triu_indices(4)


def to_nanoseconds(stamp: Time | Duration) -> int:
    """The nanoseconds of a stamp or duration."""
    return stamp.sec * _NANOSECONDS + stamp.nanosec


def to_time(nanoseconds: int) -> Time:
    """A stamp. Raises ValueError outside 1970 to 2038, which messages cannot hold."""
    seconds, rest = divmod(nanoseconds, _NANOSECONDS)
    if not 0 <= seconds < 2**31:
        raise ValueError(f"{nanoseconds} ns does not fit builtin_interfaces/Time.")
    return Time(sec=seconds, nanosec=rest)


def to_header(stamp_ns: int, frame_id: str) -> Header:
    """A header."""
    return Header(stamp=to_time(stamp_ns), frame_id=frame_id)


def to_frame(message: Image | CompressedImage) -> np.ndarray:
    """`(H, W, 3)` uint8 RGB, a view where the encoding allows. Raises MalformedImage."""
    if isinstance(message, CompressedImage):
        return decode_compressed(message.format, message.data)
    return decode_image(
        message.height,
        message.width,
        message.encoding,
        bool(message.is_bigendian),
        message.step,
        message.data,
    )


def to_depth(message: Image) -> np.ndarray:
    """`(H, W)` float32 metres, NaN where unknown. Raises MalformedImage."""
    return decode_depth(
        message.height,
        message.width,
        message.encoding,
        bool(message.is_bigendian),
        message.step,
        message.data,
    )


def to_image_message(image: np.ndarray, header: Header) -> Image:
    """`(H, W)` uint8 as mono8, `(H, W, 3)` uint8 as rgb8."""
    height, width = image.shape[:2]
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(image).data.cast("B"))
    return Image(
        header=header,
        height=height,
        width=width,
        encoding="mono8" if image.ndim == 2 else "rgb8",
        step=width * (1 if image.ndim == 2 else 3),
        data=data,
    )


def to_segmentation_message(
    segmentation: Segmentation, header: Header, with_embeddings: bool = True
) -> messages.ObjectSegmentation:
    """`header` is the source image's. Without a label image the message has an empty one."""
    if segmentation.label_image is None:
        label_image = Image(header=header, encoding="mono8")
    else:
        label_image = to_image_message(segmentation.label_image, header)
    return messages.ObjectSegmentation(
        header=header,
        sensor_state=int(segmentation.sensor_state),
        label_image=label_image,
        model=segmentation.model,
        frame_seq=segmentation.frame_seq % 2**32,
        slots=[_to_slot(detection, with_embeddings) for detection in segmentation.detections],
    )


def _to_slot(detection: Detection, with_embeddings: bool) -> messages.ObjectSlot:
    left, top, width, height = detection.region
    slot = messages.ObjectSlot(
        label=int(detection.label),
        is_background=bool(detection.is_background),
        score=float(detection.score),
        area=int(detection.area_px),
        roi=RegionOfInterest(x_offset=left, y_offset=top, width=width, height=height),
        centroid_x=float(detection.box[0]),
        centroid_y=float(detection.box[1]),
    )
    point = np.nan if detection.point_m is None else detection.point_m
    slot.position[:] = point
    if with_embeddings:
        slot.embedding = _to_floats(detection.embedding)
    return slot


def from_segmentation_message(message: messages.ObjectSegmentation) -> Segmentation:
    """Raises ValueError for a message that no discovery node would send."""
    state = SensorState(message.sensor_state)
    label_image = None
    image = message.label_image
    if image.height and image.width:
        if image.encoding != "mono8" or len(image.data) != image.height * image.width:
            raise ValueError(
                f"The label image must be mono8 without padding, not {image.encoding} with "
                f"{len(image.data)} bytes for {image.width}x{image.height}."
            )
        label_image = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width)
    detections = tuple(_from_slot(slot) for slot in message.slots)
    if not all(np.isfinite(detection.box).all() for detection in detections):
        raise ValueError("The segmentation has slots whose centroid is not a finite number.")
    return Segmentation(
        stamp_ns=to_nanoseconds(message.header.stamp),
        sensor_state=state,
        model=message.model,
        frame_seq=message.frame_seq,
        label_image=label_image,
        detections=detections,
    )


def _from_slot(slot: messages.ObjectSlot) -> Detection:
    position = np.array(slot.position, np.float64)
    return Detection(
        label=slot.label,
        box=np.array((slot.centroid_x, slot.centroid_y, slot.roi.width, slot.roi.height)),
        area_px=slot.area,
        score=slot.score,
        embedding=np.frombuffer(slot.embedding, np.float32),
        is_background=slot.is_background,
        point_m=position if np.isfinite(position).all() else None,
        roi=(slot.roi.x_offset, slot.roi.y_offset, slot.roi.width, slot.roi.height),
    )


def to_track_array(output: TrackOutput, frame_id: str) -> messages.TrackArray:
    """All tracks of one time."""
    return messages.TrackArray(
        header=to_header(output.stamp_ns, frame_id),
        source_stamp=to_time(output.source_stamp_ns),
        session=to_uuid(output.session),
        sensor_state=int(output.sensor_state),
        tracks=[_to_track(track) for track in output.tracks],
    )


def _to_track(track: Track) -> messages.Track:
    return messages.Track(
        id=int(track.id),
        state=int(track.state),
        slot_label=int(track.slot_label),
        existence_probability=float(track.existence_probability),
        box=_to_fixed(track.box),
        velocity=_to_fixed(track.velocity),
        covariance=_to_fixed(track.covariance[_UPPER_TRIANGLE]),
        age=int(track.age),
        hits=int(track.hits),
        last_seen=to_time(track.last_seen_ns),
        embedding=_to_floats(track.embedding),
    )


def from_track_messages(
    tracks: messages.TrackArray, trajectories: messages.PredictedTrajectoryArray | None = None
) -> TrackOutput:
    """The inverse of `to_track_array` and `to_trajectory_array`, in the precision of float32."""
    return TrackOutput(
        stamp_ns=to_nanoseconds(tracks.header.stamp),
        source_stamp_ns=to_nanoseconds(tracks.source_stamp),
        session=from_uuid(tracks.session),
        sensor_state=SensorState(tracks.sensor_state),
        tracks=tuple(_from_track(track) for track in tracks.tracks),
        trajectories=tuple(
            _from_trajectory(trajectory)
            for trajectory in (trajectories.trajectories if trajectories else ())
        ),
    )


def _from_track(track: messages.Track) -> Track:
    covariance = np.zeros((4, 4))
    covariance[_UPPER_TRIANGLE] = track.covariance
    covariance.T[_UPPER_TRIANGLE] = track.covariance
    return Track(
        id=track.id,
        state=TrackState(track.state),
        box=np.array(track.box, np.float64),
        velocity=np.array(track.velocity, np.float64),
        covariance=covariance,
        existence_probability=track.existence_probability,
        age=track.age,
        hits=track.hits,
        last_seen_ns=to_nanoseconds(track.last_seen),
        slot_label=track.slot_label,
        embedding=np.frombuffer(track.embedding, np.float32),
    )


def to_trajectory_array(output: TrackOutput, frame_id: str) -> messages.PredictedTrajectoryArray:
    """The predicted futures of all tracks."""
    return messages.PredictedTrajectoryArray(
        header=to_header(output.stamp_ns, frame_id),
        session=to_uuid(output.session),
        trajectories=[
            messages.PredictedTrajectory(
                track_id=int(trajectory.track_id),
                track_state=int(trajectory.track_state),
                modes=[_to_mode(mode) for mode in trajectory.modes],
            )
            for trajectory in output.trajectories
        ],
    )


def _to_mode(mode: TrajectoryMode) -> messages.TrajectoryMode:
    times = [divmod(round(float(time_s) * 1e9), _NANOSECONDS) for time_s in mode.times_s]
    boxes = np.asarray(mode.boxes, np.float32)
    covariances = np.asarray(mode.covariances, np.float32)
    return messages.TrajectoryMode(
        probability=float(mode.probability),
        points=[
            messages.TrajectoryPoint(
                time_from_start=Duration(sec=seconds, nanosec=rest),
                box=box,
                covariance=covariance,
            )
            for (seconds, rest), box, covariance in zip(times, boxes, covariances, strict=True)
        ],
    )


def _from_trajectory(trajectory: messages.PredictedTrajectory) -> Trajectory:
    return Trajectory(
        track_id=trajectory.track_id,
        track_state=TrackState(trajectory.track_state),
        modes=tuple(
            TrajectoryMode(
                probability=mode.probability,
                times_s=np.array([to_nanoseconds(p.time_from_start) * 1e-9 for p in mode.points]),
                boxes=np.array([p.box for p in mode.points], np.float64).reshape(-1, 4),
                covariances=np.array([p.covariance for p in mode.points], np.float64).reshape(
                    -1, 3
                ),
            )
            for mode in trajectory.modes
        ),
    )


def to_uuid(session: bytes) -> UUID:
    """A session as a message."""
    return UUID(uuid=np.frombuffer(session, np.uint8))


def from_uuid(message: UUID) -> bytes:
    """A session as 16 bytes."""
    return np.asarray(message.uuid, np.uint8).tobytes()


def _to_fixed(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)


def _to_floats(values: np.ndarray) -> array.array:
    return array.array("f", np.ascontiguousarray(values, np.float32).tobytes())
