# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Training data: orders, collators, text and tokenizers."""

from .collators import DataCollatorForAnyOrderLM, DataCollatorWithOrders, check_example_index, with_example_index
from .masked_diffusion import DataCollatorForMaskedDiffusion, collator_class_for, draw_masked_counts
from .orders import OrderCurriculum, OrderDistribution, OrderMixture, SampledOrders, parse_order, sample_orders
from .tokenizers import byte_tokenizer, character_tokenizer, train_bpe_tokenizer


__all__ = [
    "DataCollatorForAnyOrderLM",
    "DataCollatorForMaskedDiffusion",
    "DataCollatorWithOrders",
    "OrderCurriculum",
    "OrderDistribution",
    "OrderMixture",
    "SampledOrders",
    "byte_tokenizer",
    "character_tokenizer",
    "check_example_index",
    "collator_class_for",
    "draw_masked_counts",
    "parse_order",
    "sample_orders",
    "train_bpe_tokenizer",
    "with_example_index",
]
