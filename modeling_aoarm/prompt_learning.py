# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Prompt learning of PEFT (prompt tuning, p-tuning, prefix tuning, ...) next to orders: refused, since it loses them.

Prompt learning puts virtual tokens in front of the rows. Left-to-right text without positions is then a longer text, as
in every causal model, and that works. Of a call with positions, however, PEFT drops `position_ids`, or moves them and
not their targets, and the model, which gets what is left, cannot tell. What can tell is the PEFT model around it.
"""

import functools
from typing import Any

from torch import nn
from transformers import PreTrainedModel


ORDERS = ("position_ids", "target_position_ids", "segment_ids")


def refuse_orders(wrapper: nn.Module, name: str, model: nn.Module | None) -> None:
    """Makes PEFT models of prompt learning around an any-order model raise a ValueError for what they would corrupt.

    These are calls with positions or segments, whoever makes them (trainers, evaluations), and `score`, which would
    pass the virtual tokens by. Canvases are refused in `generate`. Inside `disable_adapter()` everything works.

    PyTorch calls this when `wrapper.name = model`, from the time on that the first any-order model is made: PEFT has no
    hook for models of other packages. Other methods than prompt learning put a tuner in between.
    """
    is_any_order = isinstance(model, PreTrainedModel) and model.config.model_type == "aoarm"
    if name == "base_model" and is_any_order and hasattr(wrapper, "peft_type"):
        wrapper.register_forward_pre_hook(_check_call, with_kwargs=True)
        if hasattr(model, "score"):
            wrapper.score = functools.partial(_score, wrapper)


def _check_call(wrapper: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    given = [name for name in ORDERS if kwargs.get(name) is not None]
    if given and wrapper.has_active_enabled_adapter:
        raise ValueError(
            f"`{'`, `'.join(given)}` cannot be combined with {wrapper.active_peft_config.peft_type.value}: prompt "
            "learning puts virtual tokens in front of the rows, and PEFT then drops or moves positions. Leave them "
            "out, for left-to-right text, or use LoRA or another method that changes weights."
        )


def _score(wrapper: nn.Module, *args, **kwargs):
    if wrapper.has_active_enabled_adapter:
        raise ValueError(
            f"`score` cannot be combined with {wrapper.active_peft_config.peft_type.value}: it would not see the "
            "virtual tokens of prompt learning. Use LoRA or another method that changes weights, or score the base "
            "model inside `disable_adapter()`."
        )
    return wrapper.get_base_model().score(*args, **kwargs)


__all__ = ["refuse_orders"]
