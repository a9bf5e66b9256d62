# SPDX-License-Identifier: Apache-2.0
"""Estimators of gradients through trees: learning a grammar and its parser from sentences alone
(Le et al. 2019, section 5.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from oc_perception.models.grammar import GrammarModel, GrammarNetwork
from oc_perception.objectives.bounds import Losses, backward
from oc_perception.objectives.score_function import reinforce, vimco
from oc_perception.objectives.wake_sleep import wake_sleep, wake_wake
from oc_perception.worlds import grammar
from oc_perception.worlds.grammar import Trees

METHODS = ("ws", "ww", "vimco", "reinforce")
TEST_SENTENCE = "astronomers saw stars with telescopes"

_RECORDS = 20
_TEST_TREES = 100
_PARSES = 500  # of the test sentence


@dataclass(frozen=True)
class GrammarTraining:
    """One method, with K `particles` for each sentence."""

    method: str
    particles: int
    steps: int = 2000
    batch_size: int = 2
    learning_rate: float = 3e-3


class _Learner:
    """A grammar, a parser and the losses of one method."""

    def __init__(self, training: GrammarTraining, seed: int) -> None:
        self.training = training
        self.generator = torch.Generator().manual_seed(seed)
        self.model = GrammarModel(self.generator)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.network = GrammarNetwork()

    def losses(self, sentences: Tensor, lengths: Tensor) -> Losses:
        """Of `sentences` `(B, L)` with `lengths` `(B,)`."""
        particles, method = self.training.particles, self.training.method
        codes = self.network.encode(sentences, lengths).repeat_interleave(particles, 0)
        trees, log_q = self.network.sample(codes, self.generator)
        repeated = (part.repeat_interleave(particles, 0) for part in (sentences, lengths))
        distance = grammar.edit_distance(*repeated, trees.sentences, trees.lengths)
        log_p = self.model.log_prior(trees.counts) - distance.square()
        log_p, log_q = (term.view(-1, 1, particles) for term in (log_p, log_q))
        if method == "ww":
            return wake_wake(log_p, log_q)
        if method == "ws":
            probabilities = self.model.log_probabilities().detach()
            dreams = grammar.draw(probabilities, len(codes), self.generator)
            return wake_sleep(log_p, log_q, self._score(dreams))
        return {"vimco": vimco, "reinforce": reinforce}[method](log_p - log_q, log_q)

    def step(self, optimizer: torch.optim.Optimizer, sentences: Tensor, lengths: Tensor) -> None:
        """Descend once on `losses`."""
        optimizer.zero_grad()
        losses = self.losses(sentences, lengths)
        backward(losses, self.model.parameters(), self.network.parameters())
        optimizer.step()

    @torch.no_grad()
    def sleep_loss(self, trees: Trees) -> float:
        """Mean of -log q of true `trees`: the forward divergence but for a constant."""
        return -self._score(trees).mean().item()

    @torch.no_grad()
    def matches(self, sentence: str) -> float:
        """Share of sampled trees whose sentence is `sentence`."""
        words = torch.tensor([[grammar.WORDS.index(word) for word in sentence.split()]])
        words, lengths = words.expand(_PARSES, -1), torch.full((_PARSES,), words.shape[1])
        trees, _ = self.network.sample(self.network.encode(words, lengths), self.generator)
        distance = grammar.edit_distance(words, lengths, trees.sentences, trees.lengths)
        return (distance == 0).float().mean().item()

    def _score(self, trees: Trees) -> Tensor:
        """`(N,)`: log q of trees given their own sentences."""
        codes = self.network.encode(trees.sentences, trees.lengths)
        return self.network.log_prob(codes, trees)


def train_grammar(training: GrammarTraining, seed: int) -> dict[str, object]:
    """How far the productions are from the true ones, and how well sentences are parsed, at the
    end and along the way.
    """
    learner = _Learner(training, seed)
    true = grammar.PROBABILITIES.log()
    test = grammar.draw(true, _TEST_TREES, torch.Generator().manual_seed(seed))
    parameters = [*learner.model.parameters(), *learner.network.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=training.learning_rate)
    curve: dict[str, list[float]] = {name: [] for name in ("step", "production_kl", "sleep_loss")}

    def record(step: int) -> None:
        curve["step"].append(step)
        curve["production_kl"].append(learner.model.divergence())
        curve["sleep_loss"].append(learner.sleep_loss(test))

    for step in range(training.steps):
        if step % max(1, training.steps // _RECORDS) == 0:
            record(step)
        data = grammar.draw(true, training.batch_size, learner.generator)
        learner.step(optimizer, data.sentences, data.lengths)
    record(training.steps)
    return {
        "production_kl": curve["production_kl"][-1],
        "sleep_loss": curve["sleep_loss"][-1],
        "matches": learner.matches(TEST_SENTENCE),
        "curve": curve,
    }
