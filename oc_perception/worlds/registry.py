# SPDX-License-Identifier: Apache-2.0
"""Build a procedural world by name.

A world has `generator` (its only source of randomness) and `sample(height, width)`, which draws a
fresh batch with `images` `(B, 3, H, W)` in [0, 1] and `labels` `(B, H, W)` int64 (0 background);
still worlds return `Scenes`, with factors for each object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oc_perception.configuration import ConfigurationError, from_mapping, nearest
from oc_perception.worlds.published import Published, PublishedConfig
from oc_perception.worlds.rooms import Rooms, RoomsConfig
from oc_perception.worlds.sprites import Sprites, SpritesConfig
from oc_perception.worlds.tabletop import Tabletop, TabletopConfig
from oc_perception.worlds.tetrominoes import (
    AmbiguousTetrominoes,
    AmbiguousTetrominoesConfig,
    Tetrominoes,
    TetrominoesConfig,
)

WORLDS = {
    "ambiguous_tetrominoes": (AmbiguousTetrominoesConfig, AmbiguousTetrominoes),
    "published": (PublishedConfig, Published),
    "rooms": (RoomsConfig, Rooms),
    "sprites": (SpritesConfig, Sprites),
    "tabletop": (TabletopConfig, Tabletop),
    "tetrominoes": (TetrominoesConfig, Tetrominoes),
}


def create_world(
    name: str, config: Mapping[str, Any], batch_size: int, seed: int, device: str = "cpu"
) -> Tabletop:
    """A seeded batch of scenes. Raises ConfigurationError for an unknown name or key."""
    if name not in WORLDS:
        raise ConfigurationError(f"Unknown world {name!r}.{nearest(name, WORLDS)}")
    config_class, world_class = WORLDS[name]
    return world_class(from_mapping(config_class, config, name), batch_size, seed, device)
