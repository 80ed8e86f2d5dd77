# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Runs the cells of a study in any number of processes that share a folder, and goes on from an ended run.

| in the folder | content |
| --- | --- |
| `cells/<key>.json` | a finished cell: one row of results with its settings; never computed again |
| `states/<key>.pt` | the state of a cell in training |
| `states/<key>.lock` | held by the process that trains the cell; the system releases it when that process ends |
| `weights/<key>.safetensors` | the model at the end of its final branch |
| `attention/<key>.json` | attention mass and losses with hidden rows, with figures beside it |
| `samples/<key>.json` | coherence and diversity of sampled text |
"""

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel

from modeling_aoarm.evaluation.text_metrics import collect_vocabulary
from modeling_aoarm.io import replacing, versions, write_json

from .analyses import analyse_attention, analyse_samples
from .markov import MarkovMixture
from .measures import HELD_OUT_SEED, HeldOut
from .models import study_model
from .predictions import draw_orders, order_lags
from .recipe import ANALYSES, Cell, Recipe
from .text import TextSource
from .training import CellTraining, OutOfTime, training_flops


# Number of orders whose lags are averaged.
LAG_ORDERS = 256
SUFFIXES = {"states": "pt", "weights": "safetensors"}


class Study:
    """The cells of a recipe, and their results in a folder. Cells of text need training and held-out text.

    Raises:
        ValueError: a cell needs text and there is none, or the folder has results of other settings.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: str | os.PathLike,
        train_text: TextSource | None = None,
        held_out_text: TextSource | None = None,
        device: str | torch.device = "cpu",
    ):
        self.recipe, self.folder, self.device = recipe, Path(folder), torch.device(device)
        if any(cell.source == "text" for cell in recipe.cells) and (train_text is None or held_out_text is None):
            raise ValueError("The recipe has cells of text, so `train_text` and `held_out_text` are needed, got None.")
        longest = max((cell.length for cell in recipe.cells if cell.source == "synthetic"), default=0)
        self.markov = MarkovMixture(longest, **recipe.markov).to(self.device) if longest else None
        self.train_text, self.held_out_text = (
            None if each is None else each.to(self.device) for each in (train_text, held_out_text)
        )
        for cell in recipe.cells:
            self.result(cell)

    def path(self, kind: str, cell: Cell) -> Path:
        """A cell's file of one kind, a folder in this module's table. Makes the folder."""
        folder = self.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{cell.key}.{SUFFIXES.get(kind, 'json')}"

    def result(self, cell: Cell) -> dict | None:
        """A finished cell's row of results.

        Raises:
            ValueError: it was made with other settings.
        """
        return read_result(self.path("cells", cell), {"cell": cell.settings(), **self.identity(cell)})

    def identity(self, cell: Cell) -> dict:
        """What a cell's sentences depend on, in addition to its settings."""
        is_text = cell.source == "text"
        return {
            "markov": None if is_text else self.recipe.markov,
            "text": [source.fingerprint for source in (self.train_text, self.held_out_text)] if is_text else None,
            # Devices draw different random numbers.
            "device": self.device.type,
        }

    def source(self, cell: Cell) -> MarkovMixture | TextSource:
        """A cell's training data."""
        return self.markov if cell.source == "synthetic" else self.train_text

    def held_out(self, cell: Cell) -> HeldOut:
        """A cell's held-out sentences: the same for all cells of a source, a length and an order."""
        if cell.source == "text":
            return HeldOut(cell, self.held_out_text.windows(cell.eval_examples, cell.length))
        generator = torch.Generator(self.device).manual_seed(HELD_OUT_SEED + 1)
        return HeldOut(cell, self.markov.sample(cell.eval_examples, cell.length, generator), self.markov)

    def model(self, cell: Cell, trained: bool = False) -> PreTrainedModel:
        """A cell's model, before or after its training.

        Raises:
            FileNotFoundError: there are no weights.
        """
        vocab_size = self.source(cell).vocab_size
        model = study_model(cell.model, vocab_size, cell.length, cell.seed, **dict(cell.sizes)).to(self.device)
        if trained:
            load_model(model, self.path("weights", cell), device=str(self.device))
        return model

    def run(
        self,
        compile: bool = False,
        bf16: bool = False,
        minutes: float = math.inf,
        save_seconds: float = 30,
        progress: bool = True,
    ) -> list[str]:
        """Trains and measures the cells that are not finished and that no other process holds.

        Options are those of [`CellTraining`]. After `minutes` the state is saved and the call returns. Measures are in
        float32.

        Returns:
            The keys of the cells that it finished.
        """
        deadline = time.monotonic() + 60 * minutes
        options = dict(compile=compile, bf16=bf16, deadline=deadline, save_seconds=save_seconds, progress=progress)
        finished = []
        for cell in self.recipe.cells:
            if time.monotonic() > deadline:
                break
            with self._hold(cell) as is_mine:
                if is_mine and self.result(cell) is None:
                    try:
                        self._run_cell(cell, **options)
                    except OutOfTime:
                        break
                    finished.append(cell.key)
        return finished

    def _training(self, cell: Cell, model: PreTrainedModel, compile: bool = False, **options) -> CellTraining:
        if compile:
            # Each cell has shapes of its own.
            torch.compiler.reset()
        settings, state = self.identity(cell), self.path("states", cell)
        return CellTraining(cell, model, self.source(cell), state, settings, compile=compile, **options)

    def _run_cell(self, cell: Cell, **options) -> None:
        model, source, held_out = self.model(cell), self.source(cell), self.held_out(cell)
        training = self._training(cell, model, **options)

        def measure(share: float) -> dict:
            if share == cell.final_share:
                with replacing(self.path("weights", cell)) as temporary:
                    save_model(model, temporary)
            return held_out.measure(model)

        curve, branches = training.run(measure)
        orders = draw_orders(cell.order, LAG_ORDERS, cell.length, HELD_OUT_SEED)
        lag, distance = order_lags(orders)
        row = {
            "cell": cell.settings(),
            **self.identity(cell),
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "training_flops_per_symbol": training_flops(cell, model, source.vocab_size),
            "unigram_entropy": source.unigram_entropy(),
            "order_is_random": bool((orders != orders[0]).any()),
            "neighbour_row_lag": lag,
            "neighbour_distance": distance,
            "curve": curve,
            "branches": branches,
            "training_seconds": {name: round(value, 1) for name, value in training.seconds.items()},
            "threads": torch.get_num_threads(),
            "dtype": "bfloat16, mixed" if options["bf16"] else "float32",
            "compiled": options["compile"],
            "versions": versions(),
        }
        with replacing(self.path("cells", cell)) as temporary:
            # Without indentation, as most of it is long lists of numbers.
            temporary.write_text(json.dumps(row) + "\n", encoding="utf-8")
        self.path("states", cell).unlink(missing_ok=True)

    def rates(self, seconds: float, compile: bool = False, bf16: bool = False) -> dict[Cell, float]:
        """Measures symbols per second in training, for the first cell of each model, size, source and length.

        Each trains for `seconds` after two steps, with the options of [`CellTraining`]. Nothing is saved.
        """
        found = {}
        for cell in self.recipe.cells:
            if any(same_speed(cell, other) for other in found):
                continue
            training = self._training(cell, self.model(cell), compile=compile, bf16=bf16)
            for _ in range(2):
                training.train_step(cell.learning_rate)
            started = time.monotonic()
            while time.monotonic() < started + seconds:
                training.train_step(cell.learning_rate)
            found[cell] = (training.step - 2) * cell.tokens_per_step / (time.monotonic() - started)
        return found

    def analyse(self, minutes: float = math.inf, progress: bool = True) -> list[str]:
        """Makes the recipe's missing analyses of finished cells whose weights are in the folder.

        No analysis begins after `minutes`.

        Returns:
            The analyses that it made, as `analysis/key`.

        Raises:
            ValueError: an analysis was made with other arguments, or of a cell with other settings.
        """
        deadline = time.monotonic() + 60 * minutes
        made = []
        for analysis, cell in [(name, cell) for name in ANALYSES for cell in self.recipe.selected(name)]:
            settings = {"cell": cell.settings(), "options": self.recipe.options(analysis)}
            path = self.path(analysis, cell)
            with self._hold(cell) as is_mine:
                if read_result(path, settings) is not None or not is_mine or time.monotonic() > deadline:
                    continue
                if self.result(cell) is None or not self.path("weights", cell).exists():
                    continue
                model, held_out = self.model(cell, trained=True), self.held_out(cell)
                options = settings["options"] | {"progress": progress}
                if analysis == "attention":
                    found = analyse_attention(model, held_out, path.with_suffix(""), **options)
                else:
                    found = analyse_samples(model, cell, self.vocabulary, self.held_out_text, **options)
                write_json(path, settings | found)
                made.append(f"{analysis}/{cell.key}")
        return made

    @functools.cached_property
    def vocabulary(self) -> frozenset[str]:
        """The words of the training text."""
        return collect_vocabulary([self.train_text.text])

    @contextlib.contextmanager
    def _hold(self, cell: Cell) -> Iterator[bool]:
        try:
            with FileLock(self.path("states", cell).with_suffix(".lock"), blocking=False):
                yield True
        except Timeout:
            yield False


def read_result(path: Path, settings: dict) -> dict | None:
    """Reads a file of results, or returns `None` if there is none.

    Raises:
        ValueError: it was made with other settings.
    """
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if found[name] != value:
            raise ValueError(
                f"{path} must have the recipe's settings ({name}={value}), got {found[name]}; choose another folder, "
                "or remove the file."
            )
    return found


def same_speed(one: Cell, other: Cell) -> bool:
    """Whether a step of both cells is the same work."""
    names = ("source", "length", "model", "tokens_per_step", "sizes")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def finished_rows(folder: str | os.PathLike, kind: str = "cells") -> list[dict]:
    """Reads the results of all finished cells in a folder, or of an analysis."""
    paths = sorted((Path(folder) / kind).glob("*-seed*.json"))
    # The other files beside an analysis hold the data of its figures.
    own = [path for path in paths if path.stem.rpartition("-")[2].startswith("seed")]
    return [json.loads(path.read_text(encoding="utf-8")) for path in own]
