# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Exact likelihoods of a data set in several orders, and what follows from them: the ELBO and the multi-order bound.

What is predicted is everything but a sentence's first token, which is the beginning-of-sentence token (BOS) where the
tokenizer has one. p_s(x) is the probability of a sentence x in the order s, p(x) its mean over the orders s of a
distribution, and `E` the mean over orders that are drawn:

| figure | is | by |
| --- | --- | --- |
| any-order NLL | -E log p_s(x) | [`exact_order_nll`] |
| ELBO | E log p_s(x), at most log p(x) | [`estimate_elbo`], from fewer passes of `bidirectional` |
| multi-order bound | E log((p_1(x) + ... + p_K(x)) / K), from the ELBO (K = 1) up to log p(x) | [`multi_order_bound`] |
"""

import math
from collections.abc import Iterator, Sized
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from ..canvas_aoarm import check_count, padded_rows
from ..compat_aoarm import input_device
from ..data.orders import OrderSpec, sample_orders
from ..infilling_aoarm import with_bos
from .likelihood import OrderNLL, evaluation_mode
from .stats import Estimate


def sentences_of(dataset: Sized, tokenizer) -> list[list[int]]:
    """Token ids of a data set's rows, with the tokenizer's BOS in front (once) where it has one.

    Args:
        dataset: indexable rows with `input_ids`, sentence order, without BOS or with it.
        tokenizer: gives the BOS.

    Raises:
        TypeError: `dataset` has no length.
        ValueError: `dataset` is empty, or no row has more than its first token, so that nothing is predicted.
    """
    if not isinstance(dataset, Sized):
        raise TypeError(f"dataset must have a length (no streamed data set), got {type(dataset).__name__}.")
    rows = [with_bos(tokenizer, [int(token) for token in dataset[index]["input_ids"]]) for index in range(len(dataset))]
    if max(map(len, rows), default=0) < 2:
        raise ValueError(f"dataset must have tokens to predict behind a first one, got none in {len(rows)} rows.")
    return rows


def example_generator(*key: int) -> torch.Generator:
    """Random numbers that are a function of a key of integers >= 0, such as (seed, draw, index)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


@torch.no_grad()
def exact_order_nll(
    model,
    dataset: Sized,
    tokenizer,
    order: OrderSpec = "uniform",
    *,
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 32,
    characters: int | None = None,
    progress: bool = True,
) -> OrderNLL:
    """NLL of a tokenised data set in orders drawn from one distribution, exact in each order for every variant.

    Draw k gives example i the order that `sample_orders` makes from (`seed`, k, i), as in
    [`~modeling_aoarm.evaluation.likelihood.evaluate_order`], which finds the same numbers for models
    whose rows are in generation order.
    Of a `bidirectional` model that function makes an estimate by one pass for each draw; here each token is a
    pass, which is what a bound over several orders needs.

    Args:
        model: an `AOARMForCausalLM` or `AOARMForMaskedLM`; put in evaluation mode for the time of the call.
        dataset: indexable rows with `input_ids`, sentence order, without BOS or with it.
        tokenizer: gives the BOS that is put first.
        order: anything that `sample_orders` takes and that gives no context. `causal` knows `left_to_right` only.
        draws: how many orders each example is scored in; 1 for orders that are not random.
        seed: seed of the orders.
        batch_size: examples per forward pass; it changes nothing.
        characters: number of characters that the predicted tokens of one draw spell, for bits per character.
        progress: show a progress bar.

    Raises:
        TypeError: `dataset` has no length.
        ValueError: `draws` or `batch_size` is no integer of at least 1, the distribution gives some tokens as context,
            nothing is predicted, and as in `model.score`.
    """
    check_count("draws", draws)
    check_count("batch_size", batch_size)
    rows = sentences_of(dataset, tokenizer)
    nll = torch.zeros(draws, len(rows), dtype=torch.float64)
    for draw, batch in _batches(model, rows, draws, batch_size, str(order), progress):
        ids, mask = (each.to(input_device(model)) for each in padded_rows([rows[index] for index in batch]))
        lengths = [len(rows[index]) - 1 for index in batch]
        drawn = sample_orders(order, lengths, example_indices=batch, seed=seed, epoch=draw)
        if drawn.num_context.any():
            raise ValueError(f"order must predict every token of a sentence, got {order} with tokens as context.")
        # Column 0 is the first token, which is given.
        columns = torch.where(drawn.columns >= 0, drawn.columns + 1, -1).to(input_device(model))
        scored = model.score(ids, attention_mask=mask, decoding_order=columns)
        nll[draw, batch] = -scored.log_likelihood[0].double().cpu()
    return OrderNLL(str(order), nll, _tokens(rows, draws), characters)


@torch.no_grad()
def estimate_elbo(
    model,
    dataset: Sized,
    tokenizer,
    *,
    draws: int = 4,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    characters: int | None = None,
    progress: bool = True,
) -> OrderNLL:
    """Negative ELBO: the NLL averaged over all orders, estimated without bias from few passes.

    A draw is the mean of `samples` estimates. For models whose rows are in generation order an estimate is the exact
    NLL in one uniform order. For `bidirectional` it is one pass with a random number of tokens masked (see its
    `score`), and the numbers of a draw are spread evenly. Draws are independent, so the standard error over them holds.

    Args:
        model: an `AOARMForMaskedLM`, or an `AOARMForCausalLM` of any variant but `causal`.
        dataset, tokenizer, seed, batch_size, characters, progress: as in [`exact_order_nll`].
        draws: how many estimates of the figure, for its standard error.
        samples: how many passes each draw makes over an example.

    Returns:
        An [`~modeling_aoarm.evaluation.likelihood.OrderNLL`] of the order `uniform`.

    Raises:
        TypeError, ValueError: as in [`exact_order_nll`], for `samples` as for `draws`.
    """
    check_count("draws", draws)
    check_count("samples", samples)
    if model.config.attention_variant != "bidirectional":
        options = {"seed": seed, "batch_size": batch_size, "characters": characters, "progress": progress}
        exact = exact_order_nll(model, dataset, tokenizer, draws=draws * samples, **options)
        nll = exact.example_nll.view(draws, samples, -1).mean(1)
        return OrderNLL(exact.order, nll, exact.example_tokens[:draws], characters)
    check_count("batch_size", batch_size)
    rows = sentences_of(dataset, tokenizer)
    nll = torch.zeros(draws, len(rows), dtype=torch.float64)
    for draw, batch in _batches(model, rows, draws, batch_size, "elbo", progress):
        ids, mask = (each.to(input_device(model)) for each in padded_rows([rows[index] for index in batch]))
        generators = [example_generator(seed, draw, index) for index in batch]
        scored = model.score(ids, attention_mask=mask, method="elbo", num_samples=samples, generator=generators)
        nll[draw, batch] = -scored.log_likelihood.double().mean(0).cpu()
    return OrderNLL("uniform", nll, _tokens(rows, draws), characters)


def _batches(
    model, rows: list[list[int]], draws: int, batch_size: int, what: str, progress: bool
) -> Iterator[tuple[int, list[int]]]:
    """Each draw with the numbers of rows in which something is predicted; the model is in evaluation mode."""
    longer = [index for index, ids in enumerate(rows) if len(ids) > 1]
    batches = [longer[start : start + batch_size] for start in range(0, len(longer), batch_size)]
    with evaluation_mode(model), tqdm(total=draws * len(batches), desc=what, leave=False, disable=not progress) as bar:
        for draw in range(draws):
            for batch in batches:
                yield draw, batch
                bar.update()


def _tokens(rows: list[list[int]], draws: int) -> torch.Tensor:
    """Predicted tokens, int64 `[draws, examples]`."""
    return torch.tensor([max(0, len(ids) - 1) for ids in rows]).repeat(draws, 1)


@dataclass(frozen=True)
class AveragedNLL:
    """NLL where the probabilities under K orders are averaged, for several K.

    Of M drawn orders, K give M // K disjoint groups. The figure for K is the mean over the groups: without bias for K
    fresh orders, and all groups count. The orders of different examples are independent, which the standard errors use.

    Attributes:
        group_nll: for each K, float64 `[groups, examples]`: nats of each example with the average over each group.
        example_tokens: int64 `[examples]`, how many tokens of each example were predicted.
        characters: number of characters that the predicted tokens spell, where the caller gave it.
    """

    group_nll: dict[int, torch.Tensor]
    example_tokens: torch.Tensor
    characters: int | None = None

    def example_nll(self, num_orders: int) -> torch.Tensor:
        """Nats of each example with K = `num_orders`, the mean over groups: float64 `[examples]`."""
        return self.group_nll[num_orders].mean(0)

    def nll(self, num_orders: int) -> Estimate:
        """Nats per predicted token; the standard error is over the orders, the text held fixed."""
        return self._per(num_orders, int(self.example_tokens.sum()))

    def bits_per_character(self, num_orders: int) -> Estimate | None:
        """Bits per character of the text, and their standard error over orders; None without a character count."""
        return None if self.characters is None else self._per(num_orders, self.characters * math.log(2))

    def _per(self, num_orders: int, count: float) -> Estimate:
        groups = self.group_nll[num_orders]
        value = float(groups.mean(0).sum()) / count
        if len(groups) == 1:
            return Estimate(value, None)
        return Estimate(value, float((groups.var(0, correction=1).sum() / len(groups)).sqrt()) / count)

    def to_dict(self) -> list[dict[str, int | float | None]]:
        """The figures for each K."""
        curve = []
        for size, groups in self.group_nll.items():
            (nll, nll_error), bits = self.nll(size), self.bits_per_character(size) or (None, None)
            curve.append(
                {
                    "orders": size,
                    "groups": len(groups),
                    "nll": nll,
                    "standard_error": nll_error,
                    "bits_per_character": bits[0],
                    "bits_per_character_standard_error": bits[1],
                }
            )
        return curve


def group_sizes(num_orders: int) -> list[int]:
    """1, 2, 4, ... up to `num_orders`, and `num_orders` itself."""
    return sorted({2**power for power in range(num_orders.bit_length())} | {num_orders})


def averaged_log_probs(log_probs: torch.Tensor, size: int) -> torch.Tensor:
    """Logs of mean probabilities over disjoint groups of `size` orders, `[orders, ...]` to `[orders // size, ...]`."""
    groups = len(log_probs) // size
    return log_probs[: groups * size].unflatten(0, (groups, size)).logsumexp(1) - math.log(size)


def multi_order_bound(result: OrderNLL) -> AveragedNLL:
    """The importance-weighted bound (1509.00519) on log p(x) from K orders, for K = 1, 2, 4, ... and all there are.

    As an NLL: -log((p_1(x) + ... + p_K(x)) / K). Orders come from the mixture's own distribution, so all weights are
    equal. Its mean is the any-order NLL for K = 1, falls as K grows (doubling K never raises the figure, by Jensen's
    inequality) and arrives at -log p(x).

    Args:
        result: from [`exact_order_nll`], or from `evaluate_order` for a model whose rows are in generation order. The
            estimates that `evaluate_order` makes for `bidirectional` give no bound: they may be below the exact NLL.

    Raises:
        ValueError: the draws predicted different numbers of an example's tokens.
    """
    if (result.example_tokens != result.example_tokens[0]).any():
        raise ValueError(f"result must have the same predicted tokens in every draw, got others in {result.order}.")
    sizes = group_sizes(len(result.example_nll))
    return AveragedNLL(
        {size: -averaged_log_probs(-result.example_nll, size) for size in sizes},
        result.example_tokens[0],
        result.characters,
    )


__all__ = [
    "AveragedNLL",
    "averaged_log_probs",
    "estimate_elbo",
    "exact_order_nll",
    "example_generator",
    "group_sizes",
    "multi_order_bound",
    "sentences_of",
]
