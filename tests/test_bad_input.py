# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Bad input is refused at the door, with an error that names the argument, the rule and the value."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import DynamicCache, StaticCache
from variants import SINGLE_STREAM, VARIANTS, all_variants, any_order_variants, random_rows, tiny_config, tiny_model

from modeling_aoarm import AOARMConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_variant": "three_stream"}, "attention_variant.*three_stream"),
        ({"attention_variant": "double_position", "hidden_size": 33, "head_dim": 8}, "hidden_size.*even.*33"),
        ({"double_position_mode": "added"}, "double_position_mode.*added"),
        ({"target_embedding_size": 0}, "target_embedding_size.*at least 1.*0"),
        ({"query_stream_init": "zeros"}, "query_stream_init.*zeros"),
        ({"hidden_size": "32"}, "hidden_size.*int.*str"),
        ({"qk_norm": 1}, "qk_norm.*bool"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads.*4 and 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers.*at least 1.*0"),
        ({"num_attention_heads": 0}, "at least 1.*0"),
        ({"head_dim": 5}, "even.*head_dim.*5"),
        ({"vocab_size": 10, "pad_token_id": 10}, "pad_token_id.*10"),
        ({"vocab_size": 10, "eos_token_id": [2, -1]}, "eos_token_id.*-1"),
        ({"vocab_size": 10, "mask_token_id": 11}, "mask_token_id.*11"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type.*dynamic"),
        (
            {"rope_parameters": {"rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type.*longrope",
        ),
    ],
)
def test_config_fields_are_validated(fields, message):
    with pytest.raises((StrictDataclassError, KeyError), match=f"(?s){message}"):
        AOARMConfig(**fields)


@all_variants
def test_positions_outside_the_table_are_refused(variant):
    model = tiny_model(variant)
    table = model.config.max_position_embeddings
    for position in (-1, table):
        with pytest.raises(ValueError, match=rf"position_ids.*\[0, {table - 1}\].*{position}"):
            model(torch.zeros(1, 1, dtype=torch.int64), position_ids=torch.tensor([[position]]))
    model(torch.zeros(1, 1, dtype=torch.int64), position_ids=torch.tensor([[table - 1]]))
    several = torch.tensor([[table, table - 1]] if variant != "causal" else [[table - 1, table]])
    with pytest.raises(ValueError, match=rf"position_ids.*{table}"):
        model(torch.zeros(1, 2, dtype=torch.int64), position_ids=several)


@pytest.mark.parametrize("variant", ["double_position", "double_position_summed", "adaptive_norm"])
def test_left_to_right_text_that_is_longer_than_a_table_is_refused(variant):
    """Where there are rotations it may be longer, as in Llama."""
    model = tiny_model(variant, max_position_embeddings=4)
    model(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"position_ids.*\[0, 3\].*got 4"):
        model(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"position_ids.*\[0, 3\]"):
        model.generate(torch.zeros(1, 3, dtype=torch.int64), max_new_tokens=4)
    tiny_model("decoupled_rope", max_position_embeddings=4)(torch.zeros(1, 5, dtype=torch.int64))


@any_order_variants
def test_targets_outside_the_table_are_refused(variant):
    model = tiny_model(variant)
    table = model.config.max_position_embeddings
    rows = random_rows(variant, 1, 4)
    for target in (-1, table + 1):
        rows["target_position_ids"][0, 2] = target
        with pytest.raises(ValueError, match=rf"target_position_ids.*\[0, {table}\].*{target}"):
            model(**rows)
    rows["target_position_ids"][0, 2] = table
    model(**rows)


@all_variants
@pytest.mark.parametrize("name", ["position_ids", "target_position_ids"])
@pytest.mark.parametrize(
    "value",
    [torch.zeros(2, 3), torch.zeros(2, 4).long(), torch.zeros(3, 3).long(), torch.zeros(3).long(), [[0, 1, 2]]],
    ids=["float", "rows", "batch", "one_dimension", "list"],
)
def test_positions_of_wrong_shape_or_type_are_refused(variant, name, value):
    with pytest.raises(ValueError, match=name):
        tiny_model(variant)(torch.zeros(2, 3, dtype=torch.int64), **{name: value})


@pytest.mark.parametrize("variant", SINGLE_STREAM)
def test_several_targets_need_two_streams(variant):
    with pytest.raises(ValueError, match=f"two_stream.*{VARIANTS[variant]['attention_variant']}"):
        tiny_model(variant)(
            torch.zeros(1, 3, dtype=torch.int64), target_position_ids=torch.ones(1, 3, 2, dtype=torch.int64)
        )


def test_causal_refuses_every_other_order():
    model = tiny_model("causal")
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="causal.*identity"):
        model(tokens, position_ids=torch.tensor([[0, 2, 1]]))
    with pytest.raises(ValueError, match="causal.*identity"):
        model(tokens, target_position_ids=torch.tensor([[1, 2, 4]]))
    cache = DynamicCache(config=model.config)
    model(tokens, past_key_values=cache)
    with pytest.raises(ValueError, match="causal.*identity"):
        model(tokens, position_ids=torch.tensor([[4, 5, 6]]), past_key_values=cache)


@any_order_variants
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cached_rows_out_of_order_must_bring_their_targets(variant, kind):
    """The next row may come in the next call, so its position cannot be guessed; consecutive rows are fine."""
    model = tiny_model(variant)
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    config = model.config
    cache = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=8)
    with pytest.raises(ValueError, match="target_position_ids.*cache"):
        model(tokens, position_ids=torch.tensor([[0, 2, 1]]), past_key_values=cache)
    model(tokens, position_ids=torch.tensor([[0, 1, 2]]), past_key_values=cache)
    with pytest.raises(ValueError, match="target_position_ids.*cache"):
        model(tokens[:, :1], position_ids=torch.tensor([[7]]), past_key_values=cache)
    model(tokens[:, :1], position_ids=torch.tensor([[3]]), past_key_values=cache)
    with pytest.raises(ValueError, match="target_position_ids.*cache"):
        model(tokens, position_ids=torch.tensor([[0, 2, 1]]), use_cache=True)
    assert model(tokens, position_ids=torch.tensor([[0, 2, 1]])).past_key_values is None


@any_order_variants
def test_left_padded_cached_calls_count_from_the_first_real_row(variant):
    model = tiny_model(variant)
    cache = DynamicCache(config=model.config)
    mask = torch.tensor([[0, 0, 1, 1]])
    model(
        torch.zeros(1, 4, dtype=torch.int64),
        attention_mask=mask,
        position_ids=torch.tensor([[1, 1, 0, 1]]),
        past_key_values=cache,
    )
    following = torch.ones(1, 5, dtype=torch.int64)
    following[:, :2] = 0
    one = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="target_position_ids.*cache"):
        model(one, attention_mask=following, position_ids=torch.tensor([[9]]), past_key_values=cache)
    model(one, attention_mask=following, position_ids=torch.tensor([[2]]), past_key_values=cache)


@all_variants
def test_packed_sequences_refuse_caches_leaking_labels_and_wrong_shapes(variant):
    model = tiny_model(variant)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    segments = torch.tensor([[0, 0, 1, 1]])
    positions = torch.tensor([[0, 1, 0, 1]])
    with pytest.raises(ValueError, match="segment_ids.*cache"):
        model(tokens, segment_ids=segments, past_key_values=DynamicCache(config=model.config))
    with pytest.raises(ValueError, match="labels.*-100.*segment"):
        model(tokens, position_ids=positions, segment_ids=segments, labels=tokens)
    with pytest.raises(ValueError, match="segment_ids.*cache"):
        model(tokens, segment_ids=segments, use_cache=True)
    with pytest.raises(ValueError, match=r"segment_ids.*batch=1 and rows=4.*\[1, 3\]"):
        model(tokens, position_ids=positions, segment_ids=segments[:, :3])
    for wrong in (segments.float(), segments.tolist()):
        with pytest.raises(ValueError, match="segment_ids.*integers"):
            model(tokens, position_ids=positions, segment_ids=wrong)
    with pytest.raises(ValueError, match="attention_mask.*segment_ids"):
        model(tokens, segment_ids=segments, attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.bool))
    labels = torch.tensor([[0, 0, -100, 0]])
    assert model(tokens, position_ids=positions, segment_ids=segments, labels=labels).loss.isfinite()


@any_order_variants
def test_labels_refuse_targets_that_are_not_the_next_row(variant):
    model = tiny_model(variant)
    rows = random_rows(variant, 1, 4)
    rows["target_position_ids"][0, 1] += 1
    with pytest.raises(ValueError, match="labels.*target_position_ids"):
        model(**rows, labels=rows["input_ids"])
    ignored = rows["input_ids"].clone()
    ignored[0, 2] = -100
    assert model(**rows, labels=ignored).loss.isfinite()


@any_order_variants
def test_positions_that_come_twice_are_refused(variant):
    """Two examples behind each other look like this: without `segment_ids` they would read each other."""
    model = tiny_model(variant)
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    twice = torch.tensor([[1, 2, 3, 1, 2, 3]])
    with pytest.raises(ValueError, match=r"position_ids.*twice.*segment_ids.*\[\[1, 2, 3, 1, 2, 3\]\]"):
        model(tokens, position_ids=twice)
    model(tokens, position_ids=twice, segment_ids=torch.tensor([[0, 0, 0, 1, 1, 1]]))
    # Padding has no position.
    model(tokens, position_ids=twice, attention_mask=torch.tensor([[1, 1, 1, 0, 0, 0]]))


@any_order_variants
def test_labels_are_compared_with_positions_behind_a_cache(variant):
    model = tiny_model(variant)
    cache = DynamicCache(config=model.config)
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    model(tokens, past_key_values=cache)
    targets = torch.tensor([[4, 5, 6]])
    assert model(tokens, target_position_ids=targets, labels=tokens, past_key_values=cache).loss.isfinite()
    with pytest.raises(ValueError, match=r"labels.*\[1, 3\].*\[3\]"):
        model(tokens, labels=tokens[0])
    with pytest.raises(ValueError, match="target_position_ids.*integers.*list"):
        model(tokens, target_position_ids=[[1, 2, 3]], labels=tokens)


def test_labels_refuse_several_targets():
    with pytest.raises(ValueError, match="labels.*one target per row"):
        tiny_model("two_stream")(
            torch.zeros(1, 3, dtype=torch.int64),
            target_position_ids=torch.ones(1, 3, 2, dtype=torch.int64),
            labels=torch.zeros(1, 3, dtype=torch.int64),
        )


@all_variants
def test_rows_that_would_see_the_future_are_refused(variant):
    with pytest.raises(ValueError, match="is_causal"):
        tiny_model(variant)(torch.zeros(1, 3, dtype=torch.int64), is_causal=False)


@all_variants
def test_tokens_or_embeddings_but_not_both(variant):
    model = tiny_model(variant)
    with pytest.raises(ValueError, match="input_ids.*inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="input_ids.*inputs_embeds"):
        model(torch.zeros(1, 1, dtype=torch.int64), inputs_embeds=torch.zeros(1, 1, 32))


def test_attention_masks_must_cover_the_rows():
    with pytest.raises(ValueError, match="attention_mask"):
        tiny_model("two_stream")(
            torch.zeros(1, 3, dtype=torch.int64), attention_mask=torch.ones(1, 4, dtype=torch.int64)
        )


CANVAS = torch.zeros(2, 5, dtype=torch.int64)
BLANKS = torch.tensor([[False, True, True, False, False], [False, False, True, True, True]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generation_mask": BLANKS.long()}, "generation_mask.*bool.*int64"),
        ({"generation_mask": BLANKS.tolist()}, "generation_mask.*bool.*list"),
        ({"generation_mask": BLANKS[:, :4]}, r"generation_mask.*\[2, 5\].*\[2, 4\]"),
        ({"generation_mask": torch.ones(2, 5, dtype=torch.bool)}, r"at least one given.*\[0, 1\]"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])}, r"at least one given.*\[1\]"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]])}, r"generation_mask.*padded.*\[0\]"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask.*\[2, 5\].*\[2, 4\]"),
        ({"input_ids": CANVAS[0]}, r"input_ids.*\[batch, columns\].*\[5\]"),
        ({"input_ids": CANVAS.float()}, "input_ids.*integers.*float32"),
        ({"decoding_order": "backwards"}, "decoding_order.*backwards"),
        ({"decoding_order": torch.tensor([[1, 2, -1], [2, 3, 3]])}, "decoding_order.*exactly once"),
        ({"decoding_order": torch.tensor([[1, 2, -1], [2, 3, -1]])}, "decoding_order.*one column.*each of the blanks"),
        ({"decoding_order": torch.tensor([[1, 0, -1], [2, 3, 4]])}, "decoding_order.*exactly once"),
        ({"decoding_order": torch.tensor([[-1, 1, 2], [2, 3, 4]])}, "decoding_order.*-1 to the right"),
        ({"decoding_order": torch.tensor([[1, 2, -1], [2, 3, 5]])}, "decoding_order.*columns"),
        ({"decoding_order": torch.tensor([[1.0, 2.0, -1.0], [2.0, 3.0, 4.0]])}, "decoding_order.*int64.*float32"),
        ({"decoding_order": torch.tensor([[1, 2], [2, 3]])}, r"decoding_order.*3 blanks.*\[2, 2\]"),
        ({"input_ids": CANVAS[:0], "generation_mask": BLANKS[:0]}, r"input_ids.*at least 1.*\[0, 5\]"),
        ({"input_ids": CANVAS + 23}, r"input_ids.*vocab_size=23.*\[0, 1\]"),
        ({"input_ids": CANVAS - 1}, r"input_ids.*vocab_size=23.*\[0, 1\]"),
        ({"attention_mask": [[1] * 5] * 2}, "attention_mask.*tensor.*list"),
        ({"num_beams": 2}, "num_beams.*2"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens.*3"),
        ({"output_scores": True}, "output_scores.*True"),
        ({"stop_strings": ["a"]}, "stop_strings"),
        ({"max_time": 1.0}, "max_time.*1.0"),
        ({"max_length": 3}, "max_length"),
        ({"min_new_tokens": 3}, "min_new_tokens"),
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGram"),
        ({"position_ids": CANVAS}, "position_ids.*generation_mask"),
        ({"past_key_values": DynamicCache()}, "past_key_values.*generation_mask"),
        ({"stopping_criteria": [lambda *_: True]}, "stopping_criteria.*generation_mask"),
        ({"generation_maks": BLANKS}, "generation_maks"),
        ({"inputs": CANVAS}, "inputs.*input_ids"),
    ],
)
def test_generate_refuses_malformed_canvases(arguments, message):
    model = tiny_model("two_stream")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        model.generate(**{"input_ids": CANVAS, "generation_mask": BLANKS, **arguments})


def test_generate_refuses_canvases_longer_than_the_table():
    model = tiny_model("two_stream", max_position_embeddings=4)
    with pytest.raises(ValueError, match=r"max_position_embeddings=4.*\[0, 1\]"):
        model.generate(CANVAS, generation_mask=BLANKS)


def test_generate_refuses_an_order_without_blanks():
    with pytest.raises(ValueError, match="decoding_order.*generation_mask.*random"):
        tiny_model("two_stream").generate(CANVAS, decoding_order="random")


def test_causal_fills_blanks_at_the_end_only():
    model = tiny_model("causal")
    with pytest.raises(ValueError, match="causal.*from left to right"):
        model.generate(CANVAS, generation_mask=BLANKS)
    at_the_end = torch.tensor([[False, False, True, True, True]] * 2)
    with pytest.raises(ValueError, match="causal.*from left to right"):
        model.generate(CANVAS, generation_mask=at_the_end, decoding_order=torch.tensor([[4, 3, 2]] * 2))
    filled = model.generate(CANVAS, generation_mask=at_the_end, do_sample=False)
    stock = model.generate(CANVAS[:, :2], attention_mask=torch.ones(2, 2), max_new_tokens=3, do_sample=False)
    assert torch.equal(filled, stock)


def test_a_config_is_what_it_was_after_saving(tmp_path):
    config = tiny_config("two_stream_content", qk_norm=True, eos_token_id=[1, 2], mask_token_id=4)
    config.save_pretrained(tmp_path)
    assert AOARMConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
