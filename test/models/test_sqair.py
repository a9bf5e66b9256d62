# SPDX-License-Identifier: Apache-2.0
"""SQAIR: what is propagated, discovered and forgotten, its densities, and its particles."""

import math

import pytest
import torch

from oc_perception.models.objects import Found, draw_noise
from oc_perception.models.registry import ModelError, create_model
from oc_perception.types import Clip
from oc_perception.worlds.registry import create_world

SMALL = {
    "frame_size": (16, 16), "glimpse_size": 6, "hidden_size": 16, "what_size": 4,
    "num_frames": 4, "particles": 3,
}  # fmt: skip


def small_sqair(**settings):
    torch.manual_seed(0)
    return create_model("sqair", **{**SMALL, **settings})


def clips(batch, frames=4, seed=0):
    world = create_world("mini_shapes", {}, batch, seed)
    motion = world.sample_motion(frames)
    return Clip(world.draw(motion, 16, 16)[0], motion)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.inference_mode()
def test_first_frames_are_those_of_discovery_alone():
    """With nobody there, SQAIR infers what AIR does with the same weights."""
    model, air = small_sqair(), create_model("air", **SMALL)
    air.picture.load_state_dict(model.picture.state_dict())
    air.discovery.load_state_dict(
        {
            name: value
            for name, value in model.discovery.state_dict().items()
            if "where_prior" not in name and name != "context.weight"
        },
        strict=False,
    )
    air.discovery.context.weight.copy_(model.discovery.context.weight[:, : SMALL["hidden_size"]])
    # The other columns meet the sum over nobody, zero.
    images = clips(3, 1).images[:, 0]
    found, expected = (m.step(m.initial_state(3, 2), images)[1] for m in (model, air))
    assert torch.allclose(found.boxes, expected.boxes, atol=1e-5)
    assert torch.equal(found.presence, expected.presence)
    assert torch.equal(found.ids, expected.ids)


@torch.inference_mode()
def test_ids_stay_with_their_objects_and_never_come_back():
    model = small_sqair()
    output = model.follow(clips(16, 8).images, 4, seeded())
    ids, discovered = output.ids, output.discovered
    assert torch.equal(ids > 0, output.presence)
    assert not (discovered & ~output.presence).any()
    for batch in range(16):
        for particle in range(4):
            seen, last = set(), 0
            for frame in range(8):
                present = ids[batch, frame, particle][output.presence[batch, frame, particle]]
                assert len(present.unique()) == len(present)
                new = ids[batch, frame, particle][discovered[batch, frame, particle]].tolist()
                old = set(present.tolist()) - set(new)
                assert old <= seen  # propagated from the frame before
                assert all(number > last for number in new)
                last, seen = max([last, *new]), set(present.tolist())


@torch.inference_mode()
def test_there_are_never_more_objects_than_slots():
    """What finds no room is not discovered at all: no id is spent on it."""
    model = small_sqair(num_slots=2)
    state, discovered, full = model.initial_state(32, 4), 0, False
    for frame in clips(32, 6).images.unbind(1):
        state, output = model.step(state, frame, seeded())
        discovered = discovered + output.discovered.sum(-1)
        full = full or state.presence.all(-1).any()
        assert state.presence.shape[-1] == 2
    assert full
    assert torch.equal(state.next_id, 1 + discovered)


def test_paper_sizes_have_the_papers_numbers_of_parameters():
    """Table 1 of the paper: SQAIR 2.9 M, convolutional 2.6 M, AIR 1.7 M. Ours differ where the
    paper leaves inputs and read-outs open.
    """

    def millions(name, **settings):
        return sum(p.numel() for p in create_model(name, **settings).parameters()) / 1e6

    assert millions("sqair") == pytest.approx(2.9, rel=0.2)
    assert millions("air") == pytest.approx(1.7, rel=0.2)
    assert millions("sqair", convolutional=True, hidden_size=128) == pytest.approx(2.6, rel=0.2)


@torch.inference_mode()
@pytest.mark.parametrize("seek", [False, True])
def test_what_is_propagated_is_not_sought_again(seek):
    """If what is propagated is the whole picture, discovery that seeks looks at black."""
    model, frame = small_sqair(seek=seek), clips(2, 1).images[:, 0]
    state, _ = model.step(model.initial_state(2), frame)
    seen, look = [], model.picture.look
    model.picture.draw = lambda found: frame.amax(1)
    model.picture.look = lambda images, *window: (seen.append(images), look(images, *window))[1]
    model.step(state, frame)
    assert torch.equal(seen[0], frame.amax(1))
    assert (seen[-model.num_slots].abs().max() == 0) == seek


@torch.inference_mode()
def test_slots_may_be_added_after_training():
    model = small_sqair()
    model.num_slots = 5
    output = model.follow(clips(2).images, 2, seeded())
    assert output.boxes.shape == (2, 4, 2, 5, 4)
    assert output.log_increment.isfinite().all()


@torch.inference_mode()
def test_blind_steps_only_propagate():
    model = small_sqair()
    state, _ = model.step(model.initial_state(8, 4), clips(8).images[:, 0], seeded())
    before = state
    for _ in range(5):
        state, output = model.step(state, None, seeded())
        assert not output.discovered.any()
        assert set(output.ids.unique().tolist()) <= set(before.ids.unique().tolist()) | {0}
        assert torch.equal(state.log_weights, before.log_weights)
        assert (output.presence <= before.presence).all()
    assert not torch.equal(state.where, before.where)


@torch.inference_mode()
def test_empty_slots_hold_nothing_that_could_drift():
    model = small_sqair()
    state = model.initial_state(8, 4)
    for frame in (*clips(8).images.unbind(1), None, None):
        state, _ = model.step(state, frame, seeded())
        empty = ~state.presence
        for part in (state.what, state.where, state.moved):
            assert not part[empty].any()
        assert torch.equal(state.prior[empty], model.prior.first.expand_as(state.prior)[empty])
    assert empty.any() and not empty.all()


@torch.inference_mode()
def test_nobody_appears_in_the_dark_before_the_first_frame():
    model = small_sqair()
    state, output = model.step(model.initial_state(2), None)
    assert not output.presence.any()
    again, _ = model.step(state, clips(2).images[:, 0])
    fresh, _ = model.step(model.initial_state(2), clips(2).images[:, 0])
    assert torch.equal(again.where, fresh.where)


@torch.inference_mode()
def test_steps_are_the_run_that_training_sees():
    """`follow` and the weights of the bound come from the same random numbers."""
    model, clip = small_sqair(), clips(3)
    output = model.follow(clip.images, 5, seeded())
    parts = model.bound(clip.images, seeded(), 5)
    log_weights = output.log_increment.sum(1)
    evidence = log_weights.logsumexp(1) - math.log(5)
    assert torch.allclose(parts["log_evidence"], evidence, atol=1e-2)
    assert torch.allclose(parts["elbo"], log_weights.mean(1), atol=1e-2)
    assert torch.allclose(output.log_weights[:, -1], log_weights.log_softmax(1), atol=1e-3)


@torch.no_grad()
def test_the_prior_of_propagation_is_a_density():
    """Against textbook distributions; whoever was absent counts for nothing."""
    model = small_sqair()
    before = Found(
        torch.randn(2, 3, 4, generator=seeded(1)),
        torch.randn(2, 3, 4, generator=seeded(2)),
        torch.tensor([[True, True, False], [False, False, False]]),
        torch.zeros(2, 3),
    )
    after = before._replace(
        what=torch.randn(2, 3, 4, generator=seeded(3)),
        presence=torch.tensor([[True, False, False], [False, False, False]]),
    )
    memory = torch.randn(2, 3, 16, generator=seeded(4))
    moved = torch.randn(2, 3, 4, generator=seeded(5))
    expected = model.prior(before, moved, memory)
    normal = torch.distributions.Normal
    value = normal(expected.what[0, 0], expected.what_std[0, 0]).log_prob(after.what[0, 0]).sum()
    place = normal(expected.where[0, 0], expected.where_std[0, 0])
    value = value + place.log_prob(after.where[0, 0]).sum()
    bernoulli = torch.distributions.Bernoulli(logits=expected.presence[0, :2])
    value = value + bernoulli.log_prob(torch.tensor([1.0, 0.0])).sum()
    found = model.prior.log_density(after, before, moved, memory)
    assert torch.allclose(found, torch.stack([value, torch.tensor(0.0)]), atol=1e-4)


@torch.inference_mode()
def test_particles_and_sequences_do_not_influence_one_another():
    model, clip = small_sqair(), clips(3)
    together = model.follow(clip.images)
    alone = model.follow(clip.images[1:2])
    assert torch.allclose(together.boxes[1:2], alone.boxes, atol=1e-5)


@torch.inference_mode()
def test_resampling_keeps_proportions_and_leaves_even_weights_alone():
    model = small_sqair()
    state = model.initial_state(2, 1000)
    marks = torch.arange(1000).expand(2, -1)
    weights = torch.full((2, 1000), 1e-9)
    weights[0, :2] = torch.tensor([0.75, 0.25])
    weights[1] = 1e-3
    log_weights = weights.log().log_softmax(1)
    state = state._replace(next_id=marks, log_weights=log_weights)
    after = model.resample(state, seeded())
    assert after.next_id[0].bincount()[:2].tolist() == pytest.approx([750, 250], abs=1)
    assert torch.equal(after.next_id[1], marks[1])
    assert torch.allclose(after.log_weights, torch.tensor(-math.log(1000)).expand(2, 1000))


@pytest.mark.parametrize("objective", ["vimco", "vimco_released", "wake_wake"])
def test_gradients_reach_every_parameter_and_are_finite(objective):
    model = small_sqair(objective=objective)
    terms = model.loss(clips(8), seeded(), 1.0)
    terms["loss"].backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert terms["elbo"].item() == pytest.approx(
        (terms["log_likelihood"] - terms["kl"]).item(), abs=1e-2
    )


def test_training_sees_more_frames_late():
    model, clip = small_sqair(num_frames=4, first_frames=2, curriculum=0.5), clips(4)
    seen = []
    model.picture.encode_image.register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0]) // 4)
    )
    for progress in (0.0, 0.5, 0.6, 0.99):
        model.loss(clip, seeded(), progress)
    assert seen == [2, 2, 3, 4]


def test_a_few_sequences_are_learned_to_high_likelihood():
    """Gradients go where they should: four sequences of two frames are memorised."""
    model, clip = small_sqair(hidden_size=32, num_slots=2, num_frames=2, first_frames=2), clips(4)
    clip = clip[:, :2]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator, values = seeded(), []
    for step in range(200):
        optimizer.zero_grad()
        terms = model.loss(clip, generator, step / 200)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100)
        optimizer.step()
        values.append(terms["log_likelihood"].item())
    perfect = -256 * math.log(0.3 * math.sqrt(2 * math.pi))
    assert perfect - max(values[-20:]) < 0.3 * (perfect - values[0])


@pytest.mark.parametrize("seek", [False, True])
def test_training_and_steps_are_each_one_graph(seek):
    """No Python depends on a value: what compiles without a break can be captured on a GPU."""
    model, clip = small_sqair(seek=seek), clips(2, 2)
    noise = [draw_noise(6, 6, 4, seeded()) for _ in range(2)]
    run = torch.compile(model._run, backend="eager", fullgraph=True)
    found, expected = run(clip.images, 3, noise), model._run(clip.images, 3, noise)
    assert torch.allclose(found[2], expected[2], atol=1e-4)
    state, _ = model.step(model.initial_state(2), clip.images[:, 0])
    step = torch.compile(model.step, backend="eager", fullgraph=True)
    for frame in (clip.images[:, 1], None):
        assert torch.allclose(step(state, frame)[1].boxes, model.step(state, frame)[1].boxes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_frames": 11}, "first_frames"),
        ({"curriculum": 1.5}, "curriculum"),
        ({"objective": "wake_sleep"}, "objective must be"),
        ({"slots": 3}, "slots"),
        ({"convolutional": True, "glimpse_size": 6}, "multiple of 4"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ModelError, match=message):
        create_model("sqair", **settings)
