# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Private and changing API of transformers and torch, for the code that travels with a saved model.

All of it is used through this module, and `tests/test_compat.py` says what a new release has changed.
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
    """For outputs of models: the cache under the name that it does not have in this release of the library."""


setattr(CacheUnderBothNames, OTHER_CACHE_NAME, property(lambda output: getattr(output, CACHE_NAME)))


def the_cache(past_key_values: Any, cache: Any, kwargs: dict[str, Any]) -> Cache | None:
    """The cache that a call was given, under whichever name.

    Args:
        past_key_values, cache: the two arguments.
        kwargs: the call's other arguments, which must hold no cache: it would be lost without a word.

    Raises:
        ValueError: both are given, or one is no cache, or there is a cache under a third name.
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
    """Makes `Trainer` shift labels in its label smoothing for a class, as it does for the library's causal models."""
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[class_name] = class_name


# Generation


def prepare_generation_config(
    model: GenerationMixin, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """The config of a call of `generate`, and those of its arguments that are the model's, checked.

    Raises:
        ValueError: for arguments that neither the config nor the model's `forward` has.
    """
    generation_config, model_kwargs = model._prepare_generation_config(generation_config, **kwargs)
    model._validate_model_kwargs(model_kwargs.copy())
    return generation_config, model_kwargs


def special_tokens(
    model: GenerationMixin, generation_config: GenerationConfig, has_attention_mask: bool, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The ids that end a sentence, int64 `[ends]`, and the padding id, int64 scalar; `None` where there is none."""
    model._prepare_special_tokens(generation_config, has_attention_mask, device=device)
    return generation_config._eos_token_tensor, generation_config._pad_token_tensor


def logits_processors(
    model: GenerationMixin, generation_config: GenerationConfig, custom: LogitsProcessorList, canvas: torch.Tensor
) -> LogitsProcessorList:
    """The library's processors for a generation config and the caller's own, for canvases `[batch, columns]`."""
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
    """The compiled model where the library would compile steps on this cache, else `None`."""
    if not model._valid_auto_compile_criteria({CACHE_NAME: cache}, generation_config):
        return None
    return model.get_compiled_call(generation_config.compile_config)


def generation_config_values(generation_config: GenerationConfig) -> dict[str, Any]:
    """A generation config's entries, without the mark that makes a reload drop the keys unknown to the library."""
    values = generation_config.to_dict()
    values.pop("_from_model_config", None)
    return values


# Weights that are elsewhere


def needs_all_processes(model: nn.Module) -> bool:
    """Whether a model's weights are shared out among processes (FSDP, ZeRO-3), so that each pass needs all of them."""
    if is_deepspeed_zero3_enabled():
        return True
    # Not at the top: few need it, and it takes long.
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules())


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its inputs: its device, and where all weights are offloaded, the one that computes."""
    device = model.device
    if device.type != "meta":
        return device
    for module in model.modules():
        # Of accelerate, which moves weights and inputs there for each call.
        execution_device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if execution_device is not None:
            return torch.device(execution_device)
    return torch.device("cpu")


def class_without_sharding(model: nn.Module) -> type[nn.Module]:
    """A model's own class: FSDP2 gives it one of torch's, derived from it."""
    return next(each for each in type(model).__mro__ if not each.__module__.startswith("torch."))


# Values on a device


def require(holds: torch.Tensor, message: str, waits: bool) -> None:
    """Raises a ValueError unless a bool scalar holds; without waiting for the device, which then reports it later."""
    if not waits:
        torch._assert_async(holds, message)
    elif not holds:
        raise ValueError(message)


def keep_address(tensor: torch.Tensor) -> None:
    """Tells the compiler that a tensor stays where it is: graphs of the device are replayed on the same memory."""
    if not torch.compiler.is_compiling():
        torch._dynamo.mark_static_address(tensor)


# PEFT


def prompt_learning_of(model: GenerationMixin) -> Any | None:
    """The type of prompt learning whose PEFT model is calling this model's `generate`, or `None`.

    PEFT replaces `prepare_inputs_for_generation` by its own model's, which puts virtual tokens in front of a prompt.
    """
    wrapper = getattr(model.prepare_inputs_for_generation, "__self__", model)
    config = getattr(wrapper, "active_peft_config", None)
    return config.peft_type if getattr(config, "is_prompt_learning", False) else None


@functools.cache
def watch_wrappers(watch: Callable[[nn.Module, str, nn.Module | None], None]) -> None:
    """From now on calls `watch(wrapper, name, module)` whenever `wrapper.name = module`. Once for each function."""
    register_module_module_registration_hook(watch)


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
