# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure the cost of the starts of the query stream, in training and decoding, against the content start.

    python examples/benchmarks/query_starts.py

All models are `two_stream` with 4 layers of width 256, 4 heads, 256 tokens, float32 and new weights. Training steps
(forward and backward) have batches in random orders. Decoding is greedy, one token per pass on the cache, in random and
confidence orders at batch 1 and in random orders at batch 8. A canvas has one given token, and all others are blank.

All ways take turns, and each way of every start follows the same other way. Ratios are medians over rounds of ratios
within one round, and the first round does not count. Runs on the CPU, about 4 minutes on one core. Writes
`benchmark_query_starts.json` and `benchmark_query_starts.png` to `--output_dir`.
"""

import functools
import sys
from dataclasses import dataclass, field

import torch
from baselines import SIZES, make_model, make_training_batch
from matplotlib.figure import Figure
from timing import (
    Report,
    Target,
    TimingArguments,
    compare_with_target,
    compute_median_ratio,
    parse_arguments,
    print_targets,
    time_in_turns,
)

from modeling_aoarm import AOARMForCausalLM


STARTS = ("content", "neighbor", "learned")
TARGET = Target("<=", 1.02)
QUICK = dict(repetitions=2, length=12, train_length=16, train_batch=2)


@dataclass
class StartArguments(TimingArguments):
    """Arguments of the benchmark of query starts."""

    repetitions: int = field(default=25, metadata={"help": "Measured rounds, after one that does not count."})
    length: int = field(default=128, metadata={"help": "Blanks per canvas."})
    train_length: int = field(default=256, metadata={"help": "Tokens per training example."})
    train_batch: int = field(default=8, metadata={"help": "Examples per training batch."})

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(2, "length", "train_length")
        self.check_at_least(1, "train_batch")


def train(repetition: int, model: AOARMForCausalLM, batch: dict[str, torch.Tensor]) -> None:
    """Computes the gradients of one step."""
    model.zero_grad(set_to_none=True)
    model(**batch).loss.backward()


def fill(repetition: int, model: AOARMForCausalLM, batch: int, length: int, order: str, seed: int) -> torch.Tensor:
    """Fills canvases. A random order differs from round to round."""
    canvas = torch.ones(batch, 1 + length, dtype=torch.int64)
    blanks = torch.arange(1 + length).expand(batch, -1) > 0
    generator = torch.Generator().manual_seed(seed + repetition)
    how = {"decoding_order": order, "generator": generator, "do_sample": False, "pad_token_id": 0}
    return model.generate(canvas, generation_mask=blanks, **how)


def measure(arguments: StartArguments) -> list[dict]:
    """Returns an entry for each way and start: `seconds` of the rounds, and the ratio to the content start."""
    rows = max(arguments.length, arguments.train_length) + 1
    models = {start: make_model("two_stream", arguments.seed, rows, query_stream_init=start) for start in STARTS}
    batch = make_training_batch(
        "two_stream", arguments.train_batch, arguments.train_length, SIZES["vocab_size"], arguments.seed
    )
    given = {"length": arguments.length, "seed": arguments.seed}
    kinds = {
        "training step": functools.partial(train, batch=batch),
        "random order, batch 1": functools.partial(fill, batch=1, order="random", **given),
        "random order, batch 8": functools.partial(fill, batch=8, order="random", **given),
        "confidence order, batch 1": functools.partial(fill, batch=1, order="confidence", **given),
    }
    ways = {
        (kind, start): functools.partial(run, model=model)
        for start, model in models.items()
        for kind, run in kinds.items()
    }
    measured = time_in_turns(ways, arguments.repetitions, "starts")
    entries = []
    for (kind, start), (seconds, _) in measured.items():
        reference = measured[kind, "content"][0]
        entries.append(
            {
                "way": kind,
                "start": start,
                "seconds": seconds,
                "seconds_to_content": compute_median_ratio(seconds, reference),
            }
        )
    return entries


def draw(entries: list[dict]) -> Figure:
    """Plots ratios of times to the content start."""
    drawn = Figure(figsize=(8, 3.2), layout="constrained")
    axes = drawn.subplots()
    kinds = list(dict.fromkeys(entry["way"] for entry in entries))
    for number, (start, colour) in enumerate(zip(STARTS[1:], ("#1f5fa8", "#7fb0e0"), strict=True)):
        values = [entry["seconds_to_content"] for entry in entries if entry["start"] == start]
        places = [place + 0.2 * (2 * number - 1) for place in range(len(kinds))]
        bars = axes.barh(places, values, height=0.38, color=colour, label=f"{start} start")
        axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=4, fontsize=8, backgroundcolor="white")
    axes.axvline(1, color="0.35", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set_xlim(0.9, 1.1)
    axes.set_xlabel("time, ratio to the content start")
    axes.legend(fontsize="small")
    return drawn


def main(argv: list[str]) -> None:
    arguments = parse_arguments(StartArguments, argv, QUICK, __doc__)
    report = Report(__file__, argv, arguments.seed)
    entries = measure(arguments)
    targets = [
        compare_with_target(
            f"{entry['start']} start, {entry['way']}, time",
            "content start",
            entry["seconds_to_content"],
            TARGET if entry["start"] == "neighbor" else None,
        )
        for entry in entries
        if entry["start"] != "content"
    ]
    print_targets(targets)
    report.write(arguments.output_dir, {"query_starts": entries, "targets": targets}, draw(entries))


if __name__ == "__main__":
    main(sys.argv[1:])
