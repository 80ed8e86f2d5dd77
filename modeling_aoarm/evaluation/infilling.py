# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Infilling of held-out text: accuracy and NLL by the length of the blank, and ensembles over context orders.

A canvas has one blank, a run of columns, and everything else of the sentence is given. An example has several blanks of
a length, each in a canvas of its own, and they do not overlap.
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from ..canvas_aoarm import check_count, padded_rows
from ..compat_aoarm import input_device
from ..data.orders import sample_orders
from .likelihood import evaluation_mode
from .likelihoods import (
    AveragedNLL,
    averaged_log_probs,
    example_generator,
    group_sizes,
    sentences_of,
)
from .stats import Estimate, ratio


@dataclass(frozen=True)
class Blank:
    """A run of blank columns in a sentence.

    Attributes:
        example: the sentence's number in the data set.
        start: the run's first column; column 0 is the sentence's first token (its BOS, where the tokenizer has one).
        length: how many columns.
    """

    example: int
    start: int
    length: int


def place_blanks(
    sentence_lengths: Sequence[int], blank_lengths: Sequence[int], per_example: int = 2, seed: int = 0
) -> list[Blank]:
    """Blanks at places drawn for each sentence and blank length.

    A sentence gets `per_example` blanks of a length, or as many as fit: the first token is never blank, and blanks of
    the same length do not touch. Every way to place them is equally likely, and a function of the seed, the length and
    the sentence's number.

    Args:
        sentence_lengths: columns of each sentence, its first token included.
        blank_lengths: all different.
        per_example: the most blanks of a length in a sentence.
        seed: seed of the places.

    Returns:
        By blank length, then by sentence, then from left to right.

    Raises:
        ValueError: `per_example` or a blank length is no integer of at least 1, a length is repeated, and where no
            sentence has room for a blank of a length.
    """
    check_count("per_example", per_example)
    if len(set(blank_lengths)) < len(blank_lengths) or not blank_lengths:
        raise ValueError(f"blank_lengths must be different lengths, at least one; got {list(blank_lengths)}.")
    blanks = []
    for length in blank_lengths:
        check_count("blank_lengths", length)
        before = len(blanks)
        for example, columns in enumerate(sentence_lengths):
            # Blanks of a length are apart by at least one column.
            count = min(per_example, columns // (length + 1))
            rng = np.random.default_rng((seed, length, example))
            gaps = np.sort(rng.choice(columns - count * length, count, replace=False))
            starts = 1 + gaps + np.arange(count) * length
            blanks += [Blank(example, int(start), length) for start in starts]
        if len(blanks) == before:
            raise ValueError(
                f"blank_lengths must leave a given token in some sentence, got {length} for sentences of at most "
                f"{max(sentence_lengths, default=0)} tokens."
            )
    return blanks


@dataclass(frozen=True)
class InfillingResult:
    """What became of each blank.

    Attributes:
        blanks: where they were.
        blank_nll: float64 `[blanks]`, nats summed over a blank's tokens, from left to right, given everything else.
        right_tokens: int64 `[blanks]`, how many of a blank's tokens greedy decoding filled in as they were.
        filled: what it filled in, token ids of each blank.
    """

    blanks: list[Blank]
    blank_nll: torch.Tensor
    right_tokens: torch.Tensor
    filled: list[list[int]]

    @property
    def is_right(self) -> torch.Tensor:
        """Whether all tokens of a blank are as they were: bool `[blanks]`."""
        return self.right_tokens == torch.tensor([blank.length for blank in self.blanks])

    def nll(self, length: int | None = None) -> Estimate:
        """Nats per blank token, of the blanks of one length or of all."""
        return self._per_example(self.blank_nll, [blank.length for blank in self.blanks], length)

    def accuracy(self, length: int | None = None) -> Estimate:
        """Share of the blanks that are right as a whole."""
        return self._per_example(self.is_right, [1] * len(self.blanks), length)

    def token_accuracy(self, length: int | None = None) -> Estimate:
        """Share of the blank tokens that are right."""
        return self._per_example(self.right_tokens, [blank.length for blank in self.blanks], length)

    def _per_example(self, totals: torch.Tensor, counts: list[int], length: int | None) -> Estimate:
        """A ratio of sums; blanks of an example are no independent draws, examples are."""
        chosen = np.array([length in (None, blank.length) for blank in self.blanks])
        examples = np.array([blank.example for blank in self.blanks])[chosen]
        sums = [np.bincount(examples, weights=np.asarray(each, dtype=np.float64)[chosen]) for each in (totals, counts)]
        return ratio(*sums)

    def to_dict(self) -> list[dict[str, int | float | None]]:
        """The figures for each blank length; standard errors are over examples."""
        curve = []
        for length in sorted({blank.length for blank in self.blanks}):
            row = {"blank_length": length, "blanks": sum(blank.length == length for blank in self.blanks)}
            for name in ("nll", "accuracy", "token_accuracy"):
                value, error = getattr(self, name)(length)
                row |= {name: value, f"{name}_standard_error": error}
            curve.append(row)
        return curve


@torch.no_grad()
def evaluate_infilling(
    model,
    dataset: Sized,
    tokenizer,
    blank_lengths: Sequence[int] = (1, 2, 4, 8, 16),
    *,
    blanks_per_example: int = 2,
    decoding_order: str = "left_to_right",
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> InfillingResult:
    """Fills blanks of held-out text greedily, and scores what stood there.

    Given tokens come in the context order of the model's generation config, else from left to right.

    Args:
        model: an `AOARMForMaskedLM`, or an `AOARMForCausalLM` of any variant but `causal`, which cannot see what is to
            the right of a blank.
        dataset: indexable rows with `input_ids`, sentence order, without BOS or with it.
        tokenizer: gives the BOS that is put first.
        blank_lengths, blanks_per_example, seed: see [`place_blanks`].
        decoding_order: a name that `generate` takes, for filling. Scores are from left to right within the blank.
        batch_size: canvases in a call; it changes nothing.
        progress: show a progress bar.

    Raises:
        TypeError: `dataset` has no length.
        ValueError: as in [`place_blanks`], `generate` and `score`; `batch_size` is no integer of at least 1.
    """
    check_count("batch_size", batch_size)
    rows = sentences_of(dataset, tokenizer)
    blanks = place_blanks([len(ids) for ids in rows], blank_lengths, blanks_per_example, seed)
    nll, right, filled = torch.zeros(len(blanks), dtype=torch.float64), [], []
    with evaluation_mode(model):
        for start in tqdm(range(0, len(blanks), batch_size), desc="infilling", leave=False, disable=not progress):
            chunk = blanks[start : start + batch_size]
            ids, mask, is_blank = _canvases(rows, chunk, input_device(model))
            scored = model.score(ids, is_blank, attention_mask=mask, decoding_order="left_to_right")
            nll[start : start + len(chunk)] = -scored.log_likelihood[0].double().cpu()
            sequences = model.generate(
                ids,
                attention_mask=mask,
                generation_mask=is_blank,
                decoding_order=decoding_order,
                tokens_per_step=1,
                do_sample=False,
                # An end of sentence would close blanks whose length is given.
                eos_token_id=None,
                generator=[example_generator(seed, number) for number in range(start, start + len(chunk))],
            )
            right += ((sequences == ids) & is_blank).sum(1).tolist()
            filled += [own[blank].tolist() for own, blank in zip(sequences, is_blank, strict=True)]
    return InfillingResult(blanks, nll, torch.tensor(right), filled)


@torch.no_grad()
def context_ensemble(
    model,
    dataset: Sized,
    tokenizer,
    blanks: Sequence[Blank],
    *,
    num_orders: int = 8,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> AveragedNLL:
    """NLL of blanks where each token's probability is averaged over orders of the given tokens.

    Models whose rows are in generation order read the given tokens as rows, and what they predict depends on the order
    of these. Here each blank token, from left to right, gets the mean over K uniform orders of its probability given
    everything before it: an ensemble of conditionals, as in AO-GPT (2506.19935). Each step is a distribution, so their
    product is one too, and a true likelihood. (The average of whole blanks' probabilities is another one; neither is
    always the larger.) The BOS stays first. For `bidirectional` the order of what is given changes nothing.

    Args:
        model, dataset, tokenizer, batch_size, progress: as in [`evaluate_infilling`].
        blanks: such as its result's `blanks`; the NLL there is in the model's own context order.
        num_orders: how many context orders are drawn; K is 1, 2, 4, ... and `num_orders`.
        seed: seed of the context orders.

    Returns:
        [`AveragedNLL`], whose examples are the blanks.

    Raises:
        TypeError: `dataset` has no length.
        ValueError: `num_orders` or `batch_size` is no integer of at least 1, there are no blanks, and as in `score`.
    """
    check_count("num_orders", num_orders)
    check_count("batch_size", batch_size)
    if not blanks:
        raise ValueError("blanks must hold at least one blank, got none.")
    rows = sentences_of(dataset, tokenizer)
    first = 0 if tokenizer.bos_token_id is None else 1
    group_nll = {size: [] for size in group_sizes(num_orders)}
    with evaluation_mode(model):
        for start in tqdm(range(0, len(blanks), batch_size), desc="context orders", leave=False, disable=not progress):
            chunk = blanks[start : start + batch_size]
            ids, mask, is_blank = _canvases(rows, chunk, input_device(model))
            given = [
                [
                    column
                    for column in range(first, len(rows[each.example]))
                    if not 0 <= column - each.start < each.length
                ]
                for each in chunk
            ]
            token_log_probs = []
            for number in range(num_orders):
                orders = sample_orders(
                    "uniform",
                    [len(columns) for columns in given],
                    example_indices=range(start, start + len(chunk)),
                    seed=seed,
                    epoch=number,
                ).columns
                context = torch.full((len(chunk), first + orders.shape[1]), -1)
                context[:, :first] = 0
                for own, columns, order in zip(context, given, orders, strict=True):
                    own[first : first + len(columns)] = torch.tensor(columns)[order[: len(columns)]]
                scored = model.score(
                    ids,
                    is_blank,
                    attention_mask=mask,
                    decoding_order="left_to_right",
                    context_order=context.to(input_device(model)),
                )
                token_log_probs.append(scored.token_log_probs[0].double().cpu())
            stacked = torch.stack(token_log_probs)
            for size, groups in group_nll.items():
                # Columns that are given hold 0 in every order, and in the mean.
                groups.append(-averaged_log_probs(stacked, size).sum(-1))
    tokens = torch.tensor([blank.length for blank in blanks])
    return AveragedNLL({size: torch.cat(groups, dim=1) for size, groups in group_nll.items()}, tokens)


def _canvases(
    rows: list[list[int]], blanks: Sequence[Blank], device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sentences, attention masks (int64) and blanks (bool), all `[batch, columns]`."""
    ids, mask = (each.to(device) for each in padded_rows([rows[blank.example] for blank in blanks]))
    starts = torch.tensor([blank.start for blank in blanks], device=device)[:, None]
    stops = starts + torch.tensor([blank.length for blank in blanks], device=device)[:, None]
    columns = torch.arange(ids.shape[1], device=device)
    return ids, mask, (columns >= starts) & (columns < stops)


__all__ = ["Blank", "InfillingResult", "context_ensemble", "evaluate_infilling", "place_blanks"]
