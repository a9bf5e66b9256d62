# SPDX-License-Identifier: Apache-2.0
"""Tracking by detection on MOTChallenge sequences, with all frames and with some of them hidden.

A sequence is its public detections and its ground truth, as far as there are pictures. Rules of
evaluation are MOTChallenge's (Milan et al. 2016, section 4): rows of confidence 0 do not count;
where classes are told, only pedestrians do, and a track that covers a distractor (a reflection,
somebody who sits in a car) is neither right nor wrong: its box is left out of that frame.

Detectors score in units of their own, so a score is replaced by its rank among the scores of its
sequence, in 0..1: the one calibration that needs no truth.
"""

from __future__ import annotations

import configparser
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from oc_perception.evaluation.box_trackers import SORT, BoxTracker, BoxTrackerConfig
from oc_perception.evaluation.mot import THRESHOLD, MotScores, score
from oc_perception.evaluation.mot_files import MotTable, parse_mot
from oc_perception.evaluation.mot_sequence import EPSILON, MotSequence, iou
from oc_perception.types import Detection, Segmentation, SensorState, TrackOutput, TrackState

PEDESTRIAN = 1
DISTRACTORS = (2, 7, 8, 12)
"""Classes of MOT16: person on vehicle, static person, distractor, reflection."""
_FIRST_STAMP_NS = 1_000_000_000
_FILES = ("gt/gt.txt", "det/det.txt", "seqinfo.ini")


class SequenceError(ValueError):
    """A sequence that is not MOTChallenge's."""


@dataclass(frozen=True)
class DetectedSequence:
    """T frames of detections, scores being ranks, and the ground truth, whole: with the rows that
    do not count. `image_size` `(height, width)` px; `moving` if the camera is.
    """

    name: str
    image_size: tuple[int, int]
    rate_hz: float
    detections: tuple[tuple[Detection, ...], ...]
    truth: MotTable
    moving: bool = False

    def __len__(self) -> int:
        return len(self.detections)

    def part(self, start: int, stop: int) -> DetectedSequence:
        """Frames `start` (from 0) to before `stop` as a sequence of its own."""
        inside = (self.truth.frames >= start) & (self.truth.frames < stop)
        truth = self.truth.select(inside)
        truth = replace(truth, frames=truth.frames - start)
        return replace(self, detections=self.detections[start:stop], truth=truth)


class AnyTracker(Protocol):
    """What `tracking.tracker.Tracker` and the baselines have in common."""

    def initial_state(self, session: bytes, image_size: tuple[int, int] | None = None) -> Any: ...

    def step(
        self, state: Any, segmentation: Segmentation | None, stamp_ns: int
    ) -> tuple[Any, TrackOutput]: ...


@dataclass(frozen=True)
class Entry:
    """A tracker, and which of its confirmed tracks are handed in: those that were seen in the last
    `coast_s` seconds and exist with a probability of at least `existence`.
    """

    tracker: AnyTracker
    coast_s: float = 0.0
    existence: float = 0.0


Choice = Callable[[DetectedSequence], Entry]
"""The entry for a sequence: trackers are set for the rate of the camera, and for its motion."""


class _Fit(NamedTuple):
    """A baseline with `lost_s` instead of its `max_lost_steps`, and which tracks it hands in."""

    config: BoxTrackerConfig
    lost_s: float
    coast_s: float = 0.0


def _choice(still: _Fit, moving: _Fit) -> Choice:
    def entry(sequence: DetectedSequence) -> Entry:
        fit = moving if sequence.moving else still
        lost_steps = max(1, round(fit.lost_s * sequence.rate_hz))
        config = replace(fit.config, max_lost_steps=lost_steps)
        return Entry(BoxTracker(config, 1 / sequence.rate_hz), fit.coast_s)

    return entry


def _sort(min_iou: float, low_score: float, blind: bool = True) -> BoxTrackerConfig:
    return replace(
        SORT, min_iou=min_iou, low_score=low_score, confirm_hits=1, called_when_blind=blind
    )


def _bytetrack(
    min_iou: float, second: float, high: float, birth: float, low: float, blind: bool = True
) -> BoxTrackerConfig:
    return BoxTrackerConfig(
        min_iou=min_iou,
        confirm_hits=1,
        max_lost_steps=1,
        high_score=high,
        second_min_iou=second,
        birth_score=birth,
        low_score=low,
        called_when_blind=blind,
    )


# Thresholds were chosen like those of the tracker, on the same part of the same sequence.
BASELINES: dict[str, Choice] = {
    "SORT-like": _choice(
        _Fit(_sort(0.2, 0.5), 0.4, 0.2),
        _Fit(_sort(0.05, 0.5), 0.4, 0.2),
    ),
    "SORT-like, not called when blind": _choice(
        _Fit(_sort(0.3, 0.5, blind=False), 0.4, 0.2),
        _Fit(_sort(0.05, 0.5, blind=False), 0.4, 0.2),
    ),
    "ByteTrack-like": _choice(  # as published: what is matched is handed in
        _Fit(_bytetrack(0.3, 0.07, 0.5, 0.432, 0.113), 0.2),
        _Fit(_bytetrack(0.2, 0.1, 0.5, 0.432, 0.0), 0.2),
    ),
    "ByteTrack-like, lost tracks handed in": _choice(
        _Fit(_bytetrack(0.182, 0.2, 0.401, 0.29, 0.202), 2.0, 0.3),
        _Fit(_bytetrack(0.05, 0.3, 0.5, 0.29, 0.202), 0.336, 0.2),
    ),
    "ByteTrack-like, not called when blind": _choice(
        _Fit(_bytetrack(0.05, 0.234, 0.465, 0.244, 0.197, blind=False), 2.0, 0.3),
        _Fit(_bytetrack(0.1, 0.234, 0.465, 0.244, 0.197, blind=False), 0.2, 0.13),
    ),
}


def read_sequence(path: str | Path) -> DetectedSequence:
    """A folder or tar in MOTChallenge's layout; it ends with the last picture of those that are
    numbered from 1 without a gap.

    Raises SequenceError, MotFileError for a line, OSError.
    """
    names, texts = _content(Path(path))
    try:
        settings = configparser.ConfigParser()
        settings.read_string(texts["seqinfo.ini"])
        section = settings["Sequence"]
        image_size = (section.getint("imHeight"), section.getint("imWidth"))
        rate_hz = section.getfloat("frameRate")
        folder = section.get("imDir", "img1")
        truth, detections = (parse_mot(texts[name].splitlines(), name) for name in _FILES[:2])
    except (KeyError, configparser.Error) as error:
        raise SequenceError(
            f"{path} is not a MOTChallenge sequence ({error!r}): it needs {', '.join(_FILES)}."
        ) from error
    pictures = {
        int(name.stem) for name in names if name.parent.name == folder and name.stem.isdigit()
    }
    count = next(k for k in range(len(pictures) + 1) if k + 1 not in pictures)
    if not count or None in image_size or not rate_hz:
        raise SequenceError(f"{path} has no picture 1 in {folder}, or no sizes in seqinfo.ini.")
    truth = truth.select(truth.frames < count)
    detections = detections.select(detections.frames < count)
    name = section.get("name", Path(path).stem)
    return DetectedSequence(name, image_size, rate_hz, _by_frame(detections, count), truth)


def hidden_frames(count: int, share: float, seed: int) -> np.ndarray:
    """`(count,)` bool, each frame by itself with probability `share`."""
    return np.random.default_rng(seed).random(count) < share


def follow(entry: Entry, sequence: DetectedSequence, hidden: np.ndarray) -> MotSequence:
    """What the tracker hands in for each frame, beside the truth that counts; frames that are
    `hidden` `(T,)` have no observation.
    """
    tracker = entry.tracker
    state = tracker.initial_state(bytes(16), sequence.image_size)
    ids, boxes = [], []
    for frame, detections in enumerate(sequence.detections):
        stamp_ns = _FIRST_STAMP_NS + round(frame * 1e9 / sequence.rate_hz)
        seen = Segmentation(stamp_ns, SensorState.OK, "", frame, detections=detections)
        state, output = tracker.step(state, None if hidden[frame] else seen, stamp_ns)
        chosen = [
            track
            for track in output.tracks
            if track.state in (TrackState.CONFIRMED, TrackState.COASTING)
            and (stamp_ns - track.last_seen_ns) * 1e-9 <= entry.coast_s + 1e-6
            and track.existence_probability >= entry.existence
        ]
        ids.append(np.array([track.id for track in chosen], np.int64))
        boxes.append(np.array([track.box for track in chosen]).reshape(-1, 4))
    return counted(sequence, ids, boxes)


def counted(
    sequence: DetectedSequence, ids: list[np.ndarray], boxes: list[np.ndarray]
) -> MotSequence:
    """Truth and tracks, frame by frame, without what MOTChallenge does not count."""
    truth = sequence.truth
    kept = ~truth.ignored & ((truth.classes < 0) | (truth.classes == PEDESTRIAN))
    if (truth.classes >= 0).any():
        order = np.argsort(truth.frames, kind="stable")
        cuts = np.searchsorted(truth.frames[order], np.arange(1, len(sequence)))
        for frame, rows in enumerate(np.split(order, cuts)):
            overlap = iou(truth.boxes[rows, None], boxes[frame][None])
            overlap = np.where(overlap >= THRESHOLD - EPSILON, overlap, 0.0)
            pairs = linear_sum_assignment(overlap, maximize=True)
            distracted = np.isin(truth.classes[rows[pairs[0]]], DISTRACTORS) & (overlap[pairs] > 0)
            left = np.setdiff1d(np.arange(len(ids[frame])), pairs[1][distracted])
            ids[frame], boxes[frame] = ids[frame][left], boxes[frame][left]
    return MotSequence(*truth.select(kept).by_frame(len(sequence)), ids, boxes)


def measure(
    sequences: Iterable[DetectedSequence],
    entries: Mapping[str, Choice],
    shares: Iterable[float],
    seeds: int,
    on_done: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Scores by entry, by setting and by sequence name, `combined` being the sum of sequences.

    Settings: `all_frames`, and for each of `shares`, as 0.2, `hidden_0.2_through`: with so many
    frames hidden, scored in all frames, and `hidden_0.2_seen`: scored in the seen ones only. These
    add up `seeds` draws, 0, 1, 2 ..., and `combined` has the HOTA of each of them, too.
    """
    sequences = list(sequences)
    result = {}
    for name, choice in entries.items():
        chosen = [choice(sequence) for sequence in sequences]
        pairs = list(zip(chosen, sequences, strict=True))
        whole = [score(follow(e, s, np.zeros(len(s), bool))) for e, s in pairs]
        result[name] = {"all_frames": _summary(sequences, [whole])}
        for share in shares:
            through, seen = [], []
            for seed in range(seeds):
                hidden = [hidden_frames(len(s), share, seed) for s in sequences]
                found = [follow(e, s, h) for (e, s), h in zip(pairs, hidden, strict=True)]
                through.append([score(f) for f in found])
                seen.append([score(f.select(~h)) for f, h in zip(found, hidden, strict=True)])
            result[name] |= {
                f"hidden_{share:g}_through": _summary(sequences, through),
                f"hidden_{share:g}_seen": _summary(sequences, seen),
            }
        on_done()
    return result


def _summary(
    sequences: list[DetectedSequence], draws: list[list[MotScores]]
) -> dict[str, dict[str, Any]]:
    """`draws` has the scores of each sequence, for each draw."""
    sums = [reduce(add, of_sequence) for of_sequence in zip(*draws, strict=True)]
    summary = {s.name: x.summary() for s, x in zip(sequences, sums, strict=True)}
    each = [reduce(add, of_draw).summary()["hota"] for of_draw in draws]
    return summary | {"combined": reduce(add, sums).summary() | {"hota_of_draws": each}}


def _content(path: Path) -> tuple[list[PurePosixPath], dict[str, str]]:
    """Names of all files in a folder or tar, and the text of `_FILES`, by these names."""
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.is_file()]
        texts = {name: (path / name).read_text() for name in _FILES if (path / name).is_file()}
        return [PurePosixPath(p.relative_to(path).as_posix()) for p in files], texts
    try:
        with tarfile.open(path) as tar:
            members = [member for member in tar if member.isfile()]
            texts = {
                name: tar.extractfile(member).read().decode()
                for member in members
                for name in _FILES
                if member.name.endswith(f"/{name}")
            }
    except tarfile.TarError as error:
        raise SequenceError(f"{path} is neither a folder nor a tar: {error}.") from error
    return [PurePosixPath(member.name) for member in members], texts


def _by_frame(table: MotTable, count: int) -> tuple[tuple[Detection, ...], ...]:
    ranks = (rankdata(table.confidences) - 0.5) / max(1, len(table))
    frames: list[list[Detection]] = [[] for _ in range(count)]
    for frame, box, rank in zip(table.frames.tolist(), table.boxes, ranks.tolist(), strict=True):
        label = 1 + len(frames[frame])
        frames[frame].append(Detection(label, box, round(box[2] * box[3]), rank))
    return tuple(map(tuple, frames))
