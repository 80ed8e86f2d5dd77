# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Canvases that fill in before one's eyes: a streamer for `generate`."""

import itertools
import math
import time

import torch
from rich.console import Console, Group
from rich.live_render import LiveRender
from rich.style import Style
from rich.table import Table
from rich.text import Text
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import TextDiffusionStreamer

from .display import TokenTexts, age_colour, check_colour_by, confidence_colour, legend, visible


DRAFTED = Style(dim=True, italic=True)
QUIET = Style(dim=True)
NUMBER = Style(dim=True, bold=True)


class CanvasStreamer(TextDiffusionStreamer):
    """Shows canvases in the terminal while `generate` fills them, tokens coloured by their age or probability.

    Where the output is no terminal (a file, a pipe, a notebook) it prints plain lines without colours instead: each
    canvas with its blanks once the first forward pass is done, and filled at the end. Padding at the ends is left out.

        model.generate(canvas, generation_mask=blanks, streamer=CanvasStreamer(tokenizer))

    Args:
        tokenizer: decodes the tokens.
        colour_by: `"age"`, how many forward passes ago a token was filled, or `"confidence"`, the probability that the
            model gave it. Given tokens have no colour.
        blank: what is shown for each column that is still blank.
        console: a `rich.console.Console`; default: one on the standard output.
        sleep_time: seconds to wait after each forward pass, so that one can watch.
        **decode_kwargs: passed to `tokenizer.decode`, as `skip_special_tokens=True`.

    Raises:
        ValueError: for an unknown `colour_by`, a `blank` that is empty or not printable, a negative `sleep_time`.
    """

    # `generate` passes the state of the canvas to `put_draft` of streamers that have this.
    _takes_canvas_state = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        colour_by: str = "age",
        blank: str = "_",
        console: Console | None = None,
        sleep_time: float | None = None,
        **decode_kwargs,
    ):
        check_colour_by(colour_by)
        if not isinstance(blank, str) or not blank or not blank.isprintable():
            raise ValueError(f"`blank` must be a string of at least one printable character, got {blank!r}.")
        if sleep_time is not None and not sleep_time >= 0:
            raise ValueError(f"`sleep_time` must be None or at least 0 seconds, got {sleep_time}.")
        super().__init__(tokenizer, sleep_time=sleep_time, **decode_kwargs)
        self.colour_by = colour_by
        self.blank = blank
        self.console = Console() if console is None else console
        self._texts = TokenTexts(tokenizer, **decode_kwargs)
        self._forget()

    def _forget(self) -> None:
        self._value = None
        self._display = None

    def put(self, value: torch.Tensor) -> None:
        """Takes the canvases as given, and once more when they are filled.

        Args:
            value: int64 `[batch, columns]`; or `[batch]`, one more token at the end of each, as the library's own
                left-to-right `generate` sends them.

        Raises:
            ValueError: for another number of dimensions, and for a single token before any canvas.
        """
        value = value.cpu()
        if value.ndim == 1 and self._value is not None and len(value) == len(self._value):
            self._value, self._steps = (pad(each, (0, 1), value=-1) for each in (self._value, self._steps))
            self._filled, self._blank = (pad(each, (0, 1), value=False) for each in (self._filled, self._blank))
            return self.put_draft(torch.cat([self._value[:, :-1], value[:, None]], dim=1))
        if value.ndim != 2:
            raise ValueError(
                "`value` must have the shape [batch, columns], or [batch] for one more token of each canvas that is "
                f"there; got {list(value.shape)}."
            )
        if self._can_end_with(value):
            self._value = value
            self._filled = torch.ones_like(self._filled)
            self._drafted = torch.zeros_like(self._filled)
            self._finished = True
            self._draw()
        else:
            self._begin(value)

    def put_draft(
        self,
        value: torch.Tensor,
        filled: torch.Tensor | None = None,
        steps: torch.Tensor | None = None,
        confidence: torch.Tensor | None = None,
        drafted: torch.Tensor | None = None,
    ) -> None:
        """Takes the canvases after a forward pass.

        Args:
            value: int64 `[batch, columns]`.
            filled: bool `[batch, columns]`, False for columns that are still blank. Default: no column is.
            steps: int64 `[batch, columns]`, the number of the forward pass in which each column was filled, -1 where
                it is given or blank. Default: the pass in which a column was last seen to change.
            confidence: float `[batch, columns]`, the probability (0 to 1) of each filled token, NaN elsewhere.
            drafted: bool `[batch, columns]`, blanks that hold a guess which may change.
        """
        value = value.cpu()
        if self._value is None or self._finished or value.shape != self._value.shape:
            self._begin(value)
        changed = (value != self._value) | ~self._filled
        self._value = value
        self._knows_filled = filled is not None
        self._filled = torch.ones_like(self._filled) if filled is None else filled.cpu().bool()
        if steps is None:
            self._steps = self._steps.masked_fill(changed & self._filled, self._passes)
        else:
            self._steps = steps.cpu()
        self._blank |= changed | ~self._filled | (self._steps >= 0)
        self._drafted = torch.zeros_like(self._filled) if drafted is None else drafted.cpu().bool() & ~self._filled
        self._confidence = torch.full(value.shape, math.nan) if confidence is None else confidence.cpu()
        self._passes += 1
        self._after_draft()

    def end(self) -> None:
        """Draws the canvases for the last time, at their full height."""
        if self._value is None:
            return
        if self._is_live():
            self._draw(whole=True)
        else:
            self._print_lines("filled" if self._filled.all() else "so far", self._filled)
            self.console.print(self._summary(), highlight=False, markup=False, soft_wrap=True)
        self._forget()

    def _begin(self, value: torch.Tensor) -> None:
        self._value = value
        self._filled = torch.ones_like(value, dtype=torch.bool)
        self._blank = torch.zeros_like(self._filled)
        self._drafted = torch.zeros_like(self._filled)
        self._steps = torch.full_like(value, -1)
        self._confidence = torch.full(value.shape, math.nan)
        self._passes = 0
        self._finished = False
        self._display = LiveRender("")

    def _can_end_with(self, value: torch.Tensor) -> bool:
        """Whether `value` can be the end of what was shown, not the start of another call after one that failed."""
        if self._value is None or self._passes == 0 or self._finished or value.shape != self._value.shape:
            return False
        return not self._knows_filled or bool((value == self._value)[self._filled].all())

    def _is_live(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def _after_draft(self) -> None:
        self._draw()
        if not self._is_live() and self._passes == 1:
            self._print_lines("given", ~self._blank)
        if self.sleep_time is not None:
            time.sleep(self.sleep_time)

    def _draw(self, whole: bool = False) -> None:
        if not self._is_live():
            return
        # The cursor waits at the start of a line of its own and is never hidden, no thread runs and no stream is
        # redirected: an error in `generate` finds the terminal as it should be.
        self._display.set_renderable(Group(self._canvases(), self._legend(), Text("")))
        self._display.vertical_overflow = "visible" if whole else "ellipsis"
        self.console.print(self._display.position_cursor(), self._display, end="")

    def _canvases(self) -> Table:
        numbered = len(self._value) > 1
        grid = Table.grid(padding=(0, 1))
        for example in range(len(self._value)):
            text = Text(overflow="fold")
            pieces = self._pieces(example, self._filled, self._drafted)
            for style, alike in itertools.groupby(pieces, key=lambda piece: piece[1]):
                text.append("".join(piece for piece, _ in alike), style)
            grid.add_row(*([Text(f"{example}", NUMBER)] if numbered else []), text)
        return grid

    def _pieces(self, example: int, filled: torch.Tensor, drafted: torch.Tensor) -> list[tuple[str, Style | None]]:
        """One canvas as (text, style) of each column, without the padding at its ends."""
        ids, filled, drafted = (t[example].tolist() for t in (self._value, filled, drafted))
        steps, confidence = self._steps[example].tolist(), self._confidence[example].tolist()
        pad_id = self.tokenizer.pad_token_id
        shown = [column for column, token in enumerate(ids) if token != pad_id or not filled[column]]
        start, stop = (shown[0], shown[-1] + 1) if shown else (0, 0)
        known = [is_filled or guess for is_filled, guess in zip(filled, drafted, strict=True)]
        texts = self._texts(ids[start:stop], known[start:stop])
        now = int(self._steps.max()) if self._steps.numel() else 0
        pieces = []
        for column, text in enumerate(texts, start):
            if text is None:
                pieces.append((self.blank, QUIET))
            elif drafted[column]:
                pieces.append((visible(text, self.console.encoding), DRAFTED))
            else:
                style = self._style(now - steps[column], confidence[column]) if steps[column] >= 0 else None
                pieces.append((visible(text, self.console.encoding), style))
        return pieces

    def _style(self, age: int, probability: float) -> Style | None:
        if self.colour_by == "age":
            return Style(color=age_colour(age), bold=age == 0)
        return None if math.isnan(probability) else Style(color=confidence_colour(probability))

    def _summary(self) -> str:
        """How far the canvases are, in words."""
        blanks, done = int(self._blank.sum()), int((self._blank & self._filled).sum())
        passes = f"{self._passes} forward pass{'' if self._passes == 1 else 'es'}"
        return f"{passes}, {done} of {blanks} blanks done"

    def _legend(self) -> Text:
        line = Text(f"{self._summary()} | ", style=QUIET)
        for word, colour in legend(self.colour_by):
            line.append(word, None if colour is None else Style(color=colour, dim=False))
        if self._drafted.any():
            line.append(" | ").append("draft", DRAFTED)
        return line

    def _print_lines(self, title: str, filled: torch.Tensor) -> None:
        """One plain line for each canvas; line breaks and tabs of the text are written \\n and \\t."""
        for example in range(len(self._value)):
            pieces = self._pieces(example, filled, torch.zeros_like(self._filled))
            name = f"canvas {example}, {title}" if len(self._value) > 1 else title
            line = "".join(text for text, _ in pieces).replace("\n", "\\n").replace("\t", "\\t")
            self.console.print(Text(f"{name}: {line}"), soft_wrap=True)


__all__ = ["CanvasStreamer"]
