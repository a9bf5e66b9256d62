# SPDX-License-Identifier: Apache-2.0
"""Pictures of what perception believes: annotated frames, contact sheets and videos.

Equal input gives equal bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from oc_perception.types import (
    UNLABELLED,
    SensorState,
    Track,
    TrackOutput,
    TrackState,
    TrajectoryMode,
)

# Okabe & Ito (2008), told apart with every common colour vision; black left out, blue made lighter
# for dark scenes. The second seven keep the hues at another lightness, for ids beyond the seventh.
_PALETTE = np.array(
    [
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (64, 132, 214),
        (213, 94, 0),
        (204, 121, 167),
        (255, 205, 110),
        (165, 216, 246),
        (110, 215, 180),
        (250, 243, 160),
        (150, 190, 240),
        (246, 160, 100),
        (233, 180, 210),
    ],
    np.uint8,
)
_BLIND_TEXT = {
    SensorState.STALE: "NO FRAME",
    SensorState.BLACK: "BLACK FRAME",
    SensorState.FROZEN: "FROZEN FRAME",
    SensorState.CORRUPT: "CORRUPT FRAME",
}
_BANNER_COLOR = (176, 38, 38)
_FONT = cv2.FONT_HERSHEY_DUPLEX
_TINT = 0.42
_CHI_SQUARE_90 = 4.605170185988092  # 2 degrees of freedom
_SUBPIXEL_BITS = 4  # cv2 draws at 1/16 px, so that slow motion is smooth


def color(track_id: int) -> tuple[int, int, int]:
    """RGB of an identity: the same in every picture, told apart by colour-blind readers too."""
    return tuple(int(c) for c in _PALETTE[(track_id - 1) % len(_PALETTE)])


def annotate(
    frame: np.ndarray,
    tracks: TrackOutput | None = None,
    label_image: np.ndarray | None = None,
    caption: str = "",
) -> np.ndarray:
    """A copy of `frame` `(H, W, 3)` uint8 RGB with everything that is known about it.

    The pixels of a track's slot in `label_image` `(H, W)` uint8 are tinted in its colour and
    outlined. Confirmed tracks have a solid box, coasting ones a dashed box and the seconds since
    they were seen, tentative ones a thin box without a number. Ellipses hold the centre with 90 %
    probability, now and at the end of the arrow, which is the predicted path. While the sensor is
    blind a banner says why. `caption` stands in the lower left corner.
    """
    canvas = np.ascontiguousarray(frame).copy()
    if tracks is not None:
        shown = [
            track
            for track in tracks.tracks
            if track.state != TrackState.LOST and np.isfinite(track.box).all()
        ]
        # Confirmed tracks last, so that they lie on top.
        shown.sort(key=lambda track: (track.state == TrackState.CONFIRMED, track.id))
        if label_image is not None and label_image.shape == canvas.shape[:2]:
            _tint(canvas, label_image, shown)
        believed = [track for track in shown if track.state != TrackState.TENTATIVE]
        paths = {t.track_id: t.modes for t in tracks.trajectories}
        _draw_clouds(canvas, believed, paths)
        blind = tracks.sensor_state != SensorState.OK
        pen = _Pen(canvas, blind)
        for track in shown:
            _draw_track(pen, track)
        for track in believed:
            for mode in paths.get(track.id, ()):
                _draw_path(pen, track, mode)
        for track in believed:
            _draw_name(pen, track, tracks.stamp_ns)
        if blind:
            _draw_banner(pen, tracks)
    if caption:
        pen = _Pen(canvas, False)
        pen.label(caption, (0, canvas.shape[0]), (24, 24, 24), (240, 240, 240))
    return canvas


def dimmed(frame: np.ndarray) -> np.ndarray:
    """The last frame `(H, W, 3)` as a grey memory of it, to draw on while there is none."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return cv2.cvtColor((grey * 0.35).astype(np.uint8), cv2.COLOR_GRAY2RGB)


def contact_sheet(
    frames: Sequence[np.ndarray], columns: int = 4, width: int = 1600, gap_px: int = 8
) -> np.ndarray:
    """Frames `(H, W, 3)` in rows of `columns` on white, `width` px wide; the first sets the shape.

    Raises ValueError when there is none.
    """
    if not frames:
        raise ValueError("A contact sheet needs at least one frame.")
    columns = min(columns, len(frames))
    tile_width = (width - gap_px * (columns + 1)) // columns
    tile_height = round(tile_width * frames[0].shape[0] / frames[0].shape[1])
    rows = -(-len(frames) // columns)
    sheet = np.full((gap_px + rows * (tile_height + gap_px), width, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        shrinks = frame.shape[1] > tile_width
        method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        tile = cv2.resize(frame, (tile_width, tile_height), interpolation=method)
        row, column = divmod(index, columns)
        top, left = gap_px + row * (tile_height + gap_px), gap_px + column * (tile_width + gap_px)
        sheet[top : top + tile_height, left : left + tile_width] = tile
    return sheet


def write_png(path: Path, image: np.ndarray) -> None:
    """Save `(H, W, 3)` uint8 RGB. Raises OSError."""
    data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    path.write_bytes(data.tobytes())


class VideoWriter:
    """A context manager that writes RGB frames of one size.

    `path` ends in .mp4, or in .avi where OpenCV cannot encode that. The file appears on a clean
    exit only. Raises OSError where there is no encoder at all.
    """

    def __init__(self, path: Path, fps: float, height: int, width: int) -> None:
        self._size = (width, height)
        # A timescale with a small denominator, which the MPEG-4 header can hold.
        self._fps = float(Fraction(fps).limit_denominator(1001))
        self.path = path

    def __enter__(self) -> VideoWriter:
        for suffix, codec in ((".mp4", "mp4v"), (".avi", "MJPG")):
            self._part = self.path.with_suffix(f".part{suffix}")
            self._writer = cv2.VideoWriter(
                str(self._part), cv2.VideoWriter_fourcc(*codec), self._fps, self._size
            )
            if self._writer.isOpened():
                self.path = self.path.with_suffix(suffix)
                return self
        raise OSError(f"OpenCV cannot encode {self.path}: install opencv-python-headless.")

    def write(self, frame: np.ndarray) -> None:
        """Append a frame; another size is letterboxed into that of the video."""
        if frame.shape[1::-1] != self._size:
            frame = _letterbox(frame, self._size)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.release()
        if kind is None:
            os.replace(self._part, self.path)
        else:
            self._part.unlink(missing_ok=True)


def _letterbox(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    scale = min(size[0] / frame.shape[1], size[1] / frame.shape[0])
    width, height = (max(1, round(n * scale)) for n in frame.shape[1::-1])
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    canvas[top : top + height, left : left + width] = cv2.resize(frame, (width, height))
    return canvas


class _Pen:
    """Anti-aliased drawing at sub-pixel positions, in line widths that suit the picture's size."""

    def __init__(self, canvas: np.ndarray, banner: bool) -> None:
        self.canvas = canvas
        # 1 at VGA; more pixels are wanted for detail too, so lines grow slower than the picture
        self.unit = (canvas.shape[0] * canvas.shape[1] / (640 * 480)) ** 0.4
        self.line = max(1, round(1.6 * self.unit))
        self.font_scale = max(0.36, 0.46 * self.unit)
        self.banner_height = max(1, round(26 * self.unit)) if banner else 0

    def polyline(
        self, points: np.ndarray, rgb: Sequence[int], width: int, closed: bool = False
    ) -> None:
        """A line through points of `_fixed_point`."""
        cv2.polylines(self.canvas, [points], closed, rgb, width, cv2.LINE_AA, _SUBPIXEL_BITS)

    def box(
        self, box: np.ndarray, rgb: Sequence[int], width: int, dash_px: float | None = None
    ) -> None:
        """A rectangle `(cx, cy, w, h)`, dashed with the given period."""
        corners = box[:2] + box[2:] / 2 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        if dash_px is None:
            self.polyline(_fixed_point(corners), rgb, width, closed=True)
            return
        for a, b in zip(corners, np.roll(corners, -1, 0), strict=True):
            # An odd number of equal parts, drawn and left out in turn: every corner is closed.
            parts = 2 * max(1, round(min(float(np.hypot(*(b - a))), 1e4) / dash_px)) + 1
            knots = _fixed_point(a + np.linspace(0, 1, parts + 1)[:, None] * (b - a))
            for start, end in zip(knots[::2], knots[1::2], strict=True):
                self.polyline(np.array([start, end]), rgb, width)

    def label(
        self,
        text: str,
        corner: tuple[float, float],
        background: Sequence[int],
        ink: Sequence[int],
    ) -> None:
        """Text on a plate whose lower left corner is `corner`, moved inside the picture."""
        weight = max(1, int(self.unit))
        (width, ascent), descent = cv2.getTextSize(text, _FONT, self.font_scale, weight)
        pad = max(2, round(3 * self.unit))
        plate_width, plate_height = width + 2 * pad, ascent + descent + pad
        height_px, width_px = self.canvas.shape[:2]
        left = int(np.clip(round(corner[0]), 0, max(0, width_px - plate_width)))
        highest = min(self.banner_height + plate_height, height_px)
        bottom = int(np.clip(round(corner[1]), highest, height_px))
        cv2.rectangle(
            self.canvas,
            (left, bottom - plate_height),
            (left + plate_width - 1, bottom - 1),
            background,
            -1,
        )
        cv2.putText(
            self.canvas,
            text,
            (left + pad, bottom - descent - pad // 2),
            _FONT,
            self.font_scale,
            ink,
            weight,
            cv2.LINE_AA,
        )


def _tint(canvas: np.ndarray, label_image: np.ndarray, tracks: Sequence[Track]) -> None:
    colors = np.zeros((256, 3), np.uint8)
    owned = np.zeros(256, np.uint8)
    for track in tracks:
        if track.slot_label != UNLABELLED and track.state != TrackState.TENTATIVE:
            colors[track.slot_label] = color(track.id)
            owned[track.slot_label] = 255
    if not owned.any():
        return
    mask = cv2.LUT(label_image, owned)
    tint = cv2.merge([cv2.LUT(label_image, np.ascontiguousarray(c)) for c in colors.T])
    cv2.copyTo(cv2.addWeighted(canvas, 1 - _TINT, tint, _TINT, 0), mask, canvas)
    # The outline is where a 3x3 neighbourhood holds two labels, on the owner's side.
    edge = cv2.morphologyEx(label_image, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    _, edge = cv2.threshold(edge, 0, 255, cv2.THRESH_BINARY)
    cv2.copyTo(tint, cv2.bitwise_and(mask, edge), canvas)


def _draw_clouds(
    canvas: np.ndarray, tracks: Sequence[Track], paths: dict[int, tuple[TrajectoryMode, ...]]
) -> None:
    """Where tracks may be now (filled while coasting) and where their paths end, translucent."""
    ghosts = [
        (color(track.id), _ellipse(track.box[:2], track.covariance[:2, :2]))
        for track in tracks
        if track.state == TrackState.COASTING
    ]
    if ghosts:
        layer = canvas.copy()
        for rgb, ring in ghosts:
            if ring is not None:
                cv2.fillPoly(layer, [ring], rgb, cv2.LINE_AA, _SUBPIXEL_BITS)
        cv2.addWeighted(layer, 0.25, canvas, 0.75, 0, dst=canvas)
    ends = []
    for track in tracks:
        for mode in paths.get(track.id, ()):
            if len(mode.boxes):
                xx, xy, yy = mode.covariances[-1]
                covariance = np.array([[xx, xy], [xy, yy]])
                ends.append((color(track.id), _ellipse(mode.boxes[-1, :2], covariance)))
    if ends:
        layer = canvas.copy()
        for rgb, ring in ends:
            if ring is not None:
                cv2.polylines(layer, [ring], True, rgb, 1, cv2.LINE_AA, _SUBPIXEL_BITS)
        cv2.addWeighted(layer, 0.4, canvas, 0.6, 0, dst=canvas)


def _ellipse(center: np.ndarray, covariance: np.ndarray) -> np.ndarray | None:
    """Outline of where a Gaussian lies with 90 % probability, in cv2's fixed point."""
    if not (np.isfinite(covariance).all() and np.isfinite(center).all()):
        return None
    values, vectors = np.linalg.eigh(covariance)
    axes = np.sqrt(np.maximum(values, 0) * _CHI_SQUARE_90)
    turn = np.linspace(0, 2 * np.pi, 73)[:-1]
    ring = center + (np.stack([np.cos(turn), np.sin(turn)], 1) * axes) @ vectors.T
    return _fixed_point(ring)


def _fixed_point(points: np.ndarray) -> np.ndarray:
    """`(N, 2)` px as cv2's integers of 1/16 px, kept inside what those can hold."""
    return np.rint(np.clip(points, -1e4, 1e5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def _draw_track(pen: _Pen, track: Track) -> None:
    rgb = color(track.id)
    if track.state == TrackState.TENTATIVE:
        pen.box(track.box, rgb, max(1, round(0.7 * pen.unit)))
        return
    coasting = track.state == TrackState.COASTING
    dash_px = 16 * pen.unit if coasting else None
    shade = tuple(c // 4 for c in rgb)
    pen.box(track.box, shade, pen.line + 2, dash_px)  # a dark rim shows the line on any ground
    pen.box(track.box, rgb, pen.line, dash_px)
    ring = _ellipse(track.box[:2], track.covariance[:2, :2])
    if ring is not None:
        pen.polyline(ring, rgb, max(1, round(pen.unit)), closed=True)


def _draw_name(pen: _Pen, track: Track, stamp_ns: int) -> None:
    text = str(track.id)
    if track.state == TrackState.COASTING:
        text += f"  {(stamp_ns - track.last_seen_ns) * 1e-9:.1f} s"
    rgb = color(track.id)
    ink = (16, 16, 16) if np.dot(rgb, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)
    left, top = track.box[:2] - track.box[2:] / 2
    pen.label(text, (left - pen.line / 2, top), rgb, ink)


def _draw_path(pen: _Pen, track: Track, mode: TrajectoryMode) -> None:
    """An arrow along the predicted centres."""
    points = np.concatenate([track.box[None, :2], mode.boxes[:, :2]])
    length = np.hypot(*(points[-1] - points[0]))
    if not np.isfinite(points).all() or length < 8 * pen.unit:
        return  # a resting object has no path to show
    rgb = color(track.id)
    back = points[-1] - points[-2]
    back = back / max(float(np.hypot(*back)), 1e-6) * min(9 * pen.unit, length / 2)
    side = np.array([-back[1], back[0]]) * 0.45
    head = _fixed_point(np.array([points[-1], points[-1] - back + side, points[-1] - back - side]))
    points[-1] -= back / 2  # the line ends inside the head
    shaft = _fixed_point(points)
    shade = tuple(c // 4 for c in rgb)
    pen.polyline(shaft, shade, pen.line + 2)
    cv2.polylines(pen.canvas, [head], True, shade, 3, cv2.LINE_AA, _SUBPIXEL_BITS)
    pen.polyline(shaft, rgb, pen.line)
    cv2.fillPoly(pen.canvas, [head], rgb, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_banner(pen: _Pen, tracks: TrackOutput) -> None:
    text = _BLIND_TEXT[tracks.sensor_state]
    if tracks.source_stamp_ns:
        text += f"  |  blind for {(tracks.stamp_ns - tracks.source_stamp_ns) * 1e-9:.2f} s"
    coasting = sum(t.state == TrackState.COASTING for t in tracks.tracks)
    if coasting:
        text += f"  |  {coasting} {'track' if coasting == 1 else 'tracks'} predicted"
    strip = pen.canvas[: pen.banner_height]
    strip[:] = cv2.addWeighted(strip, 0.15, np.full_like(strip, _BANNER_COLOR), 0.85, 0)
    cv2.putText(
        pen.canvas,
        text,
        (round(10 * pen.unit), round(18 * pen.unit)),
        _FONT,
        pen.font_scale * 1.1,
        (255, 255, 255),
        max(1, int(pen.unit)),
        cv2.LINE_AA,
    )
