# SPDX-License-Identifier: Apache-2.0
"""Nodes as processes of their own: started together, watched, ended together; without ROS."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from oc_perception import deployment
from oc_perception.cli import UserError

_PATIENCE_S = 10.0


def require_ros() -> None:
    """Raises UserError where rclpy or the built messages cannot be imported."""
    for module in ("rclpy", "oc_perception.msg"):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"Python finds no {module}. Run `. ./activate` in the source tree after "
                "`make setup`, or source your ROS installation and this package's workspace."
            )


def isolated_environment() -> dict[str, str]:
    """Variables for processes that meet on this machine, in the ROS domain set or a random one."""
    environment = {**os.environ, **deployment.environment(), "PYTHONUNBUFFERED": "1"}
    environment.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randrange(1, 100)))
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    return environment


class Processes:
    """A context manager over named processes; their output goes to `logs`/<name>.log."""

    def __init__(
        self, commands: dict[str, list[str]], logs: Path, environment: dict[str, str]
    ) -> None:
        self._commands, self._logs, self._environment = commands, logs, environment
        self._running: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Processes:
        self._logs.mkdir(parents=True, exist_ok=True)
        for name, words in self._commands.items():
            with self._log(name).open("w") as log:
                # Sessions of their own keep the terminal's Ctrl-C from them: they end in order.
                self._running[name] = subprocess.Popen(
                    words,
                    env=self._environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stop(self._running.values())

    def check(self) -> None:
        """Raises UserError with the last words of a process that has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                lines = self._log(name).read_text(errors="replace").splitlines()[-10:]
                raise UserError("\n".join([f"{name} ended early ({self._log(name)}):", *lines]))

    def alive(self, name: str) -> bool:
        """Whether a process still runs."""
        return self._running[name].poll() is None

    def usage(self) -> dict[str, tuple[float, float]]:
        """CPU seconds so far and resident MB of each process that runs."""
        tick_s, page_bytes = 1 / os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        result = {}
        for name, process in self._running.items():
            try:
                stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            except FileNotFoundError:
                continue
            user, system, pages = (int(stat[i]) for i in (11, 12, 21))
            result[name] = ((user + system) * tick_s, pages * page_bytes / 1e6)
        return result

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def stop(processes: Iterable[subprocess.Popen]) -> None:
    """Interrupt those that still run, and kill what does not listen."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.send_signal(signal.SIGINT)
    for process in alive:
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
