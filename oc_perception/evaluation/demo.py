# SPDX-License-Identifier: Apache-2.0
"""The demo: when the camera goes blind, and what the recording of a run says about the chain.

The recording is a rosbag2 whose times are those of arrival, so every number can be measured again.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oc_perception.bags.definitions import SEGMENTATION, TRACKS, TRAJECTORIES, typestore
from oc_perception.bags.messages import segmentation_from_message, track_output_from_messages
from oc_perception.bags.reader import Bag
from oc_perception.evaluation.segmentation import fg_ari, miou
from oc_perception.evaluation.tracking import (
    Blackout,
    Recovery,
    Truth,
    agreement,
    identity_recovery,
)
from oc_perception.types import SensorState, TrackOutput
from oc_perception.worlds.camera import MODES, parse_blackouts

TRUE_LABELS = "/camera_simulator_node/ground_truth/segmentation"
TRUE_TRACKS = "/camera_simulator_node/ground_truth/tracks"
LABELS = "/discovery_node/segmentation"
OUTPUTS = "/tracking_node/tracks"
DIAGNOSTICS = "/diagnostics"
RECORDED = {
    TRUE_LABELS: SEGMENTATION,
    TRUE_TRACKS: TRACKS,
    LABELS: SEGMENTATION,
    OUTPUTS: TRACKS,
    "/tracking_node/trajectories": TRAJECTORIES,
    DIAGNOSTICS: "diagnostic_msgs/msg/DiagnosticArray",
}
"""Topics in the recording and their types."""

LENGTHS = (5, 10, 20)
LABEL_STRIDE = 5
"""Every how many frames the label images are compared."""
_LEAD_S = 3.0  # tracks need time to be confirmed before the first blackout
_SPACING_S = 2.5  # and to be seen again before the next
_MODE_OF = {state: mode for mode, state in MODES.items()}


@dataclass(frozen=True)
class DemoPlan:
    """One run: how long, how fast, when blind (`start_s:frames:mode,...`), where to write."""

    seconds: float
    output: str
    rate_hz: float
    blackouts: str

    @property
    def frames(self) -> int:
        """Periods of the camera in the run."""
        return round(self.seconds * self.rate_hz)

    def moments(self) -> tuple[int, ...]:
        """Frames for the contact sheet: before, in, at the end of and after the longest
        blackouts."""
        blackouts = parse_blackouts(self.blackouts, self.rate_hz)
        longest = max((b.frames for b in blackouts), default=0)
        return tuple(
            frame
            for b in blackouts
            if b.frames == longest
            for frame in (
                b.start_frame - 1,
                b.start_frame + b.frames // 2,
                b.start_frame + b.frames - 1,
                b.start_frame + b.frames + 5,
            )
        )


def schedule(seconds: float) -> str:
    """Blackouts of 5, 10 and 20 frames in each mode, spread and mixed; fewer in a short run.

    Raises ValueError where not even one fits.
    """
    modes = list(MODES)
    pairs = [
        (length, modes[(turn + i) % 3]) for turn in range(3) for i, length in enumerate(LENGTHS)
    ]
    fitting = min(len(pairs), int((seconds - _LEAD_S) // _SPACING_S))
    if fitting < 1:
        raise ValueError(f"A demo takes at least {_LEAD_S + _SPACING_S:g} s, not {seconds:g} s.")
    spacing_s = (seconds - _LEAD_S) / fitting
    return ",".join(
        f"{_LEAD_S + i * spacing_s:.2f}:{length}:{mode}"
        for i, (length, mode) in enumerate(pairs[:fitting])
    )


def measure(path: str | Path) -> dict[str, Any]:
    """The metrics of a recording. Raises BagError, and ValueError where the truth is missing."""
    with Bag(path) as bag:
        truth = [
            track_output_from_messages(message) for _, _, message in bag.messages([TRUE_TRACKS])
        ]
        if not truth:
            raise ValueError(f"{path} has no ground truth on {TRUE_TRACKS} to measure against.")
        states = {output.stamp_ns: output.sensor_state for output in truth}
        outputs, latencies_ms = [], []
        for _, arrival_ns, message in bag.messages([OUTPUTS]):
            output = track_output_from_messages(message)
            outputs.append(output)
            if states.get(output.stamp_ns) == SensorState.OK:
                latencies_ms.append((arrival_ns - output.stamp_ns) * 1e-6)
        answered = {
            stamp_of(data)
            for _, _, _, data in bag.raw([LABELS])
            if states.get(stamp_of(data), SensorState.STALE) != SensorState.STALE
        }
        dropped = _counter(bag, "discovery_node", "dropped")
        scores = _compare_labels(bag, states)
    outputs.sort(key=lambda output: output.stamp_ns)
    truths = [Truth.from_tracks(output) for output in truth]
    blackouts = find_blackouts(truth)
    overall, blind = agreement(truths, outputs, blackouts)
    recoveries = [(b, identity_recovery(truths, outputs, b)) for b in blackouts]
    published = sum(state != SensorState.STALE for state in states.values())
    total = sum((r for _, r in recoveries), Recovery())
    return {
        "frames_published": published,
        "frames_received": len(answered) + dropped,
        "frames_processed": len(answered),
        "latency_ms": _percentiles(latencies_ms),
        "fg_ari": _number(np.nanmean(scores[:, 0]) if len(scores) else math.nan),
        "miou": _number(np.nanmean(scores[:, 1]) if len(scores) else math.nan),
        "frames_compared": len(scores),
        "id_recovery": _shares(recoveries),
        "id_recovery_by_mode": {
            mode: _shares([(b, r) for b, r in recoveries if b.mode == mode])
            for mode in MODES
            if any(b.mode == mode for b in blackouts)
        },
        "identities": {
            name: getattr(total, name)
            for name in ("recovered", "swapped", "new", "lost", "untracked")
        },
        "coverage_90": _number(overall.coverage(0.9)),
        "coverage_90_blackout": _number(blind.coverage(0.9)),
        "centre_error_px": _number(overall.error_px()),
        "centre_error_blackout_px": _number(blind.error_px()),
    }


def find_blackouts(truth: Sequence[TrackOutput]) -> list[Blackout]:
    """The intervals in which the camera was blind, from what it did at each of its periods.

    One that is not over at the end of the recording is left out.
    """
    blackouts, start = [], None
    for i, output in enumerate(truth):
        mode = _MODE_OF.get(output.sensor_state)
        if start is not None and output.sensor_state != truth[start].sensor_state:
            known = _MODE_OF[truth[start].sensor_state]
            blackouts.append(Blackout(truth[start].stamp_ns, output.stamp_ns, i - start, known))
            start = None
        if start is None and mode is not None:
            start = i
    return blackouts


def table(metrics: dict[str, Any]) -> str:
    """The metrics for people, with the targets they are held against."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    def number(value: float | None, digits: int, unit: str = "") -> str:
        return "-" if value is None else f"{value:.{digits}f}{unit}"

    published = max(1, metrics["frames_published"])
    latency = metrics["latency_ms"]
    rows = [
        ("frames published", f"{metrics['frames_published']}", ""),
        (
            "frames received / published",
            share(metrics["frames_received"] / published),
            ">= 99.9 %",
        ),
        ("frames processed / published", share(metrics["frames_processed"] / published), ""),
        ("latency p50", number(latency["p50"], 1, " ms"), ""),
        ("latency p99", number(latency["p99"], 1, " ms"), ""),
        ("FG-ARI", number(metrics["fg_ari"], 3), ">= 0.800"),
        ("mIoU with background", number(metrics["miou"], 3), ""),
    ]
    targets = {"5": ">= 95 %", "10": ">= 90 %", "20": ">= 80 %"}
    for frames, value in metrics["id_recovery"].items():
        name = f"identity kept, {frames} blind frames"
        rows.append((name, share(value), targets.get(frames, "")))
        for mode, values in metrics["id_recovery_by_mode"].items():
            if frames in values:
                rows.append((f"    {mode}", share(values[frames]), ""))
    rows += [
        ("truth inside the 90 % ellipse", share(metrics["coverage_90"]), "90 %"),
        ("    while blind", share(metrics["coverage_90_blackout"]), "90 %"),
        ("wall time", f"{metrics['wall_s']:.0f} s", "<= 180 s"),
    ]
    return "\n".join(f"{name:<38}{value:>18}   {target}".rstrip() for name, value, target in rows)


def _shares(recoveries: Sequence[tuple[Blackout, Recovery]]) -> dict[str, float | None]:
    """Share of recovered identities by length of the blackout."""
    lengths = sorted({b.frames for b, _ in recoveries})
    return {
        str(n): _number(sum((r for b, r in recoveries if b.frames == n), Recovery()).share)
        for n in lengths
    }


def _compare_labels(bag: Bag, states: dict[int, SensorState]) -> np.ndarray:
    """FG-ARI and mIoU of every LABEL_STRIDE-th frame that was seen, `(N, 2)`."""
    wanted = set(
        sorted(stamp for stamp, state in states.items() if state == SensorState.OK)[::LABEL_STRIDE]
    )
    waiting: dict[int, tuple[str, np.ndarray]] = {}
    scores = []
    for topic, _, message_type, data in bag.raw([TRUE_LABELS, LABELS]):
        if stamp_of(data) not in wanted:
            continue
        segmentation = segmentation_from_message(typestore().deserialize_cdr(data, message_type))
        labels, stamp_ns = segmentation.label_image, segmentation.stamp_ns
        if labels is None:
            continue
        other_topic, other = waiting.pop(stamp_ns, (topic, labels))
        if other_topic == topic:
            waiting[stamp_ns] = (topic, labels)
            continue
        true, found = (labels, other) if topic == TRUE_LABELS else (other, labels)
        pair = [torch.from_numpy(image.astype(np.int64))[None] for image in (true, found)]
        if true.any():
            scores.append((fg_ari(*pair).item(), miou(*pair).item()))
    return np.array(scores).reshape(-1, 2)


def stamp_of(data: bytes) -> int:
    """The stamp of a serialized message that begins with a header (after 4 bytes of
    encapsulation)."""
    order = "<" if data[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", data, 4)
    return seconds * 1_000_000_000 + nanoseconds


def _counter(bag: Bag, node: str, key: str) -> int:
    """The last value of a node's counter in the diagnostics."""
    value = 0
    for _, _, message in bag.messages([DIAGNOSTICS]):
        for status in message.status:
            if status.name.endswith(node):
                value = next((int(v.value) for v in status.values if v.key == key), value)
    return value


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p99": None}
    return {f"p{q}": _number(np.percentile(values, q)) for q in (50, 99)}


def _number(value: float) -> float | None:
    """Rounded for JSON, which has no NaN."""
    return None if math.isnan(value) else round(float(value), 4)
