# SPDX-License-Identifier: Apache-2.0
"""AIR: densities against closed forms and enumeration, and a world small enough to learn."""

import itertools
import math

import pytest
import torch
from torch.distributions import Categorical, Normal

from oc_perception.models.air import OBJECTIVES, random_limits
from oc_perception.models.objects import Found, Noise, draw_noise, draw_presence
from oc_perception.models.registry import ModelError, create_model
from oc_perception.models.windows import boxes_of
from oc_perception.types import Clip
from oc_perception.worlds.registry import create_world

SMALL = {
    "frame_size": (16, 16), "glimpse_size": 6, "hidden_size": 16, "what_size": 4,
    "num_frames": 2, "particles": 3,
}  # fmt: skip


def small_air(**settings):
    torch.manual_seed(0)
    return create_model("air", **{**SMALL, **settings})


def pictures(batch, frames=2, side=16, seed=0):
    world = create_world("mini_shapes", {}, batch, seed)
    motion = world.sample_motion(frames)
    return Clip(world.draw(motion, side, side)[0], motion)


def test_counts_are_a_distribution_of_what_is_possible():
    prior = small_air().discovery.count_prior
    torch.nn.init.normal_(prior.later[-1].weight)
    for capacity, known in itertools.product(range(4), (None, torch.tensor([2.0]))):
        chances = [
            prior(torch.tensor([n]), torch.tensor([capacity]), 3, known).exp().item()
            for n in range(4)
        ]
        assert sum(chances) == pytest.approx(1, abs=1e-6)
        assert all(chance == 0 for chance in chances[capacity + 1 :])


def test_nothing_new_is_expected_in_later_frames():
    prior = small_air().discovery.count_prior
    nobody, capacity = torch.tensor([0]), torch.tensor([3])
    later = prior(nobody, capacity, 3, torch.tensor([0.0]))
    assert later.exp() > 0.99 > prior(nobody, capacity, 3, None).exp()


def test_presences_stop_at_the_first_that_is_missing_and_have_a_probability():
    """Over all draws, the logged probability of a count is how often it comes."""
    model, images = small_air(), pictures(1, 1).images[:, 0].amax(1)
    generator = torch.Generator().manual_seed(0)
    found, _, _ = model._infer(images, 4000, draw_noise(4000, 3, 4, generator))
    presence = found.presence
    assert (presence[:, 1:] <= presence[:, :-1]).all()
    counts = presence.sum(1).bincount(minlength=4) / len(presence)
    # Probabilities depend on what was drawn; of the first object they are nearly constant.
    first = found.probability[:, 0].mean()
    assert counts[0].item() == pytest.approx(1 - first.item(), abs=0.03)


@torch.no_grad()
def test_densities_are_those_of_torchs_distributions():
    """Of given objects, the terms are sums of textbook densities over those that are present."""
    model, images = small_air(), pictures(3, 1).images[:, 0].amax(1)
    generator = torch.Generator().manual_seed(1)
    found = Found(
        torch.randn(3, 3, 4, generator=generator),
        torch.randn(3, 3, 4, generator=generator),
        torch.tensor([[False] * 3, [True, True, False], [True] * 3]),
        torch.zeros(3, 3),
    )
    again, terms, log_likelihood = model._infer(images, 1, Noise(), given=found)
    assert torch.equal(again.presence, found.presence)
    unit = Normal(0.0, 1.0).log_prob
    discovery = model.discovery
    expected = []
    for row in range(3):
        number = int(found.presence[row].sum())
        counts = Categorical(logits=discovery.count_prior.slope * torch.arange(4))
        value = counts.log_prob(torch.tensor(number))
        before = discovery.expected
        for index in range(number):
            mean, raw = discovery.where_prior(before[None])[0].chunk(2)
            where = found.where[row, index]
            value = value + Normal(mean + discovery.expected, raw.exp()).log_prob(where).sum()
            value = value + unit(found.what[row, index]).sum()
            before = where
        expected.append(value)
    assert torch.allclose(terms.log_p, torch.stack(expected), atol=1e-4)
    drawn = model.picture.draw(found)
    likelihood = Normal(drawn, 0.3).log_prob(images).sum((1, 2))
    assert torch.allclose(log_likelihood, likelihood, atol=1e-3)


def test_a_presence_that_is_impossible_is_no_decision():
    logit, possible = torch.tensor([2.0, 2.0, -1.0]), torch.tensor([True, False, True])
    presence, log_q = draw_presence(logit, possible, torch.tensor([0.5, 0.5, 0.9]))
    assert presence.tolist() == [True, False, False]
    expected = [math.log(1 / (1 + math.exp(-2))), 0.0, math.log(1 / (1 + math.exp(-1)))]
    assert log_q.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_perfect_reconstruction_has_the_known_likelihood():
    model = small_air()
    images = torch.zeros(1, 16, 16)
    nobody = Found(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4), torch.zeros(1, 3) > 0, None)
    assert model.picture.log_likelihood(images, nobody).item() / 256 == pytest.approx(
        0.28503, abs=1e-4
    )


def test_absent_objects_count_for_nothing():
    """What absent slots hold changes no density."""
    model, images = small_air(), pictures(2, 1).images[:, 0].amax(1)
    model.discovery.presence_head[-1].weight.data.mul_(10)
    given = Found(
        torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)),
        torch.zeros(2, 3, 4),
        torch.tensor([[True, False, False], [False, False, False]]),
        torch.zeros(2, 3),
    )
    other = given._replace(what=given.what.clone(), where=given.where.clone())
    other.what[~given.presence], other.where[~given.presence] = 7.0, 3.0
    first, second = (model._infer(images, 1, Noise(), given=g)[1:] for g in (given, other))
    assert torch.allclose(first[0].log_p, second[0].log_p)
    assert torch.allclose(first[1], second[1])
    assert torch.allclose(first[0].log_q, second[0].log_q)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_both_halves_and_only_finite_gradients_flow(objective):
    model, clip = small_air(objective=objective), pictures(4)
    terms = model.loss(clip, torch.Generator().manual_seed(0), 1.0)
    terms["loss"].backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing in ([], [name for name in missing if "count_prior.later" in name
                            or "none_later" in name])  # fmt: skip
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("objective", ["wake_wake", "delta_wake_wake", "wake_sleep"])
def test_in_wake_sleep_each_half_has_its_own_loss(objective):
    """The sum of both losses gives the decoder the gradient of the bound alone: it is the same
    whatever the loss of inference is.
    """
    gradients = []
    for name in ("wake_wake", objective):
        model, clip = small_air(objective=name), pictures(4)
        model.loss(clip, torch.Generator().manual_seed(0), 1.0)["loss"].backward()
        gradients.append(model.picture.decode_glimpse[0].weight.grad)
    assert torch.allclose(*gradients, atol=1e-6) and gradients[0].abs().max() > 0


def test_dreams_begin_in_the_upper_left_corner_and_follow_the_prior():
    model = small_air()
    found = model.discovery.dream(4000, 3, torch.Generator().manual_seed(0))
    chances = (model.discovery.count_prior.slope * torch.arange(4)).softmax(0)
    counts = found.presence.sum(1).bincount(minlength=4) / 4000
    assert torch.allclose(counts, chances, atol=0.03)
    distance = found.where[..., 2:].tanh().add(1).norm(dim=-1)
    ordered = distance[:, 1:] >= distance[:, :-1]
    assert ordered[found.presence[:, 1:]].all()


def test_random_limits_fade_out():
    model = small_air(limited=0.5, num_slots=3)
    generator = torch.Generator().manual_seed(0)
    start, middle, end = (
        random_limits(model.config, 3000, progress, generator) for progress in (0.0, 0.25, 0.5)
    )
    shares = start.bincount(minlength=4) / 3000
    assert shares.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.05)
    assert (middle == 3).float().mean().item() == pytest.approx(2 / 3, abs=0.05)
    assert (end == 3).all()


def test_a_limit_is_kept():
    model, images = small_air(), pictures(2, 1).images[:, 0].amax(1)
    found, _, _ = model._infer(
        images,
        200,
        draw_noise(400, 3, 4, torch.Generator().manual_seed(0)),
        limits=torch.tensor([1, 2]),
    )
    counts = found.presence.sum(1).view(2, 200)
    assert counts.amax(1).tolist() == [1, 2]


@torch.inference_mode()
def test_frames_are_independent_and_ids_are_new_in_each():
    model, clip = small_air(), pictures(3, 4)
    output = model.follow(clip.images)
    assert output.boxes.shape == (3, 4, 1, 3, 4) and output.ids.shape == (3, 4, 1, 3)
    ids = output.ids[output.presence]
    assert torch.equal(output.presence, output.discovered) and (ids > 0).all()
    row = output.ids[0][output.presence[0]]
    assert len(row.unique()) == len(row)
    backwards = model.follow(clip.images.flip(1))
    assert torch.allclose(backwards.boxes.flip(1), output.boxes, atol=1e-6)


@torch.inference_mode()
def test_without_a_frame_nothing_is_known():
    model = small_air()
    _, output = model.step(model.initial_state(2, 3), None)
    assert not output.presence.any() and not output.ids.any()
    assert output.boxes.shape == (2, 3, 3, 4)


@torch.inference_mode()
def test_more_particles_never_loosen_the_bound():
    model, clip = small_air(), pictures(64, 1)
    means = [
        model.bound(clip.images, torch.Generator().manual_seed(0), k)["log_evidence"].mean()
        for k in (1, 5, 50)
    ]
    assert means[0] < means[1] < means[2]
    parts = model.bound(clip.images, torch.Generator().manual_seed(0), 5)
    assert torch.allclose(parts["elbo"], parts["log_likelihood"] - parts["kl"], atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"particles": 1}, "at least 2"),
        ({"objective": "vimcoo"}, "objective must be one of"),
        ({"sigma": 0.0}, "sigma"),
        ({"num_slots": 0}, "num_slots"),
        ({"limited": 2.0}, "limited"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ModelError, match=message):
        create_model("air", **settings)


def test_it_learns_to_count_one_shape():
    """With none or one object in a picture, a few hundred updates are enough."""
    model = small_air(hidden_size=32, what_size=8, glimpse_size=8, num_frames=1,
                      object_size=0.375, limited=0.9)  # fmt: skip
    world = create_world("mini_shapes", {"num_objects": (0, 1)}, 32, 0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    generator, steps = torch.Generator().manual_seed(0), 400
    for step in range(steps):
        motion = world.sample_motion(1)
        clip = Clip(world.draw(motion, 16, 16)[0], motion)
        optimizer.zero_grad()
        model.loss(clip, generator, step / steps)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100)
        optimizer.step()
    fresh = create_world("mini_shapes", {"num_objects": (0, 1)}, 128, 5)
    motion = fresh.sample_motion(1)
    with torch.inference_mode():
        output = model.follow(fresh.draw(motion, 16, 16)[0])
    right = output.presence.sum(3)[..., 0] == motion.present.sum(2)
    assert right.float().mean() > 0.95


@torch.inference_mode()
def test_where_it_seeks_windows_begin_at_what_is_left():
    """Once a spot is drawn, the next window begins at the brightest of the others."""
    model = small_air(seek=True, num_slots=3, glimpse_size=8, object_size=0.25)
    torch.nn.init.zeros_(model.discovery.where_head[-1].weight)
    cells = (torch.arange(16) + 0.5) / 16

    def spots(centres):
        across, down = (cells - centres[..., None]).square().unbind(1)
        return (-200 * (across[:, None] + down[:, :, None])).exp()

    model.picture.draw = lambda found: spots(boxes_of(found.where, (16, 16))[:, 0, :2])
    centres = torch.tensor([[0.75, 0.75], [0.25, 0.7], [0.55, 0.2]])
    image = (spots(centres) * torch.tensor([1.0, 0.9, 0.8])[:, None, None]).sum(0)
    found, _, _ = model._infer(image[None], 1, Noise())
    assert found.presence.all()
    assert torch.allclose(boxes_of(found.where, (16, 16))[0, :, :2], centres, atol=0.03)


def test_seeking_is_no_other_model_where_it_is_off():
    """The same parameters, and places that are learned alone."""
    model, seeking = small_air(), small_air(seek=True)
    assert list(model.state_dict()) == list(seeking.state_dict())
    where = model._infer(pictures(3, 1).images[:, 0].amax(1), 1, Noise())[0].where
    assert (where - model.discovery.expected).abs().max() < 0.2
