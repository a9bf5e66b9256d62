# SPDX-License-Identifier: Apache-2.0
"""The worst moments of a replay as film strips: found on the way, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from oc_perception.bags.frames import TrueBoxes
from oc_perception.evaluation.draw import annotate, color
from oc_perception.evaluation.mot_sequence import iou
from oc_perception.evaluation.replay_runs import Runs, believed
from oc_perception.evaluation.replay_steps import Step
from oc_perception.evaluation.self_test import Branch, SelfTest
from oc_perception.types import Segmentation, SensorState, TrackOutput

MOST = 8
"""Cases that are kept in the end, and half as many of each kind."""
TILE_WIDTH_PX = 320
_BLIND_TILES, _COLUMNS = 5, 4  # with one before and two after: two full rows
_MOMENT_FRAMES = 25
"""Of a segmentation or of tracks no two cases are closer than about this."""
_MIN_IOU = 0.5
_WHITE, _RED, _GREY, _GAP_PX = (255, 255, 255), (200, 40, 40), 128, 4


class Case(NamedTuple):
    """A bad moment, `score` from 0 (nothing wrong) to 1, and its strip as a JPEG file."""

    kind: str
    step: int
    stamp_ns: int
    score: float
    caption: str
    strip: bytes


@dataclass(frozen=True)
class _Tile:
    """A small picture and what belongs on it; `scale` is its size over the frame's."""

    picture: np.ndarray
    scale: np.ndarray
    output: TrackOutput
    truth: np.ndarray
    caption: str
    blind: bool = False

    def draw(self) -> np.ndarray:
        """True boxes (or those of the unhidden run) are thin and white."""
        box_scale = np.r_[self.scale, self.scale]
        tracks = tuple(
            replace(t, box=t.box * box_scale, covariance=t.covariance * np.outer(*[box_scale] * 2))
            for t in self.output.tracks
        )
        said = replace(self.output, tracks=tracks, trajectories=(), sensor_state=SensorState.OK)
        canvas = annotate(self.picture, said, caption=self.caption)
        for cx, cy, width, height in self.truth * box_scale:
            corners = np.rint([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2])
            left, top, right, bottom = corners.astype(int).tolist()
            cv2.rectangle(canvas, (left, top), (right, bottom), _WHITE, 1, cv2.LINE_AA)
        if self.blind:
            cv2.rectangle(canvas, (0, 0), (canvas.shape[1] - 1, canvas.shape[0] - 1), _RED, 3)
        return canvas


class WorstCases:
    """Looks at every step for the worst blackouts, segmentations and tracks of the own tracker.

    A tracker that believes in an object when it was seen in `confirm_hits` frames cannot be blamed
    for what it misses in the first ones of a session.
    """

    def __init__(self, confirm_hits: int) -> None:
        self._confirm_hits = confirm_hits
        self._session, self._tracked_frames = b"", 0
        self._cases: dict[str, dict[int, Case]] = {}
        self._tiles: dict[int, list[_Tile]] = {}
        self._small: tuple[int, np.ndarray, np.ndarray] | None = None
        self._pairs: dict[int, int] = {}
        self._before: _Tile | None = None

    def add_blackouts(self, number: int, step: Step, test: SelfTest, runs: Runs) -> None:
        """Keep the pictures of blackouts under way, and those that were bad."""
        if runs.restarted:
            self._tiles = {}
        unhidden = runs.outputs[runs.own]
        for branch in test.started:
            tile = self._tile(number, step, unhidden, unhidden, "last seen frame")
            self._tiles[id(branch)] = [tile]
        for branch in test.taken:
            caption = _caption(branch)
            if caption and step.frame is not None and isinstance(step.frame.image, np.ndarray):
                output = branch.arms[runs.own].output
                tile = self._tile(number, step, output, unhidden, caption)
                tile = replace(tile, blind=branch.hidden[branch.age - 1 : branch.age].any())
                self._tiles[id(branch)].append(tile)
        for branch in test.complete:
            tiles = self._tiles.pop(id(branch))
            row = branch.rows()[0]
            if not row["tracked"]:
                continue
            wrong = row["tracked"] - row["kept"]
            score = (wrong / row["tracked"] + min(1.0, row["error_sizes"] or 0.0)) / 2
            caption = (
                f"{row['frames']} frames hidden: {wrong} of {row['tracked']} identities not kept, "
                f"error {row['error_sizes'] or 0.0:.2f} box sizes"
            )
            moment = (branch.start, branch.start_ns, score, caption)
            self._consider(
                "blackout", number, *moment, lambda tiles=tiles: [t.draw() for t in tiles]
            )

    def add_segmentation(self, number: int, step: Step, fg_ari: float) -> None:
        """Take a frame with true masks and its score."""

        def pictures() -> list[np.ndarray]:
            small, _ = self._shrunk(number, step.frame.image)
            found, truth = step.output.segmentation, step.frame.truth
            return [small, _tinted(small, truth, "truth"), _tinted(small, found, "found")]

        score = min(1.0, max(0.0, 1 - fg_ari))
        moment = (number, step.stamp_ns, score, f"FG-ARI {fg_ari:.3f}")
        self._consider("segmentation", number // _MOMENT_FRAMES, *moment, pictures)

    def add_tracking(self, number: int, step: Step, truth: TrueBoxes, output: TrackOutput) -> None:
        """Take a frame with true boxes and what the own tracker said."""
        if output.session != self._session:
            self._session, self._tracked_frames, self._pairs = output.session, 0, {}
        self._tracked_frames += 1
        tracks = believed(output)
        overlaps = iou(
            truth.boxes[:, None], np.array([t.box for t in tracks]).reshape(-1, 4)[None]
        )
        rows, columns = linear_sum_assignment(overlaps, maximize=True)
        pairs = {
            int(truth.ids[row]): tracks[column].id
            for row, column in zip(rows, columns, strict=True)
            if overlaps[row, column] >= _MIN_IOU
        }
        switched = sum(self._pairs.get(item, track) != track for item, track in pairs.items())
        visible = set(truth.ids.tolist())
        self._pairs = {i: t for i, t in (self._pairs | pairs).items() if i in visible}
        if not isinstance(step.frame.image, np.ndarray):
            return
        wrong = len(truth.ids) - len(pairs) + switched
        caption = f"{len(truth.ids) - len(pairs)} of {len(truth.ids)} boxes missed"
        caption += f", {switched} identities switched" if switched else ""
        small, scale = self._shrunk(number, step.frame.image)
        tiles = [self._before, _Tile(small, scale, output, truth.boxes, f"step {number}")]
        self._before = tiles[1]
        if len(truth.ids) and self._tracked_frames >= self._confirm_hits:
            moment = (number, step.stamp_ns, min(1.0, wrong / len(truth.ids)), caption)
            self._consider(
                "tracking",
                number // _MOMENT_FRAMES,
                *moment,
                lambda: [tile.draw() for tile in tiles if tile],
            )

    def write(self, directory: Path) -> list[dict[str, Any]]:
        """Write the strips into `directory`/strips; returns the cases, worst first."""

        def order(case: Case) -> tuple[float, str, int]:
            return -case.score, case.kind, case.step

        ranked = [sorted(kind.values(), key=order) for kind in self._cases.values()]
        # The worst of each kind first: every kind has its share.
        fair = [case for rank in zip_longest(*ranked) for case in rank if case]
        cases = sorted(fair[:MOST], key=order)
        rows = []
        for place, case in enumerate(cases, start=1):
            path = Path("strips", f"{place}_{case.kind}_{case.step}.jpg")
            (directory / path).parent.mkdir(exist_ok=True)
            (directory / path).write_bytes(case.strip)
            values = case._asdict() | {"score": round(case.score, 6), "strip": path.as_posix()}
            rows.append(values)
        return rows

    def _consider(
        self,
        kind: str,
        moment: int,
        step: int,
        stamp_ns: int,
        score: float,
        caption: str,
        pictures: Callable[[], Sequence[np.ndarray]],
    ) -> None:
        """Keep a case if it is the worst of its `moment` and among the worst of its kind."""
        cases = self._cases.setdefault(kind, {})
        mildest = min(cases, key=lambda place: cases[place].score, default=None)
        rival = moment if moment in cases else mildest if len(cases) == MOST // 2 else None
        if score <= 0 or (rival is not None and cases[rival].score >= score):
            return
        if rival is not None:
            del cases[rival]
        cases[moment] = Case(kind, step, stamp_ns, score, caption, _strip(pictures()))

    def _tile(
        self, number: int, step: Step, output: TrackOutput, unhidden: TrackOutput, caption: str
    ) -> _Tile:
        small, scale = self._shrunk(number, step.frame.image)
        boxes = np.array([t.box for t in believed(unhidden)]).reshape(-1, 4)
        return _Tile(small, scale, output, boxes, caption)

    def _shrunk(self, number: int, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._small is None or self._small[0] != number:
            height, width = image.shape[:2]
            size = (TILE_WIDTH_PX, max(1, round(height * TILE_WIDTH_PX / width)))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            self._small = (number, small, np.array(size) / (width, height))
        return self._small[1:]


def _caption(branch: Branch) -> str:
    """Of the step that a branch has just taken, if it is one to show: some of the blind frames,
    the first and the last one after.
    """
    age = branch.age - 1
    blind = np.flatnonzero(branch.hidden)
    chosen = blind[np.unique(np.linspace(0, len(blind) - 1, _BLIND_TILES).round().astype(int))]
    if age in chosen:
        return f"hidden {np.searchsorted(blind, age) + 1} of {len(blind)}"
    if age >= len(branch.hidden) and branch.settled in (1, 5):
        return f"{branch.settled} seen after"
    return ""


def _tinted(picture: np.ndarray, segmentation: Segmentation, caption: str) -> np.ndarray:
    labels = cv2.resize(
        segmentation.label_image, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT
    )
    palette = np.array([(0, 0, 0), *(color(label) for label in range(1, 256))], np.uint8)
    return annotate(cv2.addWeighted(picture, 0.4, palette[labels], 0.6, 0), caption=caption)


def _strip(pictures: Sequence[np.ndarray]) -> bytes:
    """Pictures of one width in rows of _COLUMNS, legible on a page, as a JPEG file."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    pitch = np.array([height, width]) + _GAP_PX
    strip = np.full((*(pitch * (rows, columns) - _GAP_PX), 3), _GREY, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = pitch * divmod(place, columns)
        strip[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    strip = cv2.cvtColor(strip, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", strip, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
