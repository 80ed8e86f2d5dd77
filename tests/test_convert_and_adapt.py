# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The example as a user runs it: a Llama is trained, converted, adapted and compared; started again, it goes on."""

import math

import pytest
import torch
from peft import PeftModel
from scripts import read_json, run_script
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from modeling_aoarm.data.text import TextArguments, tokenize_and_chunk
from modeling_aoarm.evaluation.likelihood import evaluate_likelihood


FLAGS = ["--source_steps", "6", "--adapt_steps", "4", "--eval_steps", "2", "--save_steps", "2", "--logging_steps", "1"]
FLAGS += [
    "--block_size",
    "24",
    "--per_device_train_batch_size",
    "4",
    "--eval_draws",
    "1",
    "--disable_tqdm",
    "true",
    "--lora_rank",
    "4",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"line {number} of the text that is read" for number in range(80)), encoding="utf-8")
    return path


def run(folder, text, *flags):
    return run_script("examples/convert_and_adapt.py", "--output_dir", folder, "--train_file", text, *FLAGS, *flags)


def test_a_llama_becomes_an_any_order_model_and_a_second_start_only_does_what_is_missing(text, tmp_path):
    folder = tmp_path / "run"
    first = run(folder, text, "--methods", "lora,full", "--attention_variant", "two_stream")
    assert first.returncode == 0, first.stderr
    assert {"source", "converted", "lora", "lora_merged", "full", "adaptation.json", "adaptation.png"} <= {
        path.name for path in folder.iterdir()
    }
    results = read_json(folder, "adaptation.json")
    curves = {name: results["runs"][name]["curve"] for name in ("lora", "full")}
    for curve in curves.values():
        assert [row["step"] for row in curve] == [0, 2, 4] and curve[0]["tokens"] == 0 < curve[1]["tokens"]
    assert curves["lora"][0] == curves["full"][0] and curves["lora"][-1] != curves["full"][-1]
    assert results["runs"]["lora"]["trainable_parameters"] < results["runs"]["full"]["trainable_parameters"] / 3

    # Before the adaptation the figure from left to right is the Llama's own.
    tokenizer = AutoTokenizer.from_pretrained(folder / "source")
    held = tokenize_and_chunk(TextArguments(train_file=str(text)).load()["validation"], tokenizer, 24)
    assert llama_bits(LlamaForCausalLM.from_pretrained(folder / "source"), held, tokenizer) == pytest.approx(
        curves["full"][0]["left_to_right"], abs=1e-5
    )
    # The merged adapter is what was measured.
    characters = sum(held["num_characters"])
    base = AutoModelForCausalLM.from_pretrained(folder / "converted")
    for model in (
        AutoModelForCausalLM.from_pretrained(folder / "lora_merged"),
        PeftModel.from_pretrained(base, folder / "lora"),
    ):
        measured = evaluate_likelihood(model, held, tokenizer, draws=1, characters=characters, progress=False)
        assert measured.bits_per_character == pytest.approx(curves["lora"][-1]["any_order"], abs=1e-4)

    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    second = run(folder, text, "--methods", "lora,full,scratch", "--attention_variant", "two_stream")
    assert second.returncode == 0, second.stderr
    again = read_json(folder, "adaptation.json")
    assert {name: again["runs"][name] for name in ("lora", "full")} == results["runs"]
    assert again["runs"]["scratch"]["curve"][0] != curves["full"][0]
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())


def llama_bits(model, rows, tokenizer):
    """Bits per character of held-out rows, one row at a time."""
    nats = 0.0
    for ids in rows["input_ids"]:
        input_ids = torch.tensor([[tokenizer.bos_token_id, *ids]])
        with torch.no_grad():
            nats += float(model(input_ids, labels=input_ids).loss) * len(ids)
    return nats / sum(rows["num_characters"]) / math.log(2)


def test_wrong_arguments_are_named_before_anything_is_trained(text, tmp_path):
    process = run(tmp_path / "run", text, "--methods", "lora,distil")
    assert process.returncode != 0 and "methods must be among" in process.stderr and "distil" in process.stderr
    assert not (tmp_path / "run").exists()
