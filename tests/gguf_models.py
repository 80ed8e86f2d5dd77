# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Small models of the library as GGUF files, with a tokenizer and a chat template."""

from transformers import PreTrainedModel

from modeling_aoarm.gguf import tensor_names


TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}"
# Every character is a token, as GPT-2's tokenizers write it ("Ġ" is a space), behind the special ones.
SPECIAL = ["<s>", "</s>", "<unk>"]
TOKENS = [*SPECIAL, "Ġ", *"abcdefghijklmnopq", "ab", "cd"]


def write_gguf(path, model: PreTrainedModel, entries=None, tensors=None, leave_out: str | None = None) -> None:
    """Writes a Llama, Qwen2 or Qwen3 with a vocabulary of 23 tokens.

    Args:
        path: of the file.
        model: whose weights are written as float32.
        entries: more metadata, or other values, by full name.
        tensors: more tensors by GGUF's name.
        leave_out: tensors whose names end like this are not written.
    """
    from gguf import GGUFWriter

    config, architecture = model.config, model.config.model_type
    sizes = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "rope.dimension_count": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
    }
    sizes |= {"attention.key_length": sizes["rope.dimension_count"]}
    metadata = {f"{architecture}.{name}": value for name, value in sizes.items()}
    metadata |= {
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": config.rope_parameters["rope_theta"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
        **(entries or {}),
    }
    writer = GGUFWriter(path, architecture)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    # 3 marks special tokens, 1 ordinary ones.
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(["a b", "c d"])
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for name, value in metadata.items():
        add[type(value)](name, value)
    names = tensor_names(architecture, type(model), config)
    for name, tensor in model.state_dict().items():
        is_tied = name == "lm_head.weight" and config.tie_word_embeddings
        if is_tied or (leave_out is not None and names[name].endswith(leave_out)):
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if architecture == "llama" and heads is not None:
            # GGUF's Llama rotates neighbours; the library's rotates halves.
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names[name], tensor.numpy())
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
