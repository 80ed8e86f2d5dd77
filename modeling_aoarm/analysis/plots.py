# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Pictures of where attention goes, and of what hiding rows costs; the numbers go beside each as JSON."""

import os
from pathlib import Path
from typing import Any

from ..io import finite, save_figure, write_json
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
# Lifts beyond 1/8 and 8 have the colours of these.
LARGEST_LOG_LIFT = 3


def plot_attention_mass(mass: AttentionMass, path: str | os.PathLike, title: str = "") -> None:
    """Draws each head's attention over uniform attention, one map for each distance and stream, as a PNG.

    Blue is more than uniform attention, red is less, on a scale of powers of two; bins without keys are grey. The JSON
    beside it holds `mass.to_dict()`.

    Raises:
        ValueError: for another suffix than `.png`.
    """
    from matplotlib.figure import Figure

    path = _png(path)
    heads = max(each["target"].shape[0] * each["target"].shape[1] for each in mass.mass.values())
    size = (0.27 * len(mass.bins) + 1.6, 0.15 * heads + 1.3)
    figure = Figure(
        figsize=(size[0] * len(mass.streams) + 0.8, size[1] * len(mass.distances) + 0.5), layout="constrained"
    )
    all_axes = figure.subplots(len(mass.distances), len(mass.streams), squeeze=False)
    image = None
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
            _label_bins(axes, mass.bins, distance)
    bar = figure.colorbar(image, ax=all_axes, pad=0.01, aspect=40, extend="both")
    bar.set_ticks(
        range(-LARGEST_LOG_LIFT, LARGEST_LOG_LIFT + 1),
        labels=[f"{2.0**power:g}×" for power in range(-LARGEST_LOG_LIFT, LARGEST_LOG_LIFT + 1)],
    )
    bar.set_label("attention over uniform attention")
    figure.suptitle(title or f"Attention of {mass.rows:,} rows, one line per head", fontsize=11)
    _write(figure, path, mass.to_dict())


def plot_attention_curves(mass: AttentionMass, path: str | os.PathLike, title: str = "") -> None:
    """Draws each layer's attention over uniform attention, the mean over its heads, against distance, as a PNG.

    The JSON beside it holds `lift[stream][distance]`, lists `[layers, bins]`.

    Raises:
        ValueError: for another suffix than `.png`.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    path = _png(path)
    figure = Figure(
        figsize=((0.21 * len(mass.bins) + 1.2) * len(mass.distances), 3.1 * len(mass.streams) + 0.4),
        layout="constrained",
    )
    all_axes = figure.subplots(len(mass.streams), len(mass.distances), squeeze=False, sharey=True)
    lifts = {stream: {name: mass.lift(stream, name).mean(1) for name in mass.distances} for stream in mass.streams}
    for stream, row in zip(mass.streams, all_axes, strict=True):
        for distance, axes in zip(mass.distances, row, strict=True):
            layers = lifts[stream][distance]
            for layer, line in enumerate(layers):
                colour = colormaps["viridis"](layer / max(1, len(layers) - 1) * 0.9)
                # The first row and blanks are no distances.
                inside = slice(1, -1 if mass.bins[-1] == "blank" else None)
                axes.plot(range(len(line))[inside], line[inside], color=colour, marker=".", label=f"layer {layer}")
                axes.plot(0, line[0], color=colour, marker="x", linestyle="none")
                if mass.bins[-1] == "blank":
                    axes.plot(len(line) - 1, line[-1], color=colour, marker="x", linestyle="none")
            axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
            axes.grid(alpha=0.3)
            axes.set_title(f"{stream} stream", fontsize=10)
            axes.legend(fontsize=8)
            _label_bins(axes, mass.bins, distance)
        row[0].set_ylabel("attention over\nuniform attention")
    figure.suptitle(title or f"Attention of {mass.rows:,} rows, mean over heads", fontsize=11)
    numbers = {
        "bins": list(mass.bins),
        "lift": {stream: {name: each.tolist() for name, each in by.items()} for stream, by in lifts.items()},
    }
    _write(figure, path, finite(numbers))


def plot_hidden_rows(losses: HiddenRowLosses, path: str | os.PathLike, title: str = "") -> None:
    """Draws the loss that hiding rows costs against their number, a panel and scale for each stream, as a PNG.

    Bars are two standard errors long on either side. The JSON beside it holds `losses.to_dict()`.

    Raises:
        ValueError: for another suffix than `.png`.
    """
    from matplotlib.figure import Figure

    path = _png(path)
    figure = Figure(figsize=(3.6 * len(losses.streams) + 2.9, 3.9), layout="constrained")
    # Each with its own scale: streams may differ by a factor of a hundred.
    all_axes = figure.subplots(1, len(losses.streams), squeeze=False)[0]
    for stream, axes in zip(losses.streams, all_axes, strict=True):
        for choice in losses.choices:
            excess = losses.excess(stream, choice)
            axes.errorbar(
                losses.counts,
                excess.mean,
                yerr=2 * excess.standard_error,
                color=COLOURS[choice],
                marker="o",
                markersize=4,
                capsize=3,
                label=CHOSEN[choice],
            )
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
    _write(figure, path, losses.to_dict())


def _png(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"`path` must end in .png, got {str(path)!r}.")
    return path


def _label_bins(axes, bins: tuple[str, ...], distance: str) -> None:
    axes.set_xticks(range(len(bins)), bins, rotation=90, fontsize=7)
    axes.set_xlabel(AXIS[distance], fontsize=9)


def _write(figure, path: Path, numbers: dict[str, Any]) -> None:
    save_figure(path, figure)
    write_json(path.with_suffix(".json"), numbers)


__all__ = ["plot_attention_curves", "plot_attention_mass", "plot_hidden_rows"]
