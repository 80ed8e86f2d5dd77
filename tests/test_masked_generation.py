# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`generate` and `score` of `bidirectional`: the laws of canvases, where every pass reads all of them."""

import itertools

import pytest
import torch
from canvases import conditional_of_column
from masked import MASK, logits_of, masked_model, masked_rows, padded
from test_generation import scripted
from transformers import DynamicCache

from modeling_aoarm import (
    AOARMForMaskedLM,
    infill,
    runner_aoarm,
    scoring_aoarm,
)
from modeling_aoarm.data.tokenizers import character_tokenizer


IDS = torch.tensor([[1, MASK, 3]])
BLANKS = torch.tensor([[False, True, False]])


def test_closed_blanks_are_padding():
    """Behind an end of sentence nothing is attended: what is filled later is as if the canvas ended there."""
    model = masked_model(eos_token_id=2, pad_token_id=0)
    canvas = torch.tensor([[5, 6, 9, 9, 9, 9], [5, 6, 7, 9, 9, 9]])
    blanks = torch.tensor([[False, False, True, True, True, True], [False, False, False, True, True, True]])
    output = scripted(model, canvas, blanks, [[3, 4, 5, 2], [5, 4, 3, -1]], [[2, 2], [11, 12], [13, 14], [15, 16]])
    assert output.sequences.tolist() == [[5, 6, 11, 2, 0, 0], [5, 6, 7, 14, 12, 2]]
    assert output.decoding_order.tolist() == [[3, 2, -1], [5, 4, 3]]
    everywhere = torch.ones(6, dtype=torch.bool)
    at_first = conditional_of_column(model, output.sequences[0], everywhere, torch.tensor([0, 1]), 3)[2]
    behind = conditional_of_column(model, output.sequences[0], torch.arange(6) < 4, torch.tensor([0, 1, 3]), 2)[11]
    torch.testing.assert_close(output.logprobs[0, :2], torch.stack([at_first, behind]), atol=1e-5, rtol=0)
    with_closed = conditional_of_column(model, output.sequences[0], everywhere, torch.tensor([0, 1, 3]), 2)[11]
    assert (behind - with_closed).abs() > 1e-3


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
        monkeypatch.setattr(module, "COLUMNS_PER_CALL", 50)
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
    monkeypatch.setattr(AOARMForMaskedLM, "_list_orders", staticmethod(lambda *_: orders.repeat(4, 1, 1)))
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
