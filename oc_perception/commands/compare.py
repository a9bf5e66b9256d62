# SPDX-License-Identifier: Apache-2.0
"""Compare two replays of the same recordings: what differs, and whether that is chance.

A and B are --output directories of `oc-perception replay`. Differences are B - A with their 95 %
bootstrap intervals, over paired blackouts and recordings; those beyond chance are marked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from oc_perception.evaluation.compare import compare, write_comparison
from oc_perception.evaluation.report_data import read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `oc-perception compare`."""
    parser.add_argument("a", type=Path, metavar="A", help="the replay to compare with")
    parser.add_argument("b", type=Path, metavar="B", help="the replay to judge")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at")


def run(arguments: argparse.Namespace) -> int:
    """Compare, print a table, and write what was asked for."""
    found = compare(read_run(arguments.a), read_run(arguments.b))
    for line in table(found):
        print(line)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.html:
        write_comparison(arguments.html, found)
    return 0


def table(found: dict[str, Any]) -> list[str]:
    """The comparison as lines of text."""
    lines = [
        f"{name.upper()}  {run['directory']}: model {run['model']}, tracker {run['tracker']}"
        for name, run in (("a", found["a"]), ("b", found["b"]))
    ]
    lines.append(f"{len(found['bags'])} recordings; 95 % intervals: {found['resampled']}")
    if found["left_out"]:
        lines.append(f"left out, not in both: {', '.join(found['left_out'])}")
    lines.append(f"\n{'':24}{'A':>10}{'B':>10}{'B - A':>10}   95 % interval")
    group = ""
    for row in found["rows"]:
        if row["group"] != group:
            group = row["group"]
            lines.append(group)
        values = "".join(f"{_number(row, key):>10}" for key in ("a", "b", "difference"))
        bounds = "-"
        if row["low"] is not None:
            bounds = f"{_number(row, 'low'):>8} .. {_number(row, 'high'):<8}"
        lines.append(f"  {row['name']:<22}{values}   {bounds:<20} {row['verdict']}".rstrip())
    marked = [row["verdict"] for row in found["rows"] if row["verdict"]]
    lines.append(
        f"\nBeyond chance, B is better in {marked.count('better')} and worse in "
        f"{marked.count('worse')} of {len(found['rows'])} rows. One in 20 rows without any "
        "difference is marked all the same; pp are percentage points."
    )
    return lines


def _number(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if value is None:
        return "-"
    sign = "+" if key in ("difference", "low", "high") else ""
    if row["share"]:
        return f"{100 * value:{sign}.1f} {'pp' if sign else '% '}"
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.1f}"
