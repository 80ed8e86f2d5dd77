# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Model cards: what they state, metadata that reads back, and snippets that run."""

import math
import re

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from variants import VARIANTS, every_variant, tiny_config, tiny_model

from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.evaluation.likelihood import OrderNLL
from modeling_aoarm.model_card import CardArguments, make_model_card, rename_model_card, write_model_card


FIGURES = {
    "any order": OrderNLL(
        "uniform", torch.tensor([[3.0, 5.0], [4.0, 6.0]]), torch.tensor([[2, 2], [2, 2]]), 4
    ).to_dict(),
    "left to right": OrderNLL("left_to_right", torch.tensor([[2.0, 3.0]]), torch.tensor([[2, 2]])).to_dict(),
}
REPORT = {
    "parameters": 1234567,
    "data": {"source": "Some Corpus|v2", "tokenizer": "character", "block_size": 16},
    "training": {"steps": 7, "ema_decay": None, "hyperparameters": {"learning_rate": 0.002}},
    "evaluation": FIGURES,
    "samples": [{"canvas": "a<blank:2>|\nd", "filled": "abc|\nd", "original": "*a*"}],
    "command": "examples/pretrain.py --max_steps 7",
    "versions": {"python": "3.11", "torch": "2.13"},
    "config": {"not": "shown"},
}


def run_snippets(card, folder, monkeypatch, capsys):
    """Runs the snippets as one script, started beside the folder that they name; returns the lines printed."""
    monkeypatch.chdir(folder)
    exec("\n".join(re.findall(r"```python\n(.*?)```", card.content, flags=re.S)), {})
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def tokenizer():
    return character_tokenizer(["The statement is a blank of eight tokens."])


@every_variant
def test_the_snippets_of_a_card_run_from_the_saved_folder(variant, tokenizer, tmp_path, monkeypatch, capsys):
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    model = tiny_model(variant, vocab_size=len(tokenizer), **special)
    model.save_pretrained(tmp_path / "the model")
    tokenizer.save_pretrained(tmp_path / "the model")
    card = make_model_card(model.config, {}, model_id="the model")
    assert card.data.pipeline_tag == ("fill-mask" if variant == "bidirectional" else "text-generation")
    lines = run_snippets(card, tmp_path, monkeypatch, capsys)
    assert lines[0].startswith("The ")
    if variant != "causal":
        assert lines[0].endswith(" statement is")
        assert "\n".join(lines[1:-1]).count("[") == 1 + 4
        assert lines[-1].startswith("The ") and lines[-1].endswith(" statement is")


def test_the_snippets_of_an_adapter_run(tokenizer, tmp_path, monkeypatch, capsys):
    model = tiny_model("two_stream", vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id)
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    card = make_model_card(model.config, {}, model_id="adapter", base_model="base", adapter=True)
    assert card.data.library_name == "peft"
    assert run_snippets(card, tmp_path, monkeypatch, capsys)[-1].endswith(" statement is")


@pytest.mark.parametrize("variant", ["two_stream", "decoupled_rope", "causal"])
def test_a_card_states_what_is_known_and_reads_back(variant, tmp_path):
    card = make_model_card(
        tiny_config(variant),
        REPORT,
        model_id="me/model",
        license="cc-by-4.0",
        language="en",
        base_model="them/source",
        curve="loss_curve.png",
    )
    write_model_card(tmp_path, card)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.license == "cc-by-4.0" and loaded.data.language == "en"
    assert loaded.data.library_name == "transformers" and loaded.data.pipeline_tag == "text-generation"
    assert loaded.data.base_model == "them/source"
    assert {"any-order", variant} <= set(loaded.data.tags)
    results = {result.metric_name: result for result in loaded.data.eval_results}
    # 18 nats in two draws of four characters; 5 nats for four tokens.
    assert results["bits per character, any order"].metric_value == pytest.approx(18 / 2 / 4 / math.log(2))
    assert results["nats per token, left to right"].metric_value == pytest.approx(5 / 4)
    assert {result.dataset_name for result in loaded.data.eval_results} == {"Some Corpus|v2"}
    assert {result.dataset_type for result in loaded.data.eval_results} == {"some-corpus-v2"}
    text = loaded.text
    for expected in (
        "1,234,567",
        "| steps | 7 |",
        "| learning rate | 0.002 |",
        "Some Corpus\\|v2",
        "| any order | 3.2461 | 2.2500 |",
        "| left to right | - | 1.2500 | - | 1 |",
        "a\\<blank:2\\>\\|⏎d",
        "\\*a\\*",
        "examples/pretrain.py --max_steps 7",
        "python 3.11, torch 2.13.",
        "![Loss over the training](loss_curve.png)",
        "Positions beyond 16",
        "`cc-by-4.0`",
    ):
        assert expected in text, expected
    assert "ema" not in text and "not shown" not in text and "\n\n\n" not in text
    assert (f"`{VARIANTS[variant]['attention_variant']}`" in text) and text.count("```") % 2 == 0


def test_a_card_takes_the_name_of_its_repository():
    card = make_model_card(tiny_config("two_stream"), REPORT, model_id="outputs/a")
    other = rename_model_card(card, "me/model")
    assert other.data.model_name == "me/model"
    assert "outputs/a" not in str(other)
    assert str(other) == str(make_model_card(tiny_config("two_stream"), REPORT, model_id="me/model"))
    with pytest.raises(ValueError, match="must have a model-index"):
        rename_model_card(ModelCard("---\nlicense: mit\n---\n# A card from elsewhere"), "me/model")


def test_a_base_model_on_the_disk_is_no_name_of_the_hub(tmp_path):
    card = make_model_card(tiny_config("two_stream"), {}, model_id="a", base_model=str(tmp_path))
    assert card.data.base_model is None


def test_bad_arguments_are_named():
    config = tiny_config("two_stream")
    with pytest.raises(ValueError, match="license must be an identifier of the Hub such as apache-2.0, got 'My own'"):
        make_model_card(config, {}, model_id="a", license="My own")
    with pytest.raises(ValueError, match="license must be"):
        CardArguments(license="Apache 2")
    with pytest.raises(ValueError, match="base_model must name"):
        make_model_card(config, {}, model_id="a", adapter=True)
