# SPDX-License-Identifier: Apache-2.0
"""Perception behind one `step()`: discovery, then tracking. Nodes, replay and benchmarks share
these objects.

`Discovery` turns a frame into a `Segmentation`, `Tracker` a segmentation into tracks, `Perception`
composes the two. All are pure functions of their state: after an exception the caller still holds
the state from before the step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch

from oc_perception.tracking.reordering import ReorderingState, ReorderingTracker
from oc_perception.tracking.sensor import (
    SensorMonitor,
    SensorMonitorConfig,
    SensorMonitorState,
    check_frame,
)
from oc_perception.tracking.stamps import check_stamp
from oc_perception.tracking.tracker import Tracker, TrackerState
from oc_perception.types import (
    UNLABELLED,
    Decomposition,
    Detection,
    Segmentation,
    SensorState,
    TrackOutput,
)


@dataclass(frozen=True)
class DiscoveryState:
    """What discovery remembers: `stamp_ns` of the newest frame (0: none), frames so far."""

    model: Any
    monitor: SensorMonitorState
    stamp_ns: int = 0
    frame_seq: int = 0


class Discovery:
    """Runs a discovery model on camera frames and measures one detection per slot.

    A slot may claim several places. Its detection is the largest connected component; the label
    image keeps all of the slot. Where the model says that its `slots_are_local`, so that several
    may share an object but none has two, the detection is all of the slot, and a pixel is of the
    background only where this has half of it. Slots whose detection would cover less than
    `min_area_fraction` of the picture have none, and their pixels are UNLABELLED. The background
    is the model's own, else the slot that covers most of the border. `model` stands on `device`,
    ready for inference (see `load_model`).

    Frames out of order, within `reorder_window_s` of the newest, are segmented as they come. To a
    model without memory order is nothing; one that refines what it saw before takes them as the
    frames of a jumpy camera.
    """

    def __init__(
        self,
        model: Any,
        sensor_config: SensorMonitorConfig | None = None,
        device: str = "cpu",
        *,
        min_area_fraction: float = 0.002,
        clock_reset_threshold_s: float = 1.0,
        reorder_window_s: float = 0.0,
    ) -> None:
        if model.num_slots > UNLABELLED:
            raise ValueError(f"{model.num_slots} slots do not fit a label image of 8 bits.")
        if not 0 <= min_area_fraction < 1:
            raise ValueError(f"min_area_fraction must be in [0, 1), not {min_area_fraction}.")
        self.model = model
        self.monitor = SensorMonitor(sensor_config)
        self.device = torch.device(device)
        self.min_area_fraction = min_area_fraction
        self._local_slots = getattr(model, "slots_are_local", False)
        self.clock_reset_threshold_s = clock_reset_threshold_s
        self.reorder_window_s = reorder_window_s

    def initial_state(self) -> DiscoveryState:
        """Before the first frame."""
        return DiscoveryState(self.model.initial_state(1), self.monitor.initial_state())

    def step(
        self,
        state: DiscoveryState,
        frame: np.ndarray | None,
        stamp_ns: int,
        depth: np.ndarray | None = None,
        camera_matrix: np.ndarray | None = None,
    ) -> tuple[DiscoveryState, Segmentation]:
        """Segment `frame` `(H, W, 3)` uint8 RGB taken at `stamp_ns`; None if none arrived.

        An unusable frame (missing, black, frozen, flat) is not shown to the model: the
        segmentation then carries the sensor state, no label image and no detections. With `depth`
        `(H, W)` in metres, registered to the frame (0 and NaN: unknown), and `camera_matrix` `(3,
        3)`, detections have a `point_m`.

        A clock reset (see `check_stamp`) starts from the initial state, `frame_seq` goes on.
        Raises StampError for a frame that is late by more than the window, or has the stamp of the
        newest; ValueError for arrays of wrong shape or type.
        """
        if frame is None:
            return state, self._blind(state, stamp_ns, SensorState.STALE)
        check_frame(frame)
        camera = _checked_camera(depth, camera_matrix, frame.shape[:2])
        if check_stamp(
            state.stamp_ns, stamp_ns, self.clock_reset_threshold_s, self.reorder_window_s
        ):
            state = replace(self.initial_state(), frame_seq=state.frame_seq)
        monitor, sensor_state = self.monitor.step(state.monitor, frame, stamp_ns)
        state = replace(
            state,
            monitor=monitor,
            stamp_ns=max(state.stamp_ns, stamp_ns),
            frame_seq=state.frame_seq + 1,
        )
        if sensor_state != SensorState.OK:
            return state, self._blind(state, stamp_ns, sensor_state)

        height, width = self.model.frame_size
        small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        with torch.inference_mode():
            pixels = torch.from_numpy(small).to(self.device).permute(2, 0, 1).float() / 255
            model_state, decomposition = self.model.step(state.model, pixels[None], decode=False)
        label_image, detections = self._measure(decomposition, frame.shape[:2], depth, camera)
        segmentation = Segmentation(
            stamp_ns=stamp_ns,
            sensor_state=SensorState.OK,
            model=self.model.name,
            frame_seq=state.frame_seq,
            label_image=label_image,
            detections=detections,
        )
        return replace(state, model=model_state), segmentation

    def _blind(
        self, state: DiscoveryState, stamp_ns: int, sensor_state: SensorState
    ) -> Segmentation:
        return Segmentation(stamp_ns, sensor_state, self.model.name, state.frame_seq)

    def _measure(
        self,
        decomposition: Decomposition,
        source_size: tuple[int, int],
        depth: np.ndarray | None,
        camera: np.ndarray | None,
    ) -> tuple[np.ndarray, tuple[Detection, ...]]:
        """Label image at the source's resolution, and each slot's detection in source pixels."""
        masks = decomposition.masks[0].cpu().numpy()  # (K, h, w)
        embeddings = decomposition.embeddings[0].float().cpu().numpy()  # (K, D)
        if not (np.isfinite(masks).all() and np.isfinite(embeddings).all()):
            raise ValueError(f"Model {self.model.name!r} returned masks that are not finite.")
        labels = masks.argmax(0).astype(np.uint8)
        background = decomposition.background_slot
        if self._local_slots and background is not None:
            shared = (labels == background) & (masks[background] < 0.5)
            labels[shared] = np.delete(masks[:, shared], background, 0).argmax(0)
            labels[shared] += labels[shared] >= background
        if background is None:
            border = np.concatenate([labels[0], labels[-1], labels[1:-1, 0], labels[1:-1, -1]])
            background = int(np.bincount(border).argmax())
        height, width = labels.shape
        scale = np.array([source_size[1] / width, source_size[0] / height])
        if camera is not None:
            depth = cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        detections = []
        for label in np.unique(labels).tolist():
            hard = labels == label
            component, box, corner, area = _measured(hard, self._local_slots)
            if area < max(1, self.min_area_fraction * labels.size):
                labels[hard] = UNLABELLED
                continue
            # Pixel centres are integers, so the left edge of both images is at -0.5. Rounded to
            # what ObjectSlot.msg carries, so that live nodes and replay track the same numbers.
            centre = ((box[:2] + 0.5) * scale - 0.5).astype(np.float32)
            box = np.concatenate([centre.astype(np.float64), np.rint(box[2:] * scale)])
            detections.append(
                Detection(
                    label=label,
                    box=box,
                    area_px=round(area * float(scale.prod())),
                    score=float(masks[label][component].mean()),
                    embedding=embeddings[label],
                    is_background=label == background,
                    point_m=None if camera is None else _point(box, depth[component], camera),
                    roi=(
                        *np.rint(corner * scale).astype(int).tolist(),
                        *box[2:].astype(int).tolist(),
                    ),
                )
            )
        enlarged = cv2.resize(labels, source_size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return enlarged, tuple(detections)


def _measured(mask: np.ndarray, whole: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Largest 8-connected part of a boolean mask, or `whole` mask: its pixels, `(cx, cy, w, h)`,
    left and top, area.
    """
    if whole:
        rows, columns = np.nonzero(mask)
        corner = np.array([columns.min(), rows.min()])
        size = np.array([columns.max(), rows.max()]) - corner + 1
        return mask, np.array([columns.mean(), rows.mean(), *size]), corner, len(rows)
    _, parts, statistics, centroids = cv2.connectedComponentsWithStats(mask.view(np.uint8))
    largest = 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())
    size = statistics[largest, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
    corner = statistics[largest, [cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP]]
    area = int(statistics[largest, cv2.CC_STAT_AREA])
    return parts == largest, np.concatenate([centroids[largest], size]), corner, area


def _point(box: np.ndarray, depths: np.ndarray, camera_matrix: np.ndarray) -> np.ndarray | None:
    """`(3,)` metres: the ray through the centroid, cut at the median valid depth (None: none)."""
    valid = depths[np.isfinite(depths) & (depths > 0)]
    if not len(valid):
        return None
    ray = np.linalg.solve(camera_matrix, np.array([box[0], box[1], 1.0]))
    return ray * float(np.median(valid))


def _checked_camera(
    depth: np.ndarray | None, camera_matrix: np.ndarray | None, size: tuple[int, int]
) -> np.ndarray | None:
    """The camera matrix as float64, or None where the two inputs do not give 3-D points."""
    if depth is None or camera_matrix is None:
        return None
    if depth.shape != size or depth.dtype.kind != "f":
        raise ValueError(
            f"Depth must be float metres registered to the frame {size},"
            f" not {depth.dtype} {depth.shape}."
        )
    matrix = np.asarray(camera_matrix, np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or np.linalg.det(matrix) == 0:
        raise ValueError("camera_matrix must be 3x3, finite and invertible; calibrate the camera.")
    return matrix


@dataclass(frozen=True)
class PerceptionState:
    """States of both parts."""

    discovery: DiscoveryState
    tracker: TrackerState | ReorderingState


@dataclass(frozen=True)
class PerceptionOutput:
    """What was seen, and what is believed, at one stamp."""

    segmentation: Segmentation
    tracks: TrackOutput


class Perception:
    """Discovery, tracking and prediction behind one `step()`."""

    def __init__(self, discovery: Discovery, tracker: Tracker | ReorderingTracker) -> None:
        self.discovery = discovery
        self.tracker = tracker

    def initial_state(self, session: bytes) -> PerceptionState:
        """Nothing seen yet; `session` is a UUID (16 bytes)."""
        return PerceptionState(self.discovery.initial_state(), self.tracker.initial_state(session))

    def step(
        self,
        state: PerceptionState,
        frame: np.ndarray | None,
        stamp_ns: int,
        depth: np.ndarray | None = None,
        camera_matrix: np.ndarray | None = None,
    ) -> tuple[PerceptionState, PerceptionOutput]:
        """One frame `(H, W, 3)` uint8 RGB, or None where none arrived, at `stamp_ns`.

        Arguments as for `Discovery.step`. Raises StampError for a late or duplicate stamp (before
        the model runs, unless it is within the window) and ValueError for malformed arrays;
        `state` is then still the one to go on from.
        """
        discovery, segmentation = self.discovery.step(
            state.discovery, frame, stamp_ns, depth, camera_matrix
        )
        picture = (frame,) if getattr(self.tracker, "needs_frame", False) else ()
        tracker, tracks = self.tracker.step(state.tracker, segmentation, stamp_ns, *picture)
        return PerceptionState(discovery, tracker), PerceptionOutput(segmentation, tracks)
