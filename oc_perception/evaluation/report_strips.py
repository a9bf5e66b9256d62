# SPDX-License-Identifier: Apache-2.0
"""Film strips inside a report: the worst of all bags first, and no more than a mail can carry."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np

from oc_perception.evaluation.report_data import BagRun, Run

STRIP_BYTES = 2_500_000
"""Of JPEG data in one report; further film strips stay in their folders."""
_WORST = 6
_STRIPS_PER_BAG = 2


class Strips:
    """Film strips as data URIs, each shown once, until the report is full."""

    def __init__(self) -> None:
        self._room = STRIP_BYTES
        self._shown: set[tuple[str, str]] = set()

    def show(self, bag: BagRun, case: dict[str, Any]) -> dict[str, Any] | None:
        """A case with its picture; None where the report is full. A lost picture is said so."""
        path = bag.directory / case["strip"]
        shown = {"bag": bag.name, "step": case["step"], "caption": case["caption"], "data": ""}
        data = path.read_bytes() if path.is_file() else b""
        if len(data) > self._room:
            return None
        self._shown.add((bag.anchor, case["strip"]))
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if picture is None:
            return {**shown, "absent": f"{case['strip']} is missing or damaged."}
        self._room -= len(data)
        height, width = picture.shape[:2]
        encoded = base64.b64encode(data).decode()
        uri = f"data:image/jpeg;base64,{encoded}"
        return {**shown, "data": uri, "height": height, "width": width}

    def of_bag(self, bag: BagRun) -> list[dict[str, Any]]:
        """The worst cases of a bag that were not shown before."""
        cases = [
            case
            for case in bag.metrics.get("worst", [])
            if (bag.anchor, case["strip"]) not in self._shown
        ]
        shown = (self.show(bag, case) for case in cases[:_STRIPS_PER_BAG])
        return [case for case in shown if case]

    def left(self, bag: BagRun) -> int:
        """How many of a bag are not in the report."""
        names = {(bag.anchor, case["strip"]) for case in bag.metrics.get("worst", [])}
        return len(names - self._shown)


def worst(run: Run, strips: Strips) -> list[dict[str, Any]]:
    """The worst cases over all bags: the worst of each bag before the second of any."""
    ranked = [
        (rank, -case["score"], number, case)
        for number, bag in enumerate(run.bags)
        for rank, case in enumerate(bag.metrics.get("worst", []))
    ]
    ranked.sort(key=lambda entry: entry[:3])
    shown = (strips.show(run.bags[number], case) for *_, number, case in ranked[:_WORST])
    return [case for case in shown if case]
