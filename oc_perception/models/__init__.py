# SPDX-License-Identifier: Apache-2.0
"""Object-discovery models, one file per system."""
