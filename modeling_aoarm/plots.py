# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Pictures of what `generate` did: the order in which blanks were filled, and the canvas filling step by step."""

import math
import os
from pathlib import Path

import torch
from rich.cells import cell_len
from transformers import PreTrainedTokenizerBase

from .animation import INK, QUIET, CanvasToken, passes_of, write_gif, write_page
from .display import TokenTexts, check_colour_by, label
from .generation_aoarm import AOARMGenerateOutput
from .io import save_figure, write_json


GIVEN, SEEN = "#c4c9cf", "#e3ebf4"
# At most.
COLUMNS_PER_LINE = 64


def plot_decoding_order(
    output: AOARMGenerateOutput,
    path: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase | None = None,
    example: int = 0,
    attention_mask: torch.Tensor | None = None,
    generation_mask: torch.Tensor | None = None,
) -> None:
    """Draws which column was filled in which forward pass, coloured by log-probability; the numbers go beside it.

    Columns of the sentence run from left to right, over several lines where there are many, forward passes downwards.

    Args:
        output: of `generate(..., return_dict_in_generate=True)` with blanks.
        path: where the PNG goes; a `.json` of the same name is written beside it.
        tokenizer: for the tokens' texts; default: their ids are shown.
        example: which one of the batch.
        attention_mask: `[batch, columns]`, as given to `generate`; columns of padding are left out. The tokenizer's
            padding tokens at the ends are left out in any case, unless `generation_mask` says that they are blanks.
        generation_mask: bool `[batch, columns]`, as given to `generate`; shows blanks that an end of sentence closed.

    Raises:
        ValueError: for another suffix than `.png`, an output without decoding order, an `example` that is not in the
            batch or had no blanks, and masks of another shape than `output.sequences`.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    path = _checked_path(path, (".png",))
    tokens = _read(output, example, tokenizer, attention_mask, generation_mask)
    filled = [token for token in tokens if token.step >= 0]
    passes = passes_of(tokens)
    norm = Normalize(min(min(token.logprob for token in filled), -1e-3), 0)
    colours = ScalarMappable(norm, "viridis_r")
    # Lines of about the same length.
    length = math.ceil(len(tokens) / math.ceil(len(tokens) / COLUMNS_PER_LINE))
    starts = range(0, len(tokens), length)
    lines = [tokens[start : start + length] for start in starts]
    labels = ["" if token.closed >= 0 else label(token.text).replace(" ", "␣") for token in tokens]
    width = min(max(10 / length, 0.21), 0.7)
    height = min(max(3.2 / passes, 0.0085), 0.3)
    # What does not fit below its column is written upwards. Characters are 0.08 inches wide.
    upright = [cell_len(text) * 0.08 > width for text in labels]
    longest = max((cell_len(text) for text, turned in zip(labels, upright, strict=True) if turned), default=1)
    label_height = 0.12 + 0.08 * longest
    figure = Figure(
        figsize=(width * length + 1.6, len(lines) * (height * passes + label_height + 0.35) + 0.9),
        layout="constrained",
    )
    all_axes = figure.subplots(len(lines), 1, squeeze=False)[:, 0]
    for axes, start, line in zip(all_axes, starts, lines, strict=True):
        grid = torch.ones(passes, len(line), 3)
        for place, token in enumerate(line):
            if token.closed < 0:
                grid[token.step + 1 :, place] = torch.tensor(to_rgb(GIVEN if token.step < 0 else SEEN))
            if token.step >= 0:
                grid[token.step, place] = torch.tensor(colours.to_rgba(token.logprob)[:3])
        axes.imshow(
            grid.numpy(), aspect="auto", interpolation="nearest", extent=(-0.5, len(line) - 0.5, passes - 0.5, -0.5)
        )
        # A short last line has cells of the same width.
        axes.set_xlim(-0.5, length - 0.5)
        axes.set_xticks(range(len(line)), labels[start : start + len(line)], family="monospace", fontsize=9)
        for text, token, turned in zip(axes.get_xticklabels(), line, upright[start:], strict=False):
            text.set_parse_math(False)
            text.set_rotation(90 if turned else 0)
            text.set_color(INK if token.step >= 0 else QUIET)
        axes.set_ylabel(
            f"columns {line[0].column}–{line[-1].column}\nforward pass" if len(lines) > 1 else "forward pass"
        )
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(axis="x", length=0)
    bar = figure.colorbar(colours, ax=list(all_axes), pad=0.01, aspect=30)
    bar.set_label("log-probability (nats)")
    figure.suptitle(f"Blanks filled: {len(filled)}, forward passes: {passes}", fontsize=11)
    figure.legend(
        handles=[
            Patch(facecolor=GIVEN, edgecolor=QUIET, label="given"),
            Patch(facecolor="white", edgecolor=QUIET, label="blank"),
            Patch(facecolor=SEEN, edgecolor=QUIET, label="filled before"),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    save_figure(path, figure)
    is_filling = output.decoding_order[example] >= 0
    write_json(
        path.with_suffix(".json"),
        {
            "example": example,
            "columns": [token.column for token in tokens],
            "tokens": [token.text for token in tokens],
            "given": [token.column for token in tokens if not token.was_blank],
            "closed": [token.column for token in tokens if token.closed >= 0],
            "decoding_order": output.decoding_order[example][is_filling].tolist(),
            "decoding_steps": output.decoding_steps[example][is_filling].tolist(),
            "logprobs": output.logprobs[example][is_filling].tolist(),
        },
    )


def animate_generation(
    output: AOARMGenerateOutput,
    path: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase,
    example: int = 0,
    colour_by: str = "age",
    seconds_per_pass: float = 0.3,
    attention_mask: torch.Tensor | None = None,
    generation_mask: torch.Tensor | None = None,
) -> None:
    """Writes a canvas filling in, one frame per forward pass after one of the canvas as given.

    Args:
        output, example, attention_mask, generation_mask: see [`plot_decoding_order`].
        path: a `.gif`, or a `.html` that needs nothing else and can be stopped and stepped through. The GIF has boxes
            where matplotlib's font lacks a character, the page has what the reader's fonts have.
        tokenizer: for the tokens' texts.
        colour_by: `"age"`, how many passes ago a token was filled, or `"confidence"`, the probability it had.
        seconds_per_pass: how long each frame stays; the last stays two seconds longer.

    Raises:
        ValueError: for another suffix, an unknown `colour_by`, and as [`plot_decoding_order`].
    """
    path = _checked_path(path, (".gif", ".html"))
    check_colour_by(colour_by)
    if not seconds_per_pass > 0:
        raise ValueError(f"`seconds_per_pass` must be above 0, got {seconds_per_pass}.")
    tokens = _read(output, example, tokenizer, attention_mask, generation_mask)
    if path.suffix == ".gif":
        write_gif(path, tokens, colour_by, seconds_per_pass)
    else:
        write_page(path, tokens, colour_by, seconds_per_pass)


def _checked_path(path: str | os.PathLike, suffixes: tuple[str, ...]) -> Path:
    path = Path(path)
    if path.suffix not in suffixes:
        raise ValueError(f"`path` must end in {' or '.join(suffixes)}, got {str(path)!r}.")
    return path


def _read(
    output: AOARMGenerateOutput,
    example: int,
    tokenizer: PreTrainedTokenizerBase | None,
    attention_mask: torch.Tensor | None,
    generation_mask: torch.Tensor | None,
) -> list[CanvasToken]:
    """The columns of one example that are to be shown."""
    for name in ("decoding_order", "decoding_steps", "logprobs"):
        if getattr(output, name, None) is None:
            raise ValueError(
                f"`output` must come from generate(..., generation_mask=..., return_dict_in_generate=True); got "
                f"{type(output).__name__} without {name}."
            )
    batch = len(output.sequences)
    if not 0 <= example < batch:
        raise ValueError(f"`example` must be in [0, {batch}), the examples of `output`; got {example}.")
    for name, mask in (("attention_mask", attention_mask), ("generation_mask", generation_mask)):
        if mask is not None and mask.shape != output.sequences.shape:
            raise ValueError(
                f"`{name}` must have the shape of `output.sequences`, {list(output.sequences.shape)}; got "
                f"{list(mask.shape)}."
            )
    ids = output.sequences[example].tolist()
    entries = (output.decoding_order, output.decoding_steps, output.logprobs)
    order, steps, logprobs = (each[example].tolist() for each in entries)
    fillings = dict(zip(order, zip(steps, logprobs, strict=True), strict=True))
    fillings.pop(-1, None)
    if not fillings:
        raise ValueError(f"`example` must be one with filled blanks, got {example}, which has none.")
    blank = [False] * len(ids) if generation_mask is None else generation_mask[example].tolist()
    real = [True] * len(ids) if attention_mask is None else attention_mask[example].tolist()
    pad_id = None if tokenizer is None else tokenizer.pad_token_id
    content = [column for column, token in enumerate(ids) if token != pad_id or blank[column] or column in fillings]
    texts = [str(token) for token in ids] if tokenizer is None else TokenTexts(tokenizer)(ids)
    # An end of sentence closes what is right of it, so it is the rightmost filling.
    end = fillings[max(fillings)][0]
    tokens = []
    for column in range(content[0], content[-1] + 1):
        if not real[column]:
            continue
        step, logprob = fillings.get(column, (-1, math.nan))
        closed = end if blank[column] and step < 0 else -1
        tokens.append(CanvasToken(column, "" if closed >= 0 else texts[column], step, logprob, closed))
    return tokens


__all__ = ["animate_generation", "plot_decoding_order"]
