# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Count the memory of training: weights, gradients and AdamW's states for models of several sizes, the bytes per further
token, and the peak of a whole training step.

    python examples/benchmarks/memory.py

1. The tables of `configuration/accelerate/README.md`. Parameters are counted on the meta device. Activations are the
   bytes that autograd keeps for the backward pass, counted by saved-tensor hooks in small models with causal attention
   in one fused kernel (no padding) on a CPU. They are linear in rows, layers and widths, so a few small models give
   the formula for all models.
2. The peak of a training step (forward pass with labels, backward pass, AdamW) over the length of one example, for 4
   layers of width 256 in float32, against Llama and XLNet. The profiler records every allocation and release of torch's
   allocator, so temporary tensors of kernels count too, and the result is the same in every run. Another step lists the
   shapes of all tensors that operators make, to find those with two dimensions that grow with the rows.

Runs on the CPU, about a minute. Writes `benchmark_memory.json` and `benchmark_memory.png` to `--output_dir`.
"""

import contextlib
import itertools
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from baselines import LIBRARY, SIZES, make_model, make_training_batch
from baselines import VARIANTS as PEAK_VARIANTS
from matplotlib.figure import Figure
from timing import (
    BenchmarkArguments,
    Report,
    Target,
    compare_with_target,
    parse_arguments,
    plot_over_lengths,
    print_table,
    print_targets,
)
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm
from transformers import PreTrainedModel

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
QUICK = dict(lengths=[48, 96, 192], models=["two_stream", "XLNet"])
# Bytes per parameter of weights, gradients and AdamW's states (with the float32 weights that DeepSpeed updates), in
# mixed bf16 precision, and whether each is sharded over the processes.
STRATEGIES = {
    "DDP": ((4, False), (4, False), (8, False)),
    "ZeRO-2": ((2, False), (2, True), (12, True)),
    "FSDP2": ((4, True), (4, True), (8, True)),
    "ZeRO-3": ((2, True), (2, True), (12, True)),
}
# The terms of a formula: per layer, and once.
PER_LAYER = ("hidden", "intermediate", "keys", "heads", "1")
ONCE = ("hidden", "intermediate", "keys", "heads", "head_dim", "vocab", "1")


def count_parameters(config: AOARMConfig) -> int:
    with torch.device("meta"):
        return AOARMForCausalLM(config).num_parameters()


def count_state_bytes(parameters: int, strategy: str, processes: int) -> float:
    """Counts the bytes of weights, gradients and optimiser states in each process."""
    return sum(parameters * size / (processes if is_shared else 1) for size, is_shared in STRATEGIES[strategy])


def count_saved_bytes(config: AOARMConfig, rows: int, under_autocast: bool) -> int:
    """Counts the bytes that a forward pass with labels keeps for the backward pass, without weights.

    Args:
        config: the model's config.
        rows: the number of tokens of the only example.
        under_autocast: whether weights are float32 under autocast, as in DDP. Otherwise they are bf16, as in the layers
            of FSDP2 and DeepSpeed.
    """
    model = AOARMForCausalLM(config).train()
    if not under_autocast:
        model.to(torch.bfloat16)
    weights = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Views of one tensor share its memory. The tensors stay alive, so no address is used twice.
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


def measure_bytes_per_token(config: AOARMConfig, under_autocast: bool) -> float:
    """Measures the bytes that each further token of an example adds to `count_saved_bytes`."""
    short, long = 64, 128
    return (count_saved_bytes(config, long, under_autocast) - count_saved_bytes(config, short, under_autocast)) / (
        long - short
    )


def list_sizes(config: AOARMConfig) -> list[int]:
    """Lists the terms of a formula: `PER_LAYER` times the number of layers, and `ONCE`."""
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
    """Fits the bytes per further token by integer coefficients of `list_sizes`.

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
    sizes = np.array([list_sizes(config) for config in configs], dtype=float)
    measured = np.array([measure_bytes_per_token(config, under_autocast) for config in configs])
    coefficients = np.linalg.lstsq(sizes, measured, rcond=None)[0].round()
    if np.abs(sizes @ coefficients - measured).max() > 0.5:
        raise RuntimeError(f"activations of {variant} must be linear in {PER_LAYER} and {ONCE}, got other ones.")
    return [int(each) for each in coefficients]


def format_formula(coefficients: list[int]) -> tuple[str, str]:
    """Formats the two parts of a formula: per layer, and once."""

    def terms(names: tuple[str, ...], values: list[int]) -> str:
        parts = [
            f"{value:+d} {name}" if name != "1" else f"{value:+d}"
            for name, value in zip(names, values, strict=True)
            if value
        ]
        return " ".join(parts).removeprefix("+").replace(" +", " + ").replace(" -", " − ").replace("-", "−")

    return terms(PER_LAYER, coefficients[: len(PER_LAYER)]), terms(ONCE, coefficients[len(PER_LAYER) :])


def format_tables(processes: int, tokens: int) -> str:
    """Formats the page's two tables in Markdown."""
    formulas = {
        (variant, under_autocast): measure_formula(variant, under_autocast)
        for variant, under_autocast in itertools.product(VARIANTS, (False, True))
    }
    lines = ["| bytes per token | weights | each layer | once |", "| --- | --- | --- | --- |"]
    for (variant, under_autocast), coefficients in formulas.items():
        weights = "float32 under autocast (DDP)" if under_autocast else "bf16 (FSDP2, ZeRO)"
        lines.append(f"| `{variant}` | {weights} | " + " | ".join(format_formula(coefficients)) + " |")
    heading = ["model", "parameters", *STRATEGIES, *(f"`{variant}`, DDP / others" for variant in VARIANTS)]
    lines += ["", "| " + " | ".join(heading) + " |", "| " + " | ".join(["---"] * len(heading)) + " |"]
    for name, fields in MODELS.items():
        parameters = count_parameters(AOARMConfig(**fields))
        cells = [name, f"{parameters:,}"]
        cells += [f"{count_state_bytes(parameters, strategy, processes) / 2**30:.2f}" for strategy in STRATEGIES]
        for variant in VARIANTS:
            sizes = list_sizes(AOARMConfig(attention_variant=variant, **fields))
            needed = (
                tokens * sum(np.multiply(sizes, formulas[variant, under_autocast])) / 2**30
                for under_autocast in (True, False)
            )
            cells.append(" / ".join(f"{each:.2f}" for each in needed))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@dataclass
class MemoryArguments(BenchmarkArguments):
    """Arguments of the memory benchmark."""

    processes: int = field(default=8, metadata={"help": "For the first tables: number of GPUs."})
    tokens: int = field(default=8192, metadata={"help": "For the first tables: tokens per batch and GPU."})
    models: list[str] = field(
        default_factory=lambda: ["two_stream", "decoupled_rope", *LIBRARY],
        metadata={"help": f"For the peak: any of {', '.join([*PEAK_VARIANTS, *LIBRARY])}."},
    )
    lengths: list[int] = field(
        default_factory=lambda: [512, 1024, 2048],
        metadata={"help": "For the peak: tokens of the example, each twice the one before."},
    )

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "processes", "tokens")
        unknown = [name for name in self.models if name not in (*PEAK_VARIANTS, *LIBRARY)]
        if unknown:
            raise ValueError(f"--models must be of {[*PEAK_VARIANTS, *LIBRARY]}, got {unknown}.")
        if len(self.lengths) < 3 or any(b != 2 * a for a, b in itertools.pairwise(self.lengths)):
            raise ValueError(f"--lengths must be three or more, each twice the one before, got {self.lengths}.")
        # Such a width could not be told from a number of rows.
        widths = {*SIZES.values(), SIZES["hidden_size"] // SIZES["num_attention_heads"]}
        if clashes := sorted(widths & set(self.lengths)):
            raise ValueError(f"--lengths must not be widths of the models, got {clashes}.")


class ShapeRecorder(TorchDispatchMode):
    """Records the shapes of all tensors that operators return, also in the backward pass."""

    def __init__(self):
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.shapes.update(tuple(each.shape) for each in tree_leaves(result) if isinstance(each, torch.Tensor))
        return result


def find_rows_by_rows(shapes: set[tuple[int, ...]], rows: int, widths: set[int]) -> list[tuple[int, ...]]:
    """Finds the shapes with two or more dimensions of at least `rows` that are not widths of the model."""
    return sorted(shape for shape in shapes if sum(size >= rows and size not in widths for size in shape) > 1)


def record_allocations(run) -> list[tuple[int, int]]:
    """Records addresses and bytes of all allocations (bytes > 0) and releases (< 0) during `run()`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    events = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    return [(event["args"]["Addr"], event["args"]["Bytes"]) for event in events]


def find_peak_bytes(events: list[tuple[int, int]]) -> int:
    """Finds the peak of the bytes that are allocated in `events`."""
    held, total, peak = {}, 0, 0
    for address, size in events:
        if size > 0:
            held[address] = size
            total += size
            peak = max(peak, total)
        else:
            # Earlier allocations do not count.
            total -= held.pop(address, 0)
    return peak


def measure_peak(model: PreTrainedModel, name: str, rows: int, seed: int) -> dict:
    """Measures the memory of one training step on one example.

    Returns:
        `peak_bytes` of the step beyond weights and AdamW's states (gradients count), `weight_bytes`, `optimizer_bytes`,
        `largest_allocation_bytes`, and the shapes `rows_by_rows` of [`find_rows_by_rows`].
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = make_training_batch(name, 1, rows, model.config.vocab_size, seed)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()

    # The first step creates the optimiser's states.
    step()
    optimizer.zero_grad(set_to_none=True)
    events = record_allocations(step)
    optimizer.zero_grad(set_to_none=True)
    with ShapeRecorder() as recorder:
        step()
    optimizer.zero_grad(set_to_none=True)
    widths = {size for weight in model.parameters() for size in weight.shape} - {rows}
    states = (each for state in optimizer.state.values() for each in state.values())
    return {
        "model": name,
        "parameters": model.num_parameters(),
        "length": rows,
        "peak_bytes": find_peak_bytes(events),
        "weight_bytes": sum(weight.nbytes for weight in model.parameters()),
        "optimizer_bytes": sum(each.nbytes for each in states),
        "largest_allocation_bytes": max(size for _, size in events),
        "allocations": sum(size > 0 for _, size in events),
        "rows_by_rows": [list(shape) for shape in find_rows_by_rows(recorder.shapes, rows, widths)],
    }


def measure_peaks(arguments: MemoryArguments) -> list[dict]:
    """Measures the peak of each model at each length, see [`measure_peak`].

    `bytes_per_row` are the further bytes per row since the shorter length before (`None` at the first length).
    """
    entries = []
    progress = tqdm(total=len(arguments.models) * len(arguments.lengths), desc="peak memory", unit="step")
    for name in arguments.models:
        model = make_model(name, arguments.seed, max(arguments.lengths)).train()
        before = None
        for rows in arguments.lengths:
            entry = measure_peak(model, name, rows, arguments.seed)
            entry["bytes_per_row"] = None
            if before is not None:
                entry["bytes_per_row"] = (entry["peak_bytes"] - before["peak_bytes"]) / (rows - before["length"])
            entries.append(entry)
            before = entry
            progress.update()
    progress.close()
    return entries


def compare_entries(entries: list[dict]) -> list[dict]:
    """Compares the growth of peaks, and numbers of shapes of rows x rows, with the targets of `two_stream`."""
    targets = []
    for name in dict.fromkeys(entry["model"] for entry in entries):
        own = [entry for entry in entries if entry["model"] == name]
        linear, none = (Target("<=", 1.01), Target("<=", 0)) if name == "two_stream" else (None, None)
        first, last = own[0], own[-1]
        what = f"{name}, peak of a step at {last['length']} tokens"
        targets.append(
            compare_with_target(what, f"at {first['length']}", last["peak_bytes"] / first["peak_bytes"], None)
        )
        # 1 if memory is linear, 2 if it is quadratic.
        ratio = last["bytes_per_row"] / own[-2]["bytes_per_row"]
        what = f"{name}, bytes that a token adds up to {last['length']} tokens"
        targets.append(compare_with_target(what, f"up to {own[-2]['length']}", ratio, linear))
        shapes = {tuple(shape) for entry in own for shape in entry["rows_by_rows"]}
        targets.append(compare_with_target(f"{name}, shapes of rows x rows", "", len(shapes), none))
    return targets


def draw(entries: list[dict]) -> Figure:
    """Peak memory over the length."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    curves = {}
    for entry in entries:
        curves.setdefault(entry["model"], []).append((entry["length"], entry["peak_bytes"] / 2**20))
    plot_over_lengths(axes, curves)
    axes.set_xlabel("tokens of the example")
    axes.set_ylabel("MiB beyond weights and AdamW's states")
    size = f"{SIZES['num_hidden_layers']} layers of width {SIZES['hidden_size']}"
    axes.set_title(f"Peak memory of one training step: {size}, float32")
    return figure


def main(argv: list[str]) -> None:
    arguments = parse_arguments(MemoryArguments, argv, QUICK, __doc__)
    report = Report(__file__, argv, arguments.seed)
    print(format_tables(arguments.processes, arguments.tokens))
    entries = measure_peaks(arguments)
    targets = compare_entries(entries)
    rows = [
        (
            entry["model"],
            f"{entry['parameters']:,}",
            str(entry["length"]),
            f"{entry['peak_bytes'] / 2**20:.1f}",
            f"{(entry['weight_bytes'] + entry['optimizer_bytes']) / 2**20:.1f}",
            "-" if entry["bytes_per_row"] is None else f"{entry['bytes_per_row']:,.0f}",
            f"{entry['largest_allocation_bytes'] / 2**20:.2f}",
            str(len(entry["rows_by_rows"])),
        )
        for entry in entries
    ]
    columns = ("model", "parameters", "length", "step's peak, MiB", "weights and AdamW, MiB", "bytes / further token")
    columns += ("largest allocation, MiB", "rows x rows")
    print_table("Peak memory of one training step on one example", columns, rows)
    print_targets(targets)
    report.write(arguments.output_dir, {"sizes": SIZES, "steps": entries, "targets": targets}, draw(entries))


if __name__ == "__main__":
    main(sys.argv[1:])
