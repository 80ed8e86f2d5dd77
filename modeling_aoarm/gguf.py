# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Checks of GGUF files for content that the library's loader drops.

The loader reads sizes, the base of RoPE and the weights of a Llama, Mistral, Qwen2 or Qwen3. It silently drops every
other entry and tensor, such as RoPE scaling, windows and multipliers. A model with those would load as another model,
so the file is checked first.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedConfig, PreTrainedModel


if TYPE_CHECKING:
    from gguf import GGUFReader

# Metadata entries that the loader reads. Their names begin with the architecture.
READ = (
    "attention.head_count attention.head_count_kv attention.layer_norm_rms_epsilon block_count context_length "
    "embedding_length feed_forward_length rope.freq_base vocab_size"
).split()
# Entries that must be the head's width, over which the library's classes rotate.
HEAD_WIDTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count")


def require_gguf() -> None:
    """Raises a ValueError if the package that reads GGUF files is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "`gguf_file` needs the package `gguf`, which is not installed: pip install 'modeling-aoarm[gguf]'."
        ) from error


def read_gguf(path: str) -> "GGUFReader":
    """Opens a file. Its tensors stay on the disk.

    Raises:
        ValueError: the file is not a whole GGUF file.
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
        model_class: the library's class that the loader makes from the file.
        config: the config that the loader makes from the file.
        ignored: entries and tensors that, as the caller knows, change nothing.

    Raises:
        ValueError: names the entry or the tensor.
    """
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    architecture = reader.fields["general.architecture"].contents()
    for name, entry in reader.fields.items():
        prefix, _, key = name.partition(".")
        # Notes on the file and its tokenizer have other prefixes.
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
                f"`{name}` must be an entry that the library's GGUF loader reads, got {value!r}. If it does not change "
                "the model's computation, name it in `ignored_fields`."
            )
    names = tensor_names(architecture, model_class, config).values()
    for tensor in reader.tensors:
        if tensor.name not in names and tensor.name not in ignored:
            raise ValueError(
                f"`{tensor.name}` must be a tensor of a {model_class.__name__}, which the library makes from this GGUF "
                "file: its loader would drop the tensor. Convert the checkpoint in safetensors instead."
            )


def tensor_names(architecture: str, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, str]:
    """Maps the names of a model's parameters to the names of GGUF tensors."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    # A Mistral's tensors have the names of a Llama's.
    names = get_tensor_name_map(numbers.get(architecture, MODEL_ARCH.LLAMA), config.num_hidden_layers)
    with torch.device("meta"):
        parameters = model_class(config).state_dict()
    return {name: names.get_name(name, (".weight", ".bias")) for name in parameters}


__all__ = ["check_gguf", "read_gguf", "require_gguf", "tensor_names"]
