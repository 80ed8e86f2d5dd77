# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Conversion: what a causal checkpoint computes is kept exactly, and what cannot be kept is refused by name."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from variants import SIZES, random_rows

from modeling_aoarm import AOARMConfig, AOARMForCausalLM
from modeling_aoarm.conversion import convert_causal_lm, convert_config


# Nothing at the value that our config has by default.
UNUSUAL = {
    **SIZES,
    "rms_norm_eps": 0.03,
    "hidden_act": "gelu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
    "bos_token_id": 1,
    "eos_token_id": [2, 5],
    "pad_token_id": 0,
}
ALL_ROPE = [1] * SIZES["num_hidden_layers"]
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama_biased": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True, "head_dim": 6}),
    "llama_attention_biased": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None, "head_dim": 12}),
    "mistral_wide": (MistralForCausalLM, MistralConfig, {"sliding_window": 64}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2_head_dim": (Qwen2ForCausalLM, Qwen2Config, {"head_dim": 6}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 6}),
    "qwen3_biased": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8, "attention_bias": True}),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config, {"no_rope_layers": ALL_ROPE}),
    "smollm3_biased": (
        SmolLM3ForCausalLM,
        SmolLM3Config,
        {"no_rope_layers": ALL_ROPE, "attention_bias": True, "mlp_bias": True},
    ),
}
# No part of a scaling at the value that it has when it is left out.
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 3.0, "rope_theta": 300.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "rope_theta": 300.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 300.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "attention_factor": 1.7,
        "truncate": False,
    },
    "yarn_mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 300.0,
        "original_max_position_embeddings": 16,
        "mscale": 0.7,
        "mscale_all_dim": 0.3,
    },
}
VARIANTS = ["decoupled_rope", "two_stream", "causal"]
# What the default adds to the source's weights.
QUERY_VECTOR = "model.query_embedding.weight"

pytestmark = pytest.mark.usefixtures("restored_logging")


def source_config(kind, **changes):
    _, config_class, special = KINDS[kind]
    # Configs complete the dictionaries that they are given in place.
    return config_class(**copy.deepcopy({**UNUSUAL, **special, **changes}))


def source_model(kind, **changes):
    """A small random model of the library, with biases and norms away from 0 and 1."""
    torch.manual_seed(1)
    model = KINDS[kind][0](source_config(kind, **changes))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def tokens(rows=20, batch=3):
    return torch.randint(6, SIZES["vocab_size"], (batch, rows), generator=torch.Generator().manual_seed(0))


def logits_of(model, input_ids):
    with torch.no_grad():
        return model(input_ids).logits


def assert_computes_the_same(converted, source, atol=1e-5):
    input_ids = tokens()
    torch.testing.assert_close(logits_of(converted, input_ids), logits_of(source, input_ids), atol=atol, rtol=0)
    how = {"attention_mask": torch.ones_like(input_ids[:, :5]), "max_new_tokens": 12, "do_sample": False}
    expected = source.generate(input_ids[:, :5], **how)
    assert torch.equal(converted.generate(input_ids[:, :5], **how), expected)


@pytest.mark.grid(pairs=False)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_model_and_its_checkpoints_convert_exactly(kind, tied, variant, tmp_path):
    """Law 4, for a model in memory, and for its checkpoint in one file and in many, through our own saving too."""
    source = source_model(kind, tie_word_embeddings=tied)
    converted = convert_causal_lm(source, variant)
    assert isinstance(converted, AOARMForCausalLM) and not converted.training
    assert converted.config.attention_variant == variant
    assert_computes_the_same(converted, source)
    source.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 3
    from_shards = convert_causal_lm(tmp_path / "source", variant)
    assert_computes_the_same(from_shards, source)
    from_shards.save_pretrained(tmp_path / "converted")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    assert_computes_the_same(loaded, source)
    for model in (converted, from_shards, loaded):
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    vector = SIZES["hidden_size"] if variant == "two_stream" else 0
    assert loaded.num_parameters() == source.num_parameters() + vector


def test_the_start_of_the_query_stream_is_a_choice():
    source = source_model("llama")
    neighbor = convert_causal_lm(source)
    assert (neighbor.config.attention_variant, neighbor.config.query_stream_init) == ("two_stream", "neighbor")
    mean = source.model.embed_tokens.weight.mean(0, keepdim=True)
    torch.testing.assert_close(neighbor.state_dict()[QUERY_VECTOR], mean)
    content = convert_causal_lm(source, query_stream_init="content")
    assert content.config.query_stream_init == "content" and QUERY_VECTOR not in content.state_dict()
    assert_computes_the_same(content, source)
    with pytest.raises(ValueError, match="query_stream_init.*neighbor, content.*'learned'"):
        convert_causal_lm(source, query_stream_init="learned")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, None),
        ({"query_stream_init": "content"}, "suffix_first"),
        ({"attention_variant": "decoupled_rope"}, "suffix_first"),
        ({"attention_variant": "causal"}, None),
    ],
)
def test_states_that_start_from_their_rows_token_get_the_left_side_last(how, expected, tmp_path):
    converted = convert_causal_lm(source_model("llama"), **how)
    converted.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert converted.generation_config.context_order == loaded.generation_config.context_order == expected


@pytest.mark.parametrize("tied", [False, True])
def test_a_jump_goes_on_from_the_left_neighbor_with_the_suffix_in_view(tied):
    """The neighbor start is the source itself, which reads the token left of the blank once more.

    Its rows: prefix, suffix, and the left neighbor again, at its position, seeing the rows before it and not itself.
    """
    source = source_model("llama", tie_word_embeddings=tied)
    converted = convert_causal_lm(source)
    input_ids = tokens(rows=12, batch=2)
    for start, stop in ((3, 5), (1, 8), (6, 11)):
        positions = torch.tensor([*range(start), *range(stop, 12)])
        given = input_ids[:, positions]
        # From the last row the order jumps back to the blank's first position.
        with torch.no_grad():
            actual = converted(
                given,
                position_ids=positions[None],
                target_position_ids=torch.cat([positions[1:], torch.tensor([start])])[None],
            ).logits[:, -1]
        rows = len(positions)
        sees = torch.ones(rows + 1, rows + 1, dtype=torch.bool).tril()
        sees[-1, -1] = False
        mask = torch.zeros(rows + 1, rows + 1).masked_fill(~sees, torch.finfo(torch.float32).min)
        with torch.no_grad():
            expected = source(
                torch.cat([given, input_ids[:, start - 1 : start]], dim=1),
                attention_mask=mask.expand(2, 1, -1, -1),
                position_ids=torch.cat([positions, torch.tensor([start - 1])])[None],
            ).logits[:, -1]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        alone = logits_of(source, input_ids[:, :start])[:, -1]
        assert (actual - alone).abs().max() > 1e-2


@pytest.mark.grid(pairs=False)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
@pytest.mark.parametrize("scaling", list(SCALINGS))
def test_static_rope_scaling_is_kept(kind, scaling):
    source = source_model(kind, rope_parameters=SCALINGS[scaling])
    unscaled = source_model(kind)
    input_ids = tokens(rows=50)
    expected = logits_of(source, input_ids)
    assert (logits_of(unscaled, input_ids) - expected).abs().max() > 1e-2
    for variant in ("decoupled_rope", "two_stream"):
        converted = convert_causal_lm(source, variant)
        torch.testing.assert_close(logits_of(converted, input_ids), expected, atol=2e-5, rtol=0)


def test_fields_of_older_checkpoints_are_understood(tmp_path):
    """SmolLM's and Qwen's published configs: `rope_theta` and `rope_scaling` apart, `torch_dtype`, names unread."""
    source = source_model("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 77.0})
    source.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["rope_parameters"], values["dtype"]
    values |= {"rope_theta": 77.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float32"}
    values |= {"is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 1, "transformers.js_config": {}}
    values |= {"temperature": 0.5, "sliding_window": None, "transformers_version": "4.40.1"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert_computes_the_same(convert_causal_lm(tmp_path), source)


@pytest.mark.parametrize("variant", ["decoupled_rope", "two_stream"])
def test_the_dtype_is_kept_or_chosen(variant, tmp_path):
    source = source_model("qwen3").to(torch.bfloat16)
    source.save_pretrained(tmp_path / "source")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    for converted in (convert_causal_lm(loaded, variant), convert_causal_lm(tmp_path / "source", variant)):
        assert {parameter.dtype for parameter in converted.parameters()} == {torch.bfloat16}
        assert converted.model.rotary_emb.inv_freq.dtype == torch.float32
        # The same operations in the same order, so that even rounding is the same, or nearly.
        assert_computes_the_same(converted, loaded, atol=0.05)
        converted.save_pretrained(tmp_path / "converted")
        assert {tensor.dtype for tensor in load_file(tmp_path / "converted" / "model.safetensors").values()} == {
            torch.bfloat16
        }
    for wide in (
        convert_causal_lm(loaded, variant, dtype=torch.float32),
        convert_causal_lm(tmp_path / "source", variant, dtype="float32"),
    ):
        assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
        assert_computes_the_same(wide, AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype="float32"))


def test_mixed_dtypes_are_kept_and_rounded_rotations_are_not():
    source = source_model("llama").to(torch.bfloat16)
    source.lm_head.float()
    converted = convert_causal_lm(source)
    expected = {name: tensor.dtype for name, tensor in source.state_dict().items()} | {QUERY_VECTOR: torch.bfloat16}
    assert {name: tensor.dtype for name, tensor in converted.state_dict().items()} == expected
    assert len(set(expected.values())) == 2
    assert source.model.rotary_emb.inv_freq.dtype == torch.bfloat16
    assert torch.equal(converted.model.rotary_emb.inv_freq, source_model("llama").model.rotary_emb.inv_freq)


@pytest.mark.parametrize("tied", [False, True])
def test_the_source_is_neither_changed_nor_shared(tied):
    source = source_model("llama", tie_word_embeddings=tied, rope_parameters=SCALINGS["yarn"]).train()
    config, generation_config = source.config.to_json_string(), source.generation_config.to_json_string()
    weights = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    converted = convert_causal_lm(source, "two_stream")
    places = {tensor.data_ptr() for tensor in [*source.parameters(), *source.buffers()]}
    assert places.isdisjoint(tensor.data_ptr() for tensor in [*converted.parameters(), *converted.buffers()])
    assert not any(tensor.is_meta for tensor in [*converted.parameters(), *converted.buffers()])
    assert all(parameter.requires_grad for parameter in converted.parameters())
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    converted.config.rope_parameters["factor"] = 9.0
    converted.config.eos_token_id.append(7)
    converted.generation_config.eos_token_id.append(7)
    assert source.training
    assert source.config.to_json_string() == config
    assert source.generation_config.to_json_string() == generation_config
    assert all(torch.equal(tensor, weights[name]) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_fields_that_left_to_right_logits_do_not_show_are_kept(kind):
    """What training, the checks of positions and generation read."""
    source = source_config(kind, attention_dropout=0.1, use_cache=False)
    config = convert_config(source)
    for name in "attention_dropout use_cache initializer_range max_position_embeddings".split():
        assert getattr(config, name) == getattr(source, name) != getattr(AOARMConfig(), name)


def test_a_default_order_is_saved_with_a_converted_model(tmp_path):
    """The library drops keys that it does not know from generation configs that it made of a model's config."""
    source = source_model("llama")
    source.generation_config._from_model_config = True
    converted = convert_causal_lm(source)
    converted.generation_config.decoding_order = "random"
    converted.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.decoding_order == "random"


def test_a_model_without_a_name_and_its_attention_backend():
    source = source_model("llama")
    source.set_attn_implementation("eager")
    converted = convert_causal_lm(source)
    assert converted.config.converted_from == {"model_type": "llama", "name": ""}
    assert converted.config._attn_implementation == "eager"
    source.config.name_or_path = "someone/something"
    assert convert_causal_lm(source).config.converted_from["name"] == "someone/something"


def test_a_converted_model_trains():
    converted = convert_causal_lm(source_model("qwen3"), "decoupled_rope").train()
    rows = random_rows("decoupled_rope", 2, 8)
    converted(rows["input_ids"], position_ids=rows["position_ids"], labels=rows["input_ids"]).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in converted.parameters())


@pytest.mark.parametrize("variant", ["decoupled_rope", "two_stream"])
@pytest.mark.parametrize("order", ["left_to_right", "random", "confidence"])
def test_blanks_are_filled_in_any_order(variant, order):
    converted = convert_causal_lm(source_model("qwen2"), variant)
    canvas = tokens(rows=9)
    blanks = torch.zeros_like(canvas, dtype=torch.bool)
    blanks[:, [2, 5, 6]] = True
    output = converted.generate(
        canvas,
        generation_mask=blanks,
        decoding_order=order,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
    )
    assert torch.equal(output.sequences[~blanks], canvas[~blanks])
    assert torch.equal(output.decoding_order.sort(dim=1).values, torch.tensor([[2, 5, 6]] * 3))
    scores = converted.score(output.sequences, blanks, decoding_order=output.decoding_order)
    torch.testing.assert_close(scores.log_likelihood[0], output.logprobs.sum(1), atol=1e-4, rtol=0)


def test_special_tokens_and_generation_settings_are_carried_over(tmp_path):
    source = source_model("llama")
    source.save_pretrained(tmp_path / "source")
    settings = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 5], "pad_token_id": 0, "max_new_tokens": 3}
    # Published like this (without `do_sample`), which the library refuses to save unless it was loaded.
    (tmp_path / "source" / "generation_config.json").write_text(json.dumps(settings))
    converted = convert_causal_lm(tmp_path / "source", mask_token_id=4)
    try:
        AutoModelForCausalLM.from_pretrained(tmp_path / "source").save_pretrained(tmp_path / "theirs")
    except ValueError:
        # Old releases save it in no case.
        with pytest.raises(ValueError, match="temperature"):
            converted.save_pretrained(tmp_path / "converted")
        return
    converted.save_pretrained(tmp_path / "converted")
    for model in (converted, AutoModelForCausalLM.from_pretrained(tmp_path / "converted")):
        assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, [2, 5], 0)
        assert model.config.mask_token_id == 4
        assert {name: getattr(model.generation_config, name) for name in settings} == settings
        assert model.generation_config.decoding_order is None
        assert model.config.converted_from == {"model_type": "llama", "name": "source"}
    assert str(tmp_path) not in (tmp_path / "converted" / "config.json").read_text()
    converted.generation_config.top_k = -3
    with pytest.raises(ValueError, match="top_k"):
        converted.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("mistral", {"sliding_window": 63}, r"`sliding_window` must be None or at least `max_position_emb.*got 63"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "`layer_types`.*sliding"),
        ("qwen3", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}, "`layer_types`.*'full_attention'"),
        ("llama", {"layer_types": ["chunked_attention"] * 3}, "`layer_types`.*chunked"),
        ("llama", {"sliding_window": 8}, "`sliding_window`.*got 8"),
        ("llama", {"sliding_window": 8, "use_sliding_window": True}, "`sliding_window`.*got 8"),
        ("mistral", {"sliding_window": 8, "use_sliding_window": False}, "`sliding_window`.*got 8"),
        ("smollm3", {"no_rope_layers": [1, 0, 1]}, r"`no_rope_layers` must be 1 in every layer.*\[1, 0, 1\]"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "`rope_parameters`.*'dynamic'"),
        (
            "qwen2",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                    "original_max_position_embeddings": 16,
                }
            },
            "`rope_parameters`.*'longrope'",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "`partial_rotary_factor` but 1.*0.5"),
        ("qwen3", {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "one `rope_type` for all layers"),
        ("llama", {"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` must be None.*50"),
        ("mistral", {"final_logit_softcapping": 30.0}, "`final_logit_softcapping` must be None"),
        ("llama", {"attention_multiplier": 0.2}, "`attention_multiplier` must be None"),
        ("llama", {"residual_multiplier": 0.2}, "`residual_multiplier` must be 1.0.*0.2"),
        ("llama", {"embedding_multiplier": 12.0}, "`embedding_multiplier` must be 1.0"),
        ("llama", {"logits_scaling": 8.0}, "`logits_scaling` must be 1.0"),
        ("llama", {"num_local_experts": 4}, "`num_local_experts`.*got 4"),
        ("llama", {"is_causal": False}, "`is_causal` must be True"),
        ("llama", {"rope_interleaved": True}, "`rope_interleaved` must be False"),
        ("mistral", {"attention_bias": True}, "`attention_bias` must be False"),
        ("llama", {"hidden_act": "sinus"}, "`hidden_act`.*'sinus'"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "`quantization_config` must be None.*awq"),
        ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}, "`auto_map`.*modeling_mine"),
        ("llama", {"per_layer_config": {0: {"intermediate_size": 8}}}, "`per_layer_config`"),
        ("llama", {"qkv_bias": True}, "`qkv_bias` must be False"),
        ("qwen2", {"qkv_bias": False}, "`qkv_bias` must be True"),
        ("llama", {"use_qk_norm": True}, "`use_qk_norm` must be False"),
        ("qwen2", {"use_mrope": True}, "`use_mrope` must be False"),
        (
            "qwen2",
            {"dual_chunk_attention_config": {"chunk_size": 8}},
            "`dual_chunk_attention_config`.*`ignored_fields`",
        ),
        ("llama", {"pruned_heads": {"0": [1]}}, "`pruned_heads` must be {}"),
        ("llama", {"novel_trick": 0}, "`novel_trick`.*got 0.*`ignored_fields`"),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(kind, changes, message, tmp_path):
    """From a config, and from a checkpoint without looking at its weights."""
    try:
        config = source_config(kind, **changes)
    except AttributeError:
        # Old releases of the library cannot make this config.
        assert kind == "qwen3" and "full_attention" in changes["rope_parameters"]
        return
    for variant in VARIANTS:
        with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
            convert_config(config, variant)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        convert_causal_lm(tmp_path)


@pytest.mark.parametrize("name", ["attn_logit_softcapping", "novel_trick", "sliding_window", "num_local_experts"])
def test_a_field_without_a_value_says_nothing(name):
    assert convert_config(source_config("llama", **{name: None})).attention_variant == "two_stream"


# Each was seen in a published config or belongs to the kinds that `UNREAD` names.
UNREAD_VALUES = {
    "unk_token_id": 0,
    "sep_token_id": 99,
    "image_token_ids": [7],
    "_model_name_or_path": "Somebody's model",
    "name": "a model",
    "tags": ["chat"],
    "date": "2025-02-07",
    "license": "apache-2.0",
    "hidden_dropout": 0.1,
    "resid_pdrop": 0.1,
    "classifier_dropout": 0.1,
    "use_bfloat16": False,
    "torchscript": False,
    "gradient_checkpointing": False,
    "max_sequence_length": 2048,
    "unsloth_version": "2025.1",
    "use_sliding_window": False,
    "sliding_window": 8,
    "max_window_layers": 2,
    "qkv_bias": False,
    "pruned_heads": {},
    "quantization": None,
    "auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]},
}


def test_fields_that_no_left_to_right_logit_depends_on_do_not_stop_a_conversion(tmp_path):
    source = source_model("llama")
    source.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | UNREAD_VALUES))
    assert_computes_the_same(convert_causal_lm(tmp_path), source)


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id", "eos_token_id"])
def test_an_id_that_is_no_token_means_none(name, tmp_path):
    source = source_model("llama", **{name: -1})
    converted = convert_causal_lm(source)
    assert getattr(converted.config, name) is getattr(converted.generation_config, name) is None
    converted.save_pretrained(tmp_path)
    assert getattr(AutoModelForCausalLM.from_pretrained(tmp_path).config, name) is None
    input_ids = tokens()
    torch.testing.assert_close(logits_of(converted, input_ids), logits_of(source, input_ids), atol=1e-5, rtol=0)


def test_ends_outside_of_the_vocabulary_are_left_out():
    converted = convert_causal_lm(source_model("llama", eos_token_id=[2, SIZES["vocab_size"], 5]))
    assert converted.config.eos_token_id == converted.generation_config.eos_token_id == [2, 5]


def test_only_unknown_fields_can_be_ignored():
    config = source_config("llama", novel_trick=1, another=2)
    with pytest.raises(ValueError, match="`another`"):
        convert_config(config, ignored_fields=["novel_trick"])
    convert_config(config, ignored_fields=["novel_trick", "another"])
    with pytest.raises(ValueError, match="`layer_types`"):
        convert_config(source_config("qwen3", layer_types=["sliding_attention"] * 3), ignored_fields=["layer_types"])


def test_a_window_that_no_layer_uses_is_no_window():
    model = source_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=3)
    assert_computes_the_same(convert_causal_lm(model), model)


def test_other_models_are_refused():
    class Tuned(LlamaForCausalLM):
        pass

    for model, message in (
        (GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=23)), "`model_type`.*'gpt2'"),
        (convert_causal_lm(source_model("llama")), "`model_type`.*'aoarm'"),
        (Tuned(source_config("llama")), "LlamaForCausalLM itself, got Tuned"),
        (LlamaForSequenceClassification(source_config("llama")), "itself, got LlamaForSequenceClassification"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_causal_lm(model)
    with pytest.raises(ValueError, match=r"attention_variant.*three_stream"):
        convert_causal_lm(source_model("llama"), "three_stream")
    with pytest.raises(ValueError, match=r"\['revision'\]"):
        convert_causal_lm(source_model("llama"), revision="main")
    for dtype in ("float7", "nn", torch.int8):
        with pytest.raises(ValueError, match="`dtype` must be"):
            convert_causal_lm(source_model("llama"), dtype=dtype)


def test_models_that_are_not_what_their_config_says_are_refused():
    rotated = source_model("llama")
    rotated.config.rope_parameters["rope_theta"] = 5000.0
    scaled = source_model("llama", rope_parameters=SCALINGS["yarn"])
    scaled.config.rope_parameters["attention_factor"] = 1.0
    for model in (rotated, scaled):
        with pytest.raises(ValueError, match="`rope_parameters` must give the rotations that the model has"):
            convert_causal_lm(model)
    biased = source_model("llama")
    biased.lm_head.bias = torch.nn.Parameter(torch.ones(SIZES["vocab_size"]))
    with pytest.raises(ValueError, match="lm_head.bias"):
        convert_causal_lm(biased)
    offloaded = source_model("llama")
    offloaded.model.norm.to("meta")
    with pytest.raises(ValueError, match="model.norm.weight offloaded"):
        convert_causal_lm(offloaded)
    quantised = source_model("llama")
    quantised.lm_head.weight = torch.nn.Parameter(quantised.lm_head.weight.data.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="lm_head.weight torch.int8"):
        convert_causal_lm(quantised)


def test_checkpoints_with_other_weights_are_refused(tmp_path):
    source_model("qwen3").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.1.self_attn.k_norm.weight"
    for change, message in (
        ({name: None}, f"missing keys: {name}"),
        ({"lm_head.weight": None}, "missing keys: lm_head.weight"),
        ({"model.layers.1.self_attn.k_proj.bias": torch.ones(12)}, "unexpected keys: .*k_proj.bias"),
        ({name: torch.ones(7)}, "mismatched keys: .*k_norm.weight"),
    ):
        changed = {key: tensor for key, tensor in {**weights, **change}.items() if tensor is not None}
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            convert_causal_lm(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be loaded"):
        convert_causal_lm(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        convert_causal_lm(tmp_path)
    for values in ({"rope_scaling": {"rope_type": "llama3"}}, {"hidden_size": "wide"}):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **values}))
        with pytest.raises(ValueError, match=f"(?s)cannot be loaded.*{'rope' if 'rope_scaling' in values else 'wide'}"):
            convert_causal_lm(tmp_path)


def test_two_tables_stay_two_whatever_the_config_says(tmp_path):
    source = source_model("llama")
    source.config.tie_word_embeddings = True
    assert_computes_the_same(convert_causal_lm(source), source)
    source_model("llama").save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": True}))
    converted = convert_causal_lm(tmp_path)
    assert not converted.config.tie_word_embeddings
    assert_computes_the_same(converted, source)
