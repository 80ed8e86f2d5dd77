# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The study's table of results and its figures, from the rows of finished cells."""

import os
from collections import defaultdict
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_aoarm.analysis.plots import CHOSEN
from modeling_aoarm.analysis.plots import COLOURS as CHOICE_COLOURS
from modeling_aoarm.io import save_figure

from .models import MODELS, READS_PREFIXES
from .recipe import Cell


LABELS = {
    "decoupled_rope": "decoupled RoPE",
    "two_stream_content": "two streams (content)",
    "two_stream_learned": "two streams (learned)",
    "bidirectional": "masked diffusion",
    "layers_twice": "decoupled RoPE, layers twice",
    "half_own": "decoupled RoPE, half the heads at own position",
    "bidirectional_content": "two streams, bidirectional content",
    "double_position": "double position",
    "adaptive_norm": "adaptive norm",
    "causal": "left to right",
}
COLOURS = dict(zip(MODELS, [f"C{number}" for number in range(len(MODELS))], strict=True))
# One stream, and what it is compared with: first two that start alike, the minimal pair.
ONE = "decoupled_rope"
OTHERS = ("two_stream_content", "two_stream_learned", "layers_twice", "half_own")


def final_branch(row: dict) -> dict:
    """What was measured after a cell's own number of tokens, share 1 (or its last branch, if it has no such)."""
    branches = row["branches"]
    return branches.get("1.0") or branches[max(branches, key=float)]


def target(row: dict) -> str:
    """What is compared: excess nats where the optimum is known, nats elsewhere."""
    return "excess" if "excess" in final_branch(row) else "nll"


def table_rows(rows: Iterable[dict]) -> list[dict]:
    """One flat row for each branch of each cell: figures only, without curves and examples."""
    flat = []
    for row in rows:
        cell = row["cell"]
        for share, found in sorted(row["branches"].items(), key=lambda item: float(item[0])):
            symbols = float(share) * cell["tokens"]
            per_symbol = row["training_flops_per_symbol"]
            flat.append(
                {name: cell[name] for name in ("source", "length", "order", "learning_rate", "model", "seed")}
                | {
                    "share": float(share),
                    "symbols": int(symbols),
                    "parameters": row["parameters"],
                    "training_flops": None if per_symbol is None else per_symbol * symbols,
                    "unigram_entropy": row["unigram_entropy"],
                    "neighbour_row_lag": row["neighbour_row_lag"],
                    "neighbour_distance": row["neighbour_distance"],
                    "order_is_random": row["order_is_random"],
                }
                | {
                    name: found[name]
                    for name in ("nll", "standard_error", "exact_nll", "excess", "excess_standard_error")
                    if name in found
                }
                | {"beats_unigram": found["nll"] < row["unigram_entropy"]}
            )
    return flat


def gaps(rows: Iterable[dict]) -> list[dict]:
    """The nats per symbol that `ONE` needs more than each of `OTHERS`, cell by cell, on the same sentences and orders.

    Returns:
        For each of `OTHERS` (`other`) and each source, length, order, learning rate and seed that both have: `gap`, its
        `standard_error` over held-out sentences (paired), and what the order is like.
    """
    by_place = defaultdict(dict)
    for row in rows:
        cell = row["cell"]
        by_place[(*_place(cell), cell["seed"])][cell["model"]] = row
    found = []
    for other, ((source, length, order, rate, seed), models) in product(OTHERS, sorted(by_place.items())):
        if ONE not in models or other not in models:
            continue
        first, second = models[ONE], models[other]
        name = f"example_{target(first)}"
        pairs = zip(final_branch(first)[name], final_branch(second)[name], strict=True)
        differences = [left - right for left, right in pairs]
        centre = mean(differences)
        spread = sum((each - centre) ** 2 for each in differences) / max(1, len(differences) - 1)
        found.append(
            {
                "other": other,
                "source": source,
                "length": length,
                "order": order,
                "learning_rate": rate,
                "seed": seed,
                "gap": centre,
                "standard_error": (spread / len(differences)) ** 0.5,
                "neighbour_row_lag": first["neighbour_row_lag"],
                "neighbour_distance": first["neighbour_distance"],
                "order_is_random": first["order_is_random"],
            }
        )
    return found


def _place(cell: dict) -> tuple[str, int, str, float]:
    """What cells share that are compared: source, length, order and learning rate."""
    return tuple(cell[name] for name in ("source", "length", "order", "learning_rate"))


def _in_order(order: str, rate: float) -> str:
    """An order's name, with the learning rate if it is not what cells have by default."""
    return order if rate == Cell.learning_rate else f"{order}, rate {rate:g}"


def _panels(rows: list[dict]) -> dict[tuple[str, int, str, float], list[dict]]:
    """Rows by what they share."""
    panels = defaultdict(list)
    for row in rows:
        panels[_place(row["cell"])].append(row)
    return dict(sorted(panels.items()))


def _grid(rows: list[dict], title: str) -> tuple[Figure, list[tuple[Axes, list[dict]]]]:
    """A figure with a panel for each source, length, order and rate; a row of panels for each source and length."""
    panels = _panels(rows)
    lines = sorted({place[:2] for place in panels})
    orders = {line: [place[2:] for place in panels if place[:2] == line] for line in lines}
    width = max(map(len, orders.values()))
    figure = Figure(figsize=(4.2 * width + 0.6, 3.1 * len(lines) + 1.2), layout="constrained")
    axes = figure.subplots(len(lines), width, squeeze=False, sharey="row")
    filled = []
    for number, line in enumerate(lines):
        for place in range(width):
            panel = axes[number, place]
            if place >= len(orders[line]):
                panel.axis("off")
                continue
            order = orders[line][place]
            panel.set_title(f"{line[0]}, length {line[1]}, {_in_order(*order)}", fontsize=10)
            panel.grid(alpha=0.3)
            filled.append((panel, panels[(*line, *order)]))
    figure.suptitle(title)
    return figure, filled


def _finish(figure: Figure, path: str | os.PathLike) -> None:
    handles = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    # Columns that the figure is wide enough for.
    columns = max(1, int(figure.get_figwidth() // 3.6))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=9)
    save_figure(path, figure, dpi=110)


def _scale_nats(axes: Axes, rows: list[dict]) -> None:
    """Excess differs by factors, from the best models to those that hardly learn."""
    if target(rows[0]) == "excess":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")


def _line(axes: Axes, row: dict, x: list[float], y: list[float], **kwargs) -> None:
    model = row["cell"]["model"]
    # A second seed is thinner and has the same entry in the legend.
    width = 1.6 if row["cell"]["seed"] == 0 else 0.8
    axes.plot(x, y, color=COLOURS[model], linewidth=width, label=LABELS[model], **kwargs)


def plot_learning(rows: list[dict], path: Path) -> None:
    """Nats per symbol of training batches against the symbols seen, until the final branch leaves the trunk."""
    figure, panels = _grid(rows, "Learning at the constant rate: nats per symbol of training batches")
    for axes, here in panels:
        for row in here:
            # Later some models' curves are of a decaying rate, and others' not.
            end = row["cell"]["tokens"] * (1 - row["cell"]["decay_share"])
            points = [point for point in row["curve"] if point["tokens"] <= end]
            _line(axes, row, [point["tokens"] / 1e6 for point in points], [point["nll"] for point in points])
        axes.axhline(here[0]["unigram_entropy"], color="black", linestyle="--", linewidth=1, label="unigram entropy")
        # Of all rows, not only of those that models which read prefixes are asked about.
        whole = [final_branch(row) for row in here if row["cell"]["model"] not in READS_PREFIXES]
        exact = [found["exact_nll"] for found in whole if "exact_nll" in found]
        if exact:
            axes.axhline(exact[0], color="black", linestyle=":", linewidth=1, label="optimum")
        axes.set_xlabel("million symbols seen")
        axes.set_ylabel("nats per symbol")
    _finish(figure, path)


def plot_rows(rows: list[dict], path: Path) -> None:
    """What each row lacks to be exact, or its likelihood, against the number of observed symbols."""
    figure, panels = _grid(rows, "By number of observed symbols: nats from the optimum (synthetic), nats (text)")
    for axes, here in panels:
        for row in here:
            found, name = final_branch(row), target(row)
            heights, places = found[f"{name}_by_row"], found["rows"]
            # Means of about sixteen equal parts: single rows are noisy.
            size = max(1, len(heights) // 16)
            starts = range(0, len(heights), size)
            parts = [slice(start, start + size) for start in starts]
            _line(axes, row, [mean(places[part]) for part in parts], [mean(heights[part]) for part in parts])
        axes.set_xlabel("observed symbols")
        axes.set_ylabel("nats per symbol" if target(here[0]) == "nll" else "excess nats per symbol")
        _scale_nats(axes, here)
    _finish(figure, path)


def plot_branches(rows: list[dict], path: Path) -> None:
    """Results of branches against the arithmetic they took: whether more training would change a comparison."""
    figure, panels = _grid(rows, "Decayed branches: nats from the optimum (synthetic) or nats (text), by training")
    for axes, here in panels:
        for row in here:
            shares = sorted(row["branches"], key=float)
            # In units of 10^12 operations, or of a million symbols.
            scale = row["cell"]["tokens"] * (row["training_flops_per_symbol"] or 1e6) / 1e12
            heights = [row["branches"][share][target(row)] for share in shares]
            _line(axes, row, [float(share) * scale for share in shares], heights, marker="o", markersize=4)
        counted = here[0]["training_flops_per_symbol"] is not None
        axes.set_xlabel("training arithmetic ($10^{12}$ operations)" if counted else "million symbols seen")
        axes.set_ylabel("nats per symbol" if target(here[0]) == "nll" else "excess nats per symbol")
        _scale_nats(axes, here)
    _finish(figure, path)


def plot_gaps(found: list[dict], path: Path) -> None:
    """Gaps against how far back an observed neighbour is, in rows; a panel for each source and each of `OTHERS`."""
    lengths = sorted({each["length"] for each in found})
    orders = sorted({_in_order(each["order"], each["learning_rate"]) for each in found})
    panels = sorted({(each["source"], OTHERS.index(each["other"])) for each in found})
    width = min(3, len(panels))
    height = -(-len(panels) // width)
    figure = Figure(figsize=(4.4 * width + 0.4, 3.7 * height + 0.9), layout="constrained")
    all_axes = figure.subplots(height, width, squeeze=False, sharex=True, sharey=True).flat
    for axes in all_axes[len(panels) :]:
        axes.axis("off")
    for axes, (source, index) in zip(all_axes, panels, strict=False):
        other = OTHERS[index]
        for each in found:
            if (each["source"], each["other"]) != (source, other):
                continue
            order = _in_order(each["order"], each["learning_rate"])
            axes.errorbar(
                # Seeds stand side by side.
                each["neighbour_row_lag"] + each["seed"],
                each["gap"],
                yerr=2 * each["standard_error"],
                color=f"C{lengths.index(each['length'])}",
                marker="osD^vX"[orders.index(order) % 6],
                markerfacecolor=None if each["order_is_random"] else "white",
                linestyle="",
                capsize=2,
                label=f"length {each['length']}, {order}",
            )
        axes.axhline(0, color="black", linewidth=1)
        axes.set_title(f"{source}: {LABELS[ONE]}\nminus {LABELS[other].removeprefix(f'{LABELS[ONE]}, ')}", fontsize=10)
        axes.set_xlabel("rows back to the observed symbol\nnearest to the target (mean)")
        axes.set_ylabel("gap, nats per symbol\n(± two standard errors)")
        axes.tick_params(labelbottom=True, labelleft=True)
        axes.grid(alpha=0.3)
    _finish(figure, path)


def plot_attention(found: list[dict], path: Path) -> None:
    """What hiding rows costs each model, by number of hidden rows; a panel for each model's stream and each order."""
    panels = _panels(found)
    for here in panels.values():
        here.sort(key=lambda each: list(MODELS).index(each["cell"]["model"]))
    streams = {
        place: [(each, stream) for each in here for stream in each["excess"] if stream != "all"]
        for place, here in panels.items()
    }
    width = max(map(len, streams.values()))
    figure = Figure(figsize=(3.1 * width + 0.6, 3.1 * len(streams) + 1.2), layout="constrained")
    all_axes = figure.subplots(len(streams), width, squeeze=False, sharey="row")
    for line, ((source, length, *order), here) in zip(all_axes, streams.items(), strict=True):
        for axes in line[len(here) :]:
            axes.axis("off")
        for axes, (each, stream) in zip(line, here, strict=False):
            for choice, excess in each["excess"][stream].items():
                axes.errorbar(
                    each["counts"],
                    excess["mean"],
                    yerr=[2 * (error or 0) for error in excess["standard_error"]],
                    color=CHOICE_COLOURS[choice],
                    marker="o",
                    markersize=3,
                    capsize=2,
                    label=f"hidden: {CHOSEN[choice]}",
                )
            score = each["specialisation"].get(stream)
            scored = "" if score is None else f"\nspecialisation {score['score']:+.2f} (heads ± {score['spread']:.2f})"
            axes.set_title(f"{LABELS[each['cell']['model']]}\n{stream} stream{scored}", fontsize=8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(each["counts"], each["counts"])
            axes.axhline(0, color="black", linewidth=0.8)
            axes.grid(alpha=0.3)
            axes.set_xlabel("rows hidden")
        line[0].set_ylabel(f"{source}, length {length}, {_in_order(*order)}\nexcess loss, nats per symbol", fontsize=8)
    figure.suptitle("What hiding rows from attention costs (two standard errors)")
    _finish(figure, path)


def plot_frontiers(samples: list[dict], path: Path) -> None:
    """Coherence against diversity, a point for each temperature.

    Args:
        samples: of each analysed cell `cell`, `points` of [`frontier`] and `references`.
        path: where the PNG goes.
    """
    lengths = sorted({each["cell"]["length"] for each in samples})
    figure = Figure(figsize=(6.4 * len(lengths) + 0.4, 5), layout="constrained")
    all_axes = figure.subplots(1, len(lengths), squeeze=False)[0]
    for axes, length in zip(all_axes, lengths, strict=True):
        here = [each for each in samples if each["cell"]["length"] == length]
        for number, each in enumerate(here):
            points = [point for point in each["points"] if "coherence" in point]
            x, y = [point["diversity"] for point in points], [point["coherence"] for point in points]
            _line(axes, each, x, y, marker="o", markersize=4)
            # All curves run from the lowest temperature to the highest: one is labelled.
            for point in points[:: max(1, len(points) - 1)] if number == 0 else []:
                axes.annotate(
                    f"T={point['temperature']}",
                    (point["diversity"], point["coherence"]),
                    textcoords="offset points",
                    xytext=(0, -13),
                    ha="center",
                    fontsize=8,
                )
        for (name, point), marker in zip(here[0]["references"].items(), ("*", "x"), strict=False):
            axes.plot(
                point["diversity"], point["coherence"], "k", marker=marker, markersize=9, linestyle="", label=name
            )
        axes.set_title(f"text, length {length}", fontsize=11)
        axes.set_xlabel("diversity (unique words / words)")
        axes.set_ylabel("coherence\n(words of 4 letters and more in the training text)")
        axes.grid(alpha=0.3)
    _finish(figure, path)
