# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Law 4: in the identity order the RoPE variants are the library's own decoders, and generate what those generate."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from variants import SIZES, tiny_model


IDENTICAL = ["two_stream_content", "two_stream_neighbor", "decoupled_rope", "causal"]
identical_variants = pytest.mark.parametrize("variant", IDENTICAL)

SCALED_ROPE = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 16,
    },
}


def peer(kind, **changes):
    """A small random model of the library, with biases and norms away from 0 and 1, and our fields for the same."""
    torch.manual_seed(1)
    shared = {**SIZES, **changes}
    if kind == "llama":
        model, ours = LlamaForCausalLM(LlamaConfig(**shared)), {}
    elif kind == "llama_biased":
        model = LlamaForCausalLM(LlamaConfig(**shared, attention_bias=True, mlp_bias=True))
        ours = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
    elif kind == "qwen2":
        shared.setdefault("head_dim", 8)
        model, ours = Qwen2ForCausalLM(Qwen2Config(**shared)), {"attention_bias": True}
    else:
        shared["head_dim"] = 6
        model, ours = Qwen3ForCausalLM(Qwen3Config(**shared)), {"qk_norm": True, "head_dim": 6}
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return model.eval(), {**ours, **changes}


def as_variant(variant, model, ours):
    copy = tiny_model(variant, **ours)
    weights = model.state_dict()
    if variant == "two_stream_neighbor":
        # Large, so that it would be seen: in the identity order no query stream starts from it.
        weights["model.query_embedding.weight"] = torch.full((1, copy.config.hidden_size), 5.0)
    copy.load_state_dict(weights, strict=True)
    return copy


@identical_variants
@pytest.mark.parametrize("kind", ["llama", "llama_biased", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_loss_equal_the_librarys(variant, kind, tied):
    model, ours = peer(kind, tie_word_embeddings=tied)
    copy = as_variant(variant, model, ours)
    input_ids = torch.randint(0, SIZES["vocab_size"], (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = model(input_ids, labels=input_ids), copy(input_ids, labels=input_ids)
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.loss, expected.loss, atol=1e-5, rtol=0)


@identical_variants
@pytest.mark.parametrize("rope", list(SCALED_ROPE))
def test_scaled_rotations_equal_the_librarys(variant, rope):
    model, ours = peer("llama", rope_parameters=SCALED_ROPE[rope])
    plain, _ = peer("llama")
    input_ids = torch.randint(0, SIZES["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids).logits
        assert (plain(input_ids).logits - expected).abs().max() > 1e-2
        actual = as_variant(variant, model, ours)(input_ids).logits
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)


@identical_variants
@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": False, "cache_implementation": "static"},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "top_k": 5},
        {"do_sample": False, "prompt_lookup_num_tokens": 2},
    ],
    ids=str,
)
def test_stock_generate_equals_the_librarys(variant, how):
    """Without blanks the custom `generate` is the library's, in every mode; also behind left padding."""
    model, ours = peer("llama")
    copy = as_variant(variant, model, ours)
    batch = 1 if "prompt_lookup_num_tokens" in how else 3
    input_ids = torch.randint(3, SIZES["vocab_size"], (batch, 6), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(input_ids)
    if batch == 3:
        attention_mask[1, :3] = 0
    results = []
    for each in (model, copy):
        torch.manual_seed(7)
        results.append(
            each.generate(
                input_ids, attention_mask=attention_mask, max_new_tokens=12, pad_token_id=0, eos_token_id=2, **how
            )
        )
    assert torch.equal(results[0], results[1])


@identical_variants
def test_other_decoders_of_the_library_keep_working(variant):
    """An assistant model (which must change nothing in greedy search), and a decoding loop of the caller's own."""
    model, ours = peer("llama")
    copy = as_variant(variant, model, ours)
    prompt = torch.randint(3, SIZES["vocab_size"], (1, 6), generator=torch.Generator().manual_seed(0))
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, **how)
    assert torch.equal(copy.generate(prompt, **how, assistant_model=tiny_model(variant, seed=5)), expected)

    def last_token_again(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return torch.cat([input_ids, input_ids[:, -1:]], dim=1)

    looped = copy.generate(prompt, **how, custom_generate=last_token_again)
    assert looped.tolist() == [[*prompt[0].tolist(), prompt[0, -1].item()]]


@identical_variants
def test_left_to_right_text_may_be_longer_than_the_table_as_in_llama(variant):
    model, ours = peer("llama", max_position_embeddings=8)
    copy = as_variant(variant, model, ours)
    input_ids = torch.randint(3, SIZES["vocab_size"], (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(copy(input_ids).logits, model(input_ids).logits, atol=1e-5, rtol=0)
    how = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(copy.generate(input_ids, **how), model.generate(input_ids, **how))


@identical_variants
def test_a_gap_of_padding_changes_nothing(variant):
    """Chats that go on after padding have it in the middle; static caches tell of it by a prepared mask only."""
    model, ours = peer("llama")
    copy = as_variant(variant, model, ours)
    input_ids = torch.randint(3, SIZES["vocab_size"], (2, 6), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]])
    for kind in ("dynamic", "static"):
        how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "cache_implementation": kind}
        expected = model.generate(input_ids, attention_mask=attention_mask, **how)
        assert torch.equal(copy.generate(input_ids, attention_mask=attention_mask, **how), expected)


def test_the_learned_query_stream_is_not_llama():
    """The control of this page: where the query stream starts elsewhere the outputs do differ."""
    model, _ = peer("llama")
    copy = tiny_model("two_stream")
    copy.load_state_dict(model.state_dict(), strict=False)
    input_ids = torch.arange(10)[None]
    with torch.no_grad():
        assert (copy(input_ids).logits - model(input_ids).logits).abs().max() > 0.1
