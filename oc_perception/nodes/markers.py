# SPDX-License-Identifier: Apache-2.0
"""Tracks and predicted paths as RViz markers, in the camera's optical frame (x right, y down)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Vector3
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from oc_perception.evaluation.draw import color
from oc_perception.types import Segmentation, Track, TrackOutput, TrackState

_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 33)), np.sin(np.linspace(0, 2 * np.pi, 33))])
_ALPHA = {TrackState.TENTATIVE: 0.15, TrackState.CONFIRMED: 0.7, TrackState.COASTING: 0.25}


@dataclass
class Scene:
    """Where pixels are in space, as far as is known.

    With a camera matrix and a known distance of an object its pixels lie at that distance, also
    while it coasts; otherwise they lie on a plane through the camera, `pixel_size_m` each, the
    centre of the image in the origin.
    """

    pixel_size_m: float
    camera_matrix: np.ndarray | None = None
    center_px: np.ndarray = field(default_factory=lambda: np.zeros(2))
    distances_m: dict[int, float] = field(default_factory=dict)  # by track id

    def learn(self, tracks: TrackOutput, segmentation: Segmentation | None) -> None:
        """Take over image size and distances from what was seen; forget tracks that are gone."""
        measured = {}
        if segmentation is not None:
            measured = {
                d.label: float(d.point_m[2])
                for d in segmentation.detections
                if d.point_m is not None
            }
            if segmentation.label_image is not None:
                height, width = segmentation.label_image.shape
                self.center_px = np.array([(width - 1) / 2, (height - 1) / 2])
        distances = {}
        for track in tracks.tracks:
            distance_m = measured.get(track.slot_label, self.distances_m.get(track.id))
            if distance_m is not None:
                distances[track.id] = distance_m
        self.distances_m = distances

    def place(self, track_id: int, pixels: np.ndarray) -> np.ndarray:
        """Points `(N, 3)` in metres of pixels `(N, 2)` on a track."""
        distance_m = self.distances_m.get(track_id)
        if self.camera_matrix is None or distance_m is None:
            flat = (pixels - self.center_px) * self.pixel_size_m
            return np.concatenate([flat, np.zeros((len(flat), 1))], 1)
        rays = np.concatenate([pixels, np.ones((len(pixels), 1))], 1)
        return rays @ np.linalg.inv(self.camera_matrix).T * distance_m

    def scale_m(self, track_id: int) -> float:
        """Metres that one pixel takes on a track."""
        distance_m = self.distances_m.get(track_id)
        if self.camera_matrix is None or distance_m is None:
            return self.pixel_size_m
        return distance_m / float(self.camera_matrix[0, 0])


def to_markers(
    tracks: TrackOutput, scene: Scene, header: Header, sigmas: float, lifetime_s: float
) -> MarkerArray:
    """Per track a slab (faint while coasting), its number, position ellipse and predicted path."""
    seconds, fraction = divmod(lifetime_s, 1)
    lifetime = Duration(sec=int(seconds), nanosec=int(fraction * 1e9))
    paths = {t.track_id: t.modes[0].boxes[:, :2] for t in tracks.trajectories if t.modes}
    markers = []

    def add(namespace: str, track: Track, kind: int, **fields: object) -> None:
        red, green, blue = (channel / 255 for channel in color(track.id))
        alpha = _ALPHA[track.state] if kind == Marker.CUBE else min(1.0, 1.4 * _ALPHA[track.state])
        marker = Marker(header=header, ns=namespace, id=track.id, type=kind, lifetime=lifetime)
        marker.color = ColorRGBA(r=red, g=green, b=blue, a=alpha)
        marker.pose.orientation.w = 1.0
        for name, value in fields.items():
            setattr(marker, name, value)
        markers.append(marker)

    for track in tracks.tracks:
        if track.state not in _ALPHA:
            continue
        center = track.box[:2]
        scale_m = scene.scale_m(track.id)
        width_m, height_m = (max(1.0, float(side)) * scale_m for side in track.box[2:])
        slab = Vector3(x=width_m, y=height_m, z=max(1e-3, 0.05 * width_m))
        add("objects", track, Marker.CUBE, scale=slab)
        (position,) = _points(scene.place(track.id, center[None]))
        markers[-1].pose.position = position
        text = str(track.id) + (" ?" if track.state == TrackState.COASTING else "")
        add("ids", track, Marker.TEXT_VIEW_FACING, text=text, scale=Vector3(z=0.3 * height_m))
        above = scene.place(track.id, (center - [0, 0.7 * track.box[3]])[None])
        (markers[-1].pose.position,) = _points(above)
        line = Vector3(x=2 * scale_m)
        rim = center + (sigmas * _square_root(track.covariance[:2, :2]) @ _CIRCLE).T
        add(
            "covariances",
            track,
            Marker.LINE_STRIP,
            scale=line,
            points=_points(scene.place(track.id, rim)),
        )
        path = np.concatenate([center[None], paths.get(track.id, np.zeros((0, 2)))])
        if len(path) > 1:
            add(
                "paths",
                track,
                Marker.LINE_STRIP,
                scale=line,
                points=_points(scene.place(track.id, path)),
            )
    return MarkerArray(markers=markers)


def _points(positions: np.ndarray) -> list[Point]:
    return [Point(x=x, y=y, z=z) for x, y, z in positions.tolist()]


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """`S` with `S S^T = covariance`; rounding may have made an eigenvalue slightly negative."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))
