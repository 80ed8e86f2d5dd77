# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure how well a converted decoder fills blanks without training, by variant, start and order of the given text.

    python examples/benchmarks/zero_shot.py --model MODEL                              # text that ships with Python
    python examples/benchmarks/zero_shot.py --model MODEL --train_file articles.jsonl  # a text of your own

MODEL is a left-to-right checkpoint that `convert_causal_lm` takes: a folder, a GGUF file or a name on the Hub. Each
window of text is a canvas. The exact nats per blank token are measured in these tasks:

| task | blanks, filled from left to right |
| --- | --- |
| middle | one span of 2 to 16 tokens, at least 8 given tokens on either side |
| spans | one to three spans of 1 to 6 tokens, at least 2 given tokens between and 8 on either side |

| task | all tokens but the first, which is given |
| --- | --- |
| uniform | in a random order of each window |
| local(8) | in a random order near the one from left to right |
| left_to_right | as the decoder reads |

Given tokens come from left to right, `suffix_first` (see `generate`), or `segments_reversed`: the first token, then the
pieces between blanks from the last to the first. The decoder itself sees all tokens to the left, including those of
other blanks, as the converted models do.

The windows are drawn from the text's validation part, `--validation_fraction` of it. Runs on the CPU in float32, 10
minutes for 135 million weights on 2 cores. Writes `benchmark_zero_shot.json` (all numbers, also of each window) and
`benchmark_zero_shot.png` to `--output_dir`.
"""

import hashlib
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from matplotlib.figure import Figure
from timing import (
    CheckpointArguments,
    Report,
    Target,
    compare_with_target,
    load_checkpoint,
    parse_arguments,
    print_table,
    print_targets,
)
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_aoarm import AOARMForCausalLM, convert_causal_lm, sample_orders
from modeling_aoarm.data.text import TextArguments
from modeling_aoarm.evaluation.stats import estimate_ratio


DECODER = "decoder, left side only"
WAYS = {
    "two_stream, neighbor start": {"attention_variant": "two_stream", "query_stream_init": "neighbor"},
    "two_stream, content start": {"attention_variant": "two_stream", "query_stream_init": "content"},
    "decoupled_rope": {"attention_variant": "decoupled_rope"},
}
CONTEXT_ORDERS = ("left_to_right", "suffix_first", "segments_reversed")
ORDERS = ("uniform", "local(8)", "left_to_right")
COLOURS = {DECODER: "0.35", **dict(zip(WAYS, ("#1f5fa8", "#7fb0e0", "#c8501e"), strict=True))}
# The least number of given tokens at either end, and between spans.
MARGIN, GAP = 8, 2
QUICK = dict(windows=4, window=40)


@dataclass
class ZeroShotArguments(TextArguments, CheckpointArguments):
    """Arguments of the zero-shot benchmark."""

    windows: int = field(default=128, metadata={"help": "Largest number of windows, one per text."})
    window: int = field(default=64, metadata={"help": "Tokens per window."})
    ways: list[str] = field(default_factory=lambda: list(WAYS), metadata={"help": f"Of {'; '.join(WAYS)}."})
    validation_fraction: float = field(default=0.9, metadata={"help": "Share of the text that windows come from."})

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "windows")
        # Three spans of six tokens, and the given tokens around them.
        self.check_at_least(2 * MARGIN + 2 * GAP + 3 * 6, "window")
        unknown = [name for name in self.ways if name not in WAYS]
        if unknown or not self.ways:
            raise ValueError(f"--ways must be of {list(WAYS)}, got {self.ways}.")


def draw_windows(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, count: int, width: int, seed: int
) -> torch.Tensor:
    """Draws one window from each of the first `count` texts that are long enough: int64 `[windows, width]`.

    Raises:
        ValueError: no text is long enough.
    """
    rng, windows = random.Random(seed), []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        if len(ids) >= width:
            start = rng.randrange(len(ids) - width + 1)
            windows.append(ids[start : start + width])
        if len(windows) == count:
            break
    if not windows:
        raise ValueError(f"--window must be at most the length of some text, got {width} tokens.")
    return torch.tensor(windows)


def draw_blanks(windows: torch.Tensor, most_spans: int, lengths: tuple[int, int], seed: int) -> torch.Tensor:
    """Draws blank spans of each window, bool `[windows, columns]`.

    Args:
        windows: int64 `[windows, columns]`.
        most_spans: the largest number of spans; all numbers from 1 on are equally likely.
        lengths: the shortest and the longest span; all lengths are equally likely.
        seed: seed of the draws.
    """
    rng, blanks = random.Random(seed), torch.zeros_like(windows, dtype=torch.bool)
    for row in blanks:
        spans = [rng.randint(*lengths) for _ in range(rng.randint(1, most_spans))]
        room = len(row) - 2 * MARGIN - GAP * (len(spans) - 1) - sum(spans)
        # The extra given tokens before each span.
        before = sorted(rng.randint(0, room) for _ in spans)
        start = MARGIN
        for span, moved in zip(spans, before, strict=True):
            row[start + moved : start + moved + span] = True
            start += span + GAP
    return blanks


def reverse_segments(blanks: torch.Tensor) -> torch.Tensor:
    """Computes the context order `segments_reversed`, int64 `[windows, given]`, -1 on the right."""
    columns = torch.arange(blanks.shape[1])
    # The index of the piece of each given column. The first token stays in front.
    piece = torch.nn.functional.pad((blanks[:, 1:] & ~blanks[:, :-1]).long(), (1, 0)).cumsum(1)
    piece[:, 0] = len(columns)
    keys = (columns - len(columns) * piece).masked_fill(blanks, len(columns))
    order = keys.argsort(dim=1, stable=True)[:, : int((~blanks).sum(1).max())]
    return order.masked_fill(blanks.gather(1, order), -1)


def hash_windows(windows: torch.Tensor) -> str:
    """Computes a hash that identifies the windows."""
    return hashlib.sha256(str(windows.tolist()).encode()).hexdigest()


@torch.no_grad()
def score_decoder(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    """Computes the checkpoint's log-probability of each token given those to its left: nats `[windows, columns]`."""
    logits = model(windows).logits[:, :-1].float()
    log_probs = logits.log_softmax(-1).gather(-1, windows[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(log_probs, (1, 0))


def make_entry(model: str, task: str, context_order: str | None, log_probs: torch.Tensor, counts: torch.Tensor) -> dict:
    """Makes the entry of a model and a task, from nats `[windows]` and numbers of tokens `[windows]`."""
    value, error = estimate_ratio(-log_probs.double().numpy(), counts.numpy())
    return {
        "model": model,
        "task": task,
        "context_order": context_order,
        "nats_per_token": value,
        "standard_error": error,
        "window_nats": (-log_probs).tolist(),
        "window_tokens": counts.tolist(),
    }


def measure_way(
    name: str,
    model: AOARMForCausalLM,
    windows: torch.Tensor,
    tasks: dict[str, torch.Tensor],
    seed: int,
    context_orders: Iterable[str] = CONTEXT_ORDERS,
    orders: Iterable[str] = ORDERS,
) -> list[dict]:
    """Measures a converted model, and returns its entries."""
    entries = []
    for task, blanks in tqdm(tasks.items(), desc=name):
        for order in context_orders:
            context = reverse_segments(blanks) if order == "segments_reversed" else order
            scored = model.score(windows, blanks, decoding_order="left_to_right", context_order=context)
            entries.append(make_entry(name, task, order, scored.log_likelihood[0], blanks.sum(1)))
    for order in tqdm(orders, desc=name):
        count = windows.shape[1] - 1
        lengths, indices = [count] * len(windows), range(len(windows))
        columns = sample_orders(order, lengths, example_indices=indices, seed=seed).columns + 1
        scored = model.score(windows, decoding_order=columns)
        entries.append(make_entry(name, order, None, scored.log_likelihood[0], torch.full((len(windows),), count)))
    return entries


def measure(
    source: PreTrainedModel, windows: torch.Tensor, ways: Iterable[str], seed: int, **restriction: Iterable[str]
) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Returns the blanks of each task, bool `[windows, columns]`, and an entry for each model, task and context order.

    Args:
        source: the checkpoint.
        windows: int64 `[windows, columns]`.
        ways: names of `WAYS`.
        seed: seed of blanks and orders.
        **restriction: `context_orders` and `orders` of [`measure_way`].
    """
    tasks = {
        "middle": draw_blanks(windows, 1, (2, 16), seed),
        "spans": draw_blanks(windows, 3, (1, 6), seed),
    }
    log_probs = score_decoder(source, windows)
    everything = torch.ones_like(windows, dtype=torch.bool)
    everything[:, 0] = False
    entries = [
        make_entry(DECODER, task, None, (log_probs * blanks).sum(1), blanks.sum(1))
        for task, blanks in {**tasks, "left_to_right": everything}.items()
    ]
    for name in ways:
        # GGUF files name an unknown token, which changes no logit.
        model = convert_causal_lm(source, **WAYS[name], ignored_fields=("unk_token_id",))
        entries += measure_way(name, model, windows, tasks, seed, **restriction)
    return tasks, entries


def find_entry(entries: list[dict], model: str, task: str, context_order: str | None = None) -> dict:
    """Finds the entry of a model, a task and a context order."""
    wanted = {"model": model, "task": task, "context_order": context_order}
    (found,) = (each for each in entries if all(each[name] == value for name, value in wanted.items()))
    return found


def compare_nats(entry: dict, other: dict) -> tuple[float, float | None]:
    """Computes the difference in nats per token of two entries on the same windows, and its standard error."""
    nats = [mine - theirs for mine, theirs in zip(entry["window_nats"], other["window_nats"], strict=True)]
    return estimate_ratio(nats, entry["window_tokens"])


def compare_entries(entries: list[dict]) -> list[dict]:
    """Compares filling from both sides with the decoder, and context orders with each other."""
    targets = []
    for name in [name for name in WAYS if any(each["model"] == name for each in entries)]:
        for task in ("middle", "spans"):
            plain = find_entry(entries, name, task, "left_to_right")
            pairs = [(plain, find_entry(entries, DECODER, task), DECODER)]
            pairs += [(find_entry(entries, name, task, order), plain, "left_to_right") for order in CONTEXT_ORDERS[1:]]
            for one, other, against in pairs:
                value, error = compare_nats(one, other)
                is_claim = name.endswith("neighbor start") and against == DECODER
                what = f"{name}, {task}, {one['context_order']}: nats per token"
                target = Target("<=", 0) if is_claim else None
                targets.append(compare_with_target(what, against, value, target, standard_error=error))
    return targets


def format_rows(entries: list[dict]) -> list[tuple[str, ...]]:
    """Formats the table's rows: nats per token and standard errors, by model and context order."""
    rows = []
    for name in (DECODER, *WAYS):
        for order in (None,) if name == DECODER else CONTEXT_ORDERS:
            own = [each for each in entries if each["model"] == name and each["context_order"] == order]
            # Tasks with one given token have no context order. They go into the model's first row.
            if order in (None, "left_to_right"):
                own += [each for each in entries if each["model"] == name and each["context_order"] is None]
            cells = {each["task"]: f"{each['nats_per_token']:.3f} ({each['standard_error'] or 0:.3f})" for each in own}
            if cells:
                rows.append((name, order or "-", *(cells.get(task, "-") for task in ("middle", "spans", *ORDERS))))
    return rows


def draw(entries: list[dict]) -> Figure:
    """Plots nats per blank token by task. Bars of one colour are the context orders of one model."""
    drawn = Figure(figsize=(10, 4.4), layout="constrained")
    for axes, task in zip(drawn.subplots(1, 2, sharey=True), ("middle", "spans"), strict=True):
        own = [each for each in entries if each["task"] == task]
        labels = [
            each["model"] if each["context_order"] is None else f"{each['model']}\n{each['context_order']}"
            for each in own
        ]
        values, errors = ([each[name] or 0 for each in own] for name in ("nats_per_token", "standard_error"))
        bars = axes.barh(range(len(own)), values, xerr=errors, color=[COLOURS[each["model"]] for each in own])
        axes.bar_label(bars, [f"{value:.2f}" for value in values], label_type="center", color="white", weight="bold")
        axes.set_yticks(range(len(own)), labels, fontsize=8)
        axes.axvline(own[0]["nats_per_token"], color="0.35", linewidth=1, linestyle=":")
        axes.set_ylim(len(own) - 0.4, -0.6)
        axes.set_xlim(0, 1.12 * max(values))
        title = {"middle": "one blank of 2 to 16 tokens", "spans": "one to three blanks of 1 to 6 tokens"}[task]
        axes.set_title(f"{title}, nothing trained", fontsize="medium")
        axes.set_xlabel("nats per blank token (and standard error)")
    return drawn


def main(argv: list[str]) -> None:
    arguments = parse_arguments(ZeroShotArguments, argv, QUICK, __doc__)
    report = Report(__file__, argv, arguments.seed)
    source, tokenizer = load_checkpoint(arguments.model)
    texts = arguments.load()["validation"]["text"]
    try:
        windows = draw_windows(texts, tokenizer, arguments.windows, arguments.window, arguments.seed)
    except ValueError as error:
        sys.exit(str(error))
    tasks, entries = measure(source, windows, arguments.ways, arguments.seed)
    columns = ("model", "given text", "middle", "spans", *ORDERS)
    print_table(f"nats per blank token (standard error), {len(windows)} windows", columns, format_rows(entries), left=2)
    targets = compare_entries(entries)
    print_targets(targets)
    results = {
        "model": {"parameters": source.num_parameters(), "layers": source.config.num_hidden_layers},
        "text": {
            "source": arguments.text_source,
            "windows": hash_windows(windows),
        },
        "blanks": {task: [row.nonzero()[:, 0].tolist() for row in blanks] for task, blanks in tasks.items()},
        "entries": entries,
        "targets": targets,
    }
    report.write(arguments.output_dir, results, draw(entries))


if __name__ == "__main__":
    main(sys.argv[1:])
