# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The rows of a batch for the analysis of attention: predicting rows, visible rows, and near or recent rows."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..compat import forward_hooks
from ..compat_aoarm import input_device
from ..data.collators import IGNORED
from ..evaluation.likelihood import evaluation_mode
from ..modeling_aoarm import AOARMAttention
from ..positions_aoarm import RowPositions


INPUTS = ("input_ids", "attention_mask", "position_ids", "target_position_ids", "segment_ids")
CHOICES = ("nearest", "own", "recent", "random")


@dataclass(frozen=True)
class AttendedRows:
    """The positions, visible keys and predictions of one batch.

    A row *predicts* if the model's loss would count it: row r with a label in row r + 1, or in `bidirectional` a blank
    (a row with the mask token) with a label and a loss weight other than 0. Without labels, every row has its own token
    as a label. In `bidirectional` without labels the tokens of blanks are unknown, and every blank predicts.

    Args:
        content: int64 `[batch, rows]`, content positions.
        targets: int64 `[batch, rows]`, target positions; in `bidirectional` the content positions.
        in_order: whether rows are in generation order; in `bidirectional` they are not.
        blank: bool `[batch, rows]`, the blanks of `bidirectional`; none in other variants.
        visible: bool `[batch, rows, keys]`, the keys that a row sees.
        predicting: bool `[batch, rows]`.
        predicted: int64 `[batch, rows]`, the tokens that rows predict, -100 for none; `None` for `bidirectional`
            without labels.
    """

    content: torch.Tensor
    targets: torch.Tensor
    in_order: bool
    blank: torch.Tensor
    visible: torch.Tensor
    predicting: torch.Tensor
    predicted: torch.Tensor | None

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor], model: PreTrainedModel) -> "AttendedRows":
        """Reads a batch of [`attention_batches`]."""
        tokens = batch["input_ids"]
        given = (batch.get(name) for name in ("position_ids", "target_position_ids", "attention_mask", "segment_ids"))
        positions = RowPositions.resolve(*given, None, tokens.shape, tokens.device)
        in_order = model.config.attention_variant != "bidirectional"
        visible = positions.real[:, None, :].expand(-1, tokens.shape[1], -1)
        if positions.segment is not None:
            segment = positions.segment
            visible = visible & (segment[:, :, None] == segment[:, None, :])
        if in_order:
            visible = visible.tril()

        labels = batch.get("labels")
        if in_order:
            targets, blank = positions.targets[..., 0], torch.zeros_like(positions.real)
            # Without labels the next row's token counts, if it belongs to the same example.
            follows = visible.diagonal(-1, 1, 2) & positions.real[:, 1:]
            following = tokens[:, 1:].where(follows, IGNORED) if labels is None else labels[:, 1:]
            predicted = torch.nn.functional.pad(following, (0, 1), value=IGNORED)
            predicting = predicted != IGNORED
        else:
            targets, blank = positions.content, positions.real & (tokens == model.config.mask_token_id)
            predicting, predicted = blank, None
            if labels is not None:
                is_counted = batch.get("loss_weights", torch.ones_like(labels)) != 0
                predicting = blank & (labels != IGNORED) & is_counted
                predicted = labels.where(predicting, IGNORED)
        return cls(positions.content, targets, in_order, blank, visible, predicting, predicted)

    @property
    def first(self) -> torch.Tensor:
        """bool `[batch, rows, keys]`: the first key that a row sees, on which unused attention rests."""
        return self.visible & (self.visible.cumsum(-1) == 1)

    @property
    def distances(self) -> dict[str, torch.Tensor]:
        """int64 `[batch, rows, keys]` each; see [`AttentionMass`]."""
        keys = self.content[:, None, :]
        by_target = (self.targets[:, :, None] - keys).abs()
        if not self.in_order:
            return {"target": by_target}
        rows = torch.arange(self.content.shape[1], device=keys.device)
        rows_back = (rows[:, None] - rows).expand_as(by_target)
        return {"target": by_target, "own": (self.content[:, :, None] - keys).abs(), "rows": rows_back}

    def ranks(self, choice: str, own_row: bool = False, seed: int = 0, first_example: int = 0) -> torch.Tensor:
        """Ranks the candidates of each row, int64 `[batch, rows, keys]`, from 0. All other keys come last.

        The candidates of a row are the observed rows that it sees, without the first one.

        Args:
            choice: `"nearest"`, by |target - content position of the key|, the left key first at equal distance;
                `"own"`, the same from the row's own content position; `"recent"`, by rows back; `"random"`, drawn
                separately for each row.
            own_row: whether the row itself is a candidate.
            seed: seed of random ranks, which are a function of the seed and the example's index.
            first_example: index of the batch's first example.
        """
        batch, rows = self.content.shape
        if choice in ("nearest", "own"):
            positions = (self.targets if choice == "nearest" else self.content)[:, :, None]
            key_positions = self.content[:, None, :]
            key = 2 * (positions - key_positions).abs() + (key_positions > positions)
        elif choice == "recent":
            key = -torch.arange(rows, device=self.content.device).expand(batch, rows, rows)
        else:
            key = torch.zeros(batch, rows, rows, dtype=torch.float64)
            # Draws for real rows only, so that padding changes nothing.
            is_real = self.visible.diagonal(0, 1, 2).cpu()
            for example, real in enumerate(is_real):
                count = int(real.sum())
                drawn = np.random.default_rng([seed, first_example + example]).random((count, count))
                key[example, real[:, None] & real] = torch.from_numpy(drawn).flatten()
            key = key.to(self.content.device)
        candidates = self.visible & ~self.first & ~self.blank[:, None, :]
        if not own_row:
            candidates &= ~torch.eye(rows, dtype=torch.bool, device=candidates.device)
        last = torch.inf if key.is_floating_point() else torch.iinfo(key.dtype).max
        ranks = key.where(candidates, last).argsort(dim=-1, stable=True).argsort(dim=-1)
        return ranks.where(candidates, torch.iinfo(ranks.dtype).max)


def stream_names(model: PreTrainedModel) -> tuple[str, ...]:
    """The model's streams in the layout of [`AOARMAttention`]. The last one predicts, alone in the last layer."""
    return ("content", "prediction") if model.config.attention_variant == "two_stream" else ("prediction",)


def attention_modules(model: PreTrainedModel) -> list[AOARMAttention]:
    """Finds the modules to hook so that each attention calls its hook once.

    Raises:
        TypeError: the model has no such modules.
    """
    modules = [module for module in model.modules() if isinstance(module, AOARMAttention)]
    if not modules:
        raise TypeError(f"`model` must be one of this package's, got {type(model).__name__} without AOARMAttention.")
    # Layers copied by copy.copy share their weights and their hooks.
    return list({id(forward_hooks(module)): module for module in modules}.values())


@contextlib.contextmanager
def eager_evaluation(model: PreTrainedModel) -> Iterator[None]:
    """Switches to evaluation mode, eager attention and no gradients, and back."""
    implementation = model.config._attn_implementation
    with evaluation_mode(model), torch.no_grad():
        try:
            model.set_attn_implementation("eager")
            yield
        finally:
            model.set_attn_implementation(implementation)


def attention_batches(
    batches: Iterable[Mapping[str, torch.Tensor]], model: PreTrainedModel, description: str, progress: bool
) -> Iterator[tuple[dict[str, torch.Tensor], AttendedRows]]:
    """Checks and reads batches.

    Args:
        batches: each holds `input_ids`, other `INPUTS` of the variant's `forward`, and perhaps `labels` and
            `loss_weights`. The collators of this package make such batches.
        model: the model. Batches are moved to its device.
        description, progress: the label of the progress bar, and whether to show it.

    Yields:
        The arguments of `forward`, and the batch's rows.

    Raises:
        ValueError: a batch has other keys, no `input_ids`, a prepared mask or several targets per row, there are no
            batches, or [`RowPositions.resolve`] refuses the inputs.
    """
    number = -1
    total = len(batches) if isinstance(batches, Sized) else None
    for number, batch in enumerate(tqdm(batches, desc=description, total=total, leave=False, disable=not progress)):
        known = (*INPUTS, "labels", "loss_weights")
        if "input_ids" not in batch or not set(batch) <= set(known):
            raise ValueError(
                f"`batches` must hold dictionaries with input_ids and perhaps {', '.join(known[1:])}; batch {number} "
                f"has the keys {sorted(batch)}."
            )
        for name in ("attention_mask", "target_position_ids"):
            if batch.get(name) is not None and batch[name].ndim != 2:
                raise ValueError(
                    f"`{name}` must have the shape [batch, rows] here, got {list(batch[name].shape)} in batch {number}."
                )
        batch = {name: value.to(input_device(model)) for name, value in batch.items() if value is not None}
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        yield inputs, AttendedRows.of(batch, model)
    if number < 0:
        raise ValueError("`batches` must hold at least one batch, got none.")
