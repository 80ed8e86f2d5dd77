# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The models that the study compares: the variants, and controls that explain differences between them.

| name | model |
| --- | --- |
| an `attention_variant` | the variant; `two_stream` as `two_stream_content` or `two_stream_learned` |
| `layers_twice` | `decoupled_rope` with its stack of layers applied twice: the same parameters, twice the arithmetic |
| `half_own` | `decoupled_rope` with half of the query heads rotated by the own position |
| `bidirectional_content` | `two_stream_learned` whose observed rows all see each other: the cost of causality |
| `strict_content` | `two_stream_content` whose content rows see the rows before them only, not their own key |

A further control, `decoupled_rope` trained 1.75 times as long (the arithmetic of two streams), is a later branch of its
own training.

`bidirectional` and `bidirectional_content` read a whole prefix of an order at once, so they learn from one prefix of
each sentence, while the others learn from all.
"""

import copy
from typing import Any

import torch
from torch import nn

from modeling_aoarm.configuration_aoarm import AOARMConfig
from modeling_aoarm.modeling_aoarm import AOARMForCausalLM, AOARMModel, AOARMPreTrainedModel, model_class_for


# Each name's arguments of `AOARMConfig`.
MODELS = {
    "decoupled_rope": {"attention_variant": "decoupled_rope"},
    "two_stream_content": {"attention_variant": "two_stream", "query_stream_init": "content"},
    "two_stream_learned": {"attention_variant": "two_stream", "query_stream_init": "learned"},
    "double_position": {"attention_variant": "double_position"},
    "adaptive_norm": {"attention_variant": "adaptive_norm"},
    "causal": {"attention_variant": "causal"},
    "bidirectional": {"attention_variant": "bidirectional"},
    "layers_twice": {"attention_variant": "decoupled_rope"},
    "half_own": {"attention_variant": "decoupled_rope"},
    "bidirectional_content": {"attention_variant": "two_stream", "query_stream_init": "learned"},
    "strict_content": {"attention_variant": "two_stream", "query_stream_init": "content"},
}
READS_PREFIXES = ("bidirectional", "bidirectional_content")
# They have masks of their own, which flash kernels, the analysis of attention and `generate` do not know.
MASKED_CONTROLS = ("bidirectional_content", "strict_content")


class HalfOwnModel(AOARMModel):
    """`decoupled_rope` with the second half of the query heads rotated by the own position."""

    def rotations(self, streams, position_ids, targets):
        target, own = super().rotations(streams, position_ids, targets)
        half = self.config.num_attention_heads // 2
        query = (
            torch.cat([by_target.expand(-1, -1, -1, half, -1), by_own[None].expand(-1, -1, -1, half, -1)], dim=-2)
            for by_target, by_own in zip(target, own, strict=True)
        )
        return tuple(query), own


class HalfOwnForCausalLM(AOARMForCausalLM):
    """[`HalfOwnModel`] with a head."""

    def __init__(self, config: AOARMConfig):
        super().__init__(config)
        self.model = HalfOwnModel(config)
        self.post_init()


def repeat_layers(model: AOARMForCausalLM) -> None:
    """Applies the stack of layers twice. The second copy shares the weights and has its own rows of the cache."""
    layers = model.model.layers
    for index, layer in enumerate(list(layers), start=len(layers)):
        layer = _copy_sharing_parameters(layer)
        layer.self_attn = _copy_sharing_parameters(layer.self_attn)
        layer.self_attn.layer_idx = index
        layers.append(layer)
    model.config.num_hidden_layers = len(layers)


def _copy_sharing_parameters(module: nn.Module) -> nn.Module:
    """Another module with the same parameters and submodules, in which submodules can be replaced."""
    shared = copy.copy(module)
    shared._modules = dict(module._modules)
    return shared


def hide_own_keys(model: AOARMForCausalLM) -> None:
    """Hides each content row's key from the row itself. The first row has no other key and keeps its own.

    The model then raises a ValueError for a mask and for a cache.
    """
    # The content stream of the last layer makes keys and values and does not attend.
    for layer in model.model.layers[:-1]:
        layer.self_attn.register_forward_pre_hook(_mask_own_keys, with_kwargs=True)


def _mask_own_keys(module: nn.Module, arguments: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    for name in ("attention_mask", "key_values"):
        if kwargs[name] is not None:
            raise ValueError(f"`{name}` must be None for the control `strict_content`, got {type(kwargs[name])}.")
    streams, _, rows, _ = arguments[0].shape
    seen = torch.ones(rows, rows, dtype=torch.bool, device=arguments[0].device).tril()
    before = seen.tril(-1)
    before[0, 0] = True
    mask = torch.cat([before, *[seen] * (streams - 1)])[None, None]
    return arguments, kwargs | {"attention_mask": mask}


def study_model(name: str, vocab_size: int, length: int, seed: int, **sizes) -> AOARMPreTrainedModel:
    """Makes a model with new weights for sentences of `length` symbols.

    Its vocabulary has two more tokens: the beginning of a sentence, and last the token that stands in blanks.

    Args:
        name: one of `MODELS`.
        vocab_size: number of symbols of the source.
        length: length of the sentences.
        seed: seed of the weights.
        sizes: `hidden_size`, `num_hidden_layers` and so on.

    Raises:
        ValueError: for another name.
    """
    if name not in MODELS:
        raise ValueError(f"`name` must be one of {list(MODELS)}, got {name!r}.")
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    special["mask_token_id"] = vocab_size + 1 if name == "bidirectional" else None
    config = AOARMConfig(
        vocab_size=vocab_size + 2, max_position_embeddings=length + 1, **special, **(MODELS[name] | sizes)
    )
    torch.manual_seed(seed)
    model = HalfOwnForCausalLM(config) if name == "half_own" else model_class_for(config)(config)
    if name == "layers_twice":
        repeat_layers(model)
    if name == "strict_content":
        hide_own_keys(model)
    return model.eval()
