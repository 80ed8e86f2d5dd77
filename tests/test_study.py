# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The study's cells: what is measured of them, and that a run goes on where it ended, with the same numbers."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from statistics import mean

import pytest
import torch
from scripts import REPOSITORY, read_json, run_script
from tradeoff_study.comparisons import choose_best, final_branch, format_markdown, gaps, report_tables
from tradeoff_study.markov import MarkovMixture
from tradeoff_study.measures import HeldOut
from tradeoff_study.models import study_model
from tradeoff_study.predictions import predict
from tradeoff_study.recipe import Cell, Recipe
from tradeoff_study.runner import Study, finished_rows
from tradeoff_study.text import TextSource
from tradeoff_study.training import CellTraining, training_flops


SIZES = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
MARKOV = {"num_chains": 2, "num_symbols": 4, "concentration": 0.2}
SMOKE = "configuration/recipes/study_smoke.yaml"


def make_cell(model="decoupled_rope", **changes):
    fields = dict(source="synthetic", length=6, order="uniform", model=model, seed=0, tokens=1200, tokens_per_step=60)
    fields |= dict(branches=(0.5, 1.0), warmup_steps=3, eval_examples=8, eval_prefixes=6, learning_rate=1e-2)
    return Cell(**(fields | {"sizes": tuple(sorted(SIZES.items()))} | changes))


def figures_of(row):
    """A row of results without what depends on the clock."""
    return {name: value for name, value in row.items() if name != "training_seconds"}


def run_study(cells, folder, **options):
    study = Study(Recipe(tuple(cells), MARKOV), folder)
    finished = study.run(progress=False, **options)
    return study, finished


@torch.no_grad()
@pytest.mark.parametrize("name", ["decoupled_rope", "two_stream_learned", "bidirectional"])
def test_measured_are_the_mean_likelihood_and_the_divergence_from_the_exact_conditionals(name):
    """Against loops over sentences, rows and symbols. With as many prefixes as rows each row is asked about once."""
    cell = make_cell(name)
    source = MarkovMixture(6, **MARKOV)
    held_out = HeldOut(cell, source.sample(8, 6, torch.Generator().manual_seed(0)), source)
    model = study_model(name, 4, 6, 0, initializer_range=0.3, **SIZES)
    found = held_out.measure(model)
    exact = source.conditionals(held_out.tokens, held_out.order)
    nll, excess, optimum = torch.zeros(3, 8, 6, dtype=torch.float64)
    for example in range(8):
        tokens, order = held_out.tokens[example, None], held_out.order[example, None]
        for row in range(6):
            observed = torch.tensor([row]) if cell.reads_prefixes else None
            logits = predict(model, tokens, order, observed)[0, row].double()
            token = int(tokens[0, order[0, row]])
            log_probs = logits - torch.logsumexp(logits, 0)
            nll[example, row] = -log_probs[token]
            optimum[example, row] = -math.log(exact[example, row, token])
            for symbol in range(4):
                share = float(exact[example, row, symbol])
                excess[example, row] += share * (math.log(share) - float(log_probs[symbol]))
    assert found["rows"] == list(range(6))
    for key, values in (("nll", nll), ("excess", excess)):
        assert found[key] == pytest.approx(float(values.mean()), abs=1e-5)
        assert found[f"{key}_by_row"] == pytest.approx(values.mean(0).tolist(), abs=1e-5)
        assert found[f"example_{key}"] == pytest.approx(values.mean(1).tolist(), abs=1e-5)
    assert found["exact_nll"] == pytest.approx(float(optimum.mean()), abs=1e-9)
    spread = nll.mean(1).std(correction=1) / 8**0.5
    assert found["standard_error"] == pytest.approx(float(spread), abs=1e-5)
    assert found["excess"] > 0


def test_training_approaches_the_optimum(tmp_path):
    """A quarter of the way from unigram to optimum is far more than chance, and excess cannot be negative."""
    cells = [make_cell(name, tokens=48_000, tokens_per_step=240) for name in ("decoupled_rope", "two_stream_content")]
    run_study(cells, tmp_path)
    for row in finished_rows(tmp_path):
        found = row["branches"]["1.0"]
        assert 0 < found["excess"] < 0.75 * (row["unigram_entropy"] - found["exact_nll"])
        assert row["curve"][-1]["nll"] < row["curve"][0]["nll"]
        assert row["curve"][-1]["tokens"] == 48_000


def test_a_branch_is_the_training_of_its_length(tmp_path):
    """What a trunk's branch measures is what a cell that ends there measures; nothing of a branch stays."""
    long, short = make_cell(branches=(0.25, 0.5, 1.0)), make_cell(branches=(1.0,), tokens=600)
    run_study([long], tmp_path / "long")
    run_study([short], tmp_path / "short")
    [of_long], [of_short] = finished_rows(tmp_path / "long"), finished_rows(tmp_path / "short")
    assert of_long["branches"]["0.5"] == of_short["branches"]["1.0"]
    alone = make_cell(branches=(1.0,))
    run_study([alone], tmp_path / "alone")
    [of_alone] = finished_rows(tmp_path / "alone")
    assert of_long["branches"]["1.0"] == of_alone["branches"]["1.0"]
    assert of_long["branches"]["1.0"] != of_long["branches"]["0.5"]


@pytest.mark.parametrize("name", ["two_stream_content", "bidirectional"])
def test_a_training_that_stops_after_each_step_has_the_same_numbers(tmp_path, monkeypatch, name):
    cell = make_cell(name, tokens=360)
    _, finished = run_study([cell], tmp_path / "whole")
    assert finished == [cell.key]

    train_step = CellTraining.train_step

    def then_stop(self, rate):
        self.deadline = -math.inf
        return train_step(self, rate)

    monkeypatch.setattr(CellTraining, "train_step", then_stop)
    runs = 0
    while not run_study([cell], tmp_path / "pieces")[1]:
        runs += 1
    # Branches of 3 and 6 steps, the first of which leaves the trunk after 2 and the second after 4.
    assert runs == 7
    [whole], [pieces] = finished_rows(tmp_path / "whole"), finished_rows(tmp_path / "pieces")
    assert figures_of(whole) == figures_of(pieces)
    assert [path.suffix for path in (tmp_path / "pieces" / "states").iterdir()] == [".lock"]
    weights = [(tmp_path / kind / "weights" / f"{cell.key}.safetensors").read_bytes() for kind in ("whole", "pieces")]
    assert weights[0] == weights[1]


def test_finished_cells_are_not_computed_again(tmp_path, monkeypatch):
    cells = [make_cell(tokens=120), make_cell("two_stream_content", tokens=120)]
    run_study(cells[:1], tmp_path)
    path = tmp_path / "cells" / f"{cells[0].key}.json"
    before = path.stat().st_mtime_ns
    _, finished = run_study(cells, tmp_path)
    assert finished == [cells[1].key]
    assert path.stat().st_mtime_ns == before
    monkeypatch.setattr(Study, "_run_cell", lambda *arguments: pytest.fail("a cell was computed again"))
    assert run_study(cells, tmp_path)[1] == []


def test_a_cell_that_another_process_holds_is_left_to_it(tmp_path):
    cell = make_cell(tokens=120)
    study = Study(Recipe((cell,), MARKOV), tmp_path)
    with study._hold(cell):
        assert study.run(progress=False) == []
    assert study.run(progress=False) == [cell.key]


def test_results_of_other_settings_are_refused(tmp_path):
    cell = make_cell(tokens=120)
    run_study([cell], tmp_path)
    with pytest.raises(ValueError, match="must have the recipe's settings .*'tokens': 180"):
        run_study([dataclasses.replace(cell, tokens=180)], tmp_path)
    with pytest.raises(ValueError, match="markov={'num_chains': 3"):
        Study(Recipe((cell,), MARKOV | {"num_chains": 3}), tmp_path)


@pytest.mark.parametrize("name", ["two_stream_content", "bidirectional_content"])
def test_mixed_precision_is_close_to_full_precision(tmp_path, name):
    losses = []
    for bf16 in (False, True):
        cell = make_cell(name)
        study = Study(Recipe((cell,), MARKOV), tmp_path)
        model, state = study.model(cell), tmp_path / "state.pt"
        training = CellTraining(cell, model, study.source(cell), state, bf16=bf16)
        losses.append([training.train_step(1e-2) for _ in range(10)])
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_plans_count_what_is_trained(tmp_path, monkeypatch):
    cells = [make_cell(seed=seed, branches=(0.5, 1.0, 1.75)) for seed in (0, 1)]
    # Branches end after 10, 20 and 35 steps, with 2, 4 and 7 of their own; the trunk has 28.
    assert cells[0].training_symbols == 60 * (28 + 2 + 4 + 7)
    study = Study(Recipe(tuple(cells), MARKOV), tmp_path)
    steps, train_step = [], CellTraining.train_step
    monkeypatch.setattr(CellTraining, "train_step", lambda self, rate: steps.append(rate) or train_step(self, rate))
    study.run(progress=False)
    assert 60 * len(steps) == 2 * cells[0].training_symbols
    rates = study.rates(0.2)
    assert list(rates) == cells[:1] and rates[cells[0]] > 0


def test_a_state_of_other_settings_is_refused(tmp_path, monkeypatch):
    cell = make_cell(tokens=360)
    train_step = CellTraining.train_step

    def then_stop(self, rate):
        self.deadline = -math.inf
        return train_step(self, rate)

    with monkeypatch.context() as patch:
        patch.setattr(CellTraining, "train_step", then_stop)
        assert run_study([cell], tmp_path)[1] == []
    with pytest.raises(ValueError, match="must have the settings .*'weight_decay': 0.02"):
        run_study([dataclasses.replace(cell, weight_decay=0.02)], tmp_path)
    with pytest.raises(ValueError, match="must have the settings"):
        Study(Recipe((cell,), MARKOV | {"num_chains": 3}), tmp_path).run(progress=False)
    assert run_study([cell], tmp_path)[1] == [cell.key]


def test_results_of_another_text_are_refused(tmp_path):
    cell = make_cell(source="text", tokens=120)
    texts = [TextSource("the cat sat on the mat " * 9), TextSource("a dog ate what the cat had left " * 9)]
    Study(Recipe((cell,)), tmp_path, *texts).run(progress=False)
    assert Study(Recipe((cell,)), tmp_path, *texts).run(progress=False) == []
    with pytest.raises(ValueError, match=r"settings \(text="):
        Study(Recipe((cell,)), tmp_path, *reversed(texts))


def test_shares_may_be_whole_numbers(tmp_path):
    cell = make_cell(tokens=120, branches=(1, 2))
    study, _ = run_study([cell], tmp_path)
    assert set(study.result(cell)["branches"]) == {"1.0", "2.0"}
    assert final_branch(study.result(cell)) == study.result(cell)["branches"]["1.0"]


def test_the_saved_model_is_that_of_the_final_branch(tmp_path):
    cell = make_cell(tokens=240, branches=(0.5, 1.0, 1.75))
    study, _ = run_study([cell], tmp_path)
    measured = study.held_out(cell).measure(study.model(cell, trained=True))
    assert measured == study.result(cell)["branches"]["1.0"]
    assert measured != study.result(cell)["branches"]["1.75"]


def test_all_models_see_the_same_sentences_and_orders(tmp_path):
    batches = []
    for name in ("decoupled_rope", "two_stream_content", "bidirectional"):
        cell = make_cell(name)
        study = Study(Recipe((cell,), MARKOV), tmp_path)
        training = CellTraining(cell, study.model(cell), study.source(cell), tmp_path / "state.pt")
        batches.append(training.batch(5)[:2])
        held_out = study.held_out(cell)
        batches[-1] += (held_out.tokens, held_out.order)
        other = training.batch(6)
        assert not torch.equal(other[0], batches[-1][0]) and not torch.equal(other[1], batches[-1][1])
    for other in batches[1:]:
        assert all(map(torch.equal, batches[0], other))


def test_arithmetic_is_counted():
    """Twice the layers are twice the arithmetic of all but the head, and linear layers are counted by hand."""
    flops = {
        name: training_flops(make_cell(name), study_model(name, 4, 6, 0, **SIZES), 4)
        for name in ("decoupled_rope", "layers_twice", "two_stream_content", "bidirectional_content")
    }
    # A multiplication and an addition, forward and twice backward, for each weight.
    weights = 2 * (4 * 16 * 16 + 3 * 16 * 32)
    # Scores and mixtures of all pairs of rows, the same.
    attention = 2 * 2 * 6 * 16
    head = 16 * 6
    assert flops["decoupled_rope"] == 6 * (weights + attention + head)
    assert flops["layers_twice"] == 6 * (2 * (weights + attention) + head)
    # Keys and values are made once for both streams, and the content stream ends in those of the last layer.
    content = weights / 2 - 2 * 16 * 16 + attention / 2
    assert flops["two_stream_content"] == 6 * (weights + attention + content + head)
    assert flops["bidirectional_content"] == flops["two_stream_content"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "images"}, "`source` must be one of synthetic, text, got 'images'"),
        ({"model": "xlnet"}, "`model` must be one of .*, got 'xlnet'"),
        ({"tokens_per_step": 100}, "must be a multiple of the length 6, got 100"),
        ({"model": "causal"}, "`causal` knows the order left_to_right only, got 'uniform'"),
        ({"branches": (0.0, 1.0)}, r"`branches` must be shares above 0, got \[0.0, 1.0\]"),
        ({"decay_share": 0.0}, "`decay_share` must lie in .*, got 0.0"),
        ({"eval_prefixes": 0}, "`eval_prefixes` must be a whole number of at least 1, got 0"),
        ({"learning_rate": "2e-3"}, "`learning_rate` must be a number, got '2e-3'"),
        ({"order": "unifrom"}, "unifrom"),
    ],
)
def test_bad_cells_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make_cell(**changes)


def test_recipes_are_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    grid = {"source": "synthetic", "lengths": [4, 6], "orders": ["fixed"], "models": ["decoupled_rope"], "tokens": 120}
    grid |= {"learning_rates": [0.002]}
    path.write_text(json.dumps({"defaults": {"seeds": [0, 1], "tokens_per_step": 12}, "grids": [grid]}))
    cells = Recipe.load(path).cells
    assert [(cell.length, cell.seed) for cell in cells] == [(4, 0), (4, 1), (6, 0), (6, 1)]
    assert {cell.learning_rate for cell in cells} == {0.002}
    path.write_text(json.dumps({"grids": [grid | {"seeds": [0], "tokens_per_step": 12, "heads": 2}]}))
    with pytest.raises(ValueError, match="unknown fields: heads"):
        Recipe.load(path)
    path.write_text(json.dumps({"grids": [grid | {"seeds": [0], "tokens_per_step": 12, "learning_rate": 0.004}]}))
    with pytest.raises(ValueError, match="unknown fields: learning_rate"):
        Recipe.load(path)
    path.write_text(json.dumps({"grids": [grid | {"seeds": [0], "tokens_per_step": 12}] * 2}))
    with pytest.raises(ValueError, match="cells more than once: synthetic-4-fixed"):
        Recipe.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="must have `grids`, got list"):
        Recipe.load(path)


@pytest.mark.parametrize("name", ["study_smoke", "study_cpu", "study_gpu"])
def test_the_recipes_of_the_repository_are_read(name):
    recipe = Recipe.load(REPOSITORY / "configuration" / "recipes" / f"{name}.yaml")
    assert len({cell.key for cell in recipe.cells}) == len(recipe.cells)


def test_text_cells_need_text(tmp_path):
    with pytest.raises(ValueError, match="`train_text` and `held_out_text` are needed, got None"):
        Study(Recipe((make_cell(source="text"),)), tmp_path)


def make_row(model, examples, **changes):
    cell = make_cell(model, **changes)
    parts = [round(mean(examples), 6)] * cell.length
    found = {"nll": 1.0, "excess": mean(examples), "example_excess": examples, "excess_by_row": parts}
    row = {"cell": cell.settings(), "branches": {str(share): found for share in cell.branches}, "parameters": 7}
    row |= {"unigram_entropy": 1.5, "training_flops_per_symbol": 8.0}
    return row | {"neighbour_row_lag": 2.0, "neighbour_distance": 1.0, "order_is_random": True}


def test_gaps_are_paired_differences():
    rows = [make_row("two_stream_content", [0.1, 0.2, 0.6]), make_row("decoupled_rope", [0.2, 0.5, 1.1])]
    rows += [make_row("decoupled_rope", [9.0, 9.0, 9.0], seed=1)]
    rows += [make_row("half_own", [1.2, 1.5, 2.1])]
    gap, other = gaps(rows)
    assert (gap["first"], gap["second"]) == ("decoupled_rope", "two_stream_content")
    assert (other["second"], other["gap"]) == ("half_own", pytest.approx(-1))
    assert gap["gap"] == pytest.approx(0.3)
    # Differences 0.1, 0.3 and 0.5: standard deviation 0.2.
    assert gap["standard_error"] == pytest.approx(0.2 / 3**0.5)
    assert (gap["seed"], gap["length"], gap["neighbour_row_lag"]) == (0, 6, 2.0)
    assert (gap["first_share"], gap["second_share"]) == (1, 1)


def test_longer_trainings_are_compared_with_equally_long_ones_and_one_stream_with_shorter_ones():
    lengths = {"decoupled_rope": (1, 1.75, 2), "two_stream_content": (0.5, 1, 2), "two_stream_learned": (1, 2)}
    rows = [make_row(name, [0.5, 0.4], branches=branches) for name, branches in lengths.items()]
    found = defaultdict(list)
    for gap in gaps(rows):
        found[gap["first"], gap["second"]].append((gap["first_share"], gap["second_share"]))
    for other in ("two_stream_content", "two_stream_learned"):
        assert sorted(found["decoupled_rope", other]) == [(1, 1), (1.75, 1), (2, 1), (2, 2)]
    assert sorted(found["two_stream_content", "two_stream_learned"]) == [(1, 1), (2, 2)]


def test_each_model_is_compared_at_its_best_learning_rate():
    excess = {
        "decoupled_rope": {(0.001, 0): 0.5, (0.002, 0): 0.3, (0.004, 0): 0.4},
        # One lucky training decides nothing where others have two, and seed 2, which one rate lacks, does not count.
        "two_stream_content": {
            **{(0.001, 0): 0.1, (0.002, 0): 0.3, (0.002, 1): 0.4, (0.002, 2): 0.1},
            **{(0.004, 0): 0.4, (0.004, 1): 0.2},
        },
    }
    rows = [
        make_row(name, [value], learning_rate=rate, seed=seed)
        for name, values in excess.items()
        for (rate, seed), value in values.items()
    ]
    best = choose_best(rows)
    kept = [tuple(row["cell"][name] for name in ("model", "learning_rate", "seed")) for row in best]
    assert kept == [("decoupled_rope", 0.002, 0), ("two_stream_content", 0.004, 0), ("two_stream_content", 0.004, 1)]
    [gap] = gaps(best)
    assert gap["gap"] == pytest.approx(-0.1)
    assert (gap["first_learning_rate"], gap["second_learning_rate"]) == (0.002, 0.004)
    tables = list(report_tables(rows).values())
    assert [line["uniform"] for line in tables[0]] == ["0.300", "0.400, 0.200"]
    assert [line["rate"] for line in tables[0]] == ["0.002", "0.004"]
    assert [(line["0.001"], line["0.002"]) for line in tables[1]] == [
        ("0.500", "0.300"),
        ("0.100", "0.300, 0.400, 0.100"),
    ]
    assert [line["0 to 7"] for line in tables[2]] == ["0.300", "0.400, 0.200"]
    assert [line["length 6"] for line in tables[3]] == ["-0.100 (0.000)"]


def test_settings_with_one_rate_keep_it():
    rows = [make_row("decoupled_rope", [0.5], order=order, learning_rate=0.004) for order in ("uniform", "fixed")]
    assert choose_best(rows) == rows


def test_the_tables_of_the_page_are_those_of_the_committed_cells():
    """Line by line: the page may leave lines out, and has none that the cells do not give."""
    folder = REPOSITORY / "examples" / "results"
    tables = report_tables(finished_rows(folder / "study_cpu"))
    known = {line for title, lines in tables.items() for line in format_markdown(title, lines).splitlines()}
    page = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    found = [line for line in page if line.startswith("|")]
    assert len(found) > 20 and set(found) <= known


@pytest.mark.full
def test_smoke_study_twice_and_killed_half_way(tmp_path):
    """The smoke recipe gives the same numbers in one process, and in two that were killed and started again."""
    whole = run_script("examples/run_tradeoff_study.py", SMOKE, "--output_dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    rows = {row["cell"]["model"]: row for row in finished_rows(tmp_path / "whole")}
    recipe = Recipe.load(REPOSITORY / SMOKE)
    assert len(finished_rows(tmp_path / "whole")) == len(recipe.cells)
    assert set(rows) == {cell.model for cell in recipe.cells}

    killed = tmp_path / "killed"
    command = [sys.executable, "examples/run_tradeoff_study.py", SMOKE, "--output_dir", str(killed)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--save_seconds", "0.1"],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started = time.monotonic()
    while process.poll() is None and time.monotonic() - started < 200:
        if len(list((killed / "cells").glob("*.json"))) >= 3 and list((killed / "states").glob("*.pt")):
            break
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in (killed / "cells").glob("*.json")}
    assert 3 <= len(done) < len(recipe.cells)

    again = run_script("examples/run_tradeoff_study.py", SMOKE, "--output_dir", killed, "--processes", "2")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    for one, other in zip(finished_rows(tmp_path / "whole"), finished_rows(killed), strict=True):
        assert figures_of(one) == figures_of(other)
    assert read_json(tmp_path / "whole", "results.json") == read_json(killed, "results.json")
    assert len(finished_rows(killed, "attention")) == len(recipe.selected("attention")) == 8
    assert len(finished_rows(killed, "samples")) == len(recipe.selected("samples")) == 1
    for kind in ("attention", "samples"):
        assert finished_rows(tmp_path / "whole", kind) == finished_rows(killed, kind)
    for name in ("excess", "rates", "observed", "branches", "attention", "frontiers"):
        assert (killed / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "two_stream_content" in again.stdout


def test_bad_arguments_of_the_script_are_named(tmp_path):
    for arguments, message in (
        (["--output_dir", tmp_path], "first argument must be a recipe"),
        ([SMOKE, "--processes", "0"], "--processes must be above 0, got 0"),
    ):
        result = run_script("examples/run_tradeoff_study.py", *arguments)
        assert result.returncode != 0 and message in result.stderr
