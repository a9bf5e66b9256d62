# SPDX-License-Identifier: Apache-2.0
"""Many bags over many workers: the same files as by one, whatever dies on the way."""

import hashlib
import json
import sys
from pathlib import Path

import fleet_work
import numpy as np
import pytest

from oc_perception.bags.messages import image_message
from oc_perception.bags.writer import BagWriter
from oc_perception.cli import main
from oc_perception.commands import replay as command
from oc_perception.evaluation.fleet import ATTEMPTS, FleetError, map_jobs
from oc_perception.evaluation.replay_store import ReplayJob

BAGS = 8


@pytest.fixture(scope="module")
def bags(tmp_path_factory) -> list[Path]:
    """Eight bags of six pictures each, all different."""
    directory = tmp_path_factory.mktemp("bags")
    generator = np.random.default_rng(0)
    paths = []
    for number in range(BAGS):
        paths.append(directory / f"bag{number}")
        with BagWriter(paths[-1]) as bag:
            for k in range(6):
                stamp_ns = 10_000_000_000 + k * 40_000_000
                image = generator.integers(40, 256, (24, 32, 3), dtype=np.uint8)
                bag.write("/camera/image", stamp_ns, image_message(stamp_ns, image))
    return paths


def digests(directory: Path) -> dict[str, str]:
    """Of all files but those that tell times; the commit is that of a checkout that may change."""
    found = {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in ("timing.json", "report.html", "report.json")
    }
    report = json.loads((directory / "report.json").read_text())
    return found | {"report.json": json.dumps(report | {"commit": None})}


def replay(bags: list[Path], output: Path, *options: str) -> int:
    words = ["replay", *map(str, bags), "--output", str(output), "--model", "grid"]
    return main([*words, "--no-self-test", "--no-baselines", *options])


@pytest.fixture(scope="module")
def alone(tmp_path_factory, bags) -> dict[str, str]:
    """The files of one process."""
    output = tmp_path_factory.mktemp("alone") / "out"
    assert replay(bags, output) == 0
    return digests(output)


def test_a_killed_worker_costs_nothing_and_a_second_run_does_nothing(
    tmp_path, bags, alone, monkeypatch
):
    monkeypatch.setattr(command, "run_job", fleet_work.killed_once)
    output = tmp_path / "out"
    assert replay(bags, output, "--workers", "2") == 0
    assert (tmp_path / "killed").exists()
    assert digests(output) == alone
    times = {path: path.stat().st_mtime_ns for path in output.rglob("metrics.json")}
    (output / "bag5" / "metrics.json").unlink()
    assert replay(bags, output, "--workers", "2") == 0
    again = {path: path.stat().st_mtime_ns for path in output.rglob("metrics.json")}
    assert [path.parent.name for path in times if times[path] != again[path]] == ["bag5"]
    assert digests(output) == alone


def test_what_cannot_be_done_is_listed_and_the_rest_is_done(tmp_path, bags):
    names = ["bag0", "bag1", "bag2", "absent", "bag3"]
    jobs = [ReplayJob(bags[0].parent / name, tmp_path / name, model="grid") for name in names]
    told = []
    outcomes = map_jobs(jobs, 2, on_done=told.append, work=fleet_work.killed_always)
    assert [outcome.number for outcome in outcomes] == list(range(5))
    assert sorted(told, key=lambda outcome: outcome.number) == outcomes
    assert [bool(outcome.error) for outcome in outcomes] == [False, True, True, True, False]
    assert f"died {ATTEMPTS} times" in outcomes[1].error
    assert "KeyError" in outcomes[2].error
    assert "absent" in outcomes[3].error
    assert outcomes[4].metrics["frames"] == 6
    assert (tmp_path / "bag1.begun").read_text() == "x" * ATTEMPTS
    assert (tmp_path / "bag2.begun").read_text() == "x"


def test_a_fleet_without_ray_or_cluster_says_what_to_do(tmp_path, bags, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    jobs = [ReplayJob(bags[0], tmp_path / "out", model="grid")]
    with pytest.raises(FleetError, match=r"pip install 'oc_perception\[fleet\]'"):
        map_jobs(jobs, 1, ray_address="auto")


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one processor each, as two machines would be."""
    pytest.importorskip("ray", reason="ray is installed by pip install 'oc_perception[fleet]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(fleet_work.__file__).parent))
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_a_ray_cluster_writes_the_same_files_though_a_worker_is_killed(
    tmp_path, bags, alone, monkeypatch, cluster
):
    monkeypatch.setattr(command, "run_job", fleet_work.killed_once)
    output = tmp_path / "out"
    assert replay(bags, output, "--ray", cluster.address) == 0
    assert (tmp_path / "killed").exists()
    assert digests(output) == alone
    assert json.loads((output / "report.json").read_text())["failed"] == []
