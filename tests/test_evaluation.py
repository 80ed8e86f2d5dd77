# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Likelihood of a data set: the right sums, the right weights, nothing that depends on batches."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from variants import tiny_model

from modeling_aoarm.data.orders import sample_orders
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.evaluation.likelihood import OrderNLL, evaluate_likelihood


# 18 characters and 5 special tokens: the tiny models' vocabulary.
TOKENIZER = character_tokenizer(["abcdefghijklmnopqr"])
TEXTS = ["abcdef", "rq", "aabbccddeeff", "k", "pqrabc"]


@pytest.fixture(scope="module")
def dataset():
    return Dataset.from_dict({"input_ids": TOKENIZER(TEXTS).input_ids})


@pytest.fixture(scope="module")
def model():
    return tiny_model("two_stream")


def test_each_example_is_scored_in_the_orders_of_seed_draw_and_index(model, dataset):
    result = evaluate_likelihood(model, dataset, TOKENIZER, draws=3, seed=7, batch_size=2, progress=False)
    for draw in range(3):
        for index, text in enumerate(TEXTS):
            columns = sample_orders("uniform", [len(text)], example_indices=[index], seed=7, epoch=draw).columns[0]
            ids = torch.tensor(TOKENIZER(text).input_ids)[columns]
            rows = torch.cat([torch.tensor([TOKENIZER.bos_token_id]), ids])[None]
            positions = torch.cat([torch.tensor([0]), columns + 1])[None]
            with torch.no_grad():
                logits = model(rows, position_ids=positions).logits[0]
            expected = -logits[:-1].log_softmax(-1).gather(1, ids[:, None]).sum()
            assert result.example_nll[draw, index].item() == pytest.approx(expected.item(), abs=1e-4)
            assert result.example_tokens[draw, index] == len(text)


def test_tokens_not_examples_have_equal_weight(model, dataset):
    result = evaluate_likelihood(model, dataset, TOKENIZER, draws=2, progress=False)
    tokens = sum(map(len, TEXTS))
    assert result.tokens == 2 * tokens
    assert result.nll == pytest.approx(result.example_nll.sum().item() / (2 * tokens))
    mean_of_means = (result.example_nll / result.example_tokens).mean().item()
    assert abs(result.nll - mean_of_means) > 1e-3


def test_left_to_right_is_the_loss_of_a_call_without_positions(model, dataset):
    result = evaluate_likelihood(model, dataset, TOKENIZER, "left_to_right", draws=1, progress=False)
    for index, text in enumerate(TEXTS):
        rows = torch.tensor([[TOKENIZER.bos_token_id, *TOKENIZER(text).input_ids]])
        with torch.no_grad():
            loss = model(rows, labels=rows).loss
        assert result.example_nll[0, index].item() / len(text) == pytest.approx(loss.item(), abs=1e-5)


def test_batch_size_changes_nothing(model, dataset):
    results = [evaluate_likelihood(model, dataset, TOKENIZER, batch_size=size, progress=False) for size in (1, 3, 100)]
    for result in results[1:]:
        torch.testing.assert_close(result.example_nll, results[0].example_nll, rtol=0, atol=1e-4)


def test_context_tokens_are_not_counted(model, dataset):
    result = evaluate_likelihood(model, dataset, TOKENIZER, "lattice", draws=1, progress=False)
    context = sample_orders("lattice", [len(text) for text in TEXTS], example_indices=range(len(TEXTS))).num_context
    assert context.sum() > 0
    assert result.example_tokens[0].tolist() == [len(text) - c for text, c in zip(TEXTS, context.tolist(), strict=True)]


@pytest.mark.parametrize("context_order", ["left_to_right", "suffix_first"])
def test_given_tokens_come_in_the_models_context_order(dataset, context_order):
    """As in `score`, and in training and evaluation by a trainer with such a collator."""
    model = tiny_model("two_stream")
    model.generation_config.context_order = context_order
    orders = sample_orders("block", [len(text) for text in TEXTS], example_indices=range(len(TEXTS)), first_column=1)
    result = evaluate_likelihood(model, dataset, TOKENIZER, "block", draws=1, progress=False)
    for index, (columns, given) in enumerate(zip(*orders, strict=True)):
        ids = torch.tensor([[TOKENIZER.bos_token_id, *TOKENIZER(TEXTS[index]).input_ids]])
        order = columns[columns >= 0][given:]
        blanks = torch.zeros_like(ids, dtype=torch.bool)
        blanks[0, order] = True
        scored = model.score(ids, blanks, decoding_order=order[None]).log_likelihood[0, 0]
        assert result.example_nll[0, index].item() == pytest.approx(-scored.item(), abs=1e-4)


def test_errors_and_bits_follow_from_the_sums():
    nll = torch.tensor([[2.0, 4.0], [3.0, 7.0], [1.0, 1.0]], dtype=torch.float64)
    tokens = torch.tensor([[2, 3]] * 3)
    result = OrderNLL("uniform", nll, tokens, characters=10)
    draws = np.array([6.0, 10.0, 2.0])
    assert result.nll_per_draw == pytest.approx(list(draws / 5))
    assert result.nll == pytest.approx(18 / 15)
    assert result.standard_error == pytest.approx(draws.std(ddof=1) / 5 / math.sqrt(3))
    assert result.bits_per_character == pytest.approx(6 / 10 / math.log(2))
    assert result.bits_per_character_standard_error == pytest.approx(
        draws.std(ddof=1) / 10 / math.log(2) / math.sqrt(3)
    )
    assert OrderNLL("uniform", nll[:1], tokens[:1]).standard_error is None
    assert OrderNLL("uniform", nll, tokens).bits_per_character is None


def test_the_model_keeps_its_mode(model, dataset):
    model.train()
    evaluate_likelihood(model, dataset, TOKENIZER, draws=1, progress=False)
    assert model.training
    model.eval()
    evaluate_likelihood(model, dataset, TOKENIZER, draws=1, progress=False)
    assert not model.training


def test_bad_input_is_named(model, dataset):
    with pytest.raises(TypeError, match="must have a length.*got IterableDataset"):
        evaluate_likelihood(model, dataset.to_iterable_dataset(), TOKENIZER)
    with pytest.raises(ValueError, match="`draws` must be an integer of at least 1, got 0"):
        evaluate_likelihood(model, dataset, TOKENIZER, draws=0)
    with pytest.raises(ValueError, match="dataset must have at least one example, got none"):
        evaluate_likelihood(model, dataset.select([]), TOKENIZER)
    with pytest.raises(ValueError, match="tokens to predict"):
        evaluate_likelihood(model, Dataset.from_dict({"input_ids": [[]]}), TOKENIZER, draws=1, progress=False)


@pytest.mark.parametrize("order", ["left_to_right", "uniform"])
def test_of_rows_with_labels_only_those_are_scored(model, dataset, order):
    """Given the rest of the row, as `score` does it; two tokens have two orders, of which each row has drawn one."""
    labels = [[-100] * len(ids) for ids in dataset["input_ids"]]
    for index in (0, 2, 4):
        labels[index][2:4] = dataset["input_ids"][index][2:4]
    labelled = dataset.add_column("labels", labels).select([0, 2, 4])
    result = evaluate_likelihood(model, labelled, TOKENIZER, order, draws=1, batch_size=2, progress=False)
    assert result.example_tokens.tolist() == [[2, 2, 2]]
    for index, row in enumerate(labelled):
        canvas = torch.tensor([[TOKENIZER.bos_token_id, *row["input_ids"]]])
        blanks = torch.tensor([[False, *(label != -100 for label in row["labels"])]])
        both = model.score(canvas, blanks, decoding_order=torch.tensor([[[3, 4]], [[4, 3]]])).log_likelihood[:, 0]
        errors = (both + result.example_nll[0, index]).abs()
        assert (errors[0] if order == "left_to_right" else errors.min()) < 1e-4 < (both[0] - both[1]).abs()
