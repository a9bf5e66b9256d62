# SPDX-License-Identifier: Apache-2.0
"""Errors, calibration and identities while the sensor is blind, between a Kalman filter that knows
the walls, if they stand still (skill 0), and the laws of physics (skill 1).

Discs are seen for 20 frames, not for n, and again for 10. Errors, in diameters, are
those of the last blind frame; coverage and ANEES those of all blind frames together (`_last` in
the JSON: of the last). Shares, also of identities, are from 0 to 1; identities are compared 5
frames after. The report maps numbers of blind frames to values.

`oc-perception benchmark blackout --regime R1 --tracker relational --json -`
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.evaluation import blackout_plots
from oc_perception.evaluation.blackout import (
    CHUNK,
    LENGTHS,
    LEVELS,
    SCHEDULES,
    BlackoutConfig,
)
from oc_perception.evaluation.blackout_report import (
    HEADLINES,
    gain,
    stack,
    summarize,
)
from oc_perception.evaluation.blackout_run import (
    LEARNED,
    TRACKERS,
    measure,
    tracker_configs,
)
from oc_perception.evaluation.plots import require_matplotlib
from oc_perception.evaluation.provenance import provenance
from oc_perception.models.registry import checkpoint_directory
from oc_perception.progress import Progress
from oc_perception.worlds.disc_physics import REGIMES

_SEQUENCES = {"s": 64, "p": 16, "b": 4}
_REFERENCES = ("kalman_walls", "oracle")
_QUICK = {"s": 4, "p": 1, "b": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark blackout`."""
    default = "(default: %(default)s)"
    known = BlackoutConfig
    parser.add_argument(
        "--level",
        choices=LEVELS,
        default=known.level,
        help=f"what trackers are given: states, pictures, or bags of them {default}",
    )
    parser.add_argument(
        "--regime", choices=list(REGIMES), default=known.regime, help=f"laws of motion {default}"
    )
    parser.add_argument("--objects", type=int, default=known.objects, help=default)
    parser.add_argument("--seed", type=int, default=known.seed, help=default)
    parser.add_argument(
        "--sequences",
        type=int,
        help="default: " + ", ".join(f"{n} at level {level}" for level, n in _SEQUENCES.items()),
    )
    parser.add_argument("--speed", type=float, default=known.speed,
                        help=f"diameters per frame {default}")  # fmt: skip
    parser.add_argument("--noise", type=float, default=known.noise,
                        help=f"of detections at level s, diameters {default}")  # fmt: skip
    parser.add_argument("--miss", type=float, default=known.miss,
                        help=f"probability to miss a detection at level s {default}")  # fmt: skip
    parser.add_argument("--clutter", type=float, default=known.clutter,
                        help=f"false detections per frame at level s {default}")  # fmt: skip
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)),
                        help=f"of the blackout, in frames {default}")  # fmt: skip
    parser.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default=known.schedule,
        help="one blackout, or many: a number then says what happens in blackouts of at least so"
        f" many frames {default}",
    )
    parser.add_argument(
        "--model", default=known.model, help=f"for discovery; levels p, b {default}"
    )
    parser.add_argument(
        "--tracker",
        choices=list(TRACKERS),
        default="relational",
        metavar="NAME",
        help=f"{'; '.join(f'{name}: {text}' for name, text in TRACKERS.items())} {default}",
    )
    parser.add_argument("--weights", default="", help="of the relational tracker (default:"
                        " relational_REGIME, in small letters); `non` before the name gives those"
                        " of its non-relational twin")  # fmt: skip
    parser.add_argument("--sqair-weights", default=known.sqair_weights,
                        help=f"of sqair; levels p, b {default}")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="measure all trackers")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw them there")
    parser.add_argument("--workers", type=int, default=2, help=f"processes {default}")
    parser.add_argument("--quick", action="store_true", help="few sequences, to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    config = _config(arguments)
    if arguments.workers < 1:
        raise UserError("--workers must be at least 1.")
    if arguments.figures:
        require_matplotlib()
        arguments.figures.mkdir(parents=True, exist_ok=True)
    names = _chosen(config, arguments.tracker, arguments.table)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # parallel are processes
    try:
        configs = tracker_configs(config, names)
        chunks = -(-config.sequences // CHUNK)
        progress = Progress(f"chunks of {CHUNK} sequences", chunks)
        workers = 1 if arguments.quick else arguments.workers
        found = measure(config, configs, names, workers, progress.advance)
        seconds = progress.finish()
        scores = {name: stack(found[name]) for name in names}
        trackers = summarize(scores, config.columns, (config.filter, "oracle"))
        if arguments.figures:
            blackout_plots.draw(config, configs, trackers, arguments.tracker, arguments.figures)
    finally:
        torch.set_num_threads(threads)
    report = {
        "tracker": arguments.tracker,
        "filter": config.filter,
        **dataclasses.asdict(config),
        **_headlines(trackers, arguments.tracker),
        **_gain(scores, arguments.tracker, config.columns),
        "trackers": trackers,
        "diffusion_widths": {
            name: settings.velocity_diffusion_widths
            for name, settings in configs.items()
            if name not in LEARNED
        },
        "seconds": round(seconds, 1),
        **provenance(),
    }
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        print(table(report))
    return 0


def _config(arguments: argparse.Namespace) -> BlackoutConfig:
    try:
        lengths = tuple(int(word) for word in arguments.lengths.split(","))
    except ValueError as error:
        raise UserError(
            f"--lengths {arguments.lengths}: give whole numbers, separated by commas."
        ) from error
    sequences = arguments.sequences
    if sequences is None:
        sequences = (_QUICK if arguments.quick else _SEQUENCES)[arguments.level]
    shared = {field.name for field in dataclasses.fields(BlackoutConfig)}
    given = {name: value for name, value in vars(arguments).items() if name in shared}
    return BlackoutConfig(**{**given, "lengths": lengths, "sequences": sequences})


def _chosen(config: BlackoutConfig, tracker: str, everything: bool) -> list[str]:
    """What to measure: the tracker, what it is measured against, and its twin where there is one.

    Raises UserError where the tracker's own weights are missing; a table does without others'.
    """
    wanted = set(TRACKERS) if everything else {tracker, config.filter, *_REFERENCES}
    if tracker == "relational":
        wanted.add("nonrelational")
    if config.level == "s":
        if tracker == "sqair":
            raise UserError("--tracker sqair looks at pictures: choose --level p or b.")
        wanted.discard("sqair")
    for name in LEARNED:
        weights = getattr(config, f"{name}_weights")
        if name not in wanted or checkpoint_directory(weights).is_dir():
            continue
        if name == tracker:
            option = "--sqair-weights" if name == "sqair" else "--weights"
            raise UserError(
                f"There is no checkpoint {weights} for --tracker {name} in {config.regime}: train"
                f" it, name another one with {option}, or choose another tracker."
            )
        print(f"without {name}: there is no checkpoint {weights}", file=sys.stderr)
        wanted.remove(name)
    return [name for name in TRACKERS if name in wanted]


def _headlines(trackers: dict[str, Any], tracker: str) -> dict[str, Any]:
    own = trackers[tracker]
    names = ("skill", *HEADLINES)
    return {
        **{name: own[name] for name in names},
        **{f"fde_{reference}": trackers[reference]["fde"] for reference in _REFERENCES},
        **{f"{name}_interval": own[f"{name}_interval"] for name in names},
    }


def _gain(scores: dict[str, Any], tracker: str, columns: Sequence[str]) -> dict[str, Any]:
    if tracker == "relational" and "nonrelational" in scores:
        return gain(scores["relational"], scores["nonrelational"], columns)
    empty = dict.fromkeys(columns)
    return {"relational_gain": empty, "relational_gain_interval": empty}


def table(report: dict[str, Any]) -> str:
    """The report for people: a block per score, a row per tracker, a column per blackout."""
    blocks = {
        "FDE, diameters": "fde",
        "skill": "skill",
        "90 % coverage, all frames": "coverage_90",
        "ANEES, all frames": "anees",
        "share without a track": "untracked",
        "identity recovered": "id_recovered",
        "identity swapped": "id_swapped",
        "identity new": "id_new",
        "HOTA through": "hota_through",
        "FG-ARI retained": "fg_ari_retained",
    }
    columns = list(report["fde"])
    heading = "".join(f"{column:>9}" for column in columns)
    lines = []
    for title, key in blocks.items():
        if all(scores[key][c] is None for scores in report["trackers"].values() for c in columns):
            continue
        lines.append(f"{title + ' after blind frames':<42}{heading}")
        for name, scores in report["trackers"].items():
            cells = ("-" if (v := scores[key][c]) is None else f"{v:.3f}" for c in columns)
            lines.append(f"  {name:<40}" + "".join(f"{cell:>9}" for cell in cells))
    if any(value is not None for value in report["relational_gain"].values()):
        gains = report["relational_gain"].values()
        cells = ("-" if value is None else f"{value:.3f}" for value in gains)
        lines.append(f"{'relational gain':<42}" + "".join(f"{cell:>9}" for cell in cells))
    lines.append(
        f"{report['sequences']} sequences of {report['objects']} objects, {report['regime']},"
        f" level {report['level']}, {report['seconds']:.0f} s, {report['machine']}"
    )
    return "\n".join(lines)
