# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Negative log-likelihood of a data set under any-order and left-to-right factorisations."""

import contextlib
import math
from collections.abc import Iterator, Sized
from dataclasses import dataclass

import torch
from torch.nn import functional
from tqdm.auto import tqdm

from ..compat_aoarm import input_device
from ..data.collators import DataCollatorForAnyOrderLM
from ..data.masked_diffusion import collator_class_for
from ..decoding_aoarm import default_context_order


@dataclass(frozen=True)
class OrderNLL:
    """Negative log-likelihood (NLL) of a data set, in nats, under several draws of one order distribution.

    Attributes:
        order: the distribution, as `sample_orders` takes it.
        example_nll: float64 `[draws, examples]`, nats summed over the predicted tokens of each example.
        example_tokens: int64 `[draws, examples]`, how many tokens of each example were predicted.
        characters: number of characters that the predicted tokens spell, where the caller gave it.
    """

    order: str
    example_nll: torch.Tensor
    example_tokens: torch.Tensor
    characters: int | None = None

    @property
    def tokens(self) -> int:
        """Predicted tokens, all draws together."""
        return int(self.example_tokens.sum())

    @property
    def nll(self) -> float:
        """Nats per predicted token: every token of every draw has the same weight, whatever its example's length."""
        return float(self.example_nll.sum()) / self.tokens

    @property
    def nll_per_draw(self) -> list[float]:
        """Nats per predicted token of each draw."""
        return (self.example_nll.sum(1) / self.example_tokens.sum(1)).tolist()

    @property
    def standard_error(self) -> float | None:
        """Standard error of `nll` over the draws of the orders, the text held fixed; None for a single draw."""
        draws = torch.tensor(self.nll_per_draw, dtype=torch.float64)
        return float(draws.std(correction=1)) / math.sqrt(len(draws)) if len(draws) > 1 else None

    @property
    def bits_per_character(self) -> float | None:
        """Bits of a draw, averaged over the draws, per character of the text; None without a character count."""
        if self.characters is None:
            return None
        return float(self.example_nll.sum()) / (len(self.example_nll) * self.characters * math.log(2))

    @property
    def bits_per_character_standard_error(self) -> float | None:
        """Standard error of `bits_per_character` over the draws; None for one draw or without a character count."""
        if self.characters is None or len(self.example_nll) < 2:
            return None
        draws = self.example_nll.sum(1) / (self.characters * math.log(2))
        return float(draws.std(correction=1)) / math.sqrt(len(draws))

    def to_dict(self) -> dict[str, str | int | float | list[float] | None]:
        """The figures, without the tensors, under the names of the attributes."""
        return {
            "order": self.order,
            "draws": len(self.example_nll),
            "tokens": self.tokens,
            "nll": self.nll,
            "nll_per_draw": self.nll_per_draw,
            "standard_error": self.standard_error,
            "characters": self.characters,
            "bits_per_character": self.bits_per_character,
            "bits_per_character_standard_error": self.bits_per_character_standard_error,
        }


@contextlib.contextmanager
def evaluation_mode(model) -> Iterator[None]:
    """The model is in evaluation mode within the block, and in the mode it had after it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def evaluate_order(
    model,
    dataset: Sized,
    tokenizer,
    order: str = "uniform",
    *,
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 32,
    characters: int | None = None,
    max_length: int | None = None,
    accelerator=None,
    progress: bool = True,
) -> OrderNLL:
    """NLL of a tokenised data set in orders drawn from one distribution.

    Draw k gives example i the order that `sample_orders` makes from (`seed`, k, i): the orders do not depend on the
    batch size or on the number of processes, so two models see the same ones.

    A `bidirectional` model needs a pass for each token of an order. Here a draw makes one pass over each example, with
    a random prefix of its order seen, and estimates the example's NLL without bias (see
    [`DataCollatorForMaskedDiffusion`]); the standard error over draws covers that. `model.score` is exact.

    Args:
        model: an `AOARMForCausalLM` or `AOARMForMaskedLM`; put in evaluation mode for the time of the call.
        dataset: indexable rows with `input_ids`, sentence order, without BOS or with it, and perhaps `labels`, which
            are -100 where a token is given and not predicted.
        tokenizer: gives the BOS that is put first, and the padding id.
        order: anything that `sample_orders` takes.
        draws: how many orders each example is scored in. Use 1 for orders that are not random, like `left_to_right`,
            unless the model is `bidirectional`.
        seed: seed of the orders.
        batch_size: examples per forward pass and process.
        characters: number of characters that the predicted tokens of one draw spell, for bits per character. Only
            meaningful for orders without context tokens, which predict the whole text.
        max_length: as in `DataCollatorWithOrders`.
        accelerator: an `accelerate.Accelerator`. With several processes each scores its share of the batches, and every
            process gets all results; the weights may be sharded. Its mixed precision is used.
        progress: show a progress bar, on the main process.

    Raises:
        TypeError: `dataset` has no length.
        ValueError: `draws` or `batch_size` is below 1, `dataset` is empty or nothing in it is predicted.
    """
    if not isinstance(dataset, Sized):
        raise TypeError(f"dataset must have a length (no streamed data set), got {type(dataset).__name__}.")
    for name, value in (("draws", draws), ("batch_size", batch_size), ("the length of dataset", len(dataset))):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    process_index, num_processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    precision = accelerator.autocast if accelerator else contextlib.nullcontext
    collator = collator_class_for(model.config)(tokenizer, order=order, seed=seed, max_length=max_length)
    if isinstance(collator, DataCollatorForAnyOrderLM):
        # As in `score`.
        collator.context_order = default_context_order(model.generation_config)

    nll = torch.zeros(draws, len(dataset), dtype=torch.float64)
    tokens = torch.zeros(draws, len(dataset), dtype=torch.int64)
    # Processes that hold parts of the same layers (tensor parallelism) score the same batches, and one of them counts.
    parts = getattr(model, "tp_size", None) or 1
    share, shares, is_first_part = process_index // parts, num_processes // parts, process_index % parts == 0
    batches = math.ceil(len(dataset) / batch_size)
    # Where weights are shared out (FSDP, ZeRO-3), a forward pass needs all processes: each makes equally many, and
    # where there is no batch left it goes through one again.
    passes = range(share, math.ceil(batches / shares) * shares, shares)
    bar = tqdm(total=draws * len(passes), desc=str(order), leave=False, disable=not progress or process_index > 0)
    with evaluation_mode(model), bar:
        for draw in range(draws):
            collator.start_epoch(draw)
            for number in passes:
                start = number % batches * batch_size
                indices = range(start, min(start + batch_size, len(dataset)))
                batch = collator([_example(dataset[i], i) for i in indices])
                with precision():
                    example_nll, example_tokens = _score(model, batch)
                if number < batches and is_first_part:
                    nll[draw, start : start + len(indices)] = example_nll
                    tokens[draw, start : start + len(indices)] = example_tokens
                bar.update()
    if num_processes > 1:
        # Every example has one process that scored it; the others hold a zero.
        nll = accelerator.reduce(nll.to(accelerator.device), "sum").cpu()
        tokens = accelerator.reduce(tokens.to(accelerator.device), "sum").cpu()
    if not tokens.sum(1).all():
        raise ValueError(f"dataset must have tokens to predict in the order {order}, got none in some draw.")
    return OrderNLL(str(order), nll, tokens, characters)


def _example(row: dict, index: int) -> dict:
    """What the collator reads of a row, and the row's number."""
    return {name: row[name] for name in ("input_ids", "labels") if name in row} | {"example_index": index}


def _score(model, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats (float64) and number of predicted tokens (int64) of each example, `[batch]`, on the CPU."""
    batch = {name: value.to(input_device(model)) for name, value in batch.items()}
    labels, weights = batch.pop("labels"), batch.pop("loss_weights", None)
    if weights is None:
        # Row r predicts row r + 1.
        labels = functional.pad(labels[:, 1:], (0, 1), value=-100)
        weights = torch.ones_like(labels)
    token_nll = -model(**batch, scored_ids=labels.clamp(min=0), use_cache=False).token_log_probs
    token_nll = token_nll.masked_fill((labels == -100) | (weights == 0), 0)
    return (token_nll * weights).double().sum(1).cpu(), labels.ne(-100).sum(1).cpu()
