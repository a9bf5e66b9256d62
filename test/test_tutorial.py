# SPDX-License-Identifier: Apache-2.0
"""What the tutorial tells people to type is typed here, from the first line to the last."""

import contextlib
import io
import json
import re
import shlex
import time
from pathlib import Path

import pytest

from oc_perception import cli, deployment
from oc_perception.commands import up
from oc_perception.processes import Processes, isolated_environment

REPOSITORY = Path(__file__).resolve().parent.parent
TUTORIAL = REPOSITORY / "docs" / "tutorials" / "your_own_bag.md"
TEXT = TUTORIAL.read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", TEXT, re.S)

SHORT_SECONDS = 6
"""Of recording, instead of what the tutorial takes."""
SHORT_TRAINING = [
    *("--set", "training.steps=6"),
    *("--set", "training.batch_size=2"),
    *("--set", "training.evaluate_every=3"),
    *("--set", "training.evaluation_scenes=8"),
    *("--set", "model_config.frame_size=[24,32]"),
    *("--set", "model_config.num_slots=3"),
]
"""What is added to the tutorial's training: few steps of a small model."""


def commands(block: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]


def shortened(code: str) -> str:
    shorter, count = re.subn(r"^SECONDS = \d+$", f"SECONDS = {SHORT_SECONDS}", code, flags=re.M)
    assert count <= 1
    return shorter


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> tuple[Path, str, list[str]]:
    """The tutorial followed up to the robot: where, what was said, and the command left to do."""
    folder = tmp_path_factory.mktemp("followed")
    said, nodes = io.StringIO(), []
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(folder)
        patch.setenv("OC_CACHE", str(folder / "cache"))
        for language, block in BLOCKS:
            if language == "python":
                exec(compile(shortened(block), TUTORIAL.name, "exec"), {})
                continue
            for words in commands(block):
                assert words[0] == "oc-perception" and not nodes
                if words[1] == "up":
                    nodes = words[1:]
                    continue
                short = SHORT_TRAINING if words[1] == "train" else []
                assert cli.main([*words[1:], *short]) == 0, words
    return folder, said.getvalue(), nodes


def test_every_step_leaves_what_the_tutorial_says(followed):
    folder, said, _ = followed
    frames = round(SHORT_SECONDS * 15)
    assert f"/camera/image {frames} frames 15.0 Hz" in said and "nothing was skipped" in said
    models = set()
    for name in ("shipped", "mine"):
        replayed = folder / "replays" / name
        assert "Replay of tuesday" in (replayed / "report.html").read_text()
        assert (replayed / "tuesday" / "annotated.mp4").is_file()
        models.add(json.loads((replayed / "tuesday" / "metrics.json").read_text())["model"])
    assert len(models) == 2
    assert (folder / "runs" / "mine" / "samples.png").is_file()
    compared = json.loads((folder / "comparison.json").read_text())
    assert compared["bags"] == ["tuesday"] and compared["rows"]
    assert "Two replays side by side" in (folder / "comparison.html").read_text()


def test_the_node_runs_the_trained_model_by_its_parameter(followed, ros_domain, monkeypatch):
    folder, _, words = followed
    monkeypatch.chdir(folder)
    parsed = []
    monkeypatch.setattr(up, "run", parsed.append)
    assert cli.main(words) == 0
    given = {key: getattr(parsed[0], key) for key in deployment.ARGUMENTS["replay"]}
    assert (parsed[0].deployment, given["bag"]) == ("replay", "bags/tuesday")
    nodes = {node.executable: node for node in deployment.nodes("replay", given)}
    assert nodes["discovery_node"].parameters["model"] == "runs/mine"
    starts = up.command(nodes["discovery_node"], deployment.parameter_files("replay"), [])
    end_s = time.monotonic() + 60.0
    log = folder / "logs" / "discovery_node.log"
    with Processes({"discovery_node": starts}, log.parent, isolated_environment()) as processes:
        while "active after" not in log.read_text():
            assert processes.alive("discovery_node") and time.monotonic() < end_s, log.read_text()
            time.sleep(0.1)


def test_messages_and_settings_that_the_tutorial_names_exist():
    source = "".join(p.read_text() for p in (REPOSITORY / "oc_perception").rglob("*.py"))
    source += "".join(p.read_text() for p in (REPOSITORY / "config" / "recipes").glob("*.yaml"))
    for setting in re.findall(r"--set \w+\.(\w+)=", TEXT):
        assert setting in source, setting
    for option in re.findall(r"`(--[a-z-]+)", TEXT):
        assert f'"{option}"' in source, option


def test_links_and_pictures_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (TUTORIAL.parent / target).exists(), target
