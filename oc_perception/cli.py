# SPDX-License-Identifier: Apache-2.0
"""`oc-perception COMMAND ...`: one entry point, one module per command, imported only when it is
used.
"""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = {
    "train": "train a model by recipe",
    "evaluate": "score a checkpoint on a procedural world",
    "import-frames": "turn an image folder, tar or video into a rosbag2",
    "replay": "run perception over a bag, offline and deterministic",
    "benchmark": "measure latency of the node chain",
    "up": "start the nodes of a launch file without launch",
    "demo": "run the whole chain on simulated camera images with blackouts",
}


class UserError(Exception):
    """Something the user can put right; printed as one line, without a traceback."""


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
        return arguments.run(arguments) or 0
    except (UserError, ValueError, OSError) as error:
        print(f"oc-perception {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    # As __main__ this file is a second module, whose UserError is not the one that commands raise.
    sys.exit(importlib.import_module("oc_perception.cli").main())
