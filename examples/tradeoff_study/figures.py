# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The study's figures, from the rows of finished cells."""

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure

from modeling_aoarm.analysis.plots import CHOSEN
from modeling_aoarm.analysis.plots import COLOURS as CHOICE_COLOURS
from modeling_aoarm.io import save_figure

from .comparisons import final_branch, grouped, rates_of, target
from .models import MODELS


COLOURS = dict(zip(MODELS, (*TABLEAU_COLORS, "black"), strict=True))


def _plot_panels(
    rows: list[dict],
    path: Path,
    title: str,
    points: Callable[[dict], tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    **kwargs,
) -> None:
    """Draws a line of panels for each source and order, one for each length, and in it a curve for each row.

    `points` gives a row's x and y. `kwargs` go to `Axes.plot`.
    """
    lines = [list(grouped(own, "source", "length", "order")) for _, own in grouped(rows, "source", "order")]
    figure, all_axes = _subplots([len(line) for line in lines], 4.2)
    for axes_of_line, line in zip(all_axes, lines, strict=True):
        for axes, ((source, length, order), here) in zip(axes_of_line, line, strict=False):
            for row in here:
                _plot_line(axes, row, *points(row), **kwargs)
            axes.set_title(f"{source}, length {length}, {order}", fontsize=10)
            axes.set_xlabel(xlabel)
            axes.locator_params(axis="x", nbins=5)
            _scale_nats(axes, target(here[0]))
    figure.suptitle(title)
    _save(figure, path)


def _scale_nats(axes: Axes, measure: str) -> None:
    """Scales and names the axis of a measure of [`target`]."""
    axes.grid(alpha=0.3)
    axes.set_ylabel({"nll": "nats per symbol", "excess": "excess nats per symbol"}[measure])
    if measure == "excess":
        # Excess differs by factors.
        axes.set_yscale("log")

        def label(value: float, _) -> str:
            low, high = axes.get_ylim()
            return f"{value:g}" if high < 8 * low or f"{value:e}"[0] in "125" else ""

        axes.yaxis.set_major_formatter(label)
        axes.yaxis.set_minor_formatter(label)


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


def plot_lengths(rows: list[dict], path: Path) -> None:
    """Draws results against the length: a point for each seed, and a line through the means.

    There is a panel for each source and order. Models stand side by side at each length.
    """
    orders_of = {source: list(grouped(own, "order")) for (source,), own in grouped(rows, "source")}
    models = [model for (model,), _ in grouped(rows, "model")]
    figure, all_axes = _subplots([len(orders) for orders in orders_of.values()], 5.2)
    for (source, orders), axes_of_line in zip(orders_of.items(), all_axes, strict=True):
        lengths = sorted({row["cell"]["length"] for row in rows if row["cell"]["source"] == source})
        for axes, ((order,), own) in zip(axes_of_line, orders, strict=False):
            for (model,), of_model in grouped(own, "model"):
                shift = 0.4 * ((models.index(model) + 0.5) / len(models) - 0.5)
                points, means = [], []
                for (length,), seeds in grouped(of_model, "length"):
                    place, heights = lengths.index(length) + shift, [final_branch(row)[target(row)] for row in seeds]
                    points += [(place, height) for height in heights]
                    means.append((place, mean(heights)))
                axes.plot(*zip(*means, strict=True), color=COLOURS[model], linewidth=1.2, alpha=0.6)
                axes.plot(*zip(*points, strict=True), "o", color=COLOURS[model], markersize=5, label=model)
            axes.set_title(f"{source}, {order}", fontsize=10)
            axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
            axes.set_xlim(-0.5, len(lengths) - 0.5)
            axes.set_xlabel("length of the sentence")
            _scale_nats(axes, target(own[0]))
    figure.suptitle("At best learning rates; a point for each seed")
    _save(figure, path)


def plot_rates(rows: list[dict], path: Path) -> None:
    """Draws results against the learning rate, for the models that were trained at several."""
    several = [own for _, own in grouped(rows, "source", "length", "order", "model") if len(rates_of(own)) > 1]
    panels = dict(grouped(itertools.chain(*several), "source", "length", "order"))
    if not panels:
        return
    figure, [all_axes] = _subplots([len(panels)], 4.8)
    for axes, ((source, length, order), here) in zip(all_axes, panels.items(), strict=True):
        for (model, seed), own in grouped(here, "model", "seed"):
            points = [(row["cell"]["learning_rate"], final_branch(row)[target(row)]) for row in own]
            # Other seeds are thinner and share the legend's entry.
            width = 1.6 if seed == 0 else 0.8
            line = dict(color=COLOURS[model], linewidth=width, marker="o", markersize=2.5 * width)
            axes.plot(*zip(*sorted(points), strict=True), label=model, **line)
        rates = rates_of(here)
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.set_title(f"{source}, length {length}, {order}", fontsize=10)
        axes.set_xlabel("learning rate")
        _scale_nats(axes, target(here[0]))
    figure.suptitle("Which learning rate is best?")
    _save(figure, path)


def plot_rows(rows: list[dict], path: Path) -> None:
    """Draws the excess or the likelihood against the number of observed symbols."""

    def points(row: dict) -> tuple[list[float], list[float]]:
        found = final_branch(row)
        heights, observed = found[f"{target(row)}_by_row"], found["rows"]
        # Single rows are noisy: means of about sixteen equal parts.
        size = max(1, len(heights) // 16)
        parts = [slice(start, start + size) for start in range(0, len(heights), size)]
        return [mean(observed[part]) for part in parts], [mean(heights[part]) for part in parts]

    _plot_panels(rows, path, "By number of observed symbols", points, "observed symbols")


def plot_branches(rows: list[dict], path: Path) -> None:
    """Draws results of branches against their arithmetic: whether more training would change a comparison."""

    def points(row: dict) -> tuple[list[float], list[float]]:
        shares = sorted(row["branches"], key=float)
        scale = row["cell"]["tokens"] * row["training_flops_per_symbol"] / 1e12
        return [float(share) * scale for share in shares], [row["branches"][share][target(row)] for share in shares]

    xlabel = "training arithmetic ($10^{12}$ operations)"
    _plot_panels(rows, path, "Decayed branches, by training", points, xlabel, marker="o", markersize=4)


def plot_attention(found: list[dict], path: Path) -> None:
    """Draws the cost of hiding rows by their number, with a panel for each model's stream and each order."""
    panels = dict(grouped(found, "source", "length", "order"))
    streams = {
        place: [(each, stream) for each in here for stream in each["excess"] if stream != "all"]
        for place, here in panels.items()
    }
    figure, all_axes = _subplots([len(here) for here in streams.values()], 3.1)
    for line, ((source, length, order), here) in zip(all_axes, streams.items(), strict=True):
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
        line[0].set_ylabel(f"{source}, length {length}, {order}\nexcess loss, nats per symbol", fontsize=8)
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
