# SPDX-License-Identifier: Apache-2.0
"""MONet against its equations: spec checks that need no training."""

import math

import pytest
import torch
from torch.nn import functional as F

from oc_perception.models.monet import Monet, MonetConfig
from oc_perception.models.registry import ModelError, create_model

SMALL = MonetConfig(
    frame_size=(16, 24),
    num_slots=4,
    attention_channels=(8, 8, 8),
    encoder_channels=(8, 8),
    decoder_channels=8,
    weight_warmup=0.0,
)


@pytest.fixture
def monet() -> Monet:
    torch.manual_seed(0)
    return Monet(SMALL)


@pytest.mark.parametrize("slots", [1, 2, 7])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_masks_sum_to_one_and_stay_finite_for_any_number_of_slots(monet, slots, value):
    log_masks = monet.attend(torch.full((2, 3, 16, 24), value), slots)
    assert log_masks.shape == (2, slots, 16, 24)
    assert log_masks.isfinite().all()
    assert torch.allclose(log_masks.exp().sum(1), torch.ones(2, 16, 24), atol=1e-5)


def test_last_mask_is_the_remaining_scope(monet):
    log_masks = monet.attend(torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)))
    remaining = 1 - log_masks[:, :-1].double().exp().sum(1)
    assert torch.allclose(log_masks[:, -1].double().exp(), remaining, atol=1e-5)


def test_loss_equals_a_naive_float64_evaluation(monet):
    monet = monet.double()
    frames = torch.rand(
        2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )

    def noise():
        return torch.Generator().manual_seed(3)

    terms = monet.loss(frames, noise())
    log_masks = monet.attend(frames)
    masks = log_masks.exp()
    eps = torch.randn(8, SMALL.latent_size, generator=noise()).double()
    total = 0.0
    for b in range(2):
        density = torch.zeros(16, 24, dtype=torch.float64)
        logits = []
        for k in range(4):
            mean, log_scale = monet.vae.encode(frames[b : b + 1], log_masks[b : b + 1, k : k + 1])
            colour, logit = monet.vae.decode(mean + log_scale.exp() * eps[b * 4 + k])
            logits.append(logit[0, 0].double())
            sigma = SMALL.sigma_background if k == 0 else SMALL.sigma_foreground
            normal = torch.distributions.Normal(colour[0].double(), sigma)
            density += masks[b, k] * normal.log_prob(frames[b]).sum(0).exp()
            q = torch.distributions.Normal(mean.double(), log_scale.double().exp())
            prior = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
            total += SMALL.beta * torch.distributions.kl_divergence(q, prior).sum()
        total -= density.log().sum()
        decoded = torch.stack(logits).softmax(0)
        total += SMALL.gamma * F.kl_div(decoded.log(), masks[b], reduction="sum")
    assert terms["loss"].item() == pytest.approx(total.item() / 2, rel=1e-4)


def test_one_slot_reduces_to_a_variational_autoencoder(monet):
    monet.num_slots = 1
    frames = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(4))
    terms = monet.loss(frames, torch.Generator().manual_seed(5))
    assert terms["mask_kl"].item() == pytest.approx(0.0, abs=1e-4)
    mean, log_scale = monet.vae.encode(frames, torch.zeros(1, 1, 16, 24))
    eps = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    colour, _ = monet.vae.decode(mean + log_scale.exp() * eps)
    sigma = SMALL.sigma_background
    expected = ((frames - colour) ** 2).sum() / (2 * sigma**2) + frames.numel() * (
        math.log(sigma) + 0.5 * math.log(2 * math.pi)
    )
    assert terms["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_every_parameter_receives_a_gradient(monet):
    frames = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(6))
    monet.loss(frames, torch.Generator().manual_seed(7))["loss"].backward()
    for name, parameter in monet.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_few_scenes_can_be_learnt():
    torch.manual_seed(1)
    monet = Monet(SMALL)
    frames = torch.full((2, 3, 16, 24), 0.5)
    frames[0, 0, 4:10, 4:10] = 1.0
    frames[1, 2, 6:12, 12:18] = 1.0
    optimizer = torch.optim.Adam(monet.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(8)
    errors = []
    for _ in range(120):
        loss = monet.loss(frames, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert sum(errors[-5:]) / 5 < errors[0] - 300


def test_a_frame_size_that_does_not_fit_the_unet_is_an_error_with_the_reason():
    with pytest.raises(ModelError, match="multiple of 16"):
        create_model("monet", frame_size=[60, 64])
