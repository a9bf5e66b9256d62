# SPDX-License-Identifier: Apache-2.0
"""The learned motion model behind the tracker's protocol."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oc_perception.models.registry import ModelError, create_model, save_checkpoint
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.motion import Belief
from oc_perception.tracking.relational import RelationalMotion

SIZE = (480, 640)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrackerConfig:
    """A motion model with random weights that matter."""
    directory: Path = tmp_path_factory.mktemp("relational")
    torch.manual_seed(0)
    model = create_model("relational")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(model, directory)
    return TrackerConfig(motion_model="relational", motion_weights=str(directory))


def _belief(memory_size: int, count: int = 4) -> Belief:
    random = np.random.default_rng(0)
    return Belief(
        means=np.concatenate(
            [random.uniform(50, 450, (count, 2)), random.normal(0, 100, (count, 2))], 1
        ),
        covariances=np.tile(np.diag([4.0, 4, 100, 100]), (count, 1, 1)),
        sizes=random.uniform(40, 80, (count, 2)),
        features=random.normal(size=(count, 3)),
        memories=np.zeros((count, memory_size)),
    )


def test_forecast_is_predict_for_many_times(config: TrackerConfig) -> None:
    motion = RelationalMotion(config)
    belief = _belief(motion.memory_size)
    times = np.array([0.0, 0.01, 1 / 30, 0.1, 0.123, 0.5])
    means, covariances = motion.forecast(belief, SIZE, times)
    assert means.shape == (4, 6, 4) and covariances.shape == (4, 6, 4, 4)
    for k, time_s in enumerate(times):
        predicted = RelationalMotion(config).predict(belief, SIZE, float(time_s))
        assert np.allclose(means[:, k], predicted.means, rtol=0, atol=1e-9)
        assert np.allclose(covariances[:, k], predicted.covariances, rtol=1e-9, atol=1e-9)
    assert np.allclose(means[:, 0], belief.means, rtol=0, atol=1e-9)


def test_what_was_asked_before_changes_nothing(config: TrackerConfig) -> None:
    busy = RelationalMotion(config)
    belief = _belief(busy.memory_size)
    for time_s in (0.7, 0.03, 0.2, 0.21):
        busy.predict(belief, SIZE, time_s)
    other = replace(belief, means=belief.means + 5)
    busy.predict(other, SIZE, 0.4)
    larger = replace(other, sizes=other.sizes * 1.5)  # of the same means
    for asked in (belief, other, larger):
        expected = RelationalMotion(config).predict(asked, SIZE, 0.3)
        got = busy.predict(asked, SIZE, 0.3)
        assert np.array_equal(expected.means, got.means)
        assert np.array_equal(expected.memories, got.memories)


def test_pixels_are_only_a_unit(config: TrackerConfig) -> None:
    motion = RelationalMotion(config)
    belief = _belief(motion.memory_size)
    double = replace(
        belief,
        means=belief.means * 2 + [0.5, 0.5, 0, 0],  # pixel centres are integers
        covariances=belief.covariances * 4,
        sizes=belief.sizes * 2,
    )
    small = motion.predict(belief, SIZE, 0.2)
    large = motion.predict(double, (960, 1280), 0.2)
    assert np.allclose(small.means * 2 + [0.5, 0.5, 0, 0], large.means, rtol=0, atol=1e-6)


def test_objects_act_on_one_another_and_may_be_none(config: TrackerConfig) -> None:
    motion = RelationalMotion(config)
    belief = _belief(motion.memory_size)
    lonely = Belief(
        *(
            getattr(belief, n)[:1]
            for n in ("means", "covariances", "sizes", "features", "memories")
        )
    )
    together = motion.predict(belief, SIZE, 0.1).means[0]
    assert not np.allclose(together, motion.predict(lonely, SIZE, 0.1).means[0], atol=1e-3)
    nobody = Belief(
        *(
            getattr(belief, n)[:0]
            for n in ("means", "covariances", "sizes", "features", "memories")
        )
    )
    assert len(motion.predict(nobody, SIZE, 0.1).means) == 0
    means, covariances = motion.forecast(belief, SIZE, np.zeros(0))
    assert means.shape == (4, 0, 4) and covariances.shape == (4, 0, 4, 4)
    rows = np.zeros(0, int)
    assert motion.update(nobody, SIZE, rows, np.zeros((0, 2)), np.zeros((0, 2, 2))) is nobody


def test_update_pulls_to_the_detection_and_sets_the_clock_back(config: TrackerConfig) -> None:
    motion = RelationalMotion(config)
    belief = motion.predict(_belief(motion.memory_size), SIZE, 0.1)
    at = belief.means[[1, 3], :2] + 3.0
    after = motion.update(belief, SIZE, np.array([1, 3]), at, np.tile(np.eye(2) * 1e-3, (2, 1, 1)))
    assert np.allclose(after.means[[1, 3], :2], at, atol=0.1)
    assert np.allclose(after.means[[0, 2]], belief.means[[0, 2]], rtol=0, atol=1e-9)
    assert after.memories[:, -1] == pytest.approx([0.1, 0.0, 0.1, 0.0])


def test_embeddings_are_not_told_unless_asked_for(config: TrackerConfig) -> None:
    def moved(told: int, features: float) -> np.ndarray:
        motion = RelationalMotion(replace(config, motion_features=told))
        belief = _belief(motion.memory_size)
        belief = replace(belief, features=np.full_like(belief.features, features))
        return motion.predict(belief, SIZE, 0.1).means

    assert np.array_equal(moved(0, 1.0), moved(0, 7.0))
    assert np.array_equal(moved(0, 1.0), moved(1, 0.0))
    assert not np.allclose(moved(1, 1.0), moved(1, 7.0))


def test_weights_of_another_kind_are_refused() -> None:
    with pytest.raises(ModelError, match="discovery"):
        RelationalMotion(TrackerConfig(motion_model="relational", motion_weights="monet_demo"))
