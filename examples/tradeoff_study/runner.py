# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Runs the cells of a study, in any number of processes that share a folder, and goes on where a run ended.

| in the folder | what |
| --- | --- |
| `cells/<key>.json` | a finished cell: one row of results with its settings; never computed again |
| `states/<key>.pt` | a cell in training |
| `states/<key>.lock` | held, while it trains, by the process that trains it; the system lets go of it when that ends |
| `weights/<key>.safetensors` | the model at the end of its final branch |
| `attention/<key>.json` | where it attends, and what hiding rows costs, with figures beside it |
| `samples/<key>.json` | coherence and diversity of what it writes |
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
from .predictions import draw_orders, is_random, order_lags
from .recipe import ANALYSES, Cell, Recipe
from .text import TextSource
from .training import CellTraining, OutOfTime, training_flops


# Orders of which lags are averaged.
LAG_ORDERS = 256


class Study:
    """The cells of a recipe and what is known of them.

    Args:
        recipe: which cells.
        folder: where results are, and go.
        train_text: training text for cells whose source is text.
        held_out_text: its held-out text.
        device: where models are.

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
        """`kind` is a folder of this module's table."""
        suffix = {"states": "pt", "weights": "safetensors"}.get(kind, "json")
        return self.folder / kind / f"{cell.key}.{suffix}"

    def result(self, cell: Cell) -> dict | None:
        """A finished cell's row of results.

        Raises:
            ValueError: it was made with other settings.
        """
        return read_result(self.path("cells", cell), {"cell": cell.settings(), **self.identity(cell)})

    def identity(self, cell: Cell) -> dict:
        """What a cell's sentences depend on besides its settings."""
        is_text = cell.source == "text"
        return {
            "markov": None if is_text else self.recipe.markov,
            "text": [source.fingerprint for source in (self.train_text, self.held_out_text)] if is_text else None,
            # Their random numbers differ.
            "device": self.device.type,
        }

    def source(self, cell: Cell) -> MarkovMixture | TextSource:
        """What a cell is trained on."""
        return self.markov if cell.source == "synthetic" else self.train_text

    def held_out(self, cell: Cell) -> HeldOut:
        """What a cell is measured on: the same for all cells of a source, a length and an order."""
        if cell.source == "text":
            return HeldOut(cell, self.held_out_text.windows(cell.eval_examples, cell.length))
        generator = torch.Generator(self.device).manual_seed(HELD_OUT_SEED + 1)
        return HeldOut(cell, self.markov.sample(cell.eval_examples, cell.length, generator), self.markov)

    def model(self, cell: Cell, trained: bool = False) -> PreTrainedModel:
        """A cell's model, at the start of its training or after it.

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
        flops: bool = True,
    ) -> list[str]:
        """Trains and measures cells that are not finished and that no other process holds.

        Args:
            compile: compile training steps.
            bf16: train in mixed precision; what is measured is in float32.
            minutes: after which it saves its state and returns.
            save_seconds: seconds between savings of a state.
            progress: show progress bars.
            flops: count the arithmetic of a step.

        Returns:
            The keys of the cells that it finished.
        """
        deadline = time.monotonic() + 60 * minutes
        finished = []
        for cell in self.recipe.cells:
            if time.monotonic() > deadline:
                break
            with self._holding(cell) as is_mine:
                if is_mine and self.result(cell) is None:
                    try:
                        self._run_cell(cell, deadline, compile, bf16, save_seconds, progress, flops)
                    except OutOfTime:
                        break
                    finished.append(cell.key)
        return finished

    def rates(self, seconds: float, compile: bool = False, bf16: bool = False) -> dict[Cell, float]:
        """Symbols per second in training, of the first cell of each kind of model, size, source and length.

        Args:
            seconds: for which each trains, after its first two steps. Nothing is kept.
            compile: as in [`run`].
            bf16: as in [`run`].
        """
        found = {}
        for cell in self.recipe.cells:
            if any(same_speed(cell, other) for other in found):
                continue
            if compile:
                torch.compiler.reset()
            model = self.model(cell)
            training = CellTraining(
                cell, model, self.source(cell), self.path("states", cell), compile=compile, bf16=bf16
            )
            for _ in range(2):
                training.train_step(cell.learning_rate)
            started, first = time.monotonic(), training.step
            while time.monotonic() < started + seconds:
                training.train_step(cell.learning_rate)
            found[cell] = (training.step - first) * cell.tokens_per_step / (time.monotonic() - started)
        return found

    def analyse(self, minutes: float = math.inf, progress: bool = True) -> list[str]:
        """Makes the recipe's analyses of finished cells whose weights are here, as far as they are not made.

        Args:
            minutes: after which no further one is begun.
            progress: show progress bars.

        Returns:
            What was made, as `analysis/key`.

        Raises:
            ValueError: an analysis was made with other arguments, or of a cell of other settings.
        """
        deadline = time.monotonic() + 60 * minutes
        made = []
        for analysis, cell in [(name, cell) for name in ANALYSES for cell in self.recipe.selected(name)]:
            settings = {"cell": cell.settings(), "options": self.recipe.options(analysis)}
            path = self.path(analysis, cell)
            with self._holding(cell) as is_mine:
                if read_result(path, settings) is not None or not is_mine or time.monotonic() > deadline:
                    continue
                if self.result(cell) is None or not self.path("weights", cell).exists():
                    continue
                found = self._analysis(analysis, cell, progress, **settings["options"])
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, settings | found)
                made.append(f"{analysis}/{cell.key}")
        return made

    def _analysis(self, analysis: str, cell: Cell, progress: bool, **options) -> dict:
        model, held_out = self.model(cell, trained=True), self.held_out(cell)
        if analysis == "attention":
            stem = self.path(analysis, cell).with_suffix("")
            return analyse_attention(model, held_out, stem, progress=progress, **options)
        return analyse_samples(model, held_out, self.vocabulary, self.held_out_text, progress=progress, **options)

    @functools.cached_property
    def vocabulary(self) -> frozenset[str]:
        """The words of the training text."""
        return collect_vocabulary([self.train_text.text])

    @contextlib.contextmanager
    def _holding(self, cell: Cell) -> Iterator[bool]:
        lock = self.path("states", cell).with_suffix(".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, blocking=False):
                yield True
        except Timeout:
            yield False

    def _run_cell(
        self,
        cell: Cell,
        deadline: float,
        compile: bool,
        bf16: bool,
        save_seconds: float,
        progress: bool,
        flops: bool,
    ) -> None:
        if compile:
            # Each cell has shapes of its own.
            torch.compiler.reset()
        model = self.model(cell)
        per_symbol = training_flops(cell, model, self.source(cell).vocab_size) if flops else None
        parameters = sum(weight.numel() for weight in model.parameters())
        training = CellTraining(
            cell,
            model,
            self.source(cell),
            self.path("states", cell),
            settings=self.identity(cell),
            compile=compile,
            bf16=bf16,
            deadline=deadline,
            save_seconds=save_seconds,
            progress=progress,
        )
        held_out = self.held_out(cell)

        def measure(share: float) -> dict:
            if share == cell.final_share:
                weights = self.path("weights", cell)
                weights.parent.mkdir(parents=True, exist_ok=True)
                with replacing(weights) as temporary:
                    save_model(model, temporary)
            return held_out.measure(model)

        curve, branches = training.run(measure)
        generator = torch.Generator().manual_seed(HELD_OUT_SEED)
        lag, distance = order_lags(draw_orders(cell.order, LAG_ORDERS, cell.length, generator))
        path = self.path("cells", cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {
            "cell": cell.settings(),
            **self.identity(cell),
            "parameters": parameters,
            "training_flops_per_symbol": per_symbol,
            "unigram_entropy": self.source(cell).unigram_entropy(),
            "order_is_random": is_random(cell.order),
            "neighbour_row_lag": lag,
            "neighbour_distance": distance,
            "curve": curve,
            "branches": branches,
            "training_seconds": {name: round(value, 1) for name, value in training.seconds.items()},
            "threads": torch.get_num_threads(),
            "dtype": "bfloat16, mixed" if bf16 else "float32",
            "compiled": compile,
            "versions": versions(),
        }
        with replacing(path) as temporary:
            # Without indentation: most of it are long lists of numbers.
            temporary.write_text(json.dumps(row) + "\n", encoding="utf-8")
        self.path("states", cell).unlink(missing_ok=True)


def read_result(path: Path, settings: dict) -> dict | None:
    """What a file of results holds; `None` where there is none.

    Raises:
        ValueError: it was made with other settings.
    """
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if found[name] != value:
            raise ValueError(
                f"{path} must be of the recipe's settings ({name}={value}), got {found[name]}; choose another folder, "
                "or remove the file."
            )
    return found


def same_speed(one: Cell, other: Cell) -> bool:
    """Whether a step of two cells is the same work."""
    return all(
        getattr(one, name) == getattr(other, name) for name in ("source", "length", "model", "tokens_per_step", "sizes")
    )


def finished_rows(folder: str | os.PathLike, kind: str = "cells") -> list[dict]:
    """The results of all finished cells in a folder, or of an analysis."""
    paths = sorted((Path(folder) / kind).glob("*-seed*.json"))
    # What stands beside an analysis is the data of its figures.
    own = [path for path in paths if path.stem.rpartition("-")[2].startswith("seed")]
    return [json.loads(path.read_text(encoding="utf-8")) for path in own]
