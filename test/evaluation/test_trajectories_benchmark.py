# SPDX-License-Identifier: Apache-2.0
"""Forecasts of how persons walk: the protocol, its baselines, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from oc_perception.cli import main
from oc_perception.evaluation import trajectories
from oc_perception.models.pedestrians import Pedestrians, PedestriansConfig
from oc_perception.models.registry import create_model, save_checkpoint

_PERSONS = {"eth": 181, "hotel": 1053, "univ": 24334, "zara1": 2253, "zara2": 5833}


def _crowds(count: int = 5, seed: int = 0) -> list[np.ndarray]:
    """Windows of 2 to 4 persons who are there all the time, and one who comes and goes."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        persons = random.integers(3, 6)
        way = random.normal(0, 0.4, (1, persons, 2)) + random.normal(0, 0.1, (20, persons, 2))
        crowd = random.normal(0, 4, (1, persons, 2)) + way.cumsum(0)
        crowd[:4, -1] = crowd[12:, -1] = np.nan
        found.append(crowd)
    return found


def _folder(path: Path) -> Path:
    """Two places where four persons walk for 40 frames."""
    random = np.random.default_rng(0)
    for place in ("park", "square"):
        start, way = random.normal(0, 4, (4, 2)), random.normal(0, 0.4, (4, 2))
        rows = [
            f"{12 * frame} {identity} {x:.3f} {y:.3f}\n"
            for frame in range(40)
            for identity, (x, y) in enumerate(start + frame * way)
        ]
        path.mkdir(exist_ok=True)
        (path / f"{place}_0.txt").write_text("".join(rows))
    return path


def test_the_protocol_scores_whom_published_work_scores(data_directory: Path) -> None:
    folder = data_directory / "eth_ucy"
    if not folder.is_dir():
        pytest.skip("eth_ucy is not among the data sets")
    sets = trajectories.windows_by_set(folder)
    persons = {name: sum(map(trajectories.scored, crowds)) for name, crowds in sets.items()}
    persons.pop(trajectories.RESAMPLED)
    assert persons == _PERSONS


def test_constant_velocity_is_that_of_a_plain_computation(data_directory: Path) -> None:
    """Another reader, another search for windows, another formula."""
    folder = data_directory / "eth_ucy"
    if not folder.is_dir():
        pytest.skip("eth_ucy is not among the data sets")
    rows = [line.split() for line in (folder / "all_data" / "biwi_eth.txt").open()]
    places: dict[int, dict[str, complex]] = {}
    for frame, identity, x, y in rows:
        places.setdefault(int(frame), {})[identity] = complex(float(x), float(y))
    frames = sorted(places)
    misses = []
    for first in range(len(frames) - 19):
        window = [places[frame] for frame in frames[first : first + 20]]
        whole = set(window[0]).intersection(*window[1:])
        if len(whole) < 2:
            continue
        for person in whole:
            path = [positions[person] for positions in window]
            misses.append([abs(path[7] + k * (path[7] - path[6]) - path[7 + k])
                           for k in range(1, 13)])  # fmt: skip
    found = trajectories.evaluate(
        trajectories.constant_velocity, trajectories.windows_by_set(folder)["eth"]
    )
    assert found["ade"] == pytest.approx(np.mean(misses), abs=1e-9)
    assert found["fde"] == pytest.approx(np.mean(misses, 0)[-1], abs=1e-9)


def test_the_line_is_that_of_polyfit() -> None:
    crowd = _crowds(1)[0]
    found = trajectories.linear_fit([crowd])[0].means
    for person in range(found.shape[1]):
        for axis in (0, 1):
            line = np.polyfit(range(8), crowd[:8, person, axis], 1)
            np.testing.assert_allclose(
                found[:, person, axis], np.polyval(line, range(8, 20)), atol=1e-9
            )


def test_the_kalman_filter_goes_straight_where_there_is_no_noise() -> None:
    walk = np.arange(20)[:, None, None] * np.array([[0.3, 0.1], [-0.2, 0.5]])
    forecast = trajectories.kalman_filter(1.0, 1e-6)([walk])[0]
    np.testing.assert_allclose(forecast.means, walk[8:], atol=1e-3)
    spread = np.trace(forecast.covariances, axis1=-2, axis2=-1)
    assert (np.diff(spread, axis=0) > 0).all()


def test_no_method_looks_ahead_or_into_other_windows() -> None:
    torch.manual_seed(0)
    model = Pedestrians(PedestriansConfig(hidden=8, memory=4, message=4))
    crowds = _crowds()
    blinded = [np.where(np.arange(20)[:, None, None] < 8, c, c + 100) for c in crowds]
    for method in (
        trajectories.constant_velocity,
        trajectories.linear_fit,
        trajectories.kalman_filter(0.1, 0.01),
        trajectories.learned(model),
    ):
        together = method(crowds)
        for crowd, blind, forecast in zip(crowds, method(blinded), together, strict=True):
            assert forecast.means.shape == (12, trajectories.scored(crowd), 2)
            np.testing.assert_allclose(blind.means, forecast.means, atol=1e-9)
            np.testing.assert_allclose(method([crowd])[0].means, forecast.means, atol=1e-5)


def test_perfect_forecasts_score_nothing_and_averages_are_over_sets() -> None:
    crowds = _crowds()

    def prophet(windows: list[np.ndarray]) -> list[trajectories.Forecast]:
        return [trajectories.Forecast(w[8:, : trajectories.scored(w)]) for w in windows]

    assert trajectories.evaluate(prophet, crowds) == {"ade": 0.0, "fde": 0.0}
    scores = {"one": {"ade": 1.0}, "two": {"ade": 2.0}, "other": {"ade": 9.0}}
    assert trajectories.average(scores, ["one", "two"]) == {"ade": 1.5}


@pytest.fixture
def models(tmp_path: Path) -> str:
    for name in ("park", "square"):
        torch.manual_seed(0)
        model = create_model("pedestrians", hidden=8, memory=4, message=4)
        save_checkpoint(model, tmp_path / f"small_{name}")
    return str(tmp_path / "small_{set}")


def test_the_command_reports_every_set_and_method(
    tmp_path: Path, models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file, figure = _folder(tmp_path / "walks"), tmp_path / "a.json", tmp_path / "a.png"
    words = ["benchmark", "trajectories", "--data", str(folder), "--models", models]
    assert main([*words, "--json", str(file), "--figure", str(figure)]) == 0
    table = capsys.readouterr().out
    report = json.loads(file.read_text())
    assert report["persons"] == {"park": 84, "square": 84}
    assert list(report["scores"]) == ["constant_velocity", "linear_fit", "kalman", "small"]
    for label, by_set in report["scores"].items():
        assert label in table
        assert list(by_set) == ["park", "square", "average"]
        mean = np.mean([by_set[name]["ade"] for name in ("park", "square")])
        assert by_set["average"]["ade"] == pytest.approx(mean)
    assert report["scores"]["constant_velocity"]["average"]["ade"] < 0.02  # they go straight
    assert 0 <= report["scores"]["small"]["park"]["coverage_90"] <= 1
    assert figure.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "relational_r1"], "must have {set}"),
        (["--least", "0"], "at least 1"),
        (["--least", "9"], "No window"),
        (["--sets", "moon"], "no set moon"),
        (["--data", "no_such_folder"], "OC_DATA"),
    ],
)
def test_what_cannot_be_done_is_told(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _folder(tmp_path / "walks")
    words = ["benchmark", "trajectories", "--data", str(folder), "--models", *options]
    assert main(words) == 2
    assert message in capsys.readouterr().err
