# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Llama's decoder layer on streams `[streams, batch, rows, hidden]`, and what the table variants add to it."""

import functools
from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    eager_attention_forward,
    rotate_half,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_aoarm import AOARMConfig


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates heads `[..., rows, heads, head_dim]` by angles whose `cos` and `sin` are `[..., rows, 1, head_dim]`."""
    return heads * cos + rotate_half(heads) * sin


class GroupedHeads:
    """What attention functions read of a module, with another number of query heads for each key/value head.

    It is made for one call, so that a call writes nothing to the module, which other threads may be using.
    """

    def __init__(self, module: nn.Module, num_key_value_groups: int):
        self.module, self.num_key_value_groups = module, num_key_value_groups

    def __getattr__(self, name: str):
        return getattr(self.module, name)


class AOARMAttention(LlamaAttention):
    """Llama's attention, in which all streams ask the content stream's keys and values in one call.

    Streams are further query heads, laid out key/value head by key/value head and within one stream by stream, so that
    the attention interface, which gives query head h the key/value head h // groups, serves every stream the same keys
    and values. Where there is a mask tensor they are further query rows instead, and so are, where a cache is read, the
    query heads that share a key/value head: with masks the library copies keys and values for every query head, and a
    mask for further rows is smaller. Without a mask streams are rows where there is one row, which sees all keys.

    Eager attention, whose weights are returned, is called once for each stream.
    """

    def __init__(self, config: AOARMConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.o_proj = nn.Linear(
            config.num_attention_heads * self.head_dim, config.hidden_size, bias=config.attention_output_bias
        )
        self.q_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        queries: torch.Tensor,
        content: torch.Tensor,
        query_rotation: tuple[torch.Tensor, torch.Tensor] | None,
        key_rotation: tuple[torch.Tensor, torch.Tensor] | None,
        attention_mask: torch.Tensor | None = None,
        key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """
        Args:
            queries: `[streams, batch, rows, hidden]`, the streams that ask.
            content: `[batch, rows, hidden]`, the stream that is read.
            query_rotation: cosine and sine, each `[streams, batch, rows, 1, head_dim]`; `None` rotates nothing.
            key_rotation: cosine and sine, each `[batch, rows, 1, head_dim]`; `None` where `query_rotation` is.
            attention_mask: as the attention interface takes it; of four dimensions it is `[batch, 1, rows, keys]`, or
                `[batch, 1, streams * rows, keys]` where streams see different keys.
            key_values: the cache.

        Returns:
            The output `[streams, batch, rows, hidden]`, and from eager attention the weights of the predicting stream
            and of the content stream before it, `[batch, heads, rows, keys]`; where there are several targets the
            predicting streams' are `[batch, targets, heads, rows, keys]`. `None` for what there is not.
        """
        streams, batch, rows, _ = queries.shape
        heads = (batch, rows, -1, self.head_dim)
        # Quantised linear layers take three dimensions at most (bitsandbytes in 8 bits).
        query = self.q_norm(self.q_proj(queries.flatten(0, 1)).view(streams, *heads))
        key = self.k_norm(self.k_proj(content).view(heads))
        if query_rotation is not None:
            query, key = rotate(query, *query_rotation), rotate(key, *key_rotation)
        key = key.transpose(1, 2)
        value = self.v_proj(content).view(heads).transpose(1, 2)
        if key_values is not None:
            key, value = key_values.update(key, value, self.layer_idx)

        implementation = self.config._attn_implementation
        attend = functools.partial(
            ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward),
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        if implementation == "eager":
            output, weights = self.attend_stream_by_stream(attend, query, key, value, attention_mask)
            return self.project(output), *self.weights_by_kind(weights)

        # Head counts come from the tensors: under tensor parallelism each process holds a share of them.
        key_heads = key.shape[1]
        is_masked = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4
        sees_all = rows == 1 and attention_mask is None
        as_rows = is_masked or sees_all
        groups = query.shape[3] // key_heads if is_masked and key_values is not None else 1
        if streams == groups == 1:
            query = query[0].transpose(1, 2)
        elif as_rows:
            query = query.unflatten(3, (-1, groups)).permute(1, 3, 4, 0, 2, 5).flatten(2, 4)
            if is_masked:
                # One mask for all streams, or each stream's own.
                attention_mask = attention_mask.repeat(1, 1, query.shape[2] // attention_mask.shape[2], 1)
            if sees_all:
                attend = functools.partial(attend, is_causal=False)
        else:
            query = query.unflatten(3, (key_heads, -1)).permute(1, 3, 0, 4, 2, 5).flatten(1, 3)
        output, _ = attend(GroupedHeads(self, query.shape[1] // key_heads), query, key, value, attention_mask)
        if streams == groups == 1:
            output = output[None].flatten(3)
        elif as_rows:
            output = output.unflatten(1, (groups, streams, rows)).permute(2, 0, 3, 4, 1, 5).flatten(3)
        else:
            output = output.view(batch, rows, key_heads, streams, -1).permute(3, 0, 1, 2, 4).flatten(3)
        return self.project(output), None, None

    def project(self, output: torch.Tensor) -> torch.Tensor:
        """The output projection of all streams, `[streams, batch, rows, heads * head_dim]`."""
        # Sharded linear layers view what they are given.
        return self.o_proj(output.contiguous().flatten(0, 1)).view(*output.shape[:3], -1)

    def attend_stream_by_stream(
        self,
        attend: Callable,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """One call for each stream of `query` `[streams, batch, rows, heads, head_dim]`, so that its weights are apart.

        Returns:
            The output `[streams, batch, rows, heads * head_dim]`, and each stream's weights.
        """
        streams, _, rows = query.shape[:3]
        masks = [attention_mask] * streams
        if attention_mask is not None and attention_mask.shape[2] > rows:
            masks = attention_mask.split(rows, dim=2)
        results = [
            attend(self, each.transpose(1, 2), key, value, mask) for each, mask in zip(query, masks, strict=True)
        ]
        return torch.stack([output.flatten(2) for output, _ in results]), [weights for _, weights in results]

    def weights_by_kind(self, weights: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The predicting and the content stream's weights, from those of all streams that asked."""
        if self.config.attention_variant != "two_stream":
            return weights[0], None
        is_last = self.layer_idx == self.config.num_hidden_layers - 1
        content, predicting = (None, weights) if is_last else (weights[0], weights[1:])
        return predicting[0] if len(predicting) == 1 else torch.stack(predicting, dim=1), content


def join_streams(predicting: torch.Tensor, content: torch.Tensor | None) -> torch.Tensor:
    """All streams, `[streams, batch, rows, hidden]`, the content stream first.

    Args:
        predicting: `[batch, rows, hidden]`, or `[batch, rows, targets, hidden]` for several streams.
        content: `[batch, rows, hidden]`, or `None` where the predicting stream is the content stream.
    """
    streams = predicting[None] if predicting.ndim == 3 else predicting.movedim(2, 0)
    return streams if content is None else torch.cat([content[None], streams])


class AOARMDecoderLayer(GradientCheckpointingLayer):
    """Llama's decoder layer on all streams at once.

    Streams come and go as tensors of their own, which are the model's hidden states. After the last layer only
    predictions are wanted, so there the content stream of `two_stream` only makes its keys and values.
    """

    def __init__(self, config: AOARMConfig, layer_idx: int):
        super().__init__()
        self.ends_content = layer_idx == config.num_hidden_layers - 1
        self.self_attn = AOARMAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        predicting: torch.Tensor,
        content: torch.Tensor | None,
        query_rotation: tuple[torch.Tensor, torch.Tensor] | None,
        key_rotation: tuple[torch.Tensor, torch.Tensor] | None,
        condition: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps the predicting streams and the content stream, see [`join_streams`], to those that go on."""
        has_several_targets, has_content = predicting.ndim == 4, content is not None
        streams = join_streams(predicting, content)
        normed = queries = self.input_layernorm(streams)
        if has_content and self.ends_content:
            queries, streams, has_content = normed[1:], streams[1:], False
            query_rotation = tuple(part[1:] for part in query_rotation)
        attended = self.self_attn(queries, normed[0], query_rotation, key_rotation, **kwargs)[0]
        streams = streams + attended
        normed = self.post_attention_layernorm(streams)
        streams = streams + self.mlp(normed.flatten(0, 1)).view_as(streams)
        content, streams = (streams[0], streams[1:]) if has_content else (None, streams)
        return streams.movedim(0, 2) if has_several_targets else streams[0], content


class AdaptiveNormDecoderLayer(AOARMDecoderLayer):
    """`adaptive_norm` (AO-GPT, arXiv:2506.19935): the target modulates each layer.

    An embedding of the target position makes shift and scale of both norms, and gates of attention and MLP; gates
    multiply without a 1 before them, and nothing starts at zero: the last norm has shift and scale alike. The content
    position is an embedding added to the token. Differences from the released AO-GPT:

    1. An order starts from the tokenizer's beginning-of-sentence token instead of a learned one.
    2. The last row's target is the next position instead of an embedding of zeros.
    3. Llama's SwiGLU without biases and an output layer without bias, instead of GELU and biases. `qk_norm=True` gives
       its normalised queries and keys.
    4. Weights start normal, not truncated at three standard deviations, and residual projections are not divided by
       the square root of twice the depth: the initialisation is that of the other variants.
    5. No dropout. Its exponential average of weights is `EMACallback`.
    """

    def __init__(self, config: AOARMConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.modulation = nn.Linear(config.target_embedding_size, 6 * config.hidden_size)

    def forward(
        self,
        predicting: torch.Tensor,
        content: None,
        query_rotation: None,
        key_rotation: None,
        condition: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, None]:
        """As in the other variants, with the target as `condition`, `[batch, rows, target_embedding_size]`."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition).chunk(6, dim=-1)
        normed = modulate(self.input_layernorm(predicting), shift, scale)
        attended = self.self_attn(normed[None], normed, query_rotation, key_rotation, **kwargs)[0][0]
        predicting = predicting + gate * attended
        normed = modulate(self.post_attention_layernorm(predicting), mlp_shift, mlp_scale)
        return predicting + mlp_gate * self.mlp(normed), None


def modulate(normed: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What follows a norm in `adaptive_norm`."""
    return normed * (1 + scale) + shift


class DoublePositionEmbedding(nn.Module):
    """`double_position` (σ-GPT, arXiv:2404.09562): what is added to a row's token for its content and target position.

    `concatenated`: one table of half the width serves both, side by side. `summed`: two tables of the full width, as in
    AO-GPT's version of it. Differences from the released σ-GPT:

    1. An order starts from the tokenizer's beginning-of-sentence token, where it has one, so that the first token is
       predicted as well.
    2. Tables have one entry more, for the target that follows the last position.
    3. Llama's RMS norms and SwiGLU, instead of layer norms, GELU and biases.
    4. Residual projections do not start divided by the square root of twice the depth, and embeddings are tied only
       with `tie_word_embeddings=True`.
    5. No dropout.
    """

    def __init__(self, config: AOARMConfig):
        super().__init__()
        places = config.max_position_embeddings + 1
        self.is_summed = config.double_position_mode == "summed"
        width = config.hidden_size if self.is_summed else config.hidden_size // 2
        self.own = nn.Embedding(places, width)
        if self.is_summed:
            self.target = nn.Embedding(places, width)

    def forward(self, position_ids: torch.Tensor, target_position_ids: torch.Tensor) -> torch.Tensor:
        """int64 `[batch, rows]`, twice, to `[batch, rows, hidden]`."""
        if self.is_summed:
            return self.own(position_ids) + self.target(target_position_ids)
        return torch.cat([self.own(position_ids), self.own(target_position_ids)], dim=-1)


__all__ = ["AOARMAttention", "AOARMDecoderLayer", "AdaptiveNormDecoderLayer", "DoublePositionEmbedding", "modulate"]
