# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The cache of canvases: continued by a later call, compiled steps, and what passes cost."""

import contextlib

import pytest
import torch
from canvases import ONE_BY_ONE, WAYS, example_of, ragged_canvases
from transformers import CompileConfig, DynamicCache, LogitsProcessorList
from variants import any_order_variants, tiny_model, two_stream_variants

from modeling_aoarm import AOARMForCausalLM


def continued(output, canvases, columns):
    """The filled canvases with `columns` new blanks on the right."""
    return {
        "input_ids": torch.nn.functional.pad(output.sequences, (0, columns)),
        "generation_mask": torch.nn.functional.pad(
            torch.zeros_like(canvases["generation_mask"]), (0, columns), value=True
        ),
        "attention_mask": torch.nn.functional.pad(canvases["attention_mask"], (0, columns), value=1),
    }


def known_order(output, canvases):
    """The realised rows of a filled canvas as a context order: given tokens from left to right, then the fillings."""
    orders = []
    for row, order in enumerate(output.decoding_order):
        given = (canvases["attention_mask"][row].bool() & ~canvases["generation_mask"][row]).nonzero().flatten()
        orders.append(torch.cat([given, order[order >= 0]]))
    return torch.nn.utils.rnn.pad_sequence(orders, batch_first=True, padding_value=-1)


def behind(first, second):
    """Two orders one behind the other, each filled with -1 on the right."""
    order = torch.cat([first, second], dim=1)
    return order.gather(1, (order < 0).long().argsort(dim=1, stable=True))


def check_continuing(model, longer, order, cache, **how):
    """Filling `longer` on a cache equals starting over with the context in `order`; returns the output on the cache."""
    outputs = []
    for rows in ({"context_order": order}, {"past_key_values": cache}):
        torch.manual_seed(2)
        outputs.append(model.generate(**longer, **rows, **how, return_dict_in_generate=True))
    expected, actual = outputs
    assert torch.equal(actual.sequences, expected.sequences)
    assert torch.equal(actual.decoding_order, expected.decoding_order)
    torch.testing.assert_close(actual.logprobs, expected.logprobs, atol=1e-5, rtol=0)
    return actual


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize(
    ("way", "kind"),
    [
        (way, kind)
        for way in WAYS
        for kind in ("dynamic", "static", "kept")
        # Static caches take no number of drafts that changes.
        if (kind, way.get("draft_length")) != ("static", "auto")
    ],
    ids=str,
)
def test_a_returned_cache_continues_as_starting_over_would(variant, way, kind):
    model = tiny_model(variant)
    canvases = ragged_canvases("left")
    torch.manual_seed(1)
    # With a processor of the caller's own, canvases that are done stay in the batch.
    kept = {"logits_processor": LogitsProcessorList([lambda rows, scores: scores])}
    how = kept if kind == "kept" else {"cache_implementation": kind}
    first = model.generate(**canvases, **way, **how, do_sample=True, return_dict_in_generate=True)
    longer = continued(first, canvases, 3)
    for second_way in ({}, {"decoding_order": "random", "tokens_per_step": 2}, {"draft_length": 2}, way):
        how = {**second_way, "do_sample": True}
        reused = check_continuing(model, longer, known_order(first, canvases), first.past_key_values, **how)
    # And on: a cache that has been continued is like one from a single call.
    once_more = continued(reused, longer, 2)
    order = behind(known_order(first, canvases), reused.decoding_order)
    check_continuing(model, once_more, order, reused.past_key_values)


@any_order_variants
def test_appended_blanks_continue_a_cache_without_a_mask(variant):
    """The way to write on: the library's own `generate` would take the cached rows for a left-to-right prefix."""
    model = tiny_model(variant)
    canvases = ragged_canvases("left")
    first = model.generate(**canvases, decoding_order="random", return_dict_in_generate=True)
    expected = model.generate(**continued(first, canvases, 3), past_key_values=first.past_key_values)
    actual = model.generate(
        first.sequences,
        attention_mask=canvases["attention_mask"],
        max_new_tokens=3,
        past_key_values=first.past_key_values,
    )
    assert torch.equal(actual, expected)


@any_order_variants
def test_several_sequences_can_continue_one_canvas(variant):
    model = tiny_model(variant)
    canvases = ragged_canvases("left")
    first = model.generate(**canvases, decoding_order="random", return_dict_in_generate=True)
    longer = continued(first, canvases, 4)
    how = {"do_sample": True, "num_return_sequences": 3}
    output = check_continuing(model, longer, known_order(first, canvases), first.past_key_values, **how)
    assert len(output.sequences) == 12


@any_order_variants
def test_new_given_tokens_are_read_behind_those_that_the_cache_knows(variant):
    """A conversation: the user's next words are given columns to the right of what was filled."""
    model = tiny_model(variant)
    canvases = ragged_canvases("left")
    first = model.generate(**canvases, decoding_order="random", return_dict_in_generate=True)
    longer = continued(first, canvases, 5)
    longer["generation_mask"][:, -5:-2] = False
    order = behind(known_order(first, canvases), torch.arange(9, 12).expand(4, -1))
    check_continuing(model, longer, order, first.past_key_values)


@any_order_variants
def test_caches_that_do_not_fit_are_refused(variant):
    model = tiny_model(variant)
    canvases = ragged_canvases("left")
    first = model.generate(**canvases, return_dict_in_generate=True)
    cache, longer = first.past_key_values, continued(first, canvases, 2)
    other = {**longer, "input_ids": longer["input_ids"].clone()}
    other["input_ids"][2, 5] = (other["input_ids"][2, 5] + 1) % 23
    with pytest.raises(ValueError, match=r"past_key_values.*same tokens.*\[2\]"):
        model.generate(**other, past_key_values=cache)
    blanked = {**longer, "generation_mask": longer["generation_mask"].clone()}
    blanked["generation_mask"][0, 3] = True
    with pytest.raises(ValueError, match=r"past_key_values.*given tokens.*\[0\]"):
        model.generate(**blanked, past_key_values=cache)
    moved = {**longer, "attention_mask": longer["attention_mask"].clone()}
    moved["attention_mask"][1, 2] = 1
    with pytest.raises(ValueError, match=r"past_key_values.*same positions.*\[1\]"):
        model.generate(**moved, past_key_values=cache)
    with pytest.raises(ValueError, match="past_key_values.*canvases that are continued"):
        model.generate(**example_of(longer, 0), past_key_values=cache)
    with pytest.raises(ValueError, match="past_key_values.*DynamicCache"):
        model.generate(**longer, past_key_values=DynamicCache(config=model.config))
    with pytest.raises(ValueError, match="context_order.*past_key_values"):
        model.generate(**longer, past_key_values=cache, context_order=known_order(first, canvases))
    with pytest.raises(ValueError, match="past_key_values.*use_cache=False"):
        model.generate(**longer, past_key_values=cache, use_cache=False)
    tiny = tiny_model(variant, num_hidden_layers=2)
    with pytest.raises(ValueError, match="past_key_values.*variant and depth.*2.*3"):
        tiny.generate(**longer, past_key_values=cache)
    with pytest.raises(ValueError, match="cache of canvases.*generate"):
        model(longer["input_ids"][:, -1:], past_key_values=cache)
    with pytest.raises(ValueError, match="cache of canvases.*neither"):
        model.generate(longer["input_ids"], past_key_values=cache)
    # It is as it was.
    expected = model.generate(**longer, context_order=known_order(first, canvases))
    assert torch.equal(model.generate(**longer, past_key_values=cache), expected)


@contextlib.contextmanager
def watched_passes(monkeypatch):
    """The shapes `[batch, rows]` of all calls of the model."""
    shapes, forward = [], AOARMForCausalLM.forward

    def watch(self, input_ids, **kwargs):
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AOARMForCausalLM, "forward", watch)
        yield shapes


@any_order_variants
def test_each_pass_reads_one_row_of_the_examples_that_are_left(variant, monkeypatch):
    """Blanks per canvas: 4, 0, 3 and 6; 8 rows of context. Canvases that are done cost nothing more."""
    model = tiny_model(variant)
    with watched_passes(monkeypatch) as shapes:
        output = model.generate(**ragged_canvases(), decoding_order="random", return_dict_in_generate=True)
    assert shapes == [(3, 5), (3, 1), (3, 1), (2, 1), (1, 1), (1, 1)]
    assert output.forward_passes == 6
    assert output.tokens_per_forward.tolist() == [1, 0, 1, 1]


@any_order_variants
def test_sentence_ends_end_the_work(variant, monkeypatch):
    """A model that wants to end: every canvas takes one pass, whatever blanks it had."""
    model = tiny_model(variant, eos_token_id=2, pad_token_id=0)
    canvas = torch.tensor([[5, 6, 0, 0, 0, 0, 0]] * 2)
    blanks = torch.tensor([[False, False, True, True, True, True, True]] * 2)
    with torch.no_grad():
        embeddings = model.model.norm.weight
        model.lm_head.weight[2] = 0
        model.lm_head.weight[torch.arange(23) != 2] = -0.0 * embeddings
    with watched_passes(monkeypatch) as shapes:
        how = {"suppress_tokens": [token for token in range(23) if token != 2], "return_dict_in_generate": True}
        output = model.generate(canvas, generation_mask=blanks, **how)
    assert shapes == [(2, 2)] and output.sequences.tolist() == [[5, 6, 2, 0, 0, 0, 0]] * 2


@pytest.mark.grid(pairs=False)
@any_order_variants
def test_adaptive_orders_ask_only_about_blanks_that_are_left(variant, monkeypatch):
    model = tiny_model(variant)
    canvases = example_of(ragged_canvases("right"), 0)
    targets, forward = [], AOARMForCausalLM.forward

    def watch(self, **kwargs):
        targets.append(tuple(kwargs["target_position_ids"].shape))
        return forward(self, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AOARMForCausalLM, "forward", watch)
        model.generate(**canvases, decoding_order="confidence")
    if variant.startswith("two_stream"):
        assert targets == [(1, 4), (1, 1, 4), (1, 1, 3), (1, 1, 2), (1, 1)]
    else:
        # One row is read once more with the target that was chosen; the others are copies that ask.
        assert targets == [(1, 4), (1, 4), (1, 4), (1, 3), (1, 2)]


@two_stream_variants
def test_several_tokens_a_pass_do_not_multiply_rows_by_targets(variant, monkeypatch):
    """Of the rows filled in the pass before only the last one asks: 3 rows, and 5, 2 more copies for 6, 3 blanks."""
    canvases = example_of(ragged_canvases("left"), 3)
    canvases = {name: torch.nn.functional.pad(value, (0, 3), value=1) for name, value in canvases.items()}
    canvases["generation_mask"] = canvases["generation_mask"].bool()
    with watched_passes(monkeypatch) as shapes:
        tiny_model(variant).generate(**canvases, decoding_order="confidence", tokens_per_step=3)
    assert shapes == [(1, 1), (1, 3 + 5), (1, 3 + 2)]


@pytest.mark.grid(pairs=False)
@any_order_variants
def test_a_cached_step_writes_in_place(variant):
    """Each layer's keys stay where they are in memory from pass to pass."""
    model = tiny_model(variant)
    places = set()

    def note(module, arguments, output):
        cache = module._seen_cache
        places.add(cache.layers[0].keys.data_ptr())

    def see(module, arguments, kwargs):
        module._seen_cache = kwargs["past_key_values"]

    model.register_forward_pre_hook(see, with_kwargs=True)
    model.register_forward_hook(note)
    for way in ({"decoding_order": "random"}, {"draft_length": 2}, {"decoding_order": "entropy"}):
        places.clear()
        model.generate(**example_of(ragged_canvases(), 3), **way)
        assert len(places) == 1


@pytest.mark.grid(pairs=False)
@any_order_variants
@pytest.mark.parametrize("way", [*ONE_BY_ONE[1:3], {"draft_length": 2}, {"tokens_per_step": 2}], ids=str)
def test_compiled_steps_fill_the_same_and_compile_once(variant, way):
    torch._dynamo.reset()
    model = tiny_model(variant)
    canvases = ragged_canvases("left")
    expected = model.generate(**canvases, **way, generator=torch.Generator().manual_seed(0), do_sample=True)
    compile_config = CompileConfig(fullgraph=True, mode="default", backend="aot_eager")
    compile_config._compile_all_devices = True
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for _ in range(2):
        actual = model.generate(
            **canvases,
            **way,
            generator=torch.Generator().manual_seed(0),
            do_sample=True,
            cache_implementation="static",
            compile_config=compile_config,
        )
        assert torch.equal(actual, expected)
    assert graphs["unique_graphs"] - before == 1


@pytest.mark.grid(pairs=False)
@any_order_variants
@pytest.mark.parametrize("implementation", ["eager"])
def test_attention_backends_fill_the_same(variant, implementation):
    canvases = ragged_canvases("left")
    for way in WAYS:
        how = {**way, "do_sample": True, "return_dict_in_generate": True}
        outputs = [
            tiny_model(variant, attn_implementation=each).generate(
                **canvases, **how, generator=torch.Generator().manual_seed(0)
            )
            for each in ("sdpa", implementation)
        ]
        assert torch.equal(outputs[0].sequences, outputs[1].sequences)
        torch.testing.assert_close(outputs[0].logprobs, outputs[1].logprobs, atol=1e-5, rtol=0)


def test_kernels_without_masks_are_refused_where_masks_are_needed():
    model = tiny_model("two_stream")
    model.config._attn_implementation_internal = "flash_attention_2"
    canvases = ragged_canvases()
    for way in ({"tokens_per_step": 2}, {"draft_length": 1}, {"decoding_order": "entropy"}):
        with pytest.raises(ValueError, match="need an attention implementation.*flash_attention_2"):
            model.generate(**canvases, **way)


@pytest.mark.parametrize("kind", ["quantized", "offloaded"])
def test_other_caches_are_refused(kind):
    with pytest.raises(ValueError, match=f"cache_implementation.*{kind}"):
        tiny_model("two_stream").generate(**ragged_canvases(), cache_implementation=kind)
