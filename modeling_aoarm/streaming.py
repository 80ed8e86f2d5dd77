# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""A streamer for `generate` that shows canvases in the terminal while they fill."""

import functools
import math
import time
from collections.abc import Sequence
from os.path import commonprefix

import torch
from rich.console import Console, Group
from rich.live_render import LiveRender
from rich.style import Style
from rich.table import Table
from rich.text import Text
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import TextDiffusionStreamer


# Decoders write this for bytes that do not form a character.
REPLACEMENT = "\ufffd"
# From this age on, in forward passes, all filled tokens have the same colour.
OLD = 16
NEWEST, OLDEST = (255, 135, 0), (95, 120, 155)
UNSURE, HALF_SURE, SURE = (209, 36, 47), (191, 135, 0), (26, 127, 55)
DRAFTED, QUIET, NUMBER = Style(dim=True, italic=True), Style(dim=True), Style(dim=True, bold=True)


class CanvasStreamer(TextDiffusionStreamer):
    """Shows canvases in the terminal while `generate` fills them, with tokens coloured by age or probability.

    If the output is not a terminal (a file, a pipe, a notebook), it prints each canvas as a plain line, with its blanks
    after the first forward pass and filled at the end. Padding at the ends is left out.

        model.generate(canvas, generation_mask=blanks, streamer=CanvasStreamer(tokenizer))

    Args:
        tokenizer: decodes the tokens.
        colour_by: `"age"`, the number of forward passes since a token was filled, or `"confidence"`, the probability
            that the model gave it. Given tokens have no colour.
        blank: shown for each remaining blank.
        console: a `rich.console.Console`. Default: one on the standard output.
        sleep_time: seconds to wait after each forward pass.
        **decode_kwargs: passed to `tokenizer.decode`, for example `skip_special_tokens=True`.

    Raises:
        ValueError: `colour_by` is unknown, `blank` is empty or not printable, or `sleep_time` is negative.
    """

    # `generate` passes the state of the canvas to `put_draft` of streamers that have this attribute.
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
        if colour_by not in ("age", "confidence"):
            raise ValueError(f"`colour_by` must be one of 'age', 'confidence', got {colour_by!r}.")
        if not isinstance(blank, str) or not blank or not blank.isprintable():
            raise ValueError(f"`blank` must be a string of at least one printable character, got {blank!r}.")
        if sleep_time is not None and not sleep_time >= 0:
            raise ValueError(f"`sleep_time` must be None or at least 0 seconds, got {sleep_time}.")
        super().__init__(tokenizer, sleep_time=sleep_time, **decode_kwargs)
        self.colour_by, self.blank = colour_by, blank
        self.console = console or Console()
        self._texts = TokenTexts(tokenizer, **decode_kwargs)
        self._value = None

    def put(self, value: torch.Tensor) -> None:
        """Takes the given canvases at the start, and the filled ones at the end.

        Args:
            value: int64 `[batch, columns]`; or `[batch]`, one more token at the end of each canvas, which the library's
                left-to-right `generate` sends.

        Raises:
            ValueError: `value` has another shape, or is one more token before there is a canvas.
        """
        value = value.cpu()
        if value.ndim == 1 and self._value is not None and len(value) == len(self._value):
            self._value, self._steps = (pad(each, (0, 1), value=-1) for each in (self._value, self._steps))
            self._filled, self._blank = (pad(each, (0, 1), value=False) for each in (self._filled, self._blank))
            self.put_draft(torch.cat([self._value[:, :-1], value[:, None]], dim=1))
        elif value.ndim != 2:
            raise ValueError(
                "`value` must have the shape [batch, columns], or [batch] for one more token of each canvas; got "
                f"{list(value.shape)}."
            )
        elif self._completes(value):
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
            filled: bool `[batch, columns]`, False for remaining blanks. Default: no blanks remain.
            steps: int64 `[batch, columns]`, the number of the forward pass that filled each column, -1 for given and
                blank columns. Default: the pass in which a column last changed.
            confidence: float `[batch, columns]`, the probability (0 to 1) of each filled token, NaN elsewhere.
            drafted: bool `[batch, columns]`, blanks that hold a draft, which may change.
        """
        value = value.cpu()
        if self._value is None or self._finished or value.shape != self._value.shape:
            self._begin(value)
        changed = (value != self._value) | ~self._filled
        self._value = value
        self._has_mask = filled is not None
        self._filled = torch.ones_like(self._filled) if filled is None else filled.cpu().bool()
        if steps is None:
            self._steps = self._steps.masked_fill(changed & self._filled, self._passes)
        else:
            self._steps = steps.cpu()
        self._blank |= changed | ~self._filled | (self._steps >= 0)
        self._drafted = torch.zeros_like(self._filled) if drafted is None else drafted.cpu().bool() & ~self._filled
        self._confidence = torch.full(value.shape, math.nan) if confidence is None else confidence.cpu()
        self._passes += 1
        self._draw()
        if not self._is_live() and self._passes == 1:
            self._print_lines("given", ~self._blank)
        if self.sleep_time is not None:
            time.sleep(self.sleep_time)

    def end(self) -> None:
        """Draws the canvases for the last time, at their full height."""
        if self._value is None:
            return
        self._draw(whole=True)
        if not self._is_live():
            self._print_lines("filled" if self._filled.all() else "so far", self._filled)
            self.console.print(self._summary(), highlight=False, markup=False, soft_wrap=True)
        self._value = None

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

    def _completes(self, value: torch.Tensor) -> bool:
        """Returns whether `value` completes the canvases on the screen. If not, it starts new ones."""
        if self._value is None or self._passes == 0 or self._finished or value.shape != self._value.shape:
            return False
        return not self._has_mask or bool((value == self._value)[self._filled].all())

    def _is_live(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def _draw(self, whole: bool = False) -> None:
        if not self._is_live():
            return
        # An error in `generate` must leave the terminal in order. So the cursor is never hidden and always rests on an
        # empty line, no thread runs, and no stream is redirected.
        self._display.set_renderable(Group(self._canvases(), self._legend(), Text("")))
        self._display.vertical_overflow = "visible" if whole else "ellipsis"
        self.console.print(self._display.position_cursor(), self._display, end="")

    def _canvases(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        for example in range(len(self._value)):
            text = Text(overflow="fold")
            for piece, style in self._pieces(example, self._filled, self._drafted):
                text.append(piece, style)
            grid.add_row(*([Text(f"{example}", NUMBER)] if len(self._value) > 1 else []), text)
        return grid

    def _pieces(self, example: int, filled: torch.Tensor, drafted: torch.Tensor) -> list[tuple[str, Style | None]]:
        """Returns the text and style of each column of one canvas, without the padding at its ends."""
        ids, filled, drafted = (t[example].tolist() for t in (self._value, filled, drafted))
        steps, confidence = self._steps[example].tolist(), self._confidence[example].tolist()
        pad_id = self.tokenizer.pad_token_id
        shown = [column for column, token in enumerate(ids) if token != pad_id or not filled[column]]
        start, stop = (shown[0], shown[-1] + 1) if shown else (0, 0)
        known = [is_filled or is_draft for is_filled, is_draft in zip(filled, drafted, strict=True)]
        now = int(self._steps.max()) if self._steps.numel() else 0
        pieces = []
        for column, text in enumerate(self._texts(ids[start:stop], known[start:stop]), start):
            if text is None:
                pieces.append((self.blank, QUIET))
                continue
            style = DRAFTED if drafted[column] else None
            if style is None and steps[column] >= 0:
                style = self._style(now - steps[column], confidence[column])
            pieces.append((visible(text, self.console.encoding), style))
        return pieces

    def _style(self, age: int, probability: float) -> Style | None:
        if self.colour_by == "age":
            return Style(color=age_colour(age), bold=age == 0)
        return None if math.isnan(probability) else Style(color=confidence_colour(probability))

    def _summary(self) -> str:
        blanks, done = int(self._blank.sum()), int((self._blank & self._filled).sum())
        passes = f"{self._passes} forward pass{'' if self._passes == 1 else 'es'}"
        return f"{passes}, {done} of {blanks} blanks done"

    def _legend(self) -> Text:
        line = Text(f"{self._summary()} | ", style=QUIET)
        if self.colour_by == "age":
            words = [("filled ", None), ("now", age_colour(0))]
            words += [(f" {age}", age_colour(age)) for age in (1, 2, 4, 8)]
            words += [(f" {OLD}+", age_colour(OLD)), (" passes ago", None)]
        else:
            words = [("probability", None)]
            words += [(f" {percent}%", confidence_colour(percent / 100)) for percent in (0, 25, 50, 75, 100)]
        for word, colour in words:
            line.append(word, None if colour is None else Style(color=colour, dim=False))
        if self._drafted.any():
            line.append(" | ").append("draft", DRAFTED)
        return line

    def _print_lines(self, title: str, filled: torch.Tensor) -> None:
        """Prints one plain line for each canvas, with \\n and \\t for line breaks and tabs."""
        for example in range(len(self._value)):
            pieces = self._pieces(example, filled, torch.zeros_like(self._filled))
            name = f"canvas {example}, {title}" if len(self._value) > 1 else title
            line = "".join(text for text, _ in pieces).replace("\n", "\\n").replace("\t", "\\t")
            self.console.print(Text(f"{name}: {line}"), soft_wrap=True)


class TokenTexts:
    """Decodes each token of a canvas on its own, even if there are blanks.

    Each token is decoded behind the token before it, so leading spaces stay. If several tokens are the bytes of one
    character, the last one gets the character and the others get no text.

    Args:
        tokenizer: decodes the tokens.
        **decode_kwargs: passed to `tokenizer.decode`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, **decode_kwargs):
        decode_kwargs = {"clean_up_tokenization_spaces": False, **decode_kwargs}

        # Most tokens and their neighbours do not change from one pass to the next.
        @functools.lru_cache(maxsize=1 << 14)
        def decode(ids: tuple[int, ...]) -> str:
            return tokenizer.decode(list(ids), **decode_kwargs) if ids else ""

        self._decode = decode

    def __call__(self, ids: Sequence[int], known: Sequence[bool] | None = None) -> list[str | None]:
        """Returns the text of each token, `None` where `known` is False. The texts of a run join to the run's text."""
        texts: list[str | None] = [None] * len(ids)
        start = 0
        while start < len(ids):
            stop = start
            while stop < len(ids) and (known is None or known[stop]):
                stop += 1
            # After a blank there is no token to decode behind, so the run's first token is decoded behind itself. It is
            # not if it is a part of a character, which has no leading space and would spoil the next token.
            anchor = tuple(ids[start : start + 1]) if start else ()
            if REPLACEMENT in self._decode(anchor):
                anchor = ()
            texts[start:stop] = self._decode_run(tuple(ids[start:stop]), anchor)
            start = stop + 1
        return texts

    def _decode_run(self, ids: tuple[int, ...], anchor: tuple[int, ...]) -> list[str]:
        texts, start = [], 0
        while start < len(ids):
            # Takes one token, or more until the text ends with a whole character.
            decoded = []
            for stop in range(start + 1, len(ids) + 1):
                decoded.append(self._decode(anchor + ids[start:stop]))
                if not decoded[-1].endswith(REPLACEMENT):
                    break
            if not decoded[-1].startswith(self._decode(anchor)):
                # With byte-fallback tokenizers, bytes that form no character spoil the bytes before them.
                anchor = ()
                decoded = [self._decode(ids[start:end]) for end in range(start + 1, stop + 1)]
            whole, done = decoded[-1], len(self._decode(anchor))
            for prefix in decoded[:-1]:
                # A token owns the text that later tokens no longer change.
                settled = max(done, len(commonprefix([prefix, whole])))
                texts.append(whole[done:settled])
                done = settled
            texts.append(whole[done:])
            anchor, start = ids[start:stop], stop
        return texts


def visible(text: str, encoding: str = "utf-8") -> str:
    """Replaces control characters except line breaks and tabs by pictures, and those that `encoding` lacks by `?`."""
    pictures = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
    pictures |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), REPLACEMENT)
    return text.translate(pictures).encode(encoding, "replace").decode(encoding)


def age_colour(age: int) -> str:
    """Returns `#rrggbb` for a token filled `age` forward passes ago: orange for the newest, fading to slate."""
    return _mix(OLDEST, NEWEST, 1 / (1 + min(age, OLD) / 3))


def confidence_colour(probability: float) -> str:
    """Returns `#rrggbb` for the probability (0 to 1) of a filled token: red, amber, green."""
    if probability < 0.5:
        return _mix(UNSURE, HALF_SURE, max(2 * probability, 0.0))
    return _mix(HALF_SURE, SURE, min(2 * probability - 1, 1.0))


def _mix(first: tuple[int, ...], second: tuple[int, ...], share: float) -> str:
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(first, second, strict=True))


__all__ = ["CanvasStreamer", "TokenTexts", "age_colour", "confidence_colour", "visible"]
