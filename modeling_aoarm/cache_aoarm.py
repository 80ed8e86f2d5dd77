# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The key-value cache of canvas generation: a preallocated slot for every row of every example.

The library's caches give all examples of a batch the same next slot. Here examples move on at different speeds
(speculation accepts different numbers of drafts), questions about several targets are asked by rows that are not kept,
and nothing is ever copied to make room: each call says which slots its rows go to, and later calls overwrite what was
not kept.
"""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .compat_aoarm import keep_address


def aligned(keys: int) -> int:
    """The next multiple of 8: kernels on devices would copy masks whose rows are of other lengths, in every layer."""
    return -(-keys // 8) * 8


class CanvasCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, `[batch, slots, heads, head_dim]`.

    Args:
        capacity: how many slots each example has for rows; slot `capacity`, behind them, takes what is not to be kept.
        fixed: whether attention always reads all slots, so that shapes stay the same and a step can be compiled.
    """

    def __init__(self, capacity: int, fixed: bool):
        super().__init__()
        self.capacity = capacity
        self.is_compileable = fixed
        self.slots: torch.Tensor | slice | None = None
        self.visible: int | None = None
        self.past = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        batch, heads = key_states.shape[:2]
        self.device = key_states.device
        self.examples = torch.arange(batch, device=self.device)[:, None]
        # Under autocast keys and values differ in dtype.
        self.keys, self.values = (
            states.new_zeros(batch, aligned(self.capacity + 1), heads, states.shape[-1])
            for states in (key_states, value_states)
        )
        if self.is_compileable:
            keep_address(self.keys)
            keep_address(self.values)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes states `[batch, heads, rows, head_dim]` to the slots of this call; returns what its rows may see."""
        if self.slots is None:
            raise ValueError(
                "The cache of canvases must be given to `generate`, which places rows in it; got a call of the model."
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if isinstance(self.slots, slice):
            place = (slice(None), self.slots)
        else:
            place = (self.examples, self.slots.to(self.device))
        self.keys[place] = key_states.transpose(1, 2)
        self.values[place] = value_states.transpose(1, 2)
        if self.visible is None:
            return key_states, value_states
        return self.keys[:, : self.visible].transpose(1, 2), self.values[:, : self.visible].transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self.visible is None else self.visible), 0

    def get_seq_length(self) -> int:
        return self.past

    def get_max_length(self) -> int:
        return self.capacity


class CanvasCache(Cache):
    """What `generate` keeps of the rows that it has read, and returns so that a longer canvas can be continued.

    In `two_stream` the cache depends on the rows and their order only. In single-stream variants each row's keys and
    values also belong to the target that the row had, the place of the row after it.

    Args:
        layers: how many layers the model has.
        capacity: how many slots each example has.
        fixed: see [`CanvasCacheLayer`].

    Attributes, set when `generate` returns the cache:
        attention_variant: the model's.
        columns: int64 `[batch, rows]`, the canvas columns of an example's rows in generation order, -1 on the right.
        tokens: int64 `[batch, rows]`, their tokens.
        positions: int64 `[batch, rows]`, their content positions.
        lengths: int64 `[batch]`, how many of the rows, the first ones, are in the cache.
    """

    # By this, not by its class, a cache is known that another copy of this code has made (remote code).
    holds_canvases = True

    def __init__(self, layers: int, capacity: int, fixed: bool = False):
        super().__init__(layers=[CanvasCacheLayer(capacity, fixed) for _ in range(layers)])
        self.capacity, self.fixed = capacity, fixed
        self.attention_variant: str | None = None
        self.columns: torch.Tensor | None = None
        self.tokens: torch.Tensor | None = None
        self.positions: torch.Tensor | None = None
        self.lengths: torch.Tensor | None = None

    def place(self, slots: torch.Tensor | slice, rows: int, visible: int | None) -> None:
        """Says where the next call's rows go.

        Args:
            slots: int64 `[batch, rows]`, of which `capacity` means nowhere; or the same slots for every example.
            rows: how many there are.
            visible: how many slots, the first ones, the rows may see; `None` means that they see each other only, as
                the first rows of a canvas do.
        """
        for layer in self.layers:
            layer.slots, layer.visible = slots, visible
            layer.past = 0 if visible is None else visible - rows

    def keep(self, examples: torch.Tensor) -> None:
        """Drops all examples but these, int64 `[examples]`."""
        for layer in self.layers:
            index = examples.to(layer.device)
            layer.keys, layer.values = layer.keys.index_select(0, index), layer.values.index_select(0, index)
            layer.examples = layer.examples[: len(index)]

    def take(self, examples: torch.Tensor, capacity: int | None = None, fixed: bool | None = None) -> "CanvasCache":
        """A cache of its own for some of the examples, int64 `[examples]`, perhaps with other capacity."""
        capacity = self.capacity if capacity is None else capacity
        taken = CanvasCache(len(self.layers), capacity, self.fixed if fixed is None else fixed)
        kept = min(capacity, self.capacity)
        for old, new in zip(self.layers, taken.layers, strict=True):
            index = examples.to(old.device)
            # States as the model makes them, of no row.
            empty = (states[index, :0].transpose(1, 2) for states in (old.keys, old.values))
            new.lazy_initialization(*empty)
            new.keys[:, :kept], new.values[:, :kept] = old.keys[index, :kept], old.values[index, :kept]
        return taken

    def describe(
        self,
        attention_variant: str,
        columns: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        lengths: torch.Tensor,
    ) -> None:
        """Takes down whose keys and values these are, see the attributes."""
        self.attention_variant = attention_variant
        self.columns, self.tokens, self.positions, self.lengths = columns, tokens, positions, lengths
        for layer in self.layers:
            layer.slots, layer.past = None, int(lengths.max())

    def put(self, examples: torch.Tensor, other: "CanvasCache") -> None:
        """Writes another cache's examples over those of the given numbers, int64 `[examples]`."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            index = examples.to(mine.device)
            mine.keys[index], mine.values[index] = theirs.keys, theirs.values


__all__ = ["CanvasCache"]
