# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Orders, and the predictions of a model in them, in one form for all models of the study.

A sentence has N symbols. Row r of an order predicts the symbol in column `order[:, r]`. Models that read prefixes get
the first `observed` symbols of the order and predict all others from them.
"""

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from modeling_aoarm.data.orders import OrderDistribution, sample_orders


# Seed of the permutation that `fixed` names.
FIXED_SEED = 20260216


def draw_orders(
    order: str,
    count: int,
    length: int,
    seed: int = 0,
    first_example: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Draws the orders of `count` examples, int64 `[count, length]`, with [`sample_orders`].

    Args:
        order: `"fixed"`, one unstructured permutation for all examples; or an order of `modeling_aoarm.data.orders`
            without context.
        count: number of examples.
        length: number of columns.
        seed: seed of random orders.
        first_example: index of the first example. An order depends on the seed and on the example's index.
        device: device of the result.

    Raises:
        ValueError: for an unknown order, or one with a context.
    """
    if order == "fixed":
        columns = sample_orders("uniform", [length], example_indices=[0], seed=FIXED_SEED).columns.expand(count, -1)
    else:
        if OrderDistribution.parse(order).name in ("lattice", "block"):
            raise ValueError(f"`order` must be one without context, got {order!r}.")
        examples = range(first_example, first_example + count)
        columns = sample_orders(order, [length] * count, example_indices=examples, seed=seed).columns
    return columns.to(device)


def draw_prefixes(batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Draws numbers of observed symbols, int64 `[batch]` in [0, length), spread evenly over the batch."""
    offset = torch.rand(batch, generator=generator, device=generator.device, dtype=torch.float64)
    share = (torch.arange(batch, device=generator.device) + offset) / batch
    return (share * length).long().clamp(max=length - 1)


def order_lags(order: torch.Tensor) -> tuple[float, float]:
    """Measures how far the observed symbol nearest to each row's target is, on average, in rows and in the sentence.

    The nearest symbol is the one at the smallest sentence distance, and the more recent one of two. The first row has
    none and is left out.

    Args:
        order: int64 `[batch, length]`.

    Returns:
        The mean row lag and the mean sentence distance.
    """
    length = order.shape[1]
    rank = order.argsort(dim=1)
    columns = torch.arange(length, device=order.device)
    lags, distances = [], []
    for row in range(1, length):
        distance = (columns - order[:, row, None]).abs()
        lag = row - rank
        # Distance first, then lag.
        key = (distance * (length + 1) + lag).where(lag > 0, torch.iinfo(torch.int64).max)
        nearest = key.argmin(dim=1, keepdim=True)
        lags.append(lag.gather(1, nearest))
        distances.append(distance.gather(1, nearest))
    return float(torch.cat(lags).double().mean()), float(torch.cat(distances).double().mean())


def model_inputs(
    model: PreTrainedModel, tokens: torch.Tensor, order: torch.Tensor, observed: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Makes the arguments of a model's `forward`: a beginning of the sentence, then symbols.

    Args:
        model: a model of [`study_model`].
        tokens: int64 `[batch, length]`, in sentence order.
        order: int64 `[batch, length]`.
        observed: int64 `[batch]`, for models that read prefixes.
    """
    first = torch.full_like(tokens[:, :1], model.config.vocab_size - 2)
    if model.config.attention_variant == "bidirectional":
        is_blank = order.argsort(dim=1) >= observed[:, None]
        canvas = tokens.masked_fill(is_blank, model.config.mask_token_id)
        return {"input_ids": torch.cat([first, canvas], dim=1)}
    columns = order + 1
    inputs = {
        "input_ids": torch.cat([first, tokens.gather(1, order[:, :-1])], dim=1),
        "position_ids": torch.cat([torch.zeros_like(first), columns[:, :-1]], dim=1),
        "target_position_ids": columns,
    }
    if observed is not None:
        rows = torch.arange(order.shape[1], device=order.device)
        inputs["attention_mask"] = (rows <= observed[:, None])[:, None, None].expand(-1, 1, len(rows), -1)
    return inputs


def predict(
    model: PreTrainedModel, tokens: torch.Tensor, order: torch.Tensor, observed: torch.Tensor | None = None
) -> torch.Tensor:
    """Predicts the symbols in generation order: logits `[batch, length, vocab_size + 2]`.

    Row r is about column `order[:, r]`, given the rows before it. With `observed` it is given the first `observed`
    rows, and logits of these rows mean nothing. The arguments are those of [`model_inputs`].
    """
    inputs = model_inputs(model, tokens, order, observed)
    if model.config.attention_variant == "bidirectional":
        return model(**inputs).logits[:, 1:].take_along_dim(order[..., None], dim=1)
    return model(**inputs, use_cache=False).logits


def token_nll(logits: torch.Tensor, tokens: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods of the symbols in generation order, nats, float32 `[batch, length]`."""
    return functional.cross_entropy(logits.float().transpose(1, 2), tokens.gather(1, order), reduction="none")


def prefix_weights(observed: torch.Tensor, length: int, all_masked: bool) -> torch.Tensor:
    """Weights of the rows' likelihoods if a prefix is read, float32 `[batch, length]`; about 1 a row on average.

    The weighted mean is an unbiased estimate of the mean over all rows of an order.

    Args:
        observed: int64 `[batch]`, the length of the prefix.
        length: number of rows.
        all_masked: whether all symbols after the prefix count. In uniform orders each of them is equally likely to be
            the next one; in other orders only the next one counts.
    """
    rows = torch.arange(length, device=observed.device)
    if not all_masked:
        return (rows == observed[:, None]) * float(length)
    return (rows >= observed[:, None]) * (length / (length - observed))[:, None]
