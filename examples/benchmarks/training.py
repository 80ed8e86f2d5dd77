# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure training: the time of one step of every variant against Llama and XLNet of the same size.

    python examples/benchmarks/training.py

A step sets the gradients to none and makes the forward pass with labels, the backward pass, and AdamW's update. All
models have 4 layers of width 256, 4 heads, 256 tokens, float32, and about the same number of parameters, which is
printed (`adaptive_norm` has more, for its modulation). All steps have the same number of tokens, at every length. Each
example has its own random order. XLNet gets it as `perm_mask` and `target_mapping`, made beforehand, and predicts the
same tokens. Llama is the library's, with its fused attention, without a mask and without a cache.

Each model has its own process, with its own memory and threads. The processes take turns, one step each. Ratios are
medians over rounds of ratios within one round, and the first round does not count.

Runs on the CPU, about 6 minutes on 2 cores. Writes `benchmark_training.json` (all numbers, raw and derived) and
`benchmark_training.png` to `--output_dir`.
"""

import functools
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

import torch
from baselines import LIBRARY, SIZES, VARIANTS, make_model, make_training_batch
from matplotlib.figure import Figure
from timing import (
    Report,
    Target,
    TimingArguments,
    compare_with_target,
    compute_median_ratio,
    parse_arguments,
    plot_over_lengths,
    print_table,
    print_targets,
    time_in_turns,
)


MODELS = ["Llama", *VARIANTS, "XLNet"]
PARTS = ("forward", "backward", "optimizer")
QUICK = dict(repetitions=2, lengths=[16, 32], tokens_per_step=64, layers=1)
# After a step, torch's threads look for work for a few milliseconds, on the core that the next model needs.
PAUSE = 0.02


@dataclass
class TrainingArguments(TimingArguments):
    """Arguments of the training benchmark."""

    repetitions: int = field(default=10, metadata={"help": "Measured rounds, after one that does not count."})
    models: list[str] = field(default_factory=lambda: MODELS, metadata={"help": f"Any of {', '.join(MODELS)}."})
    lengths: list[int] = field(default_factory=lambda: [256, 512, 1024], metadata={"help": "Tokens per example."})
    tokens_per_step: int = field(default=2048, metadata={"help": "Tokens per batch, a multiple of each length."})
    layers: int = field(default=SIZES["num_hidden_layers"], metadata={"help": "Number of layers."})

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.models if name not in MODELS]
        if unknown or "Llama" not in self.models:
            raise ValueError(f"--models must be Llama and others of {MODELS}, got {self.models}.")
        self.check_at_least(1, "layers")
        self.check_at_least(2, "lengths")
        if any(self.tokens_per_step % length for length in self.lengths):
            raise ValueError(
                f"--tokens_per_step must be a multiple of each length, got {self.tokens_per_step} and {self.lengths}."
            )


class Trainee:
    """A model in training, in its own process.

    Args:
        name: see [`make_model`].
        layers: the number of layers.
        threads: the number of torch threads.
        seed: seed of weights and batches.
    """

    def __init__(self, name: str, layers: int, threads: int, seed: int):
        torch.set_num_threads(threads)
        self.name, self.seed = name, seed
        self.model = make_model(name, seed, num_hidden_layers=layers).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.batches = {}

    def step(self, length: int, batch: int) -> dict[str, float]:
        """Makes one step, and returns the seconds of its parts."""
        if length not in self.batches:
            self.batches[length] = make_training_batch(self.name, batch, length, SIZES["vocab_size"], self.seed)
        time.sleep(PAUSE)
        times = [time.perf_counter()]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(**self.batches[length]).loss
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        self.optimizer.step()
        times.append(time.perf_counter())
        return {part: end - start for part, start, end in zip(PARTS, times, times[1:], strict=False)}


# The model of a worker process.
trainee: Trainee | None = None


def start_worker(*arguments) -> None:
    global trainee
    trainee = Trainee(*arguments)


def describe() -> dict:
    """Describes the worker's model."""
    return {
        "parameters": trainee.model.num_parameters(),
        "attention": trainee.model.config._attn_implementation,
    }


def step(length: int, batch: int) -> dict[str, float]:
    return trainee.step(length, batch)


def measure(arguments: TrainingArguments) -> list[dict]:
    """Measures times of training steps.

    Returns:
        An entry for each length and model. Raw numbers are lists over rounds: `seconds` of a step and of its parts.
        Derived: `milliseconds`, `tokens_per_second` (medians) and `to_llama`, the ratio of times.
    """
    context = multiprocessing.get_context("spawn")
    entries = []
    with ExitStack() as stack:
        workers = {}
        for name in arguments.models:
            initial = (name, arguments.layers, torch.get_num_threads(), arguments.seed)
            worker = ProcessPoolExecutor(1, context, initializer=start_worker, initargs=initial)
            workers[name] = stack.enter_context(worker)
        # All processes start before the first result is read.
        described = {name: worker.submit(describe) for name, worker in workers.items()}
        models = {name: description.result() for name, description in described.items()}

        def turn(repetition, worker, length, batch):
            return worker.submit(step, length, batch).result()

        for length in arguments.lengths:
            batch = arguments.tokens_per_step // length
            ways = {
                name: functools.partial(turn, worker=worker, length=length, batch=batch)
                for name, worker in workers.items()
            }
            # The times that the workers measure, without those of the communication.
            measured = {
                name: parts
                for name, (_, parts) in time_in_turns(ways, arguments.repetitions, f"{length} tokens").items()
            }
            seconds = {name: [sum(each.values()) for each in parts] for name, parts in measured.items()}
            for name, parts in measured.items():
                entries.append(
                    {
                        "model": name,
                        **models[name],
                        "length": length,
                        "batch_size": batch,
                        "seconds": seconds[name],
                        "seconds_of_parts": {part: [each[part] for each in parts] for part in PARTS},
                        "milliseconds": 1000 * median(seconds[name]),
                        "tokens_per_second": length * batch / median(seconds[name]),
                        "to_llama": compute_median_ratio(seconds[name], seconds["Llama"]),
                    }
                )
    return entries


def compare_entries(entries: list[dict]) -> list[dict]:
    """Compares ratios with their targets."""
    to_llama = {"decoupled_rope": Target("<=", 1.05), "double_position": Target("<=", 1.05)}
    to_llama["two_stream"] = Target("<=", 1.8)
    # Targets for the speed of two streams, relative to XLNet.
    from_xlnet = {512: Target(">=", 1.7), 1024: Target(">=", 2.3)}
    found = {(entry["model"], entry["length"]): entry for entry in entries}
    targets = [
        compare_with_target(f"{name}, {length} tokens, time", "Llama", entry["to_llama"], to_llama.get(name))
        for (name, length), entry in found.items()
        if name not in LIBRARY
    ]
    for (name, length), entry in found.items():
        own = found.get(("two_stream", length))
        if name == "XLNet" and own is not None:
            ratio = compute_median_ratio(entry["seconds"], own["seconds"])
            what = f"two_stream, {length} tokens, times as fast"
            targets.append(compare_with_target(what, "XLNet", ratio, from_xlnet.get(length)))
    return targets


def draw(entries: list[dict], title: str) -> Figure:
    """Plots the time per token and its ratio to Llama's over the length."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, value, label in (
        (left, lambda entry: 1e6 / entry["tokens_per_second"], "microseconds per token"),
        (right, lambda entry: entry["to_llama"], "time, ratio to Llama"),
    ):
        curves = {}
        for entry in entries:
            curves.setdefault(entry["model"], []).append((entry["length"], value(entry)))
        plot_over_lengths(axes, curves)
        axes.set_xlabel("tokens of an example")
        axes.set_ylabel(label)
    figure.suptitle(title)
    return figure


def main(argv: list[str]) -> None:
    arguments = parse_arguments(TrainingArguments, argv, QUICK, __doc__)
    report = Report(__file__, argv, arguments.seed)
    entries = measure(arguments)
    targets = compare_entries(entries)
    size = f"{arguments.layers} layers of width {SIZES['hidden_size']}, {arguments.tokens_per_step} tokens per step"
    results = {
        "sizes": SIZES | {"num_hidden_layers": arguments.layers},
        "tokens_per_step": arguments.tokens_per_step,
        "repetitions": arguments.repetitions,
        "steps": entries,
        "targets": targets,
    }
    rows = [
        (
            entry["model"],
            f"{entry['parameters']:,}",
            str(entry["length"]),
            str(entry["batch_size"]),
            f"{entry['milliseconds']:.1f}",
            *(f"{1000 * median(entry['seconds_of_parts'][part]):.1f}" for part in PARTS),
            f"{entry['tokens_per_second']:,.0f}",
            f"{entry['to_llama']:.3f}",
        )
        for entry in entries
    ]
    columns = ("model", "parameters", "length", "batch", "ms / step", *PARTS, "tokens / s", "ratio to Llama")
    print_table(f"One training step, {size}, threads: {torch.get_num_threads()}", columns, rows)
    print_targets(targets)
    report.write(arguments.output_dir, results, draw(entries, f"One training step: {size}"))


if __name__ == "__main__":
    main(sys.argv[1:])
