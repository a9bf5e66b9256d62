# SPDX-License-Identifier: Apache-2.0
"""Build a world by name.

`sample(height, width)` draws a fresh batch: `Scenes`, or in `tabletop`, which moves, frames with
`images` and `labels` alike but without factors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from oc_perception.configuration import ConfigurationError, from_mapping, nearest
from oc_perception.worlds.digits import Digits
from oc_perception.worlds.discs import Discs
from oc_perception.worlds.mini_shapes import MiniShapes
from oc_perception.worlds.published import Published
from oc_perception.worlds.recorded_tracks import RecordedTracks
from oc_perception.worlds.recordings import Recordings
from oc_perception.worlds.rooms import Rooms
from oc_perception.worlds.scenes import World
from oc_perception.worlds.sprites import Sprites
from oc_perception.worlds.streets import Streets
from oc_perception.worlds.tabletop import Tabletop
from oc_perception.worlds.tetrominoes import (
    AmbiguousTetrominoes,
    Tetrominoes,
)
from oc_perception.worlds.trajectories import Trajectories

WORLDS = {
    "ambiguous_tetrominoes": AmbiguousTetrominoes,
    "digits": Digits,
    "discs": Discs,
    "mini_shapes": MiniShapes,
    "published": Published,
    "recordings": Recordings,
    "recorded_tracks": RecordedTracks,
    "rooms": Rooms,
    "sprites": Sprites,
    "streets": Streets,
    "tabletop": Tabletop,
    "tetrominoes": Tetrominoes,
    "trajectories": Trajectories,
}


def create_world(
    name: str, config: Mapping[str, Any], batch_size: int, seed: int, device: str = "cpu"
) -> World:
    """A seeded batch of scenes. Raises ConfigurationError for an unknown name or key."""
    if name not in WORLDS:
        raise ConfigurationError(f"Unknown world {name!r}.{nearest(name, WORLDS)}")
    world = WORLDS[name]
    return world(from_mapping(world.Config, config, name), batch_size, seed, device)


def held_out(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for what is kept from training, where the world splits recordings by time;
    procedural worlds are fresh at each draw.
    """
    world = WORLDS.get(name)
    settings = {field.name for field in dataclasses.fields(world.Config)} if world else set()
    if {"split", "validation"} <= settings and config.get("split", "train") == "train":
        return {**config, "split": "validation"}
    return dict(config)
