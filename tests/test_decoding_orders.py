# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Orders that the tokens decide, and several tokens a pass: against a slow loop that asks for each blank by itself."""

import itertools
import math

import pytest
import torch
from canvases import (
    check_filling,
    conditional,
    conditional_of_column,
    example_of,
    filling_cases,
    ragged_canvases,
    replay,
)
from transformers import LogitsProcessor, LogitsProcessorList
from variants import any_order_variants, tiny_model

from modeling_aoarm.decoding_aoarm import MarginOrder, Threshold, certainty, step_sizes
from modeling_aoarm.decoding_loop_aoarm import draw_from


def how_sure(log_probs, rule):
    """The definitions once more, in float64 from log-probabilities `[vocab]` of which some may be -inf."""
    first, *others = log_probs.double().exp().sort(descending=True).values.tolist()
    if rule == "confidence":
        return math.log(first / sum(others))
    if rule == "margin":
        return -math.log(sum(others) + others[0])
    return -math.log(-first * math.log1p(-sum(others)) - sum(p * math.log(p) for p in others if p > 0))


def slow_filling(model, canvas, blanks, rule, sizes, eos_token_id=None):
    """Fills one canvas greedily by asking for every blank in a pass of its own; returns the tokens and the order.

    `sizes` says how many blanks each pass fills, as numbers or as a function of the answers of the surest blanks.
    """
    canvas, order = canvas.clone(), []
    rows = (~blanks).nonzero().flatten().tolist()
    left = blanks.nonzero().flatten().tolist()
    for size in sizes if not callable(sizes) else itertools.repeat(sizes):
        if not left:
            break
        answers = {}
        for column in left:
            answer = conditional_of_column(model, canvas, torch.ones_like(blanks), torch.tensor(rows), column)
            if eos_token_id is not None and column < max(rows):
                answer[eos_token_id] = -math.inf
                answer = answer.log_softmax(-1)
            answers[column] = answer
        chosen = sorted(left, key=lambda column: (-round(how_sure(answers[column], rule), 3), column))
        chosen = size({column: answers[column] for column in chosen}) if callable(size) else chosen[:size]
        for column in chosen:
            canvas[column] = answers[column].argmax()
        rows, order = rows + chosen, order + chosen
        left = [column for column in left if column not in chosen]
    return canvas, order


ADAPTIVE = [
    {"decoding_order": rule, "tokens_per_step": size}
    for rule in ("confidence", "entropy", "margin")
    for size in (1, 2, "cosine(3)")
]


@pytest.mark.grid
@pytest.mark.parametrize(*filling_cases(ADAPTIVE), ids=str)
@pytest.mark.parametrize("is_confident", [False, True])
def test_adaptive_orders_fill_the_surest_blanks_first(variant, way, cache, is_confident):
    model = tiny_model(variant)
    if is_confident:
        model.lm_head.weight.data *= 10
    canvases = ragged_canvases("right")
    output = model.generate(**canvases, **way, **cache, return_dict_in_generate=True)
    for row in range(4):
        example = example_of(canvases, row)
        blanks = example["generation_mask"][0]
        sizes = step_sizes(way["tokens_per_step"], int(blanks.sum()))
        canvas, order = slow_filling(model, example["input_ids"][0], blanks, way["decoding_order"], sizes)
        assert output.decoding_order[row, : len(order)].tolist() == order
        assert torch.equal(output.sequences[row, : len(canvas)], canvas)


def above(bound):
    """The blanks whose likeliest token has a larger probability; of answers by column, the surest first."""

    def choose(answers):
        sure = [column for column, answer in answers.items() if answer.double().exp().max() > bound]
        return sure or [next(iter(answers))]

    return choose


def within(bound):
    """The first blanks whose entropies have a sum, without the largest of them, below a bound."""

    def choose(answers):
        entropies = [float(torch.special.entr(answer.double().exp()).sum()) for answer in answers.values()]
        counts = [n for n in range(1, len(answers) + 1) if sum(entropies[:n]) - max(entropies[:n]) < bound]
        return list(answers)[: max(counts, default=1)]

    return choose


LIMITS = {
    "threshold(0.3)": above(0.3),
    "threshold(.5)": above(0.5),
    "entropy(2)": within(2.0),
    "entropy(3.0)": within(3.0),
}


@pytest.mark.grid
@pytest.mark.parametrize(
    *filling_cases([{"decoding_order": rule} for rule in ("confidence", "entropy", "margin")]), ids=str
)
@pytest.mark.parametrize("limit", LIMITS)
def test_a_pass_fills_what_the_model_is_sure_of(variant, way, cache, limit):
    model, canvases = tiny_model(variant), ragged_canvases("left")
    model.lm_head.weight.data *= 2
    output = model.generate(**canvases, **way, **cache, tokens_per_step=limit, return_dict_in_generate=True)
    sizes = set()
    for row in range(4):
        example = example_of(canvases, row)
        blanks, start = example["generation_mask"][0], int((canvases["attention_mask"][row] == 0).sum())
        arguments = example["input_ids"][0], blanks, way["decoding_order"], LIMITS[limit]
        canvas, order = slow_filling(model, *arguments)
        assert (output.decoding_order[row, : len(order)] - start).tolist() == order
        assert torch.equal(output.sequences[row, start:], canvas)
        sizes |= set(output.decoding_steps[row, : len(order)].unique(return_counts=True)[1].tolist())
    assert len(sizes) > 1
    torch.testing.assert_close(output.logprobs, replay(model, canvases, output, in_groups=True), atol=1e-5, rtol=0)


def test_sure_blanks_are_filled_wherever_the_order_ranks_them():
    """Those above a threshold first, the surest by the order's own rule in front; the rest stay where they were."""
    certain, odds = torch.tensor([[1.0, 3.0, 0.0, 2.0, 9.0]]), torch.tensor([[-1.0, -1.0, 1.0, 2.0, 9.0]])
    is_blank = torch.tensor([[True, True, True, True, False]])
    order, count = MarginOrder([[4]], Threshold(0.5)).rank(certain, odds, is_blank, torch.tensor([4]))
    assert order.tolist() == [[3, 2, 0, 1, 4]] and count.tolist() == [2]
    order, count = MarginOrder([[4]], Threshold(1.0)).rank(certain, odds, is_blank, torch.tensor([4]))
    assert order.tolist() == [[1, 0, 2, 3, 4]] and count.tolist() == [1]


@pytest.mark.grid
@pytest.mark.parametrize(
    *filling_cases([{"decoding_order": rule} for rule in ("confidence", "entropy", "margin")]), ids=str
)
def test_the_ends_of_both_limits_are_one_by_one_and_one_pass(variant, way, cache):
    model, canvases = tiny_model(variant), ragged_canvases("right")

    def fill(size):
        return model.generate(**canvases, **way, **cache, tokens_per_step=size, return_dict_in_generate=True)

    for ends, size in ((("threshold(1)", "entropy(0)"), 1), (("threshold(0)", "entropy(1000)"), 100)):
        expected = fill(size)
        for output in map(fill, ends):
            assert torch.equal(output.sequences, expected.sequences)
            assert torch.equal(output.decoding_order, expected.decoding_order)
            assert torch.equal(output.decoding_steps, expected.decoding_steps)
            assert output.forward_passes == expected.forward_passes
            torch.testing.assert_close(output.logprobs, expected.logprobs, atol=1e-5, rtol=0)


@any_order_variants
@pytest.mark.parametrize("limit", ["threshold(0.2)", "entropy(2.5)"])
def test_a_limit_without_an_order_has_its_own(variant, limit):
    model, canvases = tiny_model(variant), ragged_canvases("right")
    order = "confidence" if limit.startswith("threshold") else "entropy"
    alone = model.generate(**canvases, tokens_per_step=limit, return_dict_in_generate=True)
    named = model.generate(**canvases, tokens_per_step=limit, decoding_order=order, return_dict_in_generate=True)
    assert torch.equal(alone.decoding_order, named.decoding_order)
    model.generation_config.tokens_per_step = limit
    saved = model.generate(**canvases, return_dict_in_generate=True)
    assert torch.equal(saved.decoding_order, named.decoding_order)
    # A fixed order of the call is no order of sure blanks, and wins.
    fixed = model.generate(**canvases, decoding_order="left_to_right", return_dict_in_generate=True)
    assert fixed.forward_passes == 6


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize("rule", ["confidence", "entropy", "margin"])
def test_blanks_where_a_sentence_must_not_end_are_judged_without_the_end(variant, rule):
    """A model that is sure of nothing but the end has to be judged by what it may write."""
    model = tiny_model(variant, eos_token_id=2, pad_token_id=0)
    with torch.no_grad():
        model.lm_head.weight[2] = 3 * model.lm_head.weight[5]
    canvas = torch.tensor([[5, 0, 0, 0, 0, 9]])
    blanks = torch.tensor([[False, True, True, True, True, False]])
    output = model.generate(canvas, generation_mask=blanks, decoding_order=rule, return_dict_in_generate=True)
    expected, order = slow_filling(model, canvas[0], blanks[0], rule, [1] * 4, eos_token_id=2)
    assert output.decoding_order[0].tolist() == order and torch.equal(output.sequences[0], expected)


def test_how_sure_a_model_is():
    even, sure = torch.tensor([0.25, 0.25, 0.25, 0.25]).log(), torch.tensor([0.1, 0.7, 0.2, 0.0]).log()
    logits = torch.stack([even, sure]) + 3.0
    expected = {
        "confidence": [math.log(0.25 / 0.75), math.log(0.7 / 0.3)],
        "margin": [0.0, -math.log(0.5)],
        "entropy": [-math.log(math.log(4)), -math.log(-sum(p * math.log(p) for p in (0.1, 0.7, 0.2)))],
    }
    for rule, values in expected.items():
        assert certainty(logits, rule).tolist() == pytest.approx([round(value, 3) for value in values], abs=1e-6)


@pytest.mark.parametrize("rule", ["confidence", "entropy", "margin"])
def test_sure_places_are_told_apart(rule):
    """Up to where a number of single precision can: the surest is not the leftmost by a tie."""
    gaps = torch.tensor([9.21, 12.02, 30.0, 8.0, 12.03, 80.0])
    logits = torch.stack([gaps, torch.zeros(6), torch.full((6,), -5.0)], dim=1)
    order = certainty(logits, rule).argsort(descending=True, stable=True)
    assert order.tolist() == [5, 2, 4, 1, 0, 3]
    alone = torch.tensor([[5.0, -math.inf], [1.0, 1.0]])
    assert certainty(alone, rule).isfinite().all() and certainty(alone, rule).argmax() == 0
    # What rounding errors make stays a tie.
    noise = 1e-5 * torch.tensor([0.0, 1.0, -1.0, 2.0, -2.0, 1.5])
    noisy = torch.stack([2.0001 + noise, torch.zeros(6), -noise], dim=1)
    assert len(certainty(noisy, rule).unique()) == 1


def test_tokens_are_drawn_by_inversion():
    """Each uniform number has its token; those of weight 0 have none, not even at the ends."""
    weights = torch.tensor([0.0, 0.5, 0.0, 1.5, 0.0])
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert draw_from(weights.expand(5, -1), uniforms).tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize(
    ("tokens_per_step", "blanks", "sizes"),
    [
        (None, 3, [1, 1, 1]),
        (1, 0, []),
        (4, 10, [4, 4, 2]),
        (20, 10, [10]),
        ("linear(4)", 10, [2, 3, 3, 2]),
        ("linear(4)", 3, [1, 1, 1]),
        # 1 - cos of 30, 60 and 90 degrees: 0.134, 0.5 and 1.
        ("cosine(3)", 12, [2, 4, 6]),
        ("cosine(3)", 100, [13, 37, 50]),
        ("linear(1)", 7, [7]),
    ],
)
def test_schedules_share_the_blanks_out(tokens_per_step, blanks, sizes):
    assert step_sizes(tokens_per_step, blanks) == sizes


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize("order", ["random", "entropy"])
@pytest.mark.parametrize("size", [2, 4, "linear(2)", "cosine(4)"])
def test_each_pass_fills_what_the_schedule_says(variant, order, size):
    canvases = ragged_canvases("left")
    output = tiny_model(variant).generate(
        **canvases, decoding_order=order, tokens_per_step=size, return_dict_in_generate=True
    )
    # A pass of its own reads the context where the first ones fill several blanks or choose among them.
    reading = int(order == "entropy" or step_sizes(size, 6)[0] > 1)
    for row, blanks in enumerate(canvases["generation_mask"].sum(1).tolist()):
        sizes = step_sizes(size, blanks)
        expected = [reading + step for step, count in enumerate(sizes) for _ in range(count)]
        assert output.decoding_steps[row, :blanks].tolist() == expected
    assert output.forward_passes == reading + len(step_sizes(size, 6))


class Wish(LogitsProcessor):
    """Makes the model want certain tokens, by pass and place within it."""

    def __init__(self, *passes):
        self.passes = list(passes)

    def __call__(self, input_ids, scores):
        bonus = torch.zeros_like(scores)
        for row, token in enumerate(self.passes.pop(0)):
            bonus[row, token] = 1e4
        return scores + bonus


@any_order_variants
def test_an_end_of_sentence_closes_its_group_too(variant):
    """Of a pass's tokens those behind the end are dropped; a blank to its left that was among them is filled later."""
    model = tiny_model(variant, eos_token_id=2, pad_token_id=0)
    canvas = torch.tensor([[5, 9, 9, 9, 9, 9]])
    blanks = torch.tensor([[False, True, True, True, True, True]])
    how = {"generation_mask": blanks, "tokens_per_step": 3, "return_dict_in_generate": True}
    wishes = LogitsProcessorList([Wish([7, 2, 8], [11])])
    output = model.generate(canvas, decoding_order=torch.tensor([[2, 3, 1, 5, 4]]), logits_processor=wishes, **how)
    assert output.sequences.tolist() == [[5, 11, 7, 2, 0, 0]]
    assert output.decoding_order.tolist() == [[2, 3, 1]] and output.decoding_steps.tolist() == [[0, 0, 1]]
    canvases = {"generation_mask": blanks, "attention_mask": torch.ones_like(canvas)}
    torch.testing.assert_close(output.logprobs, replay(model, canvases, output, in_groups=True), atol=1e-5, rtol=0)


@any_order_variants
def test_no_end_of_sentence_to_the_left_of_a_token_of_the_same_pass(variant):
    model = tiny_model(variant, eos_token_id=2, pad_token_id=0)
    canvas = torch.tensor([[5, 9, 9, 9]])
    blanks = torch.tensor([[False, True, True, True]])
    wishes = LogitsProcessorList([Wish([7, 2, 2])])
    filled = model.generate(
        canvas,
        generation_mask=blanks,
        decoding_order=torch.tensor([[2, 1, 3]]),
        tokens_per_step=3,
        logits_processor=wishes,
    )
    assert filled[0, 1] != 2 and filled[0, 2:].tolist() == [7, 2]


@any_order_variants
def test_all_blanks_in_one_pass_are_the_models_independent_guesses(variant):
    model = tiny_model(variant)
    canvases = example_of(ragged_canvases("right"), 0)
    output = model.generate(
        **canvases, decoding_order="random", tokens_per_step=9, do_sample=False, return_dict_in_generate=True
    )
    check_filling(canvases, output)
    given = (~canvases["generation_mask"][0]).nonzero().flatten()
    for column in output.decoding_order[0]:
        answer = conditional(model, canvases["input_ids"][0, given], given, column)
        assert output.sequences[0, column] == answer.argmax()
