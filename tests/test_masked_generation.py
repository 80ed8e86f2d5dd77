# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`generate` and `score` of `bidirectional`: the laws of canvases, where every pass reads all of them."""

import itertools

import pytest
import torch
from canvases import WAYS, check_filling, example_of, ragged_canvases, replay
from masked import MASK, logits_of, masked_model, masked_rows, padded
from scipy.stats import chisquare
from test_generation import scripted
from transformers import DynamicCache
from variants import all_strings

from modeling_aoarm import (
    AOARMForMaskedLM,
    infill,
    runner_aoarm,
    scoring_aoarm,
)
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.decoding_aoarm import certainty


FILLING = [way for way in WAYS if "draft_length" not in way]
IDS = torch.tensor([[1, MASK, 3]])
BLANKS = torch.tensor([[False, True, False]])


def conditional(model, tokens, real, known, column):
    """The log-probabilities `[vocab]` of a column, from the known ones of a canvas `[columns]` by itself."""
    rows = real.nonzero().flatten()
    seen = torch.isin(rows, known)
    input_ids = tokens[rows].masked_fill(~seen, MASK)
    return logits_of(model, input_ids[None])[0, int((rows < column).sum())].log_softmax(-1)


@pytest.mark.grid
@pytest.mark.parametrize("way", FILLING, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_replaying_the_realised_order_gives_the_same_log_probabilities(way, side):
    model, canvases = masked_model(), ragged_canvases(side)
    canvases["input_ids"] = canvases["input_ids"].clamp(max=MASK - 1)
    for how in ({"do_sample": False}, {"do_sample": True, "temperature": 1.3, "top_k": 7, "top_p": 0.9}):
        torch.manual_seed(5)
        output = model.generate(**canvases, **way, **how, return_dict_in_generate=True)
        check_filling(canvases, output)
        assert (output.sequences[canvases["generation_mask"]] != MASK).all()
        expected = replay(model, canvases, output, "tokens_per_step" in way, conditional)
        torch.testing.assert_close(output.logprobs, expected, atol=1e-5, rtol=0)
        assert output.past_key_values is None
        if "tokens_per_step" not in way:
            # Six blanks at most, and a pass for each.
            assert output.forward_passes == 6
            scores = model.score(
                output.sequences,
                canvases["generation_mask"],
                attention_mask=canvases["attention_mask"],
                decoding_order=output.decoding_order,
            )
            torch.testing.assert_close(scores.log_likelihood[0], output.logprobs.sum(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["confidence", "entropy", "margin"])
def test_adaptive_orders_fill_the_surest_blank_with_its_likeliest_token(rule):
    """Against a loop that asks about each blank that is left, one canvas at a time."""
    model, canvases = masked_model(), ragged_canvases("right")
    canvases["input_ids"] = canvases["input_ids"].clamp(max=MASK - 1)
    output = model.generate(**canvases, decoding_order=rule, do_sample=False, return_dict_in_generate=True)
    for row, order in enumerate(output.decoding_order):
        tokens, real = canvases["input_ids"][row].clone(), canvases["attention_mask"][row].bool()
        left = canvases["generation_mask"][row].nonzero().flatten().tolist()
        for column in order[order >= 0].tolist():
            known = torch.tensor([c for c in real.nonzero().flatten().tolist() if c not in left])
            answers = {c: conditional(model, tokens, real, known, c) for c in left}
            sure = {c: certainty(answer, rule).item() for c, answer in answers.items()}
            assert sure[column] >= max(sure.values()) - 2e-3
            tokens[column] = answers[column].argmax()
            left.remove(column)
        assert torch.equal(output.sequences[row], tokens)


@pytest.mark.grid
@pytest.mark.parametrize("way", FILLING, ids=str)
def test_fillings_do_not_depend_on_neighbours(way):
    model, canvases = masked_model(), ragged_canvases("left")

    def generators(rows):
        return [torch.Generator().manual_seed(10 + row) for row in rows]

    how = {**way, "do_sample": True, "top_k": 0}
    together = model.generate(**canvases, **how, generator=generators(range(4)))
    for row in range(4):
        alone = model.generate(**example_of(canvases, row), **how, generator=generators([row]))
        assert torch.equal(alone[0], together[row, canvases["attention_mask"][row].bool()])


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"repetition_penalty": 20.0}], ids=str)
def test_what_stands_in_blanks_and_padding_is_never_read(how):
    """Law 1: no leak. The mask token is put in blanks, whatever was there."""
    model, canvases = masked_model(), ragged_canvases("left")
    unread = canvases["generation_mask"] | ~canvases["attention_mask"].bool()
    results = []
    for filler in (0, 7, MASK, 23, -100):
        canvases["input_ids"] = canvases["input_ids"].masked_fill(unread, filler)
        results.append(model.generate(**canvases, **how)[canvases["attention_mask"].bool()])
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_mask_token_in_the_prompt_is_text_like_any_other():
    model = masked_model(pad_token_id=MASK, eos_token_id=None)
    canvas = torch.tensor([[MASK, 9, MASK, 10, MASK]])
    blanks = torch.tensor([[False, False, True, False, False]])
    output = model.generate(canvas, generation_mask=blanks, return_dict_in_generate=True)
    assert output.sequences[0, [0, 1, 3, 4]].tolist() == [MASK, 9, 10, MASK] and output.sequences[0, 2] != MASK
    assert output.decoding_order.tolist() == [[2]]


def test_closed_blanks_are_padding():
    """Behind an end of sentence nothing is attended: what is filled later is as if the canvas ended there."""
    model = masked_model(eos_token_id=2, pad_token_id=0)
    canvas = torch.tensor([[5, 6, 9, 9, 9, 9], [5, 6, 7, 9, 9, 9]])
    blanks = torch.tensor([[False, False, True, True, True, True], [False, False, False, True, True, True]])
    output = scripted(model, canvas, blanks, [[3, 4, 5, 2], [5, 4, 3, -1]], [[2, 2], [11, 12], [13, 14], [15, 16]])
    assert output.sequences.tolist() == [[5, 6, 11, 2, 0, 0], [5, 6, 7, 14, 12, 2]]
    assert output.decoding_order.tolist() == [[3, 2, -1], [5, 4, 3]]
    everywhere = torch.ones(6, dtype=torch.bool)
    at_first = conditional(model, output.sequences[0], everywhere, torch.tensor([0, 1]), 3)[2]
    behind = conditional(model, output.sequences[0], torch.arange(6) < 4, torch.tensor([0, 1, 3]), 2)[11]
    torch.testing.assert_close(output.logprobs[0, :2], torch.stack([at_first, behind]), atol=1e-5, rtol=0)
    with_closed = conditional(model, output.sequences[0], everywhere, torch.tensor([0, 1, 3]), 2)[11]
    assert (behind - with_closed).abs() > 1e-3


def test_sampled_fillings_follow_the_enumerated_distribution():
    model = masked_model(vocab_size=4, mask_token_id=3)
    strings = all_strings(3, 3)
    sentences = torch.cat([torch.ones(27, 1, dtype=torch.int64), strings], dim=1)
    order = torch.tensor([[3, 1, 2]])
    torch.manual_seed(11)
    samples = model.generate(
        torch.tensor([[1, 0, 0, 0]]),
        generation_mask=torch.tensor([[False, True, True, True]]),
        decoding_order=order,
        do_sample=True,
        top_k=0,
        num_return_sequences=6000,
    )
    counts = torch.bincount(samples[:, 1] * 9 + samples[:, 2] * 3 + samples[:, 3], minlength=27).double()
    chances = {}
    for name, columns in (("its own", order), ("another", torch.tensor([[1, 2, 3]]))):
        scores = model.score(sentences, decoding_order=columns.expand(27, -1)).log_likelihood[0].double().exp()
        rare = scores * 6000 < 5
        observed, expected = (
            torch.cat([each[~rare], each[rare].sum()[None] + 1e-9]) for each in (counts, scores * 6000)
        )
        chances[name] = chisquare(observed, expected * (observed.sum() / expected.sum())).pvalue
    assert chances["another"] < 1e-3 < chances["its own"]


def test_the_rest_of_generates_interface():
    model = masked_model()
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    appended = model.generate(prompt, max_new_tokens=2)
    blanks = torch.tensor([[False] * 3 + [True] * 2]).expand(2, -1)
    assert torch.equal(appended[:, :3], prompt)
    assert torch.equal(appended, model.generate(torch.nn.functional.pad(prompt, (0, 2)), generation_mask=blanks))
    # The context has no order here.
    context = torch.tensor([[2, 0, 1]]).expand(2, -1)
    assert torch.equal(model.generate(prompt, max_new_tokens=2, context_order=context), appended)
    shown = []

    class Streamer:
        def put(self, value):
            shown.append(value)

        put_draft = put

        def end(self):
            shown.append(None)

    model.generate(prompt, max_new_tokens=2, streamer=Streamer(), decoding_order="entropy")
    assert len(shown) == 5 and shown[-1] is None and (shown[0][:, 3:] == MASK).all() and (shown[3] != MASK).all()
    unchanged = model.generate(prompt, generation_mask=torch.zeros(2, 3, dtype=torch.bool))
    assert torch.equal(unchanged, prompt)


def test_blanks_in_text_are_filled_and_their_lengths_compared():
    tokenizer = character_tokenizer(["the statement of a class"])
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    model = masked_model(vocab_size=len(tokenizer), **special)
    found = infill(model, tokenizer, "the <blank:1-3> of", decoding_order="confidence", return_candidates=True)
    assert len(found.candidates) == 3 and found.text.startswith("the ") and found.text.endswith(" of")


# Scores


def test_scores_of_all_strings_sum_to_one_in_every_order():
    model = masked_model(vocab_size=4, mask_token_id=3)
    strings = all_strings(3, 4)
    sentences = torch.cat([torch.zeros(81, 1, dtype=torch.int64), strings], dim=1)
    totals = []
    for order in itertools.permutations(range(1, 5)):
        scores = model.score(sentences, decoding_order=torch.tensor([order]).expand(81, -1))
        totals.append(scores.log_likelihood.double().exp().sum().item())
    assert totals == pytest.approx([1.0] * 24, abs=1e-5)


def test_a_token_is_scored_from_those_before_it_and_with_one_blank_left_by_the_plain_conditional():
    model = masked_model()
    canvas = torch.randint(0, MASK, (1, 7), generator=torch.Generator().manual_seed(0))
    blanks = torch.tensor([[False, True, True, False, True, True, False]])
    for order in ([4, 1, 5, 2], [2, 5, 1, 4]):
        columns = torch.tensor([order])
        scored = model.score(canvas, blanks, decoding_order=columns).token_log_probs[0, 0]
        for index, column in enumerate(order):
            input_ids = canvas.clone()
            input_ids[0, order[index:]] = MASK
            expected = logits_of(model, input_ids)[0, column].log_softmax(-1)[canvas[0, column]]
            torch.testing.assert_close(scored[column], expected, atol=1e-5, rtol=0)
            # No leak: later tokens change nothing before them.
            other = canvas.clone()
            other[0, column] = (other[0, column] + 1) % MASK
            changed = model.score(other, blanks, decoding_order=columns).token_log_probs[0, 0]
            assert torch.equal(changed[order[:index]], scored[order[:index]])
            assert (changed[order[index:]] != scored[order[index:]]).all()


def test_what_a_marginal_leaves_out_is_not_attended():
    model = masked_model()
    canvas = torch.randint(0, MASK, (2, 5), generator=torch.Generator().manual_seed(0))
    blanks = torch.tensor([[False, True, False, True, False]]).expand(2, -1)
    observed = torch.tensor([[True, True, False, True, True]]).expand(2, -1)
    scores = model.score(canvas, blanks, observed_mask=observed, decoding_order="left_to_right")
    mask, input_ids = observed.long(), canvas.masked_fill(blanks, MASK)
    first = logits_of(model, input_ids, attention_mask=mask, position_ids=torch.arange(5).expand(2, -1))[:, 1]
    expected = first.log_softmax(-1).gather(1, canvas[:, 1:2])[:, 0]
    torch.testing.assert_close(scores.token_log_probs[0, :, 1], expected, atol=1e-5, rtol=0)
    canvas[:, 2] = 0
    again = model.score(canvas, blanks, observed_mask=observed, decoding_order="left_to_right")
    assert torch.equal(again.log_likelihood, scores.log_likelihood)


@pytest.mark.parametrize("method", [{"num_orders": 3}, {"method": "elbo", "num_samples": 3}], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_an_examples_score_depends_on_no_neighbour_and_no_chunk(method, side, monkeypatch):
    model = masked_model()
    examples = [masked_rows(1, length, seed=length)[1] for length in (7, 4, 6)]
    batch, mask = padded(examples, side)

    def generators():
        return [torch.Generator().manual_seed(n) for n in range(3)]

    together = model.score(batch, attention_mask=mask, generator=generators(), **method)
    assert together.log_likelihood.shape == (3, 3)
    for row, (example, generator) in enumerate(zip(examples, generators(), strict=True)):
        alone = model.score(example, generator=[generator], **method)
        torch.testing.assert_close(together.log_likelihood[:, row], alone.log_likelihood[:, 0], atol=1e-5, rtol=0)
        kept = together.token_log_probs[:, row, mask[row].bool()]
        torch.testing.assert_close(kept, alone.token_log_probs[:, 0], atol=1e-5, rtol=0)
    calls, forward = [], AOARMForMaskedLM.forward

    def watch(self, input_ids, **kwargs):
        calls.append(input_ids.shape)
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(AOARMForMaskedLM, "forward", watch)
    for module in (runner_aoarm, scoring_aoarm):
        monkeypatch.setattr(module, "COLUMNS_PER_PASS", 50)
    again = model.score(batch, attention_mask=mask, generator=generators(), **method)
    torch.testing.assert_close(again.log_likelihood, together.log_likelihood, atol=1e-5, rtol=0)
    assert len(calls) > 1 and all(rows * columns <= 50 for rows, columns in calls)


@pytest.mark.parametrize("left_out", [False, True])
def test_over_all_masks_the_elbo_is_the_average_over_all_orders(left_out, monkeypatch):
    """No sampling: as many samples as there are orders times blanks, which the strata go through exactly once."""
    model = masked_model()
    canvas = torch.randint(0, MASK, (2, 6), generator=torch.Generator().manual_seed(0))
    blanks = torch.tensor([[False, True, True, False, True, True]]).expand(2, -1)
    observed = torch.tensor([[True, True, True, not left_out, True, True]]).expand(2, -1)
    orders = torch.tensor(list(itertools.permutations([1, 2, 4, 5])))[:, None].expand(-1, 2, -1)
    exact = model.score(canvas, blanks, observed, decoding_order=orders)
    monkeypatch.setattr(AOARMForMaskedLM, "_orders", staticmethod(lambda *_: orders.repeat(4, 1, 1)))
    elbo = model.score(canvas, blanks, observed, method="elbo", num_samples=96)
    torch.testing.assert_close(elbo.mean_log_likelihood, exact.mean_log_likelihood, atol=1e-4, rtol=0)
    torch.testing.assert_close(elbo.token_log_probs.mean(0), exact.token_log_probs.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(elbo.token_log_probs.sum(-1), elbo.log_likelihood)
    # Each number of masks in a quarter of the samples.
    number = (elbo.token_log_probs[:, 0] != 0).sum(1)
    assert torch.equal(number.bincount(minlength=5), torch.tensor([0, 24, 24, 24, 24]))
    assert elbo.log_mean_likelihood is None and elbo.decoding_order is None


def test_the_elbo_is_unbiased_and_says_which_masked_tokens_are_likeliest():
    model = masked_model()
    canvas = model.generate(torch.tensor([[3, 0, 0, 0]]), generation_mask=torch.tensor([[False, True, True, True]]))
    exact = model.score(canvas, decoding_order=torch.tensor(list(itertools.permutations([1, 2, 3])))[:, None])
    elbo = model.score(canvas, method="elbo", num_samples=3000, generator=torch.Generator().manual_seed(0))
    error = elbo.log_likelihood[:, 0].double().std() / 3000**0.5
    assert (elbo.mean_log_likelihood - exact.mean_log_likelihood).abs() < 4 * error < 0.5
    is_masked = elbo.token_log_probs != 0
    assert (is_masked.sum(-1) >= 1).all() and not elbo.token_is_likeliest[~is_masked].any()
    alone = is_masked[:, 0, 1] & (is_masked.sum(-1)[:, 0] == 1)
    input_ids = canvas.clone()
    input_ids[0, 1] = MASK
    is_likeliest = logits_of(model, input_ids)[0, 1].argmax() == canvas[0, 1]
    assert alone.any() and (elbo.token_is_likeliest[alone, 0, 1] == is_likeliest).all()


def test_nothing_to_score_scores_zero_and_the_mask_token_minus_infinity():
    model = masked_model()
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for method in ({}, {"method": "elbo"}):
        assert model.score(torch.zeros(2, 3, dtype=torch.int64), nothing, **method).log_likelihood.tolist() == [[0, 0]]
        assert model.score(torch.tensor([[1, MASK]]), **method).log_likelihood.tolist() == [[-torch.inf]]


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generation_mask": None}, "need blanks: `generation_mask`"),
        ({"draft_length": 2}, "`draft_length` needs rows in generation order.*got 2"),
        ({"cache_implementation": "static"}, "`cache_implementation` must not be given.*got 'static'"),
        ({"past_key_values": DynamicCache()}, "`past_key_values` must not be given.*no cache; got DynamicCache"),
        ({"num_beams": 2}, "`num_beams` must be 1"),
        (
            {"input_ids": torch.full((1, 65), 3), "generation_mask": None, "max_new_tokens": 1},
            "max_position_embeddings",
        ),
    ],
)
def test_what_generate_cannot_do_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        masked_model().generate(**{"input_ids": IDS, "generation_mask": BLANKS, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "mean"}, "`method` must be 'exact' or 'elbo', got 'mean'"),
        ({"num_samples": 3}, "`num_samples` belongs to method='elbo', got 3"),
        ({"method": "elbo", "num_samples": 0}, "`num_samples` must be an integer of at least 1, got 0"),
        ({"method": "elbo", "num_orders": 2}, "takes `num_samples` and no orders.*num_orders=2"),
        ({"method": "elbo", "decoding_order": torch.tensor([[1]])}, "no orders.*'a tensor'"),
        ({"method": "elbo", "generation_mask": BLANKS.long()}, "generation_mask.*bool.*int64"),
        ({"method": "elbo", "generator": [torch.Generator()] * 2}, "generator.*1 examples.*2"),
    ],
)
def test_bad_scoring_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        masked_model().score(**{"input_ids": IDS, "generation_mask": BLANKS, **arguments})
