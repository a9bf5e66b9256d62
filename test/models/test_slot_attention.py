# SPDX-License-Identifier: Apache-2.0
"""Slot Attention against its algorithm: spec checks that need no training."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from oc_perception.models.registry import ModelError, create_model
from oc_perception.models.slot_attention import Corrector, SlotAttention, SlotAttentionConfig

SMALL = SlotAttentionConfig(
    frame_size=(13, 18),
    num_slots=4,
    slot_size=16,
    mlp_hidden=24,
    kernel_size=3,
    encoder_channels=(8, 8),
    decoder_channels=(8, 8),
    decoder_strides=(2, 1),
)
SEQUENTIAL = dataclasses.replace(SMALL, predictor_heads=2)


def build(config: SlotAttentionConfig = SMALL, **changes: object) -> SlotAttention:
    torch.manual_seed(0)
    return SlotAttention(dataclasses.replace(config, **changes)).eval()


def frames(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 3, 13, 18, generator=torch.Generator().manual_seed(1))


def normal(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_corrector(
    corrector: Corrector, features: torch.Tensor, slots: torch.Tensor, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Algorithm 1 for one image, number by number: features `(N, C)`, slots `(K, D)`."""

    def linear(layer, x):
        return layer.weight @ x + (0 if layer.bias is None else layer.bias)

    def norm(layer, x):
        centred = x - x.mean()
        return centred / (centred.square().mean() + layer.eps).sqrt() * layer.weight + layer.bias

    def gru(cell, x, hidden):
        from_input = (cell.weight_ih @ x + cell.bias_ih).chunk(3)
        from_hidden = (cell.weight_hh @ hidden + cell.bias_hh).chunk(3)
        reset = (from_input[0] + from_hidden[0]).sigmoid()
        update = (from_input[1] + from_hidden[1]).sigmoid()
        candidate = (from_input[2] + reset * from_hidden[2]).tanh()
        return (1 - update) * candidate + update * hidden

    inputs = [norm(corrector.norm_inputs, feature) for feature in features]
    keys = [linear(corrector.keys, x) for x in inputs]
    values = [linear(corrector.values, x) for x in inputs]
    for _ in range(iterations):
        queries = [linear(corrector.queries, norm(corrector.norm_slots, s)) for s in slots]
        scores = [[(q @ k) / math.sqrt(len(q)) for k in keys] for q in queries]
        attention = torch.tensor(scores, dtype=features.dtype).exp()
        attention = attention / attention.sum(0)
        moved = []
        for k, slot in enumerate(slots):
            share = attention[k] / attention[k].sum()
            update = sum(w * value for w, value in zip(share, values, strict=True))
            slot = gru(corrector.gru, update, slot)
            hidden = linear(corrector.mlp[1], norm(corrector.mlp[0], slot)).clamp(min=0)
            moved.append(slot + linear(corrector.mlp[3], hidden))
        slots = torch.stack(moved)
    return slots, attention


@pytest.mark.parametrize("iterations", [1, 3])
@torch.no_grad()
def test_slots_and_attention_equal_a_naive_float64_evaluation(iterations):
    corrector = build().corrector.double()
    for parameter in corrector.parameters():  # norms and biases must not be trivial
        parameter.add_(0.3 * torch.randn_like(parameter))
    features, slots = normal(2, 11, 16).double(), 5 * normal(2, 3, 16, seed=3).double()
    found, attention = corrector(features, slots, iterations)
    for image in range(2):
        expected = naive_corrector(corrector, features[image], slots[image], iterations)
        assert torch.allclose(found[image], expected[0], atol=1e-6)
        assert torch.allclose(attention[image], expected[1], atol=1e-9)


@torch.no_grad()
def test_the_recurrent_state_is_the_slot_before_layer_norm():
    corrector = build().corrector
    hidden = []
    corrector.gru.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[1]))
    slots = 7 + 5 * normal(1, 4, 16)
    corrector(normal(1, 9, 16, seed=3), slots, 1)
    assert torch.equal(hidden[0], slots[0])


@torch.no_grad()
def test_permuted_initial_slots_give_permuted_masks():
    model, order = build(SEQUENTIAL), torch.tensor([2, 0, 3, 1])
    state, sequence = model.initial_state(2), frames(3, 2)
    permuted = state._replace(slots=state.slots[:, order])
    for frame in sequence:
        state, result = model.step(state, frame)
        permuted, other = model.step(permuted, frame)
        assert torch.allclose(result.log_masks[:, order], other.log_masks, atol=1e-4)
        assert torch.allclose(result.means[:, order], other.means, atol=1e-4)
        assert not torch.allclose(result.log_masks, other.log_masks, atol=1e-4)


@pytest.mark.parametrize("slots", [1, 2, 9])
@pytest.mark.parametrize("value", [0.0, 1.0])
@torch.no_grad()
def test_masks_sum_to_one_for_any_number_of_slots(slots, value):
    model = build()
    model.num_slots = slots
    _, result = model.step(model.initial_state(2), torch.full((2, 3, 13, 18), value))
    assert result.log_masks.shape == (2, slots, 13, 18)
    assert torch.allclose(result.masks.sum(1), torch.ones(2, 13, 18), atol=1e-5)
    assert result.means.min() >= 0 and result.means.max() <= 1


def test_a_slot_starts_alike_for_every_image_and_every_number_of_slots():
    model = build()
    four = model.initial_state(3).slots
    assert torch.equal(four[0], four[2])
    assert not torch.allclose(four[0, 0], four[0, 1])
    model.num_slots = 7
    assert torch.equal(model.initial_state(1).slots[0, :4], four[0])
    model.num_slots = 2
    assert torch.equal(model.initial_state(1).slots[0], four[0, :2])
    assert not torch.allclose(build(noise_seed=1).initial_state(1).slots, four[:1])


@torch.no_grad()
def test_images_of_a_batch_are_independent_through_time():
    model, sequence = build(SEQUENTIAL), frames(3, 2)
    together, alone = model.initial_state(2), model.initial_state(1)
    for frame in sequence:
        together, both = model.step(together, frame)
        alone, one = model.step(alone, frame[1:])
        assert torch.allclose(both.log_masks[1:], one.log_masks, atol=1e-5)


@torch.no_grad()
def test_without_a_frame_only_the_predictor_moves_the_slots():
    model = build(SEQUENTIAL)
    state, _ = model.step(model.initial_state(1), frames(1))
    blind, nothing = model.step(state, None)
    assert nothing is None and blind.observed
    assert torch.allclose(blind.slots, model.predictor(state.slots), atol=1e-6)
    assert not torch.allclose(blind.slots, state.slots)
    for _ in range(200):
        blind, _ = model.step(blind, None)
    assert blind.slots.abs().max() < 10
    still = build()
    state, _ = still.step(still.initial_state(1), frames(1))
    assert torch.equal(still.step(state, None)[0].slots, state.slots)


@torch.no_grad()
def test_blind_steps_before_the_first_frame_change_nothing():
    model = build(SEQUENTIAL)
    waiting, _ = model.step(model.initial_state(1), None)
    late = model.step(waiting, frames(1))[1]
    assert torch.equal(late.log_masks, model.step(model.initial_state(1), frames(1))[1].log_masks)


@torch.no_grad()
def test_iterations_count_for_the_first_frame_and_for_later_ones():
    model = build()
    passes = []
    model.corrector.gru.register_forward_hook(lambda *_: passes.append(1))
    model.num_iterations, model.tracking_iterations = 5, 2
    state, _ = model.step(model.initial_state(1), frames(1))
    assert len(passes) == 5
    model.step(state, frames(1))
    assert len(passes) == 7


@pytest.mark.parametrize("initial", ["gaussian", "learned"])
@pytest.mark.parametrize("implicit", [False, True])
def test_every_parameter_receives_a_gradient(initial, implicit):
    model = build(SEQUENTIAL, initial=initial, implicit=implicit)
    model.loss(frames(2, 3), torch.Generator().manual_seed(4))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_implicit_gradients_change_no_value():
    unrolled, implicit = build(), build(implicit=True)
    features, slots = normal(1, 9, 16), normal(1, 4, 16, seed=3).requires_grad_()
    first, _ = unrolled.corrector(features, slots, 3)
    second, _ = implicit.corrector(features, slots, 3, implicit=True)
    assert torch.allclose(first, second, atol=1e-5)
    # The straight-through gradient is that of one iteration from the fixed point.
    (found,) = torch.autograd.grad(second.square().sum(), slots)
    before = unrolled.corrector(features, slots, 2)[0].detach().requires_grad_()
    last, _ = unrolled.corrector(features, before, 1)
    (expected,) = torch.autograd.grad(last.square().sum(), before)
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_loss_is_the_summed_squared_error_of_the_mixture_before_clamping():
    model = build()
    images = frames(2)
    noise = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        slots = model.initial_mean + model.initial_log_scale.exp() * noise
        slots, _ = model.corrector(model.encoder(images), slots, 3)
        tiled = slots.flatten(0, 1)[..., None, None].expand(-1, -1, 7, 9)
        maps = model.decoder.convolutions(tiled + model.decoder.position().permute(2, 0, 1))
        colours, logits = maps[..., :13, :18].view(2, 4, 4, 13, 18).split((3, 1), 2)
        composite = (F.softmax(logits, 1) * colours).sum(1)
    expected = ((images - composite) ** 2).sum() / 2
    found = model.loss(images, torch.Generator().manual_seed(5))["loss"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_sequence_costs_the_mean_of_its_frames_and_one_frame_costs_the_same_as_an_image():
    model, sequence = build(SEQUENTIAL), frames(2, 3)
    costs = [
        model.loss(sequence[:, :length], torch.Generator().manual_seed(6))["loss"].item()
        for length in (1, 2, 3)
    ]
    image = model.loss(sequence[:, 0], torch.Generator().manual_seed(6))["loss"].item()
    assert image == pytest.approx(costs[0], rel=1e-6)
    slots = model._initial(normal(2, 4, 16, seed=6))
    errors = []
    for frame, iterations in zip(sequence.unbind(1), (3, 1, 1), strict=True):
        slots, _ = model.corrector(model.encoder(frame), slots, iterations)
        means, log_masks = model.decoder(slots)
        error = frame - (log_masks.exp().unsqueeze(2) * means).sum(1)
        errors.append(error.square().sum().item() / 2)
        slots = model.predictor(slots)
    assert costs[2] == pytest.approx(sum(errors) / 3, rel=1e-4)


def test_attention_and_slots_stay_in_float32_under_autocast():
    model = build(SEQUENTIAL).to(memory_format=torch.channels_last)
    image = frames(2).contiguous(memory_format=torch.channels_last)
    seen = []
    model.corrector.gru.register_forward_hook(lambda _, inputs, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(image, torch.Generator().manual_seed(7))["loss"]
        state, result = model.step(model.initial_state(2), image)
    loss.backward()
    assert {loss.dtype, state.slots.dtype, result.log_masks.dtype, *seen} == {torch.float32}
    exact = model.loss(image, torch.Generator().manual_seed(7))["loss"]
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_a_few_scenes_can_be_learnt():
    model = build().train()
    images = torch.zeros(2, 3, 13, 18)
    images[0, 0, 4:9, 4:9] = 1
    images[1, 2, 6:11, 9:14] = 1
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(8)
    costs = []
    for _ in range(240):
        loss = model.loss(images, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        costs.append(loss.item())
    black = images.square().sum().item() / 2  # the cost of an answer that shows no object
    assert sum(costs[-20:]) / 20 < 0.5 * black


def test_learned_slots_are_no_more_than_were_learned():
    model = build(initial="learned")
    model.num_slots = 5
    with pytest.raises(ModelError, match="lower it"):
        model.initial_state(1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"initial": "random"}, "gaussian or learned"),
        ({"num_iterations": 0}, "at least 1"),
        ({"decoder_strides": [2]}, "same length"),
        ({"kernel_size": 4}, "odd"),
        ({"predictor_heads": 5}, "multiple of predictor_heads"),
    ],
)
def test_a_configuration_that_cannot_work_is_an_error_with_the_reason(changes, reason):
    with pytest.raises(ModelError, match=reason):
        create_model("slot_attention", **changes)


def test_training_takes_its_own_number_of_iterations():
    frames = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    losses = []
    for settings in ({"num_iterations": 2}, {"num_iterations": 4, "training_iterations": 2},
                     {"num_iterations": 4}):  # fmt: skip
        torch.manual_seed(0)
        model = create_model("slot_attention", frame_size=[16, 16], slot_size=8, mlp_hidden=8,
                             encoder_channels=[8], decoder_channels=[8], decoder_strides=[1],
                             **settings)  # fmt: skip
        losses.append(model.loss(frames, torch.Generator().manual_seed(1))["loss"].item())
    assert losses[0] == losses[1] != losses[2]
