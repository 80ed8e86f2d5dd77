# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`python -m modeling_aoarm`, as a process of its own next to a tiny saved model."""

import json
import re

import pytest
from variants import tiny_model
from warm_python import run_python

from modeling_aoarm import infill
from modeling_aoarm.__main__ import main
from modeling_aoarm.cli import load_model
from modeling_aoarm.data.tokenizers import character_tokenizer


# Letters only: line breaks in a filled text would be lines of output too.
TEXTS = ["the cat sat on the mat", "a dog barks at night"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = character_tokenizer(TEXTS)
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model = tiny_model("two_stream", vocab_size=len(tokenizer), **ends)
    # Every blank gets a character.
    model.generation_config.suppress_tokens = tokenizer.all_special_ids
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


pytestmark = pytest.mark.usefixtures("restored_logging")


def run(*arguments, stdin=""):
    return run_python("-m", "modeling_aoarm", *arguments, text=stdin)


def test_filled_texts_come_one_on_a_line(folder):
    process = run("infill", folder, "the <blank:3> sat", "no blank", "a <blank:1-3>", "--device", "cpu")
    assert process.returncode == 0 and process.stderr == ""
    model, tokenizer = load_model(str(folder), "cpu", "auto", False)
    texts = ["the <blank:3> sat", "no blank", "a <blank:1-3>"]
    assert process.stdout.splitlines() == infill(model, tokenizer, texts)
    assert "<blank" not in process.stdout


def test_json_lines_hold_candidates(folder):
    process = run(
        "infill", folder, "--file", "-", "--json", "--candidates", stdin="the <blank:2-4>\n\nthe <blank:2>at 猫\n"
    )
    assert process.returncode == 0 and process.stderr == ""
    records = [json.loads(line) for line in process.stdout.splitlines()]
    assert [record["text"] for record in records] == ["the <blank:2-4>", "", "the <blank:2>at 猫"]
    assert "猫" in process.stdout
    model, tokenizer = load_model(str(folder), "cpu", "auto", False)
    results = infill(model, tokenizer, [record["text"] for record in records], return_candidates=True)
    for record, result in zip(records, results, strict=True):
        assert record["filled"] == result.text
        assert record["log_probability"] == pytest.approx(result.log_probability, abs=1e-4)
        expected = [[each.text, list(each.blank_lengths)] for each in result.candidates]
        assert [[each["filled"], each["blank_lengths"]] for each in record["candidates"]] == expected
    assert [len(record["candidates"]) for record in records] == [3, 1, 1]


def test_arguments_reach_generation(folder, capsys):
    def output(*arguments):
        assert main(["infill", str(folder), "the <blank:9> on <blank:9>", *arguments]) == 0
        return capsys.readouterr().out

    greedy = output()
    assert output() == greedy
    sampled = output("--do-sample", "--seed", "1")
    assert output("--do-sample", "--seed", "1") == sampled != output("--do-sample", "--seed", "2")
    assert output("--do-sample", "--top-k", "1") == output("--do-sample", "--temperature", "1e-6") == greedy
    assert output("--do-sample", "--top-p", "1e-6") == greedy
    assert output("--decoding-order", "random", "--seed", "1") != greedy
    assert output("--dtype", "float16") != ""


def test_steps_and_drafts_reach_generation(folder, capsys):
    """Drafts verified greedily give the one-by-one text; nine tokens of one pass, which do not see each other, do not.
    An order by certainty is none of the fixed ones."""

    def output(*arguments):
        assert main(["infill", str(folder), "the <blank:9> on <blank:9>", *arguments]) == 0
        return capsys.readouterr().out

    greedy = output()
    assert output("--draft-length", "4") == greedy
    assert output("--tokens-per-step", "9") != greedy
    assert output("--decoding-order", "confidence") != greedy
    for name in ("tokens-per-step", "draft-length"):
        assert main(["infill", str(folder), "a<blank>", f"--{name}", "0"]) == 2
        assert name.replace("-", "_") in capsys.readouterr().err


def test_a_stream_goes_to_standard_error(folder, capsys):
    arguments = ["infill", str(folder), "the <blank:3> sat", "a <blank:1-2>", "--json"]
    assert main(arguments) == 0
    results = capsys.readouterr().out
    assert main([*arguments, "--stream"]) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["filled"] for line in captured.out.splitlines()] == [
        json.loads(line)["filled"] for line in results.splitlines()
    ]
    assert all(json.loads(line)["filled"] in captured.err for line in results.splitlines())


def test_candidates_are_a_table(folder, tmp_path, capsys):
    path = tmp_path / "texts.txt"
    path.write_text("the <blank:1-2>at\n", encoding="utf-8")
    assert main(["infill", str(folder), "a dog", "--file", str(path), "--candidates", "--score-end"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [len(line) for line in lines] == [1, 3, 1, 3, 3]
    assert lines[0] == ["a dog"] and lines[1][1:] == ["", "a dog"]
    assert lines[3][2] == lines[2][0] and float(lines[3][0]) >= float(lines[4][0])
    assert {lines[3][1], lines[4][1]} == {"1", "2"}
    model, tokenizer = load_model(str(folder), "cpu", "auto", False)
    result = infill(model, tokenizer, "the <blank:1-2>at", return_candidates=True, score_end=True)
    assert float(lines[3][0]) == pytest.approx(result.log_probability, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/missing", "a<blank>"], "no folder .*missing"),
        (["{folder}", "a<blank:0>"], "at least one token.*<blank:0>"),
        (["{folder}", "a<blank:1-9>t<blank:1-9>"], "max_candidates=64.*81"),
        (["{folder}", "a<blank:1-99>"], "max_position_embeddings=64.*<blank:1-99>"),
        (["{folder}", "a<blank:1-9>", "--max-candidates", "8"], "max_candidates=8.*9"),
        (["{folder}", "a<blank:65>"], "max_position_embeddings=64"),
        (["{folder}"], "TEXT or --file"),
        (["{folder}", "--file", "{folder}/missing.txt"], "missing.txt"),
        (["{folder}", "a<blank>", "--top-p", "0.5"], "--top-p needs --do-sample.*0.5"),
        (["{folder}", "a<blank>", "--device", "abacus"], "--device.*'abacus'"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(folder, capsys, arguments, message):
    assert main(["infill", *(each.format(folder=folder) for each in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("python -m modeling_aoarm infill: error: ")
    assert re.search(message, captured.err)


def test_a_process_ends_with_the_status(folder):
    process = run("infill", folder / "missing", "a<blank>")
    assert process.returncode == 2 and process.stdout == "" and process.stderr.count("\n") == 1
    unknown = run("infill", "nobody/nothing", "a<blank>")
    assert unknown.returncode == 2 and "MODEL nobody/nothing" in unknown.stderr and unknown.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["infill"], ["outfill"], ["infill", "folder", "a<blank>", "--top-k", "few"]])
def test_a_wrong_call_shows_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage:" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    for arguments, names in ((["--help"], ["infill"]), (["infill", "--help"], ["<blank:2-6>", "--tokens-per-step"])):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        captured = capsys.readouterr()
        assert captured.err == "" and all(name in captured.out for name in names)
