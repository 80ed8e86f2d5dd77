# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Plots of an evaluation: estimates over powers of two, and coherence against diversity."""

import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ..io import save_figure
from .stats import Estimate


def plot_estimates(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, Mapping[int, Estimate]]],
    title: str,
    across: str,
    references: Mapping[str, float] | None = None,
) -> None:
    """Plots estimates with bars of one standard error, as a PNG.

    Args:
        path: where the PNG goes.
        panels: by the label of the vertical axis, the curves of each panel; by a curve's label, its estimates for each
            number on the horizontal axis.
        title: above the panels.
        across: label of the horizontal axes, whose scale is logarithmic.
        references: heights of dashed horizontal lines, by label.
    """
    figure = Figure(figsize=(2.5 + 4.5 * len(panels), 4), layout="constrained")
    for axes, (unit, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for label, curve in curves.items():
            values, errors = zip(*curve.values(), strict=True)
            axes.errorbar(list(curve), values, [error or 0 for error in errors], fmt="o-", capsize=3, label=label)
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(curve), [str(number) for number in curve])
        for number, (label, height) in enumerate((references or {}).items()):
            axes.axhline(height, color=f"C{number + len(curves)}", linestyle="--", linewidth=1, label=label)
        axes.set(xlabel=across, ylabel=unit)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    save_figure(path, figure)


def plot_samples(
    path: str | os.PathLike,
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    reference: tuple[float, float],
    title: str,
) -> None:
    """Plots coherence against diversity over temperatures, as a PNG.

    Args:
        path: where the PNG goes.
        curves: for each decoding order, the temperature, diversity and coherence of each setting.
        reference: diversity and coherence of the same amount of held-out text.
        title: above the axes.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for order, points in curves.items():
        temperatures, diversities, coherences = zip(*points, strict=True)
        axes.plot(diversities, coherences, "o-", markersize=4, label=order)
        for temperature, *point in zip(temperatures, diversities, coherences, strict=True):
            axes.annotate(f"{temperature:g}", point, (4, 4), textcoords="offset points", fontsize="small")
    axes.plot(*reference, "*", color="black", markersize=11, label="held-out text")
    axes.set(title=title, xlabel="diversity: unique-word ratio", ylabel="coherence: share of known long words")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_figure(path, figure)


__all__ = ["plot_estimates", "plot_samples"]
