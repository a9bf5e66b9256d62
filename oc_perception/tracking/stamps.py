# SPDX-License-Identifier: Apache-2.0
"""Which stamps are in order: the one rule for every state that is anchored in time."""

from __future__ import annotations


class StampError(ValueError):
    """A stamp that is late, a duplicate, or not positive; nothing was changed."""


def check_stamp(last_ns: int, stamp_ns: int, reset_threshold_s: float) -> bool:
    """Whether `stamp_ns` is so far behind `last_ns` (0: none yet) that the clock was reset.

    Raises StampError for a stamp that is not positive, late, or a duplicate.
    """
    if stamp_ns <= 0:
        raise StampError(f"Stamp {stamp_ns} ns is not positive; does the camera driver set it?")
    behind_s = (last_ns - stamp_ns) * 1e-9
    if behind_s > reset_threshold_s:
        return True
    if last_ns and behind_s >= 0:
        kind = "a duplicate of" if stamp_ns == last_ns else f"{behind_s:.4f} s behind"
        raise StampError(f"Stamp {stamp_ns} ns is {kind} the last observation; frame ignored.")
    return False
