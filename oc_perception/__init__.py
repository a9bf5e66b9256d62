# SPDX-License-Identifier: Apache-2.0
"""Object-centric perception: discover, track and keep predicting objects, without labels."""

import pkgutil

# The messages are generated into the installed package, not into the source tree. Joining the two
# directories makes `oc_perception.msg` importable also when Python meets the source tree first.
__path__ = pkgutil.extend_path(__path__, __name__)
