# SPDX-License-Identifier: Apache-2.0
"""Start the nodes of a deployment as processes of their own, where `ros2 launch` is not installed.

The nodes, topics and parameters are those of launch/<deployment>.launch.py. Ctrl-C ends all.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

from oc_perception import deployment
from oc_perception.cli import UserError
from oc_perception.configuration import nearest
from oc_perception.processes import require_ros

_PATIENCE_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options: those of each deployment, and `--set`."""
    subparsers = parser.add_subparsers(dest="deployment", required=True, metavar="DEPLOYMENT")
    for name, arguments in deployment.ARGUMENTS.items():
        subparser = subparsers.add_parser(
            name, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        for argument, (default, description) in arguments.items():
            flags = [f"--{argument.replace('_', '-')}"]
            if argument == "params_file":
                flags.append("--param-file")
            subparser.add_argument(*flags, dest=argument, default=default, help=description)
        subparser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NODE.PARAMETER=VALUE",
            help="set one parameter, over all files; may be repeated",
        )


def run(arguments: argparse.Namespace) -> int:
    """Run until Ctrl-C, until a leading node ends, or until all have ended; 0 if none failed."""
    require_ros()
    name = arguments.deployment
    given = {key: getattr(arguments, key) for key in deployment.ARGUMENTS[name]}
    nodes = deployment.nodes(name, given)
    files = deployment.parameter_files(name, arguments.params_file)
    settings = _settings(arguments.set, [node.executable for node in nodes])
    commands = [
        command(node, files, settings.get(node.executable, []), arguments.log_level)
        for node in nodes
    ]
    return _Group(nodes, commands).run()


def command(
    node: deployment.NodeSpec,
    files: tuple[Path, ...],
    settings: list[str],
    log_level: str = "info",
) -> list[str]:
    """The command line of one node; `settings` are `parameter:=value`."""
    words = [sys.executable, "-m", f"oc_perception.nodes.{node.executable}", "--ros-args"]
    words += ["-r", f"__ns:=/{node.namespace}"] if node.namespace else []
    for topic, target in node.remappings:
        if topic != target:
            words += ["-r", f"{topic}:={target}"]
    for path in files:
        words += ["--params-file", str(path)]
    for parameter, value in node.parameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += ["-p", f"{parameter}:={text}"]
    for setting in settings:
        words += ["-p", setting]
    return [*words, "--log-level", log_level]


def _settings(assignments: list[str], names: list[str]) -> dict[str, list[str]]:
    """`NODE.PARAMETER=VALUE` as `parameter:=value` per node. Raises UserError."""
    result: dict[str, list[str]] = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        node, dot, parameter = path.partition(".")
        if not (equals and dot and parameter):
            raise UserError(f"--set {assignment!r} is not of the form node.parameter=value.")
        if node not in names:
            raise UserError(f"--set: there is no node {node!r}.{nearest(node, names)}")
        result.setdefault(node, []).append(f"{parameter}:={value}")
    return result


class _Group:
    """Processes whose lines are printed with the names of their nodes, and that end together."""

    def __init__(self, nodes: tuple[deployment.NodeSpec, ...], commands: list[list[str]]) -> None:
        self._nodes, self._commands = nodes, commands
        # Index of a process, None for a signal. Simple, because its handler may interrupt `get`.
        self._ended: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._width = max(len(_label(node)) for node in nodes)

    def run(self) -> int:
        """Start all, wait, end all; 0 if no process failed by itself."""
        environment = {**os.environ, **deployment.environment(), "PYTHONUNBUFFERED": "1"}
        previous = {
            number: signal.signal(number, lambda *_: self._ended.put(None))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)  # nohup
        }
        # Sessions of their own keep the terminal's Ctrl-C from them: they get exactly one signal,
        # from us.
        processes = [
            subprocess.Popen(
                words,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            for words in self._commands
        ]
        readers = [
            threading.Thread(target=self._follow, args=(index, process), daemon=True)
            for index, process in enumerate(processes)
        ]
        for reader in readers:
            reader.start()
        try:
            return self._wait(processes)
        finally:
            self._end(processes)
            for reader in readers:
                reader.join(_PATIENCE_S)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _wait(self, processes: list[subprocess.Popen]) -> int:
        failed = False
        running = len(processes)
        while running:
            index = self._ended.get()
            if index is None:
                break
            running -= 1
            status = processes[index].returncode
            failed |= status != 0
            self._print(index, f"ended with status {status}")
            if self._nodes[index].leads:
                break
        return int(failed)

    def _follow(self, index: int, process: subprocess.Popen) -> None:
        for line in process.stdout:
            self._print(index, line.rstrip())
        process.wait()
        self._ended.put(index)

    def _print(self, index: int, text: str) -> None:
        print(f"[{_label(self._nodes[index]):{self._width}}] {text}", flush=True)

    def _end(self, processes: list[subprocess.Popen]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            alive = [process for process in processes if process.poll() is None]
            for process in alive:
                process.send_signal(number)
            for process in alive:
                try:
                    process.wait(_PATIENCE_S)
                except subprocess.TimeoutExpired:
                    print(f"process {process.pid} ignores signal {number}", file=sys.stderr)


def _label(node: deployment.NodeSpec) -> str:
    return f"{node.namespace}/{node.executable}".lstrip("/")
