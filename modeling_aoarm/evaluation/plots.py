# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a model's evaluation: averages over orders, infilling by blank length, coherence against diversity."""

import os
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..io import save_figure
from .stats import Estimate


def plot_averages(
    path: str | os.PathLike, curve: Mapping[int, Estimate], references: Mapping[str, float], title: str, unit: str
) -> None:
    """Draws a figure over the number of orders whose probabilities are averaged, as a PNG.

    Args:
        path: where it goes.
        curve: the figure for each number of orders.
        references: heights of dashed horizontal lines, by label.
        title: above the axes.
        unit: label of the vertical axis.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    _with_errors(axes, curve, "o-", color="#1f5fa8", label="mean of the probabilities")
    for number, (label, height) in enumerate(references.items()):
        axes.axhline(height, color=f"C{number + 1}", linestyle="--", linewidth=1, label=label)
    _over_powers_of_two(axes, list(curve))
    axes.set(title=title, xlabel="orders that are averaged", ylabel=unit)
    axes.legend(fontsize="small")
    save_figure(path, figure)


def plot_infilling(
    path: str | os.PathLike,
    nll: Mapping[int, Estimate],
    accuracy: Mapping[int, Estimate],
    token_accuracy: Mapping[int, Estimate],
    title: str,
) -> None:
    """Draws infilling by blank length as a PNG: NLL on the left, accuracy of greedy filling on the right.

    Args:
        path: where it goes.
        nll: nats per blank token, for each blank length.
        accuracy: share of blanks that are right as a whole.
        token_accuracy: share of blank tokens that are right.
        title: above both.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _with_errors(left, nll, "o-", color="#1f5fa8")
    left.set(ylabel="nats per blank token")
    _with_errors(right, accuracy, "o-", color="#1f5fa8", label="whole blank")
    _with_errors(right, token_accuracy, "s--", color="#c8501e", label="token")
    right.set(ylabel="share that is right")
    right.set_ylim(bottom=0)
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.set(xlabel="blank length in tokens")
        _over_powers_of_two(axes, list(nll))
    figure.suptitle(title)
    save_figure(path, figure)


def plot_samples(
    path: str | os.PathLike,
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    reference: tuple[float, float],
    title: str,
) -> None:
    """Draws coherence against diversity over a sweep of temperatures as a PNG.

    Args:
        path: where it goes.
        curves: for each decoding order the temperature, the diversity and the coherence of each setting.
        reference: diversity and coherence of as much held-out text.
        title: above the axes.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for order, points in curves.items():
        axes.plot([each[1] for each in points], [each[2] for each in points], "o-", markersize=4, label=order)
        for temperature, across, up in points:
            axes.annotate(f"{temperature:g}", (across, up), (4, 4), textcoords="offset points", fontsize="small")
    axes.plot(*reference, "*", color="black", markersize=11, label="held-out text")
    axes.set(title=title, xlabel="diversity: unique-word ratio", ylabel="coherence: share of known long words")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_figure(path, figure)


def _with_errors(axes: Axes, curve: Mapping[int, Estimate], style: str, **options) -> None:
    """Points with a bar of one standard error to either side, where there is one."""
    errors = [estimate.standard_error or 0 for estimate in curve.values()]
    axes.errorbar(list(curve), [estimate.value for estimate in curve.values()], errors, fmt=style, capsize=3, **options)


def _over_powers_of_two(axes: Axes, ticks: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.grid(alpha=0.3)


__all__ = ["plot_averages", "plot_infilling", "plot_samples"]
