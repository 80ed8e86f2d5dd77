# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Sets of tokens that columns may be filled from: in every order and way, and the distribution that is left."""

import itertools

import pytest
import torch
from canvases import IN_GROUPS, ONE_BY_ONE, check_filling, conditional, ragged_canvases, replay
from scipy.stats import chisquare
from variants import any_order_variants, tiny_model


WAYS = [*ONE_BY_ONE, *IN_GROUPS[::3]]


def restricted_canvases():
    """Canvases whose columns take multiples of three, tokens from 15 on, or any token, by turns."""
    canvases = ragged_canvases("left")
    tokens = torch.arange(23)
    column_sets = torch.tensor([0, 1, -1]).repeat(3).expand(4, -1).contiguous()
    return canvases, torch.stack([tokens % 3 == 0, tokens >= 15]), column_sets


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("do_sample", [False, True])
def test_columns_are_filled_from_their_sets(variant, way, do_sample):
    model = tiny_model(variant)
    canvases, token_sets, column_sets = restricted_canvases()
    restriction = {"token_sets": token_sets, "column_sets": column_sets}
    torch.manual_seed(3)
    output = model.generate(**canvases, **way, **restriction, do_sample=do_sample, return_dict_in_generate=True)
    check_filling(canvases, output)
    for index, allowed in enumerate(token_sets):
        is_restricted = canvases["generation_mask"] & (column_sets == index)
        assert is_restricted.any() and allowed[output.sequences[is_restricted]].all()
    # What is returned stays the model's own log-probability.
    expected = replay(model, canvases, output, in_groups="tokens_per_step" in way)
    torch.testing.assert_close(output.logprobs, expected, atol=1e-5, rtol=0)
    free = model.generate(**canvases, **way, do_sample=False)
    assert not torch.equal(free, output.sequences), "the sets change nothing, so the test cannot fail"


@pytest.mark.parametrize("way", [{}, {"draft_length": 1}, {"draft_length": 2}], ids=str)
def test_samples_follow_the_renormalised_distribution(way):
    model = tiny_model("decoupled_rope", vocab_size=4)
    model.generation_config.eos_token_id = None
    token_sets = torch.tensor([[True, True, False, True], [False, True, True, False]])
    canvas, column_sets = torch.tensor([0, 1, 1, 1]), torch.tensor([-1, 0, -1, 1])
    expected = {}
    for tokens in itertools.product(range(4), repeat=3):
        filled, probability = torch.tensor([0, *tokens]), 1.0
        for column in (1, 2, 3):
            log_probs = conditional(model, filled[:column], torch.arange(column), column).double()
            if column_sets[column] >= 0:
                log_probs = log_probs.masked_fill(~token_sets[column_sets[column]], -torch.inf)
            probability *= float(log_probs.softmax(-1)[filled[column]])
        expected[tokens] = probability
    assert sum(expected.values()) == pytest.approx(1.0)

    samples, blanks = 5_000, torch.tensor([False, True, True, True])
    torch.manual_seed(0)
    drawn = model.generate(
        canvas.expand(samples, -1),
        generation_mask=blanks.expand(samples, -1),
        token_sets=token_sets,
        column_sets=column_sets.expand(samples, -1),
        do_sample=True,
        top_k=0,
        **way,
    )
    counts = dict.fromkeys(expected, 0)
    for row in drawn[:, 1:].tolist():
        counts[tuple(row)] += 1
    possible = [tokens for tokens, probability in expected.items() if probability > 0]
    assert sum(counts[tokens] for tokens in possible) == samples
    wanted = [samples * expected[tokens] for tokens in possible]
    assert chisquare([counts[tokens] for tokens in possible], wanted).pvalue > 1e-3


def test_appended_blanks_take_any_token():
    model = tiny_model("two_stream")
    output = model.generate(
        torch.tensor([[3, 4]]),
        generation_mask=torch.tensor([[False, True]]),
        token_sets=torch.eye(23, dtype=torch.bool)[[9]],
        column_sets=torch.tensor([[-1, 0]]),
        max_new_tokens=3,
    )
    assert output.shape == (1, 5) and output[0, 1] == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column_sets": None}, "go together: `column_sets`"),
        ({"token_sets": None}, "go together: `token_sets`"),
        ({"token_sets": torch.ones(2, 22, dtype=torch.bool)}, r"`token_sets` must be .* \[sets, 23\]"),
        ({"token_sets": torch.ones(2, 23)}, r"`token_sets` must be a torch.bool tensor"),
        ({"column_sets": torch.zeros(4, 8, dtype=torch.int64)}, r"`column_sets` must be .* \[4, 9\]; got .* \[4, 8\]"),
        ({"column_sets": torch.full((4, 9), 2)}, r"`column_sets` must hold numbers in \[-1, 2\)"),
        ({"token_sets": torch.zeros(2, 23, dtype=torch.bool)}, "`token_sets` must not be empty"),
        ({"generation_mask": None}, "`token_sets` needs blanks"),
    ],
)
def test_malformed_sets_are_refused(changes, message):
    canvases, token_sets, column_sets = restricted_canvases()
    arguments = {**canvases, "token_sets": token_sets, "column_sets": column_sets, **changes}
    with pytest.raises(ValueError, match=message):
        tiny_model("two_stream").generate(**arguments)


@pytest.mark.parametrize("way", [{}, {"decoding_order": "confidence"}, {"draft_length": 2}], ids=str)
@pytest.mark.parametrize("do_sample", [False, True])
def test_logits_that_are_no_numbers_are_refused(way, do_sample):
    model = tiny_model("two_stream", eos_token_id=None)
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match="logits are NaN"):
        model.generate(**ragged_canvases(), **way, do_sample=do_sample)
