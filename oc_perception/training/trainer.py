# SPDX-License-Identifier: Apache-2.0
"""The training loop: plain torch, resumable at any step, every random draw from a seeded
generator.

A run directory holds `weights.safetensors` and `config.yaml` (loadable as a model at any time),
`recipe.yaml`, `log.jsonl` (one JSON object per evaluation), `samples.png`; until the run is
complete `state.pt`, and then `metrics.json` (scores on 320 fresh scenes).
"""

from __future__ import annotations

import json
import math
import platform
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from oc_perception.configuration import ConfigurationError, from_mapping, read_yaml, to_mapping
from oc_perception.evaluation.discovery import evaluate_discovery
from oc_perception.evaluation.figures import decomposition_grid
from oc_perception.models.registry import create_model, save_checkpoint
from oc_perception.training.recipe import Recipe
from oc_perception.worlds.registry import create_world

_EVALUATION_SEED = 1_000_003  # far from any training seed
_TEST_SEED = 2_000_003
_TEST_SCENES = 320


class NonFiniteLoss(ValueError):
    """Training diverged; the last good checkpoint is kept."""


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine from the peak to the final value."""
    config = recipe.training
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * share))
    return config.final_learning_rate + cosine * (
        config.learning_rate - config.final_learning_rate
    )


def train(
    recipe: Recipe,
    directory: Path,
    device: str = "cpu",
    report: Callable[[str], None] = print,
    stop_at_step: int | None = None,
) -> nn.Module:
    """Train until `recipe.training.steps`, resuming from `directory` where it holds an unfinished
    run.

    Ctrl-C and `stop_at_step` save the state first; called again, the run goes on exactly where it
    stopped. Raises ConfigurationError when the directory belongs to another recipe, NonFiniteLoss
    on divergence.
    """
    config = recipe.training
    directory.mkdir(parents=True, exist_ok=True)
    _claim(directory, recipe)
    torch.manual_seed(config.seed)  # initial weights: torch's initialisers take no generator
    model = create_model(recipe.model, **recipe.model_config).to(device)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate)
    world = create_world(
        recipe.world, recipe.world_config, config.batch_size, config.seed + 1, device
    )
    noise = torch.Generator(device).manual_seed(config.seed + 2)
    state_path = directory / "state.pt"
    step, elapsed_s, cpu_s = 0, 0.0, 0.0
    if state_path.is_file():
        state = torch.load(state_path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        world.generator.set_state(state["world_generator"].cpu())
        noise.set_state(state["noise_generator"].cpu())
        step, elapsed_s, cpu_s = state["step"], state["elapsed_s"], state["cpu_s"]
        report(f"resuming {directory} at step {step}")

    def save() -> None:
        partial = state_path.with_suffix(".part")
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "world_generator": world.generator.get_state(),
                "noise_generator": noise.get_state(),
                "step": step,
                "elapsed_s": elapsed_s + time.monotonic() - started_s,
                "cpu_s": cpu_s + time.process_time() - started_cpu_s,
            },
            partial,
        )
        partial.replace(state_path)
        save_checkpoint(model, directory)

    started_s = saved_s = time.monotonic()
    started_cpu_s = time.process_time()
    first_step = step
    last_step = min(config.steps, stop_at_step or config.steps)
    try:
        while step < last_step:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step)
            frames = world.sample(*model.frame_size).images
            frames = frames.contiguous(memory_format=torch.channels_last)
            with torch.autocast(
                torch.device(device).type, torch.bfloat16, enabled=config.autocast_bfloat16
            ):
                terms = model.loss(frames, noise, step / config.steps)
            if not torch.isfinite(terms["loss"]):
                raise NonFiniteLoss(
                    f"The loss is {terms['loss'].item()} at step {step}. Lower"
                    " training.learning_rate or switch training.autocast_bfloat16 off, and resume."
                )
            optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            optimizer.step()
            step += 1
            now_s = time.monotonic()
            if step % config.evaluate_every == 0 or step == config.steps:
                entry = {
                    "step": step,
                    "elapsed_s": round(elapsed_s + now_s - started_s, 1),
                    "cpu_s": round(cpu_s + time.process_time() - started_cpu_s, 1),
                    "learning_rate": optimizer.param_groups[0]["lr"],
                    "gradient_norm": norm.item(),
                    **{name: value.item() for name, value in terms.items()},
                    **_evaluate(model, recipe, directory, device),
                }
                with (directory / "log.jsonl").open("a") as log:
                    log.write(json.dumps(entry) + "\n")
                left_s = (now_s - started_s) / (step - first_step) * (config.steps - step)
                report(
                    f"step {step:>7}/{config.steps}  loss {entry['loss']:.1f}"
                    f"  FG-ARI {entry['fg_ari']:.3f}  mIoU {entry['miou']:.3f}"
                    f"  MSE {entry['mse']:.5f}  {left_s / 60:.0f} min left"
                )
            if now_s - saved_s > config.checkpoint_every_s:
                save()
                saved_s = time.monotonic()
    except BaseException:
        # Whatever ends the loop, the work done so far must survive; a diverged step is not saved.
        if step > first_step and all(p.isfinite().all() for p in model.parameters()):
            save()
        raise
    save()
    if step == config.steps:
        effort = {
            "elapsed_s": round(elapsed_s + time.monotonic() - started_s, 1),
            "cpu_s": round(cpu_s + time.process_time() - started_cpu_s, 1),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "machine": _machine(device),
        }
        _finish(model, recipe, directory, device, effort)
        state_path.unlink()
    return model


def _claim(directory: Path, recipe: Recipe) -> None:
    """Write `recipe.yaml`, or check that the directory belongs to this recipe."""
    path = directory / "recipe.yaml"
    if path.is_file():
        if from_mapping(Recipe, read_yaml(path)) != recipe:
            raise ConfigurationError(
                f"{directory} holds a run of another recipe: choose another --output, or resume it"
                " with the settings in its recipe.yaml."
            )
        if (directory / "metrics.json").is_file():
            raise ConfigurationError(
                f"The run in {directory} is complete: choose another --output."
            )
    else:
        path.write_text(yaml.safe_dump(to_mapping(recipe), sort_keys=False))


def _machine(device: str) -> str:
    """The kind of processor that trains."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = Path("/proc/cpuinfo")  # Linux: elsewhere `platform` names it
    names = re.findall(r"model name\s*: (.*)", cores.read_text()) if cores.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def _finish(
    model: nn.Module, recipe: Recipe, directory: Path, device: str, effort: Mapping[str, Any]
) -> None:
    """Round the weights to half precision, which halves the file, and write them and
    `metrics.json`: what these weights reach on fresh scenes, after which effort.
    """
    model.half().float()
    save_checkpoint(model, directory, torch.float16)
    scores = evaluate_discovery(
        model.eval(), recipe.world, recipe.world_config, _TEST_SCENES, _TEST_SEED, device
    )
    record = {
        **scores,
        "world": recipe.world,
        "steps": recipe.training.steps,
        **effort,
        "recipe": to_mapping(recipe),
    }
    (directory / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")


@torch.inference_mode()
def _evaluate(model: nn.Module, recipe: Recipe, directory: Path, device: str) -> dict[str, float]:
    model.eval()
    scores = evaluate_discovery(
        model,
        recipe.world,
        recipe.world_config,
        recipe.training.evaluation_scenes,
        _EVALUATION_SEED,
        device,
    )
    scenes = create_world(recipe.world, recipe.world_config, 8, _EVALUATION_SEED, device)
    frames = scenes.sample(*model.frame_size).images
    _, decomposition = model.step(model.initial_state(len(frames)), frames)
    decomposition_grid(frames, decomposition, directory / "samples.png")
    model.train()
    return {name: scores[name] for name in ("fg_ari", "ari", "miou", "mse")}
