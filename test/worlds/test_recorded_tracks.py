# SPDX-License-Identifier: Apache-2.0
"""Clips from recordings: boxes stay on their objects in every view, time is split and kept."""

import cv2
import numpy as np
import pytest
import torch

from oc_perception.bags.messages import track_messages
from oc_perception.bags.writer import BagWriter
from oc_perception.configuration import ConfigurationError
from oc_perception.types import SensorState, Track, TrackOutput, TrackState
from oc_perception.worlds.registry import create_world

SIDE = 12  # px, of the squares
HEIGHT, WIDTH = 90, 120
FRAMES = 40


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OC_CACHE", str(tmp_path / "cache"))


def centre(frame: int, square: int) -> tuple[int, int]:
    """Of the red square, which goes right, and the green one, which goes left; px."""
    return (20 + 2 * frame, 30) if square == 0 else (100 - 2 * frame, 60)


def record(folder, frames=range(FRAMES), size=(HEIGHT, WIDTH), boxes=True, squares=2):
    """A MOTChallenge folder of squares on grey."""
    (folder / "img1").mkdir(parents=True)
    (folder / "gt").mkdir()
    (folder / "seqinfo.ini").write_text("[Sequence]\nframeRate=20\nimDir=img1\n")
    lines = []
    for frame in frames:
        image = np.full((*size, 3), 60, np.uint8)
        for square in range(squares):
            x, y = centre(frame, square)
            left, top = x - SIDE // 2, y - SIDE // 2
            image[top : top + SIDE, left : left + SIDE] = 0
            image[top : top + SIDE, left : left + SIDE, square] = 250
            lines.append(f"{frame + 1},{square + 1},{left + 1},{top + 1},{SIDE},{SIDE},1,-1,-1,-1")
        cv2.imwrite(str(folder / "img1" / f"{frame + 1:06}.png"), image[..., ::-1])
    if boxes:
        (folder / "gt" / "gt.txt").write_text("\n".join(lines) + "\n")
    return str(folder)


def world(bags, batch=8, seed=0, **config):
    settings = {"bags": bags, "resolution": [HEIGHT, WIDTH], "brightness": 0.0, **config}
    return create_world("recorded_tracks", settings, batch, seed)


def squares_in(images):
    """Centres `(..., 2)` in image widths of what is red and of what is green in
    `(..., 3, H, W)`, how many px each has, and in both mirrored or not alike.
    """
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = (torch.stack([x, y], -1) + 0.5) / width
    found = []
    for colour in (0, 1):
        mask = (images[..., colour, :, :] - images[..., 1 - colour, :, :] > 0.4).float()
        count = mask.sum((-2, -1))
        mean = torch.einsum("...hw,hwc->...c", mask, places) / count.clamp(min=1)[..., None]
        found.append((mean, count))
    return found


@pytest.mark.parametrize("augment", [False, True])
def test_boxes_stay_on_what_they_are_about(tmp_path, augment):
    source = world([record(tmp_path / "a")], batch=16, augment=augment, stride=2)
    motion = source.sample_motion(6)
    images, labels = source.draw(motion, 180, 240)
    assert images.shape == (16, 6, 3, 180, 240) and labels.shape == (16, 6, 180, 240)
    checked = 0
    for mean, count in squares_in(images):
        distance = (motion.positions - mean[:, :, None]).norm(dim=-1)  # (B, T, M)
        nearest, which = distance.min(-1)
        area = (motion.sizes.prod(-1) * 240**2).gather(2, which[..., None])[..., 0]
        whole = (count > 0.97 * area) & motion.present.gather(2, which[..., None])[..., 0]
        assert (nearest[whole] * 240 < 1.0).all()
        assert ((count / area)[whole] - 1).abs().max() < 0.25
        checked += int(whole.sum())
    assert checked > 90


def test_velocities_are_of_the_view_and_the_recording(tmp_path):
    motion = world([record(tmp_path / "a")], augment=False, split="all").sample_motion(5)
    assert motion.dt_s == pytest.approx(0.05)
    step = (motion.velocities * motion.dt_s)[motion.present]
    assert torch.allclose(step[:, 0].abs(), torch.tensor(2 / WIDTH), atol=1e-5)
    assert torch.allclose(step[:, 1], torch.tensor(0.0), atol=1e-5)


def test_augmented_views_differ_and_repeat_with_the_seed(tmp_path):
    bags = [record(tmp_path / "a")]
    first, again, other = (world(bags, seed=s, brightness=0.3).sample_motion(5) for s in (1, 1, 2))
    assert torch.equal(first.positions, again.positions)
    assert torch.equal(first.gains, again.gains)
    assert not torch.equal(first.positions, other.positions)
    widths = first.views[:, 0, 2]
    assert (widths < 0).any() and (widths > 0).any() and widths.abs().unique().numel() == 8
    forwards = first.frames.diff(dim=1)[:, 0] > 0
    assert forwards.any() and not forwards.all()
    assert (first.views.diff(dim=1).abs().sum((1, 2)) > 0).any()  # the camera moves


def test_training_never_sees_the_last_frames(tmp_path):
    bags = [record(tmp_path / "a")]
    cut = round(FRAMES * 0.75)
    seen = {}
    for split in ("train", "validation"):
        source = world(bags, 256, split=split, validation=0.25)
        images, _ = source.draw(source.sample_motion(3), 45, 60)
        assert images.isfinite().all()
        assert source.recordings[0].times_s[0] == pytest.approx(
            {"train": 0, "validation": 1.5}[split]
        )
        seen[split] = len(source.recordings[0].images)
    assert seen == {"train": cut, "validation": FRAMES - cut}


def test_held_out_clips_show_the_whole_picture_as_it_is(tmp_path):
    source = world([record(tmp_path / "a")], split="validation", validation=0.5, brightness=0.5)
    motion = source.sample_motion(2)
    images, _ = source.draw(motion, HEIGHT, WIDTH)
    recorded = torch.from_numpy(source.recordings[0].images[motion.frames[0, 0]].copy())
    assert (images[0, 0].permute(1, 2, 0) * 255 - recorded).abs().max() <= 1


def test_a_wide_picture_lies_in_the_middle_of_the_canvas(tmp_path):
    wide = record(tmp_path / "a", size=(75, 150))
    source = world([wide], split="validation", validation=0.5)
    motion = source.sample_motion(2)
    image = source.draw(motion, 180, 240)[0][0, 0]
    assert (image[:, :29] == 0).all() and (image[:, -29:] == 0).all()
    assert (image[:, 31:-31] > 0).any(0).all()
    (red, _), _ = squares_in(image)
    distance = (motion.positions[0, 0] - red).norm(dim=-1)
    assert distance.min() * 240 < 1.0


def test_no_clip_reaches_over_a_gap(tmp_path):
    frames = [*range(10), *range(20, 30)]
    source = world([record(tmp_path / "a", frames)], 64, split="all", augment=False, stride=2)
    places = source.sample_motion(5).frames
    assert ((places < 10).all(1) | (places >= 10).all(1)).all()
    assert set((places[:, 1] - places[:, 0]).tolist()) == {1, 2}


def test_short_recordings_are_left_out_and_all_others_drawn_alike(tmp_path):
    bags = [record(tmp_path / name, range(n)) for name, n in (("a", 40), ("b", 12), ("c", 3))]
    source = world(bags, 512, split="all", augment=False)
    counts = source.sample_motion(6).recordings.bincount(minlength=3)
    assert counts[2] == 0 and counts[:2].min() > 200


def test_batches_of_one_rate_tell_the_seconds_between_frames(tmp_path):
    bags = [record(tmp_path / name) for name in "ab"]
    information = tmp_path / "b" / "seqinfo.ini"
    information.write_text(information.read_text().replace("20", "8"))
    source = world(bags, 16, one_rate=True, stride=2, augment=False)
    seen = set()
    for _ in range(30):
        motion = source.sample_motion(4)
        strides = motion.frames[:, 1] - motion.frames[:, 0]
        periods_s = torch.tensor([0.05, 0.125])[motion.recordings] * strides
        assert torch.allclose(periods_s, torch.tensor(motion.dt_s))
        seen.add(round(motion.dt_s, 3))
    assert seen == {0.05, 0.1, 0.125, 0.25}


def test_who_is_behind_another_is_not_visible(tmp_path):
    folder = tmp_path / "a"
    record(folder)
    rows = [
        f"{frame},{identity},40,{top},12,24,1,-1,-1,-1"
        for frame in range(1, FRAMES + 1)
        for identity, top in ((1, 20), (2, 26))
    ]
    (folder / "gt" / "gt.txt").write_text("\n".join(rows))
    motion = world([str(folder)], split="all", augment=False).sample_motion(3)
    behind = motion.positions[..., 1] == motion.positions[..., 1].min(2, keepdim=True).values
    assert motion.present.all()
    assert torch.equal(motion.visible, ~behind)


def test_followed_are_at_most_so_many_and_the_largest_where_nothing_is_drawn(tmp_path):
    folder = tmp_path / "a"
    record(folder)
    rows = [
        f"{frame},{identity},{10 * identity},30,{size},20,1,-1,-1,-1"
        for frame in range(1, FRAMES + 1)
        for identity, size in enumerate((3, 9, 5, 7), 1)
    ]
    (folder / "gt" / "gt.txt").write_text("\n".join(rows))
    motion = world([str(folder)], split="all", augment=False, max_objects=2).sample_motion(3)
    assert torch.allclose(motion.sizes[..., 0] * WIDTH, torch.tensor([9.0, 7.0]))
    motion = world([str(folder)], 64, split="all", max_objects=2, zoom=(1, 1)).sample_motion(3)
    assert motion.sizes[:, 0, :, 0].mul(WIDTH).round().unique().numel() == 4


def test_tracks_of_a_replay_are_boxes_too(tmp_path):
    bag = record(tmp_path / "a", boxes=False)
    with BagWriter(tmp_path / "results") as writer:
        for frame in range(FRAMES):
            stamp_ns = 1_000_000_000 + frame * 50_000_000
            tracks = tuple(
                Track(
                    7 + square,
                    TrackState.CONFIRMED if square == 0 else TrackState.TENTATIVE,
                    np.array([*np.subtract(centre(frame, square), 0.5), SIDE, SIDE]),
                    np.zeros(2), np.eye(4), 1.0, 5, 5, stamp_ns,
                )
                for square in (0, 1)
            )  # fmt: skip
            output = TrackOutput(stamp_ns, stamp_ns, bytes(16), SensorState.OK, tracks, ())
            writer.write("/tracks", stamp_ns, track_messages(output)[0])
    settings = {"split": "all", "augment": False}
    found = world([bag], truth=[str(tmp_path / "results")], **settings)
    assert found.recordings[0].boxes.shape == (FRAMES, 1, 4)  # the tentative one is none yet
    record(tmp_path / "b", squares=1)
    told = world([str(tmp_path / "b")], **settings)
    assert np.allclose(found.recordings[0].boxes, told.recordings[0].boxes, atol=1e-6)


def test_what_cannot_be_learned_from_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match="who is where"):
        world([record(tmp_path / "a", boxes=False)])
    with pytest.raises(ConfigurationError, match="80 frames"):
        world([record(tmp_path / "b")]).sample_motion(80)
    with pytest.raises(ConfigurationError, match="bags"):
        create_world("recorded_tracks", {"bags": []}, 1, 0)
    with pytest.raises(ConfigurationError, match=r"0\.75"):
        source = world([record(tmp_path / "c")])
        source.draw(source.sample_motion(2), 64, 64)
