# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Infilling of held-out text: where blanks are, what is counted, and averages over orders of the given tokens."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_likelihoods import TEXTS, TOKENIZER, WITHOUT_BOS, model_of_five_symbols, rows_of
from variants import ANY_ORDER, all_strings, tiny_model

from modeling_aoarm.data.orders import sample_orders
from modeling_aoarm.evaluation.infilling import (
    Blank,
    InfillingResult,
    evaluate_context_orders,
    evaluate_infilling,
    place_blanks,
    place_middles,
)


LENGTHS = [7, 3, 1, 13, 2, 6]


@pytest.fixture(scope="module")
def dataset():
    return rows_of(TEXTS)


def test_blanks_of_an_example_neither_touch_nor_reach_the_first_token():
    for seed in range(20):
        blanks = place_blanks([20, 7, 3, 2, 1], [1, 2, 5], per_example=3, seed=seed)
        counts = Counter((blank.example, blank.length) for blank in blanks)
        # As many as fit: with a given token before each, n columns take n / (length + 1).
        assert counts == {(0, 1): 3, (0, 2): 3, (0, 5): 3, (1, 1): 3, (1, 2): 2, (1, 5): 1, (2, 1): 1, (2, 2): 1} | {
            (3, 1): 1
        }
        for (example, length), _ in counts.items():
            own = [blank for blank in blanks if (blank.example, blank.length) == (example, length)]
            edges = [0, *itertools.chain(*((blank.start, blank.start + length) for blank in own))]
            assert all(stop < start for stop, start in zip(edges[::2], edges[1::2], strict=False))
            assert edges[-1] <= [20, 7, 3, 2, 1][example]


def test_every_way_to_place_blanks_is_equally_likely_and_follows_from_the_seed():
    # Two blanks of one column on columns 1 ... 5, not side by side: 6 ways.
    found = Counter(tuple(b.start for b in place_blanks([6], [1], seed=seed)) for seed in range(3000))
    assert set(found) == {(1, 3), (1, 4), (1, 5), (2, 4), (2, 5), (3, 5)}
    assert all(abs(count - 500) < 5 * math.sqrt(500) for count in found.values())
    assert len({b.start for b in place_blanks([30] * 10, [1], per_example=1)}) > 4
    # Neither the other sentences nor the other lengths have a part in it.
    assert place_blanks([6, 9], [1, 2], seed=4)[:2] == place_blanks([6], [1], seed=4)


def test_a_middle_has_its_margins_and_follows_from_seed_and_example():
    lengths = [12, 11, 30, 4, 12]
    seen = Counter()
    for seed in range(2000):
        middles = place_middles(lengths, 1, 4, margin=4, seed=seed)
        # The others are shorter than the longest middle and its margins.
        assert [blank.example for blank in middles] == [0, 2, 4]
        assert all(4 <= b.start and b.start + b.length <= lengths[b.example] - 4 for b in middles)
        assert place_middles(lengths[:3], 1, 4, margin=4, seed=seed) == middles[:2]
        seen[middles[0].start, middles[0].length] += 1
    law = {(start, length): 1 / 4 / (5 - length) for length in range(1, 5) for start in range(4, 9 - length)}
    assert set(seen) == set(law)
    assert all(abs(seen[way] - 2000 * p) < 5 * math.sqrt(2000 * p) for way, p in law.items())


@pytest.mark.parametrize("variant", ["two_stream_neighbor", "adaptive_norm", "causal", "bidirectional"])
def test_without_the_right_side_a_sentence_ends_with_its_blank(variant, dataset):
    model = tiny_model(variant)
    blanks = [Blank(0, 2, 3), Blank(3, 5, 2), Blank(3, 1, 1)]
    result = evaluate_infilling(model, dataset, TOKENIZER, blanks, sees_right=False, progress=False)
    assert result.blanks == blanks
    for number, blank in enumerate(blanks):
        # Columns count the BOS.
        cut = Dataset.from_dict({"input_ids": [dataset[blank.example]["input_ids"][: blank.start + blank.length - 1]]})
        alone = evaluate_infilling(
            model, cut, TOKENIZER, [Blank(0, blank.start, blank.length)], sees_right=False, progress=False
        )
        assert result.blank_nll[number].item() == pytest.approx(alone.blank_nll.item(), abs=1e-4)
        assert result.filled[number] == alone.filled[0]
        if variant != "bidirectional":
            # The chain rule over the tokens up to the blank's end, with an ordinary left-to-right pass.
            ids = torch.tensor([[TOKENIZER.bos_token_id, *cut[0]["input_ids"]]])
            with torch.no_grad():
                log_probs = model(ids).logits[0, :-1].double().log_softmax(-1)
            own = log_probs.gather(1, ids[0, 1:, None])[blank.start - 1 :].sum().item()
            assert result.blank_nll[number].item() == pytest.approx(-own, abs=1e-4)


def test_figures_by_blank_length():
    blanks = [Blank(0, 1, 1), Blank(0, 4, 1), Blank(1, 1, 1), Blank(0, 2, 2), Blank(1, 3, 2)]
    nll = torch.tensor([1.0, 2.0, 6.0, 3.0, 5.0], dtype=torch.float64)
    result = InfillingResult(blanks, nll, [[1], [2], [3], [4, 5], [6, 7]], torch.tensor([1, 0, 1, 1, 2]))
    assert result.is_right.tolist() == [True, False, True, False, True]
    assert result.nll(1).value == pytest.approx(9 / 3) and result.nll(2).value == pytest.approx(8 / 4)
    assert result.nll().value == pytest.approx(17 / 7)
    assert result.accuracy(1).value == pytest.approx(2 / 3) and result.accuracy(2).value == pytest.approx(1 / 2)
    assert result.token_accuracy(2).value == pytest.approx(3 / 4)
    assert result.token_accuracy().value == pytest.approx(5 / 7)
    # Examples are independent, their blanks are not: sums 3 of 2 blanks and 6 of 1, residuals -3 and 3 from 3 each.
    assert result.nll(1).standard_error == pytest.approx(math.sqrt(2 * (3**2 + 3**2)) / 3)
    assert [row["blank_length"] for row in result.to_dict()] == [1, 2]
    assert result.to_dict()[1] == {
        "blank_length": 2,
        "blanks": 2,
        "nll": 2.0,
        "nll_standard_error": result.nll(2).standard_error,
        "accuracy": 0.5,
        "accuracy_standard_error": result.accuracy(2).standard_error,
        "token_accuracy": 0.75,
        "token_accuracy_standard_error": result.token_accuracy(2).standard_error,
    }


@pytest.mark.parametrize("variant", [*ANY_ORDER, "bidirectional"])
def test_blanks_are_scored_and_filled_one_by_one(variant, dataset):
    """Against one canvas after the other: `score` for the likelihood, one most likely token after the other."""
    model = tiny_model(variant)
    result = evaluate_infilling(model, dataset, TOKENIZER, (1, 3), seed=2, progress=False)
    assert result.blanks == place_blanks(LENGTHS, (1, 3), seed=2)
    for number, blank in enumerate(result.blanks):
        canvas = torch.tensor([[TOKENIZER.bos_token_id, *dataset[blank.example]["input_ids"]]])
        columns = list(range(blank.start, blank.start + blank.length))
        is_blank = torch.zeros_like(canvas, dtype=torch.bool)
        is_blank[:, columns] = True
        scored = model.score(canvas, is_blank, decoding_order="left_to_right")
        assert result.blank_nll[number].item() == pytest.approx(-scored.log_likelihood.item(), abs=1e-4)
        filled = canvas.clone()
        for done, column in enumerate(columns):
            tries = filled.repeat(model.config.vocab_size, 1)
            tries[:, column] = torch.arange(model.config.vocab_size)
            # Blanks that come later hold anything: the order ends before them.
            order = torch.tensor([columns]).expand(len(tries), -1)
            log_probs = model.score(tries, is_blank.expand_as(tries), decoding_order=order).token_log_probs[0]
            filled[0, column] = log_probs[:, columns[done]].argmax()
        assert result.filled[number] == filled[0, columns].tolist()
        right = (filled == canvas)[0, columns].sum().item()
        assert result.right_tokens[number] == right


@pytest.mark.parametrize("order", ["left_to_right", "random", "confidence"])
@pytest.mark.parametrize("variant", ["two_stream", "bidirectional"])
def test_batch_size_changes_nothing(variant, order, dataset):
    model = tiny_model(variant)
    options = {"decoding_order": order, "blanks_per_example": 3, "progress": False}
    one, many = (evaluate_infilling(model, dataset, TOKENIZER, (2, 4), batch_size=n, **options) for n in (1, 100))
    assert one.filled == many.filled and torch.equal(one.right_tokens, many.right_tokens)
    torch.testing.assert_close(one.blank_nll, many.blank_nll, rtol=0, atol=1e-4)
    first, second = (
        evaluate_context_orders(model, dataset, TOKENIZER, one.blanks, num_orders=2, batch_size=n, progress=False)
        for n in (2, 100)
    )
    for size in (1, 2):
        torch.testing.assert_close(first.group_nll[size], second.group_nll[size], rtol=0, atol=1e-4)


def test_an_end_of_sentence_closes_no_blank(dataset):
    model = tiny_model("two_stream")
    model.lm_head.weight.data[TOKENIZER.eos_token_id] *= 50
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    result = evaluate_infilling(model, dataset, TOKENIZER, (5,), progress=False)
    assert any(TOKENIZER.eos_token_id in ids[:-1] for ids in result.filled)
    assert TOKENIZER.pad_token_id not in set(itertools.chain(*result.filled))


def context_orders(blanks, number, seed, first):
    """The given columns of each blank's sentence in the order that the ensemble draws."""
    orders = []
    for index, blank in enumerate(blanks):
        given = [c for c in range(first, LENGTHS[blank.example]) if not blank.start <= c < blank.start + blank.length]
        drawn = sample_orders("uniform", [len(given)], example_indices=[index], seed=seed, epoch=number).columns[0]
        orders.append([*range(first), *(given[place] for place in drawn)])
    return orders


@pytest.mark.parametrize("tokenizer", [TOKENIZER, WITHOUT_BOS], ids=["bos", "no bos"])
def test_an_ensemble_averages_each_tokens_probability(tokenizer, dataset):
    model, with_bos = tiny_model("two_stream"), [[TOKENIZER.bos_token_id, *ids] for ids in dataset["input_ids"]]
    rows = Dataset.from_dict({"input_ids": with_bos})
    blanks = place_blanks(LENGTHS, [2, 3], seed=1)
    ensemble = evaluate_context_orders(model, rows, tokenizer, blanks, num_orders=4, seed=9, progress=False)
    first = 0 if tokenizer.bos_token_id is None else 1
    orders = [context_orders(blanks, number, 9, first) for number in range(4)]
    differs = False
    for index, blank in enumerate(blanks):
        canvas = torch.tensor([with_bos[blank.example]])
        columns = list(range(blank.start, blank.start + blank.length))
        is_blank = torch.zeros_like(canvas, dtype=torch.bool)
        is_blank[:, columns] = True
        probabilities = torch.stack(
            [
                model.score(
                    canvas, is_blank, decoding_order="left_to_right", context_order=torch.tensor([orders[k][index]])
                ).token_log_probs[0, 0, columns]
                for k in range(4)
            ]
        ).exp()
        for size, groups in ((1, 4), (2, 2), (4, 1)):
            expected = -probabilities.view(groups, size, -1).mean(1).log().sum(-1)
            torch.testing.assert_close(ensemble.group_nll[size][:, index].float(), expected, rtol=0, atol=1e-4)
        whole = -probabilities.prod(-1).mean().log()
        differs |= (ensemble.example_nll(4)[index] - whole).abs().item() > 1e-3
    assert differs and ensemble.example_tokens.tolist() == [blank.length for blank in blanks]


def test_an_ensemble_of_one_order_is_the_plain_score(dataset):
    """A sentence of one given token has one order of it."""
    model, blanks = tiny_model("adaptive_norm"), [Blank(1, 1, 2), Blank(0, 1, 6)]
    ensemble = evaluate_context_orders(model, dataset, TOKENIZER, blanks, num_orders=2, progress=False)
    for size in (1, 2):
        for index, text in enumerate(("qp", "abcdef")):
            canvas = torch.tensor([[TOKENIZER.bos_token_id, *TOKENIZER(text).input_ids]])
            expected = -model.score(canvas, decoding_order="left_to_right").log_likelihood.item()
            assert ensemble.group_nll[size][:, index].tolist() == pytest.approx([expected] * (2 // size), abs=1e-4)


@pytest.mark.parametrize("variant", ["decoupled_rope", "bidirectional"])
def test_an_ensemble_is_a_distribution_over_fillings(variant):
    model = model_of_five_symbols(variant)
    blank, total = Blank(0, 2, 2), 0.0
    for filling in all_strings(5, 2).tolist():
        row = Dataset.from_dict({"input_ids": [[1, 3, *filling, 2, 4]]})
        ensemble = evaluate_context_orders(model, row, WITHOUT_BOS, [blank], num_orders=3, progress=False)
        total += math.exp(-ensemble.example_nll(3).item())
    assert total == pytest.approx(1, abs=1e-5)


def test_the_order_of_what_is_given_matters_in_generation_order_only(dataset):
    blanks = place_blanks(LENGTHS, [2])
    spread = {}
    for variant in ("two_stream", "bidirectional"):
        model = tiny_model(variant)
        groups = evaluate_context_orders(model, dataset, TOKENIZER, blanks, num_orders=4, progress=False).group_nll
        spread[variant] = (groups[1].max(0).values - groups[1].min(0).values).max().item()
        in_sentence_order = evaluate_infilling(model, dataset, TOKENIZER, (2,), progress=False).blank_nll
        if variant == "bidirectional":
            for each in groups.values():
                np.testing.assert_allclose(each, in_sentence_order.expand_as(each), atol=1e-4)
    assert spread["bidirectional"] < 1e-4 and spread["two_stream"] > 0.1


def test_the_model_keeps_its_mode(dataset):
    model = tiny_model("two_stream", attention_dropout=0.5).train()
    results = [evaluate_infilling(model, dataset, TOKENIZER, (2,), progress=False) for _ in range(2)]
    assert model.training and torch.equal(results[0].blank_nll, results[1].blank_nll)
    ensembles = [
        evaluate_context_orders(model, dataset, TOKENIZER, results[0].blanks, num_orders=1, progress=False)
        for _ in range(2)
    ]
    assert model.training and torch.equal(ensembles[0].group_nll[1], ensembles[1].group_nll[1])


def test_bad_input_is_named(dataset):
    model, blanks = tiny_model("two_stream"), [Blank(0, 1, 2)]
    with pytest.raises(ValueError, match=r"blank_lengths must be different lengths, at least one; got \[2, 2\]"):
        place_blanks(LENGTHS, [2, 2])
    with pytest.raises(ValueError, match="blank_lengths must leave a given token in some sentence, got 13 for"):
        place_blanks(LENGTHS, [13])
    with pytest.raises(ValueError, match="`blank_lengths` must be an integer of at least 1, got 0"):
        place_blanks(LENGTHS, [0])
    with pytest.raises(ValueError, match="`per_example` must be an integer of at least 1, got 0"):
        place_blanks(LENGTHS, [1], per_example=0)
    with pytest.raises(ValueError, match="longest and margin must fit some sentence, got 8 and 3 for .* at most 13"):
        place_middles(LENGTHS, 2, 8, margin=3)
    with pytest.raises(ValueError, match="shortest must be at most longest=2, got 3"):
        place_middles(LENGTHS, 3, 2)
    with pytest.raises(ValueError, match="`margin` must be an integer of at least 1, got 0"):
        place_middles(LENGTHS, 1, 2, margin=0)
    with pytest.raises(ValueError, match="blank_lengths must be different lengths, at least one; got"):
        evaluate_infilling(model, dataset, TOKENIZER, [], progress=False)
    with pytest.raises(ValueError, match="`decoding_order` must be .*got 'backwards'"):
        evaluate_infilling(model, dataset, TOKENIZER, (1,), decoding_order="backwards", progress=False)
    with pytest.raises(ValueError, match="attention_variant='causal' fills blanks from left to right only"):
        evaluate_infilling(tiny_model("causal"), dataset, TOKENIZER, (1,), progress=False)
    for function, argument in ((evaluate_infilling, (1,)), (evaluate_context_orders, blanks)):
        with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1, got 0"):
            function(model, dataset, TOKENIZER, argument, batch_size=0)
        with pytest.raises(TypeError, match="must have a length.*got IterableDataset"):
            function(model, dataset.to_iterable_dataset(), TOKENIZER, argument)
    with pytest.raises(ValueError, match="`num_orders` must be an integer of at least 1, got 0"):
        evaluate_context_orders(model, dataset, TOKENIZER, blanks, num_orders=0)
    with pytest.raises(ValueError, match="blanks must hold at least one blank, got none"):
        evaluate_context_orders(model, dataset, TOKENIZER, [])
