# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`query_stream_init="neighbor"`: query streams start from the tokens left of their targets, where a row holds them."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache
from variants import VARIANTS, left_tokens, pad_rows, random_rows, stack_rows, tiny_config, tiny_model


NEIGHBOR = "two_stream_neighbor"
ORDER = [0, 5, 1, 4, 2, 3]


def logits_of(model, **arguments):
    with torch.no_grad():
        return model(**arguments).logits


def starts_of(model, **arguments):
    """Where the query streams start: `[batch, rows(, targets), hidden]`."""
    with torch.no_grad():
        return model.model(**arguments, output_hidden_states=True).hidden_states[0]


def expected_starts(model, ids):
    """What `query_input_ids` stand for: token embeddings, and the learned vector for -1."""
    table, vector = model.model.embed_tokens.weight, model.model.query_embedding.weight[0]
    return torch.where(ids[..., None] >= 0, table[ids.clamp(min=0)], vector).detach()


def several_targets(rows, targets=4):
    shape = (*rows["input_ids"].shape, targets)
    drawn = torch.randint(0, 12, shape, generator=torch.Generator().manual_seed(1))
    return {**rows, "target_position_ids": drawn}


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("targets", ["one", "several"])
def test_the_start_is_the_token_left_of_the_target_or_the_learned_vector(padding, targets):
    model = tiny_model(NEIGHBOR)
    rows = random_rows(NEIGHBOR, 3, 9)
    if padding is not None:
        short = [random_rows(NEIGHBOR, 1, length, seed=length) for length in (9, 5, 7)]
        # The filler stands at a position that is looked for.
        rows = stack_rows([pad_rows(example, 9, padding, filler=3) for example in short])
    mask = rows.get("attention_mask", torch.ones_like(rows["input_ids"])).bool()
    rows = several_targets(rows) if targets == "several" else rows
    ids = left_tokens(NEIGHBOR, **rows)["query_input_ids"]
    assert (ids[mask] == -1).any() and (ids[mask] >= 0).any()
    torch.testing.assert_close(starts_of(model, **rows)[mask], expected_starts(model, ids)[mask])
    given = logits_of(model, **rows, query_input_ids=ids)
    torch.testing.assert_close(logits_of(model, **rows)[mask], given[mask], atol=1e-6, rtol=0)


def test_embeddings_in_place_of_tokens_start_it_alike():
    model, rows = tiny_model(NEIGHBOR), random_rows(NEIGHBOR, 2, 7)
    expected = logits_of(model, **rows)
    embeds = model.model.embed_tokens(rows.pop("input_ids"))
    torch.testing.assert_close(logits_of(model, **rows, inputs_embeds=embeds), expected, atol=1e-6, rtol=0)


def test_a_neighbor_of_another_packed_example_is_none():
    model = tiny_model(NEIGHBOR)
    # The first example holds what is left of the second one's first target, and the other way round.
    positions = torch.tensor([[0, 3, 1, 2, 0, 4, 2, 3]])
    rows = {
        "input_ids": torch.arange(3, 11)[None],
        "position_ids": positions,
        "target_position_ids": torch.tensor([[3, 1, 2, 4, 4, 2, 3, 5]]),
        "segment_ids": torch.tensor([[0] * 4 + [1] * 4]),
    }
    #       3 <- 2?  1 <- 0  2 <- 1  4 <- 3  4 <- 3?  2 <- 1?  3 <- 2  5 <- 4
    ids = torch.tensor([[-1, 3, 5, 4, -1, -1, 9, 8]])
    torch.testing.assert_close(starts_of(model, **rows), expected_starts(model, ids))


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_under_a_prepared_mask_only_rows_that_are_seen_are_neighbors(kind):
    model = tiny_model(NEIGHBOR)
    # Rows 1 and 2 are alternatives for position 1; row 3 follows row 1, row 4 follows row 2.
    sees = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]]).bool()
    mask = sees[None, None]
    if kind == "additive":
        mask = torch.zeros(1, 1, 5, 5).masked_fill(~mask, torch.finfo(torch.float32).min)
    rows = {
        "input_ids": torch.tensor([[3, 4, 5, 6, 7]]),
        "position_ids": torch.tensor([[0, 1, 1, 4, 4]]),
        "target_position_ids": torch.tensor([[1, 4, 4, 2, 2]]),
        "attention_mask": mask,
    }
    ids = torch.tensor([[3, -1, -1, 4, 5]])
    torch.testing.assert_close(starts_of(model, **rows), expected_starts(model, ids))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_what_a_cached_call_cannot_know_is_asked_for(cache):
    model = tiny_model(NEIGHBOR)
    positions = torch.tensor([ORDER])
    rows = {"input_ids": torch.arange(3, 9)[None], "position_ids": positions}
    rows["target_position_ids"] = torch.tensor([ORDER[1:] + [4]])
    config = model.config
    held = DynamicCache(config=config) if cache == "dynamic" else StaticCache(config=config, max_cache_len=8)
    parts = {name: value[:, :3] for name, value in rows.items()}, {name: value[:, 3:] for name, value in rows.items()}
    # Nothing is in the cache before the first call, so that all is known.
    first = logits_of(model, **parts[0], past_key_values=held)
    with pytest.raises(ValueError, match="`query_input_ids` must be given where a cache is used"):
        model(**parts[1], past_key_values=held)
    assert held.get_seq_length() == 3
    ids = left_tokens(NEIGHBOR, **rows)["query_input_ids"]
    second = logits_of(model, **parts[1], past_key_values=held, query_input_ids=ids[:, 3:])
    torch.testing.assert_close(torch.cat([first, second], dim=1), logits_of(model, **rows), atol=1e-5, rtol=0)


@pytest.mark.full
def test_a_compiled_cached_call_does_not_guess_either():
    model = tiny_model(NEIGHBOR)
    held = StaticCache(config=model.config, max_cache_len=8)
    given = {"input_ids": torch.tensor([[3, 4]]), "position_ids": torch.tensor([[0, 5]])}
    logits_of(model, **given, target_position_ids=torch.tensor([[5, 1]]), past_key_values=held)
    torch._dynamo.reset()
    step = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    row = {"input_ids": torch.tensor([[5]]), "position_ids": torch.tensor([[1]])}
    # The own row is left of this target, and position 5, in the cache, left of that one.
    with torch.no_grad():
        step(**row, target_position_ids=torch.tensor([[2]]), past_key_values=held)
        with pytest.raises(RuntimeError, match="query_input_ids"):
            step(**row, target_position_ids=torch.tensor([[6]]), past_key_values=held)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 3, dtype=torch.int64), r"query_input_ids.*rows=4.*\[1, 3\]"),
        (torch.zeros(1, 4, 2, dtype=torch.int64), r"query_input_ids.*shape of the targets, \[1, 4\].*\[1, 4, 2\]"),
        (torch.zeros(1, 4), "query_input_ids.*integers.*float32"),
        (torch.full((1, 4), 23), r"query_input_ids.*\[0, vocab_size=23\), or -1"),
        (torch.full((1, 4), -2), r"query_input_ids.*\[0, vocab_size=23\), or -1"),
    ],
)
def test_given_tokens_are_checked(ids, message):
    model, rows = tiny_model(NEIGHBOR), random_rows(NEIGHBOR, 1, 4)
    with pytest.raises(ValueError, match=message):
        model(**rows, query_input_ids=ids)
    with pytest.raises(ValueError, match=r"query_input_ids.*\[1, 4, 2\].*\[1, 4, 3\]"):
        model(**several_targets(rows, 2), query_input_ids=torch.zeros(1, 4, 3, dtype=torch.int64))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != NEIGHBOR])
def test_models_that_start_elsewhere_refuse_them(variant):
    rows = random_rows(variant, 1, 4)
    with pytest.raises(ValueError, match="`query_input_ids` needs query_stream_init='neighbor'"):
        tiny_model(variant)(**rows, query_input_ids=rows["input_ids"])


def test_other_variants_ignore_the_start():
    config = tiny_config("decoupled_rope", query_stream_init="neighbor")
    assert not config.starts_from_neighbors and tiny_config(NEIGHBOR).starts_from_neighbors


def test_a_candidates_start_changes_when_its_neighbor_is_filled():
    """Confidence orders: each pass gives what one uncached pass over the rows so far gives, starts included."""
    model = tiny_model(NEIGHBOR)
    canvas = torch.tensor([[4, 0, 0, 7, 0, 0, 11, 0]])
    blanks = canvas == 0
    output = model.generate(
        canvas, generation_mask=blanks, decoding_order="confidence", do_sample=False, return_dict_in_generate=True
    )
    order, filled = output.decoding_order[0].tolist(), output.sequences[0]
    given = [0, 3, 6]
    changed = 0
    for number, column in enumerate(order):
        rows = given + order[:number]
        targets = torch.tensor([[[row + 1] * len(order) for row in rows[:-1]] + [order]])
        arguments = {
            "input_ids": filled[rows][None],
            "position_ids": torch.tensor([rows]),
            "target_position_ids": targets,
        }
        starts = starts_of(model, **arguments)[0, -1]
        for target, start in zip(order, starts, strict=True):
            token = filled[target - 1] if target - 1 in rows else torch.tensor(-1)
            torch.testing.assert_close(start, expected_starts(model, token))
            changed += target - 1 in order[:number] and target not in rows
        log_probs = logits_of(model, **arguments)[0, -1, number].log_softmax(-1)
        torch.testing.assert_close(log_probs[filled[column]], output.logprobs[0, number], atol=1e-5, rtol=0)
    assert changed


def test_what_no_cache_can_hold_is_not_asked_for():
    """Target 0 has nothing left of it, and a token that comes later in the call is in no cache."""
    model = tiny_model(NEIGHBOR)
    held = DynamicCache(config=model.config)
    logits_of(
        model,
        input_ids=torch.tensor([[3]]),
        position_ids=torch.tensor([[7]]),
        target_position_ids=torch.tensor([[0]]),
        past_key_values=held,
    )
    rows = {"input_ids": torch.tensor([[4, 5]]), "position_ids": torch.tensor([[0, 4]])}
    targets = {"target_position_ids": torch.tensor([[5, 0]])}
    unknown = torch.full((1, 2), -1)
    expected = logits_of(model, **rows, **targets, query_input_ids=unknown, past_key_values=copy.deepcopy(held))
    torch.testing.assert_close(logits_of(model, **rows, **targets, past_key_values=held), expected)


def test_every_pass_looks_tokens_up_once():
    """A table that is shared out among processes is gathered at each look; all of them must make equally many."""
    model, calls = tiny_model(NEIGHBOR), []
    model.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    rows = random_rows(NEIGHBOR, 2, 5)
    logits_of(model, **rows)
    logits_of(model, **rows, query_input_ids=rows["input_ids"])
    assert len(calls) == 2
    canvas, blanks = rows["input_ids"], torch.tensor([[False, True, False, True, True]] * 2)
    for way in ({}, {"decoding_order": "confidence"}, {"draft_length": 2}, {"use_cache": False}):
        calls.clear()
        output = model.generate(canvas, generation_mask=blanks, **way, return_dict_in_generate=True)
        assert len(calls) == output.forward_passes


def test_text_that_goes_on_behind_padding_starts_from_its_own_rows():
    """A position comes twice there, and each row predicts the position after its own."""
    model, positions = tiny_model(NEIGHBOR), torch.tensor([[0, 1, 2, 1, 1, 2, 3]])
    rows = {"input_ids": torch.arange(3, 10)[None], "position_ids": positions, "target_position_ids": positions + 1}
    mask = torch.tensor([[1, 1, 1, 0, 0, 1, 1]])
    starts = starts_of(model, **rows, attention_mask=mask)
    real = mask.bool()
    torch.testing.assert_close(starts[real], expected_starts(model, rows["input_ids"])[real])


def test_in_a_canvas_the_column_left_of_a_blank_is_the_last_one_that_is_no_padding():
    """Padding may stand in the middle too; what is not observed is not known."""
    model = tiny_model(NEIGHBOR)
    canvas, mask = torch.tensor([[4, 9, 0, 7, 11, 5]]), torch.tensor([[1, 1, 0, 1, 1, 1]])
    blanks = torch.tensor([[False, False, False, True, False, False]])
    for observed, left in ((None, 9), (torch.tensor([[True, False, True, True, True, True]]), -1)):
        scored = model.score(canvas, blanks, observed, mask, decoding_order="left_to_right")
        # Rows are the given tokens; the last one predicts position 2, left of which is position 1.
        rows = [0, 1, 4, 5] if observed is None else [0, 4, 5]
        positions = torch.tensor([[{0: 0, 1: 1, 4: 3, 5: 4}[column] for column in rows]])
        targets = torch.cat([positions[:, 1:], torch.tensor([[2]])], dim=1)
        arguments = {"input_ids": canvas[:, rows], "position_ids": positions, "target_position_ids": targets}
        ids = left_tokens(NEIGHBOR, **arguments)["query_input_ids"]
        assert ids[0, -1] == left
        log_probs = logits_of(model, **arguments, query_input_ids=ids)[0, -1].log_softmax(-1)
        torch.testing.assert_close(scored.log_likelihood[0, 0], log_probs[7], atol=1e-5, rtol=0)
