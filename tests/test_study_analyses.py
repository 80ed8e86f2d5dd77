# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What the study looks at besides likelihoods: attention on its batches, and the text that its models write."""

import json

import pytest
import torch
from scripts import REPOSITORY
from tradeoff_study.analyses import (
    analyse_attention,
    analyse_samples,
    attention_batches_of,
    sample_sentences,
    whole_words,
)
from tradeoff_study.models import study_model
from tradeoff_study.predictions import draw_orders, predict
from tradeoff_study.recipe import Cell, Recipe
from tradeoff_study.runner import Study
from tradeoff_study.text import TextSource

from modeling_aoarm.analysis import hidden_row_losses


SIZES = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
LENGTH = 8
TEXT = "the cat sat on the mat and the dog ate what the cat had left over " * 20


def make_cell(model, source="synthetic", **changes):
    fields = dict(length=LENGTH, order="uniform", seed=0, tokens=80, tokens_per_step=40, branches=(1.0,))
    fields |= dict(eval_examples=6, eval_prefixes=4, sizes=tuple(sorted(SIZES.items())))
    return Cell(source=source, model=model, **(fields | changes))


def make_study(cell, folder, **analyses):
    text = TextSource(TEXT)
    recipe = Recipe((cell,), {"num_chains": 2, "num_symbols": 4}, analyses)
    return Study(recipe, folder, text, text)


@pytest.mark.parametrize("order", ["uniform", "fixed"])
@pytest.mark.parametrize("name", ["decoupled_rope", "two_stream_content", "layers_twice", "bidirectional"])
def test_attention_is_analysed_on_what_likelihoods_are_measured_on(tmp_path, name, order):
    """With nothing hidden the loss is the measured likelihood, of all held-out sentences."""
    cell = make_cell(name, order=order)
    study = make_study(cell, tmp_path)
    model, held_out = study.model(cell), study.held_out(cell)
    losses = hidden_row_losses(model, attention_batches_of(model, held_out, 6, batch=4), [0, 2], progress=False)
    assert losses.nll == pytest.approx(held_out.measure(model)["nll"], rel=1e-5)
    assert float(losses.excess("prediction", "nearest").mean[0]) == 0
    assert float(losses.excess("prediction", "nearest").mean[1]) != 0


def test_analyses_are_made_once_and_of_finished_cells(tmp_path):
    cell = make_cell("two_stream_content")
    select = {"source": ["synthetic"], "length": [LENGTH]}
    study = make_study(cell, tmp_path, attention={"select": select, "examples": 4, "counts": [1, 2]})
    assert study.analyse(progress=False) == []
    study.run(progress=False)
    assert study.analyse(progress=False) == [f"attention/{cell.key}"]
    path = tmp_path / "attention" / f"{cell.key}.json"
    found = json.loads(path.read_text())
    assert found["counts"] == [1, 2] and set(found["excess"]) == {"all", "prediction", "content"}
    assert -1 <= found["specialisation"]["content"]["score"] <= 1
    # A row that may be hidden from itself is its own most recent one.
    hidden = {
        name: each["excess"]["content"]["recent"]["mean"] for name, each in (("no", found), ("yes", found["own_row"]))
    }
    assert hidden["no"] != hidden["yes"]
    for part in ("mass", "hidden"):
        assert path.with_name(f"{cell.key}-{part}.png").exists()
    before = path.stat().st_mtime_ns
    assert study.analyse(progress=False) == [] and path.stat().st_mtime_ns == before
    other = make_study(cell, tmp_path, attention={"select": select, "examples": 5})
    with pytest.raises(ValueError, match=r"must have the recipe's settings \(options={'examples': 5}\)"):
        other.analyse(progress=False)
    assert make_study(cell, tmp_path, attention={"select": {"order": ["fixed"]}}).analyse(progress=False) == []


@pytest.mark.parametrize("name", ["decoupled_rope", "bidirectional"])
def test_errors_are_over_sentences(tmp_path, name):
    """A sentence that is measured with several prefixes is one example."""
    cell = make_cell(name)
    study = make_study(cell, tmp_path)
    model, held_out = study.model(cell), study.held_out(cell)
    analyse_attention(model, held_out, tmp_path / "stem", examples=5, counts=[1], progress=False)
    assert json.loads((tmp_path / "stem-hidden.json").read_text())["examples"] == 5


def test_recipes_with_wrong_analyses_are_refused(tmp_path):
    content = json.loads(json.dumps({"grids": [], "analyses": {"probes": {}}}))
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="analyses among .*, got: probes"):
        Recipe.load(path)
    path.write_text(json.dumps({"grids": [], "analyses": {"attention": {"select": {"heads": [2]}}}}))
    with pytest.raises(ValueError, match="selects cells for attention by unknown fields: heads"):
        Recipe.load(path)
    path.write_text(json.dumps({"grids": [], "analyses": {"samples": {"select": {"seed": 0}}}}))
    with pytest.raises(ValueError, match="must select cells for samples by lists of values: seed"):
        Recipe.load(path)
    path.write_text(json.dumps({"grids": [{"source": "text"}]}))
    with pytest.raises(
        ValueError, match="a grid without these fields: learning_rates, lengths, models, orders, seeds, tokens"
    ):
        Recipe.load(path)
    smoke = (REPOSITORY / "configuration" / "recipes" / "study_smoke.yaml").read_text()
    for control in ("bidirectional_content", "strict_content"):
        path.write_text(smoke.replace("bidirectional, layers_twice]", f"{control}]"))
        with pytest.raises(ValueError, match=f"selects cells that attention cannot read: .*{control}"):
            Recipe.load(path)


@torch.no_grad()
@pytest.mark.parametrize("name", ["decoupled_rope", "two_stream_learned", "layers_twice", "bidirectional"])
def test_cold_samples_are_the_likeliest_symbols_one_by_one(name):
    """At a temperature near 0, each symbol is the likeliest given those before it in the order."""
    model = study_model(name, 27, LENGTH, 0, initializer_range=0.3, **SIZES)
    tokens = sample_sentences(model, "fixed", LENGTH, 3, 1e-4, seed=0)
    assert tokens.max() < 27
    order = draw_orders("fixed", 3, LENGTH)
    for row in range(LENGTH):
        observed = torch.full((3,), row) if name == "bidirectional" else None
        logits = predict(model, tokens, order, observed)[:, row, :27]
        assert torch.equal(logits.argmax(-1), tokens.gather(1, order[:, row, None])[:, 0])


def test_samples_have_orders_of_their_own_and_no_special_tokens():
    model = study_model("two_stream_content", 27, LENGTH, 0, **SIZES)
    hot = sample_sentences(model, "uniform", LENGTH, 200, 1.2, seed=0)
    assert hot.shape == (200, LENGTH) and hot.max() < 27
    # Nearly uniform before training.
    assert len(hot.unique()) == 27
    assert torch.equal(hot, sample_sentences(model, "uniform", LENGTH, 200, 1.2, seed=0))
    assert not torch.equal(hot, sample_sentences(model, "uniform", LENGTH, 200, 1.2, seed=1))


def test_words_that_a_window_cuts_do_not_count():
    assert whole_words("he cat sat o") == "cat sat"
    assert whole_words(" cat sat ") == "cat sat"
    assert whole_words("nospace") == "" and whole_words("one space") == ""


def test_frontiers_and_references():
    model = study_model("decoupled_rope", 27, 32, 0, **SIZES)
    vocabulary = frozenset(TEXT.split())
    cell = make_cell("decoupled_rope", "text", length=32, tokens_per_step=32)
    found = analyse_samples(model, cell, vocabulary, TextSource(TEXT), 50, (0.5, 1.0), batch=20, progress=False)
    points, found = found["points"], found["references"]
    assert [point["temperature"] for point in points] == [0.5, 1.0]
    for point in points:
        assert point["words"] >= 50 and 0 <= point["coherence"] < 0.3 and 0.5 < point["diversity"] <= 1
    assert found["held-out text"]["coherence"] == 1
    assert found["noise"]["coherence"] < 0.3 < found["noise"]["diversity"]
    assert found["held-out text"]["diversity"] < found["noise"]["diversity"]
