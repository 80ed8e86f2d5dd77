# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The examples as a user runs them: figures of the package's functions, and in their files the examples behind them."""

import importlib.util
import itertools
import math
import sys

import datasets
import numpy as np
import pytest
import torch
from scripts import REPOSITORY, load_script, read_json, run_script
from variants import tiny_model

from modeling_aoarm.data.text import TextArguments, tokenize_and_chunk
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.evaluation import collect_vocabulary, evaluate_likelihood, measure_coherence, measure_diversity


WORDS = ("abba", "baobab", "cab", "dab", "cocoa", "boa")
LINES = [" ".join(line) for line in itertools.permutations(WORDS, 4)][:40]
SMALL = ("--max_examples", 5, "--block_size", 12, "--num_orders", 4, "--elbo_draws", 4)
SMALL += ("--blank_lengths", 1, 3, "--context_orders", 2, "--num_samples", 3, "--temperatures", 0.7, 1.0)
SMALL += ("--device", "cpu", "--batch_size", 4)
FIGURES = {"any_order", "left_to_right", "elbo", "bound", "infilling", "context_orders", "samples"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Untrained models with their tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "text.txt").write_text("\n".join(LINES), encoding="utf-8")
    tokenizer = character_tokenizer(LINES)
    for variant in ("two_stream", "bidirectional", "causal"):
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
        tiny_model(variant, vocab_size=len(tokenizer), **special).save_pretrained(folder / variant)
        tokenizer.save_pretrained(folder / variant)
    return folder


@pytest.fixture(scope="module")
def script():
    """The script as a module, not under its own name, which is that of a library."""
    specification = importlib.util.spec_from_file_location("evaluate_example", REPOSITORY / "examples" / "evaluate.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["evaluate_example"] = module
    specification.loader.exec_module(module)
    return module


def arguments(folder, variant, output, *flags):
    data = ("--train_file", folder / "text.txt", "--validation_fraction", 0.25)
    chosen = ("--model", folder / variant, "--output_dir", output)
    return [str(each) for each in (*chosen, *data, *SMALL, *flags)]


@pytest.fixture(scope="module")
def finished(folder):
    """What a run with all measures of a two-stream model leaves, and what it prints."""
    flags = arguments(folder, "two_stream", folder / "all", "--judge", folder / "causal")
    process = run_script("examples/evaluate.py", *flags)
    assert process.returncode == 0, process.stderr
    return folder / "all", process.stdout


def examples(folder, name):
    return datasets.Dataset.from_parquet(str(folder / f"{name}.parquet"), cache_dir=str(folder / "cache"))


def test_a_run_leaves_figures_examples_and_pictures(finished):
    folder, output = finished
    pictures = {"bound.png", "infilling.png", "context_orders.png", "samples.png"}
    parquet = {"likelihoods.parquet", "infilling.parquet", "samples.parquet"}
    assert {path.name for path in folder.iterdir() if path.is_file()} == pictures | parquet | {"evaluation.json"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    report = read_json(folder, "evaluation.json")
    assert set(report) & FIGURES == FIGURES - {"elbo"}
    assert list(report["left_out"]) == ["elbo"] and "elbo is left out: minus the ELBO is the any-order NLL." in output
    assert report["command"].startswith("examples/evaluate.py --model") and report["settings"]["num_orders"] == 4
    assert report["model"]["attention_variant"] == "two_stream" and report["data"]["examples"] == 5
    assert f"{report['any_order']['bits_per_character']:.4f}" in output
    assert f"{report['samples'][0]['generative_perplexity']:.4f}" in output


def test_the_examples_sum_to_the_figures(finished):
    folder, _ = finished
    report, rows = read_json(folder, "evaluation.json"), examples(folder, "likelihoods")
    characters, tokens = sum(rows["characters"]), sum(rows["tokens"])
    assert characters == report["data"]["characters"] == sum(map(len, rows["text"]))
    for name, draws in (("any_order", 4), ("left_to_right", 1)):
        nats = np.array(rows[f"{name}_nats"][:])
        assert nats.shape == (5, draws)
        assert report[name]["nll"] == pytest.approx(nats.mean(1).sum() / tokens)
        assert report[name]["bits_per_character"] == pytest.approx(nats.mean(1).sum() / characters / math.log(2))
    for row in report["bound"]:
        nats = np.array(rows[f"bound_{row['orders']}_nats"][:])
        assert row["bits_per_character"] == pytest.approx(nats.sum() / characters / math.log(2))
    assert [row["orders"] for row in report["bound"]] == [1, 2, 4]

    rows = examples(folder, "infilling")
    for row in report["infilling"]:
        chosen = np.array(rows["blank_length"][:]) == row["blank_length"]
        assert row["blanks"] == chosen.sum()
        nats, right = (np.array(rows[name][:])[chosen] for name in ("nats", "right_tokens"))
        assert row["nll"] == pytest.approx(nats.sum() / chosen.sum() / row["blank_length"])
        assert row["token_accuracy"] == pytest.approx(right.mean() / row["blank_length"])
        assert row["accuracy"] == pytest.approx(np.array(rows["is_right"][:])[chosen].mean())
    texts = dict(zip(*(examples(folder, "likelihoods")[name][:] for name in ("example_index", "text")), strict=True))
    for row in rows:
        assert texts[row["example_index"]][row["start"] :].startswith(row["blank"])
        assert len(row["blank"]) == row["blank_length"] and (row["blank"] == row["filled"]) == row["is_right"]
    averages = report["context_orders"]["averages"]
    for row in averages:
        total = sum(rows[f"context_orders_{row['orders']}_nats"])
        assert row["nll"] == pytest.approx(total / sum(rows["blank_length"]))
    assert report["context_orders"]["own_order_nll"] == pytest.approx(sum(rows["nats"]) / sum(rows["blank_length"]))

    rows = examples(folder, "samples")
    vocabulary = collect_vocabulary(
        TextArguments(train_file=str(folder.parent / "text.txt"), validation_fraction=0.25).load()["train"]["text"]
    )
    orders = ["random", "random", "left_to_right", "left_to_right"]
    settings = list(zip(["held-out text", *orders], [None, 0.7, 1.0, 0.7, 1.0], strict=True))
    assert [(row["order"], row["temperature"]) for row in report["samples"]] == settings
    for row in report["samples"]:
        own = [each for each in rows if (each["order"], each["temperature"]) == (row["order"], row["temperature"])]
        sampled = [each["text"] for each in own]
        assert len(own) == row["samples"] == 3
        known, long = (sum(each[name] for each in own) for name in ("known_long_words", "long_words"))
        assert (row["coherence"] is None) == (long == 0)
        if long:
            assert row["coherence"] == pytest.approx(known / long) == measure_coherence(sampled, vocabulary)
        assert row["diversity"] == measure_diversity(sampled, row["diversity_words"])
        assert row["sample_entropy"] == pytest.approx(np.mean([each["entropy"] for each in own]))
        nats, judged = (sum(each[name] for each in own) for name in ("judge_nats", "judge_tokens"))
        assert row["generative_perplexity"] == pytest.approx(math.exp(nats / judged))
    assert min(sum(each["words"] for each in rows if each["order"] == name) for name in orders) > 0
    # Held-out text is made of words that the training text has; the samples of an untrained model are not.
    assert report["samples"][0]["coherence"] > 0.5


def test_the_figures_are_those_of_the_package(finished, folder):
    report, rows = read_json(finished[0], "evaluation.json"), examples(finished[0], "likelihoods")
    tokenizer = character_tokenizer(LINES)
    model = type(tiny_model("two_stream")).from_pretrained(folder / "two_stream")
    texts = TextArguments(train_file=str(folder / "text.txt"), validation_fraction=0.25).load()
    blocks = tokenize_and_chunk(texts["validation"], tokenizer, 12)
    chosen = blocks.select(rows["example_index"][:])
    assert tokenizer.batch_decode(chosen["input_ids"][:]) == rows["text"][:]
    result = evaluate_likelihood(model, chosen, tokenizer, draws=4, progress=False)
    assert report["any_order"]["nll_per_draw"] == pytest.approx(result.nll_per_draw, abs=1e-5)


@pytest.mark.parametrize("variant", ["bidirectional", "causal"])
def test_variants_get_the_measures_that_fit_them(variant, script, folder, tmp_path, capsys, restored_logging):
    script.main(arguments(folder, variant, tmp_path))
    report = read_json(tmp_path, "evaluation.json")
    fitting = {"left_to_right", "samples"} if variant == "causal" else FIGURES - {"context_orders"}
    assert set(report) & FIGURES == fitting
    assert set(report["left_out"]) == FIGURES - fitting | {"generative_perplexity"}
    assert "generative_perplexity is left out: no --judge was given." in capsys.readouterr().out
    assert "generative_perplexity" not in report["samples"][0]
    assert {row["order"] for row in report["samples"][1:]} == (
        {"left_to_right"} if variant == "causal" else {"random", "left_to_right"}
    )
    assert (tmp_path / "bound.png").exists() == (variant == "bidirectional")
    if variant == "bidirectional":
        nats = np.array(examples(tmp_path, "likelihoods")["elbo_nats"][:])
        assert nats.shape == (5, 4)
        assert report["elbo"]["bits_per_character"] == pytest.approx(
            nats.mean(1).sum() / report["data"]["characters"] / math.log(2)
        )


def test_only_what_is_asked_for_and_nothing_of_an_earlier_run(finished, script, folder, tmp_path, restored_logging):
    for name in ("samples.png", "infilling.parquet"):
        (tmp_path / name).write_text("of an earlier run")
    script.main(arguments(folder, "two_stream", tmp_path, "--measures", "elbo", "left_to_right"))
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "likelihoods.parquet"}
    report = read_json(tmp_path, "evaluation.json")
    assert set(report) & FIGURES == {"elbo", "left_to_right"}
    before = read_json(finished[0], "evaluation.json")
    assert report["left_to_right"]["nll"] == pytest.approx(before["left_to_right"]["nll"], abs=1e-6)
    # The same four orders as in the other run.
    assert report["elbo"]["nll"] == pytest.approx(before["any_order"]["nll"], abs=1e-6)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model", "./nowhere"], "must be a folder or a name on the Hub; there is no folder ./nowhere"),
        (["--judge", "./nowhere"], "--judge must be a folder or a name on the Hub; there is no folder ./nowhere"),
        (["--measures", "nonsense"], "invalid choice"),
        (["--temperatures", "0"], "--temperatures must be above 0, at least one, got [0.0]"),
        (["--blank_lengths", "2", "2"], "--blank_lengths must be different lengths of at least 1, got [2, 2]"),
        (["--blank_lengths", "13"], "--blank_lengths must be below the 13 tokens of the longest row, got [13]"),
        (["--num_orders", "0"], "--num_orders must be at least 1, got 0"),
        (
            ["--block_size", "64", "--join_with", " "],
            "--block_size and BOS need 65 positions, got max_position_embeddings=64",
        ),
        (["--train_file", "nothing.txt"], "must exist, got nothing.txt"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(
    flags, message, script, folder, tmp_path, capsys, restored_logging
):
    with pytest.raises(SystemExit) as stop:
        script.main(arguments(folder, "two_stream", tmp_path / "output", *flags))
    assert message in f"{stop.value.code} {capsys.readouterr().err}" and stop.value.code != 0
    assert not (tmp_path / "output").exists()


def test_without_a_model_it_says_how_to_make_one(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="there is no outputs/pretrain: `make pretrain`"):
        script.main([])
    assert not list(tmp_path.iterdir())


def test_a_judge_must_predict_from_left_to_right(script, folder, tmp_path, restored_logging):
    with pytest.raises(SystemExit, match="--judge .*bidirectional cannot be loaded"):
        script.main(arguments(folder, "two_stream", tmp_path / "output", "--judge", folder / "bidirectional"))
    assert not (tmp_path / "output").exists()


def test_a_measure_that_the_variant_does_not_have_is_refused(script, folder, tmp_path, restored_logging):
    with pytest.raises(SystemExit, match="--measures must fit the variant, got bound: causal knows one order"):
        script.main(arguments(folder, "causal", tmp_path / "output", "--measures", "bound"))
    assert not (tmp_path / "output").exists()


# score_orders.py

ADAPTIVE = ["confidence", "entropy", "margin"]


def score_arguments(folder, output, *names):
    data = ("--train_file", folder / "text.txt", "--validation_fraction", 0.25, "--max_examples", 5)
    chosen = ("--models", *(folder / name for name in names), "--output_dir", output)
    sizes = ("--block_size", 12, "--num_orders", 4, "--elbo_samples", 3, "--batch_size", 3, "--device", "cpu")
    return [str(each) for each in (*data, *chosen, *sizes)]


@pytest.fixture(scope="module")
def scored(folder):
    """What a run on two models leaves, and what it prints."""
    names = "two_stream", "bidirectional", "causal"
    process = run_script("examples/score_orders.py", *score_arguments(folder, folder / "scores", *names))
    assert process.returncode == 0, process.stderr
    assert {path.name for path in (folder / "scores").iterdir()} == {"score_orders.json", "score_orders.png"}
    assert (folder / "scores" / "score_orders.png").read_bytes().startswith(b"\x89PNG")
    report = read_json(folder / "scores", "score_orders.json")
    return {(entry["variant"], entry["way"]): entry for entry in report["entries"]}, report, process.stdout


def test_every_model_is_scored_in_the_ways_that_it_has(scored):
    entries, report, output = scored
    random = ["random", "mixture", "left_to_right", *ADAPTIVE]
    ways = {"two_stream": random, "bidirectional": ["elbo", *random], "causal": ["left_to_right"]}
    assert list(entries) == [(variant, way) for variant in ways for way in ways[variant]]
    assert {way for _, way in entries if entries[_, way]["meaning"] == "exact"} == {"left_to_right", *ADAPTIVE}
    assert report["command"].startswith("examples/score_orders.py --train_file") and report["settings"]["seed"] == 0
    assert all(f"{entry['nats_per_token']:.4f}" in output for entry in entries.values())


def test_figures_of_orders_follow_from_the_rows(scored):
    entries, report, _ = scored
    tokens, characters = (sum(report["data"][f"row_{name}"]) for name in ("tokens", "characters"))
    for (variant, way), entry in entries.items():
        nats = np.array(entry["row_nats"])
        assert nats.shape == (5,) and entry["nats_per_token"] == pytest.approx(nats.sum() / tokens)
        assert entry["bits_per_character"] == pytest.approx(nats.sum() / characters / math.log(2))
        if variant == "causal" or way == "random":
            assert entry["over_random"] is None
        else:
            random = entries[variant, "random"]["nats_per_token"]
            assert entry["over_random"] == pytest.approx(entry["nats_per_token"] - random)
    for variant in ("two_stream", "bidirectional"):
        random, mixture = (np.array(entries[variant, way]["row_nats"]) for way in ("random", "mixture"))
        assert (mixture <= random + 1e-5).all() and (mixture < random - 1e-5).any()


def test_a_row_is_scored_as_if_it_were_alone(scored, folder):
    """In the order that `score` is asked for, and in the same random orders whatever the batch."""
    entries, _, _ = scored
    tokenizer = character_tokenizer(LINES)
    script = load_script("examples/score_orders.py")
    texts = TextArguments(train_file=str(folder / "text.txt"), validation_fraction=0.25).load()
    rows = tokenize_and_chunk(texts["validation"], tokenizer, 12)["input_ids"]
    row = torch.tensor([[tokenizer.bos_token_id, *rows[0]]])
    for variant in ("two_stream", "bidirectional"):
        model = script.load_model(str(folder / variant), "cpu", "auto", False)[0]
        for order in ("random", "left_to_right", *ADAPTIVE):
            options = {"num_orders": 4, "generator": [script.make_generator(0, 0)]} if order == "random" else {}
            scores = model.score(row, decoding_order=order, **options)
            expected = [-scores.mean_log_likelihood.item()]
            got = [entries[variant, order]["row_nats"][0]]
            if order == "random":
                expected.append(-scores.log_mean_likelihood.item())
                got.append(entries[variant, "mixture"]["row_nats"][0])
            assert got == pytest.approx(expected, abs=1e-4)


def test_models_to_compare_have_one_tokenizer(folder, tmp_path, restored_logging):
    script = load_script("examples/score_orders.py")
    tokenizer = character_tokenizer([line[::-1].upper() for line in LINES])
    tiny_model("two_stream", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    arguments = score_arguments(folder, tmp_path / "output", "two_stream", tmp_path / "other")
    with pytest.raises(SystemExit, match="--models must have one tokenizer, got other tokens of the text for .*other"):
        script.main(arguments)
    with pytest.raises(SystemExit, match="--models must be different models, at least one"):
        script.main(score_arguments(folder, tmp_path / "output", "two_stream", "two_stream"))
    assert not (tmp_path / "output").exists()
