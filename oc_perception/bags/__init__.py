# SPDX-License-Identifier: Apache-2.0
"""Reading and writing recordings; the only place that imports rosbags."""
