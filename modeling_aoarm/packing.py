# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Packed sequences: several examples in one row of the batch, told apart by `segment_ids`."""

from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.utils.generic import is_flash_attention_requested


def packed_causal_mask(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segment_ids: torch.Tensor,
) -> tuple[Any, dict[str, Any]]:
    """The causal mask inside each segment, in the form that the attention backend wants.

    Content positions say nothing about segments (the library would take each jump for a new one), so the mask is built
    from the rows' numbers within their segment. Padding becomes a segment of its own.

    Args:
        config: the model's config, which names the backend.
        inputs_embeds: `[batch, rows, hidden]`.
        attention_mask: `[batch, rows]`, 0 for padding, or `None`.
        segment_ids: integer `[batch, rows]`; a segment is a run of equal ids.

    Returns:
        The mask, and further arguments for the attention interface.
    """
    batch, rows = segment_ids.shape
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    if attention_mask is not None:
        real = attention_mask.bool()
        starts[:, 1:] |= real[:, 1:] != real[:, :-1]
    row = torch.arange(rows, device=segment_ids.device).expand(batch, rows)
    row_in_segment = row - torch.where(starts, row, 0).cummax(dim=1).values
    mask = create_causal_mask(config, inputs_embeds, None, None, position_ids=row_in_segment)
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


def check_first_labels(labels: torch.Tensor, segment_ids: torch.Tensor) -> None:
    """Raises a ValueError unless the first label of each segment is -100: the row before belongs to another example."""
    is_first = segment_ids[:, 1:] != segment_ids[:, :-1]
    if (is_first & (labels[:, 1:] != -100)).any():
        raise ValueError(
            "`labels` must be -100 on the first row of each segment of `segment_ids`: the row before it belongs to "
            "another example. Got another label there."
        )


__all__ = ["check_first_labels", "packed_causal_mask"]
