# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The example as a user runs it: from text to a model that loads, in one process, in two, and resumed."""

import json
import lzma
import math
import re
import shutil
import socket
import sys

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from scripts import REPOSITORY, losses, read_json, run_script
from test_configuration import pretrain
from transformers import AutoModelForCausalLM, AutoTokenizer
from variants import tiny_model

from modeling_aoarm.data.text import TextArguments, tokenize_and_chunk
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.evaluation.likelihood import evaluate_likelihood


TINY = ["configuration/recipes/pretrain_tiny.yaml", "--cpu_threads", "1", "--disable_tqdm", "true", "--use_cpu", "true"]


def run(folder, *flags, launcher=None):
    return run_script("examples/pretrain.py", *TINY, "--output_dir", folder, *flags, launcher=launcher)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain") / "one"
    process = run(folder)
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


def test_a_run_leaves_model_tokenizer_curve_and_figures(finished):
    folder, output = finished
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "loss_curve.png", "loss_curve.json"} <= names
    assert {"results.json", "trainer_state.json", "checkpoint-6", "checkpoint-12"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    assert (folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    train, evaluations = losses(folder)
    assert len(train) == 12 and len(evaluations) == 2 and train[-1] < train[0]

    results = read_json(folder, "results.json")
    assert results["any_order"]["draws"] == 2 and results["any_order"]["standard_error"] > 0
    assert results["any_order"]["characters"] == results["data"]["held_out_characters"]
    assert results["any_order"]["tokens"] == 2 * results["data"]["held_out_characters"]
    assert results["any_order"]["bits_per_character"] == pytest.approx(results["any_order"]["nll"] / math.log(2))
    assert results["training"]["steps"] == 12 and results["training"]["batch_rows"] == 8
    assert 0 < results["training"]["tokens_seen"] <= 12 * 8 * 33
    assert results["config"]["use_cache"] is True
    assert results["command"].startswith("examples/pretrain.py configuration/recipes/pretrain_tiny.yaml")
    assert results["versions"]["torch"] == torch.__version__
    assert f"{results['any_order']['bits_per_character']:.4f}" in output

    card = ModelCard.load(folder / "README.md")
    assert f"| any order | {results['any_order']['bits_per_character']:.4f} |" in card.text
    assert "| learning rate | 0.005 |" in card.text and "(loss_curve.png)" in card.text
    assert results["command"] in card.text and card.data.model_name == str(folder)

    assert len(results["samples"]) == 2
    for sample in results["samples"]:
        first, second, third = sample["canvas"].split("<blank:3>")
        assert len(sample["filled"]) >= len(sample["original"]) == len(first + second + third) + 6
        assert sample["filled"].startswith(first) and sample["filled"].endswith(third)
        assert sample["filled"].split("\n")[0] in output


def test_the_saved_model_loads_and_has_the_likelihood_that_was_reported(finished):
    folder, _ = finished
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = tokenize_and_chunk(TextArguments().load()["validation"], tokenizer, 32)
    for name, order in (("any_order", "uniform"), ("left_to_right", "left_to_right")):
        expected = read_json(folder, "results.json")[name]
        result = evaluate_likelihood(model, data, tokenizer, order, draws=expected["draws"], progress=False)
        assert result.nll_per_draw == pytest.approx(expected["nll_per_draw"], abs=1e-5)


def launch_two():
    """A command that starts two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*accelerate, "--main_process_port", str(port)]


@pytest.mark.full
def test_two_processes_have_the_losses_of_one(finished, tmp_path):
    folder, _ = finished
    process = run(tmp_path, "--per_device_train_batch_size", "4", launcher=launch_two())
    assert process.returncode == 0, process.stderr
    results = read_json(tmp_path, "results.json")
    assert results["training"]["processes"] == 2 and results["training"]["batch_rows"] == 8
    for two, one in zip(losses(tmp_path), losses(folder), strict=True):
        assert two == pytest.approx(one, abs=2e-5)
    assert results["any_order"]["nll"] == pytest.approx(read_json(folder, "results.json")["any_order"]["nll"], abs=2e-5)
    assert results["training"]["tokens_seen"] == read_json(folder, "results.json")["training"]["tokens_seen"]
    # The checkpoint got its name once, when both had written.
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in (tmp_path / "checkpoint-12").iterdir()}
    assert not (tmp_path / "_incomplete").exists()


def test_a_resumed_run_is_the_uninterrupted_run(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder / "checkpoint-6", tmp_path / "checkpoint-6")
    process = run(tmp_path, "--resume_from_checkpoint", "true")
    assert process.returncode == 0, process.stderr
    assert losses(tmp_path) == losses(folder)
    results, whole = (read_json(path, "results.json") for path in (tmp_path, folder))
    assert results["any_order"] == whole["any_order"]
    assert results["training"]["first_step"] == 6
    assert results["training"]["tokens_seen"] == whole["training"]["tokens_seen"]


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """A run on a stream of a few texts, which it passes more than once, and its flags."""
    folder = tmp_path_factory.mktemp("streamed")
    with lzma.open(folder / "text.jsonl.xz", "wt", encoding="utf-8") as file:
        for number in range(20):
            line = {"text": f"{number} brown foxes — and {number} dogs, {number} times, in {number}."}
            file.write(json.dumps(line) + "\n")
    flags = ["--train_file", folder / "text.jsonl.xz", "--streaming", "true", "--validation_texts", "4"]
    flags += ["--shuffle_buffer_size", "10"]
    process = run(folder / "one", *flags)
    assert process.returncode == 0, process.stderr
    return folder / "one", flags


def test_a_run_on_a_stream_resumes_as_the_uninterrupted_run(streamed, tmp_path):
    folder, flags = streamed
    whole = read_json(folder, "results.json")
    assert whole["data"]["streaming"] and whole["data"]["train_characters"] is None
    # The sample that the unigram entropy comes from, here all 20 texts.
    assert whole["unigram"]["characters"] > 20 * 35 > whole["data"]["held_out_characters"] > 4 * 35
    assert whole["training"]["steps"] == 12
    shutil.copytree(folder / "checkpoint-6", tmp_path / "checkpoint-6")
    process = run(tmp_path, *flags, "--resume_from_checkpoint", "true")
    assert process.returncode == 0, process.stderr
    assert losses(tmp_path) == losses(folder) and len(losses(folder)[0]) == 12
    resumed = read_json(tmp_path, "results.json")
    assert resumed["any_order"] == whole["any_order"] and resumed["training"]["first_step"] == 6
    assert resumed["training"]["tokens_seen"] == whole["training"]["tokens_seen"]


@pytest.mark.full
def test_two_processes_on_a_stream_have_the_losses_of_one(streamed, tmp_path):
    """Of one file each process takes every second row, so that together they have the batches of one process."""
    folder, flags = streamed
    process = run(tmp_path, *flags, "--per_device_train_batch_size", "4", launcher=launch_two())
    assert process.returncode == 0, process.stderr
    assert read_json(tmp_path, "results.json")["training"]["processes"] == 2
    for two, one in zip(losses(tmp_path), losses(folder), strict=True):
        assert two == pytest.approx(one, abs=2e-5)


def test_a_stream_needs_the_number_of_steps(tmp_path):
    flags = ["--streaming", "true", "--train_file", "text.jsonl", "--max_steps", "-1", "--use_cpu", "true"]
    with pytest.raises(ValueError, match="--max_steps must be the number of steps with --streaming, got -1"):
        pretrain.main([*flags, "--output_dir", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it_is_left_alone(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match="is not empty.*--overwrite_output_dir true"):
        pretrain.main(["--output_dir", str(folder), "--use_cpu", "true"])
    with pytest.raises(ValueError, match="nowhere is not a complete checkpoint: trainer_state.json is missing"):
        pretrain.main(["--output_dir", str(folder), "--resume_from_checkpoint", "nowhere", "--use_cpu", "true"])
    with pytest.raises(ValueError, match="checkpoint-12 is at step 12, which is beyond max_steps=11"):
        resume = ["--resume_from_checkpoint", "true", "--max_steps", "11"]
        pretrain.main([str(REPOSITORY / TINY[0]), "--output_dir", str(folder), "--use_cpu", "true", *resume])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_resuming_needs_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="needs a complete checkpoint in .*/new, found none"):
        pretrain.main(["--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint", "true", "--use_cpu", "true"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--tokenizer", "bpe", "--bpe_vocab_size", "300", "--overwrite_output_dir", "true"],
        ["--tokenizer", "byte", "--model_config", "configuration/decoupled_rope", "--join_with", " "],
        ["--model_config", "configuration/causal", "--ema_decay", "0.5"],
    ],
    ids=["bpe", "byte-decoupled_rope", "character-causal"],
)
def test_own_text_in_a_compressed_file(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(REPOSITORY)
    with lzma.open(tmp_path / "text.jsonl.xz", "wt", encoding="utf-8") as file:
        for number in range(30):
            file.write(json.dumps({"text": f"Text number {number}: the quick brown fox — and the dog."}) + "\n")
    monkeypatch.setattr(pretrain, "sample_texts", lambda dataset: dataset[:1]["text"])
    output = tmp_path / "output"
    if "--overwrite_output_dir" in flags:
        (output / "checkpoint-9").mkdir(parents=True)
    sizes = "hidden_size=32,intermediate_size=64,num_hidden_layers=1,num_attention_heads=2"
    common = ["--train_file", str(tmp_path / "text.jsonl.xz"), "--output_dir", str(output), "--config_overrides", sizes]
    common += ["--validation_fraction", "0.2", "--block_size", "16", "--max_steps", "2", "--eval_steps", "2"]
    common += [
        "--per_device_train_batch_size",
        "4",
        "--use_cpu",
        "true",
        "--disable_tqdm",
        "true",
        "--cpu_threads",
        "1",
    ]
    pretrain.main([*common, *flags])
    results = read_json(output, "results.json")
    # Of large texts only a sample is walked through.
    assert 80 < results["unigram"]["characters"] < 120 < results["data"]["train_characters"]
    causal = "configuration/causal" in flags
    assert ("any_order" in results) is not causal
    assert results["left_to_right"]["characters"] == results["data"]["held_out_characters"] + 5 * (
        "--join_with" in flags
    )
    assert results["left_to_right"]["bits_per_character"] > 0
    assert not (output / "checkpoint-9").exists()
    assert AutoModelForCausalLM.from_pretrained(output).config.attention_variant == results["config"].get(
        "attention_variant", "two_stream"
    )
    assert "bits per character" in capsys.readouterr().out


def test_causal_models_refuse_other_orders(tmp_path):
    flags = ["--model_config", str(REPOSITORY / "configuration" / "causal"), "--order", "uniform", "--use_cpu", "true"]
    with pytest.raises(ValueError, match="--order must be left_to_right for the causal variant, got uniform"):
        pretrain.main([*flags, "--output_dir", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_tokens_are_counted():
    rows = Dataset.from_dict({"input_ids": [[number, 9, 3] for number in range(2500)] + [[7]] * 2500})
    assert pretrain.count_token(rows, 9) == 2501 and pretrain.count_token(rows.select([9, 4999, 9]), 9) == 4
    assert pretrain.count_token(rows, 9000) == pretrain.count_token(rows, None) == 0


def test_blanks_are_filled_in_any_text(tmp_path):
    """Backslashes and the form of a blank are text, in front of blanks too."""
    hard = "\\" * 4 + "a" + "<blank>" + "\\" + "b" + "\\" * 4
    tokenizer = character_tokenizer([hard])
    tiny_model("two_stream", vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for text in (hard, "\\" * 20):
        ids = tokenizer.encode(text)
        rows = Dataset.from_dict({"input_ids": [ids[1:], *[ids] * 9]})
        sample, *others = pretrain.fill_blanks(str(tmp_path), rows, 3)
        assert [other["canvas"] for other in others] == [sample["canvas"]] * 2
        length = max(1, len(text) // 10)
        first, second = 2 * len(text) // 5, 4 * len(text) // 5
        pieces = (text[:first], text[first + length : second], text[second + length :])
        assert re.fullmatch("(.*)".join(map(re.escape, pieces)), sample["filled"])
        assert sample["original"] == text
