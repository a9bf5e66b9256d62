# SPDX-License-Identifier: Apache-2.0
"""Motion models, association, track life cycle and blackout detection."""
