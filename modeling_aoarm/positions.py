# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Where rows stand and what they predict: the defaults and the checks of content and target positions.

Rows come in generation order. Row r holds a token whose place in the sentence is its *content position*; it predicts
the token whose place is its *target position*: the content position of row r + 1.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig


def real_rows(attention_mask: Any, rows: int) -> torch.Tensor | None:
    """Which of this call's rows are not padding: bool `[batch, rows]`.

    Args:
        attention_mask: `[batch, past rows + rows]`, 0 for padding; `None` is returned for anything else.
        rows: number of rows of this call.
    """
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        return None
    return attention_mask[:, -rows:].bool()


def resolve_positions(
    config: PreTrainedConfig,
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
        config: the model's config.
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
        ValueError: for a wrong shape or dtype, and for more rows than the table has positions.
    """
    batch, rows = shape
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    # Static caches count in a tensor, which is not read here: that would wait for the device.
    seen = past + rows if isinstance(past, int) else None
    if seen is not None and isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        if attention_mask.shape != (batch, seen):
            raise ValueError(
                f"`attention_mask` must have the shape [batch, past rows + rows], here [{batch}, {seen}]; got "
                f"{list(attention_mask.shape)}."
            )
    if position_ids is None:
        if seen is not None and seen > config.max_position_embeddings:
            raise ValueError(
                "`position_ids` must lie in [0, max_position_embeddings), but by default "
                f"{seen} rows need more than max_position_embeddings={config.max_position_embeddings}."
            )
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


def check_positions(
    config: PreTrainedConfig,
    position_ids: torch.Tensor,
    target_position_ids: torch.Tensor,
    targets_given: bool,
    attention_mask: Any,
    segment_ids: torch.Tensor | None,
    past_key_values: Cache | None,
) -> None:
    """Refuses positions outside the table, and those whose targets cannot be what is meant.

    Args:
        config: names the variant and the size of the table.
        position_ids: int64 `[batch, rows]`.
        target_position_ids: int64 `[batch, rows, targets]`.
        targets_given: whether the targets are the caller's own.
        attention_mask: `[batch, past rows + rows]`, a prepared mask of another form, or `None`.
        segment_ids: integer `[batch, rows]` or `None`.
        past_key_values: the cache or `None`.

    Raises:
        ValueError: as said.
    """
    past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    real, places = _real_rows_and_places(attention_mask, past, position_ids)
    table = config.max_position_embeddings
    for name, positions, largest in (
        ("position_ids", position_ids, table - 1),
        ("target_position_ids", target_position_ids.amin(-1), table),
        ("target_position_ids", target_position_ids.amax(-1), table),
    ):
        outside = positions[((positions < 0) | (positions > largest)) & real]
        if outside.numel():
            raise ValueError(
                f"`{name}` must lie in [0, {largest}], as `max_position_embeddings` is {table}; got {outside[0]}."
            )
    if past_key_values is None and config.attention_variant != "causal":
        return

    same_example = real[:, 1:] & real[:, :-1]
    if segment_ids is not None:
        same_example &= segment_ids[:, 1:] == segment_ids[:, :-1]
    in_order = ((position_ids.diff(dim=1) == 1) | ~same_example).all()
    if past > 0:
        # Positions may count padding or not: both are used for left-to-right text.
        counted = past + torch.arange(position_ids.shape[1], device=position_ids.device)
        in_order &= ((position_ids == places) | (position_ids == counted) | ~real).all()
    if config.attention_variant == "causal":
        if not in_order or ((target_position_ids[..., 0] != position_ids + 1) & real).any():
            raise ValueError(
                "attention_variant='causal' takes the identity order only: `position_ids` must rise by 1 and "
                "`target_position_ids` be the next positions, got other ones."
            )
    elif not in_order and not targets_given:
        raise ValueError(
            "`target_position_ids` must be given when a cache is used and `position_ids` are not consecutive: the "
            "next row may come in a later call. Got `target_position_ids=None`."
        )


def _real_rows_and_places(
    attention_mask: Any, past: int, position_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows are real, and how many real rows come before each: bool and int64 `[batch, rows]`.

    Prepared masks `[batch, 1, rows, keys]`, bool or additive, tell it too: padding does not see itself, and a causal
    row sees the real rows before it and itself.
    """
    rows = position_ids.shape[1]
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        mask = attention_mask[:, : past + rows].bool()
        return mask[:, past:], mask.long().cumsum(1)[:, past:] - 1
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4:
        sees = attention_mask[:, 0] if attention_mask.dtype == torch.bool else attention_mask[:, 0] == 0
        return sees.diagonal(past, 1, 2)[:, :rows], sees.sum(-1) - 1
    places = past + torch.arange(rows, device=position_ids.device)
    return torch.ones_like(position_ids, dtype=torch.bool), places.expand_as(position_ids)


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


__all__ = ["check_positions", "resolve_positions"]
