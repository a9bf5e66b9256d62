# SPDX-License-Identifier: Apache-2.0
"""Named quality-of-service profiles; functions, because rclpy writes overrides into them."""

from __future__ import annotations

from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions


def image() -> QoSProfile:
    """Sensor data in: best effort, which matches every publisher.

    Five deep although only the newest counts: the node keeps the newest itself, and counts what it
    skips. One deep loses frames unseen whenever the thread that takes them is late by a period.
    """
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.BEST_EFFORT
    )


def result() -> QoSProfile:
    """Results, out and in: reliable, ten deep."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.RELIABLE
    )


def overridable() -> QoSOverridingOptions:
    """History, depth and reliability may be changed by `qos_overrides.<topic>...` parameters."""
    return QoSOverridingOptions.with_default_policies()
