# SPDX-License-Identifier: Apache-2.0
"""Where the files that come with the package lie: config/, launch/, msg/ and weights/."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = "oc_perception"


def share_directory() -> Path:
    """The directory that holds config/, msg/ and weights/.

    A source checkout comes first (also behind a symlink install or an editable install, so that
    edits are live), then the colcon overlay, then pip's prefix. Raises FileNotFoundError when
    there is none.
    """
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "package.xml").is_file():
        return checkout
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    candidates = [Path(prefix, "share", PACKAGE) for prefix in prefixes]
    # pip puts data files under the prefix that also holds lib/pythonX.Y/site-packages.
    candidates += [parent / "share" / PACKAGE for parent in checkout.parents]
    candidates.append(Path(sys.prefix, "share", PACKAGE))
    for candidate in candidates:
        if (candidate / "config").is_dir():
            return candidate
    raise FileNotFoundError(
        f"The data files of {PACKAGE} are in none of {', '.join(map(str, candidates))}. "
        "Install the package with pip or colcon, or run it from its source tree."
    )
