# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Any-order autoregressive models: Llama's decoder over rows in generation order, told where the next token goes.

The backbone works on *streams* of hidden states, `[batch, rows, hidden]` each. The content stream makes the keys and
values, the predicting stream the logits; in all variants but `two_stream` they are one. The variants differ in the
streams that there are and in where positions come in:

| variant           | streams                                  | queries are rotated by                       |
| ----------------- | ---------------------------------------- | -------------------------------------------- |
| `two_stream`      | content, and one query stream per target | content: content position; query: target - 1 |
| `decoupled_rope`  | one, which is content and prediction     | target - 1                                   |
| `causal`          | one                                      | content position                             |
| `double_position` | one                                      | nothing; see [`DoublePositionEmbedding`]     |
| `adaptive_norm`   | one                                      | nothing; see [`AdaptiveNormDecoderLayer`]    |
| `bidirectional`   | one                                      | content position                             |

Keys are rotated by content positions. `double_position` and `adaptive_norm` have tables of positions in place of
rotations: what they know of positions is added to the tokens, and in `adaptive_norm` the target modulates the layers.

All streams see rows <= r, so they share one causal attention call, in which they are further query heads over the same
keys and values. Target - 1 is the slot from which a left-to-right decoder predicts the target: in the identity order
`decoupled_rope` is Llama exactly, and so is `two_stream` when its query stream starts from the content, or from the
token at target - 1.

In `bidirectional` rows are in sentence order, blanks hold the mask token, all rows see each other, and each predicts
its own token; see [`AOARMForMaskedLM`].

Initialisation (by [`PreTrainedModel`]): the weights of linear layers and embeddings, the learned query vector included,
are normal with standard deviation `initializer_range`; biases are zero; norms are one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
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

from .compat_aoarm import (
    CACHE_NAME,
    CACHE_NAMES,
    CacheUnderBothNames,
    class_without_sharding,
    prompt_learning_of,
    refuse_orders,
    register_for_label_smoothing,
    require,
    the_cache,
    watch_wrappers,
)
from .configuration_aoarm import TABLE_VARIANTS, AOARMConfig, head_auto_class
from .decoding_aoarm import AOARMGenerationConfig
from .generation_aoarm import AOARMGenerationMixin
from .positions_aoarm import (
    RowPositions,
    as_indices,
    check_first_labels,
    is_step_of_text,
    packed_mask,
    segments_by_positions,
)
from .runner_aoarm import MaskedRunner
from .scoring_aoarm import AOARMScoringMixin, MaskedScoringMixin


def fused_causal_lm_loss(
    hidden_states: torch.Tensor,
    head: nn.Module,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The cross-entropy of next rows' labels, from pieces of the rows: `[batch, rows, vocab]` never exists.

    It is `torch.nn.functional.linear_cross_entropy`; the numbers are those of the library's `ForCausalLMLoss`.

    Args:
        hidden_states: `[batch, rows, hidden]`, after the final norm.
        head: the linear output layer without a bias.
        labels: int64 `[batch, rows]`, unshifted, -100 where there is nothing to learn.
        num_items_in_batch: what the sum is divided by. Default: the number of labels that count, for their mean.

    Returns:
        Nats per token, a scalar.

    Raises:
        ValueError: the output layer is not a plain linear one (adapters and quantisation have layers of their own), or
            its weights are elsewhere (ZeRO-3 gathers them for calls of the layer only).
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


# How many logits exist at once where tokens are scored: 128 MiB of them.
LOGITS_AT_ONCE = 2**25


def score_tokens(
    hidden_states: torch.Tensor,
    head: nn.Module,
    token_ids: torch.Tensor,
    vocab_size: int,
    mask_token_id: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probabilities of given tokens, from pieces of the rows.

    Args:
        hidden_states: `[..., hidden]`, after the final norm.
        head: the output layer.
        token_ids: int64 `[...]`.
        vocab_size: how many logits a row has.
        mask_token_id: a token of probability 0, or `None`.

    Returns:
        float32 `[...]`, nats; and whether each token is the likeliest, bool `[...]`.

    Raises:
        ValueError: `token_ids` has another shape.
    """
    if token_ids.shape != hidden_states.shape[:-1]:
        raise ValueError(
            f"`scored_ids` must have one token for each row that is kept, {list(hidden_states.shape[:-1])}; got "
            f"{list(token_ids.shape)}."
        )
    log_probs, is_likeliest = [], []
    rows = max(1, LOGITS_AT_ONCE // vocab_size)
    for states, ids in zip(hidden_states.flatten(0, -2).split(rows), token_ids.flatten().split(rows), strict=True):
        logits = head(states).float()
        if mask_token_id is not None:
            # Not in place: hooks of sharded training may hold the output.
            is_mask_token = torch.arange(logits.shape[1], device=logits.device) == mask_token_id
            logits = logits.masked_fill(is_mask_token, -torch.inf)
        log_probs.append(logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1))
        is_likeliest.append(logits.argmax(1) == ids)
    return torch.cat(log_probs).view(token_ids.shape), torch.cat(is_likeliest).view(token_ids.shape)


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


@dataclass
class AOARMModelOutputWithPast(CacheUnderBothNames, BaseModelOutputWithPast):
    """
    Args:
        last_hidden_state: `[batch, rows, hidden]`, or `[batch, rows, targets, hidden]` when several targets were given:
            the predicting stream after the final norm.
        past_key_values (or `cache`): the cache, one entry per row, in generation order.
        hidden_states: the predicting stream before each layer and after the last, in the shape of `last_hidden_state`.
        attentions: the predicting stream's weights per layer, `[batch, heads, rows, keys]`, or copies
            `[batch, targets, heads, rows, keys]`.
        content_hidden_states: `two_stream` only: the content stream before each layer, `[batch, rows, hidden]`.
        content_attentions: `two_stream` only: the content stream's weights `[batch, heads, rows, keys]` in all layers
            but the last, where the content stream ends in its keys and values.
    """

    content_hidden_states: tuple[torch.Tensor, ...] | None = None
    content_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class AOARMCausalLMOutputWithPast(CacheUnderBothNames, CausalLMOutputWithPast):
    """
    Args:
        loss: mean cross-entropy in nats per token over the labels that are not -100.
        logits: `[batch, rows, vocab]`, or `[batch, rows, targets, vocab]`: row r is about `target_position_ids[:, r]`.
            `None` where they were skipped.
        past_key_values, hidden_states, attentions, content_hidden_states, content_attentions:
            see [`AOARMModelOutputWithPast`].
        token_log_probs: float32 `[batch, rows]`, nats, and
        token_is_likeliest: bool `[batch, rows]`: of the tokens `scored_ids`.
    """

    content_hidden_states: tuple[torch.Tensor, ...] | None = None
    content_attentions: tuple[torch.Tensor, ...] | None = None
    token_log_probs: torch.FloatTensor | None = None
    token_is_likeliest: torch.BoolTensor | None = None


class AOARMPreTrainedModel(PreTrainedModel):
    """What the models share: how they are loaded and saved, and what they support of the library."""

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
        watch_wrappers(refuse_orders)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, use_safetensors: bool | None = None, **kwargs):
        """As in the library, but weights are read from safetensors only: other formats are unpickled.

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

    def save_pretrained(self, *args, **kwargs):
        """As in the library, and a model that FSDP2 has sharded takes its code along too."""
        own_class = class_without_sharding(self)
        if type(self) is own_class:
            super().save_pretrained(*args, **kwargs)
            return
        # The library saves the code of an object's class, which is torch's here. This one shares all that it has.
        plain = own_class.__new__(own_class)
        plain.__dict__ = self.__dict__
        plain.save_pretrained(*args, **kwargs)

    def _get_name(self) -> str:
        """The class's name, by which `Trainer` knows causal models; that of FSDP2's class is another."""
        return class_without_sharding(self).__name__


class AOARMModel(AOARMPreTrainedModel):
    """The decoder of an any-order autoregressive model, without a head. See the module's page for the variants."""

    def __init__(self, config: AOARMConfig):
        super().__init__(config)
        # No padding row: with pad == eos it would never be trained.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.attention_variant == "two_stream" and config.query_stream_init != "content":
            self.query_embedding = nn.Embedding(1, config.hidden_size)
        places = config.max_position_embeddings + 1
        layer_class = AOARMDecoderLayer
        if config.attention_variant == "double_position":
            self.position_embedding = DoublePositionEmbedding(config)
        elif config.attention_variant == "adaptive_norm":
            layer_class = AdaptiveNormDecoderLayer
            self.position_embedding = nn.Embedding(places, config.hidden_size)
            self.target_embedding = nn.Embedding(places, config.target_embedding_size)
            self.norm_modulation = nn.Linear(config.target_embedding_size, 2 * config.hidden_size)
        else:
            self.rotary_emb = LlamaRotaryEmbedding(config)
        # The variant's own: FSDP looks for every class that is named.
        self._no_split_modules = [layer_class.__name__]
        self.layers = nn.ModuleList([layer_class(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def initial_streams(
        self,
        content: torch.Tensor,
        position_ids: torch.Tensor,
        targets: torch.Tensor,
        several_targets: bool,
        left: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The predicting and the content stream before the first layer, see [`join_streams`].

        Args:
            content: the rows' tokens, `[batch, rows, hidden]`.
            position_ids: int64 `[batch, rows]`.
            targets: int64 `[batch, rows, targets]`.
            several_targets: whether there is a stream for each target.
            left: for the neighbor start, the tokens left of the targets, `[batch, rows, targets, hidden]`, and whether
                they are known, bool `[batch, rows, targets]`.
        """
        if self.config.attention_variant == "double_position":
            content = content + self.position_embedding(position_ids, targets[..., 0])
        elif self.config.attention_variant == "adaptive_norm":
            content = content + self.position_embedding(position_ids)
        if self.config.attention_variant != "two_stream":
            return content, None
        start = self.query_start(content, targets.shape[-1], left)
        return start if several_targets else start[:, :, 0], content

    def query_start(
        self, content: torch.Tensor, targets: int, left: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """Where the query streams of `two_stream` start, `[batch, rows, targets, hidden]`; see [`initial_streams`]."""
        if self.config.query_stream_init != "content":
            # By a call, not by its weight: hooks of offloading and adapters act on calls.
            vector = self.query_embedding(torch.zeros((), dtype=torch.int64, device=content.device))
        if self.config.query_stream_init == "neighbor":
            tokens, is_known = left
            return torch.where(is_known[..., None], tokens, vector)
        start = content if self.config.query_stream_init == "content" else vector.expand_as(content)
        return start[:, :, None].expand(-1, -1, targets, -1)

    def rotations(
        self, hidden_states: torch.Tensor, position_ids: torch.Tensor, targets: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, tuple[torch.Tensor, torch.Tensor] | None]:
        """Cosines and sines of queries and of keys, as [`AOARMAttention`] takes them, in the states' dtype."""
        if self.config.attention_variant in TABLE_VARIANTS:
            return None, None
        # One rotation serves all heads.
        places = torch.cat([position_ids[None], self.query_positions(position_ids, targets)])
        cos, sin = (part.view(*places.shape, 1, -1) for part in self.rotary_emb(hidden_states, places.flatten(0, 1)))
        return (cos[1:], sin[1:]), (cos[0], sin[0])

    def query_positions(self, position_ids: torch.Tensor, target_position_ids: torch.Tensor) -> torch.Tensor:
        """The slot that each stream's queries are rotated to, int64 `[streams, batch, rows]`.

        Args:
            position_ids: `[batch, rows]`.
            target_position_ids: `[batch, rows, targets]`.
        """
        slots = target_position_ids.movedim(-1, 0) - 1
        if self.config.attention_variant == "two_stream":
            return torch.cat([position_ids[None], slots])
        return slots if self.config.attention_variant == "decoupled_rope" else position_ids[None]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
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
                also takes `[batch, rows, targets]`, several targets of each row. Default: the next row's content
                position, and the own position + 1 on the last row.
            segment_ids: int64 `[batch, rows]`, equal within each run of rows that is an example of its own (packing).
                As in the library, rows of `position_ids` that begin with 0 and come back to it are packed too, in a
                call without mask, targets and cache.
            past_key_values (or `cache`): the rows before, as keys and values. In single-stream variants they belong to
                the targets that they were computed with; in `two_stream` they do not depend on targets.
            inputs_embeds: `[batch, rows, hidden]`.
            use_cache: whether to return a cache. Default: `config.use_cache`, but not in a call that gives positions
                without targets, because its last row's target is a guess that the cache would keep; nor in training.
            query_input_ids: int64, in the shape of the targets: the tokens at target - 1, from which query streams with
                `query_stream_init="neighbor"` start; -1 where no row up to the own one, of the same example, holds that
                position. Default: found among the rows of the call.

        Raises:
            ValueError: for a wrong shape or dtype, positions outside the table (left-to-right text may be longer, as in
                Llama), a position that comes twice in an example, several targets in a single-stream variant,
                positions for `causal` that are not the identity, cached rows whose targets or `query_input_ids` cannot
                be known, `query_input_ids` for a model that does not start from them,
                `segment_ids` together with a cache, a cache that activation checkpointing would lose,
                `is_causal=False`, with which rows would see their targets, and targets and caches for
                `bidirectional`, which has none.
                Values of positions are not checked under `torch.compile`. In training on an accelerator a wrong value
                is reported by the device, later: nothing waits for it.
        """
        past_key_values = the_cache(past_key_values, cache, kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given.")
        starts_from_neighbors, left_embeds = self.config.starts_from_neighbors, None
        # `generate` gives and has checked what is about its own cache's rows.
        is_canvas = getattr(past_key_values, "holds_canvases", False) and position_ids is not None
        if query_input_ids is not None:
            batch, rows = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
            if not is_canvas:
                query_input_ids = self.checked_query_input_ids(query_input_ids, (batch, rows))
            tokens = query_input_ids.clamp(min=0).flatten(1)
            if inputs_embeds is None:
                # One call, as in a pass without: each one gathers a table that is shared out among processes.
                embeds = self.embed_tokens(torch.cat([input_ids, tokens], dim=1))
                inputs_embeds, left_embeds = embeds[:, :rows], embeds[:, rows:]
            else:
                left_embeds = self.embed_tokens(tokens)
        elif inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        batch, rows = inputs_embeds.shape[:2]
        if segment_ids is None and not (use_cache and torch.compiler.is_compiling()):
            given = position_ids, target_position_ids, attention_mask, past_key_values
            segment_ids = segments_by_positions(*given, (batch, rows))
            if segment_ids is not None and use_cache:
                raise ValueError(
                    "`position_ids` that come back to 0 are packed sequences, which cannot be combined with a cache; "
                    f"got use_cache={use_cache}."
                )
        if segment_ids is not None:
            segment_ids = as_indices("segment_ids", segment_ids, (2,), (batch, rows))
            if past_key_values is not None or use_cache:
                raise ValueError("`segment_ids` (packed sequences) cannot be combined with a cache, got both.")
            if attention_mask is not None and attention_mask.ndim != 2:
                raise ValueError(
                    "`attention_mask` must have the shape [batch, rows] together with `segment_ids`, got "
                    f"{list(attention_mask.shape)}."
                )
            use_cache = False
        is_causal = self.config.attention_variant != "bidirectional"
        if not is_causal:
            for name, value in (
                ("target_position_ids", target_position_ids),
                ("past_key_values", past_key_values),
                ("use_cache", use_cache or None),
                ("is_causal", kwargs.get("is_causal") or None),
            ):
                if value is not None:
                    raise ValueError(
                        f"`{name}` must not be given for attention_variant='bidirectional', where all rows see each "
                        f"other and predict their own tokens; got {type(value).__name__}."
                    )
            kwargs["is_causal"] = use_cache = False
        elif kwargs.get("is_causal") is False:
            raise ValueError("`is_causal` must not be False: rows would see the tokens that they are to predict.")
        is_given = position_ids is not None or target_position_ids is not None
        is_trained = self.training and torch.is_grad_enabled()
        if is_trained and self.gradient_checkpointing and (past_key_values is not None or use_cache):
            raise ValueError(
                "A cache cannot be used in training with activation checkpointing, which computes layers again: call "
                "the model with use_cache=False, in `eval` mode, or under `torch.no_grad()`. Got "
                f"use_cache={use_cache} and {type(past_key_values).__name__}."
            )
        if use_cache is None:
            use_cache = self.config.use_cache and not is_trained and (target_position_ids is not None or not is_given)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        has_tables = self.config.attention_variant in TABLE_VARIANTS
        # Looking at values waits for the device, which training should not.
        waits = inputs_embeds.device.type == "cpu" or not self.training
        is_checked = is_canvas
        if not is_canvas and waits and not has_tables and not torch.compiler.is_compiling():
            is_checked = is_step_of_text(position_ids, target_position_ids, batch)
        if is_checked:
            positions = RowPositions(position_ids, target_position_ids, targets_given=True)
        else:
            given = position_ids, target_position_ids, attention_mask, segment_ids, past_key_values
            positions = RowPositions.resolve(*given, (batch, rows), inputs_embeds.device)
        several_targets = positions.targets.ndim == 3
        if several_targets and self.config.attention_variant != "two_stream":
            raise ValueError(
                "`target_position_ids` of shape [batch, rows, targets] needs attention_variant='two_stream': a single "
                f"stream has one target per row. Got attention_variant={self.config.attention_variant!r}."
            )
        if (is_given or has_tables) and not is_checked and not torch.compiler.is_compiling():
            positions.check(self.config, past_key_values, waits)

        targets = positions.targets if several_targets else positions.targets[..., None]
        left = None
        if query_input_ids is not None:
            if query_input_ids.shape != positions.targets.shape:
                raise ValueError(
                    "`query_input_ids` must have the shape of the targets, "
                    f"{list(positions.targets.shape)}; got {list(query_input_ids.shape)}."
                )
            left = left_embeds.view(*targets.shape, -1), query_input_ids.view_as(targets) >= 0
        elif starts_from_neighbors:
            neighbors, is_settled = positions.left_neighbors()
            if past_key_values is not None and not is_checked:
                compiles = torch.compiler.is_compiling()
                positions.check_neighbors(is_settled, past_key_values.get_seq_length(), waits and not compiles)
            numbers = neighbors.clamp(min=0) + rows * torch.arange(batch, device=neighbors.device)[:, None, None]
            found = inputs_embeds.flatten(0, 1).index_select(0, numbers.flatten())
            left = found.view(*targets.shape, -1), neighbors >= 0
        content = positions.content
        if has_tables and positions.real is not None:
            # Padding may stand anywhere, also where a table has no entry.
            content, targets = content.where(positions.real, 0), targets.where(positions.real[..., None], 0)
        predicting, content_stream = self.initial_streams(inputs_embeds, content, targets, several_targets, left)
        query_rotation, key_rotation = self.rotations(predicting, content, targets)
        condition = None
        if self.config.attention_variant == "adaptive_norm":
            condition = nn.functional.silu(self.target_embedding(targets[..., 0]))
        if is_canvas and attention_mask is None and rows == 1:
            # One row sees all rows of its cache.
            mask = None
        elif positions.starts is None:
            # By position: the cache's name is not the same in all releases.
            mask = (
                create_causal_mask(self.config, inputs_embeds, attention_mask, past_key_values)
                if is_causal
                else create_bidirectional_mask(self.config, inputs_embeds, attention_mask)
            )
        else:
            mask, packing_kwargs = packed_mask(self.config, inputs_embeds, positions.starts, is_causal)
            kwargs.update(packing_kwargs)
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and self.config._attn_implementation == "eager":
            # Eager attention adds what it is given, so that it would read True as 1.
            hidden = torch.finfo(inputs_embeds.dtype).min
            mask = torch.zeros_like(mask, dtype=inputs_embeds.dtype).masked_fill(~mask, hidden)
        for name in ("hidden_states", "attentions"):
            recorded = kwargs.get(f"output_{name}", getattr(self.config, f"output_{name}", False))
            kwargs[f"output_content_{name}"] = bool(recorded) and content_stream is not None
        outputs = self.run_layers(
            predicting,
            content_stream,
            query_rotation,
            key_rotation,
            condition,
            attention_mask=mask,
            key_values=past_key_values,
            return_dict=True,
            **kwargs,
        )
        if outputs.content_hidden_states is not None:
            outputs["content_hidden_states"] = (content_stream, *outputs.content_hidden_states)
        return outputs

    def checked_query_input_ids(self, query_input_ids: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """`query_input_ids` as int64 `[batch, rows]` or `[batch, rows, targets]`; a ValueError for anything else."""
        if not self.config.starts_from_neighbors:
            raise ValueError(
                "`query_input_ids` needs query_stream_init='neighbor' and attention_variant='two_stream'; got "
                f"{self.config.query_stream_init!r} and {self.config.attention_variant!r}."
            )
        ids = as_indices("query_input_ids", query_input_ids, (2, 3), shape)
        if not torch.compiler.is_compiling():
            vocab_size = self.config.vocab_size
            require(
                ((ids >= -1) & (ids < vocab_size)).all(),
                f"`query_input_ids` must hold ids in [0, vocab_size={vocab_size}), or -1 for a token that is not "
                "known; got others.",
                # As for `input_ids`, no accelerator is waited for.
                waits=ids.device.type == "cpu",
            )
        return ids

    @capture_outputs
    def run_layers(
        self,
        predicting: torch.Tensor,
        content: torch.Tensor | None,
        query_rotation: tuple[torch.Tensor, torch.Tensor] | None,
        key_rotation: tuple[torch.Tensor, torch.Tensor] | None,
        condition: torch.Tensor | None,
        key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AOARMModelOutputWithPast:
        """The layers and the final norm of the predicting stream."""
        for layer in self.layers:
            # By position: reentrant checkpointing gives gradients to such arguments only. The cache has a name that
            # the library's checkpointing does not know, or it would drop it without a word.
            predicting, content = layer(
                predicting, content, query_rotation, key_rotation, condition, key_values=key_values, **kwargs
            )
        normed = self.norm(predicting)
        if condition is not None:
            normed = modulate(normed, *self.norm_modulation(condition).chunk(2, dim=-1))
        return AOARMModelOutputWithPast(last_hidden_state=normed, **{CACHE_NAME: key_values})


def model_class_for(config: AOARMConfig) -> type[AOARMPreTrainedModel]:
    """The class with `generate` and `score` that a variant has: [`AOARMForCausalLM`] or [`AOARMForMaskedLM`]."""
    if config.attention_variant != "bidirectional":
        return AOARMForCausalLM
    # Imported here to avoid a cycle; the loader of remote code finds the file through this line.
    from .modeling_aoarm import AOARMForMaskedLM

    return AOARMForMaskedLM


class AOARMLanguageModel(AOARMPreTrainedModel):
    """What the two heads share: the decoder and a linear layer from its states to the vocabulary.

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
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        target_position_ids: torch.LongTensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        fused_loss: bool = False,
        scored_ids: torch.LongTensor | None = None,
        query_input_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AOARMCausalLMOutputWithPast:
        """Predicts, from the rows up to r, the token at row r's target position. See also [`AOARMModel.forward`].

        Args:
            labels: int64 `[batch, rows]`, the rows' own tokens in generation order, -100 where nothing is to be
                learned (context, padding, the first row of each packed segment). They are shifted inside, as in every
                causal language model of the library: row r's logits are scored against row r + 1's label.
            logits_to_keep: how many of the last rows get logits, or which rows, int64 `[kept]`; 0 means all.
            fused_loss: whether only the loss is wanted. It is then computed in pieces, which saves the memory of
                logits and of their gradients, most of what a step needs where the vocabulary is large.
            scored_ids: int64 `[batch, rows]`, or `[batch, kept]` with `logits_to_keep`: tokens whose log-probabilities
                are wanted instead of logits. They are computed in pieces.

        Raises:
            ValueError: as in [`AOARMModel.forward`]; for labels with several targets per row, with targets other than
                the next row's position, or on the first row of a packed segment; for `fused_loss` without labels or
                with an output layer that is not a plain linear one.
        """
        if fused_loss and labels is None:
            raise ValueError("`fused_loss` leaves the loss only, so it needs `labels`, got None.")
        if scored_ids is not None and labels is not None:
            raise ValueError(
                "`scored_ids` and `labels` exclude each other: one asks for log-probabilities, one for a loss."
            )
        past_key_values = the_cache(past_key_values, cache, kwargs)
        if segment_ids is None and isinstance(labels, torch.Tensor):
            given = position_ids, target_position_ids, attention_mask, past_key_values
            segment_ids = segments_by_positions(*given, tuple(labels.shape))
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
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
        if labels is not None:
            # After the model has checked the shapes of what it was given.
            self.check_labels(labels, outputs.last_hidden_state, past, position_ids, target_position_ids, segment_ids)
        loss, logits, scores = None, None, (None, None)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if fused_loss:
            items = kwargs.get("num_items_in_batch")
            loss = fused_causal_lm_loss(outputs.last_hidden_state, self.lm_head, labels, items)
        elif scored_ids is not None:
            scores = score_tokens(outputs.last_hidden_state[:, kept], self.lm_head, scored_ids, self.vocab_size)
        else:
            logits = self.lm_head(outputs.last_hidden_state[:, kept])
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return AOARMCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            content_hidden_states=outputs.content_hidden_states,
            content_attentions=outputs.content_attentions,
            token_log_probs=scores[0],
            token_is_likeliest=scores[1],
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )

    # With its signature, in which the library looks for what a model takes.
    @functools.wraps(GenerationMixin.prepare_inputs_for_generation, assigned=())
    def prepare_inputs_for_generation(self, *args, **kwargs) -> dict[str, Any]:
        """As in the library; the text's rows predict the next places, also where padding stands between rows."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        is_given = inputs.get("target_position_ids") is not None
        # PEFT drops the positions of rows behind virtual tokens, and would not drop targets.
        if inputs.get("position_ids") is not None and not is_given and prompt_learning_of(self) is None:
            inputs["target_position_ids"] = inputs["position_ids"] + 1
        return inputs

    def check_labels(
        self,
        labels: torch.Tensor,
        hidden_states: torch.Tensor,
        past: int | torch.Tensor,
        position_ids: torch.Tensor | None,
        target_position_ids: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
    ) -> None:
        """Raises a ValueError where a shifted label is not the token that the row before it predicts."""
        if hidden_states.ndim == 4:
            raise ValueError("`labels` need one target per row, got `target_position_ids` [batch, rows, targets].")
        if labels.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"`labels` must have the shape [batch, rows], here {list(hidden_states.shape[:2])}; got "
                f"{list(labels.shape)}."
            )
        if torch.compiler.is_compiling():
            return
        waits = labels.device.type == "cpu" or not self.training
        if segment_ids is not None:
            check_first_labels(labels, segment_ids, waits)
        if target_position_ids is None:
            return
        own = past + torch.arange(labels.shape[1], device=labels.device)[None] if position_ids is None else position_ids
        require(
            ((target_position_ids[:, :-1] == own[:, 1:]) | (labels[:, 1:] == -100)).all(),
            "`labels` are shifted by one row, so `target_position_ids` must hold the next row's position wherever the "
            "next label is not -100; got another target.",
            waits,
        )


@dataclass
class AOARMMaskedLMOutput(MaskedLMOutput):
    """
    Args:
        loss: nats per label that is not -100, or per `num_items_in_batch`, which `Trainer` counts.
        logits: `[batch, rows, vocab]`, or `[batch, kept, vocab]`.
        hidden_states, attentions: as in the library, `[batch, rows, hidden]` and `[batch, heads, rows, keys]`.
        token_log_probs: float32, nats, and
        token_is_likeliest: bool, in the shape of `scored_ids`.
    """

    token_log_probs: torch.FloatTensor | None = None
    token_is_likeliest: torch.BoolTensor | None = None


class AOARMForMaskedLM(AOARMLanguageModel, MaskedScoringMixin, AOARMGenerationMixin, GenerationMixin):
    """A bidirectional model that predicts the tokens of masked rows (`attention_variant="bidirectional"`).

    The mask token stands for what is not known and is never predicted: its logit is minus infinity, so that every row
    has a distribution over the other tokens (MDLM's zero masking probability). What stands in rows that hold another
    token is known; they have logits too, but nobody needs them.
    """

    # Without blanks there is nothing to generate.
    continues_text = False
    runner_class = MaskedRunner

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        loss_weights: torch.FloatTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        scored_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AOARMMaskedLMOutput:
        """Predicts each row's own token from all rows. See also [`AOARMModel.forward`].

        Args:
            input_ids: int64 `[batch, rows]`, in sentence order, with the mask token in blanks.
            attention_mask: `[batch, rows]`, 0 for padding on either side; or a prepared 4-D mask.
            position_ids: int64 `[batch, rows]`. Default: 0, 1, 2, ..., starting again in each segment.
            segment_ids: int64 `[batch, rows]`, equal within each run of rows that is an example of its own (packing).
            inputs_embeds: `[batch, rows, hidden]`, in place of `input_ids`.
            labels: int64 `[batch, rows]`, not shifted: row r's logits are scored against row r's label. -100 where
                nothing is to be learned.
            loss_weights: float `[batch, rows]`, what each row's cross-entropy counts. Labels are then the tokens of all
                rows that are to be modelled, of which those that are not masked weigh 0: the loss is divided by the
                number of labels whatever was masked, which is the same in any number of processes and accumulated
                batches. Default: 1, labels being those of masked rows.
            logits_to_keep: which rows get logits: so many of the last, 0 for all; int64 `[kept]`; or int64
                `[batch, kept]`, other rows in each example.
            scored_ids: int64 `[batch, rows]`, or `[batch, kept]` with `logits_to_keep`: tokens whose log-probabilities
                are wanted instead of logits. They are computed in pieces.

        Raises:
            ValueError: as in [`AOARMModel.forward`]; for labels or weights of a wrong shape, weights without labels,
                a label that is the mask token, and `target_position_ids`, caches and `is_causal=True`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            segment_ids=segment_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if isinstance(logits_to_keep, int):
            hidden_states = hidden_states[:, -logits_to_keep:]
        elif logits_to_keep.ndim == 1:
            hidden_states = hidden_states[:, logits_to_keep]
        else:
            hidden_states = hidden_states.take_along_dim(logits_to_keep[..., None], dim=1)
        if scored_ids is not None:
            if labels is not None or loss_weights is not None:
                raise ValueError("`scored_ids` and `labels` exclude each other, as no logits are left for the loss.")
            scores = score_tokens(hidden_states, self.lm_head, scored_ids, self.vocab_size, self.config.mask_token_id)
            return AOARMMaskedLMOutput(
                hidden_states=outputs.hidden_states,
                attentions=outputs.attentions,
                token_log_probs=scores[0],
                token_is_likeliest=scores[1],
            )
        logits = self.lm_head(hidden_states)
        # Not in place: hooks of sharded training may hold the output.
        is_mask_token = torch.arange(logits.shape[-1], device=logits.device) == self.config.mask_token_id
        logits = logits.masked_fill(is_mask_token, -torch.inf)
        loss = None
        if labels is not None:
            self.check_labels(labels, loss_weights, logits)
            loss = self.weighted_loss(logits, labels, loss_weights, **kwargs)
        elif loss_weights is not None:
            raise ValueError("`loss_weights` need `labels`, got none.")
        return AOARMMaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def check_labels(self, labels: torch.Tensor, loss_weights: torch.Tensor | None, logits: torch.Tensor) -> None:
        """Raises a ValueError for labels or weights that do not fit the rows, and for the mask token as a label."""
        for name, value in (("labels", labels), ("loss_weights", loss_weights)):
            if value is not None and value.shape != logits.shape[:2]:
                raise ValueError(
                    f"`{name}` must have the shape [batch, rows], here {list(logits.shape[:2])}; got "
                    f"{list(value.shape)}."
                )
        if not torch.compiler.is_compiling():
            require(
                (labels != self.config.mask_token_id).all(),
                f"`labels` must not hold the mask token ({self.config.mask_token_id}), which has probability 0; label "
                "rows that are not to be learned -100.",
                waits=labels.device.type == "cpu" or not self.training,
            )

    def weighted_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, loss_weights: torch.Tensor | None, **kwargs
    ) -> torch.Tensor:
        """The weighted cross-entropy, nats per label; without weights it is the library's loss."""
        if loss_weights is None:
            return self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        weights = loss_weights.to(logits.device, torch.float32).flatten()
        labels = labels.to(logits.device).flatten()
        # Rows of weight 0 may hold any label, also one of infinite loss.
        scored = labels.where(weights != 0, -100)
        losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), scored, reduction="none")
        count = kwargs.get("num_items_in_batch")
        if count is None:
            count = labels.ne(-100).sum().clamp(min=1)
        elif isinstance(count, torch.Tensor):
            count = count.to(logits.device)
        return (weights * losses).sum() / count


__all__ = [
    "AOARMAttention",
    "AOARMDecoderLayer",
    "AOARMForCausalLM",
    "AOARMForMaskedLM",
    "AOARMLanguageModel",
    "AOARMModel",
    "AOARMPreTrainedModel",
    "AdaptiveNormDecoderLayer",
    "DoublePositionEmbedding",
    "fused_causal_lm_loss",
    "model_class_for",
    "modulate",
    "score_tokens",
]
