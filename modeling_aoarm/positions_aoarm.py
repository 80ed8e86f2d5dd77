# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Positions of rows in generation order: their defaults and checks, packed segments, and the attention mask.

Row r holds the token at its *content position* in the sentence. It predicts the token at its *target position*, which
is the content position of row r + 1.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.utils.generic import is_flash_attention_requested

from .cache_aoarm import holds_canvases
from .compat_aoarm import require
from .configuration_aoarm import TABLE_VARIANTS


# Additive masks hide a key with a value below this one; larger values are biases.
HIDDEN_BELOW = -1e3


def read_indices(name: str, value: Any, dimensions: tuple[int, ...], shape: tuple[int, int]) -> Tensor:
    """Returns the argument `name` as int64 `[batch, rows, ...]`. The values of one example serve the whole batch.

    Raises:
        ValueError: `value` is not a tensor of integers of `shape` `(batch, rows)` with one of these `dimensions`.
    """
    if not isinstance(value, Tensor) or value.is_floating_point() or value.dtype == torch.bool:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"`{name}` must be a tensor of integers, got {kind}.")
    batch, rows = shape
    if value.ndim not in dimensions or value.shape[0] not in (1, batch) or value.shape[1] != rows or 0 in value.shape:
        forms = " or ".join("[batch, rows]" if d == 2 else "[batch, rows, targets]" for d in dimensions)
        raise ValueError(
            f"`{name}` must have the shape {forms} with batch={batch} and rows={rows}; got {list(value.shape)}."
        )
    return value.long().expand(batch, *value.shape[1:])


# Packing


def resolve_segments(
    segment_ids: Any,
    position_ids: Any,
    target_position_ids: Any,
    attention_mask: Any,
    past_key_values: Cache | None,
    use_cache: bool | None,
    shape: tuple[int, int],
) -> Tensor | None:
    """Returns the packed segments of a call, int64 `[batch, rows]`, or `None` if no example is packed.

    If none are given, rows of `position_ids` that begin with 0 and come back to it are packed text, as in the library.
    This holds for positions without targets, mask and cache. An example without a second 0 is one segment.

    Raises:
        ValueError: for a wrong shape or dtype, and for segments together with a cache or a prepared mask.
    """
    subject = "`segment_ids` (packed sequences)"
    if segment_ids is None:
        # Positions of another form are refused later.
        has_shape = isinstance(position_ids, Tensor) and tuple(position_ids.shape) in (shape, (1, shape[1]))
        if not has_shape or any(each is not None for each in (target_position_ids, attention_mask, past_key_values)):
            return None
        is_zero = position_ids == 0
        is_packed = is_zero[:, 0] & (is_zero.sum(1) > 1)
        # A compiled call cannot read values. It counts as packed unless it makes a cache.
        is_unpacked = use_cache if torch.compiler.is_compiling() else not is_packed.any()
        if is_unpacked:
            return None
        segment_ids = torch.where(is_packed[:, None], is_zero.long().cumsum(1), 0)
        subject = "`position_ids` that come back to 0 are packed sequences, which"
    segment_ids = read_indices("segment_ids", segment_ids, (2,), shape)
    if past_key_values is not None or use_cache:
        kind = type(past_key_values).__name__
        raise ValueError(f"{subject} cannot be combined with a cache; got use_cache={use_cache} and {kind}.")
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            "`attention_mask` must have the shape [batch, rows] together with `segment_ids`, got "
            f"{list(attention_mask.shape)}."
        )
    return segment_ids


def make_attention_mask(
    config: PreTrainedConfig, embeds: Tensor, mask: Tensor | None, past_key_values: Cache | None, segment: Tensor | None
) -> tuple[Any, dict[str, Any]]:
    """Makes the mask of a call in the form that the attention backend takes.

    All variants except `bidirectional` use a causal mask over rows. The library's packing is not used, because it would
    take each jump of an order for a new segment.

    Args:
        config: the model's config, which names the variant and the backend.
        embeds: the rows' tokens, `[batch, rows, hidden]`.
        mask: the caller's, `[batch, keys]` or a prepared mask `[batch, 1, rows, keys]`.
        past_key_values: the cache.
        segment: int64 `[batch, rows]` or `None`, see [`RowPositions`].

    Returns:
        The mask, or `None` if the backend needs none; and more arguments for the attention interface.
    """
    in_segment, options = None, {}
    if mask is None and embeds.shape[1] == 1 and holds_canvases(past_key_values):
        # One row sees all rows of its canvas. The library returns the same, but slowly.
        return None, options
    if segment is not None:
        # Runs of padding are segments of their own, which makes the caller's mask redundant.
        mask = None

        def in_segment(example: Any, head: Any, query: Any, key: Any) -> Tensor:
            return segment[example, query] == segment[example, key]

    if config.attention_variant == "bidirectional":
        options["is_causal"] = False
        mask = create_bidirectional_mask(config, embeds, mask, and_mask_function=in_segment)
    else:
        # By position, because the cache's name differs between releases.
        mask = create_causal_mask(config, embeds, mask, past_key_values, and_mask_function=in_segment)
    if isinstance(mask, Tensor) and mask.dtype == torch.bool and config._attn_implementation == "eager":
        # Eager attention adds its mask to the scores.
        mask = torch.zeros_like(mask, dtype=embeds.dtype).masked_fill(~mask, torch.finfo(embeds.dtype).min)
    if segment is not None and is_flash_attention_requested(config):
        # Flash kernels take no mask. They are told where segments start in the flattened batch.
        starts = torch.nn.functional.pad(segment.diff(dim=1) != 0, (1, 0), value=True).flatten().nonzero().flatten()
        bounds = torch.cat([starts, starts.new_tensor([segment.numel()])]).int()
        longest = int(bounds.diff().max())
        options |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), bounds)
        options |= dict.fromkeys(("max_length_q", "max_length_k"), longest)
    return mask, options


# Positions


@dataclass
class RowPositions:
    """The positions of the rows of one call. The rows of a canvas, which `generate` checks, have only four fields.

    Args:
        content: int64 `[batch, rows]`.
        targets: int64 `[batch, rows, targets]`.
        targets_given: whether the caller gave the targets.
        has_several_targets: whether the caller gave them with the dimension `targets`.
        numbers: int64 `[batch, rows]`, the rows' numbers in the cache, padding counted.
        text: int64 `[batch, rows]`, the content positions that left-to-right text would have: how many rows of the
            example come before each row, padding not counted.
        real: bool `[batch, rows]`, which rows are not padding.
        continued: bool `[batch, rows - 1]`, whether the next row continues a row's example.
        segment: int64 `[batch, rows]`, the number of each row's packed segment, or `None` if nothing is packed. A run
            of padding is a segment of its own.
        sees: bool `[batch, rows, rows]`, which of this call's rows each row sees under a prepared mask, where rows may
            be alternatives for one position; else `None`.
    """

    content: Tensor
    targets: Tensor
    targets_given: bool
    has_several_targets: bool
    numbers: Tensor | None = None
    text: Tensor | None = None
    real: Tensor | None = None
    continued: Tensor | None = None
    segment: Tensor | None = None
    sees: Tensor | None = None

    @classmethod
    def resolve(
        cls,
        position_ids: Tensor | None,
        target_position_ids: Tensor | None,
        attention_mask: Any,
        segment_ids: Tensor | None,
        past_key_values: Cache | None,
        shape: tuple[int, int],
        device: torch.device,
    ) -> "RowPositions":
        """Fills in the positions that a call left out.

        Content positions default to 0, 1, 2, ..., continuing after the cache and starting again in each segment.
        Targets default to the next row's content position, and to the own position + 1 on the last row of a call, of
        an example (before padding) and of a segment. Under a prepared mask the next row is the one that sees a row and
        one row more, wherever it is.

        Args:
            position_ids: integer `[batch or 1, rows]`.
            target_position_ids: integer `[batch or 1, rows]` or `[batch or 1, rows, targets]`.
            attention_mask: `[batch, past rows + rows]`, 0 for padding; a prepared mask `[batch, 1, rows, keys]`, bool
                or additive, in which padding does not see itself; or a mask of another form, which is not read.
            segment_ids: int64 `[batch, rows]`.
            past_key_values: the cache with the rows before.
            shape, device: `(batch, rows)`, and where new tensors are made.

        Raises:
            ValueError: for a wrong shape or dtype, and for targets that a prepared mask leaves open.
        """
        # A static cache counts in a tensor. Reading it would wait for the device.
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        numbers = (torch.arange(shape[1], device=device) + past).expand(shape)
        real, text, seen_keys = _read_mask(attention_mask, numbers, past)
        segment = None
        if segment_ids is not None:
            changes = (segment_ids[:, 1:] != segment_ids[:, :-1]) | (real[:, 1:] != real[:, :-1])
            starts = torch.nn.functional.pad(changes, (1, 0), value=True)
            segment, text = starts.cumsum(1), numbers - torch.where(starts, numbers, 0).cummax(dim=1).values
        if position_ids is not None:
            content = read_indices("position_ids", position_ids, (2,), shape)
        else:
            content = numbers if segment is None else text

        sees = None
        if seen_keys is None:
            continued = real[:, 1:] & real[:, :-1]
            if segment is not None:
                continued &= segment[:, 1:] == segment[:, :-1]
            following = torch.where(continued, content[:, 1:], content[:, :-1] + 1)
            targets = torch.cat([following, content[:, -1:] + 1], dim=1)
        else:
            # Padding may see other rows, but follows none.
            sees = seen_keys.gather(2, numbers[:, None].expand(-1, shape[1], -1)) & real[..., None]
            continued, targets, is_clear = _find_next_rows(sees, text, content)
            if target_position_ids is None and not torch.compiler.is_compiling():
                message = (
                    "`target_position_ids` must be given where a prepared `attention_mask` lets several rows come next "
                    "to one and their `position_ids` differ. Got `target_position_ids=None`."
                )
                require(is_clear, message, waits=device.type == "cpu")
        is_given = target_position_ids is not None
        if is_given:
            targets = read_indices("target_position_ids", target_position_ids, (2, 3), shape)
        several = targets.ndim == 3
        targets = targets if several else targets[..., None]
        return cls(content, targets, is_given, several, numbers, text, real, continued, segment, sees)

    def tell_segments_apart(self, positions: Tensor) -> Tensor:
        """Makes positions, int64 `[batch, rows, targets]`, differ between packed segments."""
        return positions if self.segment is None else (self.segment << 32)[..., None] + positions

    def sort_positions(self) -> tuple[Tensor, Tensor]:
        """Sorts the content positions, kept apart by segment. Returns them and their rows, int64 `[batch, rows]`."""
        # Each row of padding gets a negative position of its own. Other positions are at least -1.
        padding = -2 - torch.arange(self.content.shape[1], device=self.content.device)
        return torch.where(self.real, self.tell_segments_apart(self.content[..., None])[..., 0], padding).sort(dim=1)

    def find_left_neighbors(self, has_cache: bool, waits: bool) -> Tensor:
        """Finds the rows that hold the tokens left of the targets, int64 `[batch, rows, targets]`; -1 for none.

        Row r with target t looks for content position t - 1 among the rows that it sees, the real rows of its example
        up to r. In left-to-right text it finds itself.

        Raises:
            ValueError: the token left of a target may be in the cache, which does not tell the positions of its rows.
        """
        rows = self.content.shape[1]
        own = torch.arange(rows, device=self.content.device)[:, None]
        wanted = self.targets - 1
        # Text that continues after padding may have a position twice. The own row comes first.
        is_own = wanted == self.content[..., None]
        if self.sees is not None:
            is_there = (self.content[:, None, None] == wanted[..., None]) & self.sees[:, :, None]
            is_found, found = is_there.any(-1), is_there.byte().argmax(-1)
        else:
            positions, by_position = self.sort_positions()
            asked = self.tell_segments_apart(wanted).flatten(1)
            nearest = torch.searchsorted(positions, asked).clamp(max=rows - 1)
            is_found = (positions.gather(1, nearest) == asked).view_as(wanted) & (wanted >= 0)
            found = by_position.gather(1, nearest).view_as(wanted)
        if has_cache:
            is_first_call = self.numbers[:, :1, None] == 0
            require(
                (is_own | is_found | (wanted < 0) | ~self.real[..., None] | is_first_call).all(),
                "`query_input_ids` must be given where a cache is used and the token left of a target (at "
                "`target_position_ids` - 1) is not among the rows of the call: it may be in the cache. Give it, or -1 "
                "where no row up to the own one holds it. Got `query_input_ids=None`.",
                waits,
            )
        return own.where(is_own, found.where(is_found & (found <= own), -1))

    def check(self, config: PreTrainedConfig, has_cache: bool, waits: bool) -> None:
        """Refuses positions that the model cannot take, and default targets that may not be meant.

        Args:
            config: names the variant and the number of positions, `max_position_embeddings`. Variants without tables
                take longer left-to-right text, like Llama.
            has_cache: whether the call uses a cache.
            waits: whether to wait for the device. If not, the device reports broken rules later, without values.

        Raises:
            ValueError: for positions outside the table, a position that comes twice in one example, an order that is
                not the identity in `causal`, and a cached call whose targets cannot be known.
        """
        table, variant = config.max_position_embeddings, config.attention_variant
        has_table = variant in TABLE_VARIANTS
        if waits and self.targets_given and self.content.shape[1] == 1 and not has_table:
            # In a step of the library's `generate` each row predicts the next position. After a right-padded prompt it
            # continues from the position of the padding, so the rules below do not hold.
            own = self.content[..., None]
            if ((self.targets == own + 1) & (own >= 0)).all():
                return
        padding = ~self.real
        limits = {"position_ids": (self.content[..., None], table - 1), "target_position_ids": (self.targets, table)}
        outside = {
            name: ((values < 0) | (values > largest)) & self.real[..., None]
            for name, (values, largest) in limits.items()
        }
        # Positions of left-to-right text may count padding or not.
        is_numbered = ((self.content == self.text) | padding).all() | ((self.content == self.numbers) | padding).all()
        predicts_next = ((self.targets[..., 0] == self.content + 1) | padding).all()
        has_any_length = is_numbered & (not has_table and (predicts_next | (not self.targets_given)))

        # The first broken rule is reported.
        broken = {name: is_outside.any() & ~has_any_length for name, is_outside in outside.items()}
        if variant == "causal" or (has_cache and not self.targets_given):
            in_order = ((self.content.diff(dim=1) == 1) | ~self.continued).all()
            in_order &= is_numbered | (self.numbers[:, :1] == 0).all()
            rule = "causal" if variant == "causal" else "unknown"
            broken[rule] = ~in_order | (~predicts_next & (variant == "causal"))
        if self.sees is None:
            repeats = (self.sort_positions()[0].diff(dim=1) == 0).any()
            # The library's `generate` continues padded prompts from the position of the padding.
            runs = self.real[:, 0] + (self.real[:, 1:] & padding[:, :-1]).sum(1)
            broken["repeated"] = repeats & ~(predicts_next & self.targets_given & (runs > 1).any())
        are_broken = torch.stack(list(broken.values()))
        if not waits:
            message = "`position_ids` or `target_position_ids` break a rule; run the batch on a CPU to learn which."
            require(~are_broken.any(), message, waits)
            return
        # All rules are read together, because each read waits for the device.
        rule = next((rule for rule, is_broken in zip(broken, are_broken.tolist(), strict=True) if is_broken), None)
        if rule in limits:
            values, largest = limits[rule]
            value = values[outside[rule]][0]
            raise ValueError(
                f"`{rule}` must lie in [0, {largest}], as `max_position_embeddings` is {table}; got {value}."
            )
        if rule == "causal":
            raise ValueError(
                "attention_variant='causal' takes the identity order only: `position_ids` must rise by 1 and "
                "`target_position_ids` be the next positions, got other ones."
            )
        if rule == "repeated":
            raise ValueError(
                "`position_ids` must not hold a position twice in one example; examples packed behind each other need "
                f"`segment_ids`. Got {self.content[:4].tolist()}."
            )
        if rule == "unknown":
            raise ValueError(
                "`target_position_ids` must be given when a cache is used and `position_ids` are not consecutive: the "
                "next row may come in a later call. Got `target_position_ids=None`."
            )


def _read_mask(attention_mask: Any, numbers: Tensor, past: int | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the fields `real` and `text` of [`RowPositions`], and under a prepared mask which keys each row sees.

    The keys are bool `[batch, rows, keys]`, or `None`.
    """
    batch, rows = numbers.shape
    dimensions = attention_mask.ndim if isinstance(attention_mask, Tensor) else 0
    if dimensions == 2:
        if isinstance(past, int) and attention_mask.shape != (batch, past + rows):
            raise ValueError(
                f"`attention_mask` must have the shape [batch, past rows + rows], here [{batch}, {past + rows}]; "
                f"got {list(attention_mask.shape)}."
            )
        is_real = attention_mask.bool()
        return is_real[:, -rows:], is_real.cumsum(1)[:, -rows:] - 1, None
    if dimensions == 4:
        if attention_mask.shape[2] != rows or (isinstance(past, int) and attention_mask.shape[3] < past + rows):
            raise ValueError(
                "A prepared `attention_mask` must have the shape [batch, 1, rows, past rows + rows], here "
                f"[{batch}, 1, {rows}, {past + rows}] or with more keys; got {list(attention_mask.shape)}."
            )
        seen = attention_mask[:, 0] if attention_mask.dtype == torch.bool else attention_mask[:, 0] > HIDDEN_BELOW
        seen = seen.expand(batch, -1, -1)
        return seen.gather(2, numbers[..., None])[..., 0], seen.sum(-1) - 1, seen
    return torch.ones_like(numbers, dtype=torch.bool), numbers, None


def _find_next_rows(sees: Tensor, text: Tensor, content: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the rows that come next under a prepared mask: those that see a row and one row more, as in a tree.

    The arguments are fields of [`RowPositions`]. Returns the field `continued`; each row's default target, int64
    `[batch, rows]`; and whether all rows that come next to one row have the same position, a bool scalar.
    """
    is_next = sees.transpose(1, 2) & (text[:, None] == text[..., None] + 1)
    has_next, positions = is_next.any(-1), content[:, None].expand_as(is_next)
    first = positions.masked_fill(~is_next, torch.iinfo(torch.int64).max).amin(-1)
    last = positions.masked_fill(~is_next, -1).amax(-1)
    return is_next.diagonal(1, 1, 2), first.where(has_next, content + 1), (~has_next | (first == last)).all()


__all__ = ["RowPositions", "make_attention_mask", "read_indices", "resolve_segments"]
