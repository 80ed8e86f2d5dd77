# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Checks GGUF files for content that the library's loader drops.

The loader reads sizes, the base of RoPE and the weights of a Llama, Mistral, Qwen2 or Qwen3. It silently drops all
other entries and tensors, such as RoPE scaling, windows and multipliers. A model that needs them would load as another
model, so the file is checked first.
"""

from collections.abc import Sequence
from pathlib import Path
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


def locate_checkpoint(name: str) -> tuple[str, dict[str, str]]:
    """Returns what `from_pretrained` takes for a folder, a Hub name or the path of a GGUF file: a name and options."""
    if name.endswith(".gguf"):
        return str(Path(name).parent), {"gguf_file": Path(name).name}
    return name, {}


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
    """Refuses a file with entries or tensors that the library's loader drops.

    Args:
        reader: the file, from [`read_gguf`].
        model_class, config: the class and config of the model that the loader makes from the file.
        ignored: entries and tensors that do not change the model's computation.

    Raises:
        ValueError: names the entry or the tensor.
    """
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Entries that the loader drops, and their values in the models that it makes.
    dropped = dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), head_width)
    dropped["rope.scaling.type"] = "none"
    architecture = reader.fields["general.architecture"].contents()
    for name, entry in reader.fields.items():
        prefix, _, key = name.partition(".")
        # Entries about the file and its tokenizer have other prefixes.
        if prefix != architecture or key in READ or name in ignored:
            continue
        value = entry.contents()
        if key not in dropped:
            raise ValueError(
                f"`{name}` must be an entry that the library's GGUF loader reads, got {value!r}. If it does not change "
                "the model's computation, name it in `ignored_fields`."
            )
        if value != dropped[key]:
            raise ValueError(
                f"`{name}` of a GGUF file must be {dropped[key]!r}, because the library's loader drops the entry; got "
                f"{value!r}. Convert the checkpoint in safetensors instead."
            )
    names = tensor_names(architecture, model_class, config).values()
    for tensor in reader.tensors:
        if tensor.name not in names and tensor.name not in ignored:
            raise ValueError(
                f"`{tensor.name}` of a GGUF file must be a tensor of a {model_class.__name__}, because the library's "
                "loader drops all others. Convert the checkpoint in safetensors instead."
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


__all__ = ["check_gguf", "locate_checkpoint", "read_gguf", "require_gguf", "tensor_names"]
