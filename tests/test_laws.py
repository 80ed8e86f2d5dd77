# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The laws that every variant obeys (1, 2, 3, 5, 8 and 9 of the design; law 4 is in test_identity_order.py)."""

import itertools

import pytest
import torch
from reference import ALL_OPTIONS, Reference
from transformers import DynamicCache, StaticCache
from variants import (
    SINGLE_STREAM,
    all_strings,
    all_variants,
    any_order_variants,
    chain_log_probs,
    checkpoint_activations,
    left_tokens,
    pad_rows,
    random_rows,
    stack_rows,
    tiny_model,
    two_stream_variants,
)


def logits_of(model, **arguments):
    with torch.no_grad():
        return model(**arguments).logits


# Law 1: no leak


@pytest.mark.grid
@all_variants
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_logits_depend_on_exactly_the_rows_up_to_their_own(variant, implementation):
    """Row r's logits have a gradient from row s's token if and only if s <= r: the target, row r + 1, is never seen."""
    model = tiny_model(variant, attn_implementation=implementation)
    rows = random_rows(variant, 1, 7)
    embeds = model.model.embed_tokens(rows.pop("input_ids")).detach().requires_grad_()
    logits = model(inputs_embeds=embeds, **rows).logits
    depends = torch.stack(
        [torch.autograd.grad(logits[0, r].norm(), embeds, retain_graph=True)[0][0].abs().amax(-1) for r in range(7)]
    )
    torch.testing.assert_close(depends > 0, torch.ones(7, 7).tril().bool())


def change_by_target(model, rows, r):
    """How much each row's logits change when row r's target becomes another one: `[rows]`."""
    targets = rows["target_position_ids"].clone()
    targets[0, r] = 40
    changed = logits_of(model, **{**rows, "target_position_ids": targets})
    return (changed - logits_of(model, **rows)).abs().amax(-1)[0]


@any_order_variants
def test_a_target_changes_no_earlier_row_and_its_own(variant):
    model, rows = tiny_model(variant), random_rows(variant, 1, 8)
    for r in range(8):
        change = change_by_target(model, rows, r)
        assert (change[:r] <= 1e-6).all()
        # Row 0 sees one key only, and a rotation changes no softmax over one score.
        assert change[r] > 1e-3 or r == 0


@two_stream_variants
def test_in_two_streams_a_target_changes_only_its_own_row(variant):
    model, rows = tiny_model(variant), random_rows(variant, 1, 8)
    for r in range(8):
        change = change_by_target(model, rows, r)
        assert (change[torch.arange(8) != r] <= 1e-6).all()
        assert change[r] > 1e-3 or r == 0


@pytest.mark.grid
@two_stream_variants
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_several_targets_of_a_row_are_answered_as_if_each_were_alone(variant, implementation):
    model = tiny_model(variant, attn_implementation=implementation)
    rows = random_rows(variant, 2, 6)
    targets = torch.randint(0, 20, (2, 6, 3), generator=torch.Generator().manual_seed(1))
    together = logits_of(model, **{**rows, "target_position_ids": targets})
    assert together.shape == (2, 6, 3, model.config.vocab_size)
    for k in range(3):
        alone = logits_of(model, **{**rows, "target_position_ids": targets[:, :, k]})
        torch.testing.assert_close(together[:, :, k], alone, atol=1e-5, rtol=0)


# Law 2: the chain rule


@pytest.mark.grid(pairs=False)
@all_variants
def test_probabilities_of_all_strings_sum_to_one_in_every_order(variant):
    """In every order that the variant has."""
    model = tiny_model(variant, vocab_size=3)
    strings = all_strings(3, 4)
    sentences = torch.cat([torch.zeros(len(strings), 1, dtype=torch.int64), strings], dim=1)
    for order in itertools.permutations(range(1, 5)) if variant != "causal" else [range(1, 5)]:
        total = chain_log_probs(model, sentences, torch.tensor([*order])).exp().sum()
        torch.testing.assert_close(total, torch.ones((), dtype=torch.float64), atol=1e-5, rtol=0)


def left_of(variant, sentences, target, seen):
    """`query_input_ids` `[batch, 1]` of a row that predicts column `target`, when the columns `seen` have been read."""
    if variant != "two_stream_neighbor":
        return {}
    tokens = sentences[:, [target - 1]]
    return {"query_input_ids": tokens if target - 1 in seen else torch.full_like(tokens, -1)}


@pytest.mark.grid(pairs=False)
@any_order_variants
def test_sequential_conditionals_multiply_to_the_joint(variant):
    """One row at a time on a cache, each conditional asked for by itself, against the one-pass joint."""
    model = tiny_model(variant, vocab_size=3)
    strings = all_strings(3, 3)
    sentences = torch.cat([torch.ones(len(strings), 1, dtype=torch.int64), strings], dim=1)
    for order in itertools.permutations(range(1, 4)):
        columns = (0, *order)
        cache, log_prob = DynamicCache(config=model.config), torch.zeros(len(strings), dtype=torch.float64)
        for own, target in zip(columns[:-1], columns[1:], strict=True):
            seen = columns[: columns.index(own) + 1]
            logits = logits_of(
                model,
                input_ids=sentences[:, [own]],
                position_ids=torch.tensor([[own]]),
                target_position_ids=torch.tensor([[target]]),
                past_key_values=cache,
                **left_of(variant, sentences, target, seen),
            )[:, -1]
            log_prob += logits.double().log_softmax(-1).gather(1, sentences[:, [target]])[:, 0]
        joint = chain_log_probs(model, sentences, torch.tensor(order))
        torch.testing.assert_close(log_prob, joint, atol=1e-5, rtol=0)


# Law 3: the cache


def padded_batch(variant, side):
    lengths = (9, 5, 7)
    return stack_rows(
        [pad_rows(random_rows(variant, 1, length, seed=length), max(lengths), side) for length in lengths]
    )


@pytest.mark.grid
@all_variants
@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("chunks", [(1,) * 9, (9,), (4, 5), (3, 1, 3, 2)], ids=str)
def test_cached_chunks_equal_one_uncached_pass(variant, padding, kind, chunks):
    model = tiny_model(variant)
    rows = random_rows(variant, 3, 9) if padding is None else padded_batch(variant, padding)
    mask = rows.pop("attention_mask", None)
    whole = logits_of(model, **rows, attention_mask=mask, use_cache=False)
    rows |= left_tokens(variant, **rows, attention_mask=mask)
    config = model.config
    cache = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=12)
    pieces, start = [], 0
    for size in chunks:
        stop = start + size
        piece = {name: value[:, start:stop] for name, value in rows.items()}
        seen = None if mask is None else mask[:, :stop]
        pieces.append(logits_of(model, **piece, attention_mask=seen, past_key_values=cache))
        start = stop
    cached = torch.cat(pieces, dim=1)
    real = torch.ones_like(rows["input_ids"]).bool() if mask is None else mask.bool()
    torch.testing.assert_close(cached[real], whole[real], atol=1e-5, rtol=0)
    assert cache.get_seq_length() == 9


@two_stream_variants
def test_in_two_streams_the_cache_does_not_depend_on_targets(variant):
    model = tiny_model(variant)
    rows = random_rows(variant, 2, 6)
    caches = []
    for shift in (0, 5):
        cache = DynamicCache(config=model.config)
        targets = rows["target_position_ids"] + shift
        logits_of(model, **{**rows, "target_position_ids": targets}, past_key_values=cache)
        caches.append(cache)
    for first, second in zip(caches[0].layers, caches[1].layers, strict=True):
        torch.testing.assert_close(first.keys, second.keys, atol=0, rtol=0)
        torch.testing.assert_close(first.values, second.values, atol=0, rtol=0)


@two_stream_variants
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_many_targets_are_scored_against_one_cache(variant, kind):
    """What confidence orders need: the last row asks for every remaining position after a cached context."""
    model = tiny_model(variant)
    rows = random_rows(variant, 2, 6)
    config = model.config
    cache = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=8)
    logits_of(model, **{name: value[:, :5] for name, value in rows.items()}, past_key_values=cache)
    targets = torch.arange(8).expand(2, 1, 8)
    last = {name: value[:, 5:] for name, value in rows.items()}
    last["target_position_ids"] = targets
    left = left_tokens(variant, **{**rows, "target_position_ids": torch.arange(8).expand(2, 6, 8)})
    last |= {name: value[:, 5:] for name, value in left.items()}
    scored = logits_of(model, **last, past_key_values=cache)
    for k in range(8):
        changed = rows["target_position_ids"].clone()
        changed[:, 5] = k
        whole = logits_of(model, **{**rows, "target_position_ids": changed})
        torch.testing.assert_close(scored[:, 0, k], whole[:, 5], atol=1e-5, rtol=0)


# Law 5: batch invariance


@pytest.mark.grid
@all_variants
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_logits_of_an_example_do_not_depend_on_its_neighbours_or_padding(variant, side, implementation):
    model = tiny_model(variant, attn_implementation=implementation)
    lengths = (9, 5, 7)
    examples = [random_rows(variant, 1, length, seed=length) for length in lengths]
    batch = stack_rows([pad_rows(example, 9, side) for example in examples])
    together = logits_of(model, **batch)
    reordered = logits_of(model, **{name: value.flip(0) for name, value in batch.items()}).flip(0)
    torch.testing.assert_close(together, reordered, atol=1e-5, rtol=0)
    for index, example in enumerate(examples):
        alone = logits_of(model, **example)[0]
        torch.testing.assert_close(together[index][batch["attention_mask"][index].bool()], alone, atol=1e-5, rtol=0)


@all_variants
def test_the_last_real_row_does_not_take_its_default_target_from_padding(variant):
    """The row after an example's last one is padding: its position, whatever it is, must not matter."""
    model = tiny_model(variant)
    rows = random_rows(variant, 1, 5)
    rows.pop("target_position_ids")
    alone = logits_of(model, **rows)
    for filler in (0, 31):
        padded = pad_rows(rows, 8, "right", filler=filler)
        padded["input_ids"][:, 5:] = 3
        torch.testing.assert_close(logits_of(model, **padded)[:, :5], alone, atol=1e-5, rtol=0)


@any_order_variants
def test_prepared_masks_tell_of_padding_too(variant):
    """A 4-D mask and the 2-D mask that it was made from give the same default targets."""
    model = tiny_model(variant)
    rows = random_rows(variant, 2, 5)
    rows.pop("target_position_ids")
    padded = pad_rows(rows, 8, "right")
    padded["input_ids"] = padded["input_ids"].clamp(max=22)
    real = padded["attention_mask"].bool()
    expected = logits_of(model, **padded)[real]
    sees = torch.ones(8, 8).tril().bool() & real[:, None, None, :]
    additive = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    for mask in (sees, additive):
        torch.testing.assert_close(logits_of(model, **{**padded, "attention_mask": mask})[real], expected)


@pytest.mark.grid(pairs=False)
@all_variants
@pytest.mark.parametrize("implementation", ["sdpa", "eager", pytest.param("flex_attention", marks=pytest.mark.full)])
def test_packed_sequences_equal_separate_ones(variant, implementation):
    model, separate_model = tiny_model(variant, attn_implementation=implementation), tiny_model(variant)
    examples = [random_rows(variant, 1, length, seed=length) for length in (5, 1, 4, 3)]
    packed = {name: torch.cat([example[name] for example in examples], dim=1) for name in examples[0]}
    segment_ids = torch.tensor([[4] * 5 + [2] + [9] * 4 + [2] * 3])
    together = logits_of(model, **packed, segment_ids=segment_ids)
    separate = torch.cat([logits_of(separate_model, **example) for example in examples], dim=1)
    torch.testing.assert_close(together, separate, atol=1e-5, rtol=0)
    # Positions start again in each segment by default, which may be longer together than the table.
    plain = logits_of(model, input_ids=packed["input_ids"], segment_ids=segment_ids)
    separate = torch.cat([logits_of(separate_model, input_ids=example["input_ids"]) for example in examples], dim=1)
    torch.testing.assert_close(plain, separate, atol=1e-5, rtol=0)
    # The last row of a segment takes its default target from its own segment, too.
    del packed["target_position_ids"]
    together = logits_of(model, **packed, segment_ids=segment_ids)
    without = [{name: example[name] for name in ("input_ids", "position_ids")} for example in examples]
    separate = torch.cat([logits_of(separate_model, **example) for example in without], dim=1)
    torch.testing.assert_close(together, separate, atol=1e-5, rtol=0)


@all_variants
def test_packed_sequences_may_be_padded(variant):
    model = tiny_model(variant)
    examples = [random_rows(variant, 1, length, seed=length) for length in (5, 4)]
    packed = {name: torch.cat([example[name] for example in examples], dim=1) for name in examples[0]}
    for side in ("left", "right"):
        padded = pad_rows(packed, 12, side)
        segment_ids = torch.nn.functional.pad(torch.tensor([[0] * 5 + [1] * 4]), (3, 0) if side == "left" else (0, 3))
        together = logits_of(model, **padded, segment_ids=segment_ids)[padded["attention_mask"].bool()]
        separate = torch.cat([logits_of(model, **example)[0] for example in examples])
        torch.testing.assert_close(together, separate, atol=1e-5, rtol=0)


# Law 8: gradients against the naive reference


REFERENCE_CASES = {
    "plain": {},
    "all_options": ALL_OPTIONS,
    "one_key_head": {"num_key_value_heads": 1},
    "one_layer": {"num_hidden_layers": 1},
}


@all_variants
@pytest.mark.parametrize("case", list(REFERENCE_CASES))
def test_outputs_and_gradients_equal_the_naive_reference(variant, case):
    model = tiny_model(variant, **REFERENCE_CASES[case])
    for parameter in model.parameters():
        # Biases and norms start at 0 and 1, where mistakes with them do not show.
        parameter.data += 0.05 * torch.randn(parameter.shape)
    rows = random_rows(variant, 2, 7)
    labels = rows["input_ids"].clone()
    labels[0, :3] = -100
    reference = Reference(model)
    expected = reference.logits(**rows)
    logits = model(**rows).logits
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=1e-4)

    scored = labels[:, 1:] != -100
    expected_loss = torch.nn.functional.cross_entropy(expected[:, :-1][scored], labels[:, 1:][scored])
    loss = model(**rows, labels=labels).loss
    torch.testing.assert_close(loss.double(), expected_loss, atol=1e-5, rtol=0)
    loss.backward()
    expected_loss.backward()
    for name, parameter in model.named_parameters():
        expected_gradient = reference.parameters[name].grad
        scale = expected_gradient.abs().max()
        assert scale > 0, name
        gradient = parameter.grad.double()
        torch.testing.assert_close(gradient / scale, expected_gradient / scale, atol=1e-4, rtol=0)


@pytest.mark.grid
@all_variants
@pytest.mark.parametrize("layout", ["left", "right", "packed"])
def test_outputs_and_gradients_equal_the_naive_reference_on_padded_and_packed_rows(variant, layout):
    model = tiny_model(variant)
    if layout == "packed":
        segments = torch.tensor([[0] * 4 + [1] * 5, [3] * 7 + [2] * 2])
        rows = {
            name: torch.stack(
                [torch.cat([random_rows(variant, 1, n)[name][0] for n in sizes]) for sizes in ((4, 5), (7, 2))]
            )
            for name in ("input_ids", "position_ids", "target_position_ids")
        }
        extra, real = {"segment_ids": segments}, torch.ones_like(segments).bool()
        visible = segments[:, :, None] == segments[:, None, :]
    else:
        rows = padded_batch(variant, layout)
        rows["input_ids"] = rows["input_ids"].clamp(max=22)
        extra = {"attention_mask": rows.pop("attention_mask")}
        real = extra["attention_mask"].bool()
        visible = real[:, :, None] & real[:, None, :]
    reference = Reference(model)
    expected = reference.logits(**rows, visible=visible)
    logits = model(**rows, **extra).logits
    torch.testing.assert_close(logits.double()[real], expected[real], atol=1e-4, rtol=1e-4)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)) * real[..., None]
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in model.named_parameters():
        gradient = reference.parameters[name].grad
        scale = gradient.abs().max()
        torch.testing.assert_close(parameter.grad.double() / scale, gradient / scale, atol=1e-4, rtol=0)


@all_variants
def test_two_training_steps_change_every_parameter(variant):
    model = tiny_model(variant, attention_bias=True, attention_output_bias=True, mlp_bias=True, qk_norm=True).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = random_rows(variant, 4, 12)
    for _ in range(2):
        optimizer.zero_grad()
        model(**rows, labels=rows["input_ids"]).loss.backward()
        optimizer.step()
    same = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert same == []


@pytest.mark.grid
@all_variants
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_no_gradient(variant, reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(variant).train()
        if checkpointing:
            checkpoint_activations(model, {"use_reentrant": reentrant})
        rows = random_rows(variant, 2, 7)
        model(**rows, labels=rows["input_ids"]).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


# Law 9: backends


@pytest.mark.grid(pairs=False, seldom="flex_attention")
@all_variants
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_attention_backends_agree(variant, implementation, padding):
    rows = random_rows(variant, 3, 9) if padding is None else padded_batch(variant, padding)
    real = rows.get("attention_mask", torch.ones_like(rows["input_ids"])).bool()
    expected, actual = (
        logits_of(tiny_model(variant, attn_implementation=name), **rows)[real] for name in ("sdpa", implementation)
    )
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@all_variants
def test_bfloat16_is_float32_within_its_error(variant):
    model = tiny_model(variant, initializer_range=0.1)
    rows = random_rows(variant, 2, 9)
    exact = logits_of(model, **rows)
    # As much as rounding the weights alone may cost, a few times over.
    rounded = tiny_model(variant, initializer_range=0.1)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    allowed = 6 * (logits_of(rounded, **rows) - exact).abs().max()
    assert (logits_of(model.bfloat16(), **rows).float() - exact).abs().max() <= allowed


@pytest.mark.grid(pairs=False, seldom="inductor")
@all_variants
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_uncompiled(variant, backend):
    torch._dynamo.reset()
    model = tiny_model(variant, num_hidden_layers=2)
    rows = random_rows(variant, 2, 9)
    expected = model(**rows, labels=rows["input_ids"], use_cache=False)
    expected.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    actual = compiled(**rows, labels=rows["input_ids"], use_cache=False)
    actual.loss.backward()
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", SINGLE_STREAM)
def test_single_stream_outputs_name_no_content_stream(variant):
    model = tiny_model(variant, attn_implementation="eager")
    output = model(**random_rows(variant, 2, 5), output_hidden_states=True, output_attentions=True)
    assert output.content_hidden_states is None and output.content_attentions is None
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 5, 32)] * 4
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 5, 5)] * 3


@two_stream_variants
def test_two_stream_outputs_name_both_streams(variant):
    model = tiny_model(variant, attn_implementation="eager")
    rows = random_rows(variant, 2, 5)
    output = model(**rows, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 5, 32)] * 4
    assert [tuple(state.shape) for state in output.content_hidden_states] == [(2, 5, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 5, 5)] * 3
    assert [tuple(weights.shape) for weights in output.content_attentions] == [(2, 4, 5, 5)] * 2
    # Targets are the business of the query stream alone.
    moved = {**rows, "target_position_ids": rows["target_position_ids"] + 3}
    other = model(**moved, output_hidden_states=True, output_attentions=True)
    for name in ("content_hidden_states", "content_attentions"):
        for first, second in zip(output[name], other[name], strict=True):
            torch.testing.assert_close(first, second, atol=0, rtol=0)
    assert not torch.allclose(output.attentions[0], other.attentions[0])
    torch.testing.assert_close(output.content_hidden_states[0], model.model.embed_tokens(rows["input_ids"]))
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
    several = {**rows, "target_position_ids": rows["target_position_ids"][..., None].expand(2, 5, 3)}
    several = model(**several, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in several.hidden_states] == [(2, 5, 3, 32)] * 4
    assert [tuple(weights.shape) for weights in several.attentions] == [(2, 3, 4, 5, 5)] * 3
    for k in range(3):
        for index in range(3):
            torch.testing.assert_close(several.attentions[index][:, k], output.attentions[index], atol=1e-6, rtol=0)


# What the attention interface is given


class Spy:
    """An attention backend that keeps what it was called with and answers as sdpa does."""

    def __init__(self, monkeypatch, name):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self.calls = []

        def attend(module, query, key, value, attention_mask, **kwargs):
            self.calls.append({"query": query.shape, "key": key.shape, "mask": attention_mask, **kwargs})
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=kwargs["scaling"])

        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, attend)
        monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, name, flash_attention_mask)


@all_variants
def test_all_streams_are_one_call_without_a_mask_tensor(variant, monkeypatch):
    """One call a layer, on keys that are not repeated, and it is told nothing of permuted positions."""
    spy = Spy(monkeypatch, "spy")
    model = tiny_model(variant)
    model.config._attn_implementation = "spy"
    logits_of(model, **random_rows(variant, 2, 9))
    streams = [2, 2, 1] if variant.startswith("two_stream") else [1, 1, 1]
    assert [tuple(call["query"]) for call in spy.calls] == [(2, 4 * number, 9, 8) for number in streams]
    assert all(tuple(call["key"]) == (2, 2, 9, 8) and call["mask"] is None for call in spy.calls)
    assert all("position_ids" not in call for call in spy.calls)


@all_variants
def test_flash_kernels_are_told_where_packed_segments_start(variant, monkeypatch):
    spy = Spy(monkeypatch, "flash_attention_2")
    model = tiny_model(variant)
    model.config._attn_implementation = "flash_attention_2"
    segment_ids = torch.tensor([[0, 0, 0, 1, 1], [5, 6, 6, 6, 6]])
    logits_of(model, input_ids=torch.zeros(2, 5, dtype=torch.int64), segment_ids=segment_ids)
    for call in spy.calls:
        assert call["mask"] is None
        assert call["cu_seq_lens_q"].tolist() == call["cu_seq_lens_k"].tolist() == [0, 3, 5, 6, 10]
        assert call["max_length_q"] == call["max_length_k"] == 4


@all_variants
def test_attention_dropout_acts_in_training_only(variant, monkeypatch):
    spy = Spy(monkeypatch, "spy")
    model = tiny_model(variant, attention_dropout=0.25)
    model.config._attn_implementation = "spy"
    logits_of(model.train(), **random_rows(variant, 1, 3))
    logits_of(model.eval(), **random_rows(variant, 1, 3))
    assert [call["dropout"] for call in spy.calls] == [0.25] * 3 + [0.0] * 3
