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
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .compat_aoarm import (
    CACHE_NAME,
    CACHE_NAMES,
    CacheUnderBothNames,
    class_without_sharding,
    prompt_learning_of,
    register_for_label_smoothing,
    require,
    the_cache,
    watch_wrappers,
)
from .configuration_aoarm import TABLE_VARIANTS, AOARMConfig, head_auto_class
from .fused_loss_aoarm import fused_causal_lm_loss, score_tokens
from .generation_aoarm import AOARMGenerationMixin
from .generation_config_aoarm import AOARMGenerationConfig
from .layers_aoarm import (
    AdaptiveNormDecoderLayer,
    AOARMAttention,
    AOARMDecoderLayer,
    DoublePositionEmbedding,
    modulate,
)
from .packing import as_indices, check_first_labels, packed_mask, segments_by_positions
from .positions import RowPositions, is_step_of_text
from .prompt_learning import refuse_orders
from .scoring_aoarm import AOARMScoringMixin


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
        """The predicting and the content stream before the first layer, see [`~layers_aoarm.join_streams`].

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


def generative_head(config: AOARMConfig) -> type[AOARMPreTrainedModel]:
    """The class with `generate` and `score` that a variant has: [`AOARMForCausalLM`] or [`AOARMForMaskedLM`]."""
    if config.attention_variant != "bidirectional":
        return AOARMForCausalLM
    # Imported here to avoid a cycle; the loader of remote code finds the file through this line.
    from .masked_lm_aoarm import AOARMForMaskedLM

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
        right = generative_head(config)
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
        skip_logits: bool = False,
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
            skip_logits: whether only the loss is wanted. It is then computed in pieces, which saves the memory of
                logits and of their gradients, most of what a step needs where the vocabulary is large.
            scored_ids: int64 `[batch, rows]`, or `[batch, kept]` with `logits_to_keep`: tokens whose log-probabilities
                are wanted instead of logits. They are computed in pieces.

        Raises:
            ValueError: as in [`AOARMModel.forward`]; for labels with several targets per row, with targets other than
                the next row's position, or on the first row of a packed segment; for `skip_logits` without labels or
                with an output layer that is not a plain linear one.
        """
        if skip_logits and labels is None:
            raise ValueError("`skip_logits` leaves the loss only, so it needs `labels`, got None.")
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
        if skip_logits:
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


__all__ = ["AOARMForCausalLM", "AOARMLanguageModel", "AOARMModel", "AOARMPreTrainedModel", "generative_head"]
