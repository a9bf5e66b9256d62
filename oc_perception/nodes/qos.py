# SPDX-License-Identifier: Apache-2.0
"""Named quality-of-service profiles. Functions, because rclpy writes parameter overrides into the profile."""

from __future__ import annotations

from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions


def image() -> QoSProfile:
    """Sensor data in: best effort, only the newest; matches every publisher."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT
    )


def result() -> QoSProfile:
    """Results, out and in: reliable, ten deep."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.RELIABLE
    )


def overridable() -> QoSOverridingOptions:
    """History, depth and reliability may be changed by `qos_overrides.<topic>...` parameters."""
    return QoSOverridingOptions.with_default_policies()
