# SPDX-License-Identifier: Apache-2.0
"""Sentences about astronomers from a probabilistic context-free grammar, the hidden tree of each
of which can be drawn and scored (grammar of Manning and Schütze 1999, as in Le et al. 2019).

Trees grow level by level, all trees of a batch at once. A tree that would need more than
`MAX_EXPANSIONS` of its symbols, or is deeper than `MAX_DEPTH`, stays unfinished: what was not
expanded is read as one word of its own, so that wild grammars too are proper distributions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from oc_perception.worlds.mixture import sample_categorical

SYMBOLS = ("S", "NP", "VP", "PP", "P", "V")
WORDS = ("astronomers", "ears", "saw", "stars", "telescopes", "with", "unfinished")
PRODUCTIONS: dict[str, dict[str, float]] = {
    "S": {"NP VP": 1.0},
    "NP": {
        "NP PP": 0.4, "astronomers": 0.1, "ears": 0.18,
        "saw": 0.04, "stars": 0.18, "telescopes": 0.1,
    },
    "VP": {"V NP": 0.7, "VP PP": 0.3},
    "PP": {"P NP": 1.0},
    "P": {"with": 1.0},
    "V": {"saw": 1.0},
}  # fmt: skip
MAX_PRODUCTIONS = max(map(len, PRODUCTIONS.values()))
MAX_EXPANSIONS = 100
MAX_DEPTH = 40

_FIRST_WORD = len(SYMBOLS)
_NONE = -1
_UNFINISHED = WORDS.index("unfinished")


def _tables() -> tuple[Tensor, Tensor]:
    """Children `(symbol, production, 2)` and probabilities `(symbol, production)`."""
    names = [*SYMBOLS, *WORDS]
    children = torch.full((len(SYMBOLS), MAX_PRODUCTIONS, 2), _NONE)
    probabilities = torch.zeros(len(SYMBOLS), MAX_PRODUCTIONS)
    for symbol, productions in PRODUCTIONS.items():
        row = SYMBOLS.index(symbol)
        for column, (right, probability) in enumerate(productions.items()):
            numbers = [names.index(name) for name in right.split()]
            children[row, column, : len(numbers)] = torch.tensor(numbers)
            probabilities[row, column] = probability
    return children, probabilities


_CHILDREN, PROBABILITIES = _tables()
ALLOWED = PROBABILITIES > 0


class Level(NamedTuple):
    """All symbols of one depth `(n,)`: in which tree, which, the index of the parent in the level
    above, and by which production it was expanded.
    """

    tree: Tensor
    symbol: Tensor
    parent: Tensor
    production: Tensor


class Trees(NamedTuple):
    """N trees: their levels, how often each used each production `(N, symbol, production)`, and
    their sentences `(N, L)`, indices into `WORDS` filled with -1, of `lengths` `(N,)`.
    """

    levels: list[Level]
    counts: Tensor
    sentences: Tensor
    lengths: Tensor


def derive(choose: Callable[[Tensor, Tensor, Tensor], Tensor], count: int) -> Trees:
    """`count` trees from S down. `choose(tree, symbol, parent)`, called once for each level, gives
    the production of each of its symbols `(n,)`.
    """
    tree = torch.arange(count)
    symbol, parent, place = torch.zeros(3, count, dtype=torch.int64)
    expansions = torch.ones(count, dtype=torch.int64)
    levels, leaves = [], []
    for depth in range(MAX_DEPTH):
        production = choose(tree, symbol, parent)
        levels.append(Level(tree, symbol, parent, production))
        # A path of left (0) and right (1) turns, read as a number, orders the leaves of a tree.
        places = torch.stack([place, place + (1 << (MAX_DEPTH - 1 - depth))], 1)
        children = _CHILDREN[symbol, production]
        parent, side = (children != _NONE).nonzero(as_tuple=True)
        tree, symbol, place = tree[parent], children[parent, side], places[parent, side]
        inner = symbol < _FIRST_WORD
        expansions = expansions + torch.bincount(tree[inner], minlength=count)
        inner &= expansions[tree] <= MAX_EXPANSIONS
        if depth == MAX_DEPTH - 1:
            inner = torch.zeros_like(inner)
        leaves.append(torch.stack([tree, place, symbol])[:, ~inner])
        tree, symbol, parent, place = tree[inner], symbol[inner], parent[inner], place[inner]
        if not len(tree):
            break
    cells = torch.cat([(lv.tree * len(SYMBOLS) + lv.symbol) * MAX_PRODUCTIONS + lv.production
                       for lv in levels])  # fmt: skip
    counts = torch.bincount(cells, minlength=count * ALLOWED.numel())
    return Trees(levels, counts.view(count, *ALLOWED.shape), *_read(torch.cat(leaves, 1), count))


def draw(log_probabilities: Tensor, count: int, generator: torch.Generator) -> Trees:
    """`count` trees of the grammar with `log_probabilities` `(symbol, production)`."""

    def choose(tree: Tensor, symbol: Tensor, parent: Tensor) -> Tensor:
        return sample_categorical(log_probabilities[symbol], 1, generator).squeeze(-1)

    return derive(choose, count)


def edit_distance(
    first: Tensor, first_lengths: Tensor, second: Tensor, second_lengths: Tensor
) -> Tensor:
    """`(N,)`: Levenshtein distances, in words, of sentences `(N, L)` and `(N, L')`."""
    places = torch.arange(second.shape[1] + 1)
    row = places.expand(len(second), -1)
    for index, word in enumerate(first.unbind(1)):
        replaced = row[:, :-1] + (second != word.unsqueeze(1))
        left_out = row + 1
        best = torch.cat([left_out[:, :1], replaced.minimum(left_out[:, 1:])], 1)
        put_in = (best - places).cummin(1).values + places  # any number of words, one by one
        row = torch.where((index < first_lengths).unsqueeze(1), put_in, row)
    return row.gather(1, second_lengths.unsqueeze(1)).squeeze(1)


def _read(leaves: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sentences and lengths from `leaves` `(3, n)`: tree, place in it, symbol or word."""
    tree, _, symbol = leaves[:, ((leaves[0] << MAX_DEPTH) + leaves[1]).argsort()]
    lengths = torch.bincount(tree, minlength=count)
    starts = lengths.cumsum(0) - lengths
    sentences = torch.full((count, int(lengths.max())), _NONE)
    words = torch.where(symbol < _FIRST_WORD, _UNFINISHED, symbol - _FIRST_WORD)
    sentences[tree, torch.arange(len(tree)) - starts[tree]] = words
    return sentences, lengths
