# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Converts the library's causal models to any-order models: Llama, Mistral, Qwen2, Qwen3, SmolLM (Llama) and SmolLM3.

Parameter names are the same, so weights are used unchanged. The computation also depends on the config. The tables
below say for each field that it is copied, that it must have a value that changes nothing, or that it affects no
left-to-right logit. Fields in no table are refused by name. The tables come from the modeling files of transformers
5.23.
"""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    SmolLM3ForCausalLM,
)
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import cached_file

from .compat import keep_published_mark
from .compat_aoarm import generation_config_values
from .configuration_aoarm import STATIC_ROPE_TYPES, AOARMConfig
from .decoding_aoarm import AOARMGenerationConfig
from .gguf import check_gguf, read_gguf, require_gguf
from .modeling_aoarm import AOARMForCausalLM


# The variants with RoPE, and the query starts with which `two_stream` is exact in the identity order.
VARIANTS = ("two_stream", "decoupled_rope", "causal")
QUERY_STREAM_INITS = ("neighbor", "content")

# Fields with the same name and meaning in all families and in our config.
COPIED = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "hidden_act max_position_embeddings initializer_range rms_norm_eps use_cache tie_word_embeddings rope_parameters "
    "attention_dropout"
).split()

# Fields that affect no left-to-right logit: names, versions and notes; options of calls and of other heads; storage and
# sharding of weights; training; layers with a window (`sliding_window` or `layer_types` say if there are any); lengths
# that no layer reads; fields that the library has moved into `rope_parameters`.
UNREAD = (
    "architectures base_model created_at datasets date is_llama_config language languages library_name license "
    "model_name model_type name tags tokenizer_class transformers.js_config transformers_version unsloth_fixed "
    "unsloth_version "
    "add_cross_attention cross_attention_hidden_size finetuning_task id2label is_decoder label2id "
    "output_hidden_states problem_type return_dict task_specific_params tie_encoder_decoder tie_last_hidden_states "
    "torchscript "
    "base_model_pp_plan base_model_tp_plan chunk_size_feed_forward distributed_config dtype pretraining_tp "
    "use_bfloat16 "
    "dropout gradient_checkpointing initializer_factor "
    "max_window_layers use_sliding_window "
    "max_seq_len max_sequence_length model_max_length seq_length "
    "ignore_keys_at_rope_validation original_max_position_embeddings"
).split()
# Token ids, and dropout that the library's class lacks, also in training.
UNREAD_ENDINGS = ("_token_id", "_token_ids", "_dropout", "_dropout_prob", "_pdrop")

# Ids that are copied if they are in the vocabulary. Some published configs write -1 for "none".
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class Rule:
    """A condition on a config field without which the conversion is not exact: the words after "must", and a check."""

    text: str
    holds: Callable[[Any, PreTrainedConfig], bool]


def equal_to(value: Any) -> Rule:
    """Makes the rule that a field has this value."""
    return Rule(f"be {value!r}", lambda given, _: given == value)


def _is_gguf(quantization: Any, config: PreTrainedConfig) -> bool:
    # An object if the model is loaded, else a dictionary.
    values = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return values.get("quant_method") == "gguf"


# A field that is None or absent breaks no rule. The library's Llama ignores softcapping and multipliers, so without
# these rules a checkpoint with them would load as another model.
RULES = {
    **dict.fromkeys(("attention_bias", "is_encoder_decoder", "mlp_bias", "qkv_bias"), equal_to(False)),
    **dict.fromkeys(("qk_layernorm", "qk_norm", "use_qk_norm"), equal_to(False)),
    **dict.fromkeys(("rope_interleaved", "use_dynamic_ntk", "use_logn_attn", "use_mrope"), equal_to(False)),
    **dict.fromkeys(("attention_multiplier", "attn_logit_softcapping", "final_logit_softcapping"), equal_to(None)),
    **dict.fromkeys(("embedding_multiplier", "logits_scaling", "logit_scale", "residual_multiplier"), equal_to(1.0)),
    "auto_map": Rule(
        "name no model code (the checkpoint computes with its own code)",
        lambda names, _: not any(name.startswith("AutoModel") for name in names),
    ),
    "hidden_act": Rule("be an activation that the library knows", lambda name, _: name in ACT2FN),
    "is_causal": equal_to(True),
    "layer_types": Rule("be 'full_attention' in every layer", lambda types, _: set(types) == {"full_attention"}),
    "pruned_heads": equal_to({}),
    "quantization_config": Rule(
        "be None, or that of a GGUF file (whose weights are plain numbers once they are loaded)", _is_gguf
    ),
    "rope_parameters": Rule(
        f"have one `rope_type` for all layers, among {', '.join(STATIC_ROPE_TYPES)}, and no `partial_rotary_factor` "
        "but 1",
        lambda rope, _: rope.get("rope_type") in STATIC_ROPE_TYPES and rope.get("partial_rotary_factor") in (None, 1.0),
    ),
    "sliding_window": Rule(
        "be None, at least `max_position_embeddings`, or switched off by `use_sliding_window` (no window in use)",
        lambda window, config: (
            window >= config.max_position_embeddings or getattr(config, "use_sliding_window", None) is False
        ),
    ),
}


@dataclass(frozen=True)
class Family:
    """The conversion of one model type's config, in addition to `COPIED`, `UNREAD` and `RULES`.

    Args:
        model_class: the library's class, whose computation is converted.
        renamed: by field of the source, our fields that take its value.
        constant: our fields that describe built-in properties of the library's class.
        rules: more rules. They replace those of `RULES` for the same field.
        unread: more fields that change nothing if the rules hold (`layer_types` says which layers have a window).
    """

    model_class: type[PreTrainedModel]
    renamed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    constant: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


ALL_PROJECTIONS = {"attention_bias": ("attention_bias", "attention_output_bias")}
FAMILIES = {
    "llama": Family(LlamaForCausalLM, renamed={**ALL_PROJECTIONS, "mlp_bias": ("mlp_bias",)}),
    "mistral": Family(
        MistralForCausalLM,
        rules={
            "sliding_window": Rule(
                "be None or at least `max_position_embeddings` (no sliding window in use)",
                lambda window, config: window >= config.max_position_embeddings,
            )
        },
    ),
    "qwen2": Family(
        Qwen2ForCausalLM,
        constant={"attention_bias": True},
        rules=dict.fromkeys(("attention_bias", "qkv_bias"), equal_to(True)),
        unread=("sliding_window",),
    ),
    "qwen3": Family(
        Qwen3ForCausalLM,
        renamed=ALL_PROJECTIONS,
        constant={"qk_norm": True},
        rules=dict.fromkeys(("qk_layernorm", "qk_norm", "use_qk_norm"), equal_to(True)),
        unread=("sliding_window",),
    ),
    "smollm3": Family(
        SmolLM3ForCausalLM,
        renamed={**ALL_PROJECTIONS, "mlp_bias": ("mlp_bias",)},
        rules={"no_rope_layers": Rule("be 1 in every layer (no layer without RoPE)", lambda layers, _: all(layers))},
        unread=("sliding_window", "no_rope_layer_interval"),
    ),
}


def convert_causal_lm(
    model_or_path: PreTrainedModel | str | os.PathLike,
    attention_variant: str = "two_stream",
    *,
    query_stream_init: str = "neighbor",
    dtype: torch.dtype | str = "auto",
    mask_token_id: int | None = None,
    ignored_fields: Sequence[str] = (),
    **kwargs,
) -> AOARMForCausalLM:
    """Makes an any-order model from a left-to-right one.

    The result is exact in the identity order: called without positions, or left to right, it gives the source's logits
    (up to rounding) and generates the source's text. The default, `two_stream` with the neighbor start, fills blanks
    from both sides without training: it continues the token to the left of a blank, as the source would, and also sees
    the text to the right (measured in `docs/conversion.md`). The other variants need training first, and so do orders
    in which the token to the left of a target is unknown.

    Args:
        model_or_path: a model of the library, or a folder or Hub name of its checkpoint. A model is not changed, and
            its weights are copied. A checkpoint is held in memory once.
        attention_variant: `"two_stream"`, `"decoupled_rope"` or `"causal"`.
        query_stream_init: start of the query stream of `"two_stream"`: `"neighbor"`, whose learned vector begins as the
            mean of the token embeddings, or `"content"`. The other variants ignore it.
        dtype: dtype of the weights. `"auto"` keeps that of the model or the checkpoint.
        mask_token_id: goes into the config, for tokenizers that have a mask token. The vocabulary stays as it is.
        ignored_fields: unknown config fields (also metadata entries and tensors of a GGUF file) that do not change the
            model's computation.
        **kwargs: passed to `from_pretrained` for a checkpoint: `revision`, `token`, `attn_implementation`, ...
            `gguf_file` names a GGUF file in the folder; it needs the extra `gguf`. Its weights become plain numbers,
            float32 unless `dtype` says otherwise.

    Returns:
        The model in evaluation mode, on the source's device, with its special tokens and generation config.
        `config.converted_from` names the source, and its GGUF file if it has one. RoPE frequencies are float32, as in a
        loaded checkpoint, even if a cast has rounded those of the given model.

    Raises:
        OSError: there is no such checkpoint.
        ValueError: no variant computes exactly what the model does (the message names the field, the rule and the
            value), weights of a checkpoint are missing, surplus or of another shape, or weights cannot be copied
            (offloaded) or are not floating-point numbers (quantised).
    """
    if dtype != "auto":
        dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"`dtype` must be 'auto' or a floating-point dtype of torch, got {dtype!r}.")
    variant = {"attention_variant": attention_variant, "query_stream_init": query_stream_init}
    is_loaded_here = not isinstance(model_or_path, PreTrainedModel)
    if is_loaded_here:
        source, name = _load(os.fspath(model_or_path), variant, dtype, ignored_fields, kwargs), os.fspath(model_or_path)
    elif kwargs:
        raise ValueError(f"Arguments for loading need a folder or a Hub name, got a model and {sorted(kwargs)}.")
    else:
        source, name = model_or_path, str(model_or_path.config.name_or_path or "")
    config = convert_config(source.config, **variant, mask_token_id=mask_token_id, ignored_fields=ignored_fields)
    expected = FAMILIES[source.config.model_type].model_class
    if type(source) is not expected:
        raise ValueError(f"`model_or_path` must be a {expected.__name__} itself, got {type(source).__name__}.")
    config.converted_from = _describe_source(source.config, name)
    # A checkpoint with two different tables is loaded untied even if its config says otherwise.
    config.tie_word_embeddings = source.lm_head.weight is source.model.embed_tokens.weight

    weights = {}
    for key, tensor in source.state_dict().items():
        if tensor.is_meta or not tensor.is_floating_point():
            state = "offloaded" if tensor.is_meta else tensor.dtype
            raise ValueError(f"Weights must be floating-point numbers in memory, got {key} {state}.")
        if key == "lm_head.weight" and config.tie_word_embeddings:
            weights[key] = weights["model.embed_tokens.weight"]
        elif is_loaded_here:
            weights[key] = tensor
        else:
            weights[key] = tensor.to(tensor.dtype if dtype == "auto" else dtype, copy=True)
    if config.starts_from_neighbors:
        table = weights["model.embed_tokens.weight"]
        weights["model.query_embedding.weight"] = table.mean(0, keepdim=True, dtype=torch.float32).to(table.dtype)
    with torch.device("meta"):
        model = AOARMForCausalLM(config)
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"The weights of the model are not those of its config: {error}") from error
    model.tie_weights()
    # The rotary embedding has the only tensors that are not weights.
    model.model.rotary_emb = _make_rotary_embedding(config, source)
    values = generation_config_values(source.generation_config)
    values |= {name: _keep_valid_tokens(values.get(name), config.vocab_size) for name in TOKEN_IDS}
    model.generation_config = AOARMGenerationConfig.from_dict(values)
    # A published config can be saved again, even if the library would refuse a new one like it.
    keep_published_mark(source.generation_config, model.generation_config)
    if config.attention_variant != "causal" and not config.starts_from_neighbors:
        # A state that starts from the row's own token continues that token, so the last context row should be left of
        # the first blank (measured in `docs/conversion.md`).
        model.generation_config.context_order = "suffix_first"
    return model.eval()


def convert_config(
    source: PreTrainedConfig,
    attention_variant: str = "two_stream",
    *,
    query_stream_init: str = "neighbor",
    mask_token_id: int | None = None,
    ignored_fields: Sequence[str] = (),
) -> AOARMConfig:
    """Converts a config of the library. The arguments are those of [`convert_causal_lm`].

    Raises:
        ValueError: the model type or a field is unknown, or a value cannot be converted exactly.
    """
    if attention_variant not in VARIANTS:
        raise ValueError(
            "`attention_variant` must be one to which a left-to-right model can be converted, "
            f"{', '.join(VARIANTS)}, got {attention_variant!r}."
        )
    if query_stream_init not in QUERY_STREAM_INITS:
        raise ValueError(
            "`query_stream_init` must be one that is exact in the identity order, "
            f"{', '.join(QUERY_STREAM_INITS)}, got {query_stream_init!r}."
        )
    family = FAMILIES.get(source.model_type)
    if family is None or type(source) is not family.model_class.config_class:
        raise ValueError(
            f"`model_type` must be one of {', '.join(FAMILIES)}, with the library's own classes; got "
            f"{source.model_type!r} ({type(source).__name__})."
        )
    if source.is_heterogeneous:
        raise ValueError("`per_layer_config` must be absent, because all layers must be alike; got one.")
    without_rule = {*family.renamed, *family.unread}
    rules = {name: rule for name, rule in RULES.items() if name not in without_rule} | family.rules
    known = {*COPIED, *rules, *without_rule, *UNREAD, *ignored_fields}
    for name, value in vars(source).items():
        # Private fields belong to the library.
        if value is None or name.startswith("_"):
            continue
        if name in rules and not rules[name].holds(value, source):
            raise ValueError(f"`{name}` must {rules[name].text} to convert a {source.model_type} model, got {value!r}.")
        if name not in known and not name.endswith(UNREAD_ENDINGS):
            raise ValueError(
                f"`{name}` must be a config field that is known for {source.model_type} models, got {value!r}. If it "
                "does not change the model's computation, name it in `ignored_fields`."
            )
    fields = {name: copy.deepcopy(getattr(source, name, None)) for name in COPIED}
    fields |= {name: _keep_valid_tokens(getattr(source, name, None), source.vocab_size) for name in TOKEN_IDS}
    for name, ours in family.renamed.items():
        fields |= dict.fromkeys(ours, getattr(source, name))
    try:
        return AOARMConfig(
            attention_variant=attention_variant,
            **({"query_stream_init": query_stream_init} if attention_variant == "two_stream" else {}),
            mask_token_id=mask_token_id,
            attn_implementation=source._attn_implementation,
            **fields,
            **family.constant,
        )
    except StrictDataclassError as error:
        raise ValueError(f"The config cannot be converted: {error}") from error


def _load(
    name: str, variant: dict[str, str], dtype: torch.dtype | str, ignored_fields: Sequence[str], kwargs: dict
) -> PreTrainedModel:
    """Loads a checkpoint as a model of the library. Refuses missing and surplus weights."""
    if Path(name).is_file():
        raise ValueError(
            f"`model_or_path` must be a folder or a Hub name, got the file {name}. Pass its folder, and a GGUF file's "
            "name as `gguf_file`."
        )
    if kwargs.get("use_safetensors") is False:
        raise ValueError("`use_safetensors` must not be False: weights are loaded from safetensors or GGUF only.")
    gguf_file = kwargs.get("gguf_file")
    if gguf_file is not None:
        require_gguf()
        options = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
        path = cached_file(name, gguf_file, **{key: kwargs[key] for key in options if key in kwargs})
        reader = read_gguf(path)
        dtype = torch.float32 if dtype == "auto" else dtype
    try:
        source_config = AutoConfig.from_pretrained(name, **kwargs)
        # Refuses a config before its weights are downloaded and read.
        convert_config(source_config, **variant, ignored_fields=ignored_fields)
        model_class = FAMILIES[source_config.model_type].model_class
        if gguf_file is not None:
            check_gguf(reader, model_class, source_config, ignored_fields)
        # Tensors of another shape are reported, and the error below names them.
        kwargs = {**kwargs, "use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        source, report = model_class.from_pretrained(name, config=source_config, dtype=dtype, **kwargs)
    except (KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        # KeyError: an incomplete `rope_parameters`.
        raise ValueError(f"The checkpoint {name} cannot be loaded: {error}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise ValueError(
                f"A checkpoint must hold the weights of a {model_class.__name__} and no others; {name} has "
                f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, report[kind])))}."
            )
    return source


def _describe_source(config: PreTrainedConfig, name: str) -> dict[str, str]:
    """Returns the source's model type, name and GGUF file. Local paths are cut to their last part."""
    is_path = name != "" and (Path(name).is_absolute() or Path(name).is_dir())
    described = {"model_type": config.model_type, "name": Path(name).resolve().name if is_path else name}
    gguf_file = getattr(getattr(config, "quantization_config", None), "gguf_file", None)
    return described if gguf_file is None else described | {"gguf_file": Path(gguf_file).name}


def _make_rotary_embedding(config: AOARMConfig, source: PreTrainedModel) -> LlamaRotaryEmbedding:
    """Makes the rotary embedding from the config, and checks that it equals the source's."""
    rotary, theirs = LlamaRotaryEmbedding(config).to(source.device), source.model.rotary_emb
    frequencies = rotary.inv_freq.to(theirs.inv_freq.dtype)
    tolerance = 4 * torch.finfo(frequencies.dtype).eps
    if (
        frequencies.shape != theirs.inv_freq.shape
        or not torch.allclose(frequencies, theirs.inv_freq, rtol=tolerance, atol=0)
        or rotary.attention_scaling != theirs.attention_scaling
    ):
        raise ValueError(
            "`rope_parameters` must give the rotations that the model has, got other frequencies or another scaling "
            f"from {config.rope_parameters}."
        )
    return rotary


def _keep_valid_tokens(token_ids: int | list[int] | None, vocab_size: int) -> int | list[int] | None:
    """Drops ids outside of the vocabulary, such as the -1 of some published configs."""
    if isinstance(token_ids, list):
        return [token_id for token_id in token_ids if 0 <= token_id < vocab_size] or None
    return None if token_ids is None or not 0 <= token_ids < vocab_size else token_ids


__all__ = ["convert_causal_lm", "convert_config"]
