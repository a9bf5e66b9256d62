# SPDX-License-Identifier: Apache-2.0
"""Tetrominoes: the facts of the published files, and the tilings of the ambiguous rectangle."""

import pytest
import torch

from oc_perception.configuration import ConfigurationError
from oc_perception.worlds.registry import create_world
from oc_perception.worlds.tetrominoes import COLOURS, TETROMINOES, tilings


def scenes(name="tetrominoes", batch=256, seed=3, size=35, **config):
    return create_world(name, config, batch, seed).sample(size, size)


def test_there_are_nineteen_fixed_tetrominoes_each_connected():
    assert len(set(TETROMINOES)) == 19
    for cells in TETROMINOES:
        reached = {cells[0]}
        for _ in cells:
            reached |= {
                (r, c) for r, c in cells
                if any(abs(r - a) + abs(c - b) == 1 for a, b in reached)
            }  # fmt: skip
        assert reached == set(cells)
        assert min(r for r, _ in cells) == min(c for _, c in cells) == 0


def test_every_picture_has_three_whole_pieces_of_a_hundred_pixels():
    labels = scenes().labels
    for label in (1, 2, 3):
        assert ((labels == label).sum((1, 2)) == 100).all()
    assert labels.max() == 3


def test_pieces_have_the_published_bevel_in_the_colour_of_their_factor():
    sample = scenes(batch=64)
    palette = torch.tensor(COLOURS, dtype=torch.float)
    bevel = [191, 255, 255, 255, 223, *[127, 159, 159, 159, 191] * 3, 95, 63, 63, 63, 127]
    expected = sorted(bevel * 4)
    for b in range(64):
        for n in range(3):
            pixels = sample.images[b][:, sample.labels[b] == n + 1] * 255
            colour = palette[sample.factors["colour"][b, n]]
            for channel in range(3):
                values = sorted(pixels[channel].round().int().tolist())
                assert values == (expected if colour[channel] else [0] * 100)
        assert (sample.images[b][:, sample.labels[b] == 0] == 0).all()


def test_the_first_block_of_a_piece_is_shaded_top_left_to_bottom_right():
    sample = create_world("tetrominoes", {"num_objects": 1}, 1, 0).sample(35, 35)
    grey = (sample.images[0].amax(0) * 255).round().int()
    top = int((grey.sum(1) > 0).nonzero()[0])
    left = int((grey[top] > 0).nonzero()[0])
    assert grey[top : top + 5, left : left + 5].tolist() == [
        [191, 255, 255, 255, 223],
        *[[127, 159, 159, 159, 191]] * 3,
        [95, 63, 63, 63, 127],
    ]


def test_factors_say_where_and_what_a_piece_is():
    sample = scenes(batch=32)
    for b in range(32):
        for n in range(3):
            rows, columns = (sample.labels[b] == n + 1).nonzero(as_tuple=True)
            cells = {((r - rows.min()) // 5, (c - columns.min()) // 5)
                     for r, c in zip(rows, columns, strict=True)}  # fmt: skip
            shape = TETROMINOES[sample.factors["shape"][b, n]]
            assert {(int(r), int(c)) for r, c in cells} == set(shape)
            centre = [(columns.min() + columns.max() + 1) / 70, (rows.min() + rows.max() + 1) / 70]
            torch.testing.assert_close(sample.factors["position"][b, n], torch.stack(centre))


def test_all_shapes_colours_and_pixel_positions_occur():
    factors = scenes(batch=2000).factors
    assert factors["shape"].unique().tolist() == list(range(19))
    assert factors["colour"].flatten().bincount(minlength=6).min() > 800
    corner_px = (factors["position"] * 70).round().long()
    assert set((corner_px % 5).flatten().tolist()) == set(range(5))  # not on a grid of blocks


def test_a_seed_repeats_and_draws_differ():
    world = create_world("tetrominoes", {}, 8, 1)
    first, second = world.sample(35, 35).images, world.sample(35, 35).images
    assert torch.equal(first, create_world("tetrominoes", {}, 8, 1).sample(35, 35).images)
    assert not torch.equal(first, second)


def test_small_blocks_fit_small_pictures():
    labels = scenes(batch=64, size=21, block_px=3).labels
    assert ((labels == 2).sum((1, 2)) == 36).all()


@pytest.mark.parametrize("name", ["tetrominoes", "ambiguous_tetrominoes"])
def test_flat_blocks_have_one_brightness(name):
    images = scenes(name, batch=8, bevel=False).images
    assert images.unique().tolist() == [0, 1]


@pytest.mark.parametrize("settings", [{"block_px": 1}, {"num_objects": 0}, {"block": 5}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigurationError, match="block_px"):
        scenes(**settings)


def test_a_picture_too_small_names_the_cure():
    with pytest.raises(ValueError, match="smaller block_px"):
        scenes(size=21)


def test_tilings_cover_the_rectangle_with_tetrominoes():
    found = tilings(3, 4)
    assert len(found) == len({str(t) for t in found}) == 23  # known number for 3 x 4
    for tiling in found:
        for label in (1, 2, 3):
            cells = [(r, c) for r in range(3) for c in range(4) if tiling[r][c] == label]
            top, left = min(r for r, _ in cells), min(c for _, c in cells)
            assert tuple(sorted((r - top, c - left) for r, c in cells)) in TETROMINOES
    assert len(tilings(2, 4)) == 4 and tilings(2, 3) == []


def test_the_ambiguous_rectangle_looks_the_same_under_every_alternative():
    sample = scenes("ambiguous_tetrominoes", batch=16)
    assert sample.alternatives.shape == (16, 23, 35, 35)
    covered = sample.images.amax(1) > 0
    for alternative in sample.alternatives.unbind(1):
        assert torch.equal(alternative > 0, covered)
    assert all((sample.labels[b] == sample.alternatives[b]).all((1, 2)).any() for b in range(16))
    assert (covered.sum((1, 2)) == 300).all()
