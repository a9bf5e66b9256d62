# SPDX-License-Identifier: Apache-2.0
"""Metrics, benchmarks and the pictures that go with them."""
