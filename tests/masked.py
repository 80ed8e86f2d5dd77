# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Tiny models of `bidirectional`, rows with masks for them, and batches with padding."""

import torch
from variants import tiny_model


MASK = 22


def masked_model(**changes):
    return tiny_model("bidirectional", **changes)


def masked_rows(batch, rows, seed=0, share=0.5):
    """Tokens of which a share is masked, and the tokens that were there: int64 `[batch, rows]` both."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, MASK, (batch, rows), generator=generator)
    is_masked = torch.rand(batch, rows, generator=generator) < share
    return tokens.masked_fill(is_masked, MASK), tokens


def logits_of(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs).logits


def padded(examples, side, filler=7):
    """Examples `[1, rows]` of different lengths as a batch, and its attention mask."""
    longest = max(example.shape[1] for example in examples)
    sides = [(longest - e.shape[1], 0) if side == "left" else (0, longest - e.shape[1]) for e in examples]
    pad = torch.nn.functional.pad
    batch = torch.cat([pad(e, where, value=filler) for e, where in zip(examples, sides, strict=True)])
    mask = torch.cat([pad(torch.ones_like(e), where) for e, where in zip(examples, sides, strict=True)])
    return batch, mask
