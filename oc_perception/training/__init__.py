# SPDX-License-Identifier: Apache-2.0
"""Training loop, recipes and checkpoints."""
