# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Canvases: sentences with blanks, in sentence order, and the rows in generation order that they turn into.

A canvas is `[batch, columns]`. Which columns are blank is a boolean mask, never a token id, so a prompt may hold any
token, the mask token included. Rows are named by the columns that they come from: given columns first, from left to
right or in another context order, then the blanks in decoding order.
"""

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
        reads_blanks: whether what stands in blanks is read, as it is when fillings are scored.
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
            raise ValueError(f"{rule}; broken by example(s) {_some(broken.nonzero().flatten())}.")
    return real


def _some(values: torch.Tensor, most: int = 8) -> str:
    """A tensor's first entries, for a message."""
    shown = values[:most].tolist()
    return str(shown) if len(values) <= most else f"{shown} and {len(values) - most} more"


ADAPTIVE_ORDERS = ("confidence", "entropy", "margin")
CONTEXT_ORDERS = ("left_to_right", "suffix_first")


def is_named(order: Any, *names: str) -> bool:
    """Whether an order is one of these names; a tensor of columns is none."""
    return isinstance(order, str) and order in names


def resolve_order(
    name: str,
    order: str | torch.Tensor,
    mask: torch.Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    names: tuple[str, ...] = ("left_to_right", "random"),
) -> torch.Tensor:
    """The columns of a mask, one after the other: blanks in decoding order, or given columns in context order.

    Args:
        name: the argument that `order` comes from, for messages.
        order: `"left_to_right"`, `"random"` (uniform over orders, drawn for each example), another name of `names`
            (an adaptive order's columns, ordered later, are returned from left to right), or int64 `[batch, marked]`:
            each example's marked columns, each once, filled with -1 on the right.
        mask: bool `[batch, columns]`, True for the columns to be ordered.
        generator: random numbers for `"random"`: the global ones, one generator for the batch, or one for each example
            (of which each example's order is then a function, whatever its neighbours and its padding are).
        names: the names that are allowed.

    Returns:
        int64 `[batch, most marked]`, filled with -1 on the right.

    Raises:
        ValueError: for an unknown name, a wrong shape or dtype, and an order that is not a permutation of an example's
            marked columns (repeated, missing or other columns).
    """
    if isinstance(order, str):
        if order not in names:
            listed = ", ".join(repr(each) for each in names)
            raise ValueError(f"`{name}` must be {listed} or an int64 tensor of columns, got {order!r}.")
        if order == "random":
            keys = _random_keys(mask, generator)
        else:
            keys = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        return _columns_by(keys, mask)

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
            f"{_some(order)} for {_some(counts)} {kind} and {columns} columns."
        )
    times = torch.zeros(batch, columns, dtype=torch.int64, device=device)
    times.scatter_add_(1, order.clamp(min=0), filled.long())
    if (times != mask.long()).any():
        raise ValueError(
            f"`{name}` must name each of its example's {kind} exactly once and nothing else (repeated, missing or "
            f"other columns are not allowed); got {_some(order)}."
        )
    return order[:, :width]


def resolve_context_order(
    order: str | torch.Tensor, given: torch.Tensor, blanks: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """The given columns in context order, int64 `[batch, most given]`, filled with -1 on the right.

    Args:
        order: `"left_to_right"`; `"suffix_first"`, which is the sentence's first token, then what is right of the first
            blank, then what is left of it, each from left to right; or int64 `[batch, given]`, as in [`resolve_order`].
        given, blanks, real: bool `[batch, columns]`: the context, the blanks, and what is not padding.

    Raises:
        ValueError: see [`resolve_order`].
    """
    if isinstance(order, str) and order not in CONTEXT_ORDERS:
        names = ", ".join(map(repr, CONTEXT_ORDERS))
        raise ValueError(f"`context_order` must be {names} or an int64 tensor of columns, got {order!r}.")
    if not is_named(order, "suffix_first"):
        return resolve_order("context_order", order, given)
    columns = torch.arange(given.shape[1], device=given.device)
    # Where there is no blank, or nothing left of it, this is from left to right.
    is_left = (columns < blanks.long().argmax(1, keepdim=True)) & (columns > real.long().argmax(1, keepdim=True))
    return _columns_by(columns + len(columns) * is_left, given)


def _columns_by(keys: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The columns of a mask by rising keys, both `[batch, columns]`: int64 `[batch, most marked]`, -1 on the right."""
    counts = mask.sum(1)
    width = int(counts.max()) if counts.numel() else 0
    columns = keys.float().masked_fill(~mask, torch.inf).argsort(dim=1, stable=True)[:, :width]
    return columns.masked_fill(torch.arange(width, device=mask.device) >= counts[:, None], -1)


def _random_keys(mask: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> torch.Tensor:
    """A uniform random number for each marked column: `[batch, columns]`; what stands elsewhere is of no use."""
    if generator is None or isinstance(generator, torch.Generator):
        device = mask.device if generator is None else generator.device
        return torch.rand(mask.shape, generator=generator, dtype=torch.float32, device=device).to(mask.device)
    keys = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    for row, (own, marked) in enumerate(zip(generator, mask, strict=True)):
        drawn = torch.rand(int(marked.sum()), generator=own, dtype=torch.float32, device=own.device)
        keys[row, marked] = drawn.to(keys.device)
    return keys


def check_count(name: str, value: Any) -> int:
    """`value`, or a ValueError unless it is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    return value


def check_generators(generator: torch.Generator | Sequence[torch.Generator] | None, batch: int) -> None:
    """Raises a ValueError unless there are no generators, one, or one for each of `batch` examples."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, Sequence) or not all(isinstance(each, torch.Generator) for each in generator):
        kind = type(generator).__name__
        raise ValueError(f"`generator` must be a torch.Generator or a sequence of them, got {kind}.")
    if len(generator) != batch:
        count = len(generator)
        raise ValueError(f"`generator` must be one generator or one for each of {batch} examples, got {count}.")


def check_token_sets(
    token_sets: torch.Tensor | None,
    column_sets: torch.Tensor | None,
    generation_mask: torch.Tensor,
    vocab_size: int,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Checks which tokens may be filled into which columns.

    Args:
        token_sets: bool `[sets, vocab]`, or `None`.
        column_sets: int64 `[batch, columns]`, the number of each column's set, -1 for any token; or `None`.
        generation_mask: bool `[batch, columns]`, True for blanks.
        vocab_size: the model's.

    Returns:
        `None` if nothing is given, else `token_sets` with a last set of all tokens, and `column_sets`.

    Raises:
        ValueError: for one without the other, a wrong shape, dtype or device, a number of no set, and an empty set.
    """
    if token_sets is None and column_sets is None:
        return None
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
            f"got {_some(column_sets.unique())}."
        )
    if not token_sets.any(1).all():
        raise ValueError(
            f"`token_sets` must not be empty, got no token in {_some((~token_sets.any(1)).nonzero()[:, 0])}."
        )
    return torch.nn.functional.pad(token_sets, (0, 0, 0, 1), value=True), column_sets


@dataclass
class CanvasRows:
    """The rows that a batch of canvases turns into: context columns in their order, then blanks in decoding order.

    Args:
        columns: int64 `[batch, rows]`, where each row's token stands in its canvas; -1 for padding, on the right.
        places: int64 `[batch, columns]`, the content position of each column: padded columns are not counted.
        left: int64 `[batch, columns]`, the column left of each one, padding not counted; how many columns there are
            stands for none.
        given: int64 `[batch]`, how many of an example's rows, the first ones, are context.
    """

    columns: torch.Tensor
    places: torch.Tensor
    left: torch.Tensor
    given: torch.Tensor

    @functools.cached_property
    def row_places(self) -> torch.Tensor:
        """The content position of each row, int64 `[batch, rows]`; anything for padding."""
        return self.places.gather(1, self.columns.clamp(min=0))

    @functools.cached_property
    def row_of_column(self) -> torch.Tensor:
        """The row of each column, int64 `[batch, columns + 1]`; where there is none, a number above all real rows."""
        batch, rows = self.columns.shape
        entries = self.left.shape[1] + 1
        in_order = torch.arange(rows, device=self.left.device).expand(batch, -1)
        # Rows of padding, -1, write to the entry behind the last column.
        return self.left.new_full((batch, entries), rows).scatter_(1, self.columns.remainder(entries), in_order)

    def left_tokens(self, canvas: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The tokens left of columns, as far as rows know them: int64 `[batch, questions]`, -1 for "not known".

        Args:
            canvas: int64 `[batch, columns]`.
            columns: int64 `[batch, questions]`, columns that have a row.
            rows: int64 `[batch, questions]`, the last rows whose tokens are known.
        """
        left = self.left.gather(1, columns)
        is_unknown = self.row_of_column.gather(1, left) > rows
        return canvas.gather(1, left.clamp(max=canvas.shape[1] - 1)).masked_fill(is_unknown, -1)

    @classmethod
    def lay_out(cls, real: torch.Tensor, context: torch.Tensor, order: torch.Tensor) -> "CanvasRows":
        """Lays rows out.

        Args:
            real: bool `[batch, columns]`, which columns are not padding.
            context: int64 `[batch, given]`, the context's columns in their order, -1 on the right; at least one each.
            order: int64 `[batch, blanks]`, the blanks' columns in their order, -1 on the right.
        """
        columns = torch.cat([context, order], dim=1)
        columns = columns.gather(1, (columns < 0).long().argsort(dim=1, stable=True))
        width = real.shape[1]
        numbers = torch.arange(width, device=real.device).where(real, -1)
        left = torch.nn.functional.pad(numbers[:, :-1], (1, 0), value=-1).cummax(1).values.remainder(width + 1)
        return cls(columns, real.long().cumsum(1) - 1, left, (context >= 0).sum(1))

    def check_order(self, attention_variant: str) -> None:
        """Raises a ValueError for `causal` unless each row stands right behind the row before it."""
        is_row = self.columns >= 0
        positions = self.places.gather(1, self.columns.clamp(min=0))
        jumps = is_row[:, 1:] & is_row[:, :-1] & (positions.diff(dim=1) != 1)
        if attention_variant == "causal" and jumps.any():
            raise ValueError(
                "attention_variant='causal' knows blanks from left to right only, behind all given tokens; got the "
                f"columns {self.columns[:4].tolist()} as rows."
            )


@dataclass
class RowBlock:
    """Rows of the same number for each example, one behind the other, as the arguments of a call.

    Args:
        numbers: int64 `[batch, rows]`, which of its example's rows each one is.
        real: bool `[batch, rows]`, False for padding, on either side: such rows repeat the first given token.
        input_ids: int64 `[batch, rows]`.
        position_ids: int64 `[batch, rows]`.
        target_position_ids: int64 `[batch, rows, targets]`, the places of the rows that come next; own position + 1
            where there are none.
        query_input_ids: int64 `[batch, rows, targets]`, the tokens left of the targets, -1 where no row up to the own
            one holds them, anything where no row comes next; `None` where they are not wanted.
    """

    numbers: torch.Tensor
    real: torch.Tensor
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    target_position_ids: torch.Tensor
    query_input_ids: torch.Tensor | None

    @classmethod
    def same(cls, canvas: torch.Tensor, rows: CanvasRows, number: int, wants_left: bool) -> "RowBlock":
        """Row `number` of every example, none of which is padding or the last; as `cut`, with less work."""
        columns, places = rows.columns[:, number : number + 1], rows.row_places
        numbers, query_input_ids = torch.full_like(columns, number), None
        if wants_left:
            query_input_ids = rows.left_tokens(canvas, rows.columns[:, number + 1 : number + 2], numbers)[..., None]
        return cls(
            numbers,
            torch.ones_like(columns, dtype=torch.bool),
            canvas.gather(1, columns),
            places[:, number : number + 1],
            places[:, number + 1 : number + 2, None],
            query_input_ids,
        )

    @classmethod
    def cut(
        cls,
        canvas: torch.Tensor,
        rows: CanvasRows,
        first: torch.Tensor,
        stop: torch.Tensor,
        end: torch.Tensor,
        width: int,
        targets: int = 1,
        wants_left: bool = False,
    ) -> "RowBlock":
        """Cuts the `width` rows before row `end` out of each example.

        Args:
            canvas: int64 `[batch, columns]`, the tokens.
            rows: where they stand.
            first, stop: int64 `[batch]`; rows before `first` and from `stop` on are padding, and not read.
            end: int64 `[batch]`.
            width: how many rows.
            targets: how many of the rows after it each row asks for.
            wants_left: whether the tokens left of the targets are wanted.
        """
        numbers = end[:, None] + torch.arange(-width, 0, device=end.device)
        real = (numbers >= first[:, None]) & (numbers < stop[:, None])
        read = numbers.where(real, 0)
        columns = rows.columns.gather(1, read)
        position_ids = rows.row_places.gather(1, read)
        following = read[..., None] + torch.arange(1, targets + 1, device=end.device)
        asked = following.clamp(max=rows.columns.shape[1] - 1).flatten(1)
        asked_columns = rows.columns.gather(1, asked)
        known = ((asked_columns >= 0) & (following.flatten(1) < rows.columns.shape[1])).view(following.shape)
        asked_places = rows.row_places.gather(1, asked).view(following.shape)
        query_input_ids = None
        if wants_left:
            own = read[..., None].expand(following.shape).flatten(1)
            query_input_ids = rows.left_tokens(canvas, asked_columns.clamp(min=0), own).view(following.shape)
        target_position_ids = asked_places.where(known, position_ids[..., None] + 1)
        return cls(numbers, real, canvas.gather(1, columns), position_ids, target_position_ids, query_input_ids)


def padded_rows(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids, padded on the right, and their attention mask: int64 `[batch, columns]` both."""
    width = max(map(len, rows))
    # What stands in padding is never read; any id of the vocabulary will do.
    input_ids = torch.tensor([[*ids] + [0] * (width - len(ids)) for ids in rows])
    return input_ids, torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows])


__all__ = [
    "ADAPTIVE_ORDERS",
    "CONTEXT_ORDERS",
    "CanvasRows",
    "RowBlock",
    "check_canvas",
    "check_count",
    "check_generators",
    "check_token_sets",
    "is_named",
    "padded_rows",
    "resolve_context_order",
    "resolve_order",
]
