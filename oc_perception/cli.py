# SPDX-License-Identifier: Apache-2.0
"""`oc-perception COMMAND ...`: one entry point, one module per command, imported only when it is
used.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

COMMANDS = {
    "train": "train a model by recipe",
    "evaluate": "score a checkpoint on a procedural world",
    "import-frames": "turn an image folder, tar or video into a rosbag2",
    "replay": "run perception over a bag, offline and deterministic",
    "compare": "put two replays of the same bags side by side",
    "benchmark": "measure latency, inference, scores over seeds, or multistability",
    "up": "start the nodes of a launch file without launch",
    "demo": "run the whole chain on simulated camera images with blackouts",
}


class UserError(Exception):
    """Something the user can put right; printed as one line, without a traceback."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal; commands clean up as after Ctrl-C."""


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM (a supervisor) and SIGHUP (a closed terminal) raise Terminated.

    By default they would end this process alone: nodes live on in sessions of their own, and
    training would not be saved. A signal that is ignored (nohup) stays so.
    """

    def interrupt(number: int, _: object) -> None:
        raise Terminated(number)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                previous[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the process exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="oc-perception", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            module = importlib.import_module(f"oc_perception.commands.{name.replace('-', '_')}")
            subparser.description = module.__doc__
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    try:
        with _signals_interrupt():
            return arguments.run(arguments) or 0
    except (UserError, ValueError, OSError) as error:
        print(f"oc-perception {arguments.command}: {error}", file=sys.stderr)
        return 2
    except Terminated as signalled:
        print("terminated", file=sys.stderr)
        return 128 + signalled.args[0]
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    # As __main__ this file is a second module, whose UserError is not the one that commands raise.
    sys.exit(importlib.import_module("oc_perception.cli").main())
