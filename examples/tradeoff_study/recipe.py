# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The cells of a study: a recipe is a list of grids, and a grid is a product of cells."""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from .models import MASKED_CONTROLS, MODELS, READS_PREFIXES
from .predictions import draw_orders


SOURCES = ("synthetic", "text")
ANALYSES = ("attention", "samples")
# The lists of a grid, and the fields of its cells. The last changes first.
AXES = {"lengths": "length", "orders": "order", "models": "model", "learning_rates": "learning_rate", "seeds": "seed"}


@dataclass(frozen=True)
class Cell:
    """One model, trained and measured on one source, at one length, in one order, from one seed.

    Args:
        source: `"synthetic"` or `"text"`.
        length: symbols of a sentence, N.
        order: an order of [`draw_orders`].
        model: one of `MODELS`.
        seed: seed of weights, data and orders.
        tokens: symbols (not rows) that the whole training sees.
        tokens_per_step: symbols of a step; a multiple of `length`.
        learning_rate: the constant rate of the trunk.
        warmup_steps: steps in which the rate rises.
        weight_decay: weight decay of AdamW.
        decay_share: the last share of a branch, in which the rate falls to 0.
        branches: shares of `tokens` after which a branch ends. Share 1 is the cell's result, or the last share if there
            is no share 1. Share 1.75 is the arithmetic of two streams.
        eval_examples: number of held-out sentences.
        eval_prefixes: measured prefixes of each order, for models that read prefixes.
        sizes: sizes of the model, as pairs.
    """

    source: str
    length: int
    order: str
    model: str
    seed: int
    tokens: int
    tokens_per_step: int = 8192
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    decay_share: float = 0.2
    branches: tuple[float, ...] = (0.25, 0.5, 1.0)
    eval_examples: int = 256
    eval_prefixes: int = 16
    sizes: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        for name, known in (("source", SOURCES), ("model", tuple(MODELS))):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        for name in ("tokens", "tokens_per_step", "length", "warmup_steps", "eval_examples", "eval_prefixes"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {getattr(self, name)!r}.")
        for name in ("learning_rate", "weight_decay", "decay_share"):
            # YAML reads 2e-3 (without a point) as text.
            if not isinstance(getattr(self, name), (int, float)):
                raise ValueError(f"`{name}` must be a number, got {getattr(self, name)!r}.")
        if self.tokens_per_step % self.length:
            raise ValueError(
                f"`tokens_per_step` must be a multiple of the length {self.length}, got {self.tokens_per_step}."
            )
        if self.model == "causal" and self.order != "left_to_right":
            raise ValueError(f"`causal` knows the order left_to_right only, got {self.order!r}.")
        if not self.branches or not all(share > 0 for share in self.branches):
            raise ValueError(f"`branches` must be shares above 0, got {list(self.branches)}.")
        # The names of results.
        object.__setattr__(self, "branches", tuple(map(float, self.branches)))
        draw_orders(self.order, 1, self.length)
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"`decay_share` must lie in (0, 1], got {self.decay_share}.")

    @property
    def key(self) -> str:
        """The name of the cell's files. It has the learning rate if that is not the default."""
        order = self.order.replace("(", "").replace(")", "")
        rate = "" if self.learning_rate == Cell.learning_rate else f"-rate{self.learning_rate:g}"
        return f"{self.source}-{self.length}-{order}-{self.model}{rate}-seed{self.seed}"

    @property
    def final_share(self) -> float:
        """The branch that is the cell's result."""
        return 1.0 if 1.0 in self.branches else max(self.branches)

    @property
    def reads_prefixes(self) -> bool:
        return self.model in READS_PREFIXES

    @property
    def batch(self) -> int:
        """Sentences of a step."""
        return self.tokens_per_step // self.length

    def branch_steps(self, share: float) -> tuple[int, int]:
        """The steps at which a branch leaves the trunk, and at which it ends."""
        end = max(1, round(share * self.tokens / self.tokens_per_step))
        return end - max(1, math.ceil(self.decay_share * end)), end

    @property
    def training_symbols(self) -> int:
        """Symbols of the trunk and of all branches together."""
        ends = [self.branch_steps(share) for share in self.branches]
        return self.tokens_per_step * (max(leaves for leaves, _ in ends) + sum(end - leaves for leaves, end in ends))

    def settings(self) -> dict:
        """All fields, as JSON values."""
        return dataclasses.asdict(self) | {"branches": list(self.branches), "sizes": dict(self.sizes)}


@dataclass(frozen=True)
class Recipe:
    """The cells of a study in the order in which they run, and the parameters of the synthetic source.

    Args:
        cells: cells with different keys.
        markov: arguments of [`MarkovMixture`].
        analyses: for each analysis (`attention`, `samples`), `select`, lists of values for fields of [`Cell`], says
            which finished cells are analysed; the rest are arguments of the analysis.
    """

    cells: tuple[Cell, ...]
    markov: dict = field(default_factory=dict)
    analyses: dict = field(default_factory=dict)

    def selected(self, analysis: str) -> list[Cell]:
        """The cells that an analysis reads."""
        select = self.analyses.get(analysis, {}).get("select", {"model": []})
        return [cell for cell in self.cells if all(getattr(cell, name) in values for name, values in select.items())]

    def options(self, analysis: str) -> dict:
        """The other arguments of an analysis."""
        return {name: value for name, value in self.analyses.get(analysis, {}).items() if name != "select"}

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Recipe":
        """Reads a YAML file: `markov`, `defaults` of all cells, `grids` and `analyses`.

        A grid has lists of `lengths`, `orders`, `models`, `learning_rates` and `seeds`, whose combinations are its
        cells, and other fields of [`Cell`] that they share. `branches_of` maps models to branches of their own.

        Raises:
            ValueError: for unknown fields, repeated cells, and values that [`Cell`] refuses.
        """
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "grids" not in content:
            raise ValueError(f"The recipe {path} must have `grids`, got {type(content).__name__}.")
        fields = {each.name for each in dataclasses.fields(Cell)}

        def check(problem: str, names: Iterable[str]) -> None:
            if names := sorted(names):
                raise ValueError(f"The recipe {path} {problem}: {', '.join(names)}.")

        check("has unknown fields", set(content) - {"markov", "defaults", "grids", "analyses"})
        cells = []
        for grid in content["grids"]:
            shared = content.get("defaults", {}) | grid
            check("has a grid without these fields", {*AXES, "source", "tokens"} - set(shared))
            values = [shared.pop(axis) for axis in AXES]
            branches_of = shared.pop("branches_of", {})
            check("has unknown fields", set(shared) - (fields - set(AXES.values())))
            shared["sizes"] = tuple(sorted(shared.get("sizes", {}).items()))
            for combination in itertools.product(*values):
                own = dict(zip(AXES.values(), combination, strict=True))
                branches = tuple(branches_of.get(own["model"], shared.get("branches", Cell.branches)))
                cells.append(Cell(**(shared | own | {"branches": branches})))
        keys = [cell.key for cell in cells]
        check("has cells more than once", {key for key in keys if keys.count(key) > 1})
        analyses = content.get("analyses", {})
        check(f"must have analyses among {ANALYSES}, got", set(analyses) - set(ANALYSES))
        recipe = cls(tuple(cells), content.get("markov", {}), analyses)
        for name, analysis in analyses.items():
            select = analysis.get("select", {})
            check(f"selects cells for {name} by unknown fields", set(select) - fields)
            wrong = {field for field, values in select.items() if not isinstance(values, list)}
            check(f"must select cells for {name} by lists of values", wrong)
            wrong = {cell.key for cell in recipe.selected(name) if cell.model in MASKED_CONTROLS}
            if name == "samples":
                wrong |= {cell.key for cell in recipe.selected(name) if cell.source != "text"}
            check(f"selects cells that {name} cannot read", wrong)
        return recipe
