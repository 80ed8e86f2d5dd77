# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Losses and log-probabilities of large vocabularies without all their logits at once."""

import torch
from torch import nn


def fused_causal_lm_loss(
    hidden_states: torch.Tensor,
    head: nn.Module,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The cross-entropy of next rows' labels, from pieces of the rows: `[batch, rows, vocab]` never exists.

    It is `torch.nn.functional.linear_cross_entropy`; the numbers are those of the library's `ForCausalLMLoss`.

    Args:
        hidden_states: `[batch, rows, hidden]`, after the final norm.
        head: the linear output layer without a bias.
        labels: int64 `[batch, rows]`, unshifted, -100 where there is nothing to learn.
        num_items_in_batch: what the sum is divided by. Default: the number of labels that count, for their mean.

    Returns:
        Nats per token, a scalar.

    Raises:
        ValueError: the output layer is not a plain linear one (adapters and quantisation have layers of their own), or
            its weights are elsewhere (ZeRO-3 gathers them for calls of the layer only).
    """
    if type(head) is not nn.Linear or head.bias is not None or head.weight.ndim != 2:
        raise ValueError(
            "`skip_logits` needs an output layer that is a plain linear layer without bias and holds its weights, got "
            f"{type(head).__name__} with weights of shape {list(getattr(head, 'weight', torch.empty(0)).shape)}."
        )
    following = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].flatten().to(hidden_states.device)
    loss = nn.functional.linear_cross_entropy(
        hidden_states.flatten(0, 1),
        head.weight,
        following,
        reduction="mean" if num_items_in_batch is None else "sum",
        options=nn.LinearCrossEntropyOptions(),
    )
    return loss if num_items_in_batch is None else loss / num_items_in_batch


# How many logits exist at once where tokens are scored: 128 MiB of them.
LOGITS_AT_ONCE = 2**25


def score_tokens(
    hidden_states: torch.Tensor,
    head: nn.Module,
    token_ids: torch.Tensor,
    vocab_size: int,
    mask_token_id: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probabilities of given tokens, from pieces of the rows.

    Args:
        hidden_states: `[..., hidden]`, after the final norm.
        head: the output layer.
        token_ids: int64 `[...]`.
        vocab_size: how many logits a row has.
        mask_token_id: a token of probability 0, or `None`.

    Returns:
        float32 `[...]`, nats; and whether each token is the likeliest, bool `[...]`.

    Raises:
        ValueError: `token_ids` has another shape.
    """
    if token_ids.shape != hidden_states.shape[:-1]:
        raise ValueError(
            f"`scored_ids` must have one token for each row that is kept, {list(hidden_states.shape[:-1])}; got "
            f"{list(token_ids.shape)}."
        )
    log_probs, is_likeliest = [], []
    rows = max(1, LOGITS_AT_ONCE // vocab_size)
    for states, ids in zip(hidden_states.flatten(0, -2).split(rows), token_ids.flatten().split(rows), strict=True):
        logits = head(states).float()
        if mask_token_id is not None:
            # Not in place: hooks of sharded training may hold the output.
            is_mask_token = torch.arange(logits.shape[1], device=logits.device) == mask_token_id
            logits = logits.masked_fill(is_mask_token, -torch.inf)
        log_probs.append(logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1))
        is_likeliest.append(logits.argmax(1) == ids)
    return torch.cat(log_probs).view(token_ids.shape), torch.cat(is_likeliest).view(token_ids.shape)


__all__ = ["fused_causal_lm_loss", "score_tokens"]
