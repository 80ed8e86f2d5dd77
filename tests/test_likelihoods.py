# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Likelihoods over orders against enumeration: exact NLL, ELBO, the multi-order bound."""

import itertools
import math

import pytest
import torch
from datasets import Dataset
from masked import MASK
from variants import ANY_ORDER, all_strings, any_order_variants, chain_log_probs, tiny_model

from modeling_aoarm.data.orders import sample_orders
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.evaluation.likelihood import OrderNLL, evaluate_order
from modeling_aoarm.evaluation.likelihoods import (
    AveragedNLL,
    estimate_elbo,
    exact_order_nll,
    group_sizes,
    multi_order_bound,
    sentences_of,
)


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


def quiet(function, *args, **kwargs):
    return function(*args, **kwargs, progress=False)


@any_order_variants
def test_rows_in_generation_order_have_the_nll_of_evaluate_order(variant, dataset):
    model = tiny_model(variant)
    for order, draws in (("uniform", 3), ("left_to_right", 1), ("local(2)", 2)):
        exact = quiet(exact_order_nll, model, dataset, TOKENIZER, order, draws=draws, seed=5, characters=26)
        expected = quiet(evaluate_order, model, dataset.select([0, 1, 3, 4, 5]), TOKENIZER, order, draws=draws, seed=5)
        assert exact.order == order and exact.characters == 26
        assert exact.example_tokens.tolist() == [[6, 2, 0, 12, 1, 5]] * draws
        assert (exact.example_nll[:, 2] == 0).all()
        # The examples behind the empty one have other numbers in `expected`, and so other orders.
        same = [0, 1] if order != "left_to_right" else [0, 1, 3, 4, 5]
        torch.testing.assert_close(exact.example_nll[:, same], expected.example_nll[:, : len(same)], rtol=0, atol=1e-4)


def test_a_masked_model_reveals_one_token_after_the_other(dataset):
    """Against a loop over the tokens of each order, on masked rows."""
    model = tiny_model("bidirectional")
    result = quiet(exact_order_nll, model, dataset, TOKENIZER, draws=2, seed=3)
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
    for function, options in ((exact_order_nll, {"draws": 2}), (estimate_elbo, {"draws": 2, "samples": 3})):
        results = [quiet(function, model, dataset, TOKENIZER, batch_size=size, **options) for size in (1, 4, 100)]
        for result in results[1:]:
            torch.testing.assert_close(result.example_nll, results[0].example_nll, rtol=0, atol=1e-4)


def test_a_bos_is_there_once_and_without_one_the_first_token_is_given(dataset):
    model = tiny_model("two_stream")
    plain = quiet(exact_order_nll, model, dataset, TOKENIZER)
    with_bos = Dataset.from_dict({"input_ids": [[TOKENIZER.bos_token_id, *ids] for ids in dataset["input_ids"]]})
    assert torch.equal(quiet(exact_order_nll, model, with_bos, TOKENIZER).example_nll, plain.example_nll)
    without = quiet(exact_order_nll, model, with_bos, WITHOUT_BOS)
    # The first token is the BOS now, as a token like any other.
    torch.testing.assert_close(without.example_nll, plain.example_nll, rtol=0, atol=1e-5)
    left_out = quiet(exact_order_nll, model, dataset, WITHOUT_BOS)
    assert left_out.example_tokens[0].tolist() == [5, 1, 0, 11, 0, 4]
    ids = torch.tensor([dataset[0]["input_ids"]])
    order = sample_orders("uniform", [5], example_indices=[0], seed=0, epoch=1).columns[0] + 1
    expected = chain_log_probs(model, ids, order)
    torch.testing.assert_close(-left_out.example_nll[1, :1], expected, rtol=0, atol=1e-4)


def test_the_elbo_of_rows_in_generation_order_is_the_mean_over_orders(dataset):
    model = tiny_model("decoupled_rope")
    exact = quiet(exact_order_nll, model, dataset, TOKENIZER, draws=6, characters=26)
    elbo = quiet(estimate_elbo, model, dataset, TOKENIZER, draws=2, samples=3, characters=26)
    assert elbo.example_nll.shape == elbo.example_tokens.shape == (2, 6)
    for draw in range(2):
        expected = exact.example_nll[3 * draw : 3 * draw + 3].mean(0)
        torch.testing.assert_close(elbo.example_nll[draw], expected)
    assert elbo.bits_per_character == pytest.approx(exact.bits_per_character)


def test_the_elbo_of_a_masked_model_estimates_the_mean_over_all_orders():
    model, texts = tiny_model("bidirectional"), ["abc", "qpa"]
    rows = torch.tensor([[TOKENIZER.bos_token_id, *ids] for ids in TOKENIZER(texts).input_ids])
    orders = torch.tensor(list(itertools.permutations([1, 2, 3])))[:, None].expand(-1, 2, -1)
    exact = -model.score(rows, decoding_order=orders).log_likelihood.mean(0)
    means = {}
    for samples in (1, 3):
        result = quiet(estimate_elbo, model, rows_of(texts), TOKENIZER, draws=200, samples=samples)
        errors = result.example_nll.std(0) / math.sqrt(200)
        assert (result.example_nll.mean(0) - exact).abs().max() < 4 * errors.max() < 0.6
        means[samples] = errors
    # Of three samples one masks one token, one two and one all three: less chance than in three draws.
    assert (means[3] < means[1] / math.sqrt(3)).all()


@pytest.mark.parametrize("variant", ["two_stream", "bidirectional"])
def test_equal_examples_have_draws_of_their_own(variant):
    first, second = quiet(estimate_elbo, tiny_model(variant), rows_of(["abcdef"] * 2), TOKENIZER, draws=4).example_nll.T
    # Where all is masked, equal draws are no accident.
    assert ((first - second).abs() > 1e-3).any() and first.std() > 1e-3


def result_of(log_probs, tokens=2, characters=None):
    """Draws of one order distribution: nats `[draws, examples]`."""
    log_probs = torch.tensor(log_probs, dtype=torch.float64)
    return OrderNLL("uniform", -log_probs, torch.full(log_probs.shape, tokens), characters)


def test_the_bound_averages_probabilities_within_groups():
    probabilities = [[0.1, 0.4], [0.3, 0.4], [0.2, 0.2], [0.6, 0.1]]
    bound = multi_order_bound(result_of([[math.log(p) for p in row] for row in probabilities], characters=10))
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
    assert group_sizes(1) == [1] and group_sizes(8) == [1, 2, 4, 8] and group_sizes(6) == [1, 2, 4, 6]
    bound = multi_order_bound(result_of([[-1.0], [-2.0], [-3.0], [-4.0], [-5.0], [-6.0]]))
    assert [len(groups) for groups in bound.group_nll.values()] == [6, 3, 1, 1]
    # The last two orders are in no group of four.
    assert bound.example_nll(4).item() == pytest.approx(-math.log(sum(math.exp(-k) for k in (1, 2, 3, 4)) / 4))


@pytest.mark.parametrize("variant", ["two_stream", "double_position", "bidirectional"])
def test_the_bound_falls_with_the_orders_for_every_example(variant, dataset):
    model = tiny_model(variant)
    exact = quiet(exact_order_nll, model, dataset, TOKENIZER, draws=8)
    bound = multi_order_bound(exact)
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
    bound = multi_order_bound(result_of(scored.log_likelihood.tolist(), tokens=3))
    torch.testing.assert_close(bound.example_nll(6), -scored.log_mean_likelihood.double(), rtol=0, atol=1e-5)
    if variant != "bidirectional":
        mixture = torch.stack([chain_log_probs(model, sentences, order).exp() for order in permutations]).mean(0)
        torch.testing.assert_close((-bound.example_nll(6)).exp(), mixture, rtol=1e-4, atol=1e-7)
    assert (-bound.example_nll(6)).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_model_keeps_its_mode(dataset):
    for variant in ("two_stream", "bidirectional"):
        model = tiny_model(variant, attention_dropout=0.5).train()
        for function in (exact_order_nll, estimate_elbo):
            results = [quiet(function, model, dataset, TOKENIZER, draws=1).example_nll for _ in range(2)]
            assert model.training and torch.equal(*results)


def test_bad_input_is_named(dataset):
    model = tiny_model("two_stream")
    for function in (exact_order_nll, estimate_elbo):
        with pytest.raises(TypeError, match="must have a length.*got IterableDataset"):
            function(model, dataset.to_iterable_dataset(), TOKENIZER)
        with pytest.raises(ValueError, match="`draws` must be an integer of at least 1, got 0"):
            function(model, dataset, TOKENIZER, draws=0)
        with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1, got 0"):
            function(model, dataset, TOKENIZER, batch_size=0)
        with pytest.raises(ValueError, match="tokens to predict behind a first one, got none in 1 rows"):
            function(model, Dataset.from_dict({"input_ids": [[]]}), TOKENIZER)
    with pytest.raises(ValueError, match="`samples` must be an integer of at least 1, got 0"):
        estimate_elbo(model, dataset, TOKENIZER, samples=0)
    with pytest.raises(ValueError, match="order must predict every token of a sentence, got lattice"):
        quiet(exact_order_nll, model, dataset, TOKENIZER, "lattice")
    with pytest.raises(ValueError, match="attention_variant='causal' knows blanks from left to right only"):
        quiet(exact_order_nll, tiny_model("causal"), dataset, TOKENIZER)
    lattice = quiet(evaluate_order, model, dataset.select([0, 3]), TOKENIZER, "lattice", draws=3)
    with pytest.raises(ValueError, match="the same predicted tokens in every draw, got others in lattice"):
        multi_order_bound(lattice)
    assert sentences_of(rows_of(["ab"]), WITHOUT_BOS) == [TOKENIZER("ab").input_ids]
