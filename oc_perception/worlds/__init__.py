# SPDX-License-Identifier: Apache-2.0
"""Seeded procedural worlds: images with label maps, identities, depth and factors."""
