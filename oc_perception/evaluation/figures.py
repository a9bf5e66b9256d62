# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model sees."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from oc_perception.types import Decomposition


def decomposition_grid(frames: Tensor, decomposition: Decomposition, path: Path) -> None:
    """One row per frame `(B, 3, H, W)`: input, reconstruction, then each slot on white; a PNG at
    2x.
    """
    masks = decomposition.masks.unsqueeze(2)
    slots = masks * decomposition.means + (1 - masks)
    panels = torch.cat([frames.unsqueeze(1), decomposition.composite.unsqueeze(1), slots], 1)
    batch, columns, _, height, width = panels.shape
    canvas = panels.clamp(0, 1).permute(0, 3, 1, 4, 2).reshape(batch * height, columns * width, 3)
    image = (canvas * 255).round().byte().cpu().numpy()
    image = np.ascontiguousarray(image[..., ::-1]).repeat(2, 0).repeat(2, 1)
    if not cv2.imwrite(str(path), image):
        raise OSError(f"Cannot write {path}")
