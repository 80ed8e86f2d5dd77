# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`score`: law 2 by enumeration, agreement with generation, marginals, batches, and several orders."""

import itertools
import math

import pytest
import torch
from canvases import FILLING_VARIANTS, conditional_of_column, model_of_three_symbols, ragged_canvases
from torch.utils._python_dispatch import TorchDispatchMode
from variants import all_strings, any_order_variants, every_variant, tiny_model

from modeling_aoarm import decoding_aoarm, runner_aoarm
from modeling_aoarm.decoding_aoarm import certainty


@pytest.mark.parametrize("variant", FILLING_VARIANTS)
def test_scores_of_all_strings_sum_to_one_in_every_order(variant):
    model = model_of_three_symbols(variant)
    strings = all_strings(3, 4)
    sentences = torch.cat([torch.zeros(len(strings), 1, dtype=torch.int64), strings], dim=1)
    for order in itertools.permutations(range(1, 5)):
        scores = model.score(sentences, decoding_order=torch.tensor([order]).expand(len(strings), -1))
        assert scores.log_likelihood.shape == (1, 81)
        assert abs(scores.log_likelihood.double().exp().sum() - 1) < 1e-5


@pytest.mark.grid
@pytest.mark.parametrize("rule", ["confidence", "entropy", "margin"])
@pytest.mark.parametrize("variant", FILLING_VARIANTS)
def test_adaptive_scores_of_all_strings_sum_to_one(variant, rule):
    model = model_of_three_symbols(variant)
    model.lm_head.weight.data *= 5
    strings = all_strings(3, 4)
    sentences = torch.cat([torch.zeros(len(strings), 1, dtype=torch.int64), strings], dim=1)
    scores = model.score(sentences, decoding_order=rule)
    assert abs(scores.log_likelihood.double().exp().sum() - 1) < 1e-5
    # The order depends on the tokens.
    assert len(scores.decoding_order[0].unique(dim=0)) > 1
    assert torch.equal(scores.mean_log_likelihood, scores.log_likelihood[0])
    # One by one, from uncached passes over each string alone.
    everywhere = torch.ones(5, dtype=torch.bool)
    for row in (0, 17, 80):
        known, log_probs = [0], []
        while len(known) < 5:
            left = [column for column in range(5) if column not in known]
            answers = [
                conditional_of_column(model, sentences[row], everywhere, torch.tensor(known), column) for column in left
            ]
            sure = certainty(torch.stack(answers), rule)
            column = left[sure.argmax()]
            log_probs.append(answers[sure.argmax()][sentences[row, column]])
            known.append(column)
        assert scores.decoding_order[0, row].tolist() == known[1:]
        by_step = scores.token_log_probs[0, row].gather(0, scores.decoding_order[0, row])
        torch.testing.assert_close(by_step, torch.stack(log_probs), atol=1e-5, rtol=0)


@pytest.mark.grid
@pytest.mark.parametrize("rule", ["confidence", "entropy", "margin"])
@pytest.mark.parametrize("variant", FILLING_VARIANTS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_adaptive_scores_are_what_generation_said(variant, rule, side):
    """In a ragged batch, of greedy fillings and of drawn ones; alone and in a batch, with an end of sentence."""
    model = tiny_model(variant, eos_token_id=2, pad_token_id=0)
    # A published config may name an id that is no token.
    model.generation_config.eos_token_id = [2, -1]
    # The end is what the model would be surest of.
    model.lm_head.weight.data[2] *= 2
    canvases = ragged_canvases(side)
    for do_sample in (False, True):
        torch.manual_seed(0)
        output = model.generate(
            **canvases, decoding_order=rule, do_sample=do_sample, return_dict_in_generate=True, suppress_tokens=[2]
        )
        masks = canvases["generation_mask"], None, canvases["attention_mask"]
        scores = model.score(output.sequences, *masks, decoding_order=rule)
        assert torch.equal(scores.decoding_order[0], output.decoding_order)
        torch.testing.assert_close(scores.log_likelihood[0], output.logprobs.sum(1), atol=1e-5, rtol=0)
        fixed = model.score(output.sequences, *masks, decoding_order=output.decoding_order)
        torch.testing.assert_close(scores.token_log_probs, fixed.token_log_probs, atol=1e-5, rtol=0)
        assert torch.equal(scores.token_is_likeliest, fixed.token_is_likeliest)
        for row in range(4):
            real = canvases["attention_mask"][row].bool()
            alone = model.score(
                output.sequences[row : row + 1, real], masks[0][row : row + 1, real], decoding_order=rule
            )
            torch.testing.assert_close(
                alone.token_log_probs[0, 0], scores.token_log_probs[0, row, real], atol=1e-5, rtol=0
            )


def test_an_end_of_sentence_in_a_scored_text_is_a_token():
    """It closes no blanks, wherever it stands."""
    model = tiny_model("two_stream", eos_token_id=2, pad_token_id=0)
    canvas = torch.tensor([[5, 2, 7, 2, 9]])
    scores = model.score(canvas, decoding_order="confidence")
    assert sorted(scores.decoding_order[0, 0].tolist()) == [1, 2, 3, 4]
    fixed = model.score(canvas, decoding_order=scores.decoding_order)
    torch.testing.assert_close(scores.token_log_probs, fixed.token_log_probs, atol=1e-5, rtol=0)


def test_adaptive_scores_are_refused_where_only_the_next_position_is_known():
    with pytest.raises(ValueError, match="causal.*adaptive orders need another variant.*'confidence'"):
        tiny_model("causal").score(torch.tensor([[1, 2, 3]]), decoding_order="confidence")


@any_order_variants
def test_conditionals_of_all_fillings_sum_to_one(variant):
    """Some columns are given, some blank, one is left out: the blanks' probabilities sum to one whatever it holds."""
    model = tiny_model(variant, vocab_size=3)
    fillings = all_strings(3, 2)
    canvas = torch.tensor([[1, 0, 2, 0, 1]]).repeat(9, 1)
    canvas[:, [1, 3]] = fillings
    blanks = torch.tensor([[False, True, False, True, False]]).expand(9, -1)
    observed = torch.tensor([[True, True, False, True, True]]).expand(9, -1)
    for mask in (None, observed):
        scores = model.score(canvas, blanks, observed_mask=mask, decoding_order="left_to_right")
        assert abs(scores.log_likelihood.double().exp().sum() - 1) < 1e-5
    left_out = model.score(canvas, blanks, observed_mask=observed, decoding_order="left_to_right").log_likelihood
    canvas[:, 2] = 0
    again = model.score(canvas, blanks, observed_mask=observed, decoding_order="left_to_right").log_likelihood
    torch.testing.assert_close(again, left_out, atol=0, rtol=0)
    seen = model.score(canvas, blanks, decoding_order="left_to_right").log_likelihood
    assert (seen - left_out).abs().max() > 1e-2


@any_order_variants
def test_generated_fillings_score_what_generation_said(variant):
    model = tiny_model(variant)
    canvas = torch.randint(0, 23, (3, 8), generator=torch.Generator().manual_seed(0))
    blanks = torch.zeros(3, 8, dtype=torch.bool)
    blanks[0, 2:6] = blanks[1, [0, 7]] = blanks[2, 1:] = True
    attention_mask = torch.ones(3, 8, dtype=torch.int64)
    attention_mask[1, 1:3] = 0
    torch.manual_seed(3)
    output = model.generate(
        canvas,
        generation_mask=blanks,
        attention_mask=attention_mask,
        decoding_order="random",
        do_sample=True,
        return_dict_in_generate=True,
    )
    scores = model.score(output.sequences, blanks, attention_mask=attention_mask, decoding_order=output.decoding_order)
    torch.testing.assert_close(scores.log_likelihood[0], output.logprobs.sum(1), atol=1e-5, rtol=0)
    order = output.decoding_order
    by_step = scores.token_log_probs[0].gather(1, order.clamp(min=0)).masked_fill(order < 0, 0)
    torch.testing.assert_close(by_step, output.logprobs, atol=1e-5, rtol=0)
    assert (scores.token_log_probs[0][~blanks] == 0).all()
    assert torch.equal(scores.decoding_order[0], order)


@any_order_variants
@pytest.mark.parametrize("side", ["left", "right"])
def test_an_examples_score_does_not_depend_on_its_neighbours(variant, side):
    """Law 5, with orders drawn from one generator for each example."""
    model = tiny_model(variant)
    lengths = (7, 4, 6)
    canvas, attention_mask = torch.full((3, 7), 9), torch.zeros(3, 7, dtype=torch.int64)
    examples = [torch.randint(0, 23, (1, n), generator=torch.Generator().manual_seed(n)) for n in lengths]
    for row, example in enumerate(examples):
        columns = slice(7 - lengths[row], 7) if side == "left" else slice(lengths[row])
        canvas[row, columns], attention_mask[row, columns] = example[0], 1

    def generators():
        return [torch.Generator().manual_seed(n) for n in lengths]

    together = model.score(canvas, attention_mask=attention_mask, num_orders=3, generator=generators())
    for row, (example, generator) in enumerate(zip(examples, generators(), strict=True)):
        alone = model.score(example, num_orders=3, generator=[generator])
        torch.testing.assert_close(together.log_likelihood[:, row], alone.log_likelihood[:, 0], atol=1e-5, rtol=0)
        kept = together.token_log_probs[:, row, attention_mask[row].bool()]
        torch.testing.assert_close(kept, alone.token_log_probs[:, 0], atol=1e-5, rtol=0)


@any_order_variants
def test_several_orders_are_summed_up_by_mean_and_by_log_mean(variant):
    model = tiny_model(variant)
    canvas = torch.randint(0, 23, (2, 6), generator=torch.Generator().manual_seed(0))
    scores = model.score(canvas, num_orders=5, generator=torch.Generator().manual_seed(1))
    assert scores.token_log_probs.shape == (5, 2, 6) and scores.decoding_order.shape == (5, 2, 5)
    assert len({tuple(order) for order in scores.decoding_order[:, 0].tolist()}) > 1
    each = torch.stack([model.score(canvas, decoding_order=order).log_likelihood[0] for order in scores.decoding_order])
    torch.testing.assert_close(scores.log_likelihood, each, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.mean_log_likelihood, each.mean(0), atol=1e-5, rtol=0)
    log_mean = torch.tensor([math.log(sum(math.exp(v) for v in column) / 5) for column in each.double().T])
    torch.testing.assert_close(scores.log_mean_likelihood.double(), log_mean.double(), atol=1e-4, rtol=0)
    given = model.score(canvas, decoding_order=scores.decoding_order)
    torch.testing.assert_close(given.log_likelihood, scores.log_likelihood, atol=1e-5, rtol=0)


def test_causal_scores_left_to_right_text_as_its_loss_does():
    model = tiny_model("causal")
    canvas = torch.randint(0, 23, (2, 6), generator=torch.Generator().manual_seed(0))
    scores = model.score(canvas, decoding_order="left_to_right")
    with torch.no_grad():
        loss = model(canvas, labels=canvas).loss
    torch.testing.assert_close(-scores.log_likelihood.mean() / 5, loss, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="causal.*from left to right"):
        model.score(canvas, generator=torch.Generator().manual_seed(0))


def test_nothing_to_score_scores_zero():
    canvas = torch.zeros(2, 3, dtype=torch.int64)
    scores = tiny_model("two_stream").score(canvas, torch.zeros(2, 3, dtype=torch.bool))
    assert scores.log_likelihood.tolist() == [[0.0, 0.0]]


CANVAS = torch.zeros(2, 4, dtype=torch.int64)
BLANKS = torch.tensor([[False, True, True, False], [False, False, True, True]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": CANVAS + 23}, "vocab_size=23"),
        ({"input_ids": torch.where(BLANKS, 23, 0)}, r"vocab_size=23.*read.*\[0, 1\]"),
        ({"input_ids": CANVAS[0]}, r"input_ids.*\[4\]"),
        ({"generation_mask": BLANKS.long()}, "generation_mask.*bool.*int64"),
        ({"observed_mask": BLANKS.long()}, "observed_mask.*bool.*int64"),
        ({"observed_mask": BLANKS[:, :2]}, r"observed_mask.*\[2, 4\].*\[2, 2\]"),
        ({"observed_mask": ~BLANKS}, "observed_mask.*True in the blanks"),
        ({"observed_mask": BLANKS}, "observed_mask.*at least one given"),
        ({"generation_mask": None, "attention_mask": [[1] * 4] * 2}, "attention_mask.*list"),
        ({"num_orders": 0}, "num_orders.*0"),
        ({"num_orders": 1.5}, "num_orders.*1.5"),
        ({"decoding_order": torch.zeros(0, 2, 2, dtype=torch.int64)}, "decoding_order.*at least one order"),
        ({"num_orders": 2, "decoding_order": "left_to_right"}, "num_orders.*2.*left_to_right"),
        ({"decoding_order": "surest"}, "decoding_order.*'margin'.*'surest'"),
        ({"decoding_order": "margin", "num_orders": 2}, "num_orders.*not drawn.*2.*'margin'"),
        ({"decoding_order": torch.tensor([[[1, 2], [2, 2]]])}, "decoding_order.*exactly once"),
        ({"generator": [torch.Generator()]}, "generator.*2 examples.*1"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        tiny_model("two_stream").score(**{"input_ids": CANVAS, "generation_mask": BLANKS, **arguments})


@any_order_variants
def test_greedy_fillings_are_the_likeliest_and_others_are_not(variant):
    """Against greedy decoding in the same order; a token that is changed is found, and none before it."""
    model = tiny_model(variant)
    canvas = torch.randint(0, 23, (2, 7), generator=torch.Generator().manual_seed(1))
    blanks = torch.tensor(
        [[False, True, False, True, True, False, True], [True, False, False, False, False, True, False]]
    )
    order = torch.tensor([[4, 1, 6, 3], [5, 0, -1, -1]])
    filled = model.generate(canvas, generation_mask=blanks, decoding_order=order)
    scores = model.score(filled, blanks, decoding_order=order)
    assert scores.token_is_likeliest.dtype == torch.bool and torch.equal(scores.token_is_likeliest[0], blanks)
    filled[0, 1] = (filled[0, 1] + 1) % 23
    flags = model.score(filled, blanks, decoding_order=order).token_is_likeliest[0]
    assert flags[0, 4] and not flags[0, 1] and torch.equal(flags[1], blanks[1])
    several = torch.stack([order, order.flip(0).new_tensor([[1, 3, 4, 6], [0, 5, -1, -1]])])
    each = [model.score(filled, blanks, decoding_order=one).token_is_likeliest[0] for one in several]
    assert torch.equal(model.score(filled, blanks, decoding_order=several).token_is_likeliest, torch.stack(each))


class LargestTensor(TorchDispatchMode):
    """The most numbers that a tensor had which some operation made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else [made]:
            self.numbers = max(self.numbers, each.numel() if isinstance(each, torch.Tensor) else 0)
        return made


@every_variant
def test_scores_never_need_all_logits_at_once(variant, monkeypatch):
    model = tiny_model(variant, vocab_size=5000)
    canvas = torch.randint(0, 5000, (8, 10), generator=torch.Generator().manual_seed(0))
    order = "left_to_right"
    expected = model.score(canvas, decoding_order=order)
    monkeypatch.setattr(runner_aoarm, "LOGITS_AT_ONCE", 3 * 5000)
    with LargestTensor() as largest:
        output = model.score(canvas, decoding_order=order)
    # The largest is now the embedding, or of so many logits; all of them are 8 * 9 * 5000.
    assert largest.numbers <= max(3, model.config.hidden_size) * 5000
    torch.testing.assert_close(output.token_log_probs, expected.token_log_probs, atol=1e-5, rtol=0)
    assert torch.equal(output.token_is_likeliest, expected.token_is_likeliest)


WAYS_IN_PARTS = [
    {"decoding_order": "confidence"},
    {"decoding_order": "random", "tokens_per_step": 9},
    {"tokens_per_step": "threshold(0)"},
    {"decoding_order": "left_to_right", "draft_length": 2},
]


@pytest.mark.grid
@pytest.mark.parametrize("way", WAYS_IN_PARTS, ids=str)
@pytest.mark.parametrize("variant", FILLING_VARIANTS)
def test_decoding_never_needs_all_logits_at_once(variant, way, monkeypatch):
    """What is sampled, its order and its log-probabilities do not change, also where a sentence may not end."""
    if variant == "bidirectional" and "draft_length" in way:
        pytest.skip("bidirectional has no drafts")
    model = tiny_model(variant, vocab_size=5000, eos_token_id=2, pad_token_id=0)
    model.lm_head.weight.data[2] = 3 * model.lm_head.weight.data[5]
    canvas = torch.randint(4, 5000, (4, 16), generator=torch.Generator().manual_seed(0))
    blanks = torch.ones_like(canvas, dtype=torch.bool)
    blanks[:, :2] = blanks[1, 9:] = False
    how = {"generation_mask": blanks, "do_sample": True, "top_p": 0.9, "return_dict_in_generate": True} | way
    expected = model.generate(canvas, **how, generator=torch.Generator().manual_seed(1))
    # Drafts are verified with one row of logits each.
    rows = 3
    monkeypatch.setattr(runner_aoarm, "LOGITS_AT_ONCE", 4 * rows * 5000)
    monkeypatch.setattr(decoding_aoarm, "LOGITS_IN_CACHE", 4 * 2 * 5000)
    with LargestTensor() as largest:
        output = model.generate(canvas, **how, generator=torch.Generator().manual_seed(1))
    # The largest is now the embedding; all logits are 4 * 14 * 5000.
    assert largest.numbers <= max(4 * rows, model.config.hidden_size) * 5000
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.decoding_order, expected.decoding_order)
    torch.testing.assert_close(output.logprobs, expected.logprobs, atol=1e-5, rtol=0)


@every_variant
def test_a_reader_of_logits_gets_the_states_and_the_head(variant):
    model = tiny_model(variant)
    rows = torch.randint(0, 21, (2, 5), generator=torch.Generator().manual_seed(0))
    logits = model(rows).logits
    output = model(rows, logits_to_keep=2, logits_reader=lambda states, head: (states.shape, head(states[:, :1])))
    shape, part = output.readings
    assert shape == (2, 2, model.config.hidden_size) and output.logits is None
    torch.testing.assert_close(part, logits[:, -2:-1], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="`scored_ids`, `logits_reader` and `labels` exclude each other"):
        model(rows, logits_reader=lambda states, head: None, labels=rows)


@every_variant
def test_scored_ids_give_the_log_probabilities_of_the_logits(variant):
    model = tiny_model(variant)
    rows = torch.randint(0, 21, (2, 5), generator=torch.Generator().manual_seed(0))
    wanted = rows.flip(1)
    logits, output = model(rows).logits, model(rows, scored_ids=wanted)
    log_probs = logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
    torch.testing.assert_close(output.token_log_probs, log_probs, atol=1e-5, rtol=0)
    assert torch.equal(output.token_is_likeliest, logits.argmax(-1) == wanted) and output.logits is None
    kept = model(rows, scored_ids=wanted[:, -2:], logits_to_keep=2)
    torch.testing.assert_close(kept.token_log_probs, log_probs[:, -2:], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"`scored_ids` must have one token for each row.*\[2, 5\]; got \[2, 4\]"):
        model(rows, scored_ids=wanted[:, :4])
    with pytest.raises(ValueError, match="`scored_ids`, `logits_reader` and `labels` exclude each other"):
        model(rows, scored_ids=wanted, labels=wanted)
