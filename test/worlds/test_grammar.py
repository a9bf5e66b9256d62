# SPDX-License-Identifier: Apache-2.0
"""Trees of the grammar, their sentences, and the models of both."""

import itertools
import math

import pytest
import torch

from oc_perception.models.grammar import GrammarModel, GrammarNetwork
from oc_perception.worlds import grammar
from oc_perception.worlds.grammar import ALLOWED, PRODUCTIONS, SYMBOLS, WORDS

TRUE = grammar.PROBABILITIES.log()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def words(trees, index):
    return [WORDS[word] for word in trees.sentences[index, : trees.lengths[index]]]


def read(trees, index):
    """The words of a tree, by recursion through its levels."""
    rows = [
        [row for row in range(len(level.tree)) if level.tree[row] == index]
        for level in trees.levels
    ]

    def expand(depth, row):
        level = trees.levels[depth]
        symbol = SYMBOLS[level.symbol[row]]
        right = list(PRODUCTIONS[symbol])[level.production[row]].split()
        below = iter(
            [child for child in rows[depth + 1] if trees.levels[depth + 1].parent[child] == row]
            if depth + 1 < len(trees.levels)
            else []
        )
        for name in right:
            if name in WORDS:
                yield name
            else:
                child = next(below, None)
                yield from ["unfinished"] if child is None else expand(depth + 1, child)

    return list(expand(0, rows[0][0]))


def test_sentences_are_the_leaves_of_their_trees_in_order():
    trees = grammar.draw(TRUE, 60, seeded())
    assert max(trees.lengths) > 20
    for index in range(60):
        assert words(trees, index) == read(trees, index)


def test_productions_are_used_as_often_as_told():
    trees = grammar.draw(TRUE, 4000, seeded())
    used = trees.counts.sum(0)
    torch.testing.assert_close(
        used / used.sum(1, keepdim=True), grammar.PROBABILITIES, atol=0.01, rtol=0
    )


def test_a_grammar_without_end_stops_with_unfinished_words():
    endless = torch.where(ALLOWED, -30.0, -torch.inf)
    endless[:, 0] = 0.0  # NP -> NP PP, for ever
    trees = grammar.draw(endless.log_softmax(-1), 3, seeded())
    assert trees.counts.sum((1, 2)).max() <= grammar.MAX_EXPANSIONS
    assert "unfinished" in words(trees, 0)


def chosen(*productions):
    """One tree whose symbols, level by level, take these productions."""
    queue = iter(productions)
    return grammar.derive(lambda tree, symbol, parent: torch.tensor(next(queue)), 1)


def test_prior_of_a_tree_is_the_product_of_its_productions():
    # S; NP VP; astronomers, V NP; saw, NP PP; stars, P NP; with, telescopes
    trees = chosen([0], [1, 0], [0, 0], [4, 0], [0, 5])
    assert " ".join(words(trees, 0)) == "astronomers saw stars with telescopes"
    model = GrammarModel(seeded())
    with torch.no_grad():
        model.logits.copy_(grammar.PROBABILITIES.clamp(min=1e-9).log())
    expected = math.log(0.1 * 0.7 * 0.4 * 0.18 * 0.1)
    assert model.log_prior(trees.counts).item() == pytest.approx(expected, abs=1e-5)
    assert model.divergence() == pytest.approx(0, abs=1e-6)


def test_divergence_counts_the_symbols_without_a_choice():
    model = GrammarModel(seeded())
    with torch.no_grad():
        model.logits.zero_()
    noun = torch.tensor([0.4, 0.1, 0.18, 0.04, 0.18, 0.1])
    verb = torch.tensor([0.7, 0.3])
    expected = (noun * (6 * noun).log()).sum() + (verb * (2 * verb).log()).sum()
    assert model.divergence() == pytest.approx(expected.item() / 6, abs=1e-6)


def levenshtein(first, second):
    table = {(i, 0): i for i in range(len(first) + 1)} | {
        (0, j): j for j in range(len(second) + 1)
    }
    for i, j in itertools.product(range(1, len(first) + 1), range(1, len(second) + 1)):
        replaced = table[i - 1, j - 1] + (first[i - 1] != second[j - 1])
        table[i, j] = min(replaced, table[i - 1, j] + 1, table[i, j - 1] + 1)
    return table[len(first), len(second)]


def test_edit_distance_agrees_with_the_textbook():
    generator = seeded(4)
    sizes = torch.randint(1, 9, (2, 80), generator=generator)
    first, second = torch.randint(0, 3, (2, 80, 8), generator=generator)
    found = grammar.edit_distance(first, sizes[0], second, sizes[1])
    for index, (n, m) in enumerate(sizes.t().tolist()):
        expected = levenshtein(first[index, :n].tolist(), second[index, :m].tolist())
        assert found[index] == expected


@pytest.fixture
def network():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return GrammarNetwork(size=16)


def test_trees_are_sampled_as_often_as_their_probability_says(network):
    sentence = grammar.draw(TRUE, 1, seeded())
    codes = network.encode(sentence.sentences, sentence.lengths).expand(20_000, -1)
    trees, log_q = network.sample(codes, seeded(1))
    torch.testing.assert_close(network.log_prob(codes, trees), log_q)
    probability = log_q.exp()
    keys = torch.cat([trees.counts.flatten(1), trees.sentences], 1)
    _, kinds, counts = keys.unique(dim=0, return_inverse=True, return_counts=True)
    for kind in counts.argsort(descending=True)[:5]:
        p = probability[kinds == kind][0].item()
        error = counts[kind].item() / 20_000 - p
        assert abs(error) < 4 * math.sqrt(p * (1 - p) / 20_000)


def test_sentences_of_a_batch_are_read_each_by_itself(network):
    trees = grammar.draw(TRUE, 6, seeded(2))
    assert len(set(trees.lengths.tolist())) > 1
    codes = network.encode(trees.sentences, trees.lengths)
    for index, length in enumerate(trees.lengths):
        alone = trees.sentences[index : index + 1, :length]
        torch.testing.assert_close(network.encode(alone, length.view(1))[0], codes[index])


def test_the_network_learns_trees_that_it_is_shown(network):
    trees = grammar.draw(TRUE, 10, seeded(3))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        codes = network.encode(trees.sentences, trees.lengths)
        losses.append(-network.log_prob(codes, trees).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
