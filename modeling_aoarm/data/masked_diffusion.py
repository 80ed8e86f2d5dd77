# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Makes batches for masked diffusion: a random prefix of each example's order is seen, the rest is masked."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedConfig

from .collators import IGNORED, DataCollatorForAnyOrderLM, DataCollatorWithOrders, OrderedExample


WEIGHTINGS = ("elbo", "low_variance")

# The fractional part of the golden ratio in 64 bits. Its multiples modulo 1 are spread evenly.
GOLDEN_RATIO = 0x9E3779B97F4A7C15


@dataclass
class DataCollatorForMaskedDiffusion(DataCollatorWithOrders):
    """Masks the end of each example's order: masked diffusion (MDLM, 2406.07524), order-agnostic models (2110.02037).

    Features, arguments and errors are those of [`DataCollatorWithOrders`], but every feature needs an `example_index`.
    An example has N tokens that are modelled: all except the given ones and BOS. The first N - k of them in its order
    are seen and the last k are masked, k uniform on 1 ... N (see [`draw_masked_counts`]).

    Batches hold `input_ids` (in sentence order, with mask tokens), `attention_mask` and `labels` (the tokens of all N
    rows, masked or not, -100 elsewhere), each int64 `[batch, rows]`, and `loss_weights`, float32 `[batch, rows]`, 0 for
    seen tokens. The loss is the weighted cross-entropy divided by the number of labels, in nats per token. Before
    training it is about log(vocab_size - 1), because the mask token has probability 0.

    - In uniform orders every masked token is equally likely to be next. All masked tokens are learned, with the weights
      of `weighting`.
    - In other orders only the next token of the order is learned, with weight N. The loss is an unbiased estimate of
      the mean negative log-likelihood per token in those orders.

    Args:
        weighting: the weights in uniform orders. `"elbo"` gives a masked token the weight N / k, and the loss is an
            unbiased estimate of the negative log-likelihood averaged over orders. `"low_variance"` gives it
            2 N / (N + 1) for every k, so that weights sum to N on average. Its loss is not a bound, and its gradients
            vary less.

    Raises:
        ValueError: as in [`DataCollatorWithOrders`], the tokenizer has no mask token, `weighting` has another value, or
            a modelled token is the mask token.
    """

    weighting: str = "elbo"

    always_needs_index = True

    def __post_init__(self):
        super().__post_init__()
        if self.tokenizer.mask_token_id is None:
            raise ValueError("Masking needs a mask token, but `tokenizer.mask_token_id` is None.")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"`weighting` must be one of {', '.join(WEIGHTINGS)}, got {self.weighting!r}.")

    def _make_rows(self, example: OrderedExample) -> dict[str, np.ndarray]:
        mask, tokens = self.tokenizer.mask_token_id, example.tokens
        modelled = example.columns[example.num_context :]
        if (tokens[modelled] == mask).any():
            raise ValueError(
                f"`input_ids` must not hold the mask token ({mask}) among the tokens to be modelled, since it has "
                f"probability 0; {example.name} does. Label it {IGNORED}."
            )
        input_ids, labels = tokens.copy(), np.full_like(tokens, IGNORED)
        labels[modelled] = tokens[modelled]
        weights, length = np.zeros(len(tokens), dtype=np.float32), len(modelled)
        if length:
            stream = example.stream
            [count] = draw_masked_counts([length], [stream["example_index"]], stream["seed"], stream["epoch"])
            masked = modelled[length - count :]
            input_ids[masked] = mask
            if example.mixture is None or example.mixture.component_of(**stream).name != "uniform":
                weights[masked[0]] = length
            else:
                weights[masked] = length / count if self.weighting == "elbo" else 2 * length / (length + 1)
        return {"input_ids": input_ids, "labels": labels, "loss_weights": weights}


def draw_masked_counts(
    lengths: Sequence[int], example_indices: Sequence[int], seed: int = 0, epoch: int = 0
) -> np.ndarray:
    """Draws how many tokens of each example are masked: uniform on 1 ... length and spread evenly over examples.

    The share of example i is (u + i * golden ratio) modulo 1, with a new u for each seed and epoch. So each epoch, and
    each batch of successive examples, covers the noise levels as evenly as stratified sampling does. Like the order,
    the count is a function of the seed, the epoch and the example's index.

    Args:
        lengths: `[batch]`, tokens of each example, at least 1.
        example_indices: `[batch]`, each in [0, 2**64).
        seed: the seed of the run.
        epoch: the pass over the data.

    Returns:
        int64 `[batch]`.
    """
    start = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest()
    indices = np.array(example_indices, dtype=np.uint64)
    numbers = indices * np.uint64(GOLDEN_RATIO) + np.uint64(int.from_bytes(start, "little"))
    # A float64 holds 53 bits; more could round the share up to 1.
    shares = (numbers >> np.uint64(11)) / 2**53
    return (shares * lengths).astype(np.int64) + 1


def collator_class_for(config: PreTrainedConfig) -> type[DataCollatorWithOrders]:
    """Returns the class of the collator that makes batches for the variant of an [`AOARMConfig`]."""
    is_masked = config.attention_variant == "bidirectional"
    return DataCollatorForMaskedDiffusion if is_masked else DataCollatorForAnyOrderLM
