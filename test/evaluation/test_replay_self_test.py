# SPDX-License-Identifier: Apache-2.0
"""The self-test of a replay: a branch is the run in which these frames were hidden, no more."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

from oc_perception.bags.frames import Frame
from oc_perception.evaluation.box_trackers import BYTETRACK, SORT, BoxTracker
from oc_perception.evaluation.replay_runs import Runs, believed
from oc_perception.evaluation.replay_steps import Step
from oc_perception.evaluation.self_test import SCHEDULES, SETTLE_FRAMES, SelfTest
from oc_perception.pipeline import DiscoveryState, Perception
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.reordering import ReorderingTracker
from oc_perception.tracking.tracker import Tracker
from oc_perception.types import Detection, Segmentation, SensorState, TrackState

PERIOD_NS, START_NS = 40_000_000, 10**9
SIZE = (240, 320)
CONFIG = TrackerConfig(velocity_decay_per_s=0.0)


def stamp(index):
    return START_NS + index * PERIOD_NS


def picture(boxes):
    """A picture whose first bytes are the boxes `(N, 4)` themselves."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    content = np.ascontiguousarray(boxes, float).view(np.uint8).reshape(-1)
    pixels.reshape(-1)[0] = len(boxes)
    pixels.reshape(-1)[8 : 8 + len(content)] = content
    return pixels


def boxes_in(pixels):
    flat = pixels.reshape(-1)
    return flat[8 : 8 + 32 * int(flat[0])].view(float).reshape(-1, 4)


def detections(boxes):
    """Objects of looks that say nothing, so that place alone tells who is who."""
    return tuple(Detection(k, np.array(box, float), 100) for k, box in enumerate(boxes, start=1))


class Eyes:
    """Discovery whose frames are boxes; with `memory` it reports where they were on average."""

    def __init__(self, memory=False):
        self.model = SimpleNamespace(name="eyes", initial_state=lambda size: 0 if memory else None)
        self.calls = 0

    def initial_state(self):
        return DiscoveryState(None, None)

    def step(self, state, frame, stamp_ns, depth=None, camera_matrix=None):
        if frame is None:
            return state, Segmentation(stamp_ns, SensorState.STALE, "eyes", 0)
        self.calls += 1
        boxes = boxes_in(frame)
        memory = boxes if state.model is None else 0.5 * (boxes + state.model)
        found = Segmentation(
            stamp_ns,
            SensorState.OK,
            "eyes",
            0,
            np.zeros(SIZE, np.uint8),
            detections(memory if self.model.initial_state(1) is not None else boxes),
        )
        return replace(state, model=memory), found


def straight(count=60):
    """Three objects that cross the view at 1, 2 and 3 px per frame."""
    index = np.arange(count)
    paths = [(30 + speed * index, 60.0 * speed + 0 * index) for speed in (1, 2, 3)]
    return np.stack([np.stack([x, y, 24 + 0 * x, 24 + 0 * x], -1) for x, y in paths], 1)


@dataclass
class Replay:
    """Everything that a self-test over some boxes `(T, N, 4)` leaves behind."""

    perception: Perception
    runs: Runs
    test: SelfTest
    steps: list

    @property
    def rows(self):
        return self.test.rows

    def row(self, schedule, tracker, start):
        found = [
            r
            for r in self.rows
            if (r["schedule"], r["tracker"], r["start_step"]) == (schedule, tracker, start)
        ]
        assert len(found) == 1
        return found[0]


def replayed(boxes, memory=False, stamps=None, blind=(), config=CONFIG, num_frames=None):
    eyes = Eyes(memory)
    perception = Perception(eyes, ReorderingTracker(Tracker(config)))
    runs = Runs(perception, PERIOD_NS * 1e-9, baselines=True)
    test = SelfTest(perception, runs, num_frames or len(boxes), 1e9 / PERIOD_NS)
    state, taken = perception.initial_state(bytes(16)), []
    for number, frame in enumerate(boxes):
        stamp_ns = stamp(number) if stamps is None else stamps[number]
        image = None if number in blind else picture(frame)
        state, output = perception.step(state, image, stamp_ns)
        shown = None if image is None else Frame(number, stamp_ns, image)
        step = Step(stamp_ns, shown, output, state)
        runs.add(step, test.needs_baselines(number))
        test.add(number, step)
        taken.append(step)
    return Replay(perception, runs, test, taken)


def alone(tracker, steps, hidden, segmentations=None):
    """Outputs of a whole run in which the steps `hidden` are not seen."""
    state, outputs = tracker.initial_state(bytes(16)), []
    for number, step in enumerate(steps):
        found = step.output.segmentation if segmentations is None else segmentations[number]
        found = None if number in hidden else found
        state, output = tracker.step(state, found, step.stamp_ns)
        outputs.append(output)
    return outputs


def expected(unhidden, outputs, start, length):
    """Errors and identities of one blackout, told from two whole runs."""
    seen = [{t.id: t.box for t in o.tracks if t.state == TrackState.CONFIRMED} for o in unhidden]
    errors, place = [], {i: box[:2] for i, box in seen[start - 1].items()}
    for number in range(start, start + length):
        place |= {t.id: t.box[:2] for t in believed(outputs[number])}
        errors += [
            np.linalg.norm(place[i] - box[:2])
            for i, box in seen[number].items()
            if i in seen[start - 1]
        ]
    end = start + length + SETTLE_FRAMES - 1
    now = {t.id: t.box[:2] for t in believed(outputs[end])}
    both = [i for i in seen[end] if i in seen[start - 1]]
    kept = [i for i in both if i in now and np.linalg.norm(now[i] - seen[end][i][:2]) < 12]
    return np.mean(errors), len(both), len(kept)


@pytest.fixture(scope="module")
def walk():
    """Three objects that go straight on."""
    return replayed(straight())


TRACKERS = {
    "kalman": lambda: Tracker(CONFIG),
    "hold": lambda: Tracker(replace(CONFIG, motion_model="hold")),
    "sort": lambda: BoxTracker(SORT, PERIOD_NS * 1e-9),
    "bytetrack": lambda: BoxTracker(BYTETRACK, PERIOD_NS * 1e-9),
}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_branch_is_the_whole_run_in_which_the_frames_were_hidden(name, walk):
    replay = walk
    unhidden = alone(TRACKERS[name](), replay.steps, ())
    compared = 0
    for length in (1, 5, 10, 20):
        for start in (10, 20, 30):
            if start + length + SETTLE_FRAMES > len(replay.steps):
                continue
            hidden = range(start, start + length)
            outputs = alone(TRACKERS[name](), replay.steps, hidden)
            error, tracked, kept = expected(unhidden, outputs, start, length)
            row = replay.row(str(length), name, start)
            assert (row["tracked"], row["kept"]) == (tracked, kept)
            assert row["error_px"] == pytest.approx(error, abs=1e-5)
            assert row["frames"] == length and row["compared"] == 3 * length
            compared += 1
    assert compared >= 10


def test_objects_that_go_straight_on_are_predicted_and_hold_stays_behind(walk):
    kalman, hold = (walk.row("10", name, 30) for name in ("kalman", "hold"))
    assert kalman["error_px"] < 1.0 and kalman["kept"] == 3
    travelled = np.mean([speed * age for speed in (1, 2, 3) for age in range(1, 11)])
    assert hold["error_px"] == pytest.approx(travelled, abs=2.5)
    assert hold["error_sizes"] == pytest.approx(hold["error_px"] / 24, rel=0.02)
    # tracks of a SORT end in the second blind frame, and are outside of every ellipse from then
    sort = walk.row("10", "sort", 30)
    assert (sort["kept"], sort["new"], sort["inside_90"]) == (0, 3, 3)


def test_objects_that_turn_back_while_hidden_are_swapped():
    index = np.arange(50.0)
    way = 5 + 0.05 * (index - 35) ** 2  # they are closest in frame 35, and part as they came
    one = np.stack([115 - way, 100 + 0 * way], -1)
    other = np.stack([115 + way, 100 + 0 * way], -1)
    boxes = np.concatenate([np.stack([one, other], 1), np.full((50, 2, 2), 12.0)], -1)
    row = replayed(boxes).row("20", "kalman", 20)
    assert (row["tracked"], row["kept"], row["swapped"]) == (2, 0, 2)


def test_schedules_are_there_for_every_tracker_and_add_up_to_their_rows():
    replay = replayed(straight(80))
    metrics = replay.test.metrics()
    assert list(metrics["self_test"]) == list(SCHEDULES)
    for schedule, table in metrics["self_test"].items():
        assert list(table) == ["kalman", "hold", "sort", "bytetrack"]
        for name, cell in table.items():
            rows = [r for r in replay.rows if (r["schedule"], r["tracker"]) == (schedule, name)]
            assert cell["blackouts"] == len(rows) >= 3
            parts = sum(cell[key] for key in ("kept", "swapped", "new", "lost"))
            assert cell["tracked"] == parts == sum(r["tracked"] for r in rows)
            errors = sum(r["error_px"] * r["compared"] for r in rows)
            assert cell["error_px"] == pytest.approx(errors / cell["compared"], abs=1e-5)
    hidden = [r["frames"] for r in replay.rows if r["schedule"] == SCHEDULES[-1]]
    assert len(set(hidden)) > 1 and min(hidden) >= 1 and max(hidden) < 25
    assert replay.rows == replayed(straight(80)).rows, "draws are seeded"


def test_long_recordings_have_no_more_blackouts_and_baselines_sleep_between_them():
    replay = replayed(straight(200), num_frames=1000)
    starts = sorted({row["start_step"] for row in replay.rows})
    assert starts == list(range(10, 200, 50)), "20 in 1000 frames"
    awake = [replay.test.needs_baselines(number) for number in range(210, 260)]
    assert sum(awake) < 50 and awake[-1]


def test_a_model_without_memory_is_not_asked_again(walk):
    assert walk.perception.discovery.calls == len(walk.steps)


def test_a_model_with_memory_does_not_remember_what_was_hidden():
    boxes = straight()
    replay = replayed(boxes, memory=True)
    eyes, start, length = replay.perception.discovery, 30, 10
    assert eyes.calls > len(replay.steps)
    state, found = eyes.initial_state(), []
    for number, step in enumerate(replay.steps):
        blind = start <= number < start + length
        image = None if blind else picture(boxes[number])
        state, segmentation = eyes.step(state, image, step.stamp_ns)
        found.append(segmentation)
    hidden = range(start, start + length)
    outputs = alone(Tracker(CONFIG), replay.steps, hidden, found)
    unhidden = alone(Tracker(CONFIG), replay.steps, ())
    error, tracked, kept = expected(unhidden, outputs, start, length)
    row = replay.row("10", "kalman", start)
    assert (row["tracked"], row["kept"]) == (tracked, kept)
    assert row["error_px"] == pytest.approx(error, abs=1e-5)


def test_frames_that_were_blind_anyway_prove_nothing():
    replay = replayed(straight(), blind=range(32, 36))
    assert replay.row("5", "kalman", 30)["compared"] == 3 * 2, "three were blind anyway"
    assert replay.row("10", "kalman", 30)["compared"] == 3 * 6
    with pytest.raises(AssertionError):
        replayed(straight(), blind=[29]).row("5", "kalman", 30)  # no sighting to start from


def test_a_new_session_ends_the_blackouts_under_way():
    stamps = [stamp(i) if i < 34 else stamp(i) - 40 * PERIOD_NS for i in range(60)]
    replay = replayed(straight(), stamps=stamps)
    fives = [row["start_step"] for row in replay.rows if row["schedule"] == "5"]
    tens = [row["start_step"] for row in replay.rows if row["schedule"] == "10"]
    assert 20 in fives and 20 not in tens and 40 in tens
    assert replay.row("5", "hold", 40)["kept"] == 3


def test_a_frame_that_comes_late_is_left_out_of_branches():
    stamps = [stamp(i) for i in range(60)]
    stamps[33], stamps[34] = stamps[34], stamps[33]
    replay = replayed(straight(), stamps=stamps)
    row = replay.row("10", "kalman", 30)
    assert row["frames"] == 10 and row["kept"] == 3
