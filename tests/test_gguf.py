# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""GGUF files convert exactly with their tokenizer, and what the library's loader would drop is refused by name."""

import json
import re
import sys

import pytest
import torch
from gguf_models import TEMPLATE, TOKENS, write_gguf
from scripts import read_json, run_script
from test_conversion import assert_computes_the_same, logits_of, source_model, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from modeling_aoarm import convert_causal_lm
from modeling_aoarm.__main__ import main


CLASSES = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}
# The files know neither of these.
KNOWN = {"hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}

pytestmark = pytest.mark.usefixtures("restored_logging")


def gguf_source(kind, **changes):
    # The loader reads no width of heads for Qwen3, and goes by its config's default.
    width = {"head_dim": 128} if kind == "qwen3" else {}
    return source_model(kind, **{**KNOWN, **width, **changes})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", list(CLASSES))
def test_gguf_files_convert_exactly(kind, tied, tmp_path):
    source = gguf_source(kind, tie_word_embeddings=tied)
    write_gguf(tmp_path / "model.gguf", source)
    theirs = CLASSES[kind].from_pretrained(tmp_path, gguf_file="model.gguf")
    torch.testing.assert_close(logits_of(theirs, tokens()), logits_of(source, tokens()), atol=1e-4, rtol=0)
    for variant in ("decoupled_rope", "two_stream"):
        converted = convert_causal_lm(tmp_path, variant, gguf_file="model.gguf")
        assert_computes_the_same(converted, theirs)
        assert converted.config.converted_from == {
            "model_type": kind,
            "name": tmp_path.name,
            "gguf_file": "model.gguf",
        }
        assert {parameter.dtype for parameter in converted.parameters()} == {torch.float32}
        assert (converted.lm_head.weight is converted.model.embed_tokens.weight) == tied
    converted.save_pretrained(tmp_path / "converted")
    assert_computes_the_same(AutoModelForCausalLM.from_pretrained(tmp_path / "converted"), theirs)


def test_a_model_that_was_loaded_from_gguf_converts(tmp_path):
    write_gguf(tmp_path / "model.gguf", gguf_source("llama"))
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    converted = convert_causal_lm(theirs)
    assert_computes_the_same(converted, theirs)
    assert converted.config.converted_from["gguf_file"] == "model.gguf"


def test_gguf_weights_are_float32_unless_another_dtype_is_asked_for(tmp_path):
    write_gguf(tmp_path / "model.gguf", gguf_source("qwen3"))
    torch.set_default_dtype(torch.float64)
    try:
        assert convert_causal_lm(tmp_path, gguf_file="model.gguf").dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert convert_causal_lm(tmp_path, gguf_file="model.gguf", dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "entries", "tensors", "message"),
    [
        (
            "qwen2",
            {"qwen2.rope.scaling.type": "yarn"},
            {},
            "`qwen2.rope.scaling.type`.*'none'.*got 'yarn'.*safetensors",
        ),
        ("qwen2", {"qwen2.rope.scaling.factor": 4.0}, {}, "`qwen2.rope.scaling.factor`.*got 4.0.*`ignored_fields`"),
        ("llama", {"llama.attention.sliding_window": 8}, {}, "`llama.attention.sliding_window`.*got 8"),
        ("llama", {"llama.logit_scale": 0.5}, {}, "`llama.logit_scale`.*got 0.5"),
        ("llama", {"llama.expert_count": 4}, {}, "`llama.expert_count`.*got 4"),
        ("qwen3", {"qwen3.rope.dimension_count": 4}, {}, "`qwen3.rope.dimension_count`.*must be 128.*got 4"),
        # Llama 3.1's scaling of RoPE lies in this tensor.
        ("llama", {}, {"rope_freqs.weight": torch.ones(4)}, "`rope_freqs.weight`.*LlamaForCausalLM.*safetensors"),
        ("llama", {}, {"blk.1.attn_q.bias": torch.ones(32)}, "`blk.1.attn_q.bias`.*LlamaForCausalLM"),
    ],
)
def test_what_the_loader_would_drop_is_refused_by_name(kind, entries, tensors, message, tmp_path):
    write_gguf(tmp_path / "model.gguf", gguf_source(kind), entries, tensors)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        convert_causal_lm(tmp_path, gguf_file="model.gguf")


def test_what_changes_nothing_can_be_ignored(tmp_path):
    source = gguf_source("llama")
    entries = {"llama.rope.scaling.type": "none", "llama.novel_note": 1, "general.name": "mine", "general.file_type": 3}
    write_gguf(tmp_path / "model.gguf", source, entries, {"rope_freqs.weight": torch.ones(4)})
    with pytest.raises(ValueError, match="novel_note"):
        convert_causal_lm(tmp_path, gguf_file="model.gguf", ignored_fields=["rope_freqs.weight"])
    ignored = ["rope_freqs.weight", "llama.novel_note"]
    converted = convert_causal_lm(tmp_path, gguf_file="model.gguf", ignored_fields=ignored)
    torch.testing.assert_close(logits_of(converted, tokens()), logits_of(source, tokens()), atol=1e-4, rtol=0)


def test_files_that_are_no_whole_gguf_are_refused(tmp_path, capsys):
    source = gguf_source("qwen2")
    for missing in ("attn_v.bias", "output_norm.weight"):
        write_gguf(tmp_path / "model.gguf", source, leave_out=missing)
        with pytest.raises(ValueError, match="missing keys: .*(v_proj.bias|norm.weight)"):
            convert_causal_lm(tmp_path, gguf_file="model.gguf")
    whole = (tmp_path / "model.gguf").read_bytes()
    for length in (0, 3, 200, len(whole) // 2):
        (tmp_path / "model.gguf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be loaded"):
            convert_causal_lm(tmp_path, gguf_file="model.gguf")
    (tmp_path / "model.gguf").write_text("no model at all, but some longer text")
    with pytest.raises(ValueError, match="cannot be loaded"):
        convert_causal_lm(tmp_path, gguf_file="model.gguf")
    with pytest.raises(OSError, match="other.gguf"):
        convert_causal_lm(tmp_path, gguf_file="other.gguf")
    with pytest.raises(ValueError, match="folder.*`gguf_file`"):
        convert_causal_lm(tmp_path / "model.gguf")
    for length in (3, 200, len(whole) // 2):
        (tmp_path / "model.gguf").write_bytes(whole[:length])
        capsys.readouterr()
        assert main(["convert", str(tmp_path), str(tmp_path / "new"), "--gguf-file", "model.gguf"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "new").exists()


def test_the_command_brings_the_tokenizer_and_its_chat_template_along(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    write_gguf(tmp_path / "source" / "model.gguf", gguf_source("llama"))
    command = ["convert", str(tmp_path / "source"), str(tmp_path / "converted"), "--gguf-file", "model.gguf"]
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("parameters in float32\n")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.convert_ids_to_tokens(range(len(TOKENS))) == TOKENS
    original = AutoTokenizer.from_pretrained(tmp_path / "source", gguf_file="model.gguf")
    assert tokenizer("dead beef").input_ids == original("dead beef").input_ids
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert config["converted_from"] == {"model_type": "llama", "name": "source", "gguf_file": "model.gguf"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    expected = LlamaForCausalLM.from_pretrained(tmp_path / "source", gguf_file="model.gguf")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "abc"}], return_tensors="pt", return_dict=True)
    assert_computes_the_same(model, expected)
    assert torch.equal(
        model.generate(**chat, max_new_tokens=5, do_sample=False),
        expected.generate(**chat, max_new_tokens=5, do_sample=False),
    )


def test_the_benchmark_of_real_weights_runs(tmp_path):
    write_gguf(tmp_path / "model.gguf", gguf_source("llama", max_position_embeddings=256))
    output = tmp_path / "report"
    arguments = ["--quick", "--threads", 1, "--folder", tmp_path, "--gguf_file", "model.gguf", "--output_dir", output]
    process = run_script("examples/benchmarks/real_weights.py", *arguments)
    assert process.returncode == 0, process.stderr
    report = read_json(output, "benchmark_real_weights.json")
    ways = [(entry["model"], entry["order"]) for entry in report["real_weights"]]
    orders = ("left_to_right", "random", "confidence")
    assert ways == [
        ("Llama", "left_to_right"),
        *((variant, order) for variant in ("decoupled_rope", "two_stream") for order in orders),
    ]
    reference = report["real_weights"][0]["seconds"]
    for entry in report["real_weights"]:
        assert entry["same_text"] is (True if entry["order"] == "left_to_right" else None)
        assert len(entry["seconds"]) == 2 and entry["new_tokens"] == 4
        assert entry["seconds_to_llama"] == pytest.approx(min(entry["seconds"]) / min(reference))
    one_by_one, _, by_confidence = report["real_weights"][4:]
    ratio = min(by_confidence["seconds"]) / min(one_by_one["seconds"])
    assert by_confidence["seconds_to_left_to_right"] == pytest.approx(ratio)
    assert [each["value"] for each in report["targets"]][1] == pytest.approx(ratio)


def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch):
    write_gguf(tmp_path / "model.gguf", gguf_source("llama"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"package `gguf`.*pip install 'modeling-aoarm\[gguf\]'"):
        convert_causal_lm(tmp_path, gguf_file="model.gguf")
    assert main(["convert", str(tmp_path), str(tmp_path / "new"), "--gguf-file", "model.gguf"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "modeling-aoarm[gguf]" in error
    assert not (tmp_path / "new").exists()
