# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Where rows stand and what they predict: the defaults and the checks of content and target positions.

Rows come in generation order. Row r holds a token whose place in the sentence is its *content position*; it predicts
the token whose place is its *target position*: the content position of row r + 1.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.utils.generic import is_flash_attention_requested

from .compat_aoarm import require
from .configuration_aoarm import TABLE_VARIANTS


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


# Additive masks hide what has less than this; what has more is a bias.
HIDDEN_BELOW = -1e3


@dataclass
class RowPositions:
    """The positions of one call's rows, the caller's own or the defaults.

    Args:
        content: int64 `[batch, rows]`.
        targets: int64 `[batch, rows]`, or `[batch, rows, targets]` where several were given.
        real: bool `[batch, rows]`, which rows are not padding. What is needed for checks only may be left out.
        continued: bool `[batch, rows - 1]`, which rows have the row behind them as their next one.
        places: int64 `[batch, rows]`, how many real rows of its example come before each row, those in the cache
            included: the content positions of left-to-right text.
        starts: bool `[batch, rows]`, the first rows of packed segments (and of runs of padding); `None` if not packed.
        targets_given: whether the targets are the caller's own.
        sees: bool `[batch, rows, rows]`, which of this call's rows each row sees, where the caller has prepared the
            mask, with which rows may be alternatives to each other.
    """

    content: torch.Tensor
    targets: torch.Tensor
    real: torch.Tensor | None = None
    continued: torch.Tensor | None = None
    places: torch.Tensor | None = None
    starts: torch.Tensor | None = None
    targets_given: bool = False
    sees: torch.Tensor | None = None

    @classmethod
    def resolve(
        cls,
        position_ids: torch.Tensor | None,
        target_position_ids: torch.Tensor | None,
        attention_mask: Any,
        segment_ids: torch.Tensor | None,
        past_key_values: Cache | None,
        shape: tuple[int, int],
        device: torch.device,
    ) -> "RowPositions":
        """Fills in what a call left out.

        Content positions default to 0, 1, 2, ..., continuing after the cache and starting again in each segment.
        Targets default to the next row's content position, and to the own position + 1 on the last row of a call, of
        an example (before padding) and of a segment. Under a prepared mask the next row is the one that sees a row and
        one row more, wherever it is.

        Args:
            position_ids: integer `[batch or 1, rows]` or `None`.
            target_position_ids: integer `[batch or 1, rows]`, `[batch or 1, rows, targets]` or `None`.
            attention_mask: `[batch, past rows + rows]`, 0 for padding; a prepared mask `[batch, 1, rows, keys]`, bool
                or additive, in which padding does not see itself; or a mask of another form, which tells nothing.
            segment_ids: int64 `[batch, rows]` or `None`.
            past_key_values: the cache, whose rows precede this call's, or `None`.
            shape: `(batch, rows)`.
            device: where new positions are made.

        Raises:
            ValueError: for a wrong shape or dtype.
        """
        batch, rows = shape
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        # Static caches count in a tensor, which is not read here: that would wait for the device.
        counted = (torch.arange(rows, device=device) + past).expand(batch, rows)
        real, places, starts, sees = torch.ones_like(counted, dtype=torch.bool), counted, None, None
        is_prepared = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            if isinstance(past, int) and attention_mask.shape != (batch, past + rows):
                raise ValueError(
                    f"`attention_mask` must have the shape [batch, past rows + rows], here [{batch}, {past + rows}]; "
                    f"got {list(attention_mask.shape)}."
                )
            real = attention_mask[:, -rows:].bool()
            places = attention_mask.bool().long().cumsum(1)[:, -rows:] - 1
        elif is_prepared:
            if attention_mask.shape[2] != rows or (isinstance(past, int) and attention_mask.shape[3] < past + rows):
                raise ValueError(
                    "A prepared `attention_mask` must have the shape [batch, 1, rows, past rows + rows], here "
                    f"[{batch}, 1, {rows}, {past + rows}] or with more keys; got {list(attention_mask.shape)}."
                )
            seen = attention_mask[:, 0] if attention_mask.dtype == torch.bool else attention_mask[:, 0] > HIDDEN_BELOW
            seen = seen.expand(batch, -1, -1)
            real = seen.gather(2, counted[..., None])[..., 0]
            places = seen.sum(-1) - 1
        if segment_ids is not None:
            starts = segment_starts(segment_ids, real)
            places = counted - torch.where(starts, counted, 0).cummax(dim=1).values
        continued = real[:, 1:] & real[:, :-1]
        if starts is not None:
            continued &= ~starts[:, 1:]

        if position_ids is not None:
            content = as_indices("position_ids", position_ids, (2,), shape)
        else:
            content = counted if segment_ids is None else places
        if is_prepared:
            # Rows of padding may see others, and come next to none.
            sees = seen.gather(2, counted[:, None].expand(-1, rows, -1)) & real[..., None]
            targets, continued, is_clear = cls.next_rows(sees, places, content)
        if target_position_ids is not None:
            targets = as_indices("target_position_ids", target_position_ids, (2, 3), shape)
            return cls(content, targets, real, continued, places, starts, True, sees)
        if not is_prepared:
            following = torch.where(continued, content[:, 1:], content[:, :-1] + 1)
            targets = torch.cat([following, content[:, -1:] + 1], dim=1)
        elif not torch.compiler.is_compiling():
            message = (
                "`target_position_ids` must be given where a prepared `attention_mask` lets several rows come next to "
                "one and their `position_ids` differ. Got `target_position_ids=None`."
            )
            require(is_clear, message, waits=device.type == "cpu")
        return cls(content, targets, real, continued, places, starts, False, sees)

    @staticmethod
    def next_rows(
        sees: torch.Tensor, depth: torch.Tensor, content: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What comes next under a prepared mask: the rows that see a row and are one deeper, as children in a tree.

        Args:
            sees: bool `[batch, rows, rows]`, which rows each row sees.
            depth: int64 `[batch, rows]`, how many rows come before each, those in the cache included.
            content: int64 `[batch, rows]`.

        Returns:
            Each row's default target, int64 `[batch, rows]`, the own position + 1 where nothing comes next; whether the
            row behind each row is a next one, bool `[batch, rows - 1]`; and whether the rows that come next to one all
            have the same position, a bool scalar.
        """
        is_next = sees.transpose(1, 2) & (depth[:, None] == depth[..., None] + 1)
        positions = content[:, None].expand_as(is_next)
        first = positions.masked_fill(~is_next, torch.iinfo(torch.int64).max).amin(-1)
        last = positions.masked_fill(~is_next, -1).amax(-1)
        has_next = is_next.any(-1)
        return first.where(has_next, content + 1), is_next.diagonal(1, 1, 2), (~has_next | (first == last)).all()

    def segments(self) -> torch.Tensor:
        """The number of each row's packed segment, int64 `[batch, rows]`; 0 where nothing is packed."""
        return torch.zeros_like(self.content) if self.starts is None else self.starts.cumsum(1)

    def distinct_positions(self) -> torch.Tensor:
        """Content positions that tell segments apart, int64 `[batch, rows]`; padding has negative ones of its own."""
        # No target's left neighbor is at -2 or before.
        padding = -2 - torch.arange(self.content.shape[1], device=self.content.device)
        return torch.where(self.real, (self.segments() << 32) + self.content, padding)

    def left_neighbors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of this call that hold the tokens left of the targets, int64 `[batch, rows, targets]`; -1 for none.

        Row r with target t looks for content position t - 1 among the rows that it sees: the real rows of its example
        up to r. In left-to-right text that is row r itself.

        Returns:
            The rows; and, in the same shape, whether no other call can hold such a row: it is here, perhaps behind the
            own one, or its position is none.
        """
        own = torch.arange(self.content.shape[1], device=self.content.device)[:, None]
        wanted = (self.targets if self.targets.ndim == 3 else self.targets[..., None]) - 1
        # In text that goes on behind padding a position may come twice; the own row is the one that is meant.
        is_own = wanted == self.content[..., None]
        if len(own) == 1:
            return torch.where(is_own, 0, -1), is_own | (wanted < 0)
        if self.sees is not None:
            is_there = (self.content[:, None, None] == wanted[..., None]) & self.sees[:, :, None]
            is_found, rows = is_there.any(-1), is_there.byte().argmax(-1)
        else:
            positions, by_position = self.distinct_positions().sort(dim=1)
            asked = ((self.segments() << 32)[..., None] + wanted).flatten(1)
            places = torch.searchsorted(positions, asked).clamp(max=len(own) - 1)
            is_found = (positions.gather(1, places) == asked).view_as(wanted) & (wanted >= 0)
            rows = by_position.gather(1, places).view_as(wanted)
        neighbors = own.where(is_own, rows.where(is_found & (rows <= own), -1))
        return neighbors, is_own | is_found | (wanted < 0)

    def check_neighbors(self, is_settled: torch.Tensor, past: int | torch.Tensor, waits: bool) -> None:
        """Raises a ValueError where the token left of a target may be in the cache, which does not say where.

        Args:
            is_settled: see [`left_neighbors`].
            past: how many rows the cache has.
            waits: as in [`check`].
        """
        if isinstance(past, int) and past == 0:
            return
        require(
            (is_settled | ~self.real[..., None] | torch.as_tensor(past == 0, device=is_settled.device)).all(),
            "`query_input_ids` must be given where a cache is used and the token left of a target (at "
            "`target_position_ids` - 1) is not among the rows of the call: it may be in the cache. Give it, or -1 "
            "where no row up to the own one holds it. Got `query_input_ids=None`.",
            waits,
        )

    def check(self, config: PreTrainedConfig, past_key_values: Cache | None, waits: bool = True) -> None:
        """Refuses positions that the model cannot take, or whose targets cannot be what is meant.

        Args:
            config: names the variant, and `max_position_embeddings`, how many positions there are. Rotations have no
                table: text that is plainly left to right may be longer, as in Llama.
            past_key_values: the cache or `None`.
            waits: whether to wait for the device. Otherwise it reports broken rules itself, later and without values.

        Raises:
            ValueError: for positions outside the table, a position that comes twice in one example, an order that is
                not the identity in `causal`, and a cached call whose targets cannot be known.
        """
        has_table = config.attention_variant in TABLE_VARIANTS
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        table, causal = config.max_position_embeddings, config.attention_variant == "causal"
        targets = self.targets if self.targets.ndim == 3 else self.targets[..., None]
        padding = ~self.real
        outside = ((self.content < 0) | (self.content >= table)) & self.real
        outside_targets = ((targets < 0) | (targets > table)) & self.real[..., None]

        counted = past + torch.arange(self.content.shape[1], device=self.content.device)
        # Positions of left-to-right text may count padding or not: both are used.
        numbered = ((self.content == self.places) | padding).all() | ((self.content == counted) | padding).all()
        in_order = ((self.content.diff(dim=1) == 1) | ~self.continued).all() & (numbered | (past == 0))
        repeated = (self.distinct_positions().sort(dim=1).values.diff(dim=1) == 0).any()
        beyond_next = ((targets[..., 0] != self.content + 1) & self.real).any()
        # Each row predicts the place behind its own, wherever that is: text from left to right, as Llama reads it.
        is_text = ~beyond_next & self.targets_given

        plain = numbered & (not has_table and (not self.targets_given or is_text))
        # The library's `generate` goes on counting behind padded prompts, from the position of the padding.
        has_begun = self.real.long().cumsum(1) > 0
        has_gap = (self.real & ((has_begun & padding).long().cumsum(1) > 0)).any()
        rules = {
            "content": outside.any() & ~plain,
            "targets": outside_targets.any() & ~plain,
            "repeated": repeated & ~(is_text & has_gap) & (self.sees is None),
            "causal": (~in_order | beyond_next) & causal,
            "unknown": ~in_order & (not causal and past_key_values is not None and not self.targets_given),
        }
        if not waits:
            message = "`position_ids` or `target_position_ids` break a rule; run the batch on a CPU to learn which."
            require(~torch.stack(list(rules.values())).any(), message, waits)
            return
        # One look for all rules: each look waits for the device.
        broken = [
            name for name, is_broken in zip(rules, torch.stack(list(rules.values())).tolist(), strict=True) if is_broken
        ]
        if "content" in broken or "targets" in broken:
            name = "position_ids" if "content" in broken else "target_position_ids"
            value = self.content[outside][0] if "content" in broken else targets[outside_targets][0]
            largest = table - 1 if "content" in broken else table
            raise ValueError(
                f"`{name}` must lie in [0, {largest}], as `max_position_embeddings` is {table}; got {value}."
            )
        if "causal" in broken:
            raise ValueError(
                "attention_variant='causal' takes the identity order only: `position_ids` must rise by 1 and "
                "`target_position_ids` be the next positions, got other ones."
            )
        if "repeated" in broken:
            raise ValueError(
                "`position_ids` must not hold a position twice in one example; examples packed behind each other need "
                f"`segment_ids`. Got {self.content[:4].tolist()}."
            )
        if "unknown" in broken:
            raise ValueError(
                "`target_position_ids` must be given when a cache is used and `position_ids` are not consecutive: the "
                "next row may come in a later call. Got `target_position_ids=None`."
            )


def is_step_of_text(position_ids: Any, target_position_ids: Any, batch: int) -> bool:
    """Whether a call has one row of each example, which predicts the place behind its own: a step of `generate`.

    Nothing has to be checked then. As in Llama, text goes on behind the last position that was trained.

    Args:
        position_ids, target_position_ids: what the caller gave.
        batch: how many examples there are.
    """
    given = position_ids, target_position_ids
    if not all(isinstance(each, torch.Tensor) and each.shape == (batch, 1) for each in given):
        return False
    if any(each.dtype != torch.int64 for each in given):
        return False
    return torch.equal(target_position_ids, position_ids + 1) and bool((position_ids >= 0).all())


__all__ = [
    "RowPositions",
    "as_indices",
    "check_first_labels",
    "is_step_of_text",
    "packed_mask",
    "segment_starts",
    "segments_by_positions",
]
