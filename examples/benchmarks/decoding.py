# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure decoding: what speculation saves in a trained model, and what a token costs as canvases get longer.

    python examples/benchmarks/decoding.py                                           # after `make pretrain`
    python examples/benchmarks/decoding.py --model outputs/pretrain outputs/decoupled

1. Speculation against one-by-one decoding, sampling at temperature 1: forward passes and wall time for the same
   canvases of held-out text in the same orders. Half or all of a canvas is blank; it is as long as the model's training
   rows were.
2. Wall time per token over the length of the canvas, cached and uncached, for models with new weights (4 layers of
   width 256, 4 heads, 256 tokens), batch 1, one token a pass, greedy, in a random order. A Llama of the same size
   stands beside them: a bare loop over its `forward` with a `DynamicCache`, and its `generate`.

All ways are measured in turn, over and over: ratios of times are medians over repetitions of ratios within one
repetition, so that other work on the machine cancels. Runs on the CPU; about 8 minutes on 2 cores for one model.
Writes `decoding_benchmark.json` (every number, raw and derived) and `decoding_benchmark.png` to `--output_dir`.
"""

import argparse
import datetime
import functools
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median

import torch
from datasets import Dataset
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from modeling_aoarm import AOARMConfig, AOARMForCausalLM
from modeling_aoarm.generation_aoarm import AOARMGenerateOutput
from modeling_aoarm.reporting import replacing, versions, write_json
from modeling_aoarm.text_data import cut_into_blocks, load_texts


REPOSITORY = Path(__file__).resolve().parents[2]

SIZES = dict(vocab_size=256, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4)
QUICK = dict(repetitions=1, canvases=2, batch_sizes=[1, 2], draft_lengths=[1, 4], block_size=12)
QUICK |= dict(lengths=[8, 16], max_uncached=8)
LOOP, GENERATE = "Llama, bare loop", "Llama, generate"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    variants = ["two_stream", "decoupled_rope"]
    add("--model", nargs="+", default=["outputs/pretrain"], help="folders of trained models")
    add("--draft_lengths", nargs="+", type=int, default=[1, 2, 4, 8], help="for speculation")
    add("--batch_sizes", nargs="+", type=int, default=[1, 8], help="for speculation")
    add("--canvases", type=int, default=8, help="for speculation: how many, in batches")
    add("--block_size", type=int, help="for speculation: columns without BOS (default: as in training, else 64)")
    add("--variants", nargs="+", choices=variants, default=variants, help="for time over length")
    add("--lengths", nargs="+", type=int, default=[64, 128, 256, 512, 1024], help="for time over length: tokens")
    add("--max_uncached", type=int, default=256, help="for time over length: most tokens without a cache")
    add("--repetitions", type=int, default=5, help="of every measurement")
    add("--threads", type=int, help="torch threads (default: torch's)")
    add("--seed", type=int, default=0)
    add("--output_dir", type=Path, default=REPOSITORY / "examples" / "figures")
    add("--quick", action="store_true", help="a run of seconds, to see that everything works")
    if "--quick" in argv:
        parser.set_defaults(**QUICK)
    arguments = parser.parse_args(argv)
    for folder in arguments.model:
        if not (Path(folder) / "config.json").is_file():
            parser.error(f"--model must be folders of trained models (`make pretrain` makes one), got {folder}.")
    return arguments


def take_turns(ways: dict, repetitions: int, title: str) -> dict[object, tuple[list[float], list]]:
    """Runs all ways one after the other, several times.

    Args:
        ways: functions of the repetition's number, by name.
        repetitions: how many rounds are measured, after one that is not.
        title: of the progress bar.

    Returns:
        For each name the wall times (seconds) and the results of the rounds.
    """
    measured = {name: ([], []) for name in ways}
    rounds = [(repetition, name) for repetition in range(-1, repetitions) for name in ways]
    for repetition, name in tqdm(rounds, desc=title, unit="run"):
        started = time.perf_counter()
        result = ways[name](max(repetition, 0))
        if repetition >= 0:
            measured[name][0].append(time.perf_counter() - started)
            measured[name][1].append(result)
    return measured


def median_ratio(values: list[float], reference: list[float]) -> float:
    return median(value / base for value, base in zip(values, reference, strict=True))


def cut_canvases(texts: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int, count: int) -> torch.Tensor:
    """Full rows of text behind BOS, int64 `[count, columns]`, spread over the texts."""
    rows = [ids for ids in cut_into_blocks(texts, tokenizer, block_size)["input_ids"] if len(ids) == block_size]
    if len(rows) < count:
        raise ValueError(f"--canvases must be at most {len(rows)}, the full rows of held-out text, got {count}.")
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return torch.tensor([bos + list(ids) for ids in rows[:: len(rows) // count][:count]])


def draw_blanks(shape: tuple[int, int], share: str, order: str, seed: int) -> torch.Tensor:
    """Which columns are blank, in the order in which they are to be filled: int64 `[canvases, blanks]`.

    Args:
        shape: canvases and columns.
        share: `"all"` but the first column, or a random `"half"` of them.
        order: `"left_to_right"` or `"random"`.
        seed: equal seeds draw the same columns for both orders.
    """
    canvases, columns = shape
    generator = torch.Generator().manual_seed(seed)
    drawn = 1 + torch.rand(canvases, columns - 1, generator=generator).argsort(dim=1)
    drawn = drawn[:, : columns - 1 if share == "all" else columns // 2]
    return drawn if order == "random" else drawn.sort(dim=1).values


def sample(
    model: AOARMForCausalLM, canvases: torch.Tensor, blanks: torch.Tensor, batch: int, draft_length: int, seed: int
) -> list[AOARMGenerateOutput]:
    """Fills canvases batch by batch; each has a seed of its own, so that the batch size changes no token."""
    mask = torch.zeros_like(canvases, dtype=torch.bool).scatter(1, blanks, True)
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(canvases))]
    parts = [slice(start, start + batch) for start in range(0, len(canvases), batch)]
    return [
        model.generate(
            canvases[part],
            generation_mask=mask[part],
            decoding_order=blanks[part],
            generator=generators[part],
            draft_length=draft_length or None,
            do_sample=True,
            top_k=0,
            # Each canvas keeps its number of blanks.
            eos_token_id=None,
            return_dict_in_generate=True,
        )
        for part in parts
    ]


def measure_speculation(folder: str, texts: Dataset, arguments: argparse.Namespace) -> list[dict]:
    """Passes and wall times of speculation and one-by-one decoding with a trained model.

    Returns:
        An entry for each order, share of blanks, batch size and draft length, 0 for one by one. Raw numbers are lists
        over repetitions: `seconds`, for all canvases; `forward_passes`, of each batch; `tokens_per_forward`, the mean
        over canvases. Derived: passes per canvas and per token, seconds per token, and ratios to one by one.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    report = Path(folder) / "results.json"
    results = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    block_size = arguments.block_size or results.get("data", {}).get("block_size", 64)
    block_size = min(block_size, model.config.max_position_embeddings - 1)
    canvases = cut_canvases(texts, tokenizer, block_size, arguments.canvases)
    entries = []
    settings = itertools.product(("left_to_right", "random"), ("half", "all"), arguments.batch_sizes)
    for order, share, batch in settings:
        blanks = draw_blanks(canvases.shape, share, order, arguments.seed)

        def way(repetition, length, blanks=blanks, batch=batch):
            return sample(model, canvases, blanks, batch, length, arguments.seed + len(canvases) * repetition)

        ways = {length: functools.partial(way, length=length) for length in (0, *arguments.draft_lengths)}
        measured = take_turns(ways, arguments.repetitions, f"{folder}, {order}, {share}, batch {batch}")
        one_by_one = None
        for length, (seconds, outputs) in measured.items():
            entry = {
                "model": folder,
                "attention_variant": model.config.attention_variant,
                "any_order_bits_per_character": results.get("any_order", {}).get("bits_per_character"),
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
            entry["seconds_to_one_by_one"] = median_ratio(seconds, one_by_one["seconds"])
            entries.append(entry)
    return entries


@torch.no_grad()
def bare_loop(model: LlamaForCausalLM, token: torch.Tensor, length: int) -> None:
    """Greedy left-to-right decoding with as little as possible around the model."""
    cache = DynamicCache(config=model.config)
    tokens = [token]
    for _ in range(length):
        logits = model(tokens[-1], past_key_values=cache, use_cache=True).logits
        tokens.append(logits[:, -1].argmax(-1, keepdim=True))


def measure_lengths(arguments: argparse.Namespace) -> list[dict]:
    """Wall times of one-by-one decoding over the length of the canvas, with new weights and no special tokens.

    Returns:
        An entry for each length and way: `seconds` for all tokens, a list over repetitions; derived milliseconds per
        token and `to_bare_loop`, the ratio to the bare Llama loop.
    """
    sizes = SIZES | {"max_position_embeddings": max(arguments.lengths) + 1}
    torch.manual_seed(arguments.seed)
    llama = LlamaForCausalLM(LlamaConfig(bos_token_id=None, eos_token_id=None, **sizes)).eval()
    models = {
        variant: AOARMForCausalLM(AOARMConfig(attention_variant=variant, **sizes)).eval()
        for variant in arguments.variants
    }
    options = {"do_sample": False, "pad_token_id": 0}
    token = torch.ones(1, 1, dtype=torch.int64)
    # All lengths take turns too: load that comes and goes should not bend the curves.
    ways = {}
    for length in arguments.lengths:
        canvas = torch.nn.functional.pad(token, (0, length))
        order = draw_blanks(canvas.shape, "all", "random", arguments.seed)
        mask = torch.zeros_like(canvas, dtype=torch.bool).scatter(1, order, True)
        first = {"attention_mask": torch.ones_like(token), "max_new_tokens": length}
        ways[length, LOOP] = functools.partial(bare_loop, llama, token, length)
        ways[length, GENERATE] = functools.partial(llama.generate, token, **first, **options)
        for variant, model in models.items():
            fill = functools.partial(model.generate, canvas, generation_mask=mask, decoding_order=order, **options)
            ways[length, f"{variant}, cached"] = fill
            if length <= arguments.max_uncached:
                ways[length, f"{variant}, uncached"] = functools.partial(fill, use_cache=False)
    turns = {name: lambda _, way=way: way() for name, way in ways.items()}
    measured = take_turns(turns, arguments.repetitions, "time over length")
    entries = []
    for (length, way), (seconds, _) in measured.items():
        entry = {"way": way, "length": length, "seconds": seconds}
        entry["milliseconds_per_token"] = 1000 * median(seconds) / length
        entry["to_bare_loop"] = median_ratio(seconds, measured[length, LOOP][0])
        entries.append(entry)
    return entries


def speculation_table(rows: list[dict]) -> Table:
    """The entries of one model."""
    first = rows[0]
    bits = first["any_order_bits_per_character"]
    quality = "" if bits is None else f", {bits:.3f} bits per character in any order"
    title = f"{first['model']}: {first['attention_variant']}{quality}; {first['columns']} columns, temperature 1"
    table = Table("order", "blanks", "batch", "drafts", title=title)
    for name in ("passes / canvas", "tokens / pass", "passes / token", "ms / token", "passes, ratio", "time, ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        if row["draft_length"] == 0:
            table.add_section()
        table.add_row(
            row["order"].replace("_", " "),
            f"{row['blanks']} ({row['blank_share']})",
            str(row["batch_size"]),
            str(row["draft_length"] or "one by one"),
            f"{row['passes_per_canvas']:.1f}",
            f"{row['mean_tokens_per_forward']:.2f}",
            f"{row['passes_per_token']:.3f}",
            f"{1000 * row['seconds_per_token']:.2f}",
            f"{row['passes_to_one_by_one']:.3f}",
            f"{row['seconds_to_one_by_one']:.3f}",
        )
    return table


def length_table(entries: list[dict]) -> Table:
    cells = {
        (entry["length"], entry["way"]): f"{entry['milliseconds_per_token']:.2f} ({entry['to_bare_loop']:.2f})"
        for entry in entries
    }
    ways = list(dict.fromkeys(entry["way"] for entry in entries))
    table = Table("tokens", title="Milliseconds per token (ratio to the bare Llama loop), batch 1, one token a pass")
    for way in ways:
        table.add_column(way, justify="right")
    for length in dict.fromkeys(entry["length"] for entry in entries):
        table.add_row(str(length), *(cells.get((length, way), "not measured") for way in ways))
    return table


def draw(path: Path, entries: list[dict], threads: int) -> None:
    """Draws milliseconds per token over the length of the canvas, both axes logarithmic."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    colours = {"two_stream": "#1f5fa8", "decoupled_rope": "#c8501e", "Llama": "0.35"}
    styles = {"cached": "o-", "uncached": "s--", "bare loop": ":", "generate": "-."}
    for way in dict.fromkeys(entry["way"] for entry in entries):
        points = sorted((each["length"], each["milliseconds_per_token"]) for each in entries if each["way"] == way)
        model, _, kind = way.partition(", ")
        axes.plot(*zip(*points, strict=True), styles[kind], color=colours[model], markersize=5, label=way)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    lengths = sorted({entry["length"] for entry in entries})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("length of the canvas (tokens)")
    axes.set_ylabel("milliseconds per token")
    size = f"{SIZES['num_hidden_layers']} layers of width {SIZES['hidden_size']}"
    axes.set_title(f"One token a pass, batch 1: {size}, CPU, torch threads: {threads}")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def git_commit() -> str | None:
    """The commit that is checked out, with `-dirty` where files differ from it; `None` outside a git checkout."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    # Files may change while this runs.
    started, commit = time.time(), git_commit()
    # What examples/pretrain.py holds out by default.
    texts = load_texts(validation_fraction=0.06)["validation"]
    speculation = [measure_speculation(folder, texts, arguments) for folder in arguments.model]
    lengths = measure_lengths(arguments)
    left_out = [length for length in arguments.lengths if length > arguments.max_uncached]
    threads = torch.get_num_threads()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    report = {
        "speculation": [entry for entries in speculation for entry in entries],
        "time_over_length": {"sizes": SIZES, "entries": lengths, "not_measured_uncached": left_out},
        "seed": arguments.seed,
        "repetitions": arguments.repetitions,
        "command": shlex.join(["examples/benchmarks/decoding.py", *argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "total_seconds": round(time.time() - started, 1),
        "machine": {
            "device": "cpu",
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "threads": threads,
            "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        },
        "versions": versions(),
        "git_commit": commit,
    }
    write_json(arguments.output_dir / "decoding_benchmark.json", report)
    draw(arguments.output_dir / "decoding_benchmark.png", lengths, threads)
    console = Console(width=None if sys.stdout.isatty() else 140)
    for entries in speculation:
        console.print(speculation_table(entries))
    console.print(length_table(lengths))
    if left_out:
        console.print(f"Not measured: uncached decoding of {', '.join(map(str, left_out))} tokens (--max_uncached).")
    console.print(f"decoding_benchmark.json and decoding_benchmark.png are in {arguments.output_dir}.")


if __name__ == "__main__":
    main(sys.argv[1:])
