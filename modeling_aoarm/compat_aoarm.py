# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Private and unstable API of transformers and torch, for the code that travels with a saved model.

That code uses such API only through this module. `tests/test_compat.py` says what a new release has changed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


# transformers 5.24 renamed the cache: as an argument of models and mask functions, and as a field of outputs.
CACHE_NAMES = ("past_key_values", "cache")
CACHE_NAME = next(each.name for each in dataclasses.fields(CausalLMOutputWithPast) if each.name in CACHE_NAMES)
OTHER_CACHE_NAME = next(name for name in CACHE_NAMES if name != CACHE_NAME)


class CacheUnderBothNames:
    """For outputs of models: gives the cache also under the name that this release of the library lacks."""


setattr(CacheUnderBothNames, OTHER_CACHE_NAME, property(lambda output: getattr(output, CACHE_NAME)))


def the_cache(past_key_values: Any, cache: Any, kwargs: dict[str, Any]) -> Cache | None:
    """Returns the cache that a call was given, under either name.

    Raises:
        ValueError: both arguments are given, one is not a cache, or `kwargs`, the call's other arguments, hold a cache.
    """
    if past_key_values is not None and cache is not None:
        raise ValueError("`past_key_values` and `cache` name the same argument; give one of them.")
    given = cache if past_key_values is None else past_key_values
    if given is not None and not isinstance(given, Cache):
        raise ValueError(f"`past_key_values` must be a transformers `Cache`, got {type(given).__name__}.")
    for name, value in kwargs.items():
        if isinstance(value, Cache):
            raise ValueError(f"A cache must be given as `past_key_values` or `cache`, got one as `{name}`.")
    return given


def register_for_label_smoothing(class_name: str) -> None:
    """Makes label smoothing in `Trainer` shift the labels of a class, as it does for the library's causal models."""
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[class_name] = class_name


# Generation


def prepare_generation_config(
    model: GenerationMixin, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Returns the config of a call of `generate`, and the call's arguments for the model.

    Raises:
        ValueError: for arguments that neither the config nor the model's `forward` takes.
    """
    generation_config, model_kwargs = model._prepare_generation_config(generation_config, **kwargs)
    model._validate_model_kwargs(model_kwargs.copy())
    return generation_config, model_kwargs


def special_tokens(
    model: GenerationMixin, generation_config: GenerationConfig, has_attention_mask: bool, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns the ids that end a sentence, int64 `[ends]`, and the padding id, an int64 scalar; each may be `None`."""
    model._prepare_special_tokens(generation_config, has_attention_mask, device=device)
    return generation_config._eos_token_tensor, generation_config._pad_token_tensor


def logits_processors(
    model: GenerationMixin, generation_config: GenerationConfig, custom: LogitsProcessorList, canvas: torch.Tensor
) -> LogitsProcessorList:
    """Returns the logits processors of a generation config and the caller's own for canvases `[batch, columns]`."""
    return model._get_logits_processor(
        generation_config=generation_config,
        input_ids_seq_length=canvas.shape[1],
        encoder_input_ids=canvas,
        prefix_allowed_tokens_fn=None,
        logits_processor=custom,
        device=canvas.device,
        model_kwargs={},
    )


def compiled_call(model: GenerationMixin, generation_config: GenerationConfig, cache: Cache) -> Callable | None:
    """Returns the compiled model if the library would compile steps with this cache, else `None`."""
    if not model._valid_auto_compile_criteria({CACHE_NAME: cache}, generation_config):
        return None
    return model.get_compiled_call(generation_config.compile_config)


def generation_config_values(generation_config: GenerationConfig) -> dict[str, Any]:
    """Returns a generation config's entries, without the mark that makes loading drop keys unknown to the library."""
    values = generation_config.to_dict()
    values.pop("_from_model_config", None)
    return values


# Weights that are elsewhere


def needs_all_processes(model: nn.Module) -> bool:
    """Returns whether processes share a model's weights (FSDP, ZeRO-3), so that each pass needs all processes."""
    if is_deepspeed_zero3_enabled():
        return True
    # A lazy import, because it is slow and seldom needed.
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules())


def input_device(model: nn.Module) -> torch.device:
    """Returns the device of a model's inputs: its own, or the one that computes if all weights are offloaded."""
    device = model.device
    if device.type != "meta":
        return device
    for module in model.modules():
        # The hook is accelerate's, which moves weights and inputs to this device for each call.
        execution_device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if execution_device is not None:
            return torch.device(execution_device)
    return torch.device("cpu")


def class_without_sharding(model: nn.Module) -> type[nn.Module]:
    """Returns a model's own class, for which FSDP2 puts a derived class of torch."""
    return next(each for each in type(model).__mro__ if not each.__module__.startswith("torch."))


class SavedWithoutSharding:
    """For models: saves a model that FSDP2 has sharded under its own class's name and with its code."""

    def save_pretrained(self, *args, **kwargs):
        """As in the library."""
        own_class = class_without_sharding(self)
        if type(self) is own_class:
            super().save_pretrained(*args, **kwargs)
            return
        # The library saves the code of an object's class, and FSDP2's class is torch's. This object has the own class.
        plain = own_class.__new__(own_class)
        plain.__dict__ = self.__dict__
        plain.save_pretrained(*args, **kwargs)

    def _get_name(self) -> str:
        """Returns the class's name without FSDP2's prefix. `Trainer` knows causal models by it."""
        return class_without_sharding(self).__name__


# Values on a device


def require(holds: torch.Tensor, message: str, waits: bool) -> None:
    """Raises a ValueError unless a bool scalar is true. Without waiting, the device reports the message later."""
    if not waits:
        torch._assert_async(holds, message)
    elif not holds:
        raise ValueError(message)


def keep_address(tensor: torch.Tensor) -> None:
    """Tells the compiler that a tensor keeps its memory, which replayed device graphs need."""
    if not torch.compiler.is_compiling():
        torch._dynamo.mark_static_address(tensor)


# PEFT


def prompt_learning_of(model: GenerationMixin) -> Any | None:
    """Returns the type of prompt learning if such a PEFT model is calling this model's `generate`, else `None`.

    PEFT replaces `prepare_inputs_for_generation` by its own, which puts virtual tokens in front of a prompt.
    """
    wrapper = getattr(model.prepare_inputs_for_generation, "__self__", model)
    config = getattr(wrapper, "active_peft_config", None)
    return config.peft_type if getattr(config, "is_prompt_learning", False) else None


ORDERS = ("position_ids", "target_position_ids", "segment_ids")


@functools.cache
def guard_prompt_learning() -> None:
    """Makes PEFT models of prompt learning around any-order models refuse calls that they would corrupt.

    They raise a ValueError for calls with positions or segments, which trainers and evaluations make too, and for
    `score`, which would skip the virtual tokens. `generate` refuses canvases. Inside `disable_adapter()` all of this
    works.

    PEFT has no hook for models of other packages, so PyTorch calls [`_guard_wrapper`] at each `wrapper.name = model`.
    """
    register_module_module_registration_hook(_guard_wrapper)


def _guard_wrapper(wrapper: nn.Module, name: str, model: nn.Module | None) -> None:
    # PEFT methods that are not prompt learning put a tuner between wrapper and model.
    is_any_order = isinstance(model, PreTrainedModel) and model.config.model_type == "aoarm"
    if name == "base_model" and is_any_order and hasattr(wrapper, "peft_type"):
        wrapper.register_forward_pre_hook(_refuse_orders, with_kwargs=True)
        if hasattr(model, "score"):
            wrapper.score = functools.partial(_score_without_prompt, wrapper)


def _refuse_orders(wrapper: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    given = [name for name in ORDERS if kwargs.get(name) is not None]
    if given and wrapper.has_active_enabled_adapter:
        raise ValueError(
            f"`{'`, `'.join(given)}` cannot be combined with {wrapper.active_peft_config.peft_type.value}: prompt "
            "learning puts virtual tokens in front of the rows, and PEFT then drops or moves positions. Leave them "
            "out, for left-to-right text, or use LoRA or another method that changes weights."
        )


def _score_without_prompt(wrapper: nn.Module, *args, **kwargs):
    if wrapper.has_active_enabled_adapter:
        raise ValueError(
            f"`score` cannot be combined with {wrapper.active_peft_config.peft_type.value}: it would not see the "
            "virtual tokens of prompt learning. Use LoRA or another method that changes weights, or score the base "
            "model inside `disable_adapter()`."
        )
    return wrapper.get_base_model().score(*args, **kwargs)
