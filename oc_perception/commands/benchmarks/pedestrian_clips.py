# SPDX-License-Identifier: Apache-2.0
"""IoU of HART and MOHART on people in recordings, from boxes given in the first frame, beside a
box that stays and one that goes on as in the first two true boxes.

The last 30 % of each recording, which training has not seen, are cut into clips of up to 30
frames; with blackouts, frames 7 to 9, 14 to 18 and 24 to 26 are black (of shorter clips, 7 to 11).

`oc-perception benchmark pedestrian-clips --data DIR runs/mohart_bag runs/hart_bag --json -`
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from oc_perception.cli import UserError
from oc_perception.commands import scoring
from oc_perception.evaluation import box_clips
from oc_perception.evaluation.clip_strips import draw_strips
from oc_perception.evaluation.provenance import provenance
from oc_perception.models.clips import true_boxes
from oc_perception.models.registry import load_model
from oc_perception.progress import Progress
from oc_perception.worlds.recorded_tracks import RecordedTracks, RecordedTracksConfig

_RECORDINGS = ("*.tar", "*.mcap", "*.bag", "*/metadata.yaml", "*/seqinfo.ini")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `oc-perception benchmark pedestrian-clips`."""
    default = "(default: %(default)s)"
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run directories or checkpoints")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR",
        help="a folder of recordings with boxes (MOTChallenge tars, bags)",
    )  # fmt: skip
    parser.add_argument("--held-out", type=float, default=0.3, metavar="SHARE",
                        help=f"the last share of each recording {default}")  # fmt: skip
    parser.add_argument("--stride", type=int, default=1, help=f"take every n-th frame {default}")
    parser.add_argument("--width", type=int, default=512, help=f"of pictures, px {default}")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw a film strip of the"
                        " first run (.jpg, .png)")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    bags = recordings(arguments.data)
    models = {name: load_model(name, "cpu", "tracking") for name in arguments.runs}
    size = (round(0.75 * arguments.width), arguments.width)
    config = RecordedTracksConfig(
        bags=tuple(map(str, bags)),
        split="validation",
        validation=arguments.held_out,
        resolution=size,
        augment=False,
    )
    if arguments.stride < 1:
        raise UserError("--stride must be at least 1.")
    world = RecordedTracks(config)
    clips = {
        recording.name: box_clips.cut_clips(world, index, arguments.stride)
        for index, recording in enumerate(world.recordings)
    }
    short = [n for n, clip in clips.items() if clip.present.shape[1] < box_clips.SMALLEST]
    if short:
        raise UserError(
            f"The held-out part of {', '.join(short)} has too few frames: raise --held-out."
        )
    found, scores = {}, {}
    batches = sum(-(-len(clip.present) // 8) for clip in clips.values()) * len(models)
    progress = Progress("batches of clips", batches)
    for name, clip in clips.items():
        found[name] = box_clips.baselines(true_boxes(clip))
        for run_name, model in models.items():
            found[name][Path(run_name).name] = box_clips.follow(
                model, world, clip, size, progress.advance
            )
        scores[name] = box_clips.score(clip, found[name])
    if models:
        progress.finish()
    methods = {
        method: {
            **box_clips.average([scores[name][method] for name in clips]),
            "recordings": {name: scores[name][method] for name in clips},
        }
        for method in next(iter(scores.values()))
    }
    report = {
        "held_out": arguments.held_out,
        "stride": arguments.stride,
        "size": list(size),
        "recordings": {name: _described(clip) for name, clip in clips.items()},
        "methods": methods,
        "runs": {Path(name).name: _trained(name) for name in models},
        **provenance(),
    }
    if arguments.figure and models:
        draw_strips(world, clips, found, Path(arguments.runs[0]).name, size, arguments.figure)
    if arguments.json:
        scoring.write_json(report, arguments.json)
    if arguments.json != "-":
        print(table(report))
    return 0


def recordings(directory: Path) -> list[Path]:
    """The recordings in a folder. Raises UserError where there is none."""
    found = sorted({path for pattern in _RECORDINGS for path in directory.glob(pattern)})
    bags = [p.parent if p.name in ("metadata.yaml", "seqinfo.ini") else p for p in found]
    if not bags:
        raise UserError(
            f"There are no recordings in {directory}: give a folder with tars or bags."
        )
    return bags


def _described(clip: Any) -> dict[str, int]:
    later = clip.present & box_clips.given(clip)[:, None]
    return {
        "clips": len(clip.present),
        "frames_per_clip": clip.present.shape[1],
        "boxes_scored": int(later[:, 1:].sum()),
    }


def _trained(name: str) -> dict[str, Any]:
    """How a run was trained, without where its recordings lay."""
    recipe = scoring.trained_by(name)
    world = dict(recipe.get("world_config", {}))
    for key in ("bags", "truth"):
        if key in world:
            world[key] = [Path(path).name for path in world[key]]
    return {**recipe, "world_config": world, "cpu_s": scoring.metrics(name).get("cpu_s")}


def table(report: dict[str, Any]) -> str:
    """The report for people: a row per method."""
    names = list(report["recordings"])
    heading = ["IoU", *names, "mean", "blackout", *(f"blind {n}" for n in range(1, 6)), "back"]
    lines = [
        "  ".join(f"{word[:16]:>16}" if i else f"{word:<24}" for i, word in enumerate(heading))
    ]
    for method, scores in report["methods"].items():
        values = [scores["recordings"][name]["iou"] for name in names]
        values += [scores["iou"], scores["iou_blackout"], *scores["iou_blind"].values()]
        cells = ("-" if v is None else f"{v:.3f}" for v in [*values, scores["iou_back"]])
        lines.append("  ".join([f"{method:<24}", *(f"{cell:>16}" for cell in cells)]))
    return "\n".join(lines)
