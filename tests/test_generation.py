# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Generation in any order: replay, cache, ragged batches, the end-of-sentence rule, the sampled distribution."""

import pytest
import torch
from canvases import (
    BLANKS,
    FILLING_VARIANTS,
    IN_GROUPS,
    LENGTHS,
    ONE_BY_ONE,
    WAYS,
    caches_for,
    canvases_in_step,
    check_filling,
    enumerated,
    example_of,
    filling_cases,
    fits,
    model_of_three_symbols,
    ragged_canvases,
    replay,
)
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessor, LogitsProcessorList
from variants import any_order_variants, checkpoint_activations, tiny_model


LAYOUTS = {
    "left": lambda: ragged_canvases("left"),
    "right": lambda: ragged_canvases("right"),
    # Schedules and drafts part examples that start with equally many rows.
    "in step": canvases_in_step,
}
# Whatever the order is, the first pass of this schedule fills fewer blanks than the second.
ALL_WAYS = [*WAYS, {"decoding_order": "left_to_right", "tokens_per_step": "linear(3)"}]


@pytest.mark.grid
@pytest.mark.parametrize(*filling_cases(ALL_WAYS), ids=str)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_replaying_the_realised_order_gives_the_same_log_probabilities(variant, way, cache, layout):
    model, canvases = tiny_model(variant), LAYOUTS[layout]()
    for how in ({"do_sample": False}, {"do_sample": True, "temperature": 1.3, "top_k": 7, "top_p": 0.9}):
        torch.manual_seed(5)
        output = model.generate(**canvases, **way, **cache, **how, return_dict_in_generate=True)
        check_filling(canvases, output)
        expected = replay(model, canvases, output, in_groups="tokens_per_step" in way)
        torch.testing.assert_close(output.logprobs, expected, atol=1e-5, rtol=0)
        if variant == "bidirectional":
            assert (output.sequences[canvases["generation_mask"]] != model.config.mask_token_id).all()
            assert output.past_key_values is None
        if way["decoding_order"] == "left_to_right":
            real = output.decoding_order >= 0
            assert ((output.decoding_order.diff(dim=1) > 0) | ~real[:, 1:]).all()
        if "tokens_per_step" not in way:
            scores = model.score(
                output.sequences,
                canvases["generation_mask"],
                attention_mask=canvases["attention_mask"],
                decoding_order=output.decoding_order,
            )
            torch.testing.assert_close(scores.log_likelihood[0], output.logprobs.sum(1), atol=1e-5, rtol=0)


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize("way", [{}, {"tokens_per_step": 2}, {"draft_length": 3}], ids=str)
def test_a_given_order_is_the_order_that_is_realised(variant, way):
    model = tiny_model(variant)
    canvases = ragged_canvases("right")
    order = torch.full((4, 6), -1)
    for row, blanks in enumerate(canvases["generation_mask"]):
        columns = blanks.nonzero().flatten().flip(0)
        order[row, : len(columns)] = columns
    output = model.generate(**canvases, **way, decoding_order=order, return_dict_in_generate=True)
    check_filling(canvases, output)
    assert torch.equal(output.decoding_order, order)
    torch.testing.assert_close(
        output.logprobs, replay(model, canvases, output, in_groups="tokens_per_step" in way), atol=1e-5, rtol=0
    )


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize("way", [*ONE_BY_ONE, *IN_GROUPS[:3]], ids=str)
def test_seeded_results_do_not_depend_on_the_kind_of_cache(variant, way):
    model = tiny_model(variant)
    results = []
    for cache in caches_for(way):
        torch.manual_seed(3)
        output = model.generate(
            **ragged_canvases("left"), **way, **cache, do_sample=True, top_k=0, return_dict_in_generate=True
        )
        results.append((output.sequences, output.decoding_order))
    for sequences, order in results[1:]:
        assert torch.equal(sequences, results[0][0]) and torch.equal(order, results[0][1])


@any_order_variants
def test_greedy_filling_takes_the_likeliest_token_of_each_step(variant):
    """Against a loop that knows no cache and no batch: ask for the next blank, write the argmax, ask again."""
    model = tiny_model(variant)
    canvases = ragged_canvases("right")
    filled = model.generate(**canvases, decoding_order="left_to_right", do_sample=False)
    for row, (length, blanks) in enumerate(zip(LENGTHS, BLANKS, strict=True)):
        columns = [column for column in range(length) if column not in blanks]
        canvas = canvases["input_ids"][row].clone()
        for blank in blanks and sorted(blanks):
            positions = torch.tensor([columns])
            targets = torch.tensor([[*columns[1:], blank]])
            with torch.no_grad():
                logits = model(canvas[positions], position_ids=positions, target_position_ids=targets).logits
            canvas[blank] = logits[0, -1].argmax()
            columns.append(blank)
        assert torch.equal(filled[row], canvas)


@pytest.mark.grid(pairs=False)
@pytest.mark.parametrize("variant", FILLING_VARIANTS)
@pytest.mark.parametrize("order", [(3, 1, 2), (1, 2, 3)])
def test_sampled_fillings_follow_the_enumerated_distribution(variant, order):
    model, canvas = model_of_three_symbols(variant), torch.tensor([1, 0, 0, 0])
    torch.manual_seed(11)
    samples = model.generate(
        canvas[None],
        generation_mask=torch.tensor([[False, True, True, True]]),
        decoding_order=torch.tensor([order]),
        do_sample=True,
        top_k=0,
        num_return_sequences=8000,
    )
    assert fits(samples, enumerated(model, canvas, order)) > 1e-3
    # The test can tell: another order's distribution is not this one.
    assert fits(samples, enumerated(model, canvas, (2, 3, 1))) < 1e-3


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("way", [way for way in WAYS if way["decoding_order"] != "random"], ids=str)
def test_greedy_fillings_do_not_depend_on_neighbours(variant, side, way):
    """Law 5: each canvas alone, the batch reversed, and the batch as it is."""
    model = tiny_model(variant)
    canvases = ragged_canvases(side)
    together = model.generate(**canvases, **way, do_sample=False)
    reversed_batch = {name: value.flip(0) for name, value in canvases.items()}
    assert torch.equal(model.generate(**reversed_batch, **way, do_sample=False).flip(0), together)
    for row in range(4):
        alone = model.generate(**example_of(canvases, row), **way, do_sample=False)
        assert torch.equal(alone[0], together[row, canvases["attention_mask"][row].bool()])


@pytest.mark.grid
@pytest.mark.parametrize(*filling_cases(caches=[{}, {"cache_implementation": "static"}]), ids=str)
def test_with_a_generator_for_each_canvas_samples_do_not_depend_on_neighbours(variant, way, cache):
    model = tiny_model(variant)
    canvases = ragged_canvases("left")

    def generators(rows):
        return [torch.Generator().manual_seed(10 + row) for row in rows]

    how = {**way, "do_sample": True, "top_k": 0}
    together = model.generate(**canvases, **how, **cache, generator=generators(range(4)))
    for row in range(4):
        alone = model.generate(**example_of(canvases, row), **how, generator=generators([row]))
        assert torch.equal(alone[0], together[row, canvases["attention_mask"][row].bool()])


@pytest.mark.parametrize("variant", FILLING_VARIANTS)
def test_no_token_id_means_blank(variant):
    """Mask, padding and end-of-sentence tokens in the prompt are text like any other, also when they are one token."""
    model = tiny_model(variant, mask_token_id=4, pad_token_id=4, eos_token_id=4)
    canvas = torch.tensor([[4, 9, 4, 10, 4]])
    blanks = torch.tensor([[False, False, True, False, False]])
    output = model.generate(canvas, generation_mask=blanks, return_dict_in_generate=True)
    assert output.sequences[0, [0, 1, 3, 4]].tolist() == [4, 9, 10, 4]
    assert output.decoding_order.tolist() == [[2]]
    # The blank's own content is not read.
    for token in (0, 4, 11):
        canvas[0, 2] = token
        assert torch.equal(model.generate(canvas, generation_mask=blanks), output.sequences)


@pytest.mark.grid
@pytest.mark.parametrize("variant", FILLING_VARIANTS)
@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"repetition_penalty": 20.0}], ids=str)
def test_what_stands_in_blanks_and_padding_is_never_read(variant, how):
    """Not even by rows of padding, which examples with fewer given tokens have, or by processors of the rows so far."""
    model = tiny_model(variant)
    canvases = ragged_canvases("left")
    unread = canvases["generation_mask"] | ~canvases["attention_mask"].bool()
    results = []
    for filler in (0, 7, 22, 23, -100):
        canvases["input_ids"] = canvases["input_ids"].masked_fill(unread, filler)
        filled = model.generate(**canvases, do_sample=False, **how)
        assert (filled[~canvases["attention_mask"].bool()] == filler).all()
        results.append(filled[canvases["attention_mask"].bool()])
    assert all(torch.equal(result, results[0]) for result in results)
    for row in range(4):
        alone = model.generate(**example_of(canvases, row), **how)
        assert torch.equal(alone[0], filled[row, canvases["attention_mask"][row].bool()])


@any_order_variants
def test_models_in_training_fill_blanks_too(variant):
    """With activation checkpointing layers keep no cache; the filling is the same without."""
    model = tiny_model(variant)
    canvases = ragged_canvases()
    expected = model.generate(**canvases)
    checkpoint_activations(model.train())
    assert torch.equal(model.generate(**canvases), expected)


@any_order_variants
def test_canvases_of_every_integer_type_are_taken(variant):
    model = tiny_model(variant)
    canvases = ragged_canvases()
    expected = model.generate(**canvases)
    canvases = {
        **canvases,
        "input_ids": canvases["input_ids"].int(),
        "attention_mask": canvases["attention_mask"].bool(),
    }
    assert torch.equal(model.generate(**canvases), expected)


@any_order_variants
def test_warpers_that_do_not_depend_on_order_are_used(variant):
    """Each one alone leaves one token to choose, so that sampling is greedy."""
    model = tiny_model(variant)
    canvases = ragged_canvases()
    greedy = model.generate(**canvases, do_sample=False)
    for how in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-6}, {"top_h": 1e-6}):
        assert torch.equal(model.generate(**canvases, do_sample=True, **{"top_k": 0, **how}), greedy), how
    forbidden = greedy[canvases["generation_mask"]].unique().tolist()
    other = model.generate(**canvases, suppress_tokens=forbidden)
    assert not torch.isin(other[canvases["generation_mask"]], torch.tensor(forbidden)).any()


@any_order_variants
def test_a_canvas_without_blanks_comes_back_unchanged(variant):
    model = tiny_model(variant)
    canvas = torch.randint(0, 23, (2, 5))
    output = model.generate(canvas, generation_mask=torch.zeros(2, 5, dtype=torch.bool), return_dict_in_generate=True)
    assert torch.equal(output.sequences, canvas)
    assert output.forward_passes == 0 and output.decoding_order.shape == (2, 0) and output.logprobs.shape == (2, 0)


class Force(LogitsProcessor):
    """Makes the model want one token, by step: a script for the end-of-sentence rule."""

    def __init__(self, wishes, given):
        self.wishes, self.given = wishes, given

    def __call__(self, input_ids, scores):
        bonus = torch.zeros_like(scores)
        for row, wish in enumerate(self.wishes[input_ids.shape[1] - self.given]):
            bonus[row, wish] = 1e4
        return scores + bonus


def scripted(model, canvas, blanks, order, wishes, **kwargs):
    given = int((~blanks).sum(1).max())
    return model.generate(
        canvas,
        generation_mask=blanks,
        decoding_order=torch.tensor(order),
        logits_processor=LogitsProcessorList([Force(wishes, given)]),
        return_dict_in_generate=True,
        **kwargs,
    )


@any_order_variants
def test_an_end_of_sentence_closes_the_blanks_to_its_right(variant):
    model = tiny_model(variant, eos_token_id=2, pad_token_id=0)
    canvas = torch.tensor([[5, 6, 9, 9, 9, 9], [5, 6, 7, 9, 9, 9]])
    blanks = torch.tensor([[False, False, True, True, True, True], [False, False, False, True, True, True]])
    order = [[3, 4, 5, 2], [5, 4, 3, -1]]
    # Example 0 ends at column 3 first: 4 and 5 close, 2 is still to be filled. Example 1 ends in its last column.
    output = scripted(model, canvas, blanks, order, [[2, 2], [11, 12], [13, 14], [15, 16]])
    assert output.sequences.tolist() == [[5, 6, 11, 2, 0, 0], [5, 6, 7, 14, 12, 2]]
    assert output.decoding_order.tolist() == [[3, 2, -1], [5, 4, 3]]
    assert output.forward_passes == 3
    canvases = {"generation_mask": blanks, "attention_mask": torch.ones_like(canvas)}
    torch.testing.assert_close(output.logprobs, replay(model, canvases, output), atol=1e-5, rtol=0)


@any_order_variants
def test_no_end_of_sentence_to_the_left_of_a_token(variant):
    """Left of a given token, and left of one that generation has placed, a sentence cannot end."""
    model = tiny_model(variant, eos_token_id=2, pad_token_id=0)
    canvas = torch.tensor([[5, 9, 9, 9], [5, 9, 9, 6]])
    blanks = torch.tensor([[False, True, True, True], [False, True, True, False]])
    wishes = [[8, 2], [2, 2], [2, 2]]
    output = scripted(model, canvas, blanks, [[2, 1, 3], [1, 2, -1]], wishes)
    assert (output.sequences[1] != 2).all()
    assert output.sequences[0, 2] == 8 and output.sequences[0, 1] != 2 and output.sequences[0, 3] == 2
    # Switched off, it is a token like any other.
    free = scripted(model, canvas, blanks, [[2, 1, 3], [1, 2, -1]], wishes, eos_token_id=None)
    assert free.sequences.tolist() == [[5, 2, 8, 2], [5, 2, 2, 6]]


@any_order_variants
def test_several_sequences_per_canvas_stand_together(variant):
    model = tiny_model(variant)
    canvases = ragged_canvases()
    torch.manual_seed(0)
    output = model.generate(
        **canvases, decoding_order="random", do_sample=True, num_return_sequences=3, return_dict_in_generate=True
    )
    repeated = {name: value.repeat_interleave(3, 0) for name, value in canvases.items()}
    check_filling(repeated, output)
    torch.testing.assert_close(output.logprobs, replay(model, repeated, output), atol=1e-5, rtol=0)
    # Orders are drawn for each sequence, not for each canvas.
    assert len({tuple(order) for order in output.decoding_order[-3:].tolist()}) > 1


@any_order_variants
def test_the_default_order_comes_from_the_call_then_the_generation_config(variant):
    model = tiny_model(variant)
    canvases = ragged_canvases()

    def realised(**kwargs):
        return model.generate(**canvases, return_dict_in_generate=True, **kwargs).decoding_order[3].tolist()

    assert realised() == sorted(realised())
    torch.manual_seed(1)
    shuffled = realised(decoding_order="random")
    assert shuffled != sorted(shuffled)
    model.generation_config.decoding_order = "random"
    torch.manual_seed(1)
    assert realised() == shuffled
    assert realised(decoding_order="left_to_right") == sorted(shuffled)


@pytest.mark.grid(pairs=False)
@any_order_variants
@given(data=st.data())
def test_random_canvases_are_filled_completely_and_nowhere_else(variant, data):
    model = tiny_model(variant)
    batch, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8))
    kinds = data.draw(
        st.lists(
            st.lists(st.sampled_from(["given", "blank", "padding"]), min_size=columns, max_size=columns).filter(
                lambda row: "given" in row
            ),
            min_size=batch,
            max_size=batch,
        )
    )
    canvases = {
        "input_ids": torch.randint(0, 23, (batch, columns)),
        "generation_mask": torch.tensor([[kind == "blank" for kind in row] for row in kinds]),
        "attention_mask": torch.tensor([[int(kind != "padding") for kind in row] for row in kinds]),
    }
    way = data.draw(st.sampled_from(WAYS))
    how = {**way, "do_sample": data.draw(st.booleans()), **data.draw(st.sampled_from(caches_for(way)))}
    output = model.generate(**canvases, **how, return_dict_in_generate=True)
    check_filling(canvases, output)
    expected = replay(model, canvases, output, in_groups="tokens_per_step" in way)
    torch.testing.assert_close(output.logprobs, expected, atol=1e-5, rtol=0)


def check_filling_with_ends(canvases, output, ends):
    """`check_filling` where sentence ends close blanks: what is in no order stands right of an end and is padding."""
    given = canvases["attention_mask"].bool() & ~canvases["generation_mask"]
    assert torch.equal(output.sequences[given], canvases["input_ids"][given])
    for row, order in enumerate(output.decoding_order):
        blanks = canvases["generation_mask"][row].nonzero().flatten().tolist()
        filled = order[order >= 0].tolist()
        closed = sorted(set(blanks) - set(filled))
        assert len(set(filled)) == len(filled) and set(filled) <= set(blanks)
        written = [column for column in filled if output.sequences[row, column] in ends]
        before = given[row].nonzero().flatten().tolist()
        for column in filled:
            if column in written:
                # Nothing stood to the right of it when it was written.
                assert column > max(before)
            before.append(column)
        assert all(column > min(written) for column in closed) if closed else True
        if written:
            assert all(column < min(written) for column in blanks if column in filled and column not in written)
        assert all(output.sequences[row, column] == 0 for column in closed)


@pytest.mark.grid(pairs=False)
@any_order_variants
@given(data=st.data())
def test_random_canvases_with_sentence_ends(variant, data):
    """Every blank is filled once or closed, in every way of decoding, and greedy fillings ignore their neighbours."""
    model = tiny_model(variant, vocab_size=5, pad_token_id=0)
    batch, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 8))
    kind = st.sampled_from(["given", "blank", "blank", "padding"])
    rows = st.lists(kind, min_size=columns, max_size=columns).filter(lambda row: "given" in row)
    kinds = data.draw(st.lists(rows, min_size=batch, max_size=batch))
    canvases = {
        "input_ids": torch.randint(0, 5, (batch, columns)),
        "generation_mask": torch.tensor([[each == "blank" for each in row] for row in kinds]),
        "attention_mask": torch.tensor([[int(each != "padding") for each in row] for row in kinds]),
    }
    ends = data.draw(st.sampled_from([[2], [2, 3], [0]]))
    way = data.draw(st.sampled_from(WAYS))
    how = {**way, **data.draw(st.sampled_from(caches_for(way))), "eos_token_id": ends, "return_dict_in_generate": True}
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    check_filling_with_ends(canvases, model.generate(**canvases, **how, do_sample=True), ends)
    if way["decoding_order"] != "random":
        together = model.generate(**canvases, **how)
        check_filling_with_ends(canvases, together, ends)
        for row in range(batch):
            alone = model.generate(**example_of(canvases, row), **how)
            real = canvases["attention_mask"][row].bool()
            assert torch.equal(alone.sequences[0], together.sequences[row, real])
