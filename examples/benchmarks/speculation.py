# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure speculative decoding: forward passes and time in a trained model, against decoding one by one.

    python examples/benchmarks/speculation.py                                           # after `make pretrain`
    python examples/benchmarks/speculation.py --models outputs/pretrain outputs/decoupled
    python examples/benchmarks/speculation.py --models outputs/smollm2 --shares half --block_size 48 --repetitions 1

Canvases are held-out text of the reference corpus, as long as the model's training rows, with half or all of the
characters blank. They are sampled at temperature 1, left to right and in random orders, in batches of 1 and 8. There is
no end of sentence, so all ways fill the same blanks. A batch makes passes until its slowest canvas is full, and passes
per token are those of the batch divided by the blanks of one canvas.

With `auto` the length follows the acceptance so far ([`~modeling_aoarm.decoding_aoarm.DraftPolicy`]).

All ways take turns. Ratios of times are medians over rounds of ratios within one round, and the first round does not
count. Runs on the CPU, about 3 minutes per model on 2 cores. Writes `benchmark_speculation.json` (all numbers, raw and
derived) and `benchmark_speculation.png` to `--output_dir`.
"""

import functools
import itertools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

import torch
from datasets import Dataset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from timing import (
    COLOURS,
    Report,
    Target,
    TimingArguments,
    compare_with_target,
    compute_median_ratio,
    parse_arguments,
    print_table,
    print_targets,
    time_in_turns,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from modeling_aoarm import AOARMForCausalLM, AOARMGenerateOutput
from modeling_aoarm.data.text import TextArguments, tokenize_and_chunk


QUICK = dict(repetitions=2, canvases=2, batch_sizes=[1, 2], draft_lengths=["1", "4", "auto"], block_size=12)
ORDERS, SHARES = ("left_to_right", "random"), ("half", "all")
FASTER, NEVER_SLOWER = Target("<=", 1.0), Target("<=", 1.05)


@dataclass
class SpeculationArguments(TimingArguments):
    """Arguments of the benchmark of speculation."""

    models: list[str] = field(
        default_factory=lambda: ["outputs/pretrain"], metadata={"help": "Folders of trained models."}
    )
    draft_lengths: list[str] = field(
        default_factory=lambda: ["1", "2", "4", "8", "auto"], metadata={"help": "Drafts per pass: numbers, and auto."}
    )
    shares: list[str] = field(default_factory=lambda: list(SHARES), metadata={"help": "Blank columns: half, all."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "Canvases per batch."})
    canvases: int = field(default=8, metadata={"help": "Number of canvases."})
    block_size: int | None = field(
        default=None, metadata={"help": "Columns per canvas without BOS. Default: as in training, else 64."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "batch_sizes", "canvases")
        self.check_at_least(2, "block_size")
        wrong = [each for each in self.draft_lengths if each != "auto" and not (each.isdigit() and int(each))]
        if wrong or not self.draft_lengths:
            raise ValueError(f"--draft_lengths must be numbers of at least 1, or auto; got {self.draft_lengths}.")
        self.draft_lengths = [each if each == "auto" else int(each) for each in self.draft_lengths]
        if not self.shares or not set(self.shares) <= set(SHARES):
            raise ValueError(f"--shares must be of {', '.join(SHARES)}, got {self.shares}.")
        for folder in self.models:
            if not (Path(folder) / "config.json").is_file():
                raise ValueError(f"--models must be folders of models (`make pretrain` makes one), got {folder}.")


def cut_canvases(texts: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int, count: int) -> torch.Tensor:
    """Cuts full rows of text behind BOS, spread over the texts: int64 `[count, columns]`."""
    rows = [ids for ids in tokenize_and_chunk(texts, tokenizer, block_size)["input_ids"] if len(ids) == block_size]
    if len(rows) < count:
        raise ValueError(f"--canvases must be at most {len(rows)}, the full rows of held-out text, got {count}.")
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return torch.tensor([bos + list(ids) for ids in rows[:: len(rows) // count][:count]])


def draw_blanks(shape: tuple[int, int], share: str, order: str, seed: int) -> torch.Tensor:
    """Draws the blank columns in the order of filling: int64 `[canvases, blanks]`.

    Args:
        shape: the numbers of canvases and columns.
        share: `"all"` columns after the first one, or a random `"half"` of them.
        order: `"left_to_right"` or `"random"`.
        seed: seed of the draws. The same seed gives the same columns for both orders.
    """
    canvases, columns = shape
    generator = torch.Generator().manual_seed(seed)
    drawn = 1 + torch.rand(canvases, columns - 1, generator=generator).argsort(dim=1)
    drawn = drawn[:, : columns - 1 if share == "all" else columns // 2]
    return drawn if order == "random" else drawn.sort(dim=1).values


def sample(
    model: AOARMForCausalLM,
    canvases: torch.Tensor,
    blanks: torch.Tensor,
    batch: int,
    draft_length: int | str,
    seed: int,
) -> list[AOARMGenerateOutput]:
    """Fills canvases batch by batch, each batch with a seed of its own; `draft_length` is 0 for one by one."""
    mask = torch.zeros_like(canvases, dtype=torch.bool).scatter(1, blanks, True)
    parts = [slice(start, start + batch) for start in range(0, len(canvases), batch)]
    return [
        model.generate(
            canvases[part],
            generation_mask=mask[part],
            decoding_order=blanks[part],
            generator=torch.Generator().manual_seed(seed + part.start),
            draft_length=draft_length or None,
            do_sample=True,
            top_k=0,
            # Each canvas keeps its number of blanks.
            eos_token_id=None,
            return_dict_in_generate=True,
        )
        for part in parts
    ]


def measure(folder: str, texts: Dataset, arguments: SpeculationArguments) -> list[dict]:
    """Measures passes and wall times of speculation and one-by-one decoding with a trained model.

    Returns:
        An entry for each order, share of blanks, batch size and draft length (0: one by one, or "auto"). Raw numbers
        are lists over rounds: `seconds` for all canvases, `forward_passes` of each batch, and `tokens_per_forward`, the
        mean over canvases. Derived: passes per canvas and per token, seconds per token, and ratios to one by one.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    path = Path(folder) / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    block_size = arguments.block_size or results.get("data", {}).get("block_size", 64)
    block_size = min(block_size, model.config.max_position_embeddings - 1)
    canvases = cut_canvases(texts, tokenizer, block_size, arguments.canvases)
    entries = []
    for order, share, batch in itertools.product(ORDERS, arguments.shares, arguments.batch_sizes):
        blanks = draw_blanks(canvases.shape, share, order, arguments.seed)

        def way(repetition, length, blanks=blanks, batch=batch):
            return sample(model, canvases, blanks, batch, length, arguments.seed + len(canvases) * repetition)

        ways = {length: functools.partial(way, length=length) for length in (0, *arguments.draft_lengths)}
        measured = time_in_turns(ways, arguments.repetitions, f"{folder}, {order}, {share}, batch {batch}")
        one_by_one = None
        for length, (seconds, outputs) in measured.items():
            entry = {
                "model": folder,
                "attention_variant": model.config.attention_variant,
                "any_order_bits_per_character": results.get("any_order", {}).get("bits_per_character"),
                "unigram_bits_per_character": results.get("unigram", {}).get("unigram_entropy_all"),
                "order": order,
                "blank_share": share,
                "batch_size": batch,
                "draft_length": length,
                "canvases": len(canvases),
                "columns": canvases.shape[1],
                "blanks": blanks.shape[1],
                "seconds": seconds,
                "forward_passes": [[output.forward_passes for output in each] for each in outputs],
                "tokens_per_forward": [
                    torch.cat([output.tokens_per_forward for output in each]).mean().item() for each in outputs
                ],
            }
            one_by_one = one_by_one or entry
            entry["passes_per_canvas"] = mean(map(mean, entry["forward_passes"]))
            entry["mean_tokens_per_forward"] = mean(entry["tokens_per_forward"])
            entry["passes_per_token"] = entry["passes_per_canvas"] / blanks.shape[1]
            entry["seconds_per_token"] = median(seconds) / blanks.numel()
            entry["passes_to_one_by_one"] = entry["passes_per_canvas"] / one_by_one["passes_per_canvas"]
            entry["seconds_to_one_by_one"] = compute_median_ratio(seconds, one_by_one["seconds"])
            entries.append(entry)
    return entries


def compare_entries(entries: list[dict]) -> list[dict]:
    """Compares the fewest passes and the shortest time of each setting, over draft lengths, with their targets."""
    targets, settings = [], ("attention_variant", "model", "order", "blank_share", "batch_size")
    for setting in dict.fromkeys(tuple(entry[name] for name in settings) for entry in entries):
        own = [entry for entry in entries if tuple(entry[name] for name in settings) == setting]
        variant, _, order, share, batch = setting
        for name, target, label in (
            ("passes_per_token", Target("<=", 0.5 if variant == "two_stream" else 0.9), "passes per token"),
            ("seconds_to_one_by_one", FASTER, "time"),
        ):
            best = min((each for each in own if each["draft_length"] not in (0, "auto")), key=lambda each: each[name])
            what = f"{variant}, {order.replace('_', ' ')}, {share} blank, batch {batch}: {label}"
            what += f", {best['draft_length']} drafts"
            targets.append(compare_with_target(what, "one by one", best[name], target, model=best["model"]))
        for entry in own:
            if entry["draft_length"] == "auto":
                what = f"{variant}, {order.replace('_', ' ')}, {share} blank, batch {batch}: time, auto"
                value = entry["seconds_to_one_by_one"]
                targets.append(compare_with_target(what, "one by one", value, NEVER_SLOWER, model=entry["model"]))
    return targets


def draw(entries: list[dict]) -> Figure:
    """Plots passes per token and time over the draft length, for the largest share of blanks, a row for each model."""
    share = max((entry["blank_share"] for entry in entries), key=SHARES.index)
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    figure = Figure(figsize=(10, 1 + 3.5 * len(models)), layout="constrained")
    for model, row in zip(models, figure.subplots(len(models), 2, squeeze=False), strict=True):
        own = [entry for entry in entries if entry["model"] == model and entry["blank_share"] == share]
        draw_measure(row[0], own, "passes_per_token", "passes per token")
        draw_measure(row[1], own, "seconds_to_one_by_one", "time, ratio to one by one")
        row[0].set_title(f"{own[0]['attention_variant']}, {model}", fontsize="medium", loc="left")
        row[1].legend(fontsize="small")
    figure.suptitle(f"Speculative decoding, {share} of the columns blank, temperature 1")
    return figure


def draw_measure(axes: Axes, entries: list[dict], name: str, label: str) -> None:
    """Plots one measure of a model. What a policy chooses stands apart: hollow points from left to right."""
    lengths = sorted({entry["draft_length"] for entry in entries} - {"auto"})
    at_auto = 1.25 * lengths[-1]
    for order, batch in dict.fromkeys((entry["order"], entry["batch_size"]) for entry in entries):
        own = {
            entry["draft_length"]: entry[name]
            for entry in entries
            if (entry["order"], entry["batch_size"]) == (order, batch)
        }
        colour, marker = COLOURS["two_stream" if batch == 1 else "decoupled_rope"], "o" if batch == 1 else "s"
        style, fill = ("-", "full") if order == "random" else ("--", "none")
        values = [own[length] for length in lengths]
        text = f"{order.replace('_', ' ')}, batch {batch}"
        axes.plot(lengths, values, style + marker, color=colour, fillstyle=fill, markersize=5, label=text)
        if "auto" in own:
            axes.plot([at_auto], [own["auto"]], marker, color=colour, fillstyle=fill, markersize=7)
    axes.axhline(1, color="0.7", linewidth=1)
    # Leaves room for the legend above the curves.
    axes.set_ylim(0, 1.6 * max(entry[name] for entry in entries))
    has_auto = any(entry["draft_length"] == "auto" for entry in entries)
    axes.set_xticks([*lengths, *([at_auto] if has_auto else [])], [*lengths, *(["auto"] if has_auto else [])])
    axes.set_xlabel("drafts per pass (0: one by one)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)


def describe(entry: dict) -> str:
    """Describes the model and its bits per character."""
    bits, unigram = entry["any_order_bits_per_character"], entry["unigram_bits_per_character"]
    known = "unknown" if bits is None else f"{bits:.3f}"
    known += "" if unigram is None else f" (unigram entropy {unigram:.3f})"
    return f"{entry['model']} ({entry['attention_variant']}), bits per character in any order: {known}"


def main(argv: list[str]) -> None:
    arguments = parse_arguments(SpeculationArguments, argv, QUICK, __doc__)
    report = Report(__file__, argv, arguments.seed)
    # The text that examples/pretrain.py holds out by default.
    texts = TextArguments().load()["validation"]
    by_model = [measure(folder, texts, arguments) for folder in arguments.models]
    entries = [entry for own in by_model for entry in own]
    targets = compare_entries(entries)
    columns = ("order", "blanks", "batch", "drafts", "tokens / pass", "passes / token", "ms / token", "time ratio")
    for own in by_model:
        rows = [
            (
                entry["order"].replace("_", " "),
                f"{entry['blanks']} ({entry['blank_share']})",
                str(entry["batch_size"]),
                str(entry["draft_length"] or "one by one"),
                f"{entry['mean_tokens_per_forward']:.2f}",
                f"{entry['passes_per_token']:.3f}",
                f"{1000 * entry['seconds_per_token']:.2f}",
                f"{entry['seconds_to_one_by_one']:.3f}",
            )
            for entry in own
        ]
        print_table(describe(own[0]), columns, rows, left=2)
    print_targets(targets)
    results = {"repetitions": arguments.repetitions, "speculation": entries, "targets": targets}
    report.write(arguments.output_dir, results, draw(entries))


if __name__ == "__main__":
    main(sys.argv[1:])
