# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure the making of training batches: tokens per second of drawing orders and collating, for every kind of order.

    python examples/benchmarks/collation.py

Batches are 64 examples of 1024 rows, from plain Python lists of token ids, by the collator alone and through torch's
`DataLoader` with one and two worker processes. The loader has to be faster than training, so tokens per second of
training steps (4 layers of width 256, float32) are measured too. Loaders keep their workers, and their first pass does
not count.

Runs on the CPU, about 2 minutes on 2 cores. Writes `benchmark_collation.json` (all numbers, raw and derived) and
`benchmark_collation.png` to `--output_dir`.
"""

import functools
import random
import sys
from dataclasses import dataclass, field
from statistics import median

import torch
from baselines import SIZES, make_model, make_training_batch
from matplotlib.figure import Figure
from timing import (
    COLOURS,
    Report,
    Target,
    TimingArguments,
    compare_with_target,
    format_result,
    parse_arguments,
    print_table,
    print_targets,
    time_in_turns,
)
from torch.utils.data import DataLoader, Dataset

from modeling_aoarm import DataCollatorForAnyOrderLM, DataCollatorForMaskedDiffusion
from modeling_aoarm.data.tokenizers import character_tokenizer


ORDERS = ["uniform", "left_to_right", "0.9*uniform+0.1*left_to_right", "lattice", "block", "local(16)", "windowed(32)"]
ORDERS += ["strided(8)", "fractal"]
TRAINED = ("decoupled_rope", "two_stream")
QUICK = dict(repetitions=2, batch_size=4, rows=16, batches=3, orders=["uniform", "local(16)"])
TARGET = Target(">=", 2e6)
# Only its special tokens matter.
TOKENIZER = character_tokenizer(["text"])


@dataclass
class CollationArguments(TimingArguments):
    """Arguments of the collation benchmark."""

    repetitions: int = field(default=7, metadata={"help": "Measured rounds, after one that does not count."})
    orders: list[str] = field(default_factory=lambda: ORDERS, metadata={"help": "Training orders."})
    batch_size: int = field(default=64, metadata={"help": "Examples per batch."})
    rows: int = field(default=1024, metadata={"help": "Rows per example, with the beginning-of-sentence token."})
    batches: int = field(default=16, metadata={"help": "Batches per round."})
    workers: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Worker processes of the loaders."})

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "batch_size", "batches", "workers")
        self.check_at_least(2, "rows")


class Sentences(Dataset):
    """`count` lists of token ids, as from a tokenizer. They repeat if there are fewer sentences."""

    def __init__(self, sentences: list[list[int]], count: int):
        self.sentences, self.count = sentences, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": self.sentences[index % len(self.sentences)], "example_index": index}


def count_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Counts the tokens of a batch, without padding."""
    return int(batch["attention_mask"].sum())


def measure_order(
    order: str,
    kind: type[DataCollatorForAnyOrderLM | DataCollatorForMaskedDiffusion],
    sentences: list[list[int]],
    arguments: CollationArguments,
) -> list[dict]:
    """Measures tokens per second of one order and one kind of collator.

    Returns:
        An entry for the collator alone (`workers` 0) and for each number of workers: `seconds` of all batches in each
        round, `tokens` of all batches without padding, and `tokens_per_second`.
    """
    collator = kind(TOKENIZER, order=order, seed=arguments.seed)
    dataset = Sentences(sentences, arguments.batch_size * arguments.batches)
    starts = range(0, len(dataset), arguments.batch_size)
    batches = [[dataset[start + index] for index in range(arguments.batch_size)] for start in starts]

    def alone(repetition: int) -> int:
        return sum(count_tokens(collator(batch)) for batch in batches)

    ways = {0: alone}
    for workers in arguments.workers:
        loader = DataLoader(
            dataset, arguments.batch_size, collate_fn=collator, num_workers=workers, persistent_workers=True
        )
        ways[workers] = lambda _, loader=loader: sum(map(count_tokens, loader))
    entries = []
    name = order if kind is DataCollatorForAnyOrderLM else f"{order}, masked diffusion"
    for workers, (seconds, tokens) in time_in_turns(ways, arguments.repetitions, name).items():
        entry = {"order": name, "workers": workers, "seconds": seconds, "tokens": tokens[0]}
        entries.append(entry | {"tokens_per_second": tokens[0] / median(seconds)})
    return entries


def measure_training(arguments: CollationArguments) -> list[dict]:
    """Measures tokens per second of training steps on two examples, for each of `TRAINED`."""
    entries, ways = [], {}
    for name in TRAINED:
        model = make_model(name, arguments.seed, arguments.rows + 1).train()
        batch = make_training_batch(name, 2, arguments.rows, SIZES["vocab_size"], arguments.seed)

        def step(repetition, model, optimizer, batch):
            optimizer.zero_grad(set_to_none=True)
            model(**batch).loss.backward()
            optimizer.step()

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        ways[name] = functools.partial(step, model=model, optimizer=optimizer, batch=batch)
    for name, (seconds, _) in time_in_turns(ways, arguments.repetitions, "training steps").items():
        tokens = 2 * arguments.rows
        entry = {"model": name, "seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / median(seconds)}
        entries.append(entry)
    return entries


def compare_entries(entries: list[dict]) -> list[dict]:
    """Compares tokens per second with the target for at most one worker. More workers share the processor's cores."""
    return [
        compare_with_target(
            f"{entry['order']}, " + ("collator alone" if entry["workers"] == 0 else f"{entry['workers']} worker(s)"),
            "",
            entry["tokens_per_second"],
            TARGET if entry["workers"] <= 1 else None,
            order=entry["order"],
            workers=entry["workers"],
        )
        for entry in entries
    ]


def draw(entries: list[dict], training: list[dict], title: str) -> Figure:
    """Plots tokens per second as bars, and those of training steps as lines."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    orders = list(dict.fromkeys(entry["order"] for entry in entries))
    ways = sorted({entry["workers"] for entry in entries})
    height = 0.8 / len(ways)
    for number, workers in enumerate(ways):
        values = {entry["order"]: entry["tokens_per_second"] / 1e6 for entry in entries if entry["workers"] == workers}
        places = [index + (number - (len(ways) - 1) / 2) * height for index in range(len(orders))]
        label = "collator alone" if workers == 0 else f"DataLoader, {workers} worker(s)"
        shade = ("#1f5fa8", "#7ba3d4", "#c9d9ec")[min(number, 2)]
        axes.barh(places, [values[order] for order in orders], height, color=shade, label=label)
    axes.axvline(TARGET.bound / 1e6, color="black", linestyle="--", linewidth=1, label="target, one worker")
    for entry in training:
        name = entry["model"]
        axes.axvline(entry["tokens_per_second"] / 1e6, color=COLOURS[name], label=f"a training step of {name}")
    axes.set_yticks(range(len(orders)), orders)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("million tokens per second")
    axes.set_title(title)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main(argv: list[str]) -> None:
    arguments = parse_arguments(CollationArguments, argv, QUICK, __doc__)
    report = Report(__file__, argv, arguments.seed)
    training = measure_training(arguments)
    rng = random.Random(arguments.seed)
    first = max(TOKENIZER.all_special_ids) + 1
    # The beginning-of-sentence token takes one row.
    sentences = [
        [rng.randrange(first, SIZES["vocab_size"]) for _ in range(arguments.rows - 1)]
        for _ in range(arguments.batch_size)
    ]
    kinds = [(order, DataCollatorForAnyOrderLM) for order in arguments.orders]
    kinds.append(("uniform", DataCollatorForMaskedDiffusion))
    entries = [entry for order, kind in kinds for entry in measure_order(order, kind, sentences, arguments)]
    targets = compare_entries(entries)
    found = {(each["order"], each["workers"]): each for each in targets}
    columns = ("order", "collator alone", *(f"DataLoader, {workers} worker(s)" for workers in arguments.workers))
    ways = (0, *arguments.workers)
    names = dict.fromkeys(entry["order"] for entry in entries)
    rows = [(name, *(format_result(found[name, workers]) for workers in ways)) for name in names]
    size = f"batches of {arguments.batch_size} x {arguments.rows}"
    print_table(f"Tokens per second: {size}", columns, rows)
    rows = [(f"training step, {entry['model']}", entry["tokens_per_second"]) for entry in training]
    print_targets(compare_with_target(what, "", value, None) for what, value in rows)
    results = {
        "batch_size": arguments.batch_size,
        "rows": arguments.rows,
        "collation": entries,
        "training": {"sizes": SIZES, "steps": training},
        "targets": targets,
    }
    report.write(arguments.output_dir, results, draw(entries, training, f"Orders and collation: {size}"))


if __name__ == "__main__":
    main(sys.argv[1:])
