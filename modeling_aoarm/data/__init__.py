# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Training data: orders, collators, text and tokenizers."""

from .collators import DataCollatorForAnyOrderLM, DataCollatorWithOrders, with_example_index
from .masked_diffusion import DataCollatorForMaskedDiffusion, collator_class_for
from .orders import OrderCurriculum, OrderDistribution, OrderMixture, SampledOrders, sample_orders
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
    "collator_class_for",
    "sample_orders",
    "train_bpe_tokenizer",
    "with_example_index",
]
