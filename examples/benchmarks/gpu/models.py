# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The measured models, and the number of useful floating point operations of their training."""

import baselines
import torch
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward


# Shapes of GPT-2 small: 124 million parameters with a tied vocabulary, which is a multiple of 64.
SIZES = dict(
    vocab_size=50304,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    tie_word_embeddings=True,
)
TOY_SIZES = SIZES | dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
)

LLAMA, LLAMA_WITHOUT_MASK = "Llama", "Llama, no mask tensor"
# The library makes no mask tensor for an attention that it does not know, so this "sdpa" is causal by a flag.
AttentionInterface.register("causal_sdpa", sdpa_attention_forward)

# Peaks of dense bf16 matrix multiplication from the data sheets, in 10^12 operations per second.
PEAK_TFLOPS = {
    "H200": 989.0,
    "GH200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI300X": 1307.4,
}


def find_peak_tflops(device_name: str | None) -> float | None:
    """Finds the peak of a device in 10^12 bf16 operations per second; `None` if the table does not have it."""
    words = (device_name or "").replace("-", " ").upper().split()
    for name, peak in PEAK_TFLOPS.items():
        if all(word in words for word in name.upper().split()):
            return peak
    return None


def make_model(name: str, seed: int, max_positions: int, sizes: dict, device: torch.device) -> PreTrainedModel:
    """Makes a model with new float32 weights on a device, by [`~baselines.make_model`].

    Args:
        name: an `attention_variant`, `LLAMA` or `LLAMA_WITHOUT_MASK`.
        seed: seed of the weights.
        max_positions: the largest number of positions.
        sizes: fields of the config.
        device: the device.
    """
    with device:
        model = baselines.make_model(LLAMA if name == LLAMA_WITHOUT_MASK else name, seed, max_positions, **sizes)
    if name == LLAMA_WITHOUT_MASK:
        model.set_attn_implementation("causal_sdpa")
    return model


def count_attention_pairs(variant: str, rows: int) -> int:
    """Counts the pairs of a query row and a key row in one stream of one example."""
    return rows * rows if variant == "bidirectional" else rows * (rows + 1) // 2


def count_useful_flops(config: PreTrainedConfig, examples: int, rows: int) -> dict[str, int]:
    """Counts the operations of one forward and backward pass that a perfect implementation needs.

    A multiplication and an addition are two operations. The backward pass has twice those of the forward pass: one
    product for the gradient of each factor. Recomputation (in flash attention's backward pass), norms, rotations,
    softmax, the embedding look-up and the optimiser do not count. Let h be the width, a = heads × head_dim, k = key
    heads × head_dim, f the MLP's width, V the vocabulary, L the number of layers and S that of layers of streams. S is
    2L − 1 in `two_stream`, where the last layer needs only keys and values of the content stream, and L otherwise.

    - linear, per row: 3 × 2 × (L · 2hk + S · (2ha + 3hf) + hV): keys and values of one stream; queries, output and MLP
      of every stream; the head. `adaptive_norm` adds e · (6L + 2) · h in the bracket for targets of width e.
    - attention, per example: 3 × 2 × S · 2a · pairs, with rows · (rows + 1) / 2 pairs if attention is causal and rows²
      pairs otherwise.

    Args:
        config: the config of Llama or of a model of this package.
        examples: the number of examples.
        rows: the number of rows of each example.

    Returns:
        `linear` and `attention`.
    """
    variant = getattr(config, "attention_variant", "causal")
    hidden, layers = config.hidden_size, config.num_hidden_layers
    asked = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    streams = 2 * layers - 1 if variant == "two_stream" else layers
    weights = layers * 2 * hidden * keys
    weights += streams * (2 * hidden * asked + 3 * hidden * config.intermediate_size)
    weights += hidden * config.vocab_size
    if variant == "adaptive_norm":
        weights += config.target_embedding_size * (6 * layers + 2) * hidden
    return {
        "linear": 6 * weights * rows * examples,
        "attention": 6 * streams * 2 * asked * count_attention_pairs(variant, rows) * examples,
    }
