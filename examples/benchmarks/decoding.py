# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure decoding: the cost of a token on the cache in any order, against Llama and against masked diffusion.

    python examples/benchmarks/decoding.py

The models have new weights, 4 layers of width 256, 4 heads, 256 tokens and float32. Decoding is greedy, one token per
pass. A canvas has one given token, and all others are blank.

1. Cached decoding in a random order, over the length of the canvas at batch 1, and at 256 tokens also at batch 8. The
   references are Llama in a bare loop (`forward` with a `DynamicCache`, argmax, append) and the library's `generate`.
2. `bidirectional`, which has no cache, fills some blanks of the same canvases, one per pass. Each pass reads the whole
   canvas, whatever the number of remaining blanks, so a few passes suffice for the time per token.
3. Confidence order, 256 blanks: cached against `bidirectional`.

All ways take turns. Ratios of times are medians over rounds of ratios within one round, and the first round does not
count. Runs on the CPU, about 6 minutes on 2 cores. Writes `benchmark_decoding.json` (all numbers, raw and derived) and
`benchmark_decoding.png` to `--output_dir`.
"""

import functools
import sys
from dataclasses import dataclass, field
from statistics import median

import torch
from baselines import SIZES, VARIANTS, make_model
from matplotlib.figure import Figure
from timing import (
    Report,
    Target,
    TimingArguments,
    compare_with_target,
    compute_median_ratio,
    format_number,
    parse_arguments,
    plot_over_lengths,
    print_table,
    print_targets,
    time_in_turns,
)
from transformers import DynamicCache, LlamaForCausalLM


CACHED = [variant for variant in VARIANTS if variant != "bidirectional"]
LOOP, GENERATE, UNCACHED = "Llama, bare loop", "Llama, generate", "bidirectional"
QUICK = dict(repetitions=2, lengths=[8, 16], compared_length=8, batch_sizes=[1, 2], uncached_blanks=4)
# Targets for the time per token, relative to the bare loop.
TO_LOOP = {variant: Target("<=", 1.5 if variant == "two_stream" else 1.1) for variant in CACHED}
# Targets for the speed relative to decoding without a cache, by length.
TO_UNCACHED = {256: Target(">=", 4), 1024: Target(">=", 15)}
FLAT = Target("<=", 1.5)
CONFIDENCE = Target(">=", 1.6)


@dataclass
class DecodingArguments(TimingArguments):
    """Arguments of the decoding benchmark."""

    variants: list[str] = field(default_factory=lambda: CACHED, metadata={"help": f"Any of {', '.join(CACHED)}."})
    lengths: list[int] = field(default_factory=lambda: [128, 256, 512, 1024], metadata={"help": "Tokens, at batch 1."})
    compared_length: int = field(
        default=256, metadata={"help": "One of these, for larger batches and confidence order."}
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "Of `compared_length`."})
    uncached_blanks: int = field(default=32, metadata={"help": "Number of blanks filled without a cache."})

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "batch_sizes", "lengths", "uncached_blanks")
        unknown = [name for name in self.variants if name not in CACHED]
        if unknown or not self.variants:
            raise ValueError(f"--variants must be of {CACHED}, got {self.variants}.")
        if self.compared_length not in self.lengths:
            raise ValueError(f"--compared_length must be one of --lengths, {self.lengths}; got {self.compared_length}.")


@torch.no_grad()
def decode_in_bare_loop(model: LlamaForCausalLM, tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Decodes greedily from left to right, with as little as possible around the model: int64 `[batch, 1 + length]`."""
    cache = DynamicCache(config=model.config)
    filled = [tokens]
    for _ in range(length):
        logits = model(filled[-1], past_key_values=cache, use_cache=True).logits
        filled.append(logits[:, -1].argmax(-1, keepdim=True))
    return torch.cat(filled, dim=1)


def make_canvases(batch: int, length: int, blanks: int, seed: int) -> dict[str, torch.Tensor]:
    """Makes arguments of `generate`: canvases of one given token and `length` more, `blanks` of them blank.

    Each canvas has its own random blanks and order.
    """
    generator = torch.Generator().manual_seed(seed)
    order = 1 + torch.rand(batch, length, generator=generator).argsort(dim=1)[:, :blanks]
    canvas = torch.ones(batch, 1 + length, dtype=torch.int64)
    mask = torch.zeros_like(canvas, dtype=torch.bool).scatter(1, order, True)
    return {"inputs": canvas, "generation_mask": mask, "decoding_order": order}


def measure(arguments: DecodingArguments) -> list[dict]:
    """Measures wall times of decoding.

    Returns:
        An entry for each way, order, batch size and length: `blanks`, the number of filled tokens of each canvas, and
        `seconds` for all of them, a list over rounds. Derived: `milliseconds_per_token` (per pass, which fills one
        token of each canvas) and `to_bare_loop`, the ratio to the bare loop of the same batch size and length.
    """
    seed, compared = arguments.seed, arguments.compared_length
    models = {
        name: make_model(name, seed, max(arguments.lengths) + 1) for name in ("Llama", *arguments.variants, UNCACHED)
    }
    options = {"do_sample": False, "pad_token_id": 0}
    settings = [(1, length) for length in arguments.lengths]
    settings += [(batch, compared) for batch in arguments.batch_sizes if batch != 1]
    ways, blanks = {}, {}
    for batch, length in settings:
        full = make_canvases(batch, length, length, seed)
        few = make_canvases(batch, length, min(arguments.uncached_blanks, length), seed)
        first = full["inputs"][:, :1]
        setting = ("random", batch, length)
        ways[LOOP, *setting] = functools.partial(decode_in_bare_loop, models["Llama"], first, length)
        if length == compared:
            mask = torch.ones_like(first)
            ways[GENERATE, *setting] = functools.partial(
                models["Llama"].generate, first, attention_mask=mask, max_new_tokens=length, **options
            )
        for name in arguments.variants:
            ways[name, *setting] = functools.partial(models[name].generate, **full, **options)
        ways[UNCACHED, *setting] = functools.partial(models[UNCACHED].generate, **few, **options)
        blanks[UNCACHED, *setting] = few["decoding_order"].shape[1]
    full = make_canvases(1, compared, compared, seed) | {"decoding_order": "confidence"}
    for name in (*arguments.variants, UNCACHED):
        ways[name, "confidence", 1, compared] = functools.partial(models[name].generate, **full, **options)
    turns = {name: lambda _, way=way: way() for name, way in ways.items()}
    entries = []
    measured = time_in_turns(turns, arguments.repetitions, "decoding")
    per_token = {name: [each / blanks.get(name, name[-1]) for each in times] for name, (times, _) in measured.items()}
    for (way, order, batch, length), (seconds, _) in measured.items():
        own = per_token[way, order, batch, length]
        entries.append(
            {
                "way": way,
                "order": order,
                "batch_size": batch,
                "length": length,
                "blanks": blanks.get((way, order, batch, length), length),
                "seconds": seconds,
                "milliseconds_per_token": 1000 * median(own),
                "to_bare_loop": compute_median_ratio(own, per_token[LOOP, "random", batch, length]),
            }
        )
    return entries


def compare_entries(entries: list[dict], compared: int) -> list[dict]:
    """Compares ratios with their targets."""
    found = {tuple(entry[key] for key in ("way", "order", "batch_size", "length")): entry for entry in entries}

    def ratio(own: tuple, reference: tuple) -> float:
        """Computes the ratio of times per token."""
        times = ([each / found[key]["blanks"] for each in found[key]["seconds"]] for key in (own, reference))
        return compute_median_ratio(*times)

    targets = []
    variants = [way for way in dict.fromkeys(key[0] for key in found) if way in CACHED]
    for way, order, batch, length in found:
        setting = order, batch, length
        label = f"batch {batch}, {length} tokens"
        if order == "random" and length == compared and way in (*variants, GENERATE):
            what = f"{way}, time per token, {label}"
            value = found[way, *setting]["to_bare_loop"]
            targets.append(compare_with_target(what, "bare Llama loop", value, TO_LOOP.get(way)))
    lengths = sorted(length for way, order, batch, length in found if (way, order, batch) == (LOOP, "random", 1))
    for way in variants:
        for length in lengths:
            value = ratio((UNCACHED, "random", 1, length), (way, "random", 1, length))
            what = f"{way}, times as fast, batch 1, {length} tokens"
            targets.append(compare_with_target(what, "bidirectional, uncached", value, TO_UNCACHED.get(length)))
    for way in variants:
        value = ratio((way, "random", 1, lengths[-1]), (way, "random", 1, lengths[0]))
        what = f"{way}, time per token at {lengths[-1]} tokens"
        targets.append(compare_with_target(what, f"at {lengths[0]}", value, FLAT))
    for way in variants:
        value = ratio((UNCACHED, "confidence", 1, compared), (way, "confidence", 1, compared))
        what = f"{way}, confidence order, times as fast, {compared} tokens"
        target = CONFIDENCE if way == "two_stream" else None
        targets.append(compare_with_target(what, "bidirectional, confidence", value, target))
    return targets


def draw(entries: list[dict], title: str) -> Figure:
    """Plots milliseconds per token over the length of the canvas, for batch 1 and random order."""
    drawn = Figure(figsize=(8, 5), layout="constrained")
    axes = drawn.add_subplot()
    curves = {}
    for entry in entries:
        if entry["order"] == "random" and entry["batch_size"] == 1 and entry["way"] != GENERATE:
            name = entry["way"] + (", uncached" if entry["way"] == UNCACHED else "")
            curves.setdefault(name, []).append((entry["length"], entry["milliseconds_per_token"]))
    plot_over_lengths(axes, curves, {"bare loop": ":", "uncached": "s--"})
    axes.set_xlabel("length of the canvas (tokens)")
    axes.set_ylabel("milliseconds per token")
    axes.set_title(title)
    return drawn


def main(argv: list[str]) -> None:
    arguments = parse_arguments(DecodingArguments, argv, QUICK, __doc__)
    report = Report(__file__, argv, arguments.seed)
    entries = measure(arguments)
    targets = compare_entries(entries, arguments.compared_length)
    cells = {
        (entry["order"], entry["batch_size"], entry["length"], entry["way"]): (
            f"{format_number(entry['milliseconds_per_token'])} ({entry['to_bare_loop']:.2f})"
        )
        for entry in entries
    }
    ways = list(dict.fromkeys(entry["way"] for entry in entries))
    rows = [
        (order, str(batch), str(length), *(cells.get((order, batch, length, way), "-") for way in ways))
        for order, batch, length in dict.fromkeys(key[:-1] for key in cells)
    ]
    title = "Milliseconds per token, one token per pass (in brackets the ratio to the bare Llama loop)"
    print_table(title, ("order", "batch", "tokens", *ways), rows)
    print_targets(targets)
    results = {"sizes": SIZES, "repetitions": arguments.repetitions, "decoding": entries, "targets": targets}
    size = f"{SIZES['num_hidden_layers']} layers of width {SIZES['hidden_size']}, threads: {torch.get_num_threads()}"
    report.write(arguments.output_dir, results, draw(entries, f"One token per pass, batch 1: {size}"))


if __name__ == "__main__":
    main(sys.argv[1:])
