# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Compares finished cells, each model at its own best learning rate, and writes the tables of the report."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from statistics import mean, stdev

from rich import box
from rich.console import Console
from rich.table import Table

from .models import MODELS, READS_PREFIXES


ONE = "decoupled_rope"
# How much more does the first need than the second?
PAIRS = (
    (ONE, "two_stream_content"),
    (ONE, "two_stream_learned"),
    (ONE, "layers_twice"),
    (ONE, "half_own"),
    ("two_stream_content", "two_stream_learned"),
    ("two_stream_content", "strict_content"),
)
# Bounds of numbers of observed symbols. The chain of a synthetic sentence is found from the first few.
OBSERVED = (0, 8, 32, 128)


def final_branch(row: dict) -> dict:
    """The measures at share 1 of a cell's tokens, or at the last share if there is no share 1."""
    branches = row["branches"]
    return branches.get("1.0") or branches[max(branches, key=float)]


def target(row: dict) -> str:
    """The measure to compare: excess nats if the optimum is known, else nats."""
    return "excess" if "excess" in final_branch(row) else "nll"


def setting(row: dict) -> tuple[str, int, str]:
    """Source, length and order, which compared cells share."""
    return tuple(row["cell"][name] for name in ("source", "length", "order"))


def grouped(rows: Iterable[dict], *names: str) -> Iterator[tuple[tuple, list[dict]]]:
    """Groups cells by fields, in the study's order: long sentences first, and models as it names them."""
    ranks = {"length": lambda length: -length, "order": rank_order, "model": list(MODELS).index}

    def rank(row: dict) -> tuple:
        return tuple(
            ranks.get(name, lambda value: value)(row["cell"][name]) for name in (*names, "order", "model", "seed")
        )

    def key(row: dict) -> tuple:
        return tuple(row["cell"][name] for name in names)

    for values, own in groupby(sorted(rows, key=rank), key=key):
        yield values, list(own)


def rates_of(rows: Iterable[dict]) -> list[float]:
    """The learning rates of cells, sorted."""
    return sorted({row["cell"]["learning_rate"] for row in rows})


def rank_order(order: str) -> tuple:
    """Sorts orders: uniform, fixed, and then by name."""
    return order != "uniform", order != "fixed", order


def choose_best(rows: Iterable[dict]) -> list[dict]:
    """Keeps the cells at their model's best learning rate for the setting.

    Rates with fewer than two seeds are left out if another rate has two. The best has the lowest mean over the seeds
    that the others have too. If only one rate was run in a setting, it is the best. The order is that of the tables.
    """
    best = []
    for _, own in grouped(rows, "source", "length", "order", "model"):
        by_rate = defaultdict(dict)
        for row in own:
            by_rate[row["cell"]["learning_rate"]][row["cell"]["seed"]] = row
        enough = min(2, max(map(len, by_rate.values())))
        candidates = [by_seed for by_seed in by_rate.values() if len(by_seed) >= enough]
        shared = set.intersection(*map(set, candidates))

        def height(by_seed: dict[int, dict], shared: set[int] = shared) -> float:
            return mean(final_branch(by_seed[seed])[target(by_seed[seed])] for seed in shared or by_seed)

        best += [row for _, row in sorted(min(candidates, key=height).items())]
    return best


def table_rows(rows: Iterable[dict]) -> list[dict]:
    """Makes one flat row for each branch of each cell, without curves and examples."""
    flat = []
    for row in rows:
        cell = row["cell"]
        for share, found in sorted(row["branches"].items(), key=lambda item: float(item[0])):
            symbols = float(share) * cell["tokens"]
            measures = ("nll", "standard_error", "exact_nll", "excess", "excess_standard_error")
            flat.append(
                {name: cell[name] for name in ("source", "length", "order", "learning_rate", "model", "seed")}
                | {"share": float(share), "symbols": int(symbols), "parameters": row["parameters"]}
                | {"training_flops": row["training_flops_per_symbol"] * symbols}
                | {name: row[name] for name in ("unigram_entropy", "neighbour_row_lag", "neighbour_distance")}
                | {"order_is_random": row["order_is_random"]}
                | {name: found[name] for name in measures if name in found}
                | {"beats_unigram": found["nll"] < row["unigram_entropy"]}
            )
    return flat


def gaps(rows: Iterable[dict]) -> list[dict]:
    """Finds how much more nats per symbol the first of each of `PAIRS` needs, on the same sentences and orders.

    Args:
        rows: cells at one learning rate for each model and setting, as from [`choose_best`].

    Returns:
        For each pair, source, length, order and seed that both have, and for equally long trainings (`first_share` and
        `second_share`, from 1 on) as well as longer ones of `ONE`: `gap`, its `standard_error` over held-out sentences
        (paired), the learning rates, and properties of the order.
    """
    models_of = defaultdict(dict)
    for row in rows:
        models_of[(*setting(row), row["cell"]["seed"])][row["cell"]["model"]] = row
    found = []
    for names in PAIRS:
        for (source, length, order, seed), models in sorted(models_of.items()):
            if not set(names) <= set(models):
                continue
            pair = [models[name] for name in names]
            measured = f"example_{target(pair[0])}"
            for shares in _compared_shares(*pair):
                examples = [row["branches"][share][measured] for row, share in zip(pair, shares, strict=True)]
                differences = [left - right for left, right in zip(*examples, strict=True)]
                spread = stdev(differences) if len(differences) > 1 else 0.0
                rates = [row["cell"]["learning_rate"] for row in pair]
                found.append(
                    {"first": names[0], "second": names[1]}
                    | {"source": source, "length": length, "order": order, "seed": seed}
                    | dict(zip(("first_share", "second_share"), map(float, shares), strict=True))
                    | dict(zip(("first_learning_rate", "second_learning_rate"), rates, strict=True))
                    | {"gap": mean(differences), "standard_error": spread / len(differences) ** 0.5}
                    | {name: pair[0][name] for name in ("neighbour_row_lag", "neighbour_distance", "order_is_random")}
                )
    return found


def _compared_shares(first: dict, second: dict) -> list[tuple[str, str]]:
    ones, others = ([share for share in row["branches"] if float(share) >= 1] for row in (first, second))
    longer = [(share, "1.0") for share in ones if share != "1.0" and first["cell"]["model"] == ONE]
    return [(share, share) for share in ones if share in others] + (longer if "1.0" in others else [])


# Tables


def report_tables(rows: list[dict]) -> dict[str, list[dict[str, str]]]:
    """Makes the report's tables of finished cells: lines of texts by heading, under each table's title.

    Figures of several seeds stand side by side, in the order of the seeds.
    """
    best = choose_best(rows)
    tables = {}
    for (source, length), own in grouped(best, "source", "length"):
        measure = {"excess": "Excess nats", "nll": "Nats"}[target(own[0])]
        tables[f"{measure} per symbol, each model at its best rate: {source}, length {length}"] = _tabulate_best(own)
    return tables | {
        "By learning rate": _tabulate_rates(rows),
        "By number of observed symbols": _tabulate_observed(best),
        "How much more the first needs (standard error over sentences)": _tabulate_gaps(gaps(best)),
    }


def format_markdown(title: str, lines: Sequence[Mapping[str, str]]) -> str:
    """Writes a table in Markdown under its title. All lines have the headings of the first."""
    table = Table(*lines[0], box=box.MARKDOWN)
    for line in lines:
        table.add_row(*line.values())
    # As wide as it needs to be, so that no cell is broken.
    console = Console(width=1000)
    with console.capture() as captured:
        console.print(table)
    return f"{title}\n\n{captured.get().strip()}\n"


def _name(model: str, share: float = 1.0) -> str:
    return f"`{model}`" + ("" if share == 1 else f", {share:g} times the symbols")


def _join(values: Iterable[float], form: str = "{:.3f}") -> str:
    return ", ".join(form.format(value) for value in values) or "-"


def _tabulate_best(rows: list[dict]) -> list[dict[str, str]]:
    orders = [order for (order,), _ in grouped(rows, "order")]
    # The arithmetic of a step is relative to that of `ONE`, or else of the first model.
    unit = next((row for row in rows if row["cell"]["model"] == ONE), rows[0])["training_flops_per_symbol"]
    table = []
    for (model,), own in grouped(rows, "model"):
        for share in sorted({float(share) for row in own for share in row["branches"] if float(share) >= 1}):
            arithmetic = share * own[0]["training_flops_per_symbol"] / unit
            line = {"model": _name(model, share), "arithmetic": f"{arithmetic:.2f}"}
            line["rate"] = _join(rates_of(own), "{:g}")
            for order in orders:
                branches = [row["branches"].get(str(share)) for row in own if row["cell"]["order"] == order]
                line[order] = _join(found[target(own[0])] for found in branches if found)
            table.append(line)
    return table


def _tabulate_rates(rows: list[dict]) -> list[dict[str, str]]:
    table = []
    for (_, length, order, model), own in grouped(rows, "source", "length", "order", "model"):
        if len(rates_of(own)) > 1:
            line = {"model": _name(model), "length": str(length), "order": order}
            for rate in rates_of(rows):
                here = [row for row in own if row["cell"]["learning_rate"] == rate]
                line[f"{rate:g}"] = _join(final_branch(row)[target(row)] for row in here)
            table.append(line)
    return table


def _tabulate_observed(rows: list[dict]) -> list[dict[str, str]]:
    table = []
    # Other models are measured at parts of their own.
    rows = [row for row in rows if row["cell"]["model"] not in READS_PREFIXES]
    for (_, length, order, model), own in grouped(rows, "source", "length", "order", "model"):
        line = {"model": _name(model), "length": str(length), "order": order}
        for start, end in zip(OBSERVED, (*OBSERVED[1:], None), strict=True):
            parts = [final_branch(row)[f"{target(row)}_by_row"][start:end] for row in own]
            line[f"{start} to {end - 1}" if end else f"{start} and more"] = _join(mean(part) for part in parts if part)
        table.append(line)
    return table


def _tabulate_gaps(found: list[dict]) -> list[dict[str, str]]:
    lengths = sorted({gap["length"] for gap in found}, reverse=True)
    lines = {}
    for gap in sorted(found, key=lambda gap: rank_order(gap["order"])):
        first, second = (_name(gap[name], gap[f"{name}_share"]) for name in ("first", "second"))
        line = {"first": first, "second": second, "source": gap["source"], "order": gap["order"]}
        cells = lines.setdefault(tuple(line.values()), (line, defaultdict(list)))[1]
        cells[gap["length"]].append(f"{gap['gap']:.3f} ({gap['standard_error']:.3f})")
    return [
        line | {f"length {length}": ", ".join(cells[length]) or "-" for length in lengths}
        for line, cells in lines.values()
    ]
