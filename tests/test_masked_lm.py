# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The laws of `bidirectional`: rows in sentence order, blanks hold the mask token, all rows see each other."""

import itertools
import json

import pytest
import torch
from canvases import WAYS, check_filling, example_of, ragged_canvases
from clean_process import run_clean_process
from reference import Reference
from scipy.stats import chisquare
from test_generation import scripted
from test_laws import Spy
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, DynamicCache
from variants import all_strings, checkpoint_activations, tiny_config, tiny_model

from modeling_aoarm import (
    AOARMForCausalLM,
    AOARMForMaskedLM,
    AOARMModel,
    generative_head,
    infill,
    masked_reading_aoarm,
    masked_scoring_aoarm,
)
from modeling_aoarm.decoding_aoarm import certainty
from modeling_aoarm.tokenization import character_tokenizer


MASK = 22
FILLING = [way for way in WAYS if "draft_length" not in way]


def masked_model(**changes):
    return tiny_model("bidirectional", **changes)


def masked_rows(batch, rows, seed=0, share=0.5):
    """Tokens of which a share is masked, and the tokens that were there: int64 `[batch, rows]` both."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, MASK, (batch, rows), generator=generator)
    is_masked = torch.rand(batch, rows, generator=generator) < share
    return tokens.masked_fill(is_masked, MASK), tokens


def logits_of(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs).logits


def padded(examples, side, filler=7):
    """Examples `[1, rows]` of different lengths as a batch, and its attention mask."""
    longest = max(example.shape[1] for example in examples)
    sides = [(longest - e.shape[1], 0) if side == "left" else (0, longest - e.shape[1]) for e in examples]
    pad = torch.nn.functional.pad
    batch = torch.cat([pad(e, where, value=filler) for e, where in zip(examples, sides, strict=True)])
    mask = torch.cat([pad(torch.ones_like(e), where) for e, where in zip(examples, sides, strict=True)])
    return batch, mask


# The model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_every_row_depends_on_every_row(implementation):
    model = masked_model(attn_implementation=implementation)
    embeds = model.model.embed_tokens(masked_rows(1, 6)[0]).detach().requires_grad_()
    logits = model(inputs_embeds=embeds).logits[..., :MASK]
    for row in range(6):
        gradient = torch.autograd.grad(logits[0, row].norm(), embeds, retain_graph=True)[0][0]
        assert (gradient.abs().amax(-1) > 0).all()


def test_the_mask_token_has_probability_zero_and_the_others_sum_to_one():
    model = masked_model()
    with torch.no_grad():
        # As if it were by far the likeliest.
        model.lm_head.weight[MASK] = 50 * model.lm_head.weight[0]
    log_probs = logits_of(model, masked_rows(2, 7)[0]).log_softmax(-1)
    assert (log_probs[..., MASK] == -torch.inf).all()
    torch.testing.assert_close(log_probs[..., :MASK].exp().sum(-1), torch.ones(2, 7))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_an_example_does_not_depend_on_its_neighbours_or_padding(implementation, side):
    model = masked_model(attn_implementation=implementation)
    examples = [masked_rows(1, length, seed=length)[0] for length in (9, 5, 7)]
    batch, mask = padded(examples, side)
    together = logits_of(model, batch, attention_mask=mask)
    torch.testing.assert_close(logits_of(model, batch.flip(0), attention_mask=mask.flip(0)).flip(0), together)
    for row, example in enumerate(examples):
        alone = logits_of(model, example)[0]
        torch.testing.assert_close(together[row, mask[row].bool()], alone, atol=1e-5, rtol=0)
    by_place = logits_of(model, batch, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    torch.testing.assert_close(by_place[mask.bool()], together[mask.bool()], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("implementation", "side"),
    [*itertools.product(["sdpa", "eager"], [None, "left", "right"]), ("flex_attention", "left")],
)
def test_packed_sequences_equal_separate_ones(implementation, side):
    model = masked_model(attn_implementation=implementation)
    examples = [masked_rows(1, length, seed=length)[0] for length in (5, 1, 4)]
    packed, segment_ids = torch.cat(examples, dim=1), torch.tensor([[4] * 5 + [2] + [4] * 4])
    mask = None
    if side is not None:
        where = (3, 0) if side == "left" else (0, 3)
        mask = torch.nn.functional.pad(torch.ones_like(packed), where)
        # Padding has the number of the segment beside it.
        packed, segment_ids = (torch.nn.functional.pad(each, where, value=4) for each in (packed, segment_ids))
    together = logits_of(model, packed, segment_ids=segment_ids, attention_mask=mask)
    together = together[0] if mask is None else together[mask.bool()]
    separate = torch.cat([logits_of(model, example)[0] for example in examples])
    torch.testing.assert_close(together, separate, atol=1e-5, rtol=0)


@pytest.mark.parametrize("packs", [False, True])
def test_flash_kernels_are_told_that_nothing_is_causal_and_where_segments_start(packs, monkeypatch):
    spy = Spy(monkeypatch, "flash_attention_2")
    model = masked_model()
    model.config._attn_implementation = "flash_attention_2"
    segment_ids = torch.tensor([[0, 0, 0, 1, 1], [5, 6, 6, 6, 6]]) if packs else None
    logits_of(model, masked_rows(2, 5)[0], segment_ids=segment_ids)
    assert len(spy.calls) == 3
    for call in spy.calls:
        assert call["mask"] is None and call["is_causal"] is False and "position_ids" not in call
        assert tuple(call["query"]) == (2, 4, 5, 8) and tuple(call["key"]) == (2, 2, 5, 8)
        if packs:
            assert call["cu_seq_lens_q"].tolist() == call["cu_seq_lens_k"].tolist() == [0, 3, 5, 6, 10]
            assert call["max_length_q"] == call["max_length_k"] == 4


REFERENCE_CASES = {
    "plain": {},
    "all_options": {
        "qk_norm": True,
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
        "head_dim": 6,
        "tie_word_embeddings": True,
    },
    "one_layer_and_key_head": {"num_hidden_layers": 1, "num_key_value_heads": 1},
}


@pytest.mark.parametrize("layout", ["plain", "left", "right", "packed"])
@pytest.mark.parametrize("case", list(REFERENCE_CASES))
def test_outputs_and_gradients_equal_the_naive_reference(case, layout):
    """With the weighted loss, whose formula is written out once more."""
    model = masked_model(**REFERENCE_CASES[case])
    for parameter in model.parameters():
        # Biases and norms start at 0 and 1, where mistakes with them do not show.
        parameter.data += 0.05 * torch.randn(parameter.shape)
    input_ids, tokens = masked_rows(2, 9)
    position_ids, real, extra = torch.arange(9).expand(2, -1).clone(), torch.ones(2, 9, dtype=torch.bool), {}
    visible = None
    if layout == "packed":
        segments = torch.tensor([[0] * 4 + [1] * 5, [3] * 7 + [2] * 2])
        position_ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 0, 1]])
        extra, visible = {"segment_ids": segments}, segments[:, :, None] == segments[:, None, :]
    elif layout != "plain":
        real[1, slice(4) if layout == "left" else slice(5, None)] = False
        extra, visible = {"attention_mask": real.long()}, real[:, :, None] & real[:, None, :]
    labels = tokens.masked_fill(~real, -100)
    labels[0, :2] = -100
    weights = torch.rand(2, 9, generator=torch.Generator().manual_seed(1)) * (input_ids == MASK) * (labels != -100)
    assert (weights > 0).sum() > 4

    reference = Reference(model)
    expected = reference.logits(input_ids, position_ids, visible=visible)
    output = model(input_ids, labels=labels, loss_weights=weights, **extra)
    torch.testing.assert_close(output.logits.double()[real], expected[real], atol=1e-4, rtol=1e-4)
    scored = weights > 0
    surprises = -expected.log_softmax(-1)[scored].gather(1, tokens[scored][:, None])[:, 0]
    expected_loss = (surprises * weights[scored]).sum() / (labels != -100).sum()
    torch.testing.assert_close(output.loss.double(), expected_loss, atol=1e-5, rtol=0)
    output.loss.backward()
    expected_loss.backward()
    for name, parameter in model.named_parameters():
        gradient = reference.parameters[name].grad
        scale = gradient.abs().max()
        assert scale > 0, name
        torch.testing.assert_close(parameter.grad.double() / scale, gradient / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_training_steps_change_every_parameter_and_checkpointing_no_gradient(reentrant):
    options = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True, "qk_norm": True}
    input_ids, tokens = masked_rows(4, 12)
    labels = tokens.where(input_ids == MASK, -100)
    model, other = masked_model(**options).train(), masked_model(**options).train()
    if reentrant is not None:
        checkpoint_activations(other, {"use_reentrant": reentrant})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for each in (model, other):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            each(input_ids, labels=labels).loss.backward()
            optimizer.step()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []
    for (name, parameter), same in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(same, parameter, atol=1e-6, rtol=1e-5, msg=name)


def test_bfloat16_is_float32_within_its_error():
    model, rounded = masked_model(initializer_range=0.1), masked_model(initializer_range=0.1)
    input_ids, _ = masked_rows(2, 9)
    exact = logits_of(model, input_ids)[..., :MASK]
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    allowed = 6 * (logits_of(rounded, input_ids)[..., :MASK] - exact).abs().max()
    assert (logits_of(model.bfloat16(), input_ids)[..., :MASK].float() - exact).abs().max() <= allowed


def test_compiled_equals_uncompiled():
    torch._dynamo.reset()
    model = masked_model()
    input_ids, tokens = masked_rows(2, 9)
    batch = {"input_ids": input_ids, "labels": tokens, "loss_weights": (input_ids == MASK).float()}
    expected = model(**batch)
    expected.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    actual = torch.compile(model, fullgraph=True)(**batch)
    actual.loss.backward()
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


def test_logits_of_some_rows_are_those_of_all():
    model = masked_model()
    input_ids, _ = masked_rows(2, 7)
    whole = logits_of(model, input_ids)
    assert torch.equal(logits_of(model, input_ids, logits_to_keep=3), whole[:, -3:])
    assert torch.equal(logits_of(model, input_ids, logits_to_keep=torch.tensor([4, 0])), whole[:, [4, 0]])
    kept = torch.tensor([[1, 6, 6], [5, 0, 2]])
    each = torch.stack([whole[row, columns] for row, columns in enumerate(kept)])
    assert torch.equal(logits_of(model, input_ids, logits_to_keep=kept), each)


def test_hidden_states_and_attentions_are_those_of_the_rows():
    model = masked_model(attn_implementation="eager")
    output = model(masked_rows(2, 5)[0], output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 5, 32)] * 4
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 5, 5)] * 3
    assert all((weights > 0).all() for weights in output.attentions)
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1])[..., :MASK], output.logits[..., :MASK])


# Generation


def conditional(model, tokens, real, known, column):
    """The log-probabilities `[vocab]` of a column, from the known ones of a canvas `[columns]` by itself."""
    rows = real.nonzero().flatten()
    seen = torch.isin(rows, known)
    input_ids = tokens[rows].masked_fill(~seen, MASK)
    return logits_of(model, input_ids[None])[0, int((rows < column).sum())].log_softmax(-1)


def replay(model, canvases, output, in_groups=False):
    """Log-probabilities of the realised order, one canvas and one token at a time, as in `canvases.replay`."""
    logprobs = torch.zeros_like(output.logprobs)
    for row, order in enumerate(output.decoding_order):
        real = canvases["attention_mask"][row].bool()
        given = (real & ~canvases["generation_mask"][row]).nonzero().flatten()
        blanks, steps = order[order >= 0], output.decoding_steps[row]
        for index, column in enumerate(blanks):
            before = blanks[:index]
            if in_groups:
                before = before[steps[:index] < steps[index]]
            answer = conditional(model, output.sequences[row], real, torch.cat([given, before]), column)
            logprobs[row, index] = answer[output.sequences[row, column]]
    return logprobs


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
        expected = replay(model, canvases, output, in_groups="tokens_per_step" in way)
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
    for module in (masked_reading_aoarm, masked_scoring_aoarm):
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


# Saving


LOAD = """
from transformers import AutoModelForMaskedLM

for name in ("head", "body"):
    AutoConfig.from_pretrained(f"{folder}/{name}", **trust)
model = AutoModelForMaskedLM.from_pretrained(f"{folder}/head", **trust)
body = AutoModel.from_pretrained(f"{folder}/body", **trust)
with torch.no_grad():
    logits = model(rows["input_ids"]).logits
    hidden_states = body(rows["input_ids"]).last_hidden_state
torch.manual_seed(3)
filled = model.generate(rows["input_ids"], generation_mask=rows["generation_mask"], **rows["way"])
score = model.score(filled, rows["generation_mask"], decoding_order="left_to_right").log_likelihood
torch.save({"logits": logits, "hidden_states": hidden_states, "filled": filled, "score": score}, sys.argv[2] + ".out")
report["module"] = type(model).__module__
try:
    AutoModelForCausalLM.from_pretrained(f"{folder}/head", **trust)
except ValueError as error:
    report["wrong head"] = str(error)
model.save_pretrained(f"{folder}/again")
report["auto_map"] = AutoConfig.from_pretrained(f"{folder}/again", **trust).auto_map
"""


@pytest.mark.parametrize("package", ["with", "without"])
def test_a_fresh_process_computes_and_fills_the_same(package, tmp_path):
    """Law 7, from a folder of the head and one of the body; that one has the head's code besides."""
    model = masked_model()
    model.save_pretrained(tmp_path / "models" / "head")
    model.model.save_pretrained(tmp_path / "models" / "body")
    input_ids, _ = masked_rows(2, 6)
    generation_mask = torch.tensor([[False, False, True, True, True, True]] * 2)
    way = {"do_sample": True, "decoding_order": "confidence"}
    unused = {"position_ids": None, "target_position_ids": None}
    rows = {"input_ids": input_ids, "generation_mask": generation_mask, "way": way, **unused}
    torch.save(rows, tmp_path / "rows")
    report = run_clean_process(tmp_path / "models", tmp_path / "rows", package, LOAD)
    results = torch.load(tmp_path / "rows.out")
    torch.testing.assert_close(results["logits"], logits_of(model, input_ids), atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(results["hidden_states"], model.model(input_ids).last_hidden_state)
    torch.manual_seed(3)
    filled = model.generate(input_ids, generation_mask=generation_mask, **way)
    assert torch.equal(results["filled"], filled)
    expected = model.score(filled, generation_mask, decoding_order="left_to_right").log_likelihood
    torch.testing.assert_close(results["score"], expected)
    assert report["module"].endswith(".masked_lm_aoarm")
    assert report["module"].startswith("modeling_aoarm." if package == "with" else "transformers_modules.")
    assert "AutoModelForCausalLM" in report["wrong head"] or "AutoModelForMaskedLM" in report["wrong head"]
    assert report["auto_map"] == {
        "AutoConfig": "configuration_aoarm.AOARMConfig",
        "AutoModel": "modeling_aoarm.AOARMModel",
        "AutoModelForMaskedLM": "masked_lm_aoarm.AOARMForMaskedLM",
    }
    code = [sorted(path.name for path in (tmp_path / "models" / name).glob("*.py")) for name in ("head", "body")]
    assert code[0] == code[1] and {"masked_lm_aoarm.py", "modeling_aoarm.py"} <= set(code[0])


def test_each_variant_has_one_head_and_the_other_one_says_which(tmp_path):
    assert generative_head(tiny_config("bidirectional")) is AOARMForMaskedLM
    assert generative_head(tiny_config("causal")) is AOARMForCausalLM
    with pytest.raises(ValueError, match="'bidirectional' needs the head AOARMForMaskedLM .AutoModelForMaskedLM."):
        AOARMForCausalLM(tiny_config("bidirectional"))
    with pytest.raises(ValueError, match="'two_stream' needs the head AOARMForCausalLM .AutoModelForCausalLM.*Masked"):
        AOARMForMaskedLM(tiny_config("two_stream"))
    masked_model().save_pretrained(tmp_path)
    assert isinstance(AutoModelForMaskedLM.from_pretrained(tmp_path), AOARMForMaskedLM)
    assert isinstance(AutoModel.from_pretrained(tmp_path), AOARMModel)
    with pytest.raises(ValueError, match="AutoModelForMaskedLM"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert set(json.loads((tmp_path / "config.json").read_text())["auto_map"]) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForMaskedLM",
    }


# Bad input


def test_a_mask_token_is_needed():
    with pytest.raises(Exception, match="`mask_token_id` must be .*'bidirectional', got None"):
        tiny_config("bidirectional", mask_token_id=None)


IDS = torch.tensor([[1, MASK, 3]])
BLANKS = torch.tensor([[False, True, False]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_position_ids": torch.tensor([[1, 2, 3]])}, "`target_position_ids` must not be given"),
        ({"past_key_values": DynamicCache()}, "`past_key_values` must not be given.*DynamicCache"),
        ({"use_cache": True}, "`use_cache` must not be given"),
        ({"is_causal": True}, "`is_causal` must not be given"),
        ({"position_ids": torch.tensor([[0, 1, 1]])}, "`position_ids` must not hold a position twice"),
        ({"position_ids": torch.tensor([[0, 1, 64]])}, r"`position_ids` must lie in \[0, 63\].*got 64"),
        ({"labels": torch.tensor([[1, 2]])}, r"`labels` must have the shape .*\[1, 3\]; got \[1, 2\]"),
        ({"labels": IDS}, r"`labels` must not hold the mask token \(22\)"),
        ({"labels": IDS - 1, "loss_weights": torch.ones(1, 2)}, r"`loss_weights` must have the shape .*\[1, 2\]"),
        ({"loss_weights": torch.ones(1, 3)}, "`loss_weights` need `labels`"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        masked_model()(IDS, **arguments)


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
