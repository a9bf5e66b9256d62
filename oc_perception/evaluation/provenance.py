# SPDX-License-Identifier: Apache-2.0
"""Where a number comes from: the command, the commit and the kind of machine that made it."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from oc_perception.resources import share_directory


def provenance(device: str = "cpu") -> dict[str, str | None]:
    """`command`, `commit` (None outside a checkout), `machine` and `torch` of this process."""
    program = Path(sys.argv[0]).name
    if program == "cli.py":  # run as a module, in a source tree or under torchrun
        program = "oc-perception"
    return {
        "command": shlex.join([program, *sys.argv[1:]]),
        "commit": _commit(),
        "machine": machine(device),
        "torch": torch.__version__,
    }


def machine(device: str = "cpu") -> str:
    """The kind of machine: the GPU if `device` is one, else the number of cores and their name."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    description = Path("/proc/cpuinfo")  # Linux: elsewhere `platform` names the processor
    text = description.read_text() if description.is_file() else ""
    names = re.findall(r"model name\s*: (.*)", text)
    name = names[0] if names else platform.processor() or platform.machine()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} cores, {name}"


def _commit() -> str | None:
    """The commit of this checkout, `-dirty` if files differ from it."""
    if not (share_directory() / ".git").exists():
        return None
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(
            words, cwd=share_directory(), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
