# SPDX-License-Identifier: Apache-2.0
"""A world of points at constant velocity, and models of two weights that learn it from motions and
from clips.

As a program, for `torchrun`: train the recipe in the file of the first argument into the directory
of the second, until the step of the third.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from oc_perception.configuration import from_mapping, read_yaml
from oc_perception.models import registry
from oc_perception.training import trainer
from oc_perception.training.recipe import Recipe
from oc_perception.types import Motion
from oc_perception.worlds.registry import WORLDS
from oc_perception.worlds.scenes import World

DT_S = 0.1


class Points(World):
    """Two points each; a picture is as bright as the points are far to the right."""

    @dataclass(frozen=True)
    class Config:
        speed: float = 1.0

    def sample_motion(self, num_frames):
        shape = (self.batch_size, 1, 2, 2)
        speed = self.config.speed
        velocities = self._uniform(-speed, speed, *shape).expand(-1, num_frames, -1, -1)
        times_s = DT_S * torch.arange(num_frames, device=self.device)
        positions = self._uniform(0, 1, *shape) + velocities * times_s[:, None, None]
        present = torch.ones(positions.shape[:3], dtype=torch.bool, device=self.device)
        features = positions.new_zeros(*present.shape, 0)
        sizes = torch.full_like(positions, 0.1)
        return Motion(positions, velocities, sizes, features, present, present, DT_S)

    def draw(self, motion, height, width):
        brightness = motion.positions[..., 0].mean(2)[:, :, None, None, None]
        images = brightness.expand(-1, -1, 3, height, width)
        return images, images[:, :, 0].long()


@dataclass(frozen=True)
class ToyConfig:
    num_frames: int = 4
    blur: float = 0.01


class ToyMotion(nn.Module):
    """The next positions are `gain` times the velocity further, and `offset`."""

    task = "motion"

    def __init__(self, config):
        super().__init__()
        self.config, self.num_frames = config, config.num_frames
        self.gain, self.offset = nn.Parameter(torch.rand(())), nn.Parameter(torch.rand(2))

    def errors(self, motion, generator):
        """Squared distances `(B,)`; what is seen of the positions is blurred."""
        seen = motion.positions[:, :-1]
        noise = torch.randn(seen.shape, generator=generator, device=seen.device)
        expected = seen + self.config.blur * noise + self.gain * motion.velocities[:, 1:]
        return (expected + self.offset - motion.positions[:, 1:]).square().mean((1, 2, 3))

    def loss(self, motion, generator, progress):
        error = self.errors(motion, generator).mean()
        return {"loss": error, "halved": error / 2}

    def score(self, motion, generator):
        return {"error": self.errors(motion, generator).mean().item(), "first": first(motion)}


class ToyTracker(nn.Module):
    """The points stand `gain` times as far to the right as the picture is bright."""

    task, frame_size = "tracking", (4, 6)

    def __init__(self, config):
        super().__init__()
        self.config, self.num_frames = config, config.num_frames
        self.gain, self.offset = nn.Parameter(torch.rand(())), nn.Parameter(torch.rand(()))

    def loss(self, clip, generator, progress):
        assert clip.images.shape[1:] == (self.num_frames, 3, *self.frame_size)
        places = clip.motion.positions[..., 0].mean(2)
        expected = self.gain * clip.images.mean((2, 3, 4)) + self.offset
        blur = torch.randn(places.shape, generator=generator, device=places.device)
        return {"loss": (expected - places + self.config.blur * blur).square().mean()}

    def score(self, clip, generator):
        return {"error": self.loss(clip, generator, 1.0)["loss"].item()}


def first(motion):
    """NaN in a batch of three sequences, to see that means leave it out."""
    return float("nan") if len(motion.positions) == 3 else motion.positions[:, 0].mean().item()


def register(models=registry._FACTORIES, worlds=WORLDS):
    """Make the toys known to recipes."""
    models["toy_motion"] = lambda **config: ToyMotion(from_mapping(ToyConfig, config))
    models["toy_tracking"] = lambda **config: ToyTracker(from_mapping(ToyConfig, config))
    worlds["points"] = Points


if __name__ == "__main__":
    register()
    plan, directory, step = sys.argv[1:]
    recipe = from_mapping(Recipe, read_yaml(Path(plan)))
    trainer.train(recipe, Path(directory), stop_at_step=int(step))
