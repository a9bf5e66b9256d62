# SPDX-License-Identifier: Apache-2.0
"""Estimators of gradients through a discrete latent, on a mixture of 20 Gaussians in which every
error can be computed (Le et al. 2019, section 5.2).

Independent repetitions are trained side by side. The schedule is ten times faster than the
published one: Adam with 1e-2 instead of 1e-3, 10 000 steps, not 100 000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from oc_perception.models.mixture import MixtureModels
from oc_perception.objectives.bounds import Losses, backward, iwae
from oc_perception.objectives.relaxation import (
    conditional_gumbels,
    gumbels,
    log_concrete,
    log_concrete_density,
    relax_gradients,
)
from oc_perception.objectives.score_function import reinforce, vimco
from oc_perception.objectives.wake_sleep import (
    defensive,
    delta_wake_wake,
    wake_sleep,
    wake_theta,
    wake_wake,
)
from oc_perception.worlds.mixture import sample_categorical

SUPPORTED = 1e-3  # least probability of a component that the model has kept
_TEST_POINTS = 100
_RECORDS = 20  # of the errors while training
_GRADIENTS = 10  # from which the spread of the gradient is estimated
_TEMPERATURES = (3.0, 0.5)  # of Concrete, first and last


@dataclass(frozen=True)
class MixtureTraining:
    """One method from one `start` (`MixtureModels`), with K `particles` for each point."""

    method: str
    particles: int
    start: str = "far"
    repetitions: int = 5
    steps: int = 10_000
    batch_size: int = 100
    learning_rate: float = 1e-2
    delta: float = 0.2


def _groups(*terms: Tensor) -> tuple[Tensor, ...]:
    """`(R, B, K)` as the objectives take it: one group for each point of each repetition."""
    return tuple(term.flatten(0, 1).unsqueeze(1) for term in terms)


class _Learner:
    """Models and the gradients of one method at points `x` `(R, B)` of R repetitions."""

    def __init__(self, training: MixtureTraining, seed: int) -> None:
        self.training = training
        self.generator = torch.Generator().manual_seed(seed)
        self.models = MixtureModels(training.repetitions, training.start, self.generator)
        self.temperature = _TEMPERATURES[0]

    def fill_gradients(self, x: Tensor) -> None:
        """Into `.grad`, of each repetition's own mean over its points."""
        self.models.zero_grad()
        if self.training.method == "relax":  # its control variate learns from the gradients
            return self._fill_relax(x)
        losses = getattr(self, _LOSSES[self.training.method])(x)
        theta = losses.theta * len(x)
        phi = theta if losses.phi is losses.theta else losses.phi * len(x)
        backward(Losses(theta, phi), [self.models.theta], self.models.network.parameters())

    def _draw(self, log_proposal: Tensor) -> Tensor:
        """`(R, B, K)`: latents from `log_proposal` `(R, B, C)`."""
        return sample_categorical(log_proposal, self.training.particles, self.generator)

    def _particles(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z, x) and log q(z | x) of particles of q."""
        log_probabilities = self.models.log_posterior(x)
        z = self._draw(log_probabilities)
        return _groups(self.models.log_joint(x, z), log_probabilities.gather(-1, z))

    def _reinforce(self, x: Tensor) -> Losses:
        log_p, log_q = self._particles(x)
        return reinforce(log_p - log_q, log_q)

    def _vimco(self, x: Tensor) -> Losses:
        log_p, log_q = self._particles(x)
        return vimco(log_p - log_q, log_q)

    def _concrete(self, x: Tensor) -> Losses:
        """The bound of the relaxed model: prior and q Concrete, x between the components."""
        particles, temperature = self.training.particles, self.temperature
        log_q = self.models.log_posterior(x).unsqueeze(2).expand(-1, -1, particles, -1)
        log_y = log_concrete(log_q, temperature, self.generator)
        position = (log_y.exp() * torch.arange(log_y.shape[-1])).sum(-1)
        prior = log_concrete_density(log_y, self.models.log_prior()[:, None, None], temperature)
        log_p = prior + self.models.world.log_likelihood(x.unsqueeze(-1), position)
        (log_weights,) = _groups(log_p - log_concrete_density(log_y, log_q, temperature))
        return iwae(log_weights)

    def _wake_wake(self, x: Tensor) -> Losses:
        return wake_wake(*self._particles(x))

    def _delta_wake_wake(self, x: Tensor) -> Losses:
        log_probabilities = self.models.log_posterior(x)
        uniform = -math.log(log_probabilities.shape[-1])
        mixture = defensive(log_probabilities, uniform, self.training.delta)
        z, covering = self._draw(log_probabilities), self._draw(mixture)
        terms = _groups(
            self.models.log_joint(x, z),
            log_probabilities.gather(-1, z),
            self.models.log_joint(x, covering),
            log_probabilities.gather(-1, covering),
            mixture.gather(-1, covering),
        )
        return delta_wake_wake(*terms)

    def _wake_sleep(self, x: Tensor) -> Losses:
        """As many dreams as there are particles."""
        count = x.shape[1] * self.training.particles
        z, dreams = self.models.world.sample(self.models.log_prior(), count, self.generator)
        dream_log_q = self.models.log_posterior(dreams).gather(-1, z.unsqueeze(-1))
        return wake_sleep(*self._particles(x), dream_log_q)

    def _fill_relax(self, x: Tensor) -> None:
        """The control variate minimises the mean square of phi's gradient."""
        models, particles = self.models, self.training.particles
        phi = list(models.network.parameters())
        log_probabilities = models.log_posterior(x)
        repeated = log_probabilities.unsqueeze(2).expand(-1, -1, particles, -1)
        free = gumbels(repeated, self.generator)
        z = free.argmax(-1)
        conditional = conditional_gumbels(repeated, z, self.generator)
        points = x[:, :, None, None].expand(-1, -1, particles, 1)
        controls = []
        for g in (free, conditional):
            value = models.control(torch.cat([points, g], -1).flatten(1, 2))
            controls.append(value.view(z.shape).mean(-1).view(-1, 1))
        log_p, log_q = _groups(models.log_joint(x, z), log_probabilities.gather(-1, z))
        gradients = relax_gradients(log_p - log_q, log_q, *controls, phi)
        gradients = [gradient * len(x) for gradient in gradients]
        squares = sum(gradient.square().sum() for gradient in gradients)
        squares.backward(inputs=list(models.control.parameters()))
        (wake_theta(log_p, log_q) * len(x)).backward(inputs=[models.theta])
        for parameter, gradient in zip(phi, gradients, strict=True):
            parameter.grad = gradient.detach()


_LOSSES = {
    "ws": "_wake_sleep",
    "ww": "_wake_wake",
    "delta-ww": "_delta_wake_wake",
    "vimco": "_vimco",
    "reinforce": "_reinforce",
    "concrete": "_concrete",
}
METHODS = (*_LOSSES, "relax")


def train_mixture(training: MixtureTraining, seed: int) -> dict[str, object]:
    """Errors of every repetition after training, and their medians along the way."""
    learner = _Learner(training, seed)
    models, generator = learner.models, learner.generator
    true = models.world.true_log_prior()
    _, test = models.world.sample(true, _TEST_POINTS, generator)
    optimizer = torch.optim.Adam(models.parameters(), lr=training.learning_rate, fused=True)
    priors = true.expand(training.repetitions, -1)
    curve = {"step": [], "p_error": [], "q_error": []}
    first, last = _TEMPERATURES
    for step in range(training.steps):
        if step % max(1, training.steps // _RECORDS) == 0:
            _record(curve, step, _errors(models, test))
        learner.temperature = first + step / training.steps * (last - first)
        _, x = models.world.sample(priors, training.batch_size, generator)
        learner.fill_gradients(x)
        optimizer.step()
    errors = _errors(models, test)
    _record(curve, training.steps, errors)
    probability = models.log_prior().exp()
    support = ((probability > SUPPORTED) * torch.arange(probability.shape[-1])).amax(-1)
    _, x = models.world.sample(priors, training.batch_size, generator)
    return {
        "p_error": errors[0].tolist(),
        "q_error": errors[1].tolist(),
        "support": support.tolist(),
        "phi_gradient_std": _gradient_spread(learner, x).tolist(),
        "probability": probability.median(0).values.tolist(),
        "curve": curve,
    }


@torch.no_grad()
def _errors(models: MixtureModels, test: Tensor) -> tuple[Tensor, Tensor]:
    """`(R,)` each: distance of the prior to the true one, mean distance of q to the true
    posterior at `test` `(N,)`.
    """
    true = models.world.true_log_prior()
    q = models.log_posterior(test.expand(len(models.theta), -1)).exp()
    q_error = (q - models.world.posterior(test, true)).norm(dim=-1).mean(-1)
    return (models.log_prior().exp() - true.exp()).norm(dim=-1), q_error


def _record(curve: dict[str, list[float]], step: int, errors: tuple[Tensor, Tensor]) -> None:
    curve["step"].append(step)
    curve["p_error"].append(errors[0].median().item())
    curve["q_error"].append(errors[1].median().item())


def _gradient_spread(learner: _Learner, x: Tensor) -> Tensor:
    """`(R,)`: standard deviation of phi's gradient at the same points, mean over parameters."""
    draws = []
    for _ in range(_GRADIENTS):
        learner.fill_gradients(x)
        phi = learner.models.network.parameters()
        draws.append(torch.cat([parameter.grad.flatten(1) for parameter in phi], 1))
    return torch.stack(draws).std(0).mean(1)
