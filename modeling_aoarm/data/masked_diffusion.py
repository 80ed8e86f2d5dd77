# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Batches for masked diffusion: a random prefix of each example's order is seen, the rest is masked."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from .collators import IGNORED, DataCollatorForAnyOrderLM, DataCollatorWithOrders, Sentence
from .orders import OrderMixture


WEIGHTINGS = ("elbo", "low_variance")

# The golden ratio's fractional part in 64 bits: multiples of it, modulo 1, are spread evenly.
GOLDEN_RATIO = 0x9E3779B97F4A7C15


@dataclass
class DataCollatorForMaskedDiffusion(DataCollatorWithOrders):
    """Masks the end of each example's order: masked diffusion (MDLM, 2406.07524), order-agnostic models (2110.02037).

    Features, arguments and errors are those of [`DataCollatorWithOrders`]; here every feature needs an `example_index`.
    Of an example's N tokens to be modelled (all but the given ones and the beginning-of-sentence token), the first
    N - k in its order are seen and the last k are masked, k uniform on 1 ... N.

    Batches hold `input_ids` (in sentence order, with mask tokens), `attention_mask` and `labels` (the tokens of all N
    rows, masked or not, -100 elsewhere), each int64 `[batch, rows]`, and `loss_weights`, float32 `[batch, rows]`, 0 on
    what is seen. The loss is the weighted cross-entropy over the number of labels, so it is per token, and about
    log(vocab_size - 1) nats before training (the mask token has probability 0) in either weighting.

    - In uniform orders every masked token is as likely to be the next, and all of them are learned, with the weights of
      `weighting`.
    - In other orders only the next token of the order is, with weight N: the loss is an unbiased estimate of the mean
      negative log-likelihood per token in those orders.

    k is a function of the seed, the epoch and the example's index, like the order, so batches, workers and processes
    change nothing: examples i = 0, 1, 2, ... take the shares u + i * golden ratio modulo 1, with another u in each
    epoch. An epoch, and each batch of successive examples, is so spread over the noise levels as evenly as by
    stratified sampling; in shuffled batches it is as even as their examples are.

    Args:
        weighting: in uniform orders, `"elbo"` gives a masked token the weight N / k, with which the loss is an unbiased
            estimate of the negative log-likelihood averaged over orders. `"low_variance"` gives it 2 N / (N + 1)
            whatever k is, so that weights sum to N on average: its loss is no bound, and its gradients vary less.

    Raises:
        ValueError: as in [`DataCollatorWithOrders`]; for a tokenizer without a mask token, another `weighting`, and
            mask tokens among the tokens to be modelled.
    """

    weighting: str = "elbo"

    def __post_init__(self):
        super().__post_init__()
        if self.tokenizer.mask_token_id is None:
            raise ValueError("Masking needs a mask token, but `tokenizer.mask_token_id` is None.")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"`weighting` must be one of {', '.join(WEIGHTINGS)}, got {self.weighting!r}.")

    def _rows(
        self,
        feature: Mapping[str, Any],
        name: str,
        mixture: OrderMixture,
        sentence: Sentence,
        columns: np.ndarray,
        num_context: int,
    ) -> dict[str, np.ndarray]:
        stream = self._stream(feature, name)
        modelled = columns[num_context:]
        tokens, labels = sentence.tokens.copy(), np.full_like(sentence.tokens, IGNORED)
        labels[modelled] = tokens[modelled]
        if (labels == self.tokenizer.mask_token_id).any():
            raise ValueError(
                f"`input_ids` must not hold the mask token ({self.tokenizer.mask_token_id}) among the tokens to be "
                f"modelled, since it has probability 0; {name} does. Label it {IGNORED}."
            )
        weights = np.zeros(len(tokens), dtype=np.float32)
        count = len(modelled)
        if count:
            share = noise_level(**stream)
            number = int(share * count) + 1
            masked = modelled[count - number :]
            tokens[masked] = self.tokenizer.mask_token_id
            is_uniform = feature.get("order") is None and mixture.component_of(**stream).name == "uniform"
            if not is_uniform:
                weights[masked[0]] = count
            else:
                weights[masked] = count / number if self.weighting == "elbo" else 2 * count / (count + 1)
        first = self.tokenizer.bos_token_id is not None
        return {
            "input_ids": self._with_bos(tokens),
            "labels": np.pad(labels, (first, 0), constant_values=IGNORED),
            "loss_weights": np.pad(weights, (first, 0)),
        }


def noise_level(example_index: int, seed: int, epoch: int) -> float:
    """The share in [0, 1) that says how many tokens of an example are masked; successive examples are spread evenly."""
    start = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest()
    number = (int.from_bytes(start, "little") + example_index * GOLDEN_RATIO) % 2**64
    # As many bits as a float has, so that it stays below 1.
    return (number >> 11) / 2**53


def collator_class(config: PreTrainedConfig) -> type[DataCollatorWithOrders]:
    """The class of the collator that makes batches for a variant, given its [`AOARMConfig`]."""
    is_masked = config.attention_variant == "bidirectional"
    return DataCollatorForMaskedDiffusion if is_masked else DataCollatorForAnyOrderLM


__all__ = ["DataCollatorForMaskedDiffusion", "collator_class", "noise_level"]
