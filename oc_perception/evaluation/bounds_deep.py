# SPDX-License-Identifier: Apache-2.0
"""Bounds trained on handwritten digits: which likelihood, which posterior, which gradient signal
(as Rainforth et al. 2018, "Tighter Variational Bounds are Not Necessarily Better", section 6, on
smaller pictures and networks).
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from oc_perception.objectives import bounds
from oc_perception.objectives.gradient_signal import rms_signal_to_noise, sample_gradients
from oc_perception.worlds.digits64 import Digits64, binarise, load_digits64

_TEST_SEED = 2_000_003  # of the pixels that all runs are tested on
_EVALUATED = 64  # particles of the tested bound
_CHUNK = 512  # particles at once, of all test pictures


class Method(NamedTuple):
    """An objective of M groups of K particles; `detach` as `Vae.log_weights` has it."""

    loss: Callable[[Tensor], bounds.Losses]
    groups: int
    particles: int
    detach: bool = False


def methods(total: int) -> dict[str, Method]:
    """The objectives that are compared, each with `total` weights (a square) for a picture."""
    root = math.isqrt(total)
    return {
        "IWAE": Method(bounds.iwae, 1, total),
        "PIWAE": Method(bounds.piwae, root, total // root),
        "MIWAE": Method(bounds.miwae, root, total // root),
        "CIWAE 0.05": Method(lambda w: bounds.ciwae(w, 0.05), 1, total),
        "CIWAE 0.5": Method(lambda w: bounds.ciwae(w, 0.5), 1, total),
        "VAE": Method(bounds.elbo, total, 1),
        "DReG": Method(bounds.dreg, 1, total, detach=True),
    }


@dataclass(frozen=True)
class DeepConfig:
    """Adam at `learning_rate`, x 0.3 from 60 % and x 0.1 from 85 % of the steps. The signal is
    measured `signal_checks` times, each on one batch with fixed pixels and `signal_repeats` draws
    of the latents. `evidence_particles` is a multiple of 64, above 512 one of 512.
    """

    total: int = 64
    steps: int = 6000
    batch: int = 64
    hidden: int = 64
    latent: int = 16
    learning_rate: float = 1e-3
    signal_checks: int = 8
    signal_repeats: int = 100
    evidence_particles: int = 5120


class Vae(nn.Module):
    """Binary pictures `(B, P)` from `latent` normal numbers; tanh layers, a mirrored decoder
    (Burda et al. 2016, App. C, smaller). `encoder` holds phi, `decoder` theta.
    """

    def __init__(self, mean_picture: Tensor, hidden: int, latent: int) -> None:
        super().__init__()
        pixels = len(mean_picture)
        self.encoder = _layers(pixels, hidden, 2 * latent)
        self.decoder = _layers(latent, hidden, pixels)
        with torch.no_grad():
            self.decoder[-1].bias.copy_(mean_picture.clamp(0.001, 0.999).logit())

    def log_weights(
        self,
        pictures: Tensor,
        groups: int,
        particles: int,
        generator: torch.Generator,
        detach: bool = False,
    ) -> Tensor:
        """log p(x, z) - log q(z | x) `(B, M, K)` of reparameterised z; with the parameters of q
        detached in its density where `detach`, as `bounds.dreg` wants it.
        """
        mean, log_scale = self.encoder(pictures)[:, None, None].chunk(2, -1)
        size = (len(pictures), groups, particles, mean.shape[-1])
        noise = torch.randn(size, generator=generator, device=pictures.device)
        z = mean + log_scale.exp() * noise
        if detach:
            mean, log_scale = mean.detach(), log_scale.detach()
        from_mean = (z - mean) * (-log_scale).exp()
        log_ratio = (from_mean.square() - z.square()).sum(-1) / 2 + log_scale.sum(-1)
        logits = self.decoder(z)
        likelihood = logits.flatten(1, 2) @ pictures.unsqueeze(2)
        return log_ratio + likelihood.view(size[:-1]) - functional.softplus(logits).sum(-1)


def _layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.Tanh(),
        nn.Linear(hidden, hidden),
        nn.Tanh(),
        nn.Linear(hidden, outputs),
    )


def train(
    digits: Digits64, method: Method, config: DeepConfig, seed: int
) -> tuple[Vae, dict[str, list[float]]]:
    """A model, and `step` and the encoder's `signal` during training. With one seed, all methods
    have the same initial weights, pictures and pixels.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = Vae(digits.train.mean(0), config.hidden, config.latent)
    batches, noise, checks = (torch.Generator().manual_seed(3 * seed + i) for i in range(3))
    shown = binarise(digits.train[: config.batch], checks)
    theta, phi = list(model.decoder.parameters()), list(model.encoder.parameters())
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate, fused=True)
    milestones = [int(0.6 * config.steps), int(0.85 * config.steps)]
    history: dict[str, list[float]] = {"step": [], "signal": []}

    def losses(pictures: Tensor, generator: torch.Generator) -> bounds.Losses:
        _, groups, particles, detach = method
        return method.loss(model.log_weights(pictures, groups, particles, generator, detach))

    for step in range(1, config.steps + 1):
        chosen = torch.randint(len(digits.train), (config.batch,), generator=batches)
        pictures = binarise(digits.train[chosen], batches)
        optimizer.zero_grad(set_to_none=True)
        bounds.backward(losses(pictures, noise), theta, phi)
        rate = (1, 0.3, 0.1)[sum(step > milestone for milestone in milestones)]
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate
        optimizer.step()
        if step * config.signal_checks // config.steps > len(history["step"]):
            weights = [layer.weight for layer in model.encoder if isinstance(layer, nn.Linear)]
            estimates = sample_gradients(
                lambda: losses(shown, checks).phi, weights, config.signal_repeats, checks
            )
            history["step"].append(step)
            history["signal"].append(rms_signal_to_noise(estimates))
    return model, history


@torch.no_grad()
def evaluate(model: Vae, digits: Digits64, config: DeepConfig) -> dict[str, Any]:
    """In nats per test picture: `iwae_64`, `log_evidence` (IWAE of all particles) and
    `minus_kl`, their difference, the gap that the bound hides; effective samples per sample `ess`,
    of all particles, and its quantiles over the pictures, and `ess_64`.
    """
    generator = torch.Generator().manual_seed(_TEST_SEED)
    pictures = binarise(digits.test, generator)
    chunk = min(_CHUNK, config.evidence_particles)
    weights = torch.cat(
        [
            model.log_weights(pictures, chunk // _EVALUATED, _EVALUATED, generator)
            for _ in range(config.evidence_particles // chunk)
        ],
        1,
    ).double()
    bound = bounds.log_mean_exp(weights).mean().item()
    evidence = bounds.log_evidence([weights]).mean().item()
    ess = bounds.effective_sample_size(weights.flatten(1)) / weights[0].numel()
    quantiles = ess.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=ess.dtype))
    return {
        "iwae_64": bound,
        "log_evidence": evidence,
        "minus_kl": bound - evidence,
        "ess": ess.mean().item(),
        "ess_quantiles": quantiles.tolist(),
        "ess_64": bounds.effective_sample_size(weights).mean().item() / _EVALUATED,
    }


def train_and_evaluate(
    digits: Digits64, method: Method, config: DeepConfig, seed: int
) -> dict[str, Any]:
    """The scores and the history of one run."""
    model, history = train(digits, method, config, seed)
    return {**evaluate(model, digits, config), **history}


def run_all(
    names: Sequence[str], seeds: int, config: DeepConfig, directory: Path | None = None
) -> list[dict[str, Any]]:
    """Settings, scores, signal and CPU `minutes` of each method and seed, the seeds outermost;
    kept in `directory` as `kept` does.
    """
    digits = load_digits64()
    found = []
    for seed, name in itertools.product(range(seeds), names):
        settings = {"method": name, "seed": seed, "config": asdict(config)}
        compute = partial(train_and_evaluate, digits, methods(config.total)[name], config, seed)
        found.append(kept(directory, f"{name}_{seed}", settings, compute))
    return found


def kept(
    directory: Path | None,
    name: str,
    settings: dict[str, Any],
    compute: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """`settings`, what `compute` gives and its CPU `minutes`. Written to `directory` as soon as it
    is known, and read from there where the settings are the same.
    """
    settings = json.loads(json.dumps(settings))  # as they will be read
    file = directory / f"{name.lower().replace(' ', '_')}.json" if directory else None
    known = json.loads(file.read_text()) if file and file.is_file() else {}
    if settings.items() <= known.items():
        return known
    start = time.process_time()
    run = {**settings, **compute(), "minutes": (time.process_time() - start) / 60}
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(run))
    return run
