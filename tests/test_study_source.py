# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The study's sources: the Markov mixture's exact conditionals against enumeration, and text."""

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare
from tradeoff_study.markov import MarkovMixture
from tradeoff_study.text import ALPHABET, TextSource, as_letters


SYMBOLS, LENGTH = 3, 4
STRINGS = list(itertools.product(range(SYMBOLS), repeat=LENGTH))


@pytest.fixture(scope="module")
def source():
    return MarkovMixture(LENGTH, num_chains=3, num_symbols=SYMBOLS, concentration=0.5, seed=2)


@pytest.fixture(scope="module")
def joint(source):
    """p(string) of each of STRINGS, written as a chain is defined."""
    probabilities = []
    for string in STRINGS:
        of_chains = 0.0
        for first, steps in zip(source.stationary.tolist(), source.transitions.tolist(), strict=True):
            probability = first[string[0]]
            for here, there in itertools.pairwise(string):
                probability *= steps[here][there]
            of_chains += probability / len(source.stationary)
        probabilities.append(of_chains)
    return torch.tensor(probabilities, dtype=torch.float64)


def test_chains_are_stationary_distributions(source, joint):
    assert torch.allclose(source.stationary.sum(-1), torch.ones(3, dtype=torch.float64))
    after = (source.stationary[:, None] @ source.transitions)[:, 0]
    assert torch.allclose(after, source.stationary, atol=1e-12)
    assert (source.transitions > 0).all()
    assert joint.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("order", list(itertools.permutations(range(LENGTH))))
def test_conditionals_are_those_of_the_enumerated_joint(source, joint, order):
    tokens = torch.tensor(STRINGS)
    found = source.conditionals(tokens, torch.tensor(order).expand_as(tokens))
    for row, column in enumerate(order):
        seen = list(order[:row])
        # agrees[i, j]: string j has string i's tokens in the columns that are seen.
        agrees = (tokens[:, None, seen] == tokens[None, :, seen]).all(-1)
        weights = agrees * joint
        naive = torch.stack([(weights * (tokens[:, column] == symbol)).sum(1) for symbol in range(SYMBOLS)], dim=1)
        naive /= weights.sum(1, keepdim=True)
        assert torch.allclose(found[:, row], naive, atol=1e-12)


def test_exact_nll_is_the_entropy_in_any_order(source, joint):
    """The exact negative log-likelihood, averaged by brute force, is the joint's entropy."""
    tokens = torch.tensor(STRINGS)
    entropy = -float((joint * joint.log()).sum())
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        order = torch.tensor(order).expand_as(tokens)
        chosen = source.conditionals(tokens, order).gather(-1, tokens.gather(1, order)[..., None])[..., 0]
        assert float((joint * -chosen.log().sum(1)).sum()) == pytest.approx(entropy, abs=1e-12)


def test_each_sentence_has_its_own_order(source):
    tokens = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    orders = torch.tensor([[3, 1, 0, 2], [0, 2, 3, 1]])
    together = source.conditionals(tokens, orders)
    for example in range(2):
        alone = source.conditionals(tokens[example, None], orders[example, None])
        assert torch.equal(together[example], alone[0])


def test_samples_follow_the_joint(source, joint):
    tokens = source.sample(20_000, LENGTH, torch.Generator().manual_seed(0))
    place = torch.tensor([SYMBOLS**power for power in reversed(range(LENGTH))])
    counts = (tokens * place).sum(1).bincount(minlength=len(STRINGS))
    assert chisquare(counts.numpy(), (joint * 20_000).numpy()).pvalue > 1e-3


def test_unigram_entropy(source, joint):
    tokens = torch.tensor(STRINGS)
    marginal = torch.stack([(joint * (tokens[:, 2] == symbol)).sum() for symbol in range(SYMBOLS)])
    assert source.unigram_entropy() == pytest.approx(-float((marginal * marginal.log()).sum()), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_chains": 0}, "`num_chains` must be at least 1, got 0"),
        ({"num_symbols": 0}, "`num_symbols` must be at least 1, got 0"),
        ({"concentration": 0.0}, "`concentration` must be positive, got 0.0"),
    ],
)
def test_bad_numbers_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MarkovMixture(4, **arguments)


def test_sentences_that_are_too_long_are_named(source):
    tokens = torch.zeros(1, LENGTH + 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="at most max_length=4 columns, got 5"):
        source.conditionals(tokens, torch.arange(LENGTH + 1)[None])


def test_text_becomes_letters():
    assert as_letters("  Élan, “vital”:\n42 x ") == "elan vital x"


def test_text_windows_are_what_stands_there():
    text = "the quick brown fox jumps over the lazy dog"
    source = TextSource(text)
    windows = source.sample(500, 7, torch.Generator().manual_seed(0))
    spelled = TextSource.spell(windows)
    assert all(each in text for each in spelled)
    # Every place, the first and the last one too.
    assert {text.index(each) for each in spelled} >= {0, len(text) - 7}
    assert TextSource.spell(source.windows(2, 7)) == [text[:7], text[-7:]]
    counts = [text.count(letter) / len(text) for letter in ALPHABET]
    entropy = -sum(share * math.log(share) for share in counts if share)
    assert source.unigram_entropy() == pytest.approx(entropy)


def test_bad_text_is_named():
    with pytest.raises(ValueError, match="must be of the symbols .* got '!A' as well"):
        TextSource("Ab!")
    with pytest.raises(ValueError, match="must have symbols, got an empty one"):
        TextSource("")
    with pytest.raises(ValueError, match="at most that of the text, 3, got 4"):
        TextSource("abc").sample(1, 4, torch.Generator())
