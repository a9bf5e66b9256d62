# SPDX-License-Identifier: Apache-2.0
"""What every shipped motion model must do, and what the ones for discs are shipped for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oc_perception.models.registry import checkpoint_names, load_model
from oc_perception.tracking.config import TrackerConfig
from oc_perception.tracking.motion import Belief, create_motion_model
from oc_perception.worlds.discs import Discs

SHIPPED = [name for name in checkpoint_names("motion") if "relational" in name]


@pytest.mark.parametrize("name", SHIPPED)
def test_forecasts_are_finite_and_doubt_grows(name: str) -> None:
    motion = create_motion_model(TrackerConfig(motion_model="relational", motion_weights=name))
    random = np.random.default_rng(0)
    belief = Belief(
        means=np.concatenate([random.uniform(60, 420, (6, 2)), random.normal(0, 100, (6, 2))], 1),
        covariances=np.tile(np.diag([4.0, 4, 100, 100]), (6, 1, 1)),
        sizes=np.full((6, 2), 48.0),
        features=np.zeros((6, 1)),
        memories=np.zeros((6, motion.memory_size)),
    )
    means, covariances = motion.forecast(belief, (480, 640), np.array([0.1, 1.0, 3.0]))
    assert np.isfinite(means).all() and np.isfinite(covariances).all()
    assert (np.linalg.eigvalsh(covariances) > 0).all()
    spread = np.trace(covariances[..., :2, :2], axis1=-2, axis2=-1)
    assert (np.diff(spread, axis=1) > 0).all()


@pytest.mark.parametrize(("regime", "limit"), [("R0", 0.06), ("R1", 0.15), ("R2", 0.2)])
def test_errors_after_ten_blind_frames_are_small(regime: str, limit: float) -> None:
    """Diameters; a straight line with reflections has 0.5 in R1 and R2."""
    model = load_model(f"relational_{regime.lower()}", task="motion")
    world = Discs(Discs.Config(regime=regime, num_objects=(5, 5)), 32, 7)
    scores = model.score(world.sample_motion(40), torch.Generator().manual_seed(0))
    assert scores["fde_10"] < limit
    assert 0.8 < scores["coverage_90"] <= 1
