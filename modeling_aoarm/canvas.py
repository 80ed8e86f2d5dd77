# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Canvases: sentences with blanks, in sentence order, and the rows in generation order that they turn into.

A canvas is `[batch, columns]`. Which columns are blank is a boolean mask, never a token id, so a prompt may hold any
token, the mask token included. Rows are named by the columns that they come from: given columns first, in sentence
order, then the blanks in decoding order.
"""

import torch


def check_canvas(
    input_ids: torch.Tensor,
    generation_mask: torch.Tensor,
    attention_mask: torch.Tensor | None,
    max_position_embeddings: int,
) -> torch.Tensor:
    """Checks a batch of canvases.

    Args:
        input_ids: integer `[batch, columns]`; what stands in a blank is not read.
        generation_mask: bool `[batch, columns]`, True for blanks.
        attention_mask: `[batch, columns]`, 0 for padding, or `None` for no padding.
        max_position_embeddings: the most columns, padding not counted, that an example may have.

    Returns:
        Which columns are not padding, bool `[batch, columns]`.

    Raises:
        ValueError: for a wrong shape or dtype, a blank in a padded column, an example without any given token, and
            one that is too long.
    """
    if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2:
        got = list(input_ids.shape) if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        raise ValueError(f"`input_ids` must be a tensor of shape [batch, columns], got {got}.")
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
    elif attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"`attention_mask` must have the shape of `input_ids`, {list(input_ids.shape)}; "
            f"got {list(attention_mask.shape)}."
        )
    else:
        real = attention_mask.bool()
    for rule, broken in (
        ("`generation_mask` must not mark padded columns (`attention_mask` 0)", (generation_mask & ~real).any(1)),
        ("`generation_mask` must leave at least one given token in each canvas", ~(real & ~generation_mask).any(1)),
        (
            f"`input_ids` must have at most max_position_embeddings={max_position_embeddings} unpadded columns",
            real.sum(1) > max_position_embeddings,
        ),
    ):
        if broken.any():
            raise ValueError(f"{rule}; broken by example(s) {broken.nonzero().flatten().tolist()}.")
    return real


def resolve_decoding_order(
    decoding_order: str | torch.Tensor, generation_mask: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """The blanks' columns in the order in which they are filled.

    Args:
        decoding_order: `"left_to_right"`, `"random"` (uniform over orders, drawn for each example), or int64
            `[batch, blanks]`: each example's blank columns, each once, filled with -1 on the right.
        generation_mask: bool `[batch, columns]`, True for blanks.
        generator: random numbers for `"random"`; the global ones by default.

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
            keys = torch.rand(generation_mask.shape, generator=generator, device=device)
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
            f"{decoding_order.tolist()} for {counts.tolist()} blanks and {columns} columns."
        )
    times = torch.zeros(batch, columns, dtype=torch.int64, device=device)
    times.scatter_add_(1, order.clamp(min=0), filled.long())
    if (times != generation_mask.long()).any():
        raise ValueError(
            "`decoding_order` must name each blank of its example exactly once and nothing else (repeated, missing or "
            f"given columns are not allowed); got {decoding_order.tolist()}."
        )
    return order[:, :width]


def context_columns(given: torch.Tensor) -> torch.Tensor:
    """The given columns in sentence order, filled with -1 on the left.

    With the filling on the left every example's last given column stands in the last place.

    Args:
        given: bool `[batch, columns]`, with at least one True in each example.

    Returns:
        int64 `[batch, most given]`.
    """
    width = int(given.sum(1).max())
    order = given.long().argsort(dim=1, stable=True)[:, -width:]
    return order.masked_fill(~given.gather(1, order), -1)


def columns_to_positions(columns: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Content positions of rows: padding is not counted, rows of padding (-1) get 0. int64, the shape of `columns`."""
    positions = real.long().cumsum(1) - 1
    return positions.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, 0)


__all__ = ["check_canvas", "columns_to_positions", "context_columns", "resolve_decoding_order"]
