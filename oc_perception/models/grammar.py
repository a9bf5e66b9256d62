# SPDX-License-Identifier: Apache-2.0
"""A grammar with unknown probabilities, and a network that guesses the tree of a sentence (Le et
al. 2019, section 5.3, in the sizes of its published code).

Generation: a tree z of productions with probabilities softmax(theta); a sentence x with
p(x | z) = exp(-distance(x, sentence of z)^2), the distance being the least number of words to
replace, leave out or put in. Inference: a GRU reads the sentence; a second one runs from the root
of the tree to its leaves, and tells at each symbol the probabilities of its productions. What
happened elsewhere in the tree it does not see.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pack_padded_sequence

from oc_perception.worlds import grammar
from oc_perception.worlds.grammar import ALLOWED, MAX_PRODUCTIONS, SYMBOLS, WORDS, Trees
from oc_perception.worlds.mixture import sample_categorical

_CHOICES = {row: int(count) for row, count in enumerate(ALLOWED.sum(1)) if count > 1}
_ROOT = MAX_PRODUCTIONS  # in place of the production of a parent


class GrammarModel(nn.Module):
    """Logits of all productions, at first normally distributed."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(ALLOWED.shape, generator=generator))

    def log_probabilities(self) -> Tensor:
        """`(symbol, production)`, -inf where the grammar has none."""
        return self.logits.masked_fill(~ALLOWED, -torch.inf).log_softmax(-1)

    def log_prior(self, counts: Tensor) -> Tensor:
        """`(N,)`: log p(z) of trees with `counts` `(N, symbol, production)`."""
        return (counts * self.log_probabilities().masked_fill(~ALLOWED, 0)).sum((1, 2))

    @torch.no_grad()
    def divergence(self) -> float:
        """KL(true || learned), in nats, mean over the six symbols."""
        true = grammar.PROBABILITIES
        ratio = (true.log() - self.log_probabilities()).masked_fill(~ALLOWED, 0)
        return (true * ratio).sum(-1).mean().item()


class GrammarNetwork(nn.Module):
    """q(z | x): `encode` sentences, then `sample` trees of them or tell their `log_prob`."""

    def __init__(self, size: int = 100) -> None:
        super().__init__()
        self.reader = nn.GRU(len(WORDS), size, batch_first=True)
        # A GRU cell on the code, the symbol and the production of its parent: what the code adds
        # is computed once for each tree.
        self.from_code = nn.Linear(size, 3 * size)
        self.from_symbol = nn.Embedding(len(SYMBOLS), 3 * size)
        self.from_production = nn.Embedding(MAX_PRODUCTIONS + 1, 3 * size)
        self.from_hidden = nn.Linear(size, 3 * size)
        for table in (self.from_symbol, self.from_production):
            nn.init.uniform_(table.weight, -(size**-0.5), size**-0.5)
        self.heads = nn.ModuleDict(
            {
                SYMBOLS[row]: nn.Sequential(
                    nn.Linear(size, 50), nn.ReLU(), nn.Linear(50, 25), nn.ReLU(),
                    nn.Linear(25, count),
                )
                for row, count in _CHOICES.items()
            }
        )  # fmt: skip

    def encode(self, sentences: Tensor, lengths: Tensor) -> Tensor:
        """`(N, 100)` of `sentences` `(N, L)`."""
        words = one_hot(sentences.clamp(min=0), len(WORDS)).float()
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        return self.reader(packed)[1].squeeze(0)

    def sample(self, codes: Tensor, generator: torch.Generator) -> tuple[Trees, Tensor]:
        """A tree for each of `codes` `(N, 100)`, and its log-probability `(N,)`."""
        inputs, production, states = self.from_code(codes), None, []

        def choose(tree: Tensor, symbol: Tensor, parent: Tensor) -> Tensor:
            nonlocal production
            above = states[-1] if states else None
            states.append(self._descend(inputs[tree], symbol, parent, above, production))
            production = torch.zeros_like(symbol)
            with torch.no_grad():
                for row in _CHOICES:
                    (here,) = (symbol == row).nonzero(as_tuple=True)
                    log_q = self.heads[SYMBOLS[row]](states[-1][here]).log_softmax(-1)
                    production[here] = sample_categorical(log_q, 1, generator).squeeze(-1)
            return production

        trees = grammar.derive(choose, len(codes))
        return trees, self._score(torch.cat(states), trees)

    def log_prob(self, codes: Tensor, trees: Trees) -> Tensor:
        """`(N,)`: log q(z | x) of `trees`, one for each of `codes` `(N, 100)`."""
        inputs, hidden, production, states = self.from_code(codes), None, None, []
        for level in trees.levels:
            where = inputs[level.tree], level.symbol, level.parent
            hidden, production = self._descend(*where, hidden, production), level.production
            states.append(hidden)
        return self._score(torch.cat(states), trees)

    def _score(self, states: Tensor, trees: Trees) -> Tensor:
        """`(N,)`: log q of the productions of `trees`, from the states of all levels."""
        symbol, production, tree = (
            torch.cat([getattr(level, name) for level in trees.levels])
            for name in ("symbol", "production", "tree")
        )
        total = states.new_zeros(len(trees.lengths))
        for row in _CHOICES:
            (here,) = (symbol == row).nonzero(as_tuple=True)
            log_q = self.heads[SYMBOLS[row]](states[here]).log_softmax(-1)
            chosen = log_q.gather(1, production[here].unsqueeze(1)).squeeze(1)
            total = total.index_add(0, tree[here], chosen)
        return total

    def _descend(
        self,
        inputs: Tensor,
        symbol: Tensor,
        parent: Tensor,
        hidden: Tensor | None,
        production: Tensor | None,
    ) -> Tensor:
        """States `(n, 100)` of a level, from those and the productions of the level above."""
        if hidden is None:
            above = torch.full_like(symbol, _ROOT)
            hidden = inputs.new_zeros(len(symbol), inputs.shape[1] // 3)
        else:
            above, hidden = production[parent], hidden[parent]
        inputs = inputs + self.from_symbol(symbol) + self.from_production(above)
        reset, update, new = inputs.chunk(3, -1)
        reset_hidden, update_hidden, new_hidden = self.from_hidden(hidden).chunk(3, -1)
        reset, update = (reset + reset_hidden).sigmoid(), (update + update_hidden).sigmoid()
        return torch.lerp((new + reset * new_hidden).tanh(), hidden, update)
