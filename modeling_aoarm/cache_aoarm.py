# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The key-value cache of canvas generation: one preallocated slot for each row of each example.

The library's caches give all examples of a batch the same next slot. Here examples advance at different speeds
(speculation accepts different numbers of drafts), and some rows only ask about further targets and are not kept. So
each call says which slots its rows are written to. A later call overwrites what was not kept, and nothing is copied to
make room.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.configuration_utils import PreTrainedConfig

from .canvas_aoarm import resolve_order, scatter_to_columns
from .compat_aoarm import keep_address


def align(keys: int) -> int:
    """Rounds up to a multiple of 8. Kernels on accelerators copy masks of other widths, in every layer."""
    return -(-keys // 8) * 8


def holds_canvases(cache: Any) -> bool:
    """Whether a cache, or `None`, is of canvases. Its class may come from another copy of this code (remote code)."""
    return getattr(cache, "holds_canvases", False)


class CanvasCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, `[batch, slots, heads, head_dim]`.

    Args:
        capacity: how many slots each example has for rows. One extra slot, number `capacity`, absorbs discarded writes.
        is_fixed: whether attention always reads all slots, so that shapes stay the same and a step can be compiled.
    """

    def __init__(self, capacity: int, is_fixed: bool):
        super().__init__()
        self.capacity = capacity
        self.is_compileable = is_fixed

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        batch, heads = key_states.shape[:2]
        self.device = key_states.device
        self.examples = torch.arange(batch, device=self.device)[:, None]
        # Under autocast keys and values differ in dtype.
        self.keys, self.values = (
            states.new_zeros(batch, align(self.capacity + 1), heads, states.shape[-1])
            for states in (key_states, value_states)
        )
        if self.is_compileable:
            keep_address(self.keys)
            keep_address(self.values)
        self.is_initialized = True

    def write(
        self, key_states: torch.Tensor, value_states: torch.Tensor, slots: torch.Tensor | slice, visible: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes states `[batch, heads, rows, head_dim]` to slots; returns those that the rows may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        index = (slice(None), slots) if isinstance(slots, slice) else (self.examples, slots.to(self.device))
        self.keys[index] = key_states.transpose(1, 2)
        self.values[index] = value_states.transpose(1, 2)
        if visible is None:
            return key_states, value_states
        return self.keys[:, :visible].transpose(1, 2), self.values[:, :visible].transpose(1, 2)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        raise ValueError(
            "The cache of canvases must be given to `generate`, which gives rows their slots in it; got a call of the "
            "model."
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.capacity


class CanvasCache(Cache):
    """The rows that `generate` has read. It is returned so that a longer canvas can be continued.

    In `two_stream` the cache depends only on the rows and their order. In single-stream variants each row's keys and
    values also belong to the row's target, which is the position of the next row.

    Args:
        layers: how many layers the model has.
        capacity: how many slots each example has.
        is_fixed: see [`CanvasCacheLayer`].

    Attributes, set when `generate` returns the cache:
        attention_variant: the model's.
        columns: int64 `[batch, rows]`, the canvas columns of an example's rows in generation order, -1 on the right.
        tokens: int64 `[batch, rows]`, their tokens.
        positions: int64 `[batch, rows]`, their content positions.
        lengths: int64 `[batch]`, how many of the rows, counted from the first, are in the cache.
    """

    # See [`holds_canvases`].
    holds_canvases = True

    def __init__(self, layers: int, capacity: int, is_fixed: bool = False):
        super().__init__(layers=[CanvasCacheLayer(capacity, is_fixed) for _ in range(layers)])
        self.capacity, self.is_fixed = capacity, is_fixed
        self.attention_variant: str | None = None
        self.columns: torch.Tensor | None = None
        self.tokens: torch.Tensor | None = None
        self.positions: torch.Tensor | None = None
        self.lengths: torch.Tensor | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.lengths is None else int(self.lengths.max())

    def check_continues(
        self, config: PreTrainedConfig, canvas: torch.Tensor, given: torch.Tensor, real: torch.Tensor
    ) -> None:
        """Raises a ValueError unless the cache holds rows of these canvases, read by a model like this one.

        Args:
            config: the model's.
            canvas: int64 `[batch, columns]`.
            given, real: bool `[batch, columns]`, which columns are context, and which are not padding.
        """
        variant_and_depth = config.attention_variant, config.num_hidden_layers
        if (self.attention_variant, len(self.layers)) != variant_and_depth:
            raise ValueError(
                f"`past_key_values` must come from a model of the same variant and depth, here {variant_and_depth}; "
                f"got {(self.attention_variant, len(self.layers))}."
            )
        columns, is_row = self.columns.clamp(min=0), self.columns >= 0
        if len(columns) != len(canvas) or int(columns.max()) >= canvas.shape[1]:
            raise ValueError(
                f"`past_key_values` must belong to the canvases that are continued: it knows {len(columns)} of up to "
                f"{int(columns.max()) + 1} columns, got `input_ids` of shape {list(canvas.shape)}."
            )
        positions = real.long().cumsum(1) - 1
        for name, values, expected in (
            ("given tokens", given, is_row),
            ("the same tokens", canvas, self.tokens),
            ("the same positions", positions, self.positions),
        ):
            broken = ((values.gather(1, columns) != expected) & is_row).any(1)
            if broken.any():
                raise ValueError(
                    f"`past_key_values` must find {name} in the columns that it knows; broken by example(s) "
                    f"{broken.nonzero().flatten().tolist()}."
                )

    def order_context(self, given: torch.Tensor) -> torch.Tensor:
        """Lists given columns, bool `[batch, columns]`: those that the cache knows first, then from left to right.

        Returns:
            int64 `[batch, given]`, -1 for padding.
        """
        is_known = scatter_to_columns(self.columns >= 0, self.columns, torch.zeros_like(given))
        rest = resolve_order("context_order", "left_to_right", given & ~is_known)
        return torch.cat([self.columns, rest], dim=1)

    def keep(self, examples: torch.Tensor) -> None:
        """Drops all examples except these, int64 `[examples]`."""
        for layer in self.layers:
            index = examples.to(layer.device)
            layer.keys, layer.values = layer.keys.index_select(0, index), layer.values.index_select(0, index)
            layer.examples = layer.examples[: len(index)]

    def select(
        self, examples: torch.Tensor, capacity: int | None = None, is_fixed: bool | None = None
    ) -> "CanvasCache":
        """Copies some examples, int64 `[examples]`, to a new cache, which may have another capacity."""
        capacity = self.capacity if capacity is None else capacity
        selected = CanvasCache(len(self.layers), capacity, self.is_fixed if is_fixed is None else is_fixed)
        kept = min(capacity, self.capacity)
        for old, new in zip(self.layers, selected.layers, strict=True):
            index = examples.to(old.device)
            no_rows = (states[index, :0].transpose(1, 2) for states in (old.keys, old.values))
            new.lazy_initialization(*no_rows)
            new.keys[:, :kept], new.values[:, :kept] = old.keys[index, :kept], old.values[index, :kept]
        return selected

    def insert(self, examples: torch.Tensor, other: "CanvasCache") -> None:
        """Overwrites the examples with these numbers, int64 `[examples]`, by all examples of another cache."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            index = examples.to(mine.device)
            mine.keys[index], mine.values[index] = theirs.keys, theirs.values


class CacheView(Cache):
    """A [`CanvasCache`] as one call of the model sees it.

    Args:
        cache: the cache.
        slots: int64 `[batch, rows]`, the slot of each row of the call; or a slice, the same slots for every example.
        rows: how many rows the call has.
        visible: how many slots, counted from the first, the rows may see. `None`: they see only each other, as the
            first rows of a canvas do.
    """

    holds_canvases = True

    def __init__(self, cache: CanvasCache, slots: torch.Tensor | slice, rows: int, visible: int | None):
        super().__init__(layers=cache.layers)
        self.slots, self.rows, self.visible = slots, rows, visible

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        return self.layers[layer_idx].write(key_states, value_states, self.slots, self.visible)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return (query_length if self.visible is None else self.visible), 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.visible is None else self.visible - self.rows


__all__ = ["CacheView", "CanvasCache", "align", "holds_canvases"]
