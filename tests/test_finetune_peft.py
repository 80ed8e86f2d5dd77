# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The fine-tuning example as a user runs it: from a saved model to an adapter that loads, with true figures."""

import json
import math
import random
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import AutoPeftModelForCausalLM
from scripts import load_script, losses, read_json, run_script
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from variants import tiny_model

from modeling_aoarm.data.collators import DataCollatorForAnyOrderLM
from modeling_aoarm.data.text import TextArguments
from modeling_aoarm.data.tokenizers import character_tokenizer, train_bpe_tokenizer


finetune_peft = load_script("examples/finetune_peft.py")

WORDS = "the cat sat on a mat and the dog ate it all before noon".split()
FLAGS = {
    "--validation_fraction": "0.2",
    "--block_size": "24",
    "--longest_middle": "6",
    "--max_steps": "4",
    "--eval_steps": "2",
    "--save_steps": "2",
    "--save_total_limit": "5",
    "--logging_steps": "1",
    "--per_device_train_batch_size": "8",
    "--final_eval_draws": "3",
    "--sample_rows": "2",
    "--use_cpu": "true",
    "--disable_tqdm": "true",
}


def run(folder, output, *flags, **kwargs):
    arguments = ["--train_file", "text.jsonl", "--model_name_or_path", "base", "--output_dir", output]
    arguments += [part for flag in FLAGS.items() for part in flag]
    variables = {"HF_DATASETS_CACHE": str(folder / "cache")}
    return run_script("examples/finetune_peft.py", *arguments, *flags, cwd=folder, **kwargs, **variables)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a text, a base model and what a run made of them, and what it printed."""
    folder = tmp_path_factory.mktemp("finetune")
    choose = random.Random(0)
    texts = [" ".join(choose.choices(WORDS, k=14)) for _ in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tokenizer = character_tokenizer(texts)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    tiny_model("two_stream", vocab_size=len(tokenizer), **special).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    before = {path: path.stat().st_mtime_ns for path in (folder / "base").rglob("*")}
    process = run(folder, "output", "--merge_and_save", "true")
    assert process.returncode == 0, process.stderr
    assert {path: path.stat().st_mtime_ns for path in (folder / "base").rglob("*")} == before
    return folder, process.stdout


@pytest.fixture(scope="module")
def held_out(finished):
    folder, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    texts = TextArguments(train_file=str(folder / "text.jsonl"), validation_fraction=0.2).load()
    arguments = finetune_peft.InfillingArguments(block_size=24, longest_middle=6)
    return arguments.middles(texts["validation"], tokenizer, 1), tokenizer


def filled_row_by_row(model, dataset, tokenizer):
    """Nats of all middles from left to right, and which greedy tokens are right: an uncached pass for each token."""
    nll, fillings = 0.0, []
    for ids, labels in zip(dataset["input_ids"], dataset["labels"], strict=True):
        canvas = torch.tensor([tokenizer.bos_token_id, *ids])
        blank = torch.tensor([-100, *labels]) != -100
        columns, filled = (~blank).nonzero().flatten(), canvas.clone()
        for column in blank.nonzero().flatten():
            targets = torch.cat([columns[1:], column[None]])
            for tokens in (canvas, filled):
                with torch.no_grad():
                    logits = model(
                        tokens[columns][None], position_ids=columns[None], target_position_ids=targets[None]
                    ).logits[0, -1]
                if tokens is canvas:
                    nll -= float(logits.double().log_softmax(-1)[canvas[column]])
                else:
                    # No sentence ends before a suffix.
                    logits[tokenizer.eos_token_id] = -torch.inf
                    filled[column] = logits.argmax()
            columns = torch.cat([columns, column[None]])
        fillings.append((filled[blank] == canvas[blank]).tolist())
    return nll, fillings


def test_a_run_leaves_adapter_tokenizer_curve_card_and_figures(finished):
    folder, printed = finished
    output = folder / "output"
    names = {path.name for path in output.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md", "merged"} <= names
    assert {"results.json", "loss_curve.json", "trainer_state.json", "checkpoint-2", "checkpoint-4"} <= names
    assert "model.safetensors" not in names and "_incomplete" not in names
    assert (output / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    train, evaluations = losses(output)
    assert len(train) == 4 and len(evaluations) == 3 and evaluations[-1] < evaluations[0]

    results = read_json(output, "results.json")
    assert results["adapter"]["modules_to_save"] == ["query_embedding"]
    # Seven matrices in each of three layers, of rank 16, and the query vector.
    sizes = 3 * 16 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 48) * 3) + 32
    assert results["trained_parameters"] == results["training"]["trained_parameters"] == sizes
    assert results["training"]["steps"] == 4 and results["before"]["any_order"]["draws"] == 3
    assert results["after"]["any_order"]["nll"] == pytest.approx(evaluations[-1], abs=0.3)
    assert results["after"]["any_order"]["nll"] < results["before"]["any_order"]["nll"]
    assert results["versions"]["peft"] and results["command"].startswith("examples/finetune_peft.py --train_file")
    for name in ("before", "after"):
        figures = results[name]["left_to_right"]
        assert figures["bits_per_character"] == pytest.approx(figures["nll"] / math.log(2))
        assert f"{figures['nll']:.4f}" in printed
    assert len(results["samples"]) == 2
    for sample in results["samples"]:
        before, after = sample["canvas"].split("<blank:")
        after = after.split(">", 1)[1]
        assert sample["original"].startswith(before) and sample["original"].endswith(after)
        assert sample["filled"].startswith(before) and sample["filled"].endswith(after)
        assert sample["filled"] in printed
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "library_name: peft" in card
    assert f"| middles, any order | {results['after']['any_order']['bits_per_character']:.4f} |" in card
    assert f"| before: any order, nats per token | {results['before']['any_order']['nll']:g} |" in card
    assert 'from_pretrained("base", trust_remote_code=True)' in card


def test_the_figures_are_those_of_the_saved_adapter_and_of_the_base(finished, held_out, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    dataset, tokenizer = held_out
    results = read_json(folder / "output", "results.json")
    merged = AutoModelForCausalLM.from_pretrained("output/merged")
    models = {
        "before": AutoModelForCausalLM.from_pretrained("base"),
        "after": AutoPeftModelForCausalLM.from_pretrained("output"),
    }
    assert merged.config.use_cache
    for name, model in models.items():
        nll, fillings = filled_row_by_row(model, dataset, tokenizer)
        figures = results[name]["left_to_right"]
        assert figures["nll"] * figures["tokens"] == pytest.approx(nll, abs=1e-3)
        assert results[name]["exact_match"] == pytest.approx(sum(map(all, fillings)) / len(dataset))
        right = sum(map(sum, fillings))
        assert results[name]["token_accuracy"] == pytest.approx(right / sum(map(len, fillings)))
    assert filled_row_by_row(merged, dataset, tokenizer)[0] == pytest.approx(nll, abs=1e-3)
    assert AutoTokenizer.from_pretrained("output/merged").get_vocab() == tokenizer.get_vocab()


def test_processes_share_the_measuring_and_have_the_figures_of_one(finished, held_out):
    """Nobody waits while another measures: a wait of half an hour ends a run."""
    folder, _ = finished
    dataset, tokenizer = held_out
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    how = (model, dataset, tokenizer, 5)

    class Process(Accelerator):
        process_index, num_processes = 0, 2

        def reduce(self, counts, reduction):
            reduced.append(counts)
            return counts

    reduced, filled, generate = [], [], model.generate
    model.generate = lambda **batch: filled.append(len(batch["input_ids"])) or generate(**batch)
    one = finetune_peft.accuracy(*how, Accelerator(cpu=True))
    rows = sum(filled)
    assert rows == len(dataset) and len(filled) % 2 == 1
    for Process.process_index in (0, 1):
        filled.clear()
        finetune_peft.accuracy(*how, Process(cpu=True))
        assert 0 < sum(filled) < rows
    exact, right, tokens = sum(reduced).tolist()
    assert one == {"exact_match": exact / len(dataset), "token_accuracy": right / tokens}


@pytest.mark.full
def test_two_processes_have_the_figures_of_one(finished):
    folder, _ = finished
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", str(port)]
    process = run(folder, "two", "--per_device_train_batch_size", "4", launcher=launcher)
    assert process.returncode == 0, process.stderr
    two, whole = (read_json(folder / name, "results.json") for name in ("two", "output"))
    for name in ("before", "after"):
        assert two[name]["any_order"]["nll"] == pytest.approx(whole[name]["any_order"]["nll"], abs=1e-3)
        assert two[name]["token_accuracy"] == pytest.approx(whole[name]["token_accuracy"], abs=0.02)
    assert two["before"]["exact_match"] == whole["before"]["exact_match"]


def test_no_second_model_is_loaded_for_measuring(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    monkeypatch.setattr(AutoPeftModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    arguments = ["--train_file", "text.jsonl", "--model_name_or_path", "base", "--output_dir", "single"]
    finetune_peft.main([*arguments, *(part for flag in FLAGS.items() for part in flag), "--max_steps", "1"])
    assert read_json(folder / "single", "results.json")["after"]


def test_a_middle_lies_inside_its_row_and_only_it_is_learned(held_out):
    dataset, tokenizer = held_out
    lengths = set()
    for example in dataset:
        learned = [column for column, label in enumerate(example["labels"]) if label != -100]
        assert learned == list(range(learned[0], learned[-1] + 1))
        assert 0 < learned[0] and learned[-1] < len(example["input_ids"]) - 1
        assert [example["labels"][column] for column in learned] == [example["input_ids"][column] for column in learned]
        assert example["num_characters"] == len(learned)
        lengths.add(len(learned))
    assert lengths == set(range(2, 7))
    example = dataset[0]
    batch = DataCollatorForAnyOrderLM(tokenizer)([example])
    learned = [label for label in example["labels"] if label != -100]
    assert sorted(batch["labels"][batch["labels"] != -100].tolist()) == sorted(learned)
    assert (batch["labels"][0, : -len(learned)] == -100).all()


def test_middles_are_several_for_each_row_and_characters_are_counted_for_any_tokenizer(finished):
    folder, _ = finished
    texts = TextArguments(train_file=str(folder / "text.jsonl"), validation_fraction=0.2).load()["validation"]
    tokenizer = train_bpe_tokenizer(texts["text"], 300)
    arguments = finetune_peft.InfillingArguments(block_size=12, longest_middle=4, shortest_middle=3)
    dataset = arguments.middles(texts, tokenizer, 3)
    assert dataset["example_index"] == list(range(len(dataset))) and len(dataset) % 3 == 0
    for start in range(0, len(dataset), 3):
        three = dataset[start : start + 3]
        assert three["input_ids"][0] == three["input_ids"][1] == three["input_ids"][2]
    assert len({tuple(labels) for labels in dataset["labels"]}) > len(dataset) // 2
    for labels, characters in zip(dataset["labels"], dataset["num_characters"], strict=True):
        learned = [label for label in labels if label != -100]
        assert 3 <= len(learned) <= 4 and characters == len(tokenizer.decode(learned))
    assert arguments.middles(texts, tokenizer, 3)["labels"] == dataset["labels"]
    other = finetune_peft.InfillingArguments(block_size=12, longest_middle=4, shortest_middle=3, middle_seed=1)
    assert other.middles(texts, tokenizer, 3)["labels"] != dataset["labels"]


def test_a_resumed_run_is_the_uninterrupted_run(finished):
    folder, _ = finished
    shutil.copytree(folder / "output" / "checkpoint-2", folder / "resumed" / "checkpoint-2")
    process = run(folder, "resumed", "--resume_from_checkpoint", "true")
    assert process.returncode == 0, process.stderr
    assert losses(folder / "resumed") == losses(folder / "output")
    resumed, whole = (read_json(folder / name, "results.json") for name in ("resumed", "output"))
    assert (resumed["before"], resumed["after"]) == (whole["before"], whole["after"])
    assert not (folder / "resumed" / "merged").exists()


def test_a_folder_with_something_in_it_is_left_alone(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="--output_dir output is not empty.*--overwrite_output_dir true"):
        finetune_peft.main(["--model_name_or_path", "base", "--output_dir", "output", "--use_cpu", "true"])


def test_a_run_that_overwrites_leaves_no_checkpoint_of_the_one_before(finished):
    """A later resume would go on from it."""
    folder, _ = finished
    shutil.copytree(folder / "output" / "checkpoint-4", folder / "again" / "checkpoint-9")
    process = run(folder, "again", "--overwrite_output_dir", "true", "--max_steps", "2")
    assert process.returncode == 0, process.stderr
    assert {path.name for path in (folder / "again").glob("checkpoint-*")} == {"checkpoint-2"}


def test_the_base_must_be_there_and_fill_middles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tiny_model("causal").save_pretrained("causal")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=9, **sizes)).save_pretrained("llama")
    for name, message in (
        ("nobody/nothing", "a folder with a model or a name on the Hub, got nobody/nothing"),
        ("outputs/pretrain", "a folder with a model or a name on the Hub, got outputs/pretrain. `make pretrain` makes"),
        ("causal", "must be an any-order model.*got causal, .*attention_variant=causal"),
        ("llama", "must be an any-order model.*got llama, model_type=llama, attention_variant=None.*convert"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune_peft.main(["--model_name_or_path", name, "--output_dir", "output", "--use_cpu", "true"])
    assert not Path("output").exists()


def test_lengths_of_middles_are_checked(finished):
    folder, _ = finished
    with pytest.raises(ValueError, match="shortest_middle must lie between 1 and .*, here 4; got 5"):
        finetune_peft.InfillingArguments(shortest_middle=5, block_size=6)
    texts = TextArguments(train_file=str(folder / "text.jsonl"), validation_fraction=0.2).load()["validation"]
    arguments = finetune_peft.InfillingArguments(shortest_middle=90, longest_middle=99, block_size=200)
    with pytest.raises(ValueError, match="must have rows of 92 tokens at least, got none"):
        arguments.middles(texts, character_tokenizer(texts["text"]), 1)
