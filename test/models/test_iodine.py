# SPDX-License-Identifier: Apache-2.0
"""IODINE against its equations, its symmetries and a plain float64 evaluation."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from oc_perception.models.iodine import Iodine, IodineConfig
from oc_perception.models.pixel_likelihood import score_pixels
from oc_perception.models.registry import ModelError, create_model

SMALL = IodineConfig(
    frame_size=(9, 12),
    num_slots=3,
    num_iterations=2,
    latent_size=4,
    decoder_channels=(8, 8),
    encoder_channels=(8, 8),
    encoder_hidden=8,
    recurrent_size=8,
)
KINDS = list(itertools.product(("mixture", "composite"), ("gaussian", "logistic")))


def build(**changes) -> Iodine:
    torch.manual_seed(0)
    return Iodine(dataclasses.replace(SMALL, **changes))


def pictures(batch, seed=1):
    return torch.rand(batch, 3, *SMALL.frame_size, generator=torch.Generator().manual_seed(seed))


def score(config, frame, means, logits):
    return score_pixels(config.likelihood, config.density, config.sigma, frame, means, logits)


def generator(seed=2):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("likelihood", "density"), KINDS)
def test_closed_form_gradients_equal_autograd(likelihood, density):
    config = dataclasses.replace(SMALL, likelihood=likelihood, density=density)
    draw = generator()
    frame = torch.rand(2, 1, 3, 5, 6, dtype=torch.double, generator=draw)
    means = torch.rand(2, 3, 3, 5, 6, dtype=torch.double, generator=draw).requires_grad_()
    logits = torch.randn(2, 3, 1, 5, 6, dtype=torch.double, generator=draw).requires_grad_()
    scores = score(config, frame, means, logits)
    expected = torch.autograd.grad(-scores.log_pixel.sum(), (means, logits))
    torch.testing.assert_close(scores.d_means, expected[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.d_logits, expected[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("likelihood", "density"), KINDS)
def test_likelihood_and_refinement_inputs_equal_a_naive_evaluation(likelihood, density):
    """The mixture is over whole pixels; leave-one-out renormalises the other masks."""
    config = dataclasses.replace(SMALL, likelihood=likelihood, density=density, sigma=0.4)
    draw = generator()
    frame = torch.rand(1, 1, 3, 2, 3, dtype=torch.double, generator=draw)
    means = torch.rand(1, 3, 3, 2, 3, dtype=torch.double, generator=draw)
    logits = torch.randn(1, 3, 1, 2, 3, dtype=torch.double, generator=draw)
    scores = score(config, frame, means, logits)

    def probability(x, mean):
        if density == "gaussian":
            return torch.distributions.Normal(mean, 0.4).log_prob(x).sum().exp()
        return (1 / (0.4 * 4 * torch.cosh((x - mean) / 0.8) ** 2)).prod()

    for r, c in itertools.product(range(2), range(3)):
        m = logits[0, :, 0, r, c].softmax(0)
        n = torch.stack([probability(frame[0, 0, :, r, c], mu[:, r, c]) for mu in means[0]])
        mixture = (m * n).sum()
        total = mixture
        if likelihood == "composite":
            composite = (m[:, None] * means[0, :, :, r, c]).sum(0)
            total = probability(frame[0, 0, :, r, c], composite)
        assert scores.log_pixel[0, 0, 0, r, c].item() == pytest.approx(total.log().item())
        torch.testing.assert_close(scores.mask_posterior[0, :, 0, r, c], n / n.sum())
        for k in range(3):
            others = [j for j in range(3) if j != k]
            without = (m[others] / m[others].sum() * n[others]).sum()
            gain = scores.pixel_maps[0, k, 2, r, c]
            assert gain.item() == pytest.approx((mixture / without).log().item())
            assert scores.pixel_maps[0, k, 1, r, c].item() == pytest.approx(mixture.log().item())


def test_the_gradient_by_the_posterior_equals_autograd_of_the_negative_elbo(monkeypatch):
    model = build(likelihood="mixture").double().eval()
    seen = []
    original = model.refinement.forward

    def spy(maps, colour, pixel, posterior, gradient, memory):
        seen.append((posterior, gradient))
        return original(maps, colour, pixel, posterior, gradient, memory)

    monkeypatch.setattr(model.refinement, "forward", spy)
    frames = pictures(2).double()
    noise = torch.randn(2, 3, 4, dtype=torch.double, generator=generator())
    start = model._start(2).detach() + 0.3 * torch.randn(2, 3, 8, generator=generator(3)).double()
    list(model._iterate([frames, frames], start, None, lambda: noise))
    ((flat, gradient),) = seen
    posterior = start.clone().requires_grad_()
    mean, raw = posterior.chunk(2, -1)
    q = torch.distributions.Normal(mean, F.softplus(raw).sqrt())
    log_masks, means = model.decode(mean + q.stddev * noise)
    normal = torch.distributions.Normal(means, SMALL.sigma)
    log_density = normal.log_prob(frames.unsqueeze(1)).sum(2)
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    kl = torch.distributions.kl_divergence(q, prior).sum()
    loss = kl - (log_masks + log_density).logsumexp(1).sum()
    (expected,) = torch.autograd.grad(loss, posterior)
    assert torch.equal(flat, start.flatten(0, 1))
    torch.testing.assert_close(gradient, expected.flatten(0, 1), rtol=1e-9, atol=1e-9)


def test_loss_weighs_the_iterations_linearly_and_the_first_not_at_all():
    model = build()
    frames = pictures(2)
    draw = generator()

    def noise():
        return torch.randn(2, 3, 4, generator=draw)

    found = [i for i, _, _ in model._iterate([frames] * 3, model._start(2), None, noise)]
    expected = -(0.5 * found[1].elbo.mean() + found[2].elbo.mean())
    terms = model.loss(frames, generator())
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["nll"].item() == pytest.approx(found[2].nll.mean().item(), rel=1e-5)


def test_training_and_inference_refine_alike():
    model = build()
    frames = pictures(2)
    shared = torch.randn(3, 2, 3, 4, generator=generator())

    def posteriors():
        draws = iter(shared)
        steps = model._iterate([frames] * 3, model._start(2), None, lambda: next(draws))
        return [posterior.detach() for _, posterior, _ in steps]

    training, inference = posteriors(), (model.eval(), posteriors())[1]
    for a, b in zip(training, inference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_permuting_the_noise_permutes_the_slots():
    model = build().eval()
    frames, order = pictures(2), torch.tensor([2, 0, 1])
    shared = torch.randn(3, 2, 3, 4, generator=generator())

    def run(draws):
        draws = iter(draws)
        return list(model._iterate([frames] * 3, model._start(2), None, lambda: next(draws)))[-1]

    plain, _, _ = run(shared)
    permuted, _, _ = run(shared[:, :, order])
    torch.testing.assert_close(
        permuted.decomposition.masks, plain.decomposition.masks[:, order], rtol=1e-3, atol=1e-4
    )


def test_without_noise_all_slots_are_one():
    model = build().eval()
    steps = model._iterate([pictures(1)] * 3, model._start(1), None, lambda: torch.zeros(1, 3, 4))
    masks = list(steps)[-1][0].decomposition.masks
    torch.testing.assert_close(masks, torch.full_like(masks, 1 / 3))


def test_a_shared_offset_of_the_logits_changes_nothing():
    draw = generator()
    frame, means = torch.rand(1, 1, 3, 4, 4, generator=draw), torch.rand(1, 3, 3, 4, 4)
    logits = torch.randn(1, 3, 1, 4, 4, generator=draw)
    plain = score(SMALL, frame, means, logits)
    moved = score(SMALL, frame, means, logits + 7)
    torch.testing.assert_close(plain.log_pixel, moved.log_pixel)
    torch.testing.assert_close(plain.d_logits, moved.d_logits, rtol=1e-4, atol=1e-5)


def test_extreme_logits_and_colours_stay_finite():
    frame = torch.ones(1, 1, 3, 4, 4)
    means = torch.full((1, 3, 3, 4, 4), -20.0)
    logits = torch.tensor([200.0, -200.0, 0.0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 4, 4)
    for likelihood, density in KINDS:
        config = dataclasses.replace(SMALL, likelihood=likelihood, density=density)
        scores = score(config, frame, means, logits)
        for value in dataclasses.astuple(scores):
            assert value.isfinite().all()


@pytest.mark.parametrize("slots", [1, 2, 6])
def test_any_number_of_slots_and_iterations_at_test_time(slots):
    model = build().eval()
    model.num_slots = slots
    found = model.refine(pictures(2), num_iterations=4)
    assert len(found) == 5
    assert found[-1].decomposition.log_masks.shape == (2, slots, *SMALL.frame_size)
    assert found[-1].elbo.shape == (2,) and found[-1].elbo.isfinite().all()


def test_hypotheses_differ_by_the_generator_and_only_by_it():
    model = build().eval()
    frames = pictures(2)
    first, again, other = (
        model.refine(frames, generator=generator(seed))[-1] for seed in (5, 5, 6)
    )
    assert torch.equal(first.elbo, again.elbo)
    assert not torch.equal(first.elbo, other.elbo)
    fixed = model.refine(frames)[-1]
    _, stepped = model.step(model.initial_state(2), frames)
    assert torch.equal(fixed.decomposition.log_masks, stepped.log_masks)


def test_inference_keeps_the_most_likely_hypothesis():
    winners = set()
    for seed in range(4):
        torch.manual_seed(seed)
        model = Iodine(dataclasses.replace(SMALL, num_hypotheses=3, sigma=1.0)).eval()
        frames = pictures(2)
        found = [model._settle(model.initial_state(2), frames, 2, number) for number in range(3)]
        best = torch.stack([iteration.elbo for _, iteration in found]).argmax(0).tolist()
        state, decomposition = model.step(model.initial_state(2), frames)
        for image, winner in enumerate(best):
            chosen, iteration = found[winner]
            log_masks = iteration.decomposition.log_masks[image]
            torch.testing.assert_close(state.posterior[image], chosen.posterior[image])
            torch.testing.assert_close(decomposition.log_masks[image], log_masks)
        winners.update(best)
    assert len(winners) > 1  # otherwise this would show nothing


def test_refining_in_training_mode_names_the_cure():
    with pytest.raises(ValueError, match="eval"):
        build().refine(pictures(1))


@pytest.mark.parametrize("recurrent", [0, 8])
def test_later_frames_go_on_from_the_slots_and_no_frame_leaves_them(recurrent):
    model = build(recurrent_size=recurrent, scene_cut_nats=1e6).eval()
    state, _ = model.step(model.initial_state(1), pictures(1))
    blind, nothing = model.step(state, None)
    assert nothing is None and blind is state
    after, _ = model.step(blind, pictures(1))
    assert after.frames == 2 and not torch.equal(after.posterior, state.posterior)
    assert not after.posterior.requires_grad


def test_memory_of_a_stream_is_constant():
    model = build().eval()
    state = model.initial_state(1)
    for number in range(5):
        state, _ = model.step(state, pictures(1, seed=number))
        tensors = [state.posterior, *state.memory, state.nll]
        assert all(tensor.grad_fn is None for tensor in tensors)


def test_a_scene_cut_starts_anew_and_only_where_it_happened():
    model = build(scene_cut_nats=100.0).eval()
    dark, mixed = torch.zeros(2, 3, *SMALL.frame_size), torch.zeros(2, 3, *SMALL.frame_size)
    mixed[1] = 3.0  # far from black: unlikely under the carried slots
    state, _ = model.step(model.initial_state(2), dark)
    after, decomposition = model.step(state, mixed)
    noise = model._noise(0)
    fresh = [p for _, p, _ in model._iterate([mixed] * 3, model._start(2), None, noise)][-1]
    torch.testing.assert_close(after.posterior[1], fresh[1].detach())
    carried = dataclasses.replace(state, nll=torch.full_like(state.nll, math.inf))
    expected, _ = model.step(carried, mixed)
    torch.testing.assert_close(after.posterior[0], expected.posterior[0])
    assert decomposition.log_masks.isfinite().all()


def test_a_posterior_that_has_diverged_begins_anew():
    model = build().eval()
    state, _ = model.step(model.initial_state(2), pictures(2))
    posterior = state.posterior.clone()
    posterior[1] = math.nan
    state, decomposition = model.step(
        dataclasses.replace(state, posterior=posterior, draw=None), pictures(2)
    )
    assert decomposition.log_masks.isfinite().all() and state.posterior.isfinite().all()


def test_a_drift_in_small_steps_is_noticed_too():
    model = build().eval()
    state, _ = model.step(model.initial_state(1), pictures(1))
    reference = state.nll
    for _ in range(3):
        state, _ = model.step(dataclasses.replace(state, nll=reference + 1e9), pictures(1))
        assert torch.equal(state.nll, reference + 1e9)  # not replaced by that of the last frame


def test_every_parameter_receives_a_gradient():
    model = build()
    model.loss(pictures(2), generator())["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_marked_inputs_are_cut_off_and_the_others_are_not():
    """Table of App. C: no gradient flows through the gradient and likelihood inputs."""
    frame = torch.rand(1, 1, 3, 4, 4, generator=generator())
    means = torch.rand(1, 3, 3, 4, 4).requires_grad_()
    logits = torch.randn(1, 3, 1, 4, 4).requires_grad_()
    scores = score(SMALL, frame, means, logits)
    assert not any(t.requires_grad for t in (scores.d_means, scores.d_logits, scores.pixel_maps))
    assert scores.mask_posterior.requires_grad and scores.log_masks.requires_grad


def test_sequences_score_each_frame_against_what_came_before():
    model = build()
    still = pictures(2).unsqueeze(1).expand(-1, 3, -1, -1, -1)
    moving = torch.stack([pictures(2, seed) for seed in (1, 5, 9)], 1)
    assert torch.equal(model.loss(still, generator())["loss"],
                       model.loss(pictures(2), generator())["loss"])  # fmt: skip
    assert not torch.equal(model.loss(still, generator())["loss"],
                           model.loss(moving, generator())["loss"])  # fmt: skip


def test_iterations_grow_over_the_first_half_of_training(monkeypatch):
    model = build(num_iterations=5, first_iterations=2)
    counts = []
    original = model._iterate
    monkeypatch.setattr(
        model,
        "_iterate",
        lambda images, *rest: counts.append(len(images)) or original(images, *rest),
    )
    for progress in (0.0, 0.25, 0.5, 1.0):
        model.loss(pictures(1), generator(), progress)
    assert counts == [3, 5, 6, 6]


def test_sigma_shrinks_from_the_first_to_the_last():
    model = build(first_sigma=0.4, sigma=0.1)
    assert model.sigma == 0.1
    found = []
    for progress in (0.0, 0.5, 1.0):
        model.loss(pictures(1), generator(), progress)
        found.append(model.sigma)
    assert found == pytest.approx([0.4, 0.2, 0.1])


def test_a_few_scenes_can_be_learnt():
    model = build(likelihood="composite", sigma=0.3)
    frames = torch.zeros(2, 3, *SMALL.frame_size)
    frames[0, 0, 2:6, 2:6] = frames[0, 2, 4:8, 8:11] = 1.0
    frames[1, 1, 3:7, 5:9] = 1.0
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    draw = generator()
    losses = []
    for _ in range(100):
        loss = model.loss(frames, draw)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < losses[0] - 150


def test_bad_settings_name_the_reason():
    for settings, reason in (
        ({"likelihood": "mean"}, "composite"),
        ({"density": "laplace"}, "logistic"),
        ({"num_slots": 0}, "at least 1"),
        ({"sigma": 0.0}, "positive"),
        ({"kernel_size": 4}, "odd"),
    ):
        with pytest.raises(ModelError, match=reason):
            create_model("iodine", **settings)


def test_training_survives_channels_last_frames():
    """On CPUs the backward of group norm crashed the process on them."""
    model = build().to(memory_format=torch.channels_last)
    frames = pictures(4).contiguous(memory_format=torch.channels_last)
    loss = model.loss(frames, generator())["loss"]
    loss.backward()
    assert loss.isfinite()
