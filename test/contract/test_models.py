# SPDX-License-Identifier: Apache-2.0
"""What every registered discovery model and every shipped checkpoint of one must do."""

import numpy as np
import pytest
import torch

from oc_perception.models.registry import (
    ModelError,
    checkpoint_names,
    create_model,
    load_model,
    model_names,
    save_checkpoint,
    task_of,
)
from oc_perception.pipeline import Discovery

MODELS = model_names("discovery")
TRAINABLE = [name for name in MODELS if [*create_model(name).parameters()]]


@pytest.fixture(params=[*MODELS, *checkpoint_names("discovery")])
def model(request):
    name = request.param
    torch.manual_seed(0)
    built = create_model(name) if name in MODELS else load_model(name)
    return built.eval()


def frames(model, batch):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, *model.frame_size, generator=generator)


@torch.inference_mode()
def test_no_frame_gives_no_decomposition_and_a_usable_state(model):
    state, nothing = model.step(model.initial_state(1), None)
    assert nothing is None
    _, decomposition = model.step(state, frames(model, 1))
    assert decomposition is not None


@torch.inference_mode()
def test_a_decomposition_has_the_promised_shapes_and_masks_that_sum_to_one(model):
    _, result = model.step(model.initial_state(2), frames(model, 2))
    batch, slots, height, width = result.log_masks.shape
    assert (batch, slots, (height, width)) == (2, model.num_slots, tuple(model.frame_size))
    assert torch.allclose(result.masks.sum(1), torch.ones(2, height, width), atol=1e-4)
    assert result.means.shape == (2, slots, 3, height, width)
    assert result.embeddings.shape[:2] == (2, slots) and result.embeddings.dim() == 3
    assert result.composite.shape == (2, 3, height, width)


@torch.inference_mode()
def test_steps_repeat_bit_for_bit(model):
    first = model.step(model.initial_state(1), frames(model, 1))[1]
    second = model.step(model.initial_state(1), frames(model, 1))[1]
    assert torch.equal(first.log_masks, second.log_masks)
    assert torch.equal(first.embeddings, second.embeddings)


@torch.inference_mode()
def test_leaving_out_the_appearance_does_not_change_the_masks(model):
    whole = model.step(model.initial_state(1), frames(model, 1))[1]
    lean = model.step(model.initial_state(1), frames(model, 1), decode=False)[1]
    assert lean.means is None
    assert torch.equal(whole.log_masks, lean.log_masks)


@torch.inference_mode()
def test_images_of_a_batch_do_not_influence_one_another(model):
    both = frames(model, 2)
    together = model.step(model.initial_state(2), both)[1].log_masks[1:]
    alone = model.step(model.initial_state(1), both[1:])[1].log_masks
    assert torch.allclose(together, alone, atol=1e-3)


def test_a_stream_with_a_blackout_gives_segmentations(model):
    """As in `discovery_node`: the state is carried, a missing frame is no observation."""
    discovery = Discovery(model)
    images = np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3), np.uint8)
    state = discovery.initial_state()
    for number, image in enumerate(images, 1):
        frame = None if number == 3 else image
        state, segmentation = discovery.step(state, frame, stamp_ns=number * 33_000_000)
        assert (segmentation.label_image is None) == (frame is None)
    assert segmentation.label_image.shape == (48, 64)


@pytest.mark.parametrize("name", TRAINABLE)
def test_checkpoints_survive_a_round_trip(name, tmp_path):
    model = create_model(name)
    save_checkpoint(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert again.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("task", ["discovery", "motion", "tracking", "video"])
def test_a_model_is_listed_under_its_own_task(task):
    for name in model_names(task):
        assert task_of(create_model(name)) == task


def test_models_without_weights_take_settings_in_their_name():
    assert load_model("grid:rows=1,columns=4").num_slots == 4
    with pytest.raises(ModelError, match="Did you mean 'columns'"):
        load_model("grid:colums=4")


def test_an_unknown_checkpoint_names_the_cure():
    with pytest.raises(ModelError, match="oc-perception train"):
        load_model("no_such_checkpoint")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing", "other_shape", "no_config"])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, damage):
    small = {"frame_size": [16, 16], "attention_channels": [8, 8], "encoder_channels": [8]}
    save_checkpoint(create_model("monet", **small), tmp_path)
    weights = tmp_path / "weights.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "garbage":
        weights.write_bytes(b"\xff" * 1000)
    elif damage == "missing":
        weights.unlink()
    elif damage == "other_shape":
        save_checkpoint(
            create_model("monet", **{**small, "encoder_channels": [4]}), tmp_path / "b"
        )
        weights.write_bytes((tmp_path / "b" / "weights.safetensors").read_bytes())
    else:
        (tmp_path / "config.yaml").write_text("- not a mapping\n")
    with pytest.raises(ModelError, match="damaged"):
        load_model(tmp_path)
