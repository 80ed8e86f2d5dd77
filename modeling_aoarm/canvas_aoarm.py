# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Canvases, which are sentences with blanks in sentence order, and their rows in generation order.

A canvas is `[batch, columns]`. A boolean mask says which columns are blank, never a token id. So a prompt may hold any
token, also the mask token. The rows of a canvas are its given columns, from left to right or in another context order,
and then its blanks in decoding order.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


def check_canvas(
    input_ids: torch.Tensor,
    generation_mask: torch.Tensor,
    attention_mask: torch.Tensor | None,
    vocab_size: int,
    max_position_embeddings: int,
    reads_blanks: bool = False,
    appended: int = 0,
) -> torch.Tensor:
    """Checks a batch of canvases.

    Args:
        input_ids: integer `[batch, columns]`.
        generation_mask: bool `[batch, columns]`, True for blanks.
        attention_mask: `[batch, columns]`, 0 for padding, or `None` for no padding.
        vocab_size: the model's; tokens that are read must be below it.
        max_position_embeddings: the most columns, padding not counted, that an example may have.
        reads_blanks: whether the tokens in blanks are read, as they are when fillings are scored.
        appended: how many blanks are appended later.

    Returns:
        Which columns are not padding, bool `[batch, columns]`.

    Raises:
        ValueError: for a wrong shape or dtype, an empty batch, a blank in a padded column, an example without any
            given token, a token outside the vocabulary, and a canvas that is too long.
    """
    if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2 or 0 in input_ids.shape:
        got = list(input_ids.shape) if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        raise ValueError(f"`input_ids` must be a tensor of shape [batch, columns], both at least 1; got {got}.")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise ValueError(f"`input_ids` must hold integers, got {input_ids.dtype}.")
    for name, mask in (("generation_mask", generation_mask), ("attention_mask", attention_mask)):
        if isinstance(mask, torch.Tensor) and mask.device != input_ids.device:
            raise ValueError(f"`{name}` must be on the device of `input_ids`, {input_ids.device}; got {mask.device}.")
    if not isinstance(generation_mask, torch.Tensor) or generation_mask.dtype != torch.bool:
        got = getattr(generation_mask, "dtype", type(generation_mask).__name__)
        raise ValueError(f"`generation_mask` must be a bool tensor, True for blanks; got {got}.")
    if generation_mask.shape != input_ids.shape:
        raise ValueError(
            f"`generation_mask` must have the shape of `input_ids`, {list(input_ids.shape)}; "
            f"got {list(generation_mask.shape)}."
        )
    if attention_mask is None:
        real = torch.ones_like(generation_mask)
    elif not isinstance(attention_mask, torch.Tensor) or attention_mask.shape != input_ids.shape:
        is_tensor = isinstance(attention_mask, torch.Tensor)
        got = list(attention_mask.shape) if is_tensor else type(attention_mask).__name__
        raise ValueError(
            f"`attention_mask` must be a tensor of the shape of `input_ids`, {list(input_ids.shape)}; got {got}."
        )
    else:
        real = attention_mask.bool()
    outside = (input_ids < 0) | (input_ids >= vocab_size)
    for rule, broken in (
        ("`generation_mask` must not mark padded columns (`attention_mask` 0)", (generation_mask & ~real).any(1)),
        ("`generation_mask` must leave at least one given token in each canvas", ~(real & ~generation_mask).any(1)),
        (
            f"`input_ids` must hold ids in [0, vocab_size={vocab_size}) where they are read",
            (outside & real & (~generation_mask | reads_blanks)).any(1),
        ),
        (
            f"`input_ids` must have at most max_position_embeddings={max_position_embeddings} unpadded columns"
            + (f", the {appended} of `max_new_tokens` included" if appended else ""),
            real.sum(1) + appended > max_position_embeddings,
        ),
    ):
        if broken.any():
            raise ValueError(f"{rule}; broken by example(s) {_first_values(broken.nonzero().flatten())}.")
    return real


def _first_values(values: torch.Tensor, most: int = 8) -> str:
    """A tensor's first entries, for a message."""
    shown = values[:most].tolist()
    return str(shown) if len(values) <= most else f"{shown} and {len(values) - most} more"


CONTEXT_ORDERS = ("left_to_right", "suffix_first")


def is_named(order: Any, *names: str) -> bool:
    """Whether an order is one of these names. A tensor of columns has no name."""
    return isinstance(order, str) and order in names


def resolve_order(
    name: str,
    order: str | torch.Tensor,
    mask: torch.Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    names: tuple[str, ...] = ("left_to_right", "random"),
) -> torch.Tensor:
    """Lists the columns of a mask in an order: blanks in decoding order, or given columns in context order.

    Args:
        name: the argument that `order` comes from, for messages.
        order: `"left_to_right"`, `"random"` (uniform over orders, drawn for each example), another name of `names` (the
            columns of an adaptive order are ordered later, and returned from left to right), or int64
            `[batch, marked]`: each example's marked columns, each once, -1 on the right.
        mask: bool `[batch, columns]`, True for the columns to be ordered.
        generator: random numbers for `"random"`: the global ones, one generator for the batch, or one for each example.
            With one for each example, its order does not depend on its neighbours or its padding.
        names: the names that are allowed.

    Returns:
        int64 `[batch, most marked]`, -1 on the right.

    Raises:
        ValueError: for an unknown name, a wrong shape or dtype, and an order that is not a permutation of an example's
            marked columns.
    """
    if isinstance(order, str):
        if order not in names:
            listed = ", ".join(repr(each) for each in names)
            raise ValueError(f"`{name}` must be {listed} or an int64 tensor of columns, got {order!r}.")
        if order == "random":
            keys = draw_keys(mask, generator)
        else:
            keys = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        return _sort_columns(keys, mask)

    counts = mask.sum(1)
    width = int(counts.max()) if counts.numel() else 0
    device = mask.device
    batch, columns = mask.shape
    if not isinstance(order, torch.Tensor) or order.dtype != torch.int64:
        got = getattr(order, "dtype", type(order).__name__)
        raise ValueError(f"`{name}` must be a name or an int64 tensor of columns, got {got}.")
    kind = "blanks" if name == "decoding_order" else "given columns"
    if order.ndim != 2 or order.shape[0] != batch or order.shape[1] < width:
        raise ValueError(
            f"`{name}` must have the shape [batch, {kind}] with batch={batch} and at least {width} {kind}; "
            f"got {list(order.shape)}."
        )
    order = order.to(device)
    filled = order >= 0
    is_place = torch.arange(order.shape[1], device=device) < counts[:, None]
    if ((order < -1) | (order >= columns)).any() or (filled != is_place).any():
        raise ValueError(
            f"`{name}` must hold one column in [0, columns) for each of the {kind}, then -1 to the right; got "
            f"{_first_values(order)} for {_first_values(counts)} {kind} and {columns} columns."
        )
    times = torch.zeros(batch, columns, dtype=torch.int64, device=device)
    times.scatter_add_(1, order.clamp(min=0), filled.long())
    if (times != mask.long()).any():
        raise ValueError(
            f"`{name}` must name each of its example's {kind} exactly once and nothing else (repeated, missing or "
            f"other columns are not allowed); got {_first_values(order)}."
        )
    return order[:, :width]


def resolve_context_order(
    order: str | torch.Tensor, given: torch.Tensor, blanks: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """Lists the given columns in context order, int64 `[batch, most given]`, -1 on the right.

    Args:
        order: `"left_to_right"`; `"suffix_first"`, which is the sentence's first token, then the tokens right of the
            first blank, then those left of it, each part from left to right; or int64 `[batch, given]`, as in
            [`resolve_order`].
        given, blanks, real: bool `[batch, columns]`: the context, the blanks, and the columns that are not padding.

    Raises:
        ValueError: see [`resolve_order`].
    """
    if isinstance(order, str) and order not in CONTEXT_ORDERS:
        names = ", ".join(map(repr, CONTEXT_ORDERS))
        raise ValueError(f"`context_order` must be {names} or an int64 tensor of columns, got {order!r}.")
    if not is_named(order, "suffix_first"):
        return resolve_order("context_order", order, given)
    columns = torch.arange(given.shape[1], device=given.device)
    # Without a blank, or with nothing left of it, this is left to right.
    is_left = (columns < blanks.long().argmax(1, keepdim=True)) & (columns > real.long().argmax(1, keepdim=True))
    return _sort_columns(columns + len(columns) * is_left, given)


def _sort_columns(keys: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sorts the columns of a mask by keys, both `[batch, columns]`: int64 `[batch, most marked]`, -1 on the right."""
    counts = mask.sum(1)
    width = int(counts.max()) if counts.numel() else 0
    columns = keys.float().masked_fill(~mask, torch.inf).argsort(dim=1, stable=True)[:, :width]
    return columns.masked_fill(torch.arange(width, device=mask.device) >= counts[:, None], -1)


def draw_keys(mask: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> torch.Tensor:
    """Draws a uniform random number for each marked column, `[batch, columns]`. Other entries are ignored."""
    if generator is None or isinstance(generator, torch.Generator):
        device = mask.device if generator is None else generator.device
        return torch.rand(mask.shape, generator=generator, dtype=torch.float32, device=device).to(mask.device)
    keys = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    for row, (own, marked) in enumerate(zip(generator, mask, strict=True)):
        drawn = torch.rand(int(marked.sum()), generator=own, dtype=torch.float32, device=own.device)
        keys[row, marked] = drawn.to(keys.device)
    return keys


def is_count(value: Any) -> bool:
    """Whether `value` is an integer of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_count(name: str, value: Any) -> int:
    """Returns `value`. Raises a ValueError unless it is an integer of at least 1."""
    if not is_count(value):
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    return value


def check_generators(generator: torch.Generator | Sequence[torch.Generator] | None, batch: int) -> None:
    """Raises a ValueError unless `generator` is `None`, one generator, or one for each of `batch` examples."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, Sequence) or not all(isinstance(each, torch.Generator) for each in generator):
        kind = type(generator).__name__
        raise ValueError(f"`generator` must be a torch.Generator or a sequence of them, got {kind}.")
    if len(generator) != batch:
        count = len(generator)
        raise ValueError(f"`generator` must be one generator or one for each of {batch} examples, got {count}.")


def resolve_token_sets(
    token_sets: torch.Tensor | None,
    column_sets: torch.Tensor | None,
    generation_mask: torch.Tensor,
    vocab_size: int,
    appended: int,
    copies: int,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Checks which tokens may be filled into which columns.

    Args:
        token_sets: bool `[sets, vocab]`, or `None`.
        column_sets: int64 `[batch, columns]`, the number of each column's set, -1 for any token; or `None`.
        generation_mask: bool `[batch, columns + appended]`, True for blanks.
        vocab_size: the model's.
        appended: how many columns have been appended on the right. Any token may stand there.
        copies: how many sequences are returned for each example.

    Returns:
        `None` if nothing is given. Else `token_sets` with all tokens as one more set, and `column_sets` for each
        sequence, int64 `[batch * copies, columns + appended]`.

    Raises:
        ValueError: for one without the other, a wrong shape, dtype or device, a number of no set, and an empty set.
    """
    if token_sets is None and column_sets is None:
        return None
    if isinstance(column_sets, torch.Tensor):
        column_sets = torch.nn.functional.pad(column_sets, (0, appended), value=-1)
    shape = list(generation_mask.shape)
    for name, value, dtype, form, fits in (
        ("token_sets", token_sets, torch.bool, f"[sets, {vocab_size}]", lambda v: v.shape[1:] == (vocab_size,)),
        ("column_sets", column_sets, torch.int64, f"{shape}", lambda v: list(v.shape) == shape),
    ):
        if not isinstance(value, torch.Tensor) or value.dtype != dtype or not fits(value):
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"`token_sets` and `column_sets` go together: `{name}` must be a {dtype} tensor of shape {form}; got "
                f"{got}."
            )
        if value.device != generation_mask.device:
            raise ValueError(
                f"`{name}` must be on the device of `input_ids`, {generation_mask.device}; got {value.device}."
            )
    if ((column_sets < -1) | (column_sets >= len(token_sets))).any():
        raise ValueError(
            f"`column_sets` must hold numbers in [-1, {len(token_sets)}), as there are {len(token_sets)} `token_sets`; "
            f"got {_first_values(column_sets.unique())}."
        )
    if not token_sets.any(1).all():
        raise ValueError(
            f"`token_sets` must not be empty, got no token in {_first_values((~token_sets.any(1)).nonzero()[:, 0])}."
        )
    with_all_tokens = torch.nn.functional.pad(token_sets, (0, 0, 0, 1), value=True)
    return with_all_tokens, column_sets.repeat_interleave(copies, 0)


@dataclass
class RowSpan:
    """The rows of each example that a pass reads: the `width` rows before row `end`.

    Args:
        first, stop, end: int64 `[batch]`. Rows before `first` and rows from `stop` on are padding and are not read.
        width: how many rows.
        longest: an upper bound of `end` that is known without waiting for the device.
        is_aligned: whether `end` is `longest` in all examples and no row is padding.
    """

    first: torch.Tensor
    stop: torch.Tensor
    end: torch.Tensor
    width: int
    longest: int
    is_aligned: bool = False


@dataclass
class RowInputs:
    """A model's inputs for the rows of a [`RowSpan`].

    Args:
        numbers: int64 `[batch, rows]`, each row's index in generation order.
        is_real: bool `[batch, rows]`, False for padding, on either side. Padding repeats the first row.
        input_ids: int64 `[batch, rows]`.
        position_ids: int64 `[batch, rows]`.
        target_position_ids: int64 `[batch, rows, targets]`, the positions of the next rows; the own position + 1 where
            there is no next row.
        query_input_ids: int64 `[batch, rows, targets]`, the tokens left of the targets, -1 where no row up to the own
            one holds them; `None` where the model does not read them.
    """

    numbers: torch.Tensor
    is_real: torch.Tensor
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    target_position_ids: torch.Tensor
    query_input_ids: torch.Tensor | None


@dataclass
class CanvasRows:
    """A batch of canvases as rows in generation order: the context in its order, then the blanks in decoding order.

    Examples have different numbers of rows. Padding stands on the right and has column -1. The last row of all examples
    is padding: it absorbs discarded writes.

    Args:
        tokens: int64 `[batch, rows + 1]`. They change while blanks are filled.
        columns: int64 `[batch, rows + 1]`, the canvas column of each row's token.
        positions: int64 `[batch, rows + 1]`, the content position of each row. Padded columns have no position.
        left_columns: int64 `[batch, rows + 1]`, the column left of each row's column, -1 for none. Padded columns are
            skipped.
        num_columns: how many columns the canvases have.
    """

    tokens: torch.Tensor
    columns: torch.Tensor
    positions: torch.Tensor
    left_columns: torch.Tensor
    num_columns: int

    @classmethod
    def lay_out(
        cls, canvas: torch.Tensor, real: torch.Tensor, context: torch.Tensor, order: torch.Tensor
    ) -> "CanvasRows":
        """Lays rows out.

        Args:
            canvas: int64 `[batch, columns]`, the tokens.
            real: bool `[batch, columns]`, which columns are not padding.
            context: int64 `[batch, given]`, the context's columns in their order, -1 on the right; at least one each.
            order: int64 `[batch, blanks]`, the blanks' columns in their order, -1 on the right.
        """
        columns = torch.cat([context, order], dim=1)
        columns = columns.gather(1, (columns < 0).long().argsort(dim=1, stable=True))
        columns = torch.nn.functional.pad(columns, (0, 1), value=-1)
        real_columns = torch.arange(canvas.shape[1], device=canvas.device).where(real, -1)
        left_columns = torch.nn.functional.pad(real_columns[:, :-1], (1, 0), value=-1).cummax(1).values
        by_column = canvas, real.long().cumsum(1) - 1, left_columns
        tokens, positions, left_columns = (each.gather(1, columns.clamp(min=0)) for each in by_column)
        return cls(tokens, columns, positions, left_columns, canvas.shape[1])

    @property
    def totals(self) -> torch.Tensor:
        """How many rows each example has, int64 `[batch]`."""
        return (self.columns >= 0).sum(1)

    @functools.cached_property
    def left_rows(self) -> torch.Tensor:
        """The row that holds the column left of each row's column, int64 `[batch, rows + 1]`.

        Where no row holds it, this is a number above all real rows.
        """
        batch, rows = self.columns.shape
        numbers = torch.arange(rows, device=self.columns.device).expand(batch, -1)
        # The entry behind the last column stands for none. Padding rows write to it too.
        row_of_column = self.columns.new_full((batch, self.num_columns + 1), rows)
        row_of_column.scatter_(1, self.columns.remainder(self.num_columns + 1), numbers)
        return row_of_column.gather(1, self.left_columns.remainder(self.num_columns + 1))

    def read(self, span: RowSpan, targets: int, needs_left: bool) -> RowInputs:
        """Returns a model's inputs for some rows.

        Args:
            span: which rows.
            targets: how many of the next rows' positions each row asks about.
            needs_left: whether the model reads the tokens left of the targets.
        """
        device = self.columns.device
        numbers = span.end[:, None] + torch.arange(-span.width, 0, device=device)
        is_real = (numbers >= span.first[:, None]) & (numbers < span.stop[:, None])
        rows = numbers.where(is_real, 0)
        position_ids = self.positions.gather(1, rows)
        following = rows[..., None] + torch.arange(1, targets + 1, device=device)
        following = following.clamp(max=self.columns.shape[1] - 1).flatten(1)
        shape = (*rows.shape, targets)
        has_next = (self.columns.gather(1, following) >= 0).view(shape)
        target_position_ids = self.positions.gather(1, following).view(shape)
        target_position_ids = target_position_ids.where(has_next, position_ids[..., None] + 1)
        query_input_ids = None
        if needs_left:
            left = self.left_rows.gather(1, following)
            tokens = self.tokens.gather(1, left.clamp(max=self.columns.shape[1] - 1)).view(shape)
            query_input_ids = tokens.where(left.view(shape) <= rows[..., None], -1)
        input_ids = self.tokens.gather(1, rows)
        return RowInputs(numbers, is_real, input_ids, position_ids, target_position_ids, query_input_ids)

    def select(self, examples: torch.Tensor) -> "CanvasRows":
        """The rows of some examples, int64 `[examples]`."""
        parts = (each[examples] for each in (self.tokens, self.columns, self.positions, self.left_columns))
        return CanvasRows(*parts, self.num_columns)

    def insert(self, examples: torch.Tensor, other: "CanvasRows") -> None:
        """Overwrites the examples with these numbers, int64 `[examples]`, by all examples of `other`."""
        self.tokens[examples], self.columns[examples] = other.tokens, other.columns
        self.positions[examples], self.left_columns[examples] = other.positions, other.left_columns

    def rearrange(self, rows: torch.Tensor) -> "CanvasRows":
        """Puts other rows in the place of each row: int64 `[batch, rows + 1]`, their numbers."""
        parts = (each.gather(1, rows) for each in (self.tokens, self.columns, self.positions, self.left_columns))
        return CanvasRows(*parts, self.num_columns)

    def drop(self, is_dropped: torch.Tensor) -> "CanvasRows":
        """Turns rows into padding, bool `[batch, rows + 1]`; the others move up."""
        kept_first = is_dropped.long().argsort(dim=1, stable=True)
        remaining = dataclasses.replace(self, columns=self.columns.masked_fill(is_dropped, -1))
        return remaining.rearrange(kept_first)

    def to_columns(self, values: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
        """Moves values from rows to canvas columns.

        Args:
            values: `[batch, rows + 1]`.
            otherwise: `[batch, columns]`, the values of columns that have no row.
        """
        return scatter_to_columns(values, self.columns, otherwise)

    def check_order(self, attention_variant: str) -> None:
        """Raises a ValueError for `causal` unless each row stands directly behind the row before it."""
        is_row = self.columns >= 0
        jumps = is_row[:, 1:] & is_row[:, :-1] & (self.positions.diff(dim=1) != 1)
        if attention_variant == "causal" and jumps.any():
            raise ValueError(
                "attention_variant='causal' fills blanks from left to right only, behind all given tokens; got the "
                f"columns {self.columns[:4, :-1].tolist()} as rows."
            )


def scatter_to_columns(values: torch.Tensor, columns: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """Moves values to canvas columns.

    Args:
        values: `[batch, n]`.
        columns: int64 `[batch, n]`, the column of each value, -1 for none.
        otherwise: `[batch, columns]`, the values of the other columns.
    """
    # One more column, behind the last, absorbs the values without a column.
    padded = torch.nn.functional.pad(otherwise, (0, 1))
    return padded.scatter(1, columns.remainder(padded.shape[1]), values)[:, :-1]


def padded_rows(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads lists of ids on the right. Returns the ids and their attention mask, both int64 `[batch, columns]`."""
    width = max(map(len, rows))
    # Padding is never read, so any id of the vocabulary will do.
    input_ids = torch.tensor([[*ids] + [0] * (width - len(ids)) for ids in rows])
    return input_ids, torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows])


__all__ = [
    "CONTEXT_ORDERS",
    "CanvasRows",
    "RowInputs",
    "RowSpan",
    "check_canvas",
    "check_count",
    "check_generators",
    "draw_keys",
    "is_count",
    "is_named",
    "padded_rows",
    "resolve_context_order",
    "resolve_order",
    "resolve_token_sets",
    "scatter_to_columns",
]
