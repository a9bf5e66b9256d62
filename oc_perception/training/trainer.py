# SPDX-License-Identifier: Apache-2.0
"""The training loop: plain torch, resumable at any step, on one process or several.

All random numbers of a step come from generators seeded by the recipe's seed, the shard of the
batch and the number of the step. So a resumed run, and one on another number of processes, draws
what an uninterrupted one on a single process would have drawn.

A run directory holds `weights.safetensors` and `config.yaml` (loadable as a model at any time),
`recipe.yaml`, `log.jsonl` (one JSON object per evaluation), for discovery `samples.png`; until the
run is complete `state.pt`, and then `metrics.json` (scores on 320 fresh scenes or sequences). Of a
recording they are taken from the part that is not learned from (`worlds.registry.held_out`).

Several processes: `torchrun --nproc-per-node N -m oc_perception.cli train ...`, with
`training.shards` a multiple of their number and the run directory on a disk that all share.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oc_perception.configuration import ConfigurationError, to_mapping
from oc_perception.evaluation.provenance import provenance
from oc_perception.models.registry import create_model, save_checkpoint, task_of
from oc_perception.training.diagnosis import first_non_finite
from oc_perception.training.early_stopping import EarlyStopping
from oc_perception.training.interruption import HeldSignals
from oc_perception.training.optimization import create_optimizer, follow, learning_rate
from oc_perception.training.parallel import ProcessGroup, process_group
from oc_perception.training.recipe import Recipe
from oc_perception.training.run_directory import RunDirectory
from oc_perception.training.table import Table
from oc_perception.training.tasks import TASKS, held_out_loss
from oc_perception.worlds.registry import create_world, held_out

_EVALUATION_SEED = 1_000_003
_TEST_SEED = 2_000_003
_TEST_SCENES = 320
_PICTURES = 8


class NonFiniteLoss(ValueError):
    """Training diverged; the last good checkpoint is kept."""


def train(
    recipe: Recipe,
    directory: Path,
    device: str = "cpu",
    report: Callable[[str], None] = print,
    stop_at_step: int | None = None,
    time_limit_s: float = math.inf,
) -> nn.Module:
    """Train until `recipe.training.steps`, or until patience ends, resuming from `directory` where
    it holds an unfinished run; returns the model as saved.

    Ctrl-C, `stop_at_step` and `time_limit_s` complete the step and save; called again, the run
    goes on exactly where it stopped. Raises ConfigurationError when the directory belongs to
    another recipe or the shards cannot be divided among the processes, NonFiniteLoss on
    divergence.
    """
    config = recipe.training
    last_step = min(config.steps, stop_at_step or config.steps)
    end_s = time.monotonic() + time_limit_s
    with process_group(device) as group:
        with HeldSignals() as signals:
            run = _Run(recipe, directory, group)
            first_step, saved_s, stopping = run.step, time.monotonic(), False
            if first_step and group.is_first:
                report(f"resuming {directory} at step {first_step}")
            table = Table(report, first_step, config.steps)

            def wants_stop() -> bool:
                return signals.pending is not None or time.monotonic() > end_s

            try:
                while run.step < last_step and not (stopping or run.is_exhausted):
                    terms, stopping = run.learn(wants_stop)
                    evaluates = run.step % config.evaluate_every == 0 or run.step == config.steps
                    if evaluates and group.is_first:
                        table.row(*run.evaluate(terms))
                    if evaluates and config.patience:
                        run.is_exhausted = group.any(run.is_exhausted)
                    if not group.is_first:
                        continue
                    table.advance(run.step)
                    if time.monotonic() - saved_s > config.checkpoint_every_s:
                        run.save()
                        saved_s = time.monotonic()
            except BaseException:
                # Whatever ends the loop, the work done so far must survive.
                if group.is_first and run.step > first_step and run.is_sound():
                    run.save()
                raise
            if group.is_first:
                run.save()
        signals.release()
        if group.is_first and (run.step == config.steps or run.is_exhausted):
            run.finish(report)
    return run.shipped().eval()


class _Run:
    """Everything that training changes, and the files that keep it."""

    def __init__(self, recipe: Recipe, directory: Path, group: ProcessGroup) -> None:
        config, device = recipe.training, group.device
        if config.shards % group.size:
            raise ConfigurationError(
                f"{group.size} processes cannot share training.shards {config.shards} evenly: set"
                " it to a multiple of their number."
            )
        self._recipe, self._group = recipe, group
        self._directory = RunDirectory(directory, recipe, group)
        size = config.batch_size // config.shards
        self._world = create_world(recipe.world, recipe.world_config, size, 0, device)
        torch.manual_seed(config.seed)  # initial weights: torch's initialisers take no generator
        self.model = create_model(recipe.model, **recipe.model_config).to(device)
        self.model.to(memory_format=torch.channels_last)
        self._task = TASKS[task_of(self.model)]
        state = self._directory.load_state(device)
        if self._task.prepare and not state:
            self._task.prepare(self.model, self._world)
        self._average = None
        if config.ema_decay:
            self._average = copy.deepcopy(self.model).requires_grad_(False)
        self._best = EarlyStopping(config.patience, self.model) if config.patience else None
        self.is_exhausted = False
        self._optimizer = create_optimizer(config, self.model)
        self.step = 0
        self._past_s = self._past_cpu_s = self._others_cpu_s = 0.0
        self._started_s, self._started_cpu_s = time.monotonic(), time.process_time()
        if state:
            self._resume(state)
        share = config.shards // group.size
        self._shards = range(group.rank * share, (group.rank + 1) * share)
        self._noise = torch.Generator(device)
        self._batches = self._draw(self.step)
        self._loss = torch.compile(self.model.loss) if config.compile else self.model.loss
        self._is_updating = False
        self._provenance = provenance(device)

    def newest(self) -> nn.Module:
        """The model that is evaluated while training goes on: the average if there is one."""
        return self.model if self._average is None else self._average

    def shipped(self) -> nn.Module:
        """The model that is saved: the newest, or the best where training has patience."""
        return self._best.model if self._best and self._best.step else self.newest()

    def learn(self, wants_stop: Callable[[], bool]) -> tuple[dict[str, float], bool]:
        """One step: the scalar terms of the loss and the gradient's norm, and whether any of the
        processes wants to stop.

        Raises NonFiniteLoss before it changes the weights.
        """
        config = self._recipe.training
        self._optimizer.zero_grad(set_to_none=True)
        means: dict[str, Tensor] = {}
        for terms in self._losses(self._loss):
            (terms["loss"] / config.shards).backward()
            for name, value in terms.items():
                if value.numel() == 1:
                    share = value.detach().float().view(()) / config.shards
                    means[name] = means[name] + share if name in means else share
        cpu_s = 0.0 if self._group.is_first else time.process_time() - self._started_cpu_s
        others = [means["loss"].new_full((), value) for value in (cpu_s, float(wants_stop()))]
        values = torch.stack([*means.values(), *others])
        values = self._group.add_up(self.model.parameters(), values)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        values = _Readback(torch.cat([values, norm.float().view(1)]))
        following = self._draw(self.step + 1)  # keeps the device busy while this process waits
        *scalars, self._others_cpu_s, stops, norm = values.wait()
        terms = dict(zip(means, scalars, strict=True))
        if not (math.isfinite(terms["loss"]) and math.isfinite(norm)):
            raise self._diverged(terms["loss"], norm)
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = learning_rate(config, self.step)
        self._is_updating = True
        self._optimizer.step()
        if self._average is not None:
            follow(self._average, self.model, config.ema_decay, self.step)
        self._batches, self.step = following, self.step + 1
        self._is_updating = False
        return {"gradient_norm": norm, **terms}, stops > 0

    def _losses(self, loss: Callable[..., dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The loss terms of each shard of this process; the same at each call."""
        config = self._recipe.training
        kind = torch.device(self._group.device).type
        for shard, batch in zip(self._shards, self._batches, strict=True):
            self._noise.manual_seed(_seeds(config.seed, shard, self.step)[1])
            with torch.autocast(kind, torch.bfloat16, enabled=config.autocast_bfloat16):
                terms = loss(batch, self._noise, self.step / config.steps)
            yield terms

    def _draw(self, step: int) -> list[Any]:
        """What each shard of this process learns from in `step`."""
        batches = []
        for shard in self._shards:
            seed = _seeds(self._recipe.training.seed, shard, step)[0]
            self._world.generator.manual_seed(seed)
            batches.append(self._task.draw(self._world, self.model))
        return batches

    def _diverged(self, loss: float, norm: float) -> NonFiniteLoss:
        self._optimizer.zero_grad(set_to_none=True)
        culprit = first_non_finite(self.model, self._losses(self.model.loss))
        return NonFiniteLoss(
            f"The loss is {loss}, its gradient's norm {norm} at step {self.step}:"
            f" {culprit or 'each module and gradient by itself is finite'}. The weights before"
            " this step are kept. Train anew with a lower training.learning_rate or"
            " training.autocast_bfloat16=false."
        )

    def is_sound(self) -> bool:
        """Whether the weights are those after `step` steps, and finite."""
        return not self._is_updating and all(p.isfinite().all() for p in self.model.parameters())

    def _effort(self) -> dict[str, float]:
        """Duration and CPU time of all processes, over all resumes."""
        elapsed_s = self._past_s + time.monotonic() - self._started_s
        cpu_s = self._past_cpu_s + time.process_time() - self._started_cpu_s + self._others_cpu_s
        return {"elapsed_s": round(elapsed_s, 3), "cpu_s": round(cpu_s, 3)}

    def save(self) -> None:
        """Write `state.pt` and the checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "best": None if self._best is None else self._best.state(),
            "step": self.step,
            **self._effort(),
        }
        self._directory.save_state(state)
        save_checkpoint(self.shipped(), self._directory.path)

    def _resume(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if self._best is not None:
            self._best.restore(state["best"])
            self.is_exhausted = self._best.is_exhausted
        self.step = state["step"]
        self._past_s, self._past_cpu_s = state["elapsed_s"], state["cpu_s"]

    def evaluate(self, terms: Mapping[str, float]) -> tuple[dict[str, float], tuple[str, ...]]:
        """Add a line to `log.jsonl`; returns it, and which of the scores in it to show.

        A score of the same name as a term of the loss is called `fresh_*` there. Where training
        has patience, `samples.png` shows the best model.
        """
        recipe, model = self._recipe, self.newest().eval()
        scores = self._score(model, recipe.training.evaluation_scenes, _EVALUATION_SEED)
        is_best = True
        if self._best is not None:
            is_best = self._best.judge(model, scores["held_out_loss"], self.step)
            self.is_exhausted = self._best.is_exhausted
        if self._task.illustrate and is_best:
            settings = held_out(recipe.world, recipe.world_config)
            world = (recipe.world, settings, _PICTURES, _EVALUATION_SEED)
            scenes = create_world(*world, self._group.device)
            self._task.illustrate(model, scenes, self._directory.path / "samples.png")
        model.train()
        scores = {f"fresh_{name}" if name in terms else name: scores[name] for name in scores}
        entry = {
            "step": self.step,
            **self._effort(),
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            **terms,
            **scores,
        }
        self._directory.log(entry)
        return entry, self._shown(scores)

    def _shown(self, scores: Mapping[str, float]) -> tuple[str, ...]:
        columns = (*self._task.columns, "held_out_loss") if self._task.columns else scores
        return tuple(name for name in columns if name in scores)

    def finish(self, report: Callable[[str], None]) -> None:
        """Round the weights to the precision in which they are shipped, and write them and
        `metrics.json`: what these weights reach on fresh scenes, after which effort.
        """
        model, effort = self.shipped().eval(), self._effort()
        model.to(self._task.precision).float()
        save_checkpoint(model, self._directory.path, self._task.precision)
        scores = self._score(model, _TEST_SCENES, _TEST_SEED)
        for name in self._shown(scores):
            report(f"{name:>16}  {scores[name]:.4g}")
        record = {
            **scores,
            "scenes": _TEST_SCENES,
            "seed": _TEST_SEED,
            "world": self._recipe.world,
            "steps": self.step,
            **({} if self._best is None else {"early_stopping": self._best.summary()}),
            **effort,
            "processes": self._group.size,
            "threads": torch.get_num_threads(),
            **{name: self._provenance[name] for name in ("torch", "machine", "commit")},
            "recipe": to_mapping(self._recipe),
        }
        self._directory.complete(record)

    def _score(self, model: nn.Module, scenes: int, seed: int) -> dict[str, float]:
        name, config = self._recipe.world, self._recipe.world_config
        scope = (name, config, scenes, seed, self._group.device)
        scores = self._task.evaluate(model, *scope)
        if self._best is not None or held_out(name, config) != config:
            scores["held_out_loss"] = held_out_loss(self._task, model, *scope)
        return scores


class _Readback:
    """The values `(N,)` of a device tensor, fetched without keeping this process from queueing
    more work meanwhile.
    """

    def __init__(self, values: Tensor) -> None:
        self._values, self._event = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()


def _seeds(seed: int, shard: int, step: int) -> tuple[int, int]:
    """What the world and the noise of `loss` are seeded with."""
    world, noise = np.random.SeedSequence((seed, shard, step)).generate_state(2)
    return int(world), int(noise)
