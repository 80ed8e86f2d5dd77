# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Where rows stand and what they predict: the defaults and the checks of content and target positions.

Rows come in generation order. Row r holds a token whose place in the sentence is its *content position*; it predicts
the token whose place is its *target position*: the content position of row r + 1.
"""

import torch
from transformers.cache_utils import Cache


def real_rows(attention_mask: torch.Tensor | None, rows: int) -> torch.Tensor | None:
    """Which of this call's rows are not padding.

    Args:
        attention_mask: `[batch, past rows + rows]`, 0 for padding. `None` and prepared 4-D masks say nothing.
        rows: number of rows of this call.

    Returns:
        bool `[batch, rows]`, or `None` where the mask says nothing.
    """
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        return None
    return attention_mask[:, -rows:].bool()


def resolve_positions(
    position_ids: torch.Tensor | None,
    target_position_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    segment_ids: torch.Tensor | None,
    past_key_values: Cache | None,
    shape: tuple[int, int],
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fills in the positions that a call left out.

    Content positions default to 0, 1, 2, ..., continuing after the cache. Targets default to the next row's content
    position, and to the own position + 1 on the last row of a call, of an example (before padding) and of a segment.

    Args:
        position_ids: integer `[batch or 1, rows]` or `None`.
        target_position_ids: integer `[batch or 1, rows]`, `[batch or 1, rows, targets]` or `None`.
        attention_mask: see [`real_rows`].
        segment_ids: integer `[batch, rows]` or `None`.
        past_key_values: the cache, whose rows precede this call's, or `None`.
        shape: `(batch, rows)`.
        device: where new positions are made.

    Returns:
        `(position_ids, target_position_ids)`, int64 `[batch, rows]` and `[batch, rows]` or `[batch, rows, targets]`.

    Raises:
        ValueError: for a wrong shape or dtype.
    """
    batch, rows = shape
    if position_ids is None:
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        position_ids = (torch.arange(rows, device=device) + past)[None].expand(batch, rows)
    else:
        position_ids = _as_indices("position_ids", position_ids, (2,), shape)
    if target_position_ids is not None:
        return position_ids, _as_indices("target_position_ids", target_position_ids, (2, 3), shape)

    own_next = position_ids + 1
    following = position_ids[:, 1:]
    real = real_rows(attention_mask, rows)
    if real is not None:
        following = torch.where(real[:, :-1] & ~real[:, 1:], own_next[:, :-1], following)
    if segment_ids is not None:
        following = torch.where(segment_ids[:, :-1] != segment_ids[:, 1:], own_next[:, :-1], following)
    return position_ids, torch.cat([following, own_next[:, -1:]], dim=1)


def check_position_range(name: str, positions: torch.Tensor, real: torch.Tensor | None, largest: int) -> None:
    """Raises a ValueError unless all positions of real rows lie in `[0, largest]`."""
    if real is not None:
        positions = positions.masked_fill(~real.reshape(real.shape + (1,) * (positions.ndim - 2)), 0)
    low, high = positions.aminmax()
    if low < 0 or high > largest:
        value = low if low < 0 else high
        raise ValueError(
            f"`{name}` must lie in [0, {largest}] (`max_position_embeddings` sets the end of the table), got {value}."
        )


def are_left_to_right(
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segment_ids: torch.Tensor | None,
    past_key_values: Cache | None,
) -> bool:
    """Whether each real row stands one position after the row before it, in this call or in the cache.

    Args:
        position_ids: int64 `[batch, rows]`.
        attention_mask: see [`real_rows`].
        segment_ids: integer `[batch, rows]` or `None`; each segment counts for itself.
        past_key_values: the cache or `None`. Rows after it must continue 0, 1, 2, ...; without one (or after an empty
            one) they may start anywhere.
    """
    rows = position_ids.shape[1]
    real = real_rows(attention_mask, rows)
    steps = position_ids[:, 1:] - position_ids[:, :-1] == 1
    if real is not None:
        steps = steps | ~(real[:, 1:] & real[:, :-1])
    if segment_ids is not None:
        steps = steps | (segment_ids[:, 1:] != segment_ids[:, :-1])
    if not steps.all():
        return False
    past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
    if past == 0 or (attention_mask is not None and real is None):
        return True
    if real is None:
        return bool((position_ids[:, 0] == past).all())
    expected = attention_mask[:, : past + rows].long().cumsum(1)[:, -rows:] - 1
    counted = (position_ids == expected) | ~real
    unpadded = position_ids == past + torch.arange(rows, device=position_ids.device)
    return bool((counted | unpadded).all())


def _as_indices(name: str, value: torch.Tensor, dimensions: tuple[int, ...], shape: tuple[int, int]) -> torch.Tensor:
    """`value` as int64 with the batch dimension filled in, or a ValueError."""
    if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.dtype == torch.bool:
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"`{name}` must be a tensor of integers, got {kind}.")
    batch, rows = shape
    if value.ndim not in dimensions or value.shape[0] not in (1, batch) or value.shape[1] != rows or 0 in value.shape:
        forms = " or ".join("[batch, rows]" if d == 2 else "[batch, rows, targets]" for d in dimensions)
        raise ValueError(
            f"`{name}` must have the shape {forms} with batch={batch} and rows={rows}; got {list(value.shape)}."
        )
    return value.long().expand(batch, *value.shape[1:])


__all__ = ["are_left_to_right", "check_position_range", "real_rows", "resolve_positions"]
