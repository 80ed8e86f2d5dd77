# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Canvases: sentences with blanks, in sentence order, and the rows in generation order that they turn into.

A canvas is `[batch, columns]`. Which columns are blank is a boolean mask, never a token id, so a prompt may hold any
token, the mask token included. Rows are named by the columns that they come from: given columns first, in sentence
order, then the blanks in decoding order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


def check_canvas(
    input_ids: torch.Tensor,
    generation_mask: torch.Tensor,
    attention_mask: torch.Tensor | None,
    vocab_size: int,
    max_position_embeddings: int,
    reads_blanks: bool = False,
) -> torch.Tensor:
    """Checks a batch of canvases.

    Args:
        input_ids: integer `[batch, columns]`.
        generation_mask: bool `[batch, columns]`, True for blanks.
        attention_mask: `[batch, columns]`, 0 for padding, or `None` for no padding.
        vocab_size: the model's; tokens that are read must be below it.
        max_position_embeddings: the most columns, padding not counted, that an example may have.
        reads_blanks: whether what stands in blanks is read, as it is when fillings are scored.

    Returns:
        Which columns are not padding, bool `[batch, columns]`.

    Raises:
        ValueError: for a wrong shape or dtype, an empty batch, a blank in a padded column, an example without any
            given token, a token outside the vocabulary, and a canvas that is too long.
    """
    if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2 or 0 in input_ids.shape:
        got = list(input_ids.shape) if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        raise ValueError(f"`input_ids` must be a tensor of shape [batch, columns], both at least 1; got {got}.")
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise ValueError(f"`input_ids` must hold integers, got {input_ids.dtype}.")
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
            f"`input_ids` must have at most max_position_embeddings={max_position_embeddings} unpadded columns",
            real.sum(1) > max_position_embeddings,
        ),
    ):
        if broken.any():
            raise ValueError(f"{rule}; broken by example(s) {_some(broken.nonzero().flatten())}.")
    return real


def _some(values: torch.Tensor, most: int = 8) -> str:
    """A tensor's first entries, for a message."""
    shown = values[:most].tolist()
    return str(shown) if len(values) <= most else f"{shown} and {len(values) - most} more"


def resolve_decoding_order(
    decoding_order: str | torch.Tensor,
    generation_mask: torch.Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> torch.Tensor:
    """The blanks' columns in the order in which they are filled.

    Args:
        decoding_order: `"left_to_right"`, `"random"` (uniform over orders, drawn for each example), or int64
            `[batch, blanks]`: each example's blank columns, each once, filled with -1 on the right.
        generation_mask: bool `[batch, columns]`, True for blanks.
        generator: random numbers for `"random"`: the global ones, one generator for the batch, or one for each example
            (of which each example's order is then a function, whatever its neighbours and its padding are).

    Returns:
        int64 `[batch, most blanks]`, filled with -1 on the right.

    Raises:
        ValueError: for an unknown name, a wrong shape or dtype, and an order that is not a permutation of an example's
            blanks (repeated, missing or given columns).
    """
    counts = generation_mask.sum(1)
    width = int(counts.max()) if counts.numel() else 0
    device = generation_mask.device
    if isinstance(decoding_order, str):
        if decoding_order == "left_to_right":
            keys = torch.arange(generation_mask.shape[1], device=device).float().expand_as(generation_mask)
        elif decoding_order == "random":
            keys = _random_keys(generation_mask, generator)
        else:
            raise ValueError(
                "`decoding_order` must be 'left_to_right', 'random' or an int64 tensor of columns, got "
                f"{decoding_order!r}."
            )
        order = keys.masked_fill(~generation_mask, torch.inf).argsort(dim=1, stable=True)[:, :width]
        return order.masked_fill(torch.arange(width, device=device) >= counts[:, None], -1)

    batch, columns = generation_mask.shape
    if not isinstance(decoding_order, torch.Tensor) or decoding_order.dtype != torch.int64:
        got = getattr(decoding_order, "dtype", type(decoding_order).__name__)
        raise ValueError(f"`decoding_order` must be a name or an int64 tensor of columns, got {got}.")
    if decoding_order.ndim != 2 or decoding_order.shape[0] != batch or decoding_order.shape[1] < width:
        raise ValueError(
            f"`decoding_order` must have the shape [batch, blanks] with batch={batch} and at least {width} blanks; "
            f"got {list(decoding_order.shape)}."
        )
    order = decoding_order.to(device)
    filled = order >= 0
    is_place = torch.arange(order.shape[1], device=device) < counts[:, None]
    if ((order < -1) | (order >= columns)).any() or (filled != is_place).any():
        raise ValueError(
            "`decoding_order` must hold one column in [0, columns) for each blank, then -1 to the right; got "
            f"{_some(decoding_order)} for {_some(counts)} blanks and {columns} columns."
        )
    times = torch.zeros(batch, columns, dtype=torch.int64, device=device)
    times.scatter_add_(1, order.clamp(min=0), filled.long())
    if (times != generation_mask.long()).any():
        raise ValueError(
            "`decoding_order` must name each blank of its example exactly once and nothing else (repeated, missing or "
            f"given columns are not allowed); got {_some(decoding_order)}."
        )
    return order[:, :width]


def _random_keys(
    generation_mask: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator] | None
) -> torch.Tensor:
    """A uniform random number for each blank: `[batch, columns]`; what stands elsewhere is of no use."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(generation_mask.shape, generator=generator, device=generation_mask.device)
    if len(generator) != len(generation_mask):
        raise ValueError(
            f"`generator` must be one generator or one for each of {len(generation_mask)} examples, got "
            f"{len(generator)}."
        )
    keys = torch.zeros(generation_mask.shape, device=generation_mask.device)
    for row, (own, blanks) in enumerate(zip(generator, generation_mask, strict=True)):
        keys[row, blanks] = torch.rand(int(blanks.sum()), generator=own, device=own.device).to(keys.device)
    return keys


@dataclass
class CanvasRows:
    """The rows that a batch of canvases turns into: given columns in sentence order, then blanks in decoding order.

    Examples with fewer given tokens have padding on the left, so that the last given row of all stands in one place;
    those with fewer blanks have it on the right.

    Args:
        columns: int64 `[batch, rows]`, where each row's token stands in its canvas; -1 for padding.
        places: int64 `[batch, columns]`, the content position of each column: padded columns are not counted.
        context: how many of the rows, the first ones, are given.
    """

    columns: torch.Tensor
    places: torch.Tensor
    context: int

    @classmethod
    def lay_out(cls, real: torch.Tensor, given: torch.Tensor, order: torch.Tensor) -> "CanvasRows":
        """Lays rows out.

        Args:
            real: bool `[batch, columns]`, which columns are not padding.
            given: bool `[batch, columns]`, which columns are context, at least one in each example.
            order: int64 `[batch, blanks]`, see [`resolve_decoding_order`].
        """
        context = int(given.sum(1).max())
        given_columns = given.long().argsort(dim=1, stable=True)[:, -context:]
        given_columns = given_columns.masked_fill(~given.gather(1, given_columns), -1)
        return cls(torch.cat([given_columns, order], dim=1), real.long().cumsum(1) - 1, context)

    def tokens(self, canvas: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The tokens of rows `start` to `stop` - 1, int64 `[batch, stop - start]`.

        Rows of padding repeat the last given token: what stands in blanks and in padded columns is never read.
        """
        columns = self.columns[:, start:stop]
        return canvas.gather(1, columns.where(columns >= 0, self.columns[:, self.context - 1 : self.context]))

    def call_arguments(self, canvas: torch.Tensor, start: int, stop: int) -> dict[str, torch.Tensor]:
        """The model's arguments for rows `start` to `stop` - 1, whose tokens stand in `canvas` `[batch, columns]`."""
        columns = self.columns[:, start : stop + 1]
        positions = self.places.gather(1, columns.clamp(min=0))
        own, following = positions[:, :-1], positions[:, 1:]
        return {
            "input_ids": self.tokens(canvas, start, stop),
            "attention_mask": (self.columns[:, :stop] >= 0).long(),
            "position_ids": own,
            "target_position_ids": torch.where(columns[:, 1:] >= 0, following, own + 1),
        }

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


__all__ = ["CanvasRows", "check_canvas", "resolve_decoding_order"]
