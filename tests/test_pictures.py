# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a generation say what its output says."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import Normalize
from PIL import Image
from variants import tiny_model

from modeling_aoarm import AOARMGenerateOutput
from modeling_aoarm.data.tokenizers import byte_tokenizer, character_tokenizer, train_bpe_tokenizer
from modeling_aoarm.plots import GIVEN, plot_decoding_order


TEXT = "The <b>café</b> costs $x$ & \\alpha,\n  or so"
CHARACTERS = character_tokenizer([TEXT])
TOKENIZERS = {"character": CHARACTERS, "byte": byte_tokenizer(), "bpe": train_bpe_tokenizer([TEXT], 275)}


def made_output(tokenizer, text, share=0.6, per_pass=1, left_padding=0, closed=0, seed=0):
    """An output as `generate` makes it, and the masks it was called with.

    Example 0 has no blanks but one; example 1 has `text` with a share of its tokens blank, `left_padding` columns of
    padding on the left and, where there are any, `closed` blanks behind an end of sentence.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(text) + [tokenizer.eos_token_id] * (closed > 0)
    ids = [tokenizer.pad_token_id] * left_padding + ids + [tokenizer.pad_token_id] * closed
    end = len(ids) - closed
    places = torch.arange(left_padding, end)
    blank = torch.rand(len(places), generator=generator) < share
    blank[-1] |= closed > 0
    columns = places[blank]
    columns = columns[torch.randperm(len(columns), generator=generator)]
    generation_mask = torch.zeros(2, len(ids), dtype=torch.bool)
    generation_mask[0, 0] = generation_mask[1, columns] = True
    generation_mask[1, end:] = True
    attention_mask = torch.ones(2, len(ids), dtype=torch.int64)
    attention_mask[1, :left_padding] = 0
    order, steps = torch.full((2, 2, len(columns) + 2), -1)
    order[0, 0], steps[0, 0] = 0, 0
    order[1, : len(columns)], steps[1, : len(columns)] = columns, torch.arange(len(columns)) // per_pass
    logprobs = torch.where(order >= 0, -3 * torch.rand(order.shape, generator=generator), 0.0)
    output = AOARMGenerateOutput(
        sequences=torch.tensor([ids, ids]), decoding_order=order, logprobs=logprobs, decoding_steps=steps
    )
    return output, {"generation_mask": generation_mask, "attention_mask": attention_mask}


def fillings(output, example=1):
    """Column: (step, log-probability)."""
    entries = (output.decoding_order, output.decoding_steps, output.logprobs)
    order, steps, logprobs = (each[example].tolist() for each in entries)
    return {
        column: (step, logprob) for column, step, logprob in zip(order, steps, logprobs, strict=True) if column >= 0
    }


def pixels(picture):
    return np.asarray(picture.convert("RGB")).reshape(-1, 3)


def count_of(picture, colour, tolerance=4):
    target = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    return int((abs(pixels(picture).astype(int) - target).max(-1) <= tolerance).sum())


@pytest.mark.parametrize("columns", [12, 200])
def test_the_plot_has_a_cell_for_each_filling_in_its_colour(tmp_path, columns):
    text = (TEXT * 6)[:columns]
    output, masks = made_output(CHARACTERS, text, share=0.4)
    plot_decoding_order(output, tmp_path / "order.png", CHARACTERS, example=1)
    picture = Image.open(tmp_path / "order.png")
    assert picture.format == "PNG"
    assert 800 <= picture.width <= 2400 and 300 <= picture.height <= 3000
    filled = fillings(output)
    lowest = min(logprob for _, logprob in filled.values())
    # Without the colour bar on the right.
    body = picture.crop((0, 0, int(picture.width * 0.9), picture.height))
    colours = np.unique(pixels(body).reshape(-1, 3), axis=0).astype(int)
    for _, logprob in filled.values():
        expected = 255 * np.array(colormaps["viridis_r"](Normalize(lowest, 0)(logprob))[:3])
        assert (abs(colours - expected).max(-1) <= 1.5).any()
    # Given columns are grey from top to bottom: their share of the picture is their share of the columns.
    assert count_of(picture, GIVEN) / picture.width / picture.height == pytest.approx(0.6 * 0.8, abs=0.2)
    assert list(tmp_path.glob("*")) == list(tmp_path.glob("order.*"))


def test_later_fillings_are_further_down(tmp_path):
    output, _ = made_output(CHARACTERS, TEXT[:12], share=1.0)
    output.logprobs[1, :12] = -torch.arange(12) / 4
    plot_decoding_order(output, tmp_path / "order.png", CHARACTERS, example=1)
    picture = np.asarray(Image.open(tmp_path / "order.png").convert("RGB")).astype(int)
    # Without the colour bar on the right.
    picture = picture[:, : int(picture.shape[1] * 0.9)]
    centres = []
    for logprob in output.logprobs[1, :12].tolist():
        colour = np.array(colormaps["viridis_r"](Normalize(-11 / 4, 0)(logprob))[:3]) * 255
        rows, columns = np.nonzero(abs(picture - colour.round()).max(-1) <= 1)
        centres.append((rows.mean(), columns.mean()))
    rows, columns = zip(*centres, strict=True)
    assert list(rows) == sorted(rows)
    places = torch.tensor(columns).argsort().argsort().tolist()
    assert places == output.decoding_order[1, :12].tolist()


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_the_numbers_beside_the_plot_are_the_outputs(tmp_path, name):
    tokenizer = TOKENIZERS[name]
    output, masks = made_output(tokenizer, TEXT, per_pass=3, left_padding=2, closed=4)
    plot_decoding_order(output, tmp_path / "order.png", tokenizer, example=1, **masks)
    numbers = json.loads((tmp_path / "order.json").read_text(encoding="utf-8"))
    width = output.sequences.shape[1]
    assert numbers["example"] == 1
    assert numbers["columns"] == list(range(2, width))
    assert "".join(numbers["tokens"]) == TEXT + "</s>"
    assert {
        column: (step, logprob)
        for column, step, logprob in zip(
            numbers["decoding_order"], numbers["decoding_steps"], numbers["logprobs"], strict=True
        )
    } == fillings(output)
    assert numbers["decoding_order"] == [column for column in output.decoding_order[1].tolist() if column >= 0]
    assert numbers["closed"] == list(range(width - 4, width))
    assert sorted(numbers["given"] + numbers["decoding_order"] + numbers["closed"]) == numbers["columns"]


def test_without_a_tokenizer_ids_are_shown_and_without_masks_padding_at_the_ends_is_left_out(tmp_path):
    output, masks = made_output(CHARACTERS, "The", left_padding=2, closed=3, share=1.0)
    plot_decoding_order(output, tmp_path / "ids.png", example=1)
    plot_decoding_order(output, tmp_path / "texts.png", CHARACTERS, example=1)
    plot_decoding_order(output, tmp_path / "real.png", example=1, attention_mask=masks["attention_mask"])
    ids, texts, real = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("ids", "texts", "real"))
    assert ids["tokens"] == [str(token) for token in output.sequences[1].tolist()]
    assert texts["tokens"] == ["T", "h", "e", "</s>"] and texts["columns"] == [2, 3, 4, 5]
    assert real["columns"] == list(range(2, 9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "order.json"}, r"path.*\.png.*order\.json"),
        ({"path": "order"}, r"path.*\.png.*order"),
        ({"example": 2}, r"example.*\[0, 2\).*2"),
        ({"example": -1}, r"example.*\[0, 2\).*-1"),
        ({"output": torch.zeros(1, 2)}, "output.*return_dict_in_generate.*Tensor without decoding_order"),
        ({"attention_mask": torch.ones(2, 2)}, r"attention_mask.*\[2, 3\].*\[2, 2\]"),
        ({"generation_mask": torch.ones(1, 3)}, r"generation_mask.*\[2, 3\].*\[1, 3\]"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, changes, message):
    output, _ = made_output(CHARACTERS, "The")
    arguments = {"output": output, "path": "order.png", "tokenizer": CHARACTERS} | changes
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        plot_decoding_order(**arguments)
    assert not list(tmp_path.glob("*"))


def test_an_example_without_blanks_is_refused(tmp_path):
    output, _ = made_output(CHARACTERS, "The")
    output.decoding_order[0] = -1
    with pytest.raises(ValueError, match="example.*filled blanks.*0"):
        plot_decoding_order(output, tmp_path / "order.png", CHARACTERS)


def run_example(monkeypatch, *arguments):
    script = Path(__file__).parents[1] / "examples" / "draw_generation.py"
    monkeypatch.setattr("sys.argv", [str(script), *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")


def test_the_example_draws_a_saved_model(tmp_path, monkeypatch, capsys):
    letters = character_tokenizer(["abcdefg "])
    tiny_model("two_stream", vocab_size=len(letters), pad_token_id=letters.pad_token_id).save_pretrained(tmp_path)
    letters.save_pretrained(tmp_path)
    figures = tmp_path / "figures"
    run_example(monkeypatch, "--model", tmp_path, "--text", "a <blank:3> b<blank:2>", "--output_dir", figures)
    assert sorted(path.suffix for path in figures.glob("generation.*")) == [".json", ".png"]
    numbers = json.loads((figures / "generation.json").read_text())
    assert sorted(numbers["decoding_order"]) == [3, 4, 5, 8, 9]
    assert numbers["tokens"][:3] + numbers["tokens"][6:8] == ["<s>", "a", " ", " ", "b"]
    assert "given: a ___ b__" in capsys.readouterr().out


def test_the_example_says_how_to_make_a_model(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_example(monkeypatch, "--model", tmp_path / "nothing")
    assert re.search(r"--model must be.*nothing; `make pretrain`", capsys.readouterr().err)


def test_a_token_is_never_read_as_a_formula(tmp_path):
    class Formulas:
        pad_token_id = None

        @staticmethod
        def decode(ids, **kwargs):
            return "".join(["$\\frac{$", "$^^$"][token % 2] for token in ids)

    output, _ = made_output(CHARACTERS, "The")
    plot_decoding_order(output, tmp_path / "order.png", Formulas)
