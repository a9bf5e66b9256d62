# SPDX-License-Identifier: Apache-2.0
"""No random configuration makes a value that is not finite, in float32 nor under bfloat16
autocast, on ordinary pictures nor on extreme ones.

Here 2 configurations of each trainable model learn for 20 steps. The whole check, 20
configurations and 200 steps each, takes about half an hour of CPU time:

    OC_ROBUSTNESS=full pytest test/training/test_robustness.py
"""

import os
import random

import pytest
import torch
from torch import nn

from oc_perception.models.registry import create_model, model_names

FULL = os.environ.get("OC_ROBUSTNESS") == "full"
CONFIGURATIONS, STEPS = (20, 200) if FULL else (2, 20)
TRAINABLE = [name for name in model_names("discovery") if [*create_model(name).parameters()]]


def monet(draw):
    blocks = draw.choice([2, 3])
    return {
        "attention_channels": [draw.choice([4, 8]) for _ in range(blocks)],
        "attention_hidden": 16,
        "encoder_channels": [8, 8],
        "encoder_hidden": 16,
        "decoder_channels": 8,
        "latent_size": draw.choice([1, 8]),
        "sigma_background": draw.uniform(0.02, 0.5),
        "sigma_foreground": draw.uniform(0.02, 0.5),
        "beta": draw.choice([0.0, 0.5, 5.0]),
        "gamma": draw.choice([0.0, 0.5, 5.0]),
        "weight_warmup": draw.choice([0.0, 0.5]),
    }


def iodine(draw):
    return {
        "num_iterations": draw.randint(1, 4),
        "latent_size": draw.choice([1, 8]),
        "decoder_channels": [8, 8],
        "encoder_channels": [8, 8],
        "encoder_hidden": 16,
        "recurrent_size": draw.choice([0, 16]),
        "likelihood": draw.choice(["mixture", "composite"]),
        "density": draw.choice(["gaussian", "logistic"]),
        "sigma": draw.uniform(0.02, 0.5),
    }


def slot_attention(draw):
    return {
        "slot_size": draw.choice([4, 16]),
        "num_iterations": draw.randint(1, 4),
        "mlp_hidden": 16,
        "kernel_size": draw.choice([3, 5]),
        "encoder_channels": [8, 8],
        "encoder_stride": draw.choice([1, 2]),
        "decoder_channels": [8, 8],
        "decoder_strides": draw.choice([[1, 1], [2, 1], [2, 2]]),
        "predictor_heads": draw.choice([0, 2]),
        "initial": draw.choice(["gaussian", "learned"]),
        "implicit": draw.choice([False, True]),
    }


CONFIGURE = {"monet": monet, "iodine": iodine, "slot_attention": slot_attention}


def pictures(kind, size, generator):
    """`(2, 3, H, W)`, of which only the first kind is anything like a photograph."""
    shape = (2, 3, *size)
    if kind == "blocks":
        return (
            torch.rand(2, 3, 4, 4, generator=generator)
            .repeat_interleave(size[0] // 4, 2)
            .repeat_interleave(size[1] // 4, 3)
        )
    if kind == "noise":
        return torch.rand(shape, generator=generator)
    if kind == "checks":
        return torch.randint(2, shape, generator=generator).float()
    return torch.full(shape, {"black": 0.0, "white": 1.0}[kind])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("number", range(CONFIGURATIONS))
@pytest.mark.parametrize("name", TRAINABLE)
def test_no_configuration_makes_values_that_are_not_finite(name, number, dtype):
    draw = random.Random(f"{name} {number}")
    config = {
        "frame_size": draw.choice([[16, 16], [16, 24]]),
        "num_slots": draw.randint(1, 6),
        **CONFIGURE.get(name, lambda _: {})(draw),
    }
    rate = 10 ** draw.uniform(-4, -2)
    torch.manual_seed(number)
    model = create_model(name, **config).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    generator = torch.Generator().manual_seed(number)
    for step in range(STEPS):
        kind = draw.choice(["blocks", "blocks", "noise", "checks", "black", "white"])
        frames = pictures(kind, model.frame_size, generator)
        frames = frames.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            terms = model.loss(frames, generator, step / STEPS)
        optimizer.zero_grad()
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        where = f"{config}, learning rate {rate}, step {step}, {kind}"
        assert all(value.isfinite().all() for value in terms.values()), f"{where}: {terms}"
        assert norm.isfinite(), where
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
