# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure how fast training batches are made: tokens per second of drawing orders and collating, for every kind of order.

    python examples/benchmarks/collation.py

Batches are 64 examples of 1024 rows, from plain Python lists of token ids, by the collator alone and through torch's
`DataLoader` with one and two worker processes. Beside them stand the tokens per second that training steps take (4
layers of width 256, float32): the loader has to be faster than that. Loaders keep their workers, and their first pass
is not counted.

Runs on the CPU; about 2 minutes on 2 cores. Writes `benchmark_collation.json` (every number, raw and derived) and
`benchmark_collation.png` to `--output_dir`.
"""

import functools
import random
import sys
from dataclasses import dataclass, field
from statistics import median

import torch
from baselines import SIZES, new_model, training_batch
from matplotlib.figure import Figure
from timing import (
    COLOURS,
    Report,
    Target,
    TimingArguments,
    judged,
    parse_arguments,
    print_table,
    print_verdicts,
    take_turns,
    verdict,
)
from torch.utils.data import DataLoader, Dataset

from modeling_aoarm import DataCollatorForAnyOrderLM, DataCollatorForMaskedDiffusion
from modeling_aoarm.data.tokenizers import character_tokenizer


ORDERS = ["uniform", "left_to_right", "0.9*uniform+0.1*left_to_right", "lattice", "block", "local(16)", "windowed(32)"]
ORDERS += ["strided(8)", "fractal"]
TRAINED = ("decoupled_rope", "two_stream")
QUICK = dict(repetitions=2, batch_size=4, rows=16, batches=3, orders=["uniform", "local(16)"])
TARGET = Target(">=", 2e6)
# Of its tokens only the special ones matter.
TOKENIZER = character_tokenizer(["text"])


@dataclass
class CollationArguments(TimingArguments):
    """What is collated."""

    repetitions: int = field(default=7, metadata={"help": "Rounds that are measured, after one that is not."})
    orders: list[str] = field(default_factory=lambda: ORDERS, metadata={"help": "Training orders."})
    batch_size: int = field(default=64, metadata={"help": "Examples of a batch."})
    rows: int = field(default=1024, metadata={"help": "Rows of an example, with the beginning-of-sentence token."})
    batches: int = field(default=16, metadata={"help": "Batches that are made in one round."})
    workers: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Worker processes of the loaders."})

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "batch_size", "batches", "workers")
        self.check_at_least(2, "rows")


class Sentences(Dataset):
    """Plain lists of token ids, as they come from a tokenizer; there are `count`, and the first ones come again."""

    def __init__(self, sentences: list[list[int]], count: int):
        self.sentences, self.count = sentences, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": self.sentences[index % len(self.sentences)], "example_index": index}


def count_tokens(batch: dict[str, torch.Tensor]) -> int:
    """A batch's tokens, padding not counted."""
    return int(batch["attention_mask"].sum())


def measure_order(
    order: str,
    kind: type[DataCollatorForAnyOrderLM | DataCollatorForMaskedDiffusion],
    sentences: list[list[int]],
    arguments: CollationArguments,
) -> list[dict]:
    """Tokens per second of one kind of order and of collator.

    Returns:
        An entry for the collator alone (`workers` 0) and for each number of workers: `seconds` (raw, of all batches),
        `tokens` (of all batches, padding not counted) and `tokens_per_second`.
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
    for workers, (seconds, tokens) in take_turns(ways, arguments.repetitions, name).items():
        entry = {"order": name, "workers": workers, "seconds": seconds, "tokens": tokens[0]}
        entries.append(entry | {"tokens_per_second": tokens[0] / median(seconds)})
    return entries


def measure_training(arguments: CollationArguments) -> list[dict]:
    """Tokens per second of training steps on two examples, for each of `TRAINED`."""
    entries, ways = [], {}
    for name in TRAINED:
        model = new_model(name, arguments.seed, arguments.rows + 1).train()
        batch = training_batch(name, 2, arguments.rows, SIZES["vocab_size"], arguments.seed)

        def step(repetition, model, optimizer, batch):
            optimizer.zero_grad(set_to_none=True)
            model(**batch).loss.backward()
            optimizer.step()

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        ways[name] = functools.partial(step, model=model, optimizer=optimizer, batch=batch)
    for name, (seconds, _) in take_turns(ways, arguments.repetitions, "training steps").items():
        tokens = 2 * arguments.rows
        entry = {"model": name, "seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / median(seconds)}
        entries.append(entry)
    return entries


def judge(entries: list[dict]) -> list[dict]:
    """Tokens per second with their target, which is about one worker; more workers share the processor's cores."""
    return [
        judged(
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
    """Bars of tokens per second, and what training takes as lines."""
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
    # The beginning-of-sentence token is a row too.
    sentences = [
        [rng.randrange(first, SIZES["vocab_size"]) for _ in range(arguments.rows - 1)]
        for _ in range(arguments.batch_size)
    ]
    kinds = [(order, DataCollatorForAnyOrderLM) for order in arguments.orders]
    kinds.append(("uniform", DataCollatorForMaskedDiffusion))
    entries = [entry for order, kind in kinds for entry in measure_order(order, kind, sentences, arguments)]
    verdicts = judge(entries)
    found = {(each["order"], each["workers"]): each for each in verdicts}
    columns = ("order", "collator alone", *(f"DataLoader, {workers} worker(s)" for workers in arguments.workers))
    ways = (0, *arguments.workers)
    names = dict.fromkeys(entry["order"] for entry in entries)
    rows = [(name, *(verdict(found[name, workers]) for workers in ways)) for name in names]
    size = f"batches of {arguments.batch_size} x {arguments.rows}"
    print_table(f"Tokens per second: {size}", columns, rows)
    rows = [(f"training step, {entry['model']}", entry["tokens_per_second"]) for entry in training]
    print_verdicts(judged(what, "", value, None) for what, value in rows)
    results = {
        "batch_size": arguments.batch_size,
        "rows": arguments.rows,
        "collation": entries,
        "training": {"sizes": SIZES, "steps": training},
        "targets": verdicts,
    }
    report.write(arguments.output_dir, results, draw(entries, training, f"Orders and collation: {size}"))


if __name__ == "__main__":
    main(sys.argv[1:])
