# SPDX-License-Identifier: Apache-2.0
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.preprocessing import StandardScaler

from oc_perception.evaluation.readout import (
    collect,
    evaluate_readout,
    fit_readout,
    score_readout,
)
from oc_perception.models.registry import create_model
from oc_perception.types import Decomposition
from oc_perception.worlds.registry import create_world
from oc_perception.worlds.scenes import Scenes

PENALTY = 1e-4


def synthetic(objects, dimensions, seed=0, classes=5, noise=1.0):
    """Embeddings of unequal scales that hold a category and a quantity of two dimensions."""
    g = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, classes, (objects,), generator=g)
    embeddings = torch.randn(objects, dimensions, generator=g, dtype=torch.float64)
    embeddings[:, :classes] += torch.nn.functional.one_hot(kind, classes) * 3
    place = embeddings[:, -2:] @ torch.tensor([[1.0, 2.0], [-0.5, 1.0]], dtype=torch.float64)
    place += noise * torch.randn(objects, 2, generator=g, dtype=torch.float64)
    scale = torch.logspace(-2, 2, dimensions, dtype=torch.float64)
    return embeddings * scale + 3 * scale, {"kind": kind, "place": place}


@pytest.mark.parametrize("penalty", [1e-4, 1e-2])
def test_categories_are_read_as_by_scikit_learn(penalty):
    embeddings, factors = synthetic(600, 12)
    ours = fit_readout(embeddings, factors, penalty).predict(embeddings)["kind"].softmax(1)
    inputs = StandardScaler().fit_transform(embeddings.numpy())
    oracle = LogisticRegression(C=1 / (penalty * 600), tol=1e-9, max_iter=10000)
    oracle.fit(inputs, factors["kind"].numpy())
    np.testing.assert_allclose(ours, oracle.predict_proba(inputs), atol=1e-4)


def test_quantities_are_read_as_by_scikit_learn():
    embeddings, factors = synthetic(200, 12)
    place = factors["place"].numpy()
    plain = LinearRegression().fit(embeddings.numpy(), place)
    ours = fit_readout(embeddings, {"place": factors["place"]}, penalty=0)
    np.testing.assert_allclose(ours.weights["place"], plain.coef_.T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.biases["place"], plain.intercept_, rtol=1e-6, atol=1e-9)
    scaler = StandardScaler().fit(embeddings.numpy())
    inputs = scaler.transform(embeddings.numpy())
    ridge = Ridge(alpha=PENALTY * 200).fit(inputs, place)
    np.testing.assert_allclose(
        fit_readout(embeddings, factors, PENALTY).predict(embeddings)["place"],
        ridge.predict(inputs),
        atol=1e-6,
    )


def test_scores_equal_scikit_learn():
    train, test = synthetic(300, 8, seed=1), synthetic(200, 8, seed=2)
    readout = fit_readout(*train)
    scores, outputs = score_readout(readout, *test), readout.predict(test[0])
    kind, place = test[1]["kind"].numpy(), test[1]["place"].numpy()
    accuracy = accuracy_score(kind, outputs["kind"].argmax(1))
    assert scores["accuracy"]["kind"] == pytest.approx(accuracy, abs=1e-12)
    assert scores["chance"]["kind"] == np.bincount(kind).max() / 200
    assert scores["r2"]["place"] == pytest.approx(r2_score(place, outputs["place"]), abs=1e-9)
    assert 0.5 < scores["r2"]["place"] < 0.99


def test_entries_that_never_change_or_repeat_others_do_no_harm():
    embeddings, factors = synthetic(300, 8, noise=0)
    repeated = torch.cat([embeddings, embeddings[:, -1:], torch.full((300, 2), 7.0)], 1)
    scores = score_readout(fit_readout(repeated, factors), repeated, factors)
    assert scores["r2"]["place"] > 0.999
    assert scores["accuracy"]["kind"] > 0.8


def test_a_category_seen_only_in_the_test_scenes_counts_as_wrong():
    embeddings = torch.tensor([[0.0], [1.0], [0.1], [0.9]]).double()
    readout = fit_readout(embeddings, {"kind": torch.tensor([0, 1, 0, 1])})
    scores = score_readout(readout, embeddings, {"kind": torch.tensor([0, 1, 0, 5])})
    assert scores["accuracy"]["kind"] == 0.75


def test_a_quantity_that_never_changes_has_no_r2():
    embeddings, _ = synthetic(50, 8)
    factors = {"size": torch.ones(50, 1, dtype=torch.float64)}
    assert math.isnan(
        score_readout(fit_readout(embeddings, factors), embeddings, factors)["r2"]["size"]
    )


class HandMade:
    """One picture of 1x6 px, again and again: objects 1 and 2 in view, 3 hidden, 4 absent."""

    def sample(self, height, width):
        labels = torch.tensor([[[0, 0, 1, 1, 1, 2]]]).expand(2, -1, -1)
        present = torch.tensor([[True, True, True, False]]).expand(2, -1)
        factors = {
            "shape": torch.tensor([[4, 5, 6, 7]]).expand(2, -1),
            "angle": torch.tensor([[0.0, 2.0, 1.0, 1.0]]).unsqueeze(-1).expand(2, -1, -1),
        }
        return Scenes(torch.rand(2, 3, 1, 6), labels, present, factors)


class ThreeSlots:
    """Slot 1 has most of the mass of object 1, though slot 2 wins two of its three pixels."""

    frame_size = (1, 6)

    def initial_state(self, batch):
        return None

    def step(self, state, frame, decode=True):
        masks = torch.tensor(
            [
                [0.9, 0.9, 0.0, 0.0, 0.0, 0.8],
                [0.1, 0.1, 0.45, 0.45, 1.0, 0.1],
                [0.0, 0.0, 0.55, 0.55, 0.0, 0.1],
            ]
        ).unsqueeze(1)
        embeddings = torch.tensor([[10.0, 0.0], [11.0, 1.0], [12.0, 2.0]])
        batch = len(frame)
        return None, Decomposition(
            masks.log().expand(batch, -1, -1, -1), None, embeddings.expand(batch, -1, -1)
        )


def test_each_object_in_view_is_matched_to_the_slot_with_most_of_its_mass():
    embeddings, factors = collect(ThreeSlots(), HandMade(), scenes=3)
    assert embeddings.tolist() == [[11, 1], [10, 0]] * 3  # the last batch of 2 is cut to 1
    assert factors["shape"].tolist() == [4, 5] * 3
    expected = [[1, 0], [math.cos(2), math.sin(2)]] * 3
    np.testing.assert_allclose(factors["angle"], expected, atol=1e-6)


def test_a_slot_that_knows_only_the_area_tells_size_but_not_position():
    one_white_sprite = {"num_objects": (1, 1), "background": "binary"}
    model = create_model("grid", rows=1, columns=1, frame_size=(32, 32)).eval()
    result = evaluate_readout(model, "sprites", one_white_sprite, 300, 200, seed=3)
    again = evaluate_readout(model, "sprites", one_white_sprite, 300, 200, seed=3)
    assert str(result) == str(again)
    assert (result["train_objects"], result["test_objects"], result["seed"]) == (300, 200, 3)
    assert result["r2"]["size"] > 0.5
    assert abs(result["r2"]["position"]) < 0.1
    assert math.isnan(result["r2"]["rgb"])  # all are white
    assert result["accuracy"]["shape"] > result["chance"]["shape"]


class Oracle:
    """Sees through `world`: its slots are the true segments in random order, the embeddings a
    mixture of colour and position.
    """

    frame_size = (35, 35)

    def __init__(self, world):
        self.world = world
        self.generator = torch.Generator().manual_seed(0)
        self.mixture = torch.randn(8, 8, generator=self.generator)

    def sample(self, height, width):
        self.scenes = self.world.sample(height, width)
        return self.scenes

    def initial_state(self, batch):
        return None

    def step(self, state, frame, decode=True):
        labels, factors = self.scenes.labels, self.scenes.factors
        colour = torch.nn.functional.one_hot(factors["colour"], 6)
        objects = torch.cat([colour, factors["position"]], 2) @ self.mixture
        embeddings = torch.cat([torch.zeros_like(objects[:, :1]), objects], 1)
        masks = torch.nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2)
        order = torch.rand(len(labels), 4, generator=self.generator).argsort(1)
        image = torch.arange(len(labels)).unsqueeze(1)
        return None, Decomposition(masks[image, order].log(), None, embeddings[image, order])


def test_what_the_matched_slots_hold_is_read_and_nothing_else():
    oracle = Oracle(create_world("tetrominoes", {}, 32, 0))
    train, test = collect(oracle, oracle, 200), collect(oracle, oracle, 100)
    assert len(test[0]) == 300
    scores = score_readout(fit_readout(*train), *test)
    assert scores["accuracy"]["colour"] == 1
    assert scores["r2"]["position"] > 0.999
    assert scores["accuracy"]["shape"] < 0.2  # of 19 shapes


def test_a_world_without_factors_is_refused():
    model = create_model("grid", frame_size=(24, 32))
    with pytest.raises(ValueError, match="gives no factors"):
        evaluate_readout(model, "tabletop", {}, 1, 1, seed=0)
    empty = SimpleNamespace(
        sample=lambda h, w: Scenes(
            torch.zeros(1, 3, h, w),
            torch.zeros(1, h, w, dtype=torch.long),
            torch.zeros(1, 2, dtype=torch.bool),
            {"shape": torch.zeros(1, 2, dtype=torch.long)},
        )
    )
    with pytest.raises(ValueError, match="No object is in view"):
        collect(model, empty, 2)
