# SPDX-License-Identifier: Apache-2.0
"""Measure what the documentation states: one benchmark per table of results."""

from __future__ import annotations

import argparse
import importlib

_BENCHMARKS = {
    "latency": "latency of the node chain",
    "detections": "true boxes of a recording that discovery finds",
    "discovery": "scores of several training seeds of one recipe",
    "inference": "time per frame of the discovery models",
    "blackout": "errors and identities while the sensor is blind",
    "tracking": "time per step of motion models and trackers",
    "mot": "tracking by detection on MOTChallenge sequences, with frames hidden",
    "reading": "speed and memory of reading recordings",
    "replay": "speed and memory of replay with a stub model",
    "trajectories": "forecasts of how persons walk, beside simple ones",
    "pedestrian-clips": "boxes followed through the end of recordings",
    "bounds": "signal of gradients and quality of models by variational bound",
    "videos": "counts, identities and forecasts of AIR and SQAIR over training seeds",
    "multistability": "groupings of an ambiguous picture that inference finds",
    "wake-sleep": "gradients through discrete latents, where the answer is known",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmarks, each with options of its own."""
    subparsers = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, summary in _BENCHMARKS.items():
        module = importlib.import_module(
            f"oc_perception.commands.benchmarks.{name.replace('-', '_')}"
        )
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(measure=module.run)


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen benchmark."""
    return arguments.measure(arguments)
