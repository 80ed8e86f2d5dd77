# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks run as they stand, and what they report follows from what they counted. No timing is judged."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, median

import pytest
from scripts import load_script
from variants import tiny_model

from modeling_aoarm.text_data import reference_texts
from modeling_aoarm.tokenization import character_tokenizer


ROOT = Path(__file__).resolve().parents[1]
DECODING = ROOT / "examples" / "benchmarks" / "decoding.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The report of a quick run on two untrained models, the folder that it wrote to, and what it printed."""
    folder = tmp_path_factory.mktemp("decoding")
    tokenizer = character_tokenizer(reference_texts())
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    models = [folder / variant for variant in ("two_stream", "decoupled_rope")]
    for path in models:
        # Sharp distributions: drafts are rejected now and then.
        model = tiny_model(path.name, vocab_size=len(tokenizer), initializer_range=0.5, **special)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    (models[0] / "results.json").write_text(json.dumps({"any_order": {"bits_per_character": 2.5}}), encoding="utf-8")
    flags = ["--quick", "--threads", "1", "--repetitions", "2", "--output_dir", folder / "figures"]
    process = subprocess.run(
        [sys.executable, DECODING, *flags, "--model", *models],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert process.returncode == 0, process.stderr
    report = json.loads((folder / "figures" / "decoding_benchmark.json").read_text(encoding="utf-8"))
    return report, folder / "figures", process.stdout


def same_setting(entry):
    return tuple(entry[name] for name in ("model", "order", "blank_share", "batch_size"))


def test_everything_is_written(finished):
    report, figures, printed = finished
    assert {path.name for path in figures.iterdir()} == {"decoding_benchmark.json", "decoding_benchmark.png"}
    assert (figures / "decoding_benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert {"command", "versions", "date", "machine", "git_commit", "seed"} <= set(report)
    assert "2.500 bits per character" in printed and "Not measured: uncached decoding of 16 tokens" in printed
    bits = {entry["attention_variant"]: entry["any_order_bits_per_character"] for entry in report["speculation"]}
    assert bits == {"two_stream": 2.5, "decoupled_rope": None}


def test_speculation_takes_at_most_as_many_passes_as_one_by_one(finished):
    entries = finished[0]["speculation"]
    assert len(entries) == 2 * 2 * 2 * 2 * 3
    one_by_one = {same_setting(entry): entry for entry in entries if entry["draft_length"] == 0}
    for entry in entries:
        reference = one_by_one[same_setting(entry)]
        assert entry["blanks"] == {"all": 12, "half": 6}[entry["blank_share"]] == reference["blanks"]
        for passes in entry["forward_passes"]:
            assert len(passes) == 2 // entry["batch_size"]
            if entry is reference:
                assert set(passes) == {entry["blanks"]}
            assert all(1 <= each <= entry["blanks"] for each in passes)
    assert any(entry["passes_to_one_by_one"] < 1 for entry in entries)


def test_ratios_follow_from_the_raw_numbers(finished):
    entries = finished[0]["speculation"]
    one_by_one = {same_setting(entry): entry for entry in entries if entry["draft_length"] == 0}
    for entry in entries:
        reference = one_by_one[same_setting(entry)]
        assert len(entry["seconds"]) == len(entry["forward_passes"]) == len(entry["tokens_per_forward"]) == 2
        passes = mean(sum(entry["forward_passes"], []))
        tokens = entry["canvases"] * entry["blanks"]
        assert entry["passes_per_canvas"] == pytest.approx(passes)
        assert entry["passes_per_token"] == pytest.approx(passes / entry["blanks"])
        assert entry["mean_tokens_per_forward"] == pytest.approx(mean(entry["tokens_per_forward"]))
        assert entry["seconds_per_token"] == pytest.approx(median(entry["seconds"]) / tokens)
        assert entry["passes_to_one_by_one"] == pytest.approx(passes / mean(sum(reference["forward_passes"], [])))
        ratios = [own / base for own, base in zip(entry["seconds"], reference["seconds"], strict=True)]
        assert entry["seconds_to_one_by_one"] == pytest.approx(median(ratios))


def test_times_over_length_follow_from_the_raw_numbers(finished):
    measured = finished[0]["time_over_length"]
    assert measured["not_measured_uncached"] == [16]
    found = {(entry["way"], entry["length"]): entry for entry in measured["entries"]}
    cached = {f"{variant}, cached" for variant in ("two_stream", "decoupled_rope")}
    uncached = {f"{variant}, uncached" for variant in ("two_stream", "decoupled_rope")}
    references = {"Llama, bare loop", "Llama, generate"}
    assert {way for way, length in found if length == 8} == cached | uncached | references
    assert {way for way, length in found if length == 16} == cached | references
    for (_, length), entry in found.items():
        loop = found["Llama, bare loop", length]["seconds"]
        assert entry["milliseconds_per_token"] == pytest.approx(1000 * median(entry["seconds"]) / length)
        ratios = [own / base for own, base in zip(entry["seconds"], loop, strict=True)]
        assert entry["to_bare_loop"] == pytest.approx(median(ratios))


def test_a_missing_model_is_named(tmp_path, capsys):
    benchmark = load_script(DECODING)
    with pytest.raises(SystemExit):
        benchmark.main(["--model", str(tmp_path / "nothing")])
    error = capsys.readouterr().err
    assert "make pretrain" in error and str(tmp_path / "nothing") in error
