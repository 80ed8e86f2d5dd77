# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Pictures of attention mass and of the cost of hiding rows, with the numbers beside each as JSON."""

import os

from ..io import save_figure_and_numbers
from .attention import AttentionMass
from .interventions import HiddenRowLosses


AXIS = {
    "target": "|target − content position of the key|",
    "own": "|own content position − that of the key|",
    "rows": "rows back (0: the row itself)",
}
COLOURS = {"nearest": "#1f5fa8", "own": "#3a9a6b", "recent": "#c8501e", "random": "#7d8893"}
CHOSEN = {
    "nearest": "nearest to the target",
    "own": "nearest to the own position",
    "recent": "most recent",
    "random": "random",
}
# The colour scale ends at lifts of 1/8 and 8.
LARGEST_LOG_LIFT = 3


def plot_attention_mass(mass: AttentionMass, path: str | os.PathLike, title: str = "") -> None:
    """Draws each head's attention over uniform attention as a PNG, one map for each distance and stream.

    Blue is more than uniform attention and red is less, on a scale of powers of two. Bins without keys are grey. The
    JSON beside it holds `mass.to_dict()`.

    Raises:
        ValueError: for a suffix other than `.png`.
    """
    from matplotlib.figure import Figure

    heads = max(each["target"].shape[0] * each["target"].shape[1] for each in mass.mass.values())
    width, height = 0.27 * len(mass.bins) + 1.6, 0.15 * heads + 1.3
    size = (width * len(mass.streams) + 0.8, height * len(mass.distances) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(len(mass.distances), len(mass.streams), squeeze=False)
    for distance, row in zip(mass.distances, all_axes, strict=True):
        for stream, axes in zip(mass.streams, row, strict=True):
            lift = mass.lift(stream, distance)
            layers, heads = lift.shape[:2]
            axes.set_facecolor("0.85")
            image = axes.imshow(
                lift.log2().flatten(0, 1).numpy(),
                aspect="auto",
                interpolation="nearest",
                cmap="RdBu",
                vmin=-LARGEST_LOG_LIFT,
                vmax=LARGEST_LOG_LIFT,
            )
            for layer in range(1, layers):
                axes.axhline(layer * heads - 0.5, color="black", linewidth=0.8)
            middles = [layer * heads + (heads - 1) / 2 for layer in range(layers)]
            axes.set_yticks(middles, [f"layer {layer}" for layer in range(layers)], fontsize=8)
            axes.set_title(f"{stream} stream", fontsize=10)
            axes.set_xticks(range(len(mass.bins)), mass.bins, rotation=90, fontsize=7)
            axes.set_xlabel(AXIS[distance], fontsize=9)
    powers = range(-LARGEST_LOG_LIFT, LARGEST_LOG_LIFT + 1)
    bar = figure.colorbar(image, ax=all_axes, pad=0.01, aspect=40, extend="both")
    bar.set_ticks(powers, labels=[f"{2.0**power:g}×" for power in powers])
    bar.set_label("attention over uniform attention")
    figure.suptitle(title or f"Attention of {mass.rows:,} rows, one line per head", fontsize=11)
    save_figure_and_numbers(path, figure, mass.to_dict())


def plot_hidden_rows(losses: HiddenRowLosses, path: str | os.PathLike, title: str = "") -> None:
    """Draws the excess loss against the number of hidden rows as a PNG, with a panel and scale for each stream.

    Bars are two standard errors long on either side. The JSON beside it holds `losses.to_dict()`.

    Raises:
        ValueError: for a suffix other than `.png`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(losses.streams) + 2.9, 3.9), layout="constrained")
    # Separate scales, because streams may differ by a factor of a hundred.
    all_axes = figure.subplots(1, len(losses.streams), squeeze=False)[0]
    for stream, axes in zip(losses.streams, all_axes, strict=True):
        for choice in losses.choices:
            excess = losses.excess(stream, choice)
            style = dict(color=COLOURS[choice], marker="o", markersize=4, capsize=3, label=CHOSEN[choice])
            axes.errorbar(losses.counts, excess.mean, yerr=2 * excess.standard_error, **style)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xticks(losses.counts, [str(count) for count in losses.counts])
        axes.set_xlim(left=0 if 0 in losses.counts else min(losses.counts) / 1.3)
        axes.set_xlabel("rows hidden, m")
        axes.set_title("all streams" if stream == "all" else f"{stream} stream", fontsize=10)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("excess loss (nats per token)")
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="hidden", loc="outside right center", frameon=False)
    figure.suptitle(title or f"Attention edges cut; loss with none cut: {losses.nll:.3f} nats per token", fontsize=11)
    save_figure_and_numbers(path, figure, losses.to_dict())
