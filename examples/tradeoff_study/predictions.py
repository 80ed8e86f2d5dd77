# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Orders, and what a model predicts in them, in one form for all models of the study.

A sentence has N symbols. Row r of an order predicts the symbol at column `order[:, r]`. Models that read prefixes get
the first `observed` symbols of the order and predict all others from them.
"""

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from modeling_aoarm.data.orders import OrderDistribution


# The permutation that `fixed` names is drawn from this seed.
FIXED_SEED = 20260216


def draw_orders(order: str, batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Draws orders, int64 `[batch, length]`, on the generator's device.

    The distributions are those of [`modeling_aoarm.data.orders`], which draws each example's order by itself on the
    CPU, as loaders with workers need; here a whole batch is drawn at once.

    Args:
        order: `fixed`, one permutation without any structure, the same for all; or an order of
            [`modeling_aoarm.data.orders`] without context.
        batch: how many.
        length: number of columns.
        generator: random numbers, for orders that are random.

    Raises:
        ValueError: for an order that is not known, or that has a context.
    """
    device = generator.device
    columns = torch.arange(length, device=device)
    if order == "fixed":
        fixed = torch.randperm(length, generator=torch.Generator().manual_seed(FIXED_SEED))
        return fixed.to(device).expand(batch, -1)
    distribution = OrderDistribution.parse(order)
    if distribution.name in ("uniform", "windowed"):
        window = distribution.parameter or length
        # By window first: noise stays below 1.
        noise = torch.rand(batch, length, generator=generator, device=device, dtype=torch.float64)
        return (columns // window + noise).argsort(dim=1)
    if distribution.name == "local":
        noise = torch.randn(batch, length, generator=generator, device=device, dtype=torch.float64)
        return (columns + distribution.parameter * noise).argsort(dim=1, stable=True)
    if distribution.name in ("lattice", "block"):
        raise ValueError(f"`order` must be one without context, got {order!r}.")
    drawn, _ = distribution.draw(np.random.default_rng(0), length)
    return torch.from_numpy(drawn).to(device).expand(batch, -1)


def is_random(order: str) -> bool:
    """Whether sentences have different orders."""
    return order.partition("(")[0] in ("uniform", "windowed", "local") and order not in ("local(0)", "windowed(1)")


def draw_prefixes(batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """How many symbols are observed, int64 `[batch]` in [0, length), spread evenly over the batch."""
    offset = torch.rand(batch, generator=generator, device=generator.device, dtype=torch.float64)
    share = (torch.arange(batch, device=generator.device) + offset) / batch
    return (share * length).long().clamp(max=length - 1)


def order_lags(order: torch.Tensor) -> tuple[float, float]:
    """Mean row lag to, and mean sentence distance of, the observed symbol that is nearest to each row's target.

    The nearest is the one at the smallest sentence distance, of two the more recent one. The first row has none and is
    left out.

    Args:
        order: int64 `[batch, length]`.
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
    """What a model's `forward` takes: a beginning of the sentence, then symbols.

    Args:
        model: of [`study_model`].
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
        is_seen = rows <= observed[:, None]
        inputs["attention_mask"] = is_seen[:, None, None].expand(-1, 1, len(rows), -1)
    return inputs


def predict(
    model: PreTrainedModel, tokens: torch.Tensor, order: torch.Tensor, observed: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits of the symbols in generation order, `[batch, length, vocab_size + 2]`.

    Row r is about column `order[:, r]`, given the rows before it; with `observed`, given the first `observed` ones (in
    rows before that the logits mean nothing). Arguments are those of [`model_inputs`].
    """
    inputs = model_inputs(model, tokens, order, observed)
    if model.config.attention_variant == "bidirectional":
        logits = model(**inputs).logits[:, 1:]
        return logits.take_along_dim(order[..., None], dim=1)
    return model(**inputs, use_cache=False).logits


def token_nll(logits: torch.Tensor, tokens: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods of the symbols in generation order, nats, float32 `[batch, length]`."""
    targets = tokens.gather(1, order)
    return functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")


def prefix_weights(observed: torch.Tensor, length: int, all_masked: bool, weighting: str) -> torch.Tensor:
    """What each row's likelihood counts where a prefix is read, float32 `[batch, length]`; about 1 a row on average.

    Args:
        observed: int64 `[batch]`, rows before it are the prefix.
        length: number of rows.
        all_masked: in uniform orders every symbol that is not observed is as likely to be the next, and all count;
            in other orders only the next one does.
        weighting: as in [`DataCollatorForMaskedDiffusion`]: `"elbo"` or `"low_variance"`.
    """
    rows = torch.arange(length, device=observed.device)
    if not all_masked:
        return (rows == observed[:, None]) * float(length)
    is_masked = (rows >= observed[:, None]).float()
    if weighting == "elbo":
        return is_masked * (length / (length - observed))[:, None]
    return is_masked * (2 * length / (length + 1))
