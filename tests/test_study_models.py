# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The study's controls, its orders and what models predict in them."""

import itertools

import pytest
import torch
from tradeoff_study.models import MODELS, READS_PREFIXES, study_model
from tradeoff_study.predictions import (
    draw_orders,
    draw_prefixes,
    model_inputs,
    order_lags,
    predict,
    prefix_weights,
    token_nll,
)

from modeling_aoarm.data.orders import sample_orders


SIZES = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3)
SYMBOLS, LENGTH, BATCH = 5, 7, 3


def make(name, seed=0):
    return study_model(name, SYMBOLS, LENGTH, seed, **SIZES)


def batch(order="uniform", seed=0, count=BATCH):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(SYMBOLS, (count, LENGTH), generator=generator)
    return tokens, draw_orders(order, count, LENGTH, seed)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in MODELS if name not in READS_PREFIXES])
def test_a_row_depends_on_the_rows_before_it_and_on_nothing_else(name):
    model = make(name)
    tokens, order = batch("left_to_right" if name == "causal" else "uniform")
    before = predict(model, tokens, order)
    for row in range(LENGTH):
        changed = tokens.clone()
        changed.scatter_(1, order[:, row, None], (tokens.gather(1, order[:, row, None]) + 1) % SYMBOLS)
        after = predict(model, changed, order)
        assert torch.equal(before[:, : row + 1], after[:, : row + 1])
        if row + 1 < LENGTH:
            assert not torch.allclose(before[:, row + 1 :], after[:, row + 1 :])


@torch.no_grad()
@pytest.mark.parametrize("name", READS_PREFIXES)
def test_a_prefix_is_a_set(name):
    """What is predicted does not depend on the order of what is observed, nor on what is not observed."""
    model = make(name)
    tokens, order = batch()
    observed = torch.tensor([4, 4, 4])
    before = predict(model, tokens, order, observed)[:, 4:]
    other_order = torch.cat([order[:, [2, 0, 3, 1]], order[:, 4:]], dim=1)
    assert torch.allclose(predict(model, tokens, other_order, observed)[:, 4:], before, atol=1e-5)
    hidden = tokens.scatter(1, order[:, 4:], (tokens.gather(1, order[:, 4:]) + 1) % SYMBOLS)
    assert torch.equal(predict(model, hidden, order, observed)[:, 4:], before)
    seen = tokens.scatter(1, order[:, :1], (tokens.gather(1, order[:, :1]) + 1) % SYMBOLS)
    assert not torch.allclose(predict(model, seen, order, observed)[:, 4:], before)


@torch.no_grad()
def test_bidirectional_content_shows_the_prefix_to_itself():
    """With one observed symbol there is nothing that causality hides; with two there is."""
    causal, control = make("two_stream_learned"), make("bidirectional_content")
    tokens, order = batch()
    plain = predict(causal, tokens, order)
    for observed in range(LENGTH):
        prefix = torch.full((BATCH,), observed)
        row = predict(control, tokens, order, prefix)[:, observed]
        # The first row, the beginning of the sentence, sees the later ones from one observed symbol on.
        assert torch.allclose(row, plain[:, observed], atol=1e-5) == (observed == 0)


@torch.no_grad()
def test_strict_content_never_attends_to_itself():
    """Against attention with weights written out: content rows see the rows before them, the first row itself."""
    control = make("strict_content")
    causal = make("two_stream_content")
    causal.set_attn_implementation("eager")
    rows = torch.arange(LENGTH)
    seen = rows <= rows[:, None]
    before = (rows < rows[:, None]) | (rows + rows[:, None] == 0)

    def mask(module, arguments, kwargs):
        streams = (before, seen)[-len(arguments[0]) :]
        added = torch.zeros(LENGTH * len(streams), LENGTH).masked_fill(~torch.cat(streams), -1e30)
        return arguments, kwargs | {"attention_mask": added[None, None]}

    for layer in causal.model.layers:
        layer.self_attn.register_forward_pre_hook(mask, with_kwargs=True)
    tokens, order = batch()
    found = predict(control, tokens, order)
    assert torch.allclose(found, predict(causal, tokens, order), atol=1e-5)
    assert not torch.allclose(found, predict(make("two_stream_content"), tokens, order), atol=1e-2)
    inputs = model_inputs(control, tokens, order)
    for name, arguments in (("attention_mask", {"attention_mask": (tokens >= 0).long() * 0}), ("key_values", {})):
        with pytest.raises(ValueError, match=f"`{name}` must be None for the control `strict_content`"):
            control(**inputs, **arguments, use_cache=name == "key_values")


def test_half_the_heads_are_rotated_by_the_own_position():
    control = make("half_own").model
    single, causal = make("decoupled_rope").model, make("causal").model
    inputs = model_inputs(make("decoupled_rope"), *batch())
    places = inputs["position_ids"], inputs["target_position_ids"][..., None]
    streams = torch.zeros(1, BATCH, LENGTH, SIZES["hidden_size"])
    (mixed, keys), (by_target, _), (by_own, own_keys) = (
        model.rotations(streams, *places) for model in (control, single, causal)
    )
    for part in range(2):
        assert mixed[part].shape[-2] == SIZES["num_attention_heads"]
        assert all(torch.equal(mixed[part][..., head, :], by_target[part][..., 0, :]) for head in (0, 1))
        assert all(torch.equal(mixed[part][..., head, :], by_own[part][..., 0, :]) for head in (2, 3))
        assert torch.equal(keys[part], own_keys[part])
    assert isinstance(control, type(single))
    names = [set(dict(model.named_parameters())) for model in (control, single)]
    assert names[0] == names[1]


@torch.no_grad()
def test_layers_twice_is_the_stack_applied_twice():
    once, twice = make("decoupled_rope"), make("layers_twice")
    assert sum(each.numel() for each in twice.parameters()) == sum(each.numel() for each in once.parameters())
    tokens, order = batch()
    inputs = model_inputs(once, tokens, order)
    states = once.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    assert len(states) == 3
    # The first pass through the stack is that of the single one; the second starts from its end, before the norm.
    again = twice.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    assert torch.allclose(again[1], states[1], atol=1e-6)

    ends = []
    hook = once.model.norm.register_forward_pre_hook(lambda module, args: ends.append(args[0]))
    once.model(**inputs, use_cache=False)
    hook.remove()
    places = inputs["position_ids"], inputs["target_position_ids"][..., None]
    rotations = once.model.rotations(ends[0], *places)
    predicting, content = ends[0], None
    for layer in once.model.layers:
        predicting, content = layer(predicting, content, *rotations, attention_mask=None)
    assert torch.allclose(once.lm_head(once.model.norm(predicting)), predict(twice, tokens, order), atol=1e-5)


@torch.no_grad()
def test_layers_twice_has_a_cache():
    model = make("layers_twice")
    tokens, order = batch()
    inputs = model_inputs(model, tokens, order)
    whole, cache = model(**inputs, use_cache=False).logits, None
    for row in range(LENGTH):
        part = {name: value[:, row : row + 1] for name, value in inputs.items()}
        outputs = model(**part, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        assert torch.allclose(outputs.logits[:, 0], whole[:, row], atol=1e-5)


def test_one_seed_is_one_start():
    """The minimal pair starts from the same weights."""
    pair = [dict(make(name, seed=3).named_parameters()) for name in ("decoupled_rope", "two_stream_content")]
    assert set(pair[0]) == set(pair[1])
    assert all(torch.equal(value, pair[1][name]) for name, value in pair[0].items())
    other = dict(make("decoupled_rope", seed=4).named_parameters())
    assert not torch.equal(other["lm_head.weight"], pair[0]["lm_head.weight"])


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match="`name` must be one of .* got 'three_stream'"):
        make("three_stream")


@pytest.mark.parametrize(
    ("order", "is_random"),
    [("uniform", True), ("windowed(3)", True), ("local(2)", True)]
    + [(order, False) for order in ("fixed", "strided(3)", "left_to_right", "fractal", "local(0)", "windowed(1)")],
)
def test_orders_are_permutations_and_a_function_of_seed_and_example(order, is_random):
    drawn = draw_orders(order, 50, LENGTH)
    assert torch.equal(drawn.sort(dim=1).values, torch.arange(LENGTH).expand(50, -1))
    assert (len(drawn.unique(dim=0)) > 1) == is_random
    assert torch.equal(drawn[20:30], draw_orders(order, 10, LENGTH, first_example=20))
    assert torch.equal(drawn, draw_orders(order, 50, LENGTH, seed=1)) == (not is_random)


def test_orders_are_those_of_the_library_or_one_for_all():
    for order in ("uniform", "local(2)", "strided(3)"):
        expected = sample_orders(order, [LENGTH] * 5, example_indices=range(3, 8), seed=2).columns
        assert torch.equal(draw_orders(order, 5, LENGTH, seed=2, first_example=3), expected)
    fixed = draw_orders("fixed", 1, 64)
    assert not torch.equal(fixed[0], torch.arange(64))
    with pytest.raises(ValueError, match="must be one without context, got 'lattice'"):
        draw_orders("lattice", 2, LENGTH)


def test_lags_are_those_of_a_slow_count():
    _, order = batch(count=20)
    lags, distances = [], []
    for sentence in order.tolist():
        for row in range(1, LENGTH):
            candidates = [(abs(sentence[back] - sentence[row]), row - back) for back in range(row)]
            distance, lag = min(candidates)
            lags.append(lag)
            distances.append(distance)
    expected = sum(lags) / len(lags), sum(distances) / len(distances)
    assert order_lags(order) == pytest.approx(expected)
    assert order_lags(torch.arange(LENGTH)[None]) == (1, 1)


def test_prefixes_are_spread_evenly():
    drawn = draw_prefixes(LENGTH * 4, LENGTH, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.bincount(minlength=LENGTH), torch.full((LENGTH,), 4))


@torch.no_grad()
@pytest.mark.parametrize("name", READS_PREFIXES)
def test_prefix_estimates_are_unbiased(name):
    """Averaged over all prefixes and orders, both weightings of rows give the mean likelihood in uniform orders."""
    length = 3
    model = study_model(name, SYMBOLS, length, 0, **SIZES)
    orders = torch.tensor(list(itertools.permutations(range(length))))
    tokens = torch.tensor([[3, 0, 4]]).expand(len(orders), -1)
    exact, estimates = [], {"elbo": [], "next": []}
    for number in range(length):
        observed = torch.full((len(orders),), number)
        nll = token_nll(predict(model, tokens, orders, observed), tokens, orders)
        exact.append(nll[:, number])
        estimates["elbo"].append((nll * prefix_weights(observed, length, True)).mean(1))
        estimates["next"].append((nll * prefix_weights(observed, length, False)).mean(1))
    expected = float(torch.stack(exact).mean())
    for found in estimates.values():
        assert float(torch.stack(found).mean()) == pytest.approx(expected, rel=1e-5)
