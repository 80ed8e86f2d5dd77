# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Infilling of held-out text: accuracy and NLL by blank length, and averages over orders of the context.

A canvas has one blank, a run of columns. The rest of the sentence is given. An example gets several blanks of the same
length, which do not overlap, each in its own canvas.
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..canvas_aoarm import check_count, padded_rows
from ..compat_aoarm import input_device
from ..data.orders import sample_orders
from ..infilling_aoarm import with_bos
from .likelihood import AveragedNLL, check_dataset, evaluation_mode, make_generator
from .stats import Estimate, estimate_ratio


@dataclass(frozen=True)
class Blank:
    """A run of blank columns in a sentence.

    Attributes:
        example: the sentence's index in the data set.
        start: the run's first column. Column 0 is the sentence's first token (its BOS, if the tokenizer has one).
        length: the number of columns.
    """

    example: int
    start: int
    length: int


def place_blanks(
    sentence_lengths: Sequence[int], blank_lengths: Sequence[int], per_example: int = 2, seed: int = 0
) -> list[Blank]:
    """Draws the columns of blanks for each sentence and blank length.

    A sentence gets `per_example` blanks of each length, or as many as fit. The first token is never blank, and blanks
    of the same length do not touch. All placements are equally likely. They depend only on the seed, the blank length
    and the sentence's index.

    Args:
        sentence_lengths: columns of each sentence, its first token included.
        blank_lengths: different lengths.
        per_example: the largest number of blanks of one length in a sentence.
        seed: seed of the draws.

    Returns:
        The blanks, sorted by blank length, then by sentence, then from left to right.

    Raises:
        ValueError: `per_example` or a blank length is not an integer of at least 1, a length is repeated, or no
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
            # At least one given column separates two blanks.
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


def place_middles(
    sentence_lengths: Sequence[int], shortest: int, longest: int, margin: int = 8, seed: int = 0
) -> list[Blank]:
    """Draws one blank in the middle of each sentence that is long enough.

    All lengths from `shortest` to `longest` are equally likely, then all starts. Draws depend only on the seed and the
    sentence's index.

    Args:
        sentence_lengths: columns of each sentence, its first token included.
        shortest, longest: the number of columns of a blank.
        margin: the smallest number of given columns on either side. Shorter sentences are skipped.
        seed: seed of the draws.

    Raises:
        ValueError: a number is not an integer of at least 1, `shortest` is above `longest`, or no sentence is long
            enough.
    """
    for name, value in (("shortest", shortest), ("longest", longest), ("margin", margin)):
        check_count(name, value)
    if shortest > longest:
        raise ValueError(f"shortest must be at most longest={longest}, got {shortest}.")
    blanks = []
    for example, columns in enumerate(sentence_lengths):
        if columns >= longest + 2 * margin:
            rng = np.random.default_rng((seed, example))
            length = int(rng.integers(shortest, longest, endpoint=True))
            start = int(rng.integers(margin, columns - margin - length, endpoint=True))
            blanks.append(Blank(example, start, length))
    if not blanks:
        raise ValueError(
            f"longest and margin must fit some sentence, got {longest} and {margin} for sentences of at most "
            f"{max(sentence_lengths, default=0)} tokens."
        )
    return blanks


def count_right_tokens(filled: Sequence[Sequence[int]], original: Sequence[Sequence[int]]) -> list[int]:
    """Counts the tokens of each blank that are filled with the original token.

    Args:
        filled: token ids of each filled blank.
        original: token ids of each blank in the text, as many.

    Raises:
        ValueError: a blank was filled with another number of tokens, or has none.
    """
    counts = []
    for number, (own, blank) in enumerate(zip(filled, original, strict=True)):
        if len(own) != len(blank) or len(blank) == 0:
            raise ValueError(
                f"filled blanks must have as many tokens as the original ones, at least one; got {len(own)} for "
                f"{len(blank)} in blank {number}."
            )
        counts.append(sum(a == b for a, b in zip(own, blank, strict=True)))
    return counts


@dataclass(frozen=True)
class InfillingResult:
    """The likelihood and the greedy filling of each blank.

    Attributes:
        blanks: where the blanks are.
        blank_nll: float64 `[blanks]`, nats summed over a blank's tokens, from left to right, given the rest.
        filled: token ids that greedy decoding filled into each blank.
        right_tokens: int64 `[blanks]`, the number of tokens of each blank that were filled as in the text.
    """

    blanks: list[Blank]
    blank_nll: torch.Tensor
    filled: list[list[int]]
    right_tokens: torch.Tensor

    @property
    def is_right(self) -> torch.Tensor:
        """Whether all tokens of a blank were filled as in the text: bool `[blanks]`."""
        return self.right_tokens == torch.tensor([blank.length for blank in self.blanks])

    def nll(self, length: int | None = None) -> Estimate:
        """Nats per blank token, for the blanks of one length or for all."""
        return self._estimate(self.blank_nll, length)

    def accuracy(self, length: int | None = None) -> Estimate:
        """Share of the blanks that are right as a whole."""
        return self._estimate(self.is_right, length, per_token=False)

    def token_accuracy(self, length: int | None = None) -> Estimate:
        """Share of the blank tokens that are right."""
        return self._estimate(self.right_tokens, length)

    def _estimate(self, totals: torch.Tensor, length: int | None, per_token: bool = True) -> Estimate:
        """Sums over the blanks of each example, since only examples are independent draws."""
        chosen = [number for number, blank in enumerate(self.blanks) if length in (None, blank.length)]
        examples = [self.blanks[number].example for number in chosen]
        counts = [self.blanks[number].length if per_token else 1 for number in chosen]
        return estimate_ratio(np.bincount(examples, totals[chosen].double()), np.bincount(examples, counts))

    def to_dict(self) -> list[dict[str, int | float | None]]:
        """The estimates for each blank length, as JSON takes them. Standard errors are over examples."""
        curve = []
        for length in sorted({blank.length for blank in self.blanks}):
            row = {"blank_length": length, "blanks": sum(blank.length == length for blank in self.blanks)}
            for name in ("nll", "accuracy", "token_accuracy"):
                row[name], row[f"{name}_standard_error"] = getattr(self, name)(length)
            curve.append(row)
        return curve


@torch.no_grad()
def evaluate_infilling(
    model,
    dataset: Sized,
    tokenizer,
    blanks: Sequence[Blank] | Sequence[int] = (1, 2, 4, 8, 16),
    *,
    blanks_per_example: int = 2,
    sees_right: bool = True,
    decoding_order: str = "left_to_right",
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> InfillingResult:
    """Fills blanks of held-out text greedily, and scores the original tokens.

    The context comes in the context order of the model's generation config (by default from left to right).

    Args:
        model: an `AOARMForMaskedLM` or an `AOARMForCausalLM`. The variant `causal` needs `sees_right=False`.
        dataset: indexable examples with `input_ids`, in sentence order, with or without BOS.
        tokenizer: gives the BOS, which is put first.
        blanks: the blanks, or the lengths of blanks that [`place_blanks`] draws.
        blanks_per_example, seed: see [`place_blanks`]; not used if the blanks are given.
        sees_right: whether the text to the right of a blank is given. If not, the sentence ends with the blank.
        decoding_order: the order in which blanks are filled, a name that `generate` takes. Scores are from left to
            right within the blank.
        batch_size: canvases per call. Results do not depend on it.
        progress: whether to show a progress bar.

    Raises:
        TypeError: `dataset` has no length.
        ValueError: as in [`place_blanks`], `generate` and `score`, or `batch_size` is not an integer of at least 1.
    """
    check_count("batch_size", batch_size)
    sentences = _read_sentences(dataset, tokenizer)
    if not blanks or not all(isinstance(blank, Blank) for blank in blanks):
        blanks = place_blanks([len(ids) for ids in sentences], blanks, blanks_per_example, seed)
    nll, filled, original = [], [], []
    with evaluation_mode(model):
        for start in tqdm(range(0, len(blanks), batch_size), desc="infilling", leave=False, disable=not progress):
            chunk = blanks[start : start + batch_size]
            ids, mask, is_blank = _lay_out_canvases(sentences, chunk, input_device(model), sees_right)
            scored = model.score(ids, is_blank, attention_mask=mask, decoding_order="left_to_right")
            nll.append(scored.log_likelihood[0].double().cpu().neg())
            sequences = model.generate(
                ids,
                attention_mask=mask,
                generation_mask=is_blank,
                decoding_order=decoding_order,
                tokens_per_step=1,
                do_sample=False,
                # An end-of-sentence token would close blanks of a given length.
                eos_token_id=None,
                generator=[make_generator(seed, number) for number in range(start, start + len(chunk))],
            )
            for result, tokens in ((filled, sequences), (original, ids)):
                result += [own[blank].tolist() for own, blank in zip(tokens, is_blank, strict=True)]
    return InfillingResult(list(blanks), torch.cat(nll), filled, torch.tensor(count_right_tokens(filled, original)))


@torch.no_grad()
def evaluate_context_orders(
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
    """Measures the NLL of blanks under the mean of each token's probability over orders of the context.

    The predictions of a model whose rows are in generation order depend on the order of the context. Here each blank
    token, from left to right, gets the mean of its conditional probability over K uniform orders of the context, an
    ensemble of conditionals as in AO-GPT (2506.19935). Each step is a distribution, so the product of the steps is a
    likelihood. It differs from the mean of the probabilities of whole blanks, and either may be larger. The BOS stays
    first. For `bidirectional` the order of the context changes nothing.

    Args:
        model, dataset, tokenizer, batch_size, progress: as in [`evaluate_infilling`].
        blanks: for example those of an [`InfillingResult`], whose NLL is in the model's own context order.
        num_orders: the number of context orders to draw. K is 1, 2, 4, ... and `num_orders`.
        seed: seed of the context orders.

    Returns:
        An [`AveragedNLL`] whose examples are the blanks.

    Raises:
        TypeError: `dataset` has no length.
        ValueError: `num_orders` or `batch_size` is not an integer of at least 1, there are no blanks, or as in `score`.
    """
    check_count("num_orders", num_orders)
    check_count("batch_size", batch_size)
    if not blanks:
        raise ValueError("blanks must hold at least one blank, got none.")
    sentences = _read_sentences(dataset, tokenizer)
    # The BOS is the first row in every order.
    first = torch.zeros(int(tokenizer.bos_token_id is not None), dtype=torch.int64)
    log_probs = torch.zeros(num_orders, len(blanks), max(blank.length for blank in blanks), dtype=torch.float64)
    steps = range(0, len(blanks), batch_size)
    with evaluation_mode(model):
        for start in tqdm(steps, desc="context orders", leave=False, disable=not progress):
            chunk = blanks[start : start + batch_size]
            ids, mask, is_blank = _lay_out_canvases(sentences, chunk, input_device(model), sees_right=True)
            is_given = mask.bool() & ~is_blank
            is_given[:, : len(first)] = False
            given = [row.nonzero()[:, 0] for row in is_given.cpu()]
            indices, lengths = range(start, start + len(chunk)), [len(columns) for columns in given]
            for number in range(num_orders):
                drawn = sample_orders("uniform", lengths, example_indices=indices, seed=seed, epoch=number).columns
                rows = [torch.cat([first, own[order[: len(own)]]]) for own, order in zip(given, drawn, strict=True)]
                scored = model.score(
                    ids,
                    is_blank,
                    attention_mask=mask,
                    decoding_order="left_to_right",
                    context_order=pad_sequence(rows, batch_first=True, padding_value=-1).to(input_device(model)),
                )
                for index, own, blank in zip(indices, scored.token_log_probs[0], is_blank, strict=True):
                    log_probs[number, index, : blanks[index].length] = own[blank]
    return AveragedNLL.from_log_probs(log_probs, torch.tensor([blank.length for blank in blanks]))


def _read_sentences(dataset: Sized, tokenizer) -> list[list[int]]:
    """Reads the token ids of all examples. The BOS is put first if the tokenizer has one."""
    check_dataset(dataset)
    return [with_bos(tokenizer, list(dataset[index]["input_ids"])) for index in range(len(dataset))]


def _lay_out_canvases(
    sentences: list[list[int]], blanks: Sequence[Blank], device, sees_right: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Makes token ids and attention masks, int64, and blanks, bool; each `[batch, columns]`."""
    ends = [None if sees_right else blank.start + blank.length for blank in blanks]
    rows = [sentences[blank.example][:end] for blank, end in zip(blanks, ends, strict=True)]
    ids, mask = (each.to(device) for each in padded_rows(rows))
    starts = torch.tensor([blank.start for blank in blanks], device=device)[:, None]
    stops = starts + torch.tensor([blank.length for blank in blanks], device=device)[:, None]
    columns = torch.arange(ids.shape[1], device=device)
    return ids, mask, (columns >= starts) & (columns < stops)
