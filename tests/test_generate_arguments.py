# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What `generate` takes besides orders: appended blanks, context orders, streamers, generation configs, defaults."""

import json

import pytest
import torch
from canvases import WAYS, check_filling, conditional, ragged_canvases, replay
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TextDiffusionStreamer,
)
from variants import all_variants, any_order_variants, tiny_model

from modeling_aoarm import AOARMGenerationConfig
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.decoding_aoarm import resolve_decoding_options


# Appended blanks


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_blanks", [True, False])
def test_max_new_tokens_appends_blanks(variant, side, with_blanks):
    model = tiny_model(variant)
    canvases = ragged_canvases(side)
    if not with_blanks:
        canvases["generation_mask"] = None
    how = {"decoding_order": "random", "return_dict_in_generate": True}
    torch.manual_seed(0)
    output = model.generate(**canvases, **how, max_new_tokens=3)
    assert output.sequences.shape == (4, 12)
    mask = torch.zeros(4, 9, dtype=torch.bool) if canvases["generation_mask"] is None else canvases["generation_mask"]
    longer = {
        "input_ids": torch.nn.functional.pad(canvases["input_ids"], (0, 3)),
        "generation_mask": torch.nn.functional.pad(mask, (0, 3), value=True),
        "attention_mask": torch.nn.functional.pad(canvases["attention_mask"], (0, 3), value=1),
    }
    check_filling(longer, output)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**longer, **how).sequences, output.sequences)


@all_variants
def test_appended_blanks_from_left_to_right_are_stock_generation(variant):
    model = tiny_model(variant, pad_token_id=0)
    prompt = torch.randint(3, 23, (3, 5), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(prompt)
    attention_mask[1, :2] = 0
    how = {"attention_mask": attention_mask, "do_sample": False}
    stock = model.generate(prompt, max_new_tokens=6, **how)
    no_blanks = torch.zeros(3, 5, dtype=torch.bool)
    assert torch.equal(model.generate(prompt, max_new_tokens=6, generation_mask=no_blanks, **how), stock)
    if variant != "causal":
        assert torch.equal(model.generate(prompt, max_new_tokens=6, draft_length=3, **how), stock)


def test_only_the_calls_own_max_new_tokens_counts_with_blanks():
    model = tiny_model("two_stream")
    canvases = ragged_canvases()
    expected = model.generate(**canvases)
    model.generation_config.max_new_tokens = 4
    assert torch.equal(model.generate(**canvases), expected)
    assert model.generate(canvases["input_ids"]).shape == (4, 13)
    config = GenerationConfig(max_new_tokens=2)
    assert torch.equal(model.generate(**canvases, generation_config=config), expected)


def test_appended_blanks_have_to_fit_the_table():
    model = tiny_model("two_stream", max_position_embeddings=10)
    canvases = ragged_canvases()
    assert model.generate(**canvases, max_new_tokens=1).shape == (4, 10)
    with pytest.raises(ValueError, match=r"max_position_embeddings=10.*the 2 of `max_new_tokens`.*\[0\]"):
        model.generate(**canvases, max_new_tokens=2)
    for value in (0, -1, 1.5, "3"):
        with pytest.raises(ValueError, match=f"max_new_tokens.*{value}"):
            model.generate(**canvases, max_new_tokens=value)


# Context orders


@any_order_variants
def test_the_context_comes_in_the_order_that_is_asked_for(variant):
    model = tiny_model(variant)
    canvas = torch.tensor([[4, 9, 0, 7, 11]])
    blanks = torch.tensor([[False, False, True, False, False]])
    order = [3, 0, 4, 1]
    output = model.generate(
        canvas, generation_mask=blanks, context_order=torch.tensor([order]), return_dict_in_generate=True
    )
    answer = conditional(model, canvas[0, order], torch.tensor(order), 2)
    assert output.sequences[0, 2] == answer.argmax()
    torch.testing.assert_close(output.logprobs[0, 0], answer.max(), atol=1e-5, rtol=0)
    scores = model.score(output.sequences, blanks, context_order=torch.tensor([order]))
    torch.testing.assert_close(scores.log_likelihood[0], output.logprobs[:, 0], atol=1e-5, rtol=0)
    # It matters, and left to right is the default.
    plain = model.score(output.sequences, blanks)
    assert (plain.log_likelihood - scores.log_likelihood).abs() > 1e-3
    sorted_order = torch.tensor([[0, 1, 3, 4]])
    torch.testing.assert_close(
        model.score(output.sequences, blanks, context_order=sorted_order).log_likelihood, plain.log_likelihood
    )


@pytest.mark.parametrize(
    ("context_order", "message"),
    [
        ("random", "context_order.*'left_to_right', 'suffix_first'.*'random'"),
        (torch.tensor([[0, 1, 3, 3]]), "context_order.*exactly once"),
        (torch.tensor([[0, 1, 3, 2]]), "context_order.*exactly once"),
        (torch.tensor([[0, 1, 3]]), r"context_order.*4 given columns.*\[1, 3\]"),
        (torch.tensor([[0.0, 1.0, 3.0, 4.0]]), "context_order.*int64.*float32"),
    ],
)
def test_context_orders_are_checked(context_order, message):
    model = tiny_model("two_stream")
    blanks = torch.tensor([[False, False, True, False, False]])
    canvas = torch.zeros(1, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        model.generate(canvas, generation_mask=blanks, context_order=context_order)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        model.score(canvas, blanks, context_order=context_order)


def suffix_first_columns(canvases):
    """First token, then what is right of the first blank, then what is left of it: int64 `[batch, given]`."""
    orders = []
    for real, blank in zip(canvases["attention_mask"].bool(), canvases["generation_mask"], strict=True):
        columns, blanks = real.nonzero().flatten().tolist(), blank.nonzero().flatten().tolist()
        given = [column for column in columns if column not in blanks]
        right = [column for column in given if blanks and column > blanks[0] and column != columns[0]]
        orders.append([column for column in given if column == columns[0]] + right)
        orders[-1] += [column for column in given if column not in orders[-1]]
    width = max(map(len, orders))
    return torch.tensor([order + [-1] * (width - len(order)) for order in orders])


@any_order_variants
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_suffix_comes_first_where_it_is_asked_for(variant, side):
    model, canvases = tiny_model(variant), ragged_canvases(side)
    columns = suffix_first_columns(canvases)
    assert (columns[0] != columns[0].sort().values).any()
    ways = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    expected = model.generate(**canvases, context_order=columns, **ways)
    named = model.generate(**canvases, context_order="suffix_first", **ways)
    plain = model.generate(**canvases, **ways)
    assert torch.equal(named.sequences, expected.sequences)
    torch.testing.assert_close(named.logprobs, expected.logprobs)
    assert not torch.equal(named.logprobs, plain.logprobs)
    filled = {**canvases, "input_ids": named.sequences}
    scores = model.score(**filled, decoding_order=named.decoding_order, context_order="suffix_first")
    torch.testing.assert_close(scores.log_likelihood[0], named.logprobs.sum(1), atol=1e-4, rtol=0)


@any_order_variants
def test_the_context_order_is_a_default_of_the_model_that_a_call_may_change(variant, tmp_path):
    model, canvases = tiny_model(variant), ragged_canvases()
    results = {}
    for order in ("left_to_right", "suffix_first"):
        output = model.generate(**canvases, context_order=order, eos_token_id=None, return_dict_in_generate=True)
        scores = model.score(
            canvases["input_ids"], **without_ids(canvases), decoding_order="left_to_right", context_order=order
        )
        results[order] = output.logprobs, scores.log_likelihood
    assert not any(map(torch.equal, *results.values()))
    model.generation_config.context_order = "suffix_first"
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    config = AOARMGenerationConfig(context_order="left_to_right")
    for call, expected in (
        ({}, "suffix_first"),
        ({"generation_config": config}, "left_to_right"),
        ({"generation_config": config, "context_order": "suffix_first"}, "suffix_first"),
    ):
        output = loaded.generate(**canvases, **call, eos_token_id=None, return_dict_in_generate=True)
        torch.testing.assert_close(output.logprobs, results[expected][0])
    scores = loaded.score(canvases["input_ids"], **without_ids(canvases), decoding_order="left_to_right")
    torch.testing.assert_close(scores.log_likelihood, results["suffix_first"][1])
    # Text without blanks and canvases that continue a cache have no context to order.
    text = canvases["input_ids"][:1, -4:]
    assert torch.equal(loaded.generate(text, max_new_tokens=2), model.generate(text, max_new_tokens=2))
    first = loaded.generate(**canvases, eos_token_id=None, return_dict_in_generate=True)
    longer = {
        **canvases,
        "input_ids": first.sequences,
        "generation_mask": torch.zeros_like(canvases["generation_mask"]),
    }
    loaded.generate(**longer, max_new_tokens=2, past_key_values=first.past_key_values)


def without_ids(canvases):
    return {name: value for name, value in canvases.items() if name != "input_ids"}


def test_a_default_context_order_is_checked():
    with pytest.raises(ValueError, match="context_order.*'left_to_right', 'suffix_first' or None.*'backwards'"):
        AOARMGenerationConfig(context_order="backwards")


# Streamers


class Recorder:
    """A streamer that keeps what it is sent."""

    def __init__(self, takes_state):
        self._takes_canvas_state = takes_state
        self.calls = []

    def put(self, value):
        self.calls.append(("put", value.clone()))

    def put_draft(self, value, **state):
        self.calls.append(("draft", value.clone(), state))

    def end(self):
        self.calls.append(("end",))


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize(
    "way",
    [{"decoding_order": "random"}, {"decoding_order": "margin", "tokens_per_step": 2}, {"draft_length": 2}],
    ids=str,
)
def test_streamers_see_each_pass(variant, way):
    model = tiny_model(variant, mask_token_id=1)
    canvases = ragged_canvases("left")
    recorder = Recorder(takes_state=True)
    output = model.generate(**canvases, **way, streamer=recorder, return_dict_in_generate=True)
    kinds = [call[0] for call in recorder.calls]
    # The pass that only reads the context fills nothing and is not shown.
    shown = len(kinds) - 3
    assert kinds == ["put", *["draft"] * shown, "put", "end"] and shown in (
        output.forward_passes,
        output.forward_passes - 1,
    )
    masked = canvases["input_ids"].masked_fill(canvases["generation_mask"], 1)
    assert torch.equal(recorder.calls[0][1], masked) and torch.equal(recorder.calls[-2][1], output.sequences)
    steps = torch.full((4, 9), -1)
    probabilities = torch.full((4, 9), torch.nan)
    for row, order in enumerate(output.decoding_order):
        columns = order[order >= 0]
        steps[row, columns] = output.decoding_steps[row, : len(columns)]
        probabilities[row, columns] = output.logprobs[row, : len(columns)].exp()
    for number, (_, value, state) in enumerate(recorder.calls[1:-2], output.forward_passes - shown):
        filled = ~canvases["generation_mask"] | ((steps >= 0) & (steps <= number))
        assert torch.equal(state["filled"], filled)
        assert torch.equal(value[filled], output.sequences[filled])
        known = filled & (steps >= 0)
        assert torch.equal(state["steps"], steps.masked_fill(~known, -1))
        expected = probabilities.masked_fill(~known, torch.nan)
        torch.testing.assert_close(state["confidence"], expected, equal_nan=True)
        assert not (state["drafted"] & filled).any()
        untouched = ~filled & ~state["drafted"]
        assert "draft_length" in way or (value[untouched] == 1).all()
        assert "draft_length" in way or not state["drafted"].any()
    if "draft_length" in way:
        assert any(state["drafted"].any() for _, _, state in recorder.calls[1:-3])


@any_order_variants
def test_the_librarys_diffusion_streamer_shows_canvases(variant, capsys):
    tokenizer = character_tokenizer(["the cat sat"])
    model = tiny_model(variant, vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id)
    canvas = tokenizer("the cat sat", return_tensors="pt", add_special_tokens=False).input_ids
    blanks = torch.zeros_like(canvas, dtype=torch.bool)
    blanks[0, 4:7] = True
    filled = model.generate(canvas, generation_mask=blanks, streamer=TextDiffusionStreamer(tokenizer, skip_prompt=True))
    assert tokenizer.decode(filled[0]) in capsys.readouterr().out


def test_a_streamer_is_ended_when_generation_fails():
    class Breaks(Recorder):
        def put_draft(self, value):
            raise RuntimeError("the terminal is gone")

    streamer = Breaks(takes_state=False)
    with pytest.raises(RuntimeError, match="the terminal is gone"):
        tiny_model("two_stream").generate(**ragged_canvases(), streamer=streamer)
    assert streamer.calls[-1] == ("end",)


def test_a_progress_bar_counts_filled_blanks(capsys):
    model = tiny_model("two_stream")
    model.generate(**ragged_canvases())
    assert capsys.readouterr().err == ""
    model.generate(**ragged_canvases(), draft_length=2, progress_bar=True)
    assert "13/13" in capsys.readouterr().err


# Generation configs


@all_variants
def test_defaults_travel_with_the_model(variant, tmp_path):
    model = tiny_model(variant, eos_token_id=2, pad_token_id=1)
    assert isinstance(model.generation_config, AOARMGenerationConfig)
    model.generation_config.decoding_order = "entropy"
    model.generation_config.tokens_per_step = "cosine(4)"
    for generation in range(2):
        folder = tmp_path / str(generation)
        model.save_pretrained(folder)
        saved = json.loads((folder / "generation_config.json").read_text())
        assert saved["decoding_order"] == "entropy" and "_from_model_config" not in saved
        model = AutoModelForCausalLM.from_pretrained(folder)
        config = model.generation_config
        assert type(config) is AOARMGenerationConfig
        assert (config.decoding_order, config.tokens_per_step, config.draft_length) == ("entropy", "cosine(4)", None)
        assert (config.eos_token_id, config.pad_token_id) == (2, 1)
    assert AOARMGenerationConfig.from_pretrained(folder).decoding_order == "entropy"
    # The library's own class keeps the entries, and `generate` reads them from it.
    assert GenerationConfig.from_pretrained(folder).decoding_order == "entropy"


@any_order_variants
def test_the_call_wins_over_the_generation_config_and_that_over_the_models(variant):
    model = tiny_model(variant)
    canvases = ragged_canvases()

    def passes(**kwargs):
        return model.generate(**canvases, return_dict_in_generate=True, **kwargs).forward_passes

    one_by_one, all_at_once = 6, 2
    assert passes() == one_by_one
    model.generation_config.tokens_per_step = 9
    assert passes() == all_at_once
    assert passes(tokens_per_step=1) == one_by_one
    plain = GenerationConfig()
    plain.tokens_per_step = 1
    for config in (AOARMGenerationConfig(tokens_per_step=1), plain):
        assert passes(generation_config=config) == one_by_one
        assert passes(generation_config=config, tokens_per_step=9) == all_at_once
    # What the call says also replaces what it excludes.
    drafted = model.generate(**canvases, draft_length=3, return_dict_in_generate=True)
    one = model.generate(**canvases, tokens_per_step=1, return_dict_in_generate=True)
    assert torch.equal(drafted.sequences, one.sequences)
    model.generation_config.tokens_per_step = None
    model.generation_config.decoding_order = "confidence"
    assert torch.equal(model.generate(**canvases, draft_length=2), one.sequences)
    assert not torch.equal(model.generate(**canvases), one.sequences)


def test_ways_of_decoding_are_chosen_level_by_level():
    def level(order=None, tokens=None, drafts=None):
        return {"decoding_order": order, "tokens_per_step": tokens, "draft_length": drafts}

    for levels, expected in (
        ([level(), level()], level()),
        ([level(), level("entropy", 2)], level("entropy", 2)),
        ([level("random"), level("entropy", 2)], level("random", 2)),
        ([level("entropy"), level(drafts=3)], level("entropy")),
        ([level(drafts=3), level("entropy", 2)], level(drafts=3)),
        ([level(drafts=3), level("random", 2)], level("random", drafts=3)),
        ([level(tokens=1), level("random", drafts=3)], level("random", 1)),
        ([level(), level(drafts=2), level("random", tokens=3)], level("random", drafts=2)),
        ([level(), level(tokens=2), level("random", drafts=3)], level("random", 2)),
        ([level(tokens="threshold(0.9)"), level("random", drafts=3)], level(tokens="threshold(0.9)")),
        ([level(tokens="entropy(0.1)"), level("margin", 2)], level("margin", "entropy(0.1)")),
        ([level("random"), level("margin", "entropy(0.1)")], level("random")),
        ([level(drafts=3), level(tokens="entropy(0.1)")], level(drafts=3)),
    ):
        assert resolve_decoding_options(*levels) == expected
    with pytest.raises(ValueError, match="draft_length.*entropy"):
        resolve_decoding_options(level(), level("entropy", drafts=2))


def test_a_call_with_its_own_config_uses_the_configs_drafts():
    model = tiny_model("two_stream")
    model.generation_config.tokens_per_step = 3
    canvases = ragged_canvases()
    expected = model.generate(**canvases, draft_length=2, return_dict_in_generate=True)
    for config in (
        AOARMGenerationConfig(draft_length=2),
        AOARMGenerationConfig(draft_length=2, decoding_order="random"),
    ):
        torch.manual_seed(0)
        output = model.generate(
            **canvases, generation_config=config, decoding_order="left_to_right", return_dict_in_generate=True
        )
        assert torch.equal(output.decoding_steps, expected.decoding_steps)


@all_variants
def test_a_default_for_canvases_leaves_left_to_right_text_alone(variant):
    model = tiny_model(variant)
    prompt = torch.tensor([[3, 4, 5]])
    expected = model.generate(prompt, max_new_tokens=4, do_sample=False)
    model.generation_config.decoding_order = "confidence"
    model.generation_config.tokens_per_step = 3
    assert torch.equal(model.generate(prompt, max_new_tokens=4, do_sample=False), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoding_order": "backwards"}, "decoding_order.*'confidence'.*backwards"),
        ({"tokens_per_step": 0}, "tokens_per_step.*at least 1.*0"),
        ({"tokens_per_step": 1.5}, "tokens_per_step.*1.5"),
        ({"tokens_per_step": True}, "tokens_per_step.*True"),
        ({"tokens_per_step": "cosine"}, "tokens_per_step.*'cosine'"),
        ({"tokens_per_step": "cosine(0)"}, r"tokens_per_step.*cosine\(0\)"),
        ({"tokens_per_step": "threshold(1.1)"}, r"tokens_per_step.*'threshold\(p\)'.*probability.*threshold\(1.1\)"),
        ({"tokens_per_step": "threshold(-0.1)"}, r"tokens_per_step.*threshold\(-0.1\)"),
        ({"tokens_per_step": "entropy(nan)"}, r"tokens_per_step.*'entropy\(bound\)'.*entropy\(nan\)"),
        ({"tokens_per_step": "entropy(0.1)", "decoding_order": "random"}, "surest about.*decoding_order.*'random'"),
        ({"tokens_per_step": "entropy(0.1)", "draft_length": 2}, "draft_length.*tokens_per_step.*exclude"),
        ({"draft_length": 0}, "draft_length.*at least 1.*0"),
        ({"draft_length": 2.0}, "draft_length.*2.0"),
        ({"draft_length": 2, "tokens_per_step": 2}, "draft_length.*tokens_per_step.*exclude"),
        ({"draft_length": 2, "tokens_per_step": "linear(3)"}, "draft_length.*tokens_per_step.*exclude"),
        ({"draft_length": 2, "decoding_order": "entropy"}, "draft_length.*known before.*entropy"),
    ],
)
def test_wrong_ways_of_decoding_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AOARMGenerationConfig(**fields)
    with pytest.raises(ValueError, match=message.replace("'confidence'.*", "")):
        tiny_model("two_stream").generate(**ragged_canvases(), **fields)


@pytest.mark.parametrize(
    "way", [{"tokens_per_step": 2}, {"draft_length": 2}, {"decoding_order": "confidence"}, {"decoding_order": "margin"}]
)
def test_causal_knows_one_target_only(way):
    prompt = torch.tensor([[3, 4, 5]])
    with pytest.raises(ValueError, match="causal"):
        tiny_model("causal").generate(prompt, max_new_tokens=3, **way)


@pytest.mark.parametrize("way", [{"decoding_order": "random"}, {"tokens_per_step": 2}, {"draft_length": 1}])
def test_ways_of_decoding_need_blanks(way):
    with pytest.raises(ValueError, match="generation_mask.*max_new_tokens.*neither"):
        tiny_model("two_stream").generate(torch.tensor([[3, 4, 5]]), **way)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": [torch.Generator()]}, "generator.*4 examples.*1"),
        ({"generator": 7}, "generator.*int"),
        ({"generator": [1, 2, 3, 4]}, "generator.*list"),
        ({"tokens_per_step": torch.tensor([2, 3])}, "tokens_per_step.*tensor"),
        ({"tokens_per_step": "linear(" + "9" * 5000 + ")"}, "tokens_per_step.*linear"),
        ({"num_return_sequences": -1}, "num_return_sequences.*-1"),
        ({"num_return_sequences": 2.5}, "num_return_sequences.*2.5"),
        ({"max_new_tokens": True}, "max_new_tokens.*True"),
        ({"generation_config": {"do_sample": True}}, "generation_config.*dict"),
        ({"logits_processor": lambda ids, scores: scores}, "logits_processor.*function"),
        ({"streamer": object()}, "streamer.*object"),
        ({"generation_mask": torch.zeros(4, 9, dtype=torch.bool, device="meta")}, "generation_mask.*device.*meta"),
        ({"attention_mask": torch.ones(4, 9, device="meta")}, "attention_mask.*device.*meta"),
        ({"input_ids": torch.zeros(4, 9, dtype=torch.complex64)}, "input_ids.*complex64"),
        ({"do_sample": True, "suppress_tokens": list(range(23))}, "at least one token"),
        ({"suppress_tokens": list(range(23))}, "at least one token"),
        ({"do_sample": True, "temperature": 1e-40}, "at least one token.*temperature"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        tiny_model("two_stream").generate(**{**ragged_canvases(), **arguments})


@pytest.mark.parametrize("name", ["generator", "context_order", "progress_bar"])
def test_what_is_for_blanks_is_refused_without_them(name):
    value = {"generator": torch.Generator(), "context_order": torch.tensor([[1, 0]]), "progress_bar": True}[name]
    with pytest.raises(ValueError, match=f"{name}.*generation_mask"):
        tiny_model("two_stream").generate(torch.tensor([[3, 4]]), max_new_tokens=2, **{name: value})


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize("way", [{}, {"draft_length": 10**12}, {"tokens_per_step": 10**12}], ids=str)
def test_more_than_there_are_blanks_is_all_of_them(variant, way):
    """Memory is that of the blanks, too: a cache for a million drafts could not be made."""
    model = tiny_model(variant)
    filled = model.generate(**ragged_canvases(), **way, cache_implementation="static")
    assert torch.equal(filled, model.generate(**ragged_canvases(), **{name: 9 for name in way}))


@any_order_variants
def test_ids_that_are_no_tokens_end_nothing(variant):
    """-1 is a custom for "no end of sentence"."""
    model = tiny_model(variant)
    expected = model.generate(**ragged_canvases(), eos_token_id=None)
    for eos in (-1, 99, [-1, 99]):
        assert torch.equal(model.generate(**ragged_canvases(), eos_token_id=eos, pad_token_id=0), expected)


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_mixed_precision_fills_blanks(variant, way):
    model = tiny_model(variant)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.generate(**ragged_canvases(), **way, return_dict_in_generate=True)
    check_filling(ragged_canvases(), output)
    expected = replay(model, ragged_canvases(), output, in_groups="tokens_per_step" in way)
    torch.testing.assert_close(output.logprobs, expected, atol=0.3, rtol=0)


@any_order_variants
def test_several_random_orders_of_greedy_fillings(variant):
    """The library refuses several greedy sequences, which are equal left to right; in random orders they are not."""
    output = tiny_model(variant).generate(
        **ragged_canvases(), decoding_order="random", num_return_sequences=4, return_dict_in_generate=True
    )
    assert len({tuple(order) for order in output.decoding_order[-4:].tolist()}) > 1


@pytest.mark.grid
@any_order_variants
@pytest.mark.parametrize("places", [1, 2, 4])
def test_processors_see_all_rows_before_each_place(variant, places):
    """Given tokens first, then what was filled or drafted; the drafts of a pass see those before them."""
    seen = []

    class Watch(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(input_ids.tolist())
            return scores

    canvas = torch.tensor([[3, 4, 5, 0, 0, 0, 0, 0]])
    blanks = torch.tensor([[False] * 3 + [True] * 5])
    how = {"generation_mask": blanks, "logits_processor": LogitsProcessorList([Watch()])}
    filled = tiny_model(variant).generate(canvas, **how, **({"draft_length": places} if places > 1 else {}))[0].tolist()
    assert [3, 4, 5] in seen[0] and len({len(rows[0]) for rows in seen}) > 1
    for call in seen:
        for rows in call:
            start = next(index for index in range(len(rows)) if rows[index : index + 3] == [3, 4, 5])
            # Shorter rows repeat the first one in front.
            assert set(rows[:start]) <= {3}
            assert places > 1 or rows == filled[: len(rows)]


@pytest.mark.grid(pairs=False)
@any_order_variants
def test_prompt_learning_is_refused_and_lora_is_not(variant):
    peft = pytest.importorskip("peft")
    canvases = ragged_canvases()
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="Prompt learning.*LoRA.*PROMPT_TUNING"):
        peft.get_peft_model(tiny_model(variant), config).generate(**canvases)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(tiny_model(variant), lora)
    for way in ({"decoding_order": "confidence"}, {"draft_length": 2}):
        assert torch.equal(model.generate(**canvases, **way), tiny_model(variant).generate(**canvases, **way))
