# SPDX-License-Identifier: Apache-2.0
"""How long one step of a tracker takes: motion models alone, trackers, networks on frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from oc_perception.evaluation.box_trackers import BYTETRACK, BoxTracker
from oc_perception.models.registry import create_model
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.motion import Belief, create_motion_model
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import Detection, Segmentation, SensorState

_SIZE = (480, 640)
_PERIOD_S = 1 / 30
TARGETS_MS = {
    "kalman": 0.2,
    "relational": 3.0,
    "mohart, 320x240": 25.0,
    "sqair, 50x50, 3 slots, compiled": 6.0,
}
"""For ten objects, but for SQAIR, on one core."""


def measure(
    objects: int, seconds: float, relational: str, compiled: bool = False
) -> dict[str, dict[str, float]]:
    """Milliseconds per step by row: `ms` median, `p90_ms` the slow tenth, `best_ms`.

    `objects` discs fly across a VGA image, 30 frames per second; every row gets about `seconds`.
    `relational` names the weights of the learned motion model; those of MOHART and SQAIR are
    random. SQAIR has one particle; with `compiled` it is measured compiled, too, which takes
    minutes.
    """
    rows = {}
    for name, step in _steps(objects, relational, compiled):
        step()
        times, end_s = [], time.perf_counter() + seconds
        while len(times) < 5 or time.perf_counter() < end_s:
            start_s = time.perf_counter()
            step()
            times.append((time.perf_counter() - start_s) * 1e3)
        rows[name] = {
            "ms": float(np.median(times)),
            "p90_ms": float(np.quantile(times, 0.9)),
            "best_ms": min(times),
        }
    return rows


def _steps(
    objects: int, relational: str, compiled: bool
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a step does, again at each call, by name."""
    for model in ("kalman", "relational"):
        config = TrackerConfig(motion_model=model, motion_weights=relational)
        yield model, _motion_step(config, objects)
        for horizon_s in (0.0, 1.0):
            config = TrackerConfig(
                motion_model=model, motion_weights=relational, horizon_s=horizon_s
            )
            forecast = "with forecast" if horizon_s else "without forecast"
            yield f"tracker, {model}, {forecast}", _tracker_step(Tracker(config), objects)
    yield "ByteTrack-like", _tracker_step(BoxTracker(BYTETRACK, _PERIOD_S), objects)
    for height, width in ((64, 64), (240, 320)):
        yield f"mohart, {width}x{height}", _mohart_step(height, width, objects)
    yield "sqair, 50x50, 3 slots", _sqair_step(compiled=False)
    if compiled:
        yield "sqair, 50x50, 3 slots, compiled", _sqair_step(compiled=True)


def _motion_step(config: TrackerConfig, objects: int) -> Callable[[], object]:
    """Predict a frame period, then correct all objects."""
    motion = create_motion_model(config)
    random = np.random.default_rng(0)
    positions = random.uniform(50, 430, (objects, 2))
    belief = Belief(
        means=np.concatenate([positions, random.normal(0, 100, (objects, 2))], 1),
        covariances=np.tile(np.diag([4.0, 4.0, 100.0, 100.0]), (objects, 1, 1)),
        sizes=np.full((objects, 2), 64.0),
        features=np.zeros((objects, 1)),
        memories=np.zeros((objects, motion.memory_size)),
    )
    rows, noises = np.arange(objects), np.tile(np.eye(2), (objects, 1, 1))

    def step() -> Belief:
        fresh = Belief(belief.means.copy(), *list(vars(belief).values())[1:])  # nothing remembered
        return motion.update(
            motion.predict(fresh, _SIZE, _PERIOD_S), _SIZE, rows, positions, noises
        )

    return step


def _tracker_step(tracker: Tracker | BoxTracker, objects: int) -> Callable[[], object]:
    """The next frame of a stream in which all objects circle, after ten that made the tracks."""
    random = np.random.default_rng(0)
    centres, phases = random.uniform(80, 400, (objects, 2)), random.uniform(0, 6, (objects, 1))
    state, frame = tracker.initial_state(bytes(16), _SIZE), 0

    def step() -> object:
        nonlocal state, frame
        frame += 1
        angle = phases + frame / 10
        places = centres + 30 * np.concatenate([np.cos(angle), np.sin(angle)], 1)
        detections = tuple(
            Detection(label, np.array([*place, 64.0, 64.0]), 4096)
            for label, place in enumerate(places)
        )
        seen = Segmentation(stamp_ns(), SensorState.OK, "", frame, None, detections)
        state, output = tracker.step(state, seen, stamp_ns())
        return output

    def stamp_ns() -> int:
        return round((1 + frame * _PERIOD_S) * 1e9)

    for _ in range(10):
        step()
    return step


def _mohart_step(height: int, width: int, objects: int) -> Callable[[], object]:
    torch.manual_seed(0)  # torch's initialisers take no generator
    model = create_model("mohart", frame_size=(height, width)).eval()
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(1, objects, 4, generator=generator) * 0.1
    boxes[..., :2] += 0.45
    boxes[..., 2:] += 0.1
    frame = torch.rand(1, 3, height, width, generator=generator)
    with torch.inference_mode():
        state = model.initial_state(boxes, torch.ones(1, objects, dtype=torch.bool))

    @torch.inference_mode()
    def step() -> object:
        return model.step(state, frame)

    return step


def _sqair_step(compiled: bool) -> Callable[[], object]:
    """The next frame after one in which all slots were filled; the most probable, as with one
    particle in the tracker.
    """
    torch.manual_seed(0)
    model = create_model("sqair", num_slots=3).eval()
    look = torch.compile(model.step, dynamic=False) if compiled else model.step
    generator = torch.Generator().manual_seed(0)
    frame = torch.rand(1, 3, *model.frame_size, generator=generator)
    with torch.inference_mode():
        state, output = model.step(model.initial_state(1), frame)
    if not output.presence.all():
        raise RuntimeError("the network should find as many objects as it has slots")

    @torch.inference_mode()
    def step() -> object:
        return look(state, frame)

    for _ in range(3):
        step()
    return step
