# SPDX-License-Identifier: Apache-2.0
"""What the README tells people to type must work."""

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from oc_perception import cli, deployment

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith("oc-perception ")
]
TARGETS = sorted(set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.M)))


def test_the_readme_shows_the_commands_of_the_package():
    assert {words[1] for words in COMMANDS} >= {"train", "evaluate", "replay", "up"}
    assert {"demo", "test"} <= set(TARGETS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_accepted_by_the_parser(words, monkeypatch):
    accepted = []
    arguments = words[1:]
    module = __import__(
        f"oc_perception.commands.{arguments[0].replace('-', '_')}", fromlist=["run"]
    )
    monkeypatch.setattr(module, "run", lambda parsed: accepted.append(parsed))
    assert cli.main(arguments) == 0
    assert len(accepted) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_every_make_target_exists(target):
    plan = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert plan.returncode == 0, plan.stderr


def test_launch_files_and_their_arguments_exist():
    for name, arguments in re.findall(r"(\w+)\.launch\.py`?((?: \w+:=\S+)*)", README):
        assert (REPOSITORY / "launch" / f"{name}.launch.py").is_file()
        given = re.findall(r"(\w+):=", arguments)
        if name in deployment.ARGUMENTS:
            assert set(given) <= deployment.ARGUMENTS[name].keys()


def test_messages_in_troubleshooting_are_those_of_the_program():
    rows = README.partition("## Troubleshooting")[2].partition("## ")[0]
    quoted = [text.strip(" .") for text in re.findall(r"`([^`]*\.\.\.[^`]*)`", rows)]
    messages = [text for text in quoted if "export" not in text]
    source = "".join(p.read_text() for p in (REPOSITORY / "oc_perception").rglob("*.py"))
    assert messages
    assert [text for text in messages if text not in source] == []


def test_links_and_pictures_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_the_python_example_runs(capsys):
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    exec(compile(code, "README.md", "exec"), {"frame": frame, "stamp_ns": 1})
    assert re.search(r"\(.*\) \(.*\)", capsys.readouterr().out, re.S)
