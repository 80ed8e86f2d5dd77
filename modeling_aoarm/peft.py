# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Defaults for PEFT adapters. PEFT is optional.

In `two_stream` one adapter serves a whole batch: PEFT's `adapter_names` (one adapter for each example) and aLoRA fail,
because layers run on several streams of each example.
"""

import os
import warnings
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from .compat import peft_target_tables


if TYPE_CHECKING:
    from peft import LoraConfig


# All linear layers except the head, including those of single variants. PEFT's entry for Llama (queries and values
# only) was a little worse with as many parameters: 1.499 against 1.487 nats per token after 300 steps on middles of the
# text of `make pretrain`, one seed.
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


def merge_adapter(model: PreTrainedModel, adapter: str | os.PathLike) -> PreTrainedModel:
    """Loads a LoRA adapter onto the model that it was trained on, and merges it into the weights.

    Args:
        model: the model. Its weights change.
        adapter: a folder or a Hub name.

    Raises:
        ImportError: PEFT is not installed.
        OSError, ValueError: there is no such adapter, or it belongs to another model.
    """
    from peft import PeftModel
    from peft.utils import load_peft_weights

    name = os.fspath(adapter)
    keys = load_peft_weights(name, device="cpu")
    has_vector = any("query_embedding" in each for each, _ in model.named_modules())
    # Layers have the same names in all variants, so PEFT would load the adapter of another one.
    if has_vector != any("query_embedding" in key for key in keys):
        raise ValueError(
            f"`adapter` must belong to the model's variant, {model.config.attention_variant!r}"
            f"{' with a learned query vector' if has_vector else ' without a learned query vector'}; got {name}."
        )
    try:
        with warnings.catch_warnings():
            # PEFT asks the model by a name that the library gives up.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
            return PeftModel.from_pretrained(model, name).merge_and_unload()
    except RuntimeError as error:
        raise ValueError(f"`adapter` {name} belongs to another model: {error}") from error


__all__ = ["LORA_TARGETS", "lora_config", "merge_adapter", "register_default_targets"]
