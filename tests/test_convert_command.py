# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`python -m modeling_aoarm convert`: what it writes loads everywhere, and wrong input leaves nothing behind."""

import json
import os
import re

import pytest
import torch
from clean_process import run_clean_process
from peft import get_peft_model
from test_conversion import logits_of, source_model, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer
from variants import random_rows
from warm_python import run_python

from modeling_aoarm import lora_config
from modeling_aoarm.__main__ import main
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.io import replacing_folder


pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "source"
    tokenizer = character_tokenizer(["the cat sat on the mat"])
    tokenizer.chat_template = "{{ messages }}"
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model = source_model("qwen3", vocab_size=len(tokenizer), **ends).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_adapter_is_merged_and_one_of_another_variant_is_refused(checkpoint, tmp_path, capsys):
    assert main(["convert", str(checkpoint), str(tmp_path / "plain"), "--dtype", "float32"]) == 0
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    adapted = get_peft_model(base, lora_config(base, r=2, init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    command = ["convert", str(checkpoint), str(tmp_path / "merged"), "--dtype", "float32"]
    assert main([*command, "--adapter", str(tmp_path / "adapter")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = tokens(8) % base.config.vocab_size
    plain = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "plain"), ids)
    torch.testing.assert_close(logits_of(merged, ids), logits_of(adapted, ids), atol=1e-4, rtol=0)
    assert not torch.allclose(logits_of(merged, ids), plain, atol=1e-2)
    capsys.readouterr()
    command[2] = str(tmp_path / "other")
    command += ["--adapter", str(tmp_path / "adapter"), "--attention-variant", "decoupled_rope"]
    assert main(command) == 2
    message = "`adapter` must belong to the model's variant, 'decoupled_rope' without a learned query vector; got"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    command[-1] = "two_stream"
    command[command.index("--adapter") + 1] = str(tmp_path / "nothing")
    assert main(command) == 2 and not (tmp_path / "other").exists()


@pytest.mark.parametrize("variant", ["decoupled_rope", "two_stream"])
def test_the_command_writes_a_model_that_loads_everywhere(checkpoint, variant, tmp_path):
    destination = tmp_path / "new" / "converted"
    command = ("-m", "modeling_aoarm", "convert", checkpoint, destination)
    process = run_python(*command, "--attention-variant", variant, "--dtype", "float32")
    assert process.returncode == 0 and process.stderr == "", process.stderr
    source = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32")
    parameters = source.num_parameters() + (source.config.hidden_size if variant == "two_stream" else 0)
    assert process.stdout == f"{destination}: {variant} of {checkpoint}, {parameters:,} parameters in float32\n"
    assert os.listdir(tmp_path / "new") == ["converted"]
    assert not (destination / "conversion.py").exists() and (destination / "modeling_aoarm.py").exists()
    model = AutoModelForCausalLM.from_pretrained(destination)
    torch.testing.assert_close(
        logits_of(model, tokens(8) % model.config.vocab_size),
        logits_of(source, tokens(8) % model.config.vocab_size),
        atol=1e-5,
        rtol=0,
    )
    tokenizer, original = (AutoTokenizer.from_pretrained(folder) for folder in (destination, checkpoint))
    assert tokenizer("the cat").input_ids == original("the cat").input_ids
    assert tokenizer.get_vocab() == original.get_vocab() and tokenizer.chat_template == original.chat_template
    assert model.config.mask_token_id == tokenizer.mask_token_id is not None

    rows = random_rows(variant, 2, 6, vocab_size=model.config.vocab_size)
    rows["generation_mask"] = torch.tensor([[False, False, True, True, True, True]] * 2)
    rows["ways"] = [{"do_sample": False, "decoding_order": "random"}]
    torch.save(rows, tmp_path / "rows")
    report = run_clean_process(destination, tmp_path / "rows", "without")
    assert report["module"].startswith("transformers_modules.")
    inputs = {name: rows[name] for name in ("input_ids", "position_ids", "target_position_ids")}
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "rows.out")["logits"], model(**inputs).logits)


def test_the_command_keeps_the_dtype_and_fills_an_empty_folder(checkpoint, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["convert", str(checkpoint), str(tmp_path / "empty")]) == 0
    assert capsys.readouterr().out.endswith("parameters in bfloat16\n")
    config = json.loads((tmp_path / "empty" / "config.json").read_text())
    assert (config["dtype"], config["attention_variant"]) == ("bfloat16", "two_stream")
    assert config["query_stream_init"] == "neighbor"
    assert main(["infill", str(tmp_path / "empty"), "the <blank:3> sat", "--device", "cpu"]) == 0


def test_wrong_input_is_one_line_status_2_and_leaves_nothing(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    broken = tmp_path / "broken"
    source_model("qwen3").save_pretrained(broken)
    bare = tmp_path / "bare"
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(broken)
    source_model("llama").save_pretrained(bare)
    values = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(values | {"novel_trick": 3}))
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    for source, destination, message in (
        (checkpoint, "full", "empty folder, got .*full"),
        (checkpoint, "file", "empty folder, got .*file"),
        (tmp_path / "nowhere", "new", "SRC must be a folder.*nowhere"),
        ("nobody/nothing", "new", "nobody/nothing"),
        (broken, "new", "`novel_trick`.*got 3"),
        (bare, "new", "tokenizer of SRC .*bare"),
    ):
        assert main(["convert", str(source), str(tmp_path / destination)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith("python -m modeling_aoarm convert: error: ")
        assert re.search(message, captured.err)
        assert sorted(tmp_path.rglob("*")) == before
    content = ["--ignore-field", "novel_trick", "--query-stream-init", "content"]
    assert main(["convert", str(broken), str(tmp_path / "new"), *content]) == 0
    assert json.loads((tmp_path / "new" / "config.json").read_text())["query_stream_init"] == "content"


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "folder") as folder:
        (folder / "half").write_text("half")
        assert not (tmp_path / "folder").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with replacing_folder(tmp_path / "folder") as folder:
        (folder / "whole").write_text("whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "whole"]


def test_help_names_the_variants(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["convert", "--help"])
    assert stop.value.code == 0 and "two_stream" in capsys.readouterr().out
