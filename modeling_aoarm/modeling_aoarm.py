# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Any-order autoregressive models: Llama's decoder over rows in generation order, told where the next token goes.

Hidden states come in *streams*, `[batch, rows, hidden]` each. The content stream makes the keys and values, and the
predicting stream makes the logits. Only in `two_stream` are they different streams. Keys are rotated by content
positions. The variants differ in their streams and in the rotation of queries:

| variant           | streams                                  | queries are rotated by                            |
| ----------------- | ---------------------------------------- | ------------------------------------------------- |
| `two_stream`      | content, and one query stream per target | content: content position; query: target - 1      |
| `decoupled_rope`  | one                                      | target - 1                                        |
| `causal`          | one                                      | content position                                  |
| `double_position` | one                                      | no rotations; see [`DoublePositionEmbedding`]     |
| `adaptive_norm`   | one                                      | no rotations; see [`AdaptiveNormDecoderLayer`]    |
| `bidirectional`   | one                                      | content position; see [`AOARMForMaskedLM`]        |

[`AOARMModel.start_streams`], [`AOARMModel.query_positions`] and [`AOARMModel.embed_condition`] hold these differences.

Every stream of row r sees rows 0 to r, so all streams share one causal attention call, as more query heads over the
same keys and values. In `bidirectional` rows are in sentence order and all see each other.

A left-to-right decoder predicts a token from the position before it, target - 1. In the identity order `decoupled_rope`
therefore equals Llama, and so does `two_stream` if its query stream starts from the content or from the token at
target - 1.

[`PreTrainedModel`] initialises linear layers and embeddings, the learned query vector included, from a normal
distribution with standard deviation `initializer_range`. Biases start at zero and norms at one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    eager_attention_forward,
    rotate_half,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .cache_aoarm import holds_canvases
from .compat_aoarm import (
    CACHE_NAME,
    CACHE_NAMES,
    CacheUnderBothNames,
    SavedWithoutSharding,
    guard_prompt_learning,
    prompt_learning_of,
    register_for_label_smoothing,
    require,
    the_cache,
)
from .configuration_aoarm import TABLE_VARIANTS, AOARMConfig, head_auto_class
from .decoding_aoarm import AOARMGenerationConfig
from .generation_aoarm import AOARMGenerationMixin
from .positions_aoarm import RowPositions, make_attention_mask, read_indices, resolve_segments
from .runner_aoarm import LogitsReader, MaskedRunner, rows_at_once
from .scoring_aoarm import AOARMScoringMixin, MaskedScoringMixin


# Cosine and sine.
Rotation = tuple[Tensor, Tensor]


# Outputs


@dataclass
class AOARMModelOutputWithPast(CacheUnderBothNames, BaseModelOutputWithPast):
    """
    Args:
        last_hidden_state: the predicting stream after the final norm, `[batch, rows, hidden]`, or
            `[batch, rows, targets, hidden]` if several targets were given.
        past_key_values (or `cache`): the cache, one entry per row.
        hidden_states: the predicting stream before each layer and after the last, in the shape of `last_hidden_state`.
        attentions: the predicting stream's weights per layer, `[batch, heads, rows, keys]`, or
            `[batch, targets, heads, rows, keys]`.
        content_hidden_states: `two_stream` only: the content stream before each layer, `[batch, rows, hidden]`.
        content_attentions: `two_stream` only: the content stream's weights `[batch, heads, rows, keys]` in all layers
            but the last, where the content stream ends in its keys and values.
    """

    content_hidden_states: tuple[Tensor, ...] | None = None
    content_attentions: tuple[Tensor, ...] | None = None


@dataclass
class AOARMCausalLMOutputWithPast(CacheUnderBothNames, CausalLMOutputWithPast):
    """
    Args:
        loss: mean cross-entropy in nats per token over the labels that are not -100.
        logits: `[batch, rows, vocab]`, or `[batch, rows, targets, vocab]`: row r is about `target_position_ids[:, r]`.
            `None` with `fused_loss`, `scored_ids` or `logits_reader`.
        past_key_values, hidden_states, attentions, content_hidden_states, content_attentions:
            see [`AOARMModelOutputWithPast`].
        token_log_probs: float32, nats, the log-probabilities of `scored_ids`, in their shape.
        token_is_likeliest: bool, whether each of `scored_ids` is the likeliest token.
        readings: what `logits_reader` returned.
    """

    content_hidden_states: tuple[Tensor, ...] | None = None
    content_attentions: tuple[Tensor, ...] | None = None
    token_log_probs: torch.FloatTensor | None = None
    token_is_likeliest: torch.BoolTensor | None = None
    readings: Any = None


@dataclass
class AOARMMaskedLMOutput(MaskedLMOutput):
    """
    Args:
        loss: nats per label that is not -100, or per `num_items_in_batch`, which `Trainer` counts.
        logits: `[batch, rows, vocab]`, or `[batch, kept, vocab]`; `None` with `scored_ids` or `logits_reader`.
        hidden_states, attentions: as in the library, `[batch, rows, hidden]` and `[batch, heads, rows, keys]`.
        token_log_probs, token_is_likeliest, readings: see [`AOARMCausalLMOutputWithPast`].
    """

    token_log_probs: torch.FloatTensor | None = None
    token_is_likeliest: torch.BoolTensor | None = None
    readings: Any = None


# Attention


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates heads `[..., rows, heads, head_dim]` by angles whose `cos` and `sin` are `[..., rows, 1, head_dim]`."""
    return heads * cos + rotate_half(heads) * sin


class GroupedHeads:
    """A module with another number of query heads per key/value head, for one call of an attention function.

    The module itself does not change, because other threads may be using it.
    """

    def __init__(self, module: nn.Module, num_key_value_groups: int):
        self.module, self.num_key_value_groups = module, num_key_value_groups

    def __getattr__(self, name: str):
        return getattr(self.module, name)


class AOARMAttention(LlamaAttention):
    """Llama's attention, in which all streams query the content stream's keys and values in one call.

    Queries have three axes that share a key/value head: the group of query heads, the stream and the row. The attention
    interface has heads and rows. Which axes become heads is a matter of speed:

    1. Without a mask tensor, groups and streams are heads: kernels share keys among heads, and their causal mask has
       one row for each key.
    2. With a mask tensor, streams are rows. The library copies keys and values for every query head then, and a mask
       with more rows is smaller than such copies.
    3. Groups are rows too if a mask comes with a cache, where there are few queries for many keys, and for a single row
       without a mask, which sees all keys.

    Eager attention is called once for each stream, because it returns weights.
    """

    def __init__(self, config: AOARMConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        width = config.num_attention_heads * self.head_dim
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.attention_output_bias)
        self.q_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        queries: Tensor,
        content: Tensor,
        query_rotation: Rotation | None,
        key_rotation: Rotation | None,
        attention_mask: Tensor | None = None,
        key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Attends from all streams to the content stream.

        Args:
            queries: `[streams, batch, rows, hidden]`, the streams that query.
            content: `[batch, rows, hidden]`, the stream that makes keys and values.
            query_rotation, key_rotation: cosine and sine, `[streams, batch, rows, 1, head_dim]` and
                `[batch, rows, 1, head_dim]`; `None` for no rotation.
            attention_mask: as the attention interface takes it. A mask of four dimensions is `[batch, 1, rows, keys]`,
                or `[batch, 1, streams * rows, keys]` if streams see different keys.
            key_values: the cache.

        Returns:
            The output `[streams, batch, rows, hidden]`, and the weights of the predicting and of the content stream
            (see [`AOARMModelOutputWithPast`]). Weights are `None` unless attention is eager, and for a content stream
            that does not query.
        """
        streams, batch, rows, _ = queries.shape
        heads = (batch, rows, -1, self.head_dim)
        # Linear layers that bitsandbytes quantises to 8 bits take at most three dimensions.
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
            output, *weights = self.attend_stream_by_stream(attend, query, key, value, attention_mask)
        else:
            output = self.attend_together(attend, query, key, value, attention_mask, key_values is not None)
            weights = None, None
        # Sharded linear layers view their input, so it must be contiguous.
        return self.o_proj(output.contiguous().flatten(0, 1)).view_as(queries), *weights

    def attend_together(
        self, attend: Callable, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, has_cache: bool
    ) -> Tensor:
        """Calls attention once for all streams, `[streams, batch, rows, heads, head_dim]`."""
        # Head counts come from the tensors: under tensor parallelism each process holds a share of the heads.
        streams, batch, rows, query_heads, head_dim = query.shape
        key_heads = key.shape[1]
        query = query.view(streams, batch, rows, key_heads, -1, head_dim).permute(1, 3, 4, 0, 2, 5)
        is_masked, sees_all = isinstance(mask, Tensor) and mask.ndim == 4, mask is None and rows == 1
        if sees_all or (is_masked and has_cache):
            heads = key_heads
        else:
            heads = query_heads if is_masked else query_heads * streams
        together = query.reshape(batch, heads, -1, head_dim)
        if is_masked and together.shape[2] > mask.shape[2]:
            mask = mask.repeat(1, 1, together.shape[2] // mask.shape[2], 1)
        if sees_all:
            attend = functools.partial(attend, is_causal=False)
        output, _ = attend(GroupedHeads(self, heads // key_heads), together, key, value, mask)
        return output.transpose(1, 2).view(query.shape).permute(3, 0, 4, 1, 2, 5).flatten(3)

    def attend_stream_by_stream(
        self, attend: Callable, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Calls eager attention for each stream. The output depends on the weights, so they have gradients."""
        rows = query.shape[2]
        has_masks = mask is not None and mask.shape[2] > rows
        masks = mask.split(rows, dim=2) if has_masks else [mask] * len(query)
        results = [attend(self, each.transpose(1, 2), key, value, own) for each, own in zip(query, masks, strict=True)]
        outputs, weights = zip(*results, strict=True)
        is_last = self.layer_idx == self.config.num_hidden_layers - 1
        has_content = self.config.attention_variant == "two_stream" and not is_last
        content, predicting = (weights[0], weights[1:]) if has_content else (None, weights)
        predicting = predicting[0] if len(predicting) == 1 else torch.stack(predicting, dim=1)
        return torch.stack(outputs).flatten(3), predicting, content


# Layers


class AOARMDecoderLayer(GradientCheckpointingLayer):
    """Llama's decoder layer on all streams at once.

    Streams enter and leave as separate tensors, which are the model's hidden states. After the last layer only
    predictions are needed, so there the content stream of `two_stream` only makes keys and values.
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
        predicting: Tensor,
        content: Tensor | None,
        query_rotation: Rotation | None,
        key_rotation: Rotation | None,
        condition: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Maps the streams to those of the next layer.

        Args:
            predicting: `[batch, rows, hidden]`, or `[batch, rows, targets, hidden]` for several streams.
            content: `[batch, rows, hidden]`, or `None` if the predicting stream is the content stream.
            query_rotation, key_rotation: see [`AOARMAttention.forward`].
            condition: for `adaptive_norm`, see [`AOARMModel.embed_condition`].
        """
        has_several_targets, has_content = predicting.ndim == 4, content is not None
        streams = predicting.movedim(2, 0) if has_several_targets else predicting[None]
        if has_content:
            streams = torch.cat([content[None], streams])
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


# The variants with tables of positions


class DoublePositionEmbedding(nn.Module):
    """`double_position` (σ-GPT, arXiv:2404.09562): embeds content and target position, to be added to the token.

    With `concatenated` one table of half the width serves both positions, side by side. With `summed` there are two
    tables of the full width, as in AO-GPT's version. Differences from the released σ-GPT:

    1. An order starts from the tokenizer's beginning-of-sentence token, if it has one, so that the first token is
       predicted as well.
    2. Tables have one more entry, for the target that follows the last position.
    3. Llama's RMS norms and SwiGLU replace layer norms, GELU and biases.
    4. Residual projections do not start divided by the square root of twice the depth, and embeddings are tied only
       with `tie_word_embeddings=True`.
    5. There is no dropout.
    """

    def __init__(self, config: AOARMConfig):
        super().__init__()
        positions = config.max_position_embeddings + 1
        self.is_summed = config.double_position_mode == "summed"
        width = config.hidden_size if self.is_summed else config.hidden_size // 2
        self.own = nn.Embedding(positions, width)
        if self.is_summed:
            self.target = nn.Embedding(positions, width)

    def forward(self, position_ids: Tensor, target_position_ids: Tensor) -> Tensor:
        """Maps content and target positions, int64 `[batch, rows]` each, to `[batch, rows, hidden]`."""
        if self.is_summed:
            return self.own(position_ids) + self.target(target_position_ids)
        return torch.cat([self.own(position_ids), self.own(target_position_ids)], dim=-1)


def modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shifts and scales the output of a norm, for `adaptive_norm`."""
    return normed * (1 + scale) + shift


class AdaptiveNormDecoderLayer(AOARMDecoderLayer):
    """`adaptive_norm` (AO-GPT, arXiv:2506.19935): the target modulates each layer.

    An embedding of the target position makes shift and scale of both norms, and gates of attention and MLP. Gates
    multiply without an added 1, and nothing starts at zero. The final norm has a shift and a scale too. An embedding of
    the content position is added to the token. Differences from the released AO-GPT:

    1. An order starts from the tokenizer's beginning-of-sentence token instead of a learned one.
    2. The last row's target is the next position instead of an embedding of zeros.
    3. Llama's SwiGLU without biases and an output layer without bias replace GELU and biases. `qk_norm=True` gives its
       normalised queries and keys.
    4. Weights are initialised as in the other variants: not truncated at three standard deviations, and residual
       projections not divided by the square root of twice the depth.
    5. There is no dropout. Its exponential average of weights is `EMACallback`.
    """

    def __init__(self, config: AOARMConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.modulation = nn.Linear(config.target_embedding_size, 6 * config.hidden_size)

    def forward(self, predicting, content, query_rotation, key_rotation, condition, **kwargs):
        """As in the other variants; the target is `condition`, `[batch, rows, target_embedding_size]`."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition).chunk(6, dim=-1)
        normed = modulate(self.input_layernorm(predicting), shift, scale)
        attended = self.self_attn(normed[None], normed, query_rotation, key_rotation, **kwargs)[0][0]
        predicting = predicting + gate * attended
        normed = modulate(self.post_attention_layernorm(predicting), mlp_shift, mlp_scale)
        return predicting + mlp_gate * self.mlp(normed), None


# The model


class AOARMPreTrainedModel(SavedWithoutSharding, PreTrainedModel):
    """Loads and saves the models, and names the features of the library that they support."""

    config_class = AOARMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = [*CACHE_NAMES, "key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": AOARMDecoderLayer,
        "content_hidden_states": OutputRecorder(AOARMDecoderLayer, index=1),
        "attentions": AOARMAttention,
        "content_attentions": OutputRecorder(AOARMAttention, index=2),
    }

    def __init__(self, config: AOARMConfig):
        super().__init__(config)
        guard_prompt_learning()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, use_safetensors: bool | None = None, **kwargs):
        """As in the library, but weights are read from safetensors only, because other formats are unpickled.

        Raises:
            OSError: there are no such weights, or they are damaged.
            ValueError: `use_safetensors=False`.
        """
        if use_safetensors is False:
            raise ValueError("`use_safetensors` must not be False: weights are loaded from safetensors only.")
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, use_safetensors=True, **kwargs)
        except (SafetensorError, JSONDecodeError) as error:
            raise OSError(f"Weights of {pretrained_model_name_or_path} are truncated or damaged: {error}") from error


class AOARMModel(AOARMPreTrainedModel):
    """The decoder of an any-order autoregressive model, without a head. See the top of this module for the variants.

    In all methods `position_ids` are int64 `[batch, rows]` and `targets` int64 `[batch, rows, targets]`.
    """

    def __init__(self, config: AOARMConfig):
        super().__init__(config)
        # No padding row: with pad == eos it would never be trained.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.attention_variant == "two_stream" and config.query_stream_init != "content":
            self.query_embedding = nn.Embedding(1, config.hidden_size)
        positions, layer_class = config.max_position_embeddings + 1, AOARMDecoderLayer
        if config.attention_variant == "double_position":
            self.position_embedding = DoublePositionEmbedding(config)
        elif config.attention_variant == "adaptive_norm":
            layer_class = AdaptiveNormDecoderLayer
            self.position_embedding = nn.Embedding(positions, config.hidden_size)
            self.target_embedding = nn.Embedding(positions, config.target_embedding_size)
            self.norm_modulation = nn.Linear(config.target_embedding_size, 2 * config.hidden_size)
        else:
            self.rotary_emb = LlamaRotaryEmbedding(config)
        # FSDP looks for every class that is named here.
        self._no_split_modules = [layer_class.__name__]
        self.layers = nn.ModuleList([layer_class(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    # The differences between the variants

    def start_streams(
        self, tokens: Tensor, position_ids: Tensor, targets: Tensor, left_tokens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Makes the streams before the first layer from the embeddings of [`embed_rows`].

        Returns:
            The predicting streams, `[batch, rows, targets, hidden]`, and the content stream, `[batch, rows, hidden]`,
            or `None` if there is only one stream.
        """
        variant = self.config.attention_variant
        if variant == "double_position":
            tokens = tokens + self.position_embedding(position_ids, targets[..., 0])
        elif variant == "adaptive_norm":
            tokens = tokens + self.position_embedding(position_ids)
        if variant != "two_stream":
            return tokens[:, :, None], None
        if left_tokens is not None:
            return left_tokens, tokens
        is_content = self.config.query_stream_init == "content"
        start = tokens if is_content else self.learned_query(tokens.device).expand_as(tokens)
        return start[:, :, None].expand(-1, -1, targets.shape[-1], -1), tokens

    def learned_query(self, device: torch.device) -> Tensor:
        """Returns the learned vector from which query streams start, `[hidden]`."""
        # Offloading and adapters act on calls of the embedding, not on its weight.
        return self.query_embedding(torch.zeros((), dtype=torch.int64, device=device))

    def query_positions(self, position_ids: Tensor, targets: Tensor) -> Tensor:
        """Returns the positions by which each stream's queries are rotated, int64 `[streams, batch, rows]`."""
        before_targets = targets.movedim(-1, 0) - 1
        if self.config.attention_variant == "two_stream":
            return torch.cat([position_ids[None], before_targets])
        return before_targets if self.config.attention_variant == "decoupled_rope" else position_ids[None]

    def rotations(
        self, hidden_states: Tensor, position_ids: Tensor, targets: Tensor
    ) -> tuple[Rotation | None, Rotation | None]:
        """Makes the rotations of queries and of keys for [`AOARMAttention.forward`], in the dtype of the states."""
        if self.config.attention_variant in TABLE_VARIANTS:
            return None, None
        positions = torch.cat([position_ids[None], self.query_positions(position_ids, targets)])
        angles = self.rotary_emb(hidden_states, positions.flatten(0, 1))
        cos, sin = (part.view(*positions.shape, 1, -1) for part in angles)
        return (cos[1:], sin[1:]), (cos[0], sin[0])

    def embed_condition(self, targets: Tensor) -> Tensor | None:
        """Embeds the targets that modulate the layers of `adaptive_norm`, `[batch, rows, target_embedding_size]`."""
        if self.config.attention_variant != "adaptive_norm":
            return None
        return nn.functional.silu(self.target_embedding(targets[..., 0]))

    # The forward pass

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        target_position_ids: torch.LongTensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        query_input_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AOARMModelOutputWithPast:
        """Runs the decoder on rows in generation order; in sentence order for `bidirectional`.

        Args:
            input_ids: int64 `[batch, rows]`, the rows' tokens. Either these or `inputs_embeds`.
            attention_mask: `[batch, past rows + rows]`, 0 for padding on either side; or a prepared 4-D mask.
            position_ids: int64 `[batch, rows]`, content positions in `[0, max_position_embeddings)`. Default: 0, 1, 2,
                ..., continuing after the cache and starting again in each segment.
            target_position_ids: int64 `[batch, rows]`, target positions in `[0, max_position_embeddings]`; `two_stream`
                also takes several targets of each row, `[batch, rows, targets]`. Default: the next row's content
                position, and the own position + 1 on the last row.
            segment_ids: int64 `[batch, rows]`, equal within each run of rows that is an example of its own (packing).
                As in the library, `position_ids` that begin with 0 and come back to it are packed too, in a call
                without mask, targets and cache.
            past_key_values (or `cache`): the rows before, as keys and values. In single-stream variants they belong to
                the targets that they were computed with.
            inputs_embeds: `[batch, rows, hidden]`.
            use_cache: whether to return a cache. Default: `config.use_cache`, except in training and for positions
                without targets, because the cache would keep a guessed target of the last row.
            query_input_ids: int64, in the shape of the targets: the tokens at target - 1, from which query streams with
                `query_stream_init="neighbor"` start; -1 if no row of the same example, up to the own one, holds that
                position. Default: found among the rows of the call.

        Raises:
            ValueError: for a wrong shape or dtype; positions outside the table (left-to-right text may be longer, as in
                Llama); a position that comes twice in an example; several targets in a single-stream variant; positions
                for `causal` that are not the identity; cached rows whose targets or `query_input_ids` cannot be known;
                `query_input_ids` for a model that does not start from them; `segment_ids` together with a cache; a
                cache that activation checkpointing would lose; `is_causal=False`, with which rows would see their
                targets; targets and caches for `bidirectional`. Values of positions are not checked under
                `torch.compile`. In training on an accelerator the device reports wrong values later.
        """
        past_key_values = the_cache(past_key_values, cache, kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given.")
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        self.check_options(target_position_ids, past_key_values, use_cache, kwargs.get("is_causal"))
        given = position_ids, target_position_ids, attention_mask
        segment_ids = resolve_segments(segment_ids, *given, past_key_values, use_cache, inputs.shape[:2])
        if use_cache is None:
            has_known_targets = target_position_ids is not None or position_ids is None
            takes_cache = segment_ids is None and self.config.attention_variant != "bidirectional"
            is_training = self.training and torch.is_grad_enabled()
            use_cache = self.config.use_cache and has_known_targets and takes_cache and not is_training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        positions = self.resolve_positions(*given, segment_ids, past_key_values, inputs)
        position_ids, targets = positions.content, positions.targets
        tokens, left_tokens = self.embed_rows(input_ids, inputs_embeds, query_input_ids, positions, past_key_values)
        predicting, content = self.start_streams(tokens, position_ids, targets, left_tokens)
        if not positions.has_several_targets:
            predicting = predicting[:, :, 0]
        rotations = self.rotations(tokens, position_ids, targets)
        condition = self.embed_condition(targets)
        mask, options = make_attention_mask(self.config, tokens, attention_mask, past_key_values, positions.segment)
        for name in ("hidden_states", "attentions"):
            is_recorded = kwargs.get(f"output_{name}", getattr(self.config, f"output_{name}", False))
            options[f"output_content_{name}"] = bool(is_recorded) and content is not None
        options = kwargs | options | {"attention_mask": mask, "key_values": past_key_values, "return_dict": True}
        outputs = self.run_layers(predicting, content, *rotations, condition, **options)
        if outputs.content_hidden_states is not None:
            outputs["content_hidden_states"] = (content, *outputs.content_hidden_states)
        return outputs

    def check_options(
        self, targets: Tensor | None, past_key_values: Cache | None, use_cache: bool | None, is_causal: bool | None
    ) -> None:
        """Raises a ValueError for arguments that the variant or activation checkpointing does not take."""
        if self.config.attention_variant == "bidirectional":
            given = {"target_position_ids": targets, "past_key_values": past_key_values}
            for name, value in (given | {"use_cache": use_cache, "is_causal": is_causal}).items():
                if value is not None and value is not False:
                    raise ValueError(
                        f"`{name}` must not be given for attention_variant='bidirectional', where all rows see each "
                        f"other and predict their own tokens; got {type(value).__name__}."
                    )
        elif is_causal is False:
            raise ValueError("`is_causal` must not be False: rows would see the tokens that they are to predict.")
        is_checkpointed = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if is_checkpointed and (past_key_values is not None or use_cache):
            raise ValueError(
                "A cache cannot be used in training with activation checkpointing, which computes layers again: call "
                "the model with use_cache=False, in `eval` mode, or under `torch.no_grad()`. Got "
                f"use_cache={use_cache} and {type(past_key_values).__name__}."
            )

    def resolve_positions(
        self,
        position_ids: Tensor | None,
        target_position_ids: Tensor | None,
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        past_key_values: Cache | None,
        inputs: Tensor,
    ) -> RowPositions:
        """Returns the positions of the rows of `inputs`, `[batch, rows, ...]`, checked unless the call is compiled."""
        if position_ids is not None and holds_canvases(past_key_values):
            # `generate` has checked the rows of its own cache.
            several = target_position_ids.ndim == 3
            targets = target_position_ids if several else target_position_ids[..., None]
            return RowPositions(position_ids, targets, targets_given=True, has_several_targets=several)
        variant, given = self.config.attention_variant, (position_ids, target_position_ids)
        rest = attention_mask, segment_ids, past_key_values, inputs.shape[:2], inputs.device
        positions = RowPositions.resolve(*given, *rest)
        if positions.has_several_targets and variant != "two_stream":
            raise ValueError(
                "`target_position_ids` of shape [batch, rows, targets] needs attention_variant='two_stream': a single "
                f"stream has one target per row. Got attention_variant={variant!r}."
            )
        has_tables = variant in TABLE_VARIANTS
        if (has_tables or any(each is not None for each in given)) and not torch.compiler.is_compiling():
            positions.check(self.config, past_key_values is not None, self.waits_for(inputs))
        if has_tables:
            # Padding may have positions for which a table has no entry.
            positions.content = positions.content.where(positions.real, 0)
            positions.targets = positions.targets.where(positions.real[..., None], 0)
        return positions

    def waits_for(self, inputs: Tensor) -> bool:
        """Returns whether checks read values at once. A program waits for its accelerator then."""
        return (inputs.device.type == "cpu" or not self.training) and not torch.compiler.is_compiling()

    def embed_rows(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        query_input_ids: Tensor | None,
        positions: RowPositions,
        past_key_values: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeds the rows' tokens, and for the neighbor start the tokens left of the targets.

        Returns:
            `[batch, rows, hidden]`; and `[batch, rows, targets, hidden]` with the learned vector for unknown tokens, or
            `None` for models with another start.
        """
        rows, tokens = positions.content.shape[1], inputs_embeds
        if query_input_ids is not None:
            ids = self.check_query_input_ids(query_input_ids, positions)
            is_known, ids = ids >= 0, ids.clamp(min=0).flatten(1)
            if tokens is None:
                # One call for both, because each call gathers a table that processes share.
                both = self.embed_tokens(torch.cat([input_ids, ids], dim=1))
                tokens, left = both[:, :rows], both[:, rows:]
            else:
                left = self.embed_tokens(ids)
        else:
            tokens = self.embed_tokens(input_ids) if tokens is None else tokens
            if not self.config.starts_from_neighbors:
                return tokens, None
            neighbors = positions.find_left_neighbors(past_key_values is not None, self.waits_for(tokens))
            is_known = neighbors >= 0
            first_rows = rows * torch.arange(len(tokens), device=tokens.device)[:, None, None]
            left = tokens.flatten(0, 1).index_select(0, (neighbors.clamp(min=0) + first_rows).flatten())
        left = left.reshape(*is_known.shape, -1)
        return tokens, torch.where(is_known[..., None], left, self.learned_query(tokens.device))

    def check_query_input_ids(self, query_input_ids: Tensor, positions: RowPositions) -> Tensor:
        """Returns `query_input_ids` as int64 `[batch, rows, targets]`; raises a ValueError for wrong ones."""
        if not self.config.starts_from_neighbors:
            raise ValueError(
                "`query_input_ids` needs query_stream_init='neighbor' and attention_variant='two_stream'; got "
                f"{self.config.query_stream_init!r} and {self.config.attention_variant!r}."
            )
        ids, vocab_size = query_input_ids, self.config.vocab_size
        # `generate` has checked the rows of its own cache, whose positions tell nothing of padding.
        if positions.real is not None:
            ids = read_indices("query_input_ids", ids, (2, 3), positions.content.shape)
            if not torch.compiler.is_compiling():
                require(
                    ((ids >= -1) & (ids < vocab_size)).all(),
                    f"`query_input_ids` must hold ids in [0, vocab_size={vocab_size}), or -1 for a token that is not "
                    "known; got others.",
                    # No wait for an accelerator, as for `input_ids`.
                    waits=ids.device.type == "cpu",
                )
        shape = positions.targets.shape if positions.has_several_targets else positions.content.shape
        if ids.shape != shape:
            raise ValueError(
                f"`query_input_ids` must have the shape of the targets, {list(shape)}; got {list(ids.shape)}."
            )
        return ids.view(positions.targets.shape)

    @capture_outputs
    def run_layers(
        self,
        predicting: Tensor,
        content: Tensor | None,
        query_rotation: Rotation | None,
        key_rotation: Rotation | None,
        condition: Tensor | None,
        key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AOARMModelOutputWithPast:
        """Runs the layers, and the final norm of the predicting stream."""
        for layer in self.layers:
            # Tensors go by position, because reentrant checkpointing gives gradients to such arguments only. The cache
            # has a name of its own, because the library's checkpointing silently drops the names that it knows.
            predicting, content = layer(
                predicting, content, query_rotation, key_rotation, condition, key_values=key_values, **kwargs
            )
        normed = self.norm(predicting)
        if condition is not None:
            normed = modulate(normed, *self.norm_modulation(condition).chunk(2, dim=-1))
        return AOARMModelOutputWithPast(last_hidden_state=normed, **{CACHE_NAME: key_values})


# The heads


def fused_causal_lm_loss(
    hidden_states: Tensor, head: nn.Module, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Computes the library's `ForCausalLMLoss` in pieces of the rows, without a tensor `[batch, rows, vocab]`.

    Args:
        hidden_states: `[batch, rows, hidden]`, after the final norm.
        head: the output layer.
        labels: int64 `[batch, rows]`, not shifted, -100 where nothing is to be learned.
        num_items_in_batch: the number that the sum is divided by. Default: the number of labels that are not -100.

    Returns:
        Nats per token, a scalar.

    Raises:
        ValueError: the output layer is not a plain linear one (adapters and quantisation have layers of their own), or
            its weights are elsewhere (ZeRO-3 gathers them only for calls of the layer).
    """
    if type(head) is not nn.Linear or head.bias is not None or head.weight.ndim != 2:
        raise ValueError(
            "`fused_loss` needs an output layer that is a plain linear layer without bias and holds its weights, got "
            f"{type(head).__name__} with weights of shape {list(getattr(head, 'weight', torch.empty(0)).shape)}."
        )
    following = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].flatten().to(hidden_states.device)
    loss = nn.functional.linear_cross_entropy(
        hidden_states.flatten(0, 1),
        head.weight,
        following,
        reduction="mean" if num_items_in_batch is None else "sum",
        options=nn.LinearCrossEntropyOptions(),
    )
    return loss if num_items_in_batch is None else loss / num_items_in_batch


class AOARMLanguageModel(AOARMPreTrainedModel):
    """The part that the two heads share: the decoder, and a linear layer from its states to the vocabulary.

    Raises:
        ValueError: the variant has the other head.
    """

    generation_config_class = AOARMGenerationConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: AOARMConfig):
        super().__init__(config)
        right = model_class_for(config)
        if not isinstance(self, right):
            raise ValueError(
                f"attention_variant={config.attention_variant!r} needs the head {right.__name__} "
                f"({head_auto_class(config.attention_variant)}), got {type(self).__name__}."
            )
        self.model = AOARMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Maps states after the final norm, `[..., hidden]`, to logits `[..., vocab]`."""
        return self.lm_head(hidden_states)

    def predict_rows(
        self,
        hidden_states: Tensor,
        logits_to_keep: int | Tensor,
        scored_ids: Tensor | None,
        logits_reader: LogitsReader | None,
        labels: Tensor | None,
    ) -> dict[str, Any]:
        """Makes the outputs that predict tokens: `logits`, `readings`, or `token_log_probs` and `token_is_likeliest`.

        Args:
            hidden_states: `[batch, rows, ..., hidden]`, after the final norm.
            logits_to_keep, scored_ids, logits_reader, labels: see [`AOARMForCausalLM.forward`].

        Raises:
            ValueError: `scored_ids` does not have one token for each row that is kept; more than one of `scored_ids`,
                `logits_reader` and `labels` is given.
        """
        if sum(each is not None for each in (scored_ids, logits_reader, labels)) > 1:
            raise ValueError(
                "`scored_ids`, `logits_reader` and `labels` exclude each other: with one of the first two there are no "
                "logits. Got several."
            )
        if isinstance(logits_to_keep, int):
            hidden_states = hidden_states[:, -logits_to_keep:]
        elif logits_to_keep.ndim == 1:
            hidden_states = hidden_states[:, logits_to_keep]
        else:
            examples = torch.arange(len(hidden_states), device=hidden_states.device)[:, None]
            hidden_states = hidden_states[examples, logits_to_keep]
        if logits_reader is not None:
            return {"readings": logits_reader(hidden_states, self.compute_logits)}
        if scored_ids is None:
            return {"logits": self.compute_logits(hidden_states)}
        if scored_ids.shape != hidden_states.shape[:-1]:
            raise ValueError(
                f"`scored_ids` must have one token for each row that is kept, {list(hidden_states.shape[:-1])}; got "
                f"{list(scored_ids.shape)}."
            )
        log_probs, is_likeliest = [], []
        rows = rows_at_once(self.config.vocab_size)
        for states, ids in zip(hidden_states.flatten(0, -2).split(rows), scored_ids.flatten().split(rows), strict=True):
            logits = self.compute_logits(states).float()
            log_probs.append(logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1))
            is_likeliest.append(logits.argmax(1) == ids)
        return {
            "token_log_probs": torch.cat(log_probs).view_as(scored_ids),
            "token_is_likeliest": torch.cat(is_likeliest).view_as(scored_ids),
        }

    def check_shapes(self, rows: torch.Size, **values: Tensor | None) -> None:
        """Raises a ValueError unless each of the values is `None` or has one entry for each of the `rows`."""
        for name, value in values.items():
            if value is not None and value.shape != rows:
                raise ValueError(
                    f"`{name}` must have the shape [batch, rows], here {list(rows)}; got {list(value.shape)}."
                )


class AOARMForCausalLM(AOARMLanguageModel, AOARMScoringMixin, AOARMGenerationMixin, GenerationMixin):
    """An any-order autoregressive model with a language modelling head.

    Called without positions it is an ordinary left-to-right causal language model. With `position_ids` its rows are
    tokens in generation order, and row r predicts the token at `target_position_ids[:, r]`.
    """

    def __init__(self, config: AOARMConfig):
        super().__init__(config)
        register_for_label_smoothing(type(self).__name__)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        target_position_ids: torch.LongTensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        fused_loss: bool = False,
        scored_ids: torch.LongTensor | None = None,
        query_input_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        logits_reader: LogitsReader | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AOARMCausalLMOutputWithPast:
        """Predicts the token at row r's target position from the rows up to r. See also [`AOARMModel.forward`].

        Args:
            labels: int64 `[batch, rows]`, the rows' own tokens in generation order, -100 where nothing is to be
                learned (context, padding, the first row of each packed segment). They are shifted inside, as in every
                causal language model of the library: row r's logits are scored against row r + 1's label.
            logits_to_keep: how many of the last rows get logits, 0 for all; or which rows, int64 `[kept]` or
                `[batch, kept]`.
            fused_loss: whether to return only the loss. It is computed in pieces then, which saves the memory of the
                logits and their gradients, most of a step's memory with a large vocabulary.
            scored_ids: int64 `[batch, rows]`, or `[batch, kept]` with `logits_to_keep`: tokens whose log-probabilities
                are returned instead of logits. They are computed in pieces.
            logits_reader: is called with the states of the rows that are kept, `[batch, kept, hidden]` or `[batch,
                kept, targets, hidden]`, and with the function from states `[..., hidden]` to logits `[..., vocab]`.
                What it returns is returned as `readings` instead of logits, which need not all exist at once then.

        Raises:
            ValueError: as in [`AOARMModel.forward`]; for labels with several targets per row, with targets other than
                the next row's position, or on the first row of a packed segment; for `scored_ids` of a wrong shape; for
                more than one of `scored_ids`, `logits_reader` and labels; for `fused_loss` without labels or with an
                output layer that is not a plain linear one.
        """
        if fused_loss and labels is None:
            raise ValueError("`fused_loss` returns only the loss, so it needs `labels`, got None.")
        past_key_values = the_cache(past_key_values, cache, kwargs)
        if isinstance(labels, Tensor) and labels.ndim == 2 and segment_ids is None:
            # Positions that come back to 0 are packed too. The model need not look for them again.
            given = position_ids, target_position_ids, attention_mask, past_key_values
            segment_ids = resolve_segments(None, *given, use_cache, tuple(labels.shape))
        outputs: AOARMModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            target_position_ids=target_position_ids,
            segment_ids=segment_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            query_input_ids=query_input_ids,
            **kwargs,
        )
        hidden_states, loss, predictions = outputs.last_hidden_state, None, {}
        if labels is not None:
            given = segment_ids, position_ids, target_position_ids, past_key_values
            self.check_labels(labels, hidden_states.shape[:-1], *given)
        if fused_loss:
            loss = fused_causal_lm_loss(hidden_states, self.lm_head, labels, kwargs.get("num_items_in_batch"))
        else:
            predictions = self.predict_rows(hidden_states, logits_to_keep, scored_ids, logits_reader, labels)
            if labels is not None:
                loss = self.loss_function(**predictions, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return AOARMCausalLMOutputWithPast(loss=loss, **predictions, **rest)

    def check_labels(
        self,
        labels: Tensor,
        rows: torch.Size,
        segment_ids: Tensor | None,
        position_ids: Tensor | None,
        target_position_ids: Tensor | None,
        past_key_values: Cache | None,
    ) -> None:
        """Raises a ValueError for a label that is not the token that the row before it predicts."""
        if len(rows) == 3:
            raise ValueError("`labels` need one target per row, got `target_position_ids` [batch, rows, targets].")
        self.check_shapes(rows, labels=labels)
        if torch.compiler.is_compiling():
            return
        is_ignored, waits = labels[:, 1:] == -100, self.model.waits_for(labels)
        if segment_ids is not None:
            require(
                ((segment_ids[:, 1:] == segment_ids[:, :-1]) | is_ignored).all(),
                "`labels` must be -100 on the first row of each segment of `segment_ids`: the row before it belongs to "
                "another example. Got another label.",
                waits,
            )
        if target_position_ids is not None:
            if position_ids is None:
                # The cache has this call's rows by now.
                past = 0 if past_key_values is None else past_key_values.get_seq_length() - rows[1]
                position_ids = past + torch.arange(rows[1], device=labels.device)[None]
            require(
                ((target_position_ids[:, :-1] == position_ids[:, 1:]) | is_ignored).all(),
                "`labels` are shifted by one row, so `target_position_ids` must hold the next row's position wherever "
                "the next label is not -100; got another target.",
                waits,
            )

    # The library reads the names of a model's arguments from this signature.
    @functools.wraps(GenerationMixin.prepare_inputs_for_generation, assigned=())
    def prepare_inputs_for_generation(self, *args, **kwargs) -> dict[str, Any]:
        """As in the library. The rows of text predict the next positions, even if padding stands between rows."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        is_given = inputs.get("target_position_ids") is not None
        # PEFT drops the positions of rows behind virtual tokens, and would not drop targets.
        if inputs.get("position_ids") is not None and not is_given and prompt_learning_of(self) is None:
            inputs["target_position_ids"] = inputs["position_ids"] + 1
        return inputs


class AOARMForMaskedLM(AOARMLanguageModel, MaskedScoringMixin, AOARMGenerationMixin, GenerationMixin):
    """A bidirectional model that predicts the tokens of masked rows (`attention_variant="bidirectional"`).

    The mask token stands for an unknown token and is never predicted: its logit is minus infinity, so every row has a
    distribution over the other tokens (MDLM's zero masking probability, arXiv:2406.07524). Rows with another token are
    known; their logits have no use.
    """

    # Without blanks there is nothing to generate.
    continues_text = False
    runner_class = MaskedRunner

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """As in the other head, with minus infinity for the mask token."""
        logits = self.lm_head(hidden_states)
        is_mask_token = torch.arange(logits.shape[-1], device=logits.device) == self.config.mask_token_id
        # Not in place: hooks of sharded training may hold the output.
        return logits.masked_fill(is_mask_token, -torch.inf)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        loss_weights: torch.FloatTensor | None = None,
        logits_to_keep: int | Tensor = 0,
        scored_ids: torch.LongTensor | None = None,
        logits_reader: LogitsReader | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AOARMMaskedLMOutput:
        """Predicts each row's own token from all rows. See also [`AOARMModel.forward`].

        Args:
            input_ids: int64 `[batch, rows]`, in sentence order, with the mask token in blanks.
            labels: int64 `[batch, rows]`, not shifted: row r's logits are scored against row r's label. -100 where
                nothing is to be learned.
            loss_weights: float `[batch, rows]`, the weight of each row's cross-entropy. Labels are then the tokens of
                all rows that are modelled, and rows that are not masked weigh 0. The loss is divided by the number of
                labels, which depends neither on the masks drawn nor on the number of processes and accumulated
                batches. Default: 1, for labels of masked rows only.
            logits_to_keep, scored_ids, logits_reader: as in [`AOARMForCausalLM.forward`].

        Raises:
            ValueError: as in [`AOARMModel.forward`]; for labels, weights or `scored_ids` of a wrong shape, weights
                without labels, more than one of labels, `scored_ids` and `logits_reader`, and a label that is the mask
                token.
        """
        if loss_weights is not None and labels is None:
            raise ValueError("`loss_weights` need `labels`, got none.")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            segment_ids=segment_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        states, loss = outputs.last_hidden_state, None
        predictions = self.predict_rows(states, logits_to_keep, scored_ids, logits_reader, labels)
        if labels is not None:
            self.check_labels(labels, loss_weights, predictions["logits"].shape[:2])
            loss = self.weighted_loss(**predictions, labels=labels, loss_weights=loss_weights, **kwargs)
        return AOARMMaskedLMOutput(
            loss=loss, **predictions, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def check_labels(self, labels: Tensor, loss_weights: Tensor | None, rows: torch.Size) -> None:
        """Raises a ValueError for labels or weights of another shape than `rows`, and for the mask token as a label."""
        self.check_shapes(rows, labels=labels, loss_weights=loss_weights)
        if not torch.compiler.is_compiling():
            require(
                (labels != self.config.mask_token_id).all(),
                f"`labels` must not hold the mask token ({self.config.mask_token_id}), which has probability 0; label "
                "rows that are not to be learned -100.",
                waits=self.model.waits_for(labels),
            )

    def weighted_loss(self, logits: Tensor, labels: Tensor, loss_weights: Tensor | None, **kwargs) -> Tensor:
        """Computes the weighted cross-entropy, nats per label. Without weights it is the library's loss."""
        if loss_weights is None:
            return self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        weights = loss_weights.to(logits.device, torch.float32).flatten()
        labels = labels.to(logits.device).flatten()
        # Rows of weight 0 may hold any label, even one of infinite loss.
        scored = labels.where(weights != 0, -100)
        losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), scored, reduction="none")
        if (count := kwargs.get("num_items_in_batch")) is None:
            count = labels.ne(-100).sum().clamp(min=1)
        return (weights * losses).sum() / (count.to(logits.device) if isinstance(count, Tensor) else count)


def model_class_for(config: AOARMConfig) -> type[AOARMLanguageModel]:
    """Returns the class with `generate` and `score` for a variant: [`AOARMForCausalLM`] or [`AOARMForMaskedLM`]."""
    return AOARMForMaskedLM if config.attention_variant == "bidirectional" else AOARMForCausalLM


__all__ = [
    "AOARMAttention",
    "AOARMDecoderLayer",
    "AOARMForCausalLM",
    "AOARMForMaskedLM",
    "AOARMModel",
    "AOARMPreTrainedModel",
    "AdaptiveNormDecoderLayer",
    "DoublePositionEmbedding",
    "model_class_for",
]
