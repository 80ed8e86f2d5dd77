# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The adaptation example as a user runs it: from a decoder to an adapter that loads, with true figures."""

import json
import math
import random
import shutil
import socket
import string
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from scripts import load_script, read_json, run_script
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from variants import tiny_model

from modeling_aoarm.data.text import TextArguments, reference_texts
from modeling_aoarm.data.tokenizers import byte_tokenizer


adapt_decoder = load_script("examples/adapt_decoder.py")

WORDS = "the cat sat on a mat and the dog ate it all before noon".split()
FLAGS = {
    "--model_name_or_path": "decoder",
    "--train_file": "text.jsonl",
    "--validation_fraction": "0.2",
    "--block_size": "24",
    "--longest_middle": "6",
    "--margin": "3",
    "--eval_windows": "6",
    "--final_windows": "12",
    "--sample_rows": "3",
    "--max_steps": "4",
    "--eval_steps": "2",
    "--save_steps": "2",
    "--save_total_limit": "5",
    "--logging_steps": "1",
    "--learning_rate": "1e-2",
    "--use_cpu": "true",
    "--disable_tqdm": "true",
}


def run(folder, output, *flags, **kwargs):
    arguments = ["--output_dir", output, *(part for flag in FLAGS.items() for part in flag), *flags]
    variables = {"HF_DATASETS_CACHE": str(folder / "cache")}
    return run_script("examples/adapt_decoder.py", *arguments, cwd=folder, **kwargs, **variables)


def save_decoder(folder):
    """A small Llama over bytes, with weights of a size at which every part matters."""
    tokenizer = byte_tokenizer()
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.1, **sizes, **special
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a text, a decoder and what a run made of them, and what it printed."""
    folder = tmp_path_factory.mktemp("adapt")
    choose = random.Random(0)
    texts = [" ".join(choose.choices(WORDS, k=16)) for _ in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    save_decoder(folder / "decoder")
    before = {path: path.stat().st_mtime_ns for path in (folder / "decoder").rglob("*")}
    process = run(folder, "output", "--merge_and_save", "true")
    assert process.returncode == 0, process.stderr
    assert {path: path.stat().st_mtime_ns for path in (folder / "decoder").rglob("*")} == before
    return folder, process.stdout


@pytest.fixture(scope="module")
def held_out(finished):
    folder, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(folder / "decoder")
    settings = adapt_decoder.AdaptationArguments(
        train_file=str(folder / "text.jsonl"), validation_fraction=0.2, block_size=24, longest_middle=6, margin=3
    )
    return adapt_decoder.hold_out(settings, tokenizer, settings.load()["validation"], 12)[0], tokenizer


def score_and_fill_token_by_token(model, held_out, tokenizer, sees_right):
    """Nats of all blanks, and which greedy tokens are right: an uncached pass for each token."""
    nll, fillings = [], []
    for ids, blank in zip(held_out.rows["input_ids"], held_out.blanks, strict=True):
        canvas = torch.tensor([tokenizer.bos_token_id, *ids])
        is_blank = torch.zeros_like(canvas, dtype=torch.bool)
        is_blank[blank.start : blank.start + blank.length] = True
        given = ~is_blank
        if not sees_right:
            given[blank.start :] = False
        columns, filled, nats = given.nonzero().flatten(), canvas.clone(), 0.0
        for column in is_blank.nonzero().flatten():
            targets = torch.cat([columns[1:], column[None]])
            for tokens in (canvas, filled):
                with torch.no_grad():
                    logits = model(
                        tokens[columns][None], position_ids=columns[None], target_position_ids=targets[None]
                    ).logits[0, -1]
                if tokens is canvas:
                    nats -= float(logits.double().log_softmax(-1)[canvas[column]])
                else:
                    filled[column] = logits.argmax()
            columns = torch.cat([columns, column[None]])
        nll.append(nats)
        fillings.append((filled[is_blank] == canvas[is_blank]).tolist())
    return nll, fillings


def test_a_run_leaves_adapter_control_merged_model_curve_card_and_figures(finished):
    folder, printed = finished
    output = folder / "output"
    names = {path.name for path in output.iterdir()}
    expected = {"adapted", "control", "converted", "merged", "adaptation.json", "adaptation.png", "settings.json"}
    assert names == expected
    adapted = {path.name for path in (output / "adapted").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= adapted
    assert {"checkpoint-2", "checkpoint-4"} <= adapted and "model.safetensors" not in adapted
    assert (output / "adaptation.png").read_bytes().startswith(b"\x89PNG")

    results = read_json(output, "adaptation.json")
    runs = results["runs"]
    # Seven matrices of rank 16 in each of two layers; two_stream has its query vector too.
    matrices = 2 * 16 * (4 * (32 + 32) + 3 * (32 + 48))
    assert runs["control"]["trained_parameters"] == matrices
    assert runs["adapted"]["trained_parameters"] == matrices + 32
    for run in runs.values():
        assert [point["step"] for point in run["curve"]] == [0, 2, 4]
        assert run["curve"][0]["tokens"] == 0 < run["curve"][1]["tokens"]
    # The control has seen the same tokens.
    tokens = [[point["tokens"] for point in runs[name]["curve"]] for name in ("adapted", "control")]
    assert tokens[0] == tokens[1]
    assert results["command"].startswith("examples/adapt_decoder.py --output_dir output")
    for task, figures in runs["adapted"]["after"].items():
        before = runs["adapted"]["before"][task]["nats_per_token"]
        assert f"{task.replace('_', ' ')}: {before:.3f} → {figures['nats_per_token']:.3f}" in printed
        assert figures["nats_per_token"] < before
    samples = runs["adapted"]["samples"]
    reference = "".join(reference_texts())
    assert len(samples) == 3
    for sample in samples:
        before, after = sample["canvas"].split("<blank:")
        length, after = after.split(">", 1)
        # One byte for each token.
        assert f"{before}{sample['original']}{after}" in reference and len(sample["original"].encode()) == int(length)
    card = (output / "adapted" / "README.md").read_text(encoding="utf-8")
    assert "library_name: peft" in card and 'from_pretrained("output/converted", trust_remote_code=True)' in card


def test_the_figures_are_those_of_the_saved_models(finished, held_out, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    held, tokenizer = held_out
    runs = read_json(folder / "output", "adaptation.json")["runs"]
    models = {
        ("adapted", "before"): AutoModelForCausalLM.from_pretrained("output/converted"),
        ("adapted", "after"): AutoPeftModelForCausalLM.from_pretrained("output/adapted"),
    }
    merged = AutoModelForCausalLM.from_pretrained("output/merged")
    assert merged.config.use_cache
    for (name, time), model in models.items():
        for task, sees_right in (("both_sides", True), ("left_side", False)):
            nll, fillings = score_and_fill_token_by_token(model, held, tokenizer, sees_right)
            figures = runs[name][time][task]
            assert figures["blank_nats"] == pytest.approx(nll, abs=1e-3)
            assert figures["nats_per_token"] == pytest.approx(sum(nll) / sum(map(len, fillings)), abs=1e-3)
            assert figures["exact"] == pytest.approx(sum(map(all, fillings)) / len(fillings))
            assert figures["tokens"] == pytest.approx(sum(map(sum, fillings)) / sum(map(len, fillings)))
    both = runs["adapted"]["after"]["both_sides"]["blank_nats"]
    assert score_and_fill_token_by_token(merged, held, tokenizer, True)[0] == pytest.approx(both, abs=1e-3)


def test_the_left_side_before_is_the_decoder_itself(finished, held_out):
    folder, _ = finished
    held, tokenizer = held_out
    runs = read_json(folder / "output", "adaptation.json")["runs"]
    decoder = LlamaForCausalLM.from_pretrained(folder / "decoder")
    blank_nats, nats, tokens = [], 0.0, 0
    for ids, blank in zip(held.rows["input_ids"], held.blanks, strict=True):
        row = torch.tensor([[tokenizer.bos_token_id, *ids]])
        with torch.no_grad():
            log_probs = decoder(row).logits[0, :-1].double().log_softmax(-1)
        own = -log_probs.gather(1, row[0, 1:, None])[:, 0]
        blank_nats.append(float(own[blank.start - 1 : blank.start - 1 + blank.length].sum()))
        nats, tokens = nats + float(own.sum()), tokens + len(own)
    for name in ("adapted", "control"):
        assert runs[name]["before"]["left_side"]["blank_nats"] == pytest.approx(blank_nats, abs=1e-3)
        assert runs[name]["before"]["left_to_right"]["nats_per_token"] == pytest.approx(nats / tokens, abs=1e-4)
    difference = runs["adapted"]["differences"]["trained decoder"]
    sums = [sum(runs["adapted"]["after"]["both_sides"]["blank_nats"])]
    sums.append(sum(runs["control"]["after"]["left_side"]["blank_nats"]))
    count = sum(blank.length for blank in held.blanks)
    assert difference["nats_per_token"] == pytest.approx((sums[0] - sums[1]) / count)


def test_a_held_out_middle_is_inside_its_row_and_only_it_is_learned(held_out):
    held, tokenizer = held_out
    lengths = set()
    for sees_right in (True, False):
        rows = held.middles(tokenizer, sees_right)
        for ids, labels, whole, blank in zip(
            rows["input_ids"], rows["labels"], held.rows["input_ids"], held.blanks, strict=True
        ):
            learned = [column for column, label in enumerate(labels) if label != -100]
            # The BOS is a column of the canvas and no token of the row.
            assert learned == list(range(blank.start - 1, blank.start - 1 + blank.length))
            assert [labels[column] for column in learned] == [whole[column] for column in learned]
            assert ids == (whole if sees_right else whole[: learned[-1] + 1])
            assert 3 <= blank.start and blank.start + blank.length <= len(whole) + 1 - 3
            lengths.add(blank.length)
    assert lengths <= set(range(2, 7)) and len(lengths) > 2


def test_a_stopped_run_goes_on_with_the_same_losses_and_a_finished_one_is_left_alone(finished):
    folder, _ = finished
    whole = folder / "output"
    for name in ("settings.json", "converted", "adapted/checkpoint-2"):
        source, target = whole / name, folder / "resumed" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    process = run(folder, "resumed", "--merge_and_save", "true")
    assert process.returncode == 0, process.stderr
    one, other = (read_json(path, "adaptation.json")["runs"] for path in (whole, folder / "resumed"))
    assert [[run[key] for key in ("curve", "before", "after")] for run in one.values()] == [
        [run[key] for key in ("curve", "before", "after")] for run in other.values()
    ]
    checkpoints = {path: path.stat().st_mtime_ns for path in folder.glob("resumed/*/checkpoint-*/*.safetensors")}
    assert run(folder, "resumed", "--merge_and_save", "true").returncode == 0
    assert read_json(folder / "resumed", "adaptation.json")["runs"]["adapted"]["after"] == one["adapted"]["after"]
    assert all(path.stat().st_mtime_ns == time for path, time in checkpoints.items())


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
    two, whole = (read_json(folder / name, "adaptation.json")["runs"] for name in ("two", "output"))
    for name, time in (("adapted", "before"), ("adapted", "after"), ("control", "after")):
        for task, figures in whole[name][time].items():
            assert two[name][time][task]["nats_per_token"] == pytest.approx(figures["nats_per_token"], abs=2e-3)


def test_an_adapted_model_learns_from_the_right_side(tmp_path, monkeypatch):
    """Each capital letter repeats the small letter before it, so the small one follows from the text on its right."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    choose = random.Random(0)
    texts = ["".join(x + x.upper() for x in choose.choices(string.ascii_lowercase[:8], k=10)) for _ in range(400)]
    Path("text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    save_decoder(tmp_path / "decoder")
    flags = {**FLAGS, "--block_size": "20", "--shortest_middle": "1", "--longest_middle": "1", "--margin": "2"}
    flags |= {"--max_steps": "300", "--eval_steps": "300", "--save_steps": "300", "--method": "full"}
    flags |= {"--per_device_train_batch_size": "32"}
    flags |= {"--order": "0.8*block(1)+0.2*left_to_right", "--final_windows": "60"}
    adapt_decoder.main(["--output_dir", "output", *(part for flag in flags.items() for part in flag)])
    runs = read_json(tmp_path / "output", "adaptation.json")["runs"]
    both, left = (runs["adapted"]["after"][task]["nats_per_token"] for task in ("both_sides", "left_side"))
    # Half of the blanks are small letters, with eight equally likely values from the left, and one from both sides.
    assert both < left - 0.5 * math.log(8) / 2
    assert both < runs["control"]["after"]["left_side"]["nats_per_token"] - 0.5 * math.log(8) / 2
    assert not (tmp_path / "output" / "adapted" / "adapter_config.json").exists()


def test_an_any_order_model_is_adapted_as_it_is_and_has_no_control(finished):
    folder, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(folder / "decoder")
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model = tiny_model("adaptive_norm", vocab_size=len(tokenizer), **special)
    model.save_pretrained(folder / "any_order")
    tokenizer.save_pretrained(folder / "any_order")
    process = run(
        folder, "again", "--model_name_or_path", "any_order", "--max_steps", "2", "--context_order", "suffix_first"
    )
    assert process.returncode == 0, process.stderr
    runs = read_json(folder / "again", "adaptation.json")["runs"]
    assert list(runs) == ["adapted"] and runs["adapted"]["after"] != runs["adapted"]["before"]
    saved = AutoModelForCausalLM.from_pretrained(folder / "again" / "converted")
    assert saved.config.attention_variant == "adaptive_norm"


def test_a_stream_is_adapted_to_and_goes_on_with_the_same_losses(finished):
    folder, _ = finished
    # The first 20 texts are held out, and the stream goes on without them.
    flags = ["--streaming", "true", "--validation_fraction", "0.06", "--validation_texts", "20"]
    flags += ["--shuffle_buffer_size", "7", "--control", "false"]
    assert run(folder, "stream", *flags).returncode == 0
    whole = read_json(folder / "stream", "adaptation.json")
    assert whole["data"]["train_rows"] is None
    for name in ("settings.json", "converted", "adapted/checkpoint-2"):
        source, target = folder / "stream" / name, folder / "stream_resumed" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    process = run(folder, "stream_resumed", *flags)
    assert process.returncode == 0, process.stderr
    resumed = read_json(folder / "stream_resumed", "adaptation.json")
    assert resumed["runs"]["adapted"]["curve"] == whole["runs"]["adapted"]["curve"]
    assert resumed["runs"]["adapted"]["after"] == whole["runs"]["adapted"]["after"]


def test_a_folder_with_another_run_is_left_alone(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    settings = (folder / "output" / "settings.json").read_bytes()
    arguments = ["--output_dir", "output", *(part for flag in FLAGS.items() for part in flag)]
    with pytest.raises(ValueError, match="output holds a run with learning_rate=0.01, got 0.02"):
        adapt_decoder.main([*arguments, "--merge_and_save", "true", "--learning_rate", "2e-2"])
    assert (folder / "output" / "settings.json").read_bytes() == settings


def test_wrong_arguments_are_named_before_anything_is_written(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for flags, message in (
        (["--method", "prefix"], "--method must be lora or full, got 'prefix'"),
        (["--attention_variant", "causal"], "--attention_variant must be two_stream or decoupled_rope, got 'causal'"),
        (["--block_size", "20"], "--block_size must have room for .*, 32; got 20"),
        ([], "the default .*gguf is not there. Download it with `make weights`"),
    ):
        with pytest.raises(ValueError, match=message):
            adapt_decoder.main(["--output_dir", "output", "--use_cpu", "true", *flags])
    tiny_model("causal").save_pretrained("causal")
    byte_tokenizer().save_pretrained("causal")
    flags = [part for flag in FLAGS.items() for part in flag]
    text = finished[0] / "text.jsonl"
    with pytest.raises(ValueError, match="sees both sides of a blank, got causal with attention_variant='causal'"):
        adapt_decoder.main(
            [*flags, "--output_dir", "output", "--model_name_or_path", "causal", "--train_file", str(text)]
        )
    assert not Path("output").exists()


def test_text_that_is_too_short_is_named(finished, held_out):
    folder, _ = finished
    _, tokenizer = held_out
    settings = adapt_decoder.AdaptationArguments(block_size=200, train_file=str(folder / "text.jsonl"))
    texts = TextArguments(train_file=str(folder / "text.jsonl")).load()["validation"]
    with pytest.raises(ValueError, match="--block_size must be at most the length of a held-out text, got 200"):
        adapt_decoder.hold_out(settings, tokenizer, texts, 4)
