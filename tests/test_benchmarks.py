# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks run as they stand, and what they report follows from what they counted. Times are not tested."""

import itertools
import json
from math import prod
from statistics import mean, median

import pytest
import torch
from baselines import SIZES, VARIANTS, make_model, make_training_batch
from scripts import load_script, read_json, run_script
from timing import Report, Target, compare_with_target, compute_median_ratio, format_result, time_in_turns
from transformers import LlamaConfig, LlamaForCausalLM
from variants import tiny_model

from modeling_aoarm.data.text import TextArguments, reference_texts
from modeling_aoarm.data.tokenizers import character_tokenizer, train_bpe_tokenizer


FOLDER = "examples/benchmarks"
HEADER = {"command", "date", "total_seconds", "machine", "versions", "seed", "git_commit"}


def run(name, folder, *arguments):
    """The report of a quick run, and what it printed."""
    flags = ["--quick", "--threads", 1, "--output_dir", folder]
    process = run_script(f"{FOLDER}/{name}.py", *flags, *arguments)
    assert process.returncode == 0, process.stderr
    assert {path.name for path in folder.iterdir()} == {f"benchmark_{name}.json", f"benchmark_{name}.png"}
    assert (folder / f"benchmark_{name}.png").read_bytes().startswith(b"\x89PNG")
    report = read_json(folder, f"benchmark_{name}.json")
    assert set(report) >= HEADER and report["command"].startswith(f"{FOLDER}/{name}.py --quick")
    return report, process.stdout


def check_targets(report, printed):
    """Whether figures meet their targets is said where they have some, in the report and in the table."""
    assert report["targets"]
    for entry in report["targets"]:
        if entry["target"] is None:
            assert entry["met"] is None
        else:
            kind, bound = entry["target"].split()
            bound = float(bound.replace(",", ""))
            assert entry["met"] == (entry["value"] <= bound if kind == "<=" else entry["value"] >= bound)
    assert ": met)" in printed or ": missed)" in printed


def test_what_the_space_before_a_blank_is_worth(tmp_path):
    """On an untrained Llama: both ways have the same characters, and a mean is a mean."""
    script = load_script(f"{FOLDER}/blank_borders.py")
    tokenizer = train_bpe_tokenizer([text.replace("<blank>", word) for text, word in script.SENTENCES] * 3, 320)
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    checkpoint = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ends))
    for part in (checkpoint, tokenizer):
        part.save_pretrained(tmp_path / "llama")
    report, printed = run("blank_borders", tmp_path / "report", "--model", tmp_path / "llama")
    check_targets(report, printed)
    for variant, entries in report["sentences"].items():
        assert [entry["way"] for entry in entries] == list(script.WAYS) * 2
        for entry in entries:
            before, filling, after = ("".join(tokens).replace("Ġ", " ") for tokens in entry["tokens"])
            text = entry["sentence"].replace("<blank>", entry["natural_filling"])
            assert before + filling + after == f"<s>{text}"
            assert (before[-1] == " ") == (entry["way"] == script.OWN_TOKEN)
            start, end = entry["sentence"].split("<blank>")
            assert entry["space_and_word"] <= entry["word"] + 1e-4 < 1e-4
            assert entry["way"] == script.OWN_TOKEN or entry["filled"].startswith(start)
            assert entry["way"] == script.OWN_TOKEN or entry["filled"].endswith(end)
        gain = next(each for each in report["targets"] if each["what"].startswith(f"{variant}, text,"))
        texts = [entry["text"] for entry in entries]
        assert gain["value"] == pytest.approx(mean(texts[1::2]) - mean(texts[::2]), abs=1e-6)
    failed = run_script(f"{FOLDER}/blank_borders.py", "--quick")
    assert failed.returncode == 2 and "--model must be" in failed.stderr


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """An untrained Llama, and a tokenizer of a few subwords."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = train_bpe_tokenizer(reference_texts()[:40], 320)
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_what_a_converted_decoder_knows_before_training(llama, tmp_path):
    report, printed = run("zero_shot", tmp_path, "--model", llama)
    check_targets(report, printed)
    script = load_script(f"{FOLDER}/zero_shot.py")
    entries = report["entries"]
    # Each of two tasks in three context orders, and three orders, by three ways; the decoder itself has no orders.
    assert len(entries) == 3 * (2 * 3 + 3) + 3
    blanks = report["blanks"]
    for entry in entries:
        totals = sum(entry["window_nats"]) / sum(entry["window_tokens"])
        assert entry["nats_per_token"] == pytest.approx(totals)
        expected = [len(row) for row in blanks[entry["task"]]] if entry["task"] in blanks else [39] * 4
        assert entry["window_tokens"] == expected
    for name in script.WAYS:
        own = script.find_entry(entries, name, "left_to_right")
        assert own["window_nats"] == pytest.approx(
            script.find_entry(entries, script.DECODER, "left_to_right")["window_nats"]
        )
        plain, turned = (script.find_entry(entries, name, "middle", order) for order in script.CONTEXT_ORDERS[1:])
        # With one blank the two are one.
        assert plain["window_nats"] == pytest.approx(turned["window_nats"])
    mine, theirs = (
        script.find_entry(entries, "decoupled_rope", "spans", "left_to_right"),
        script.find_entry(entries, script.DECODER, "spans"),
    )
    target = next(each for each in report["targets"] if each["what"].startswith("decoupled_rope, spans, left_to_right"))
    assert target["value"] == pytest.approx(mine["nats_per_token"] - theirs["nats_per_token"])
    failed = run_script(f"{FOLDER}/zero_shot.py", "--quick", "--model", llama, "--window", 10**6)
    assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith("--window must be at most the length")


def test_rules_for_the_length_of_a_blank(llama, tmp_path):
    """What each rule chooses, from the figures by length; and a killed run goes on."""
    report, _ = run("blank_lengths", tmp_path, "--model", llama)
    entries, chosen = report["entries"], report["chosen"]
    assert len(entries) == 4
    for number, entry in enumerate(entries):
        assert 1 <= entry["words"] <= entry["tokens"] <= 3
        parts = list(zip(entry["blank"], entry["behind"], strict=True))
        texts = [blank + behind for blank, behind in parts]
        means = [behind + blank / n for n, (blank, behind) in enumerate(parts, 1)]
        own = {rule: choice[number] for rule, choice in chosen.items()}
        assert own["one token"] == 0 and own["known length"] == entry["tokens"] - 1
        assert texts[own["whole text"]] == max(texts) and means[own["mean per blank token"]] == max(means)
        assert entry["behind"][own["text behind the blank"]] == max(entry["behind"])
        assert entry["f1"][own["best possible"]] == max(entry["f1"])
        goes_on = [n for n in range(3) if entry["goes_on"][n]]
        assert own["first that goes on"] == (goes_on[0] if goes_on else own["whole text"])
    for line in report["summary"]:
        numbers = [n for n, entry in enumerate(entries) if line["words"] in (None, entry["words"])]
        for name, column in (("recovered", "recovers"), ("f1", "f1")):
            assert line[name] == pytest.approx(mean(entries[n][column][chosen[line["rule"]][n]] for n in numbers))

    # A bonus of 0.5 takes the longer one of each pair, and is fitted on the other half alone.
    script = load_script(f"{FOLDER}/blank_lengths.py")
    made = {"words": 1, "tokens": 2, "f1": [0, 1], "blank": [-1.0, -1.4], "behind": [0.0, 0.0], "goes_on": [0, 0]}
    long, short = {**made, "recovers": [False, True]}, {**made, "recovers": [True, False], "f1": [1, 0]}
    assert (script.fit_bonus([long]), script.fit_bonus([short])) == (0.5, 0.0)
    assert script.apply_rules([short, long])["bonus"] == [1, 0]

    partial = tmp_path / f"blank_lengths_{report['text']['windows'][:12]}.partial"
    lines = [json.dumps({**entry, "seconds": 123.0}) for entry in entries[:2]]
    partial.write_text("\n".join([*lines, lines[0][:20]]))
    again, _ = run("blank_lengths", tmp_path, "--model", llama)
    assert [entry["seconds"] == 123.0 for entry in again["entries"]] == [True, True, False, False]
    assert [{**entry, "seconds": 0} for entry in again["entries"]] == [{**entry, "seconds": 0} for entry in entries]
    failed = run_script(f"{FOLDER}/blank_lengths.py", "--quick", "--model", llama, "--windows", 1)
    assert failed.returncode == 2 and "--windows must be at least 2" in failed.stderr


def test_blanks_of_windows_are_where_they_may_be():
    script = load_script(f"{FOLDER}/zero_shot.py")
    windows = torch.zeros(500, 40, dtype=torch.int64)
    for most, (shortest, longest) in ((1, (2, 16)), (3, (1, 6))):
        counts = set()
        for row in script.draw_blanks(windows, most, (shortest, longest), seed=1):
            runs = [(key, len(list(group))) for key, group in itertools.groupby(row.tolist())]
            assert not runs[0][0] and not runs[-1][0] and min(runs[0][1], runs[-1][1]) >= script.MARGIN
            spans, gaps = [size for key, size in runs if key], [size for key, size in runs[1:-1] if not key]
            assert min(spans) >= shortest and max(spans) <= longest and min(gaps, default=9) >= script.GAP
            counts.add(len(spans))
        assert counts == set(range(1, most + 1))


def test_pieces_between_blanks_are_reversed():
    script = load_script(f"{FOLDER}/zero_shot.py")
    blanks = torch.tensor([[0, 0, 0, 1, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0, 0, 0]]).bool()
    expected = [[0, 8, 5, 6, 1, 2, -1, -1], [0, 3, 4, 5, 6, 7, 8, 1]]
    assert script.reverse_segments(blanks).tolist() == expected


def test_what_starts_cost(tmp_path):
    report, printed = run("query_starts", tmp_path)
    check_targets(report, printed)
    found = {(entry["way"], entry["start"]): entry for entry in report["query_starts"]}
    assert len(found) == 4 * 3
    for (way, _), entry in found.items():
        reference = found[way, "content"]["seconds"]
        ratios = [own / base for own, base in zip(entry["seconds"], reference, strict=True)]
        assert entry["seconds_to_content"] == pytest.approx(median(ratios))
    targets = {entry["what"]: entry["target"] for entry in report["targets"]}
    assert targets["neighbor start, training step, time"] == "<= 1.02"
    assert targets["learned start, training step, time"] is None


# What all share


def test_ways_take_turns_and_the_first_round_does_not_count():
    calls = []
    measured = time_in_turns(
        {name: lambda round, name=name: calls.append((name, round)) or name for name in "ab"}, 3, ""
    )
    assert calls == [("a", 0), ("b", 0), *((name, number) for number in range(3) for name in "ab")]
    assert {name: results for name, (_, results) in measured.items()} == {"a": ["a"] * 3, "b": ["b"] * 3}
    assert all(len(seconds) == 3 and min(seconds) > 0 for seconds, _ in measured.values())


def test_ratios_are_medians_of_ratios_within_a_round():
    # Of the medians the ratio would be 3 / 2.
    assert compute_median_ratio([2, 3, 10], [1, 2, 10]) == 1.5
    assert compute_median_ratio([3, 8, 1], [1, 2, 4]) == 3


def test_targets_are_met_up_to_the_bound():
    assert [Target("<=", 1.05).is_met(value) for value in (1.0, 1.05, 1.051)] == [True, True, False]
    assert [Target(">=", 4).is_met(value) for value in (3.99, 4, 5)] == [False, True, True]
    assert format_result(compare_with_target("time", "Llama", 1.0321, Target("<=", 1.05))) == "1.032 (<= 1.05: met)"
    assert (
        format_result(compare_with_target("speed", "", 1999999.0, Target(">=", 2e6)))
        == "1,999,999 (>= 2,000,000: missed)"
    )
    assert format_result(compare_with_target("time", "Llama", 2.0, None)) == "2"
    with pytest.raises(ValueError, match="kind.*'<'"):
        Target("<", 1)


def test_a_report_names_its_circumstances(tmp_path):
    header = Report(tmp_path / "mine.py", ["--seed", "3"], seed=3).header()
    assert header["command"] == "mine.py --seed 3" and header["seed"] == 3 and header["git_commit"] is None
    assert header["machine"]["threads"] == torch.get_num_threads() and "torch" in header["versions"]


# Baselines


def test_baselines_are_of_one_size():
    parameters = {name: make_model(name).num_parameters() for name in ("Llama", "XLNet", *VARIANTS)}
    own = parameters["two_stream"]
    assert parameters["Llama"] == parameters["decoupled_rope"] == parameters["bidirectional"]
    for name, count in parameters.items():
        # Positions of `double_position` are a table, and the modulation of `adaptive_norm` is what it is.
        most = {"double_position": 0.05, "adaptive_norm": 0.9}.get(name, 0.005)
        assert abs(count / own - 1) <= most, name


@pytest.mark.parametrize("name", ["two_stream", "decoupled_rope", "double_position", "XLNet"])
def test_every_model_predicts_each_token_from_those_before_it(name):
    rows = 7
    model = make_model(name, max_position_embeddings=rows, num_hidden_layers=2)
    batch = make_training_batch(name, 2, rows, SIZES["vocab_size"], seed=4)
    ours = make_training_batch("two_stream", 2, rows, SIZES["vocab_size"], seed=4)
    order, tokens = ours["position_ids"], ours["input_ids"]

    def predictions(batch):
        with torch.no_grad():
            logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        return logits if name == "XLNet" else logits[:, :-1]

    assert predictions(batch).shape == (2, rows - 1, SIZES["vocab_size"])
    if name == "XLNet":
        assert torch.equal(batch["labels"], tokens[:, 1:])
    for number in range(rows):
        changed = dict(batch)
        column = order[:, number : number + 1] if name == "XLNet" else torch.full((2, 1), number)
        changed["input_ids"] = batch["input_ids"].scatter(1, column, 0)
        differs = (predictions(changed) != predictions(batch)).any(-1)
        # Prediction i is about the token i + 1 of the order.
        assert not differs[:, :number].any() and differs[:, number:].all()


# Training


@pytest.mark.full
def test_training(tmp_path):
    models = ("Llama", "two_stream", "double_position", "XLNet")
    report, printed = run("training", tmp_path, "--models", *models)
    check_targets(report, printed)
    found = {(entry["model"], entry["length"]): entry for entry in report["steps"]}
    assert set(found) == {(name, length) for name in models for length in (16, 32)}
    for (name, length), entry in found.items():
        parts = [sum(each) for each in zip(*entry["seconds_of_parts"].values(), strict=True)]
        assert entry["seconds"] == pytest.approx(parts) and len(parts) == 2
        assert entry["batch_size"] * length == 64
        assert entry["milliseconds"] == pytest.approx(1000 * median(entry["seconds"]))
        assert entry["tokens_per_second"] == pytest.approx(64 / median(entry["seconds"]))
        llama = found["Llama", length]["seconds"]
        ratios = [own / base for own, base in zip(entry["seconds"], llama, strict=True)]
        assert entry["to_llama"] == pytest.approx(median(ratios))
        assert name in printed and f"{entry['parameters']:,}" in printed
    targets = {entry["what"]: entry for entry in report["targets"]}
    for name, bound in (("double_position", "<= 1.05"), ("two_stream", "<= 1.8")):
        entry = targets[f"{name}, 32 tokens, time"]
        assert (entry["value"], entry["target"]) == (found[name, 32]["to_llama"], bound)
    ratios = [
        own / base for own, base in zip(*(found[name, 16]["seconds"] for name in ("XLNet", "two_stream")), strict=True)
    ]
    assert targets["two_stream, 16 tokens, times as fast"]["value"] == pytest.approx(median(ratios))


# Decoding


def test_decoding(tmp_path):
    report, printed = run("decoding", tmp_path)
    check_targets(report, printed)
    names = ("way", "order", "batch_size", "length")
    found = {tuple(entry[name] for name in names): entry for entry in report["decoding"]}
    cached = {name for name in VARIANTS if name != "bidirectional"}
    everywhere = cached | {"bidirectional", "Llama, bare loop"}
    assert {key[0] for key in found if key[1:] == ("random", 1, 16)} == everywhere
    assert {key[0] for key in found if key[1:] == ("random", 2, 8)} == everywhere | {"Llama, generate"}
    assert {key[0] for key in found if key[1] == "confidence"} == cached | {"bidirectional"}
    for (way, order, batch, length), entry in found.items():
        assert entry["blanks"] == (4 if way == "bidirectional" and order == "random" else length)
        own = [each / entry["blanks"] for each in entry["seconds"]]
        loop = [each / length for each in found["Llama, bare loop", "random", batch, length]["seconds"]]
        assert entry["milliseconds_per_token"] == pytest.approx(1000 * median(own))
        ratios = [mine / base for mine, base in zip(own, loop, strict=True)]
        assert entry["to_bare_loop"] == pytest.approx(median(ratios))
    targets = {entry["what"]: entry for entry in report["targets"]}
    loop = targets["two_stream, time per token, batch 2, 8 tokens"]
    assert loop["target"] == "<= 1.5" and loop["value"] == found["two_stream", "random", 2, 8]["to_bare_loop"]
    per_token = {
        way: [each / found[way, "random", 1, 16]["blanks"] for each in found[way, "random", 1, 16]["seconds"]]
        for way in ("two_stream", "bidirectional")
    }
    ratios = [slow / fast for slow, fast in zip(per_token["bidirectional"], per_token["two_stream"], strict=True)]
    assert targets["two_stream, times as fast, batch 1, 16 tokens"]["value"] == pytest.approx(median(ratios))
    assert targets["two_stream, confidence order, times as fast, 8 tokens"]["target"] == ">= 1.6"


def test_the_bare_loop_is_greedy_decoding():
    script = load_script(f"{FOLDER}/decoding.py")
    model = make_model("Llama", initializer_range=0.5, num_hidden_layers=2)
    first = torch.tensor([[3], [7]])
    expected = model.generate(
        first, attention_mask=torch.ones_like(first), max_new_tokens=9, do_sample=False, pad_token_id=0
    )
    assert torch.equal(script.decode_in_bare_loop(model, first, 9), expected)
    assert expected.unique().numel() > 3


# Speculation


@pytest.fixture(scope="module")
def speculation(tmp_path_factory):
    """The report of a quick run on two untrained models, and what it printed."""
    folder = tmp_path_factory.mktemp("speculation")
    tokenizer = character_tokenizer(reference_texts())
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    models = [folder / variant for variant in ("two_stream", "decoupled_rope")]
    for path in models:
        # Sharp distributions: drafts are rejected now and then.
        model = tiny_model(path.name, vocab_size=len(tokenizer), initializer_range=0.5, **special)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    results = {"any_order": {"bits_per_character": 2.5}, "unigram": {"unigram_entropy_all": 4.6875}}
    (models[0] / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return run("speculation", folder / "figures", "--models", *models)


def same_setting(entry):
    return tuple(entry[name] for name in ("model", "order", "blank_share", "batch_size"))


def test_speculation_takes_at_most_as_many_passes_as_one_by_one(speculation):
    report, printed = speculation
    check_targets(report, printed)
    # Titles are as wide as their tables.
    printed = " ".join(printed.split())
    assert "any order: 2.500 (unigram entropy 4.688)" in printed and "any order: unknown" in printed
    entries = report["speculation"]
    # Models, orders, shares, batches, and numbers of drafts: none, 1, 4 and auto.
    assert len(entries) == 2 * 2 * 2 * 2 * 4
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


def test_figures_of_speculation_follow_from_the_raw_numbers(speculation):
    report, _ = speculation
    entries = report["speculation"]
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
    for entry in report["targets"]:
        variant = entry["what"].partition(",")[0]
        if "passes per token" in entry["what"]:
            assert entry["target"] == ("<= 0.5" if variant == "two_stream" else "<= 0.9")
            assert entry["value"] in {each["passes_per_token"] for each in entries if each["draft_length"] in (1, 4)}
        elif entry["what"].endswith("auto"):
            assert entry["target"] == "<= 1.05"
            assert entry["value"] in {
                each["seconds_to_one_by_one"] for each in entries if each["draft_length"] == "auto"
            }
        else:
            assert entry["target"] == "<= 1"


def test_a_missing_model_is_named(tmp_path):
    process = run_script(f"{FOLDER}/speculation.py", "--models", tmp_path / "nothing")
    assert process.returncode == 2
    assert "make pretrain" in process.stderr and str(tmp_path / "nothing") in process.stderr


# Quality against passes


def test_quality_against_passes(tmp_path):
    """Passes are those of each canvas alone, drafts fill what one by one does, and the judge reads what is there."""
    script = load_script(f"{FOLDER}/frontier.py")
    tokenizer = character_tokenizer(reference_texts())
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    models = {}
    for variant in ("two_stream", "bidirectional"):
        models[variant] = tiny_model(variant, vocab_size=len(tokenizer), initializer_range=0.3, **special)
        for part in (models[variant], tokenizer):
            part.save_pretrained(tmp_path / variant)
    report, printed = run("frontier", tmp_path / "report", "--models", *(tmp_path / variant for variant in models))
    assert "two_stream" in printed and "threshold(0.9)" in printed
    entries = {
        (each["attention_variant"], each["tokens"], each["family"], each["point"]): each for each in report["frontier"]
    }
    assert not any("drafts" in key[2] for key in entries if key[0] == "bidirectional")
    lengths = [length for _, length in report["blanks"]]
    for variant in models:
        # A pass of its own reads the given text, if there is a cache.
        reading = int(variant == "two_stream")
        for tokens in ("greedy", "sampled"):
            one_by_one = entries[variant, tokens, "one by one", "confidence"]
            at_once = entries[variant, tokens, "threshold(p)", "threshold(0)"]
            assert one_by_one["passes_per_token"] == pytest.approx(1 + reading * len(lengths) / sum(lengths))
            assert at_once["passes_per_token"] == pytest.approx((1 + reading) * len(lengths) / sum(lengths))
            assert one_by_one["nats_to_one_by_one"] == 0
    for order in ("left to right", "random"):
        exact, drafted = (
            entries["two_stream", "greedy", *way] for way in (("one by one", order), (f"drafts, {order}", "2"))
        )
        assert exact["passes_per_token"] == 1 >= drafted["passes_per_token"]
        assert drafted["nats_per_token"] == pytest.approx(exact["nats_per_token"], abs=1e-5)
    original = entries["two_stream", "text", "original text", ""]
    assert original["recovered"] == original["recovered_blanks"] == 1
    # The judge is the first model, from left to right.
    ids = script.cut_canvases(TextArguments().load()["validation"], tokenizer, 24, 3)
    scored = models["two_stream"].score(ids, decoding_order="left_to_right").token_log_probs[0]
    starts = [start for start, _ in report["blanks"]]
    nats = [-row[start:].sum().item() for row, start in zip(scored, starts, strict=True)]
    tokens = sum(ids.shape[1] - start for start in starts)
    assert original["nats_per_token"] == pytest.approx(sum(nats) / tokens, abs=1e-4)


# Memory


def test_the_peak_is_the_most_that_is_held_at_once():
    memory = load_script(f"{FOLDER}/memory.py")
    # The block at 9 was there before.
    assert memory.find_peak_bytes([(1, 100), (2, 50), (1, -100), (9, -500), (3, 60), (2, -50), (1, 20)]) == 150

    def pieces():
        first = torch.ones(1000, dtype=torch.float64)
        del first
        second, third = torch.ones(500, dtype=torch.float64), torch.ones(700, dtype=torch.float64)
        return second, third

    assert memory.find_peak_bytes(memory.record_allocations(pieces)) == pytest.approx(9600, abs=200)


def test_tensors_of_rows_by_rows_are_found_where_they_are():
    memory = load_script(f"{FOLDER}/memory.py")
    assert memory.find_rows_by_rows({(2, 520, 256), (1, 4, 520, 64), (4, 520, 520), (1, 600, 520)}, 520, {256}) == [
        (1, 600, 520),
        (4, 520, 520),
    ]
    rows = 520
    found = {}
    for name in ("two_stream", "decoupled_rope", "XLNet"):
        model = make_model(name, max_position_embeddings=rows, num_hidden_layers=1).train()
        found[name] = memory.measure_peak(model, name, rows, seed=0)
    assert found["two_stream"]["rows_by_rows"] == found["decoupled_rope"]["rows_by_rows"] == []
    assert any(shape[-2:] == [rows, rows] for shape in found["XLNet"]["rows_by_rows"])
    model = make_model("two_stream", max_position_embeddings=rows, num_hidden_layers=1).train()
    model.set_attn_implementation("eager")
    eager = memory.measure_peak(model, "two_stream", rows, seed=0)
    assert eager["rows_by_rows"] and eager["peak_bytes"] > found["two_stream"]["peak_bytes"]


def test_memory(tmp_path):
    report, printed = run("memory", tmp_path)
    check_targets(report, printed)
    assert "| bytes per token | weights | each layer | once |" in printed
    for name in ("two_stream", "XLNet"):
        own = [entry for entry in report["steps"] if entry["model"] == name]
        assert [entry["length"] for entry in own] == [48, 96, 192]
        assert all(entry["weight_bytes"] == 4 * entry["parameters"] for entry in own)
        if name == "two_stream":
            # Two moments, and a counter for each tensor. (XLNet has parameters that this step does not use.)
            assert all(0 < entry["optimizer_bytes"] - 8 * entry["parameters"] < 1000 for entry in own)
        for before, entry in itertools.pairwise(own):
            assert entry["bytes_per_row"] == (entry["peak_bytes"] - before["peak_bytes"]) / before["length"]


def test_memory_of_decoding(tmp_path):
    """What has to be kept is what its shapes say, and no tensor has logits of all blanks."""
    report, printed = run("decoding_memory", tmp_path)
    check_targets(report, printed)
    largest = [entry for entry in report["targets"] if entry["what"].endswith("largest logits")]
    assert len(largest) == 5 and all(entry["met"] for entry in largest)
    script = load_script(f"{FOLDER}/decoding_memory.py")
    for entry in report["entries"]:
        size, batch = entry["batch"] * entry["blanks"] * 4, entry["batch"]
        assert entry["all_logits_bytes"] == size * entry["vocabulary"] and entry["state_bytes"] == size * 72
        # Keys and values of two layers.
        assert entry["cache_bytes"] == 4 * 72 * batch * entry["blanks"] * 4 * (entry["way"] != script.SCORE)
        if entry["way"] == script.ADAPTIVE:
            assert script.count_kept(entry) < entry["peak_bytes"] < entry["all_logits_bytes"]
        assert 4 * prod(entry["largest_logits"]) < entry["all_logits_bytes"]


@pytest.mark.parametrize("name", ["two_stream", "bidirectional"])
def test_the_count_of_decoding_sees_all_logits_where_they_are_held(name, monkeypatch):
    """And the peak of the first passes is that of the whole call."""
    script = load_script(f"{FOLDER}/decoding_memory.py")
    batch, blanks, vocabulary = 2, 24, 5000
    model, peaks = make_model(name, 0, blanks + 1, vocab_size=vocabulary, **script.SIZES), {}
    ways = {"two_stream": [script.SCORE, script.ADAPTIVE, script.DRAFTED], "bidirectional": [script.ADAPTIVE]}[name]
    for held in (2**14, 2**40):
        monkeypatch.setattr(script.runner_aoarm, "LOGITS_AT_ONCE", held)
        for way in ways:
            entry, whole = (script.measure_peak(model, way, batch, blanks, passes, seed=0) for passes in (2, 100))
            assert whole["peak_bytes"] == pytest.approx(entry["peak_bytes"], rel=0.02)
            has_all = held == 2**40 and way != script.DRAFTED
            assert (prod(entry["largest_logits"]) == batch * blanks * vocabulary) == has_all
            peaks[held, way] = entry["peak_bytes"]
    for way in set(ways) - {script.DRAFTED}:
        assert peaks[2**40, way] > peaks[2**14, way] + 2 * batch * blanks * vocabulary


# Collation


def test_collation(tmp_path):
    report, printed = run("collation", tmp_path)
    assert "uniform, masked diffusion" in printed
    assert {(entry["order"], entry["workers"]) for entry in report["collation"]} == {
        (order, workers) for order in ("uniform", "local(16)", "uniform, masked diffusion") for workers in (0, 1, 2)
    }
    for entry in report["collation"]:
        assert entry["tokens"] == 3 * 4 * 16
        assert entry["tokens_per_second"] == pytest.approx(entry["tokens"] / median(entry["seconds"]))
    assert {entry["target"] for entry in report["targets"] if entry["workers"] <= 1} == {">= 2,000,000"}


# Streaming


def test_streaming(tmp_path):
    report, printed = run("streaming", tmp_path)
    check_targets(report, printed)
    script = load_script(f"{FOLDER}/streaming.py")
    assert [(entry["way"], round(entry["megabytes"])) for entry in report["runs"]] == [
        ("stream", 1),
        ("stream", 2),
        ("whole", 1),
    ]
    for entry in report["runs"]:
        (process,) = entry["processes"]
        # Two rows of at most 129 tokens in each of the timed steps.
        assert 0 < process["tokens"] <= 2 * 129 * (4 - script.WARMUP)
        assert entry["tokens_per_second"] == process["tokens"] / process["seconds"]
        assert entry["start_seconds"] > 0
        if entry["way"] == "stream":
            assert process["read_tokens"] <= 200 * script.BLOCK_SIZE
            assert 0.9 < process["all_characters"] / (entry["megabytes"] * 1e6) < 1
            assert entry["peak_megabytes"] == process["peak_megabytes_at_the_end"] >= process["peak_megabytes"]
            # Nothing of the text: some locks at most.
            assert entry["disk_megabytes"] < 0.01
        else:
            assert entry["disk_megabytes"] > entry["megabytes"]
    memory, speed = report["targets"]
    peaks = [entry["peak_megabytes"] for entry in report["runs"]]
    speeds = [entry["tokens_per_second"] for entry in report["runs"]]
    assert memory["value"] == peaks[1] / peaks[0] and speed["value"] == speeds[0] / speeds[2]
