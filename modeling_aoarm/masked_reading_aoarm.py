# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""One pass of a masked model over canvases: undecided columns hold the mask token, and all columns see each other."""

from typing import Any

import torch

from .canvas import CanvasRows
from .reading_aoarm import RowReader


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


__all__ = ["MaskedReader"]
