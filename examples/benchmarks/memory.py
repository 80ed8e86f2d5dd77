# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Count the memory that training needs: weights, gradients and AdamW's states for models of several sizes, and what each
token adds.

    python examples/benchmarks/memory.py

Parameters are counted on the meta device. Activations are the bytes that autograd keeps for the backward pass, counted
by saved-tensor hooks in small models with causal attention in one fused kernel (no padding) on a CPU; as they are
linear in rows, layers and widths, a few small models give the formula for all. Nothing here needs a GPU; seconds.
Prints the tables of `configuration/accelerate/README.md`.
"""

import argparse
import contextlib
import itertools

import numpy as np
import torch

from modeling_aoarm import AOARMConfig, AOARMForCausalLM


# The last two have the shapes of TinyLlama and Llama 2.
MODELS = {
    "8M": dict(vocab_size=128, hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8),
    "124M": dict(vocab_size=50257, tie_word_embeddings=True),
    "350M": dict(
        vocab_size=50257,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=16,
        tie_word_embeddings=True,
    ),
    "1.1B": dict(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
    ),
    "7B": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
}
VARIANTS = ("two_stream", "decoupled_rope")
# Bytes per parameter of weights, gradients and AdamW's states (with the float32 weights that DeepSpeed updates), in
# mixed bf16 precision, and which of them are shared out among the processes.
STRATEGIES = {
    "DDP": ((4, False), (4, False), (8, False)),
    "ZeRO-2": ((2, False), (2, True), (12, True)),
    "FSDP2": ((4, True), (4, True), (8, True)),
    "ZeRO-3": ((2, True), (2, True), (12, True)),
}
# Sizes of what a formula is made of: per layer, and once.
PER_LAYER = ("hidden", "intermediate", "keys", "heads", "1")
ONCE = ("hidden", "intermediate", "keys", "heads", "head_dim", "vocab", "1")


def count_parameters(config: AOARMConfig) -> int:
    with torch.device("meta"):
        return AOARMForCausalLM(config).num_parameters()


def state_bytes(parameters: int, strategy: str, processes: int) -> float:
    """Bytes of weights, gradients and optimiser states in each process."""
    return sum(parameters * size / (processes if is_shared else 1) for size, is_shared in STRATEGIES[strategy])


def saved_bytes(config: AOARMConfig, rows: int, under_autocast: bool) -> int:
    """Bytes that a forward pass with labels keeps for the backward pass, weights and their bf16 copies left out.

    Args:
        rows: tokens of the one example.
        under_autocast: float32 weights under autocast, as in DDP; else bf16 weights, as each layer of FSDP2 and
            DeepSpeed computes with.
    """
    model = AOARMForCausalLM(config).train()
    if not under_autocast:
        model.to(torch.bfloat16)
    weights = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Views of one tensor are one piece of memory. Tensors are held, so that no address comes twice.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    input_ids = torch.zeros(1, rows, dtype=torch.int64)
    position_ids = torch.arange(rows).flip(0)[None]
    precision = torch.autocast("cpu", torch.bfloat16) if under_autocast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
        model(input_ids, position_ids=position_ids, labels=input_ids, use_cache=False)
    return sum(size for size, _ in storages.values())


def bytes_per_token(config: AOARMConfig, under_autocast: bool) -> float:
    """What each further token of an example adds to `saved_bytes`."""
    short, long = 64, 128
    return (saved_bytes(config, long, under_autocast) - saved_bytes(config, short, under_autocast)) / (long - short)


def sizes_of(config: AOARMConfig) -> list[int]:
    """What formulas are made of: `PER_LAYER`, times the layers, and `ONCE`."""
    sizes = {
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
        "keys": config.num_key_value_heads * config.head_dim,
        "heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "vocab": config.vocab_size,
        "1": 1,
    }
    return [config.num_hidden_layers * sizes[name] for name in PER_LAYER] + [sizes[name] for name in ONCE]


def measure_formula(variant: str, under_autocast: bool) -> list[int]:
    """The bytes that each token adds, as whole coefficients of `sizes_of`.

    Raises:
        RuntimeError: the bytes are not linear in these sizes.
    """
    configs = [
        AOARMConfig(
            attention_variant=variant,
            vocab_size=vocab,
            hidden_size=heads * head_dim,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // groups,
            head_dim=head_dim,
        )
        for (heads, groups, head_dim, vocab), intermediate, layers in itertools.product(
            ((4, 1, 16, 96), (4, 2, 32, 64), (8, 4, 16, 160), (2, 2, 32, 128), (8, 1, 8, 32), (6, 2, 24, 80)),
            (48, 112),
            (2, 3),
        )
    ]
    sizes = np.array([sizes_of(config) for config in configs], dtype=float)
    measured = np.array([bytes_per_token(config, under_autocast) for config in configs])
    coefficients = np.linalg.lstsq(sizes, measured, rcond=None)[0].round()
    if np.abs(sizes @ coefficients - measured).max() > 0.5:
        raise RuntimeError(f"activations of {variant} must be linear in {PER_LAYER} and {ONCE}, got other ones.")
    return [int(each) for each in coefficients]


def formula_text(coefficients: list[int]) -> tuple[str, str]:
    """A formula for people: per layer, and once."""

    def terms(names: tuple[str, ...], values: list[int]) -> str:
        parts = [
            f"{value:+d} {name}" if name != "1" else f"{value:+d}"
            for name, value in zip(names, values, strict=True)
            if value
        ]
        return " ".join(parts).removeprefix("+").replace(" +", " + ").replace(" -", " − ").replace("-", "−")

    return terms(PER_LAYER, coefficients[: len(PER_LAYER)]), terms(ONCE, coefficients[len(PER_LAYER) :])


def tables(processes: int, tokens: int) -> str:
    """The page's two tables, in Markdown."""
    formulas = {
        (variant, under_autocast): measure_formula(variant, under_autocast)
        for variant, under_autocast in itertools.product(VARIANTS, (False, True))
    }
    lines = ["| bytes per token | weights | each layer | once |", "| --- | --- | --- | --- |"]
    for (variant, under_autocast), coefficients in formulas.items():
        weights = "float32 under autocast (DDP)" if under_autocast else "bf16 (FSDP2, ZeRO)"
        lines.append(f"| `{variant}` | {weights} | " + " | ".join(formula_text(coefficients)) + " |")
    heading = ["model", "parameters", *STRATEGIES, *(f"`{variant}`, DDP / others" for variant in VARIANTS)]
    lines += ["", "| " + " | ".join(heading) + " |", "| " + " | ".join(["---"] * len(heading)) + " |"]
    for name, fields in MODELS.items():
        parameters = count_parameters(AOARMConfig(**fields))
        cells = [name, f"{parameters:,}"]
        cells += [f"{state_bytes(parameters, strategy, processes) / 2**30:.2f}" for strategy in STRATEGIES]
        for variant in VARIANTS:
            sizes = sizes_of(AOARMConfig(attention_variant=variant, **fields))
            needed = (
                tokens * sum(np.multiply(sizes, formulas[variant, under_autocast])) / 2**30
                for under_autocast in (True, False)
            )
            cells.append(" / ".join(f"{each:.2f}" for each in needed))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8, help="GPUs.")
    parser.add_argument("--tokens", type=int, default=8192, help="Tokens of a batch on each GPU.")
    arguments = parser.parse_args()
    for name in ("processes", "tokens"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}.")
    print(tables(arguments.processes, arguments.tokens))


if __name__ == "__main__":
    main()
