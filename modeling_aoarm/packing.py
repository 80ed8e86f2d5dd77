# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Packed sequences: several examples in one row of the batch, told apart by `segment_ids`."""

from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.utils.generic import is_flash_attention_requested

from .compat_aoarm import require


def as_indices(name: str, value: Any, dimensions: tuple[int, ...], shape: tuple[int, int]) -> torch.Tensor:
    """`value` as int64 `[batch, rows, ...]`, one example's values serving all; a ValueError for anything else."""
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


def segment_starts(segment_ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The first rows of segments, which are runs of equal ids; a run of padding is a segment of its own.

    Args:
        segment_ids: integer `[batch, rows]`.
        real: bool `[batch, rows]`, which rows are not padding.

    Returns:
        bool `[batch, rows]`.
    """
    changes = (segment_ids[:, 1:] != segment_ids[:, :-1]) | (real[:, 1:] != real[:, :-1])
    return torch.nn.functional.pad(changes, (1, 0), value=True)


def packed_mask(
    config: PreTrainedConfig, inputs_embeds: torch.Tensor, starts: torch.Tensor, is_causal: bool
) -> tuple[Any, dict[str, Any]]:
    """The mask inside each segment, causal or not, in the form that the attention backend wants.

    The library's own packing goes by positions, and would take each jump of an order for a new segment.

    Args:
        config: the model's config, which names the backend.
        inputs_embeds: `[batch, rows, hidden]`.
        starts: bool `[batch, rows]`, see [`segment_starts`].
        is_causal: whether rows see only the rows up to their own.

    Returns:
        The mask, and further arguments for the attention interface.
    """
    batch, rows = starts.shape
    segment = starts.cumsum(1)

    def same_segment(example: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return segment[example, query] == segment[example, key]

    if is_causal:
        mask = create_causal_mask(config, inputs_embeds, None, None, and_mask_function=same_segment)
    else:
        mask = create_bidirectional_mask(config, inputs_embeds, None, and_mask_function=same_segment)
    if not is_flash_attention_requested(config):
        return mask, {}
    # Flash kernels take no mask: they are told where segments start in the flattened batch.
    first_rows = starts.flatten().nonzero().flatten()
    bounds = torch.cat([first_rows, first_rows.new_tensor([batch * rows])]).int()
    longest = int(bounds.diff().max())
    return mask, {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def segments_by_positions(
    position_ids: Any, target_position_ids: Any, attention_mask: Any, past_key_values: Any, shape: tuple[int, int]
) -> torch.Tensor | None:
    """The segments of a call whose positions begin with 0 and come back to it, which is how the library packs text.

    Positions mean that only where they are given alone: without targets, mask and cache. Examples without a second 0
    are one segment.

    Returns:
        int64 `[batch, rows]`, or `None` where no example is packed.
    """
    if any(each is not None for each in (target_position_ids, attention_mask, past_key_values)):
        return None
    if not isinstance(position_ids, torch.Tensor) or tuple(position_ids.shape) not in (shape, (1, shape[1])):
        # Refused elsewhere.
        return None
    is_zero = position_ids == 0
    is_packed = is_zero[:, 0] & (is_zero.sum(1) > 1)
    if not torch.compiler.is_compiling() and not is_packed.any():
        return None
    return torch.where(is_packed[:, None], is_zero.long().cumsum(1), 0)


def check_first_labels(labels: torch.Tensor, segment_ids: torch.Tensor, waits: bool) -> None:
    """Raises a ValueError unless the first label of each segment is -100: the row before belongs to another example."""
    is_first = segment_ids[:, 1:] != segment_ids[:, :-1]
    require(
        (~is_first | (labels[:, 1:] == -100)).all(),
        "`labels` must be -100 on the first row of each segment of `segment_ids`: the row before it belongs to another "
        "example. Got another label there.",
        waits,
    )


__all__ = ["as_indices", "check_first_labels", "packed_mask", "segment_starts", "segments_by_positions"]
