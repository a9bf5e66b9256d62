# SPDX-License-Identifier: Apache-2.0
"""Scoring models of videos from the command line."""

import json

import cv2
import numpy as np
import pytest
import torch
import yaml

from oc_perception.cli import main
from oc_perception.models.registry import create_model, save_checkpoint

SIZES = {"frame_size": [16, 16], "glimpse_size": 4, "hidden_size": 8, "what_size": 4,
         "num_slots": 2, "num_frames": 3, "particles": 2}  # fmt: skip


def checkpoint(directory, name="sqair", world="mini_shapes", **world_config):
    """An untrained model as a finished run of `oc-perception train` leaves it."""
    torch.manual_seed(0)
    save_checkpoint(create_model(name, **SIZES), directory)
    recipe = {"model": name, "world": world, "world_config": world_config, "model_config": SIZES}
    recipe["training"] = {"steps": 2, "seed": 0}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return str(directory)


def scores(capsys, *words):
    assert main([*words, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["air", "sqair"])
def test_scores_say_what_was_measured_and_repeat(name, tmp_path, capsys):
    words = ["evaluate", checkpoint(tmp_path, name), "--scenes", "6", "--seed", "3"]
    found = scores(capsys, *words)
    expected = {"counting_accuracy", "id_switches_per_100", "discoveries_over_ideal",
                "log_evidence_gap"}  # fmt: skip
    assert expected <= found.keys()
    settings = {"world": "mini_shapes", "scenes": 6, "seed": 3, "slots": 2, "frames": 3,
                "particles": 2}  # fmt: skip
    assert settings.items() <= found.items()
    assert scores(capsys, *words) == found
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"counting_accuracy  {found['counting_accuracy']:.4g}\n" in shown
    assert (
        "counting_by_frame  " + " ".join(f"{x:.3g}" for x in found["counting_by_frame"]) in shown
    )


def test_frames_slots_and_particles_can_be_chosen(tmp_path, capsys):
    words = ["evaluate", checkpoint(tmp_path, num_objects=[2, 2]), "--scenes", "4"]
    trained = scores(capsys, *words)
    longer = scores(capsys, *words, "--frames", "12")
    assert (len(trained["counting_by_frame"]), len(longer["counting_by_frame"])) == (3, 12)
    assert longer["frames"] == 12
    more = scores(capsys, *words, "--slots", "4", "--particles", "50")
    assert (more["slots"], more["particles"]) == (4, 50)
    assert more["log_evidence"] != trained["log_evidence"]
    assert more["world_config"] == {"num_objects": [2, 2]}


def test_it_is_told_where_digits_come_from(tmp_path, capsys):
    name = checkpoint(tmp_path, world="digits", source="strokes", num_objects=[1, 1])
    assert scores(capsys, "evaluate", name, "--scenes", "2")["source"] == "strokes"
    assert main(["evaluate", name, "--scenes", "2"]) == 0
    assert "source  strokes" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["air", "sqair"])
def test_strips_show_what_is_seen_and_foreseen(name, tmp_path):
    run, figures = checkpoint(tmp_path / "run", name), tmp_path / "deep" / "figures"
    assert main(["evaluate", run, "--scenes", "3", "--figures", str(figures)]) == 0
    assert {path.name for path in figures.iterdir()} == {"tracks.png", "forecast.png"}
    tracks, forecast = (
        cv2.imread(str(figures / f"{name}.png")) for name in ("tracks", "forecast")
    )
    assert forecast.shape[1] - 52 == (tracks.shape[1] - 52) * 8 / 3  # 8 columns, not 3
    assert tracks.shape[0] == forecast.shape[0] and tracks.shape[0] > 300
    # The first true picture is white on black where no box is; unseen ones are dimmed.
    assert (tracks[20:116, 52:148] == 255).all(2).any()
    last = forecast[20:116, 52 + 700 : 52 + 796]
    assert not np.all(last == 255, axis=2).any() and last.max() > 60


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--readout"], "--readout is for discovery models"),
        (["--frames", "0"], "--frames must be at least 1"),
        (["--particles", "-1"], "--particles must be at least 1"),
        (["--slots", "0"], "cannot run with --slots 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(words, reason, tmp_path, capsys):
    assert main(["evaluate", checkpoint(tmp_path), "--scenes", "2", *words]) == 2
    assert reason in capsys.readouterr().err


def test_frames_are_for_models_of_videos_alone(capsys):
    assert main(["evaluate", "grid", "--scenes", "2", "--frames", "4"]) == 2
    assert "--frames is for models of videos" in capsys.readouterr().err
