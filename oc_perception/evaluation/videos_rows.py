# SPDX-License-Identifier: Apache-2.0
"""What is asked of AIR and SQAIR, beside what their training seeds reach.

Asked are less on `mini_shapes`, which is learned on a CPU, than on full-size worlds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

SMALL_WORLD = "mini_shapes"
LONG_RUNS = (30, 100)
"""Frames of long sequences, after training on shorter ones."""


class Group(NamedTuple):
    """Training seeds of one recipe: `label` tells it from others, `runs` have their `seed`,
    `scores` by number of frames (those of `examine_video`) and `evidence`.
    """

    label: str
    architecture: str
    runs: Sequence[Mapping[str, Any]]


class Asked(NamedTuple):
    """A `limit` (None: reported only) that values should be `below` or above; `strictly`: not
    reach.
    """

    limit: float | None = None
    below: bool = False
    strictly: bool = False

    def met(self, value: float | None) -> bool | None:
        """None where nothing is asked."""
        if self.limit is None:
            return None
        if value is None:
            return False
        if value == self.limit:
            return not self.strictly
        return (value < self.limit) == self.below

    def __str__(self) -> str:
        if self.limit is None:
            return "-"
        sign = ("<" if self.below else ">") + ("" if self.strictly else "=")
        return f"{sign} {self.limit:g}"


class Row(NamedTuple):
    """`values` of the seeds, None where there is none; their `mean` and the `worst` of them."""

    name: str
    asked: Asked
    values: Sequence[float | None]

    @property
    def known(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        return fmean(self.known) if self.known else None

    @property
    def worst(self) -> float | None:
        if not self.known or None in self.values:
            return None
        return max(self.known) if self.asked.below else min(self.known)

    def as_dict(self) -> dict[str, Any]:
        """For a report in JSON."""
        met = [self.asked.met(value) for value in self.values]
        return {
            "name": self.name,
            "asked": str(self.asked),
            "seeds": list(self.values),
            "mean": self.mean,
            "worst": self.worst,
            "met": None if self.asked.limit is None else sum(map(bool, met)),
        }


def tables(
    groups: Sequence[Group], world: str, frames: Sequence[int]
) -> Iterator[tuple[Group, list[Row]]]:
    """For each group its rows. Of `frames`, the first number is that of short sequences. Groups
    that track are compared with the first group of AIR, by the mean over its seeds.
    """
    small = world == SMALL_WORLD
    base = next((group for group in groups if group.architecture == "air"), None)
    for group in groups:
        if group.architecture == "air":
            yield group, [*_counting(group, frames, Asked(0.85 if small else 0.95)),
                          *_bounds(group, frames[0])]  # fmt: skip
        else:
            yield (
                group,
                [
                    *_counting(group, frames, Asked(0.9 if small else 0.97)),
                    *([] if base is None else _comparison(group, base, frames[0], small)),
                    *_tracking(group, frames, small),
                    *_forecasts(group, frames[0]),
                    *_longer(group, frames, small),
                    *_bounds(group, frames[0]),
                ],
            )


def _counting(group: Group, frames: Sequence[int], asked: Asked) -> list[Row]:
    short = frames[0]
    return [
        Row(f"counting accuracy, T = {short}", asked, _score(group, short, "counting_accuracy")),
        Row("- in crowded frames", Asked(), _score(group, short, "counting_accuracy_crowded")),
    ]


def _comparison(group: Group, base: Group, short: int, small: bool) -> list[Row]:
    def difference(name: str) -> list[float | None]:
        return _each(group, base, short, name, lambda own, other: own - other)

    above = Asked(0.0, strictly=True) if small else Asked(0.03)
    ratio = _each(group, base, short, "kl", lambda own, other: own / other)
    return [
        Row(f"- minus {base.label}, same frames", above, difference("counting_accuracy")),
        Row(
            f"- minus {base.label}, crowded frames", Asked(),
            difference("counting_accuracy_crowded"),
        ),
        Row(f"KL over KL of {base.label}", Asked(0.7 if small else 0.5, below=True), ratio),
    ]  # fmt: skip


def _tracking(group: Group, frames: Sequence[int], small: bool) -> list[Row]:
    short = frames[0]
    return [
        Row(
            "identity switches per 100", Asked(8 if small else 5, below=True, strictly=True),
            _score(group, short, "id_switches_per_100"),
        ),
        Row(
            "discoveries over ideal", Asked(2 if small else 1.7, below=True),
            _score(group, short, "discoveries_over_ideal"),
        ),
        Row(
            "discoveries per frame after the first", Asked(0.05, below=True),
            _score(group, short, "discoveries_later"),
        ),
        Row("objects in view with a box", Asked(), _score(group, short, "tracked_share")),
        Row("IoU of these boxes", Asked(), _score(group, short, "box_iou")),
    ]  # fmt: skip


def _forecasts(group: Group, short: int) -> list[Row]:
    ades = _score(group, short, "forecast_ade_3")

    def over(name: str) -> list[float | None]:
        others = _score(group, short, f"forecast_{name}_3")
        return [_divided(ade, other) for ade, other in zip(ades, others, strict=True)]

    frozen, straight = Asked(1.0, below=True, strictly=True), Asked(1.2, below=True)
    return [
        Row("forecast at +3: centre ADE, widths", Asked(below=True), ades),
        Row("- over frozen, own places", frozen, over("frozen")),
        Row("- over frozen, true places", frozen, over("frozen_truth")),
        Row("- over constant velocity, own places", straight, over("velocity")),
        Row("- over constant velocity, true places", straight, over("velocity_truth")),
        Row(
            "forecasts with a constant count", Asked(0.8),
            _score(group, short, "forecast_constant_count"),
        ),
    ]  # fmt: skip


def _longer(group: Group, frames: Sequence[int], small: bool) -> list[Row]:
    short = _score(group, frames[0], "counting_accuracy")
    rows = []
    for length in frames[1:]:
        counted = _score(group, length, "counting_accuracy")
        drop = [
            None if a is None or b is None else a - b for a, b in zip(short, counted, strict=True)
        ]
        limit = None if small or length != LONG_RUNS[0] else 0.05
        rows += [
            Row(f"counting accuracy, T = {length}", Asked(), counted),
            Row(f"- drop from T = {frames[0]}", Asked(limit, below=True, strictly=True), drop),
            Row(
                f"identity switches per 100, T = {length}", Asked(below=True),
                _score(group, length, "id_switches_per_100"),
            ),
            Row(
                f"discoveries over ideal, T = {length}", Asked(below=True),
                _score(group, length, "discoveries_over_ideal"),
            ),
        ]  # fmt: skip
    return rows


def _bounds(group: Group, short: int) -> list[Row]:
    """In nats per sequence but for the last but one, which is per frame."""
    empty = [_divided(kl, short) for kl in _score(group, short, "kl_empty")]
    evidence = [run["evidence"] for run in group.runs]
    below = Asked(below=True)
    return [
        Row("KL, nats", below, _score(group, short, "kl")),
        Row("gap of the reconstruction, nats", below, _score(group, short, "log_likelihood_gap")),
        Row("gap of the evidence, nats", below, [part["log_evidence_gap"] for part in evidence]),
        Row("KL of empty scenes, nats per frame", Asked(1, below=True, strictly=True), empty),
        Row("evidence minus ELBO, nats", below, [part["encoder_kl"] for part in evidence]),
    ]


def _score(group: Group, frames: int, name: str) -> list[float | None]:
    return [run["scores"][str(frames)].get(name) for run in group.runs]


def _each(
    group: Group, base: Group, frames: int, name: str, compare: Callable[[float, float], float]
) -> list[float | None]:
    """Each seed's score compared with the mean of those of `base`, None where one is missing."""
    others = [value for value in _score(base, frames, name) if value is not None]
    return [
        None if own is None or not others else compare(own, fmean(others))
        for own in _score(group, frames, name)
    ]


def _divided(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else value / other


def shown(group: Group, rows: Sequence[Row]) -> str:
    """For people: what is asked, each seed, mean, worst, and how many seeds do what is asked."""
    width = max(len(row.name) for row in rows)
    seeds = [f"seed {run['seed']}" for run in group.runs]
    heading = ["asked", *seeds, "mean", "worst", "reached"]
    lines = [f"{group.label:{width}}" + "".join(f"{name:>9}" for name in heading)]
    for row in rows:
        report = row.as_dict()["met"]
        cells = [str(row.asked), *map(_number, (*row.values, row.mean, row.worst)),
                 "" if report is None else f"{report} of {len(seeds)}"]  # fmt: skip
        lines.append(f"{row.name:{width}}" + "".join(f"{cell:>9}" for cell in cells).rstrip())
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """With as many digits as a score between 0 and 1 needs, fewer for large ones."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
