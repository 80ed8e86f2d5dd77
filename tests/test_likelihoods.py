# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Likelihoods over orders against enumeration: exact NLL and the multi-order bound."""

import itertools
import math

import pytest
import torch
from datasets import Dataset
from masked import MASK
from variants import ANY_ORDER, all_strings, any_order_variants, chain_log_probs, tiny_model

from modeling_aoarm.data.orders import sample_orders
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.evaluation.likelihood import AveragedNLL, OrderNLL, bound_likelihood, evaluate_likelihood


# 17 characters and 5 special tokens; the token behind them is the mask token of the tiny `bidirectional` model.
TOKENIZER = character_tokenizer(["abcdefghijklmnopq"])
TEXTS = ["abcdef", "qp", "", "aabbccddeeff", "k", "pqabc"]
WITHOUT_BOS = character_tokenizer(["abcdefghijklmnopq"])
WITHOUT_BOS.bos_token = None


def rows_of(texts):
    return Dataset.from_dict({"input_ids": TOKENIZER(texts).input_ids})


def model_of_five_symbols(variant):
    """Of `bidirectional` a sixth token is the mask, which has probability 0."""
    changes = {"vocab_size": 6, "mask_token_id": 5} if variant == "bidirectional" else {"vocab_size": 5}
    return tiny_model(variant, **changes)


@pytest.fixture(scope="module")
def dataset():
    return rows_of(TEXTS)


def measure(*args, **kwargs):
    return evaluate_likelihood(*args, **kwargs, exact=True, progress=False)


@any_order_variants
def test_rows_in_generation_order_are_always_exact(variant, dataset):
    model = tiny_model(variant)
    for order, draws in (("uniform", 3), ("left_to_right", 1), ("local(2)", 2)):
        exact = measure(model, dataset, TOKENIZER, order, draws=draws, seed=5, characters=26)
        plain = evaluate_likelihood(model, dataset, TOKENIZER, order, draws=draws, seed=5, progress=False)
        assert exact.order == order and exact.characters == 26
        assert exact.example_tokens.tolist() == [[6, 2, 0, 12, 1, 5]] * draws
        assert (exact.example_nll[:, 2] == 0).all() and torch.equal(exact.example_nll, plain.example_nll)


def test_a_masked_model_reveals_one_token_after_the_other(dataset):
    """Against a loop over the tokens of each order, on masked rows."""
    model = tiny_model("bidirectional")
    result = measure(model, dataset, TOKENIZER, draws=2, seed=3)
    for draw, index in itertools.product(range(2), (0, 1, 4, 5)):
        ids = torch.tensor([TOKENIZER.bos_token_id, *TOKENIZER(TEXTS[index]).input_ids])
        rows, nll = torch.full_like(ids, MASK), 0.0
        rows[0] = ids[0]
        columns = sample_orders("uniform", [len(ids) - 1], example_indices=[index], seed=3, epoch=draw).columns[0] + 1
        for column in columns:
            with torch.no_grad():
                nll -= model(rows[None]).logits[0, column].log_softmax(-1)[ids[column]].item()
            rows[column] = ids[column]
        assert result.example_nll[draw, index].item() == pytest.approx(nll, abs=1e-4)


@pytest.mark.parametrize("variant", ["two_stream", "adaptive_norm", "bidirectional"])
def test_batch_size_changes_nothing(variant, dataset):
    model = tiny_model(variant)
    results = [measure(model, dataset, TOKENIZER, draws=2, batch_size=size) for size in (1, 4, 100)]
    for result in results[1:]:
        torch.testing.assert_close(result.example_nll, results[0].example_nll, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", ["two_stream", "bidirectional"])
def test_a_bos_is_there_once_and_without_one_the_first_token_is_given(variant):
    model, dataset = tiny_model(variant), rows_of([text for text in TEXTS if text])
    plain = measure(model, dataset, TOKENIZER)
    with_bos = Dataset.from_dict({"input_ids": [[TOKENIZER.bos_token_id, *ids] for ids in dataset["input_ids"]]})
    assert torch.equal(measure(model, with_bos, TOKENIZER).example_nll, plain.example_nll)
    without = measure(model, with_bos, WITHOUT_BOS)
    # The first token is the BOS now, as a token like any other.
    torch.testing.assert_close(without.example_nll, plain.example_nll, rtol=0, atol=1e-5)
    left_out = measure(model, dataset, WITHOUT_BOS)
    assert left_out.example_tokens[0].tolist() == [5, 1, 11, 0, 4]
    ids = torch.tensor([dataset[0]["input_ids"]])
    order = sample_orders("uniform", [5], example_indices=[0], seed=0, epoch=1).columns + 1
    expected = model.score(ids, decoding_order=order).log_likelihood[0].double()
    torch.testing.assert_close(-left_out.example_nll[1, :1], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("order", ["uniform", "lattice"])
def test_a_masked_model_scores_only_labels_in_their_order(order):
    """Labels that are -100 are given, and a distribution with a context is allowed, as for other models."""
    texts = ["abcdef", "pqabc", "k"]
    ids = TOKENIZER(texts).input_ids
    labels = [[-100, *own[1:-1], -100] if len(own) > 1 else own for own in ids]
    dataset = Dataset.from_dict({"input_ids": ids, "labels": labels})
    model = tiny_model("bidirectional")
    result = measure(model, dataset, TOKENIZER, order, draws=2)
    for draw, index in itertools.product(range(2), range(3)):
        is_free = [label != -100 for label in labels[index]]
        free = [column + 1 for column, each in enumerate(is_free) if each]
        drawn = sample_orders(order, [len(free)], example_indices=[index], seed=0, epoch=draw)
        columns = torch.tensor(free)[drawn.columns[0]][drawn.num_context[0] :]
        canvas = torch.tensor([[TOKENIZER.bos_token_id, *ids[index]]])
        is_blank = torch.zeros_like(canvas, dtype=torch.bool)
        is_blank[0, columns] = True
        scored = model.score(canvas, is_blank, decoding_order=columns[None]).log_likelihood.item()
        assert result.example_nll[draw, index].item() == pytest.approx(-scored, abs=1e-4)
        assert result.example_tokens[draw, index] == len(columns)


@pytest.mark.parametrize("variant", ["two_stream", "bidirectional"])
def test_equal_examples_have_draws_of_their_own(variant):
    model = tiny_model(variant, **({"mask_token_id": TOKENIZER.mask_token_id} if variant == "bidirectional" else {}))
    result = evaluate_likelihood(model, rows_of(["abcdef"] * 2), TOKENIZER, progress=False)
    first, second = result.example_nll.T
    assert ((first - second).abs() > 1e-3).any() and first.std() > 1e-3


def result_of(log_probs, tokens=2, characters=None):
    """Draws of one order distribution: nats `[draws, examples]`."""
    log_probs = torch.tensor(log_probs, dtype=torch.float64)
    return OrderNLL("uniform", -log_probs, torch.full(log_probs.shape, tokens), characters)


def test_the_bound_averages_probabilities_within_groups():
    probabilities = [[0.1, 0.4], [0.3, 0.4], [0.2, 0.2], [0.6, 0.1]]
    bound = bound_likelihood(result_of([[math.log(p) for p in row] for row in probabilities], characters=10))
    assert list(bound.group_nll) == [1, 2, 4]
    expected = {
        1: [[-math.log(p) for p in row] for row in probabilities],
        2: [[-math.log(0.2), -math.log(0.4)], [-math.log(0.4), -math.log(0.15)]],
        4: [[-math.log(0.3), -math.log(1.1 / 4)]],
    }
    for size, groups in expected.items():
        groups = torch.tensor(groups, dtype=torch.float64)
        torch.testing.assert_close(bound.group_nll[size], groups)
        torch.testing.assert_close(bound.example_nll(size), groups.mean(0))
        # Two tokens of two examples.
        assert bound.nll(size).value == pytest.approx(groups.mean(0).sum().item() / 4)
        bits = groups.mean(0).sum().item() / 10 / math.log(2)
        assert bound.bits_per_character(size).value == pytest.approx(bits)
    first, second = -math.log(0.2) + math.log(0.4), -math.log(0.4) + math.log(0.15)
    # The variance of the mean of two numbers that differ by d is (d / 2)^2; examples add theirs.
    assert bound.nll(2).standard_error == pytest.approx(math.sqrt((first / 2) ** 2 + (second / 2) ** 2) / 4)
    assert bound.nll(4).standard_error is None
    assert bound.to_dict()[1] == {
        "orders": 2,
        "groups": 2,
        "nll": bound.nll(2).value,
        "standard_error": bound.nll(2).standard_error,
        "bits_per_character": bound.bits_per_character(2).value,
        "bits_per_character_standard_error": bound.bits_per_character(2).standard_error,
    }
    assert AveragedNLL(bound.group_nll, bound.example_tokens).bits_per_character(2) is None


def test_the_numbers_of_orders():
    bound = bound_likelihood(result_of([[-1.0], [-2.0], [-3.0], [-4.0], [-5.0], [-6.0]]))
    assert {size: len(groups) for size, groups in bound.group_nll.items()} == {1: 6, 2: 3, 4: 1, 6: 1}
    assert list(bound_likelihood(result_of([[-1.0]])).group_nll) == [1]
    assert list(bound_likelihood(result_of([[-1.0]] * 8)).group_nll) == [1, 2, 4, 8]
    # The last two orders are in no group of four.
    assert bound.example_nll(4).item() == pytest.approx(-math.log(sum(math.exp(-k) for k in (1, 2, 3, 4)) / 4))


@pytest.mark.parametrize("variant", ["two_stream", "double_position", "bidirectional"])
def test_the_bound_falls_with_the_orders_for_every_example(variant, dataset):
    model = tiny_model(variant)
    exact = measure(model, dataset, TOKENIZER, draws=8)
    bound = bound_likelihood(exact)
    assert bound.nll(1).value == pytest.approx(exact.nll)
    for smaller, larger in itertools.pairwise(bound.group_nll):
        assert (bound.example_nll(larger) <= bound.example_nll(smaller) + 1e-9).all()
    longest = bound.example_tokens.argmax()
    assert bound.example_nll(8)[longest] < bound.example_nll(1)[longest] - 1e-3


@pytest.mark.parametrize("variant", [*ANY_ORDER, "bidirectional"])
def test_with_all_orders_the_bound_is_the_mixture_and_a_probability(variant):
    """Three tokens of five symbols: 125 strings, whose probabilities sum to one, and six orders."""
    model = model_of_five_symbols(variant)
    strings = all_strings(5, 3)
    sentences = torch.cat([torch.zeros(len(strings), 1, dtype=torch.int64), strings], dim=1)
    permutations = torch.tensor(list(itertools.permutations([1, 2, 3])))
    scored = model.score(sentences, decoding_order=permutations[:, None].expand(-1, len(strings), -1))
    bound = bound_likelihood(result_of(scored.log_likelihood.tolist(), tokens=3))
    torch.testing.assert_close(bound.example_nll(6), -scored.log_mean_likelihood.double(), rtol=0, atol=1e-5)
    if variant != "bidirectional":
        mixture = torch.stack([chain_log_probs(model, sentences, order).exp() for order in permutations]).mean(0)
        torch.testing.assert_close((-bound.example_nll(6)).exp(), mixture, rtol=1e-4, atol=1e-7)
    assert (-bound.example_nll(6)).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_model_keeps_its_mode(dataset):
    for variant in ("two_stream", "bidirectional"):
        model = tiny_model(variant, attention_dropout=0.5).train()
        results = [measure(model, dataset, TOKENIZER, draws=1).example_nll for _ in range(2)]
        assert model.training and torch.equal(*results)


def test_bad_input_is_named(dataset):
    model = tiny_model("two_stream")
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1, got 0"):
        measure(model, dataset, TOKENIZER, batch_size=0)
    with pytest.raises(ValueError, match="attention_variant='causal'"):
        measure(tiny_model("causal"), dataset, TOKENIZER)
    lattice = measure(model, dataset.select([0, 3]), TOKENIZER, "lattice", draws=3)
    with pytest.raises(ValueError, match="the same predicted tokens in every draw, got others in lattice"):
        bound_likelihood(lattice)
