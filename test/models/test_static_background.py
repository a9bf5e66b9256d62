# SPDX-License-Identifier: Apache-2.0
"""The static background of a standing camera, and MONet in front of it."""

import math

import pytest
import torch

from oc_perception.models.registry import create_model, load_model, save_checkpoint
from oc_perception.models.static_background import MovingCamera, StaticBackground
from oc_perception.pipeline import Discovery

SIZE = (24, 32)
SMALL = {
    "frame_size": list(SIZE),
    "num_slots": 4,
    "latent_size": 4,
    "attention_channels": [8, 8, 8],
    "attention_hidden": 16,
    "encoder_channels": [8, 8],
    "encoder_hidden": 16,
    "decoder_channels": 8,
    "object_size": [0.3, 0.15],
    "static_background": True,
}


def scene(seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")[0]


def walk(background, moments=60, crowd=0.0, noise=0.004):
    """Moments `(N, 3, 3, H, W)` of a dark square that walks through; in a `crowd` share of them
    dark coats that differ a little from frame to frame hide the right part.
    """
    generator = torch.Generator().manual_seed(1)
    frames = background.expand(moments, 3, -1, -1, -1).clone()
    frames += noise * torch.randn(frames.shape, generator=generator)
    for n in range(moments):
        for t in range(3):
            column = (n + 5 * t) % (SIZE[1] - 5)
            frames[n, t, :, 8:16, column : column + 4] = 0.05
            if n < crowd * moments:
                coat = 0.1 + 0.1 * torch.rand(3, 6, 8, generator=generator)
                frames[n, t, :, 4:10, 20:28] = coat
    return frames.clamp(0, 1)


@pytest.fixture
def fitted():
    background = StaticBackground(SIZE, (0.3, 0.15))
    background.fit(walk(scene()))
    return background


def test_what_moves_leaves_no_trace(fitted):
    assert (fitted.image - scene()).abs().max() < 0.01
    assert fitted.deviation.median() < 0.02


def test_a_crowd_that_hides_a_place_most_of_the_time_is_not_the_background():
    frames = walk(scene(), crowd=0.7)
    background = StaticBackground(SIZE, (0.3, 0.15))
    background.fit(frames)
    place = (slice(None), slice(5, 9), slice(21, 27))
    naive = frames[:, 1].median(0).values
    assert (naive - scene())[place].abs().mean() > 0.2
    assert (background.image - scene())[place].abs().mean() < 0.02


def test_the_background_is_shown_in_the_light_of_each_frame(fitted):
    lit = 0.7 * scene() + 0.1
    lit[:, 4:16, 4:12] = 0.9  # an object must not change the light
    shown = fitted(torch.stack([lit, scene()]))
    free = torch.ones(SIZE, dtype=torch.bool)
    free[4:16, 4:12] = False
    assert (shown[0] - lit)[:, free].abs().max() < 0.02
    assert (shown[1] - scene()).abs().max() < 0.02


def test_a_moving_camera_is_told_with_the_cure():
    frames = torch.stack([scene(seed).expand(3, -1, -1, -1) for seed in range(20)])
    with pytest.raises(MovingCamera, match=r"static_background=false"):
        StaticBackground(SIZE, (0.3, 0.15)).fit(frames)


@pytest.fixture
def model(fitted):
    torch.manual_seed(0)
    model = create_model("monet", **SMALL)
    model.background.load_state_dict(fitted.state_dict())
    return model


def frames(batch=3):
    result = scene().repeat(batch, 1, 1, 1)
    for b in range(batch):
        result[b, :, 6:14, 4 + 8 * b : 9 + 8 * b] = 0.95
    return result


def test_masks_sum_to_one_and_the_background_is_slot_zero(model):
    _, decomposition = model.step(None, frames())
    assert decomposition.background_slot == 0
    total = decomposition.log_masks.logsumexp(1)
    assert torch.allclose(total, torch.zeros_like(total), atol=1e-5)
    assert torch.equal(decomposition.means[:, 0], model.background(frames()))
    assert decomposition.embeddings.shape == (3, 4, 4)
    assert not decomposition.embeddings[:, 0].any()
    _, masks_only = model.step(None, frames(), decode=False)
    assert torch.equal(masks_only.log_masks, decomposition.log_masks)


def test_the_first_slot_looks_where_an_object_of_the_size_covers_most_of_the_change(model):
    picture = scene().repeat(1, 1, 1, 1)
    picture[:, :, 3, 3] = 1.0  # a speck, as different
    picture[:, :, 8:16, 20:25] = 1.0
    first = model.attend(picture)[0, 1]
    row, column = divmod(int(first.argmax()), SIZE[1])
    assert 6 <= row <= 17
    assert 17 <= column <= 27
    assert first[3, 3] < first[12, 22] - 5


def test_the_loss_is_eq_3_with_the_background_for_slot_zero(model):
    config, batch = model.config, frames()
    terms = model.loss(batch, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(9, 4, generator=generator).view(3, 3, 4)
    log_masks = model.attend(batch)
    reconstruction = latent_kl = mask_kl = 0.0
    sigma_0 = (model.background.deviation[0].double() ** 2 + config.sigma_background**2).sqrt()
    for b in range(3):
        means, logits = [model.background(batch)[b].double()], [torch.zeros(SIZE).double()]
        for k in range(1, 4):
            mean, log_scale = model.vae.encode(batch[b : b + 1], log_masks[b : b + 1, k : k + 1])
            colour, logit = model.vae.decode(mean + log_scale.exp() * noise[b, k - 1])
            means.append(colour[0].double())
            logits.append(logit[0, 0].double())
            latent_kl += 0.5 * (mean**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        pixel = 0.0
        for k in range(4):
            sigma = sigma_0 if k == 0 else torch.full(SIZE, config.sigma_foreground).double()
            squared = ((batch[b].double() - means[k]) ** 2).sum(0)
            density = (-squared / (2 * sigma**2)).exp() / (sigma * math.sqrt(2 * math.pi)) ** 3
            pixel = pixel + log_masks[b, k].double().exp() * density
        reconstruction -= pixel.log().sum()
        decoded = torch.stack(logits).log_softmax(0)
        masks = log_masks[b].double()
        mask_kl += (masks.exp() * (masks - decoded)).sum()
    assert terms["reconstruction"].item() == pytest.approx((reconstruction / 3).item(), rel=1e-4)
    assert terms["latent_kl"].item() == pytest.approx((latent_kl / 3).item(), rel=1e-4)
    assert terms["mask_kl"].item() == pytest.approx((mask_kl / 3).item(), rel=1e-3)


def test_training_moves_what_is_no_background_into_the_other_slots(model):
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(frames(), generator, 0.0)["loss"].backward()
        optimizer.step()
    _, decomposition = model.step(None, frames())
    owner = decomposition.log_masks.argmax(1)
    for b in range(3):
        there = torch.zeros(SIZE, dtype=torch.bool)
        there[6:14, 4 + 8 * b : 9 + 8 * b] = True
        assert (owner[b][there] > 0).float().mean() > 0.9
        assert (owner[b][~there] == 0).float().mean() > 0.9


def test_a_checkpoint_carries_the_background_into_the_pipeline(model, tmp_path):
    save_checkpoint(model, tmp_path / "run", torch.float16)
    loaded = load_model(tmp_path / "run")
    assert (loaded.background.image - scene()).abs().max() < 0.01
    discovery = Discovery(loaded)
    picture = (frames(1)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    _, segmentation = discovery.step(discovery.initial_state(), picture, 1_000_000_000)
    backgrounds = [d.label for d in segmentation.detections if d.is_background]
    assert backgrounds in ([], [0])  # an untrained net may leave it nothing


def test_without_the_option_nothing_is_added_to_the_weights():
    names = set(create_model("monet", **{**SMALL, "static_background": False}).state_dict())
    assert not any("background" in name or "place" in name for name in names)


@pytest.mark.parametrize(
    ("change", "cause"),
    [({"num_slots": 1}, "2 with static_background"), ({"object_size": [0.0, 0.1]}, "object_size")],
)
def test_bad_settings_name_the_cause(change, cause):
    with pytest.raises(ValueError, match=cause):
        create_model("monet", **{**SMALL, **change})
