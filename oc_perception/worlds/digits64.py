# SPDX-License-Identifier: Apache-2.0
"""`digits64`: the 1797 handwritten digits of 8x8 pixels that come with scikit-learn (extra
`datasets`), for generative models of single pictures where MNIST is not at hand.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from oc_perception.configuration import ConfigurationError

_TEST = 300
_SPLIT_SEED = 0


class Digits64(NamedTuple):
    """Intensities in [0, 1]: `train` `(1497, 64)` and `test` `(300, 64)`."""

    train: Tensor
    test: Tensor


def load_digits64() -> Digits64:
    """Always the same random split. Raises ConfigurationError where scikit-learn is missing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigurationError(
            f"The digits come with scikit-learn ({error}): pip install 'oc_perception[datasets]'"
        ) from error
    images = torch.from_numpy(load_digits().data).float() / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    return Digits64(images[order[_TEST:]], images[order[:_TEST]])


def binarise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every pixel 1 with its intensity as probability, else 0."""
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return (noise < images).to(images.dtype)
