# SPDX-License-Identifier: Apache-2.0
"""Object-centric perception: discover, track and keep predicting objects, without labels."""
