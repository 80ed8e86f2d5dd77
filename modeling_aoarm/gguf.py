# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What a GGUF file holds that the library's loader drops.

The loader reads sizes, the base of RoPE and the weights of a Llama, Mistral, Qwen2 or Qwen3. It drops every other entry
and tensor without a word: RoPE scaling, windows, multipliers. A model with those would load as another model, so the
file is checked first.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedConfig, PreTrainedModel


if TYPE_CHECKING:
    from gguf import GGUFReader

# Metadata entries, behind the architecture's name, that the loader reads.
READ = (
    "attention.head_count attention.head_count_kv attention.layer_norm_rms_epsilon block_count context_length "
    "embedding_length feed_forward_length rope.freq_base vocab_size"
).split()

# Entries that must be the head's width, over which the library's classes rotate.
HEAD_WIDTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count")

# GGUF's names of a layer's parts, and of the parts outside of layers, beside the library's.
LAYER_PARTS = {
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_v": "self_attn.v_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.up_proj",
}
OTHER_PARTS = {"output": "lm_head", "output_norm": "model.norm", "token_embd": "model.embed_tokens"}


def require_gguf() -> None:
    """Raises a ValueError where the package that reads GGUF files is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "`gguf_file` needs the package `gguf`, which is not installed: pip install 'modeling-aoarm[gguf]'."
        ) from error


def read_gguf(path: str) -> "GGUFReader":
    """The entries and tensors of a file, whose data stay on the disk.

    Raises:
        ValueError: the file is no GGUF file, or not a whole one.
    """
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (IndexError, KeyError, OverflowError, ValueError) as error:
        raise ValueError(f"The checkpoint {path} cannot be loaded, it is not a whole GGUF file: {error}") from error


def check_gguf(
    reader: "GGUFReader", model_class: type[PreTrainedModel], config: PreTrainedConfig, ignored: Sequence[str] = ()
) -> None:
    """Refuses a file with entries or tensors that the library's loader drops and that might change the result.

    Args:
        reader: the file, from [`read_gguf`].
        model_class: the library's class that the loader makes of the file.
        config: the config that the loader makes of the file.
        ignored: entries and tensors that the caller knows to change nothing.

    Raises:
        ValueError: names the entry or the tensor.
    """
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    architecture = reader.fields["general.architecture"].contents()
    for name, entry in reader.fields.items():
        prefix, _, key = name.partition(".")
        # Notes on the file and its tokenizer stand under other names.
        if prefix != architecture or key in READ or name in ignored:
            continue
        value = entry.contents()
        if key in HEAD_WIDTHS and value != head_width:
            raise ValueError(f"`{name}` of a GGUF file must be the head's width {head_width}, got {value!r}.")
        if key == "rope.scaling.type" and value != "none":
            raise ValueError(
                f"`{name}` of a GGUF file must be 'none', as the library's loader drops scaling, got {value!r}. "
                "Convert the checkpoint in safetensors instead."
            )
        if key not in (*HEAD_WIDTHS, "rope.scaling.type"):
            raise ValueError(
                f"`{name}` must be an entry that the library's GGUF loader reads, got {value!r}. If it changes nothing "
                "that the model computes, name it in `ignored_fields`."
            )
    with torch.device("meta"):
        parameters = model_class(config).state_dict()
    for tensor in reader.tensors:
        if parameter_name(tensor.name) not in parameters and tensor.name not in ignored:
            raise ValueError(
                f"`{tensor.name}` must be a tensor of a {model_class.__name__}, which the library makes of this GGUF "
                "file: its loader would drop the tensor. Convert the checkpoint in safetensors instead."
            )


def parameter_name(tensor: str) -> str | None:
    """The library's name of a GGUF tensor; `None` for one that is not known here."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor)
    if match is None:
        return None
    layer, part, kind = match.groups()
    part = (OTHER_PARTS if layer is None else LAYER_PARTS).get(part)
    if part is None:
        return None
    return f"{part}.{kind}" if layer is None else f"model.layers.{layer}.{part}.{kind}"


__all__ = ["check_gguf", "parameter_name", "read_gguf", "require_gguf"]
