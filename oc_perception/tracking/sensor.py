# SPDX-License-Identifier: Apache-2.0
"""Is this frame an observation? Recognises a missing, black, frozen or flat picture in well under
a millisecond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from oc_perception.types import SensorState


@dataclass(frozen=True)
class SensorMonitorConfig:
    """Thresholds in grey levels (0..255) over all channels.

    A picture is BLACK when its mean is at most `black_level` and it deviates by at most
    `black_deviation` (a covered lens is noisy); CORRUPT when it deviates by at most
    `flat_deviation`, whatever its colour (failed decoder, full saturation). It is FROZEN when it
    repeats the last usable frame bit for bit, `frozen_after_repeats` times or more; 0 switches
    this off, for cameras or simulators without noise that look at scenes without motion.
    """

    black_level: float = 16.0
    black_deviation: float = 6.0
    flat_deviation: float = 0.5
    frozen_after_repeats: int = 1

    def __post_init__(self) -> None:
        for name in ("black_level", "black_deviation", "flat_deviation"):
            if not 0 <= getattr(self, name) <= 255:
                raise ValueError(f"{name} must be in 0..255, not {getattr(self, name)}.")
        if self.frozen_after_repeats < 0:
            raise ValueError("frozen_after_repeats must be 0 (off) or more.")


@dataclass(frozen=True)
class SensorMonitorState:
    """The last usable frame, and how often it has come again since."""

    shape: tuple[int, ...] = ()
    pixels: bytes = b""
    repeats: int = 0


class SensorMonitor:
    """Classifies frames one by one; a pure function of its state."""

    def __init__(self, config: SensorMonitorConfig | None = None) -> None:
        self.config = config or SensorMonitorConfig()

    def initial_state(self) -> SensorMonitorState:
        """No frame seen yet."""
        return SensorMonitorState()

    def step(
        self, state: SensorMonitorState, frame: np.ndarray | None, stamp_ns: int
    ) -> tuple[SensorMonitorState, SensorState]:
        """Classify `frame` `(H, W, 3)` uint8; None is STALE.

        Raises ValueError for any other shape or type.
        """
        if frame is None:
            return state, SensorState.STALE
        check_frame(frame)
        config = self.config
        mean, deviation = _level(frame)
        if mean <= config.black_level and deviation <= config.black_deviation:
            return state, SensorState.BLACK
        if deviation <= config.flat_deviation:
            return state, SensorState.CORRUPT
        if not config.frozen_after_repeats:
            return state, SensorState.OK
        # A copy, because drivers re-use buffers; comparing bytes stops at the first difference.
        pixels = frame.tobytes()
        if frame.shape != state.shape or pixels != state.pixels:
            return SensorMonitorState(frame.shape, pixels), SensorState.OK
        repeats = state.repeats + 1
        frozen = repeats >= config.frozen_after_repeats
        return (
            SensorMonitorState(state.shape, state.pixels, repeats),
            SensorState.FROZEN if frozen else SensorState.OK,
        )


def check_frame(frame: np.ndarray) -> None:
    """Raise ValueError unless `frame` is a `(H, W, 3)` uint8 array with at least one pixel."""
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
        kind = frame.dtype if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"A frame must be a uint8 RGB array, not {kind}; convert it first.")
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"A frame must have shape (height, width, 3), not {frame.shape}.")


def _level(frame: np.ndarray) -> tuple[float, float]:
    """Mean over all, and the largest deviation of one channel from its own mean, on about 64 x 64
    pixels.
    """
    rows, columns = (max(1, size // 64) for size in frame.shape[:2])
    sample = frame[::rows, ::columns].reshape(-1, 3).astype(np.float32)
    means = sample.mean(0)
    variance = (sample * sample).mean(0) - means * means
    return float(means.mean()), math.sqrt(max(0.0, float(variance.max())))
