# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Any-order models from causal checkpoints of the library: Llama, Mistral, Qwen2, Qwen3, SmolLM (Llama) and SmolLM3.

Parameter names are the same, so weights are taken over as they are. What a model computes lies in its config's fields
too. The tables below say what becomes of each field of each model type: it is copied, or must have a value at which it
changes nothing, or no left-to-right logit depends on it. A field that is in no table is refused by name. The tables
were read off the modeling files of transformers 5.23.
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


# Those with rotations, and the starts of `two_stream` that are the source exactly in the identity order.
VARIANTS = ("two_stream", "decoupled_rope", "causal")
QUERY_STREAM_INITS = ("neighbor", "content")

# Fields that all families share with us, in name and meaning.
COPIED = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "hidden_act max_position_embeddings initializer_range rms_norm_eps use_cache tie_word_embeddings rope_parameters "
    "attention_dropout"
).split()

# Fields that no left-to-right logit depends on.
UNREAD = {
    "names, versions, notes": (
        "architectures base_model created_at datasets date is_llama_config language languages library_name license "
        "model_name model_type name tags tokenizer_class transformers.js_config transformers_version unsloth_fixed "
        "unsloth_version"
    ),
    "what calls return, and other heads": (
        "add_cross_attention cross_attention_hidden_size finetuning_task id2label is_decoder label2id "
        "output_hidden_states problem_type return_dict task_specific_params tie_encoder_decoder tie_last_hidden_states "
        "torchscript"
    ),
    "how weights are stored and shared out": (
        "base_model_pp_plan base_model_tp_plan chunk_size_feed_forward distributed_config dtype pretraining_tp "
        "use_bfloat16"
    ),
    "training": "dropout gradient_checkpointing initializer_factor",
    "which layers have a window, where `sliding_window` or `layer_types` says that there is one": (
        "max_window_layers use_sliding_window"
    ),
    "lengths that no layer reads": "max_seq_len max_sequence_length model_max_length seq_length",
    "what the library has moved into `rope_parameters`": (
        "ignore_keys_at_rope_validation original_max_position_embeddings"
    ),
}
# Any token id; and dropout that the library's class does not have, in training either.
UNREAD_ENDINGS = ("_token_id", "_token_ids", "_dropout", "_dropout_prob", "_pdrop")

# Ids that become ours where they are tokens of the vocabulary. Published configs write -1 for "none".
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class Rule:
    """What the value of a field must be for the conversion to be exact.

    Args:
        text: the rule in words, which go on after "must".
        holds: whether a value is right, given the whole config.
    """

    text: str
    holds: Callable[[Any, PreTrainedConfig], bool]


def equal_to(value: Any) -> Rule:
    return Rule(f"be {value!r}", lambda given, _: given == value)


def _quantization_method(quantization: Any) -> str | None:
    """What `quantization_config` names, which is a dictionary or, once a model is loaded, an object."""
    values = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return values.get("quant_method")


# A field that is None or not there breaks no rule. The library's Llama reads no softcapping and no multipliers: a
# checkpoint with them is another model than the one that would be loaded here.
RULES = {
    **dict.fromkeys(("attention_bias", "is_encoder_decoder", "mlp_bias", "qkv_bias"), equal_to(False)),
    **dict.fromkeys(("qk_layernorm", "qk_norm", "use_qk_norm"), equal_to(False)),
    **dict.fromkeys(("rope_interleaved", "use_dynamic_ntk", "use_logn_attn", "use_mrope"), equal_to(False)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), equal_to(None)),
    **dict.fromkeys(("embedding_multiplier", "logits_scaling", "logit_scale", "residual_multiplier"), equal_to(1.0)),
    "attention_multiplier": equal_to(None),
    "auto_map": Rule(
        "name no model code (the checkpoint computes with code of its own)",
        lambda names, _: not any(name.startswith("AutoModel") for name in names),
    ),
    "hidden_act": Rule("be an activation that the library knows", lambda name, _: name in ACT2FN),
    "is_causal": equal_to(True),
    "layer_types": Rule("be 'full_attention' in every layer", lambda types, _: set(types) == {"full_attention"}),
    "pruned_heads": equal_to({}),
    "quantization_config": Rule(
        "be None, or that of a GGUF file (whose weights are plain numbers once they are loaded)",
        lambda quantization, _: _quantization_method(quantization) == "gguf",
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
    """How the config of one model type of the library becomes ours, beyond `COPIED`, `UNREAD` and `RULES`.

    Args:
        model_class: the library's class, which computes what is converted.
        renamed: our fields for a field of the source.
        constant: our fields for what the library's class has built in.
        rules: further fields that must have a value at which they change nothing.
        unread: further fields that change nothing where the rules hold; `layer_types` says which layers have a window.
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
    """Makes an any-order model of a left-to-right one.

    Exact in the identity order: called without positions, or left to right, the result gives the source's logits (up to
    rounding) and the source's generated text. The default, `two_stream` with the neighbor start, fills blanks from both
    sides without training: it goes on from the token left of a blank, as the source would, and sees what is right of it
    too. `docs/conversion.md` has measurements. For targets whose left neighbor is not known (other orders), and for the
    other variants, the weights have seen nothing like it, and need training first.

    Args:
        model_or_path: a model of the library, or a folder or Hub name of its checkpoint. A model is not changed, and no
            memory is shared with it: its weights are copied. A checkpoint is held in memory once.
        attention_variant: `"two_stream"`, `"decoupled_rope"` or `"causal"`.
        query_stream_init: where the query stream of `"two_stream"` starts: `"neighbor"`, whose learned vector begins as
            the mean of the token embeddings, or `"content"`. The other variants ignore it.
        dtype: of the weights. `"auto"` leaves those of a model as they are, and loads a checkpoint in its own.
        mask_token_id: goes into the config, for tokenizers that have a mask token. The vocabulary stays as it is.
        ignored_fields: config fields (of a GGUF file: metadata entries and tensors too) unknown here that the caller
            knows to change nothing.
        **kwargs: how a checkpoint is loaded, as in `from_pretrained`: `revision`, `token`, `attn_implementation`, ...
            `gguf_file` names a GGUF file in the folder; it needs the extra `gguf`. Its weights become plain numbers,
            float32 unless `dtype` says otherwise.

    Returns:
        The model in evaluation mode, on the source's device, with its special tokens and generation config.
        `config.converted_from` names the source, and its GGUF file if it has one. RoPE frequencies are float32, as in a
        loaded checkpoint, also where a cast has rounded those of the model given.

    Raises:
        OSError: there is no such checkpoint.
        ValueError: for a model that none of the variants equals exactly (the message names the field, the rule and the
            value), a checkpoint with weights missing, left over or of another shape, and weights that are not there to
            be copied (offloaded) or are no floating-point numbers (quantised).
    """
    if dtype != "auto":
        dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"`dtype` must be 'auto' or a floating-point dtype of torch, got {dtype!r}.")
    variant = {"attention_variant": attention_variant, "query_stream_init": query_stream_init}
    if isinstance(model_or_path, PreTrainedModel):
        if kwargs:
            raise ValueError(f"Arguments for loading need a folder or a Hub name, got a model and {sorted(kwargs)}.")
        source, is_owned = model_or_path, False
        name = str(source.config.name_or_path or "")
    else:
        source, is_owned = _load(os.fspath(model_or_path), variant, dtype, ignored_fields, kwargs), True
        name = os.fspath(model_or_path)
    config = convert_config(source.config, **variant, mask_token_id=mask_token_id, ignored_fields=ignored_fields)
    expected = FAMILIES[source.config.model_type].model_class
    if type(source) is not expected:
        raise ValueError(f"`model_or_path` must be a {expected.__name__} itself, got {type(source).__name__}.")
    # Where a folder lies on this machine is nobody's business.
    is_place = name != "" and (Path(name).is_absolute() or Path(name).is_dir())
    config.converted_from = {
        "model_type": source.config.model_type,
        "name": Path(name).resolve().name if is_place else name,
    }
    gguf_file = getattr(getattr(source.config, "quantization_config", None), "gguf_file", None)
    if gguf_file is not None:
        config.converted_from["gguf_file"] = Path(gguf_file).name
    # Checkpoints with two different tables load untied, whatever their config says.
    config.tie_word_embeddings = source.lm_head.weight is source.model.embed_tokens.weight

    weights = {}
    for key, tensor in source.state_dict().items():
        if tensor.is_meta or not tensor.is_floating_point():
            state = "offloaded" if tensor.is_meta else tensor.dtype
            raise ValueError(f"Weights must be floating-point numbers in memory, got {key} {state}.")
        if key == "lm_head.weight" and config.tie_word_embeddings:
            weights[key] = weights["model.embed_tokens.weight"]
        else:
            weights[key] = tensor if is_owned else tensor.to(tensor.dtype if dtype == "auto" else dtype, copy=True)
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
    # The only tensors that are not among the weights.
    model.model.rotary_emb = _same_rotary_embedding(config, source)
    model.generation_config = _generation_config(source, config)
    if config.attention_variant != "causal" and not config.starts_from_neighbors:
        # A state that starts from the row's own token goes on from that one, so that the last should stand left of the
        # first blank (docs/conversion.md has measurements).
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
    """Our config for what a config of the library describes; arguments as in [`convert_causal_lm`].

    Raises:
        ValueError: for a model type or a field that is unknown, and for values that cannot be converted exactly.
    """
    if attention_variant not in VARIANTS:
        raise ValueError(
            f"`attention_variant` must be one that a left-to-right model can become, {', '.join(VARIANTS)}, got "
            f"{attention_variant!r}."
        )
    if query_stream_init not in QUERY_STREAM_INITS:
        raise ValueError(
            "`query_stream_init` must be one with which the identity order is the source's, "
            f"{', '.join(QUERY_STREAM_INITS)}, got {query_stream_init!r}."
        )
    family = FAMILIES.get(source.model_type)
    if family is None or type(source) is not family.model_class.config_class:
        raise ValueError(
            f"`model_type` must be one of {', '.join(FAMILIES)}, with the library's own classes; got "
            f"{source.model_type!r} ({type(source).__name__})."
        )
    if source.is_heterogeneous:
        raise ValueError("`per_layer_config` must not be given: all layers must be alike, got one.")
    without_rule = {*family.renamed, *family.unread}
    rules = {name: rule for name, rule in RULES.items() if name not in without_rule} | family.rules
    unread = {name for names in UNREAD.values() for name in names.split()}
    known = {*COPIED, *rules, *without_rule, *unread, *ignored_fields}
    for name, value in vars(source).items():
        # Without a value a field says nothing, and private ones are the library's own.
        if value is None or name.startswith("_"):
            continue
        if name in rules and not rules[name].holds(value, source):
            raise ValueError(f"`{name}` must {rules[name].text} to convert a {source.model_type} model, got {value!r}.")
        if name not in known and not name.endswith(UNREAD_ENDINGS):
            raise ValueError(
                f"`{name}` must be a config field whose meaning in {source.model_type} models is known here, got "
                f"{value!r}. If it changes nothing that the model computes, name it in `ignored_fields`."
            )
    fields = {name: copy.deepcopy(getattr(source, name, None)) for name in COPIED}
    fields |= {name: _tokens_of(getattr(source, name, None), source.vocab_size) for name in TOKEN_IDS}
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
    """The checkpoint as a model of the library, whole and with nothing left over."""
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
        reader = read_gguf(_cached_file(name, gguf_file, kwargs))
        dtype = torch.float32 if dtype == "auto" else dtype
    try:
        source_config = AutoConfig.from_pretrained(name, **kwargs)
        # What cannot be converted is refused before its weights are read, or fetched.
        convert_config(source_config, **variant, ignored_fields=ignored_fields)
        model_class = FAMILIES[source_config.model_type].model_class
        if gguf_file is not None:
            check_gguf(reader, model_class, source_config, ignored_fields)
        # With this the report names the tensors of another shape, and the error below does.
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


def _same_rotary_embedding(config: AOARMConfig, source: PreTrainedModel) -> LlamaRotaryEmbedding:
    """Our rotations, after a look whether they are the source's, as both read `rope_parameters` for themselves."""
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


def _cached_file(name: str, file: str, kwargs: dict) -> str:
    """Path of a checkpoint's file, which is fetched if it lies on the Hub."""
    names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
    return cached_file(name, file, **{key: kwargs[key] for key in names if key in kwargs})


def _tokens_of(token_ids: int | list[int] | None, vocab_size: int) -> int | list[int] | None:
    """Token ids without those that are no token, as -1, which stands for "none" in some published configs."""
    if isinstance(token_ids, list):
        return [token_id for token_id in token_ids if 0 <= token_id < vocab_size] or None
    return None if token_ids is None or not 0 <= token_ids < vocab_size else token_ids


def _generation_config(source: PreTrainedModel, config: AOARMConfig) -> AOARMGenerationConfig:
    """The source's way to generate, with room for ours."""
    theirs = source.generation_config
    values = generation_config_values(theirs)
    values |= {name: _tokens_of(values.get(name), config.vocab_size) for name in TOKEN_IDS}
    ours = AOARMGenerationConfig.from_dict(values)
    # As in the library: what was published may be saved again, even where it would refuse the like from us.
    keep_published_mark(theirs, ours)
    return ours


__all__ = ["convert_causal_lm", "convert_config"]
