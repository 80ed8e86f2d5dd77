# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Defaults for PEFT adapters. PEFT is optional.

In `two_stream` one adapter serves a whole batch: PEFT's `adapter_names` (one adapter for each example) and aLoRA fail,
because layers run on several streams of each example.
"""

from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from .compat import peft_target_tables


if TYPE_CHECKING:
    from peft import LoraConfig


# All linear layers except the head, including those of single variants. PEFT's entry for Llama (queries and values
# only) was a little worse with as many parameters: 1.499 against 1.487 nats per token after 300 steps of
# `examples/finetune_peft.py`, one seed.
LORA_TARGETS = ("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj modulation norm_modulation").split()


def register_default_targets() -> None:
    """Adds these models to PEFT's tables, so that its configurations need no `target_modules`.

    LoRA (with DoRA and its other options) adapts `LORA_TARGETS`. Every other method adapts what it adapts in Llama,
    whose module names these models have.

    Raises:
        ImportError: PEFT is not installed.
    """
    tables = peft_target_tables()
    for table in tables.values():
        table["aoarm"] = table["llama"]
    tables["TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"]["aoarm"] = LORA_TARGETS


def lora_config(model: PreTrainedModel, modules_to_save: list[str] | None = None, **kwargs) -> "LoraConfig":
    """Makes a `LoraConfig` that also trains the learned query vector, the start of the query stream in `two_stream`.

    The vector (`query_embedding`) is tiny, so it is trained as a whole and saved with the adapter. Variants without it
    get a plain `LoraConfig`. For other methods of PEFT, give them `modules_to_save=["query_embedding"]`.

    Args:
        model: the model to adapt.
        modules_to_save: further modules to train as a whole.
        **kwargs: passed to `LoraConfig`: `r`, `lora_alpha`, `target_modules`, `use_dora`, ...

    Raises:
        ImportError: PEFT is not installed.
    """
    from peft import LoraConfig

    modules_to_save = list(modules_to_save or ())
    if any(name.endswith("query_embedding") for name, _ in model.named_modules()):
        modules_to_save.append("query_embedding")
    return LoraConfig(**{"task_type": "CAUSAL_LM", "modules_to_save": modules_to_save or None, **kwargs})


__all__ = ["LORA_TARGETS", "lora_config", "register_default_targets"]
