# SPDX-License-Identifier: Apache-2.0
"""However a command is told to end, it cleans up and its exit status says why."""

import subprocess
import sys

import pytest

CLEANS_UP = """
import os, signal, sys, types
from oc_perception import cli

def run(arguments):
    try:
        os.kill(os.getpid(), signal.{name})
        return 0
    finally:
        print("cleaned up")

module = types.ModuleType("demo", "doc")
module.add_arguments, module.run = lambda parser: None, run
sys.modules["oc_perception.commands.demo"] = module
signal.signal(signal.{name}, signal.{before})
sys.exit(cli.main(["demo"]))
"""


def end(name: str, before: str) -> subprocess.CompletedProcess:
    """A command that is sent the signal, whose handler was `before`."""
    code = CLEANS_UP.format(name=name, before=before)
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_command_after_it_cleaned_up(name, status):
    ended = end(name, "SIG_DFL")
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == "cleaned up\n"
    assert "Traceback" not in ended.stderr


def test_nohup_is_respected():
    assert end("SIGHUP", "SIG_IGN").returncode == 0
