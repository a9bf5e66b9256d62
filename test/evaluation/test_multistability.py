# SPDX-License-Identifier: Apache-2.0
"""Counting groupings of an ambiguous rectangle, with known answers."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from oc_perception.cli import main
from oc_perception.evaluation.multistability import examine_multistability
from oc_perception.models.registry import create_model, save_checkpoint
from oc_perception.worlds.registry import create_world


class Oracle(nn.Module):
    """Answers with the label maps it was given, one after the other, whatever the noise."""

    num_iterations = 1

    def __init__(self, answers):
        super().__init__()
        self.answers = iter(answers)

    def refine(self, frames, num_iterations, generator):
        log_masks = nn.functional.one_hot(next(self.answers), 5).permute(0, 3, 1, 2).float().log()
        elbo = torch.zeros(len(frames))
        return [SimpleNamespace(decomposition=SimpleNamespace(log_masks=log_masks), elbo=elbo)]


@pytest.fixture
def scenes():
    return create_world("ambiguous_tetrominoes", {"block_px": 3}, 2, 0).sample(21, 21)


def test_different_cuts_orders_and_wrong_groupings_are_counted(scenes):
    first, second = scenes.alternatives[:, 0], scenes.alternatives[:, 9]
    turned = torch.where(first > 0, first % 3 + 1, 0)  # the same grouping, slots in another order
    merged = (first > 0).long()  # no valid cut
    found = examine_multistability(Oracle([first, second, turned, merged]), scenes, 4, 0)
    assert found["groupings"] == 3 and found["valid_groupings"] == 2
    assert found["valid_runs"] == 0.75 and found["slot_orders"] == 2
    assert found["fg_ari"] == pytest.approx(0.75)  # the merged one has FG-ARI 0


def test_a_stable_model_has_one_grouping_in_one_order(scenes):
    found = examine_multistability(Oracle([scenes.labels] * 3), scenes, 3, 0)
    assert found["groupings"] == found["valid_groupings"] == found["slot_orders"] == 1
    assert found["valid_runs"] == found["fg_ari"] == 1


def test_the_command_runs_on_a_checkpoint_and_refuses_models_without_hypotheses(tmp_path, capsys):
    small = {"frame_size": [21, 21], "num_slots": 4, "num_iterations": 1, "latent_size": 4,
             "decoder_channels": [8], "encoder_channels": [8], "encoder_hidden": 8,
             "recurrent_size": 0}  # fmt: skip
    save_checkpoint(create_model("iodine", **small), tmp_path)
    (tmp_path / "recipe.yaml").write_text("world_config: {block_px: 3, bevel: false}\n")
    words = ["benchmark", "multistability", str(tmp_path), "--quick"]
    assert main([*words, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["runs"] == 4 and 0 <= report["valid_runs"] <= 1
    assert main(["benchmark", "multistability", "monet_demo", "--quick"]) == 2
    assert "IODINE" in capsys.readouterr().err
