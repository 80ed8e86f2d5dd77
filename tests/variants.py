# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The shared test base: tiny models of every variant, batches for them, and plain functions to compare with.

`VARIANTS` have rows in generation order. `EVERY_VARIANT` also has `"bidirectional"`, whose rows are in sentence order.
"""

import itertools

import pytest
import torch

from modeling_aoarm import AOARMConfig, AOARMForCausalLM, AOARMForMaskedLM, model_class_for


VARIANTS = {
    "two_stream": {"attention_variant": "two_stream", "query_stream_init": "learned"},
    "two_stream_content": {"attention_variant": "two_stream", "query_stream_init": "content"},
    "two_stream_neighbor": {"attention_variant": "two_stream", "query_stream_init": "neighbor"},
    "decoupled_rope": {"attention_variant": "decoupled_rope"},
    "double_position": {"attention_variant": "double_position", "double_position_mode": "concatenated"},
    "double_position_summed": {"attention_variant": "double_position", "double_position_mode": "summed"},
    "adaptive_norm": {"attention_variant": "adaptive_norm", "target_embedding_size": 12},
    "causal": {"attention_variant": "causal"},
}
EVERY_VARIANT = {**VARIANTS, "bidirectional": {"attention_variant": "bidirectional", "mask_token_id": 22}}
ANY_ORDER = [name for name in VARIANTS if name != "causal"]
TWO_STREAM = [name for name in VARIANTS if name.startswith("two_stream")]
SINGLE_STREAM = [name for name in VARIANTS if name not in TWO_STREAM]

every_variant = pytest.mark.parametrize("variant", list(EVERY_VARIANT))
all_variants = pytest.mark.parametrize("variant", list(VARIANTS))
any_order_variants = pytest.mark.parametrize("variant", ANY_ORDER)
two_stream_variants = pytest.mark.parametrize("variant", TWO_STREAM)

SIZES = {
    "vocab_size": 23,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    # Large enough for every part of the model to matter to the logits.
    "initializer_range": 0.2,
}


def tiny_config(variant: str, **changes) -> AOARMConfig:
    return AOARMConfig(**{**SIZES, **EVERY_VARIANT[variant], **changes})


def tiny_model(variant: str, seed: int = 0, **changes) -> AOARMForCausalLM | AOARMForMaskedLM:
    torch.manual_seed(seed)
    config = tiny_config(variant, **changes)
    return model_class_for(config)(config).eval()


def random_rows(variant: str, batch: int, rows: int, seed: int = 0, vocab_size: int = SIZES["vocab_size"]) -> dict:
    """Tokens, positions and targets of `batch` examples in random order (in sentence order for `causal`)."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, vocab_size, (batch, rows), generator=generator)
    # One position more than rows: the last row predicts a token that is not there.
    order = torch.stack([torch.randperm(rows + 1, generator=generator) for _ in range(batch)])
    if variant == "causal":
        order = torch.arange(rows + 1).expand(batch, -1)
    return {"input_ids": input_ids, "position_ids": order[:, :-1].clone(), "target_position_ids": order[:, 1:].clone()}


def left_tokens(
    variant: str,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    target_position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **kwargs,
) -> dict:
    """`query_input_ids` of whole examples, which calls with a cache need; nothing for variants that take none."""
    if EVERY_VARIANT[variant].get("query_stream_init") != "neighbor":
        return {}
    is_real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    tokens = torch.full_like(target_position_ids, -1)
    for index in itertools.product(*map(range, target_position_ids.shape)):
        example, row = index[:2]
        for earlier in range(row + 1):
            is_left = position_ids[example, earlier] == target_position_ids[index] - 1
            if is_left and (is_real[example, earlier] or earlier == row):
                tokens[index] = input_ids[example, earlier]
    return {"query_input_ids": tokens}


def pad_rows(example: dict, rows: int, side: str, filler: int = 7) -> dict:
    """Pads a batch to `rows` rows on one side, with a value that is not neutral, and adds the attention mask."""
    missing = rows - example["input_ids"].shape[1]
    sides = (missing, 0) if side == "left" else (0, missing)
    padded = {name: torch.nn.functional.pad(value, sides, value=filler) for name, value in example.items()}
    real = torch.ones_like(example["input_ids"])
    return {**padded, "attention_mask": torch.nn.functional.pad(real, sides, value=0)}


def stack_rows(examples: list[dict]) -> dict:
    return {name: torch.cat([example[name] for example in examples]) for name in examples[0]}


def chain_log_probs(model: AOARMForCausalLM, sentences: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """log p(sentence) in one order, by one forward pass: float64 `[batch]`, nats per sentence.

    Args:
        sentences: int64 `[batch, length]`, whose first token is given.
        order: int64 `[length - 1]`, the other columns in the order of their prediction.
    """
    positions = torch.cat([torch.zeros(1, dtype=torch.int64), order]).expand(len(sentences), -1)
    rows = sentences.gather(1, positions)
    with torch.no_grad():
        logits = model(rows, position_ids=positions).logits[:, :-1].double()
    return logits.log_softmax(-1).gather(-1, rows[:, 1:, None]).sum((1, 2))


def checkpoint_activations(model: AOARMForCausalLM, *args) -> None:
    """Switches activation checkpointing on, by the name that it has in this version of the library."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")(*args)


def all_strings(symbols: int, length: int) -> torch.Tensor:
    """int64 `[symbols ** length, length]`."""
    return torch.tensor(list(itertools.product(range(symbols), repeat=length)))
