# SPDX-License-Identifier: Apache-2.0
"""Make the CMake files of the ROS wheels point at this environment's Python and NumPy headers.

The wheels carry the include directories of the machine that built them. Run with the Python of
the virtual environment; running it again changes nothing.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

import numpy

BUILD_MACHINE = r"/opt/python/cp3\d+-cp3\d+"
REPLACEMENTS = (
    (rf"{BUILD_MACHINE}/lib/python3\.\d+/site-packages/numpy/_core/include", numpy.get_include()),
    (rf"{BUILD_MACHINE}/include/python3\.\d+", sysconfig.get_path("include")),
)


def repair(prefix: Path) -> int:
    """Rewrite the files under `prefix`/share/*/cmake; returns how many were changed."""
    changed = 0
    for path in sorted(prefix.glob("share/*/cmake/*.cmake")):
        before = after = path.read_text()
        for pattern, directory in REPLACEMENTS:
            after = re.sub(pattern, lambda _, directory=directory: directory, after)
        if after != before:
            path.write_text(after)
            changed += 1
    return changed


if __name__ == "__main__":
    print(f"repaired {repair(Path(sys.prefix))} CMake files")
