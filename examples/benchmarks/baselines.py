# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Models of one size with new weights, and training batches that ask all of them for the same predictions.

The baselines of the package's variants are two models of the library: Llama, from left to right, and XLNet, whose two
streams get the order as a mask.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, XLNetConfig, XLNetLMHeadModel

from modeling_aoarm.configuration_aoarm import AOARMConfig
from modeling_aoarm.modeling_aoarm import model_class_for


SIZES = dict(vocab_size=256, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4)
LIBRARY = ("Llama", "XLNet")
VARIANTS = ("two_stream", "decoupled_rope", "double_position", "adaptive_norm", "bidirectional")


def make_model(name: str, seed: int = 0, max_position_embeddings: int = 1025, **changes) -> PreTrainedModel:
    """Makes a model with new weights and without special tokens, in float32, in evaluation mode.

    XLNet has the width, layers and heads of the others and no dropout. Its attention has one matrix more and its MLP
    one fewer, so its inner width is chosen to give the same number of parameters.

    Args:
        name: `"Llama"`, `"XLNet"` or an `attention_variant`, including `"causal"`.
        seed: seed of the weights.
        max_position_embeddings: the size of tables of positions, if the model has any.
        changes: changes of `SIZES`.

    Raises:
        ValueError: the name is unknown.
    """
    sizes = SIZES | changes
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    torch.manual_seed(seed)
    if name == "Llama":
        config = LlamaConfig(max_position_embeddings=max_position_embeddings, **sizes, **special)
        return LlamaForCausalLM(config).eval()
    if name == "XLNet":
        width = sizes["hidden_size"]
        config = XLNetConfig(
            vocab_size=sizes["vocab_size"],
            d_model=width,
            n_layer=sizes["num_hidden_layers"],
            n_head=sizes["num_attention_heads"],
            d_inner=(3 * sizes["intermediate_size"] - width) // 2,
            dropout=0.0,
            tie_word_embeddings=False,
            **special,
        )
        return XLNetLMHeadModel(config).eval()
    if name not in (*VARIANTS, "causal"):
        raise ValueError(f"`name` must be one of {[*LIBRARY, *VARIANTS, 'causal']}, got {name!r}.")
    if name == "bidirectional":
        # The last token of the vocabulary is the mask token.
        special["mask_token_id"] = sizes["vocab_size"] - 1
    config = AOARMConfig(attention_variant=name, max_position_embeddings=max_position_embeddings, **sizes, **special)
    return model_class_for(config)(config).eval()


def make_training_batch(name: str, batch: int, rows: int, vocab_size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Makes the arguments of a model's `forward` for a training step: random tokens in random orders, if it takes any.

    One token of each example is given and all others are predicted, `batch * (rows - 1)` predictions. `bidirectional`
    predicts a share of them that is drawn for each example, with the weights of its collator.

    Args:
        name: as in [`make_model`].
        batch: the number of examples.
        rows: the number of tokens of each example.
        vocab_size: that of the model. The last token is not drawn, because it may be the mask token.
        seed: seed of tokens and orders, which are the same for all models.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab_size - 1, (batch, rows), generator=generator)
    order = torch.rand(batch, rows, generator=generator, dtype=torch.float32).argsort(dim=1)
    if name == "Llama":
        return {"input_ids": tokens, "labels": tokens}
    in_order = tokens.gather(1, order)
    if name == "XLNet":
        rank = order.argsort(dim=1)
        return {
            "input_ids": tokens,
            # 1 where a token (dimension 1) may not see another one (dimension 2): itself and all later ones.
            "perm_mask": (rank[:, None] >= rank[:, :, None]).float(),
            "target_mapping": torch.nn.functional.one_hot(order[:, 1:], rows).float(),
            # XLNet calls `view` on its labels.
            "labels": in_order[:, 1:].contiguous(),
        }
    if name == "bidirectional":
        masked = torch.randint(1, rows + 1, (batch, 1), generator=generator)
        is_masked = order.argsort(dim=1) >= rows - masked
        return {
            "input_ids": tokens.masked_fill(is_masked, vocab_size - 1),
            "labels": tokens,
            "loss_weights": is_masked * (rows / masked),
        }
    # As in a collator, the last target is the position after the last one.
    targets = torch.cat([order[:, 1:], order[:, -1:] + 1], dim=1)
    return {"input_ids": in_order, "position_ids": order, "target_position_ids": targets, "labels": in_order}
