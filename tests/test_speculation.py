# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Law 6: samples of speculative decoding follow the enumerated one-by-one distribution of their order."""

import functools
import itertools

import pytest
import torch
from canvases import conditional, enumerated, fits
from variants import any_order_variants, tiny_model

from modeling_aoarm import decoding_aoarm
from modeling_aoarm.decoding_aoarm import MOST_DRAFTS, DraftPolicy


SAMPLES = 20_000
BLANKS = 5
END = 2


@functools.cache
def trained_model(variant):
    """A model of strings of three symbols in which neighbours depend on each other, trained in random orders.

    It is as small as it can be, since tens of thousands of samples are drawn from it.
    """
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = tiny_model(variant, vocab_size=3, num_hidden_layers=2, initializer_range=0.3, pad_token_id=0, **sizes)
    model.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        strings = torch.zeros(64, 1 + BLANKS, dtype=torch.int64)
        for column in range(1, 1 + BLANKS):
            noise = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 64, True, generator=generator)
            strings[:, column] = (strings[:, column - 1] * 2 + 1 + noise) % 3
        order = torch.stack([torch.randperm(BLANKS, generator=generator) + 1 for _ in range(64)])
        order = torch.cat([torch.zeros(64, 1, dtype=torch.int64), order], dim=1)
        rows = strings.gather(1, order)
        loss = model(rows, position_ids=order, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def sample(model, canvases, order, **how):
    return model.generate(
        canvases["input_ids"],
        generation_mask=canvases["generation_mask"],
        decoding_order=order,
        do_sample=True,
        **{"top_k": 0, **how},
        return_dict_in_generate=True,
    )


def canvases_of(*blanks):
    """One canvas of six columns for each list of blank columns."""
    canvas = torch.tensor([[0, 1, 0, 2, 1, 0]]).repeat(len(blanks), 1)
    mask = torch.zeros(len(blanks), 6, dtype=torch.bool)
    for row, columns in enumerate(blanks):
        mask[row, columns] = True
    return {"input_ids": canvas, "generation_mask": mask}


ORDERS = {"left_to_right": [1, 2, 3, 4, 5], "mixed": [4, 2, 5, 1, 3]}


@pytest.mark.grid(pairs=False)
@any_order_variants
@pytest.mark.parametrize("order", list(ORDERS))
@pytest.mark.parametrize("draft_length", [1, 2, 3, 4, 5, "auto"])
def test_samples_follow_the_one_by_one_distribution(variant, order, draft_length, monkeypatch):
    """They follow it, and not that of another order or temperature."""
    # Else drafts would not pay for so few blanks, in such a batch.
    monkeypatch.setitem(decoding_aoarm.FREE_ROWS, "cpu", 10**9)
    monkeypatch.setattr(DraftPolicy, "OVERHEAD", {1: 0.0, 2: 0.0})
    model, columns = trained_model(variant), ORDERS[order]
    (other,) = (each for each in ORDERS.values() if each != columns)
    canvases = canvases_of(columns)
    torch.manual_seed(4 if draft_length == "auto" else draft_length)
    output = sample(model, canvases, torch.tensor([columns]), draft_length=draft_length, num_return_sequences=SAMPLES)
    expected = enumerated(model, canvases["input_ids"][0], columns)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    assert fits(output.sequences, expected) > 1e-3
    assert fits(output.sequences, enumerated(model, canvases["input_ids"][0], other)) < 1e-3
    assert fits(output.sequences, enumerated(model, canvases["input_ids"][0], columns, temperature=0.9)) < 1e-3
    # Of the drafts some are accepted and some are not, and no example takes more passes than one by one.
    passes = (output.decoding_steps.amax(1) + 1).double()
    assert passes.max() <= BLANKS and 1 < passes.mean() < BLANKS
    assert passes.unique().numel() > 1


BIASED = {
    "all drafts": lambda p, q, uniforms: torch.ones_like(p, dtype=torch.bool),
    "likely drafts": lambda p, q, uniforms: p >= q,
    "too many": lambda p, q, uniforms: uniforms * q < 1.3 * p,
    "too few": lambda p, q, uniforms: uniforms * q < 0.8 * p,
}


@pytest.mark.grid(pairs=False)
@any_order_variants
@pytest.mark.parametrize("rule", list(BIASED))
def test_a_biased_acceptance_rule_is_found_out(variant, rule, monkeypatch):
    monkeypatch.setattr(decoding_aoarm, "accepts", BIASED[rule])
    model, order = trained_model(variant), ORDERS["mixed"]
    canvases = canvases_of(order)
    torch.manual_seed(1)
    output = sample(model, canvases, torch.tensor([order]), draft_length=3, num_return_sequences=SAMPLES)
    assert fits(output.sequences, enumerated(model, canvases["input_ids"][0], order)) < 1e-3


@pytest.mark.grid(pairs=False, seldom={"cache_implementation": "static"})
@any_order_variants
@pytest.mark.parametrize("draft_length", [1, 3])
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}], ids=str)
def test_ragged_batches_follow_the_distributions_of_their_canvases(variant, draft_length, cache):
    """Three kinds of canvases in one batch, with other blanks and other numbers of them, and padding."""
    model = trained_model(variant)
    kinds = ([4, 1, 5, 2, 3], [5, 3], [3, 1, 2])
    canvases = canvases_of(*kinds)
    order = torch.full((3, 5), -1)
    for row, columns in enumerate(kinds):
        order[row, : len(columns)] = torch.tensor(columns)
    # Attention to all slots of a static cache takes its time.
    samples = SAMPLES // 2 if cache else SAMPLES
    repeated = {name: value.repeat(samples, 1) for name, value in canvases.items()}
    attention_mask = torch.ones(3, 6, dtype=torch.int64)
    attention_mask[2, 4:] = 0
    torch.manual_seed(draft_length)
    output = model.generate(
        **repeated,
        attention_mask=attention_mask.repeat(samples, 1),
        decoding_order=order.repeat(samples, 1),
        draft_length=draft_length,
        do_sample=True,
        top_k=0,
        **cache,
    )
    for row, columns in enumerate(kinds):
        length = int(attention_mask[row].sum())
        expected = enumerated(model, canvases["input_ids"][row, :length], columns)
        assert fits(output[row::3, :length], expected) > 1e-3


@pytest.mark.grid(pairs=False)
@any_order_variants
@pytest.mark.parametrize("draft_length", [1, 2, 5])
def test_sentence_ends_follow_the_distribution_too(variant, draft_length):
    """With an end of sentence that closes blanks, also among those that were drafted already."""
    model, order = trained_model(variant), [2, 3, 1, 5, 4]
    canvases = canvases_of(order)
    torch.manual_seed(draft_length)
    output = sample(
        model,
        canvases,
        torch.tensor([order]),
        draft_length=draft_length,
        num_return_sequences=SAMPLES,
        eos_token_id=END,
    )
    expected = enumerated(model, canvases["input_ids"][0], order, end=END)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    assert fits(output.sequences, expected) > 1e-3
    closed = (output.decoding_order < 0).sum(1)
    assert closed.unique().numel() > 2
    steps = output.decoding_steps.amax(1) + 1
    assert (steps <= BLANKS - closed).all()


@pytest.mark.grid(pairs=False)
@any_order_variants
@pytest.mark.parametrize("processed", [{"temperature": 0.7}, {"top_p": 0.8}], ids=str)
def test_processed_distributions_are_the_ones_that_are_followed(variant, processed):
    """Temperature and a nucleus that leaves tokens out, which drafts may fall into and verification not."""
    model, order = trained_model(variant), ORDERS["mixed"]
    canvases = canvases_of(order)
    torch.manual_seed(0)
    output = sample(model, canvases, torch.tensor([order]), draft_length=3, num_return_sequences=SAMPLES, **processed)
    expected = enumerated(model, canvases["input_ids"][0], order, **processed)
    assert fits(output.sequences, expected) > 1e-3
    assert fits(output.sequences, enumerated(model, canvases["input_ids"][0], order)) < 1e-3
    assert "top_p" not in processed or len(expected) < 3**BLANKS


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize("draft_length", [1, 2, 8])
def test_greedy_drafts_change_nothing(variant, draft_length):
    for model in (tiny_model(variant), trained_model(variant)):
        canvases = canvases_of([1, 2, 3, 4, 5], [5, 3], [2])
        for order in ("left_to_right", "random"):
            torch.manual_seed(2)
            plain = model.generate(**canvases, decoding_order=order, return_dict_in_generate=True)
            torch.manual_seed(2)
            drafted = model.generate(
                **canvases, decoding_order=order, draft_length=draft_length, return_dict_in_generate=True
            )
            assert torch.equal(drafted.sequences, plain.sequences)
            assert torch.equal(drafted.decoding_order, plain.decoding_order)
            assert drafted.forward_passes <= plain.forward_passes


@any_order_variants
def test_never_more_passes_than_one_by_one(variant):
    """Also for models that draft badly, in every example and every order."""
    model = tiny_model(variant, vocab_size=3)
    canvases = canvases_of(*(list(blanks) for n in range(1, 6) for blanks in itertools.combinations(range(1, 6), n)))
    for draft_length in (1, 2, 4):
        torch.manual_seed(draft_length)
        output = model.generate(
            **canvases,
            decoding_order="random",
            draft_length=draft_length,
            do_sample=True,
            return_dict_in_generate=True,
        )
        blanks = canvases["generation_mask"].sum(1)
        assert (output.decoding_steps.amax(1) + 1 <= blanks).all()
        assert output.forward_passes <= 5
        assert (output.tokens_per_forward >= 1).all()


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize("end", [None, END])
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_drafts_come_from_the_last_row_whose_successor_is_decided(variant, end, cache, monkeypatch):
    """Any proposal is exact; good ones are those of the places they are for, given all rows but the newest."""
    model, order = trained_model(variant), [2, 3, 1, 5, 4]
    looked_at, step = [], decoding_aoarm.Speculation.step

    def look(way, filling):
        # As the pass that verifies finds them, after examples that are done have left.
        for example in range(len(filling.examples)):
            columns, tokens = filling.rows.columns[example], filling.rows.tokens[example]
            committed = int(filling.committed[example])
            known = committed - 1
            for draft in range(int(filling.drafted[example])):
                column = columns[committed + draft]
                expected = conditional(model, tokens[:known], columns[:known], column)
                if end is not None and column < columns[: committed + draft].max():
                    expected[end] = -torch.inf
                probs = way.draft_probs[example, draft]
                torch.testing.assert_close(probs, expected.softmax(-1), atol=1e-5, rtol=0)
                looked_at.append(draft)
        step(way, filling)

    monkeypatch.setattr(decoding_aoarm.Speculation, "step", look)
    torch.manual_seed(0)
    sample(
        model,
        canvases_of(order),
        torch.tensor([order]),
        draft_length=3,
        num_return_sequences=20,
        eos_token_id=end,
        **cache,
    )
    assert set(looked_at) == {0, 1, 2}


@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("likely", [0.0, 0.3, 0.6, 0.9, 1.0, "at first"])
def test_a_policy_never_loses_more_time_than_it_may(streams, batch, likely):
    """By its own measure of time, whatever is accepted; and it gains where drafts are good and passes are short."""
    generator = torch.Generator().manual_seed(0)
    for blanks in (3, 20, 200):
        policy = DraftPolicy(blanks, streams, 32)
        left, drafts, total = blanks, 0, 0.0
        while left:
            length = policy.choose(drafts, min(MOST_DRAFTS, left - 1), batch)
            assert 0 <= length <= max(left - 1, 0)
            chance = (left > blanks / 2) if likely == "at first" else likely
            accepted = int((torch.rand(drafts, generator=generator) < chance).long().cumprod(0).sum())
            filled, time = min(accepted + 1, left), policy.time(drafts, length, batch)
            policy.learn(min(drafts, accepted + 1), accepted, filled, time)
            left, total, drafts = left - filled, total + time, min(length, max(left - filled - 1, 0))
        assert total <= blanks * (1 + DraftPolicy.LOSS) + 1e-9
        if blanks == 200 and batch == 1 and likely in (0.9, 1.0):
            assert total < 0.7 * blanks
        if blanks == 200 and batch == 1 and likely == 0.6 and streams == 2:
            assert total < blanks
        if blanks == 200 and likely == 0.0:
            assert total >= blanks


def test_a_policy_follows_the_acceptance():
    """Few drafts where few are accepted, more where many are, fewer in a larger batch, and it forgets."""

    def taught(verified, accepted, passes=30):
        policy = DraftPolicy(1000, 2, 32)
        for _ in range(passes):
            policy.learn(verified, accepted, 1, 1.0)
        return policy

    assert taught(4, 0).choose(0, 8, 1) == 0
    assert 0 < taught(4, 2).choose(0, 8, 1) < taught(4, 4).choose(0, 8, 1)
    assert taught(4, 4).choose(0, 8, 64) < taught(4, 4).choose(0, 8, 1)
    policy = taught(4, 0)
    for _ in range(100):
        policy.learn(0, 0, 1, 1.0)
    assert policy.choose(0, 8, 1) > 0


@any_order_variants
def test_drafts_follow_the_acceptance_in_generation(variant, monkeypatch):
    """Drafts that are accepted save passes; where all are rejected there is a pass for each token."""
    model = tiny_model(variant, vocab_size=5, pad_token_id=0)
    canvas = torch.zeros(1, 41, dtype=torch.int64)
    blanks = torch.ones_like(canvas, dtype=torch.bool)
    blanks[0, 0] = False
    monkeypatch.setitem(decoding_aoarm.FREE_ROWS, "cpu", 10**9)
    monkeypatch.setattr(DraftPolicy, "OVERHEAD", {1: 0.0, 2: 0.0})
    how = {"generation_mask": blanks, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    accepted = model.generate(canvas, **how, draft_length="auto")
    monkeypatch.setattr(decoding_aoarm, "accepts", lambda p, q, uniforms: torch.zeros_like(p, dtype=torch.bool))
    rejected = model.generate(canvas, **how, draft_length="auto")
    assert accepted.forward_passes < 40 and rejected.forward_passes == 40


def test_a_changing_number_of_drafts_is_refused_for_equal_shapes():
    canvases = canvases_of([1, 2, 3])
    with pytest.raises(ValueError, match="draft_length='auto'.*cache_implementation='static'.*give a number"):
        tiny_model("two_stream").generate(**canvases, draft_length="auto", cache_implementation="static")
