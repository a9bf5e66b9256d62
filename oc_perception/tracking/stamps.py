# SPDX-License-Identifier: Apache-2.0
"""Which stamps are in order: the one rule for every state that is anchored in time."""

from __future__ import annotations


class StampError(ValueError):
    """A stamp that is late, a duplicate, or not positive; nothing was changed."""


class DuplicateStampError(StampError):
    """The stamp of an observation that was taken before."""

    def __init__(self, stamp_ns: int) -> None:
        super().__init__(f"Stamp {stamp_ns} ns is a duplicate of an observation; frame ignored.")


def check_stamp(
    last_ns: int, stamp_ns: int, reset_threshold_s: float, reorder_window_s: float = 0.0
) -> bool:
    """Whether `stamp_ns` is so far behind `last_ns` (0: none yet) that the clock was reset.

    Raises StampError for a stamp that is not positive, or late by more than `reorder_window_s`,
    DuplicateStampError for the last stamp itself.
    """
    if stamp_ns <= 0:
        raise StampError(f"Stamp {stamp_ns} ns is not positive; does the camera driver set it?")
    behind_s = (last_ns - stamp_ns) * 1e-9
    if behind_s > reset_threshold_s:
        return True
    if stamp_ns == last_ns:
        raise DuplicateStampError(stamp_ns)
    if last_ns and behind_s > max(0.0, reorder_window_s):
        raise StampError(
            f"Stamp {stamp_ns} ns is {behind_s:.4f} s behind the last observation; frame ignored."
        )
    return False
