# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The study's table of results and its figures, from the rows of finished cells."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_aoarm.analysis.plots import CHOSEN
from modeling_aoarm.analysis.plots import COLOURS as CHOICE_COLOURS
from modeling_aoarm.io import save_figure

from .models import MODELS, READS_PREFIXES
from .recipe import Cell


COLOURS = {name: f"C{number}" for number, name in enumerate(MODELS)}
# One stream, and the models compared with it. The first starts like it: the minimal pair.
ONE = "decoupled_rope"
OTHERS = ("two_stream_content", "two_stream_learned", "layers_twice", "half_own")


def final_branch(row: dict) -> dict:
    """The measures at share 1 of a cell's tokens, or at the last share if there is no share 1."""
    branches = row["branches"]
    return branches.get("1.0") or branches[max(branches, key=float)]


def target(row: dict) -> str:
    """The measure to compare: excess nats if the optimum is known, else nats."""
    return "excess" if "excess" in final_branch(row) else "nll"


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
    """Finds the nats per symbol that `ONE` needs more than each of `OTHERS`, on the same sentences and orders.

    Returns:
        For each of `OTHERS` (`other`) and each source, length, order, learning rate and seed that both have: `gap`, its
        `standard_error` over held-out sentences (paired), and properties of the order.
    """
    models_of = defaultdict(dict)
    for row in rows:
        models_of[(*_setting(row), row["cell"]["seed"])][row["cell"]["model"]] = row
    found = []
    for other, (setting, models) in product(OTHERS, sorted(models_of.items())):
        if ONE not in models or other not in models:
            continue
        first, second = models[ONE], models[other]
        name = f"example_{target(first)}"
        pairs = zip(final_branch(first)[name], final_branch(second)[name], strict=True)
        differences = [left - right for left, right in pairs]
        spread = stdev(differences) if len(differences) > 1 else 0.0
        found.append(
            {"other": other}
            | dict(zip(("source", "length", "order", "learning_rate", "seed"), setting, strict=True))
            | {"gap": mean(differences), "standard_error": spread / len(differences) ** 0.5}
            | {name: first[name] for name in ("neighbour_row_lag", "neighbour_distance", "order_is_random")}
        )
    return found


def _setting(row: dict) -> tuple[str, int, str, float]:
    """Source, length, order and learning rate, which compared cells share."""
    return tuple(row["cell"][name] for name in ("source", "length", "order", "learning_rate"))


def _in_order(order: str, rate: float) -> str:
    """An order's name, with the learning rate if that is not the default."""
    return order if rate == Cell.learning_rate else f"{order}, rate {rate:g}"


def _panels(rows: list[dict]) -> dict[tuple[str, int, str, float], list[dict]]:
    panels = defaultdict(list)
    for row in rows:
        panels[_setting(row)].append(row)
    return dict(sorted(panels.items()))


def _plot_panels(
    rows: list[dict],
    path: Path,
    title: str,
    points: Callable[[dict], tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str | None = None,
    decorate: Callable[[Axes, list[dict]], None] = lambda axes, rows: None,
    **kwargs,
) -> None:
    """Draws one panel for each source, length, order and rate, and one line in it for each row.

    `points` gives a row's x and y. `decorate` is called with each panel and its rows. The default of `ylabel` is that
    of [`target`], with its scale. `kwargs` go to `Axes.plot`.
    """
    panels = _panels(rows)
    lines = defaultdict(list)
    for setting in panels:
        lines[setting[:2]].append(setting)
    figure, all_axes = _subplots([len(settings) for settings in lines.values()], 4.2)
    for axes_of_line, settings in zip(all_axes, lines.values(), strict=True):
        for axes, setting in zip(axes_of_line, settings, strict=False):
            here = panels[setting]
            for row in here:
                _plot_line(axes, row, *points(row), **kwargs)
            axes.set_title(f"{setting[0]}, length {setting[1]}, {_in_order(*setting[2:])}", fontsize=10)
            axes.set_xlabel(xlabel)
            axes.locator_params(axis="x", nbins=5)
            axes.grid(alpha=0.3)
            decorate(axes, here)
            if ylabel is None and target(here[0]) == "excess":
                # Excess differs by factors.
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
            axes.set_ylabel(ylabel or {"nll": "nats per symbol", "excess": "excess nats per symbol"}[target(here[0])])
    figure.suptitle(title)
    _save(figure, path)


def _subplots(counts: list[int], width: float) -> tuple[Figure, np.ndarray]:
    """Makes a figure with lines of panels, `counts` in each and each `width` inches wide."""
    figure = Figure(figsize=(width * max(counts) + 0.6, 3.1 * len(counts) + 1.2), layout="constrained")
    all_axes = figure.subplots(len(counts), max(counts), squeeze=False, sharey="row")
    for line, count in zip(all_axes, counts, strict=True):
        for axes in line[count:]:
            axes.axis("off")
    return figure, all_axes


def _plot_line(axes: Axes, row: dict, x: Sequence[float], y: Sequence[float], **kwargs) -> None:
    model = row["cell"]["model"]
    # Other seeds are thinner and share the legend's entry.
    width = 1.6 if row["cell"]["seed"] == 0 else 0.8
    axes.plot(x, y, color=COLOURS[model], linewidth=width, label=model, **kwargs)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    """Adds one legend for all panels and writes the figure."""
    handles = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    columns = max(1, int(figure.get_figwidth() // 3.6))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=9)
    save_figure(path, figure, dpi=110)


def plot_learning(rows: list[dict], path: Path) -> None:
    """Draws nats per symbol of training batches against the symbols seen, until the final branch leaves the trunk."""

    def points(row: dict) -> tuple[list[float], list[float]]:
        # Later, the curves of some models have a decaying rate and others do not.
        end = row["cell"]["tokens"] * (1 - row["cell"]["decay_share"])
        curve = [point for point in row["curve"] if point["tokens"] <= end]
        return [point["tokens"] / 1e6 for point in curve], [point["nll"] for point in curve]

    def draw_bounds(axes: Axes, here: list[dict]) -> None:
        axes.axhline(here[0]["unigram_entropy"], color="black", linestyle="--", linewidth=1, label="unigram entropy")
        # Models that read prefixes have the optimum of fewer rows.
        whole = [final_branch(row) for row in here if row["cell"]["model"] not in READS_PREFIXES]
        for optimum in [found["exact_nll"] for found in whole if "exact_nll" in found][:1]:
            axes.axhline(optimum, color="black", linestyle=":", linewidth=1, label="optimum")

    title = "Learning at the constant rate: nats per symbol of training batches"
    _plot_panels(rows, path, title, points, "million symbols seen", "nats per symbol", draw_bounds)


def plot_rows(rows: list[dict], path: Path) -> None:
    """Draws the excess or the likelihood against the number of observed symbols."""

    def points(row: dict) -> tuple[list[float], list[float]]:
        found = final_branch(row)
        heights, observed = found[f"{target(row)}_by_row"], found["rows"]
        # Single rows are noisy: means of about sixteen equal parts.
        size = max(1, len(heights) // 16)
        parts = [slice(start, start + size) for start in range(0, len(heights), size)]
        return [mean(observed[part]) for part in parts], [mean(heights[part]) for part in parts]

    title = "By number of observed symbols: nats from the optimum (synthetic), nats (text)"
    _plot_panels(rows, path, title, points, "observed symbols")


def plot_branches(rows: list[dict], path: Path) -> None:
    """Draws results of branches against their arithmetic: whether more training would change a comparison."""

    def points(row: dict) -> tuple[list[float], list[float]]:
        shares = sorted(row["branches"], key=float)
        scale = row["cell"]["tokens"] * row["training_flops_per_symbol"] / 1e12
        return [float(share) * scale for share in shares], [row["branches"][share][target(row)] for share in shares]

    title = "Decayed branches: nats from the optimum (synthetic) or nats (text), by training"
    _plot_panels(rows, path, title, points, "training arithmetic ($10^{12}$ operations)", marker="o", markersize=4)


def plot_gaps(found: list[dict], path: Path) -> None:
    """Draws gaps against the mean row lag of an observed neighbour, with a line of panels for each source."""
    sources = sorted({each["source"] for each in found})
    lengths = sorted({each["length"] for each in found})
    others = [other for other in OTHERS if any(each["other"] == other for each in found)]
    figure = Figure(figsize=(5 * len(others) + 0.4, 4 * len(sources) + 0.6), layout="constrained")
    all_axes = figure.subplots(len(sources), len(others), squeeze=False, sharey="row")
    for axes, (source, other) in zip(all_axes.flat, product(sources, others), strict=True):
        here = [each for each in found if (each["source"], each["other"]) == (source, other)]
        if not here:
            axes.axis("off")
            continue
        for each in here:
            lag, is_random = each["neighbour_row_lag"], each["order_is_random"]
            axes.errorbar(
                lag,
                each["gap"],
                yerr=2 * each["standard_error"],
                color=f"C{lengths.index(each['length'])}",
                marker="o" if is_random else "s",
                markerfacecolor=None if is_random else "white",
                capsize=2,
                label=f"length {each['length']}, {'random' if is_random else 'one order for all'}",
            )
            name = _in_order(each["order"], each["learning_rate"])
            axes.annotate(name, (lag, each["gap"]), textcoords="offset points", xytext=(5, 5), fontsize=8)
        axes.axhline(0, color="black", linewidth=1)
        axes.set_title(f"{source}: {ONE}\nminus {other}", fontsize=10)
        axes.set_xlabel("rows back to the observed symbol\nnearest to the target (mean)")
        axes.set_ylabel("gap, nats per symbol\n(two standard errors over held-out sentences)")
        axes.grid(alpha=0.3)
    _save(figure, path)


def plot_attention(found: list[dict], path: Path) -> None:
    """Draws the cost of hiding rows by their number, with a panel for each model's stream and each order."""
    panels = _panels(sorted(found, key=lambda each: list(MODELS).index(each["cell"]["model"])))
    streams = {
        setting: [(each, stream) for each in here for stream in each["excess"] if stream != "all"]
        for setting, here in panels.items()
    }
    figure, all_axes = _subplots([len(here) for here in streams.values()], 3.1)
    for line, ((source, length, *order), here) in zip(all_axes, streams.items(), strict=True):
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
            axes.set_title(f"{each['cell']['model']}\n{stream} stream{scored}", fontsize=8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(each["counts"], each["counts"])
            axes.axhline(0, color="black", linewidth=0.8)
            axes.grid(alpha=0.3)
            axes.set_xlabel("rows hidden")
        line[0].set_ylabel(f"{source}, length {length}, {_in_order(*order)}\nexcess loss, nats per symbol", fontsize=8)
    figure.suptitle("What hiding rows from attention costs (two standard errors)")
    _save(figure, path)


def plot_frontiers(samples: list[dict], path: Path) -> None:
    """Draws coherence against diversity, a point for each temperature.

    Args:
        samples: each analysed cell's `cell`, `points` and `references` of [`analyse_samples`].
        path: path of the PNG.
    """
    lengths = sorted({each["cell"]["length"] for each in samples})
    figure = Figure(figsize=(6.4 * len(lengths) + 0.4, 5), layout="constrained")
    all_axes = figure.subplots(1, len(lengths), squeeze=False)[0]
    for axes, length in zip(all_axes, lengths, strict=True):
        here = [each for each in samples if each["cell"]["length"] == length]
        for number, each in enumerate(here):
            points = [point for point in each["points"] if "coherence" in point]
            x, y = [point["diversity"] for point in points], [point["coherence"] for point in points]
            _plot_line(axes, each, x, y, marker="o", markersize=4)
            # All curves run from the lowest temperature to the highest, so one has labels.
            for point in points[:: max(1, len(points) - 1)] if number == 0 else []:
                name, place = f"T={point['temperature']}", (point["diversity"], point["coherence"])
                axes.annotate(name, place, textcoords="offset points", xytext=(4, 4), fontsize=8)
        for (name, point), marker in zip(here[0]["references"].items(), ("*", "x"), strict=False):
            place = point["diversity"], point["coherence"]
            axes.plot(*place, "k", marker=marker, markersize=9, linestyle="", label=name)
        axes.set_title(f"text, length {length}", fontsize=11)
        axes.set_xlabel("diversity (unique words / words)")
        axes.set_ylabel("coherence\n(words of 4 letters and more in the training text)")
        axes.grid(alpha=0.3)
    _save(figure, path)
