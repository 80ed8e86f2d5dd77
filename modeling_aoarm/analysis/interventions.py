# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The loss with rows hidden from attention: rows nearest to the target, most recent rows, or random rows.

Attention mass shows correlations. This intervention shows which rows the predictions need.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from ..data.orders import as_integer
from ..evaluation.stats import estimate_ratio
from ..io import convert_for_json
from .rows import CHOICES, IGNORED, AttendedRows, attention_batches, attention_modules, eager_evaluation, stream_names


@dataclass(frozen=True)
class Difference:
    """Mean differences in nats per token and their standard errors over examples, by the number of hidden rows.

    Attributes:
        mean: float64 `[counts]`.
        standard_error: float64 `[counts]`; NaN for a single example.
    """

    mean: torch.Tensor
    standard_error: torch.Tensor

    @classmethod
    def per_token(cls, nats: torch.Tensor, tokens: torch.Tensor) -> "Difference":
        """Averages differences of examples, float64 `[counts, examples]`, over their tokens, `[examples]`.

        See [`~modeling_aoarm.evaluation.stats.estimate_ratio`].
        """
        # A missing standard error becomes NaN.
        found = np.array([estimate_ratio(each, tokens) for each in nats], dtype=np.float64)
        return cls(*torch.from_numpy(found.T))

    def to_dict(self) -> dict[str, list[float | None]]:
        """The numbers as lists, `None` for NaN."""
        return convert_for_json(vars(self))


@dataclass(frozen=True)
class HiddenRowLosses:
    """Losses of the same examples and orders with and without hidden rows; see [`hidden_row_losses`].

    Attributes:
        counts: the numbers m of hidden rows.
        own_row: whether rows could be hidden from themselves.
        example_tokens: int64 `[examples]`, numbers of predicted tokens.
        example_nll: float64 `[examples]`, nats summed over the predicted tokens, with nothing hidden.
        hidden_nll: by stream and choice, the same with rows hidden, float64 `[counts, examples]`.
    """

    counts: tuple[int, ...]
    own_row: bool
    example_tokens: torch.Tensor
    example_nll: torch.Tensor
    hidden_nll: dict[str, dict[str, torch.Tensor]]

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that were cut."""
        return tuple(self.hidden_nll)

    @property
    def choices(self) -> tuple[str, ...]:
        """The choices of hidden rows."""
        return tuple(next(iter(self.hidden_nll.values())))

    @property
    def nll(self) -> float:
        """Nats per token with nothing hidden."""
        return float(self.example_nll.sum() / self.example_tokens.sum())

    def excess(self, stream: str, choice: str) -> Difference:
        """The loss with rows hidden minus the loss with nothing hidden."""
        return Difference.per_token(self.hidden_nll[stream][choice] - self.example_nll, self.example_tokens)

    def contrast(self, stream: str, choice: str = "nearest", other: str = "recent") -> Difference:
        """The loss with one choice hidden minus the loss with another one hidden, both in the same stream."""
        losses = self.hidden_nll[stream]
        return Difference.per_token(losses[choice] - losses[other], self.example_tokens)

    @property
    def dissociation(self) -> Difference | None:
        """`contrast("prediction") - contrast("content")`; `None` for a single stream.

        The dissociation is double if the first contrast is positive and the second one negative: predictions then need
        the rows near the target, and the content stream needs the recent rows.
        """
        if not {"prediction", "content"} <= set(self.streams) or not {"nearest", "recent"} <= set(self.choices):
            return None
        prediction, content = self.hidden_nll["prediction"], self.hidden_nll["content"]
        contrasts = [losses["nearest"] - losses["recent"] for losses in (prediction, content)]
        return Difference.per_token(contrasts[0] - contrasts[1], self.example_tokens)

    def joined(self, size: int) -> "HiddenRowLosses":
        """Joins every `size` consecutive examples, for examples of one sentence.

        Raises:
            ValueError: `size` does not divide the number of examples.
        """
        if as_integer("size", size) < 1 or len(self.example_tokens) % size:
            raise ValueError(f"`size` must divide the {len(self.example_tokens)} examples, got {size}.")
        hidden = {
            stream: {choice: nll.unflatten(1, (-1, size)).sum(2) for choice, nll in each.items()}
            for stream, each in self.hidden_nll.items()
        }
        tokens, nll = (each.unflatten(0, (-1, size)).sum(1) for each in (self.example_tokens, self.example_nll))
        return replace(self, example_tokens=tokens, example_nll=nll, hidden_nll=hidden)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as lists, `None` for NaN, without the losses of single examples."""
        has_contrast = {"nearest", "recent"} <= set(self.choices)
        return {
            "counts": list(self.counts),
            "own_row": self.own_row,
            "examples": len(self.example_tokens),
            "tokens": int(self.example_tokens.sum()),
            "nll": self.nll,
            "excess": {
                stream: {choice: self.excess(stream, choice).to_dict() for choice in self.choices}
                for stream in self.streams
            },
            "contrast": {stream: self.contrast(stream).to_dict() for stream in self.streams} if has_contrast else {},
            "dissociation": self.dissociation.to_dict() if self.dissociation is not None else None,
        }


def hidden_row_losses(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, torch.Tensor]],
    counts: Sequence[int] = (1, 2, 4, 8, 16),
    *,
    choices: Sequence[str] | None = None,
    streams: Sequence[str] | None = None,
    own_row: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> HiddenRowLosses:
    """Measures a model's loss with m rows hidden from the attention of every row.

    In all layers, each row r loses its attention edges to m of its visible rows: those nearest to r's target or to r's
    own position (the left one first at equal distance), the most recent ones, or random ones. The first visible row
    (the beginning of the sentence) is never hidden, so every row still sees something. A row with at most m other
    visible rows sees only the first one (and perhaps itself), whatever the choice. So all choices cut equally many
    edges of the same rows. Information from a hidden row can still come in through other rows, and a query stream with
    the neighbor start still begins with its token.

    In `bidirectional` only edges from blanks to observed rows are cut, and no row is recent.

    The model runs with eager attention in evaluation mode; both are then restored.

    Args:
        model: an `AOARMForCausalLM` or `AOARMForMaskedLM`.
        batches: see [`attention_batches`]; with `labels` for `bidirectional`. They are read once.
        counts: the numbers m.
        choices: some of `"nearest"` (to the target), `"own"` (nearest to the row's own position), `"recent"` and
            `"random"`. Default: all; `bidirectional` has `"nearest"` and `"random"`.
        streams: the streams whose rows lose edges: `"prediction"`, and in `two_stream` also `"content"` ("nearest"
            refers to the row's target there, too) and `"all"`, both at once. Default: each.
        own_row: whether a row may be hidden from itself, as its own most recent row. It still knows its token, which is
            in its state and not in an edge. This edge may matter more than any other, so "recent" then mixes two
            questions. `counts=[1], choices=["recent"]` measures this edge alone.
        seed: seed of random rows, which are a function of the seed and the example's index.
        progress: whether to show a progress bar.

    Raises:
        TypeError: a number is not an integer, or the model is not one of this package's.
        ValueError: a choice or stream is unknown, there is no count or a negative one, targets are not the next rows'
            positions, `bidirectional` has no labels, no row predicts, or as in [`attention_batches`].
    """
    names = stream_names(model)
    known_streams = ("prediction", "content", "all") if len(names) > 1 else ("prediction",)
    known_choices = ("nearest", "random") if model.config.attention_variant == "bidirectional" else CHOICES
    choices, streams, counts = choices or known_choices, streams or known_streams, tuple(counts)
    for name, values, known in (("choices", choices, known_choices), ("streams", streams, known_streams)):
        if isinstance(values, str) or not set(values) <= set(known):
            raise ValueError(f"`{name}` must be a sequence of {list(known)} for this model, got {values!r}.")
    if not counts or min(as_integer("counts", count) for count in counts) < 0:
        raise ValueError(f"`counts` must hold numbers of rows, none below 0, got {counts}.")

    tokens, plain = [], []
    hidden = {stream: {choice: [] for choice in choices} for stream in streams}
    cut = _EdgeCutter(names)
    handles = [module.register_forward_pre_hook(cut.hide, with_kwargs=True) for module in attention_modules(model)]
    try:
        with eager_evaluation(model):
            for inputs, rows in attention_batches(batches, model, "hidden rows", progress):
                _check_predictions(rows)
                cut.edges = None
                plain.append(_sum_nll(model, inputs, rows))
                first_example = sum(map(len, tokens))
                tokens.append(rows.predicting.sum(1).cpu())
                # In `bidirectional` only blanks lose edges.
                loses_edges = torch.ones_like(rows.blank) if rows.in_order else rows.blank
                for choice in choices:
                    ranks = rows.ranks(choice, own_row, seed, first_example)
                    for stream in streams:
                        cut.streams = names if stream == "all" else (stream,)
                        losses = []
                        for count in counts:
                            cut.edges = (ranks < count) & loses_edges[:, :, None]
                            losses.append(_sum_nll(model, inputs, rows))
                        hidden[stream][choice].append(torch.stack(losses))
    finally:
        for handle in handles:
            handle.remove()
    if not any(map(torch.any, tokens)):
        raise ValueError("`batches` must hold rows that predict something, got none.")
    hidden = {
        stream: {choice: torch.cat(parts, dim=1) for choice, parts in each.items()} for stream, each in hidden.items()
    }
    return HiddenRowLosses(counts, own_row, torch.cat(tokens), torch.cat(plain), hidden)


class _EdgeCutter:
    """A forward pre-hook of attention that hides keys from the rows of some streams.

    Attributes:
        names: the model's streams.
        streams: the streams whose rows lose edges.
        edges: bool `[batch, rows, keys]`, the edges to cut; `None` for none.
    """

    def __init__(self, names: tuple[str, ...]):
        self.names, self.streams, self.edges = names, names, None

    def hide(self, module: torch.nn.Module, arguments: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        if self.edges is None:
            return None
        queries, mask = arguments[0], kwargs["attention_mask"]
        streams = self.names[-len(queries) :]
        cut = torch.cat([self.edges & (stream in self.streams) for stream in streams], dim=1)[:, None]
        if mask is None:
            # `bidirectional` without padding has no mask.
            mask = queries.new_zeros(*self.edges.shape)[:, None]
        mask = mask.repeat(1, 1, len(streams), 1).masked_fill(cut, torch.finfo(mask.dtype).min)
        return arguments, kwargs | {"attention_mask": mask}


def _check_predictions(rows: AttendedRows) -> None:
    if rows.predicted is None:
        raise ValueError("`labels` must be in each batch for attention_variant='bidirectional', got none.")
    if rows.in_order and ((rows.targets[:, :-1] != rows.content[:, 1:]) & rows.predicting[:, :-1]).any():
        raise ValueError("`target_position_ids` must hold the next row's position wherever it has a label.")


def _sum_nll(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], rows: AttendedRows) -> torch.Tensor:
    """Nats of each example, float64 `[batch]`, on the CPU."""
    logits = model(**inputs, use_cache=False).logits.float()
    token_nll = functional.cross_entropy(logits.transpose(1, 2), rows.predicted, ignore_index=IGNORED, reduction="none")
    return token_nll.double().sum(1).cpu()
