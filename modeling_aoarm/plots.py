# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Plots: the order in which `generate` filled blanks, and the loss curve of a training."""

import math
import os
from pathlib import Path

import torch
from rich.cells import cell_len
from transformers import PreTrainedTokenizerBase

from .generation_aoarm import AOARMGenerateOutput
from .io import save_figure, save_figure_and_numbers, write_json
from .streaming import TokenTexts, visible


GIVEN, FILLED, INK, QUIET = "#c4c9cf", "#e3ebf4", "#24292f", "#6e7781"
MAX_COLUMNS_PER_LINE = 64


def plot_decoding_order(
    output: AOARMGenerateOutput,
    path: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase | None = None,
    example: int = 0,
    attention_mask: torch.Tensor | None = None,
    generation_mask: torch.Tensor | None = None,
) -> None:
    """Draws which forward pass filled which column, coloured by log-probability, and writes the numbers beside it.

    The sentence runs from left to right, over several lines if it is long. Forward passes run downwards.

    Args:
        output: of `generate(..., return_dict_in_generate=True)` with blanks.
        path: the PNG file. A `.json` of the same name is written beside it.
        tokenizer: decodes the tokens. Default: their ids are shown.
        example: index into the batch.
        attention_mask: `[batch, columns]`, as given to `generate`. Columns of padding are left out. The tokenizer's
            padding tokens at the ends are always left out, unless `generation_mask` says that they are blanks.
        generation_mask: bool `[batch, columns]`, as given to `generate`. Shows blanks that an end of sentence closed.

    Raises:
        ValueError: `path` has another suffix than `.png`, `output` has no decoding order, `example` is not in the batch
            or had no blanks, or a mask has another shape than `output.sequences`.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    _check(output, example, attention_mask=attention_mask, generation_mask=generation_mask)
    order = output.decoding_order[example]
    entries = (order, output.decoding_steps[example], output.logprobs[example])
    order, steps, logprobs = (each[order >= 0].tolist() for each in entries)
    if not order:
        raise ValueError(f"`example` must be one with filled blanks, got {example}, which has none.")
    filled = dict(zip(order, zip(steps, logprobs, strict=True), strict=True))
    ids = output.sequences[example].tolist()
    blank = set() if generation_mask is None else set(generation_mask[example].nonzero()[:, 0].tolist())
    is_real = [True] * len(ids) if attention_mask is None else attention_mask[example].tolist()
    pad_id = None if tokenizer is None else tokenizer.pad_token_id
    content = [column for column, token in enumerate(ids) if token != pad_id or column in blank or column in filled]
    columns = [column for column in range(content[0], content[-1] + 1) if is_real[column]]
    texts = [str(token) for token in ids] if tokenizer is None else TokenTexts(tokenizer)(ids)
    closed = blank - filled.keys()
    texts = ["" if column in closed else text for column, text in enumerate(texts)]

    # The colours of all cells, [passes, columns, RGB].
    passes = 1 + max(steps)
    colours = ScalarMappable(Normalize(min(*logprobs, -1e-3), 0), "viridis_r")
    cells = torch.ones(passes, len(columns), 3)
    for cell, column in enumerate(columns):
        if column in filled:
            step, logprob = filled[column]
            cells[step, cell] = torch.tensor(colours.to_rgba(logprob)[:3])
            cells[step + 1 :, cell] = torch.tensor(to_rgb(FILLED))
        elif column not in closed:
            cells[:, cell] = torch.tensor(to_rgb(GIVEN))

    # The lines have about the same length.
    length = math.ceil(len(columns) / math.ceil(len(columns) / MAX_COLUMNS_PER_LINE))
    starts = range(0, len(columns), length)
    labels = ["" if column in closed else _label(texts[column]) for column in columns]
    width = min(max(10 / length, 0.21), 0.7)
    height = min(max(3.2 / passes, 0.0085), 0.3)
    # Characters are 0.08 inches wide. Texts that are wider than their column are written upwards.
    inches = [0.08 * cell_len(text) for text in labels]
    label_height = 0.12 + max((each for each in inches if each > width), default=0.08)
    size = (width * length + 1.6, len(starts) * (height * passes + label_height + 0.35) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(len(starts), 1, squeeze=False)[:, 0]
    for axes, start in zip(all_axes, starts, strict=True):
        line = columns[start : start + length]
        extent = (-0.5, len(line) - 0.5, passes - 0.5, -0.5)
        image = cells[:, start : start + length].numpy()
        axes.imshow(image, aspect="auto", interpolation="nearest", extent=extent)
        # The cells of a short last line are as wide as the others.
        axes.set_xlim(-0.5, length - 0.5)
        axes.set_xticks(range(len(line)), labels[start : start + length], family="monospace", fontsize=9)
        for number, text in enumerate(axes.get_xticklabels(), start):
            text.set_parse_math(False)
            text.set_rotation(90 if inches[number] > width else 0)
            text.set_color(INK if columns[number] in filled else QUIET)
        axes.set_ylabel(f"columns {line[0]}–{line[-1]}\nforward pass" if len(starts) > 1 else "forward pass")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(axis="x", length=0)
    figure.colorbar(colours, ax=list(all_axes), pad=0.01, aspect=30).set_label("log-probability (nats)")
    figure.suptitle(f"Blanks filled: {len(order)}, forward passes: {passes}", fontsize=11)
    kinds = {"given": GIVEN, "blank": "white", "filled before": FILLED}
    patches = [Patch(facecolor=colour, edgecolor=QUIET, label=name) for name, colour in kinds.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    numbers = {
        "example": example,
        "columns": columns,
        "tokens": [texts[column] for column in columns],
        "given": [column for column in columns if column not in closed and column not in filled],
        "closed": [column for column in columns if column in closed],
        "decoding_order": order,
        "decoding_steps": steps,
        "logprobs": logprobs,
    }
    save_figure_and_numbers(path, figure, numbers)


def _check(output: AOARMGenerateOutput, example: int, **masks: torch.Tensor | None) -> None:
    for name in ("decoding_order", "decoding_steps", "logprobs"):
        if getattr(output, name, None) is None:
            raise ValueError(
                f"`output` must come from generate(..., generation_mask=..., return_dict_in_generate=True); got "
                f"{type(output).__name__} without {name}."
            )
    shape = list(output.sequences.shape)
    if not 0 <= example < shape[0]:
        raise ValueError(f"`example` must be in [0, {shape[0]}), the examples of `output`; got {example}.")
    for name, mask in masks.items():
        if mask is not None and list(mask.shape) != shape:
            raise ValueError(f"`{name}` must have the shape of `output.sequences`, {shape}; got {list(mask.shape)}.")


def _label(text: str) -> str:
    """Returns a token's text with signs for spaces, line breaks and tabs; a dot for part of a character."""
    return visible(text).translate(str.maketrans(" \n\t", "␣↵⇥")) or "·"


def save_loss_curve(
    folder: str | os.PathLike,
    log_history: list[dict[str, float]],
    title: str,
    unit: str = "bits per token",
    reference: tuple[str, float] | None = None,
) -> None:
    """Writes `loss_curve.json` and `loss_curve.png`: training loss and evaluations over optimiser steps.

    The JSON file has the lists `train` and `eval` in nats per token, the picture is in bits.

    Args:
        folder: where the files go.
        log_history: of a `Trainer`'s state.
        title: title of the axes.
        unit: label of the vertical axis; "bits per character" if a token is a character.
        reference: label and height (bits) of a dashed horizontal line.
    """
    from matplotlib.figure import Figure

    train = [entry for entry in log_history if "loss" in entry]
    evaluations = [entry for entry in log_history if "eval_loss" in entry]
    curve = {
        "train": [
            {key: entry[key] for key in ("step", "epoch", "loss", "learning_rate") if key in entry} for entry in train
        ],
        "eval": [
            {key: value for key, value in entry.items() if key in ("step", "epoch") or key.startswith("eval_")}
            for entry in evaluations
        ],
    }
    write_json(Path(folder) / "loss_curve.json", curve)

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for entries, key, label, style in (
        (train, "loss", "training orders", {"color": "0.6"}),
        (evaluations, "eval_any_order_nll", "held out, any order", {"marker": "o", "markersize": 4}),
        (evaluations, "eval_left_to_right_nll", "held out, left to right", {"marker": "s", "markersize": 4}),
    ):
        points = [(entry["step"], entry[key] / math.log(2)) for entry in entries if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    if reference is not None:
        axes.axhline(reference[1], color="black", linestyle="--", linewidth=1, label=reference[0])
    axes.set(title=title, xlabel="optimiser step", ylabel=unit)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(Path(folder) / "loss_curve.png", figure)


__all__ = ["plot_decoding_order", "save_loss_curve"]
