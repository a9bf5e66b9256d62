# SPDX-License-Identifier: Apache-2.0
"""Replay directories as the engine writes them, made up, for tests of what reads them."""

import json
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

TRACKERS = ("filter", "kalman", "hold", "sort", "bytetrack")
SCHEDULES = {"1": 1, "5": 5, "10": 10, "20": 20, "bernoulli_0.2": 25}
_SKILL = {"filter": 0.97, "kalman": 0.95, "hold": 0.8, "sort": 0.5, "bytetrack": 0.7}


def blackouts(generator, trackers=TRACKERS, count=12, skill=1.0, objects=4):
    """One row per blackout and tracker, as in metrics.json."""
    rows = []
    for schedule, length in SCHEDULES.items():
        for index in range(count):
            difficulty = generator.random()
            for tracker in trackers:
                keeps = skill * _SKILL[tracker] ** (1 + length / 5) * (1 - 0.2 * difficulty)
                kept = int(generator.binomial(objects, min(1.0, keeps)))
                compared = objects * length
                sizes = (1.6 - skill * _SKILL[tracker]) * length / 40 * (0.5 + difficulty)
                rows.append(
                    {
                        "schedule": schedule,
                        "tracker": tracker,
                        "start_step": 30 + 60 * index,
                        "frames": length,
                        "tracked": objects,
                        "kept": kept,
                        "swapped": 0,
                        "new": objects - kept,
                        "lost": 0,
                        "error_px": round(40 * sizes, 4),
                        "error_sizes": round(sizes, 6),
                        "inside_90": int(generator.binomial(compared, 0.88)),
                        "compared": compared,
                    }
                )
    return rows


def summary(rows):
    """`self_test` of metrics.json from its `blackouts`."""
    found = {}
    for schedule in SCHEDULES:
        for tracker in dict.fromkeys(row["tracker"] for row in rows):
            own = [r for r in rows if (r["schedule"], r["tracker"]) == (schedule, tracker)]
            total = {
                key: sum(r[key] for r in own)
                for key in ("tracked", "kept", "swapped", "new", "lost", "compared", "inside_90")
            }
            compared = max(1, total["compared"])
            found.setdefault(schedule, {})[tracker] = {
                "blackouts": len(own),
                **{k: total[k] for k in ("tracked", "kept", "swapped", "new", "lost")},
                "kept_share": total["kept"] / max(1, total["tracked"]),
                "error_px": sum(r["error_px"] * r["compared"] for r in own) / compared,
                "error_sizes": sum(r["error_sizes"] * r["compared"] for r in own) / compared,
                "coverage_90": total["inside_90"] / compared,
                "compared": total["compared"],
            }
    return found


def metrics(name, seed, skill=1.0, truth=True):
    """metrics.json of one bag."""
    generator = np.random.default_rng(seed)
    rows = blackouts(generator, skill=skill)
    points = 200
    objects = np.clip(generator.normal(4, 0.6, points).round(), 0, None).astype(int)
    states = ["OK"] * points
    states[60:75], states[120:124] = ["BLACK"] * 15, ["STALE"] * 4
    result = {
        "schema": 1,
        "job_key": f"{seed:064x}",
        "bag": name,
        "topic": "/camera/image/compressed",
        "model": "monet_demo",
        "tracker": "filter",
        "rate_hz": 25.0,
        "duration_s": 40.0,
        "frames": 980,
        "frames_malformed": 2,
        "frames_late": 1,
        "frames_missing": 20,
        "warnings": ["3 messages of a <chunk> could not be read & were skipped"],
        "first_error": "truncated PNG",
        "steps": 1000,
        "sensor_states": {"BLACK": 75, "OK": 905, "STALE": 20},
        "sessions": 1,
        "tracks_confirmed": 9,
        "objects_per_frame": 4.02,
        "tracks_per_frame": 3.9,
        "self_test": summary(rows),
        "blackouts": rows,
        "worst": [
            {
                "kind": "blackout",
                "step": 150 + 60 * i,
                "stamp_ns": 1_700_000_000_000_000_000 + i,
                "score": 0.1 * i,
                "caption": f"10 frames hidden, {i} of 4 identities kept",
                "strip": f"strips/worst_{i}.jpg",
            }
            for i in range(4)
        ],
        "series": {
            "stamp_s": np.linspace(0, 40, points).round(3).tolist(),
            "objects": objects.tolist(),
            "tracks": np.maximum(objects - 1, 0).tolist(),
            "sensor_state": states,
        },
    }
    if truth:
        result["discovery"] = {
            "frames_with_truth": 900, "fg_ari": 0.81, "ari": 0.7, "miou": 0.6, "mbo": 0.55,
        }  # fmt: skip
        result["tracking"] = {
            tracker: {
                "hota": 0.6 * skill * value, "det_a": 0.6, "ass_a": 0.62 * value,
                "idf1": 0.7 * value, "mota": 0.5, "id_switches": round(40 * (1 - value)),
                "frames": 900,
            }
            for tracker, value in _SKILL.items()
        }  # fmt: skip
    return result


TIMING = {
    "wall_s": 8.0,
    "bag_s": 40.0,
    "bag_s_per_wall_s": 5.0,
    "stages": {
        "read": {"p50_ms": 1.2, "p99_ms": 2.5, "total_s": 1.2},
        "discovery": {"p50_ms": 4.1, "p99_ms": 7.9, "total_s": 4.3},
        "tracking": {"p50_ms": 0.6, "p99_ms": 1.4, "total_s": 0.7},
        "write": {"p50_ms": 1.5, "p99_ms": 4.0, "total_s": 1.7},
    },
    "rss_peak_mb": 512.0,
    "rss_start_mb": 430.0,
    "machine": "2 cores, test",
}


@lru_cache
def film_strip(seed):
    """JPEG bytes of a strip of pictures."""
    generator = np.random.default_rng(seed)
    picture = cv2.GaussianBlur(generator.integers(0, 256, (150, 1200, 3), np.uint8), (0, 0), 9)
    picture = cv2.normalize(picture, None, 20, 235, cv2.NORM_MINMAX)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def write_bag(directory: Path, found: dict, timing: dict | None = TIMING) -> None:
    """The files of one bag that reports read."""
    (directory / "strips").mkdir(parents=True)
    for index, case in enumerate(found.get("worst", [])):
        (directory / case["strip"]).write_bytes(film_strip(index))
    (directory / "metrics.json").write_text(json.dumps(found, indent=2))
    if timing is not None:
        (directory / "timing.json").write_text(json.dumps(timing))


def write_replay(directory: Path, bags: list[dict], failed: list[dict] = ()) -> Path:
    """A whole replay directory, without the report."""
    for found in bags:
        write_bag(directory / found["bag"], found)
    report = {
        "schema": 1,
        "command": "oc-perception replay bags/* --output out --model monet_demo",
        "commit": "0123abc",
        "versions": {"python": "3.11.2", "torch": "2.6.0", "numpy": "1.26.4"},
        "configuration": {"model": "monet_demo", "tracker": {"tracker": "filter"}},
        "bags": [{"directory": found["bag"], **found} for found in bags],
        "failed": list(failed),
    }
    (directory / "report.json").write_text(json.dumps(report, indent=2))
    return directory
