# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The models that the study compares: the variants, and controls that say why one beats another.

| name | what it is |
| --- | --- |
| an `attention_variant` | the variant; `two_stream` as `two_stream_content` or `two_stream_learned` |
| `layers_twice` | `decoupled_rope` whose stack of layers is applied twice: its parameters, twice its arithmetic |
| `half_own` | `decoupled_rope`, half of whose query heads are rotated by the own position |
| `bidirectional_content` | `two_stream_learned` whose observed rows all see each other: what causality costs |

`decoupled_rope` trained 1.75 times as long, the arithmetic of two streams, is a later branch of its own training.

`bidirectional` and `bidirectional_content` read a whole prefix of an order at once, so they learn from one prefix of
each sentence, where the others learn from all.
"""

import copy

import torch
from torch import nn

from modeling_aoarm.configuration_aoarm import AOARMConfig
from modeling_aoarm.modeling_aoarm import AOARMForCausalLM, AOARMModel, AOARMPreTrainedModel, model_class_for


# Name: variant and what else its configuration says.
MODELS = {
    "decoupled_rope": ("decoupled_rope", {}),
    "two_stream_content": ("two_stream", {"query_stream_init": "content"}),
    "two_stream_learned": ("two_stream", {"query_stream_init": "learned"}),
    "double_position": ("double_position", {}),
    "adaptive_norm": ("adaptive_norm", {}),
    "causal": ("causal", {}),
    "bidirectional": ("bidirectional", {}),
    "layers_twice": ("decoupled_rope", {}),
    "half_own": ("decoupled_rope", {}),
    "bidirectional_content": ("two_stream", {"query_stream_init": "learned"}),
}
READS_PREFIXES = ("bidirectional", "bidirectional_content")


class HalfOwnModel(AOARMModel):
    """`decoupled_rope`, the second half of whose query heads are rotated by the own position."""

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
    """Applies the stack of layers twice. The second time its weights are shared; its rows of the cache are its own."""
    again = []
    for index, layer in enumerate(model.model.layers, start=len(model.model.layers)):
        layer, attention = _sharing(layer), _sharing(layer.self_attn)
        attention.layer_idx = index
        layer.self_attn = attention
        again.append(layer)
    model.model.layers.extend(again)
    model.config.num_hidden_layers = len(model.model.layers)


def _sharing(module: nn.Module) -> nn.Module:
    """Another module with the same parameters and submodules, of which one may be exchanged."""
    shared = copy.copy(module)
    shared._modules = dict(module._modules)
    return shared


def study_model(name: str, vocab_size: int, length: int, seed: int, **sizes) -> AOARMPreTrainedModel:
    """A model with new weights for sentences of `length` symbols.

    Its vocabulary has two tokens more: the beginning of a sentence, and the last one, which stands in blanks.

    Args:
        name: one of `MODELS`.
        vocab_size: number of symbols of the source.
        length: of the sentences.
        seed: of the weights.
        sizes: `hidden_size`, `num_hidden_layers` and so on.

    Raises:
        ValueError: for another name.
    """
    if name not in MODELS:
        raise ValueError(f"`name` must be one of {list(MODELS)}, got {name!r}.")
    variant, options = MODELS[name]
    config = AOARMConfig(
        attention_variant=variant,
        vocab_size=vocab_size + 2,
        max_position_embeddings=length + 1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        mask_token_id=vocab_size + 1 if variant == "bidirectional" else None,
        **(options | sizes),
    )
    torch.manual_seed(seed)
    model = (HalfOwnForCausalLM if name == "half_own" else model_class_for(config))(config).eval()
    if name == "layers_twice":
        repeat_layers(model)
    return model
