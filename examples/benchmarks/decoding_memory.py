# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Count the peak memory of scores, confidence orders and drafts over the number of blanks and the vocabulary.

    python examples/benchmarks/decoding_memory.py

A batch of canvases with one given token each, all other columns blank, in float32 and at a small width, so that logits
would be the largest part if all of them were held at once. Each entry has the peak of torch's allocator beyond the
weights, as `memory.py` counts it, beside what has to be kept (cache, states `[batch, blanks, hidden]` about all blanks,
and the result) and what float32 logits of all blanks of all examples would take. Another count lists the shapes of all
tensors that operators make.

Ways that take a pass for each blank are stopped after `--passes` passes: the first one asks about the most blanks, and
the cache is allocated as a whole. The counts are the same in every run.

Runs on the CPU, some minutes. Writes `benchmark_decoding_memory.json` and `benchmark_decoding_memory.png` to
`--output_dir`.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from baselines import VARIANTS, make_model
from matplotlib.figure import Figure
from memory import ShapeRecorder, find_peak_bytes, find_rows_by_rows, record_allocations
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
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_aoarm import runner_aoarm


SIZES = dict(hidden_size=72, intermediate_size=200, num_hidden_layers=2, num_attention_heads=6)
DRAFTS = 4
SCORE, SCORE_ADAPTIVE, ELBO = "score, random order", "score, confidence order", "score, ELBO"
ADAPTIVE, SEVERAL, DRAFTED = "confidence order", "confidence order, 4 a pass", f"{DRAFTS} drafts"
# The method, and how it is called.
WAYS = {
    SCORE: ("score", {"decoding_order": "random"}),
    SCORE_ADAPTIVE: ("score", {"decoding_order": "confidence"}),
    ELBO: ("score", {"method": "elbo"}),
    ADAPTIVE: ("generate", {"decoding_order": "confidence"}),
    SEVERAL: ("generate", {"decoding_order": "confidence", "tokens_per_step": 4}),
    DRAFTED: ("generate", {"decoding_order": "random", "draft_length": DRAFTS, "do_sample": True}),
}
# One colour and style for each curve.
STYLES = {
    SCORE: ("#1f5fa8", "o-"),
    SCORE_ADAPTIVE: ("#c8501e", "s-"),
    ELBO: ("#7a4fa3", "^-"),
    ADAPTIVE: ("#e3a000", "o-"),
    SEVERAL: ("#8a6d3b", "v-"),
    DRAFTED: ("#3a8f3a", "D-"),
    "all logits": ("black", "--"),
    "has to be kept": ("black", ":"),
}
MIB = 2**20
QUICK = dict(models=["two_stream"], blanks=[24, 48, 96], vocabularies=[3000], batch=2)
QUICK |= dict(logits_at_once=2**14)


@dataclass
class DecodingMemoryArguments(BenchmarkArguments):
    """Arguments of the benchmark of decoding's memory."""

    models: list[str] = field(
        default_factory=lambda: ["two_stream", "decoupled_rope", "bidirectional"],
        metadata={"help": f"Any of {', '.join(VARIANTS)}."},
    )
    blanks: list[int] = field(
        default_factory=lambda: [16, 32, 64, 128, 256, 512],
        metadata={"help": "Blanks of each canvas, each twice the one before."},
    )
    vocabularies: list[int] = field(
        default_factory=lambda: [8192, 32768, 151936], metadata={"help": "Sizes of the vocabulary."}
    )
    batch: int = field(default=8, metadata={"help": "Number of canvases."})
    passes: int = field(default=2, metadata={"help": "Passes after which a way is stopped."})
    logits_at_once: int = field(
        default=runner_aoarm.LOGITS_AT_ONCE, metadata={"help": "How many logits a pass may hold at once."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "batch", "passes", "logits_at_once", "vocabularies")
        if unknown := [name for name in self.models if name not in VARIANTS]:
            raise ValueError(f"--models must be of {list(VARIANTS)}, got {unknown}.")
        if len(self.blanks) < 3 or any(b != 2 * a for a, b in zip(self.blanks, self.blanks[1:], strict=False)):
            raise ValueError(f"--blanks must be three or more, each twice the one before, got {self.blanks}.")
        # Such a width could not be told from a number of blanks.
        widths = {*SIZES.values(), SIZES["hidden_size"] // SIZES["num_attention_heads"], *self.vocabularies, self.batch}
        if clashes := sorted(widths & set(self.blanks)):
            raise ValueError(f"--blanks must not be widths, vocabularies or the batch, got {clashes}.")


class Stopped(Exception):
    """Raised by [`run_passes`]."""


def run_passes(model: PreTrainedModel, run: Callable[[], Any], passes: int) -> None:
    """Calls `run` until `model` has made so many passes, or to its end."""
    made = 0

    def count(*_) -> None:
        nonlocal made
        if made == passes:
            raise Stopped
        made += 1

    hook = model.register_forward_pre_hook(count)
    try:
        run()
    except Stopped:
        pass
    finally:
        hook.remove()


def count_kept_bytes(model: PreTrainedModel, way: str, batch: int, blanks: int) -> dict[str, int]:
    """Counts the bytes that have to be kept for a batch of canvases with one given token.

    Returns:
        `cache_bytes`, a slot for each row but the last; `state_bytes`, `[batch, blanks, hidden]`; and `result_bytes`.
    """
    config, (method, _) = model.config, WAYS[way]
    is_cached = config.attention_variant != "bidirectional" and way != SCORE
    keys = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    # Scores have log-probabilities, bools and the order, fillings tokens, log-probabilities, passes and the order.
    result = 4 + 1 + 8 if method == "score" else 8 + 4 + 8 + 8
    return {
        "cache_bytes": 4 * batch * blanks * keys * is_cached,
        "state_bytes": 4 * batch * blanks * config.hidden_size,
        "result_bytes": batch * blanks * result,
    }


def measure_peak(model: PreTrainedModel, way: str, batch: int, blanks: int, passes: int, seed: int) -> dict:
    """Measures the memory of the first passes of one way.

    Returns:
        `peak_bytes` beyond `weight_bytes`; the bytes of [`count_kept_bytes`]; `all_logits_bytes`, of float32 logits of
        all blanks of all examples; the shape `largest_logits` of the largest tensor with a dimension of the vocabulary
        that is not a weight; and shapes `blanks_by_blanks`, see [`~memory.find_rows_by_rows`].
    """
    vocabulary, (method, options) = model.config.vocab_size, WAYS[way]
    generator = torch.Generator().manual_seed(seed)
    # The last token may be the mask token.
    canvas = torch.randint(vocabulary - 1, (batch, blanks + 1), generator=generator)
    is_blank = torch.ones_like(canvas, dtype=torch.bool)
    is_blank[:, 0] = False

    def run() -> None:
        getattr(model, method)(canvas, generation_mask=is_blank, **options)

    with ShapeRecorder() as recorder:
        events = record_allocations(lambda: run_passes(model, run, passes))
    weights = [tuple(weight.shape) for weight in model.parameters()]
    logits = [shape for shape in recorder.shapes if vocabulary in shape and {shape, shape[::-1]}.isdisjoint(weights)]
    widths = {size for shape in weights for size in shape}
    return {
        "model": model.config.attention_variant,
        "way": way,
        "batch": batch,
        "blanks": blanks,
        "vocabulary": vocabulary,
        "peak_bytes": find_peak_bytes(events),
        "weight_bytes": sum(weight.nbytes for weight in model.parameters()),
        **count_kept_bytes(model, way, batch, blanks),
        "all_logits_bytes": 4 * batch * blanks * vocabulary,
        "largest_logits": list(max(logits, key=lambda shape: (math.prod(shape), shape))),
        "blanks_by_blanks": [list(shape) for shape in find_rows_by_rows(recorder.shapes, blanks, widths)],
    }


def list_ways(name: str) -> list[str]:
    """Lists the ways that a variant has."""
    missing = DRAFTED if name == "bidirectional" else ELBO
    return [way for way in WAYS if way != missing]


def measure_peaks(arguments: DecodingMemoryArguments) -> list[dict]:
    """Measures all ways of all models, see [`measure_peak`]."""
    runner_aoarm.LOGITS_AT_ONCE = arguments.logits_at_once
    cases = [
        (name, vocabulary, way, blanks)
        for name in arguments.models
        for vocabulary in arguments.vocabularies
        for way in list_ways(name)
        for blanks in arguments.blanks
    ]
    entries, model = [], None
    for name, vocabulary, way, blanks in tqdm(cases, desc="peak memory", unit="way"):
        if model is None or (model.config.attention_variant, model.config.vocab_size) != (name, vocabulary):
            model = make_model(name, arguments.seed, max(arguments.blanks) + 1, vocab_size=vocabulary, **SIZES)
        entries.append(measure_peak(model, way, arguments.batch, blanks, arguments.passes, arguments.seed))
    return entries


def count_kept(entry: dict) -> int:
    """Counts the bytes that have to be kept, without the weights."""
    return entry["cache_bytes"] + entry["state_bytes"] + entry["result_bytes"]


def compare_entries(entries: list[dict], logits_at_once: int) -> list[dict]:
    """Compares tensors of logits with what a pass may hold, and the growth of peaks with linear growth."""
    targets = []
    largest = max(entry["vocabulary"] for entry in entries)
    for name, way in dict.fromkeys((entry["model"], entry["way"]) for entry in entries):
        own = [entry for entry in entries if (entry["model"], entry["way"]) == (name, way)]
        before, middle, last = [entry for entry in own if entry["vocabulary"] == largest][-3:]
        label = f"{name}, {way}"
        # One set of logits for each example is always held, and for each draft.
        rows = last["batch"] * (1 + DRAFTS if way == DRAFTED else 1)
        for entry in own:
            entry["logits_share"] = math.prod(entry["largest_logits"]) / max(logits_at_once, rows * entry["vocabulary"])
        worst = max(entry["logits_share"] for entry in own)
        targets.append(
            compare_with_target(f"{label}: largest logits", "what a pass may hold", worst, Target("<=", 1.0))
        )
        # 1 if memory is linear, 2 if it is quadratic.
        growth = [b["peak_bytes"] - a["peak_bytes"] for a, b in ((before, middle), (middle, last))]
        per_blank = [each / entry["blanks"] for each, entry in zip(growth, (before, middle), strict=True)]
        # In a given order a masked model reads as many canvases in one call as a fixed number of columns allows.
        is_fixed = name == "bidirectional" and way == SCORE
        against, linear = f"up to {middle['blanks']} blanks", None if is_fixed else Target("<=", 1.01)
        what = f"{label}: bytes that a blank adds up to {last['blanks']}"
        targets.append(compare_with_target(what, against, per_blank[1] / per_blank[0], linear))
        what = f"{label}: bytes that a blank adds"
        kept = (count_kept(last) - count_kept(middle)) / middle["blanks"]
        targets.append(compare_with_target(what, "what has to be kept of it", per_blank[1] / kept, None))
        what = f"{label}: peak at {last['blanks']} blanks, {largest:,} tokens"
        ratio = last["peak_bytes"] / last["all_logits_bytes"]
        targets.append(compare_with_target(what, "all logits", ratio, None))
        what, shapes = f"{label}: shapes of {last['blanks']} x {last['blanks']} blanks", last["blanks_by_blanks"]
        targets.append(compare_with_target(what, "", len(shapes), Target("<=", 0)))
    return targets


def draw(entries: list[dict], arguments: DecodingMemoryArguments) -> Figure:
    """Peaks over the number of blanks and over the vocabulary, one column for each model."""
    models, (blanks, vocabulary) = arguments.models, (max(arguments.blanks), max(arguments.vocabularies))
    figure = Figure(figsize=(1 + 3.6 * len(models), 8), layout="constrained")
    grid = figure.subplots(2, len(models), squeeze=False, sharey=True)
    rows = [("blanks", "vocabulary", vocabulary), ("vocabulary", "blanks", blanks)]
    handles = {}
    for line, (across, fixed, value) in zip(grid, rows, strict=True):
        for axes, name in zip(line, models, strict=True):
            curves = {}
            for entry in entries:
                if entry["model"] != name or entry[fixed] != value:
                    continue
                curves.setdefault(entry["way"], []).append((entry[across], entry["peak_bytes"] / MIB))
                if entry["way"] == ADAPTIVE:
                    curves.setdefault("all logits", []).append((entry[across], entry["all_logits_bytes"] / MIB))
                    curves.setdefault("has to be kept", []).append((entry[across], count_kept(entry) / MIB))
            plot_over_lengths(axes, curves, {label: style for label, (_, style) in STYLES.items()})
            axes.get_legend().remove()
            for curve in axes.get_lines():
                curve.set_color(STYLES[curve.get_label()][0])
                handles[curve.get_label()] = curve
            axes.set_title(f"{name}, {value:,} {'tokens' if fixed == 'vocabulary' else 'blanks'}", fontsize="medium")
            axes.set_xlabel("blanks of each canvas" if across == "blanks" else "tokens of the vocabulary")
        line[0].set_ylabel("MiB beyond the weights")
    handles = {label: handles[label] for label in STYLES if label in handles}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(f"Peak memory of decoding, batch {arguments.batch}, width {SIZES['hidden_size']}, float32")
    return figure


def main(argv: list[str]) -> None:
    arguments = parse_arguments(DecodingMemoryArguments, argv, QUICK, __doc__)
    report = Report(__file__, argv, arguments.seed)
    entries = measure_peaks(arguments)
    targets = compare_entries(entries, arguments.logits_at_once)
    rows = [
        (
            entry["model"],
            entry["way"],
            f"{entry['vocabulary']:,}",
            str(entry["blanks"]),
            f"{entry['peak_bytes'] / MIB:.1f}",
            f"{count_kept(entry) / MIB:.1f}",
            f"{entry['weight_bytes'] / MIB:.1f}",
            f"{entry['all_logits_bytes'] / MIB:,.1f}",
            " × ".join(map(str, entry["largest_logits"])),
        )
        for entry in entries
        if entry["blanks"] in (min(arguments.blanks), max(arguments.blanks))
    ]
    columns = ("model", "way", "vocabulary", "blanks", "peak, MiB", "has to be kept", "weights", "all logits")
    print_table("Peak memory beyond the weights", (*columns, "largest logits"), rows, left=2)
    print_targets(targets)
    results = {"sizes": SIZES, "arguments": vars(arguments), "entries": entries, "targets": targets}
    report.write(arguments.output_dir, results, draw(entries, arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
