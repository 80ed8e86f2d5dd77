# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Likelihood of a data set under any-order and left-to-right factorisations, and bounds over several orders.

Every token of a sentence is predicted except the first one, which is the beginning-of-sentence token (BOS) if the
tokenizer has one. Let p_s(x) be the probability of a sentence x in the order s, p(x) the mean of p_s(x) over the orders
s of a distribution, and E the expectation over drawn orders:

| quantity | formula | function |
| --- | --- | --- |
| any-order NLL | -E log p_s(x) | [`evaluate_likelihood`] |
| ELBO | E log p_s(x), at most log p(x) | minus the NLL of [`evaluate_likelihood`] in uniform orders |
| multi-order bound | E log((p_1(x) + ... + p_K(x)) / K), from the ELBO (K = 1) up to log p(x) | [`bound_likelihood`] |
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm.auto import tqdm

from ..canvas_aoarm import check_count
from ..compat_aoarm import input_device, needs_all_processes
from ..data.collators import DataCollatorForAnyOrderLM
from ..data.masked_diffusion import collator_class_for
from ..data.orders import OrderSpec
from ..decoding_aoarm import default_context_order
from .stats import Estimate


@dataclass(frozen=True)
class OrderNLL:
    """Negative log-likelihood (NLL) of a data set under several draws of one order distribution.

    Attributes:
        order: the distribution, as `sample_orders` takes it.
        example_nll: float64 `[draws, examples]`, nats summed over the predicted tokens of each example.
        example_tokens: int64 `[draws, examples]`, the number of predicted tokens of each example.
        characters: the number of characters that the predicted tokens of one draw spell, or None if it is not known.
    """

    order: str
    example_nll: torch.Tensor
    example_tokens: torch.Tensor
    characters: int | None = None

    @property
    def tokens(self) -> int:
        """The number of predicted tokens of all draws together."""
        return int(self.example_tokens.sum())

    @property
    def nll(self) -> float:
        """Nats per predicted token. All tokens of all draws have the same weight."""
        return float(self.example_nll.sum()) / self.tokens

    @property
    def nll_per_draw(self) -> list[float]:
        """Nats per predicted token of each draw."""
        return (self.example_nll.sum(1) / self.example_tokens.sum(1)).tolist()

    @property
    def standard_error(self) -> float | None:
        """Standard error of `nll` over the drawn orders, for this fixed text. None for a single draw."""
        return _standard_error(self.nll_per_draw)

    @property
    def bits_per_character(self) -> float | None:
        """Bits per character of the text, averaged over the draws. None without a character count."""
        return None if self.characters is None else float(np.mean(self._bits_per_draw()))

    @property
    def bits_per_character_standard_error(self) -> float | None:
        """Standard error of `bits_per_character` over the draws. None for one draw or without a character count."""
        return None if self.characters is None else _standard_error(self._bits_per_draw())

    def _bits_per_draw(self) -> list[float]:
        return (self.example_nll.sum(1) / (self.characters * math.log(2))).tolist()

    def to_dict(self) -> dict[str, str | int | float | list[float] | None]:
        """The properties, without the tensors, as JSON takes them."""
        names = ("tokens", "nll", "nll_per_draw", "standard_error", "characters", "bits_per_character")
        return {
            "order": self.order,
            "draws": len(self.example_nll),
            **{name: getattr(self, name) for name in names},
            "bits_per_character_standard_error": self.bits_per_character_standard_error,
        }


def _standard_error(values: list[float]) -> float | None:
    """Standard error of the mean of independent values; None for a single value."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


@contextlib.contextmanager
def evaluation_mode(model) -> Iterator[None]:
    """Puts the model in evaluation mode for the block, and back in its earlier mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def evaluate_likelihood(
    model,
    dataset: Sized,
    tokenizer,
    order: OrderSpec = "uniform",
    *,
    exact: bool = False,
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 32,
    characters: int | None = None,
    max_length: int | None = None,
    accelerator=None,
    progress: bool = True,
) -> OrderNLL:
    """Measures the NLL of a tokenised data set in orders drawn from one distribution.

    Draw k gives example i the order that `sample_orders` makes from (`seed`, k, i). The orders depend neither on the
    batch size nor on the number of processes, so two models see the same ones.

    A model whose rows are in generation order is scored exactly, by one forward pass per draw. A `bidirectional` model
    needs one pass per token for that. By default it makes one pass per draw, in which a random prefix of the order is
    visible. This estimates the NLL without bias (see [`DataCollatorForMaskedDiffusion`]), and the standard error over
    draws includes the noise of the estimate. A bound over several orders needs `exact=True`.

    Args:
        model: an `AOARMForCausalLM` or `AOARMForMaskedLM`.
        dataset: indexable examples with `input_ids`, in sentence order, with or without BOS. `labels` are optional and
            hold -100 for tokens that are given and not predicted.
        tokenizer: gives the BOS, which is put first, and the padding id.
        order: anything that `sample_orders` takes. `causal` takes `left_to_right` only.
        exact: whether a `bidirectional` model predicts each token in a pass of its own.
        draws: the number of orders in which each example is scored. Use 1 for orders that are not random, unless the
            NLL of a `bidirectional` model is estimated.
        seed: seed of the orders.
        batch_size: examples per forward pass and process. Results do not depend on it.
        characters: the number of characters that the predicted tokens of one draw spell, for bits per character. It
            makes sense only for orders that predict the whole text.
        max_length: as in [`DataCollatorWithOrders`].
        accelerator: an `accelerate.Accelerator`. Each of its processes scores a share of the batches, and all processes
            get all results. The weights may be sharded. Its mixed precision is used.
        progress: whether to show a progress bar, on the main process.

    Raises:
        TypeError: `dataset` has no length.
        ValueError: `draws` or `batch_size` is not an integer of at least 1, nothing is predicted in some draw, or the
            weights of a model that is scored with `exact` are sharded.
    """
    check_count("draws", draws)
    check_count("batch_size", batch_size)
    check_dataset(dataset)
    by_token = exact and model.config.attention_variant == "bidirectional"
    if by_token and needs_all_processes(model):
        raise ValueError("exact must be False where weights are sharded, because numbers of passes differ; got True.")
    kind = DataCollatorForAnyOrderLM if by_token else collator_class_for(model.config)
    collator = kind(tokenizer, order=order, seed=seed, max_length=max_length)
    if kind is DataCollatorForAnyOrderLM:
        # As in `score`.
        collator.context_order = default_context_order(model.generation_config)
    score_batch = _score_by_token if by_token else _score_in_one_pass
    process_index, num_processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    precision = accelerator.autocast if accelerator else contextlib.nullcontext

    nll = torch.zeros(draws, len(dataset), dtype=torch.float64)
    tokens = torch.zeros(draws, len(dataset), dtype=torch.int64)
    # With tensor parallelism, processes that hold parts of the same layers score the same batches. One of them counts.
    parts = getattr(model, "tp_size", None) or 1
    share, shares, is_first_part = process_index // parts, num_processes // parts, process_index % parts == 0
    batches = math.ceil(len(dataset) / batch_size)
    # With sharded weights (FSDP, ZeRO-3) a forward pass needs all processes, so a process without a batch repeats one.
    passes = range(share, math.ceil(batches / shares) * shares, shares)
    bar = tqdm(total=draws * len(passes), desc=str(order), leave=False, disable=not progress or process_index > 0)
    with evaluation_mode(model), bar:
        for draw in range(draws):
            collator.start_epoch(draw)
            for number in passes:
                start = number % batches * batch_size
                indices = range(start, min(start + batch_size, len(dataset)))
                batch = collator([_read_example(dataset[i], i, tokenizer) for i in indices])
                with precision():
                    example_nll = score_batch(model, batch)
                if number < batches and is_first_part:
                    nll[draw, start : start + len(indices)] = example_nll.cpu()
                    # Row 0 is given in every order.
                    tokens[draw, start : start + len(indices)] = batch["labels"].ne(-100).sum(1)
                bar.update()
    if num_processes > 1:
        # One process has scored each example, and the others hold zeros.
        nll = accelerator.reduce(nll.to(accelerator.device), "sum").cpu()
        tokens = accelerator.reduce(tokens.to(accelerator.device), "sum").cpu()
    if not tokens.sum(1).all():
        raise ValueError(f"dataset must have tokens to predict in the order {order}, got none in some draw.")
    return OrderNLL(str(order), nll, tokens, characters)


def check_dataset(dataset: Sized) -> None:
    """Raises a TypeError for a data set without a length, and a ValueError for an empty one."""
    if not isinstance(dataset, Sized):
        raise TypeError(f"dataset must have a length (no streamed data set), got {type(dataset).__name__}.")
    if len(dataset) == 0:
        raise ValueError("dataset must have at least one example, got none.")


def _read_example(example: Mapping[str, Any], index: int, tokenizer) -> dict[str, Any]:
    """Makes the collator's features of an example."""
    features = {"input_ids": example["input_ids"], "labels": example.get("labels"), "example_index": index}
    if tokenizer.bos_token_id is None:
        # Without a BOS the first token of the sentence is given, in every order.
        labels = features["input_ids"] if features["labels"] is None else features["labels"]
        features["labels"] = [-100, *labels[1:]]
    return features


def _score_in_one_pass(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Computes the nats of each example, float64 `[batch]`; estimates if the batch has loss weights."""
    batch = {name: value.to(input_device(model)) for name, value in batch.items()}
    labels, weights = batch.pop("labels"), batch.pop("loss_weights", None)
    if weights is None:
        # Row r predicts row r + 1.
        labels = functional.pad(labels[:, 1:], (0, 1), value=-100)
        weights = torch.ones_like(labels)
    token_nll = -model(**batch, scored_ids=labels.clamp(min=0), use_cache=False).token_log_probs
    # Tokens that are not predicted may have probability 0.
    token_nll = token_nll.masked_fill((labels == -100) | (weights == 0), 0)
    return (token_nll * weights).double().sum(1)


def _score_by_token(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Computes the nats of each example, float64 `[batch]`, with `score`, from rows in generation order."""
    ids, labels, mask, positions = (
        batch[name].to(input_device(model)) for name in ("input_ids", "labels", "attention_mask", "position_ids")
    )
    is_predicted = labels != -100
    # Positions of padding go on counting, so every row has a column of its own.
    canvas, is_blank = (torch.empty_like(each).scatter(1, positions, each) for each in (ids, is_predicted))
    # The given rows come first.
    columns = torch.arange(int(is_predicted.sum(1).max()), device=ids.device)
    rows = (mask.sum(1) - is_predicted.sum(1))[:, None] + columns
    order = positions.gather(1, rows.clamp(max=ids.shape[1] - 1))
    order = order.masked_fill(columns >= is_predicted.sum(1)[:, None], -1)
    return -model.score(canvas, is_blank, attention_mask=mask, decoding_order=order).log_likelihood[0].double()


def make_generator(*key: int) -> torch.Generator:
    """Makes a generator whose random numbers depend only on a key of integers >= 0, such as (seed, index)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


@dataclass(frozen=True)
class AveragedNLL:
    """NLL under the mean of the probabilities in K orders, for several K.

    M drawn orders make M // K disjoint groups of K. The value for K is the mean over these groups, an estimate without
    bias for K fresh orders. The standard errors use that the orders of different examples are independent.

    Attributes:
        group_nll: for each K, float64 `[groups, examples]`: nats of each example under the mean over each group.
        example_tokens: int64 `[examples]`, the number of predicted tokens of each example.
        characters: the number of characters that the predicted tokens spell, or None if it is not known.
    """

    group_nll: dict[int, torch.Tensor]
    example_tokens: torch.Tensor
    characters: int | None = None

    @classmethod
    def from_log_probs(cls, log_probs: torch.Tensor, *args) -> "AveragedNLL":
        """Averages for K = 1, 2, 4, ... and for all orders, from log-probabilities in each order.

        Args:
            log_probs: `[orders, examples]` or `[orders, examples, tokens]`. The probabilities of single tokens are
                averaged, then multiplied.
            *args: the other attributes.
        """
        num_orders, group_nll = len(log_probs), {}
        for size in sorted({2**power for power in range(num_orders.bit_length())} | {num_orders}):
            groups = num_orders // size
            averaged = log_probs[: groups * size].unflatten(0, (groups, size)).logsumexp(1) - math.log(size)
            group_nll[size] = -averaged.flatten(2).sum(2) if averaged.ndim > 2 else -averaged
        return cls(group_nll, *args)

    def example_nll(self, num_orders: int) -> torch.Tensor:
        """Nats of each example with K = `num_orders`, the mean over groups: float64 `[examples]`."""
        return self.group_nll[num_orders].mean(0)

    def nll(self, num_orders: int) -> Estimate:
        """Nats per predicted token, with the standard error over the orders for this fixed text."""
        return self._divide(num_orders, int(self.example_tokens.sum()))

    def bits_per_character(self, num_orders: int) -> Estimate | None:
        """Bits per character of the text, with their standard error over the orders. None without a character count."""
        return None if self.characters is None else self._divide(num_orders, self.characters * math.log(2))

    def _divide(self, num_orders: int, count: float) -> Estimate:
        groups = self.group_nll[num_orders]
        value = float(groups.mean(0).sum()) / count
        if len(groups) == 1:
            return Estimate(value, None)
        return Estimate(value, float((groups.var(0, correction=1).sum() / len(groups)).sqrt()) / count)

    def to_dict(self) -> list[dict[str, int | float | None]]:
        """The values for each K, as JSON takes them."""
        curve = []
        for size, groups in self.group_nll.items():
            nll, bits = self.nll(size), self.bits_per_character(size) or Estimate(None, None)
            entry = {"orders": size, "groups": len(groups), "nll": nll.value, "standard_error": nll.standard_error}
            entry |= {"bits_per_character": bits.value, "bits_per_character_standard_error": bits.standard_error}
            curve.append(entry)
        return curve


def bound_likelihood(result: OrderNLL) -> AveragedNLL:
    """Computes the importance-weighted bound (1509.00519) on log p(x) from K orders, for K = 1, 2, 4, ... and all.

    The bound as an NLL is -log((p_1(x) + ... + p_K(x)) / K). The orders come from the mixture's own distribution, so
    all weights are equal. Its mean is the any-order NLL for K = 1, falls as K grows and converges to -log p(x).
    Doubling K never raises the value, by Jensen's inequality.

    Args:
        result: from [`evaluate_likelihood`], with `exact=True` for a `bidirectional` model: estimates of the NLL may
            lie below it, so they give no bound.

    Raises:
        ValueError: the draws predicted different numbers of an example's tokens.
    """
    if (result.example_tokens != result.example_tokens[0]).any():
        raise ValueError(f"result must have the same predicted tokens in every draw, got others in {result.order}.")
    return AveragedNLL.from_log_probs(-result.example_nll, result.example_tokens[0], result.characters)
