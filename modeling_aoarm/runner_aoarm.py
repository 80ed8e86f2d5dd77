# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""One pass of the model over rows of canvases: which slots they go to, what they see, and several targets of a row.

In `two_stream` a row asks for several targets by further query streams, and its keys depend on none of them. In a
single stream it does so by copies, which see what the row sees and are not kept. The row itself asks for its first
target, to which its cached key then belongs; where an adaptive order goes elsewhere the row has to be read once more.
Copies serve two streams too where only the last of several rows asks: query streams are streams of all rows.
"""

from typing import Any

import torch
from transformers.utils.generic import is_flash_attention_requested

from .cache_aoarm import CanvasCache, aligned
from .canvas_aoarm import CanvasRows, RowBlock
from .compat_aoarm import input_device


# Added to attention scores that are not to count: weight 0 in every dtype, and finite, as autocast may round.
HIDDEN = -3e4


class RowReader:
    """Runs a model on rows of canvases, on a cache or without.

    Args:
        model: a model whose rows come in generation order.
        cache: an empty cache or one that has read the first rows; `None` to read all rows again in each pass.
        is_read: whether the cache has rows already.
    """

    def __init__(self, model: Any, cache: CanvasCache | None, is_read: bool):
        self.model, self.cache, self.is_read = model, cache, is_read
        self.is_two_stream = model.config.attention_variant == "two_stream"
        self.wants_left = model.config.starts_from_neighbors
        self.compiled_call = None
        # Whether a pass needs all processes, of which others may make more than this one.
        self.is_synced = False
        self.passes = 0

    @property
    def is_fixed(self) -> bool:
        """Whether shapes stay the same from pass to pass."""
        return self.cache is not None and self.cache.fixed

    def ask(
        self,
        canvas: torch.Tensor,
        rows: CanvasRows,
        first: torch.Tensor,
        stop: torch.Tensor,
        end: torch.Tensor,
        width: int,
        asking: int,
        targets: int,
        longest: int,
        is_in_step: bool,
        scored_ids: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Runs the model once, on the `width` rows before row `end` of each example.

        Args:
            canvas: int64 `[batch, columns]`.
            rows: the canvases' rows.
            first, stop: int64 `[batch]`: rows before `first` and from `stop` on are padding.
            end: int64 `[batch]`.
            width: how many rows.
            asking: how many of them, the last ones, ask.
            targets: how many of the next rows' places each asks for.
            longest: a bound of `end` that is known without asking the device.
            is_in_step: whether no example has padding, and all of them are equally long.
            scored_ids: int64 `[batch, asking]`, tokens at each asking row's one target that are to be scored.

        Returns:
            The answers `[batch, asking, targets, vocab]`, in the model's dtype; or of `scored_ids` the
            log-probabilities, float32 `[batch, asking]`, and whether they are the likeliest.
        """
        if is_in_step and width == targets == 1:
            block = RowBlock.same(canvas, rows, longest - 1, self.wants_left)
        else:
            block = RowBlock.cut(canvas, rows, first, stop, end, width, targets, self.wants_left)
        input_ids, position_ids = block.input_ids, block.position_ids
        of_targets = {"target_position_ids": block.target_position_ids}
        if self.wants_left:
            of_targets["query_input_ids"] = block.query_input_ids
        by_streams = self.is_two_stream and asking == width and targets > 1
        copies = 0 if by_streams else asking * (targets - 1)
        if copies:
            input_ids, position_ids = (
                torch.cat([each, each[:, -asking:].repeat_interleave(targets - 1, 1)], dim=1)
                for each in (input_ids, position_ids)
            )
        if not by_streams:
            # Each copy has one of the further targets.
            of_targets = {
                name: torch.cat([each[..., 0], each[:, -asking:, 1:].flatten(1)], dim=1) if copies else each[..., 0]
                for name, each in of_targets.items()
            }
        if self.is_synced:
            self.anyone_asks(True)
        compiles = self.compiled_call is not None and self.is_read
        attention_mask = self.place(block, end, asking, copies, longest, is_in_step)
        output = (self.compiled_call if compiles else self.model)(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **of_targets,
            past_key_values=self.cache,
            use_cache=self.cache is not None,
            logits_to_keep=asking + copies,
            **({} if scored_ids is None else {"scored_ids": scored_ids}),
        )
        self.passes += 1
        if scored_ids is not None:
            return output.token_log_probs, output.token_is_likeliest
        logits = output.logits
        if by_streams:
            return logits
        own, copied = logits[:, :asking, None], logits[:, asking:]
        return torch.cat([own, copied.unflatten(1, (asking, -1))], dim=2) if copies else own

    def finish(self) -> None:
        """Makes passes of no use until all processes have finished, where each pass needs all of them."""
        while self.is_synced and self.anyone_asks(False):
            self.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=input_device(self.model)), use_cache=False)

    def anyone_asks(self, asks: bool) -> bool:
        """Whether some process makes a pass now; all processes have to ask that."""
        is_asking = torch.tensor(int(asks), device=input_device(self.model))
        torch.distributed.all_reduce(is_asking, torch.distributed.ReduceOp.MAX)
        return bool(is_asking)

    def place(
        self, block: RowBlock, end: torch.Tensor, asking: int, copies: int, longest: int, is_in_step: bool
    ) -> torch.Tensor | None:
        """Gives rows and copies their slots in the cache, and says what they see.

        Returns:
            `None` where each row sees all rows up to its own; `[batch, keys]`, 0 for padding, where attention has to
            leave padding out besides; a prepared additive mask `[batch, 1, rows + copies, keys]` for anything else.
        """
        width, device = block.real.shape[1], block.real.device
        if is_in_step and width == 1 and not copies and not self.is_fixed and self.is_read:
            self.cache.place(slice(longest - 1, longest), 1, longest)
            return None
        copy_numbers = torch.arange(copies, device=device).expand(len(end), -1)
        if self.is_read:
            # A row is the key in its slot; rows of padding go to the slot behind the last, which nobody sees.
            keys = block.numbers.where(block.real, self.cache.capacity)
            copy_keys = end[:, None] + copy_numbers
            visible = aligned(self.cache.capacity if self.is_fixed else longest + copies)
            is_key = None
            self.cache.place(torch.cat([keys, copy_keys], dim=1), width + copies, visible)
            if width == 1 and not copies and is_flash_attention_requested(self.model.config):
                # Flash kernels take no other mask; the library looks at this one, which waits for the device.
                return (torch.arange(visible, device=device) <= keys).long()
        else:
            # The rows of this call see each other only: row i is key i.
            keys = torch.arange(width, device=device).expand_as(block.real)
            copy_keys = width + copy_numbers
            visible = width + copies
            is_key = torch.nn.functional.pad(block.real, (0, copies), value=True)
            if self.cache is not None:
                slots = torch.nn.functional.pad(
                    block.numbers.where(block.real, self.cache.capacity), (0, copies), value=self.cache.capacity
                )
                self.cache.place(slots, width + copies, None)
                self.is_read = True
            if not copies:
                return None if is_in_step else block.real.long()
        index = torch.arange(visible, device=device)
        sees = index <= keys[..., None]
        if copies:
            # A copy sees what stands before the row that it repeats, and itself.
            before = keys[:, -asking:].repeat_interleave(copies // asking, 1)
            sees = torch.cat([sees, index < before[..., None]], dim=1)
        if is_key is not None:
            sees = sees & is_key[:, None]
        if copies:
            sees[:, width:] |= index == copy_keys[..., None]
        return torch.zeros(sees.shape, dtype=self.model.dtype, device=device).masked_fill(~sees, HIDDEN)[:, None]


def check_backend(model: Any) -> None:
    """Raises a ValueError for attention kernels without masks."""
    if is_flash_attention_requested(model.config):
        raise ValueError(
            "`tokens_per_step`, `draft_length`, adaptive orders, static and continued caches need an attention "
            "implementation that takes masks; load the model with attn_implementation='sdpa'. Got "
            f"{model.config._attn_implementation!r}."
        )


# Where many passes are known before, they are made together, with at most so many columns in one call.
COLUMNS_PER_PASS = 16384


class MaskedReader(RowReader):
    """Runs a model with full attention on canvases in sentence order; nothing is kept from pass to pass.

    Which columns hold the mask token is known from the order and the number of decided rows, never from a token's id.
    Columns that are no rows (padding, what a marginal leaves out, blanks that an end of sentence has closed) are not
    attended.

    Args:
        model: an `AOARMForMaskedLM`.
    """

    def __init__(self, model: Any):
        super().__init__(model, None, is_read=False)

    def ask(
        self,
        canvas: torch.Tensor,
        rows: CanvasRows,
        first: torch.Tensor,
        stop: torch.Tensor,
        end: torch.Tensor,
        width: int,
        asking: int,
        targets: int,
        longest: int,
        is_in_step: bool,
        scored_ids: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """As [`RowReader.ask`]: the answers about the next rows' columns, given the rows up to the one that asks.

        Each of the `asking` rows needs a canvas of its own, in which the rows after it are masked.
        """
        decided = end[:, None] + torch.arange(1 - asking, 1, device=end.device)
        per_call = max(1, COLUMNS_PER_PASS // rows.places.numel())
        parts = decided.split(per_call, dim=1)
        if scored_ids is None:
            return torch.cat([self.look(canvas, rows, part, targets) for part in parts], dim=1)
        scored = [
            self.look(canvas, rows, part, 1, ids[..., None])
            for part, ids in zip(parts, scored_ids.split(per_call, dim=1), strict=True)
        ]
        return tuple(torch.cat(each, dim=1)[..., 0] for each in zip(*scored, strict=True))

    def look(
        self,
        canvas: torch.Tensor,
        rows: CanvasRows,
        decided: torch.Tensor,
        targets: int,
        scored_ids: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Runs the model once.

        Args:
            canvas: int64 `[batch, columns]` or wider.
            rows: the canvases' rows.
            decided: int64 `[batch, looks]`, how many rows, the first ones, have tokens that are seen.
            targets: about how many of the rows behind them to ask.
            scored_ids: int64 `[batch, looks, targets]`, tokens that are to be scored there.

        Returns:
            float32 `[batch, looks, targets, vocab]`; about any column where there are no more rows. Or of `scored_ids`
            the log-probabilities, float32 `[batch, looks, targets]`, and whether they are the likeliest.
        """
        looks, (batch, width) = decided.shape[1], rows.places.shape
        numbers = torch.arange(rows.columns.shape[1], device=decided.device)
        # Rows of padding write behind the last column.
        columns = rows.columns.where(rows.columns >= 0, width)
        number_of = numbers.new_full((batch, width + 1), -1).scatter(1, columns, numbers.expand_as(columns))[:, :width]
        asked = (decided[..., None] + torch.arange(targets, device=decided.device)).clamp(max=len(numbers) - 1)
        asked_columns = rows.columns.gather(1, asked.flatten(1)).clamp(min=0).view(asked.shape)
        is_seen, is_row = number_of[:, None] < decided[..., None], number_of >= 0
        input_ids = canvas[:, None, :width].where(is_seen & is_row[:, None], self.model.config.mask_token_id)
        if self.is_synced:
            self.anyone_asks(True)
        output = self.model(
            input_ids=input_ids.flatten(0, 1),
            attention_mask=is_row.long().repeat_interleave(looks, 0),
            position_ids=rows.places.clamp(min=0).repeat_interleave(looks, 0),
            logits_to_keep=asked_columns.flatten(0, 1),
            scored_ids=None if scored_ids is None else scored_ids.flatten(0, 1),
        )
        self.passes += 1
        if scored_ids is not None:
            scored = output.token_log_probs, output.token_is_likeliest
            return tuple(each.unflatten(0, (batch, looks)) for each in scored)
        return output.logits.float().unflatten(0, (batch, looks))


__all__ = ["MaskedReader", "RowReader", "check_backend"]
