# SPDX-License-Identifier: Apache-2.0
"""Scores on fresh scenes, floors, curves, traversals and hypotheses."""

import json

import numpy as np
import pytest
import torch

from oc_perception.configuration import ConfigurationError
from oc_perception.evaluation.curves import Curve, refinement_curve, slot_curve
from oc_perception.evaluation.discovery import (
    evaluate_discovery,
    examine_discovery,
    fresh_scenes,
    scene_scores,
    spatial_partition,
)
from oc_perception.evaluation.figures import coloured_segments
from oc_perception.evaluation.latents import hypotheses, traverse
from oc_perception.evaluation.refinement import refinements
from oc_perception.evaluation.seeds import summarize_seeds, training_seeds
from oc_perception.models.registry import create_model
from oc_perception.types import Decomposition

SIZE = (16, 16)
TINY = {
    "monet": {"attention_channels": [8, 8], "encoder_channels": [8], "decoder_channels": 8},
    "iodine": {
        "decoder_channels": [8], "encoder_channels": [8], "encoder_hidden": 8,
        "recurrent_size": 8, "latent_size": 4, "num_iterations": 2,
    },
    "slot_attention": {
        "encoder_channels": [8], "decoder_channels": [8], "decoder_strides": [2],
        "slot_size": 8, "mlp_hidden": 8, "num_iterations": 2,
    },
}  # fmt: skip


def tiny(name, num_slots=3, **config):
    torch.manual_seed(0)
    sizes = {**TINY[name], "frame_size": SIZE, "num_slots": num_slots, **config}
    return create_model(name, **sizes).eval()


def scenes(count=6, size=SIZE):
    """Batches of frames with a bright square on the left and one on the right, at random rows."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.zeros(count, *size, dtype=torch.long)
    for image in labels:
        for label, column in ((1, 2), (2, 10)):
            row = int(torch.randint(0, size[0] - 4, (), generator=generator))
            image[row : row + 4, column : column + 4] = label
    colours = torch.tensor([[0.2, 0.2, 0.2], [1.0, 0.1, 0.0], [0.0, 0.3, 1.0]])
    images = colours[labels].permute(0, 3, 1, 2)
    return [(images[:4], labels[:4]), (images[4:], labels[4:])]


def given(labels, slots):
    """A perfect decomposition of `labels`."""
    masks = torch.nn.functional.one_hot(labels, slots).permute(0, 3, 1, 2).float()
    means = torch.zeros(*masks.shape[:2], 3, *masks.shape[2:])
    return Decomposition(masks.clamp(1e-9).log(), means, masks.mean((2, 3)).unsqueeze(2))


@pytest.mark.parametrize(("cells", "grid"), [(6, (2, 3)), (4, (2, 2)), (12, (3, 4))])
def test_the_floor_is_the_grid_of_as_many_cells(cells, grid):
    model = create_model("grid", rows=grid[0], columns=grid[1])
    assert torch.equal(spatial_partition(*model.frame_size, cells), model.masks.argmax(0))


@pytest.mark.parametrize("cells", [1, 2, 3, 5, 7, 11, 13])
@pytest.mark.parametrize("size", [(60, 60), (36, 48), (80, 20)])
def test_cells_of_the_floor_have_about_equal_area(cells, size):
    counts = spatial_partition(*size, cells).flatten().bincount(minlength=cells)
    even = size[0] * size[1] / cells
    assert len(counts) == cells and counts.sum() == size[0] * size[1]
    assert (counts / even - 1).abs().max() < 0.25


def test_a_perfect_decomposition_scores_one():
    (images, labels), _ = scenes()
    scores = scene_scores(images, labels, given(labels, 3))
    for name in ("fg_ari", "ari", "miou"):
        torch.testing.assert_close(scores[name], torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(scores["mse"], images.square().mean((1, 2, 3)))


def test_the_first_scenes_are_the_same_however_many_follow():
    model = tiny("monet")
    few = torch.cat([images for images, _ in fresh_scenes(model, "tabletop", {}, 3, 5)])
    batches = list(fresh_scenes(model, "tabletop", {}, 35, 5))
    assert [len(images) for images, _ in batches] == [32, 3]
    assert torch.equal(batches[0][0][:3], few)


def test_the_command_and_the_trainer_see_the_same_scores():
    model = tiny("monet")
    brief = evaluate_discovery(model, "tabletop", {}, 40, 7)
    assert brief.keys() == {"fg_ari", "ari", "miou", "mse", "scenes", "seed"}
    full = examine_discovery(model, fresh_scenes(model, "tabletop", {}, 40, 7))
    for name in ("fg_ari", "ari", "miou", "mse"):
        assert full[name] == brief[name]


class Knowing(torch.nn.Module):
    """Knows the labels; puts a share of the background of every second scene elsewhere."""

    frame_size, num_slots = SIZE, 4

    def __init__(self, labels, share):
        super().__init__()
        self.labels, self.share = labels, share

    def initial_state(self, batch_size):
        return None

    def step(self, state, frames, decode=True):
        labels = self.labels[: len(frames)].clone()
        rows = round(self.share * SIZE[0])
        labels[::2, :rows] = torch.where(labels[::2, :rows] == 0, 3, labels[::2, :rows])
        return None, given(labels, 4)


@pytest.mark.parametrize(("share", "whole", "used"), [(0.0, 1.0, 3.0), (0.5, 0.5, 3.5)])
def test_slots_in_use_and_a_torn_background_are_counted(share, whole, used):
    (images, labels), _ = scenes()
    found = examine_discovery(Knowing(labels, share), [(images, labels)])
    assert found["background_in_one_slot"] == whole
    assert found["used_slots"] == used


def test_a_scene_without_background_does_not_count_for_it():
    (images, labels), _ = scenes()
    labels = labels + 1
    labels[0] = 0
    found = examine_discovery(Knowing(labels, 0.0), [(images, labels)])
    assert found["background_in_one_slot"] == 1.0


def test_iterative_models_report_what_they_said_before_they_looked():
    model, batches = tiny("iodine"), scenes()
    found = examine_discovery(model, batches)
    other = examine_discovery(model, [(images.flip(1), labels) for images, labels in batches])
    assert {"floor_fg_ari", "floor_ami", "iteration_0_fg_ari", "iteration_0_mse"} <= found.keys()
    assert found["iteration_0_fg_ari"] == other["iteration_0_fg_ari"]
    assert not any(
        name.startswith("iteration_0") for name in examine_discovery(tiny("monet"), batches)
    )


@pytest.mark.parametrize("name", ["iodine", "slot_attention"])
def test_refinements_are_what_steps_with_as_many_iterations_give(name):
    model = tiny(name)
    images = scenes()[0][0]
    found = refinements(model, images, 3)
    assert model.num_iterations == 2 and max(found) == 3
    for count in (1, 3):
        model.num_iterations = count
        expected = model.step(model.initial_state(len(images)), images)[1].log_masks
        torch.testing.assert_close(found[count].decomposition.log_masks, expected)


def test_the_refinement_curve_ends_at_three_times_the_iterations_of_training():
    model = tiny("iodine")
    model.num_iterations = 1  # at test time; the curve is about training
    curve = refinement_curve(model, scenes())
    assert curve.x == tuple(range(7)) and curve.trained_at == 2
    assert curve.scores["fg_ari"].shape == (7, 6)
    final = model.refine(scenes()[1][0], 6)[-1]
    torch.testing.assert_close(curve.scores["negative_elbo"][-1, 4:], -final.elbo)


def test_the_slot_curve_covers_two_to_k_plus_four_and_leaves_the_model_alone():
    model = tiny("monet")
    curve = slot_curve(model, scenes())
    assert curve.x == (2, 3, 4, 5, 6, 7) and curve.trained_at == 3 and model.num_slots == 3
    images, labels = scenes()[0]
    model.num_slots = 6
    _, decomposition = model.step(None, images)
    expected = scene_scores(images, labels, decomposition)["ari"]
    torch.testing.assert_close(curve.scores["ari"][4, :4], expected)


def test_quartiles_of_a_curve_leave_out_scenes_without_a_score():
    values = np.random.default_rng(0).random((3, 9))
    values[1, ::2] = np.nan
    curve = Curve((0, 1, 2), 1, {"fg_ari": torch.as_tensor(values)})
    expected = np.nanquantile(values, [0.25, 0.5, 0.75], 1)
    np.testing.assert_allclose(curve.quartiles("fg_ari"), expected)
    summary = json.loads(json.dumps(curve.summary()))
    np.testing.assert_allclose(summary["fg_ari"]["mean"], np.nanmean(values, 1))
    assert summary["x"] == [0, 1, 2] and summary["scenes"] == 9


class Painter(torch.nn.Module):
    """Slot k paints its box with the brightness that its latent 1 says; latent 0 says nothing."""

    frame_size, num_slots = SIZE, 3

    def initial_state(self, batch_size):
        return None

    def masks(self, count):
        return given(scenes()[0][1][:1].expand(count, -1, -1), 3).log_masks

    def step(self, state, frames, decode=True):
        latents = torch.zeros(len(frames), 3, 2)
        latents[..., 1] = torch.linspace(0, 1, len(frames) * 3).view(len(frames), 3)
        return None, Decomposition(*self.decode(latents), latents)

    def decode(self, latents):
        brightness = latents[..., 1, None, None, None].expand(-1, -1, 3, *SIZE)
        return self.masks(len(latents)), brightness


def test_a_traversal_changes_one_slot_by_its_most_active_latent():
    images, labels = scenes()[0]
    labels[0][labels[0] == 1] = 0  # the largest object of the first scene is number 2
    found = traverse(Painter(), images, labels, rows=2)
    assert found.latents.tolist() == [1, 0] and found.spreads[1] == 0
    assert found.images.shape == (2, 9, 3, *SIZE)
    change = (found.images[0, -1] - found.images[0, 0]).abs().sum(0) > 1e-3
    assert torch.equal(change, labels[0] == 2)
    assert (found.images[1] == found.images[1, 0]).all()
    assert torch.equal(found.mask > 0.5, labels[0] == 2)
    nearest = found.images[0, found.nearest[0]]
    errors = (found.images[0] - found.reconstruction).abs().sum((1, 2, 3))
    assert (nearest - found.reconstruction).abs().sum() == errors.min()


def test_hypotheses_come_best_first_and_repeat():
    model, images = tiny("iodine"), scenes()[0][0]
    found = hypotheses(model, images, 4, seed=1)
    assert found.labels.shape == (4, 4, *SIZE)
    assert (found.elbo.diff(dim=1) <= 0).all() and found.elbo[0].unique().numel() == 4
    assert torch.equal(hypotheses(model, images, 4, seed=1).labels, found.labels)
    generator = torch.Generator().manual_seed(2)
    single = model.refine(images, model.num_iterations, generator)[-1]
    place = (found.elbo[0] - single.elbo[0]).abs().argmin()
    assert torch.equal(found.labels[0, place], single.decomposition.log_masks[0].argmax(0))


def test_matching_segments_share_a_colour_and_others_do_not():
    labels = scenes()[0][1][0]
    renamed = torch.tensor([2, 0, 1])[labels]
    truth, predicted = coloured_segments(labels, renamed)
    np.testing.assert_array_equal(truth, predicted)
    torn = torch.where((labels == 1) & (torch.arange(SIZE[1]) < 3), 3, renamed)
    truth, predicted = coloured_segments(labels, torn)
    np.testing.assert_array_equal(truth[torn != 3], predicted[torn != 3])
    assert len(np.unique(predicted.reshape(-1, 3), axis=0)) == 4


def recipe(seed, **training):
    return {"model": "monet", "world": "tabletop", "training": {"seed": seed, **training}}


def test_seeds_of_one_recipe_are_told_from_other_runs():
    assert training_seeds([recipe(4), recipe(2)], ["a", "b"]) == [4, 2]
    with pytest.raises(ConfigurationError, match=r"a and b are not.*training\.steps differ"):
        training_seeds([recipe(0, steps=2), recipe(1, steps=3)], ["a", "b"])
    with pytest.raises(ConfigurationError, match=r"a and c have the same training\.seed 0"):
        training_seeds([recipe(0), recipe(1), recipe(0)], ["a", "b", "c"])


def test_a_summary_of_seeds_names_the_worst():
    runs = [{"seed": s, "fg_ari": f, "mse": m} for s, f, m in ((0, 0.9, 0.1), (1, 0.7, 0.3))]
    found = summarize_seeds(runs)
    assert found["mean"] == pytest.approx({"fg_ari": 0.8, "mse": 0.2})
    assert found["std"]["fg_ari"] == pytest.approx(np.std([0.9, 0.7], ddof=1))
    assert found["worst"] == {"seed": 1, "fg_ari": 0.7, "below_mean": pytest.approx(0.1)}
    assert summarize_seeds(runs[:1])["std"] == {"fg_ari": None, "mse": None}
